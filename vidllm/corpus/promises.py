"""Who was promised a row: by any run of an output, and by this one. About fifty bytes each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidllm.corpus.index import DigestMap

if TYPE_CHECKING:
    from vidllm.corpus.rows import CaptionRow


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
