"""How long it takes to get N frames, spread over a clip, at most 336 pixels a side: vidllm beside what others use.

    .venv/bin/python benchmarks/decode.py --clips ../shared/videos [--frames 16 64] [--repeats 5] [--only NAME]

Everything is counted from the path: opening, indexing, seeking, decoding, scaling to RGB. All contestants take turns
within one run, so a busy machine slows them alike; figures are medians. Two clocks are kept: wall time, and processor
time of all threads, which is what matters when several clips are read at once and what other programs disturb less.
A contestant that errs on a clip has no figure there; one whose first try takes over ten times ours is timed once.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import av
import numpy as np
import report
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from vidllm.errors import VidllmError
from vidllm.video.decode import read_frames
from vidllm.video.info import VideoInfo, probe

if TYPE_CHECKING:
    import cv2
    from cv2.typing import MatLike

SIDE = 336
HOPELESS = 10  # a contestant this many times slower than ours at its first try is not run again
LONG = ("long_363s_1080p_h264_noaudio.mp4", "long_363s_180p_av1_60fps.mp4")

Contestant = Callable[[VideoInfo, int], object]
Picture = TypeVar("Picture")


def picks(total: int, count: int) -> NDArray[np.int64]:
    """`count` frame numbers from the first to the last of `total`."""
    return np.linspace(0, total - 1, count).round().astype(np.int64)


def fitted(width: int, height: int) -> tuple[int, int]:
    """(width, height) with the longer side at most SIDE."""
    factor = min(1.0, SIDE / max(width, height))
    return max(1, round(width * factor)), max(1, round(height * factor))


def vidllm_auto(info: VideoInfo, count: int) -> object:
    fresh = probe(info.path)
    return read_frames(fresh, np.linspace(0, fresh.pts_seconds[-1], count), max_side=SIDE)


def vidllm_snapped(info: VideoInfo, count: int) -> object:
    """Key frames allowed within half the distance between two samples."""
    fresh = probe(info.path)
    last = float(fresh.pts_seconds[-1])
    return read_frames(fresh, np.linspace(0, last, count), max_side=SIDE, tolerance=last / max(1, count - 1) / 2)


def decord_full(info: VideoInfo, count: int) -> object:
    import cv2
    import decord

    reader = decord.VideoReader(info.path)
    frames = reader.get_batch(picks(len(reader), count)).asnumpy()
    return [cv2.resize(frame, fitted(frame.shape[1], frame.shape[0])) for frame in frames]


def decord_scaled(info: VideoInfo, count: int) -> object:
    import decord

    width, height = fitted(info.coded_width, info.coded_height)
    reader = decord.VideoReader(info.path, width=width, height=height)
    return reader.get_batch(picks(len(reader), count)).asnumpy()


def torchcodec_exact(info: VideoInfo, count: int) -> object:
    return torchcodec_frames(info, count, "exact")


def torchcodec_approximate(info: VideoInfo, count: int) -> object:
    return torchcodec_frames(info, count, "approximate")


def torchcodec_frames(info: VideoInfo, count: int, mode: str) -> object:
    """With as many decoder threads as there are cores, which is its fastest here."""
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    width, height = fitted(info.coded_width, info.coded_height)
    decoder = VideoDecoder(info.path, seek_mode=mode, num_ffmpeg_threads=0, transforms=[Resize((height, width))])
    return decoder.get_frames_at(picks(len(decoder), count).tolist()).data.numpy()


def opencv_linear(info: VideoInfo, count: int) -> object:
    """Grab every frame, convert only the wanted."""
    import cv2

    capture = cv2.VideoCapture(info.path)
    total = opencv_count(capture, info)
    wanted, frames = set(picks(total, count).tolist()), []
    for number in range(total):
        if not capture.grab():
            break
        if number in wanted:
            frames.append(cv2.cvtColor(shrunk(capture.retrieve()[1]), cv2.COLOR_BGR2RGB))
    capture.release()
    return full(frames, len(wanted))


def opencv_seek(info: VideoInfo, count: int) -> object:
    """Set the position before each frame, as most tutorials do."""
    import cv2

    capture = cv2.VideoCapture(info.path)
    frames = []
    for number in picks(opencv_count(capture, info), count).tolist():
        capture.set(cv2.CAP_PROP_POS_FRAMES, number)
        found, frame = capture.read()
        if found:
            frames.append(cv2.cvtColor(shrunk(frame), cv2.COLOR_BGR2RGB))
    capture.release()
    return full(frames, count)


def opencv_count(capture: cv2.VideoCapture, info: VideoInfo) -> int:
    """Frames by its header; an error where these are not the clip's (another stream, or no count at all)."""
    import cv2

    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    if abs(total - info.num_frames) > 2:
        raise ValueError(f"{total} frames where there are {info.num_frames}")
    return total


