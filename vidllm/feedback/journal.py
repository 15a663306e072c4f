"""What was sampled and judged so far, a line each, in a file beside the pairs: what is in it is never done again.

    pairs.jsonl              made anew from the journal at the end of every run: other pair options cost nothing
    pairs.candidates.jsonl   {"at": "sampled", "key", "stamp", "recipe", "candidates": [..], ..}
                             {"at": "judged", "key", "stamp", "recipe", "judge", "verdicts": [..], ..}
                             {"at": "failed", "key", "stamp", "recipe", "error"}

A line is safe from kill -9 when `LineFile.append` returns. Candidates hold for one recipe (model, sampling, look) and
one state of the clip's file; verdicts for these candidates and one judge, evidence included.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vidllm.errors import OutputError
from vidllm.feedback.candidates import Candidate, Sampled
from vidllm.feedback.items import Asked
from vidllm.feedback.judge import Judge, Judged, Verdict
from vidllm.linefile import LineFile, json_line

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Slot:
    """Whose candidates: the question, its files as they are now, and how it is asked."""

    key: str
    stamp: str
    recipe: str


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """One judge's verdicts on a question's candidates, in their order."""

    verdicts: tuple[Verdict, ...]
    judge: str
    """The judge's name."""
    model: str
    """Who answered, in its own words."""
    way: str = ""
    """`Judge.way`; unknown in journals of before it was kept."""
    nonsense: int = 0
    orders: tuple[int, int] = (0, 0)


def journal_of(output: Path) -> Path:
    """The journal's place, beside the pairs."""
    return output.with_name(output.stem + ".candidates.jsonl")


class Journal:
    """The journal of `output`, opened for writing by one run at a time; raises OutputError as `LineFile`."""

    def __init__(self, output: Path) -> None:
        if output.is_dir():
            raise OutputError(f"{output}: is a folder; name a file such as {output}/pairs.jsonl")
        self._file = LineFile(journal_of(output), name=output, lock=True)
        self.sampled: dict[Slot, Sampled] = {}
        """The candidates of every question that was asked."""
        self.opinions: dict[Slot, dict[str, Opinion]] = {}
        """What judges said of them, by fingerprint; none where nobody was asked."""
        self.failed: dict[Slot, str] = {}
        """Why a question could not be asked."""
        try:
            for place, line in self._file.lines():
                self._read(line, journal_of(output), place)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add_sampled(self, slot: Slot, asked: Asked, sampled: Sampled) -> None:
        """Candidates are there."""
        told = {
            "id": asked.id, "question": asked.question, "media": [medium.path for medium in asked.media],
            "model": sampled.model, "candidates": [c.to_dict() for c in sampled.candidates],
            "dropped": sampled.dropped,
        }  # fmt: skip
        self._write("sampled", slot, told)

    def add_judged(self, slot: Slot, fingerprint: str, judge: Judge, judged: Judged) -> None:
        """A judge has spoken; `fingerprint` is of it and of the evidence it had."""
        told = {
            "judge": fingerprint, "name": judge.name, "way": judge.way, "model": judged.model,
            "nonsense": judged.nonsense, "orders": list(judged.orders),
            "verdicts": [verdict.to_dict() for verdict in judged.verdicts],
        }  # fmt: skip
        self._write("judged", slot, told)

    def add_failed(self, slot: Slot, error: str) -> None:
        """The question could not be asked."""
        self._write("failed", slot, {"error": error})

    def _write(self, kind: str, slot: Slot, told: Line) -> None:
        line = {"at": kind, "key": slot.key, "stamp": slot.stamp, "recipe": slot.recipe, **told}
        self._file.append(json_line(line))
        self._take(line)

    def _read(self, line: bytes, path: Path, place: int) -> None:
        """Take a line of an earlier run. Raises OutputError for what is none."""
        try:
            self._take(json.loads(line))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            what = f"byte {place} is no line of a feedback run"
            raise OutputError(f"{path}: {what}; give the run another output, or take that line out") from error

    def _take(self, line: Line) -> None:
        slot = Slot(line["key"], line["stamp"], line["recipe"])
        if line["at"] == "sampled":
            candidates = tuple(Candidate(**fields) for fields in line["candidates"])
            self.sampled[slot] = Sampled(candidates=candidates, dropped=dict(line["dropped"]), model=line["model"])
            self.opinions[slot] = {}  # what was said is of other candidates
            self.failed.pop(slot, None)
        elif line["at"] == "judged":
            self.opinions.setdefault(slot, {})[line["judge"]] = Opinion(
                verdicts=tuple(Verdict.from_dict(verdict) for verdict in line["verdicts"]), judge=line["name"],
                model=line["model"], way=line.get("way", ""), nonsense=line["nonsense"],
                orders=(line["orders"][0], line["orders"][1]),
            )  # fmt: skip
        elif line["at"] == "failed":
            self.failed[slot] = line["error"]
        else:
            raise ValueError(line["at"])
