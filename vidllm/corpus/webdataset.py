"""WebDataset tars: which clips they hold, told from their headers; a member is extracted only while it is open.

000000.tar:  a.mp4 a.txt a.json | b.mp4 b.txt | ...        a sample is the members that share a name up to its first dot

Names may come again further on, and mean another clip: so a clip is found by its sample's number and its place.
"""

import contextlib
import gzip
import lzma
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from tempfile import NamedTemporaryFile
from typing import IO

from vidllm.corpus.formats import parsed
from vidllm.corpus.item import Item, SourceRow
from vidllm.errors import InputError

VIDEO_SUFFIXES = frozenset({
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg",
    ".mpeg", ".flv", ".wmv", ".3gp", ".ogv", ".gif", ".y4m", ".h264", ".hevc",
})  # fmt: skip
"""What counts as a clip in a folder or a tar, lower case; a file that is named itself may end as it likes."""
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
MOST_TEXT_BYTES = 1 << 20
"""A caption beside a clip that is longer than this is no caption."""
COPY_BYTES = 1 << 20
DAMAGED = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, ValueError)
"""What reading a damaged tar raises (ValueError: where it tells of holes) ..."""
BROKEN = (*DAMAGED, OSError)
"""... and one that may not be read."""


def is_tar(path: str) -> bool:
    """Whether a file is one by its ending."""
    return path.lower().endswith(TAR_SUFFIXES)


@contextmanager
def opened_path(item: Item, folder: str | None = None) -> Iterator[Path]:
    """A local file that holds the clip: its own, or its member extracted (into `folder`; None: where temporary files
    go) for as long as the block lasts.

    Raises InputError when the member can not be extracted.
    """
    if item.member is None:
        yield Path(item.path)
        return
    with NamedTemporaryFile(prefix="vidllm-", suffix=PurePosixPath(item.member).suffix, dir=folder) as copy:
        try:
            _extract(item, copy)
            copy.flush()
        except BROKEN as error:
            raise not_extracted(item, error) from error
        yield Path(copy.name)


def not_extracted(item: Item, error: Exception) -> InputError:
    """What to say of a member that could not be taken out of its tar."""
    return InputError(f"{item.video}: can not be extracted ({error}); check the tar and the room in $TMPDIR")


def _extract(item: Item, target: IO[bytes]) -> None:
    """From its place: several members may have its name. A compressed tar has to be read up to it."""
    with tarfile.open(item.path) as tar:
        data = tar.extractfile(_at_its_place(tar, item) or _found_again(item))
        assert data is not None  # which a sparse member is not as it stands in the tar
        shutil.copyfileobj(data, target, COPY_BYTES)


def _at_its_place(tar: tarfile.TarFile, item: Item) -> tarfile.TarInfo | None:
    """The member where it was when the tar was listed. Names of more than a hundred letters, or not of ASCII, take
    several blocks: all of them are read, or every such member would be looked for from the tar's beginning.
    """
    assert tar.fileobj is not None
    tar.fileobj.seek(item.header or 0)
    try:
        member = tarfile.TarInfo.fromtarfile(tar)
    except tarfile.HeaderError:
        return None
    is_same = (member.name, member.offset_data, member.size) == (item.member, item.offset, item.size)
    return member if is_same else None


def _found_again(item: Item) -> tarfile.TarInfo:
    """Where it is now: a run of another shard may have put captions before it. Raises ReadError."""
    with tarfile.open(item.path) as tar:
        for number, _, member in walk(tar):
            if item.source is not None and (number, member.name) == (item.source.index, item.member):
                return member
    raise tarfile.ReadError("it is no longer in it")


@dataclass
class _Sample:
    """The members of one sample met so far."""

    number: int
    key: str
    clips: list[tarfile.TarInfo] = field(default_factory=list)
    caption: str | None = None


def tar_items(path: str) -> Iterator[Item]:
    """The clips of a tar, in its order; captions beside them are kept as the old ones.

    A tar that breaks off gives the clips before the break and one item with the problem. Raises InputError when it is
    no tar at all.
    """
    count = 0
    try:
        with _opened(path) as tar:
            for found in _samples(tar):
                if isinstance(found, tarfile.TarInfo):
                    yield _link(path, found)
                    continue
                count += 1
                yield from (_item(path, found, clip) for clip in found.clips)
    except BROKEN as error:
        yield Item(video=path, path=path, problem=f"{path}: the tar breaks off after {count} samples ({error})")


