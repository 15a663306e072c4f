"""Pictures and clips -> the visuals of a prompt: pixels as a family takes them, and how many tokens they stand for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from vidllm.clip import Clip
from vidllm.errors import ConfigError
from vidllm.geometry import NativeGeometry, Newline
from vidllm.model.anyres import TILINGS, cut_bare
from vidllm.model.stills import still_tiles, still_tokens
from vidllm.video.fit import fit_pixels

if TYPE_CHECKING:
    from torch import Tensor

    from vidllm.model.spec import ModelSpec


@dataclass(frozen=True, eq=False)
class Image:
    """A still picture: uint8 (H, W, 3), and where it came from (for messages)."""

    pixels: NDArray[np.uint8]
    source: str = "image"

    def __post_init__(self) -> None:
        pixels: object = self.pixels
        if not isinstance(pixels, np.ndarray):
            raise ConfigError(f"pixels must be an array, not {type(pixels).__name__}; name a picture file by its path")
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise ConfigError(f"pixels must be uint8 (height, width, 3), in RGB, not {pixels.dtype} {pixels.shape}")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = self.pixels.shape[:2]
        return height, width


@dataclass(frozen=True, kw_only=True, eq=False)
class Visual:
    """One run of visual tokens in the prompt, and the pixels that fill it.

    A video frame: `pixels` (1, S, S, 3), `stride` its pooling, `newline` "none", "frame" (one learned newline at its
    end; also what the last frame of newline-`one` carries) or "grid" (one after each pooled row).
    A still image: the same with stride 1, or in tiles, `grid` = (gh, gw), `source_size` = (height, width) in pixels
    before any resizing. With AnyRes `pixels` (1 + gh * gw, S, S, 3) are the thumbnail, then the tiles row by row; its
    tokens: the thumbnail's, then the unpadded tile rows, each followed by a newline. InternVL's are the tiles, then
    the thumbnail of more than one, `newline` "none"; so are Cohere's, each a visual of its own: words stand between.
    Native families: a whole clip is one "video" of `pixels` (N, h, w, 3) at the planned size, an image, or each tile of
    it, keeps its own size; their tokens need not be contiguous.
    """

    pixels: NDArray[np.uint8]
    kind: Literal["frame", "image", "video"]
    stride: int
    tokens: int
    position: int
    """Index in `input_ids` of its first token; its tokens are contiguous."""
    newline: Newline
    times: tuple[float, ...] = ()
    """True seconds: one for a frame, all of a native video's, none for an image."""
    grid: tuple[int, int] | None = None
    source_size: tuple[int, int] | None = None
    key: str = ""
    """`Clip.key`/number of the visual/number of the clip's visuals; empty where nothing is kept."""
    features: Tensor | None = None
    """As `Clip.features`, where they are known; `pixels` is then (1, 0, 0, 3), a native video's nothing but a size."""


Draft = tuple[Visual, tuple[int, ...]]
"""A visual that is not yet placed, and its runs of tokens: several in a native video."""


def drafts_of(medium: Clip | Image, spec: ModelSpec, single: bool) -> list[Draft]:
    """What a prompt shows of a medium, in order; `single` where it is the only picture there."""
    if isinstance(medium, Clip) and isinstance(spec.geometry, NativeGeometry):
        return [_native_video(medium, spec)]
    visuals = _frames(medium, spec) if isinstance(medium, Clip) else _still_visuals(medium, spec, single)
    return [(visual, (visual.tokens,)) for visual in visuals]


def _frames(clip: Clip, spec: ModelSpec) -> list[Visual]:
    """One visual per frame, fitted to the tile."""
    squares = _squares(clip, spec)
    last = len(squares) - 1
    return [
        Visual(
            pixels=squares[i : i + 1], kind="frame", stride=frame.stride, tokens=frame.tokens, position=0,
            newline=_newline(spec.newline, i == last), times=(float(clip.frames.pts_seconds[i]),),
            key=f"{clip.key}/{i}/{len(squares)}" if clip.key else "",
            features=clip.features[i] if clip.features else None,
        )
        for i, frame in enumerate(clip.plan.frames)
    ]  # fmt: skip


def _squares(clip: Clip, spec: ModelSpec) -> NDArray[np.uint8]:
    if clip.features is not None:
        return clip.frames.pixels  # none: there is nothing left to fit
    fill = [255 * value for value in spec.image_mean]
    return fit_pixels(clip.frames.pixels, spec.image_size, clip.plan.fit or spec.fit, fill, spec.resample)


def _newline(mode: Newline, last: bool) -> Newline:
    """A newline after the whole video is a newline after its last frame."""
    if mode == "one":
        return "frame" if last else "none"
    return mode


def _native_video(clip: Clip, spec: ModelSpec) -> Draft:
    groups = tuple(frame.tokens for frame in clip.plan.frames if frame.tokens)
    visual = Visual(
        pixels=clip.frames.pixels, kind="video", stride=1, tokens=sum(groups), position=0, newline="none",
        times=tuple(float(t) for t in clip.frames.pts_seconds), key=f"{clip.key}/0/1" if clip.key else "",
        features=clip.features[0] if clip.features else None,
    )  # fmt: skip
    return visual, (sum(groups),) if spec.one_run else groups


def _still_visuals(image: Image, spec: ModelSpec, single: bool) -> list[Visual]:
    """A still image, or each of its tiles where words stand between them."""
    whole = _image_visual(image, spec, single)
    if not spec.tile_text:
        return [whole]
    if isinstance(spec.geometry, NativeGeometry):
        return _native_tiles(image, whole, spec, spec.geometry)
    tokens = whole.tokens // len(whole.pixels)
    return [replace(whole, pixels=tile[None], tokens=tokens, grid=None) for tile in whole.pixels]


def _native_tiles(image: Image, whole: Visual, spec: ModelSpec, geometry: NativeGeometry) -> list[Visual]:
    """A still image in tiles of one size, and behind them, where the family has a thumbnail, whole as it would be
    without them."""
    if whole.grid is None:
        return [whole]
    side = spec.image_size
    each = replace(whole, tokens=geometry.tokens(side, side), grid=None)
    tiles = [replace(each, pixels=tile[None]) for tile in cut_bare(image.pixels, side, whole.grid, spec.resample)]
    left = whole.tokens - sum(tile.tokens for tile in tiles)
    return [*tiles, replace(whole, tokens=left, grid=None)] if left else tiles


def _image_visual(image: Image, spec: ModelSpec, single: bool) -> Visual:
    """A still image: whole for native families, tiles where the family has them, else one square tile."""
    height, width = image.pixels.shape[:2]
    tokens = still_tokens(height, width, spec, single=single)
    tiles = still_tiles(height, width, spec, single=single)
    newline: Newline = "frame" if spec.tiles_have_newlines else "none"
    if isinstance(spec.geometry, NativeGeometry):
        pixels = image.pixels[None]
    elif tiles is not None:
        tiling = TILINGS[spec.image_cut]
        pixels, newline = tiling.cut(image.pixels, spec.image_size, tiles), tiling.newline
    else:
        fill = [255 * value for value in spec.image_mean]
        fit = "pad" if spec.image_grids else spec.fit  # LLaVA-OneVision stretches frames and pads such pictures
        pixels = fit_pixels(image.pixels[None], spec.image_size, fit, fill, spec.resample)
    return Visual(
        pixels=pixels, kind="image", stride=1, tokens=tokens, position=0, newline=newline, grid=tiles,
        source_size=(height, width),
    )  # fmt: skip
