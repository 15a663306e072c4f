"""The words of the world: eight colours, six shapes, nine kinds of action, nine places.

Answers are spelled with these words alone, so a score is an exact comparison of strings.
"""

from typing import Literal, get_args

Colour = Literal["red", "green", "blue", "yellow", "purple", "orange", "white", "cyan"]
Shape = Literal["circle", "square", "triangle", "star", "ring", "cross"]
Action = Literal[
    "moves left", "moves right", "moves up", "moves down", "grows", "shrinks", "appears", "disappears", "turns"
]

COLOURS: tuple[Colour, ...] = get_args(Colour)
SHAPES: tuple[Shape, ...] = get_args(Shape)
ACTIONS: tuple[Action, ...] = get_args(Action)
NUMBERS = ("Zero", "One", "Two", "Three", "Four", "Five")

SHADES: dict[Colour, tuple[tuple[int, int, int], ...]] = {
    "red": ((220, 40, 40), (255, 0, 0), (200, 20, 30), (230, 57, 70)),
    "green": ((40, 180, 60), (0, 200, 0), (0, 150, 40), (0, 255, 0), (60, 200, 90)),
    "blue": ((50, 80, 230), (0, 0, 255), (40, 100, 220), (30, 60, 255)),
    "yellow": ((240, 220, 50), (255, 255, 0), (250, 210, 40), (255, 230, 60)),
    "purple": ((150, 60, 200), (128, 0, 128), (160, 32, 240), (140, 50, 170)),
    "orange": ((245, 140, 30), (255, 165, 0), (255, 128, 0), (240, 120, 40)),
    "white": ((240, 240, 240), (255, 255, 255), (225, 225, 225)),
    "cyan": ((40, 210, 220), (0, 255, 255), (0, 200, 210), (70, 220, 230)),
}
"""RGB shades that people call by each name; a script's object picks one and jitters it."""


HUES: dict[Colour, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-10, 6), (0.65, 1), (0.7, 1)),
    "green": ((95, 150), (0.5, 1), (0.5, 1)),
    "blue": ((200, 245), (0.55, 1), (0.55, 1)),
    "yellow": ((46, 62), (0.6, 1), (0.85, 1)),
    "purple": ((268, 305), (0.4, 1), (0.45, 0.9)),
    "orange": ((20, 40), (0.7, 1), (0.8, 1)),
    "white": ((0, 360), (0, 0.06), (0.85, 1)),
    "cyan": ((172, 190), (0.55, 1), (0.7, 1)),
}
"""Hue (degrees), saturation and value (0..1) within which hardly anybody would call a colour otherwise: what another
renderer's palette may hold. Scripts draw from `SHADES`."""


def place(x: float, y: float) -> str:
    """The third of the picture that holds (x, y), both 0..1 from the top left: "top left", "middle right", "center"."""
    row = ("top", "middle", "bottom")[min(2, max(0, int(y * 3)))]
    column = ("left", "center", "right")[min(2, max(0, int(x * 3)))]
    return "center" if (row, column) == ("middle", "center") else f"{row} {column}"
