"""Still images in LLaVA-NeXT's AnyRes: which tiles a picture is cut into, and how many tokens they become.

    thumbnail   whole picture, one tile           tiles   picture scaled into the best of the family's grids,
                                                          centred, cut; padding rows and columns cost no token

Arithmetic first (no imports), pixels last (Pillow, loaded when used). Sizes are (height, width) everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Size = tuple[int, int]


def best_resolution(size: Size, pinpoints: Sequence[Size]) -> Size:
    """The one of `pinpoints` (pixels) that keeps most of the picture, and of those the one that wastes least.

    A picture is never credited with more pixels than it has, so small pictures take small grids.
    """
    height, width = size

    def merit(target: Size) -> tuple[int, int]:
        scale = min(target[1] / width, target[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - target[0] * target[1]

    return max(pinpoints, key=merit)


def unpadded_box(size: Size, rows: int, cols: int) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of the part of a rows x cols grid that shows a picture of `size` centred in it.

    Source: `unpad_image` of LLaVA-NeXT as Hugging Face counts it, the rounding to 7 digits included.
    """
    height, width = size
    if width / height > cols / rows:
        border = (rows - int(round(height * (cols / width), 7))) // 2
        return border, rows - border, 0, cols
    border = (cols - int(round(width * (rows / height), 7))) // 2
    return 0, rows, border, cols - border


def shrunk_grid(rows: int, cols: int, base: int, max_tiles: int | None) -> Size:
    """Grid after LLaVA-OneVision's `anyres_max_N`: scaled down when its side is over 1.1 x that of N base grids."""
    if max_tiles is None:
        return rows, cols
    ratio = math.sqrt(rows * cols / (max_tiles * base**2))
    return (int(rows // ratio), int(cols // ratio)) if ratio > 1.1 else (rows, cols)


def tile_grid(size: Size, tile: int, pinpoints: Sequence[Size]) -> Size:
    """(rows, cols) of tiles of `tile` pixels that a picture of `size` is cut into."""
    height, width = best_resolution(size, pinpoints)
    return height // tile, width // tile


def anyres_tokens(size: Size, tiles: Size, base: int, max_tiles: int | None) -> int:
    """Tokens of one picture: the thumbnail's base x base, then the unpadded rows, each with a newline token."""
    top, bottom, left, right = unpadded_box(size, tiles[0] * base, tiles[1] * base)
    rows, cols = shrunk_grid(bottom - top, right - left, base, max_tiles)
    return base * base + rows * (cols + 1)


def cut_tiles(pixels: NDArray[np.uint8], tile: int, tiles: Size) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) -> (1 + gh * gw, tile, tile, 3): the squashed thumbnail, then the tiles row by row."""
    import numpy as np
    from PIL import Image

    picture = Image.fromarray(pixels)
    rows, cols = tiles
    height, width = rows * tile, cols * tile
    scale = min(width / picture.width, height / picture.height)
    inner = (min(math.ceil(picture.width * scale), width), min(math.ceil(picture.height * scale), height))
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = (height - inner[1]) // 2, (width - inner[0]) // 2
    resized = np.asarray(picture.resize(inner, Image.Resampling.BICUBIC))
    canvas[top : top + inner[1], left : left + inner[0]] = resized
    cut = canvas.reshape(rows, tile, cols, tile, 3).swapaxes(1, 2).reshape(rows * cols, tile, tile, 3)
    thumbnail = np.asarray(picture.resize((tile, tile), Image.Resampling.BICUBIC))
    return np.concatenate([thumbnail[None], cut])
