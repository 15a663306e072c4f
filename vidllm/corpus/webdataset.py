"""WebDataset tars: which clips they hold, told from their headers; a member is extracted only while it is open.

000000.tar:  a.mp4 a.txt a.json | b.mp4 b.txt | ...        a sample is the members that share a name up to its first dot
"""

import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from tempfile import NamedTemporaryFile
from typing import IO

from vidllm.corpus.item import Item, SourceRow
from vidllm.errors import InputError

VIDEO_SUFFIXES = frozenset({
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg",
    ".mpeg", ".flv", ".wmv", ".3gp", ".ogv", ".gif", ".y4m", ".h264", ".hevc",
})  # fmt: skip
"""What counts as a clip in a folder or a tar, lower case; a file that is named itself may end as it likes."""
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
MOST_TEXT_BYTES = 1 << 20
"""A caption beside a clip that is longer than this is no caption."""
COPY_BYTES = 1 << 20


@contextmanager
def opened_path(item: Item) -> Iterator[Path]:
    """A local file that holds the clip: its own, or its member extracted for as long as the block lasts.

    Raises InputError when the member can not be extracted.
    """
    if item.member is None:
        yield Path(item.path)
        return
    with NamedTemporaryFile(prefix="vidllm-", suffix=PurePosixPath(item.member).suffix) as copy:
        try:
            _extract(item, copy)
            copy.flush()
        except (OSError, EOFError, tarfile.TarError, KeyError) as error:
            raise InputError(
                f"{item.video}: can not be extracted ({error}); check the tar and the room in $TMPDIR"
            ) from error
        yield Path(copy.name)


def _extract(item: Item, target: IO[bytes]) -> None:
    if item.offset is None or item.size is None:  # compressed: the tar has to be read up to it
        with tarfile.open(item.path) as tar, tar.extractfile(item.member or "") or open(os.devnull, "rb") as source:
            _copy(source, target, None)
        return
    with open(item.path, "rb") as source:
        source.seek(item.offset)
        _copy(source, target, item.size)


def _copy(source: IO[bytes], target: IO[bytes], size: int | None) -> None:
    left = size
    while block := source.read(COPY_BYTES if left is None else min(COPY_BYTES, left)):
        target.write(block)
        left = None if left is None else left - len(block)
    if left:
        raise EOFError(f"the tar ends {left} bytes before the member does")


@dataclass
class _Sample:
    """The members of one sample met so far."""

    key: str
    clips: list[tarfile.TarInfo] = field(default_factory=list)
    caption: str | None = None


def tar_items(path: str) -> Iterator[Item]:
    """The clips of a tar, in its order; captions beside them are kept as the old ones.

    A tar that breaks off gives the clips before the break and one item with the problem. Raises InputError when it is
    no tar at all.
    """
    index = 0
    try:
        with _opened(path) as tar:
            for index, sample in enumerate(_samples(tar)):
                yield from (_item(path, sample, clip, index) for clip in sample.clips)
    except (tarfile.TarError, EOFError, OSError) as error:
        yield Item(video=path, path=path, problem=f"{path}: the tar breaks off after {index} samples ({error})")


def _opened(path: str) -> tarfile.TarFile:
    try:
        return tarfile.open(path)
    except (tarfile.TarError, EOFError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{path}: can not be read as a tar ({reason}); check the file") from error


def _samples(tar: tarfile.TarFile) -> Iterator[_Sample]:
    """Runs of members with one key, as the format has them."""
    sample: _Sample | None = None
    while (member := tar.next()) is not None:
        tar.__dict__["members"] = []  # tarfile keeps every header it met: with a million members, a gigabyte
        if not member.isfile() or PurePosixPath(member.name).name.startswith("."):
            continue
        key = sample_key(member.name)
        if sample is not None and sample.key != key:
            yield sample
            sample = None
        sample = sample or _Sample(key)
        _note(tar, sample, member)
    if sample is not None:
        yield sample


def sample_key(name: str) -> str:
    """The member's name up to the first dot behind its last slash."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _note(tar: tarfile.TarFile, sample: _Sample, member: tarfile.TarInfo) -> None:
    suffix = PurePosixPath(member.name).suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        sample.clips.append(member)
    elif member.size <= MOST_TEXT_BYTES and member.name == sample.key + ".txt":
        sample.caption = _text(tar, member)
    elif member.size <= MOST_TEXT_BYTES and member.name == sample.key + ".json" and sample.caption is None:
        sample.caption = _caption_in(_text(tar, member))


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    data = tar.extractfile(member)
    return data.read().decode("utf-8", "replace").strip() if data is not None else ""


def _caption_in(text: str) -> str | None:
    try:
        row = json.loads(text)
    except ValueError:
        return None
    caption = row.get("caption") if isinstance(row, dict) else None
    return caption if isinstance(caption, str) else None


def _item(path: str, sample: _Sample, clip: tarfile.TarInfo, index: int) -> Item:
    plain = not path.endswith((".gz", ".tgz"))
    return Item(
        video=f"{path}!{clip.name}", path=path, member=clip.name,
        offset=clip.offset_data if plain else None, size=clip.size if plain else None,
        source=SourceRow(kind="webdataset", file=path, index=index, id=sample.key, caption=sample.caption),
    )  # fmt: skip
