"""How long a large output takes to open, and how much memory: a million rows are made, opened, asked and extended.

    python benchmarks/caption_resume.py                    1,000,000 rows of 16 frames, about 1.7 GB of disk
    python benchmarks/caption_resume.py -n 50000           smaller
    python benchmarks/caption_resume.py --format parquet

The aim: open in under 10 s and 500 MB. Opening runs in a process of its own, whose peak memory is what is told; the
file was just written, so it comes from the page cache as far as memory reaches: the disk's own time is told beside it.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vidllm.corpus.item import Item, digest_of
from vidllm.corpus.output import Output
from vidllm.corpus.recipe import Recipe
from vidllm.corpus.rows import CaptionRow, RowFrame, RowUsage
from vidllm.corpus.stores import manifest_of

RECIPE = Recipe(model="m" * 16, prompt="describe the video.", plan={}, decoding={})
AIM_SECONDS, AIM_MEGABYTES = 10.0, 500.0
ASKED = 10_000
THROUGH = 20_000


def item_number(number: int) -> Item:
    """The clip of one row; its file is not there, as stamps of zeros are asked as fast as others."""
    return Item(
        video=f"/data/videos/{number % 1000:03d}/clip_{number:07d}.mp4", path=f"/nowhere/{number}", root="/data/videos"
    )


def row_number(number: int) -> CaptionRow:
    """A row of the usual size: a caption of fifty words and sixteen frames."""
    return CaptionRow(
        id=digest_of(number), key=item_number(number).key, recipe=RECIPE.digest, stamp="0" * 16, status="ok",
        video=item_number(number).video, root="/data/videos", model="vidllm/builtin", prompt=RECIPE.prompt,
        seconds=0.31,
        caption=f"The red circle of clip {number} moves right, then it turns blue. " * 6,
        finish_reason="stop",
        frames=tuple(RowFrame(time=n * 1.875 + 0.04, tokens=36) for n in range(16)),
        usage=RowUsage(video_tokens=576, text_tokens=120, answer_tokens=72, context=1024, rope_factor=1.0),
    )  # fmt: skip


def make(out: Path, rows: int) -> float:
    """Write rows through the output, as a run does, and the rest of JSON lines as bytes like those; rows a second."""
    through = min(rows, THROUGH) if out.suffix == ".jsonl" else rows
    began = time.perf_counter()
    with Output.open(out, RECIPE) as output:
        for number in range(through):
            output.add(row_number(number))
    rate = through / (time.perf_counter() - began)
    if through == rows:
        return rate
    with open(out, "ab") as file, open(manifest_of(out), "ab") as manifest:
        for number in range(through, rows):
            row = row_number(number)
            file.write(row.to_line())
            place = {"key": row.key, "recipe": row.recipe, "video": row.video, "start": None, "end": None}
            manifest.write(json.dumps(place).encode() + b"\n")
    return rate


def measure(out: Path, rows: int) -> dict[str, float]:
    """Open it, ask for `ASKED` clips that are there and as many that are not; figures of this process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, worked = time.perf_counter(), time.process_time()
    with Output.open(out, RECIPE) as output:
        opened, worked = time.perf_counter(), time.process_time() - worked
        assert len(output) == rows
        step = max(rows // ASKED, 1)
        asked = 0
        for number in range(0, rows, step):
            assert output.is_finished(item_number(number), RECIPE.digest)
            assert not output.is_finished(item_number(number + rows), RECIPE.digest)
            asked += 2
        done = time.perf_counter()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        copied = output.caption_of(digest_of(rows // 2), RECIPE.digest, key="0" * 32)
        assert copied is not None
        assert copied == row_number(rows // 2)
    return {
        "open_seconds": round(opened - began, 2), "open_cpu_seconds": round(worked, 2),
        "ask_microseconds": round((done - opened) / asked * 1e6, 1),
        "peak_megabytes": round(peak / 1024, 1), "before_megabytes": round(before / 1024, 1),
    }  # fmt: skip


def read_seconds(out: Path) -> float:
    """What reading the bytes alone takes."""
    began = time.perf_counter()
    for path in sorted(out.glob("*")) if out.is_dir() else [out]:
        with open(path, "rb", buffering=0) as file:
            while file.read(8 << 20):
                pass
    return time.perf_counter() - began


def size_of(out: Path) -> int:
    """Bytes of the output."""
    return sum(path.stat().st_size for path in out.glob("*")) if out.is_dir() else out.stat().st_size


def main() -> None:
    """Make, measure in a process of its own, print and keep."""
    import report  # beside this file; a test that imports `caption_resume` need not find it

    parser = report.parser(__doc__)
    parser.add_argument("-n", "--rows", type=int, default=1_000_000)
    parser.add_argument("--format", choices=("jsonl", "parquet"), default="jsonl")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    said = parser.parse_args()
    if said.measure is not None:
        print(json.dumps(measure(said.measure, said.rows)))
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"out.{said.format}"
        made = make(out, said.rows)
        command = [sys.executable, __file__, "-n", str(said.rows), "--measure", str(out)]
        figures = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        figures |= {
            "rows": said.rows, "format": said.format, "write_rows_per_second": round(made),
            "output_megabytes": round(size_of(out) / 2**20, 1),
            "manifest_megabytes": round(manifest_of(out).stat().st_size / 2**20, 1),
            "read_seconds": round(read_seconds(out), 2),
            "aims": {"open_seconds": AIM_SECONDS, "peak_megabytes": AIM_MEGABYTES},
            "reached": figures["open_seconds"] < AIM_SECONDS and figures["peak_megabytes"] < AIM_MEGABYTES,
            "machine": report.machine(), "command": report.command(),
        }  # fmt: skip
    print(json.dumps(figures, indent=1))
    if said.rows >= 1_000_000:
        report.RESULTS.mkdir(exist_ok=True)
        kept = report.RESULTS / f"caption_resume_{said.format}.json"
        kept.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
