"""Judged candidates -> preference pairs. Pure: the same candidates and options give the same pairs, and reasons.

    threshold   every answer of at least `threshold` against every one below it                          (LLaVA-Hound)
    best        the best against the worst, then the next best against the next worst                    (OV-Chat)
    corrected   an answer without what never happened against itself with it                              (RLHF-V)
    twins       these, and for every three a right answer against itself without something that did happen

Ties are no pairs (scores must differ by `margin`), what is chosen scores at least `least_chosen`, what the model said
of a changed clip is only ever rejected, and a question gives at most `most` pairs (RLAIF-V: 2), no answer twice on the
same side. Then lengths are rebalanced: a judge's taste for long answers must not be what is learnt. Twins differ in
what was left out and in nothing else, so that any difference of their scores counts and none are left out for lengths.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from vidllm.errors import ConfigError
from vidllm.feedback.candidates import CORRECTED, SAMPLED, SHORTENED, TWINS, Candidate
from vidllm.feedback.judge import LEAST, MOST, Verdict

Rule = Literal["threshold", "best", "corrected", "twins"]
THRESHOLD = (LEAST + MOST) / 2
"""Unless somebody says otherwise."""


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """Which answers become pairs."""

    rule: Rule = "best"
    threshold: float = THRESHOLD
    """Of the rule of that name: a positive scores at least so much, a negative less."""
    margin: float = 1.0
    """Scores that differ by less are a tie."""
    least_chosen: float = 3.0
    """Nothing worse is held up as an example; 1: anything."""
    most: int = 2
    """Pairs a question may give."""
    rebalance: float | None = 0.02
    """Largest difference of the two mean lengths, as a share of their mean; None: lengths are left as they are."""
    most_rebalanced: float = 0.5
    """At most such a share of the pairs is dropped for it."""

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise ConfigError(f"rule {self.rule!r} is unknown; there are {', '.join(get_args(Rule))}")
        for name in ("threshold", "least_chosen"):
            if not LEAST <= getattr(self, name) <= MOST:
                raise ConfigError(f"{name} is {getattr(self, name):g}; scores are {LEAST:g} to {MOST:g}")
        if self.rule != "threshold" and self.threshold != THRESHOLD:
            raise ConfigError(f"threshold is of the rule of that name, and the rule is {self.rule}; name that rule, or "
                              "leave it out")  # fmt: skip
        if not 0 < self.margin < math.inf:
            raise ConfigError(f"margin is {self.margin:g}; two answers of the same score are no pair, use 0.5 or 1")
        if self.most < 1:
            raise ConfigError(f"most is {self.most}; a question must be allowed at least 1 pair")
        if self.rebalance is not None and not self.rebalance >= 0:
            raise ConfigError(f"rebalance is {self.rebalance:g}; use a share such as 0.02, or none")
        if not 0 <= self.most_rebalanced <= 1:
            raise ConfigError(f"most_rebalanced is {self.most_rebalanced:g}; use a share of the pairs, 0 to 1")

    @property
    def of_twins(self) -> bool:
        """Answers stand against their twins (`twins`), which have to be made when the answers are."""
        return self.rule in ("corrected", "twins")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two answers to question number `question`."""

    question: int
    chosen: Candidate
    rejected: Candidate
    chosen_score: float
    rejected_score: float

    @property
    def gap(self) -> float:
        """By how much the chosen answer scores more."""
        return score_gap(self.chosen_score, self.rejected_score)

    @property
    def longer(self) -> int:
        """Tokens by which the chosen answer is longer."""
        return self.chosen.tokens - self.rejected.tokens


