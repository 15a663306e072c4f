"""torchcodec as a reader, where it really loads: it needs FFmpeg's shared libraries and a matching torch."""

from importlib import import_module

import numpy as np
from numpy.typing import NDArray

from vidllm.errors import ReaderUnavailable
from vidllm.video.harvest import Harvest, refuse
from vidllm.video.info import VideoInfo


def read_torchcodec(info: VideoInfo, wanted: NDArray[np.int64], size: tuple[int, int]) -> Harvest:
    """Decode the frames numbered `wanted` (K,) as RGB of `size` (height, width).

    Raises ReaderUnavailable when torchcodec does not load, fails on this clip, or answers with other times.
    """
    if info.mirrored or not info.has_true_pts or len(info.mended_pts):
        raise refuse("torchcodec", info, "it does not mirror, and needs time stamps")
    if info.key_frames.sum() > len(info.access_points):
        raise refuse("torchcodec", info, "it starts at key frames that are no safe places to start")
    try:
        video_decoder = import_module("torchcodec.decoders").VideoDecoder
        resize = import_module("torchcodec.transforms").Resize
    except (ImportError, OSError, RuntimeError) as error:
        raise ReaderUnavailable(
            f"{info.path}: torchcodec does not load here (it needs FFmpeg's shared libraries and a matching torch); "
            "use reader pyav"
        ) from error
    tick = float(info.time_base)
    seconds = info.pts[wanted] * tick
    try:
        decoder = video_decoder(
            info.path, stream_index=info.stream_index, dimension_order="NHWC", transforms=[resize(size)]
        )
        batch = decoder.get_frames_played_at((seconds + tick / 2).tolist())
    except (RuntimeError, ValueError, IndexError) as error:
        raise refuse("torchcodec", info, "it fails to decode it") from error
    if np.abs(batch.pts_seconds.numpy() - seconds).max() > tick / 2:
        raise refuse("torchcodec", info, "it answers with other times than were asked for")
    return Harvest(batch.data.numpy(), info.pts[wanted], np.zeros(len(wanted), np.bool_))
