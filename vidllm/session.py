"""One video, one question or several: what was read of the video and of earlier turns is not read again.

    look    the frames a question is shown: planned for it, or those already there
    prompt  the whole dialogue, with as many frames as leave room for it
    turn    read, answered, reported; it counts when its answer is finished

Torch is imported with the first question, not with this file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from vidllm.answer import Answer, Timing, report, timing_of
from vidllm.clip import Clip, PlanOptions, open_clips
from vidllm.errors import BudgetError
from vidllm.model.chat import Turn, lay_out
from vidllm.model.stills import shown_still
from vidllm.options import AskOptions, check_question, split_options
from vidllm.planned import still_notes, tokens_of_stills
from vidllm.planning import named_in_vain, range_of, room_of
from vidllm.prompt import Message, Prompt, Role, build_prompt, check_question_fits
from vidllm.sources import Progress, Source, name_of, open_source, tell
from vidllm.video.timecode import find_focus
from vidllm.visuals import Image

if TYPE_CHECKING:
    from vidllm.ask import VideoModel
    from vidllm.engine import Generated, Past, Written
    from vidllm.options import GenerationOptions

ROLES: tuple[Role, Role] = ("user", "assistant")
SLACK_TOKENS = 256
"""A talk that needs scaled positions takes room for so many tokens more: some five short turns."""


class AnswerStream(Iterator[str]):
    """An answer being written: iterate for pieces of text that join to it; `answer` finishes it and gives the whole."""

    def __init__(self, pieces: Iterator[str], clips: tuple[Clip, ...], finish: Callable[[], Answer]) -> None:
        self.clips = clips
        """What the answer is about, known before its first word."""
        self._pieces = pieces
        self._finish = finish
        self._answer: Answer | None = None

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration:
            self._answer = self._answer or self._finish()
            raise

    @property
    def answer(self) -> Answer:
        """The finished Answer; what has not been iterated yet is written first. ModelError if it was interrupted."""
        for _ in self:
            pass
        assert self._answer is not None
        return self._answer


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What a prompt shows: media in the user's order, and the options they were opened under."""

    media: tuple[Clip | Image, ...]
    options: PlanOptions
    question: str
    """The one it was planned for."""

    @property
    def clips(self) -> tuple[Clip, ...]:
        return tuple(medium for medium in self.media if isinstance(medium, Clip))

    def shows(self, options: PlanOptions) -> bool:
        """Whether these options ask for the same frames: how long the answer may be does not matter, nor how far
        positions may be stretched unless the frames need more."""
        mine = self.options
        same = mine == replace(options, max_new_tokens=mine.max_new_tokens, rope_max=mine.rope_max)
        return same and all(clip.plan.rope_factor <= options.rope_max for clip in self.clips)

    def notes(self, question: str, names: Sequence[str]) -> tuple[str, ...]:
        """What is to be said of it: of the times that are named in vain, those that `question` names. What is true of
        some of several videos only stands behind their names.
        """
        if not self.clips:
            return still_notes(self.options)
        shown = zip(names, self.media, strict=True)
        said = {name: self._notes_of(clip, question) for name, clip in shown if isinstance(clip, Clip)}
        of_all = set.intersection(*map(set, said.values()))
        told = (note if note in of_all else f"{name}: {note}" for name, notes in said.items() for note in notes)
        return tuple(dict.fromkeys(told))

    def _notes_of(self, clip: Clip, question: str) -> tuple[str, ...]:
        if question == self.question:
            return clip.plan.notes  # in the order in which a plan says them
        before = named_in_vain(clip.info, self.question, self.options)
        kept = (note for note in clip.plan.notes if note not in before)
        return (*kept, *named_in_vain(clip.info, question, self.options))


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question and what it is shown: everything but the model's own work."""

    question: str
    names: tuple[str, ...]
    """What the user calls the `look`'s media."""
    look: _Look
    prompt: Prompt
    generation: GenerationOptions
    """With the room the prompt leaves for the answer."""

    def answered(self, model: str, written: Written, timing: Timing) -> Answer:
        """What its user is told."""
        return report(
            model=model, sources=self.names, media=self.look.media, prompt=self.prompt, written=written, timing=timing,
            notes=self.look.notes(self.question, self.names) + self.generation.notes,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Turn:
    """A question on its way: what was read for it and how long that took."""

    asked: Asked
    is_new_look: bool
    past: Past
    read_seconds: float


class ChatSession:
    """Questions about one video, each knowing the earlier ones; the video is decoded and encoded once.

    A follow-up that names no time looks at the same frames, and only its own text is read. One that names a time is
    planned anew: frames near that time are decoded, frames that were encoded before come from the feature cache, and
    the dialogue is read again behind them. If that plan is the one already shown, nothing is read again.
    A model that was never taught dialogues (`spec.dialogue`, the built-in one) is shown each question alone, right
    behind the video. A turn counts when its answer is finished: after Ctrl-C the session is as before the question.
    """

    def __init__(
        self, model: VideoModel, sources: Sequence[Source], options: AskOptions, progress: Progress | None = None,
        *, single: bool = False,
    ) -> None:  # fmt: skip
        self._model = model
        self._single = single  # one question is all that will be asked
        self._names = tuple(name_of(source) for source in sources)
        self._sources = tuple(sources)
        self._options = options
        self._progress = progress
        self._opened: tuple[Path | Image, ...] | None = None
        self._look: _Look | None = None
        self._past: Past | None = None
        self._factor = 1.0  # the RoPE factor of the last finished turn
        self._running: Generator[str] | None = None
        self._turns: tuple[tuple[str, str], ...] = ()

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """(question, answer) of every finished turn."""
        return self._turns

    @property
    def past(self) -> Past | None:
        """What the model has read so far; `past.reused` says how much of the last prompt was not read again."""
        return self._past

    def ask(self, question: str, **options: Unpack[AskOptions]) -> Answer:
        """Answer a question that may refer to earlier ones; `options` change the session's for this turn."""
        return self.stream(question, **options).answer

    def stream(self, question: str, **options: Unpack[AskOptions]) -> AnswerStream:
        """As `ask`, but text comes as it is written."""
        from vidllm.engine import generate

        asked = self.look_at(question, **options)
        if self._running is not None:
            self._running.close()  # an answer left half-written: what it would have read next is given up
        turn = self._read(asked)
        tell(self._progress, "answer")
        running = generate(self._model.lmm, turn.past.state, asked.generation)
        self._running = iter(running)
        return AnswerStream(self._running, asked.look.clips, lambda: self._finish(turn, running.result))

    def look_at(self, question: str, **options: Unpack[AskOptions]) -> Asked:
        """Plan and decode what the question is shown, and lay out its prompt; the model has not read it yet."""
        check_question(question)
        look_options, generation = split_options({**self._options, **options})
        look, prompt = self._fitting(question, look_options)
        room = replace(generation, max_new_tokens=prompt.max_new_tokens)
        return Asked(question=question, names=self._names, look=look, prompt=prompt, generation=room)

    def _fitting(self, question: str, options: PlanOptions) -> tuple[_Look, Prompt]:
        """What the question is shown, and its prompt: of fewer frames once the dialogue needs their place.

        Frames whose number the user named are never fewer. Raises BudgetError when nothing more can go.
        """
        check_question_fits(question, self._model.spec, self._model.lmm.tokenizer, options)
        look = self._find_look(question, options)
        try:
            return look, self._write_prompt(question, look, options)
        except BudgetError as error:
            if options.frames is not None or options.fps is not None:
                raise
            for slack in (min(SLACK_TOKENS, room_of(self._model.spec, options).capacity // 4), 0):
                with suppress(BudgetError):
                    look = self._open_look(question, options, slack)
                    return look, self._write_prompt(question, look, options)
            raise error

    def _find_look(self, question: str, options: PlanOptions) -> _Look:
        """What the question is shown: as before, unless its options or the times it names are others."""
        if self._look is not None and self._look.shows(options) and not self._names_other_times(question):
            return self._look
        return self._open_look(question, options)

    def _open_look(self, question: str, options: PlanOptions, slack: int = 0) -> _Look:
        """Plan and open the media anew, beside all that was said, leaving `slack` tokens for what will be."""
        media = self._open_sources()
        tell(self._progress, "look")
        model = self._model.lmm
        stills = [medium for medium in media if isinstance(medium, Image)]
        taken = options.reserve + self._tokens_beside(stills, question) + slack
        known = {clip.info.path: clip.info for clip in self._look.clips} if self._look else {}
        videos = [known.get(str(medium), medium) for medium in media if isinstance(medium, Path)]
        clips = iter(open_clips(videos, question, model.spec, model.tokenizer, replace(options, reserve=taken)))
        shown = tuple(medium if isinstance(medium, Image) else next(clips) for medium in media)
        return _Look(media=shown, options=options, question=question)

    def _names_other_times(self, question: str) -> bool:
        """Whether the question names a time, and not just the times the present frames were chosen for."""
        assert self._look is not None
        options = self._look.options
        if options.policy not in ("auto", "focus"):
            return False
        for clip in self._look.clips:
            start, end = range_of(clip.info, options)
            focus = find_focus(question, min(end, clip.info.duration), start)
            if focus is not None and focus.spans != (clip.focus.spans if clip.focus else ()):
                return True
        return False

    def _open_sources(self) -> tuple[Path | Image, ...]:
        """Local paths of videos, opened pictures; fetched and opened once."""
        if self._opened is None:
            self._opened = tuple(open_source(source, self._progress) for source in self._sources)
        return self._opened

    def _tokens_beside(self, stills: Sequence[Image], question: str) -> int:
        """What the prompt holds beside the videos and the question, to the token: pictures and earlier turns."""
        spec, tokenizer = self._model.spec, self._model.lmm.tokenizer
        said = [Turn(role, text) for turn in self._shown_turns for role, text in zip(ROLES, turn, strict=True)]
        asked = Turn("user", question)
        first, *rest = [*said, asked]
        shown = tuple(shown_still(*still.size, spec) for still in stills)
        whole = lay_out([replace(first, media=shown), *rest], spec, tokenizer)
        return whole.text_tokens - lay_out([asked], spec, tokenizer).text_tokens + tokens_of_stills(stills, spec)

    @property
    def _shown_turns(self) -> tuple[tuple[str, str], ...]:
        """The earlier turns as far as the model is shown them."""
        return self._turns if self._model.spec.dialogue else ()

    def _write_prompt(self, question: str, look: _Look, options: PlanOptions) -> Prompt:
        """The whole dialogue with `question` at its end; a reply whose room nobody named gives way to it.

        At the smallest RoPE factor that does; in a talk, at one that will do for the next turns too, because another
        factor means reading the video again. So a talk keeps the factor it has, and takes some slack as soon as it
        needs one at all; a single question never does. Raises BudgetError when the dialogue has outgrown the model.
        """
        said = [Message(role, text) for turn in self._shown_turns for role, text in zip(ROLES, turn, strict=True)]
        first, *rest = [*said, Message("user", question)]
        messages = [replace(first, media=look.media), *rest]
        model, most, room = self._model.lmm, options.rope_max, options.max_new_tokens
        prompt = build_prompt(
            messages, model.spec, model.tokenizer, max_new_tokens=room, shrink=room is None, rope_max=most
        )
        kept = self._factor if look is self._look else 1.0
        if self._single or prompt.rope_factor <= 1.0 == kept:
            return prompt
        slack = SLACK_TOKENS / model.spec.context
        factor = kept if prompt.rope_factor <= kept else prompt.rope_factor + slack
        return replace(prompt, rope_factor=min(factor, most))

    def _read(self, asked: Asked) -> _Turn:
        from vidllm.engine import read, shared_prefix

        tell(self._progress, "encode")
        past, self._past = self._past, None
        if past is not None and not shared_prefix(past, asked.prompt):
            past = None  # its memory is free before the new prompt takes its own
        began = time.perf_counter()
        self._past = read(self._model.lmm, asked.prompt, cache=self._model.cache, past=past)
        return _Turn(asked=asked, is_new_look=asked.look is not self._look, past=self._past,
                     read_seconds=time.perf_counter() - began)  # fmt: skip

    def _finish(self, turn: _Turn, generated: Generated) -> Answer:
        """Report the turn and remember it; Ctrl-C before it was reported leaves it to be reported once more."""
        answer = turn.asked.answered(self._model.name, generated, _timing(turn, generated.seconds))
        self._past = turn.past.after(generated)
        self._look, self._factor = turn.asked.look, turn.past.state.rope_factor
        self._turns += ((turn.asked.question, generated.text),)
        return answer


def _timing(turn: _Turn, generate_seconds: float) -> Timing:
    """Seconds by stage; a look that was there already cost nothing, nor did what was read before."""
    state, reused = turn.past.state, turn.past.reused
    return timing_of(
        turn.asked.look.clips if turn.is_new_look else (),
        encode=0.0 if reused else state.encode_seconds,
        prefill=turn.read_seconds if reused else state.prefill_seconds,
        generate=generate_seconds,
    )
