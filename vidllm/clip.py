"""The one road: path -> probe -> focus -> sample -> plan -> decode -> Clip. Ask, caption, teach and serve all walk it.

Until the last step everything is integers and times: `plan_video` says exactly what `open_clip` will show, what it
costs and whether it fits, without loading a weight, and without decoding a frame beyond the glances of `change`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vidllm.advice import Wish, shortage, ways_out
from vidllm.budget import LEAST_REPLY_TOKENS, REPLY_TOKENS, TokenPlan
from vidllm.errors import BudgetError
from vidllm.model.chat import AnyTokenizer
from vidllm.planning import Planner, room_of
from vidllm.planning import PlanOptions as PlanOptions
from vidllm.reads import Reads, read_shown
from vidllm.video.decode import FrameSet
from vidllm.video.info import VideoInfo, probe
from vidllm.video.timecode import Focus

if TYPE_CHECKING:
    from torch import Tensor

    from vidllm.model.spec import ModelSpec
    from vidllm.video.guard import Limits

Video = str | Path | VideoInfo


@dataclass(frozen=True, kw_only=True)
class ClipPlan:
    """A look at a video, planned and not yet taken. `subtitles` are the lines shown, ready to print."""

    info: VideoInfo
    plan: TokenPlan
    focus: Focus | None
    subtitles: tuple[str, ...] = ()
    probe_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Clip(ClipPlan):
    """A video as planned and really seen. `frames.pts_seconds[i]` is the true time of `plan.frames[i]`.

    `frames.pixels` is uint8 (N, H, W, 3) at `plan.frame_size`: scaled for the tile, not yet padded or cropped (`prompt`
    does that), so that a person can be shown what the model saw.
    """

    frames: FrameSet
    decode_seconds: float = 0.0
    key: str = ""
    """Names this look at this file for `Known`; empty where nobody was asked."""
    features: tuple[Tensor, ...] | None = None
    """Each frame, or all of a native family's clip, encoded, where that is known; `frames.pixels` is then (N, 0, 0, 3),
    or native nothing but a size."""


@dataclass(frozen=True, kw_only=True)
class Recalled:
    """What is known of a look at a clip: its name, and the rest if it was kept."""

    key: str = ""
    frames: FrameSet | None = None
    features: tuple[Tensor, ...] | None = None


class Known(Protocol):
    """Looks at clips that were taken before: what was decoded and encoded then need not be again."""

    def recall(self, planned: ClipPlan, spec: ModelSpec, options: PlanOptions) -> Recalled:
        """What is known of exactly this look."""


def plan_video(
    video: Video, question: str, spec: ModelSpec, tokenizer: AnyTokenizer | None, options: PlanOptions | None = None
) -> ClipPlan:
    """What would be shown of `video` for `question`, and what it costs; the policy `change` glances at it for that.

    `tokenizer` None counts text roughly (for `bare_spec`, which has no tokenizer).

    Raises:
        VideoError: the clip can not be read, or its range holds no frame.
        BudgetError: it does not fit; the message holds the sum and two options that make it fit.
    """
    return plan_clips((video,), question, spec, tokenizer, options)[0]


def open_clip(
    video: Video, question: str, spec: ModelSpec, tokenizer: AnyTokenizer | None,
    options: PlanOptions | None = None, *, known: Known | None = None,
) -> Clip:  # fmt: skip
    """`plan_video`, then the frames. The plan is told the times really decoded, and counts its timestamps again.

    What `known` recalls is not decoded. Raises as `plan_video`, and what the reader raises.
    """
    return open_clips((video,), question, spec, tokenizer, options, known=known)[0]


def plan_clips(
    videos: Sequence[Video], question: str, spec: ModelSpec, tokenizer: AnyTokenizer | None,
    options: PlanOptions | None = None,
) -> tuple[ClipPlan, ...]:  # fmt: skip
    """`plan_video` for several videos of one prompt: each within an equal share of what the reply leaves."""
    return tuple(planned for planned, _ in _plan(videos, question, spec, tokenizer, options or PlanOptions()))


def open_clips(
    videos: Sequence[Video], question: str, spec: ModelSpec, tokenizer: AnyTokenizer | None,
    options: PlanOptions | None = None, *, known: Known | None = None,
) -> tuple[Clip, ...]:  # fmt: skip
    """Several videos for one prompt, each as `plan_clips` plans it; no frame is decoded before all of them fit."""
    both = _plan(videos, question, spec, tokenizer, options or PlanOptions())
    return tuple(_opened(planned, planner, known) for planned, planner in both)


def _opened(planned: ClipPlan, planner: Planner, known: Known | None) -> Clip:
    began = time.perf_counter()
    recalled = known.recall(planned, planner.spec, planner.options) if known is not None else Recalled()
    frames = recalled.frames if recalled.frames is not None else read_planned(planned, planner.options)
    decode_seconds = time.perf_counter() - began
    seen = replace(planned, plan=planner.seen(planned.plan, frames))
    return Clip(
        **vars(seen), frames=frames, decode_seconds=decode_seconds, key=recalled.key, features=recalled.features
    )


def _plan(
    videos: Sequence[Video], question: str, spec: ModelSpec, tokenizer: AnyTokenizer | None, options: PlanOptions
) -> list[tuple[ClipPlan, Planner]]:
    probed = [_probed(video, options.guard) for video in videos]
    infos = [info for info, _ in probed]
    wish, reads = Wish(question=question, spec=spec, options=options), Reads(options.guard)
    try:
        both = _planned(infos, wish, tokenizer, reads)
        return [
            (replace(planned, probe_seconds=seconds), planner)
            for (planned, planner), (_, seconds) in zip(both, probed, strict=True)
        ]
    except BudgetError as error:
        if not error.short:
            raise  # no sum that more room would change
        frames = max(len(info.pts_seconds) for info in infos)
        raise BudgetError(
            error.line,
            lambda: ways_out(
                wish, lambda w: shortage(lambda: _planned(infos, w, tokenizer, reads)), frames=frames,
                videos=len(infos),
            ),
            error.short,
        ) from None


def _probed(video: Video, guard: Limits | None) -> tuple[VideoInfo, float]:
    """The clip's index, and the seconds it took."""
    began = time.perf_counter()
    info = video if isinstance(video, VideoInfo) else probe_video(video, guard)
    return info, time.perf_counter() - began


