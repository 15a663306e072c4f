"""Messages and clips -> Prompt: every token id is born here, once, together with the visuals it stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, TypeVar

from vidllm.advice import Wish, shortage, ways_out
from vidllm.budget import Room, limit_line
from vidllm.clip import Clip
from vidllm.errors import BudgetError, ConfigError, Way
from vidllm.geometry import NativeGeometry
from vidllm.model.chat import AnyTokenizer, Layout, Turn, count_tokens, lay_out, lay_out_spoken
from vidllm.model.media import Shown
from vidllm.model.stills import shown_still
from vidllm.planning import PlanOptions, room_of
from vidllm.visuals import Draft, Image, Visual, drafts_of

if TYPE_CHECKING:
    from vidllm.model.spec import ModelSpec

T = TypeVar("T")
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn. `media` stand before the text, in order; the last of them where `at` says."""

    role: Role
    text: str
    media: tuple[Clip | Image, ...] = ()
    at: tuple[int, ...] = ()
    """As `model.chat.Turn.at`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """What a model is fed. `input_ids` holds `spec.image_token_id` once for every visual token.

    Native families: the ids their own processor would make (`spec.video_token_id` for video where they have one,
    `spec.row_ends` among the visual tokens).
    """

    input_ids: tuple[int, ...]
    visuals: tuple[Visual, ...]
    rope_factor: float
    spec: ModelSpec
    text: str
    """Readable: one placeholder per frame or image, not one per token."""
    messages: tuple[Message, ...]
    text_tokens: int
    video_tokens: int
    """Visual tokens, still images included."""
    max_new_tokens: int
    """Room kept for the reply under `rope_factor`."""

    @property
    def length(self) -> int:
        """Tokens, visual ones included."""
        return len(self.input_ids)

    @property
    def end_of_visuals(self) -> int:
        """The index behind the last token that stands for a picture; 0 where there is none."""
        visual = self.spec.visual_ids
        return max((i + 1 for i, token in enumerate(self.input_ids) if token in visual), default=0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """A conversation to learn from: ids and loss mask born together."""

    prompt: Prompt
    """The whole conversation, answers included; `max_new_tokens` is 0."""
    trained: tuple[bool, ...]
    """For every input id whether the assistant says it: the words of its answers and the token that ends each."""

    def __post_init__(self) -> None:
        if len(self.trained) != self.prompt.length:
            raise ValueError(f"{len(self.trained)} mask entries for {self.prompt.length} ids")

    @property
    def targets(self) -> int:
        """Ids to learn to say."""
        return sum(self.trained)


def build_prompt(
    messages: Sequence[Message],
    spec: ModelSpec,
    tokenizer: AnyTokenizer,
    *,
    max_new_tokens: int | None = None,
    shrink: bool = False,
    rope_max: float = 2.0,
    reply: bool = True,
) -> Prompt:
    """The conversation as token ids and visuals; with `reply` it ends where the assistant begins.

    The RoPE factor is the smallest under which prompt and reply fit, and never above `rope_max` or what a clip's own
    plan already settled. `max_new_tokens` None keeps what the clips were planned with; with `shrink` the reply takes
    what is left of its usual room instead, as it does in a plan.

    Raises:
        BudgetError: the conversation does not fit; nothing is ever cut.
        IncompleteModel: the model's chat template or tokenizer loses a placeholder.
    """
    layout = lay_out([_turn(m, spec) for m in messages], spec, tokenizer, reply=reply)
    filled = _fill(messages, layout, spec)
    room = _room_of(messages, spec, max_new_tokens, rope_max, shrink=shrink)
    room_left = room.reply_for(len(filled.ids))
    if not room_left:
        options = PlanOptions(max_new_tokens=room.max_new_tokens, rope_max=room.rope_max)
        raise BudgetError(
            over_line(len(filled.ids) - layout.text_tokens, layout.text_tokens, room.least_reply, room),
            lambda: _ways_out(messages, spec, tokenizer, options, reply),
            len(filled.ids) + room.least_reply - room.capacity,
        )
    return _prompt(messages, layout, filled, spec, room, room_left)


def _ways_out(
    messages: Sequence[Message], spec: ModelSpec, tokenizer: AnyTokenizer, options: PlanOptions, reply: bool
) -> tuple[Way, ...]:
    """What makes a conversation fit, its media being as they are."""
    *earlier, last = messages

    def short(wish: Wish, before: Sequence[Message] = earlier, last: Message = last) -> int:
        return shortage(lambda: build_prompt(
            [*before, replace(last, text=wish.question)], wish.spec, tokenizer, reply=reply,
            max_new_tokens=wish.options.max_new_tokens, shrink=wish.options.max_new_tokens is None,
            rope_max=wish.options.rope_max,
        ))  # fmt: skip

    wish = Wish(question=last.text, spec=spec, options=options)
    ways = ways_out(wish, short)
    kept = [message for message in earlier if message.role == "system"]
    media = tuple(medium for message in messages for medium in message.media)
    alone = replace(last, media=media)
    if len(kept) == len(earlier) or short(wish, kept, alone):
        return ways
    return (Way("conversation"), *ways[:1])


def build_example(
    messages: Sequence[Message], spec: ModelSpec, tokenizer: AnyTokenizer, *, rope_max: float = 2.0
) -> Example:
    """A finished conversation to learn from, in the very ids a model is asked with.

    `build_prompt` of the messages before the first answer gives the beginning of it, id by id (before later answers,
    too, where `spec.as_said`). White space around an answer is left out. The RoPE factor is the smallest under which
    the conversation fits; nothing has to be kept free behind it.

    Raises:
        BudgetError: it does not fit; nothing is ever cut.
        ConfigError: there is no answer to learn, or an empty one.
        IncompleteModel: as `build_prompt`; or no token ends an answer.
    """
    answers = [message.text for message in messages if message.role == "assistant"]
    if not answers or not all(answer.strip() for answer in answers):
        raise ConfigError(f"{'an empty answer' if answers else 'no answer'} to learn from; give every turn its words")
    layout, spoken = lay_out_spoken([_turn(m, spec) for m in messages], spec, tokenizer)
    filled = _fill(messages, layout, spec)
    room = _room_of(messages, spec, None, rope_max)
    if len(filled.ids) > room.capacity:
        raise BudgetError(over_line(len(filled.ids) - layout.text_tokens, layout.text_tokens, 0, room))
    said = {i for run in spoken for i in run}
    trained = _repeated([i in said for i in range(len(layout.ids))], layout.slots, filled.runs)
    return Example(prompt=_prompt(messages, layout, filled, spec, room, 0), trained=trained)


@dataclass(frozen=True)
class _Filled:
    """A layout whose placeholders are repeated: its ids, its visuals in their places, and the length of every run."""

    ids: tuple[int, ...]
    visuals: tuple[Visual, ...]
    runs: tuple[int, ...]


def _fill(messages: Sequence[Message], layout: Layout, spec: ModelSpec) -> _Filled:
    media = [medium for message in messages for medium in message.media]
    single = sum(isinstance(m, Image) for m in media) == 1
    drafts = [draft for medium in media for draft in drafts_of(medium, spec, single)]
    runs = tuple(tokens for _, own in drafts for tokens in own)
    grown = accumulate((tokens - 1 for tokens in runs), initial=0)
    starts = [slot + more for slot, more in zip(layout.slots, grown, strict=False)]
    firsts = accumulate((len(own) for _, own in drafts), initial=0)
    visuals = tuple(replace(visual, position=starts[run]) for (visual, _), run in zip(drafts, firsts, strict=False))
    ids = _repeated(layout.ids, layout.slots, runs)
    return _Filled(_with_row_ends(ids, drafts, starts, spec) if spec.row_ends else ids, visuals, runs)


def _with_row_ends(
    ids: Sequence[int], drafts: Sequence[Draft], starts: Sequence[int], spec: ModelSpec
) -> tuple[int, ...]:
    """`ids` with what ends every row, and every picture, in place of the visual token that stands there."""
    geometry, (row_end, picture_end) = spec.geometry, spec.row_ends
    assert isinstance(geometry, NativeGeometry)
    ended, places = list(ids), iter(starts)
    for visual, own in drafts:
        height, width = visual.pixels.shape[1:3]
        row = geometry.row_tokens(width if visual.kind == "video" else geometry.image_size(height, width)[1])
        for tokens, start in zip(own, places, strict=False):
            ended[start + row - 1 : start + tokens : row] = [row_end] * (tokens // row)
            ended[start + tokens - 1] = picture_end
    return tuple(ended)


def _room_of(
    messages: Sequence[Message], spec: ModelSpec, max_new_tokens: int | None, rope_max: float, *, shrink: bool = False
) -> Room:
    """The positions there are, under the factor and, unless it may `shrink`, the reply the clips were planned with."""
    plans = [m.plan for message in messages for m in message.media if isinstance(m, Clip)]
    planned = None if shrink else min((plan.max_new_tokens for plan in plans), default=None)
    return Room(
        context=spec.context, rope_max=max([rope_max, *(plan.rope_factor for plan in plans)]),
        max_new_tokens=max_new_tokens or planned, scalable=spec.rope_scalable,
    )  # fmt: skip


def _prompt(
    messages: Sequence[Message], layout: Layout, filled: _Filled, spec: ModelSpec, room: Room, reply: int
) -> Prompt:
    total = len(filled.ids)
    return Prompt(
        input_ids=filled.ids, visuals=filled.visuals, rope_factor=room.rope_factor(total + reply), spec=spec,
        text=layout.text, messages=tuple(messages), text_tokens=layout.text_tokens,
        video_tokens=total - layout.text_tokens, max_new_tokens=reply,
    )  # fmt: skip


def _turn(message: Message, spec: ModelSpec) -> Turn:
    return Turn(message.role, message.text, tuple(_shown(medium, spec) for medium in message.media), message.at)


def _shown(medium: Clip | Image, spec: ModelSpec) -> Shown:
    if isinstance(medium, Image):
        return shown_still(*medium.size, spec)
    times = tuple(float(t) for t in medium.frames.pts_seconds)
    return Shown(kind="video", times=times, duration=medium.info.duration, subtitles=medium.subtitles)


def _repeated(values: Sequence[T], slots: Sequence[int], runs: Sequence[int]) -> tuple[T, ...]:
    """`values` with the one at every slot repeated as often as its run has tokens."""
    times = dict(zip(slots, runs, strict=True))
    return tuple(value for i, value in enumerate(values) for _ in range(times.get(i, 1)))


def check_question_fits(question: str, spec: ModelSpec, tokenizer: AnyTokenizer | None, options: PlanOptions) -> None:
    """Refuse a question that is too long by itself before anybody looks for times in it or tries looks beside it: of
    a megabyte that takes minutes. Raises BudgetError.
    """
    room = room_of(spec, options)
    if len(question.encode()) <= room.capacity:
        return  # no token is less than a byte
    text = options.reserve + count_tokens(question, tokenizer)
    if text > room.capacity:
        raise BudgetError(over_line(0, text, room.least_reply, room), (Way("question"),), text - room.capacity)


def over_line(visual: int, text: int, reply: int, room: Room) -> str:
    """The sum of a prompt that does not fit."""
    total = visual + text + reply
    limit = limit_line(room.context, room.largest_factor)
    return f"{visual} visual + {text} text + {reply} reply = {total} tokens, over {limit}"
