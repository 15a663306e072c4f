"""The feedback loop: open -> sample -> judge, a line in the journal after each, and pairs from all of it at the end.

    questions --ahead: clips opened--> Sampler --journal--> Judge --journal--> pairs.jsonl, pairs.report.json
                                          ^ a killed run goes on here     ^ or here

One thread samples and hears the judge; a server judges what was sampled before, meanwhile. Whatever ends the run, what
is in the journal stays: at most the question in flight is asked again, and no answer is judged twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vidllm.ahead import made_ahead
from vidllm.errors import BudgetError, RowError, VideoError
from vidllm.feedback.candidates import Sampled
from vidllm.feedback.items import Asked
from vidllm.feedback.journal import Journal, Slot
from vidllm.feedback.judge import Case, Judge, Judged
from vidllm.feedback.perturb import Change, perturb_messages
from vidllm.feedback.twins import Twin

if TYPE_CHECKING:
    from vidllm.feedback.sampler import Sampler
    from vidllm.interrupts import Interrupts
    from vidllm.prompt import Message

IDLE_SECONDS = 0.1
AHEAD = 2
"""Questions whose clips are opened before they are asked."""


@dataclass
class Tally:
    """How far the run is."""

    total: int = 0
    before: int = 0
    """Done by earlier runs."""
    judged: int = 0
    sampled: int = 0
    candidates: int = 0
    failed: int = 0
    in_work: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def done(self) -> int:
        """Questions of this run that need nothing more."""
        return self.judged + self.failed

    @property
    def eta_seconds(self) -> float | None:
        """Until the last question at the pace so far; None before the first."""
        if not self.done:
            return None
        return (self.total - self.before - self.done) * (time.monotonic() - self.began) / self.done

    def line(self) -> str:
        """All of it in one line."""
        from vidllm.corpus.progress import duration
        from vidllm.counts import count_of

        parts = [f"{self.before + self.done:,} of {count_of(self.total, 'question')}"]
        if self.sampled:
            pace = self.sampled / max(time.monotonic() - self.began, 1e-9)
            parts.append(f"{pace:.2f} questions/s, {self.candidates / self.sampled:.1f} answers each")
        if (eta := self.eta_seconds) is not None:
            parts.append(f"{duration(eta)} left")
        parts += [f"{self.in_work:,} with the judge"] if self.in_work else []
        parts += [f"{self.failed:,} failed"] if self.failed else []
        parts += [f"{self.before:,} done before"] if self.before else []
        return " · ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What there is to do, and who does it."""

    questions: Sequence[Asked]
    slots: Sequence[Slot]
    opinions: Sequence[str]
    """For every question the fingerprint its verdicts go under: the judge, and the evidence it is given."""
    judge: Judge
    look: Callable[[Asked], Sequence[Message]]
    """Opens a question's clips; runs in a thread of its own."""
    sampler: Callable[[], Sampler]
    """Called when the first question has to be asked: a run that only judges loads no model."""
    changes: tuple[Change, ...] = ()
    twin: Callable[[Case], Twin | None] | None = None
    """Makes another candidate of an answer."""
    retry_errors: bool = False
    """Also what could not be asked, and answers without a verdict."""


class Run:
    """One pass over the questions. `go` returns when all are settled, or after Ctrl-C when those in flight are."""

    def __init__(self, work: Work, journal: Journal, tell: Callable[[Tally], None] = lambda tally: None) -> None:
        self._work, self._journal, self._tell = work, journal, tell
        self._in_work: dict[int, int] = {}  # ticket -> number of its question
        self._tickets = 0
        self._sampler: Sampler | None = None
        self.tally = Tally(total=len(work.questions))

    def go(self, interrupts: Interrupts) -> Tally:
        """Ask and judge until nothing is left, or `interrupts` asks to stop. Raises what ends a run."""
        todo = [number for number in range(len(self._work.questions)) if not self._is_done(number)]
        self.tally.before = self.tally.total - len(todo)
        fresh = [number for number in todo if self._work.slots[number] not in self._journal.sampled]
        with made_ahead(fresh, self._open, workers=1, ahead=AHEAD) as opened:
            for number in todo:
                if interrupts.asked:
                    break
                self._settle(number, opened, interrupts)
                self._hear(0.0)
        while self._in_work:
            interrupts.check()
            self._hear(IDLE_SECONDS)
        return self.tally

    def _is_done(self, number: int) -> bool:
        slot = self._work.slots[number]
        if slot in self._journal.failed:
            return not self._work.retry_errors
        if slot not in self._journal.sampled:
            return False
        opinion = self._journal.opinions[slot].get(self._work.opinions[number])
        if opinion is None:
            return len(self._journal.sampled[slot].candidates) < 2
        return not (self._work.retry_errors and any(verdict.failed for verdict in opinion.verdicts))

    def _open(self, number: int) -> Sequence[Message] | str:
        """The question with its clips open, or why that can not be."""
        try:
            return self._work.look(self._work.questions[number])
        except (VideoError, BudgetError, RowError) as error:
            return str(error)

    def _settle(self, number: int, opened: Iterator[Sequence[Message] | str], interrupts: Interrupts) -> None:
        """Ask the question, unless its candidates are there, and hand them to the judge when it has room, unless the
        run is to stop: a judge that hangs never has."""
        sampled = self._journal.sampled.get(self._work.slots[number]) or self._ask(number, next(opened))
        if sampled is None:
            return
        if len(sampled.candidates) < 2:
            self.tally.judged += 1  # nothing to tell apart
            return
        while not self._work.judge.room():
            if interrupts.asked:
                return
            self._hear(IDLE_SECONDS)
        self._tickets += 1
        self._in_work[self._tickets] = number
        asked = self._work.questions[number]
        self._work.judge.submit(self._tickets, [asked.case(candidate.text) for candidate in sampled.candidates])

    def _ask(self, number: int, opened: Sequence[Message] | str) -> Sampled | None:
        """Candidates, written down; None when the question can not be asked, which is written down too."""
        slot, asked = self._work.slots[number], self._work.questions[number]
        try:
            if isinstance(opened, str):
                raise VideoError(opened)
            self._sampler = self._sampler or self._work.sampler()
            sampled = self._sampler.sample(
                opened, asked.draw, list(self._changed(opened, asked.draw)), self._twin(asked)
            )
        except (VideoError, BudgetError) as error:
            self._journal.add_failed(slot, str(error))
            self.tally.failed += 1
            return None
        self._journal.add_sampled(slot, asked, sampled)
        self.tally.sampled += 1
        self.tally.candidates += len(sampled.candidates)
        return sampled

    def _twin(self, asked: Asked) -> Callable[[str], Twin | None] | None:
        make = self._work.twin
        return None if make is None else lambda answer: make(asked.case(answer))

    def _changed(self, messages: Sequence[Message], key: str) -> Iterator[tuple[str, Sequence[Message]]]:
        for change in self._work.changes:
            made = perturb_messages(messages, change, int(key[:8], 16))
            if made is not None:
                yield change, made

    def _hear(self, wait: float) -> None:
        """Write down what the judge has said."""
        for judged in self._work.judge.poll(wait):
            self._write(judged)
        self.tally.in_work = len(self._in_work)
        self._tell(self.tally)

    def _write(self, judged: Judged) -> None:
        number = self._in_work.pop(judged.ticket)
        fingerprint = self._work.opinions[number]
        self._journal.add_judged(self._work.slots[number], fingerprint, self._work.judge, judged)
        self.tally.judged += 1
