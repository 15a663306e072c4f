"""What was asked to be captioned, as items in a steady order: files, folders, globs, lists, data sets, tars.

    clips/  "clips/**/*.mp4"  a.mp4  -  rows.jsonl  rows.parquet  llava.json  shards.tar  ->  Item, Item, ...

Everything is read as it is needed. What is named and can not be found becomes an item with a problem, so that it has
its row; what a folder holds besides clips is counted and told.
"""

import codecs
import glob
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePath

from vidllm.corpus.datarows import RowOptions, Rows, placed, problem_of
from vidllm.corpus.formats import array_rows, lines_of, need_parquet, parquet_rows, parsed, split_at_nul
from vidllm.corpus.item import Item, digest_of
from vidllm.corpus.listing import clips_beside, clips_of, files_below, is_clip, is_side_file, matching
from vidllm.corpus.stores import own_files
from vidllm.corpus.traces import is_output, is_trace
from vidllm.corpus.webdataset import is_tar, tar_items
from vidllm.errors import ConfigError, InputError
from vidllm.jsonrows import json_rows
from vidllm.still import is_still
from vidllm.video.address import plain_path


@dataclass(frozen=True, kw_only=True)
class InputOptions(RowOptions):
    """How inputs are read; made of what `CaptionOptions` has checked."""

    limit: int | None = None
    """So many items at most, counted after `shard`."""
    shard: tuple[int, int] | None = None
    """(i, n), i from 1 to n: this process's share, by a hash of each video's name, the same on every machine."""
    output: Path | None = None
    """The run's own: `videos/*` finds it too when it lies there, and it is no data set of this run."""
    elsewhere: Callable[[Item], None] = lambda item: None
    """Hears of every clip that falls to another shard."""
    lists: frozenset[str] = frozenset()
    """Lists being read: `find > all.txt` finds all.txt, too."""

    def is_own(self, path: str) -> bool:
        """Whether this run writes the file, or it lies in the folder of its output; then that is told."""
        name, folder = os.path.basename(path), os.path.dirname(path)
        if name not in self._own_names and os.path.basename(folder) not in self._own_names:
            return False
        own = {os.path.realpath(file) for file in self._own}
        if os.path.realpath(path) not in own and os.path.realpath(folder) not in own:
            return False
        self.remark(f"{path}: is written by this run and left out")
        return True

    @cached_property
    def _own(self) -> tuple[Path, ...]:
        return () if self.output is None else own_files(self.output)

    @cached_property
    def _own_names(self) -> frozenset[str]:
        return frozenset(file.name for file in self._own)


def admit(inputs: Sequence[str], options: InputOptions | None = None) -> Iterator[Item]:
    """The clips of all inputs, each once, in the order of the inputs; a folder's and a glob's sorted by name.

    A list, data set or tar that can not be read, or not to its end, is an item with a problem. Raises InputError where
    that is so of one that was named itself, a glob matches nothing or `videos` is no folder, and it can be told before
    the first item; ConfigError for options about rows where no input can have one.
    """
    options = options or InputOptions()
    if options.videos is not None and not os.path.isdir(options.videos):
        raise InputError(f"{options.videos}: no such folder; name the one that the paths in lists and rows begin in")
    sources = [str(plain_path(source)) for source in inputs]
    for source in sources:
        _check(source)
    for name in ("videos", "column", "prompt_column"):
        if getattr(options, name) is not None and not any(map(_may_hold_rows, sources)):
            raise ConfigError(f"{name} is for lists and data sets, and no input is one; leave it out")
    named = _without_others(sources, "the inputs", options)
    items = _once(_all(named, options), options)
    return islice(items if options.shard is None else _share(items, *options.shard, options.elsewhere), options.limit)


def _all(sources: Iterable[str], options: InputOptions) -> Iterator[Item]:
    begun = False
    for source in sources:
        try:
            for item in _read(source, options):
                begun = True
                yield item
        except InputError as error:
            if not begun:
                raise
            yield _unreadable(source, error)


def _found(path: str, items: Iterator[Item]) -> Iterator[Item]:
    """`items` of what nobody named himself: it stood in a list, a folder, or under a pattern."""
    try:
        yield from items
    except InputError as error:
        yield _unreadable(path, error)


