"""A model in this process as a judge: any that vidllm loads; with `watch` it sees the clip itself.

It is loaded with the first answer it is to judge: other pairs of the same verdicts, or a run that has all of them, load
no model.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vidllm.clip import PlanOptions, open_clip
from vidllm.corpus.local import LocalCaptioner, identity
from vidllm.corpus.places import chosen
from vidllm.errors import ConfigError
from vidllm.feedback.asked_judge import REPLY_TOKENS, AskedJudge, Judging
from vidllm.feedback.judge import Case
from vidllm.feedback.rubric import REMINDER, compare_prompt, score_prompt
from vidllm.geometry import Geometry
from vidllm.model.chat import count_text_tokens
from vidllm.model.families import load_tokenizer, read_spec
from vidllm.model.fingerprint import fingerprint
from vidllm.model.resolve import model_name, resolve_model
from vidllm.planning import room_of
from vidllm.video.guard import DEFAULT_LIMITS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from vidllm.ask import VideoModel
    from vidllm.clip import Clip
    from vidllm.corpus.captioner import Said
    from vidllm.model.spec import ModelSpec
    from vidllm.options import GenerationOptions

LOOK = PlanOptions(max_new_tokens=REPLY_TOKENS, guard=DEFAULT_LIMITS)


def open_local_judge(
    name: str, load: Callable[[], VideoModel], *, judging: Judging = "scores", watch: bool = False,
    device: str | None = None, dtype: str | None = None,
) -> AskedJudge:  # fmt: skip
    """The model of that name, which `load` gives on this device in these numbers.

    Raises ModelError, and ConfigError where it has no room to judge in: both before its weights are fetched.
    """
    spec = read_spec(resolve_model(name, weights=False))
    tokenizer = load_tokenizer(spec.folder)
    _check_room(name, spec, judging, watch)

    def look(video: Path, question: str, prompts: Sequence[str]) -> Clip:
        """The clip as for its question, in the room that the longest of the prompts leaves, asked a second time."""
        longest = max(_words(spec, prompt + REMINDER) for prompt in prompts)
        reserve = max(longest - _words(spec, question), 0)
        return open_clip(video, question, spec, tokenizer, replace(LOOK, reserve=reserve))

    told = identity(fingerprint(resolve_model(name)), spec, chosen(device, dtype)[1], None, 0)
    later = _Later(model=model_name(name), fingerprint=told, spec=spec, load=load)
    return AskedJudge(later, judging=judging, watch=look if watch else None)


@dataclass(kw_only=True)
class _Later:
    """A `LocalCaptioner` that loads its model when it is first asked."""

    model: str
    fingerprint: str
    spec: ModelSpec
    load: Callable[[], VideoModel]
    name: str = LocalCaptioner.name
    loading: bool = False
    _there: LocalCaptioner | None = field(default=None, init=False)

    def submit(self, ticket: int, clip: Clip | None, prompt: str, options: GenerationOptions) -> None:
        """See `Captioner`. Raises what loading raises."""
        self._there = self._there or LocalCaptioner(self.load())
        self._there.submit(ticket, clip, prompt, options)

    def poll(self, wait: float) -> list[Said]:
        """See `Captioner`."""
        return [] if self._there is None else self._there.poll(wait)

    def room(self) -> int:
        """See `Captioner`."""
        return 1 if self._there is None else self._there.room()

    def close(self) -> None:
        """See `Captioner`."""
        if self._there is not None:
            self._there.close()


def _check_room(name: str, spec: ModelSpec, judging: Judging, watch: bool) -> None:
    """Raise ConfigError where not even an empty answer to no question could be judged: every verdict would fail."""
    nothing = Case(question="", answer="")
    bare = score_prompt(nothing, watched=watch) if judging == "scores" else compare_prompt(nothing, "", watched=watch)
    words, room = _words(spec, bare + REMINDER), room_of(spec, LOOK)
    frame = spec.geometry.tokens(spec.uniform_stride) if watch and isinstance(spec.geometry, Geometry) else int(watch)
    if not room.fits(words + frame):
        shown = f" + {frame} of one frame" if watch else ""
        more = ", or do not let it watch" if watch else ""
        raise ConfigError(f"{name}: too short a context to judge: {words} tokens of instructions{shown} + "
                          f"{REPLY_TOKENS} reply, over context {room.context} x RoPE {room.largest_factor:g} = "
                          f"{room.capacity}; name a judge with a longer one{more}")  # fmt: skip


def _words(spec: ModelSpec, text: str) -> int:
    return count_text_tokens(text, spec, load_tokenizer(spec.folder))
