"""The guard's other half: a process that probes and decodes what it is told, and may be killed at any moment.

Started as `python -P -c "from vidllm.video.guard_child import main; main()"`, it never imports torch or transformers.
Messages travel over private copies of stdin and stdout, so nothing a decoder prints can get among them.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO

from vidllm.errors import LimitExceeded, NoFrames, VideoError, VidllmError
from vidllm.video import wire
from vidllm.video.decode import FrameSet, read_frames
from vidllm.video.info import VideoInfo, index_clip
from vidllm.video.picture import fitted_size

PARENT_CHECK_SECONDS = 0.5
LAST_RESORT_SECONDS = 5.0
"""After the limit and this much more the process ends itself, even inside native code: its parent may be gone."""
MOST_SECONDS = 1e9
"""The system's timer takes no limit that is none (`inf`)."""
ADDRESS_SLACK_BYTES = 1 << 30
"""Writable address space that is no data: thread stacks, libraries. The guard watches the real memory from outside."""
KEPT_CLIPS = 8


Job = dict[str, Any]
Do = Callable[[Job, dict[str, Any]], object]
"""A job and its limits -> what travels back; what it raises is told to the guard."""


def main() -> None:
    """Probe and decode what stdin asks for, until it closes."""
    serve(_do)


def serve(do: Do) -> None:
    """Answer jobs from stdin with `do` until it closes: the whole of a child process, whatever its work."""
    jobs, replies = private_streams()
    _no_core_dumps()
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    wire.send(replies, "ready")
    with contextlib.suppress(wire.BrokenMessage, BrokenPipeError):  # the guard has ended
        while True:
            job = wire.receive(jobs)
            wire.send(replies, "begun")
            wire.send(replies, _answer(job, do))


def _answer(job: Job, do: Do) -> dict[str, Any]:
    limits = job["limits"]
    faulthandler.dump_traceback_later(min(limits["seconds"], MOST_SECONDS) + LAST_RESORT_SECONDS, exit=True)
    _bound_memory(limits["memory_bytes"])
    try:
        return {"value": do(job, limits)}
    except VidllmError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except MemoryError:
        message = f"{job['path']}: needs more than {limits['memory_bytes'] >> 20} MB; raise the limit or ask for less"
        return {"error": LimitExceeded.__name__, "message": message}
    except Exception as error:  # a process boundary: the guard reports it, and the process lives on
        message = f"{job['path']}: can not be read ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        return {"error": VideoError.__name__, "message": message}
    finally:
        faulthandler.cancel_dump_traceback_later()


def _do(job: Job, limits: dict[str, Any]) -> VideoInfo | FrameSet | list[tuple[float, float, str]]:
    info = probed(job["path"], job["stream"])
    check(info, limits)
    if job["do"] == "probe":
        return info
    if job["do"] == "subtitles":
        from vidllm.video.subtitles import read_subtitles  # which most jobs do without

        return [(line.start, line.end, line.text) for line in read_subtitles(info, job["start"], job["end"])]
    size, times = job["size"], job["times"]
    height, width = fitted_size((info.height, info.width), job["max_side"], size)
    if (needed := len(times) * height * width * 3) > limits["memory_bytes"]:
        raise LimitExceeded(
            f"{info.path}: {len(times)} frames of {width}x{height} take {needed >> 20} MB, the limit is "
            f"{limits['memory_bytes'] >> 20} MB; ask for fewer or smaller frames"
        )
    return read_frames(
        info, times, max_side=job["max_side"], size=size, reader=job["reader"], tolerance=job["tolerance"]
    )


def check(info: VideoInfo, limits: dict[str, Any]) -> None:
    """Raise NoFrames or LimitExceeded when the clip is more than these limits allow."""
    if not info.num_frames:
        raise NoFrames(f"{info.path}: holds no frames")
    if info.coded_width * info.coded_height > limits["pixels"]:
        raise LimitExceeded(
            f"{info.path}: frames of {info.coded_width}x{info.coded_height} are more than the limit of "
            f"{limits['pixels']} pixels; scale the clip down first"
        )
    if info.num_frames > limits["frames"]:
        raise LimitExceeded(
            f"{info.path}: {info.num_frames} frames are more than the limit of {limits['frames']}; cut the clip first"
        )


_kept: dict[tuple[str, int | None, int, int], VideoInfo] = {}


def probed(path: str, stream: int | None) -> VideoInfo:
    """The clip's index, kept from an earlier job when the file is still the same."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return index_clip(path, stream)  # says what is wrong with it
    key = (path, stream, status.st_size, status.st_mtime_ns)
    if key not in _kept:
        info = index_clip(path, stream)
        while len(_kept) >= KEPT_CLIPS:
            del _kept[next(iter(_kept))]
        _kept[key] = info
    return _kept[key]


def private_streams() -> tuple[BinaryIO, BinaryIO]:
    """Unbuffered copies of stdin and stdout; the well-known numbers then lead nowhere."""
    jobs = os.fdopen(os.dup(0), "rb", buffering=0)
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    return jobs, replies


def _no_core_dumps() -> None:
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _bound_memory(memory_bytes: int) -> None:
    if sys.platform == "linux":  # elsewhere RLIMIT_DATA does not count mappings
        import resource

        most = resource.getrlimit(resource.RLIMIT_DATA)[1]
        wanted = memory_bytes + ADDRESS_SLACK_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (wanted if most < 0 else min(wanted, most), most))


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os._exit(1)
