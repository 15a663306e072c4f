"""A picture file -> Image: upright, RGB, whatever mode and orientation it was saved in. No torch."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vidllm.errors import LimitExceeded, NotAVideo, VideoNotFound
from vidllm.video.animation import moves
from vidllm.visuals import Image

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

STILL_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
"""Endings of picture files; a .gif moves and is read as a video, and so is any of these that does."""
MAX_PIXELS = 2**27
"""Largest picture opened, 134 megapixels: 400 MB as RGB."""
BROKEN = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError, struct.error)
"""What Pillow raises for a file it can not read, whichever field of it is damaged."""


def is_still(path: str | Path) -> bool:
    """Whether the name ends like a picture's, and the file is no animation; more is told when it is opened."""
    return Path(path).suffix.lower() in STILL_SUFFIXES and not moves(path)


def open_still(path: str | Path) -> Image:
    """The picture at `path`, uint8 (H, W, 3), turned as its EXIF orientation says; transparency on white.

    Raises VideoNotFound, NotAVideo (no picture, or a broken one) or LimitExceeded (more than 134 megapixels).
    """
    with _opened(path) as picture:
        return Image(np.asarray(_on_white(_upright(picture))), str(path))


@contextmanager
def _opened(path: str | Path) -> Iterator[Picture]:
    from PIL import Image as PIL  # half a tenth of a second that asks about videos do not pay

    if Path(path).is_dir() or not Path(path).exists():
        raise VideoNotFound(f"{path}: no such picture file")
    try:
        # of a file it knows by name Pillow maps rows into memory, and garbles those of a TIFF that lies on its side
        with warnings.catch_warnings(action="ignore"), open(path, "rb") as file, PIL.open(file) as opened:
            _check_size(path, *opened.size)
            yield opened
    except BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise NotAVideo(f"{path}: not a picture that can be read ({reason})") from error
    except PIL.DecompressionBombError as error:
        raise LimitExceeded(f"{path}: over {MAX_PIXELS // 10**6} megapixels; shrink it first") from error


def _check_size(path: str | Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise LimitExceeded(f"{path}: {width}x{height} is over {MAX_PIXELS // 10**6} megapixels; shrink it first")


def _upright(picture: Picture) -> Picture:
    """Turned as its EXIF says. Pillow's own `exif_transpose` writes all other tags anew, too, and fails on odd ones."""
    from PIL.ExifTags import Base
    from PIL.Image import Transpose

    picture.load()  # a TIFF is turned by this already, and says so
    turns = {
        2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
    }  # fmt: skip
    turn = turns.get(picture.getexif().get(Base.Orientation, 1))
    return picture if turn is None else picture.transpose(turn)


def _on_white(picture: Picture) -> Picture:
    """RGB; what is transparent shows white, as on a page, and not whatever colour lies hidden under it."""
    from PIL import Image as PIL

    if picture.mode.startswith(("I", "F")):
        return _eight_bits(picture).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layers = picture.convert("RGBA")
    page = PIL.new("RGBA", layers.size, "white")
    return PIL.alpha_composite(page, layers).convert("RGB")


def _eight_bits(picture: Picture) -> Picture:
    """Grey of 16 bits or of fractions, for Pillow cuts off what is over 255 and leaves a white picture, or a black one
    of what is all under 1; I may hold fewer bits, F numbers as large as bytes.
    """
    from PIL import Image as PIL

    values = np.nan_to_num(np.asarray(picture)).clip(0, 0xFFFF)
    if picture.mode == "F":
        return PIL.fromarray((values * (255 if values.max() <= 1 else 1)).round().clip(0, 255).astype(np.uint8))
    deep = picture.mode != "I" or values.max() > 0xFF
    return PIL.fromarray((values >> 8 if deep else values).astype(np.uint8))
