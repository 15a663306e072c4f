"""What every benchmark writes: its figures with the machine, the versions and the command that made them.

A table for people (`results/NAME.md`) and the same figures for programs (`results/NAME.json`), both from one call.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeAlias

import psutil

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
RUNS = ROOT / "runs"
"""What is kept for the next time."""
VIDEOS = ROOT.parent / "shared" / "videos"
"""Real clips."""
PACKAGES = ("av", "decord", "torchcodec", "opencv-python-headless", "numpy", "torch", "transformers", "vidllm")

Cell: TypeAlias = str | int | float | None
Row: TypeAlias = Mapping[str, Cell]


def parser(told: str | None) -> argparse.ArgumentParser:
    """A command line whose help is the script's own text."""
    return argparse.ArgumentParser(description=told, formatter_class=argparse.RawDescriptionHelpFormatter)


def write(name: str, title: str, rows: Sequence[Row], notes: Sequence[str] = ()) -> Path:
    """Write `rows` (same keys in each) as results/NAME.md and .json, print the table, and return the .md's path."""
    RESULTS.mkdir(exist_ok=True)
    facts = {"command": command(), "machine": machine(), "versions": versions(), "date": time.strftime("%Y-%m-%d")}
    told = {"title": title, **facts, "rows": [dict(row) for row in rows], "notes": list(notes)}
    (RESULTS / f"{name}.json").write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    packages = ", ".join(f"{package} {number}" for package, number in versions().items())
    lines = [f"# {title}", "", f"`{facts['command']}`  ", f"{facts['machine']}  ", f"{packages}, {facts['date']}", ""]
    page = "\n".join([*lines, table(rows), "", *(f"- {note}" for note in notes)]).rstrip() + "\n"
    path = RESULTS / f"{name}.md"
    path.write_text(page, encoding="utf-8")
    print(page)
    return path


def table(rows: Sequence[Row]) -> str:
    """A Markdown table; the first row's keys are its columns."""
    columns = list(rows[0])
    body = [[_cell(row[column]) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [columns, ["---"] * len(columns), *body])


def _cell(value: Cell) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def command() -> str:
    """How this run was started, from the project's folder."""
    script = Path(sys.argv[0]).resolve()
    return " ".join(["python", str(script.relative_to(ROOT) if ROOT in script.parents else script.name), *sys.argv[1:]])


def machine() -> str:
    """Processor, cores this process may use, how busy it was, memory, accelerator, system."""
    memory = psutil.virtual_memory().total / 2**30
    cores = len(psutil.Process().cpu_affinity() or []) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count()
    busy = f"{cores} of {os.cpu_count()} cores, load {psutil.getloadavg()[1]:.1f}"
    parts = [_processor(), busy, f"{memory:.0f} GiB", *_accelerator()]
    return ", ".join([*parts, f"{platform.system()} {platform.machine()}", f"Python {platform.python_version()}"])


def _processor() -> str:
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _accelerator() -> list[str]:
    torch = sys.modules.get("torch")  # a benchmark of decoding has none and need not load it
    return [torch.cuda.get_device_name()] if torch is not None and torch.cuda.is_available() else []


def versions() -> dict[str, str]:
    """Installed versions of what results may depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
