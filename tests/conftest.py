"""Clips made here with PyAV, each frame carrying its own number as a bar code, so a test can read which frame it got.

Eight upright stripes, the leftmost the highest bit, white for one and black for zero: frame 5 is 00000101. The code
survives compression and scaling, so "the picture at 1.2 s is frame 30" is something a person could check by eye.
"""

import gc
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest
from numpy.typing import NDArray

if TYPE_CHECKING:
    from vidllm.world.script import Script

ROOT = Path(__file__).resolve().parents[1]

needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="it has no wheel for this system")
needs_torchvision = pytest.mark.skipif(find_spec("torchvision") is None, reason="vidllm does without torchvision")
REAL_CLIPS = ROOT.parent / "shared" / "videos"
CODE_BITS = 8
WIDTH, HEIGHT = 160, 96
TICKS = 1000  # a second, in the clips made here

# One thread each: processes side by side whose threads wait for one another take ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell has what it runs in the background ignore Ctrl-C, and children inherit that: those under test must not.
signal.signal(signal.SIGINT, signal.default_int_handler)


def torch_threads() -> int | None:
    """As many as torch computes with; None before it is loaded."""
    torch = sys.modules.get("torch")
    return torch and torch.get_num_threads()


@pytest.fixture(autouse=True)
def threads_stay() -> Iterator[None]:
    """A test that leaves torch more threads makes those behind it ten times as long: this one would fail for it."""
    before = torch_threads()
    yield
    assert before in (None, torch_threads())


def pytest_collection_finish() -> None:
    """What was imported stays: whoever looks for garbage, as a stage of teaching does at its end, passes it over."""
    gc.freeze()


@pytest.fixture
def across_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow scales pictures to their width before it does to their height, for transformers' processors: so it always
    did before version 13, and so torchvision does, which they take where they find it.
    """
    from PIL.Image import Image as Picture

    once = Picture.resize

    def resize(picture: Picture, size: tuple[int, int], *how: object, **named: object) -> Picture:
        return once(once(picture, (size[0], picture.height), *how, **named), size, *how, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Picture, "resize", resize)


@contextmanager
def full_disk(most_bytes: int) -> Iterator[None]:
    """The real thing, as far as a test may go: meanwhile this process may write no file larger than that."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def bar_code(number: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """The picture (H, W, 3) of frame `number`, 0 to 255."""
    bits = [(number >> bit) & 1 for bit in reversed(range(CODE_BITS))]
    row = np.repeat(np.array(bits, np.uint8) * 215 + 20, width // CODE_BITS)
    return np.broadcast_to(row[None, :, None], (height, len(row), 3)).copy()


def read_code(pixels: NDArray[np.uint8]) -> int:
    """The number a bar code (H, W, 3) shows."""
    middles = ((np.arange(CODE_BITS) + 0.5) * pixels.shape[1] / CODE_BITS).astype(int)
    height = pixels.shape[0]
    bright = pixels[height // 3 : height * 2 // 3, middles].mean(axis=(0, 2)) > 127
    return int("".join("1" if bit else "0" for bit in bright), 2)


def write_clip(
    path: Path,
    times: Sequence[float],
    *,
    gop: int = 10,
    b_frames: int = 2,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = (WIDTH, HEIGHT),
    options: dict[str, str] | None = None,
) -> Path:
    """A clip whose frame i shows the code of i and is presented at `times[i]` seconds; a key frame every `gop`."""
    with av.open(str(path), "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.time_base = stream.codec_context.time_base = Fraction(1, TICKS)
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        stream.codec_context.thread_count = 1
        # b_strategy 0: B-frames where they are asked for, though still pictures do not need them
        fixed = {"sc_threshold": "0", "b_strategy": "0", "crf": "18", "preset": "superfast"}
        stream.codec_context.options = {**fixed, **(options or {})}
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(bar_code(number, *size), format="rgb24")
            frame.pts, frame.time_base = round(time * TICKS), Fraction(1, TICKS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def short_story(stream: str, number: int, seconds: float) -> "Script":
    """A world script of so many seconds. It has no grain, which takes most of the time that drawing a clip does."""
    from vidllm.world.generate import make_script

    script = make_script(stream, number, shortest=seconds, longest=seconds)
    return replace(script, canvas=replace(script.canvas, noise=0.0))


def write_stories(count: int, folder: Path, seed: int = 0) -> list[Path]:
    """World clips `seed` .. `seed + count - 1` of a stream for tests, ten seconds each."""
    from vidllm.world.make import write_video

    paths = [folder / f"{number:06d}.mp4" for number in range(seed, seed + count)]
    for number, path in enumerate(paths, seed):
        write_video(short_story("tests/stories", number, 10), path)
    return paths


def remuxed(source: Path, target: Path, *, skip: int = 0, moved: dict[int, int] | None = None) -> Path:
    """A copy without its first `skip` packets; of `moved`, packet number -> the one whose time it gets."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [packet for packet in old.demux(video=0) if packet.size]
        for number, other in (moved or {}).items():
            packets[number].pts = packets[number].dts = packets[other].pts
        for packet in packets[skip:]:
            packet.stream = stream
            new.mux(packet)
    return target


