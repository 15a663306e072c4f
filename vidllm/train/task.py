"""What the loop asks of a task, and what it tells those who look on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from vidllm.train.metrics import Record
from vidllm.train.saves import Identity

Micro = Sequence[int]
"""Row numbers that go through the model together."""
Step = Sequence[Micro]
"""One optimizer step."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """What a micro-batch gave."""

    loss: Tensor
    """(), summed over `weight` things: the loop makes it the mean over the whole step, on all processes."""
    weight: float
    """How many: trained tokens, or pairs."""
    tokens: int = 0
    """That went through the language model, visual ones included."""
    metrics: Mapping[str, tuple[float | Tensor, float]] = field(default_factory=dict)
    """name -> (sum, count); told as sum / count over the whole step, on all processes."""


class Task(Protocol):
    """What is learnt. Its methods are called with the same arguments on every process; one that keeps nothing
    but weights, and says nothing of a step, leaves the last three as they are.
    """

    def identity(self) -> Identity:
        """What a checkpoint must have been made with: model, rows, and every setting that shapes a gradient."""

    def steps(self, epoch: int) -> Sequence[Step]:
        """An epoch's optimizer steps, a function of `epoch` alone."""

    def prepare(self, numbers: Micro) -> Any:
        """A micro-batch, read and laid out. Called ahead from threads; draws no random numbers of the process."""

    def loss(self, model: nn.Module, material: Any) -> Part:
        """Its loss. `model` may be wrapped for several processes: it is called, once, and nothing else of it used.

        Every weight that learns must take part in the call (a zero will do), or processes wait for each other.
        """

    def name(self, number: int) -> str:
        """A row, for a person: file, line, id."""

    def after(self, record: Record) -> str | None:
        """Hear a step's figures, the same on every process; what is returned is said aloud."""
        return None

    def state(self) -> Mapping[str, Any]:
        """What else must be kept: plain values and tensors."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        return None


class Watch(Protocol):
    """Who looks on. Called on the first process only."""

    def say(self, text: str) -> None:
        """A line that stays."""

    def begin(self, done: int, total: int) -> None:
        """So many optimizer steps are done by an earlier run, and so many there will be."""

    def step(self, record: Record) -> None:
        """A step's figures."""
