"""What an ask gives back: the text, the frames it rests on, and every time it names checked against them. No torch."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vidllm.clip import Clip
from vidllm.model.stills import still_tokens
from vidllm.planned import SeenVideo
from vidllm.video.timecode import PAST_END_SECONDS, TimeMention, find_times
from vidllm.visuals import Image

if TYPE_CHECKING:
    from vidllm.engine import FinishReason, Written
    from vidllm.prompt import Prompt

HOLE = 2.0
"""Frames further apart than this many average distances leave a hole: its middle was not looked at."""


@dataclass(frozen=True, kw_only=True)
class SeenFrame:
    """One frame the model saw and the tokens it was given."""

    time: float | None
    """True time in seconds on the viewer's clock; None for a still image."""
    tokens: int
    video: int = 0
    """Which of the videos asked about."""


@dataclass(frozen=True, kw_only=True)
class Cited:
    """A time the answer names, tied to the nearest frame that was seen. See `cite` for when it counts as seen."""

    text: str
    """As the answer spells it."""
    time: float
    """Seconds on the viewer's clock, as `nearest`."""
    seen: bool
    nearest: float | None
    """None when no frame of a video was seen."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens: video + text went in, answer came out; `context` is the model's own, stretched by `rope_factor`."""

    video_tokens: int
    text_tokens: int
    answer_tokens: int
    context: int
    rope_factor: float


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of each stage; 0 for one that a follow-up did not need."""

    probe: float
    decode: float
    encode: float
    prefill: float
    generate: float


def timing_of(clips: Sequence[Clip], *, encode: float, prefill: float, generate: float) -> Timing:
    """Seconds of an answer for which these clips were opened."""
    return Timing(
        probe=sum(clip.probe_seconds for clip in clips), decode=sum(clip.decode_seconds for clip in clips),
        encode=encode, prefill=prefill, generate=generate,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A finished answer; `to_dict` is the Answer JSON, and its keys are here too."""

    text: str
    finish_reason: FinishReason
    model: str
    reader: str
    """Who decoded the frames; several videos read by several readers are joined by "+", "" when only images."""
    videos: tuple[SeenVideo, ...]
    frames: tuple[SeenFrame, ...]
    cited: tuple[Cited, ...]
    usage: Usage
    timing: Timing
    notes: tuple[str, ...] = ()
    """What a user should know: wishes that could not be met, frames that were salvaged."""
    clips: tuple[Clip, ...] = field(default=(), repr=False, compare=False)
    """What was seen, pixels included."""

    @property
    def answer(self) -> str:
        """The text, by the JSON's name."""
        return self.text

    @property
    def video(self) -> SeenVideo | tuple[SeenVideo, ...]:
        """The video asked about, or all of them when there are several."""
        return self.videos[0] if len(self.videos) == 1 else self.videos

    def to_dict(self) -> dict[str, Any]:
        """Answer JSON, seconds to the millisecond.

        About several videos, `video` is a list and every frame says which one it is from.
        """
        several = len(self.videos) > 1
        videos = [_rounded(dataclasses.asdict(video)) for video in self.videos]
        frames = [_rounded(dataclasses.asdict(frame)) for frame in self.frames]
        if not several:
            for frame in frames:
                del frame["video"]
        return {
            "answer": self.text, "finish_reason": self.finish_reason, "model": self.model, "reader": self.reader,
            "video": videos if several else videos[0], "frames": frames,
            "cited": [_rounded(dataclasses.asdict(cited)) for cited in self.cited],
            "usage": dataclasses.asdict(self.usage), "timing": _rounded(dataclasses.asdict(self.timing)),
            "notes": list(self.notes),
        }  # fmt: skip


def report(
    model: str,
    sources: Sequence[str],
    media: Sequence[Clip | Image],
    prompt: Prompt,
    written: Written,
    timing: Timing,
    notes: tuple[str, ...] = (),
) -> Answer:
    """The Answer to `prompt` that was `written`; `sources` name the `media` as the user did."""
    clips = tuple(medium for medium in media if isinstance(medium, Clip))
    seen = [[float(time) for time in clip.frames.pts_seconds] for clip in clips]
    return Answer(
        text=written.text,
        finish_reason=written.finish_reason,
        model=model,
        reader="+".join(dict.fromkeys(clip.frames.reader for clip in clips)),
        videos=tuple(
            SeenVideo.of(source, medium.info if isinstance(medium, Clip) else medium)
            for source, medium in zip(sources, media, strict=True)
        ),
        frames=tuple(_seen_frames(media, prompt)),
        cited=cite(written.text, seen, [clip.info.duration for clip in clips]),
        usage=Usage(
            video_tokens=prompt.video_tokens, text_tokens=prompt.text_tokens, answer_tokens=len(written.token_ids),
            context=prompt.spec.context, rope_factor=prompt.rope_factor,
        ),
        timing=timing,
        notes=notes,
        clips=clips,
    )  # fmt: skip


def _seen_frames(media: Sequence[Clip | Image], prompt: Prompt) -> Iterator[SeenFrame]:
    single = sum(isinstance(medium, Image) for medium in media) == 1
    for index, medium in enumerate(media):
        if isinstance(medium, Clip):
            for time, planned in zip(medium.frames.pts_seconds, medium.plan.frames, strict=True):
                yield SeenFrame(time=float(time), tokens=planned.tokens, video=index)
        else:
            tokens = still_tokens(*medium.size, prompt.spec, single=single)
            yield SeenFrame(time=None, tokens=tokens, video=index)


def cite(text: str, seen: Sequence[Sequence[float]], durations: Sequence[float]) -> tuple[Cited, ...]:
    """Every time `text` names, tied to the nearest of the `seen` frame times (ascending seconds, one list a video).

    A time is seen when a frame lies within half the local distance between frames: the distance of the two frames
    around it (at the ends, of the outermost two), at most twice the average one, so that the middle of a hole left by
    a damaged stretch is not. A time given in whole seconds means that second: 0:30 is [30, 31). Times more than a
    second past the end of every video are never seen.
    """
    return tuple(_cite_one(mention, seen, durations) for mention in find_times(text))


def _cite_one(mention: TimeMention, seen: Sequence[Sequence[float]], durations: Sequence[float]) -> Cited:
    at = mention.seconds
    found = False
    nearest: list[float] = []
    for times, duration in zip(seen, durations, strict=True):
        if times:
            frame = min(times, key=lambda time: _distance(at, time))
            nearest.append(frame)
            found |= at <= duration + PAST_END_SECONDS and _distance(at, frame) <= _reach(at, times)
    best = min(nearest, key=lambda time: _distance(at, time), default=None)
    return Cited(text=mention.text, time=at, seen=found, nearest=best)


def _distance(named: float, frame: float) -> float:
    """Seconds from a frame to a named time; one named in whole seconds means all of that second."""
    if named == int(named) and named <= frame < named + 1:
        return 0.0
    return min(abs(frame - named), abs(frame - named - 1)) if named == int(named) else abs(frame - named)


def _reach(named: float, times: Sequence[float]) -> float:
    """Half the local distance between frames (seconds, ascending), and a millisecond for rounding."""
    if len(times) < 2:
        return 0.001
    right = min(max(bisect.bisect_right(times, named), 1), len(times) - 1)
    average = (times[-1] - times[0]) / (len(times) - 1)
    return min(times[right] - times[right - 1], HOLE * average) / 2 + 0.001


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Floats to the millisecond, which is finer than any clip's clock is told."""
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in values.items()}