def shrunk(frame: MatLike) -> MatLike:
    import cv2

    return cv2.resize(frame, fitted(frame.shape[1], frame.shape[0]))


def full(frames: list[Picture], count: int) -> list[Picture]:
    """The frames, or an error when some are missing: a short answer is no answer."""
    if not frames or len(frames) < count:
        raise ValueError(f"{len(frames)} of {count} frames")
    return frames


def best_video(container: InputContainer) -> VideoStream:
    stream = container.streams.best("video")
    assert isinstance(stream, VideoStream)
    return stream


def pyav_linear(info: VideoInfo, count: int) -> object:
    """Decode everything with FFmpeg's own choice of threads, convert only the wanted."""
    with av.open(info.path) as container:
        stream = best_video(container)
        stream.thread_type = "AUTO"
        wanted = set(picks(stream.frames or info.num_frames, count).tolist())
        size = fitted(info.coded_width, info.coded_height)
        frames = [
            frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
            for number, frame in enumerate(container.decode(stream))
            if number in wanted
        ]
        return full(frames, len(wanted))


def pyav_seek(info: VideoInfo, count: int) -> object:
    """Seek before each frame, decode up to it."""
    size, frames = fitted(info.coded_width, info.coded_height), []
    with av.open(info.path) as container:
        stream = best_video(container)
        for pts in info.pts[picks(info.num_frames, count)].tolist():
            container.seek(pts, stream=stream)
            frame = next(frame for frame in container.decode(stream) if frame.pts is not None and frame.pts >= pts)
            frames.append(frame.to_ndarray(format="rgb24", width=size[0], height=size[1]))
    return full(frames, count)


OURS: dict[str, Contestant] = {"vidllm": vidllm_auto, "vidllm snapped": vidllm_snapped}
RIVALS: dict[str, Contestant] = {
    "decord": decord_full,
    "decord w/h": decord_scaled,
    "torchcodec": torchcodec_exact,
    "torchcodec approx": torchcodec_approximate,
    "opencv": opencv_linear,
    "opencv seek": opencv_seek,
    "pyav linear": pyav_linear,
    "pyav seek": pyav_seek,
}


@dataclass(frozen=True)
class Row:
    """Median seconds of every contestant on one clip."""

    clip: str
    frames: int
    wall: dict[str, float]
    processor: dict[str, float]

    def ratio(self, name: str, *, clock: str = "wall") -> float:
        """How many times faster than the best rival contestant `name` of ours is."""
        times = self.wall if clock == "wall" else self.processor
        rivals = [seconds for rival, seconds in times.items() if rival in RIVALS]
        return min(rivals) / times[name] if rivals and name in times else float("nan")


def available(names: dict[str, Contestant]) -> dict[str, Contestant]:
    """Contestants whose library really loads here."""
    found = {}
    for name, contestant in names.items():
        module = {"decord": "decord", "torchcodec": "torchcodec.decoders", "opencv": "cv2"}.get(name.split()[0])
        try:
            if module:
                __import__(module)
        except (ImportError, OSError, RuntimeError) as error:
            print(f"{name}: does not load here ({str(error).splitlines()[0]})", file=sys.stderr)
            continue
        found[name] = contestant
    return found


def timed(contestant: Contestant, info: VideoInfo, count: int) -> tuple[float, float]:
    """Wall and processor seconds of one try."""
    wall, processor = time.perf_counter(), time.process_time()
    contestant(info, count)
    return time.perf_counter() - wall, time.process_time() - processor


def race(info: VideoInfo, count: int, repeats: int, contestants: dict[str, Contestant]) -> Row:
    """Everyone in turn, `repeats` times, after one warm-up of ours that also brings the file into memory."""
    ours = timed(vidllm_auto, info, count)[0]
    tries: dict[str, list[tuple[float, float]]] = {}
    racing = dict(contestants)
    for _ in range(repeats):
        for name, contestant in list(racing.items()):
            try:
                seconds = timed(contestant, info, count)
            except Exception:  # whatever a rival throws, it has no figure here
                tries.pop(name, None)
                racing.pop(name)
                continue
            tries.setdefault(name, []).append(seconds)
            if seconds[0] > HOPELESS * max(ours, 0.02):
                racing.pop(name)
    middle = [{name: statistics.median(s[clock] for s in all_) for name, all_ in tries.items()} for clock in (0, 1)]
    return Row(Path(info.path).name, count, middle[0], middle[1])


