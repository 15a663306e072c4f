"""How much of its media a row shows, settled as for asking; how long the row is, before a pixel is decoded. No torch.

A user who asks the row's questions is shown certain frames; the row shows the same ones. Only where the answers are
longer than the room that asking keeps for a reply do the frames give way to them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from vidllm.budget import LEAST_REPLY_TOKENS, REPLY_TOKENS
from vidllm.clip import ClipPlan, PlanOptions, Video, plan_clips
from vidllm.errors import BudgetError
from vidllm.model.chat import AnyTokenizer, count_text_tokens, lay_out_spoken
from vidllm.model.chat import Turn as ChatTurn
from vidllm.model.media import Shown
from vidllm.model.spec import ModelSpec
from vidllm.model.stills import shown_still, still_tokens
from vidllm.planning import room_of
from vidllm.train.batches import View
from vidllm.train.row import Conversation, TrainRow, Turn
from vidllm.video.timecode import find_focus

T = TypeVar("T")
Size = tuple[int, int]
"""Of a picture: (height, width) in pixels."""
NOTHING: Mapping[str, Sequence[Shown]] = {"image": (), "video": ()}
_FRAME = Shown(kind="video", times=(0.0,))
ANY_DURATION = 1e6
"""Seconds: whether a question names a time does not depend on a clip's length."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a row's clips are opened for: `question` (the times it names are its focus) and the room they may take.

    `rest` are the text tokens beyond one prompt with that question: answers, later turns. `stills` are the visual
    tokens of its pictures.
    """

    question: str
    rest: int
    stills: int

    def within(self, plan: PlanOptions, take: Callable[[PlanOptions], T]) -> T:
        """`take` under the roomiest options that the rest of the row leaves. BudgetError when none do."""
        *wider, tightest = self._options(plan)
        for options in wider:
            try:
                return take(options)
            except BudgetError:
                continue
        return take(tightest)

    def _options(self, plan: PlanOptions) -> list[PlanOptions]:
        """As in asking when the answer is short; frames the user named are never fewer for an answer's sake."""
        plan = replace(plan, reserve=plan.reserve + self.stills)
        tight = replace(plan, max_new_tokens=self.rest)
        if plan.frames is not None or plan.fps is not None:
            return [tight]
        if self.rest <= (plan.max_new_tokens or LEAST_REPLY_TOKENS):
            return [plan]
        return [replace(plan, max_new_tokens=max(self.rest, plan.max_new_tokens or REPLY_TOKENS)), tight]


def look_of(
    turns: Sequence[Turn], answers: Sequence[str], stills: Sequence[Size], spec: ModelSpec, tokenizer: AnyTokenizer
) -> Look:
    """The look of a conversation whose pictures have these sizes, in order. After it one of `answers` may be said."""
    question = "\n".join(turn.text for turn in turns if turn.role == "user")
    # A video among words cuts them: there the tokens beside the videos are told with a frame of each on both sides.
    among = any(turn.at for turn in turns)
    videos = [_FRAME for turn in turns for medium in turn.media if among and medium.kind == "video"]
    shown = {"image": [shown_still(*size, spec) for size in stills], "video": videos}
    text = _text_tokens(turns, answers, shown, spec, tokenizer)
    single = len(stills) == 1
    return Look(
        question=question, rest=max(text - count_text_tokens(question, spec, tokenizer, *videos), 1),
        stills=sum(still_tokens(*size, spec, single=single) for size in stills),
    )  # fmt: skip


def same_look(
    row: Conversation, question: str, plan: PlanOptions, *, rest: int, length: int, spec: ModelSpec
) -> Hashable:
    """Equal for rows that see the same frames at the same positions: those of the same media behind the same words,
    unless the times that the question names pick the frames, answers (`rest`, see `Look`) that are too long for a
    common look, or the row's own RoPE factor, which follows from its `length` where that is above the context.

    Answers press on frames only where room is short: a look that gave some up for them fills more than half of it.
    """
    said = tuple((turn.role, turn.text, len(turn.media), turn.at) for turn in _before_the_last_shown(row.turns))
    media = (said, *((medium.kind, medium.path) for medium in row.media)) if row.media else row.origin
    focused = plan.policy in ("auto", "focus") and find_focus(question, ANY_DURATION) is not None
    named = plan.frames is not None or plan.fps is not None
    short = length + (plan.max_new_tokens or REPLY_TOKENS) > room_of(spec, plan).capacity / 2
    pressed = short and not named and rest > (plan.max_new_tokens or LEAST_REPLY_TOKENS)
    return media, question if focused else "", rest if pressed else 0, length if length > spec.context else 0


