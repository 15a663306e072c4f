"""What a row is: values that reading, checking, batching and learning hand on. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from vidllm.errors import BudgetError, VidllmError, Way

Role = Literal["system", "user", "assistant"]
Kind = Literal["video", "image", "text"]
"""What the longest-lived part of a row is: text where it shows nothing, image where it shows stills only."""
R = TypeVar("R")
TOLD = 600
"""Letters of what is wrong with a row: it quotes the row, in which a whole picture may stand as text."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a row stands: str() is "rows.jsonl:12 (id)"."""

    file: str
    line: int
    id: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" + (f" ({self.id})" if self.id else "")


@dataclass(frozen=True, kw_only=True)
class Media:
    """A file that a turn shows."""

    kind: Literal["video", "image"]
    path: str


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One message; `media` stand before the text, the last of them where `at` says; it holds no placeholders."""

    role: Role
    text: str
    media: tuple[Media, ...] = ()
    at: tuple[int, ...] = ()
    """As `model.chat.Turn.at`."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Perhaps a system turn, then user and assistant by turns."""

    origin: Origin
    turns: tuple[Turn, ...]

    @property
    def media(self) -> tuple[Media, ...]:
        """All that is shown, in order."""
        return tuple(medium for turn in self.turns for medium in turn.media)

    @property
    def answers(self) -> tuple[str, ...]:
        """Of which one follows the turns; none where they are all."""
        return ()


class TrainRow(Conversation):
    """A conversation to learn; the assistant ends it."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the reference model gave the two answers: summed log-probs in nats, and the fingerprint of that model."""

    model: str
    chosen_logp: float
    rejected_logp: float
    dtype: str | None = None
    """The numbers they were computed in, where that was noted."""
    look: str | None = None
    """`PlanOptions.look` under which the clip was shown, where that was noted."""

    def is_of(self, model: str, dtype: str, look: str) -> bool:
        """Whether this model gives the same answers the same log-probs, as far as was noted."""
        return self.model == model and self.dtype in (None, dtype) and self.look in (None, look)


@dataclass(frozen=True, kw_only=True)
class PairRow(Conversation):
    """Turns that end with the user's, and a better and a worse answer to them."""

    chosen: str
    rejected: str
    reference: Reference | None = None

    @property
    def answers(self) -> tuple[str, ...]:
        """The better one and the worse."""
        return self.chosen, self.rejected


AnyRow = TypeVar("AnyRow", bound=Conversation)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why a row can not be learnt from, and what to do about it; str() is one line."""

    origin: Origin
    what: str
    do: str

    def __str__(self) -> str:
        what = self.what if len(self.what) <= TOLD else f"{self.what[:TOLD]} ..."
        return " ".join(f"{self.origin}: {what}; {self.do}".split())  # names of files and rows may break lines


@dataclass(frozen=True, kw_only=True)
class ReadRows(Generic[R]):
    """What a file of rows holds: `rows` and `problems`, each in the file's order."""

    rows: tuple[R, ...]
    problems: tuple[Problem, ...] = ()


def advice(error: VidllmError) -> str:
    """The error with its ways out in words of a stage's config: by itself it speaks to who asks on a command line."""
    return error.advised(_in_config) if isinstance(error, BudgetError) else str(error)


def _in_config(way: Way) -> str:
    if way.change == "max_new_tokens":  # what is learnt has its length
        return "a shorter answer"
    value = str(way.value).lower() if isinstance(way.value, bool) else way.value
    return way.words or f"{way.change}={value}"


class Bad(Exception):
    """What is wrong with a row, and what to do: becomes a Problem where its line is known."""

    def __init__(self, what: str, do: str) -> None:
        super().__init__(what)
        self.what, self.do = what, do
