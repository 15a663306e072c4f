"""Probing and decoding in a process that can be killed: wall time, memory, pixels, frames and bytes have limits.

Native decoders hang, crash and eat memory on damaged files, and no thread time-out ends a native loop. So a child does
the work (`guard_child`), is kept for the next clip, and is replaced when it had to be killed. Whatever happens in it
comes out as frames or as one `VideoError`.
"""

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
import psutil
from numpy.typing import NDArray

import vidllm.errors
from vidllm.errors import LimitExceeded, VideoError, VidllmError
from vidllm.starting import BLAS_THREADS
from vidllm.video import wire
from vidllm.video.container import check_file
from vidllm.video.decode import FrameSet, Reader, checked_times
from vidllm.video.info import VideoInfo

if TYPE_CHECKING:
    from vidllm.video.subtitles import Line

START_SECONDS = 120.0
"""Longest start of a child, on a machine that has other things to do."""
WATCH_SECONDS = 0.02
LEAVE_SECONDS = 1.0
"""Between the end of what a child says and its own end; one that lives on talks nonsense."""
RECYCLE_BYTES = 768 << 20
"""A child that holds more than this after its work is not kept."""
RECYCLE_JOBS = 512
IDLE_WORKERS = 2
"""Children that wait for work between calls, unless `keep_workers` says more."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one clip may take. Past any of them the work ends as `LimitExceeded`."""

    seconds: float = 120.0
    """Wall time of one call."""
    memory_bytes: int = 3 << 30
    """Resident memory of the child, interpreter and libraries (60 MB) included; the pictures count too."""
    pixels: int = 8192 * 8192
    """Coded width times height of one frame; 8K video has 33 million."""
    frames: int = 10_000_000
    """Presented frames of the whole clip: four days at 30 a second."""
    file_bytes: int = 256 << 30

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")


DEFAULT_LIMITS = Limits()


def probe_guarded(path: str | Path, limits: Limits = DEFAULT_LIMITS) -> VideoInfo:
    """`probe` in a child. Raises what `probe` raises, `LimitExceeded`, and `VideoError` when the decoder crashed."""
    return cast(VideoInfo, _guarded({"do": "probe", "path": str(path), "stream": None}, limits))


def read_frames_guarded(
    video: VideoInfo | str | Path,
    times: Sequence[float] | NDArray[np.float64],
    limits: Limits = DEFAULT_LIMITS,
    *,
    max_side: int | None = None,
    size: tuple[int, int] | None = None,
    reader: Reader = "auto",
    tolerance: float = 0.0,
) -> FrameSet:
    """`read_frames` in a child; the words mean the same. Raises what it raises, and as `probe_guarded`."""
    path, stream = (video.path, video.stream_index) if isinstance(video, VideoInfo) else (str(video), None)
    job = {"do": "read", "path": path, "stream": stream, "times": checked_times(times)}
    how = {"max_side": max_side, "size": size, "reader": reader, "tolerance": tolerance}
    return cast(FrameSet, _guarded({**job, **how}, limits))


def read_subtitles_guarded(
    info: VideoInfo, start: float = 0.0, end: float = float("inf"), limits: Limits = DEFAULT_LIMITS
) -> tuple["Line", ...]:
    """`read_subtitles` in a child. Raises what it raises, and as `probe_guarded`."""
    from vidllm.video.subtitles import Line

    job = {"do": "subtitles", "path": info.path, "stream": info.stream_index, "start": start, "end": end}
    lines = cast(list[tuple[float, float, str]], _guarded(job, limits))
    return tuple(Line(*line) for line in lines)


def keep_workers(count: int) -> None:
    """From now on keep at least so many children between calls: as many as threads call at a time."""
    global _kept
    with _lock:
        _kept = max(_kept, count)


def close_workers() -> None:
    """End the children that wait for work; a later call starts a new one."""
    with _lock:
        workers, _idle[:] = list(_idle), []
    for worker in workers:
        worker.kill()


def _guarded(job: dict[str, object], limits: Limits) -> object:
    path = str(job["path"])
    check_file(path)
    if (size := os.path.getsize(path)) > limits.file_bytes:
        raise LimitExceeded(f"{path}: {size} bytes are more than the limit of {limits.file_bytes}; cut the clip first")
    reply = _ask({**job, "limits": asdict(limits)}, limits)
    if "error" in reply:
        raise error_of(str(reply["error"]), str(reply["message"]))
    return reply["value"]


def _ask(job: dict[str, object], limits: Limits) -> dict[str, Any]:
    """The reply of an idle child, or of a new one when none is idle or the idle ones have died."""
    while True:
        worker = _borrow()
        try:
            reply = worker.call(job, limits)
        except NotBegun:
            worker.kill()
            continue
        except BaseException:  # Ctrl-C too leaves no child behind
            worker.kill()
            raise
        _give_back(worker)
        return reply


def error_of(name: str, message: str) -> VidllmError:
    kind = getattr(vidllm.errors, name, VideoError)
    return kind(message) if issubclass(kind, VidllmError) else VideoError(message)


