"""What a document carries in one of its corners: stamp, signature, barcode or QR code."""

import math

import barcode
import segno
from PIL import Image

if __package__:
    from data.documents_drawing import Box, Sheet, inset
else:
    from documents_drawing import Box, Sheet, inset

MARKS = ("stamp", "signature", "barcode", "qr_code")
PLACES = ("top_left", "top_right", "bottom_left", "bottom_right")


def draw_mark(sheet: Sheet, box: Box, mark: str, text: str) -> None:
    """Draw a stamp, signature, barcode or QR code in the box; codes hold ``text``."""
    {"stamp": _stamp, "signature": _signature, "barcode": _barcode, "qr_code": _qr_code}[mark](
        sheet, box, text
    )


def _square(box: Box) -> Box:
    left, top, right, bottom = box
    side = min(right - left, bottom - top)
    x, y = (left + right - side) / 2, (top + bottom - side) / 2
    return x, y, x + side, y + side


def _stamp(sheet: Sheet, box: Box, text: str) -> None:
    """Two rings and a star, a little turned."""
    left, top, right, bottom = _square(box)
    sheet.pen.ellipse((left, top, right, bottom), outline=sheet.accent, width=6)
    sheet.pen.ellipse(inset((left, top, right, bottom), 11), outline=sheet.accent, width=2)
    x, y, radius = (left + right) / 2, (top + bottom) / 2, (right - left) / 2
    turn = sheet.rng.uniform(0, math.tau)
    star = [
        (x + r * math.cos(turn + n * math.pi / 5), y + r * math.sin(turn + n * math.pi / 5))
        for n, r in enumerate([0.58 * radius, 0.24 * radius] * 5)
    ]
    sheet.pen.polygon(star, fill=sheet.accent)


def _signature(sheet: Sheet, box: Box, text: str) -> None:
    """Loops of a pen that drifts from start to end, over a line."""
    left, top, right, bottom = inset(box, 4)
    rng, height = sheet.rng, bottom - top
    turns, phase, slant = rng.uniform(3, 6), rng.uniform(0, math.tau), rng.uniform(0.1, 0.4)
    sizes = [rng.uniform(0.3, 1) for _ in range(9)]
    points = []
    for step in range(160):
        along = step / 159
        angle = phase + along * turns * math.tau
        size = sizes[int(along * 8)] * (1 - 0.5 * along) * height * 0.42
        y = (top + bottom) / 2 + size * math.sin(angle) - slant * (along - 0.5) * height
        x = left + along * (right - left) + size * 0.6 * math.cos(angle)
        points.append((min(max(x, left), right), min(max(y, top), bottom)))
    sheet.pen.line(points, fill=sheet.ink, width=4, joint="curve")
    sheet.line((left, bottom), (right, bottom), sheet.grey)


def _barcode(sheet: Sheet, box: Box, text: str) -> None:
    """Code 128 of six digits."""
    code = barcode.get("code128", f"{sheet.rng.randrange(10**6):06}").build()[0]
    left, top, right, bottom = box
    bars = Image.new("L", (len(code), 1))
    bars.putdata([sheet.ink[0] if module == "1" else 255 for module in code])
    size = (round(right - left), round((bottom - top) * 0.8))
    place = (round(left), round((top + bottom - size[1]) / 2))
    sheet.image.paste(bars.resize(size, Image.Resampling.BOX).convert("RGB"), place)


def _qr_code(sheet: Sheet, box: Box, text: str) -> None:
    rows = segno.make(text, error="l", micro=False, encoding="utf-8").matrix
    pixels = Image.new("L", (len(rows), len(rows)))
    pixels.putdata([sheet.ink[0] if module else 255 for row in rows for module in row])
    left, top, right, _ = _square(box)
    side = round(right - left)
    code = pixels.resize((side, side), Image.Resampling.BOX).convert("RGB")
    sheet.image.paste(code, (round(left), round(top)))
