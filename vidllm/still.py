"""A picture file -> Image: upright, RGB, whatever mode and orientation it was saved in. No torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vidllm.errors import LimitExceeded, NotAVideo, VideoNotFound
from vidllm.prompt import Image
from vidllm.video.animation import moves

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

STILL_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
"""Endings of picture files; a .gif moves and is read as a video, and so is any of these that does."""
MAX_PIXELS = 2**27
"""Largest picture opened, 134 megapixels: 400 MB as RGB."""


def is_still(path: str | Path) -> bool:
    """Whether the name ends like a picture's, and the file is no animation; more is told when it is opened."""
    return Path(path).suffix.lower() in STILL_SUFFIXES and not moves(path)


def open_still(path: str | Path) -> Image:
    """The picture at `path`, uint8 (H, W, 3), turned as its EXIF orientation says; transparency on white.

    Raises VideoNotFound, NotAVideo (no picture, or a broken one) or LimitExceeded (more than 134 megapixels).
    """
    from PIL import ImageOps

    with _opened(path) as picture:
        return Image(np.asarray(_on_white(ImageOps.exif_transpose(picture))), str(path))


@contextmanager
def _opened(path: str | Path) -> Iterator[Picture]:
    from PIL import Image as PIL  # half a tenth of a second that asks about videos do not pay
    from PIL import UnidentifiedImageError

    if Path(path).is_dir() or not Path(path).exists():
        raise VideoNotFound(f"{path}: no such picture file")
    try:
        with warnings.catch_warnings(action="ignore"), PIL.open(path) as opened:
            _check_size(path, *opened.size)
            yield opened
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise NotAVideo(f"{path}: not a picture that can be read ({str(error).splitlines()[0]})") from error
    except PIL.DecompressionBombError as error:
        raise LimitExceeded(f"{path}: over {MAX_PIXELS // 10**6} megapixels; shrink it first") from error


def _check_size(path: str | Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise LimitExceeded(f"{path}: {width}x{height} is over {MAX_PIXELS // 10**6} megapixels; shrink it first")


def _on_white(picture: Picture) -> Picture:
    """RGB; what is transparent shows white, as on a page, and not whatever colour lies hidden under it."""
    from PIL import Image as PIL

    if picture.mode.startswith("I"):
        return _eight_bits(picture).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layers = picture.convert("RGBA")
    page = PIL.new("RGBA", layers.size, "white")
    return PIL.alpha_composite(page, layers).convert("RGB")


def _eight_bits(picture: Picture) -> Picture:
    """Grey of 16 bits, for Pillow cuts off what is over 255 and leaves a white picture; I may hold fewer bits."""
    from PIL import Image as PIL

    values = np.asarray(picture).clip(0, 0xFFFF)
    deep = picture.mode != "I" or values.max() > 0xFF
    return PIL.fromarray((values >> 8 if deep else values).astype(np.uint8))
