"""The things of IconWorld, as drawings: each is a list of shapes on a unit square, painted by role.

A role names a paint, not a colour: `body` is the colour that the caption names, `dark` and `light` are shades of it, and
the rest are fixed. So one drawing serves every colour, and what a thing *is* lies in its shape alone.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

ROLES = ("none", "ink", "body", "dark", "light", "white", "wood", "leaf", "glass")
FIXED_PAINT = {
    "ink": (28, 26, 34),
    "white": (245, 244, 238),
    "wood": (122, 82, 46),
    "leaf": (40, 120, 52),
    "glass": (150, 205, 232),
}
CANVAS = 128  # pixels a side at which a drawing is made, before it is scaled down into a picture

Shape = tuple[str, str, tuple[float, ...]]  # (role, "oval" | "poly" | "line", coordinates; a line ends with its width)


def _oval(role: str, x: float, y: float, rx: float, ry: float) -> Shape:
    return role, "oval", (x - rx, y - ry, x + rx, y + ry)


def _box(role: str, x0: float, y0: float, x1: float, y1: float) -> Shape:
    return role, "poly", (x0, y0, x1, y0, x1, y1, x0, y1)


def _poly(role: str, *xy: float) -> Shape:
    return role, "poly", xy


def _line(role: str, x0: float, y0: float, x1: float, y1: float, width: float) -> Shape:
    return role, "line", (x0, y0, x1, y1, width)


def _petals(role: str, x: float, y: float, radius: float, size: float, n: int) -> list[Shape]:
    turns = (2 * math.pi * i / n for i in range(n))
    return [_oval(role, x + radius * math.cos(t), y + radius * math.sin(t), size, size) for t in turns]


DRAWINGS: dict[str, list[Shape]] = {
    # animals
    "cat": [
        _line("dark", 0.80, 0.86, 0.93, 0.50, 0.09), _oval("body", 0.55, 0.74, 0.30, 0.22), _poly("body", 0.12, 0.08, 0.34, 0.22, 0.12, 0.42),
        _poly("body", 0.62, 0.08, 0.40, 0.22, 0.62, 0.42), _oval("body", 0.37, 0.38, 0.27, 0.23), _oval("white", 0.27, 0.35, 0.06, 0.06),
        _oval("white", 0.47, 0.35, 0.06, 0.06), _oval("ink", 0.27, 0.35, 0.03, 0.05), _oval("ink", 0.47, 0.35, 0.03, 0.05), _oval("ink", 0.37, 0.46, 0.04, 0.03),
    ],
    "dog": [
        _line("body", 0.86, 0.50, 0.95, 0.28, 0.08), _box("body", 0.34, 0.44, 0.90, 0.68), _box("body", 0.36, 0.66, 0.46, 0.94), _box("body", 0.78, 0.66, 0.88, 0.94),
        _box("dark", 0.50, 0.66, 0.58, 0.90), _box("dark", 0.66, 0.66, 0.74, 0.90), _oval("body", 0.30, 0.34, 0.20, 0.18), _box("body", 0.05, 0.34, 0.28, 0.50),
        _oval("dark", 0.42, 0.36, 0.08, 0.20), _oval("ink", 0.07, 0.38, 0.05, 0.04), _oval("ink", 0.24, 0.29, 0.035, 0.035),
    ],
    "bird": [
        _line("wood", 0.44, 0.70, 0.42, 0.95, 0.05), _line("wood", 0.56, 0.70, 0.58, 0.95, 0.05), _poly("dark", 0.70, 0.50, 0.98, 0.38, 0.94, 0.60),
        _oval("body", 0.52, 0.55, 0.28, 0.21), _oval("body", 0.30, 0.30, 0.16, 0.16), _poly("wood", 0.16, 0.26, 0.00, 0.34, 0.16, 0.38),
        _poly("light", 0.42, 0.46, 0.76, 0.44, 0.56, 0.70), _oval("white", 0.27, 0.27, 0.05, 0.05), _oval("ink", 0.26, 0.27, 0.03, 0.03),
    ],
    "fish": [
        _poly("dark", 0.66, 0.50, 0.98, 0.24, 0.98, 0.76), _poly("dark", 0.34, 0.30, 0.60, 0.12, 0.62, 0.34), _oval("body", 0.40, 0.50, 0.36, 0.24),
        _poly("light", 0.40, 0.50, 0.58, 0.42, 0.58, 0.60), _line("dark", 0.28, 0.34, 0.28, 0.66, 0.03), _oval("white", 0.18, 0.44, 0.06, 0.06), _oval("ink", 0.17, 0.44, 0.03, 0.03),
    ],
    # vehicles
    "car": [
        _poly("body", 0.24, 0.50, 0.36, 0.26, 0.68, 0.26, 0.80, 0.50), _box("body", 0.04, 0.48, 0.96, 0.72), _poly("glass", 0.32, 0.48, 0.39, 0.32, 0.50, 0.32, 0.50, 0.48),
        _poly("glass", 0.54, 0.48, 0.54, 0.32, 0.65, 0.32, 0.72, 0.48), _oval("ink", 0.25, 0.74, 0.13, 0.13), _oval("ink", 0.75, 0.74, 0.13, 0.13),
        _oval("white", 0.25, 0.74, 0.05, 0.05), _oval("white", 0.75, 0.74, 0.05, 0.05),
    ],
    "boat": [
        _line("wood", 0.48, 0.08, 0.48, 0.70, 0.05), _poly("white", 0.54, 0.12, 0.54, 0.60, 0.92, 0.60), _poly("light", 0.42, 0.20, 0.42, 0.60, 0.14, 0.60),
        _poly("body", 0.04, 0.66, 0.96, 0.66, 0.80, 0.92, 0.20, 0.92),
    ],
    "plane": [
        _poly("dark", 0.80, 0.46, 0.96, 0.16, 0.99, 0.46), _poly("dark", 0.40, 0.42, 0.62, 0.14, 0.70, 0.16, 0.60, 0.44), _oval("body", 0.50, 0.50, 0.47, 0.13),
        _poly("light", 0.34, 0.54, 0.58, 0.54, 0.78, 0.88, 0.66, 0.88), _oval("glass", 0.16, 0.46, 0.07, 0.05),
        *[_oval("white", x, 0.47, 0.03, 0.03) for x in (0.34, 0.46, 0.58, 0.70)],
    ],
    "lorry": [
        _box("light", 0.36, 0.18, 0.98, 0.70), _poly("body", 0.02, 0.72, 0.02, 0.52, 0.12, 0.34, 0.32, 0.34, 0.32, 0.72), _box("body", 0.02, 0.62, 0.98, 0.74),
        _poly("glass", 0.08, 0.52, 0.15, 0.40, 0.26, 0.40, 0.26, 0.52), *[_oval("ink", x, 0.78, 0.11, 0.11) for x in (0.19, 0.62, 0.86)],
    ],
    # plants
    "tree": [_box("wood", 0.43, 0.58, 0.57, 0.96), *_petals("body", 0.50, 0.36, 0.20, 0.19, 6), _oval("light", 0.42, 0.28, 0.12, 0.12)],
    "flower": [
        _line("leaf", 0.50, 0.45, 0.50, 0.97, 0.05), _oval("leaf", 0.64, 0.76, 0.14, 0.06), _oval("leaf", 0.36, 0.84, 0.14, 0.06),
        *_petals("body", 0.50, 0.32, 0.20, 0.12, 5), _oval("white", 0.50, 0.32, 0.10, 0.10),
    ],
    "cactus": [
        _poly("wood", 0.30, 0.80, 0.70, 0.80, 0.64, 0.98, 0.36, 0.98), _line("body", 0.50, 0.14, 0.50, 0.80, 0.22), _oval("body", 0.50, 0.14, 0.11, 0.11),
        _line("body", 0.50, 0.56, 0.18, 0.56, 0.13), _line("body", 0.20, 0.60, 0.20, 0.30, 0.13), _line("body", 0.50, 0.46, 0.82, 0.46, 0.13), _line("body", 0.80, 0.50, 0.80, 0.20, 0.13),
        _line("light", 0.46, 0.18, 0.46, 0.76, 0.03), _line("light", 0.55, 0.18, 0.55, 0.76, 0.03),
    ],
    "mushroom": [
        _poly("white", 0.38, 0.50, 0.62, 0.50, 0.68, 0.94, 0.32, 0.94), _poly("body", 0.04, 0.56, 0.10, 0.34, 0.28, 0.14, 0.50, 0.08, 0.72, 0.14, 0.90, 0.34, 0.96, 0.56),
        _oval("white", 0.34, 0.32, 0.08, 0.08), _oval("white", 0.62, 0.26, 0.07, 0.07), _oval("white", 0.76, 0.44, 0.06, 0.06),
    ],
    # buildings
    "house": [
        _box("wood", 0.70, 0.14, 0.82, 0.40), _box("body", 0.14, 0.46, 0.86, 0.94), _poly("dark", 0.04, 0.50, 0.50, 0.10, 0.96, 0.50),
        _box("white", 0.24, 0.58, 0.42, 0.74), _box("ink", 0.56, 0.62, 0.74, 0.94),
    ],
    "church": [
        _line("ink", 0.24, 0.00, 0.24, 0.20, 0.05), _line("ink", 0.16, 0.07, 0.32, 0.07, 0.05), _poly("dark", 0.08, 0.40, 0.24, 0.14, 0.40, 0.40), _box("body", 0.12, 0.40, 0.36, 0.96),
        _box("light", 0.36, 0.62, 0.96, 0.96), _poly("dark", 0.36, 0.64, 0.44, 0.46, 0.90, 0.46, 0.99, 0.64), _box("ink", 0.18, 0.74, 0.30, 0.96),
        _box("glass", 0.50, 0.72, 0.60, 0.88), _box("glass", 0.72, 0.72, 0.82, 0.88),
    ],
    "lighthouse": [
        _poly("body", 0.36, 0.30, 0.64, 0.30, 0.74, 0.96, 0.26, 0.96), _poly("white", 0.34, 0.44, 0.66, 0.44, 0.68, 0.58, 0.32, 0.58), _poly("white", 0.30, 0.72, 0.70, 0.72, 0.72, 0.84, 0.28, 0.84),
        _box("glass", 0.40, 0.16, 0.60, 0.30), _box("ink", 0.32, 0.28, 0.68, 0.33), _poly("dark", 0.34, 0.17, 0.50, 0.02, 0.66, 0.17),
    ],
    "tent": [
        _poly("body", 0.02, 0.90, 0.50, 0.14, 0.98, 0.90), _poly("light", 0.50, 0.14, 0.74, 0.90, 0.98, 0.90), _poly("ink", 0.38, 0.90, 0.50, 0.46, 0.60, 0.90),
        _line("wood", 0.50, 0.18, 0.44, 0.04, 0.04), _line("wood", 0.50, 0.18, 0.56, 0.04, 0.04),
    ],
    # toys
    "ball": [_oval("body", 0.50, 0.50, 0.44, 0.44), _oval("white", 0.50, 0.50, 0.16, 0.44), _oval("body", 0.50, 0.50, 0.07, 0.44), _oval("light", 0.26, 0.30, 0.09, 0.09)],
    "kite": [
        _line("wood", 0.50, 0.62, 0.30, 0.98, 0.04), _poly("ink", 0.34, 0.76, 0.52, 0.82, 0.36, 0.90), _poly("body", 0.50, 0.02, 0.84, 0.32, 0.50, 0.72, 0.16, 0.32),
        _poly("light", 0.50, 0.02, 0.84, 0.32, 0.50, 0.32), _poly("light", 0.16, 0.32, 0.50, 0.32, 0.50, 0.72),
    ],
    "drum": [
        _line("wood", 0.30, 0.22, 0.06, 0.04, 0.06), _line("wood", 0.70, 0.22, 0.94, 0.04, 0.06), _box("body", 0.10, 0.32, 0.90, 0.80), _oval("body", 0.50, 0.80, 0.40, 0.14),
        _oval("white", 0.50, 0.32, 0.40, 0.14), *[_line("ink", x, 0.44, x + 0.10, 0.86, 0.03) for x in (0.16, 0.36, 0.56, 0.74)], *[_line("ink", x + 0.10, 0.44, x, 0.86, 0.03) for x in (0.16, 0.36, 0.56, 0.74)],
    ],
    "robot": [
        _line("ink", 0.50, 0.02, 0.50, 0.14, 0.04), _box("body", 0.26, 0.12, 0.74, 0.44), _box("glass", 0.34, 0.20, 0.45, 0.31), _box("glass", 0.55, 0.20, 0.66, 0.31), _box("ink", 0.38, 0.36, 0.62, 0.40),
        _box("dark", 0.20, 0.48, 0.80, 0.78), _box("body", 0.04, 0.48, 0.16, 0.76), _box("body", 0.84, 0.48, 0.96, 0.76), _box("white", 0.38, 0.54, 0.62, 0.68),
        _box("body", 0.28, 0.80, 0.44, 0.97), _box("body", 0.56, 0.80, 0.72, 0.97),
    ],
}  # fmt: skip


@cache
def role_map(noun: str, outline: int = 5) -> np.ndarray:
    """Paint a thing's drawing in roles.

    Args:
        noun: a key of `DRAWINGS`.
        outline: width in canvas pixels of the ink line around the whole thing.

    Returns:
        uint8 `[CANVAS, CANVAS]`, each value an index into `ROLES` (0 where the thing is not).

    Example:
        >>> role_map("cat").shape
        (128, 128)
    """
    image = Image.new("L", (CANVAS, CANVAS), 0)
    draw, margin = ImageDraw.Draw(image), outline
    scale = CANVAS - 1 - 2 * margin
    for role, shape, values in DRAWINGS[noun]:
        paint, points = ROLES.index(role), [margin + v * scale for v in values]
        if shape == "oval":
            draw.ellipse(points, fill=paint)
        elif shape == "poly":
            draw.polygon(points, fill=paint)
        else:
            draw.line(points[:4], fill=paint, width=round(values[4] * scale))
    roles = np.asarray(image)
    inside = Image.fromarray(((roles > 0) * 255).astype(np.uint8))
    edge = (np.asarray(inside.filter(ImageFilter.MaxFilter(outline))) > 0) & (roles == 0)
    return np.where(edge, ROLES.index("ink"), roles).astype(np.uint8)


def paint(noun: str, body: tuple[int, int, int], size: int, mirrored: bool = False) -> Image.Image:
    """Draw one thing on a transparent square.

    Args:
        noun: a key of `DRAWINGS`.
        body: red, green and blue, 0 to 255, of the `body` role.
        size: pixels a side.
        mirrored: swap left and right.

    Returns:
        An RGBA picture, `size` by `size`.

    Example:
        >>> paint("cat", (200, 40, 40), 32).size
        (32, 32)
    """
    shades = {
        "body": body,
        "dark": _mix(body, (0, 0, 0), 0.35),
        "light": _mix(body, (255, 255, 255), 0.35),
        "none": (0, 0, 0),
    }
    palette = np.array([(*(shades.get(role) or FIXED_PAINT[role]), 255 * (role != "none")) for role in ROLES], np.uint8)
    roles = role_map(noun)[:, ::-1] if mirrored else role_map(noun)
    return Image.fromarray(palette[roles]).resize((size, size), Image.Resampling.BOX)


def _mix(a: tuple[int, int, int], b: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    red, green, blue = (round(x * (1 - share) + y * share) for x, y in zip(a, b, strict=True))
    return red, green, blue
