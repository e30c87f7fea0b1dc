"""Signs: one word, one big digit, or a list of places with arrows."""

from collections.abc import Sequence

if __package__:
    from data.documents_contents import Contents
    from data.documents_drawing import Box, Sheet, inset, row_boxes
    from data.documents_plan import Document
else:
    from documents_contents import Contents
    from documents_drawing import Box, Sheet, inset, row_boxes
    from documents_plan import Document


def list_sign(sheet: Sheet, box: Box, style: str, contents: Contents, facts: Document) -> None:
    """Places, each with an arrow and a distance."""
    assert facts.count is not None
    places = contents.places(facts.count)
    for number, (row, place) in enumerate(
        zip(row_boxes(sheet, box, facts.count), places, strict=True)
    ):
        row, fill = inset(row, 0, 4), sheet.on_accent
        if style in ("plates", "blocks", "pointers"):
            fill = sheet.ink
            if style == "pointers":
                tip, middle = 26, (row[1] + row[3]) / 2
                corners = [
                    (row[0], row[1]), (row[2] - tip, row[1]), (row[2], middle),
                    (row[2] - tip, row[3]), (row[0], row[3]),
                ]  # fmt: skip
                if sheet.rtl:
                    corners = [(row[0] + row[2] - x, y) for x, y in corners]
                sheet.pen.polygon(corners, fill=sheet.paper)
            else:
                sheet.fill(row, sheet.paper, 14 if style == "plates" else 0)
        elif style == "lines" and number:
            sheet.line((row[0], row[1] - 4), (row[2], row[1] - 4), sheet.on_accent, 4)
        arrow, rest = sheet.split(inset(row, 10, 4), 0.14, 8)
        name, distance = sheet.split(rest, 0.66, 8)
        _arrow(sheet, arrow, fill)
        sheet.text(name, place, 44, bold=True, fill=fill)
        kilometres = contents.number(sheet.rng.randrange(2, 300))
        end = inset(distance, 22 if style == "pointers" else 0, 0)
        sheet.text(end, f"{kilometres} {contents.label('km')}", 32, fill=fill, align="end")


def number_sign(sheet: Sheet, box: Box, style: str, contents: Contents, facts: Document) -> None:
    """One digit as large as the plate, and what it counts."""
    assert facts.number is not None
    left, top, right, bottom = box
    label, digit = contents.heading("number_sign"), contents.number(facts.number)
    cut = 0.24 * (bottom - top)
    small, large = (left, top, right, top + cut), (left, top + cut, right, bottom)
    if style in ("under", "panel"):
        small, large = (left, bottom - cut, right, bottom), (left, top, right, bottom - cut)
    elif style == "beside":
        small, large = sheet.split(box, 0.5, 10)
    fill = sheet.on_accent
    if style == "panel":
        sheet.fill(large, sheet.paper, 20)
        fill = sheet.ink
    elif style == "ring":
        middle, radius = (large[0] + large[2]) / 2, (large[3] - large[1]) / 2
        sheet.pen.ellipse((middle - radius, large[1], middle + radius, large[3]), fill=sheet.paper)
        large, fill = inset(large, 0, 24), sheet.ink
    elif style == "round":
        large = inset(large, 0, 8)
    sheet.text(small, label, 62, fill=sheet.on_accent, align="middle")
    draw_digit(sheet, large, digit, fill)


def word_sign(sheet: Sheet, box: Box, style: str, contents: Contents, facts: Document) -> None:
    """One word as large as fits."""
    assert facts.word is not None
    text, fill = contents.sign(facts.word), sheet.on_accent
    if style in ("framed", "badge"):
        sheet.outline(box, sheet.on_accent, 8, 16)
        box = inset(box, 18)
    if style == "badge":
        sheet.fill(box, sheet.paper, 10)
        box, fill = inset(box, 10), sheet.ink
    elif style == "lined":
        left, top, right, bottom = box
        sheet.fill((left, top, right, top + 14), sheet.on_accent)
        sheet.fill((left, bottom - 14, right, bottom), sheet.on_accent)
        box = inset(box, 0, 22)
    elif style == "pointed":
        arrow, box = sheet.split(box, 0.2, 12)
        _arrow(sheet, arrow, fill)
    sheet.text(box, text, 170, bold=True, fill=fill, align="middle")


def draw_digit(sheet: Sheet, box: Box, digit: str, fill: tuple[int, int, int]) -> None:
    sheet.text(box, digit, 1.15 * (box[3] - box[1]), bold=True, fill=fill, align="middle")


def _arrow(sheet: Sheet, box: Box, fill: tuple[int, int, int]) -> None:
    """To the left, to the right or up."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    size = min(box[2] - box[0], box[3] - box[1]) / 2
    shape = [(-1, 0), (0, -0.8), (0, -0.3), (1, -0.3), (1, 0.3), (0, 0.3), (0, 0.8)]
    way = sheet.rng.randrange(3)
    turned: Sequence[tuple[float, float]] = shape
    if way == 1:
        turned = [(-dx, dy) for dx, dy in shape]
    elif way == 2:
        turned = [(dy, dx) for dx, dy in shape]
    sheet.pen.polygon([(x + size * dx, y + size * dy) for dx, dy in turned], fill=fill)
