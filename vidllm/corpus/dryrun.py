"""What a run would do and about how long it would take: everything is looked at, a few clips are captioned, for nobody.

The time is measured, not guessed: the first clips really go through decoding and model; their captions are thrown away.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from vidllm.corpus.index import RowIndex
from vidllm.corpus.ledger import Ledger
from vidllm.corpus.output import Output
from vidllm.corpus.progress import Tally, duration
from vidllm.corpus.reading import BadLine, written_rows
from vidllm.corpus.rows import FAILED
from vidllm.corpus.run import Run
from vidllm.corpus.summary import whole_of
from vidllm.corpus.workers import DecodePool
from vidllm.counts import count_of
from vidllm.errors import OutputError
from vidllm.interrupts import Interrupts
from vidllm.video.subtitles import find_sidecar_of_many

if TYPE_CHECKING:
    from vidllm.corpus.caption import CaptionOptions
    from vidllm.corpus.captioner import Engine
    from vidllm.corpus.index import Head
    from vidllm.corpus.item import Item
    from vidllm.corpus.looking import Look, Seen
    from vidllm.corpus.recipe import Recipe
    from vidllm.corpus.scenes import Cut

SAMPLE = 16
"""Clips captioned to see how long one takes."""
WAIT_SECONDS = 0.1


class Done:
    """What earlier runs have done, as `Output` tells it; but the rows are only read: no lock is asked for, for a run
    may be writing them, and nothing is mended or made.
    """

    def __init__(self, output: Path, recipe: Recipe, *, retry_errors: bool) -> None:
        """None of it where there is no output. Raises OutputError for a line that is no row."""
        self.recipe, self._retry = recipe, retry_errors
        self._find_sidecar = find_sidecar_of_many if recipe.plan.get("subtitles") else None
        self._digest = recipe.digests()
        self._told: list[tuple[str, str]] = []
        """Every row's id and subtitles."""
        self._index = RowIndex.of(self._heads(output) if output.exists() else iter(()))

    def is_finished(self, item: Item) -> bool:
        """Whether it has its row, and neither its file nor the subtitles beside it have changed since."""
        known = self._index.by_key(item.key, self._digest(item.prompt))
        return known is not None and known.finishes(item, self._find_sidecar, retry_errors=self._retry)

    def has_caption(self, item: Item, seen: Seen) -> bool:
        """Whether its content has a caption, under whatever name."""
        rows = self._index.captions(seen.id, self._digest(item.prompt), item.key)
        return any(self._told[known.place] == (seen.id, seen.subtitles) for known in rows)

    def _heads(self, output: Path) -> Iterator[tuple[Head, int]]:
        for number, row in enumerate(written_rows(output)):
            if isinstance(row, BadLine):
                place = f"{row.file}: line {row.line}"
                raise OutputError(f"{place} is no caption row; name another output, or mend the line")
            self._told.append((row.id, row.subtitles))
            yield (row.id, row.key, row.recipe, row.stamp, row.status), number


@dataclass(kw_only=True)
class Estimate:
    """What lies before a run; clips that are done already are only counted."""

    done: int = 0
    clips: int = 0
    """To be captioned, ranges of split videos counted one by one."""
    copies: int = 0
    """Of the same content as others: they get those's captions."""
    wholes: int = 0
    """Split videos to be summed up from their parts' captions."""
    bad: int = 0
    """Can not be captioned, as far as looking at them tells."""
    video_seconds: float = 0.0
    frames: int = 0
    tokens: int = 0
    """Of the prompts; answers come on top."""
    sampled: int = 0
    sample_seconds: float = 0.0

    @property
    def seen(self) -> int:
        """Clips looked at so far."""
        return self.done + self.clips + self.copies + self.bad

    @property
    def run_seconds(self) -> float | None:
        """About how long it would take; None when no clip could be tried."""
        return self.clips * self.sample_seconds / self.sampled if self.sampled else None

    def lines(self) -> list[str]:
        """For people."""
        told = [
            f"clips    {self.clips:,} to caption" + (f", {self.done:,} done before" if self.done else ""),
            f"hours    {self.video_seconds / 3600:,.2f} of video",
            f"frames   {self.frames:,}",
            f"tokens   {self.tokens:,} to read",
        ]
        if self.wholes:
            told.insert(1, f"wholes   {self.wholes:,} split videos to sum up from their parts' captions")
        if self.copies:
            told.insert(1, f"copies   {self.copies:,} of clips that have a caption or get one; it is copied")
        if self.bad:
            told.insert(1, f"bad      {self.bad:,} that can not be read; each gets a row that says why")
        if (seconds := self.run_seconds) is not None:
            tried = count_of(self.sampled, "clip")
            told.append(f"time     about {duration(seconds)}, by {tried} captioned now and thrown away")
        return told


