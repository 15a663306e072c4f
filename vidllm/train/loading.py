"""Rows -> examples: media opened on the one road of `clip`. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vidllm.clip import Clip, Known, PlanOptions, open_clips
from vidllm.errors import RowError, VidllmError
from vidllm.model.chat import AnyTokenizer
from vidllm.model.spec import ModelSpec
from vidllm.prompt import Example, Image, Message, build_example
from vidllm.train.looks import look_of
from vidllm.train.row import TrainRow, Turn, advice
from vidllm.train.shelf import Shelf


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
