"""Rows -> examples: media opened on the one road of `clip`, a file once for the rows that show it. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from vidllm.clip import Clip, ClipPlan, Known, PlanOptions, Recalled, open_clips, probe_video, read_planned
from vidllm.errors import NotAVideo, RowError, VidllmError
from vidllm.model.chat import AnyTokenizer
from vidllm.model.spec import ModelSpec
from vidllm.prompt import Example, Message, build_example
from vidllm.still import BROKEN, open_still
from vidllm.train.looks import look_of
from vidllm.train.row import TrainRow, Turn, advice
from vidllm.video.decode import FrameSet
from vidllm.video.guard import Limits
from vidllm.video.info import VideoInfo
from vidllm.visuals import Image

Seen = tuple[str, tuple[float, ...], tuple[int, int] | None]
"""A file, the moments asked for, and the size they were scaled to."""


class Shelf:
    """A `Known` that remembers what it had to read, for the few rows it lives for; `known` is asked first.

    Used by one thread. What it hands out is shared: nobody may write into the pixels.
    """

    def __init__(self, known: Known | None = None) -> None:
        self._known = known
        self._infos: dict[str, VideoInfo] = {}
        self._frames: dict[Seen, FrameSet] = {}
        self._stills: dict[str, Image] = {}

    def video(self, path: str, guard: Limits | None) -> VideoInfo:
        """The clip, probed. Raises VideoError."""
        if path not in self._infos:
            self._infos[path] = probe_video(path, guard)
        return self._infos[path]

    def still(self, path: str) -> Image:
        """The picture, open. Raises VideoError."""
        if path not in self._stills:
            self._stills[path] = open_picture(path)
        return self._stills[path]

    def recall(self, planned: ClipPlan, spec: ModelSpec, options: PlanOptions) -> Recalled:
        """What is known of this look; its frames, if they are not, are read here. Raises VideoError."""
        found = self._known.recall(planned, spec, options) if self._known is not None else Recalled()
        if found.frames is not None:
            return found
        seen = (planned.info.path, planned.plan.times, planned.plan.frame_size)
        if seen not in self._frames:
            self._frames[seen] = read_planned(planned, options)
        return replace(found, frames=self._frames[seen])


MOVING = ("GIF", "PNG", "WEBP")
"""What may hold an animation; of a photograph's previews or a TIFF's pages the first is the picture."""


def open_picture(path: str) -> Image:
    """As `open_still`, of a picture that stands still: of an animation all but the first would be lost without a word.

    Raises VideoError.
    """
    picture = open_still(path)
    if _moves(path):
        raise NotAVideo(f"{path}: a picture that moves; name it under \"video\" (a WebP saved as GIF or mp4, which "
                        "are read as one), or save one picture of it")  # fmt: skip
    return picture


def _moves(path: str) -> bool:
    from PIL import Image as PIL

    with suppress(*BROKEN), PIL.open(path) as opened:  # what is damaged behind the first picture is no second one
        return opened.format in MOVING and bool(getattr(opened, "is_animated", False))
    return False


def load_example(
    row: TrainRow, spec: ModelSpec, tokenizer: AnyTokenizer, plan: PlanOptions, *, known: Known | None = None
) -> Example:
    """The row with its media open. Clips that `known` recalls are not decoded; `plan.guard` guards the others.

    Raises:
        RowError: a medium can not be read, or the conversation does not fit; one line with the row's file and line.
    """
    try:
        messages = open_turns(row.turns, spec, tokenizer, plan, known=known)
        return build_example(messages, spec, tokenizer, rope_max=plan.rope_max)
    except VidllmError as error:
        raise RowError(f"{row.origin}: {advice(error)}") from error


def open_turns(
    turns: Sequence[Turn], spec: ModelSpec, tokenizer: AnyTokenizer, plan: PlanOptions, *,
    answers: Sequence[str] = (), known: Known | None = None,
) -> tuple[Message, ...]:  # fmt: skip
    """The turns as messages, media open. `answers` are what may be said after them: the longest must fit.

    With a `Shelf` as `known` a file is opened once for all rows that are loaded with it. Raises VideoError or
    BudgetError, which do not know the row.
    """
    shelf = known if isinstance(known, Shelf) else Shelf(known)
    stills = [shelf.still(m.path) for turn in turns for m in turn.media if m.kind == "image"]
    videos = [shelf.video(m.path, plan.guard) for turn in turns for m in turn.media if m.kind == "video"]
    look = look_of(turns, answers, [still.pixels.shape[:2] for still in stills], spec, tokenizer)
    clips: tuple[Clip, ...] = ()
    if videos:
        clips = look.within(
            plan, lambda options: open_clips(videos, look.question, spec, tokenizer, options, known=shelf)
        )
    waiting: dict[str, Iterator[Clip | Image]] = {"image": iter(stills), "video": iter(clips)}
    shown = [tuple(next(waiting[m.kind]) for m in turn.media) for turn in turns]
    return tuple(Message(turn.role, turn.text, own, turn.at) for turn, own in zip(turns, shown, strict=True))
