"""Pictures of plain shapes for posters."""

import math

if __package__:
    from data.documents_drawing import Box, Sheet, columns, pale
else:
    from documents_drawing import Box, Sheet, columns, pale


def draw_art(sheet: Sheet, box: Box, style: str) -> None:
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    light, strong = pale(sheet.accent, 0.75), sheet.on_accent
    rng = sheet.rng
    sheet.fill(box, light)
    x = left + width * rng.uniform(0.35, 0.65)
    if style == "sun":
        y, radius = top + 0.5 * height, 0.22 * height
        for ray in range(12):
            angle = ray * math.tau / 12
            sheet.line(
                (x + 1.4 * radius * math.cos(angle), y + 1.4 * radius * math.sin(angle)),
                (x + 2.1 * radius * math.cos(angle), y + 2.1 * radius * math.sin(angle)),
                sheet.accent, 7,
            )  # fmt: skip
        sheet.pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=sheet.accent)
    elif style == "hills":
        for foot, share in ((0.3, 0.8), (0.7, 0.6)):
            peak = left + foot * width
            sheet.pen.polygon(
                [
                    (max(left, peak - 0.4 * width), bottom),
                    (peak, bottom - share * height),
                    (min(right, peak + 0.4 * width), bottom),
                ],
                fill=sheet.accent if share > 0.7 else sheet.ink,
            )
    elif style == "discs":
        for _ in range(5):
            radius = height * rng.uniform(0.1, 0.22)
            cx, cy = (
                rng.uniform(left + radius, right - radius),
                rng.uniform(top + radius, bottom - radius),
            )
            sheet.pen.ellipse(
                (cx - radius, cy - radius, cx + radius, cy + radius),
                fill=rng.choice((sheet.accent, strong, sheet.ink)),
            )
    elif style == "stripes":
        for number, stripe in enumerate(columns(box, 9)):
            if number % 2:
                sheet.fill(stripe, sheet.accent)
    elif style == "rings":
        for share in (0.9, 0.68, 0.46, 0.24):
            radius, y = share * height / 2, (top + bottom) / 2
            sheet.pen.ellipse(
                (x - radius, y - radius, x + radius, y + radius), outline=sheet.accent, width=9
            )
    else:
        for number in range(4):
            side = height * (0.42 if number % 2 else 0.3)
            sx = left + (0.05 + 0.24 * number) * width
            sy = top + (0.12 + 0.14 * (number % 3)) * height
            sheet.fill((sx, sy, sx + side, sy + side), sheet.ink if number % 2 else sheet.accent)
