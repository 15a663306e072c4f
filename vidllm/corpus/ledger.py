"""Who is done, in work, or waiting for a twin: one caption for all copies of a clip, and every clip in one row.

The pool's threads ask (`skip`, `wanted`), the loop tells (`settle`); one lock around the output's memory of both.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vidllm.corpus.rows import FAILED, CaptionRow

if TYPE_CHECKING:
    from vidllm.corpus.item import Item
    from vidllm.corpus.looking import Look, Seen
    from vidllm.corpus.output import Output
    from vidllm.corpus.rows import Status
    from vidllm.corpus.scenes import Cut


class Ledger:
    """Over an open Output, which is written to through here alone."""

    def __init__(self, output: Output, look: Look) -> None:
        self._output, self._look = output, look
        self._lock = threading.Lock()
        self._working: dict[tuple[str, str, str], list[CaptionRow]] = {}
        """Twins that wait, by content, recipe and subtitles."""
        self._found: list[CaptionRow] = []
        self.standing: Counter[Status] = Counter()
        """How the clips admitted until now ended, by this run or an earlier one."""
        self.skipped = 0
        """Clips that were done before."""
        self._is_closed = False

    def close(self) -> None:
        """Nothing goes into the output any more: a thread of the pool that wakes now would write into another file."""
        with self._lock:
            self._is_closed = True

    def digest(self, item: Item) -> str:
        """The recipe of one item."""
        return self._output.digest_of(item)

    def skip(self, item: Item) -> bool:
        """Whether the item has its row and its file has not changed since; it is promised one now."""
        recipe = self.digest(item)
        with self._lock:
            if self._is_closed:
                return True
            self._output.admitted(item)
            if not self._output.is_finished(item, recipe):
                return False
            self.skipped += 1
            if (status := self._output.status_of(item, recipe)) is not None:
                self.standing[status] += 1
            return True

    def known_cut(self, item: Item, split: str, stamp: str) -> Cut | None:
        """How an earlier run cut the item, if its file has not changed since."""
        with self._lock:
            return None if self._is_closed else self._output.known_cut(item, split, stamp)

    def cut(self, item: Item, cut: Cut) -> None:
        """The parts stand for the item from here on."""
        with self._lock:
            if not self._is_closed:
                self._output.cut(item, cut)

    def wanted(self, item: Item, seen: Seen) -> bool:
        """Whether this clip is to be captioned: nobody has its content's caption, and nobody is at it."""
        recipe = self.digest(item)
        with self._lock:
            if self._is_closed:
                return False
            known = self._output.caption_of(seen.id, recipe, subtitles=seen.subtitles, key=item.key)
            if known is not None:
                self._found += self._add([_copy(self._row(item, seen), known)])  # now: `known` may not stand later
                return False
            twins = self._working.get((seen.id, recipe, seen.subtitles))
            if twins is not None:
                twins.append(self._row(item, seen))
                return False
            self._working[seen.id, recipe, seen.subtitles] = []
            return True

    def settle(self, row: CaptionRow) -> list[CaptionRow]:
        """Write the row of a clip that was wanted, and those of its twins; all that were written."""
        with self._lock:
            twins = self._working.pop((row.id, row.recipe, row.subtitles), [])
            return self._add([row, *(_copy(twin, row) for twin in twins)])

    def take_found(self) -> list[CaptionRow]:
        """The rows written since the last call, of clips whose content was captioned before."""
        with self._lock:
            rows, self._found = self._found, []
            return rows

    def rows_of(self, items: Sequence[Item]) -> list[CaptionRow | None]:
        """The items' rows; None where there is none yet."""
        with self._lock:
            return [self._output.row_of(item, self.digest(item)) for item in items]

    def _add(self, rows: Sequence[CaptionRow]) -> list[CaptionRow]:
        """The rows that stand then: a clip that was only touched keeps its own."""
        written = [self._output.add(row) for row in rows]
        self.standing.update(row.status for row in written)
        return written

    def _row(self, item: Item, seen: Seen) -> CaptionRow:
        row = CaptionRow.of(
            item, id=seen.id, recipe=self.digest(item), status="duplicate", stamp=seen.stamp, subtitles=seen.subtitles
        )
        return replace(row, prompt=self._look.prompt_of(item))


def _copy(row: CaptionRow, known: CaptionRow) -> CaptionRow:
    """`row` with the caption of the same content; with its failure, if that is how the other ended."""
    return replace(
        row, status=known.status if known.status in FAILED else "duplicate", caption=known.caption,
        finish_reason=known.finish_reason, error=_cause(row, known), frames=known.frames, reader=known.reader,
        notes=known.notes, usage=known.usage, model=known.model, engine=known.engine, attempts=known.attempts,
        duplicate_of=known.video,
    )  # fmt: skip


def _cause(row: CaptionRow, known: CaptionRow) -> str | None:
    """Why the other failed, told of this clip by its own name."""
    if known.error is None or not known.error.startswith(f"{known.video}: "):
        return known.error
    return row.video + known.error.removeprefix(known.video)
