"""From a number of frames to a plan that fits: policy, range, subtitles, stamps and sizes of one clip; no pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, get_args

import numpy as np

from vidllm.budget import Fit, PlannedFrame, Policy, Room, TokenPlan, composable_frames, native_frames, plan_tokens
from vidllm.checks import check_choice, check_number, check_switch, check_text, check_whole
from vidllm.errors import ConfigError, NoFrames
from vidllm.geometry import Geometry, NativeGeometry
from vidllm.model.chat import AnyTokenizer, count_text_tokens, count_tokens
from vidllm.model.media import Shown
from vidllm.policies import Chosen, Look
from vidllm.video.decode import SNAPPED, FrameSet, Reader, snap_notes, snapped
from vidllm.video.fit import decoded_size
from vidllm.video.info import VideoInfo
from vidllm.video.sampling import SamplePlan, allow_snap, frames_in_range
from vidllm.video.timecode import Focus, find_focus, focus_notes, format_time

if TYPE_CHECKING:
    from vidllm.model.spec import ModelSpec
    from vidllm.reads import Reads
    from vidllm.video.guard import Limits
    from vidllm.video.subtitles import Line


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What a user may say about the look at a clip; None leaves it to the plan. Impossible values raise ConfigError."""

    start: float | None = None
    """Seconds, viewer's clock; the range is half-open [start, end)."""
    end: float | None = None
    frames: int | None = None
    """Exactly so many frames (fewer only when the range holds fewer, and then the plan's notes say so)."""
    fps: float | None = None
    """Frames per second of the range; with `frames` too, whichever gives fewer."""
    policy: Policy = "auto"
    """Who chooses the moments (see `policies`); auto: focus when the question names a time, else uniform."""
    stride: int | None = None
    """Pooling stride of every frame; None: the model's own (fine and coarse)."""
    rope_max: float = 2.0
    """Positions may be stretched to so many contexts; 1: never."""
    max_new_tokens: int | None = None
    """Room for the reply; None: 256, shrinking to 64 when room is short."""
    reserve: int = 0
    """Tokens of the context that are spoken for: earlier turns, other videos of the same prompt."""
    reader: Reader = "auto"
    subtitles: bool = True
    """Show the lines beside the clip or in it that fall into the range, as many as fit."""
    fit: Fit | None = None
    """How frames meet the square tile; None: the model's own."""
    snap: bool = False
    """Let a key frame stand in for a time within half the distance between frames (faster on long clips)."""
    guard: Limits | None = None
    """Read the file in a killable child under these limits; None: in this process (decord always runs guarded)."""

    def __post_init__(self) -> None:
        for name in ("frames", "stride", "max_new_tokens"):
            check_whole(name, getattr(self, name), 1, optional=True)
        check_whole("reserve", self.reserve, 0)
        check_number("start", self.start, 0, optional=True)
        check_number("end", self.end, 0, endless=True, optional=True)
        check_number("fps", self.fps, 0, above=True, optional=True)
        check_number("rope_max", self.rope_max, 1, endless=True)
        check_choice("policy", self.policy, get_args(Policy))
        check_choice("reader", self.reader, get_args(Reader))
        if self.fit is not None:
            check_choice("fit", self.fit, get_args(Fit))
        check_switch("subtitles", self.subtitles)
        check_switch("snap", self.snap)
        if self.guard is not None:
            from vidllm.video.guard import Limits

            if not isinstance(self.guard, Limits):
                raise ConfigError(f"guard must be vidllm.Limits or None, not {self.guard!r}")

    @property
    def look(self) -> str:
        """16 hex digits over what decides which frames are shown, and how; room and limits do not count."""
        unlooked = replace(self, guard=None, max_new_tokens=None, reserve=0)
        return hashlib.blake2b(repr(unlooked).encode(), digest_size=8).hexdigest()