def estimate(
    items: Iterator[Item],
    engine: Engine,
    look: Look,
    options: CaptionOptions,
    done: Done,
    tell: Callable[[Tally], None],
) -> Estimate:
    """Look at every item that is not done, then caption the first few."""
    looking = _Looking(done, look, options.summarise)
    pool = DecodePool(
        items, look, workers=options.workers_now, skip=looking.skip, wanted=looking.wanted, split=options.split,
        on_cut=looking.cut, decoders=engine.decoders(),
    )  # fmt: skip
    try:
        while not pool.finished:
            if pool.take(WAIT_SECONDS) is not None:
                looking.add_bad()
            tell(Tally(skipped=looking.found.seen))
    finally:
        pool.close()
    if looking.sample:
        tally = _tried(looking.sample, engine, look, options, done.recipe, tell)
        looking.found.sampled = tally.written - sum(tally.counts[status] for status in FAILED)
        looking.found.sample_seconds = tally.seconds
    return looking.found


def _tried(
    sample: Sequence[Item], engine: Engine, look: Look, options: CaptionOptions, recipe: Recipe,
    tell: Callable[[Tally], None],
) -> Tally:  # fmt: skip
    """How captioning the sample went, into an output that is thrown away."""
    options = replace(options, split="none", summarise=False)
    with TemporaryDirectory(prefix="vidllm-") as folder, Output.open(Path(folder, "trial.jsonl"), recipe) as rows:
        run = Run(iter(sample), engine, Ledger(rows, look), look, options, tell=tell)
        return run.go(Interrupts())  # hears no Ctrl-C, which ends a dry run at once


class _Looking:
    """Counts what the pool's workers see and wants none of it decoded."""

    def __init__(self, done: Done, look: Look, summarises: bool) -> None:
        self.found = Estimate()
        self.sample: list[Item] = []
        self._done, self._look, self._summarises = done, look, summarises
        self._contents: set[tuple[str, str, str]] = set()
        self._lock = threading.Lock()

    def skip(self, item: Item) -> bool:
        with self._lock:
            is_done = self._done.is_finished(item)
            self.found.done += is_done
            return is_done

    def cut(self, item: Item, cut: Cut) -> None:
        parts = cut.parts(item)
        if not self._summarises or len(parts) == 1:
            return
        with self._lock:
            is_done = all(self._done.is_finished(one) for one in (*parts, whole_of(item, self._look)))
            self.found.done += is_done
            self.found.wholes += not is_done

    def add_bad(self) -> None:
        with self._lock:
            self.found.bad += 1

    def wanted(self, item: Item, seen: Seen) -> bool:
        if seen.status is not None:
            self.add_bad()
            return False
        with self._lock:
            if self._is_copy(item, seen):
                self.found.copies += 1
                return False
            self.found.clips += 1
            self.found.frames += seen.frames
            self.found.tokens += seen.tokens
            self.found.video_seconds += seen.seconds
            if len(self.sample) < SAMPLE:
                self.sample.append(item)
        return False

    def _is_copy(self, item: Item, seen: Seen) -> bool:
        content = seen.id, self._look.prompt_of(item), seen.subtitles
        if content in self._contents or self._done.has_caption(item, seen):
            return True
        self._contents.add(content)
        return False
