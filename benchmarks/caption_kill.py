"""kill -9 at random instants: nothing lost, nothing twice, and in the end what an uninterrupted run writes.

    python benchmarks/caption_kill.py                       100 kills over 300 clips
    python benchmarks/caption_kill.py -n 12 --kills 4       a first look

After every kill the file is read: whole lines but for the last, no clip twice, every row that was there still there.
Half of the kills fall anywhere between the start of the process and its first seconds of work, half within 50 ms of a
row being written.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidllm.world.make import make_clips

SEED = 70_000
"""Of the first world clip."""
OPTIONS = ("--dtype", "float32", "--retries", "0", "--batch", "2")
"""Greedy in float32: the same caption in whatever company it was written. Few at a time: rows come one by one, so that
a hundred kills meet a run that still has work."""
TIMINGS = ("seconds",)
Row = dict[str, Any]
Key = tuple[str, str]


@dataclass
class Watched:
    """An output as it is read after every kill."""

    path: Path
    known: dict[Key, Row] = field(default_factory=dict)
    kills: int = 0
    halves: int = 0
    """Kills that left a half-written last line."""
    empty: int = 0
    """Kills before any new row."""

    def read(self) -> dict[Key, Row]:
        """The rows, checked against what was there before. Raises AssertionError."""
        rows: dict[Key, Row] = {}
        lines = self.path.read_bytes().split(b"\n") if self.path.exists() else [b""]
        self.halves += bool(lines[-1])
        for line in lines[:-1]:
            row = json.loads(line)
            key = (row["key"], row["recipe"])
            assert key not in rows, f"{row['video']} has two rows"
            rows[key] = row
        lost = [row["video"] for key, row in self.known.items() if rows.get(key) != row]
        assert not lost, f"rows lost or changed: {lost}"
        self.empty += len(rows) == len(self.known)
        self.known = rows
        return rows


def command(clips: Path, output: Path) -> list[str]:
    """The run that is killed."""
    return [sys.executable, "-m", "vidllm_cli.main", "caption", str(clips), "-o", str(output), *OPTIONS]


def run_and_kill(clips: Path, watched: Watched, rng: random.Random, first_seconds: float) -> None:
    """One run, killed at a random instant."""
    child = subprocess.Popen(command(clips, watched.path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if rng.random() < 0.5:
        wait_until(child, lambda: False, rng.uniform(0, first_seconds))
    else:
        size = watched.path.stat().st_size if watched.path.exists() else 0
        wanted = rng.randrange(1, 6)
        wait_until(child, lambda: count_lines(watched.path, size) >= wanted, 600)
        time.sleep(rng.uniform(0, 0.05))
    child.kill()
    child.wait()
    watched.kills += 1


def wait_until(child: subprocess.Popen[bytes], done: Callable[[], bool], seconds: float) -> None:
    """Until `done`, the process ends by itself, or the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and child.poll() is None and not done():
        time.sleep(0.002)


def count_lines(path: Path, start: int) -> int:
    """Whole lines behind byte `start`."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(start)
        return file.read().count(b"\n")


def same_but_for_timings(one: dict[Key, Row], other: dict[Key, Row]) -> list[str]:
    """Videos whose rows differ by more than how long they took."""
    plain = [
        {key: {name: value for name, value in row.items() if name not in TIMINGS} for key, row in rows.items()}
        for rows in (one, other)
    ]
    return [str(row["video"]) for key, row in plain[0].items() if plain[1].get(key) != row] + [
        str(row["video"]) for key, row in plain[1].items() if key not in plain[0]
    ]


def kill_often(clips: Path, folder: Path, kills: int, seed: int) -> tuple[Watched, int, float]:
    """Kill `kills` runs, then let one finish: what was seen, rows unlike those of a run left alone, its seconds."""
    began = time.monotonic()
    alone = Watched(folder / "alone.jsonl")
    subprocess.run(command(clips, alone.path), check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    watched, rng = Watched(folder / "killed.jsonl"), random.Random(seed)
    for _ in range(kills):
        run_and_kill(clips, watched, rng, min(2 * seconds, 10.0))
        watched.read()
    subprocess.run(command(clips, watched.path), check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return watched, len(same_but_for_timings(alone.read(), watched.read())), seconds


def main() -> None:
    """Make the clips, kill, and write the table."""
    import report  # beside this file; a test that imports `caption_kill` need not find it

    parser = report.parser(__doc__)
    parser.add_argument("-n", type=int, default=300, help="clips")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips", type=Path, default=report.RUNS / "kill_clips", help="kept for the next time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        listed = Path(scratch) / "clips.txt"
        listed.write_text("".join(f"{path}\n" for path in make_clips(options.n, SEED, options.clips)))
        watched, different, seconds = kill_often(listed, Path(scratch), options.kills, options.seed)
    report.write(
        "caption_kill",
        "kill -9 at random instants",
        [{
            "clips": options.n, "kills": watched.kills, "before a new row": watched.empty,
            "half-written lines": watched.halves, "rows lost": 0, "rows twice": 0, "rows": len(watched.known),
            "rows unlike the uninterrupted run": different, "uninterrupted run, s": seconds,
        }],
        ["Lost or double rows stop the benchmark; rows are compared without `seconds`."],
    )  # fmt: skip
    if different or len(watched.known) != options.n:
        sys.exit("the outputs differ")


if __name__ == "__main__":
    main()
