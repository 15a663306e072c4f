"""What a judge leans on when the data tells no truth: the captions of a `vidllm caption` run, one text a clip.

    whole clip                                       its caption, the last one written
    parts (--split, --from): 0:00 to 0:05, 0:05 ..   each with its time, in their order: a part is not the clip
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vidllm.corpus.reading import standing_rows
from vidllm.corpus.rows import CaptionRow
from vidllm.video.timecode import format_time

TELLING = ("ok", "duplicate")
"""The statuses of rows that tell of their clip; a copy has its original's caption."""


def read_evidence(captions: Path) -> dict[Path, str]:
    """Resolved path of a clip -> what the run says of it. Raises InputError when there is no such output."""
    rows: dict[Path, list[CaptionRow]] = {}
    for row in standing_rows(captions):
        if row.status in TELLING:
            rows.setdefault(_clip(row, captions), []).append(row)
    return {clip: _told(several) for clip, several in rows.items()}


def _clip(row: CaptionRow, captions: Path) -> Path:
    """Where its clip lies: the run may have been in this folder, or beside its output."""
    places = (Path(row.video), captions.parent / row.video)
    return next((place for place in places if os.path.isfile(place)), places[0]).resolve()


def _told(rows: Sequence[CaptionRow]) -> str:
    whole = [row for row in rows if row.start is None and row.end is None]
    if whole:
        return whole[-1].caption
    cut = [row for row in rows if row.recipe == rows[-1].recipe]
    return "\n".join(f"{_span(row)}: {row.caption}" for row in sorted(cut, key=lambda row: row.start or 0.0))


def _span(row: CaptionRow) -> str:
    """ "From 0:05 to 0:10", or "From 0:05 on"."""
    start = f"From {format_time(row.start or 0.0)}"
    return f"{start} on" if row.end is None else f"{start} to {format_time(row.end)}"
