"""Damaged files: real clips with bits flipped, tails cut, headers edited. Each must end in frames or in one line.

    .venv/bin/python benchmarks/fuzz.py --clips ../shared/videos [--files 3000] [--seed 0] [--only NUMBER]

Every file is opened as a question opens it: probed, sixteen frames planned and read, all through the guard. Counted are
the ways it ended, and what must not happen: a hang past the limit, memory past the limit, an error that is no
`VidllmError` or longer than a line, a child left behind, memory or file descriptors that grow. A decoder crash kills
the child only and is one line too, but is counted on its own. File number N depends on the seed and N alone: `--only N`
makes it again.
"""

import collections
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import psutil

from vidllm.clip import PlanOptions, open_clip
from vidllm.errors import LimitExceeded, VidllmError
from vidllm.model.families import bare_spec
from vidllm.video.guard import Limits, close_workers

LIMITS = Limits(seconds=30.0, memory_bytes=2 << 30)
HANG_GRACE_SECONDS = 10.0
"""Past the limit: a new child may have to start, on a busy machine."""
MAX_CLIP_BYTES = 2_000_000
HEAD_BYTES = 4096
FRAMES = 16
SPEC = replace(bare_spec(8, 8, 4096), image_size=112)
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0x7FFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF)

Damage = Callable[[bytearray, random.Random], bytearray]


