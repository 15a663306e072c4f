"""The rows of data sets as items: which clip a row names, which range of it, what was said of it until now."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal

from vidllm.corpus.item import Item, SourceKind, SourceRow
from vidllm.errors import ConfigError, NotAVideo
from vidllm.still import is_still
from vidllm.video.address import is_url, plain_path
from vidllm.video.container import refuse_pipe
from vidllm.video.timecode import parse_time

PATH_COLUMNS = ("video", "path", "video_path", "file", "file_name", "filename", "mp4")
"""Columns that may name the clip, the first that a row has."""
CAPTION_COLUMNS = ("caption", "text", "answer")
INSIDE = "its video is inside the data set, and a corpus is of files; write its bytes to a file and name that"


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """How rows are read."""

    videos: str | None = None
    """The folder that paths inside lists and data sets are relative to; None: the data set's own, for `-` this one."""
    column: str | None = None
    """The column that names the clip; None: see `PATH_COLUMNS`."""
    prompt_column: str | None = None
    """The column with a clip's own prompt; None: every clip gets the run's."""
    remark: Callable[[str], None] = lambda line: None
    """Hears what was left out and why, one line each."""


@dataclass
class Rows:
    """The rows of one data set as items. LLaVA rows about images or about nothing are no clips: counted, and told."""

    file: str
    kind: SourceKind
    options: RowOptions
    left_out: int = 0
    lacks_prompt: bool = False

    def all(self, rows: Iterable[tuple[int, object]]) -> Iterator[Item]:
        """Of (place, row)s, to the last."""
        for index, row in rows:
            yield from self.items(index, row)
        self.tell()

    def items(self, index: int, row: object) -> Iterator[Item]:
        """The row's item, or none."""
        if isinstance(row, dict):
            row = {name: value for name, value in row.items() if value == value}  # NaN is how pandas says nothing
        if isinstance(row, dict) and "conversations" in row and _named(row, self.options) is None:
            self.left_out += 1
            return
        item, column = _row(self.file, self.kind, index, row, self.options), self.options.prompt_column
        if column and not item.prompt and item.source is not None and not self.lacks_prompt:
            self.lacks_prompt = True
            self.options.remark(f"{self.file}#{index + 1}: has no {column}; such rows get the run's prompt")
        yield item

    def tell(self) -> None:
        """Say what was left out."""
        if self.left_out:
            self.options.remark(f"{self.file}: {self.left_out} rows name no video and are left out")


def _row(file: str, kind: SourceKind, index: int, row: object, options: RowOptions) -> Item:
    """The item of one row; a row that can not be understood is an item with a problem, by file and line."""
    place = f"{file}#{index + 1}"
    try:
        if isinstance(row, Exception):
            raise ValueError(f"no valid JSON line ({row}); mend or remove the row") from row
        if not isinstance(row, dict):
            raise ValueError("no JSON object; mend or remove the row")
        inside = _is_inside(row, options)
        if (named := _named(row, options)) is None:
            looked_for = options.column or ", ".join(PATH_COLUMNS)
            raise ValueError(INSIDE if inside else f"names no video (looked for {looked_for}); name the column")
        start, end = _range(row)
        asked = _asked(row, options)
    except ValueError as error:
        return Item(video=place, path=place, problem=f"{place}: {error}")
    path, id = placed(file, named, options), row.get("id")
    source = SourceRow(
        kind=kind, file=file, index=index, id=None if id is None else str(id), caption=old_caption(row)
    )
    return Item(
        video=path, path=path, start=start, end=end, prompt=asked, source=source,
        problem=problem_of(path, INSIDE if inside else f"no such file ({place}); name the folder of the videos"),
    )  # fmt: skip


def problem_of(path: str, gone: str) -> str | None:
    """Why the file can be no clip, as far as a look at the file system tells; `gone` where it is not there."""
    if is_url(path):
        return f"{path}: is an address, and a corpus is of files; download it first"
    if not os.path.exists(path):
        return f"{path}: {gone}"
    try:
        refuse_pipe(path)
    except NotAVideo as error:
        return str(error)
    if is_still(path):
        return f"{path}: is a still picture, and captions are of videos; `vidllm ask` takes pictures"
    return None


def _named(row: dict[str, object], options: RowOptions) -> str | None:
    """The path a row names; also inside a struct, as Hugging Face's video columns have it."""
    for value in _named_by(row, options):
        value = value.get("path") if isinstance(value, dict) else value
        if isinstance(value, str) and value:
            return value
    return None


def _is_inside(row: dict[str, object], options: RowOptions) -> bool:
    """Whether a column has the video's own bytes; beside them a struct keeps the name of the file they came from."""
    found = (value.get("bytes") if isinstance(value, dict) else value for value in _named_by(row, options))
    return any(isinstance(value, bytes) for value in found)


def _named_by(row: dict[str, object], options: RowOptions) -> Iterator[object]:
    return (row.get(column) for column in ((options.column,) if options.column else PATH_COLUMNS))


def _asked(row: dict[str, object], options: RowOptions) -> str | None:
    """The row's own prompt, if it has one. Raises ValueError for what is no text: a whole conversation has the answer
    in it.
    """
    asked = row.get(options.prompt_column) if options.prompt_column else None
    if asked is not None and not isinstance(asked, str):
        kind = type(asked).__name__
        raise ValueError(f"{options.prompt_column} holds no prompt but a value of type {kind}; name a column of text")
    return asked if asked and asked.strip() else None


def old_caption(row: dict[str, object]) -> str | None:
    """What a row says of its clip: a caption column, or the last thing a LLaVA conversation's model says."""
    for column in CAPTION_COLUMNS:
        if isinstance(value := row.get(column), str):
            return value
    turns = talk if isinstance(talk := row.get("conversations"), list) else []
    said = [turn.get("value") for turn in turns if isinstance(turn, dict) and turn.get("from") == "gpt"]
    return said[-1] if said and isinstance(said[-1], str) else None


def _range(row: dict[str, object]) -> tuple[float | None, float | None]:
    """Seconds [start, end). Raises ValueError saying what is wrong with them."""
    try:
        start, end = _time(row.get("start")), _time(row.get("end"))
    except ConfigError as error:
        raise ValueError(f"start or end is no time ({error})") from error
    if end is not None and not (start or 0.0) < end:
        raise ValueError(f"the range {start or 0.0:g}-{end:g} is empty")
    return start, end


def _time(value: object) -> float | None:
    if value is None or value == "":
        return None
    if isinstance(value, Decimal):  # Parquet's exact numbers, as SQL engines write 3.5
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ConfigError(f"{value!r} is no time")
    try:
        return parse_time(value)
    except OverflowError as error:  # JSON knows no largest number
        raise ConfigError(f"{str(value)[:20]}... is no time") from error


def placed(file: str, path: str, options: RowOptions) -> str:
    """A path inside a list, from where this process stands."""
    path = str(plain_path(path))
    if (file == "-" and options.videos is None) or is_url(path):
        return path
    whole = os.path.join(options.videos or os.path.dirname(file), path)
    plain = os.path.normpath(whole)
    if os.pardir in whole.split(os.sep) and os.path.realpath(plain) != os.path.realpath(whole):
        return whole  # behind a link to a folder, `..` is the folder above where it leads
    return plain
