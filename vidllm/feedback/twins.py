"""An answer's twin: the same words but for what makes one of the two better, so that nothing else can be learnt.

    an answer      The red circle moves right. Then the blue star grows. Then the red circle disappears.
    corrected      The red circle moves right. Then the red circle disappears.            the star never grew: chosen
    a right one    The red circle moves right. Then the red circle disappears.
    shortened      The red circle disappears.                                             the move is missing: rejected

Corrections are RLHF-V's idea (arXiv 2312.00849), where people write them; here the script does. By themselves they
teach to leave out what is doubtful, true or not; that a right answer is better than itself with an event left out holds
against it, and where there are more of these it undoes it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from vidllm.feedback.candidates import CORRECTED, SHORTENED
from vidllm.feedback.claims import read_claims
from vidllm.feedback.judge import Case
from vidllm.feedback.oracle import match_claims, script_of
from vidllm.feedback.truth import find_truth

DESCRIPTIONS = ("describe", "timeline", "span")
"""Families whose answers tell several events: one of them can be left out."""


@dataclass(frozen=True)
class Twin:
    """`source` says what it is to the answer: corrected or shortened."""

    source: str
    text: str


def twin(case: Case) -> Twin | None:
    """The answer without the sentences that tell an event which the script does not hold, or holds less often; of an
    answer with none of these, itself without one sentence that tells an event.

    None where nothing would be left, or the question asks for no description of a world clip.
    """
    script = script_of(case.video)
    truth = None if script is None else find_truth(case.question, script)
    if truth is None or truth.family not in DESCRIPTIONS:
        return None
    sentences = re.split(r"(?<=[.!?;])\s+", case.answer.strip())
    each = [read_claims(sentence).claims for sentence in sentences]
    _, wrong = match_claims([claim for claims in each for claim in claims], truth.events)
    places = iter(range(sum(map(len, each))))
    invented = {n for n, claims in enumerate(each) if {next(places) for _ in claims} & wrong}
    told = [n for n, claims in enumerate(each) if claims]
    if invented:
        return _without(sentences, invented, CORRECTED)
    return _without(sentences, {told[_draw(case.answer, len(told))]}, SHORTENED) if len(told) > 1 else None


def _draw(text: str, count: int) -> int:
    """One of so many, the same for the same text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") % count


def _without(sentences: Sequence[str], left_out: set[int], source: str) -> Twin | None:
    """What remains, its first sentence one that follows on nothing."""
    kept = " ".join(sentence for n, sentence in enumerate(sentences) if n not in left_out)
    bare = re.sub(r"^then,? ", "", kept, flags=re.IGNORECASE)
    return Twin(source, bare[:1].upper() + bare[1:]) if bare else None
