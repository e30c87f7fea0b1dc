"""What stands between heading and foot of each recipe's document, in the styles of its layouts.

Each function draws one recipe's body into a box and returns nothing; what it writes comes from
``contents``. Rows of a list have one pitch, a fifth of the box or what fills it: how far a list
reaches does not always tell how long it is.
"""

from decimal import Decimal

if __package__:
    from data import documents_words as words
    from data.documents_art import draw_art
    from data.documents_contents import Contents
    from data.documents_drawing import Box, Sheet, columns, inset, pale, row_boxes
    from data.documents_plan import Document
    from data.documents_signs import draw_digit, list_sign, number_sign, word_sign
else:
    import documents_words as words
    from documents_art import draw_art
    from documents_contents import Contents
    from documents_drawing import Box, Sheet, columns, inset, pale, row_boxes
    from documents_plan import Document
    from documents_signs import draw_digit, list_sign, number_sign, word_sign


def receipt(sheet: Sheet, box: Box, style: str, contents: Contents, facts: Document) -> None:
    """Goods, their prices, the total."""
    assert facts.count is not None
    left, top, right, bottom = box
    amounts = [contents.amount() for _ in range(facts.count)]
    rows = row_boxes(sheet, (left, top, right, bottom - 48), facts.count)
    goods = contents.goods(facts.count)
    for row, good, amount in zip(rows, goods, amounts, strict=True):
        if style == "bars":
            sheet.fill(inset(row, 0, 3), (225, 225, 225))
        elif style == "boxes":
            sheet.outline(inset(row, 0, 2), sheet.ink)
        elif style == "rules":
            sheet.line((left, row[3]), (right, row[3]), sheet.grey)
        inner = inset(row, 6, 2)
        if style == "bullets":
            dot, inner = sheet.split(inner, 0.1)
            _dot(sheet, dot, 6)
        name, price = sheet.split(inner, 0.62, 8)
        width = sheet.text(name, good, 30)
        sheet.text(price, contents.bare_price(amount), 29, align="end")
        if style == "leaders":
            y, free = row[3] - 8, name[2] - name[0] - width
            begin = name[0] if sheet.rtl else name[0] + width
            for x in range(round(begin + 6), round(begin + free), 9):
                sheet.fill((x, y - 1, x + 2, y + 1), sheet.grey)
    end = rows[-1][3]
    sheet.line((left, end + 6), (right, end + 6), sheet.ink, 4)
    name, price = sheet.split((left, end + 8, right, end + 48), 0.42, 6)
    sheet.text(name, contents.label("total"), 32, bold=True)
    total = sum(amounts, Decimal(0))
    sheet.text(price, contents.price(total), 32, bold=True, align="end")


def form(sheet: Sheet, box: Box, style: str, contents: Contents, facts: Document) -> None:
    """Empty fields with their labels."""
    assert facts.count is not None
    labels = sheet.rng.sample(words.FIELDS, facts.count)
    for row, key in zip(row_boxes(sheet, box, facts.count), labels, strict=True):
        row = inset(row, 0, 4)
        label, field = sheet.split(row, 0.32, 8)
        if style == "stacked":
            middle = row[1] + 0.42 * (row[3] - row[1])
            label, field = (*row[:3], middle), (row[0], middle, *row[2:])
        sheet.text(label, contents.label(key), 30)
        if style == "lines":
            sheet.line((field[0], field[3] - 6), (field[2], field[3] - 6), sheet.ink, 3)
        elif style == "shaded":
            sheet.fill(field, (214, 214, 214))
        elif style == "combs":
            for cell in columns(field, 7, 3):
                sheet.outline(cell, sheet.ink, 2)
        else:
            sheet.outline(field, sheet.ink, 3)


def table(sheet: Sheet, box: Box, style: str, contents: Contents, facts: Document) -> None:
    """A head and rows of three columns."""
    assert facts.count is not None
    left, top, right, bottom = box
    keys, rows = _table_text(contents, facts.count)
    height = (bottom - top) / 6
    head = (left, top, right, top + height)
    bodies = row_boxes(sheet, (left, top + height, right, bottom), facts.count)
    gap = 8 if style == "cells" else 0
    sheet.fill(head, sheet.accent)
    lines = [[contents.label(key) for key in keys], *rows]
    for number, (row, texts) in enumerate(zip([head, *bodies], lines, strict=True)):
        if style == "bars" and number % 2 == 0 and number:
            sheet.fill(row, (222, 222, 222))
        if style == "rules":
            sheet.line((left, row[3]), (right, row[3]), sheet.ink)
        first, rest = sheet.split(row, 0.46)
        cells = columns(rest, 2)
        for cell, text in zip([first, *(cells[::-1] if sheet.rtl else cells)], texts, strict=True):
            if style == "grid":
                sheet.outline(cell, sheet.ink)
            elif style == "columns":
                sheet.line((cell[0], cell[1]), (cell[0], cell[3]), sheet.ink, 3)
                sheet.line((cell[2], cell[1]), (cell[2], cell[3]), sheet.ink, 3)
            elif style == "cells" and number:
                sheet.outline(inset(cell, gap / 2), sheet.ink, 2, 8)
            fill = sheet.ink if number else sheet.on_accent
            sheet.text(inset(cell, 8, 3), text, 30, bold=not number, fill=fill)


