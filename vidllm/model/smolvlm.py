"""SmolVLM and Idefics3: a frame -> a fixed square of patches, shuffled into few tokens; positions count tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from vidllm.model.native import NativeLMM
from vidllm.video.fit import scaled

if TYPE_CHECKING:
    from numpy.typing import NDArray

LANCZOS = 1
"""Pillow's number of the filter."""


class SmolVLM(NativeLMM):
    """Frames and pictures are squares of one size."""

    def encode_groups(self, groups: Tensor) -> Tensor:
        """Frames (N, 1, S, S, 3) -> (N, n, D)."""
        pixels = self.normal(groups[:, 0]).permute(0, 3, 1, 2)
        tokens: Tensor = self.model.connector(self.tower(pixels).last_hidden_state)
        return tokens

    def _fitted(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A still image (1, H, W, 3) as the family's processor makes one that it does not split: scaled, then square.
        """
        picture, square = pixels[0], self.geometry.square
        if longest := self.geometry.image_longest:
            height, width = picture.shape[:2]
            picture = scaled(picture, *scaled_size(height, width, longest), LANCZOS)
        return scaled(picture, square, square, LANCZOS)[None]


def scaled_size(height: int, width: int, longest: int) -> tuple[int, int]:
    """(height, width) with the longer side `longest` pixels and the other even, as near the aspect as may be."""
    aspect = width / height
    shorter = int(longest / aspect if aspect >= 1 else longest * aspect)
    shorter = max(shorter + shorter % 2, 1)
    return (shorter, longest) if aspect >= 1 else (longest, shorter)