def summary(rows: list[Row], name: str) -> dict[str, float]:
    """How one of ours stands against the best rival of each row."""
    found: dict[str, float] = {}
    for clock in ("wall", "processor"):
        ratios = np.array([row.ratio(name, clock=clock) for row in rows])
        ratios = ratios[np.isfinite(ratios)]
        found |= {
            f"{clock} median": float(np.median(ratios)),
            f"{clock} worst": float(ratios.min()),
            f"{clock} rows slower by more than 10 %": int((ratios < 0.9).sum()),
            "rows": len(ratios),
        }
    return found


def table(rows: list[Row], names: list[str]) -> str:
    """Milliseconds of wall time, and ours against the best rival by both clocks."""
    head = ["clip", "frames", *names, "x best (wall)", "x best (cpu)", "x best snapped"]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for row in rows:
        cells = [f"{row.wall[name] * 1000:.0f}" if name in row.wall else "-" for name in names]
        ratios = [row.ratio("vidllm"), row.ratio("vidllm", clock="processor"), row.ratio("vidllm snapped")]
        lines.append(" | ".join([row.clip, str(row.frames), *cells, *(f"{ratio:.2f}" for ratio in ratios)]))
    return "\n".join(f"| {line} |" for line in lines)


def machine() -> dict[str, object]:
    """Where and with what this ran."""
    return {
        "machine": report.machine(),
        "ffmpeg": ".".join(map(str, av.library_versions["libavcodec"])),
        "packages": report.versions(),
        "command": report.command(),
        "date": time.strftime("%Y-%m-%d"),
    }


def write(rows: list[Row], facts: dict[str, object], names: list[str]) -> None:
    """benchmarks/results/decode.json and .md."""
    summaries = {name: summary(rows, name) for name in OURS}
    report.RESULTS.mkdir(exist_ok=True)
    body = {"machine": facts, "summary": summaries, "rows": [asdict(row) for row in rows]}
    (report.RESULTS / "decode.json").write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    lines = ["# Decoding: milliseconds for N frames at 336 pixels, from the path", "", "```"]
    lines += [f"{key}: {value}" for key, value in facts.items()]
    lines += ["```", "", "Against the best of the others, row by row (above 1 is faster):", "", "```"]
    lines += [f"{name}: " + ", ".join(f"{k} {v:.2f}" for k, v in found.items()) for name, found in summaries.items()]
    lines += ["```", "", table(rows, names), ""]
    (report.RESULTS / "decode.md").write_text("\n".join(lines), encoding="utf-8")


def chosen_clips(folder: Path, only: list[str]) -> list[VideoInfo]:
    """natural/ and the long clips, or those whose name holds one of `only`."""
    paths = [*sorted((folder / "natural").iterdir()), *(folder / "codec" / name for name in LONG)]
    infos = []
    for path in paths:
        if not only or any(part in path.name for part in only):
            try:
                infos.append(probe(path))
            except VidllmError as error:
                print(error, file=sys.stderr)
    return infos


def main() -> None:
    """Run the race, print the table, keep the results."""
    parser = report.parser(__doc__)
    parser.add_argument("--clips", type=Path, default=report.VIDEOS)
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--without", nargs="*", default=[], help="contestants to leave out")
    parser.add_argument("--dry", action="store_true", help="print only, keep no results")
    options = parser.parse_args()
    facts = machine()
    contestants = {k: v for k, v in available(OURS | RIVALS).items() if k not in options.without}
    rows = []
    if not (clips := chosen_clips(options.clips, options.only)):
        sys.exit(f"{options.clips}: no such clips there")
    print(table([], list(contestants)))
    for info in clips:
        for count in options.frames:
            rows.append(race(info, count, options.repeats, contestants))
            print(table(rows[-1:], list(contestants)).splitlines()[-1], flush=True)
            if not options.dry:  # after every row: a long run that is cut short still leaves its figures
                write(rows, facts, list(contestants))
    for name in OURS:
        print(name, summary(rows, name))


if __name__ == "__main__":
    main()
