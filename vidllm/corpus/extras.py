"""What is made of an output when a run has ended: whisper-style files, the data sets' new column, the report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vidllm.corpus.diff import recaption, write_diff
from vidllm.corpus.sidefiles import Format, parse_formats, write_side_files
from vidllm.errors import ConfigError

if TYPE_CHECKING:
    from vidllm.corpus.caption import CaptionReport


@dataclass(frozen=True, kw_only=True)
class Extras:
    """Wishes beside the output. Impossible ones raise ConfigError, before the run."""

    formats: str | None = None
    """`srt,vtt`, or `all`; they go into a folder of the output's name."""
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


def write_extras(done: CaptionReport, extras: Extras) -> Iterator[str]:
    """Write them one after the other; says what was written, one line each. Raises InputError or OutputError."""
    if extras.formats:
        folder = done.output.with_suffix("")
        written = write_side_files(done.output, extras.wanted_formats, folder, done.recipe)
        yield f"{folder}: wrote {len(written):,} files ({', '.join(extras.wanted_formats)})"
    if extras.in_place:
        changed = recaption(done.output, done.recipe)
        for file in changed:
            yield f"{file.file}: {len(file.changes):,} captions in column {file.column!r}"
        if changed:
            write_diff(changed, done.output.with_suffix(".diff"))
            yield f"{done.output.with_suffix('.diff')}: old and new side by side"
    if extras.report is not None:
        from vidllm.corpus.report import write_report

        write_report(done.output, extras.report, done.recipe)
        yield f"{extras.report}: the report"