def room_of(spec: ModelSpec, options: PlanOptions) -> Room:
    """The positions this model has under these options."""
    return Room(
        context=spec.context, rope_max=options.rope_max, max_new_tokens=options.max_new_tokens,
        scalable=spec.rope_scalable,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Planner:
    """One clip, one question, one model: from a number of frames to a plan."""

    info: VideoInfo
    spec: ModelSpec
    options: PlanOptions
    look: Look
    focus: Focus | None
    subtitles: tuple[str, ...]
    count_text: Callable[[Sequence[float]], int]
    """Tokens of everything that is text, were frames at these times (seconds) shown."""
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls, info: VideoInfo, question: str, spec: ModelSpec, tokenizer: AnyTokenizer | None, options: PlanOptions,
        reads: Reads,
    ) -> Planner:  # fmt: skip
        """Settle policy, range and notes; nothing is counted yet. ConfigError when the question is no text."""
        check_text("the question", question)
        look, focus, notes = look_at(info, question, options, reads)
        subtitles: tuple[str, ...] = ()
        dropped: tuple[str, ...] = ()
        if options.subtitles:
            most = int(SUBTITLE_SHARE * (room_of(spec, options).capacity - options.reserve))
            lines = reads.lines(info, look.start, look.end)
            subtitles, dropped = _subtitles(lines, focus, most, lambda line: count_tokens(line, tokenizer))

        def count_text(times: Sequence[float]) -> int:
            shown = Shown(kind="video", times=tuple(times), duration=info.duration, subtitles=subtitles)
            return options.reserve + count_text_tokens(question, spec, tokenizer, shown)

        return cls(
            info=info, spec=spec, options=options, look=look, focus=focus, subtitles=subtitles, count_text=count_text,
            notes=(*_unused(spec, options), *_cropped(info, spec, options), *notes, *dropped),
        )

    def plan(self) -> TokenPlan:
        """The frames asked for, or, when no number was, as many as fit."""
        if self.options.frames is not None or self.options.fps is not None:
            return self._best_size(self._moments(self.options.frames))
        moments = self._moments(self._default_frames())
        if self._roomy(moments):
            return self._best_size(moments)
        low, high = 1, len(moments)  # one frame is taken even beside a shorter reply; so many are too many
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._roomy(self._moments(middle)) else (low, middle)
        return self._best_size(self._moments(low))

    def _roomy(self, moments: SamplePlan) -> bool:
        """Whether these fit, at their smallest, beside the whole reply: no default costs the answer its room."""
        times, _ = self._shown(moments)
        frames = self._frames(moments, times, self._sizes(len(times))[-1])
        text = self.count_text(times)
        return room_of(self.spec, self.options).fits(sum(frame.tokens for frame in frames) + text)

    def seen(self, plan: TokenPlan, frames: FrameSet) -> TokenPlan:
        """`plan` with the times that were really decoded, its text counted again under them."""
        times = [float(t) for t in frames.pts_seconds]
        shown = [replace(frame, time=t) for frame, t in zip(plan.frames, times, strict=True)]
        moved = tuple(note for note in plan.notes if note.endswith(SNAPPED))
        again = self._plan_tokens(shown, plan.frame_size, plan.tolerance, self.count_text(times), moved)
        return replace(again, reader=frames.reader, notes=(*again.notes, *frames.notes))

    def _default_frames(self) -> int | None:
        """None lets the focus layout say; slowfast lives on many cheap frames, so it takes twice as many."""
        most = self.spec.default_frames
        return {"focus": None, "slowfast": 2 * most}.get(self.look.policy, most)

    def _moments(self, frames: int | None) -> SamplePlan:
        moments = self.look.moments(frames)
        return allow_snap(moments) if self.options.snap else moments

    def _shown(self, moments: SamplePlan) -> tuple[tuple[float, ...], tuple[str, ...]]:
        """The times these moments show, those of key frames where they may stand in, and a word about that."""
        if not moments.tolerance:
            return moments.times, ()
        wanted, seconds = np.asarray(moments.times), self.info.pts_seconds
        exact, near = self.info.index_at(wanted), snapped(self.info, wanted, moments.tolerance)
        inside = frames_in_range(seconds, self.look.start, self.look.end)
        chosen = np.where((inside[0] <= seconds[near]) & (seconds[near] <= inside[-1]), near, exact)
        return tuple(seconds[chosen].tolist()), snap_notes(exact, chosen)

    def _sizes(self, frames: int) -> list[tuple[int, int] | None]:
        """Sizes (height, width) of so many frames to try, best first; composable models have one, the tile's."""
        spec = self.spec
        if isinstance(spec.geometry, NativeGeometry):
            return list(spec.geometry.sizes(self.info.height, self.info.width, frames))
        if not spec.image_size:
            return [None]
        return [decoded_size(self.info.height, self.info.width, spec.image_size, self._fit)]

    @property
    def _fit(self) -> Fit:
        """How frames meet the tile; native frames are scaled, never padded or cropped."""
        return self.spec.fit if self.spec.kind == "native" else self.options.fit or self.spec.fit

    def _frames(
        self, moments: SamplePlan, times: Sequence[float], size: tuple[int, int] | None
    ) -> tuple[PlannedFrame, ...]:
        geometry = self.spec.geometry
        if isinstance(geometry, Geometry):
            strides = [self._stride(fine) for fine in moments.fine]
            return composable_frames(list(zip(times, strides, strict=True)), geometry)
        assert size is not None
        return native_frames(times, geometry, size)

    def _stride(self, fine: bool) -> int:
        if self.options.stride is not None:
            return self.options.stride
        if self.look.policy in ("uniform", "change"):
            own = self.spec.uniform_stride
        else:
            own = self.spec.fine_stride if fine else self.spec.coarse_stride
        geometry = self.spec.geometry
        return min(own, geometry.rows, geometry.cols) if isinstance(geometry, Geometry) else own

    def _best_size(self, moments: SamplePlan) -> TokenPlan:
        """The plan of these moments with the largest frames that fit; composable frames have one size."""
        times, moved = self._shown(moments)
        text = self.count_text(times)
        sizes = self._sizes(len(times))
        room = room_of(self.spec, self.options)
        for size in sizes:
            frames = self._frames(moments, times, size)
            if room.fits(sum(frame.tokens for frame in frames) + text):
                break
        return self._plan_tokens(frames, size, moments.tolerance, text, moved)

    def _plan_tokens(
        self, frames: Sequence[PlannedFrame], size: tuple[int, int] | None, tolerance: float, text: int,
        moved: tuple[str, ...],
    ) -> TokenPlan:  # fmt: skip
        geometry = self.spec.geometry
        fit = None if isinstance(geometry, NativeGeometry) and geometry.fits_itself else self._fit
        return plan_tokens(
            frames, text_tokens=text, room=room_of(self.spec, self.options), policy=self.look.policy, fit=fit,
            tolerance=tolerance, frame_size=size, reader=self.options.reader,
            notes=(*self.notes, *shortfall(self.look, self.options.frames, len(frames)), *moved),
        )  # fmt: skip


