"""The output of a run: rows that are there to stay, what was admitted, and what is done already. One writer at once.

    with Output.open(path, recipe, retry_errors=False) as output:
        output.admitted(item)                       before anything is done for it
        if not output.is_finished(item, digest):    no file is opened to know
            ...
            output.add(row)                         safe from kill -9 when it returns

A clip has one row per recipe. A row of a clip that has one already (it failed and was tried again, or the file has
changed) stands for the one before, which readers pass over and the next opening or closing removes. So does closing
with the failure of a video that has been cut since, whose ranges stand for it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from vidllm.corpus.index import DigestMap, Known, Promises, RowIndex
from vidllm.corpus.item import Item
from vidllm.corpus.recipe import Recipe
from vidllm.corpus.rows import FAILED, OWN, CaptionRow, Status
from vidllm.corpus.scenes import Cut
from vidllm.corpus.stores import Store, manifest_of, open_store, prepare
from vidllm.errors import ConfigError, OutputError
from vidllm.linefile import LineFile
from vidllm.video.subtitles import find_sidecar_of_many

_ADMITTED = re.compile(rb'\{"key": "([0-9a-f]{32})", "recipe": "([0-9a-f]{16})", ')
"""How the line of a clip that was admitted begins."""
_KEY, _RECIPE = re.compile("[0-9a-f]{32}"), re.compile("[0-9a-f]{16}")


class Output:
    """An output opened for writing; `open` it. Not for several threads at once, but for `digest_of`."""

    def __init__(self, path: Path, recipe: Recipe, store: Store, manifest: LineFile, retry_errors: bool) -> None:
        self.path = path
        self._recipe, self._store, self._manifest = recipe, store, manifest
        self._retry = retry_errors
        self._find_sidecar = find_sidecar_of_many if recipe.plan.get("subtitles") else None
        self._digest = recipe.digests()
        self._index = self._indexed()
        self._outlived: set[int] = set()
        """Places of failures of what was cut, or cut otherwise, since."""
        self._is_recipe_told = False
        self._cuts, self._splits = DigestMap(), DigestMap()
        """Where in the manifest the last cut of an item is told: under a recipe, and by a way to split."""
        self.promises = self._read_manifest()

    @classmethod
    def open(cls, path: Path, recipe: Recipe, *, retry_errors: bool = False) -> Output:
        """Open or make the output: `.parquet` is a folder of parts, any other name JSON lines.

        Raises OutputError (in use, not writable, not captions) or ConfigError (Parquet without pyarrow).
        """
        prepare(path)
        manifest = LineFile(manifest_of(path), name=path, lock=True)  # first: from here on nobody else writes
        try:
            return cls(path, recipe, open_store(path), manifest, retry_errors)
        except BaseException:
            manifest.close()
            raise

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._index)

    def close(self) -> None:
        """Remove rows that others stand for, write everything to disk and let the next run in."""
        try:
            if replaced := self._outlived.union(self._index.superseded()):
                self._store.drop(replaced)
            self._store.close()
        finally:
            self._manifest.close()

    def digest_of(self, item: Item) -> str:
        """The recipe of one item."""
        return self._digest(item.prompt)

    def admitted(self, item: Item) -> None:
        """Promise the item an end: `caption-verify` will look for it. Promised twice is promised once.

        One that an earlier run cut stands for itself again, as if it were cut into one.
        """
        self._admit(item.key, self.digest_of(item), item)
        place = self._cuts.find(item.key, self.digest_of(item))
        if place is not None and self._told_at(place)["parts"] != [item.key]:
            self._note_cut({"cut": item.key, "recipe": self.digest_of(item), "parts": [item.key]})

    def known_cut(self, item: Item, split: str, stamp: str) -> Cut | None:
        """How the item was cut the last time by these words, under any recipe, if its file has not changed since. One
        that could not be cut is tried again when its row is not there, or failures are retried.
        """
        if (place := self._splits.find(item.key, split)) is None:
            return None
        told = self._told_at(place)
        try:
            cut = Cut(split, told["stamp"], tuple((start, end) for start, end in told["ranges"]))
            as_told = [part.key for part in cut.parts(item)] == told["parts"]
        except (KeyError, TypeError, ValueError, ConfigError):  # changed by a hand
            return None
        if not as_told or cut.stamp != stamp or not (cut.ranges or self.is_finished(item, self.digest_of(item))):
            return None
        return cut

    def cut(self, item: Item, cut: Cut) -> None:
        """The item's ranges stand for it; ranges of an earlier cut that never got a row are no longer waited for: so
        the cut is told first, or a kill would leave ranges that no later cut takes back.
        """
        recipe, parts = self.digest_of(item), cut.parts(item)
        self._note_cut({"cut": item.key, "recipe": recipe, "parts": [part.key for part in parts], **vars(cut)})
        for part in parts:
            self._admit(part.key, recipe, part)

    def _note_cut(self, told: dict[str, Any]) -> None:
        """Once: what the manifest told last of the item under this recipe is not told again."""
        place, line = self._cuts.find(told["cut"], told["recipe"]), json.dumps(told).encode()
        last = b'{"parts": []}' if place is None else self._manifest.line_at(place)
        before = {told["cut"], *json.loads(last)["parts"]}.difference(told["parts"])
        rows = (self._index.by_key(key, told["recipe"]) for key in before)
        self._outlived.update(known.place for known in rows if known is not None and known.status in FAILED)
        if last != line:
            place = self._manifest.append(line + b"\n")
            self._cuts.add(told["cut"], told["recipe"], place)
            if "split" in told:
                self._splits.add(told["cut"], told["split"], place)

    def _told_at(self, place: int) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self._manifest.line_at(place))
        return told

    def is_finished(self, item: Item, recipe: str) -> bool:
        """Whether the item has its row under this recipe, and neither its file nor the subtitles beside it have changed
        since. Opens no clip.
        """
        known = self._index.by_key(item.key, recipe)
        return known is not None and known.finishes(item, self._find_sidecar, retry_errors=self._retry)

    def status_of(self, item: Item, recipe: str) -> Status | None:
        """How the item ended under this recipe, if it did."""
        known = self._index.by_key(item.key, recipe)
        return None if known is None else known.status

    def row_of(self, item: Item, recipe: str) -> CaptionRow | None:
        """The item's row under this recipe, whatever its file is now."""
        known = self._index.by_key(item.key, recipe)
        return None if known is None else self._row_at(known)

    def caption_of(self, id: str, recipe: str, *, key: str, subtitles: str = "") -> CaptionRow | None:
        """A row that stands, with a caption of this content, shown with these `subtitles` (`looking.digest_of_lines`):
        the one of `key`, else the latest, under whatever name; a `duplicate` only where what it copied is no more.
        """
        rows = map(self._row_at, self._index.captions(id, recipe, key))
        return next((row for row in rows if (row.id, row.subtitles) == (id, subtitles)), None)

    def add(self, row: CaptionRow) -> CaptionRow:
        """Write one row; the one that stands then. A `duplicate` of the clip's own row (its file was touched, not
        changed) renews that row.
        """
        if row.status == "duplicate" and (known := self._index.by_key(row.key, row.recipe)) is not None:
            before = self._row_at(known)
            if (before.id, before.subtitles) == (row.id, row.subtitles) and before.status in OWN:
                row = dataclasses.replace(before, stamp=row.stamp)
        self._admit(row.key, row.recipe, row)
        place = self._store.append(row)
        self._index.add((row.id, row.key, row.recipe, row.stamp, row.status), place)
        return row

    def _row_at(self, known: Known) -> CaptionRow:
        try:
            return self._store.row_at(known.place)
        except ValueError as error:
            said = f"{self.path}: one of its rows is damaged ({error}); `vidllm caption-verify {self.path}` says which"
            raise OutputError(f"{said}: remove it and run again") from error

    def _indexed(self) -> RowIndex:
        index = RowIndex.of(self._store.heads())
        if not (replaced := index.superseded()):
            return index
        self._store.drop(replaced)
        return RowIndex.of(self._store.heads())

    def _admit(self, key: str, recipe: str, what: Item | CaptionRow) -> None:
        if self.promises.promise(key, recipe):
            self._tell_recipe()
            line = {"key": key, "recipe": recipe, "video": what.video, "start": what.start, "end": what.end}
            self._manifest.append(json.dumps(line).encode() + b"\n")

    def _tell_recipe(self) -> None:
        """Once, in plain words, before the first clip that is to be captioned by it."""
        if not self._is_recipe_told:
            line = json.dumps({"recipe": self._recipe.digest, "is": dataclasses.asdict(self._recipe)}).encode()
            self._manifest.append(line + b"\n")
            self._is_recipe_told = True

    def _read_manifest(self) -> Promises:
        """Who was admitted before."""
        known = Promises()
        for place, told in manifest_lines(self._manifest):
            if "key" in told:
                known.load(told["key"], told["recipe"])
            elif "cut" in told:
                self._cuts.load(told["cut"], told["recipe"], place)
                if "split" in told:
                    self._splits.load(told["cut"], told["split"], place)
            elif told["recipe"] == self._recipe.digest:
                self._is_recipe_told = True
        for digests in (known, self._cuts, self._splits):
            digests.settle()
        return known


def manifest_lines(manifest: LineFile) -> Iterator[tuple[int, dict[str, Any]]]:
    """(place, what it tells) of every line: `recipe`, and the `key` of who was admitted, or who was `cut`, or what the
    recipe `is`. Raises OutputError for a line that is none of ours.
    """
    for number, (place, line) in enumerate(manifest.lines(), 1):
        if (admitted := _ADMITTED.match(line)) is not None:  # nearly all, a million of them perhaps
            yield place, {"key": admitted[1].decode(), "recipe": admitted[2].decode()}
            continue
        try:
            told = json.loads(line)
            names = [told[name] for name in ("key", "cut") if name in told]
            if not (all(_KEY.fullmatch(name) for name in names) and _RECIPE.fullmatch(told["recipe"])):
                raise ValueError(line)
            if "cut" in told and not (isinstance(told["parts"], list) and isinstance(told.get("split", ""), str)):
                raise ValueError(line)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise OutputError(f"{manifest.path}: line {number} is not ours; remove it and run again") from error
        yield place, told
