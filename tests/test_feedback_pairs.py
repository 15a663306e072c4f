"""Who is set against whom: pure rules, checked by hand and against every other choice."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from vidllm.clip import PlanOptions, open_clip
from vidllm.errors import ConfigError
from vidllm.feedback.candidates import CORRECTED, SAMPLED, SHORTENED, Candidate, SamplingOptions
from vidllm.feedback.judge import Verdict
from vidllm.feedback.pairs import (
    ALIKE,
    NONE_BAD,
    NONE_GOOD,
    TIED,
    UNJUDGED,
    Pair,
    PairOptions,
    Scored,
    make_pairs,
    rebalanced,
)
from vidllm.feedback.perturb import CHANGES, parse_changes, perturb, perturb_messages
from vidllm.feedback.report import agree
from vidllm.model.families import load_tokenizer, read_spec, resolve_model
from vidllm.prompt import Message
from vidllm.visuals import Image

FREE = PairOptions(rebalance=None)


def scored(*scores: float | None, sources: Sequence[str] = (), tokens: Sequence[int] = ()) -> list[Scored]:
    """Candidates "a0", "a1", ... with these scores."""
    found = []
    for n, score in enumerate(scores):
        source = sources[n] if sources else SAMPLED
        candidate = Candidate(text=f"a{n}", logp=-1.0, tokens=tokens[n] if tokens else 5, source=source)
        verdict = Verdict(score=score) if score is not None else Verdict(score=None, failed="down")
        found.append(Scored(candidate=candidate, verdict=verdict))
    return found


def told(questions: Sequence[Sequence[Scored]], options: PairOptions) -> list[tuple[str, str]]:
    return [(pair.chosen.text, pair.rejected.text) for pair in make_pairs(questions, options).pairs]


def test_the_best_stands_against_the_worst() -> None:
    assert told([scored(3, 5, 1, 4)], replace(FREE, most=1)) == [("a1", "a2")]


def test_a_question_gives_at_most_so_many_pairs_and_no_answer_twice_on_a_side() -> None:
    assert told([scored(5, 4, 2, 1)], FREE) == [("a0", "a3"), ("a1", "a2")]
    assert told([scored(5, 4, 3, 2, 1, 1.5)], replace(FREE, most=3)) == [("a0", "a4"), ("a1", "a5"), ("a2", "a3")]


def test_the_only_good_answer_may_stand_against_several() -> None:
    assert told([scored(5, 1, 2.5, 1.5)], FREE) == [("a0", "a1"), ("a0", "a3")]


def test_the_threshold_separates_positives_from_negatives() -> None:
    by_threshold = replace(FREE, rule="threshold", threshold=3.0, most=9)
    assert told([scored(5, 3, 2)], by_threshold) == [("a0", "a2")]
    assert told([scored(3, 2)], by_threshold) == [("a0", "a1")]
    assert make_pairs([scored(5, 4, 3)], by_threshold).dropped == {NONE_BAD: 1}
    assert make_pairs([scored(3.5, 1)], replace(by_threshold, threshold=4.0)).dropped == {NONE_GOOD: 1}
    of_a_changed_clip = scored(3.5, 1, 5, sources=(SAMPLED, SAMPLED, "blank"))
    assert make_pairs([of_a_changed_clip], replace(by_threshold, threshold=4.0)).dropped == {NONE_GOOD: 1}


@pytest.mark.parametrize(("high", "low", "margin"), [(4.1, 3.1, 1.0), (3.4, 3.0, 0.4), (4.1, 4.0, 0.1)])
def test_scores_that_differ_by_the_margin_are_no_tie(high: float, low: float, margin: float) -> None:
    """Though in binary the difference is a little less."""
    assert high - low < margin
    assert told([scored(high, low)], replace(FREE, margin=margin)) == [("a0", "a1")]
    found = agree("one", [[high, low]], "other", [[5.0, 1.0]], margin)
    assert found is not None
    assert found.alike == 1


@pytest.mark.parametrize(
    ("candidates", "reason"),
    [(scored(4), ALIKE), ([], ALIKE), (scored(4, None), UNJUDGED), (scored(None, None), UNJUDGED), (scored(4, 4), TIED),
     (scored(4, 3.5), TIED), (scored(2.5, 1), NONE_GOOD)],
)  # fmt: skip
def test_what_gives_no_pair_is_counted_by_its_reason(candidates: list[Scored], reason: str) -> None:
    made = make_pairs([candidates, scored(5, 1)], FREE)
    assert made.dropped == {reason: 1}
    assert [pair.question for pair in made.pairs] == [1]


def test_what_was_said_of_a_changed_clip_is_only_ever_rejected() -> None:
    assert told([scored(5, 1, sources=("blank", SAMPLED))], FREE) == []
    assert told([scored(5, 1, sources=(SAMPLED, "blank"))], FREE) == [("a0", "a1")]


def test_an_answer_stands_against_its_twin_and_nothing_else() -> None:
    """However long: what was left out is all the difference."""
    candidates = scored(4.5, 3.0, 2.0, 5.0, 3.5, 2.0, 4.0, sources=(*[SAMPLED] * 3, *[CORRECTED] * 3, SHORTENED),
                        tokens=(9, 9, 9, 5, 5, 5, 5))  # fmt: skip
    of = {3: "a0", 4: "a1", 5: "a2", 6: "a0"}
    candidates = [replace(one, candidate=replace(one.candidate, twin_of=of.get(n, ""))) for n, one in
                  enumerate(candidates)]  # fmt: skip
    twins = PairOptions(rule="twins", margin=1.0, rebalance=0.0, most=3)
    corrections, right = [("a3", "a0"), ("a4", "a1")], ("a0", "a6")  # a5 equals a2
    assert sorted(told([candidates], twins)) == corrections  # for three of these there is one of the other
    assert sorted(told([candidates] * 2, twins)) == sorted([*corrections * 2, right])
    assert sorted(told([candidates] * 5, twins)) == sorted([*corrections * 5, *[right] * 3])
    assert sorted(told([candidates], replace(twins, rule="corrected"))) == corrections
    assert told([candidates], FREE) == [("a0", "a2")]


def test_of_equally_clear_pairs_lengths_decide() -> None:
    assert told([scored(5, 1, 1, tokens=(10, 40, 11))], replace(FREE, most=1)) == [("a0", "a2")]
    assert told([scored(5, 1.5, 1.9, tokens=(10, 40, 11))], replace(FREE, most=1)) == [("a0", "a2")]
    assert told([scored(5, 1, 1.9, tokens=(10, 40, 11))], replace(FREE, most=1)) == [("a0", "a1")]
    three_margins = scored(4.3, 4.0, 4.05, tokens=(10, 40, 11))  # 4.3 - 4.0 is a little less than 3 x 0.1
    assert told([three_margins], replace(FREE, most=1, margin=0.1)) == [("a0", "a1")]


def pairs_of(*lengths: tuple[int, int]) -> list[Pair]:
    return [
        Pair(question=n, chosen=Candidate(text=f"c{n}", logp=0, tokens=a), chosen_score=5.0, rejected_score=1.0,
             rejected=Candidate(text=f"r{n}", logp=0, tokens=b))
        for n, (a, b) in enumerate(lengths)
    ]  # fmt: skip


def gap(pairs: Sequence[Pair]) -> float:
    """Difference of the mean lengths, as a share of their mean."""
    chosen, rejected = sum(p.chosen.tokens for p in pairs), sum(p.rejected.tokens for p in pairs)
    return abs(chosen - rejected) / ((chosen + rejected) / 2)


def test_rebalancing_brings_the_lengths_together_with_as_few_dropped_as_any_choice() -> None:
    rng = random.Random(3)
    options = PairOptions(rebalance=0.1, most_rebalanced=0.9)
    for _ in range(60):
        pairs = pairs_of(*((rng.randint(5, 30), rng.randint(3, 20)) for _ in range(8)))
        kept = rebalanced(pairs, options)
        fewest = next(
            n for n in range(9) if any(gap(some) <= 0.1 for some in combinations(pairs, len(pairs) - n) if some)
        )
        if gap(kept) <= 0.1:
            assert len(pairs) - len(kept) <= fewest + 1  # greedy: at most one more than the best of all choices
        assert [pair.question for pair in kept] == sorted(pair.question for pair in kept)


def test_rebalancing_never_turns_the_surplus_round_nor_drops_beyond_its_share() -> None:
    same = pairs_of((10, 10), (8, 8))
    assert rebalanced(same, PairOptions()) == same
    lopsided = pairs_of(*[(30, 10)] * 10)
    assert len(rebalanced(lopsided, PairOptions(most_rebalanced=0.5))) == 5
    one_huge = pairs_of((100, 10), (10, 12), (10, 12), (10, 12))
    assert [pair.chosen.tokens for pair in rebalanced(one_huge, PairOptions(rebalance=0.2))] == [10, 10, 10]


def test_rebalancing_drops_what_its_definition_drops() -> None:
    """The means of what is kept counted anew before every choice, over hundreds of random inputs."""
    rng = random.Random(5)
    for _ in range(400):
        spread = rng.choice([2, 8, 40])
        pairs = pairs_of(*((rng.randint(1, spread), rng.randint(1, spread)) for _ in range(rng.randint(0, 25))))
        options = PairOptions(rebalance=rng.choice([0.0, 0.02, 0.2]), most_rebalanced=rng.choice([0.0, 0.3, 0.5, 1.0]))
        assert rebalanced(pairs, options) == by_definition(pairs, options)


def by_definition(pairs: Sequence[Pair], options: PairOptions) -> list[Pair]:
    """Pair after pair, those that differ most in the direction of the surplus first, as long as it shrinks."""
    assert options.rebalance is not None
    left = list(pairs)
    sign = 1 if sum(pair.longer for pair in pairs) > 0 else -1
    for pair in sorted(pairs, key=lambda pair: -sign * pair.longer):
        surplus = sum(one.longer for one in left)
        mean = sum(one.chosen.tokens + one.rejected.tokens for one in left) / 2
        if abs(surplus) <= options.rebalance * mean or len(pairs) - len(left) >= int(
            options.most_rebalanced * len(pairs)
        ):
            break
        if sign * pair.longer > 0 and abs(surplus - pair.longer) < abs(surplus):
            left.remove(pair)
    return left


def test_rebalancing_a_hundred_thousand_pairs_ends() -> None:
    """Linear but for a sort: they took hours when every choice counted all of them."""
    rng = random.Random(7)
    pairs = pairs_of(*((rng.randint(5, 60), rng.randint(3, 40)) for _ in range(100_000)))
    assert len(rebalanced(pairs, PairOptions())) >= 50_000


def test_impossible_options_are_refused() -> None:
    for wrong in ({"rule": "worst"}, {"margin": 0.0}, {"threshold": 9.0}, {"most": 0}, {"rebalance": -1.0},
                  {"most_rebalanced": 2.0}, {"margin": math.nan}, {"margin": math.inf}, {"rebalance": math.nan},
                  {"threshold": 4.0}, {"rule": "threshold", "threshold": 9.0}, {"least_chosen": 0.5}):  # fmt: skip
        with pytest.raises(ConfigError):
            PairOptions(**wrong)  # type: ignore[arg-type]
    assert PairOptions(rule="threshold", threshold=4.0, least_chosen=5.0).threshold == 4
    for wrong in ({"k": 1}, {"temperature": 0.0}, {"top_p": 0.0}, {"temperature": -1.0}):
        with pytest.raises(ConfigError):
            SamplingOptions(**wrong)  # type: ignore[arg-type]


def test_agreement_counts_pairs_of_answers_by_hand() -> None:
    mine = [[5.0, 1.0, 3.0], [2.0, 2.0]]
    theirs = [[4.0, 4.0, 5.0], [1.0, 5.0]]
    found = agree("me", mine, "oracle", theirs, 1.0)
    assert found is not None
    # 5>1: tied there; 5>3: 4<5 against; 3>1: 5>4 alike; 2=2 does not count
    assert (found.alike, found.against, found.undecided) == (1, 1, 1)
    assert found.correlation == pytest.approx(float(np.corrcoef([5, 1, 3, 2, 2], [4, 4, 5, 1, 5])[0, 1]))
    assert agree("me", [[None]], "oracle", [[1.0]], 1.0) is None


# ---------------------------------------------------------------------------------------------------- changed clips


def test_changes_keep_the_plan_and_move_only_pixels(clips: dict[str, Path]) -> None:
    spec = read_spec(resolve_model(None))
    clip = open_clip(clips["constant"], "what?", spec, load_tokenizer(spec.folder), PlanOptions(frames=8))
    seen = {change: perturb(clip, change, 7).frames for change in CHANGES}
    pixels = clip.frames.pixels
    assert np.array_equal(seen["reversed"].pixels, pixels[::-1])
    assert np.array_equal(seen["dropped"].pixels, pixels[[0, 0, 0, 0, 4, 4, 4, 4]])
    assert len(np.unique(seen["blank"].pixels)) == 1
    shuffled = seen["shuffled"].pixels
    assert sorted(map(bytes, shuffled)) == sorted(map(bytes, pixels))
    assert not np.array_equal(shuffled, pixels)
    for frames in seen.values():
        assert np.array_equal(frames.pts_seconds, clip.frames.pts_seconds)
    assert np.array_equal(perturb(clip, "shuffled", 7).frames.pixels, shuffled)  # the seed decides


def test_a_still_has_no_order_to_change() -> None:
    rng = np.random.default_rng(0)
    messages = [Message("user", "what?", (Image(rng.integers(0, 255, (8, 8, 3), np.uint8)),))]
    assert perturb_messages(messages, "shuffled", 0) is None
    assert perturb_messages(messages, "blank", 0) is not None


def test_changes_are_named_or_refused() -> None:
    assert parse_changes("shuffled, blank,shuffled") == ("shuffled", "blank")
    assert parse_changes("all") == CHANGES
    assert parse_changes("none") == parse_changes("") == ()
    with pytest.raises(ConfigError, match="dropped, shuffled, reversed, blank"):
        parse_changes("slowed")