def score_gap(one: float, other: float) -> float:
    """The first score less the second, to the billionth: 4.1 is one more than 3.1, and in binary a little less."""
    return round(one - other, 9)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A candidate with its verdict."""

    candidate: Candidate
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Paired:
    """The pairs, those there were before some were left out for their lengths, and the questions that gave none, by
    reason."""

    pairs: tuple[Pair, ...]
    unbalanced: tuple[Pair, ...]
    dropped: dict[str, int]


ALIKE = "all candidates alike"
UNJUDGED = "no verdict on two candidates"
TIED = "all scores tied"
NONE_GOOD = "no candidate good enough to choose"
NONE_BAD = "no candidate bad enough to reject"


def make_pairs(questions: Sequence[Sequence[Scored]], options: PairOptions) -> Paired:
    """Pairs of all questions, in their order."""
    pairs: list[Pair] = []
    dropped: Counter[str] = Counter()
    for number, scored in enumerate(questions):
        found = _of_question(number, scored, options)
        if isinstance(found, str):
            dropped[found] += 1
        else:
            pairs += found
    if options.rule == "twins":
        kept = few_shortened(pairs)
    elif options.rule == "corrected" or options.rebalance is None:
        kept = pairs
    else:
        kept = rebalanced(pairs, options)
    return Paired(pairs=tuple(kept), unbalanced=tuple(pairs), dropped=dict(dropped))


def _of_question(number: int, scored: Sequence[Scored], options: PairOptions) -> list[Pair] | str:
    """The pairs of one question, or why there are none."""
    if len(scored) < 2:
        return ALIKE
    judged = [(s.candidate, s.verdict.score) for s in scored if s.verdict.score is not None]
    if len(judged) < 2:
        return UNJUDGED
    every = [
        Pair(question=number, chosen=good, rejected=bad, chosen_score=high, rejected_score=low)
        for good, high in judged
        for bad, low in judged
    ]
    possible = [pair for pair in every if _is_pair(pair, options)]
    if not possible:
        return TIED
    by_threshold = options.rule == "threshold"
    least = max(options.least_chosen, options.threshold) if by_threshold else options.least_chosen
    good_enough = [pair for pair in possible if pair.chosen_score >= least]
    if not good_enough:
        return NONE_GOOD
    below = options.threshold if by_threshold else math.inf
    return _few([pair for pair in good_enough if pair.rejected_score < below], options) or NONE_BAD


def _is_pair(pair: Pair, options: PairOptions) -> bool:
    """Whether the one answer may be chosen over the other."""
    good, bad = pair.chosen, pair.rejected
    if options.of_twins:
        better = good.source == CORRECTED and good.twin_of == bad.text
        worse = options.rule == "twins" and bad.source == SHORTENED and bad.twin_of == good.text
        return (better or worse) and pair.gap > 0
    return good.source == SAMPLED and bad.source not in TWINS and pair.gap >= options.margin


def _few(pairs: Sequence[Pair], options: PairOptions) -> list[Pair]:
    """The clearest first, of equally clear ones that whose lengths are nearest; no answer twice on one side.

    Gaps that hold as many margins are equally clear: where a bad answer is about as bad, length should not tell.
    """
    chosen: set[str] = set()
    rejected: set[str] = set()
    few: list[Pair] = []
    for pair in sorted(pairs, key=lambda p: (-int(round(p.gap / options.margin, 9)), abs(p.longer), -p.gap)):
        fresh = pair.rejected.text not in rejected and (pair.chosen.text not in chosen or _only(pair, pairs))
        if fresh and len(few) < options.most:
            few.append(pair)
            chosen.add(pair.chosen.text)
            rejected.add(pair.rejected.text)
    return few


def _only(pair: Pair, pairs: Sequence[Pair]) -> bool:
    """Whether its chosen answer is the only one there is to choose: then it may stand against several."""
    return all(other.chosen.text == pair.chosen.text for other in pairs)


def few_shortened(pairs: Sequence[Pair]) -> list[Pair]:
    """All corrections, and from even steps a third as many pairs whose rejected answer was shortened: these hold
    against saying less, and where there are more of them they undo what corrections teach (benchmarks/NOTES.md)."""
    shortened = [n for n, pair in enumerate(pairs) if pair.rejected.source == SHORTENED]
    room = min(len(shortened), (len(pairs) - len(shortened)) // 3)
    left_out = set(shortened) - {shortened[n * len(shortened) // room] for n in range(room)}
    return [pair for n, pair in enumerate(pairs) if n not in left_out]


def rebalanced(pairs: Sequence[Pair], options: PairOptions) -> list[Pair]:
    """As few pairs left out as bring the mean lengths of chosen and rejected answers together (see `PairOptions`).

    Those go first whose lengths differ most in the direction of the surplus: no other choice needs fewer. What would
    leave as large a one the other way stays.
    """
    assert options.rebalance is not None
    dropped: set[int] = set()
    surplus = sum(pair.longer for pair in pairs)
    tokens = sum(pair.chosen.tokens + pair.rejected.tokens for pair in pairs)
    sign = 1 if surplus > 0 else -1
    most = int(options.most_rebalanced * len(pairs))
    for n in sorted(range(len(pairs)), key=lambda n: -sign * pairs[n].longer):
        if abs(surplus) <= options.rebalance * tokens / 2 or len(dropped) >= most:
            break
        if sign * pairs[n].longer > 0 and abs(surplus - pairs[n].longer) < abs(surplus):
            dropped.add(n)
            surplus -= pairs[n].longer
            tokens -= pairs[n].chosen.tokens + pairs[n].rejected.tokens
    return [pair for n, pair in enumerate(pairs) if n not in dropped]
