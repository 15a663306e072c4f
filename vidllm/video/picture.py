"""From a decoded frame to the pixels a viewer sees: square, upright, scaled while converting, nothing in between.

One persistent reformatter per reading: a new scaling context for each frame costs more than the scaling itself.
"""

import math
import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from vidllm.checks import check_whole
from vidllm.errors import ConfigError

MAX_ASPECT = 8  # a pixel more than eight times as wide as high (or the reverse) is a broken header
RIGHT_ANGLE_SLACK = 1.0  # degrees; a matrix that turns by anything else is not followed

# Averages over all the pixels it drops: 35 to 45 dB from a Lanczos filter, where FAST_BILINEAR, which picks single
# columns, is at 21 to 42, and half the time of BILINEAR at 1080p (benchmarks/NOTES.md). Enlarging, it is bilinear.
INTERPOLATION = Interpolation.AREA
# Scaling into planes FFmpeg converts exactly, with chroma in full. Into packed RGB or BGR it takes the chroma of every
# second column and rounds down, by 1.5 grey levels in the mean, and is no faster. Where there is nothing to scale it
# has another converter, which for planes leaves the last columns of some widths unwritten.
SCALED_FORMAT, RGB_OF_PLANES, UNSCALED_FORMAT = "gbrp", (1, 2, 0), "rgb24"


@dataclass(frozen=True)
class Orientation:
    """How to turn the coded picture upright: flip left and right first, then `rotation` degrees clockwise."""

    rotation: int = 0
    mirrored: bool = False

    @property
    def is_sideways(self) -> bool:
        """Width and height change places."""
        return self.rotation in (90, 270)


def orientation_of(frame: VideoFrame) -> Orientation:
    """What the frame's display matrix asks for; upright where there is none.

    Beside data whose kind PyAV does not know, such as a JPEG's EXIF, it shows no matrix: its angle is taken alone, and
    a mirror is not seen.
    """
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")  # a buffer, which PyAV's annotations do not say
    except ValueError:
        return Orientation(rotation=round(-frame.rotation / 90) * 90 % 360)
    data = bytes(matrix) if matrix is not None else b""
    return orientation_of_matrix(*struct.unpack_from("<5i", data)) if len(data) >= 36 else Orientation()


def orientation_of_matrix(a: int, b: int, _u: int, c: int, d: int) -> Orientation:
    """The orientation in the first five numbers of a display matrix (16.16 fixed point, x' = ax + cy, y' = bx + dy).

    Junk such as zeros or INT_MIN, and angles that are no right angles, mean upright.
    """
    mirrored = a * d - b * c < 0
    across, down = (-a, -b) if mirrored else (a, b)  # where the picture's x axis points, y down
    if not across and not down:
        return Orientation()
    degrees = math.degrees(math.atan2(down, across))
    nearest = round(degrees / 90) * 90
    if abs(degrees - nearest) > RIGHT_ANGLE_SLACK:
        return Orientation()
    return Orientation(rotation=nearest % 360, mirrored=mirrored)


def believable_aspect(aspect: Fraction | None) -> Fraction:
    """The sample aspect ratio, or 1 where it is missing or absurd."""
    if not aspect or not Fraction(1, MAX_ASPECT) <= aspect <= MAX_ASPECT:
        return Fraction(1)
    return Fraction(aspect)


def shown_size(width: int, height: int, aspect: Fraction, orientation: Orientation) -> tuple[int, int]:
    """(height, width) on a screen with square pixels: the coded width stretched by the aspect, then turned."""
    shown = (max(1, height), max(1, round(width * aspect)))
    return (shown[1], shown[0]) if orientation.is_sideways else shown


def fitted_size(shown: tuple[int, int], max_side: int | None, size: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) of the answer: `size` exactly, or the longer side at most `max_side`, never enlarged.

    Raises ConfigError when both are given or one is no number of pixels.
    """
    if max_side is not None and size is not None:
        raise ConfigError(f"max_side={max_side} and size={size} contradict each other; give one of them")
    check_whole("max_side", max_side, 1, optional=True)
    if size is not None:
        if not isinstance(size, tuple | list) or len(size) != 2:
            raise ConfigError(f"size must be (height, width) in pixels, got {size!r}")
        for side in size:
            check_whole("each side of size", side, 1)
        return size
    if max_side is None or max(shown) <= max_side:
        return shown
    factor = Fraction(max_side, max(shown))
    return max(1, round(shown[0] * factor)), max(1, round(shown[1] * factor))


def on_white(colour: NDArray[np.uint8], opacity: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What is seen of `colour` on a white page, 0 to 255 each."""
    seen = colour.astype(np.uint16) * opacity + 255 * (255 - opacity.astype(np.uint16))
    return ((seen + 127) // 255).astype(np.uint8)


def _may_be_clear(form: VideoFormat) -> bool:
    """Whether pixels of this format may be transparent; a palette's colours may."""
    return form.name == "pal8" or any(part.is_alpha for part in form.components)


class Painter:
    """Writes decoded frames as upright RGB of one size."""

    def __init__(self, size: tuple[int, int], orientation: Orientation, *, on_white: bool = False) -> None:
        """`size` is (height, width) after turning. With `on_white` what is transparent shows white, else the colour
        that lies hidden under it.
        """
        self._height, self._width = (size[1], size[0]) if orientation.is_sideways else size
        self._orientation, self._on_white = orientation, on_white
        self._scaler = VideoReformatter()

    def paint(self, frame: VideoFrame, out: NDArray[np.uint8]) -> None:
        """Fill `out` (H, W, 3) with the frame."""
        clear = self._on_white and _may_be_clear(frame.format)
        unscaled = "rgba" if clear else UNSCALED_FORMAT
        if (frame.width, frame.height) == (self._width, self._height):
            picture = self._scaler.reformat(frame, format=unscaled, threads=1)
            pixels = self._rows(picture.planes[0], 3 + clear).reshape(self._height, self._width, 3 + clear)
            out[...] = self._turned(on_white(pixels[..., :3], pixels[..., 3:]) if clear else pixels)
            return
        form = "gbrap" if clear else SCALED_FORMAT
        if frame.interlaced_frame:  # FFmpeg would scale each field by itself: combs, however small the picture
            frame = VideoFrame.from_ndarray(frame.to_ndarray(format=unscaled), format=unscaled)
        scaled = self._scaler.reformat(
            frame, self._width, self._height, form, interpolation=INTERPOLATION, threads=1
        )
        planes = [self._rows(plane, 1) for plane in scaled.planes]
        for channel, plane in zip(RGB_OF_PLANES, planes[:3], strict=True):
            out[..., channel] = self._turned(on_white(plane, planes[3]) if clear else plane)

    def _rows(self, plane: VideoPlane, values: int) -> NDArray[np.uint8]:
        """(height, width x values): a view into FFmpeg's buffer, valid while its frame is referenced."""
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(self._height, plane.line_size)
        return rows[:, : self._width * values]

    def _turned(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        flipped = pixels[:, ::-1] if self._orientation.mirrored else pixels
        return np.rot90(flipped, -self._orientation.rotation // 90)
