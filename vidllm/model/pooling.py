"""Frame features -> tokens: pooling at any grid and stride, newline tokens, and AnyRes packing of still images.

    N, T  frames          R, C  patch rows and columns of one frame
    r, c  rows and columns after pooling            D  feature width

The published counts come out of shapes alone. A 24x24 grid at stride 2 is 12x12 = 144 tokens; a 27x27 grid is
13x13 = 169 under average and max pooling, which floor, and 14x14 = 196 under bilinear, which ceils.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vidllm.geometry import Newline, Pooling
from vidllm.model.anyres import shrunk_grid, unpadded_box


def _bilinear(grid: Tensor, stride: int) -> Tensor:
    rows, cols = grid.shape[-2:]
    return F.interpolate(grid, size=(math.ceil(rows / stride), math.ceil(cols / stride)), mode="bilinear")


_POOLING: dict[Pooling, Callable[[Tensor, int], Tensor]] = {
    "average": F.avg_pool2d, "max": F.max_pool2d, "bilinear": _bilinear,
}  # fmt: skip


def pool(features: Tensor, rows: int, cols: int, stride: int, mode: Pooling) -> Tensor:
    """Pool patch features (N, R*C, D) of an R x C grid to (N, r, c, D).

    Average and max floor the grid, bilinear ceils it. Stride 1 leaves the features as they are, in every mode.

    Raises:
        ValueError: the features are no R x C grid, or the stride leaves no token of it.
    """
    if features.shape[-2] != rows * cols:
        raise ValueError(f"{features.shape[-2]} patch features are no {rows}x{cols} grid")
    if stride < 1 or (mode != "bilinear" and stride > min(rows, cols)):
        raise ValueError(f"pooling stride {stride} leaves nothing of a {rows}x{cols} grid")
    grid = features.reshape(len(features), rows, cols, -1)  # (N, R, C, D)
    if stride == 1:
        return grid
    pooled = _POOLING[mode](grid.permute(0, 3, 1, 2), stride)
    return pooled.permute(0, 2, 3, 1)


def pixel_shuffle(features: Tensor, factor: int) -> Tensor:
    """Join `factor` x `factor` neighbours of a square grid: (N, R*R, D) -> (N, R*R / factor**2, D * factor**2).

    Their features stand side by side, row by row. Source: `InternVLModel.pixel_shuffle`, which this must equal.
    """
    if factor == 1:
        return features
    side, width = math.isqrt(features.shape[1]) // factor, features.shape[-1]
    cells = features.view(len(features), side, factor, side, factor, width)
    return cells.transpose(2, 3).reshape(len(features), side * side, factor * factor * width)


def lay_out(tokens: Tensor, newline: Tensor | None, mode: Newline) -> Tensor:
    """Flatten one frame's tokens (r, c, D) to (n, D) with its newline tokens (D,).

        none   x x x x        frame  x x x x n        grid   x x n x x n

    Raises:
        ValueError: a newline is asked for and the model has none.
    """
    flat = tokens.flatten(0, 1)
    if mode == "none":
        return flat
    if newline is None:
        raise ValueError(f"newline mode {mode!r} needs a model with a learned newline token")
    row = newline.to(tokens)
    if mode == "grid":
        return torch.cat([tokens, row.expand(tokens.shape[0], 1, -1)], dim=1).flatten(0, 1)
    return torch.cat([flat, row[None]])


def pack_tiles(
    features: Tensor,
    image_size: tuple[int, int],
    tiles: tuple[int, int],
    newline: Tensor | None,
    max_tiles: int | None = None,
) -> Tensor:
    """AnyRes: tokens (n, D) of one still image from its base view and tiles, features (1 + th*tw, R*R, D).

    The base view comes first and whole; the tiles are joined to one picture, its padding cut away, and every row of it
    closed with the newline token (D,). `image_size` is the picture's (height, width) before any resizing.
    """
    base, side = features[0], math.isqrt(features.shape[1])
    grid = features[1:].reshape(*tiles, side, side, -1)  # (th, tw, R, R, D)
    picture = grid.permute(4, 0, 2, 1, 3).flatten(3, 4).flatten(1, 2)  # (D, th*R, tw*R)
    top, bottom, left, right = unpadded_box(image_size, picture.shape[1], picture.shape[2])
    picture = picture[:, top:bottom, left:right]
    size = shrunk_grid(picture.shape[1], picture.shape[2], side, max_tiles)
    if size != tuple(picture.shape[1:]):
        picture = F.interpolate(picture[None], size=size, mode="bilinear")[0]
    mode: Newline = "none" if newline is None else "grid"
    return torch.cat([base, lay_out(picture.permute(1, 2, 0), newline, mode)])