def flip_bits(data: bytearray, rng: random.Random) -> bytearray:
    """1 to 300 bits, anywhere."""
    for _ in range(int(10 ** rng.uniform(0, 2.5))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def cut_tail(data: bytearray, rng: random.Random) -> bytearray:
    """What a broken download leaves."""
    return data[: rng.randrange(1, len(data))]


def edit_header(data: bytearray, rng: random.Random) -> bytearray:
    """Extreme numbers where lengths, counts and rates stand: near the start, or the end where an mp4 may keep them."""
    for _ in range(rng.randrange(1, 12)):
        width = rng.choice((1, 2, 4, 8))
        place = rng.randrange(max(1, min(HEAD_BYTES, len(data) - width)))
        if rng.random() < 0.4:
            place = len(data) - width - place
        value = rng.choice((*EXTREMES, rng.getrandbits(64))) & ((1 << (8 * width)) - 1)
        data[max(place, 0) : max(place, 0) + width] = value.to_bytes(width, rng.choice(("big", "little")))
    return data


def edit_box(data: bytearray, rng: random.Random) -> bytearray:
    """Bytes after the name of an mp4 box or a RIFF chunk, so that tables of sizes, times and samples lie."""
    names = (b"stts", b"ctts", b"stsz", b"stsc", b"stco", b"stss", b"mvhd", b"mdhd", b"tkhd", b"elst", b"avcC", b"stsd")
    found = [at for name in (*names, b"avih", b"strh", b"idx1", b"moof", b"trun") for at in _places(data, name)]
    if not found:
        return edit_header(data, rng)
    for _ in range(rng.randrange(1, 8)):
        place = min(rng.choice(found) + rng.randrange(-4, 64), len(data) - 4)
        data[max(place, 0) : max(place, 0) + 4] = (rng.choice(EXTREMES) & 0xFFFF_FFFF).to_bytes(4, "big")
    return data


def blank_stretch(data: bytearray, rng: random.Random) -> bytearray:
    """A lost sector: zeros or noise over up to a tenth of the file."""
    start = rng.randrange(len(data))
    length = min(rng.randrange(1, max(len(data) // 10, 2)), len(data) - start)
    data[start : start + length] = bytes(length) if rng.random() < 0.5 else rng.randbytes(length)
    return data


def shuffle_parts(data: bytearray, rng: random.Random) -> bytearray:
    """A stretch removed, doubled or moved: every offset after it is wrong."""
    start = rng.randrange(len(data))
    part = data[start : start + rng.randrange(1, max(len(data) // 8, 2))]
    rest = data[:start] + data[start + len(part) :]
    place = rng.randrange(len(rest) + 1)
    return rest[:place] + part * rng.randrange(3) + rest[place:] or bytearray(b"\0")


def _places(data: bytearray, name: bytes) -> list[int]:
    found, at = [], data.find(name)
    while at >= 0:
        found.append(at + len(name))
        at = data.find(name, at + 1)
    return found


DAMAGES: dict[str, Damage] = {
    "bit flips": flip_bits,
    "truncation": cut_tail,
    "header edits": edit_header,
    "box edits": edit_box,
    "lost stretch": blank_stretch,
    "moved stretch": shuffle_parts,
}


@dataclass
class Report:
    """How the files ended."""

    files: int = 0
    frames: int = 0
    """Files that gave pictures."""
    salvaged: int = 0
    """... of which with a note that something is missing."""
    errors: dict[str, int] = field(default_factory=lambda: collections.Counter())
    by_damage: dict[str, list[int]] = field(default_factory=dict)
    """Damage -> [files, files that gave pictures]."""
    child_crashes: int = 0
    time_limits: int = 0
    memory_limits: int = 0
    hangs: int = 0
    foreign_errors: int = 0
    long_messages: int = 0
    orphans: int = 0
    grown_descriptors: int = 0
    grown_mb: float = 0.0
    """Resident memory of this process from the first tenth of the files to the end."""
    slowest_seconds: float = 0.0
    wall_seconds: float = 0.0
    stopped: list[int] = field(default_factory=list)
    """Numbers of the files that met a limit, to be made again with `--only`."""
    failures: list[str] = field(default_factory=list)
    """What must not happen, one line each, with the file's number."""

    @property
    def sound(self) -> bool:
        """Whether nothing happened that must not."""
        return not (self.failures or self.orphans or self.grown_descriptors > 4 or self.grown_mb > 64)


def real_clips(folder: Path) -> list[Path]:
    """Clips small enough to be damaged three thousand times, in a fixed order."""
    paths = [path for kind in ("natural", "codec", "odd") for path in sorted((folder / kind).glob("*"))]
    return [path for path in paths if 64 < path.stat().st_size <= MAX_CLIP_BYTES]


def damaged(clips: Sequence[Path], seed: int, number: int) -> tuple[bytes, str, str]:
    """(bytes, name of the damage, file ending) of file `number`."""
    rng = random.Random(f"{seed}:{number}")
    clip = rng.choice(clips)
    name = rng.choice(list(DAMAGES))
    data = DAMAGES[name](bytearray(clip.read_bytes()), rng)
    if rng.random() < 0.15:
        data = DAMAGES["bit flips"](data, rng)
    return bytes(data), name, clip.suffix


def try_file(path: Path, number: int, damage: str, report: Report, limits: Limits) -> None:
    """Open one file, and note how it ended."""
    began = time.monotonic()
    tally = report.by_damage.setdefault(damage, [0, 0])
    report.files += 1
    tally[0] += 1
    try:
        clip = open_clip(path, "", SPEC, None, PlanOptions(frames=FRAMES, guard=limits))
        report.frames += 1
        tally[1] += 1
        report.salvaged += bool(clip.frames.notes)
    except VidllmError as error:
        _note_error(error, number, report)
    except Exception as error:  # what the benchmark is looking for
        report.foreign_errors += 1
        report.failures.append(f"{number}: {type(error).__name__}: {error}")
    seconds = time.monotonic() - began
    report.slowest_seconds = max(report.slowest_seconds, seconds)
    if seconds > 2 * limits.seconds + HANG_GRACE_SECONDS:  # two calls
        report.hangs += 1
        report.failures.append(f"{number}: {seconds:.0f} s")


def _note_error(error: VidllmError, number: int, report: Report) -> None:
    message = str(error)
    report.errors[type(error).__name__] = report.errors.get(type(error).__name__, 0) + 1
    if "\n" in message or not 10 < len(message) < 500:
        report.long_messages += 1
        report.failures.append(f"{number}: a message of {len(message)} characters: {message[:100]!r}")
    report.child_crashes += "the decoder crashed" in message
    if isinstance(error, LimitExceeded):
        report.time_limits += "not read within" in message
        report.stopped.append(number)
        report.memory_limits += " MB" in message


def fuzz(
    clips: Sequence[Path],
    files: int,
    seed: int,
    *,
    limits: Limits = LIMITS,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Damage, read and count `files` files; see the module's text."""
    report, process = Report(), psutil.Process()
    began, before = time.monotonic(), (0, 0)
    with tempfile.TemporaryDirectory(prefix="vidllm-fuzz-") as folder:
        for number in range(files):
            data, damage, suffix = damaged(clips, seed, number)
            path = Path(folder) / f"{number}{suffix}"
            path.write_bytes(data)
            try_file(path, number, damage, report, limits)
            path.unlink()
            if number == max(files // 10 - 1, 0):
                before = process.memory_info().rss, process.num_fds()
            if progress is not None:
                progress(number + 1)
    report.grown_mb = round((process.memory_info().rss - before[0]) / 2**20, 1)
    report.grown_descriptors = process.num_fds() - before[1]
    close_workers()
    report.orphans = sum("guard_child" in " ".join(child.cmdline()) for child in process.children(recursive=True))
    report.wall_seconds = round(time.monotonic() - began, 1)
    report.slowest_seconds = round(report.slowest_seconds, 1)
    return report


def keep_one(clips: Sequence[Path], seed: int, number: int) -> Path:
    """Write file `number` here, to be looked at."""
    data, damage, suffix = damaged(clips, seed, number)
    path = Path(f"fuzz-{seed}-{number}{suffix}")
    path.write_bytes(data)
    print(f"{path}: {damage}, {len(data)} bytes")
    return path


def publish(found: Report, clips: int, seed: int) -> None:
    """results/fuzz.md and .json."""
    import report  # beside this file; a test that imports `fuzz` need not find it

    rows: list[report.Row] = [
        {"damage": name, "files": files, "frames": frames, "one-line error": files - frames}
        for name, (files, frames) in sorted(found.by_damage.items())
    ]
    rows.append(
        {"damage": "all", "files": found.files, "frames": found.frames, "one-line error": found.files - found.frames}
    )
    errors = ", ".join(f"{count} {name}" for name, count in sorted(found.errors.items()))
    notes = [
        f"{clips} clips, seed {seed}, {found.wall_seconds:g} s in all; the slowest file {found.slowest_seconds:g} s",
        f"errors: {errors}; {found.salvaged} files gave frames with a note on what is missing",
        f"hangs past the limit of {LIMITS.seconds:g} s: {found.hangs}; stopped at it: {found.time_limits}; stopped at "
        f"{LIMITS.memory_bytes >> 20} MB: {found.memory_limits}; decoder crashes, contained: {found.child_crashes}",
        f"foreign errors: {found.foreign_errors}; messages that are no line: {found.long_messages}; children left "
        f"behind: {found.orphans}; memory grew by {found.grown_mb:g} MB, file descriptors by {found.grown_descriptors}",
        *([f"files that met a limit: {found.stopped}"] if found.stopped else []),
        *found.failures,
    ]
    report.write("fuzz", "Damaged files: frames or one line", rows, notes)


def main() -> None:
    """Damage, read, write the table."""
    import report

    parser = report.parser(__doc__)
    parser.add_argument("--clips", type=Path, default=Path("../shared/videos"), help="with natural/, codec/ and odd/")
    parser.add_argument("--files", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="write this one damaged file, and try it")
    options = parser.parse_args()
    clips = real_clips(options.clips)
    if not clips:
        sys.exit(f"{options.clips}: no clips there")
    if options.only is not None:
        found = Report()
        try_file(keep_one(clips, options.seed, options.only), options.only, "this one", found, LIMITS)
        print(asdict(found))
        return
    width = shutil.get_terminal_size().columns

    def tell(done: int) -> None:
        if sys.stderr.isatty() or done % 100 == 0:
            end = "\r" if sys.stderr.isatty() else "\n"
            print(f"{done}/{options.files}"[:width], end=end, file=sys.stderr, flush=True)

    found = fuzz(clips, options.files, options.seed, progress=tell)
    publish(found, len(clips), options.seed)
    sys.exit(0 if found.sound else 1)


if __name__ == "__main__":
    main()
