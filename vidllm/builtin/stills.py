"""Single pictures with dense labels: what the vision tower learns to see, patch by patch, before any language."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from vidllm.world.degrade import degrade, random_wear
from vidllm.world.generate import generator, random_canvas, random_things
from vidllm.world.render import backdrop, coverage
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


def draw_still(rng: np.random.Generator) -> Still:
    """A random scene of 0-4 objects, some of them fading, worn as a codec would."""
    canvas = random_canvas(rng)
    things = random_things(rng, canvas, int(rng.integers(0, 5)))
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

    def __init__(self, batch: int, seed: int) -> None:
        self.batch, self.seed = batch, seed

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Batches of (pixels, present, colour, shape, pose)."""
        worker = torch.utils.data.get_worker_info()
        rng = generator("stills", self.seed * 1000 + (worker.id if worker else 0))
        while True:
            stills = [draw_still(rng) for _ in range(self.batch)]
            yield tuple(torch.stack([getattr(still, field.name) for still in stills]) for field in fields(Still))
