"""How a picture that is not square meets the square tile a vision tower takes. Pure over arrays.

    pad       whole picture, aspect kept, borders filled     nothing is lost, some tokens see only border
    stretch   whole picture, aspect lost                     every token sees picture
    crop      centre square, aspect kept                     a 16:9 picture loses 44 % of its width
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Fit = Literal["pad", "stretch", "crop"]

STRIP = 8
"""So many times as long as wide, a picture is no more scaled as a whole to be cropped: that would be so many tiles."""


def decoded_size(height: int, width: int, side: int, fit: Fit) -> tuple[int, int] | None:
    """(height, width) to decode pictures to that `fit_pixels` will fit; None: as they are."""
    return None if fit == "crop" and _is_strip(height, width) else inner_size(height, width, side, fit)


def inner_size(height: int, width: int, side: int, fit: Fit) -> tuple[int, int]:
    """(height, width) a picture is scaled to before it is padded or cropped to side x side."""
    if fit == "stretch":
        return side, side
    scale = side / (max(height, width) if fit == "pad" else min(height, width))
    return max(round(height * scale), 1), max(round(width * scale), 1)


def fit_pixels(
    pixels: NDArray[np.uint8], side: int, fit: Fit, fill: Sequence[float] = (0, 0, 0), resample: int = 3
) -> NDArray[np.uint8]:
    """Pictures uint8 (N, H, W, 3) -> (N, side, side, 3). `fill` is the border's colour, 0 to 255, and
    `resample` Pillow's number of a filter (3: bicubic).

    Pictures that the decoder already scaled to `inner_size` are only padded or cropped, never resampled again.
    """
    if fit == "crop" and _is_strip(*pixels.shape[1:3]):
        pixels = _middle(pixels, min(pixels.shape[1:3]))
    height, width = inner_size(pixels.shape[1], pixels.shape[2], side, fit)
    if (height, width) != pixels.shape[1:3]:
        pixels = np.stack([scaled(picture, height, width, resample) for picture in pixels])
    if fit == "crop":
        return np.ascontiguousarray(_middle(pixels, side))
    if (height, width) == (side, side):
        return pixels
    canvas = np.empty((len(pixels), side, side, 3), np.uint8)
    canvas[:] = np.round(fill).astype(np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    canvas[:, top : top + height, left : left + width] = pixels
    return canvas


def scaled(pixels: NDArray[np.uint8], height: int, width: int, resample: int = 3) -> NDArray[np.uint8]:
    """A picture uint8 (H, W, 3) -> (height, width, 3), to its width before it is to its height, as torchvision does.

    From version 13 on Pillow takes the order that is cheaper. Overshoots are cut off between the two, so in the other
    order fine detail comes out 20 grey levels away from what the processors make that models are mostly run with.
    """
    from PIL import Image

    picture = Image.fromarray(pixels)
    return np.asarray(picture.resize((width, picture.height), resample).resize((width, height), resample))


def _is_strip(height: int, width: int) -> bool:
    return max(height, width) > STRIP * min(height, width)


def _middle(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    top, left = (pixels.shape[1] - side) // 2, (pixels.shape[2] - side) // 2
    return pixels[:, top : top + side, left : left + side]
