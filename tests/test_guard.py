"""The guard: the same frames as without it, and one line where a process would hang, crash or eat the machine.

A named pipe without a writer is a real hang: opening it blocks inside FFmpeg's native code for ever.
"""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.conftest import read_code, write_clip
from vidllm.errors import ConfigError, LimitExceeded, NoFrames, NotAVideo, VideoError, VideoNotFound
from vidllm.video import guard, wire
from vidllm.video.decode import read_frames
from vidllm.video.guard import Limits, close_workers, probe_guarded, read_frames_guarded, read_subtitles_guarded
from vidllm.video.info import VideoInfo, probe
from vidllm.video.subtitles import Line, read_subtitles

posix = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes and signals are POSIX")
TIMES = [0.0, 1.0, 2.5, 3.9]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 s at 25 fps."""
    return write_clip(tmp_path_factory.mktemp("guard") / "clip.mp4", [i / 25 for i in range(100)], gop=25)


@pytest.fixture(scope="module", autouse=True)
def _no_child_is_left() -> Iterator[None]:
    """None from before either: one that has served elsewhere may be spent at any call."""
    close_workers()
    yield
    close_workers()
    assert not [child for child in psutil.Process().children() if "guard_child" in " ".join(child.cmdline())]


def idle_pid() -> int:
    """The child that waits for the next clip."""
    (worker,) = guard._idle
    return worker.process.pid


def test_guarded_frames_equal_unguarded_ones(clip: Path) -> None:
    plain, guarded = read_frames(clip, TIMES, max_side=64), read_frames_guarded(clip, TIMES, max_side=64)
    assert np.array_equal(plain.pixels, guarded.pixels)
    assert np.array_equal(plain.pts_seconds, guarded.pts_seconds)
    assert np.array_equal(plain.requested_seconds, guarded.requested_seconds)
    assert (plain.reader, plain.notes) == (guarded.reader, guarded.notes)
    assert [read_code(picture) for picture in read_frames_guarded(clip, TIMES).pixels] == [0, 25, 62, 97]


def test_frames_from_the_guard_can_be_written_to(clip: Path) -> None:
    frames = read_frames_guarded(clip, TIMES)
    frames.pixels[0] = 0


def test_a_guarded_index_equals_an_unguarded_one(clip: Path) -> None:
    plain, guarded = probe(clip), probe_guarded(clip)
    for name in VideoInfo.__dataclass_fields__:
        assert np.array_equal(getattr(plain, name), getattr(guarded, name)), name
        assert type(getattr(plain, name)) is type(getattr(guarded, name)), name
    assert read_frames_guarded(guarded, [1.0]).pts_seconds[0] == 1.0


def test_guarded_subtitles_equal_unguarded_ones_and_hang_nobody(clip: Path, hanging: Path, tmp_path: Path) -> None:
    talk = tmp_path / "talk.mp4"
    talk.write_bytes(clip.read_bytes())
    talk.with_suffix(".srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nünï 给\n")
    info = probe(talk)
    assert read_subtitles_guarded(info) == read_subtitles(info) == (Line(1.0, 2.0, "ünï 给"),)
    assert read_subtitles_guarded(info, 2.0, 3.0) == ()
    with pytest.raises(LimitExceeded, match=r"hangs.mp4: not read within 0.3 s"):
        read_subtitles_guarded(replace(info, path=str(hanging)), limits=Limits(seconds=0.3))


def test_one_child_serves_many_clips(clip: Path) -> None:
    read_frames_guarded(clip, TIMES)
    first = idle_pid()
    for _ in range(3):
        read_frames_guarded(clip, TIMES)
    assert idle_pid() == first


def test_a_relative_path_leads_from_where_the_asker_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for frames in (3, 20):
        (tmp_path / str(frames)).mkdir()
        write_clip(tmp_path / str(frames) / "clip.mp4", [i / 25 for i in range(frames)])
        monkeypatch.chdir(tmp_path / str(frames))
        assert probe_guarded("clip.mp4").num_frames == frames


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", [0, 0.04, 0.08])
    assert probe_guarded(path).num_frames == 3
    write_clip(path, [i / 25 for i in range(20)])
    assert probe_guarded(path).num_frames == 20


@posix
def test_a_hang_ends_in_one_line_and_the_next_clip_gets_a_fresh_child(clip: Path, hanging: Path) -> None:
    read_frames_guarded(clip, TIMES)
    first = idle_pid()
    with pytest.raises(LimitExceeded, match=r"within 0.5 s") as caught:
        probe_guarded(hanging, Limits(seconds=0.5))
    assert "\n" not in str(caught.value)
    assert str(hanging) in str(caught.value)
    assert not psutil.pid_exists(first)
    assert len(read_frames_guarded(clip, TIMES)) == 4
    assert idle_pid() != first


@posix
@pytest.mark.parametrize(
    ("name", "told"), [("SIGSEGV", "crashed"), ("SIGABRT", "crashed"), ("SIGKILL", "was killed")]
)
def test_a_crash_is_one_line(clip: Path, hanging: Path, name: str, told: str) -> None:
    read_frames_guarded(clip, TIMES)
    killer = threading.Timer(0.5, os.kill, (idle_pid(), getattr(signal, name)))
    killer.start()
    with pytest.raises(VideoError, match=told) as caught:
        probe_guarded(hanging, Limits(seconds=60))
    assert f"({name})" in str(caught.value)
    killer.join()
    assert len(read_frames_guarded(clip, TIMES)) == 4


@posix
def test_a_child_that_died_while_idle_is_replaced(clip: Path) -> None:
    read_frames_guarded(clip, TIMES)
    dead = idle_pid()
    os.kill(dead, signal.SIGKILL)
    assert len(read_frames_guarded(clip, TIMES)) == 4
    assert idle_pid() != dead


def test_memory_past_the_limit_is_one_line(clip: Path) -> None:
    with pytest.raises(LimitExceeded, match="MB"):
        read_frames_guarded(clip, list(np.linspace(0, 3.9, 100)), Limits(memory_bytes=20 << 20), size=(2000, 2000))


@posix
def test_resident_memory_is_watched_while_the_child_works(hanging: Path) -> None:
    """The interpreter alone holds more than 16 MB."""
    with pytest.raises(LimitExceeded, match=r"of 16 MB allowed"):
        probe_guarded(hanging, Limits(memory_bytes=16 << 20, seconds=60))


def test_pictures_that_can_not_fit_are_refused_before_they_are_decoded(clip: Path) -> None:
    with pytest.raises(LimitExceeded, match="fewer or smaller"):
        read_frames_guarded(clip, [0.0] * 100, Limits(memory_bytes=1 << 30), size=(4000, 4000))


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(pixels=160 * 96 - 1), "160x96"),
        (Limits(frames=99), "100 frames"),
        (Limits(file_bytes=100), "bytes are more"),
    ],
)
def test_size_past_a_limit_is_one_line(clip: Path, limits: Limits, words: str) -> None:
    with pytest.raises(LimitExceeded, match=words):
        probe_guarded(clip, limits)


def test_8k_needs_its_limit(real_clip: Callable[[str], Path]) -> None:
    path = real_clip("codec/hevc_8k_300ms.mp4")
    with pytest.raises(LimitExceeded, match="7680x4320"):
        read_frames_guarded(path, [0.0], Limits(pixels=4096 * 4096))
    assert read_frames_guarded(path, [0.0], max_side=336).pixels.shape == (1, 189, 336, 3)


@pytest.mark.parametrize("name", ["seconds", "memory_bytes", "pixels", "frames", "file_bytes"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Limits(**{name: 0})


def test_a_time_limit_may_be_none(clip: Path) -> None:
    assert len(read_frames_guarded(clip, [0.0], Limits(seconds=float("inf")))) == 1


def test_errors_keep_their_kind(tmp_path: Path, clip: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    for path, kind in ((tmp_path / "none.mp4", VideoNotFound), (tmp_path, VideoNotFound), (text, NotAVideo)):
        with pytest.raises(kind):
            read_frames_guarded(path, [0.0])
    with pytest.raises(ConfigError, match="reader"):
        read_frames_guarded(clip, [0.0], reader="none")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="must be numbers of seconds"):
        read_frames_guarded(clip, ["soon"])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="times"):
        read_frames_guarded(clip, [])
    first = idle_pid()
    read_frames_guarded(clip, [0.0])
    assert idle_pid() == first  # an honest error costs no child


def test_a_video_without_frames_is_one_line(real_clip: Callable[[str], Path]) -> None:
    with pytest.raises(NoFrames):
        probe_guarded(real_clip("odd/smallest_avi.avi"))


@posix
def test_threads_do_not_mix_their_answers(clip: Path) -> None:
    """Four threads ask for one frame each, ten times over."""
    wrong: list[float] = []

    def ask(second: float) -> None:
        for _ in range(10):
            frames = read_frames_guarded(clip, [second])
            if frames.pts_seconds[0] != second or read_code(frames.pixels[0]) != round(second * 25):
                wrong.append(second)

    threads = [threading.Thread(target=ask, args=(i * 12 / 25,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(guard._idle) <= guard.IDLE_WORKERS


ASK = """
import sys
from vidllm.video.guard import Limits, read_frames_guarded
read_frames_guarded(sys.argv[1], [0.0])
print("ready", flush=True)
read_frames_guarded(sys.argv[2], [0.0], Limits(seconds=60))
"""


@posix
@pytest.mark.parametrize(("name", "status"), [("SIGINT", -signal.SIGINT), ("SIGKILL", -signal.SIGKILL)])
def test_no_orphan_outlives_its_parent(clip: Path, hanging: Path, name: str, status: int) -> None:
    command = [sys.executable, "-c", ASK, str(clip), str(hanging)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        (child,) = psutil.Process(parent.pid).children()
        time.sleep(0.3)
        parent.send_signal(getattr(signal, name))
        assert parent.wait(30) == status
        assert parent.stderr is not None
        assert parent.stderr.read().count(b"KeyboardInterrupt") == (name == "SIGINT")
    psutil.wait_procs([child], timeout=20)
    assert not child.is_running()


# the wire ------------------------------------------------------------------------------------------------------------


def sent(value: object) -> object:
    stream = io.BytesIO()
    wire.send(stream, value)
    stream.seek(0)
    return wire.receive(stream)


def test_values_travel_unchanged() -> None:
    value = {"a": [1, 2.5, None, True, "第"], "b": (Fraction(1, 3), float("inf")), "c": {"d": np.float32(2)}}
    assert sent(value) == {**value, "c": {"d": 2.0}}


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int64).reshape(2, 3),
        np.zeros((0, 3), np.uint8),
        np.asarray([True, False]),
        np.arange(12, dtype=np.float64)[::2],
    ],
)
def test_arrays_travel_unchanged(array: np.ndarray) -> None:
    back = sent({"array": array, "again": [array]})
    assert isinstance(back, dict)
    for got in (back["array"], back["again"][0]):
        assert np.array_equal(got, array)
        assert got.dtype == array.dtype


def test_only_known_values_travel() -> None:
    with pytest.raises(TypeError, match="Path"):
        sent(Path("."))


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x02\x00",
        b"\x02\x00\x00\x00{",
        b"\xff\xff\xff\xff{}",
        b"\x03\x00\x00\x00{,}",
        b"\x02\x00\x00\x00{}",
        b"\x0e\x00\x00\x00" + b'{"Popen":{"a":'[:14],
        b'\x14\x00\x00\x00{"array":["|O",[1]]}',
        b'\x15\x00\x00\x00{"array":["<u1",[9]]}',
        b'\x16\x00\x00\x00{"array":["<u1",[-9]]}',
        b'\x18\x00\x00\x00{"FrameSet":{"dict":{}}}',
        b'\x16\x00\x00\x00{"fraction":["1","0"]}',
    ],
)
def test_what_is_no_message_is_refused(message: bytes) -> None:
    with pytest.raises(wire.BrokenMessage):
        wire.receive(io.BytesIO(message))


def test_an_answer_can_not_be_larger_than_allowed() -> None:
    stream = io.BytesIO()
    wire.send(stream, np.zeros(1000, np.uint8))
    stream.seek(0)
    with pytest.raises(wire.BrokenMessage):
        wire.receive(stream, max_bytes=999)
