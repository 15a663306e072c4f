"""A small real task for the loop: a network of two parts learns the parity of row numbers. A program of its own, too.

    python -m tests.train_task OUT [key=value ...]      one run, for the tests that kill it or start two of it

Rows are noise drawn from their number, so any process can make any row. Dropout is on: random numbers matter.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidllm.config import load_config
from vidllm.train.loop import LoopOptions, Trained, train
from vidllm.train.metrics import read_metrics
from vidllm.train.optim import OptimOptions
from vidllm.train.task import Micro, Part, Step

WIDTH = 8


class Network(nn.Module):
    """Two parts at two rates, one part that is frozen, one that only even micro-batches move."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.frozen = nn.Linear(WIDTH, 16).requires_grad_(False)
        self.body = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.LayerNorm(16), nn.Dropout(dropout))
        self.aside = nn.Linear(16, 16)
        self.head = nn.Linear(16, 2)

    def forward(self, rows: Tensor, aside: bool) -> Tensor:
        """(N, WIDTH) -> (N, 2)."""
        hidden = self.body(self.frozen(rows))
        return self.head(hidden + self.aside(hidden) * (1.0 if aside else 0.0))

    def groups(self) -> list[dict[str, Any]]:
        """As `Learner.groups` gives them."""
        body = [*self.body.parameters(), *self.aside.parameters()]
        head = list(self.head.parameters())
        return [{"name": "body", "params": body, "lr": 3e-3}, {"name": "head", "params": head, "lr": 1e-2}]


def row_of(number: int) -> tuple[Tensor, int]:
    """Noise (WIDTH,) and what is to be learnt of it."""
    rng = torch.Generator().manual_seed(number)
    return torch.randn(WIDTH, generator=rng) + (number % 2), number % 2


@dataclass
class Parity:
    """The task: `rows` rows, micro-batches of uneven sizes; rows in `poison` are no numbers."""

    rows: int = 24
    batch: int = 6
    largest: int = 3
    poison: tuple[int, ...] = ()
    aside: bool = True
    """Send every micro-batch of an even size through the part that others leave unused."""
    wait: float = 0.0
    """Seconds a micro-batch takes to be made: the tests that kill a run want it slow."""
    seen: list[int] = field(default_factory=list)
    heard: float = 0.0

    def identity(self) -> dict[str, Any]:
        return {"model": "parity network", "rows": f"{self.rows} rows", "batch": self.batch}

    def steps(self, epoch: int) -> Sequence[Step]:
        rng = torch.Generator().manual_seed(1000 + epoch)
        order = torch.randperm(self.rows, generator=rng).tolist()
        chunks = [order[i : i + self.batch] for i in range(0, self.rows, self.batch)]
        return [self._micros(chunk) for chunk in chunks]

    def _micros(self, chunk: list[int]) -> Step:
        """3, 2, 1 or what is left of it: no two alike."""
        sizes, micros = [self.largest, max(1, self.largest - 1)], []
        while chunk:
            size = sizes[len(micros) % 2]
            micros.append(tuple(chunk[:size]))
            chunk = chunk[size:]
        return tuple(micros)

    def prepare(self, numbers: Micro) -> tuple[Micro, Tensor, Tensor]:
        time.sleep(self.wait)
        rows = [row_of(number) for number in numbers]
        made = torch.stack([row for row, _ in rows])
        made[[i for i, number in enumerate(numbers) if number in self.poison]] = float("nan")
        return numbers, made, torch.tensor([kind for _, kind in rows])

    def loss(self, model: nn.Module, material: tuple[Micro, Tensor, Tensor]) -> Part:
        numbers, rows, kinds = material
        self.seen += numbers
        logits = model(rows, self.aside and len(numbers) % 2 == 0)
        right = (logits.argmax(-1) == kinds).float().sum()
        loss = F.cross_entropy(logits, kinds, reduction="sum")
        return Part(loss=loss, weight=len(kinds), tokens=rows.numel(), metrics={"right": (right, len(kinds))})

    def name(self, number: int) -> str:
        return f"parity.jsonl:{number + 1} (row {number})"

    def after(self, record: Mapping[str, float]) -> str | None:
        self.heard += record["right"]
        return None

    def state(self) -> dict[str, Any]:
        return {"heard": self.heard}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.heard = state["heard"]


@dataclass
class Listener:
    """A watch that remembers, and prints when it is a program's."""

    aloud: bool = False
    said: list[str] = field(default_factory=list)
    records: list[Mapping[str, float]] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.said.append(text)
        if self.aloud:
            print(text, file=sys.stderr, flush=True)

    def begin(self, done: int, total: int) -> None:
        self.said.append(f"{done} of {total}")

    def step(self, record: Mapping[str, float]) -> None:
        self.records.append(record)
        if self.aloud:
            print(f"step {record['step']} loss {record['loss']!r}", flush=True)


@dataclass(frozen=True, kw_only=True)
class Config:
    """What the program takes."""

    out: Path
    wait: float = 0.0
    dropout: float = 0.1
    loop: LoopOptions = field(default_factory=LoopOptions)


def options(**more: Any) -> LoopOptions:
    """Twelve steps, a checkpoint every five, without help from threads."""
    words: dict[str, Any] = {"epochs": 3, "checkpoint_every": 5, "workers": 0, "optim": OptimOptions(warmup=0.1)}
    return LoopOptions(**{**words, **more})


def run(
    folder: Path, task: Parity, listener: Listener | None = None, dropout: float = 0.1, **more: Any
) -> tuple[Trained, Network]:
    """One run in this process."""
    network = Network(dropout)
    done = train(task, network, network.groups(), options(**more), folder, listener or Listener())
    return done, network


def figures(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what the clock says."""
    timings = ("seconds", "tokens_per_second", "peak_memory_gib")
    return [{k: v for k, v in r.items() if k not in timings} for r in read_metrics(folder / "metrics.jsonl")]


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


if __name__ == "__main__":
    config = load_config(Config, None, [f"out={sys.argv[1]}", *sys.argv[2:]])
    net = Network(config.dropout)
    train(Parity(wait=config.wait), net, net.groups(), config.loop, config.out, Listener(aloud=True))
    if torch.distributed.is_initialized():
        from vidllm.train.processes import leave

        leave()
