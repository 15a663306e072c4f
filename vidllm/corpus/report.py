"""The run as one HTML page that needs nothing but itself: counts, causes, slowest clips, and what some captions saw."""

from __future__ import annotations

import base64
import html
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import nlargest
from pathlib import Path

from vidllm.corpus.progress import duration
from vidllm.corpus.prompts import SUMMARY, is_summary
from vidllm.corpus.rows import STATUSES, CaptionRow
from vidllm.corpus.verify import name_of, opened_row
from vidllm.errors import VidllmError
from vidllm.linefile import write_whole
from vidllm.video.guard import Limits, read_frames_guarded

SLOWEST, CAUSES, SHEETS = 20, 20, 12
FAILURES = 40
"""Clips listed by name among those that failed."""
MOST_CELL = 2000
"""Letters: a data set may name a clip by megabytes, which would be told in three tables."""
SHEET_SIDE, MOST_FRAMES = 168, 16
JPEG_QUALITY = 80
SHEET_LIMITS = Limits(seconds=30)


@dataclass
class Report:
    """What the page tells: every row is told, whatever their number, then it is written."""

    statuses: Counter[str] = field(default_factory=Counter)
    recipes: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    slowest: list[CaptionRow] = field(default_factory=list)
    failures: list[CaptionRow] = field(default_factory=list)
    sample: list[CaptionRow] = field(default_factory=list)
    seconds: float = 0.0
    answer_tokens: int = 0

    def add(self, row: CaptionRow) -> None:
        """One more row."""
        self.statuses[row.status] += 1
        prompt = SUMMARY if is_summary(row.prompt) else row.prompt  # else every split video's would be its own
        self.recipes[row.recipe, row.model, prompt] += 1
        self.seconds += row.seconds
        if row.usage and row.duplicate_of is None:  # a copy has its original's
            self.answer_tokens += row.usage.answer_tokens
        if row.error:
            cause = cause_of(row)
            self.causes[cause] += 1
            self.examples.setdefault(cause, row.video)
        if row.status not in ("ok", "duplicate") and len(self.failures) < FAILURES:
            self.failures.append(row)
        self.slowest = nlargest(SLOWEST, [*self.slowest, row], key=lambda row: row.seconds)
        self._sample(row)

    def write(self, title: str, target: Path) -> Path:
        """The page at `target`, whole or not at all.

        Reads the frames of a dozen clips again, each in a child within half a minute; one that can not be read says so.
        Raises OutputError when the page can not be written.
        """
        write_whole(target, "".join(_page(title, self)))
        return target

    def _sample(self, row: CaptionRow) -> None:
        """Rows spread evenly by chance of their ids: the same rows each time, and not the first of the folder."""
        if row.frames and row.status != "duplicate":
            self.sample = sorted([*self.sample, row], key=lambda row: row.id)[:SHEETS]


def cause_of(row: CaptionRow) -> str:
    """The row's error without what differs from clip to clip: its name, and numbers but a server's (`answered 413`)."""
    text = (row.error or "").replace(row.video, "").lstrip(": ")
    return re.sub(r"(?<!answered )(?<!\d)\d+(\.\d+)?", "N", text)


def _page(title: str, report: Report) -> Iterator[str]:
    name = _text(title)
    yield _HEAD.replace("TITLE", name)
    total = report.statuses.total()
    good = report.statuses["ok"] + report.statuses["duplicate"]
    yield f"<h1>{name}</h1><p class=lead>{total:,} clips, {good:,} of them with a good caption"
    yield f"; {duration(report.seconds)} of work, {report.answer_tokens:,} tokens written.</p>"
    yield _statuses(report.statuses)
    yield from _recipes(report)
    yield from _causes(report)
    yield from _failures(report.failures)
    yield from _slowest(report.slowest)
    yield from _sheets(report.sample)
    yield "</main></html>\n"


def _statuses(statuses: Counter[str]) -> str:
    total = max(statuses.total(), 1)
    rows = "".join(
        f'<tr><td><i class="dot {status}"></i>{status}<td class=n>{statuses[status]:,}<td class=n>'
        f"{statuses[status] / total:.1%}<td class=w>{_bar(status, statuses[status] / total)}"
        for status in STATUSES
    )
    return (
        f"<h2>How clips ended</h2><table id=statuses><tr><th>status<th class=n>clips<th class=n>share<th>{rows}</table>"
    )


def _bar(status: str, share: float) -> str:
    """At least a sliver where there is any, and where there is none nothing."""
    return f'<div class="bar {status}" style="width:{100 * share:.2f}%"></div>' if share else ""


