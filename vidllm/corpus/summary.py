"""A split video's own row, from the captions of its parts: coarse to fine, because no film fits into one prompt.

    part captions, in order -> groups that fit -> one text each -> groups of these -> ... -> the video's caption
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from vidllm.corpus.item import Item, digest_of
from vidllm.corpus.looking import Look, Opened, Seen
from vidllm.corpus.prompts import SUMMARY
from vidllm.corpus.rows import FAILED
from vidllm.model.chat import count_tokens
from vidllm.video.timecode import format_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from vidllm.corpus.ledger import Ledger
    from vidllm.corpus.rows import CaptionRow

PROMPT_SHARE = 0.5
"""Of the context, for the captions in one prompt; the rest is for the template and the answer."""


@dataclass(frozen=True)
class Wish:
    """Something to ask the model without frames. `then` takes the text; None: the answer is `opened`'s row."""

    opened: Opened
    prompt: str
    then: Callable[[str], None] | None = None


def whole_of(item: Item, look: Look) -> Item:
    """The split video itself, asked about with its parts' captions; those of another prompt have another summary."""
    return replace(item, prompt=f"{SUMMARY}\n\nTheir prompt: {look.prompt_of(item)}")


@dataclass
class _Level:
    """One video's texts at one level of coarseness, in order; None: not written yet, empty: there is none."""

    item: Item
    id: str
    texts: list[str | None]
    notes: tuple[str, ...] = ()
    """What the levels below could not give it."""

    @property
    def is_whole(self) -> bool:
        return None not in self.texts


class Summaries:
    """Expects the parts of split videos; `take_wishes` hands out what can be asked now, until nothing is left."""

    def __init__(self, ledger: Ledger, look: Look) -> None:
        self._ledger, self._look = ledger, look
        self._expected: list[tuple[Item, tuple[Item, ...]]] = []
        self._levels: list[_Level] = []

    def expect(self, item: Item, parts: Sequence[Item]) -> bool:
        """A video was cut: whether it gets a row beside its parts'. One that stayed whole is its own summary."""
        if len(parts) > 1:
            self._expected.append((whole_of(item, self._look), tuple(parts)))
        return len(parts) > 1

    def take_wishes(self) -> list[Wish]:
        """All prompts that can be asked now: call it when every part has its row, and again when these are answered."""
        expected, self._expected = self._expected, []
        for level in (self._begun(item, parts) for item, parts in expected):
            if not (self._stands(level) and self._is_done(level)):
                self._levels.append(level)
        whole = [level for level in self._levels if level.is_whole]
        self._levels = [level for level in self._levels if not level.is_whole]
        return [wish for level in whole for wish in self._wishes(level)]

    def _stands(self, level: _Level) -> bool:
        """Whether its row is of these captions: not of another split's, nor of what they were before a retry."""
        [row] = self._ledger.rows_of([level.item])
        return row is not None and row.id == level.id

    def _is_done(self, level: _Level) -> bool:
        """Whether the row of these captions stays: renewed, where the file was only touched since."""
        seen = Seen(id=level.id, stamp=self._look.stamp_of(level.item))
        return self._ledger.skip(level.item) or not self._ledger.wanted(level.item, seen)

    def _begun(self, item: Item, parts: Sequence[Item]) -> _Level:
        rows = self._ledger.rows_of(parts)
        said = [row if row is not None and row.caption and row.status not in FAILED else None for row in rows]
        id = digest_of("summary", *(row.id for row in rows if row), *(row.caption for row in said if row))
        return _Level(item, id, [_told(row) if row else "" for row in said])  # a refusal is no caption

    def _wishes(self, level: _Level) -> list[Wish]:
        texts = [text for text in level.texts if text]
        notes, lost = level.notes, len(level.texts) - len(texts)
        if lost:
            notes = (*notes, f"{lost} of {len(level.texts)} parts are missing in it")
        seen = Seen(id=level.id, stamp=self._look.stamp_of(level.item))
        opened = Opened(item=level.item, seen=seen, notes=notes)
        if not texts:
            seen = replace(seen, status="error", error="none of its parts has a caption")
            return [Wish(replace(opened, seen=seen), "")]
        groups = self._groups(texts)
        if len(groups) <= 1:
            return [Wish(opened, _prompt(texts))]
        above = _Level(level.item, level.id, [None] * len(groups), notes)
        self._levels.append(above)
        puts = (partial(above.texts.__setitem__, place) for place in range(len(groups)))
        return [Wish(opened, _prompt(group), put) for group, put in zip(groups, puts, strict=True)]

    def _groups(self, texts: Sequence[str]) -> list[list[str]]:
        """Neighbours together, as many as fit one prompt, at least two: every level is shorter than the one below."""
        most = int(self._look.spec.context * PROMPT_SHARE)
        groups: list[list[str]] = []
        room = 0
        for text in texts:
            tokens = count_tokens(text + "\n", self._look.tokenizer)
            if not groups or (tokens > room and len(groups[-1]) > 1):
                groups.append([])
                room = most
            groups[-1].append(text)
            room -= tokens
        return groups


def _told(row: CaptionRow) -> str:
    return f"{format_time(row.start or 0)}-{format_time(row.end or 0)}: {row.caption}"


def _prompt(texts: Sequence[str]) -> str:
    return SUMMARY.replace("{captions}", "\n".join(texts))
