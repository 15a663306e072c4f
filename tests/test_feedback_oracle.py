"""The oracle: every wording of every question is understood, right answers score 5, and inventions cost most."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from vidllm.feedback.claims import read_claim, read_claims
from vidllm.feedback.items import read_questions
from vidllm.feedback.judge import Case
from vidllm.feedback.oracle import MISSED, NEAREST_WRONG, Oracle, grade, hold_against, names_seen, script_of
from vidllm.feedback.truth import find_truth
from vidllm.feedback.twins import Twin, twin
from vidllm.train.lessons import clip_lessons
from vidllm.world.generate import generator, make_script
from vidllm.world.make import save_truth
from vidllm.world.questions import (
    NOTHING,
    Question,
    clip_questions,
    moment_questions,
    pick_moments,
    span_question,
    tell,
)
from vidllm.world.script import Canvas, Event, Script, Thing

RED = Thing(colour="red", shape="circle", x=0.2, y=0.2, radius=0.1, rgb=(255, 0, 0))
BLUE = Thing(colour="blue", shape="square", x=0.8, y=0.8, radius=0.1, rgb=(0, 0, 255))
HAND = Script(
    seed="hand", duration=20.0, canvas=Canvas(width=96, height=96, fps=8, background=(0, 0, 0)), things=(RED, BLUE),
    events=(
        Event(thing=0, name="red circle", action="moves right", start=2.0, end=4.0, amount=0.5),
        Event(thing=1, name="blue square", action="disappears", start=8.0, end=9.0),
        Event(thing=0, name="red circle", action="turns", start=14.0, end=15.0, colour="green", rgb=(0, 255, 0)),
    ),
)  # fmt: skip
"""0:02 the red circle moves right, 0:08 the blue square disappears, 0:14 the red circle turns green."""


def score(question: str, answer: str, script: Script = HAND) -> float:
    verdict = grade(question, answer, script)
    assert verdict.score is not None, verdict.failed
    return verdict.score


def asked(seed: int) -> tuple[Script, list[Question]]:
    """A clip, and questions of every family about it in all their wordings, by chance."""
    script, rng = make_script("oracle", seed), generator("oracle questions", seed)
    found = [*clip_questions(script, rng), *clip_lessons(script, rng)]
    for moment in pick_moments(script, 0.0, 4, rng):
        found += moment_questions(script, moment, rng)
    span = span_question(script, 3, 9, rng)
    return script, found + ([span] if span else [])


def test_every_wording_is_understood_and_its_true_answer_scores_five() -> None:
    families = set()
    for seed in range(60):
        script, questions = asked(seed)
        for question in questions:
            families.add(question.family)
            assert score(question.text, question.answer, script) == 5.0, question
    assert families >= {"what", "span", "when", "count", "colour", "shape", "where", "exists", "first", "order",
                        "describe", "timeline", "happens", "reasoning"}  # fmt: skip


def test_an_answer_that_is_true_of_another_question_scores_below_three() -> None:
    by_family: dict[str, set[str]] = defaultdict(set)
    for seed in range(10):
        for question in asked(seed)[1]:
            by_family[question.family].add(question.answer)
    exact = ("what", "count", "colour", "shape", "where", "exists", "order")
    for seed in range(10):
        script, questions = asked(seed)
        for question in questions:
            truth = find_truth(question.text, script)
            if question.family in exact and truth is not None and not truth.nothing_too:
                for other in by_family[question.family] - {question.answer}:
                    assert score(question.text, other, script) < 3, (question, other)


def test_inventing_an_event_costs_more_than_missing_one() -> None:
    assert score("what happens at 0:03?", NOTHING) == MISSED
    assert score("what happens at 0:06?", "The red circle moves right.") == 1.0
    assert score("what happens at 0:03?", "The red circle moves left.") <= NEAREST_WRONG
    missed = score("describe the video.", "The red circle moves right. Then the blue square disappears.")
    truth = "The red circle moves right. Then the blue square disappears. Then the red circle turns green."
    invented = score("describe the video.", truth + " Then the blue square moves up.")
    assert score("describe the video.", truth) == 5.0 > missed > invented > 3.0


def test_a_time_told_to_the_tenth_is_right_too() -> None:
    late = replace(HAND, events=(replace(HAND.events[0], start=2.9),))
    question = "when does the red circle move right?"
    assert [score(question, f"At {t} s.", late) for t in (2, 2.5, 2.9, 3)] == [5.0, 5.0, 5.0, 4.0]


@pytest.mark.parametrize(
    "answer",
    ["The red circle moves right or left.", "The red circle moves right and grows.", "The red circle moves left, right",
     "The red circle moves right, grows, shrinks and turns blue.", "The blue square or the red circle moves right.",
     "The blue square, the star and the red circle move right.", "The red circle moves right or nothing happens.",
     "Nothing happens. The red circle moves right."],
)  # fmt: skip
def test_who_tells_everything_is_not_right(answer: str) -> None:
    assert score("what happens at 0:03?", answer) == NEAREST_WRONG
    assert score("what happens first?", answer) == NEAREST_WRONG


@pytest.mark.parametrize(
    ("question", "right"),
    [("what happens at 0:03?", "the red circle moves right"), ("what happens at 0:06?", "nothing happens"),
     ("when does the red circle move right?", "at 0:02"), ("how many objects are there at 0:05?", "two"),
     ("what colour is the circle at 0:18?", "green"), ("where is the red circle at 0:01?", "at the top left"),
     ("which happens first: the blue square disappears or the red circle moves right?", "the red circle moves right"),
     ("describe what happens between 0:01 and 0:05.", "the red circle moves right")],
)  # fmt: skip
def test_what_is_denied_is_not_told(question: str, right: str) -> None:
    assert score(question, right) == 5.0
    assert score(question, f"It is not true that {right}.") == score(question, f"No, not {right}!") == 1.0


def test_an_event_told_beside_others_that_never_happen_is_not_right() -> None:
    assert score("what happens at 0:03?", "The red circle moves right. Then the blue square moves up.") == NEAREST_WRONG


@pytest.mark.parametrize(
    ("question", "answer", "nearness"),
    [
        ("what happens at 0:03?", "The red circle moves left.", 0.75),  # the same thing, its action half right
        ("what happens at 0:03?", "The circle moves left.", 0.75),
        ("what happens at 0:03?", "The blue circle moves right.", 0.75),
        ("what happens at 0:03?", "The red square moves right.", 0.75),
        ("what happens at 0:03?", "The red circle grows.", 0.5),
        ("what happens at 0:03?", "The blue square moves left.", 0.25),
        ("what happens at 0:03?", "The yellow star grows.", 0.0),
        ("what happens at 0:14?", "The red circle turns blue.", 0.75),
    ],
)
def test_a_wrong_event_scores_by_how_near_it_is(question: str, answer: str, nearness: float) -> None:
    assert score(question, answer) == 1 + (NEAREST_WRONG - 1) * nearness


def test_nothing_else_is_not_nothing_and_clarity_is_the_share_that_is_understood() -> None:
    assert score("what happens at 0:03?", "The red circle moves right. Nothing else happens.") == 5.0
    told = "The red circle moves right. It is dark . . . Nothing else happens."
    assert dict(grade("describe the video.", told, HAND).criteria)["clarity"] == pytest.approx(1 + 4 * 2 / 3, abs=1e-3)


def test_at_an_events_edge_both_answers_are_right() -> None:
    assert score("what happens at 0:04?", "The red circle moves right.") == 5.0  # it ends at 4.0
    assert score("what happens at 0:04?", NOTHING) == 5.0
    assert score("what happens at 0:04?", "The blue square disappears.") < 3


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("At 0:02.", 5.0), ("at 2 seconds", 5.0), ("At 0:03.", 4.0), ("At 0:04.", 3.0), ("At 0:07.", 2.0),
     ("At 0:12.", 1.0), ("At 0:02 or 0:09.", 1.0), ("The red circle.", 1.0), ("2 s", 5.0), ("2", 5.0),
     ("Two seconds.", 5.0), ("At 0:02, after two seconds.", 5.0), ("Not at 0:02.", 1.0), ("0:00 0:01 0:02", 1.0)],
)  # fmt: skip
def test_a_time_scores_by_its_distance(answer: str, expected: float) -> None:
    assert score("when does the red circle move right?", answer) == expected


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("how many objects are there at 0:05?", "Two.", 5.0), ("how many objects are there at 0:05?", "2", 5.0),
        ("how many objects are there at 0:12?", "Two.", 2.0), ("how many objects are there at 0:12?", "One or two.", 1),
        ("how many objects are there at 0:05?", "At 0:05 there are two objects.", 5.0),
        ("how many objects are there at 0:05?", "After 5 seconds there is one object.", 2.0),
        ("how many objects are there at 0:05?", "9" * 5000, 1.0),
        ("what colour is the circle at 0:18?", "green", 5.0), ("what colour is the circle at 0:18?", "red", 1.0),
        ("what colour is the circle at 0:18?", "green or red", 1.0),
        ("where is the red circle at 0:01?", "In the top left corner.", 5.0),
        ("where is the red circle at 0:01?", "At the top right.", 2.0),
        ("where is the red circle at 0:01?", "At the bottom right.", 1.0),
        ("where is the red circle at 0:01?", "At the top left, at the center.", 1.0),
        ("where is the red circle at 0:01?", "At the top left. Top left!", 5.0),
        ("how many objects are there at 0:05?", "At least two.", 1.0),
        ("what colour is the circle at 0:18?", "Anything but green.", 1.0),
        ("which happens first: the blue square disappears or the red circle moves right?",
         "the red circle moving right", 5.0),
        ("is there a blue square at 0:12?", "No, there is not.", 5.0), ("is there a blue square at 0:12?", "Yes.", 1.0),
    ],
)  # fmt: skip
def test_measures_by_hand(question: str, answer: str, expected: float) -> None:
    assert score(question, answer) == expected


def test_of_two_events_at_one_moment_the_scripts_first_is_first() -> None:
    at_once = replace(HAND, events=tuple(replace(event, start=2.0, end=2.0) for event in HAND.events))
    question = "which happens first: the blue square disappears or the red circle moves right?"
    assert score(question, "The red circle moves right.", at_once) == 5.0
    assert score("does the red circle move right before the blue square disappears?", "Yes.", at_once) == 5.0


def test_a_timeline_needs_its_times() -> None:
    events = ("red circle moves right", "blue square disappears", "red circle turns green")
    true, wrong = (" ".join(f"At {t} the {e}." for t, e in zip(times, events, strict=True))
                   for times in (("0:02", "0:08", "0:14"), ("0:02", "0:18", "0:01")))  # fmt: skip
    assert score("what happens, and at which times?", true) == 5.0
    in_one = true.replace(". At", ", at")
    assert score("what happens, and at which times?", in_one) == 5.0
    shifted = in_one.replace("0:0", "0:1")  # 0:12, 0:18, 0:14
    assert score("what happens, and at which times?", shifted) == pytest.approx(1 + 4 * (1 + 1 / 3) / 2, abs=1e-3)
    assert score("what happens, and at which times?", re.sub(r"at \d:\d\d ", "", in_one, flags=re.I)) == 3.0
    assert score("what happens, and at which times?", wrong) == pytest.approx(1 + 4 * (1 + 1 / 3) / 2, abs=1e-3)


def test_a_question_without_a_truth_has_no_score_but_a_reason() -> None:
    for question in ("why is the sky blue?", "when does the yellow star grow?", "what colour is the star at 0:02?",
                     "what happens at 9:59?"):  # fmt: skip
        verdict = grade(question, "Because.", HAND)
        assert verdict.score is None
        assert verdict.failed is not None


def test_a_description_is_held_against_the_script_event_by_event() -> None:
    text = ("The red circle turns green. Then the red circle moves right. Then the yellow star grows. "
            "Then the red circle moves right.")  # fmt: skip
    account = hold_against(text, HAND)
    assert (account.happened, account.told, account.right, account.in_order) == (3, 4, 2, 1)
    assert account.hallucinated == ("yellow star grows", "red circle moves right")  # the second time it is told
    assert account.missed == ("blue square disappears",)
    assert (account.objects, account.invented) == (4, ("yellow star",))
    assert account.precision == 2 / 4
    assert account.recall == 2 / 3
    assert account.f1 == pytest.approx(2 * 2 / (4 + 3))


def test_a_true_description_is_perfect_and_silence_is_no_hallucination() -> None:
    for seed in range(40):
        script = make_script("oracle", seed)
        account = hold_against(tell(script.events), script)
        assert (account.f1, account.order, account.hallucinated, account.invented) == (1.0, 1.0, (), ())
        silent = hold_against(NOTHING, script)
        assert (silent.precision, silent.recall, silent.f1) == (1.0, 0.0, 0.0)


def test_json_nested_without_end_is_no_script(tmp_path: Path) -> None:
    clip = tmp_path / "a.mp4"
    clip.touch()
    clip.with_suffix(".json").write_text("[" * 100_000, encoding="utf-8")
    assert script_of(clip) is None
    [problem] = read_questions(tmp_path).problems
    assert problem.what == "no questions in a.json beside it"


def test_the_order_of_repeated_events_is_matched_kindly() -> None:
    twice = Script(
        seed="twice", duration=20.0, canvas=HAND.canvas, things=HAND.things,
        events=(HAND.events[0], HAND.events[1], Event(thing=0, name="red circle", action="moves right", start=12.0,
                                                      end=13.0, amount=0.1)),
    )  # fmt: skip
    account = hold_against("The blue square disappears. The red circle moves right.", twice)
    assert (account.right, account.in_order) == (2, 2)  # the later one is meant


@pytest.mark.parametrize(
    "text",
    ["The red circle moves right.", "a red circle slowly moving to the right", "The RED circle then moved right!",
     "there is a red circle that moves towards the right", "the red circle starts to move right",
     "the red-coloured circle moves rightwards", "The red circle slides from the left to the right",
     "A red circle, which is going slowly to the right", "The blue star never grows, the red circle shifts right",
     "There is a blue square and a red circle that moves right", "The red circle moves right, the right one"],
)  # fmt: skip
def test_an_event_is_read_in_any_words(text: str) -> None:
    assert [str(claim) for claim in read_claims(text).claims] == ["red circle moves right"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("now the ring becomes blue", "ring turns blue"), ("the white star vanishes", "white star disappears"),
     ("the cyan cross gets bigger", "cyan cross grows"), ("the square is shrinking", "square shrinks"),
     ("a red ring fades in", "red ring appears"), ("a red ring fades away", "red ring disappears"),
     ("the red circle changes from red to green", "red circle turns green"),
     ("a ring comes into view", "ring appears"),
     ("the circle turns red, blue rings do not", "circle turns red"), ("a ring is gone", "ring disappears"),
     ("the cross increases in size", "cross grows"), ("the cross decreases in size", "cross shrinks")],
)  # fmt: skip
def test_actions_have_many_names(text: str, expected: str) -> None:
    assert [str(claim) for claim in read_claims(text).claims] == [expected]


@pytest.mark.parametrize("words", ["cross, ", "star or ", "not ", "the ring is not moving ", "a ring grows then then"])
def test_the_cost_of_a_text_grows_with_its_length(words: str) -> None:
    """Each took the square of its length or the cube, minutes for all."""
    reading = read_claims(words * (50_000 // len(words)) + " then then. The red circle moves right.")
    assert str(reading.claims[-1]) == "red circle moves right"


def test_what_claims_nothing_is_read_as_nothing() -> None:
    assert read_claims("Nothing happens.").says_nothing
    assert not read_claims("The red circle is at the left.").claims
    assert not read_claims("The red circle is at the left.").says_nothing
    assert read_claim("red circle move right") == read_claim("The Red Circle moves right")


@pytest.mark.parametrize(
    ("answer", "corrected"),
    [
        ("The red circle moves right. Then the yellow star grows. Then the red circle turns green.",
         "The red circle moves right. Then the red circle turns green."),
        ("The yellow star grows. Then the blue square disappears.", "The blue square disappears."),
        ("The red circle moves right. Then the red circle moves right.", "The red circle moves right."),
        ("A red circle moves right by 3.5 cm; a blue square grows! It is dark.",
         "A red circle moves right by 3.5 cm; It is dark."),
    ],
)  # fmt: skip
def test_a_correction_leaves_out_what_never_happened_and_nothing_else(
    tmp_path: Path, answer: str, corrected: str
) -> None:
    clip = tmp_path / "a.mp4"
    save_truth(HAND, clip.with_suffix(".json"), 0)
    assert twin(Case(question="describe the video.", answer=answer, video=clip)) == Twin("corrected", corrected)
    assert twin(Case(question="what happens at 0:03?", answer=answer, video=clip)) is None
    assert twin(Case(question="describe the video.", answer=answer, video=tmp_path / "b.mp4")) is None


def test_a_right_description_is_shortened_by_one_event(tmp_path: Path) -> None:
    clip = tmp_path / "a.mp4"
    save_truth(HAND, clip.with_suffix(".json"), 0)

    def made(answer: str) -> Twin | None:
        return twin(Case(question="describe the video.", answer=answer, video=clip))

    short = made(tell(HAND.events))
    assert short == made(tell(HAND.events))
    assert short is not None
    assert short.source == "shortened"
    assert short.text in {tell([e for e in HAND.events if e is not left_out]) for left_out in HAND.events}
    for night in range(8):  # what tells no event stays
        of_two = made(f"It is night {night}. The red circle moves right. Then the blue square disappears.")
        assert of_two is not None
        assert of_two.text.startswith(f"It is night {night}. The")
    alone = ("The red circle moves right.", "The red circle moves right. It is night.", "The yellow star grows.")
    assert [made(text) for text in (*alone, NOTHING, "")] == [None] * 5


def test_names_are_those_an_object_ever_has() -> None:
    assert names_seen(HAND) == {"red circle", "green circle", "blue square", "circle", "square"}


def test_the_judge_reads_the_script_beside_the_clip(tmp_path: Path) -> None:
    clip = tmp_path / "a.mp4"
    save_truth(HAND, clip.with_suffix(".json"), 0)
    oracle = Oracle()
    right, wrong = (Case(question="what happens at 0:03?", answer=text, video=clip)
                    for text in ("The red circle moves right.", NOTHING))  # fmt: skip
    assert oracle.refuses(right) is None
    oracle.submit(7, [right, wrong])
    (judged,) = oracle.poll(0.0)
    assert judged.ticket == 7
    assert [verdict.score for verdict in judged.verdicts] == [5.0, MISSED]
    assert oracle.poll(0.0) == []
    for refused in (Case(question="why?", answer="", video=clip), Case(question="why?", answer=""),
                    Case(question="what happens at 0:03?", answer="", video=tmp_path / "b.mp4")):  # fmt: skip
        assert oracle.refuses(refused)
