"""The judge that knows: a world clip's script says what is true, and every family of questions has an exact measure.

An answer that is right scores 5. One that is wrong scores below 3, the better the nearer it is, and to miss an event
is better than to invent one: what a preference pair teaches is mostly not to tell what never happened.

    what, order   right 5 · nothing told where something happens 2 · another event 1 to 2.5 · an event invented 1
    describe, span   1 + 4 x F, F weighs hallucinated events four times missed ones, and order counts
    timeline   the same, half of it for the times
    when   5 at the second, 4 and 3 within one and two of it, 2 within five    count   5, one off 2
    where  5, the row or the column 2    colour, shape, exists, first   5 or 1

`hold_against` is the measure behind descriptions, by itself: F1 of events, hallucinated events and objects.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from vidllm.feedback.claims import Claim, Reading, read_claims
from vidllm.feedback.judge import LEAST, MOST, Case, Judged, Verdict
from vidllm.feedback.truth import Truth, find_truth
from vidllm.video.timecode import find_times
from vidllm.world.questions import NOTHING, tell, visible
from vidllm.world.script import VERSION, Event, Script
from vidllm.world.vocabulary import COLOURS, NUMBERS, SHAPES

MISSED = 2.0
"""For saying that nothing happens where something does."""
NEAREST_WRONG = 2.5
"""What a wrong answer can reach at most: below it lies the middle of the scale, above it only what is right."""
PRECISION_WEIGHT = 0.5
"""Beta of F: what is invented weighs four times (1 / beta^2) what is left out."""
NEAR_SECONDS = 1.0
"""A time of a timeline that is off by no more is right."""
ORDER_WEIGHT = 0.25
"""What events told in a wrong order cost at most, of F."""


# ------------------------------------------------------------------------- descriptions, event by event


@dataclass(frozen=True, kw_only=True)
class Account:
    """A description held against its script."""

    happened: int
    """Events that truly happen."""
    told: int
    """Events that it tells, a repeated one every time."""
    right: int
    """Told events that happen, each at most once."""
    in_order: int
    """The longest run of right ones that is in true order."""
    hallucinated: tuple[str, ...]
    """Told events that never happen, or more often than they do."""
    missed: tuple[str, ...]
    objects: int
    """Mentions of objects."""
    invented: tuple[str, ...]
    """Mentions of objects that are never seen."""

    @property
    def precision(self) -> float:
        """Share of what is told that is right; 1 when nothing is told."""
        return self.right / self.told if self.told else 1.0

    @property
    def recall(self) -> float:
        """Share of what happens that is told; 1 when nothing happens."""
        return self.right / self.happened if self.happened else 1.0

    @property
    def order(self) -> float:
        """Share of the right ones that stand in order."""
        return self.in_order / self.right if self.right else 1.0

    @property
    def f1(self) -> float:
        """Twice the right ones over all told and all that happen; 1 when both are none."""
        return self.f_beta(1.0)

    def f_beta(self, beta: float) -> float:
        """F of precision and recall, recall weighted beta times."""
        if not self.told and not self.happened:
            return 1.0
        down = beta**2 * self.happened + self.told
        return (1 + beta**2) * self.right / down


def hold_against(text: str, script: Script, events: Sequence[Event] | None = None) -> Account:
    """Every event and object that `text` tells, held against `events` of the script (None: all of them).

    An event is told by object and action, in any wording; each happens once, so that telling it twice is once too
    often. A colour left unsaid is no mistake. Objects are invented when no such object is seen at any time.
    """
    happened = tuple(script.events if events is None else events)
    reading = read_claims(text)
    places, wrong = match_claims(reading.claims, happened)
    seen = names_seen(script)
    return Account(
        happened=len(happened), told=len(reading.claims), right=len(places), in_order=_longest_rise(places),
        hallucinated=tuple(str(reading.claims[n]) for n in sorted(wrong)),
        missed=tuple(e.phrase for n, e in enumerate(happened) if n not in places),
        objects=len(reading.objects), invented=tuple(name for name in reading.objects if name not in seen),
    )  # fmt: skip


def match_claims(claims: Sequence[Claim], events: Sequence[Event]) -> tuple[list[int], set[int]]:
    """The place in `events` of each right claim's event, in the order told, and the places of the wrong claims."""
    places: list[int] = []
    wrong: set[int] = set()
    for number, claim in enumerate(claims):
        free = [n for n, event in enumerate(events) if n not in places and claim.fits(event)]
        later = [n for n in free if not places or n > places[-1]]
        if free:
            places.append((later or free)[0])
        else:
            wrong.add(number)
    return places, wrong


def _longest_rise(places: Sequence[int]) -> int:
    """Length of the longest ascending subsequence; a description has a handful of events."""
    longest: list[int] = []
    for n, here in enumerate(places):
        longest.append(1 + max((longest[m] for m in range(n) if places[m] < here), default=0))
    return max(longest, default=0)


