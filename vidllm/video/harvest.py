"""What every reader brings home, and how one that will not read a clip says so."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidllm.errors import ReaderUnavailable
from vidllm.video.info import VideoInfo


@dataclass(frozen=True, eq=False)
class Harvest:
    """`pixels` (K, H, W, 3) and the true `pts` (K,) in ticks, one for each wanted frame.

    `pts` differs from the one wanted where that frame could not be decoded; `damaged` (K,) marks pictures the decoder
    itself calls corrupt.
    """

    pixels: NDArray[np.uint8]
    pts: NDArray[np.int64]
    damaged: NDArray[np.bool_]


def refuse(reader: str, info: VideoInfo, reason: str) -> ReaderUnavailable:
    """The error of a reader that does not read this clip."""
    return ReaderUnavailable(f"{info.path}: {reader} is not used on this clip ({reason}); use reader pyav or auto")
