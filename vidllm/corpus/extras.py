"""What is made of an output when a run has ended: whisper-style files, the data sets' new column, the report."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vidllm.corpus.diff import NewCaptions, write_diff
from vidllm.corpus.reading import standing_rows
from vidllm.corpus.report import Report
from vidllm.corpus.sidefiles import Format, Named, SideFiles, parse_formats
from vidllm.corpus.sidefolder import SideFolder
from vidllm.corpus.stores import DIFF_SUFFIX, check_output
from vidllm.corpus.traces import DIFF, PAGE, head_of
from vidllm.errors import ConfigError, OutputError
from vidllm.linefile import check_whole_place, not_writable

if TYPE_CHECKING:
    from vidllm.corpus.caption import CaptionReport


@dataclass(frozen=True, kw_only=True)
class Extras:
    """Wishes beside the output. Impossible ones raise ConfigError, before the run."""

    formats: str | None = None
    """`srt,vtt`, or `all`; they go into a folder of the output's name (`sidefolder`)."""
    in_place: bool = False
    """Add the captions to the data sets that the clips came from."""
    report: Path | None = None

    def __post_init__(self) -> None:
        parse_formats(self.formats or "all")
        if self.report is not None and self.report.suffix.lower() not in (".html", ".htm"):
            raise ConfigError(f"{self.report}: the report is a web page; end its name with .html")

    @property
    def wanted_formats(self) -> tuple[Format, ...]:
        """Those asked for; none by default."""
        return parse_formats(self.formats) if self.formats else ()


def check_extras(output: Path, extras: Extras) -> Iterator[str]:
    """Before the run: raise OutputError for files in the way, and tell where files go if not where one would look."""
    check_output(output)
    if extras.formats:
        folder = SideFolder.beside(output)
        folder.check([f".{format}" for format in extras.wanted_formats])
        if folder.path != output.with_suffix(""):
            yield f"{output.with_suffix('')}: is there already; {', '.join(extras.wanted_formats)} go to {folder.path}"
    if extras.in_place:
        _check_ours(output.with_suffix(DIFF_SUFFIX), DIFF)
    if extras.report is not None:
        _check_ours(extras.report, PAGE)


def _check_ours(path: Path, begins: re.Pattern[bytes]) -> None:
    if path.is_dir():
        raise OutputError(f"{path}: is a folder, where a file is to be written; move it away, or name another output")
    check_whole_place(path)
    try:
        head = head_of(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise not_writable(path, error) from error
    if head and not begins.match(head):
        raise OutputError(f"{path}: is there already and vidllm did not write it; move it away, or name another output")


def write_extras(done: CaptionReport, extras: Extras, others: Collection[Named] = ()) -> Iterator[str]:
    """Write them one after the other; says what was written, one line each. No file gets a name that belongs to one of
    `others`, the videos of other shards.

    Raises InputError or OutputError; the latter in the end where a side file has no name that the disk takes, or a data
    set could not get its captions.
    """
    problems: list[str] = []
    files, captions, report = SideFiles(), NewCaptions(), Report()
    for row in standing_rows(done.output) if extras != Extras() else ():
        if extras.formats and done.saw(row):
            files.add(row)
        if extras.in_place and done.saw(row):
            captions.add(row)
        if extras.report is not None and done.made(row):
            report.add(row)
    if extras.formats:
        folder = SideFolder.beside(done.output)
        written = files.write(extras.wanted_formats, folder, others)
        yield f"{folder.path}: wrote {len(written):,} files ({', '.join(extras.wanted_formats)})"
        said = "is not written, its name is too long for the disk; rename the clip and run again"
        problems += [f"{path}: {said}" for path in folder.unnamed]
    if extras.in_place:
        renewed = captions.put(done.tag)
        changed = [file for file in renewed if file.problem is None]
        problems += [file.problem for file in renewed if file.problem is not None]
        if not renewed:
            yield "no caption is of a data set's row, so none was put in its place"
        for file in changed:
            yield f"{file.file}: {len(file.changes):,} captions in column {file.column!r}"
        if changed:
            write_diff(changed, diff := done.output.with_suffix(DIFF_SUFFIX))
            yield f"{diff}: old and new side by side"
    if extras.report is not None:
        yield f"{report.write(str(done.output), extras.report)}: the report"
    yield from problems[:-1]
    if problems:
        raise OutputError(problems[-1])
