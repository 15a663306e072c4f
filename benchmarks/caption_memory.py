"""Peak memory of a caption run: flat from 50 to 2,000 clips, in the process that writes, its models and its decoders.

    python benchmarks/caption_memory.py                     50, 200, 500 and 2,000 clips
    python benchmarks/caption_memory.py -n 20 60            a first look

Each run is a process of its own, over as many different ranges of the same world clips: new content every time, so that
nothing is a duplicate, without 2,000 files to draw. Resident memory is read ten times a second.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import report

from vidllm.world.make import make_clips

SEED = 75_000
"""Of the first world clip."""
FILES = 10
STEP_SECONDS = 0.03
"""Between the starts of two ranges of one file: less than a frame, and another range all the same."""
RANGE_SECONDS = 5.0


def write_list(path: Path, clips: list[Path], count: int) -> None:
    """`count` ranges as a data set."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            start = round(number // len(clips) * STEP_SECONDS, 3)
            clip = {"video": str(clips[number % len(clips)]), "start": start, "end": start + RANGE_SECONDS}
            file.write(json.dumps(clip) + "\n")


KINDS = {"model_child": "models, MB", "decode_child": "decoders, MB"}
"""Child processes by the module that runs in them."""


def peak_of(command: list[str]) -> tuple[dict[str, float], float]:
    """(peaks by kind of process, those of one kind together, in MB resident; seconds) of a run."""
    began, peaks = time.monotonic(), Counter[str]()
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        now = Counter[str]()
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # it ended while it was read
                words = " ".join(one.cmdline())
                kind = next((name for module, name in KINDS.items() if module in words), "writer, MB")
                now[kind] += one.memory_info().rss
        peaks |= now
        time.sleep(0.1)
    if process.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return {kind: peaks[kind] / 2**20 for kind in ("writer, MB", *KINDS.values())}, time.monotonic() - began


def main() -> None:
    """Run every size and write the table."""
    parser = report.parser(__doc__)
    parser.add_argument("-n", type=int, nargs="+", default=[50, 200, 500, 2000], help="numbers of clips")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    rows: list[report.Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        clips = make_clips(FILES, SEED, folder / "clips")
        for count in options.n:
            write_list(folder / "in.jsonl", clips, count)
            output = folder / f"{count}.jsonl"
            words = ["--batch", str(options.batch), "--workers", str(options.workers), "--retries", "0"]
            words += ["--max-new-tokens", "32"]
            command = [sys.executable, "-m", "vidllm_cli.main", "caption", str(folder / "in.jsonl"), "-o", str(output)]
            peaks, seconds = peak_of([*command, *words])
            rows.append({"clips": count, "rows": output.read_bytes().count(b"\n"), **peaks, "seconds": seconds})
    notes = ["The first run also shows what a start takes."]
    report.write("caption_memory", "Peak memory of a caption run", rows, notes)


if __name__ == "__main__":
    main()
