"""What the frozen model gives both answers of every pair: known before the first step, computed at most once.

    recorded in the row        by the model that sampled the answers, if that is the model training starts from
    kept on disk               from an earlier run that started from the same model
    computed                   by the learner itself before its first step: no second model is ever in memory

None of these is believed blindly: a sample is computed again, and what is off by more than rounding is thrown away.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vidllm import __version__
from vidllm.train.files import sampled_digest, shown_files

if TYPE_CHECKING:
    from vidllm.clip import PlanOptions
    from vidllm.train.row import Media, PairRow

log = logging.getLogger("vidllm")

TOLERANCE = 0.05
"""Nats a token that a recorded or kept log-prob may be off: answers sampled in bf16, token by token, were some
hundredths off what float32 gives them at once. Another model is off by more, if not on every pair."""
SAMPLE = 4
"""Pairs of each kind that are computed again."""


@dataclass(frozen=True)
class RefLogps:
    """Summed log-probs of a pair's answers, nats."""

    chosen: float
    rejected: float

    def near(self, other: RefLogps, tokens: int) -> bool:
        """Whether both agree to rounding over so many tokens."""
        off = max(abs(self.chosen - other.chosen), abs(self.rejected - other.rejected))
        return off <= TOLERANCE * max(tokens, 1)


Compute = Callable[[Sequence[int], bool], Mapping[int, RefLogps]]
"""Pairs by their numbers, and whether to keep what is found on disk -> what the model as it stands gives them. Called
alike on every process."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """The reference of every pair, and how many come from where."""

    logps: Mapping[int, RefLogps]
    recorded: int
    kept: int
    computed: int

    def __str__(self) -> str:
        return f"{self.recorded:,} from the rows, {self.kept:,} from the cache, {self.computed:,} computed"


class References:
    """A file of log-probs by key, for one model. Lines of several writers may mix; a damaged one counts as absent."""

    def __init__(self, path: Path) -> None:
        self._path: Path | None = path
        self._known = dict(_lines(path))

    def get(self, key: str) -> RefLogps | None:
        """What is kept under `key`."""
        return self._known.get(key)

    def add(self, found: Mapping[str, RefLogps]) -> None:
        """Keep these. A folder that takes no more costs one warning line, and they are computed again next time."""
        self._known |= found
        if self._path is None or not found:
            return
        text = "\n" + "".join(_line(key, logps) for key, logps in found.items())  # a writer may have died in its line
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(text.encode())
        except OSError as error:
            log.warning("reference cache off: %s: %s; set VIDLLM_CACHE to a folder with room", self._path,
                        error.strerror or error)  # fmt: skip
            self._path = None


def _line(key: str, logps: RefLogps) -> str:
    told = json.dumps([key, logps.chosen, logps.rejected])
    return f"{told}\t{_check(told)}\n"


def _check(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _lines(path: Path) -> Iterator[tuple[str, RefLogps]]:
    """Every whole line; a later one of the same key stands."""
    try:
        content = path.read_bytes()
    except OSError:
        return
    for line in content.decode(errors="replace").splitlines():
        told, _, check = line.rpartition("\t")
        if told and check == _check(told):
            key, chosen, rejected = json.loads(told)
            yield key, RefLogps(chosen, rejected)


def reference_key(row: PairRow, plan: PlanOptions, shaping: str = "") -> str:
    """Hex digest of what shapes a pair's tokens besides the model: texts, media with their subtitles, how they are
    looked at.

    `shaping` is whatever else counts (numbers, device). A large file is represented by its size and samples: to read
    all bytes of all videos before the first step would take longer than what is saved; and what is kept is tried.

    Raises:
        VideoNotFound: a medium is gone.
    """
    def seen(medium: Media) -> tuple[str, ...]:
        return medium.kind, *map(sampled_digest, shown_files(medium, subtitles=plan.subtitles))

    turns = [(turn.role, turn.text, [seen(medium) for medium in turn.media], *turn.at) for turn in row.turns]
    told = repr((__version__, shaping, turns, row.chosen, row.rejected, replace(plan, guard=None)))
    return hashlib.blake2b(told.encode(), digest_size=20).hexdigest()


def find_reference(
    *, kept: Mapping[int, RefLogps], recorded: Mapping[int, RefLogps], tokens: Sequence[int], compute: Compute,
    say: Callable[[str], None],
) -> Found:  # fmt: skip
    """The reference of every pair, by numbers: what an earlier run has `kept`, what rows brought along `recorded` from
    the model training starts from, and else what is computed now.

    `tokens` are those of the longer answer of every pair. `say` hears a line where something is not believed. All
    processes hold the same values and go the same way.
    """
    known = _believed(kept, "kept on disk", tokens, compute, say)
    fresh = {number: logps for number, logps in recorded.items() if number not in known}
    told = _believed(fresh, "recorded in the rows", tokens, compute, say)
    missing = [n for n in range(len(tokens)) if n not in known and n not in told]
    computed = compute(missing, True) if missing else {}
    logps = {**known, **told, **computed}
    return Found(logps=logps, recorded=len(told), kept=len(known), computed=len(computed))


def _believed(
    claimed: Mapping[int, RefLogps], where: str, tokens: Sequence[int], compute: Compute, say: Callable[[str], None]
) -> Mapping[int, RefLogps]:
    """All that is claimed, or nothing if a sample does not hold."""
    if not claimed:
        return {}
    places = sorted(claimed)
    sample = sorted({places[i * (len(places) - 1) // (SAMPLE - 1)] for i in range(SAMPLE)})
    true = compute(sample, False)
    wrong = [n for n in sample if not claimed[n].near(true[n], tokens[n])]
    if not wrong:
        return claimed
    n = wrong[0]
    say(f"reference log-probs {where} are not this model's (pair {n + 1}: {claimed[n].chosen:.3f} for the "
        f"chosen answer, computed {true[n].chosen:.3f}); all {len(claimed):,} are computed again")  # fmt: skip
    return {}


def remarks(rows: Sequence[PairRow], fingerprint: str, dtype: str, look: str) -> list[str]:
    """What rows recorded from this very model and can not be taken from them as they are, and what to say so that it
    can, a line each."""
    records = [row.reference for row in rows if row.reference is not None and row.reference.model == fingerprint]
    numbers = Counter(r.dtype for r in records if r.dtype not in (None, dtype) and r.look in (None, look))
    strange = sum(record.look not in (None, look) for record in records)
    return [
        *(f"{count:,} rows hold log-probs of this model in {other}; dtype={other} takes them as they are"
          for other, count in numbers.items()),
        *([f"{strange:,} rows hold answers and log-probs of this model under another look at their clips; say frames, "
           "policy and the like as `vidllm feedback` was told, and they are taken as they are"] if strange else []),
    ]  # fmt: skip


def of_another_model(rows: Sequence[PairRow], fingerprint: str) -> int:
    """How many rows say that another model than this gave their answers."""
    return sum(row.reference is not None and row.reference.model != fingerprint for row in rows)


def usable_records(rows: Sequence[PairRow], fingerprint: str, dtype: str, look: str) -> dict[int, RefLogps]:
    """What rows recorded from exactly this model, in these numbers, of clips shown like this; by their numbers."""
    return {
        number: RefLogps(row.reference.chosen_logp, row.reference.rejected_logp)
        for number, row in enumerate(rows)
        if row.reference is not None and row.reference.is_of(fingerprint, dtype, look)
    }