def _table_text(contents: Contents, count: int) -> tuple[tuple[str, ...], list[list[str]]]:
    """Keys of the columns and the rows: departures, an order or stock, by split."""
    rng = contents.rng
    if contents.split == "train":
        times = sorted(contents.time() for _ in range(count))
        return ("to", "time", "gate"), [
            [place, time, contents.number(rng.randrange(1, 60))]
            for place, time in zip(contents.places(count), times, strict=True)
        ]
    rows = [
        [good, contents.number(rng.randrange(1, 99)), contents.bare_price(contents.amount())]
        for good in contents.goods(count)
    ]
    if contents.split == "dev":
        return ("goods", "price", "quantity"), [[good, price, n] for good, n, price in rows]
    return ("goods", "quantity", "price"), rows


def poster(sheet: Sheet, box: Box, style: str, contents: Contents, facts: Document) -> None:
    """A picture of plain shapes over a programme."""
    assert facts.count is not None
    left, top, right, bottom = box
    middle = top + 0.45 * (bottom - top)
    draw_art(sheet, (left, top, right, middle - 8), style)
    rows = row_boxes(sheet, (left, middle, right, bottom), facts.count)
    times = sorted(contents.time() for _ in rows)
    for row, time, place in zip(rows, times, contents.places(len(rows)), strict=True):
        sheet.fill(inset(row, 0, 3), sheet.paper, 6)
        clock, name = sheet.split(inset(row, 10, 4), 0.3, 8)
        sheet.text(clock, time, 28, bold=True)
        sheet.text(name, place, 28)


def letter(sheet: Sheet, box: Box, style: str, contents: Contents, facts: Document) -> None:
    """Date, greeting and a few paragraphs."""
    left, top, right, bottom = box
    place = contents.places(1)[0]
    align = {"centred": "middle", "end": "end"}.get(style, "start")
    head = (left, top, right, top + 26)
    sheet.text(head, f"{place}  {contents.date()}", 20, align="start" if align == "end" else "end")
    greeting = words.GREETINGS[contents.place]
    sheet.text((left, top + 28, right, top + 58), greeting, 24, bold=True, align=align)
    top += 64
    parts = columns((left, top, right, bottom), 2, 16) if style == "columns" else [
        (left, top, right, bottom)
    ]  # fmt: skip
    sentences = contents.sentences()
    for number, part in enumerate(parts[::-1] if sheet.rtl else parts):
        y = part[1]
        if style == "initial":
            sheet.fill((left, y, left + 8, bottom), sheet.accent)
            part = (left + 18, *part[1:])
        indent = 30 if style == "indented" else 0
        for sentence in sentences[number :: len(parts)]:
            room = (part[0], y, part[2], bottom)
            y = sheet.paragraph(room, sentence, 20, indent=indent, align=align) + 9


def ticket(sheet: Sheet, box: Box, style: str, contents: Contents, facts: Document) -> None:
    """A big digit, from where to where, date and time."""
    assert facts.number is not None
    digit, lines = sheet.split(box, 0.36, 12)
    sheet.outline(digit, sheet.ink, 4)
    draw_digit(sheet, inset(digit, 4), contents.number(facts.number), sheet.ink)
    places = contents.places(2)
    texts = (
        f"{contents.label('from')}: {places[0]}",
        f"{contents.label('to')}: {places[1]}",
        f"{contents.date()}  {contents.time()}",
    )
    for row, text in zip(_rows(lines, 3), texts, strict=True):
        sheet.text(row, text, 28)


def calendar(sheet: Sheet, box: Box, style: str, contents: Contents, facts: Document) -> None:
    """A month: a head of weekdays and a row a week."""
    _, weekdays, weeks = contents.month_page
    lines = [weekdays, *weeks]
    for number, (row, texts) in enumerate(zip(_rows(box, 7), lines, strict=False)):
        if style == "stripes" and number % 2:
            sheet.fill(row, (222, 222, 222))
        elif style == "lines":
            sheet.line((box[0], row[3]), (box[2], row[3]), sheet.grey)
        if number == 0:
            sheet.fill(inset(row, 0, 3), pale(sheet.accent, 0.45))
        cells = columns(row, 7, 4)
        for cell, text in zip(cells[::-1] if sheet.rtl else cells, texts, strict=True):
            if style == "boxes" and number:
                sheet.outline(inset(cell, 0, 2), sheet.grey)
            elif style == "rings" and number and text:
                side = min(cell[2] - cell[0], cell[3] - cell[1]) / 2 - 1
                x, y = (cell[0] + cell[2]) / 2, (cell[1] + cell[3]) / 2
                sheet.pen.ellipse(
                    (x - side, y - side, x + side, y + side), outline=sheet.grey, width=2
                )
            if text:
                sheet.text(cell, text, 26, bold=number == 0, align="middle")


def _dot(sheet: Sheet, box: Box, radius: float) -> None:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    sheet.pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=sheet.ink)


def _rows(box: Box, count: int) -> list[Box]:
    """``count`` equal parts from top to bottom."""
    left, top, right, bottom = box
    height = (bottom - top) / count
    return [(left, top + n * height, right, top + (n + 1) * height) for n in range(count)]


BODIES = {
    "receipt": receipt,
    "form": form,
    "letter": letter,
    "number_sign": number_sign,
    "word_sign": word_sign,
    "list_sign": list_sign,
    "ticket": ticket,
    "table": table,
    "poster": poster,
    "calendar": calendar,
}
