"""Script and time to pixels: a pure function, antialiased, in numpy.

Each shape is a signed distance (negative inside) in units of the object's radius; coverage is the distance clipped over
about one pixel, so edges are smooth at any size and any aspect.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vidllm.world.script import Canvas, Script, Thing
from vidllm.world.vocabulary import Shape

Plane = NDArray[np.floating]
"""float32 in all but the dtype a type checker can follow: (H, W), or a picture (H, W, 3) in 0..255."""


def frame(script: Script, seconds: float, *, height: int | None = None, width: int | None = None) -> NDArray[np.uint8]:
    """The picture at one moment, (height, width, 3) uint8. Without a size: the canvas's own.

    Another size stretches the picture. Grain is drawn from the seed and the time, so the same call gives the same
    pixels.
    """
    canvas = script.canvas
    return expose(scene(script, seconds, height or canvas.height, width or canvas.width), script, seconds)


def scene(script: Script, seconds: float, height: int, width: int) -> Plane:
    """The picture at one moment before grain and rounding, (height, width, 3) in 0..255."""
    picture = backdrop(script.canvas, height, width)
    for thing, opacity in zip(script.at(seconds), script.opacity(seconds), strict=True):
        draw(picture, script.canvas, thing, opacity)
    return picture


def expose(picture: Plane, script: Script, seconds: float) -> NDArray[np.uint8]:
    """A scene (H, W, 3) as a camera takes it at that moment: with grain, in whole grey levels."""
    if script.canvas.noise:
        rng = np.random.default_rng([hash_seed(script.seed), round(seconds * 1000)])
        picture = picture + rng.normal(0.0, script.canvas.noise, picture.shape).astype(np.float32)
    rounded: NDArray[np.uint8] = np.clip(picture + 0.5, 0, 255).astype(np.uint8)
    return rounded


def hash_seed(seed: str) -> int:
    """A number from a seed's text that is the same in every process."""
    return int.from_bytes(seed.encode()[-7:], "big")


def backdrop(canvas: Canvas, height: int, width: int) -> Plane:
    """The empty picture, (height, width, 3) float32 in 0..255."""
    base = np.asarray(canvas.background, np.float32)
    slope = np.asarray(canvas.gradient, np.float32)
    rows = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    return np.broadcast_to(base + rows * slope, (height, width, 3)).copy()


def draw(picture: Plane, canvas: Canvas, thing: Thing, opacity: float) -> None:
    """Blend one object into the picture, in place."""
    if opacity <= 0:
        return
    window, alpha = coverage(picture.shape[0], picture.shape[1], canvas, thing)
    alpha = (alpha * opacity)[..., None]
    part = picture[window]
    part += alpha * (np.asarray(thing.rgb, np.float32) - part)


def coverage(height: int, width: int, canvas: Canvas, thing: Thing) -> tuple[tuple[slice, slice], Plane]:
    """Where in a height x width picture an object may show, and how much of each pixel it covers there (0..1)."""
    short = min(canvas.height, canvas.width)
    sx, sy = canvas.width / short, canvas.height / short  # the picture's sides in units of its shorter one
    reach = thing.radius * 1.5
    left, right = _span((thing.x - reach / sx) * width, (thing.x + reach / sx) * width, width)
    top, bottom = _span((thing.y - reach / sy) * height, (thing.y + reach / sy) * height, height)
    x = (np.arange(left, right, dtype=np.float32) + 0.5) / width * sx - thing.x * sx
    y = (np.arange(top, bottom, dtype=np.float32) + 0.5) / height * sy - thing.y * sy
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    u = (x[None, :] * cos + y[:, None] * sin).astype(np.float32) / thing.radius
    v = (y[:, None] * cos - x[None, :] * sin).astype(np.float32) / thing.radius
    pixel = canvas.softness * (sx / width * sy / height) ** 0.5 / thing.radius
    alpha = np.clip(0.5 - DISTANCES[thing.shape](u, v, thing.thickness) / pixel, 0, 1)
    return (slice(top, bottom), slice(left, right)), alpha.astype(np.float32)


def _span(low: float, high: float, limit: int) -> tuple[int, int]:
    """Whole pixels that hold [low, high], within 0..limit."""
    first = min(max(int(np.floor(low)), 0), limit)
    return first, min(max(int(np.ceil(high)), first), limit)


def _circle(u: Plane, v: Plane, _: float) -> Plane:
    return np.hypot(u, v) - 1.0


def _square(u: Plane, v: Plane, _: float) -> Plane:
    return np.maximum(np.abs(u), np.abs(v)) - 0.85


def _triangle(u: Plane, v: Plane, _: float) -> Plane:
    return np.maximum(np.abs(u) * 0.8660254 - v * 0.5, v) - 0.55  # v grows downward, so the tip points up


def _star(u: Plane, v: Plane, thickness: float) -> Plane:
    """Five points: between a tip at radius 1.1 and a dent, the edge is a straight line in the folded wedge."""
    dent = 0.3 + thickness * 0.45
    wedge = np.pi / 5
    angle = np.abs((np.arctan2(u, -v) + wedge) % (2 * wedge) - wedge)
    radius = np.hypot(u, v)
    px, py = radius * np.cos(angle), radius * np.sin(angle)
    dx, dy = dent * np.cos(wedge) - 1.1, dent * np.sin(wedge)
    distance: Plane = ((px - 1.1) * dy - py * dx) / np.float32(np.hypot(dx, dy))
    return distance


def _ring(u: Plane, v: Plane, thickness: float) -> Plane:
    return np.abs(np.hypot(u, v) - (1 - thickness / 2)) - thickness / 2


def _cross(u: Plane, v: Plane, thickness: float) -> Plane:
    arm = thickness * 0.95
    a, b = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(a - arm, b - 1.0), np.maximum(a - 1.0, b - arm))


DISTANCES: dict[Shape, Callable[[Plane, Plane, float], Plane]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
}
