"""Single pictures with dense labels: what the vision tower learns to see, patch by patch, before any language."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from vidllm.world.degrade import degrade, random_wear
from vidllm.world.generate import any_shade, apart, generator, inside, random_angle, random_canvas, random_things, shade
from vidllm.world.render import backdrop, coverage
from vidllm.world.script import Canvas, Thing
from vidllm.world.vocabulary import COLOURS, SHAPES

IMAGE_SIDE = 96
PATCH = 8
GRID = IMAGE_SIDE // PATCH
NOTHING = -100
"""Label of patches that show no object: ignored by cross entropy."""


@dataclass(frozen=True)
class Still:
    """A picture, and a label on each patch of its 12x12 grid. An object's patches are those it covers by a tenth."""

    pixels: Tensor
    """(96, 96, 3) uint8."""
    present: Tensor
    """(12, 12) float32: 1 where an object is."""
    colour: Tensor
    """(12, 12) int64 into COLOURS, or NOTHING."""
    shape: Tensor
    """(12, 12) int64 into SHAPES, or NOTHING."""
    pose: Tensor
    """(12, 12, 3) float32: the object's centre x, y (0..1) and log(radius / 0.12); 0 where there is none."""


Scatter = Callable[[np.random.Generator, Canvas], tuple[Thing, ...]]
"""What places the objects of a still on its canvas."""


def few(rng: np.random.Generator, canvas: Canvas) -> tuple[Thing, ...]:
    """0-4 objects as clips begin with them."""
    return random_things(rng, canvas, int(rng.integers(0, 5)))


def crowd(rng: np.random.Generator, canvas: Canvas) -> tuple[Thing, ...]:
    """Up to six objects as events leave them: of any size and place, half of them in any shade of their colour."""
    things: list[Thing] = []
    for name in rng.permutation(len(COLOURS) * len(SHAPES))[: int(rng.integers(2, 7))]:
        colour = COLOURS[name // len(SHAPES)]
        rgb = shade(rng, colour) if rng.random() < 0.5 else any_shade(rng, colour)
        for _ in range(12):
            thing = Thing(
                colour=colour, shape=SHAPES[name % len(SHAPES)], rgb=rgb,
                x=float(rng.uniform(0.05, 0.95)), y=float(rng.uniform(0.05, 0.95)),
                radius=float(np.exp(rng.uniform(math.log(0.05), math.log(0.3)))),
                angle=random_angle(rng),
                thickness=float(rng.uniform(0.24, 0.42)),
            )  # fmt: skip
            if inside(thing, canvas) and all(apart(thing, other, canvas) for other in things):
                things.append(thing)
                break
    return tuple(things)


def draw_still(rng: np.random.Generator, scatter: Scatter = few) -> Still:
    """A random scene, some of its objects fading, worn as a codec would."""
    canvas = random_canvas(rng)
    things = scatter(rng, canvas)
    picture = backdrop(canvas, IMAGE_SIDE, IMAGE_SIDE)
    cover = np.zeros((GRID, GRID), np.float32)
    colour, shape = np.full((2, GRID, GRID), NOTHING)
    pose = np.zeros((GRID, GRID, 3), np.float32)
    for thing in things:
        opacity = float(rng.choice([1, 1, 1, rng.uniform(0.35, 1)]))
        window, alpha = coverage(IMAGE_SIDE, IMAGE_SIDE, canvas, thing)
        part = picture[window]
        part += (alpha * opacity)[..., None] * (np.asarray(thing.rgb, np.float32) - part)
        full = np.zeros((IMAGE_SIDE, IMAGE_SIDE), np.float32)
        full[window] = alpha
        patches = full.reshape(GRID, PATCH, GRID, PATCH).mean((1, 3))
        mine = (patches > 0.1) & (patches >= cover)
        cover = np.maximum(cover, patches)
        colour[mine], shape[mine] = COLOURS.index(thing.colour), SHAPES.index(thing.shape)
        pose[mine] = thing.x, thing.y, np.log(thing.radius / 0.12)
    clean = np.clip(picture + rng.normal(0, canvas.noise, picture.shape), 0, 255).astype(np.uint8)
    worn = degrade(clean, random_wear(rng), rng)
    return Still(
        torch.from_numpy(np.array(worn)),
        torch.from_numpy((cover > 0.1).astype(np.float32)),
        torch.from_numpy(colour),
        torch.from_numpy(shape),
        torch.from_numpy(pose),
    )


class Stills(IterableDataset[tuple[Tensor, ...]]):
    """Endless batches of stills, each worker on a stream of its own."""

    def __init__(self, batch: int, seed: int, scatter: Scatter = few) -> None:
        self.batch, self.seed, self.scatter = batch, seed, scatter

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Batches of (pixels, present, colour, shape, pose)."""
        worker = torch.utils.data.get_worker_info()
        rng = generator("stills", self.seed * 1000 + (worker.id if worker else 0))
        while True:
            stills = [draw_still(rng, self.scatter) for _ in range(self.batch)]
            yield tuple(torch.stack([getattr(still, field.name) for still in stills]) for field in fields(Still))