@lru_cache(256)
def names_seen(script: Script) -> frozenset[str]:
    """Every name under which an object is seen at some time: "red circle", and "circle" alone."""
    edges = {0.0, script.duration, *(t for e in script.events for t in (e.start, e.end))}
    full = {thing.name for t in edges for thing in visible(script, t)} | {event.name for event in script.events}
    return frozenset(full | {name.split()[1] for name in full})


# ------------------------------------------------------------------------------------- one measure a family


Graded = tuple[float, dict[str, float], str]
"""Score, criteria, explanation."""


_OPEN = re.compile(
    r"\b(?:not|never|neither|false|or|any\w* but|(?:more|less|fewer) than|at (?:least|most))\b|n't\b", re.IGNORECASE
)
"""An answer of one word or time that holds this names what is not so, or may not be."""


def grade(question: str, answer: str, script: Script) -> Verdict:
    """The verdict on an answer; a score of None when the question is none the script can answer."""
    truth = find_truth(question, script)
    if truth is None:
        return Verdict(score=None, failed="the script does not answer this question; ask another judge")
    if truth.family in ("when", "count", "colour", "shape", "where") and _OPEN.search(answer):
        return Verdict(score=LEAST, explanation="denies, or leaves open, what it names")
    score, criteria, why = _MEASURES[truth.family](truth, answer, script)
    return Verdict(score=round(score, 3), criteria=tuple(criteria.items()), explanation=why)


def _grade_event(truth: Truth, answer: str, _: Script) -> Graded:
    reading = read_claims(answer)
    right = NOTHING if not truth.events else " ".join(e.sentence for e in truth.events)
    if truth.nothing_too:
        right += f" ({NOTHING})"
    return _event_score(truth, reading), {}, right


def _event_score(truth: Truth, reading: Reading) -> float:
    allowed = (*truth.events, *truth.also)
    if reading.says_nothing:
        return MOST if not truth.events or truth.nothing_too else MISSED
    if not reading.claims or not allowed:
        return LEAST
    wrong = [claim for claim in reading.claims if not any(claim.fits(event) for event in allowed)]
    if not wrong and not reading.torn:
        return MOST
    if len(wrong) < len(reading.claims):
        return NEAREST_WRONG  # the right event, and others beside it
    nearest = max(claim.nearness(event) for claim in wrong for event in allowed)
    return LEAST + (NEAREST_WRONG - LEAST) * nearest


def _grade_description(truth: Truth, answer: str, script: Script) -> Graded:
    account, reading = hold_against(answer, script, truth.events), read_claims(answer)
    if not reading.claims and not reading.says_nothing:
        return LEAST, {"clarity": LEAST}, "no event that can be understood"
    quality = account.f_beta(PRECISION_WEIGHT) * (1 - ORDER_WEIGHT * (1 - account.order))
    clear = reading.understood / reading.sentences if reading.sentences else 0.0
    criteria = {"accuracy": account.precision, "completeness": account.recall, "order": account.order, "clarity": clear}
    why = f"{account.right} of {account.happened} events, {len(account.hallucinated)} hallucinated"
    scaled = {name: round(LEAST + (MOST - LEAST) * share, 3) for name, share in criteria.items()}
    return LEAST + (MOST - LEAST) * quality, scaled, f"{why}; true: {tell(truth.events)}"


def _grade_timeline(truth: Truth, answer: str, script: Script) -> Graded:
    """As a description; an event told at a wrong time is half right."""
    score, criteria, why = _grade_description(truth, answer, script)
    right = timed = 0
    for sentence in re.split(r"(?<=[.!?;])\s+", answer):
        claims, times = read_claims(sentence).claims, find_times(sentence)
        said = [time.seconds for time in times] if len(times) == len(claims) else [math.inf] * len(claims)
        for claim, seconds in zip(claims, said, strict=True):
            starts = [int(event.start) for event in truth.events if claim.fits(event)]
            right += bool(starts)
            timed += any(abs(seconds - start) <= NEAR_SECONDS for start in starts)
    share = timed / right if right else 1.0
    criteria["times"] = round(LEAST + (MOST - LEAST) * share, 3)
    return LEAST + (score - LEAST) * (1 + share) / 2, criteria, why


def _grade_time(truth: Truth, answer: str, _: Script) -> Graded:
    bare = f"at {answer.strip(' .!')} seconds"  # "14", "14 s", "half a minute"
    said = {time.seconds for time in find_times(answer) or find_times(bare)}
    why = "true: " + " or ".join(f"{second:g} s" for second in truth.seconds)
    if len(said) != 1:
        return LEAST, {}, why
    told = said.pop()
    off = min(0.0 if int(start) <= told <= start else abs(told - int(start)) for start in truth.seconds)
    return next((score for most, score in ((0.5, MOST), (1, 4.0), (2, 3.0), (5, 2.0)) if off <= most), LEAST), {}, why


