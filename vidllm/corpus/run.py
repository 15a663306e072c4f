"""The caption loop: open -> caption -> judge -> write, every clip to exactly one row.

    items --DecodePool--> opened --submit--> Captioner --said--> judge --ok, or out of tries--> Ledger --> Output
                                     ^                             |
                                     +------ changed sampling -----+

One thread runs the model and writes; the pool's threads only wait for their processes. `Ledger` says which clips are
done, which are in work, and which wait for a twin's caption.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vidllm.corpus.progress import Tally
from vidllm.corpus.prompts import PRESETS
from vidllm.corpus.quality import RANK, Judgement, judge, next_sampling, unthought
from vidllm.corpus.rows import FAILED, CaptionRow, RowFrame
from vidllm.corpus.summary import Summaries
from vidllm.corpus.workers import DecodePool
from vidllm.interrupts import Interrupts

if TYPE_CHECKING:
    from vidllm.corpus.caption import CaptionOptions
    from vidllm.corpus.captioner import Engine, Said
    from vidllm.corpus.item import Item
    from vidllm.corpus.ledger import Ledger
    from vidllm.corpus.looking import Look, Opened
    from vidllm.corpus.rows import Status
    from vidllm.corpus.scenes import Cut
    from vidllm.options import GenerationOptions

IDLE_SECONDS = 0.1
"""Longest wait for one thing before looking at the others."""


@dataclass(kw_only=True)
class _Asked:
    """One clip with the captioner, through all its tries."""

    opened: Opened
    prompt: str
    options: GenerationOptions
    attempt: int = 1
    best: tuple[Judgement, Said] | None = None
    seconds: float = 0.0
    then: Callable[[str], None] | None = None
    """Who wants the text instead of a row; it is empty when there is none."""


class Run:
    """One pass over `items`. `go` returns when all are settled, or after Ctrl-C when those in flight are."""

    def __init__(
        self,
        items: Iterator[Item],
        engine: Engine,
        ledger: Ledger,
        look: Look,
        options: CaptionOptions,
        *,
        tell: Callable[[Tally], None] = lambda tally: None,
    ) -> None:
        self._captioner, self._ledger, self._look = engine.captioner, ledger, look
        self._options, self._tell = options, tell
        self.tally = Tally()
        self._asked: dict[int, _Asked] = {}
        self._tickets = 0
        self._lock = threading.Lock()
        self._summaries = Summaries(ledger, look) if options.summarise else None
        self._pool = DecodePool(
            items, look, workers=options.workers_now, ahead_bytes=options.ahead_bytes,
            ahead=max(engine.captioner.room(), 2 * options.workers_now), skip=ledger.skip, wanted=ledger.wanted,
            split=options.split, known_cut=ledger.known_cut, on_cut=self._cut, decoders=engine.decoders(),
        )  # fmt: skip

    def go(self, interrupts: Interrupts) -> Tally:
        """Caption until nothing is left, or `interrupts` asks to stop and what is in flight is done.

        Raises KeyboardInterrupt when that was asked for twice, or took longer than `interrupts` has patience.
        """
        try:
            while self._asked or not (interrupts.asked or self._nothing_left()):
                if interrupts.asked:
                    interrupts.check()
                    self._pool.close()
                else:
                    self._fill()
                for said in self._captioner.poll(IDLE_SECONDS):
                    self._hear(said)
                self._count(self._ledger.take_found())
                self._show()
        finally:
            self._pool.close()
            self._ledger.close()
        return self.tally

    def _nothing_left(self) -> bool:
        """Whether all clips came and every summary was asked for."""
        if not self._pool.finished:
            return False
        self._count(self._ledger.take_found())
        if self._summaries is not None:
            for wish in self._summaries.take_wishes():
                if wish.opened.seen.status is None:
                    self._ask(wish.opened, wish.prompt, wish.then)
                else:
                    self._fail(wish.opened)
            self._count(self._ledger.take_found())
        return not self._asked

    def _fill(self) -> None:
        """Give the captioner what it has room for; wait a moment for the first clip when it has nothing to do."""
        while self._captioner.room() > 0:
            opened = self._pool.take(0.0 if self._asked else IDLE_SECONDS)
            if opened is None:
                return
            if opened.clip is None:
                self._fail(opened)
            else:
                self._ask(opened, self._look.prompt_of(opened.item))

    def _ask(self, opened: Opened, prompt: str, then: Callable[[str], None] | None = None) -> None:
        self._submit(_Asked(opened=opened, prompt=prompt, options=self._options.generation, then=then))

    def _submit(self, asked: _Asked) -> None:
        self._tickets += 1
        self._asked[self._tickets] = asked
        self._captioner.submit(self._tickets, asked.opened.clip, asked.prompt, asked.options)

    def _hear(self, said: Said) -> None:
        """An answer: written when it is good or the tries are used up, else asked for again in another way."""
        asked, said = self._asked.pop(said.ticket), replace(said, text=unthought(said.text))
        asked.seconds += said.seconds
        structured = asked.prompt == PRESETS["structured"]
        judgement = judge(said.text, said.finish_reason, structured=structured)
        if said.error:
            judgement = Judgement("error", said.error)
        if asked.best is None or RANK[judgement.status] < RANK[asked.best[0].status]:
            asked.best = judgement, said
        again = None
        if not said.error and asked.attempt <= self._options.retries:
            roomy = self._options.plan.max_new_tokens is None
            again = next_sampling(self._options.generation, asked.attempt, judgement, roomy=roomy)
        if again is not None:
            asked.attempt, asked.options = asked.attempt + 1, again
            self._submit(asked)
            return
        self._settle(asked)

    def _settle(self, asked: _Asked) -> None:
        assert asked.best is not None
        opened, (judgement, said) = asked.opened, asked.best
        if asked.then is not None:
            asked.then("" if judgement.status in FAILED else said.text)
            return
        self._write(
            opened, judgement.status, judgement.cause, caption=said.text, finish_reason=said.finish_reason,
            **_seen(opened), usage=said.usage, model=said.model or self._captioner.model, prompt=asked.prompt,
            attempts=asked.attempt, seconds=opened.seconds + asked.seconds,
        )  # fmt: skip

    def _fail(self, opened: Opened) -> None:
        """The row of a clip that gave no frames."""
        self._write(
            opened, opened.seen.status or "error", opened.seen.error, prompt=self._look.prompt_of(opened.item),
            model=self._captioner.model, seconds=opened.seconds,
        )  # fmt: skip

    def _write(self, opened: Opened, status: Status, cause: str | None, **said: Any) -> None:
        item, seen = opened.item, opened.seen
        row = CaptionRow.of(
            item, id=seen.id, recipe=self._ledger.digest(item), status=status, stamp=seen.stamp, error=cause,
            subtitles=seen.subtitles,
        )  # fmt: skip
        self._count(self._ledger.settle(replace(row, engine=self._captioner.name, **said)), opened)
        self._pool.release(opened)

    def _count(self, rows: Sequence[CaptionRow], opened: Opened | None = None) -> None:
        length = opened.seen.seconds if opened is not None and opened.clip is not None else 0.0
        for row in rows:
            self.tally.add(row, length)

    def _cut(self, item: Item, cut: Cut) -> None:
        """A long video became its parts (heard in a pool thread)."""
        self._ledger.cut(item, cut)
        parts = cut.parts(item)
        with self._lock:
            self.tally.parts += len(parts) - 1
            if self._summaries is not None:
                self.tally.parts += self._summaries.expect(item, parts)

    def _show(self) -> None:
        self.tally.skipped = self._ledger.skipped
        self.tally.in_flight = len(self._asked)
        self.tally.set_loading(self._captioner.loading)
        self._tell(self.tally)


def _seen(opened: Opened) -> dict[str, Any]:
    """The row's fields about the frames; a summary, which saw captions, has none."""
    if opened.clip is None:
        return {"notes": opened.notes}
    seen, plan = opened.clip.frames, opened.clip.plan
    frames = (RowFrame(time=float(t), tokens=p.tokens) for t, p in zip(seen.pts_seconds, plan.frames, strict=True))
    return {"frames": tuple(frames), "reader": seen.reader, "notes": plan.notes}  # those of the frames are among them