SUBTITLE_SHARE = 0.25
"""Most that subtitles may take of the context, or of what others leave of it; frames are what the question is about."""


def _subtitles(
    lines: Sequence[Line], focus: Focus | None, most: int, count: Callable[[str], int]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Lines ready to print, and notes: over `most` tokens, those nearest the named times stay."""
    kept = _nearest_lines(lines, focus.spans if focus else (), most, count)
    dropped = len(lines) - len(kept)
    notes = (f"{dropped} of {len(lines)} subtitle lines were left out for want of room",) if dropped else ()
    return tuple(str(line) for line in kept), notes


def _nearest_lines(
    lines: Sequence[Line], spans: Sequence[tuple[float, float]], most: int, count: Callable[[str], int]
) -> list[Line]:
    """As many as fit into `most` tokens: by distance from the spans, or without spans evenly over the range."""

    def distance(index: int) -> float:
        return min(max(a - lines[index].end, lines[index].start - b, 0.0) for a, b in spans)

    order = sorted(range(len(lines)), key=distance if spans else _evenly)
    sizes = accumulate(count(f"{lines[i]}\n") for i in order)
    return [lines[i] for i in sorted(i for i, size in zip(order, sizes, strict=True) if size <= most)]


def _evenly(index: int) -> int:
    """Bits reversed: sorted by it, every beginning of 0, 1, 2 ... is spread evenly (0 4 2 6 1 5 3 7)."""
    return int(f"{index:032b}"[::-1], 2)


def range_of(info: VideoInfo, options: PlanOptions) -> tuple[float, float]:
    """[start, end) in seconds, end possibly infinite; NoFrames when it is empty or behind the clip's end."""
    start, end = options.start or 0.0, float("inf") if options.end is None else options.end
    if not start < end:
        asked = f"{format_time(start, decimals=2)}-{format_time(end, decimals=2)}"
        raise NoFrames(f"{info.path}: the range {asked} is empty; choose a --to after --from")
    if info.duration and start >= info.duration:
        raise NoFrames(
            f"{info.path}: no frame at {format_time(start)} or later, it ends at {format_time(info.duration)}; "
            "choose an earlier --from"
        )
    return min(start, float(info.pts_seconds[-1])), end  # the last frame may stay longer than the others


def named_in_vain(info: VideoInfo, question: str, options: PlanOptions) -> tuple[str, ...]:
    """A word for each time the question names that is not looked at: past the clip, or past the range asked for."""
    start, end = range_of(info, options)
    of = "clip" if start == 0 and end >= info.duration else "range looked at"
    return focus_notes(question, min(end, info.duration), start, of=of)


def _unused(spec: ModelSpec, options: PlanOptions) -> tuple[str, ...]:
    """A word for each option that this model can not follow: nothing the user asked for is ignored in silence."""
    said = []
    if not spec.rope_scalable and options.rope_max != PlanOptions.rope_max:
        said.append(f"{spec.model_type} does not scale its positions, so --rope-max has no effect")
    if spec.kind == "native" and options.stride is not None:
        said.append(f"{spec.model_type} lays out its own frames, so --stride has no effect")
    if spec.kind == "native" and options.fit is not None:
        said.append(f"{spec.model_type} lays out its own frames, so --fit has no effect")
    return tuple(said)


def _cropped(info: VideoInfo, spec: ModelSpec, options: PlanOptions) -> tuple[str, ...]:
    """How much of a frame a centre crop leaves: the reference throws 44 % of a 16:9 picture away and never says so."""
    kept = min(info.width, info.height) / max(info.width, info.height)
    if spec.kind == "native" or (options.fit or spec.fit) != "crop" or kept == 1:
        return ()
    return (f"the crop shows the middle {kept:.0%} of every frame",)


def look_at(
    info: VideoInfo, question: str, options: PlanOptions, reads: Reads
) -> tuple[Look, Focus | None, tuple[str, ...]]:
    """Where to look, the times that `question` names, and what is to be said of both. NoFrames as `range_of`."""
    start, end = range_of(info, options)
    focus = find_focus(question, min(end, info.duration), start)
    policy, notes = _policy_of(options, focus)
    look = Look(
        info=info, policy=policy, start=start, end=end, spans=focus.spans if focus else (), fps=options.fps,
        glance=reads.glances,
    )  # fmt: skip
    return look, focus, (*notes, *_mapped(info), *named_in_vain(info, question, options))


def _mapped(info: VideoInfo) -> tuple[str, ...]:
    return () if info.transfer == "sdr" else (f"HDR ({info.transfer.upper()}) shown in standard range",)


def shortfall(look: Look, asked: int | None, frames: int) -> tuple[str, ...]:
    """A word where the range holds fewer frames than were asked for; a rate may give fewer than that."""
    if asked is None or frames >= asked or (look.fps is not None and frames < look.available):
        return ()
    return (f"{asked} frames were asked for and the range holds {frames}; all of them are shown",)


def _policy_of(options: PlanOptions, focus: Focus | None) -> tuple[Chosen, tuple[str, ...]]:
    """The policy that `auto` means here, and what is to be said about it."""
    if options.policy == "auto":
        return ("focus" if focus else "uniform"), ()
    if options.policy == "focus" and focus is None:
        return "uniform", ("the question names no time, so the frames are uniform",)
    if options.policy == "change" and options.fps is not None:
        return "uniform", ("a number of frames per second means even steps, so --policy change has no effect",)
    return options.policy, ()
