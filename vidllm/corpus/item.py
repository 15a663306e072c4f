"""One clip to caption, before anybody opened it: where it is, which range of it, and the row it came from."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vidllm.errors import ConfigError

SourceKind = Literal["jsonl", "parquet", "llava", "webdataset"]


@dataclass(frozen=True, kw_only=True)
class SourceRow:
    """The row of a data set that a clip came from; the row itself stays in its file until captions are put there."""

    kind: SourceKind
    file: str
    index: int
    """Place in the file, 0 first: the row, or for a WebDataset tar the sample."""
    id: str | None = None
    """The row's own id, the tar sample's key."""
    caption: str | None = None
    """What the row said of the clip until now."""

    def to_dict(self) -> dict[str, Any]:
        """As a caption row keeps it; the old caption is left where it is."""
        return {"kind": self.kind, "file": self.file, "index": self.index, "id": self.id}


@dataclass(frozen=True, kw_only=True)
class Item:
    """One clip to caption: a file, perhaps a range of it on the source's clock."""

    video: str
    """As rows name it: the path as given, `shard.tar!member.mp4` for a member of a tar."""
    path: str
    """The local file that holds it; open what `opened_path` gives, which extracts a tar's member first."""
    start: float | None = None
    """Seconds; the range is half-open [start, end), None where it is open."""
    end: float | None = None
    prompt: str | None = None
    """Its own prompt; None: the run's."""
    source: SourceRow | None = None
    problem: str | None = None
    """Why it can not even be opened. Such a clip gets its row too: nothing that was named is dropped."""
    member: str | None = None
    """Its name inside the tar at `path`; None for a plain file."""
    offset: int | None = None
    """Where the member's bytes begin in the tar, of a compressed one unpacked; None for a plain file."""
    size: int | None = None
    """Bytes of the member."""
    header: int | None = None
    """Where what the tar says of the member begins; None for a plain file."""
    root: str | None = None
    """The folder that was given, if one was: side files mirror the tree below it."""

    def __post_init__(self) -> None:
        if self.start is not None and self.end is not None and not self.start < self.end:
            raise ConfigError(
                f"{self.video}: the range {self.start}-{self.end} is empty; its end must be after its start"
            )

    @property
    def key(self) -> str:
        """32 hex digits for the place this clip has in the run: name, range, own prompt and source row, not content."""
        place = (self.source.file, self.source.index, self.source.id) if self.source else None
        return digest_of(self.video, self.start, self.end, self.prompt, place)

    def stamp(self, find_sidecar: Callable[[str], Path | None] | None = None) -> str:
        """16 hex digits that change when the file does (size and time of change); zeros when it is not there.

        With `find_sidecar` the subtitles that it finds beside the file are part of it. Take it before opening the clip:
        a row with the file's present stamp needs no look at the content.
        """
        try:
            status = os.stat(self.path)
            sidecar = find_sidecar(self.path) if find_sidecar is not None and self.member is None else None
            beside = () if sidecar is None else (sidecar.name, *_weight(os.stat(sidecar)))
        except (OSError, ValueError):
            return "0" * 16
        return digest_of(*_weight(status), self.member, self.offset, *beside)[:16]


def _weight(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def digest_of(*parts: object) -> str:
    """32 hex digits of plain values (text, numbers, None, tuples of them); `repr` keeps 1, 1.0 and "1" apart."""
    return hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