def _planned(
    infos: Sequence[VideoInfo], wish: Wish, tokenizer: AnyTokenizer | None, reads: Reads
) -> list[tuple[ClipPlan, Planner]]:
    """Each video under an equal share of what there is."""

    def planned(options: PlanOptions) -> list[tuple[ClipPlan, Planner]]:
        shared = _shared(len(infos), wish.spec, options)
        planners = [Planner.of(info, wish.question, wish.spec, tokenizer, shared, reads) for info in infos]
        return [
            (ClipPlan(info=p.info, plan=p.plan(), focus=p.focus, subtitles=p.subtitles), p) for p in planners
        ]  # fmt: skip

    if len(infos) < 2 or wish.options.max_new_tokens is not None:
        return planned(wish.options)
    try:  # one reply for all: it must not shrink in each of them by the same tokens
        return planned(replace(wish.options, max_new_tokens=REPLY_TOKENS))
    except BudgetError:
        return planned(replace(wish.options, max_new_tokens=LEAST_REPLY_TOKENS))


def _shared(videos: int, spec: ModelSpec, options: PlanOptions) -> PlanOptions:
    """The options of one of so many videos: what the others may take is spoken for."""
    room = room_of(spec, options)
    share = -(-max(room.capacity - options.reserve - room.reply, 0) // max(videos, 1))
    return replace(options, reserve=options.reserve + max(videos - 1, 0) * share)


def probe_video(video: str | Path, guard: Limits | None) -> VideoInfo:
    """The clip's packet index; with `guard` read in a child that can be killed. Raises VideoError."""
    if guard is None:
        return probe(video)
    from vidllm.video.guard import probe_guarded

    return probe_guarded(video, guard)


def read_planned(planned: ClipPlan, options: PlanOptions) -> FrameSet:
    """The frames of a plan, which knows already where key frames stand in; read as the options say. Raises what the
    reader raises.
    """
    plan = planned.plan
    return read_shown(planned.info, plan.times, options.guard, size=plan.frame_size, reader=options.reader)
