"""Still images in tiles, LLaVA-NeXT's AnyRes, InternVL's and Command A's: which a picture is cut into, how many tokens
they become.

    AnyRes      the thumbnail (whole picture, one tile), then the picture scaled into the best of the family's grids,
                centred, cut; padding rows and columns cost no token
    InternVL    the picture stretched over the grid nearest to its aspect, cut; then, behind several, the thumbnail
    Command A   as InternVL, over the grid that asks for the least scaling up, or else down
    bare        as InternVL, without a thumbnail

Arithmetic first (no imports), pixels last (Pillow, loaded when used). Sizes are (height, width) everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vidllm.geometry import Newline
    from vidllm.model.spec import Cut

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

    from vidllm.video.fit import scaled

    rows, cols = tiles
    height, width = rows * tile, cols * tile
    scale = min(width / pixels.shape[1], height / pixels.shape[0])
    inner = (min(math.ceil(pixels.shape[0] * scale), height), min(math.ceil(pixels.shape[1] * scale), width))
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    canvas[top : top + inner[0], left : left + inner[1]] = scaled(pixels, *inner)
    return np.concatenate([scaled(pixels, tile, tile)[None], _apart(canvas, tile)])


def _apart(canvas: NDArray[np.uint8], tile: int) -> NDArray[np.uint8]:
    """(gh * tile, gw * tile, 3) -> (gh * gw, tile, tile, 3), row by row."""
    rows, cols = canvas.shape[0] // tile, canvas.shape[1] // tile
    return canvas.reshape(rows, tile, cols, tile, 3).swapaxes(1, 2).reshape(rows * cols, tile, tile, 3)


def canvases(least: int, most: int) -> list[Size]:
    """All grids (rows, cols) of `least` to `most` tiles, the fewest tiles first, in InternVL's order."""
    every = [(rows, cols) for cols in range(1, most + 1) for rows in range(1, most + 1)]
    return sorted((grid for grid in every if least <= math.prod(grid) <= most), key=math.prod)


def canvas_grid(size: Size, tile: int, resolutions: Sequence[Size]) -> Size:
    """(rows, cols) of tiles of `tile` pixels that a picture of `size` is stretched over.

    The grid nearest to the picture's aspect; of several as near, the largest whose pixels are fewer than twice the
    picture's own. Source: `get_optimal_tiled_canvas` of transformers, which this must equal.
    """
    height, width = size
    best, nearest = (1, 1), math.inf
    for rows, cols in ((tall // tile, wide // tile) for tall, wide in resolutions):
        apart = abs(width / height - cols / rows)
        if apart < nearest or (apart == nearest and height * width > 0.5 * tile * tile * rows * cols):
            best, nearest = (rows, cols), apart
    return best


def cover_grid(size: Size, tile: int, resolutions: Sequence[Size]) -> Size:
    """(rows, cols) of tiles of `tile` pixels that a picture of `size` is stretched over.

    The smallest that is no smaller than the picture at its own aspect; where none is, the one that shrinks it least.
    Source: `get_optimal_tiled_canvas` of Command A Vision in transformers, which this must equal.
    """
    height, width = size
    scales = [min(wide / width, tall / height) for tall, wide in resolutions]
    covering = [scale for scale in scales if scale >= 1]
    tall, wide = resolutions[scales.index(min(covering) if covering else max(scales))]
    return tall // tile, wide // tile


def canvas_tokens(size: Size, tiles: Size, base: int, max_tiles: int | None = None) -> int:
    """Tokens of a picture stretched over `tiles`, with its thumbnail; base x base of each, whatever its `size`."""
    count = math.prod(tiles)
    return base * base * (count + (count > 1))


def bare_tokens(size: Size, tiles: Size, base: int, max_tiles: int | None = None) -> int:
    """As `canvas_tokens`, without a thumbnail."""
    return base * base * math.prod(tiles)


def cut_bare(pixels: NDArray[np.uint8], tile: int, tiles: Size, resample: int = 3) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) -> (gh * gw, tile, tile, 3): the tiles row by row, scaled by Pillow's filter of this number."""
    from vidllm.video.fit import scaled

    return _apart(scaled(pixels, tiles[0] * tile, tiles[1] * tile, resample), tile)


def cut_canvas(pixels: NDArray[np.uint8], tile: int, tiles: Size) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) -> (gh * gw [+ 1], tile, tile, 3): the tiles row by row, then the thumbnail of more than one."""
    import numpy as np

    cut = cut_bare(pixels, tile, tiles)
    return cut if len(cut) == 1 else np.concatenate([cut, cut_bare(pixels, tile, (1, 1))])


@dataclass(frozen=True)
class Tiling:
    """One way to cut a picture into tiles; what each function takes and gives is said at those of AnyRes."""

    grid: Callable[[Size, int, Sequence[Size]], Size]
    tokens: Callable[[Size, Size, int, int | None], int]
    cut: Callable[[NDArray[np.uint8], int, Size], NDArray[np.uint8]]
    newline: Newline
    """After each row of the picture that the tiles are joined to, or "none" where they follow one another."""


TILINGS: dict[Cut, Tiling] = {
    "padded": Tiling(tile_grid, anyres_tokens, cut_tiles, "grid"),
    "stretched": Tiling(canvas_grid, canvas_tokens, cut_canvas, "none"),
    "covered": Tiling(cover_grid, canvas_tokens, cut_canvas, "none"),
    "bare": Tiling(canvas_grid, bare_tokens, cut_bare, "none"),
}
