"""What a user may say about an ask: how to look (`PlanOptions`), how to answer (`GenerationOptions`). No torch.

One vocabulary: the keyword arguments of `ask`, the fields of the two dataclasses and the flags of the command line.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from vidllm.checks import check_number, check_switch, check_text, check_whole
from vidllm.clip import PlanOptions
from vidllm.errors import ConfigError
from vidllm.video.timecode import parse_time

if TYPE_CHECKING:
    from vidllm.budget import Fit, Policy
    from vidllm.video.decode import Reader
    from vidllm.video.guard import Limits


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How the next token is chosen and when to stop choosing. Impossible values raise ConfigError."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    """0 is greedy: the likeliest token, always the same answer."""
    top_p: float = 1.0
    """Sample from the fewest tokens that hold this much probability."""
    top_k: int = 0
    """Sample from so many likeliest tokens; 0: from all."""
    seed: int = 0
    """The same seed gives the same sample, on every device."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    stop_on_loop: bool = True
    """End an answer that repeats itself (see `engine.LoopWatch`)."""

    def __post_init__(self) -> None:
        check_whole("max_new_tokens", self.max_new_tokens, 1)
        check_number("temperature", self.temperature, 0)
        check_number("top_p", self.top_p, 0, above=True)
        if self.top_p > 1:
            raise ConfigError(f"top_p is {self.top_p}; use a value in (0, 1], where 1 keeps every token")
        check_whole("top_k", self.top_k, 0)
        check_whole("seed", self.seed, 0)
        check_switch("stop_on_loop", self.stop_on_loop)
        if not isinstance(self.stop, tuple | list):
            raise ConfigError(f"stop must be texts that end the answer, not {self.stop!r}")
        for text in self.stop:
            check_text("a stop text", text)
        if not all(self.stop):
            raise ConfigError("a stop text is empty, it would end every answer before its first letter; leave it out")

    @property
    def notes(self) -> tuple[str, ...]:
        """A word about what can have no effect: greedy choice leaves nothing to cut off."""
        vain = [name for name in ("top_p", "top_k") if getattr(self, name) != getattr(GenerationOptions, name)]
        if self.temperature or not vain:
            return ()
        return (f"the likeliest token is always taken at temperature 0: no effect of {', '.join(vain)}",)


class AskOptions(TypedDict, total=False):
    """Keyword arguments of `ask`, `stream` and `chat`; what each means is said in the two dataclasses."""

    start: float | str | None
    end: float | str | None
    frames: int | None
    fps: float | None
    policy: Policy
    stride: int | None
    rope_max: float
    max_new_tokens: int | None
    reserve: int
    reader: Reader
    subtitles: bool
    fit: Fit | None
    snap: bool
    guard: Limits | None
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: tuple[str, ...] | str
    stop_on_loop: bool


PLAN_FIELDS = tuple(field.name for field in dataclasses.fields(PlanOptions))
GENERATION_FIELDS = tuple(field.name for field in dataclasses.fields(GenerationOptions))


def split_options(options: Mapping[str, Any]) -> tuple[PlanOptions, GenerationOptions]:
    """The two halves of what was said; None is unsaid. `max_new_tokens` belongs to both; unsaid, the plan decides it.

    Raises ConfigError for an unknown word (with the nearest known one) or a time that is none.
    """
    for name in options:
        if name not in PLAN_FIELDS and name not in GENERATION_FIELDS:
            raise ConfigError(f"{name} is no option of ask{_suggestion(name)}")
    plan = {name: options[name] for name in PLAN_FIELDS if options.get(name) is not None}
    for name in ("start", "end"):
        if isinstance(plan.get(name), str):
            plan[name] = parse_time(plan[name])
    words = {name: options[name] for name in GENERATION_FIELDS if options.get(name) is not None}
    if isinstance(words.get("stop"), str):
        words["stop"] = (words["stop"],)
    return PlanOptions(**plan), GenerationOptions(**words)


def check_question(question: object) -> None:
    """Raise ConfigError for a question that is no text, or an empty one."""
    check_text("the question", question)
    if not str(question).strip():
        raise ConfigError('the question is empty; ask something, for example "describe the video."')


def _suggestion(name: str) -> str:
    near = difflib.get_close_matches(name, {*PLAN_FIELDS, *GENERATION_FIELDS}, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(AskOptions.__annotations__)}"
