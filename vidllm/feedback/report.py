"""What a feedback run came to: agreement, scores, lengths, and everything that was dropped with its reason."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vidllm.feedback.pairs import Pair, Paired, Scored, score_gap

BINS = (1, 2, 3, 4, 5)
BAR = 30
"""Letters of the longest bar."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Two judges on the same pairs of answers, where the first sees a difference of at least the margin."""

    judge: str
    other: str
    alike: int
    against: int
    undecided: int
    """The other scores both the same."""
    correlation: float | None
    """Pearson's, of the scores; None where one of them never varies."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Mean tokens of the two answers of all pairs."""

    chosen: float
    rejected: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """Figures of a whole output, not of one run only. Counts unless said."""

    model: str
    judge: str
    questions: int
    repeated: int
    """Questions that were in the input more than once."""
    asked: int
    judged: int
    candidates: int
    pairs: int
    sources: dict[str, int]
    """Pairs by where the rejected answer is from."""
    histogram: dict[str, dict[int, int]]
    """Scores, rounded, by the source of the candidate."""
    criteria: dict[str, float]
    """Mean of each."""
    lengths: Lengths | None
    unbalanced: Lengths | None
    """As `lengths`, before the pairs for balance were dropped."""
    gap: float | None
    """Mean difference of the two scores of a pair."""
    agreements: tuple[Agreement, ...]
    both_orders: tuple[int, int]
    """Of so many comparisons made in both orders (second), so many came out alike."""
    nonsense: int
    """Replies of the judge that could not be read."""
    dropped_candidates: dict[str, int]
    dropped_questions: dict[str, int]
    dropped_pairs: int
    """For balance of lengths."""
    unjudged: dict[str, int]
    """Candidates without a score, by cause."""
    failed: dict[str, int]
    """Questions that could not be asked, by cause."""
    remaining: int = 0
    """Questions a stopped run has still to ask or judge."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass
class Figures:
    """What is counted question by question."""

    asked: int = 0
    judged: int = 0
    candidates: int = 0
    nonsense: int = 0
    orders: tuple[int, int] = (0, 0)
    dropped: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    remaining: int = 0


def make_report(
    *, model: str, judge: str, questions: int, repeated: int, figures: Figures, scored: Sequence[Sequence[Scored]],
    paired: Paired, agreements: Sequence[Agreement],
) -> Report:  # fmt: skip
    """The report; `scored` are the judged questions."""
    every = [one for several in scored for one in several]
    return Report(
        model=model, judge=judge, questions=questions, repeated=repeated, asked=figures.asked, judged=figures.judged,
        candidates=figures.candidates, pairs=len(paired.pairs),
        sources=dict(Counter(pair.rejected.source for pair in paired.pairs)), histogram=_histogram(every),
        criteria=_criteria(every), lengths=_lengths(paired.pairs), unbalanced=_lengths(paired.unbalanced),
        gap=_mean([pair.gap for pair in paired.pairs]), agreements=tuple(agreements),
        both_orders=figures.orders, nonsense=figures.nonsense, dropped_candidates=dict(figures.dropped),
        dropped_questions=paired.dropped, dropped_pairs=len(paired.unbalanced) - len(paired.pairs),
        unjudged=dict(Counter(one.verdict.failed for one in every if one.verdict.failed)),
        failed=dict(figures.failed), remaining=figures.remaining,
    )  # fmt: skip


def agree(
    judge: str, scores: Sequence[Sequence[float | None]], other: str, others: Sequence[Sequence[float | None]],
    margin: float,
) -> Agreement | None:  # fmt: skip
    """How far `other` sees every two answers of a question as `judge` does; None when they share no question."""
    told: Counter[int] = Counter()
    both: list[tuple[float, float]] = []
    for mine, theirs in zip(scores, others, strict=True):
        known = [(a, b) for a, b in zip(mine, theirs, strict=True) if a is not None and b is not None]
        both += known
        for i, (a, b) in enumerate(known):
            told.update(_sign(b - d) * _sign(a - c) for c, d in known[:i] if abs(score_gap(a, c)) >= margin)
    if not both:
        return None
    return Agreement(
        judge=judge, other=other, alike=told[1], against=told[-1], undecided=told[0], correlation=_correlation(both)
    )


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)


def _correlation(both: Sequence[tuple[float, float]]) -> float | None:
    try:
        return statistics.correlation(*zip(*both, strict=True))
    except statistics.StatisticsError:  # fewer than two, or all of them the same
        return None


def _histogram(every: Sequence[Scored]) -> dict[str, dict[int, int]]:
    found: dict[str, dict[int, int]] = {}
    for one in every:
        if one.verdict.score is not None:
            bins = found.setdefault(one.candidate.source, dict.fromkeys(BINS, 0))
            bins[math.floor(one.verdict.score + 0.5)] += 1
    return found


def _criteria(every: Sequence[Scored]) -> dict[str, float]:
    told: dict[str, list[float]] = {}
    for one in every:
        for name, mark in one.verdict.criteria:
            told.setdefault(name, []).append(mark)
    return {name: round(sum(marks) / len(marks), 3) for name, marks in told.items()}


def _lengths(pairs: Sequence[Pair]) -> Lengths | None:
    if not pairs:
        return None
    chosen, rejected = (sum(n) / len(pairs) for n in zip(*((p.chosen.tokens, p.rejected.tokens) for p in pairs),
                                                         strict=True))  # fmt: skip
    return Lengths(chosen=round(chosen, 2), rejected=round(rejected, 2))


def _mean(numbers: Sequence[float]) -> float | None:
    return round(sum(numbers) / len(numbers), 3) if numbers else None


# -------------------------------------------------------------------------------------------------- for people


def lines(report: Report) -> list[str]:
    """The report as a table of two columns, and the scores as bars."""
    rows = [
        ("model", report.model), ("judge", report.judge),
        ("questions", f"{report.questions:,}: {report.asked:,} asked, {report.judged:,} judged"
         + (f", {report.remaining:,} to go" if report.remaining else "")
         + (f"; {report.repeated:,} stood there twice" if report.repeated else "")),
        ("candidates", f"{report.candidates:,}" + _because(report.dropped_candidates, "; dropped ")),
        ("pairs", f"{report.pairs:,}" + _because(report.sources, ", rejected from ")),
        *_optional(report),
    ]  # fmt: skip
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {told}" for name, told in rows] + _bars(report.histogram)


def _optional(report: Report) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    if report.lengths and report.unbalanced and report.gap is not None:
        before = report.unbalanced
        balance = f" (before balance {before.chosen:.1f} and {before.rejected:.1f})" if report.dropped_pairs else ""
        rows.append(("lengths", f"chosen {report.lengths.chosen:.1f} tokens, rejected {report.lengths.rejected:.1f}"
                                + balance))  # fmt: skip
        rows.append(("score gap", f"{report.gap:.2f}"))
    if report.criteria:
        rows.append(("criteria", ", ".join(f"{name} {mark:.2f}" for name, mark in report.criteria.items())))
    for found in report.agreements:
        total = found.alike + found.against + found.undecided
        share = f"{found.alike:,} of {total:,} pairs alike" + (f" ({found.alike / total:.0%})" if total else "")
        more = f", {found.against:,} against" + ("" if found.correlation is None else f", r {found.correlation:.2f}")
        rows.append(("agreement", f"{found.judge} with {found.other}: {share}{more}"))
    alike, asked = report.both_orders
    rows += [("both orders", f"{alike:,} of {asked:,} comparisons alike ({alike / asked:.0%})")] if asked else []
    rows += [("nonsense", f"{report.nonsense:,} replies that can not be read")] if report.nonsense else []
    rows += [("no score", _because(report.unjudged))] if report.unjudged else []
    rows += [("no pair", _because(report.dropped_questions))] if report.dropped_questions else []
    rows += [("for balance", f"{report.dropped_pairs:,} pairs left out")] if report.dropped_pairs else []
    rows += [("failed", _because(report.failed))] if report.failed else []
    return rows


def _because(counts: Mapping[str, int], lead: str = "") -> str:
    told = ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))
    return f"{lead}{told}" if told else ""


def _bars(histogram: Mapping[str, Mapping[int, int]]) -> list[str]:
    found = []
    most = max((count for bins in histogram.values() for count in bins.values()), default=0)
    for source, bins in histogram.items():
        found.append(f"scores of {source}")
        found += [f"  {score}  {'█' * round(BAR * count / most)} {count:,}" for score, count in sorted(bins.items())]
    return found
