"""What `plan` gives back of a video or a picture: what `ask` would show and what it costs, no weight loaded.

Videos go the road of `clip.plan_video`, pictures are counted as the images they are asked as.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vidllm.advice import Wish, ways_out
from vidllm.budget import PlannedFrame, TokenPlan, plan_tokens
from vidllm.checks import check_text
from vidllm.clip import plan_video
from vidllm.errors import BudgetError
from vidllm.model.chat import AnyTokenizer, count_text_tokens
from vidllm.model.stills import shown_still, still_tiles, still_tokens
from vidllm.planning import PlanOptions, room_of
from vidllm.prompt import check_question_fits, over_line
from vidllm.sources import Progress, Source, name_of, open_source
from vidllm.video.info import VideoInfo
from vidllm.video.timecode import Focus
from vidllm.visuals import Image

if TYPE_CHECKING:
    from vidllm.model.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class SeenVideo:
    """The clip (or still image: no duration, no rate, one frame) an answer or a plan is about."""

    path: str
    """As the user named it: a file, a URL."""
    duration: float
    """Seconds."""
    width: int
    height: int
    """Pixels as shown: after rotation, with square pixels."""
    fps: float
    frames: int
    """Frames in the file, not frames seen."""

    @classmethod
    def of(cls, name: str, medium: VideoInfo | Image) -> SeenVideo:
        """What `medium` is, under the name the user gave it."""
        if isinstance(medium, VideoInfo):
            return cls(path=name, duration=medium.duration, width=medium.width, height=medium.height, fps=medium.fps,
                       frames=medium.num_frames)  # fmt: skip
        height, width = medium.pixels.shape[:2]
        return cls(path=name, duration=0.0, width=width, height=height, fps=0.0, frames=1)


@dataclass(frozen=True, kw_only=True)
class Plan(TokenPlan):
    """A look at a video or a picture, planned and not yet taken; `to_dict` is the Plan JSON, its keys are here too."""

    video: SeenVideo
    info: VideoInfo | None = None
    """The clip's packet index; None for a picture."""
    focus: Focus | None = None
    """The times the question names."""
    subtitles: tuple[str, ...] = ()
    """The lines shown, ready to print."""
    tiles: tuple[int, int] | None = None
    """(rows, cols) of tiles that a picture is cut into; None for a video, and for a picture that is not cut."""

    def to_dict(self) -> dict[str, Any]:
        """Plan JSON."""
        return {"video": dataclasses.asdict(self.video), **super().to_dict()}


def plan_source(
    source: Source, question: str, spec: ModelSpec, tokenizer: AnyTokenizer | None,
    options: PlanOptions | None = None, *, progress: Progress | None = None,
) -> Plan:  # fmt: skip
    """What `ask` would show of `source` and what it would cost. `tokenizer` None counts text roughly.

    Raises:
        ConfigError: the question is no text.
        VideoError: it can not be fetched or read, or the range holds no frame.
        BudgetError: it does not fit; the message holds the sum.
    """
    check_text("the question", question)
    options = options or PlanOptions()
    check_question_fits(question, spec, tokenizer, options)
    name, medium = name_of(source), open_source(source, progress)
    if isinstance(medium, Image):
        video = SeenVideo.of(name, medium)
        tiles = still_tiles(video.height, video.width, spec, single=True)
        plan = _plan_still(medium, tiles is not None, question, spec, tokenizer, options)
        return Plan(**vars(plan), video=video, tiles=tiles)
    planned = plan_video(medium, question, spec, tokenizer, options)
    return Plan(
        **vars(planned.plan), video=SeenVideo.of(name, planned.info), info=planned.info, focus=planned.focus,
        subtitles=planned.subtitles,
    )  # fmt: skip


def tokens_of_stills(stills: Sequence[Image], spec: ModelSpec) -> int:
    """Visual tokens of a prompt's pictures."""
    sizes = [still.pixels.shape for still in stills]
    return sum(still_tokens(height, width, spec, single=len(stills) == 1) for height, width, _ in sizes)


def _plan_still(
    still: Image, is_cut: bool, question: str, spec: ModelSpec, tokenizer: AnyTokenizer | None, options: PlanOptions
) -> TokenPlan:
    """The sum of a prompt of one picture, as `build_prompt` makes it."""
    visual, shown = tokens_of_stills((still,), spec), shown_still(*still.size, spec)

    def count(wish: Wish) -> int:
        return options.reserve + count_text_tokens(wish.question, spec, tokenizer, shown)

    def short(wish: Wish) -> int:
        room = room_of(wish.spec, wish.options)
        return max(visual + count(wish) + room.least_reply - room.capacity, 0)

    wish = Wish(question=question, spec=spec, options=options)
    text, room = count(wish), room_of(spec, options)
    fit = None if is_cut or spec.kind == "native" else spec.fit
    try:
        frame = PlannedFrame(None, 1, visual)
        return plan_tokens((frame,), text_tokens=text, room=room, fit=fit, reader="", notes=still_notes(options))
    except BudgetError as error:
        line = over_line(visual, text, room.least_reply, room)
        raise BudgetError(line, lambda: ways_out(wish, short), error.short) from None


MOVING = {
    "start": "--from", "end": "--to", "frames": "--frames", "fps": "--fps", "policy": "--policy", "stride": "--stride",
    "fit": "--fit", "snap": "--snap", "reader": "--reader",
}  # fmt: skip
"""Options that a picture can not follow."""


def still_notes(options: PlanOptions) -> tuple[str, ...]:
    """A word about the wishes that mean nothing for a picture: what the user asked for is not ignored in silence."""
    plain = PlanOptions()
    said = [flag for name, flag in MOVING.items() if getattr(options, name) != getattr(plain, name)]
    return (f"a picture is shown whole, as one frame: no effect of {', '.join(said)}",) if said else ()