# The children --------------------------------------------------------------------------------------------------------

_lock = threading.Lock()
_idle: list["Worker"] = []
_kept = IDLE_WORKERS


def _borrow() -> "Worker":
    with _lock:
        while _idle:
            worker = _idle.pop()
            if worker.process.poll() is None and worker.folder == _folder():
                return worker
            worker.kill()
    return Worker()


def _folder() -> str:
    """Where relative paths lead from; empty when the folder is gone."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def _give_back(worker: "Worker") -> None:
    with _lock:
        if len(_idle) < _kept and not worker.is_spent():
            _idle.append(worker)
            return
    worker.kill()


def _forget_workers() -> None:
    """A forked process must not talk through its parent's pipes."""
    _idle.clear()


atexit.register(close_workers)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)


class NotBegun(Exception):
    """A child that served before was found dead: its next job did not kill it."""


class Killed(VideoError):
    """Somebody else ended the child: the system where memory runs out, or a person. The clip may be as good as any."""


class Worker:
    """One child process and the pipes to it. `module` is what runs there: its `main` calls `guard_child.serve`."""

    def __init__(self, module: str = "vidllm.video.guard_child") -> None:
        # A session of its own: Ctrl-C reaches this process only, which then ends the child itself.
        self.process = subprocess.Popen(
            child_command(module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={BLAS_THREADS: "1", **child_environment()},
            start_new_session=True,
        )
        self.folder = _folder()  # a child stays in the folder it was started in
        self._jobs = 0
        try:
            with _Watch(self.process, Limits(seconds=START_SECONDS)) as watch:
                self._receive(watch, "vidllm.video.guard", 0)
        except BaseException:
            self.kill()
            raise

    def call(self, job: dict[str, object], limits: Limits) -> dict[str, Any]:
        """The child's reply, or `VideoError` when it did not live to give one (`Killed` where that says nothing of the
        clip), `NotBegun` if it had died before.
        """
        path = str(job["path"])
        self._jobs += 1
        with _Watch(self.process, limits) as watch:
            try:
                wire.send(cast(BinaryIO, self.process.stdin), job)
                wire.receive(cast(BinaryIO, self.process.stdout))
            except (BrokenPipeError, wire.BrokenMessage):
                failure = watch.failure(path)
                raise (failure if self._jobs == 1 or isinstance(failure, LimitExceeded) else NotBegun()) from None
            return cast(dict[str, Any], self._receive(watch, path, limits.memory_bytes))

    def _receive(self, watch: "_Watch", path: str, max_bytes: int) -> object:
        try:
            return wire.receive(cast(BinaryIO, self.process.stdout), max_bytes=max_bytes)
        except wire.BrokenMessage:
            raise watch.failure(path) from None

    def is_spent(self) -> bool:
        """Whether the child is better replaced: it grew, it is old, or it is gone."""
        return self._jobs >= RECYCLE_JOBS or not 0 < _resident_bytes(self.process.pid) < RECYCLE_BYTES

    def kill(self) -> None:
        """End the child and wait for its end."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def child_command(module: str) -> list[str]:
    """Runs `main` of `module` in this interpreter; `-P`, or a `fractions.py` in the user's folder would be run too."""
    return [sys.executable, "-P", "-c", f"from {module} import main; main()"]


def child_environment() -> dict[str, str]:
    """This process's, with this vidllm first on the path."""
    home = str(Path(vidllm.errors.__file__).parent.parent)
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


class _Watch:
    """Kills `process` from a thread when it runs past `limits`, and knows why it ended."""

    def __init__(self, process: "subprocess.Popen[bytes]", limits: Limits) -> None:
        self._process, self._limits = process, limits
        self._reason: str | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_Watch":
        self._until = time.monotonic() + self._limits.seconds
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def failure(self, path: str) -> VideoError:
        """Why there was no reply."""
        try:
            status = self._process.wait(LEAVE_SECONDS)
            is_killed = status_name(status) == "SIGKILL"
        except subprocess.TimeoutExpired:
            self._process.kill()
            status, is_killed = self._process.wait(), False
        self._over.set()
        self._thread.join()
        if self._reason is not None:
            return LimitExceeded(f"{path}: {self._reason}")
        if is_killed:
            return Killed(f"{path}: the decoder was killed (SIGKILL), perhaps for want of memory; free some, try again")
        return VideoError(f"{path}: the decoder crashed ({status_name(status)}); convert the clip, it may be damaged")

    def _watch(self) -> None:
        while not self._over.wait(WATCH_SECONDS):
            if time.monotonic() > self._until:
                self._stop(f"not read within {self._limits.seconds:g} s, stopped; raise the time limit or ask for less")
            elif (held := _resident_bytes(self._process.pid)) > self._limits.memory_bytes:
                most = self._limits.memory_bytes >> 20
                self._stop(f"took {held >> 20} MB of {most} MB allowed, stopped; raise the limit or ask for less")

    def _stop(self, reason: str) -> None:
        if self._process.poll() is None:
            self._reason = self._reason or reason
            self._process.kill()


def _resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 when it is gone."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def status_name(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
