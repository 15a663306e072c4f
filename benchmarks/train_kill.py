"""kill -9 at random instants: a run that goes on ends with the very bits of one that was never stopped.

    python benchmarks/train_kill.py                       50 kills of `vidllm sft`, 50 of `vidllm dpo`
    python benchmarks/train_kill.py --stage dpo --kills 5     a first look at one

`sft` goes on from the built-in image model, rows with and without a video mixed; `dpo` from the built-in model, its
reference in memory and the anchor in its loss. Frames are encoded once and cached. A third of the kills fall while it
starts, a third while it learns, a third within 30 ms of a checkpoint being begun. When a run ends before all kills are
spent, the next one begins. Compared with an undisturbed run: every step's figures, the last checkpoint's weights,
optimizer and random numbers, and the taught model's weights, all to the bit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import report
import torch

from vidllm.train.metrics import read_metrics
from vidllm.train.saves import Saves
from vidllm.world.make import make_clips
from vidllm_cli.main import main as vidllm

SEED = 80_000
"""Of the first world clip."""
TIMINGS = ("seconds", "tokens_per_second", "peak_memory_gib")
MOMENTS = ("starting", "learning", "saving")
CONFIGS = {
    "sft": "model: built-in-images\nbatch: 4\nparts: {projector: 1.0e-4, language_model: 1.0e-4}\n",
    "dpo": "model: built-in\nbatch: 4\nloss: dpo\nanchor: 0.5\nparts: {language_model: 1.0e-5}\n",
}
"""What each stage's config says beside its rows and its length."""


def write_rows(folder: Path, count: int, stage: str) -> Path:
    """World clips and three true questions and answers about each, the first without its clip; for `dpo` each answer
    is chosen over that of the next question.
    """
    lines = []
    for path in make_clips(count, SEED, folder):
        asked = json.loads(path.with_suffix(".json").read_text())["questions"]
        for number, (question, other) in enumerate(pairwise(asked[:4])):
            shown = {"video": path.name} if number else {}
            said = in_sft(question) if stage == "sft" else in_dpo(question, other)
            lines.append(json.dumps({"id": f"{path.stem}-{number}", **said, **shown}))
    target = folder / "rows.jsonl"
    target.write_text("\n".join(lines) + "\n")
    return target


def in_sft(question: dict[str, Any]) -> dict[str, Any]:
    """A row's words as LLaVA writes them."""
    return {
        "conversations": [
            {"from": "human", "value": question["text"]},
            {"from": "gpt", "value": question["answer"]},
        ]
    }


