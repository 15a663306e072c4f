"""Where one shot ends and the next begins: hard cuts, by pictures of 32x32 pixels of every frame.

    change    . . , . .  |  . , . . . ~ ~ ~ ~ ~ ~  |  ~ ~        a cut stands out from the change around it;
                         cut                       cut           what merely moves does not

A clip too long to be decoded whole is cut where the encoder paid for a new picture, if the key frames on both sides
show different ones. Fades and dissolves are no cuts: nothing in them stands out.
"""

import numpy as np
from numpy.typing import NDArray

from vidllm.video.changes import KEY_SPIKE, packet_changes
from vidllm.video.decode import read_frames
from vidllm.video.info import VideoInfo
from vidllm.video.thumbs import SIDE, block_changes

FloatArray = NDArray[np.float64]

MOST_PIXELS, MOST_FRAMES = 3e10, 50_000
"""A clip of more, eight minutes of 1080p, is not decoded whole: it would take a minute. The frames are 150 MB."""
MOST_KEY_PIXELS = 5e9
"""Of key frames, which are slower by the pixel: 2,400 of 1080p, the cuts of two hours."""
SHARE = 75
"""The change of a frame is this percentile of its blocks': what moves fills fewer, and black bars fill many."""
AROUND = 8
"""Frames on each side that a change is compared with; of them again a high percentile counts."""
AROUND_SHARE = 80
CLEAR = (12.0, 4.0)
STRONG = (30.0, 2.5)
"""Grey levels, and how many times the change around: either makes a cut."""
CUT_SPIKE = 0.5
"""Of the long clip: a packet of nearly three times its neighbours' size ..."""
CUT_KEY_SHARE = 0.25
"""... is a sign when it also weighs this share of a key frame: a new picture has to be told whole."""
BATCH = 1024


def hard_cuts(info: VideoInfo) -> FloatArray:
    """Times of the first frames of new shots, (cuts,) seconds on the viewer's clock. Raises what the reader raises."""
    small = info.num_frames * info.coded_width * info.coded_height <= MOST_PIXELS and info.num_frames <= MOST_FRAMES
    return _seen(info) if small else _confirmed(info, _signs(info))


def _seen(info: VideoInfo) -> FloatArray:
    """By every frame."""
    pixels = read_frames(info, info.pts_seconds, size=(SIDE, SIDE)).pixels
    starts = range(0, len(pixels) - 1, BATCH)
    parts = [_change(pixels[i:-1][:BATCH], pixels[i + 1 :][:BATCH]) for i in starts]
    change = np.concatenate([np.zeros(1), *parts])
    found = [i for i in np.flatnonzero(change > CLEAR[0]).tolist() if _stands_out(change, i)]
    return np.asarray(info.pts_seconds[found], np.float64)


def _change(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> FloatArray:
    """How much each of (N, 32, 32, 3) pictures differs from the one before it: (N,) grey levels."""
    return np.asarray(np.percentile(block_changes(before, after), SHARE, axis=1), np.float64)


def _stands_out(change: FloatArray, frame: int) -> bool:
    around = np.concatenate([change[max(frame - AROUND, 1) : frame], change[frame + 1 : frame + AROUND + 1]])
    usual = max(float(np.percentile(around, AROUND_SHARE)), 1.0) if len(around) else 1.0
    return any(change[frame] > level and change[frame] > times * usual for level, times in (CLEAR, STRONG))


def _signs(info: VideoInfo) -> NDArray[np.int64]:
    """Frames for which the encoder paid as for a new picture: about three cuts of four, and as much else."""
    spikes, sizes, keys = packet_changes(info).spikes, info.packet_sizes, info.key_frames
    heavy = sizes >= CUT_KEY_SHARE * float(np.median(sizes[keys])) if keys.any() else keys
    return np.flatnonzero(np.where(keys, spikes >= KEY_SPIKE, (spikes >= CUT_SPIKE) & heavy))


def _confirmed(info: VideoInfo, signs: NDArray[np.int64]) -> FloatArray:
    """Those with unlike key frames on both sides, the ends of the clip counting as such; all, where these were too many
    to look at.
    """
    edges = np.unique(np.concatenate([[0], info.start_frames, [info.num_frames - 1]]))
    after = np.clip(np.searchsorted(edges, signs), 1, len(edges) - 1)
    needed, places = np.unique(np.concatenate([edges[after - 1], edges[after]]), return_inverse=True)
    if len(signs) and len(needed) * info.coded_width * info.coded_height <= MOST_KEY_PIXELS:
        pixels = read_frames(info, info.pts_seconds[needed], size=(SIDE, SIDE)).pixels[places]
        signs = signs[_change(pixels[: len(signs)], pixels[len(signs) :]) > CLEAR[0]]
    return np.asarray(info.pts_seconds[signs], np.float64)
