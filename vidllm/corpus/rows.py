"""The caption row: what is said of one clip, how it came about, and how it ended. One JSON object a line.

The first fields have fixed widths and a fixed order, so that a million rows are indexed without parsing them; see
`output`. To everybody else a row is plain JSON.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from vidllm.corpus.item import Item, SourceKind, digest_of
from vidllm.linefile import json_line

Status = Literal["ok", "truncated", "repetitive", "duplicate", "undecodable", "error"]
"""How a clip ended. ok: captioned. truncated, repetitive: captioned, and not well, after all tries. duplicate: the
caption of the same content under another name. undecodable: the clip gave no frames. error: the fault was not the
clip's."""

STATUSES: tuple[Status, ...] = get_args(Status)
FAILED: frozenset[Status] = frozenset({"undecodable", "error"})
"""What `--retry-errors` does again."""
OWN: frozenset[Status] = frozenset({"ok", "truncated", "repetitive"})
"""With a caption that is no copy."""
SOURCE_KINDS: tuple[SourceKind, ...] = get_args(SourceKind)

_TEXT, _NUMBER, _NOTHING = (str,), (int, float), (type(None),)
_KINDS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("video", "caption", "model", "prompt", "engine"), _TEXT),
    **dict.fromkeys(("finish_reason", "error", "duplicate_of", "root", "subtitles", "check"), _TEXT + _NOTHING),
    **dict.fromkeys(("start", "end"), _NUMBER + _NOTHING), "seconds": _NUMBER, "attempts": (int,),
}  # fmt: skip
_USAGE_KINDS: Mapping[str, tuple[type, ...]] = {
    "video_tokens": (int, *_NOTHING), "text_tokens": (int,), "answer_tokens": (int,), "context": (int,),
    "rope_factor": _NUMBER,
}  # fmt: skip
_SOURCE_KINDS: Mapping[str, tuple[type, ...]] = {"kind": _TEXT, "file": _TEXT, "index": (int,), "id": _TEXT + _NOTHING}
"""What a row's fields are; files are also written by other tools and hands."""
_SHAPES = {name: re.compile(f"[0-9a-f]{{{n}}}") for name, n in (("id", 32), ("key", 32), ("recipe", 16), ("stamp", 16))}


@dataclass(frozen=True, kw_only=True)
class RowFrame:
    """One frame the model saw: its true time, seconds on the source's clock, and its tokens."""

    time: float
    tokens: int
    """As planned: what a server makes of a picture it does not say (`RowUsage.video_tokens` is None then)."""


@dataclass(frozen=True, kw_only=True)
class RowUsage:
    """Tokens: video + text went in, answer came out; `context` is the model's own, stretched by `rope_factor`."""

    video_tokens: int | None
    """Of the frames; None for a server, which counts its whole prompt in one: all of it is `text_tokens` there."""
    text_tokens: int
    answer_tokens: int
    context: int
    rope_factor: float


