"""What a judge is: cases in, verdicts out. A judge that does not know says so; nobody guesses for it.

    submit(ticket, cases)  ──>  ...  ──>  poll() -> Judged(ticket, one Verdict for each case)

The cases of a ticket are the candidates of one question. Judges may have many tickets in work: a server answers while
the next candidates are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

LEAST, MOST = 1.0, 5.0
"""The scale of every score."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One answer to be judged, and all that a judge may lean on."""

    question: str
    answer: str
    video: Path | None = None
    """The clip, where there is exactly one; the oracle's script lies beside it."""
    truth: str | None = None
    """The answer that the data set holds for right."""
    evidence: str | None = None
    """A detailed caption of the clip."""
    before: str = ""
    """What was said before the question, a line a turn: "and then?" means nothing alone."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A judge's opinion of one answer. `score` is None when there is none, and then `failed` says why."""

    score: float | None
    criteria: tuple[tuple[str, float], ...] = ()
    """(name, 1..5), as far as the judge tells them apart."""
    explanation: str = ""
    replies: tuple[str, ...] = ()
    """Every raw reply, those that could not be read included."""
    failed: str | None = None

    def __post_init__(self) -> None:
        if self.score is not None and not LEAST <= self.score <= MOST:
            raise ValueError(f"a score is {LEAST:g} to {MOST:g}, got {self.score}")
        if (self.score is None) == (self.failed is None):
            raise ValueError("a verdict has a score, or says why it has none")

    def to_dict(self) -> dict[str, Any]:
        """For a line of JSON; what is empty is left out."""
        told: dict[str, Any] = {"score": self.score}
        if self.criteria:
            told["criteria"] = dict(self.criteria)
        told |= {"explanation": self.explanation} if self.explanation else {}
        told |= {"replies": list(self.replies)} if self.replies else {}
        return told | ({"failed": self.failed} if self.failed is not None else {})

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> Verdict:
        """The verdict of a line of JSON."""
        return cls(
            score=told["score"], criteria=tuple(told.get("criteria", {}).items()),
            explanation=told.get("explanation", ""), replies=tuple(told.get("replies", ())), failed=told.get("failed"),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What became of one ticket."""

    ticket: int
    verdicts: tuple[Verdict, ...]
    nonsense: int = 0
    """Replies that could not be read."""
    orders: tuple[int, int] = (0, 0)
    """Of so many pairs compared in both orders (second), so many came out alike (first)."""
    model: str = ""
    """Who answered, in its own words: a server's name of its model."""


class Judge(Protocol):
    """Called from one thread. What ends the run (a server that is gone) is raised as a VidllmError."""

    name: str
    """For people, and for the `judge` of every row."""
    way: str
    """How it judges, for people: one model may be asked in several ways. Empty where there is one."""
    fingerprint: str
    """Another value is another judge: its verdicts are not mixed with these."""

    def refuses(self, case: Case) -> str | None:
        """Why it could never judge this, known before anything was asked; None when it can."""

    def submit(self, ticket: int, cases: Sequence[Case]) -> None:
        """Begin to judge the candidates of one question, two or more."""

    def poll(self, wait: float) -> list[Judged]:
        """What is finished. Works on, or waits up to `wait` seconds, when nothing is; at once when nothing runs."""

    def room(self) -> bool:
        """Whether it would gain from another ticket now."""

    def close(self) -> None:
        """Give up what is running."""
