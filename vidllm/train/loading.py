"""Rows -> examples: media opened on the one road of `clip`, every file guarded, several rows at a time. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import Self

from vidllm.clip import Clip, Known, PlanOptions, open_clips
from vidllm.errors import RowError, VidllmError
from vidllm.model.chat import AnyTokenizer
from vidllm.model.spec import ModelSpec
from vidllm.prompt import Example, Image, Message, build_example
from vidllm.train.looks import look_of
from vidllm.train.row import Media, TrainRow, Turn, advice
from vidllm.train.shelf import Shelf
from vidllm.video.guard import DEFAULT_LIMITS, keep_workers


def load_example(
    row: TrainRow, spec: ModelSpec, tokenizer: AnyTokenizer, plan: PlanOptions, *, known: Known | None = None
) -> Example:
    """The row with its media open. Clips that `known` recalls are not decoded; `plan.guard` guards the others.

    Raises:
        RowError: a medium can not be read, or the conversation does not fit; one line with the row's file and line.
    """
    try:
        messages = open_turns(row.turns, spec, tokenizer, plan, known=known)
        return build_example(messages, spec, tokenizer, rope_max=plan.rope_max)
    except VidllmError as error:
        raise RowError(f"{row.origin}: {advice(error)}") from error


def open_turns(
    turns: Sequence[Turn], spec: ModelSpec, tokenizer: AnyTokenizer, plan: PlanOptions, *,
    answers: Sequence[str] = (), known: Known | None = None,
) -> tuple[Message, ...]:  # fmt: skip
    """The turns as messages, media open. `answers` are what may be said after them: the longest must fit.

    With a `Shelf` as `known` a file is opened once for all rows that are loaded with it. Raises VideoError or
    BudgetError, which do not know the row.
    """
    shelf = known if isinstance(known, Shelf) else Shelf(known)
    stills = [shelf.still(m.path) for turn in turns for m in turn.media if m.kind == "image"]
    videos = [shelf.video(m.path, plan.guard) for turn in turns for m in turn.media if m.kind == "video"]
    look = look_of(turns, answers, [still.pixels.shape[:2] for still in stills], spec, tokenizer)
    clips: tuple[Clip, ...] = ()
    if videos:
        clips = look.within(
            plan, lambda options: open_clips(videos, look.question, spec, tokenizer, options, known=shelf)
        )
    waiting: dict[str, Iterator[Clip | Image]] = {"image": iter(stills), "video": iter(clips)}
    return tuple(Message(turn.role, turn.text, tuple(next(waiting[m.kind]) for m in turn.media)) for turn in turns)


class Loader:
    """Rows by number, opened in `threads` threads; what decodes is a child process that can be killed, one a thread.

    `examples` may be called from several threads at once (`Ahead` makes the next portions so). Close it, or use it in
    a `with` block.
    """

    def __init__(
        self, rows: Sequence[TrainRow], spec: ModelSpec, tokenizer: AnyTokenizer, plan: PlanOptions, *,
        known: Known | None = None, threads: int = 2,
    ) -> None:  # fmt: skip
        self.rows = rows
        self._spec, self._tokenizer, self._known = spec, tokenizer, known
        self._plan = replace(plan, guard=plan.guard or DEFAULT_LIMITS)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="rows") if threads > 1 else None
        keep_workers(max(threads, 1))

    def examples(self, numbers: Sequence[int]) -> list[Example]:
        """The rows of these numbers, in order; a file that several of them show is opened once.

        Raises RowError for the first that can not be read.
        """
        groups: dict[tuple[Media, ...], list[int]] = {}
        for place, number in enumerate(numbers):
            groups.setdefault(self.rows[number].media, []).append(place)
        jobs = [[numbers[place] for place in places] for places in groups.values()]
        loaded = map(self._load, jobs) if self._threads is None else self._threads.map(self._load, jobs)
        made: dict[int, Example | RowError] = {}
        for places, examples in zip(groups.values(), loaded, strict=True):
            made.update(zip(places, examples, strict=True))
        return [_whole(made[place]) for place in range(len(numbers))]

    def close(self) -> None:
        """Wait for what is being read and end the threads."""
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _load(self, numbers: Sequence[int]) -> list[Example | RowError]:
        """Rows about the same files, each as it is or why it is not."""
        shelf = Shelf(self._known)
        made: list[Example | RowError] = []
        for number in numbers:
            try:
                made.append(load_example(self.rows[number], self._spec, self._tokenizer, self._plan, known=shelf))
            except RowError as error:
                made.append(error)
        return made


def _whole(example: Example | RowError) -> Example:
    if isinstance(example, RowError):
        raise example
    return example
