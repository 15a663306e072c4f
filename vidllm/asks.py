"""Many questions to one model, answered side by side: each as `ask` would, none held up by another that fails.

    (video, question) -> threads plan, decode, lay out -> Batcher -> Answers, in the order of the questions
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from vidllm.ahead import made_ahead
from vidllm.answer import Answer, timing_of
from vidllm.batching import Batcher, Finished
from vidllm.errors import ConfigError, ModelError, VidllmError
from vidllm.machine import cores
from vidllm.session import Asked, ChatSession
from vidllm.sources import Source, sources_of
from vidllm.video.guard import keep_workers

if TYPE_CHECKING:
    from vidllm.ask import VideoModel
    from vidllm.options import AskOptions

MOST_OPENERS = 8
"""Threads that open clips; decoding leaves Python's lock alone."""


def side_by_side(
    model: VideoModel,
    asked: Iterable[tuple[Source | Sequence[Source], str]],
    batch: int | None,
    options: AskOptions,
) -> Iterator[Answer | VidllmError]:
    """See `VideoModel.ask_all`."""

    def look_at(one: tuple[Source | Sequence[Source], str]) -> Asked | VidllmError:
        try:
            video, question = _pair(one)
            return ChatSession(model, sources_of(video), options, single=True).look_at(question)
        except VidllmError as error:
            return error

    openers = min(cores(), MOST_OPENERS)
    if options.get("guard") is not None:
        keep_workers(openers)
    with made_ahead(asked, look_at, workers=openers, ahead=openers) as looks:
        yield from _answers(model, looks, Batcher(model.lmm, slots=batch, cache=model.cache))


def _pair(one: object) -> tuple[Source | Sequence[Source], str]:
    """Raises ConfigError for what is no (video, question)."""
    if not isinstance(one, tuple | list) or len(one) != 2:
        raise ConfigError(f"{one!r} is no question about a video; give pairs of (video, question)")
    return one[0], one[1]


def _answers(
    model: VideoModel, looks: Iterator[Asked | VidllmError], batcher: Batcher
) -> Iterator[Answer | VidllmError]:
    """In the order of `looks`. An answer holds its frames until it is taken: while one is long in coming, no more than
    twice what the batcher takes are waiting behind it.
    """
    begun: dict[int, Asked] = {}
    done: dict[int, Answer | VidllmError] = {}
    numbered, submitted, told = enumerate(looks), 0, 0
    is_more = True
    while is_more or begun:
        while is_more and len(begun) < batcher.capacity and submitted - told < 2 * batcher.capacity:
            submitted, look = next(numbered, (submitted, None))
            if isinstance(look, Asked):
                begun[submitted] = look
                batcher.submit(submitted, look.prompt, look.generation)
            elif look is not None:
                done[submitted] = look
            is_more = look is not None
        for finished in batcher.step() if begun else ():
            done[finished.ticket] = _told(model, begun.pop(finished.ticket), finished)
        while told in done:
            yield done.pop(told)
            told += 1


def _told(model: VideoModel, asked: Asked, finished: Finished) -> Answer | VidllmError:
    written = finished.generated
    if written is None:
        return ModelError(finished.error or "no answer")
    timing = timing_of(
        asked.look.clips, encode=finished.encode_seconds, prefill=finished.prefill_seconds, generate=written.seconds
    )
    return asked.answered(model.name, written, timing)
