"""Scripts drawn by another hand: Pillow's polygons in plain colours instead of vidllm's renderer, for `world.py`.

A model could know its teacher's renderer instead of circles and squares. Here shapes have other proportions, colours
are the pure ones or those of a well-known flat palette, edges are smooth or jagged, the rate is 25 or 30, and the
encoder is told other things. Times, places and events are the script's, and so is the truth.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

from vidllm.world.generate import Rgb, make_script, repaint
from vidllm.world.make import save_truth
from vidllm.world.script import Script, Thing
from vidllm.world.vocabulary import Colour

PURE: dict[Colour, Rgb] = {
    "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0), "purple": (128, 0, 128),
    "orange": (255, 165, 0), "white": (255, 255, 255), "cyan": (0, 255, 255),
}  # fmt: skip
"""As CSS names them."""
FLAT: dict[Colour, Rgb] = {
    "red": (231, 76, 60), "green": (46, 204, 113), "blue": (52, 152, 219), "yellow": (241, 196, 15),
    "purple": (155, 89, 182), "orange": (230, 126, 34), "white": (236, 240, 241), "cyan": (26, 188, 212),
}  # fmt: skip
STYLES = (
    (PURE, (0, 0, 0), 3, 25), (FLAT, (25, 25, 35), 3, 30), (PURE, (0, 0, 0), 1, 30), (FLAT, (40, 40, 40), 2, 25),
)  # fmt: skip
"""Colours, background, how many times finer it is drawn than shown (1: jagged edges), frames a second."""


def draw_clip(number: int, split: str, folder: Path) -> Path:
    """Clip `number` of a split as NAME.mp4 with its truth beside it, in one of the four styles, unless it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    palette, background, finer, rate = STYLES[number % len(STYLES)]
    script = restyled(make_script(split, number), palette, background, float(rate))
    path = folder / f"{number:06d}.mp4"
    truth = path.with_suffix(".json")
    if not (truth.exists() and Script.load(truth) == script):
        write_clip(script, path, finer, rate)
        save_truth(script, truth, number)  # last: beside it stands a whole clip
    return path


def restyled(script: Script, palette: dict[Colour, Rgb], background: Rgb, fps: float) -> Script:
    """The same things and events in other colours, upright, on a plain canvas."""
    canvas = replace(script.canvas, fps=fps, background=background, gradient=(0, 0, 0), noise=0.0)
    painted = repaint(script, palette.__getitem__)
    return replace(painted, canvas=canvas, things=tuple(replace(thing, angle=0.0) for thing in painted.things))


def write_clip(script: Script, path: Path, finer: int, rate: int) -> None:
    """H.264 of another preset and quality than `vidllm world make` has."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "medium"})
        stream.width, stream.height, stream.pix_fmt = script.canvas.width, script.canvas.height, "yuv420p"
        known: object = None
        for number in range(int(script.duration * rate)):
            state = script.at(number / rate), script.opacity(number / rate)
            if state != known:
                pixels, known = picture(script, *state, finer), state
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def picture(script: Script, things: tuple[Thing, ...], opacity: tuple[float, ...], finer: int) -> np.ndarray:
    """One frame, (height, width, 3) uint8."""
    canvas = script.canvas
    image = Image.new("RGB", (canvas.width * finer, canvas.height * finer), canvas.background)
    for thing, solid in zip(things, opacity, strict=True):
        if solid > 0:
            drawn = image.copy()
            shape(ImageDraw.Draw(drawn), thing, canvas.width * finer, canvas.height * finer)
            image = Image.blend(image, drawn, solid)
    return np.asarray(image.resize((canvas.width, canvas.height), Image.Resampling.LANCZOS))


def shape(pen: ImageDraw.ImageDraw, thing: Thing, width: int, height: int) -> None:
    """One object, of the proportions that drawing programs give it."""
    x, y, r = thing.x * width, thing.y * height, thing.radius * min(width, height)
    box = (x - r, y - r, x + r, y + r)
    match thing.shape:
        case "circle":
            pen.ellipse(box, fill=thing.rgb)
        case "ring":
            pen.ellipse(box, outline=thing.rgb, width=max(2, round(0.35 * r)))
        case "square":
            pen.rectangle((x - 0.9 * r, y - 0.9 * r, x + 0.9 * r, y + 0.9 * r), fill=thing.rgb)
        case "cross":
            pen.rectangle((x - 0.33 * r, y - r, x + 0.33 * r, y + r), fill=thing.rgb)
            pen.rectangle((x - r, y - 0.33 * r, x + r, y + 0.33 * r), fill=thing.rgb)
        case "triangle":
            pen.polygon([(x, y - r), (x - 0.95 * r, y + 0.8 * r), (x + 0.95 * r, y + 0.8 * r)], fill=thing.rgb)
        case "star":
            reach = [r if point % 2 == 0 else 0.42 * r for point in range(10)]
            turns = [point * math.pi / 5 for point in range(10)]
            corners = zip(reach, turns, strict=True)
            pen.polygon([(x + a * math.sin(t), y - a * math.cos(t)) for a, t in corners], fill=thing.rgb)
