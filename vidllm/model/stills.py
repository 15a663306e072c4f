"""Still pictures before a pixel is looked at: the tiles one is cut into, its visual tokens, and what its text knows."""

from __future__ import annotations

import math

from vidllm.geometry import NativeGeometry
from vidllm.model.anyres import TILINGS
from vidllm.model.media import Shown
from vidllm.model.spec import ModelSpec


def still_tokens(height: int, width: int, spec: ModelSpec, *, single: bool) -> int:
    """Visual tokens of a picture of so many pixels; `single` when it is the prompt's only one."""
    geometry, tiles = spec.geometry, still_tiles(height, width, spec, single=single)
    if isinstance(geometry, NativeGeometry):
        whole = geometry.image_tokens(height, width)
        if tiles is None:
            return whole
        cut = math.prod(tiles)
        thumbnails = TILINGS[spec.image_cut].tokens((height, width), tiles, 1, None) - cut
        return cut * geometry.tokens(spec.image_size, spec.image_size) + thumbnails * whole
    if tiles is not None:
        return TILINGS[spec.image_cut].tokens((height, width), tiles, geometry.rows, spec.image_max_tiles)
    return geometry.rows * geometry.cols + spec.tiles_have_newlines + (spec.cls == "keep")


def shown_still(height: int, width: int, spec: ModelSpec) -> Shown:
    """A picture of so many pixels as its text knows it."""
    grid = still_tiles(height, width, spec, single=True) if spec.tile_text else None
    if grid is None:
        return Shown(kind="image")
    tiles = TILINGS[spec.image_cut].tokens((height, width), grid, 1, None)  # as many as if each had one token
    return Shown(kind="image", tiles=tiles, cols=grid[1])


def still_tiles(height: int, width: int, spec: ModelSpec, *, single: bool) -> tuple[int, int] | None:
    """Tiles (rows, cols) that a picture of so many pixels is cut into; None where it is not. LLaVA-OneVision cuts one
    only when it is alone.
    """
    if not spec.image_grids or not (single or spec.model_type != "llava_onevision"):
        return None
    if isinstance(spec.geometry, NativeGeometry) and spec.geometry.rounded_area(height, width) <= spec.uncut_pixels:
        return None
    return TILINGS[spec.image_cut].grid((height, width), spec.image_size, spec.image_grids)