def _opened(path: str) -> tarfile.TarFile:
    try:
        return tarfile.open(path)
    except BROKEN as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else _first_line(error)
        raise InputError(f"{path}: can not be read as a tar ({reason}); check the file") from error


def _first_line(error: Exception) -> str:
    """tarfile tells of every compression that it tried, a line each."""
    return str(error).partition("\n")[0].rstrip(":- ")


def _samples(tar: tarfile.TarFile) -> Iterator[_Sample | tarfile.TarInfo]:
    """The samples, and between them links that are called as clips are."""
    sample: _Sample | None = None
    broken: Exception | None = None
    try:
        for number, key, member in walk(tar):
            if key is None:
                if (member.islnk() or member.issym()) and _is_clip(member):
                    yield member
                continue
            if sample is None or sample.number != number:
                if sample is not None:
                    yield sample
                sample = _Sample(number, key)
            _note(tar, sample, member)
    except BROKEN as error:  # what was met of the last sample lies before the break
        broken = error
    if sample is not None:
        yield sample
    if broken is not None:
        raise broken


def _is_clip(member: tarfile.TarInfo) -> bool:
    name = PurePosixPath(member.name)
    return name.suffix.lower() in VIDEO_SUFFIXES and not name.name.startswith(".")


def walk(tar: tarfile.TarFile) -> Iterator[tuple[int, str | None, tarfile.TarInfo]]:
    """(number of the sample, its key, member) of every member; key None for folders, links and hidden files.

    A sample is a run of members with one key, no name twice: `a.mp4 a.txt a.mp4` are two.
    """
    number, last = -1, None
    names: set[str] = set()
    while (member := tar.next()) is not None:
        tar.__dict__["members"] = []  # tarfile keeps every header it met: with a million members, a gigabyte
        if not member.isfile() or PurePosixPath(member.name).name.startswith("."):
            yield number, None, member
            continue
        key = sample_key(member.name)
        if key != last or member.name in names:
            number, last, names = number + 1, key, set()
        names.add(member.name)
        yield number, key, member
    _check_end(tar)


def _check_end(tar: tarfile.TarFile) -> None:
    """Raise ReadError where `tarfile` saw no end, or another member follows: for it a damaged header ends a tar, and so
    do the zeros of a half download or between two tars that `cat` made one file of, and the end of a file that was cut
    off between two members.
    """
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    end = tar.fileobj.read(tarfile.BLOCKSIZE)
    if not end:
        raise tarfile.ReadError("its end is missing, and perhaps more of it; fetch it again, or pack it anew")
    goes_on = bool(end.strip(b"\0"))
    while not goes_on and (block := tar.fileobj.read(tarfile.BLOCKSIZE)):
        with contextlib.suppress(tarfile.HeaderError):  # what is no header is nobody's
            tarfile.TarInfo.frombuf(block, tar.encoding or "utf-8", tar.errors)
            goes_on = True
    if goes_on:
        raise tarfile.ReadError("another tar or damage follows; unpack it all with `tar -i` and pack one")


def sample_key(name: str) -> str:
    """The member's name up to the first dot behind its last slash."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _note(tar: tarfile.TarFile, sample: _Sample, member: tarfile.TarInfo) -> None:
    if _is_clip(member):
        sample.clips.append(member)
    elif member.size <= MOST_TEXT_BYTES and member.name == sample.key + ".txt":
        sample.caption = text_of(tar, member)
    elif member.size <= MOST_TEXT_BYTES and member.name == sample.key + ".json" and sample.caption is None:
        sample.caption = _caption_in(text_of(tar, member))


def text_of(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    """What a file in a tar says."""
    data = tar.extractfile(member)
    return data.read().decode("utf-8", "replace").strip() if data is not None else ""


def _caption_in(text: str) -> str | None:
    row = parsed(text)
    caption = row.get("caption") if isinstance(row, dict) else None
    return caption if isinstance(caption, str) else None


def _item(path: str, sample: _Sample, clip: tarfile.TarInfo) -> Item:
    return Item(
        video=f"{path}!{clip.name}", path=path, member=clip.name, offset=clip.offset_data, size=clip.size,
        header=clip.offset,
        source=SourceRow(kind="webdataset", file=path, index=sample.number, id=sample.key, caption=sample.caption),
    )  # fmt: skip


def _link(path: str, link: tarfile.TarInfo) -> Item:
    """`tar` packs the second name of a file as a link to the first."""
    video = f"{path}!{link.name}"
    problem = f"{video}: is a link to {link.linkname}, and no clip of its own; pack it with `tar --hard-dereference -h`"
    return Item(video=video, path=path, problem=problem)