def in_dpo(question: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """A pair's words."""
    rejected = other["answer"] if other["answer"] != question["answer"] else "I can not tell."
    return {"prompt": question["text"], "chosen": question["answer"], "rejected": rejected}


@dataclass
class Bench:
    """One undisturbed run, and others that are killed."""

    stage: str
    folder: Path
    rows: Path
    steps: int
    dice: random.Random
    kills: Counter[str] = field(default_factory=Counter)
    damaged: int = 0
    """Kills that left a half-written checkpoint behind."""
    lost: list[int] = field(default_factory=list)
    """Steps that each kill cost."""
    runs: int = 0

    def config(self, out: Path) -> list[str]:
        """The command line of a run."""
        config = self.folder / "train_kill.yaml"
        config.write_text(
            f"data: [{{path: {self.rows}}}]\nframes: 6\nstride: 4\npolicy: uniform\ntokens: 512\n"
            f"steps: {self.steps}\ncheckpoint_every: 3\nworkers: 1\n{CONFIGS[self.stage]}"
        )
        return [self.stage, str(config), f"out={out}", f"cache_folder={out}.cache"]

    def start(self, out: Path) -> int:
        """The stage in a process of its own (a fork: what it imports is imported already); its id."""
        child = os.fork()
        if child == 0:
            log = os.open(f"{out}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os._exit(vidllm(self.config(out)))
        return child

    def finish(self, out: Path) -> None:
        """A run to its end."""
        _, status = os.waitpid(self.start(out), 0)
        if status:
            raise SystemExit(f"a run failed: {Path(f'{out}.log').read_text()[-2000:]}")

    def attempt(self, out: Path) -> bool:
        """Start, and kill at a random moment; whether the run ended before that."""
        child, moment = self.start(out), self.dice.choice(MOMENTS)
        ended = self.wait(child, out, moment)
        if not ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            self.kills[moment] += 1
            self.look(out)
        return ended

    def wait(self, child: int, out: Path, moment: str) -> bool:
        """Until the moment has come; True when the process is gone before."""
        told, begun = steps_told(out), time.monotonic()
        limit = begun + self.dice.uniform(0, 3.0) if moment == "starting" else begun + 600
        while time.monotonic() < limit:
            if os.waitpid(child, os.WNOHANG)[0]:
                return True
            if moment == "learning" and steps_told(out) > told:
                time.sleep(self.dice.uniform(0, 1.0))
                break
            if moment == "saving" and any((out / "checkpoints").glob(".part-*")):
                time.sleep(self.dice.uniform(0, 0.03))
                break
            time.sleep(0.002)
        return bool(os.waitpid(child, os.WNOHANG)[0])

    def look(self, out: Path) -> None:
        """What a kill left: the newest whole checkpoint is found, and what it cost."""
        self.damaged += any((out / "checkpoints").glob(".part-*"))
        kept = Saves(out / "checkpoints", keep=2, say=lambda text: None).newest()
        self.lost.append(steps_told(out) - (kept.step if kept else 0))


def steps_told(out: Path) -> int:
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def marks(out: Path) -> dict[str, Any]:
    """Everything that must be the same to the bit."""
    [newest] = sorted((out / "checkpoints").glob("step-*"))[-1:]
    lines = [{k: v for k, v in r.items() if k not in TIMINGS} for r in read_metrics(out / "metrics.jsonl")]
    files = {name: digest_of(torch.load(newest / name, weights_only=True)) for name in
             ("weights.pt", "optimizer.pt", "random.pt")}  # fmt: skip
    model = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    return {"step": newest.name, "metrics": lines, "model.safetensors": model, **files}


def digest_of(value: Any) -> str:
    """Of nested containers of tensors and plain values: every bit counts."""
    digest = hashlib.sha256()

    def take(item: Any) -> None:
        if isinstance(item, torch.Tensor):
            digest.update(f"{item.dtype}{tuple(item.shape)}".encode())
            digest.update(item.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if item.numel() else b"")
        elif isinstance(item, dict):
            for key in sorted(item, key=str):
                digest.update(repr(key).encode())
                take(item[key])
        elif isinstance(item, list | tuple):
            for inner in item:
                take(inner)
        else:
            digest.update(repr(item).encode())

    take(value)
    return digest.hexdigest()


def main() -> None:
    """The table."""
    arguments = report.parser(__doc__)
    arguments.add_argument("--stage", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    arguments.add_argument("--kills", type=int, default=50, help="of each stage")
    arguments.add_argument("--clips", type=int, default=8)
    arguments.add_argument("--steps", type=int, default=30)
    arguments.add_argument("--seed", type=int, default=0)
    said = arguments.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    told = [kill(stage, said) for stage in said.stage]
    report.write("train_kill", "kill -9 while teaching, and going on", told)
    sys.exit(sum(int(row["runs that differ in a bit"]) for row in told))


def kill(stage: str, said: argparse.Namespace) -> dict[str, Any]:
    """One stage's row of the table."""
    with tempfile.TemporaryDirectory(prefix="train_kill.") as name:
        folder = Path(name)
        rows = write_rows(folder / "clips", said.clips, stage)
        bench = Bench(stage, folder, rows, said.steps, random.Random(said.seed))
        began = time.monotonic()
        bench.finish(folder / "never")
        alone = time.monotonic() - began
        different = kill_and_compare(bench, said.kills, marks(folder / "never"))
        minutes = (time.monotonic() - began) / 60
    return {
        "stage": stage, "steps": said.steps, "seconds undisturbed": alone, "kills": bench.kills.total(),
        **{f"while {moment}": bench.kills[moment] for moment in MOMENTS}, "half checkpoints left": bench.damaged,
        "runs": bench.runs, "runs that differ in a bit": different,
        "steps lost a kill": sum(bench.lost) / max(1, len(bench.lost)), "minutes": minutes,
    }  # fmt: skip


def kill_and_compare(bench: Bench, kills: int, wanted: dict[str, Any]) -> int:
    """Spend all kills; how many runs ended otherwise than the undisturbed one."""
    different = 0
    while bench.kills.total() < kills:
        bench.runs += 1
        out = bench.folder / f"killed-{bench.runs}"
        ended = False
        while not ended and bench.kills.total() < kills:
            ended = bench.attempt(out)
        bench.finish(out)
        got = marks(out)
        differ = [key for key in wanted if got[key] != wanted[key]]
        different += bool(differ)
        print(f"run {bench.runs}: {bench.kills.total()} kills so far, {differ or 'the same to the bit'}", flush=True)
    return different


if __name__ == "__main__":
    main()