def _recipes(report: Report) -> Iterator[str]:
    rows = ((recipe, model, prompt, f"{n:,}") for (recipe, model, prompt), n in report.recipes.most_common(20))
    yield from _table("Recipes", ("recipe", "model", "prompt", "clips"), rows, "recipes")


def _causes(report: Report) -> Iterator[str]:
    if report.causes:
        found = ((cause, f"{count:,}", report.examples[cause]) for cause, count in report.causes.most_common(CAUSES))
        yield from _table("Causes", ("cause", "clips", "for example"), found, "causes")


def _failures(rows: Sequence[CaptionRow]) -> Iterator[str]:
    if rows:
        found = ((name_of(row), row.status, row.error or row.finish_reason or "", row.caption[:200]) for row in rows)
        yield from _table("Not ok", ("clip", "status", "cause", "caption"), found, "failures")


def _slowest(rows: Sequence[CaptionRow]) -> Iterator[str]:
    found = ((name_of(row), row.status, f"{row.seconds:.2f} s", str(row.attempts)) for row in rows)
    yield from _table("Slowest", ("clip", "status", "time", "tries"), found, "slowest")


def _table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], name: str) -> Iterator[str]:
    yield f"<h2>{title}</h2><table id={name}><tr>{''.join(f'<th>{head}' for head in heads)}"
    for row in rows:
        yield "<tr>" + "".join(f"<td>{_text(cell[:MOST_CELL])}" for cell in row)
    yield "</table>"


def _sheets(rows: Sequence[CaptionRow]) -> Iterator[str]:
    """Captions beside the frames they rest on."""
    if rows:
        yield "<h2>What captions saw</h2>"
    for row in rows:
        yield f'<figure><figcaption><b><i class="dot {row.status}"></i>{_text(name_of(row))}</b>'
        yield f"<blockquote>{_text(row.caption)}</blockquote></figcaption>{_sheet(row)}</figure>"


def _sheet(row: CaptionRow) -> str:
    """The contact sheet as a picture inside the page, or why there is none."""
    try:
        return f'<img alt="{len(row.frames)} frames of {_text(row.video)}" src="data:image/jpeg;base64,{_jpeg(row)}">'
    except VidllmError as error:
        return f"<p class=gone>{_text(str(error))}</p>"


def _jpeg(row: CaptionRow) -> str:
    from vidllm.video.sheet import draw_sheet

    step = max(-(-len(row.frames) // MOST_FRAMES), 1)
    shown = row.frames[::step]
    with opened_row(row) as path:
        frames = read_frames_guarded(path, [frame.time for frame in shown], SHEET_LIMITS, max_side=SHEET_SIDE)
    data = io.BytesIO()
    draw_sheet(frames, tokens=[frame.tokens for frame in shown]).save(data, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(data.getvalue()).decode()


def _text(text: str) -> str:
    """Text that is only text, whatever a file is called or a model says; half a character is spelled out."""
    return html.escape(text).encode("utf-8", "backslashreplace").decode()


_HEAD = """<!doctype html><html lang=en><meta charset=utf-8>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name=viewport content="width=device-width, initial-scale=1"><title>TITLE</title><style>
:root{color-scheme:light dark;--line:#8884;--soft:#8882}
body{font:15px/1.5 system-ui,sans-serif;margin:0}main{max-width:1100px;margin:auto;padding:1.5rem}
h1{font-size:1.4rem;overflow-wrap:anywhere}h2{font-size:1.05rem;margin:2rem 0 .4rem}
table{border-collapse:collapse;width:100%}
th{text-align:left;font-weight:600;white-space:nowrap}
#failures td:nth-child(2),#slowest td:nth-child(2){white-space:nowrap}
td,th{padding:.25rem .6rem;border-bottom:1px solid var(--line);vertical-align:top;
overflow-wrap:anywhere}.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}.w{width:45%}
.bar{height:.8rem;border-radius:3px;margin-top:.35rem;min-width:1px}
.dot{display:inline-block;width:.65rem;height:.65rem;border-radius:50%;margin-right:.45rem}
.ok{background:#2e9e5b}.duplicate{background:#6aa9d8}.truncated{background:#d9a521}.repetitive{background:#d97c21}
.undecodable{background:#a33}.error{background:#d33}
figure{margin:1rem 0;padding:1rem;background:var(--soft);border-radius:8px}
figcaption{margin-bottom:.6rem;overflow-wrap:anywhere}
blockquote{margin:.4rem 0;padding-left:.8rem;border-left:3px solid var(--line);white-space:pre-wrap}
img{max-width:100%;height:auto;border-radius:4px}
.gone{color:#a33}</style><main>
"""
