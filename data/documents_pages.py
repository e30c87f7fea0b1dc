"""A whole document: sheet, heading, body, foot and mark put together, as its layout says."""

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

if __package__:
    from data.documents_bodies import BODIES
    from data.documents_contents import Contents
    from data.documents_drawing import HEADINGS, Box, Sheet, inset, laid_down, shade
    from data.documents_layouts import LAYOUTS, Layout
    from data.documents_marks import draw_mark
    from data.documents_plan import Document
    from data.documents_typefaces import Setter
else:
    from documents_bodies import BODIES
    from documents_contents import Contents
    from documents_drawing import HEADINGS, Box, Sheet, inset, laid_down, shade
    from documents_layouts import LAYOUTS, Layout
    from documents_marks import draw_mark
    from documents_plan import Document
    from documents_typefaces import Setter

_LAYOUT = {layout.name: layout for layout in LAYOUTS}
STRETCH = 0.06
"""Sheets are up to this share wider or narrower, higher or lower than their layout says."""
MARK_SIZES = {"stamp": (88, 88), "signature": (126, 70), "barcode": (130, 78), "qr_code": (88, 88)}


@dataclass(frozen=True)
class Drawn:
    """A finished picture, 224 × 224, and what is written on it."""

    picture: Image.Image
    written: tuple[str, ...]


def draw(document: Document, seed: int) -> Drawn:
    """Draw the document; the same document and seed give the same pixels.

    Raises:
        DataError: a character that no typeface of the split has.
        ConfigError: a font package is missing.
    """
    rng = random.Random(f"{seed}:{document.key}")
    layout = _LAYOUT[document.layout]
    width, height = (round(side * rng.uniform(1 - STRETCH, 1 + STRETCH)) for side in layout.size)
    sheet = Sheet(
        (min(width, 428), min(height, 428)),
        Setter(document.written_in, document.split, document.typeface),
        shade(document.colour, rng),
        rng,
        filled=document.recipe.endswith("sign") or document.type == "poster",
    )
    contents = Contents(document.written_in, document.split, rng)
    box = _edged(sheet, document, layout)
    if not document.recipe.endswith("sign"):
        box = _framed(sheet, box, document, layout, contents)
    BODIES[document.recipe](sheet, box, layout.body, contents, document)
    return Drawn(laid_down(sheet, rng), tuple(sheet.written))


def _edged(sheet: Sheet, document: Document, layout: Layout) -> Box:
    """Give the sheet its outline; returns the room inside it."""
    width, height = sheet.image.size
    box: Box = (0, 0, width, height)
    mask = ImageDraw.Draw(sheet.mask)
    if document.type == "receipt":
        sheet.mask.paste(0, (0, 0, width, height))
        mask.rectangle((0, 8, width, height - 9), fill=255)
        for x in range(0, width, 16):
            mask.polygon([(x, 8), (x + 8, 0), (x + 16, 8)], fill=255)
            mask.polygon([(x, height - 9), (x + 8, height), (x + 16, height - 9)], fill=255)
        return inset(box, 14, 18)
    if document.type == "sign":
        sheet.mask.paste(0, (0, 0, width, height))
        mask.rounded_rectangle((0, 0, width - 1, height - 1), 34, fill=255)
        sheet.outline(inset(box, 9), sheet.on_accent, 6, 26)
        return inset(box, 26)
    if document.type == "ticket":
        return _ticket_edge(sheet, layout.body, mask)
    return inset(box, 18)


def _ticket_edge(sheet: Sheet, style: str, mask: ImageDraw.ImageDraw) -> Box:
    """Notches, coloured stubs and the perforation beside them."""
    width, height = sheet.image.size
    left, top, right, bottom = 0, 0, width, height
    stub = 40
    sides = {
        "stub start": ("right",) if sheet.rtl else ("left",),
        "stub end": ("left",) if sheet.rtl else ("right",),
        "stub both": ("left", "right"),
        "stub top": ("top",),
    }.get(style, ())
    if "left" in sides:
        sheet.fill((0, 0, stub, height), sheet.accent)
        left = stub
    if "right" in sides:
        sheet.fill((width - stub, 0, width, height), sheet.accent)
        right = width - stub
    if "top" in sides:
        sheet.fill((0, 0, width, 26), sheet.accent)
        top = 26
    for x in [left] * ("left" in sides) + [right] * ("right" in sides):
        for y in range(4, height, 12):
            sheet.fill((x - 2, y, x + 2, y + 5), sheet.ink)
        for y in (0, height):
            mask.ellipse((x - 11, y - 11, x + 11, y + 11), fill=0)
    if "top" in sides:
        for x in range(4, width, 12):
            sheet.fill((x, top - 2, x + 5, top + 2), sheet.ink)
        for x in (0, width):
            mask.ellipse((x - 11, top - 11, x + 11, top + 11), fill=0)
    if not sides:
        for y in (height // 3, 2 * height // 3):
            for x in (0, width):
                mask.ellipse((x - 11, y - 11, x + 11, y + 11), fill=0)
    return inset((left, top, right, bottom), 14, 12)


def _framed(sheet: Sheet, box: Box, document: Document, layout: Layout, contents: Contents) -> Box:
    """Draw heading, foot and mark in the strips above and below; returns the room between."""
    assert document.mark is not None
    assert document.place is not None
    left, top, right, bottom = box
    short = document.type == "ticket"
    wide, high = MARK_SIZES[document.mark]
    scale = min(0.8 if short else 1.0, 0.47 * (right - left) / wide)
    wide, high = round(wide * scale), round(high * scale)
    at_top, at_left = document.place.startswith("top"), document.place.endswith("left")
    head_height = max(high, 40) if at_top else (46 if short else sheet.rng.randrange(58, 74))
    foot_height = 26 if at_top else high
    head: Box = (left, top, right, top + head_height)
    foot: Box = (left, bottom - foot_height, right, bottom)
    strip = head if at_top else foot
    x = left if at_left else right - wide
    y = strip[1] + (strip[3] - strip[1] - high) / 2
    rest = (left + wide + 12, *strip[1:]) if at_left else (*strip[:2], right - wide - 12, strip[3])
    head, foot = (rest, foot) if at_top else (head, rest)
    if document.type == "poster":
        sheet.fill((x - 6, y - 6, x + wide + 6, y + high + 6), sheet.paper)
        sheet.fill(head, sheet.paper, 6)
    if document.type == "calendar":
        heading = contents.month_page[0]
    else:
        heading = contents.heading(document.recipe)
    HEADINGS[layout.heading](sheet, inset(head, 0, max(0, (head[3] - head[1] - 76) / 2)), heading)
    date = contents.date()
    draw_mark(sheet, (x, y, x + wide, y + high), document.mark, f"{heading} {date}")
    if document.type in ("receipt", "poster", "table"):
        closing = contents.label("thanks") if document.type == "receipt" else date
        fill = sheet.on_accent if document.type == "poster" else sheet.ink
        sheet.text(inset(foot, 0, max(0, (foot[3] - foot[1] - 26) / 2)), closing, 20, fill=fill)
    return left, top + head_height + 10, right, bottom - foot_height - 10