def with_matrix(source: Path, target: Path, matrix: Sequence[float]) -> Path:
    """A copy of an mp4 whose track header asks for the display matrix (a, b, c, d), as a phone writes it."""
    data = bytearray(source.read_bytes())
    header = data.index(b"tkhd") + 4
    a, b, c, d = (round(number * 65536) for number in matrix)
    at = header + (52 if data[header] == 1 else 40)  # version 1 has three 64-bit fields
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    target.write_bytes(data)
    return target


MATRICES = {
    "upright": (1, 0, 0, 1),
    "90": (0, 1, -1, 0),
    "180": (-1, 0, 0, -1),
    "270": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "mirrored-90": (0, -1, -1, 0),
    "junk": (-32768, -32768, -32768, -32768),
}
"""Display matrices by the turn they ask for; degrees clockwise."""


VARIABLE_TIMES = (0.0, 0.1, 0.14, 0.5, 0.54, 0.58, 1.3, 1.34, 2.0, 2.8, 2.84, 3.6)
"""When the frames of the `variable` clip are presented, seconds."""


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every clip made here, by name. All but `late` start at 0 s; 25 frames a second except `variable`."""
    folder = tmp_path_factory.mktemp("clips")
    steady = [number / 25 for number in range(60)]
    made = {
        "constant": write_clip(folder / "constant.mp4", steady),
        "variable": write_clip(folder / "variable.mkv", VARIABLE_TIMES),
        "late": write_clip(folder / "late.mkv", [10 + time for time in steady]),
        "one_frame": write_clip(folder / "one_frame.mp4", [0.0]),
        "single_key": write_clip(folder / "single_key.mp4", steady, gop=1000, b_frames=3),
        "intra": write_clip(folder / "intra.mp4", steady, gop=1, b_frames=0),
        "transport": write_clip(folder / "transport.ts", steady),
        "mpeg4": write_clip(folder / "mpeg4.avi", steady, codec="mpeg4", b_frames=0),
        "full_colour": write_clip(folder / "full_colour.mp4", steady, pix_fmt="yuv444p"),
        "open_gop": write_clip(folder / "open_gop.mp4", steady, options={"x264-params": "open-gop=1:bframes=3"}),
        "refresh": write_clip(folder / "refresh.mp4", steady, b_frames=0, options={"x264-params": "intra-refresh=1"}),
        "name": write_clip(folder / "-给 clip: 100%.mp4", steady),
    }
    made["headless"] = remuxed(made["transport"], folder / "headless.ts", skip=3)
    still = write_clip(folder / "still.mkv", steady, codec="mjpeg", pix_fmt="yuvj420p", gop=1, b_frames=0)
    made["twice"] = remuxed(still, folder / "twice.mkv", moved={27: 26, 33: 32})
    for turn, matrix in MATRICES.items():
        made[f"turned_{turn}"] = with_matrix(made["constant"], folder / f"turned_{turn}.mp4", matrix)
    made["truncated"] = folder / "truncated.mp4"
    whole = made["single_key"].read_bytes()
    made["truncated"].write_bytes(whole[: len(whole) * 7 // 10])
    return made


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """The folder of real clips beside the project; skips where it is absent."""
    if not REAL_CLIPS.is_dir():
        pytest.skip(f"no real clips at {REAL_CLIPS}: only the clips made here are tested")
    return REAL_CLIPS


@pytest.fixture
def real_clip(real_clips: Path) -> Callable[[str], Path]:
    """One real clip by its name under the folder, such as `natural/yoga.mp4`."""

    def find(name: str) -> Path:
        path = real_clips / name
        if not path.exists():
            pytest.skip(f"no {path}")
        return path

    return find


@pytest.fixture
def hanging(tmp_path: Path) -> Path:
    """A named pipe without a writer: opening it blocks inside FFmpeg for ever."""
    os.mkfifo(tmp_path / "hangs.mp4")
    return tmp_path / "hangs.mp4"


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], Path]:
    """name -> folder of a tiny checkpoint, built once per run; to be read only."""
    from tests.planned import tiny_folder

    return tiny_folder


class Servers:
    """Chat servers, each in its own process: those that see (`tests.caption_server`), or another module's."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[str]] = []

    def __call__(self, *words: str, module: str = "tests.caption_server") -> str:
        """Start one with these words; its address."""
        command = [sys.executable, "-m", module, *words]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self.processes.append(process)
        assert process.stdout is not None
        return f"http://127.0.0.1:{process.stdout.readline().strip()}"

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture(scope="module")
def index_glances() -> Iterator[None]:
    """Lets `change` glance at clips that exist only as an index."""
    from tests.planned import glances_at_index
    from vidllm.reads import Reads

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reads, "_glances", lambda _, *where: glances_at_index(*where))
        yield


@pytest.fixture
def serve() -> Iterator[Servers]:
    """Start servers; they end with the test."""
    servers = Servers()
    yield servers
    servers.close()