def _grade_count(truth: Truth, answer: str, _: Script) -> Graded:
    assert truth.count is not None
    words, told = [word.casefold() for word in NUMBERS], _without_times(answer).casefold()
    figures = re.findall(rf"\b(?:{'|'.join(words)}|\d{{1,9}})\b", told)
    said = {words.index(figure) if figure in words else int(figure) for figure in figures}
    why = f"true: {truth.count}"
    if re.search(r"\bno\b|\bnone\b", told) and not said:
        said = {0}
    if len(said) != 1:
        return LEAST, {}, why
    off = abs(said.pop() - truth.count)
    return (MOST if not off else 2.0 if off == 1 else LEAST), {}, why


def _without_times(answer: str) -> str:
    """ "Two objects at 0:30." counts two, and nothing else."""
    for time in reversed(find_times(answer)):
        answer = f"{answer[: time.start]} {answer[time.end :]}"
    return answer


def _grade_place(truth: Truth, answer: str, _: Script) -> Graded:
    said, true = _row_and_column(answer), _row_and_column(truth.word)
    right = sum(a == b for a, b in zip(said, true, strict=True)) if any(said) else 0
    return (LEAST, 2.0, MOST)[right], {}, f"true: {truth.word}"


def _row_and_column(words: str) -> tuple[str, str]:
    """ "top left" -> ("top", "left"), "center" -> the middle of both; "" for what is not said."""
    found = set(re.findall(r"\b(?:top|middle|bottom|left|right|cent(?:er|re))\b", words.casefold()))
    rows, columns = {"top", "bottom"}.intersection(found), {"left", "right"}.intersection(found)
    middle = "middle" if found - rows - columns else ""
    if len(rows) > 1 or len(columns) > 1 or (rows and columns and middle):
        return "", ""
    return rows.pop() if rows else middle, columns.pop() if columns else middle


def _grade_word(words: Sequence[str]) -> Callable[[Truth, str, Script], Graded]:
    """Right when the answer holds the true word and no other of `words`."""

    def measure(truth: Truth, answer: str, _: Script) -> Graded:
        said = {word for word in re.findall(r"[a-z]+", answer.casefold()) if word in words}
        return (MOST if said == {truth.word} else LEAST), {}, f"true: {truth.word}"

    return measure


def _grade_first(truth: Truth, answer: str, _: Script) -> Graded:
    claims = read_claims(answer).claims
    right = bool(claims) and all(claim.fits(truth.events[0]) for claim in claims)
    return (MOST if right else LEAST), {}, f"true: {truth.events[0].sentence}"


_MEASURES: dict[str, Callable[[Truth, str, Script], Graded]] = {
    "what": _grade_event, "order": _grade_event, "describe": _grade_description, "span": _grade_description,
    "timeline": _grade_timeline,
    "when": _grade_time, "count": _grade_count, "where": _grade_place, "colour": _grade_word(COLOURS),
    "shape": _grade_word(SHAPES), "exists": _grade_word(("yes", "no")), "first": _grade_first,
}  # fmt: skip


# -------------------------------------------------------------------------------------------------- the judge


class Oracle:
    """A `Judge` that reads the script beside each clip; it needs no model, and every verdict is exact."""

    name = "oracle"
    way = ""
    fingerprint = f"oracle:3:world {VERSION}"

    def __init__(self) -> None:
        self._done: list[Judged] = []

    def refuses(self, case: Case) -> str | None:
        """See `Judge`."""
        script = script_of(case.video)
        if script is None:
            return "has no sound script beside its clip (NAME.json of `vidllm world make`); use another --judge"
        verdict = grade(case.question, "", script)
        return None if verdict.failed is None else f"{case.question!r:.200}: {verdict.failed}"

    def submit(self, ticket: int, cases: Sequence[Case]) -> None:
        """See `Judge`."""
        self._done.append(Judged(ticket=ticket, verdicts=tuple(judge_case(case) for case in cases)))

    def poll(self, wait: float) -> list[Judged]:
        """See `Judge`."""
        done, self._done = self._done, []
        return done

    def room(self) -> bool:
        """Judging takes no time: one after the other."""
        return not self._done

    def close(self) -> None:
        """Nothing runs."""


def judge_case(case: Case) -> Verdict:
    """The oracle's verdict on one case."""
    script = script_of(case.video)
    if script is None:
        return Verdict(score=None, failed="no script beside the clip")
    return grade(case.question, case.answer, script)


def script_of(video: Path | None) -> Script | None:
    """The script beside a world clip; None when there is none."""
    if video is None:
        return None
    path = video.with_suffix(".json")
    try:
        stamp = path.stat().st_mtime_ns
    except OSError:
        return None
    return _load(path, stamp)


@lru_cache(256)
def _load(path: Path, _: int) -> Script | None:
    try:
        return Script.load(path)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