def _unreadable(path: str, error: InputError) -> Item:
    return Item(video=path, path=path, problem=str(error))


def _share(items: Iterable[Item], number: int, count: int, elsewhere: Callable[[Item], None]) -> Iterator[Item]:
    for item in items:
        if in_shard(item.video, number, count):
            yield item
        else:
            elsewhere(item)


def in_shard(video: str, number: int, count: int) -> bool:
    """Whether the video of this name belongs to shard `number` of `count`, 1 first."""
    return int(digest_of("shard", video)[:15], 16) % count == number - 1


def parse_shard(words: str) -> tuple[int, int]:
    """(i, n) of "i/n". Raises ConfigError."""
    number, slash, count = words.partition("/")
    if not slash or not (number.isdecimal() and count.isdecimal()) or not 1 <= int(number) <= int(count):
        raise ConfigError(f"{words!r} is no shard; use i/n with i from 1 to n, such as 1/4")
    return int(number), int(count)


def _once(items: Iterable[Item], options: InputOptions) -> Iterator[Item]:
    """Each clip once: two rows for one place could not both be its one status. A million keys take 90 MB."""
    known: set[int] = set()
    again = 0
    for item in items:
        key = int(item.key, 16)
        if key in known:
            again += 1
            continue
        known.add(key)
        yield item
    if again:
        options.remark(f"{again} clips were named more than once and are captioned once")


def _check(source: str) -> None:
    """Tell at the start what would end the run in its middle."""
    suffix = PurePath(source).suffix.lower()
    if suffix == ".parquet":
        need_parquet()
    if os.path.isdir(source):
        return
    if source == "-" or (suffix not in _DATA and not is_tar(source)):
        if source != "-" and _is_glob(source) and next(matching(source), None) is None:
            raise InputError(f"{source}: matches no file; check the pattern and the folder you are in")
        return
    try:
        with open(source, "rb"):
            pass
    except OSError as error:
        if _is_glob(source):
            return
        raise InputError(f"{source}: can not be read ({error.strerror}); check the name") from error


def _may_hold_rows(source: str) -> bool:
    """Whether it is a list or a data set, or may match one; of a folder only clips and tars are taken."""
    suffix = PurePath(source).suffix.lower()
    return source == "-" or suffix in _DATA or (_is_glob(source) and not is_clip(source) and not is_tar(source))


def _is_glob(source: str) -> bool:
    return glob.has_magic(source) and not os.path.lexists(source)


def _read(source: str, options: InputOptions) -> Iterator[Item]:
    if source == "-":
        yield from _list("-", options)
    elif _is_glob(source):
        for path in _without_others(sorted(matching(source)), source, options):
            if not os.path.isdir(path) or not source.endswith("**"):
                yield from _found(path, _read_named(path, options))
    else:
        yield from _read_named(source, options)


def _read_named(path: str, options: InputOptions) -> Iterator[Item]:
    """A file or a folder; in a list, too."""
    if os.path.isdir(path) and path.rstrip(os.sep).endswith(".parquet"):
        own = options.is_own(path.rstrip(os.sep))
        parts = [] if own else glob.glob(os.path.join(glob.escape(path), "**", "*.parquet"), recursive=True)
        for part in sorted(part for part in parts if f"{os.sep}_" not in part.removeprefix(path.rstrip(os.sep))):
            yield from _parquet(part, options)
    elif os.path.isdir(path):
        yield from _folder(path, options)
    else:
        yield from _file(path, options)


def _without_others(paths: Sequence[str], source: str, options: InputOptions) -> Iterator[str]:
    """What a pattern matched, here or in the shell, but for the `a.json` and `a.en.srt` that lie beside an `a.mp4`, and
    for what vidllm wrote.
    """
    clips = clips_of(paths)
    left_out = _LeftOut(source, options)
    for path in paths:
        if not left_out.takes(path, beside=is_side_file(path, clips), among_clips=bool(clips)):
            yield path
    left_out.tell()


