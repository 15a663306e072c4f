"""decord as a reader, only where the packet index says it can be trusted, and its times checked.

decord 0.6.0 is silently wrong on H.264 without PTS and on MPEG-2, can spin for ever where a header over-reports its
frames, and brings the process down at exit in some mixes of libraries. So it is never imported unless asked for by
name, refuses whatever the index does not vouch for, and belongs behind the guard like every native reader.
"""

import numpy as np
from numpy.typing import NDArray

from vidllm.errors import ReaderUnavailable
from vidllm.video.harvest import Harvest, refuse
from vidllm.video.info import VideoInfo

TIME_SLACK_SECONDS = 1e-3  # decord keeps times as 32-bit floats


def read_decord(info: VideoInfo, wanted: NDArray[np.int64], size: tuple[int, int]) -> Harvest:
    """Decode the frames numbered `wanted` (K,) as RGB of `size` (height, width).

    Raises ReaderUnavailable when decord is absent, not safe on this clip, or answers with other times than the index.
    """
    doubt = decord_doubt(info)
    if doubt:
        raise refuse("decord", info, doubt)
    try:
        import decord
    except (ImportError, OSError) as error:
        raise ReaderUnavailable(f"{info.path}: decord is not installed or does not load; use reader pyav") from error
    try:
        reader = decord.VideoReader(info.path, width=size[1], height=size[0])
        if len(reader) != info.num_frames:
            raise refuse("decord", info, f"it counts {len(reader)} frames where the index has {info.num_frames}")
        pixels = reader.get_batch(wanted).asnumpy()
        starts = reader.get_frame_timestamp(wanted)[:, 0]
    except decord.DECORDError as error:
        raise refuse("decord", info, "it fails to decode it") from error
    if np.abs(starts - info.pts[wanted] * float(info.time_base)).max() > TIME_SLACK_SECONDS:
        raise refuse("decord", info, "it answers with other times than were asked for")
    return Harvest(pixels, info.pts[wanted], np.zeros(len(wanted), np.bool_))


def leading_frames(info: VideoInfo) -> NDArray[np.bool_]:
    """(N,) Frames that come after a key packet but are shown before it: they refer to what lies before the key."""
    latest = np.searchsorted(info.access_points[:, 0], info.decode_ranks, side="right") - 1
    leading: NDArray[np.bool_] = info.access_points[np.maximum(latest, 0), 1] > info.pts
    return leading


def decord_doubt(info: VideoInfo) -> str:
    """Why decord should not be trusted with this clip; empty when nothing speaks against it."""
    doubts = {
        "only mp4 and mov are safe with it": not info.container.startswith("mov,"),
        "only H.264 and HEVC are safe with it": info.codec not in ("h264", "hevc"),
        "the clip has no time stamps of its own": not info.has_true_pts,
        "its times had to be mended": len(info.mended_pts) > 0,
        "an edit list or hidden frames shift its numbering": info.has_edits,
        "the header counts other frames than the file holds": info.num_frames_from_header != info.num_frames,
        "it does not mirror or turn as a player does": info.mirrored or info.rotation != 0,
        "its key frames are no safe places to start": len(info.access_points) != int(info.key_frames.sum()),
        "its groups of pictures are open": bool(leading_frames(info).any()),
        "it decodes 4:4:4 wrongly after a seek": "444" in info.pix_fmt,
    }
    return next((doubt for doubt, holds in doubts.items() if holds), "")
