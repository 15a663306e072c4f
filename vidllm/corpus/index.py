"""Which rows there are, and who was promised one, in fifty bytes each: a million rows are known in a few seconds and
eighty megabytes.

Digests are kept whole, so a hit is never a coincidence; a mix of their first half and the recipe is sorted for finding.
"""

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vidllm.corpus.item import Item
from vidllm.corpus.rows import FAILED, OWN, STATUSES, CaptionRow, Status

MOST_FRESH = 1 << 16
"""Entries found through a dict until they are sorted in with the rest."""
DIGEST_BYTES = 16
_SPREAD = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


class DigestMap:
    """(32 hex digits, a recipe) -> row numbers; grows only."""

    def __init__(self) -> None:
        self._recipes: dict[str, int] = {}
        self._digests = bytearray()
        self._code: array[int] = array("I")
        self._rows: array[int] = array("Q")
        self._order: NDArray[np.int64] = np.zeros(0, np.int64)
        self._mixed: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._fresh: dict[tuple[bytes, int], int] = {}

    def load(self, digest: str, recipe: str, row: int) -> None:
        """Add without being found before `settle`: for many at once."""
        self._digests += bytes.fromhex(digest)
        self._code.append(self._recipes.setdefault(recipe, len(self._recipes)))
        self._rows.append(row)

    def add(self, digest: str, recipe: str, row: int) -> None:
        """Add one, found at once; of several rows the last is found."""
        self.load(digest, recipe, row)
        self._fresh[bytes.fromhex(digest), self._code[-1]] = row
        if len(self._fresh) > MOST_FRESH:
            self.settle()

    def settle(self) -> None:
        """Sort all that was added."""
        if not self._rows:
            return
        high = np.frombuffer(self._digests, ">u8")[::2].astype(np.uint64)  # a copy: a bytearray in view can not grow
        mixed = high ^ (np.frombuffer(self._code, np.uint32) * np.uint64(_SPREAD))
        self._order = np.argsort(mixed, kind="stable").astype(np.int64)
        self._mixed = mixed[self._order]
        self._fresh = {}

    def find(self, digest: str, recipe: str) -> int | None:
        """The last row added under this digest and recipe."""
        return next(self.all(digest, recipe), None)

    def all(self, digest: str, recipe: str) -> Iterator[int]:
        """The rows added under this digest and recipe, the last first; of those not settled the last alone."""
        if (code := self._recipes.get(recipe)) is None:
            return
        raw = bytes.fromhex(digest)
        if (row := self._fresh.get((raw, code))) is not None:
            yield row
        mixed = np.uint64(int.from_bytes(raw[:8], "big") ^ (code * _SPREAD & _WORD))
        first, last = np.searchsorted(self._mixed, mixed, "left"), np.searchsorted(self._mixed, mixed, "right")
        places: list[int] = self._order[first:last].tolist()
        yield from (self._rows[place] for place in reversed(places) if self._is(place, raw, code))

    def repeated(self) -> list[int]:
        """Rows that a later one under the same digest and recipe took the place of, as of the last `settle`."""
        same = np.flatnonzero(self._mixed[1:] == self._mixed[:-1])
        latest: dict[tuple[bytes, int], int] = {}
        replaced = []
        for place in sorted({int(self._order[n]) for n in same} | {int(self._order[n + 1]) for n in same}):
            name = (self._digest(place), self._code[place])
            if name in latest:
                replaced.append(latest[name])
            latest[name] = self._rows[place]
        return sorted(replaced)

    def digest(self, place: int) -> str:
        """What was added as number `place`, 0 first."""
        return self._digest(place).hex()

    def _digest(self, place: int) -> bytes:
        return bytes(self._digests[DIGEST_BYTES * place : DIGEST_BYTES * (place + 1)])

    def _is(self, place: int, raw: bytes, code: int) -> bool:
        return self._digest(place) == raw and self._code[place] == code


@dataclass(frozen=True)
class Known:
    """What the index keeps of a row."""

    stamp: int
    status: Status
    place: int
    """Where the store finds the row again."""

    def finishes(self, item: Item, find_sidecar: Callable[[str], Path | None] | None, *, retry_errors: bool) -> bool:
        """Whether nothing is left to do: its file and the subtitles beside it are as they were. Opens no clip."""
        return not (retry_errors and self.status in FAILED) and self.stamp == int(item.stamp(find_sidecar), 16)