class _LeftOut:
    """Files among clips that are none: counted by their ending, and told."""

    def __init__(self, source: str, options: InputOptions) -> None:
        self._source, self._options = source, options
        self._found: dict[str, Counter[str]] = {}

    def takes(self, path: str, *, beside: bool, among_clips: bool) -> bool:
        """Whether it is left out: it lies beside a clip of its name, is a picture, or vidllm wrote it."""
        if self._options.is_own(path):  # which tells it
            return True
        what = ""
        if beside:
            what = "beside a video of their name"
        elif among_clips and is_still(path):
            what = "that are still pictures"
        elif is_trace(path) or (among_clips and is_output(path)):
            what = "that vidllm wrote"
        if what:
            self._found.setdefault(what, Counter())[PurePath(path).suffix.lower()] += 1
        return bool(what)

    def tell(self) -> None:
        """One line for each kind of them."""
        for what, found in self._found.items():
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in found.most_common())
            self._options.remark(f"{self._source}: {found.total()} files {what} are left out ({kinds})")


def _file(path: str, options: InputOptions, root: str | None = None) -> Iterator[Item]:
    suffix = PurePath(path).suffix.lower()
    if options.is_own(path):
        return
    if suffix in _DATA and os.path.realpath(path) in options.lists:
        options.remark(f"{path}: is a list that names itself, and left out of it")
        return
    if is_tar(path):
        yield from tar_items(path)
    elif suffix in _DATA:
        yield from _DATA[suffix](path, options)
    else:
        problem = problem_of(path, "no such file or folder; check the spelling")
        yield Item(video=path, path=path, root=root, problem=problem)


def _folder(root: str, options: InputOptions) -> Iterator[Item]:
    """Clips and tars below `root`, sorted folder by folder; hidden names and other files are left out."""
    others: Counter[str] = Counter()

    def trouble(error: OSError) -> None:
        options.remark(f"{error.filename}: can not be entered ({error.strerror}); its clips are left out")

    for folder, name in files_below(root, trouble):
        if is_clip(name) or is_tar(name):
            path = os.path.join(folder, name)
            yield from _found(path, _file(path, options, root))
        else:
            others[PurePath(name).suffix.lower() or "no ending"] += 1
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        options.remark(f"{root}: {others.total()} files are no clips by their ending and are left out ({kinds})")


# Data sets -----------------------------------------------------------------------------------------------------------


def _list(path: str, options: InputOptions) -> Iterator[Item]:
    """Paths, one a line, or JSON rows; empty lines are nothing, nor is what else `find` lists among clips."""
    lines = split_at_nul(sys.stdin.buffer if path == "-" else lines_of(path))
    options = replace(options, lists=options.lists | {os.path.realpath(path)})
    rows, left_out = Rows(path, "jsonl", options), _LeftOut(path, options)
    for index, line in enumerate(lines):
        if index == 0 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise InputError(f"{path}: is a list in UTF-16; save it as UTF-8")
        text = os.fsdecode(line.removeprefix(codecs.BOM_UTF8 if index == 0 else b"").rstrip(b"\r\n"))
        if index == 0 and (text.rstrip() in ("{", "[") or text.startswith("[{")):
            raise InputError(f"{path}: is one JSON document, and a list has a path or an object a line; name a file "
                             "that ends with .json, or turn it into lines (jq -c '.[]')")  # fmt: skip
        if text.startswith("{"):
            yield from rows.items(index, parsed(line))
        elif text.strip():
            named = placed(path, text, options)
            clips = () if is_clip(named) else clips_beside(named)  # a folder is only listed for what may be none
            beside = is_side_file(os.path.basename(named), clips)
            if not left_out.takes(named, beside=beside, among_clips=bool(clips)):
                yield from _found(named, _read_named(named, options))
    rows.tell()
    left_out.tell()


def _jsonl(path: str, options: InputOptions) -> Iterator[Item]:
    rows = ((number - 1, row) for number, row in json_rows(lines_of(path)))
    return Rows(path, "jsonl", options).all(rows)


def _json(path: str, options: InputOptions) -> Iterator[Item]:
    """A LLaVA data set: one array of rows."""
    return Rows(path, "llava", options).all(enumerate(array_rows(path)))


def _parquet(path: str, options: InputOptions) -> Iterator[Item]:
    return Rows(path, "parquet", options).all(enumerate(parquet_rows(path)))


_DATA: dict[str, Callable[[str, InputOptions], Iterator[Item]]] = {
    ".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".parquet": _parquet, ".txt": _list, ".lst": _list,
}  # fmt: skip
"""Endings that mean a list or a data set; never a clip."""


