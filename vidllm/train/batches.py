"""Which rows an epoch's optimizer steps learn from, and in which portions. Pure integers; no torch, no files.

    epoch ──> Step, Step, ...        one Step is one optimizer step of `batch` rows
    Step  ──> (3, 17, 4), (9,), ...  its micro-batches: row numbers, together at most `tokens` tokens

The order is a function of (seed, epoch) alone, whatever the machine, the number of processes and numpy's version: the
place of a run in its data is (epoch, step) and nothing else.

Rows that show the same may be kept together (`together`), so that what they show is read once for all of them.

Rows are drawn by chance; only inside a step are they sorted by length. Sorting across steps would sort images from
videos too, which is what the published ablation warns of: batches split by kind score 3.00, mixed ones 3.32.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, TypeAlias

from vidllm.errors import ConfigError
from vidllm.train.order import shuffled
from vidllm.train.row import Kind

Strategy = Literal["mixed", "separate", "video_only"]
"""Kinds together in a step, every step of one kind, or rows with a video only."""
Step: TypeAlias = tuple[tuple[int, ...], ...]

TOGETHER = 8
"""Rows about one video that follow each other, at most, and never more than a quarter of a step: a step of one video
would teach little else, and steps of one kind are what `mixed` is there to avoid.
"""
LIKE = 0.75
"""Without packing the shortest row of a micro-batch has at least this share of the longest one's tokens."""


@dataclass(frozen=True)
class View:
    """What a row shows: equal `of` for rows that see the same frames, which are `tokens` of each row's length."""

    of: Hashable
    tokens: int


def plan_steps(
    lengths: Sequence[int],
    kinds: Sequence[Kind],
    *,
    batch: int,
    tokens: int,
    strategy: Strategy = "mixed",
    packing: bool = True,
    seed: int = 0,
    epoch: int = 0,
    together: Sequence[View] | None = None,
) -> tuple[Step, ...]:
    """Every row of the strategy exactly once, `batch` to a step (the last step of a kind may have fewer).

    With `packing` a micro-batch holds any rows up to `tokens` in all, filled about evenly; without, rows of about one
    length, counted as if padded to the longest. A row longer than `tokens` stands alone. With `together` (and packing)
    rows that show the same stay side by side, up to `TOGETHER` of them and a quarter of a step; what they show counts
    once.

    Raises:
        ConfigError: no row for the strategy.
    """
    groups = _groups(kinds, strategy)
    if not any(groups):
        raise ConfigError(f"no row to learn from under strategy {strategy}; give rows that show a video, or use mixed")
    steps = []
    for number, group in enumerate(groups):
        order = _mixed(group, together, max(1, min(TOGETHER, batch // 4)), seed, epoch, number)
        steps += [order[i : i + batch] for i in range(0, len(order), batch)]
    if len(groups) > 1:
        steps = [steps[i] for i in shuffled(range(len(steps)), seed, epoch, len(groups))]
    if together and packing:
        return tuple(_packed_together(step, lengths, together, tokens) for step in steps)
    portion = _packed if packing else _alike
    return tuple(portion(step, lengths, tokens) for step in steps)


def tokens_of(micro: Sequence[int], lengths: Sequence[int], together: Sequence[View] | None) -> int:
    """Tokens that a micro-batch is laid out in: what several of its rows show counts once."""
    shown = {together[row].of: together[row].tokens for row in micro} if together else {}
    return sum(shown.values()) + sum(lengths[row] - (together[row].tokens if together else 0) for row in micro)


def _mixed(rows: Sequence[int], together: Sequence[View] | None, most: int, *numbers: int) -> list[int]:
    """The rows in an order by chance; with `together` those that show the same follow each other, `most` at a time."""
    if not together:
        return shuffled(rows, *numbers)
    showing: dict[Hashable, list[int]] = {}
    for row in shuffled(rows, *numbers):
        showing.setdefault(together[row].of, []).append(row)
    bunches = [found[i : i + most] for found in showing.values() for i in range(0, len(found), most)]
    return [row for place in shuffled(range(len(bunches)), *numbers) for row in bunches[place]]


def _packed_together(rows: Sequence[int], lengths: Sequence[int], together: Sequence[View], tokens: int) -> Step:
    """As `_packed`, of bunches in place of rows; a bunch above the budget is cut."""
    bunches: list[list[int]] = []
    sizes: list[int] = []
    for _, same in groupby(rows, key=lambda row: together[row].of):
        fits = False
        for row in same:
            own = lengths[row] - together[row].tokens
            if fits and sizes[-1] + own <= tokens:
                bunches[-1].append(row)
                sizes[-1] += own
            else:
                bunches.append([row])
                sizes.append(lengths[row])
            fits = True
    packed = _packed(range(len(bunches)), sizes, tokens)
    return tuple(tuple(row for bunch in portion for row in bunches[bunch]) for portion in packed)


def _groups(kinds: Sequence[Kind], strategy: Strategy) -> list[list[int]]:
    """Rows that may meet in a step."""
    videos = [i for i, kind in enumerate(kinds) if kind == "video"]
    if strategy == "video_only":
        return [videos]
    if strategy == "mixed":
        return [list(range(len(kinds)))]
    return [videos, *([i for i, kind in enumerate(kinds) if kind == other] for other in ("image", "text"))]


def _packed(rows: Sequence[int], lengths: Sequence[int], tokens: int) -> Step:
    """As few portions as first-fit finds, evenly full where that fits: processes that share a step end together."""
    longest_first = sorted(rows, key=lambda row: -lengths[row])
    fitted = _first_fit(longest_first, lengths, tokens)
    alone = [bin for bin in fitted if lengths[bin[0]] >= tokens]
    held, even = _evenly(longest_first[len(alone) :], lengths, len(fitted) - len(alone))
    return tuple(map(tuple, [*alone, *even] if max(held, default=0) <= tokens else fitted))


def _first_fit(rows: Sequence[int], lengths: Sequence[int], tokens: int) -> list[list[int]]:
    bins: list[list[int]] = []
    left: list[int] = []
    for row in rows:
        place = next((i for i, room in enumerate(left) if lengths[row] <= room), None)
        if place is None:
            bins.append([row])
            left.append(tokens - lengths[row])
        else:
            bins[place].append(row)
            left[place] -= lengths[row]
    return bins


def _evenly(rows: Sequence[int], lengths: Sequence[int], count: int) -> tuple[list[int], list[list[int]]]:
    """Tokens and rows of `count` bins; each row goes where least is."""
    bins: list[list[int]] = [[] for _ in range(count)]
    heap = [(0, place) for place in range(count)]
    for row in rows:
        held, place = heap[0]
        bins[place].append(row)
        heapq.heapreplace(heap, (held + lengths[row], place))
    return [held for held, _ in heap], bins


def _alike(rows: Sequence[int], lengths: Sequence[int], tokens: int) -> Step:
    """Neighbours in length: a micro-batch ends where padding would pass `tokens` or waste more than a quarter."""
    bins: list[list[int]] = []
    for row in sorted(rows, key=lambda row: -lengths[row]):
        longest = lengths[bins[-1][0]] if bins else 0
        if bins and (len(bins[-1]) + 1) * longest <= tokens and lengths[row] >= LIKE * longest:
            bins[-1].append(row)
        else:
            bins.append([row])
    return tuple(map(tuple, bins))