Head = tuple[str, str, str, str, str]
"""id, key, recipe, stamp, status: how a row begins."""


@dataclass
class RowIndex:
    """Rows by their place in the run, and captions by content, copies apart; all under a recipe."""

    _by_key: DigestMap = field(default_factory=DigestMap)
    _own: DigestMap = field(default_factory=DigestMap)
    _copies: DigestMap = field(default_factory=DigestMap)
    _stamps: "array[int]" = field(default_factory=lambda: array("Q"))
    _statuses: "array[int]" = field(default_factory=lambda: array("B"))
    _places: "array[int]" = field(default_factory=lambda: array("Q"))

    def __len__(self) -> int:
        return len(self._places)

    @classmethod
    def of(cls, heads: Iterator[tuple[Head, int]]) -> "RowIndex":
        """The index of (head, place)s."""
        index = cls()
        for head, place in heads:
            row = index._note(head, place)
            index._by_key.load(head[1], head[2], row)
            if head[4] not in FAILED:
                index._captions(head[4]).load(head[0], head[2], row)
        for digests in (index._by_key, index._own, index._copies):
            digests.settle()
        return index

    def add(self, head: Head, place: int) -> None:
        """One more row, found at once."""
        row = self._note(head, place)
        self._by_key.add(head[1], head[2], row)
        if head[4] not in FAILED:
            self._captions(head[4]).add(head[0], head[2], row)

    def by_key(self, key: str, recipe: str) -> Known | None:
        """The last row of this place in the run."""
        row = self._by_key.find(key, recipe)
        return None if row is None else self._known(row)

    def captions(self, id: str, recipe: str, key: str) -> Iterator[Known]:
        """Rows that stand and may have a caption for `key`, whose content this is: its own, else those of this content
        under whatever name; copies last, and never its own row that is one, which says nothing of its original now.
        """
        own = self._by_key.find(key, recipe)
        if own is not None and self._known(own).status in OWN:
            yield self._known(own)
        for digests in (self._own, self._copies):
            yield from (self._known(row) for row in digests.all(id, recipe) if row != own and self._stands(row, recipe))

    def superseded(self) -> list[int]:
        """Places of rows that a later row of the same key and recipe stands for."""
        self._by_key.settle()
        return [self._places[row] for row in self._by_key.repeated()]

    def _note(self, head: Head, place: int) -> int:
        """The row's number."""
        self._stamps.append(int(head[3], 16))
        self._statuses.append(_NUMBER[head[4]])
        self._places.append(place)
        return len(self._places) - 1

    def _captions(self, status: str) -> DigestMap:
        return self._own if status in OWN else self._copies

    def _stands(self, row: int, recipe: str) -> bool:
        """Whether no later row has its place in the run."""
        return self._by_key.find(self._by_key.digest(row), recipe) == row

    def _known(self, row: int) -> Known:
        return Known(self._stamps[row], STATUSES[self._statuses[row]], self._places[row])


_NUMBER = {str(status): number for number, status in enumerate(STATUSES)}


class Promises:
    """(key, recipe) of clips, each once. `row in promises`: this run, not only an earlier one, admitted its clip."""

    def __init__(self) -> None:
        self._numbers = DigestMap()
        self._now = bytearray()
        """1 for those of this run, in the order promised."""

    def load(self, key: str, recipe: str) -> None:
        """One of an earlier run; known once all are `settle`d."""
        self._numbers.load(key, recipe, len(self._now))
        self._now.append(0)

    def settle(self) -> None:
        """All of the earlier runs are loaded."""
        self._numbers.settle()

    def promise(self, key: str, recipe: str) -> bool:
        """One of this run; whether nobody promised it before."""
        number = self._numbers.find(key, recipe)
        if number is not None:
            self._now[number] = 1
            return False
        self._numbers.add(key, recipe, len(self._now))
        self._now.append(1)
        return True

    def __contains__(self, row: CaptionRow) -> bool:
        number = self._numbers.find(row.key, row.recipe)
        return number is not None and self._now[number] == 1
