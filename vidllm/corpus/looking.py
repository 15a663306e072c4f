"""One clip, looked at: who it is, what its frames will cost, and the frames themselves. Runs in workers; no torch.

    Item --look_at--> Seen (id, frames, tokens, bytes) --clip_of--> Clip            both along the one road of `clip`

Nothing here raises for bad media: a clip that can not be read has a status and a cause.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vidllm.budget import PlannedFrame, TokenPlan
from vidllm.clip import Clip, open_clip, plan_video
from vidllm.corpus.identity import content_id
from vidllm.corpus.item import Item, digest_of
from vidllm.errors import FetchError, ReaderUnavailable, VideoError, VideoNotFound, VidllmError
from vidllm.model.spec import ModelSpec, load_tokenizer
from vidllm.planning import PlanOptions
from vidllm.video import wire
from vidllm.video.guard import Killed, Limits
from vidllm.video.subtitles import find_sidecar
from vidllm.video.timecode import Focus

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from vidllm.corpus.rows import Status
    from vidllm.video.info import VideoInfo

INDEX_BYTES_A_FRAME = 40
"""Of a VideoInfo's arrays."""
NOT_THE_CLIPS_FAULT = (VideoNotFound, ReaderUnavailable, FetchError, Killed)


@dataclass(frozen=True, kw_only=True)
class Look:
    """How every clip of a run is looked at."""

    spec: ModelSpec
    """What plans; a `bare_spec` plans without a tokenizer."""
    prompt: str
    options: PlanOptions = field(default_factory=PlanOptions)
    limits: Limits = field(default_factory=Limits)
    """What one clip may take, `seconds` from its opening to its last frame."""

    def options_of(self, item: Item) -> PlanOptions:
        """The plan options with the item's own range; the guard is the worker itself."""
        return replace(self.options, start=item.start, end=item.end, guard=None)

    def prompt_of(self, item: Item) -> str:
        """The item's own prompt, else the run's."""
        return self.prompt if item.prompt is None else item.prompt

    def stamp_of(self, item: Item) -> str:
        """The item's stamp, with that of the subtitles beside it where they are shown."""
        return item.stamp(find_sidecar if self.options.subtitles else None)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's own, read once per process; None for a spec without a folder."""
        return None if self.spec.model_type == "none" else load_tokenizer(self.spec.folder)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a clip is and what it will cost, before a frame is decoded; or why it can not be captioned."""

    id: str
    seconds: float = 0.0
    """Length of what will be shown."""
    frames: int = 0
    tokens: int = 0
    """Of the prompt, visual and text."""
    bytes: int = 0
    """Of its pictures and its index, in memory."""
    stamp: str = "0" * 16
    """`Look.stamp_of` before the clip was opened, where the rows are written: a node may have a copy."""
    subtitles: str = ""
    """`digest_of_lines` of what is shown of its subtitles."""
    status: Status | None = None
    """None: it can be opened."""
    error: str | None = None
    """The cause, one line."""


# What a worker sends back, beside the guard's own values.
wire.VALUES.update({kind.__name__: kind for kind in (Clip, Focus, PlannedFrame, Seen, TokenPlan)})


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """A clip with its frames; or none, and `seen` has the `status` and the cause."""

    item: Item
    seen: Seen
    clip: Clip | None = None
    seconds: float = 0.0
    """Spent on it by the worker."""
    notes: tuple[str, ...] = ()
    """What its row has to say beside what the frames tell."""


def look_at(item: Item, look: Look, path: Path, probe: Callable[[], VideoInfo]) -> Seen:
    """Identify and plan the clip at `path`. The id comes first: what can not be planned can still be told apart."""
    id = unread_id(item)
    try:
        info = probe()
        id = content_id(path, item.start, item.end)
        planned = plan_video(info, look.prompt_of(item), look.spec, look.tokenizer, look.options_of(item))
    except VidllmError as error:
        return Seen(id=id, status=status_of(error), error=named(error, path, item))
    plan = planned.plan
    height, width = plan.frame_size or (info.height, info.width)
    start, end = item.start or 0.0, info.duration if item.end is None else min(item.end, info.duration)
    index = info.num_frames * INDEX_BYTES_A_FRAME
    return Seen(
        id=id, seconds=end - start, frames=len(plan.frames), tokens=plan.video_tokens + plan.text_tokens,
        bytes=len(plan.frames) * height * width * 3 + index, subtitles=digest_of_lines(planned.subtitles),
    )  # fmt: skip


def clip_of(item: Item, look: Look, info: VideoInfo) -> Clip:
    """The clip's frames, as planned. Raises VidllmError."""
    return open_clip(info, look.prompt_of(item), look.spec, look.tokenizer, look.options_of(item))


def status_of(error: VidllmError) -> Status:
    """undecodable when the clip's own bytes are the reason."""
    return "undecodable" if isinstance(error, VideoError) and not isinstance(error, NOT_THE_CLIPS_FAULT) else "error"


def digest_of_lines(lines: Sequence[str]) -> str:
    """16 hex digits of the subtitles shown with a clip; empty when none are."""
    return digest_of(*lines)[:16] if lines else ""


def unread_id(item: Item) -> str:
    """The id of a clip whose content can not be read: its place and what its file weighs."""
    return digest_of("unread", item.video, item.start, item.end, item.stamp())


def named(error: VidllmError, path: Path, item: Item) -> str:
    """The message about a member of a tar, without the name of the temporary file it was read from."""
    return str(error).replace(str(path), item.video) if item.member is not None else str(error)
