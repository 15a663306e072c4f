"""A model in this process as a judge: any that vidllm loads; with `watch` it sees the clip itself."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vidllm.budget import Geometry
from vidllm.clip import PlanOptions, open_clip
from vidllm.errors import ConfigError
from vidllm.feedback.asked_judge import REPLY_TOKENS, AskedJudge, Judging
from vidllm.feedback.judge import Case
from vidllm.feedback.rubric import REMINDER, compare_prompt, score_prompt
from vidllm.model.chat import count_text_tokens
from vidllm.planning import room_of
from vidllm.video.guard import DEFAULT_LIMITS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vidllm.ask import VideoModel
    from vidllm.clip import Clip

LOOK = PlanOptions(max_new_tokens=REPLY_TOKENS, guard=DEFAULT_LIMITS)


def open_local_judge(
    load: Callable[[], VideoModel], *, judging: Judging = "scores", watch: bool = False
) -> AskedJudge:
    """The model that `load` gives. Raises what loading raises, and ConfigError where it has no room to judge in."""
    from vidllm.corpus.local import LocalCaptioner  # brings torch

    model = load()
    _check_room(model, judging, watch)

    def look(case: Case, prompts: Sequence[str]) -> Clip | None:
        """The clip as for its question, in the room that the longest of the prompts leaves, asked a second time."""
        if case.video is None:
            return None
        longest = max(_words(model, prompt + REMINDER) for prompt in prompts)
        reserve = max(longest - _words(model, case.question), 0)
        return open_clip(case.video, case.question, model.spec, model.lmm.tokenizer, replace(LOOK, reserve=reserve))

    return AskedJudge(LocalCaptioner(model), judging=judging, watch=look if watch else None)


def _check_room(model: VideoModel, judging: Judging, watch: bool) -> None:
    """Raise ConfigError where not even an empty answer to no question could be judged: every verdict would fail."""
    nothing = Case(question="", answer="")
    bare = score_prompt(nothing, watched=watch) if judging == "scores" else compare_prompt(nothing, "", watched=watch)
    words, room = _words(model, bare + REMINDER), room_of(model.spec, LOOK)
    geometry = model.spec.geometry
    frame = geometry.tokens(model.spec.uniform_stride) if watch and isinstance(geometry, Geometry) else int(watch)
    if not room.fits(words + frame):
        shown = f" + {frame} of one frame" if watch else ""
        more = ", or do not let it watch" if watch else ""
        raise ConfigError(f"{model.name}: too short a context to judge: {words} tokens of instructions{shown} + "
                          f"{REPLY_TOKENS} reply, over context {room.context} x RoPE {room.largest_factor:g} = "
                          f"{room.capacity}; name a judge with a longer one{more}")  # fmt: skip


def _words(model: VideoModel, text: str) -> int:
    return count_text_tokens(text, model.spec, model.lmm.tokenizer)