def shown_in(row: TrainRow, length: int, spec: ModelSpec, tokenizer: AnyTokenizer, plan: PlanOptions) -> View:
    """What a row of `length` tokens shows, and what that takes of it, stamps included; nothing is opened for it. What
    words to learn stand before is shared with nobody, and counts as the row's own.
    """
    question = "\n".join(turn.text for turn in row.turns if turn.role == "user")
    text = _text_tokens(row.turns, (), NOTHING, spec, tokenizer)
    rest = text - count_text_tokens(question, spec, tokenizer)
    taught_before = any(turn.role == "assistant" for turn in _before_the_last_shown(row.turns))
    look = same_look(row, question, plan, rest=rest, length=length, spec=spec)
    return View(look, 0 if taught_before else length - text)


def _before_the_last_shown(turns: Sequence[Turn]) -> Sequence[Turn]:
    """What is said before the last medium: the turns before that which shows it, and its words as far as there."""
    last = max((place for place, turn in enumerate(turns) if turn.media), default=0)
    return [*turns[:last], *(replace(turn, text=turn.text[: turn.at[-1]]) for turn in turns[last:][:1] if turn.at)]


def count_row(
    turns: Sequence[Turn], videos: Sequence[Video], stills: Sequence[Size], spec: ModelSpec, tokenizer: AnyTokenizer,
    plan: PlanOptions, *, answers: Sequence[str] = (),
) -> int:  # fmt: skip
    """Tokens of the row as it will be learnt from, every visual token included; with `answers`, with the longest.

    `videos` (probed or paths) and `stills` are its media in order.

    Raises:
        VideoError: a clip can not be planned.
        BudgetError: the row does not fit the model's context; nothing would be cut.
    """
    look = look_of(turns, answers, stills, spec, tokenizer)
    clips: tuple[ClipPlan, ...] = ()
    if videos:
        clips = look.within(plan, lambda options: plan_clips(videos, look.question, spec, tokenizer, options))
    shown = {"image": [shown_still(*size, spec) for size in stills], "video": [_shown(clip) for clip in clips]}
    text = _text_tokens(turns, answers, shown, spec, tokenizer)
    visual = look.stills + sum(clip.plan.video_tokens for clip in clips)
    room = room_of(spec, plan)
    if visual + text > room.capacity:
        raise BudgetError(
            f"{visual} visual + {text} text = {visual + text} tokens, over context {spec.context} x RoPE "
            f"{room.largest_factor:g} = {room.capacity}"
        )
    return visual + text


def _shown(clip: ClipPlan) -> Shown:
    return Shown(kind="video", times=clip.plan.times, duration=clip.info.duration, subtitles=clip.subtitles)


def _text_tokens(
    turns: Sequence[Turn], answers: Sequence[str], shown: Mapping[str, Sequence[Shown]], spec: ModelSpec,
    tokenizer: AnyTokenizer,
) -> int:  # fmt: skip
    """Text tokens of the conversation, ended by the longest answer; kinds of media that `shown` lacks are left out."""
    waiting = {kind: iter(media) for kind, media in shown.items()}
    said = []
    for turn in turns:
        media = [next(waiting[medium.kind], None) for medium in turn.media]
        lead = len(media) - len(turn.at)
        at = tuple(place for place, medium in zip(turn.at, media[lead:], strict=True) if medium is not None)
        said.append(ChatTurn(turn.role, turn.text, tuple(medium for medium in media if medium is not None), at))
    if not answers:
        return lay_out_spoken(said, spec, tokenizer)[0].text_tokens
    ends = [[*said, ChatTurn("assistant", answer)] for answer in answers]
    return max(lay_out_spoken(whole, spec, tokenizer)[0].text_tokens for whole in ends)
