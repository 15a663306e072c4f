"""A clip seen small and at many moments, and the few of them that show the most of it.

Packet sizes tell that something changed; they do not tell whether the picture before comes back, nor whether anybody
would see the difference. So as many as 128 moments, a quarter of them where the packets say that it is worth it, are
looked at in 32x32 pixels, and frames are chosen among them so that every glance is near to one that was chosen:
facility location, whose greedy answer is within 1 - 1/e of the best (Nemhauser, Wolsey and Fisher 1978).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from vidllm.video.decode import FrameSet
from vidllm.video.info import VideoInfo
from vidllm.video.sampling import UNIFORM_FLOOR, change, frames_in_range, uniform
from vidllm.video.thumbs import block_changes

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.int64]

MOST, EVENLY = 128, 96
"""Glances, and how many of them stand at equal steps: another flat grey costs an encoder almost nothing."""
DECODED_PIXELS = 2e9
"""A range of more pixels, half a minute of 1080p, is glanced at in its key frames alone: all others would have to be
decoded as well, for seconds."""
TIME_WEIGHT = 0.5
"""The two ends of the range are as unlike as so many middling pairs of glances: of like pictures the nearer in time
stands in for another, and a clip that never changes is shown from end to end."""

Glance: TypeAlias = Callable[[VideoInfo, float, float], FrameSet]
"""A clip and a range in seconds -> its glances, (N, 32, 32, 3), their times ascending and distinct: how they are read,
and whether they are remembered, is the caller's."""


def glance_times(info: VideoInfo, start: float = 0.0, end: float = float("inf")) -> FloatArray:
    """When to glance at `[start, end)`: up to 128 times of frames, the first and the last of the range among them."""
    pts = frames_in_range(info.pts_seconds, start, end)
    if len(pts) * info.coded_width * info.coded_height <= DECODED_PIXELS:
        even, by_packets = uniform(pts, EVENLY), change(info, MOST - EVENLY, start, end)
        return np.union1d(even.times, by_packets.times)
    keys = np.intersect1d(info.pts_seconds[info.start_frames], pts)
    some = keys[np.unique(np.linspace(0, len(keys) - 1, MOST - 2).astype(np.int64))] if len(keys) else keys
    return np.unique(np.concatenate([pts[:1], some, pts[-1:]]))


def glances_of(frames: FrameSet) -> FrameSet:
    """From pictures of 32x32; those that stood in for others are counted once, and not where they lie before all that
    was asked for: of a damaged clip such a picture shows what is outside the range.
    """
    seconds, places = np.unique(frames.pts_seconds, return_index=True)
    kept = places[seconds >= frames.requested_seconds.min()]
    pixels, pts, requested = frames.pixels[kept], frames.pts_seconds[kept], frames.requested_seconds[kept]
    return replace(frames, pixels=pixels, pts_seconds=pts, requested_seconds=requested)


def covering(glances: FrameSet, n: int) -> IndexArray:
    """Numbers of `n` glances, ascending, that leave the others as little unlike their nearest as a greedy choice can.

    The first, the last and a uniform quarter of the `n` are among them whatever they show.
    """
    apart = _apart(glances)
    seconds = glances.pts_seconds
    lasting = np.gradient(seconds)  # a glance stands for the time up to its neighbours
    steps = np.linspace(seconds[0], seconds[-1], max(2, round(UNIFORM_FLOOR * n)))
    chosen = list(dict.fromkeys(np.abs(seconds - steps[:, None]).argmin(1).tolist()))
    nearest = apart[:, chosen].min(1)
    while len(chosen) < n:
        left = lasting @ np.minimum(nearest[:, None], apart)
        left[chosen] = np.inf
        chosen.append(int(left.argmin()))
        nearest = np.minimum(nearest, apart[:, chosen[-1]])
    return np.sort(np.asarray(chosen[:n], dtype=np.int64))


def unlike(pixels: NDArray[np.uint8], picture: NDArray[np.uint8]) -> FloatArray:
    """How much each of `pixels` (N, 32, 32, 3) differs from one `picture`, (N,) grey levels: by the block that differs
    most, for a small object moves the mean of a picture by nothing.
    """
    return np.asarray(block_changes(picture, pixels).max(axis=1), np.float64)


@lru_cache(maxsize=8)
def _apart(glances: FrameSet) -> FloatArray:
    """How unlike any two glances are, (N, N): by what they show, and a little by when. Of 128 it is 16,384 pictures, a
    tenth of a second: the last few are remembered, for many numbers of frames are tried where nothing fits.
    """
    shown = np.stack([unlike(glances.pixels, picture) for picture in glances.pixels])
    passed: FloatArray = np.abs(glances.pts_seconds - glances.pts_seconds[:, None])
    middling = max(float(np.median(shown[np.triu_indices(len(glances), 1)])), 1.0)
    return np.asarray(shown + TIME_WEIGHT * middling * passed / passed.max())
