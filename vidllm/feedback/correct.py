"""An answer without what never happened: what is chosen over the answer itself, so that nothing else can be learnt.

    rejected   The red circle moves right. Then the blue star grows. Then the red circle disappears.
    chosen     The red circle moves right. Then the red circle disappears.

The idea is RLHF-V's (arXiv 2312.00849), whose corrections people write; here the script does. Nothing is added: a model
is to leave out what it did not see, and what it missed it can not be told to have seen.
"""

from __future__ import annotations

import re

from vidllm.feedback.claims import read_claims
from vidllm.feedback.judge import Case
from vidllm.feedback.oracle import match_claims, script_of
from vidllm.feedback.truth import find_truth

DESCRIPTIONS = ("describe", "timeline", "span")
"""Families whose answers tell several events: one of them can be left out."""


def correct(case: Case) -> str | None:
    """The answer without the sentences that tell an event which the clip's script does not hold, or holds less often.

    None where nothing is wrong, nothing would be left, or the question asks for no description of a world clip.
    """
    script = script_of(case.video)
    truth = None if script is None else find_truth(case.question, script)
    if truth is None or truth.family not in DESCRIPTIONS:
        return None
    sentences = re.split(r"(?<=[.!?;])\s+", case.answer.strip())
    each = [read_claims(sentence).claims for sentence in sentences]
    _, wrong = match_claims([claim for claims in each for claim in claims], truth.events)
    places = iter(range(sum(map(len, each))))
    kept = [s for s, claims in zip(sentences, each, strict=True) if not {next(places) for _ in claims} & wrong]
    if len(kept) in (0, len(sentences)):
        return None
    return _opened(" ".join(kept))


def _opened(text: str) -> str:
    """With a first sentence that no longer follows on one."""
    bare = re.sub(r"^then,? ", "", text, flags=re.IGNORECASE)
    return bare[:1].upper() + bare[1:]
