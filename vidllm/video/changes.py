"""Where the picture changes, told cheaply: from packet sizes alone.

An encoder spends bytes where the picture is new. So a packet far larger than its neighbours, or a key frame that comes
before its turn, marks a cut; many bytes mean motion; packets of nearly nothing mean a still. Over fifteen clips this
finds three cuts of four, and as much else, for a hundredth of a decode: good for proposing moments to look at
(`glances`, `cuts`), not for counting scenes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidllm.video.info import VideoInfo

FloatArray = NDArray[np.float64]

WINDOW_FRAMES = 31
"""Neighbours a packet is compared with: about a second."""
LARGE_SHARE = 80
"""The comparison is this percentile of the neighbours: the median would call every P frame among B frames a spike."""
KEY_SPIKE = 2.0
"""An early key frame counts like a packet of eight times its neighbours' size."""
EARLY = 0.95
"""A key frame is early when it follows the last one by less than this share of the clip's longest such distance."""
STILL_BYTES, STILL_BYTES_PER_PIXEL = 48.0, 1e-4
"""A packet up to this size repeats the picture: all blocks skipped, and headers."""


@dataclass(frozen=True, eq=False)
class Changes:
    """How much the picture changes at each presented frame against the one before it; arrays (frames,), 0 or more."""

    motion: FloatArray
    """Bytes spent on a frame, key frames told by their neighbours."""
    spikes: FloatArray
    """0 for most frames; about 1-4 where something new appears."""
    still: NDArray[np.bool_]
    """The frame repeats the one before it."""


def packet_changes(info: VideoInfo) -> Changes:
    """Change at each frame from the sizes of the packets; nothing is decoded."""
    sizes = info.packet_sizes.astype(np.float64)
    keys = info.key_frames.astype(np.bool_)
    inner = np.where(keys, np.nan, sizes) if not keys.all() else sizes
    large = _local_percentile(inner, LARGE_SHARE)
    motion = np.where(np.isnan(inner), large, sizes)
    with np.errstate(divide="ignore"):
        spikes = np.clip(np.log2(np.maximum(sizes, 1) / np.maximum(large, 1)) - 1, 0, 4)
    spikes[keys] = np.where(_early_keys(keys), KEY_SPIKE, 0.0)[keys]
    least = STILL_BYTES + STILL_BYTES_PER_PIXEL * info.coded_width * info.coded_height
    still = np.where(keys, motion <= least, sizes <= least) & (spikes < KEY_SPIKE)
    motion[0] = spikes[0] = 0.0  # there is no frame before it
    return Changes(motion, np.where(still, 0.0, spikes), still)


def _early_keys(keys: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Key frames the encoder set before their turn: it saw a cut."""
    places = np.flatnonzero(keys)
    early = np.zeros(len(keys), np.bool_)
    if len(places) > 2:
        gaps = np.diff(places)
        early[places[1:][gaps < EARLY * gaps.max()]] = True
    return early


def _local_percentile(values: FloatArray, share: float) -> FloatArray:
    """The percentile of the finite values in a window around each place; edges see their mirror image."""
    width = min(WINDOW_FRAMES, max(len(values) // 2 * 2 - 1, 1))
    padded = np.pad(values, width // 2, mode="reflect" if len(values) > width // 2 else "edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)
    ordered = np.sort(windows, axis=1)  # NaN last
    counts = np.isfinite(windows).sum(axis=1)
    rank = np.clip(np.ceil(counts * share / 100).astype(np.int64) - 1, 0, None)
    found: FloatArray = ordered[np.arange(len(values)), rank]
    return np.nan_to_num(found, nan=float(np.nanmedian(values)))