@dataclass(frozen=True, kw_only=True)
class CaptionRow:
    """One clip's end. `id`, `key`, `recipe` and `stamp` are checked at birth (ValueError): the resume rests on them."""

    id: str
    """32 hex digits: content and range (`identity.content_id`)."""
    key: str
    """32 hex digits: the place in the run (`Item.key`)."""
    recipe: str
    """16 hex digits (`Recipe.digest`)."""
    stamp: str
    """16 hex digits: size and time of change of the file when it was read, and of its subtitles (`Item.stamp`)."""
    status: Status
    video: str
    start: float | None = None
    end: float | None = None
    caption: str = ""
    finish_reason: str | None = None
    """As the engine says: `stop`, `length`, `repetition`; None when no answer was begun."""
    error: str | None = None
    """The cause, one line, when there is no good caption."""
    frames: tuple[RowFrame, ...] = ()
    usage: RowUsage | None = None
    model: str = ""
    prompt: str = ""
    seconds: float = 0.0
    """Wall time spent on this clip: decoding and answering."""
    attempts: int = 1
    engine: str = "local"
    duplicate_of: str | None = None
    """`video` of the row whose caption this is."""
    source: Mapping[str, Any] | None = None
    """`SourceRow.to_dict()`."""
    root: str | None = None
    """The folder that was given, when the clip was found in one."""
    reader: str = ""
    """Who decoded the frames."""
    notes: tuple[str, ...] = ()
    """What is not as it should be with the frames, a line each: damaged pictures and where, others that stand in, fewer
    than were asked for, options that this model can not follow."""
    subtitles: str = ""
    """16 hex digits of the subtitles that were shown; empty: none."""
    check: str | None = field(default=None, compare=False)
    """`checksum` when the row was written, by `to_dict`; None where another tool wrote it."""

    def __post_init__(self) -> None:
        for name, shape in _SHAPES.items():
            if not shape.fullmatch(getattr(self, name)):
                raise ValueError(f"{self.video}: {name} is {getattr(self, name)!r}, not hex digits of its length")
        if self.status not in STATUSES:
            raise ValueError(f"{self.video}: status is {self.status!r}; there are {', '.join(STATUSES)}")

    @classmethod
    def of(
        cls, item: Item, *, id: str, recipe: str, status: Status, stamp: str | None = None, error: str | None = None,
        subtitles: str = "",
    ) -> "CaptionRow":  # fmt: skip
        """A bare row of `item`; `dataclasses.replace` adds what was said. `stamp`: taken before the clip was read."""
        return cls(
            id=id, key=item.key, recipe=recipe, stamp=stamp or item.stamp(), status=status, video=item.video,
            start=item.start, end=item.end, error=error, root=item.root, subtitles=subtitles,
            source=item.source.to_dict() if item.source else None,
        )  # fmt: skip

    def checksum(self) -> str:
        """16 hex digits over what is said, of which clip, from which frames and how: two rows can not swap captions.

        Built on JSON text, which a value comes back from as it went in, by lines and by Parquet.
        """
        clip = self.id, self.key, self.video, *(None if t is None else float(t) for t in (self.start, self.end))
        frames = [(round(float(frame.time), 6), frame.tokens) for frame in self.frames]
        asked = self.recipe, self.prompt, self.subtitles
        said = self.status, self.caption, self.finish_reason, self.error, self.duplicate_of
        return digest_of(json.dumps([clip, frames, asked, said]))[:16]

    def to_dict(self) -> dict[str, Any]:
        """The row's JSON object, its fields in the order files keep them; times to the microsecond."""
        usage = vars(self.usage) if self.usage else None
        frames = [{"time": round(frame.time, 6), "tokens": frame.tokens} for frame in self.frames]
        told = {"frames": frames, "usage": usage, "seconds": round(self.seconds, 6), "check": self.checksum()}
        return {**vars(self), **told}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "CaptionRow":
        """The row of a JSON object; columns others added are left out. Raises ValueError if it is none."""
        try:
            known = {name: fields[name] for name in cls.__dataclass_fields__ if name in fields}
            _check(known, _KINDS)
            frames = tuple(map(_frame, fields.get("frames") or ()))
            usage = RowUsage(**_only(fields["usage"], _USAGE_KINDS)) if fields.get("usage") else None
            if fields.get("source") is not None and _only(fields["source"], _SOURCE_KINDS)["kind"] not in SOURCE_KINDS:
                raise ValueError(f"source is of kind {fields['source']['kind']!r}")
            told = {name: fields.get(name) or "" for name in ("reader", "subtitles")}
            told["notes"] = tuple(map(str, fields.get("notes") or ()))
            return cls(**{**known, **told, "frames": frames, "usage": usage})
        except KeyError as error:
            raise ValueError(f"{error.args[0]} is missing") from error
        except (TypeError, AttributeError) as error:
            raise ValueError(f"its fields are not those of a row ({error})") from error

    @classmethod
    def from_line(cls, line: bytes) -> "CaptionRow":
        """The row of a line of JSON. Raises ValueError if it is none."""
        try:
            return cls.from_dict(json.loads(line))
        except RecursionError as error:
            raise ValueError("is nested too deep") from error

    def to_line(self) -> bytes:
        """One line of JSON, its line feed included."""
        return json_line(self.to_dict())


def _check(fields: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]]) -> None:
    """Raise ValueError for a field that is there and of another kind; what is no finite number is none."""
    for name, kind in kinds.items():
        value = fields.get(name)
        if name in fields and not (isinstance(value, kind) and (not isinstance(value, float) or math.isfinite(value))):
            raise ValueError(f"{name} is {str(value)[:40]!r}")


def _frame(fields: Mapping[str, Any]) -> RowFrame:
    """One of the many frames of a row. Raises KeyError or ValueError."""
    time, tokens = fields["time"], fields["tokens"]
    if type(time) not in _NUMBER or type(tokens) is not int or not -math.inf < time < math.inf:
        raise ValueError(f"a frame's time is {str(time)[:40]!r} and its tokens are {str(tokens)[:40]!r}")
    return RowFrame(time=time, tokens=tokens)


def _only(fields: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """The fields of `kinds`, each of which must be there. Raises KeyError or ValueError."""
    _check(fields, kinds)
    return {name: fields[name] for name in kinds}
