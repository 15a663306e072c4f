"""Patches before pixels: into how many tokens a family turns a frame or a picture of some size. Integers only."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from vidllm.errors import BudgetError

Pooling = Literal["average", "max", "bilinear"]
Newline = Literal["none", "one", "frame", "grid"]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """One frame's patch grid, and how it is pooled and marked into tokens (composable models).

    `newline` is where the learned end-of-line token goes: after every pooled row of every frame (`grid`), after
    every frame (`frame`), once after the whole video (`one`), nowhere (`none`).
    """

    rows: int
    cols: int
    pooling: Pooling = "average"
    newline: Newline = "none"

    def pooled(self, stride: int) -> tuple[int, int]:
        """(rows, cols) after pooling by `stride`: average and max drop a ragged edge, bilinear keeps it."""
        if stride < 1 or (self.pooling != "bilinear" and stride > min(self.rows, self.cols)):
            raise BudgetError(f"stride {stride} on a {self.rows}x{self.cols} grid leaves no token; use 1 to "
                              f"{min(self.rows, self.cols)}")
        if self.pooling == "bilinear":
            return -(-self.rows // stride), -(-self.cols // stride)
        return self.rows // stride, self.cols // stride

    def tokens(self, stride: int) -> int:
        """Tokens of one frame, its own newlines included (a `one` newline belongs to the video's last frame)."""
        rows, cols = self.pooled(stride)
        return rows * cols + {"grid": rows, "frame": 1}.get(self.newline, 0)

    def frame_tokens(self, strides: Iterable[int]) -> tuple[int, ...]:
        """Tokens of each frame of one video, in order; with newline `one` the last frame carries it."""
        counts = [self.tokens(stride) for stride in strides]
        if counts and self.newline == "one":
            counts[-1] += 1
        return tuple(counts)


@dataclass(frozen=True, kw_only=True)
class NativeGeometry:
    """How a native family's own tower turns frames and still pictures into tokens; the budget works through their
    number and pixels. Sides are multiples of `unit`; 0 is no bound, and nothing of its kind.
    """

    patch: int
    merge: int
    """Patches a side that become one token."""
    temporal_patch: int = 1
    """Frames that travel together, the last one repeated to fill a group."""
    min_pixels: int = 0
    max_pixels: int = 0
    """Of one frame."""
    video_pixels: int = 0
    """Most of all frames of a video together."""
    image_merge: int = 0
    """As `merge`, of a still picture, where that differs."""
    image_min_pixels: int = 0
    image_max_pixels: int = 0
    """Of a still picture."""
    image_longest: int = 0
    """What its longer side is made before it becomes a square."""
    square: int = 0
    """Width and height of every frame and picture, of any aspect."""
    squares: tuple[tuple[int, int], ...] = ()
    """(side in pixels, tokens) of all that frames may be, the largest first, where no arithmetic tells; still pictures
    are the first."""
    fits_itself: bool = False
    """Whether the family's processor makes the one square there is of any picture: it then comes with its own aspect,
    its longer side that of the square."""
    longest_edge: int = 0
    """Most of a side, in place of bounds on the area."""
    row_end: int = 0
    """Tokens behind every row."""
    fills: bool = False
    """Small pictures are enlarged to the most pixels there may be."""
    enlarges: bool = False
    """A picture thinner than a token is made as thick as one before its size is rounded ..."""
    thickens: bool = False
    """... or only its thickness is."""

    @property
    def unit(self) -> int:
        """Side in pixels of the square one token stands for."""
        return self.patch * self.merge

    @property
    def image_unit(self) -> int:
        """The same of a still image."""
        return self.patch * (self.image_merge or self.merge)

    def tokens(self, height: int, width: int) -> int:
        """Tokens of one group of frames of this size (multiples of `unit`)."""
        if self.squares:
            return dict(self.squares)[max(height, width)]
        return (height // self.unit) * self.row_tokens(width)

    def row_tokens(self, width: int) -> int:
        """Tokens of one row of a picture of this width, with what ends it."""
        return width // self.unit + self.row_end

    def image_tokens(self, height: int, width: int) -> int:
        """Tokens of a still image that is height x width before the family's processor scales it."""
        if self.squares:
            return self.squares[0][1]
        rows, cols = (side // self.image_unit for side in self.image_size(height, width))
        return rows * (cols + self.row_end)

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) to which the family's processor scales a still image."""
        if self.squares:
            return self.sizes(height, width)[0]
        if self.square:
            return self.square, self.square
        if self.longest_edge:
            return bounded_size(height, width, self.image_unit, self.longest_edge)
        if self.enlarges and min(height, width) < self.image_unit:
            scale = self.image_unit / min(height, width)
            height, width = int(height * scale), int(width * scale)
        if self.fills:
            return filled_size(height, width, self.image_unit, self.image_max_pixels)
        bounds = self.image_min_pixels, self.image_max_pixels
        return fitted_size(height, width, self.image_unit, *bounds, thickens=self.thickens)

    def rounded_area(self, height: int, width: int) -> int:
        """Pixels of a still image whose sides are rounded to whole tokens, of a thin one to a patch."""
        rows, cols = (max(round(side / self.image_unit) * self.image_unit, self.patch) for side in (height, width))
        return rows * cols

    def groups(self, frames: int) -> int:
        """How many groups so many frames make."""
        return -(-frames // self.temporal_patch)

    def sizes(self, height: int, width: int, frames: int = 1) -> list[tuple[int, int]]:
        """Sizes (height, width) that so many frames of this aspect may be given, from the largest to the smallest.

        Never larger than the frame itself unless `min_pixels` or the family asks for it: invented pixels cost real
        tokens.
        """
        if self.fits_itself:
            [(longest, _)] = self.squares
            scale = longest / max(height, width)
            return [(max(round(height * scale), 1), max(round(width * scale), 1))]
        if self.squares:
            return [(side, side) for side, _ in self.squares]
        if self.square:
            return [(self.square, self.square)]
        if self.longest_edge:
            height, width = self.image_size(height, width)
        most = min(self.max_pixels, (self.video_pixels or math.inf) // frames)
        largest = fitted_size(height, width, self.unit, self.min_pixels, most, thickens=self.thickens)
        if self.fills:
            largest = filled_size(height, width, self.unit, most)
        sizes, area = [largest], self.unit**2
        for cells in range(math.prod(largest) // area - 1, max(self.min_pixels // area, 1) - 1, -1):
            size = fitted_size(height, width, self.unit, 0, cells * area)
            if self.fills:
                size = filled_size(height, width, self.unit, cells * area)
            if self.tokens(*size) < self.tokens(*sizes[-1]):  # of a strip, fewer pixels may round to more tokens
                sizes.append(size)
        return sizes


def fitted_size(
    height: int, width: int, unit: int, min_pixels: int, max_pixels: float, *, thickens: bool = False
) -> tuple[int, int]:
    """(height, width) in multiples of `unit`, the aspect kept as well as may be, the area within the two bounds.

    The rounding is that of Qwen's image processors (to the nearest multiple; down when over, up when under, as is what
    is so thin that it rounds to nothing, unless that `thickens` first).
    """
    least = 1 if thickens or not min_pixels else 0
    rows, cols = max(round(height / unit), least), max(round(width / unit), least)
    if rows * cols * unit**2 > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        rows, cols = (max(1, math.floor(side / scale / unit)) for side in (height, width))
    elif rows * cols * unit**2 < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        rows, cols = (math.ceil(side * scale / unit) for side in (height, width))
    return rows * unit, cols * unit


def filled_size(height: int, width: int, unit: int, max_pixels: float) -> tuple[int, int]:
    """The largest (height, width) in multiples of `unit` that keeps the aspect and has at most so many pixels.

    The rounding is that of Gemma 4's processors: down; a strip is one row or column as long as there is room for.
    """
    scale = math.sqrt(max_pixels / (height * width))
    rows, cols = (math.floor(scale * side / unit) for side in (height, width))
    if not rows or not cols:
        longest = min(max(height, width) // min(height, width), int(max_pixels // unit**2))
        rows, cols = (1, longest) if cols else (longest, 1)
    return rows * unit, cols * unit


def bounded_size(height: int, width: int, unit: int, longest: int) -> tuple[int, int]:
    """(height, width) in multiples of `unit` of a picture shrunk, the aspect kept, until no side is over `longest`.

    The rounding is that of Pixtral's image processor: down to the bound, then up to the multiple. Of a strip so narrow
    that nothing would be left of it (there the processor fails) one row is.
    """
    ratio = max(height / longest, width / longest)
    if ratio > 1:
        height, width = max(math.floor(height / ratio), 1), max(math.floor(width / ratio), 1)
    return -(-height // unit) * unit, -(-width // unit) * unit
