"""Judges that are asked in words: a real server in its own process, honest, biased, busy or babbling; and a model."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest

import vidllm
from tests.conftest import Servers
from vidllm.ask import VideoModel
from vidllm.corpus.asking import HttpOptions
from vidllm.corpus.local import LocalCaptioner
from vidllm.errors import ConfigError, EngineError
from vidllm.feedback.asked_judge import AskedJudge, Judging, open_http_judge
from vidllm.feedback.judge import Case, Judge, Judged, Verdict
from vidllm.feedback.local_judge import open_local_judge
from vidllm.feedback.rubric import compare_prompt, explanation_of, read_marks, read_winner, score_prompt
from vidllm.model.resolve import builtin_folder

PATIENT_SECONDS = 120.0
CAPTION = "A red circle moves right, then a blue square disappears."
MODULE = "tests.judge_server"


def case(answer: str, **given: Any) -> Case:
    return Case(question="what happens?", answer=answer, **{"evidence": CAPTION, **given})


def judge_all(judge: Judge, *groups: Sequence[Case]) -> list[Judged]:
    """Every group's verdicts, in the order of the groups."""
    done: list[Judged] = []
    for ticket, cases in enumerate(groups):
        judge.submit(ticket, cases)
    deadline = time.monotonic() + PATIENT_SECONDS
    while len(done) < len(groups) and time.monotonic() < deadline:
        done += judge.poll(0.05)
    return sorted(done, key=lambda judged: judged.ticket)


@pytest.fixture
def connect() -> Iterator[Callable[..., AskedJudge]]:
    """Open a server's judge, quickly disappointed; closed at the end."""
    opened: list[AskedJudge] = []

    def to(url: str, *, options: HttpOptions | None = None, **wishes: Any) -> AskedJudge:
        patience = options or HttpOptions(request_seconds=30.0, absent_seconds=1.0, attempts=2)
        opened.append(open_http_judge(url, options=patience, **wishes))
        return opened[-1]

    yield to
    for judge in opened:
        judge.close()


# ------------------------------------------------------------------------------------------------ what a reply says


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Explanation: fine.\nRelevance: 5\nAccuracy: 4\nClarity: 5\nCompleteness: 3\nScore: 4", 4),
        ("**Score:** 4/5", 4), ("- Score: **2**", 2), ("Score: 3.5", 3.5), ("score = 5 out of 5", 5),
        ('{"relevance": 5, "accuracy": 1, "score": 2, "explanation": "no"}', 2),
        ('```json\n{"Score": 3}\n```', 3), ("<think>Score: 1? no.</think>\nScore: 4", 4),
        ("Score: 4\nSo I say it again: Score: 4", 4),
        ("Score: 7", None), ("Score: 0", None), ("Score: <1-5>", None), ("Score: 1-5", None),
        ("Score: 4 Score: 2", None),
        ("I like it.", None), ("", None), ('{"score": "high"}', None), ("4", None), ("Score: 45", None),
        ('{"score": true}', None), ('{"score": "4/5"}', 4), ('{"score": "3/10"}', None), ('{"score": "**2**"}', 2),
        ("Score: 4 (one colour is wrong)", 4), ("**Overall score: 4** - nearly all of it", 4), ("| Score | 2 |", 2),
        ("Score: 4.", 4), ("Score: [3]", 3), ("Score: 3, since a star was invented", 3),
        ("Score: 1? no.</think>\nScore: 4", 4), ("<think> hm, maybe Score: 2", None),
        ("Score: 3/10", None), ("Score: 5/50", None), ("Score: 5/100", None), ("Score: 4 out of 10", None),
        ("Score: -3", None), ("Score: 3 or 4", None), ("Score: 3 - 4", None), ("Score: 4 (out of ten)", None),
        ('{"score": 1' + "0" * 400 + "}", None), ("[" * 100_000, None), ("Score: 4\n" + "so " * 5_000, None),
        ("Score: 3 (maybe 4)", None), ("Score: 4\nNo, Score: 2", None), ("Score: 4 stars of 10", None),
        ("Relevance Score: 5\nAccuracy Score: 5\nClarity Score: 5\nCompleteness Score: 5\nOverall: 3", 3),
        ("Accuracy score: 2\nScore: 3", 3), ("## Accuracy\nScore: 5\n## Overall\nScore: 3", 3),
        ("| Criterion | Score | Why |\n|---|---|---|\n| Accuracy | 2 | a star |\n| Score | 4 | fine |", 4),
        ('So:\n{"accuracy": 4, "score": 3}', 3), ("Score: 4.0/5.0", 4),
        ("Overall: 4", 4), ("**Rating**: 4/5", 4), ("6. **Overall rating:** 4 out of 5", 4), ("Final grade: 3.5", 3.5),
        ("### Overall assessment: 4/5 - one star is invented", 4), ("Rating: [[5]]", 5), ("| Overall | 2 |", 2),
        ("Score (1-5): 4", 4), ("Overall (out of 5): 2", 2), ("Accuracy: 4\nMy rating: 3\nOverall: 3", 3),
        ('{"accuracy": 2, "overall": 4}', 4), ('{"overall_score": "4/5"}', 4), ('{"Final Rating": 3}', 3),
        ('So:\n{\n  "accuracy": 5,\n  "overall": 4\n}', 4), ("Overall: it names 2 of 3 events.\nScore: 4", 4),
        ("Overall: 4\nScore: 3", None), ("Overall: 4\nRating: 3", None), ("Overall: 4\nOverall: 3/10", None),
        ("Overall: 3/10", None), ("Rating: 9", None), ("Overall: 3 or 4", None), ("Overall: good, 4 of 4 events", None),
        ("Accuracy rating: 4", None), ("Helpfulness rating: 4", None), ("Quality: 4", None), ("Overall 4", None),
        ('{"overall": 4, "rating": 3}', None), ('{"score": 4, "overall": 3}', None), ('{"overall": 10}', None),
        ("Score: 4\nNo, Score: 2\nOverall: 4", None), ("Score: 3/10\nOverall: 4", None),
        ('{"score": 4, "max_score": 10}', None), ('{"score": 4, "scale": "1-10"}', None), ('{"score": 4, "max": 5}', 4),
        ('{"score": 4, "range": [1, 10]}', None), ("Score: 4\n(out of 10)", None), ("Scale: 1 to 5\nScore: 4", 4),
        ("On a scale of 1 to 10.\nScore: 4", None), ("Explanation: out of 10 stars two are told.\nScore: 4", 4),
        ('{"score": 4, "score": 2}', None), ('{"Score": 4, "score": 2}', None), ('{"Score": 4.5, "score": 4.5}', 4.5),
    ],
)  # fmt: skip
def test_a_score_is_read_or_it_is_nonsense(reply: str, score: float | None) -> None:
    marks = read_marks(reply)
    assert (marks.score if marks else None) == score


def test_marks_hold_the_criteria_and_the_explanation() -> None:
    marks = read_marks("Explanation: a star was invented.\nRelevance: 5\nAccuracy: 1\nClarity: 9\nScore: 2")
    assert marks is not None
    assert dict(marks.criteria) == {"relevance": 5, "accuracy": 1}  # nine is no mark
    assert marks.explanation == "a star was invented."
    marks = read_marks('{"explanation": "no.\nNot at all.", "score": 2}')  # lines broken as they stand
    assert marks is not None
    assert marks.explanation == "no.\nNot at all."


@pytest.mark.parametrize(
    ("reply", "winner"),
    [("Explanation: x\nBetter: A", "A"), ("**Better:** B", "B"), ("Better: tie", "tie"), ("better: Answer B", "B"),
     ('{"better": "A"}', "A"), ('{"better": "A", "better": "B"}', None),
     ("Better: A\nBetter: B", None), ("A is better", None), ("Better: C", None), ("", None),
     ("[" * 100_000, None), ("Better: A\n" + "so " * 5_000, None),
     ("**Better: A**", "A"), ("- Better: tie.", "tie"), ("Better: <B>", "B"), ("Better: A\nSo, better: A", "A"),
     ("Better: A - it invents no star", "A"), ("1. Explanation: x\n2. Better: B, a star is missing", "B"),
     ("| Better | B |", "B"), ('{"better": "Answer A"}', "A"), ('So:\n{\n  "better": "tie"\n}', "tie"),
     ("Better: A - no, B", None), ("Better: A, B", None), ("Explanation: A is better: B, in turn, is not", None),
     ("Better: <A, B or tie>", None), ("Better: A or B", None), ("Better: A, B or tie\nBetter: B", "B"),
     ("Explanation: Answer B is better, a hallucination spoils A", None), ("Better: a star is in B", None)],
)  # fmt: skip
def test_a_winner_is_read_or_it_is_nonsense(reply: str, winner: str | None) -> None:
    assert read_winner(reply) == winner


def test_a_winners_explanation_is_what_the_reply_says() -> None:
    assert explanation_of("Explanation: B invents a star.\nBetter: A") == "B invents a star."
    assert explanation_of('{"explanation": "B invents a star.", "better": "A"}') == "B invents a star."
    assert explanation_of("Better: A") == ""


@pytest.mark.parametrize(
    ("given", "watched", "held"),
    [({}, False, "what is given above as true"), ({}, True, "what is given above as true"),
     ({"evidence": None}, True, "the video")],
)  # fmt: skip
def test_a_judge_is_told_what_it_sees_and_what_accuracy_is_held_against(
    given: dict[str, None], watched: bool, held: str
) -> None:
    asked = score_prompt(case("x", **given), watched=watched)
    assert f"agree with {held}?" in asked
    assert (", which you are shown." in asked) == watched
    assert "which you are shown" not in score_prompt(case("x"))


def test_prompts_hold_the_evidence_and_the_answers_in_their_order() -> None:
    asked = score_prompt(case("It {moves}.", truth="The red circle moves right."))
    assert CAPTION in asked
    assert "The red circle moves right." in asked
    assert "It {moves}." in asked
    both = compare_prompt(case("first"), "second")
    assert both.index("first\n=====") < both.index("second\n=====")


def test_a_judge_of_a_talk_is_told_what_was_said_before() -> None:
    said = "User: what is there?\nAssistant: A ring."
    for asked in (score_prompt(case("x", before=said)), compare_prompt(case("x", before=said), "y")):
        assert asked.index(CAPTION) < asked.index(said) < asked.index("Question: what happens?")
    assert "said before" not in score_prompt(case("x"))


# --------------------------------------------------------------------------------------------------------- a server


def test_a_server_scores_each_answer_and_every_reply_is_kept(
    serve: Servers, connect: Callable[..., AskedJudge]
) -> None:
    judge = connect(serve("--model", "wise", module=MODULE))
    (judged,) = judge_all(judge, [case(f"quality {n}") for n in (5, 1, 3)])
    assert [verdict.score for verdict in judged.verdicts] == [5, 1, 3]
    assert dict(judged.verdicts[0].criteria) == {
        "relevance": 5, "accuracy": 5, "clarity": 5, "completeness": 5
    }  # fmt: skip
    assert judged.verdicts[1].explanation == "held against the caption."
    assert judged.verdicts[2].replies[0].endswith("Score: 3")
    assert (judge.name, judged.model) == ("wise", "wise-0613")
    assert judged.nonsense == 0


def test_nonsense_is_asked_for_once_more_then_counted_and_never_guessed(
    serve: Servers, connect: Callable[..., AskedJudge]
) -> None:
    judge = connect(serve(module=MODULE))
    babble, slip = case("quality 4 do=mumble"), case("quality 4 do=mumble:1")
    (judged,) = judge_all(judge, [babble, slip, case("quality 2")])
    assert [verdict.score for verdict in judged.verdicts] == [None, 4, 2]
    assert judged.verdicts[0].failed == "the judge's reply can not be read"
    assert [len(verdict.replies) for verdict in judged.verdicts] == [2, 2, 1]
    assert judged.nonsense == 3


def test_a_reply_that_was_cut_off_is_no_verdict(serve: Servers, connect: Callable[..., AskedJudge]) -> None:
    judge = connect(serve(module=MODULE))
    (judged,) = judge_all(judge, [case("quality 4 do=cut"), case("quality 2 do=cut:1")])
    assert [(verdict.score, verdict.failed) for verdict in judged.verdicts] == [
        (None, "the judge's reply was cut off"), (2, None)
    ]  # fmt: skip
    assert judged.nonsense == 3


@pytest.mark.parametrize("judging", ["scores", "compare"])
def test_a_judge_that_thinks_is_given_room_to(
    serve: Servers, connect: Callable[..., AskedJudge], judging: Judging
) -> None:
    judge = connect(serve(module=MODULE), judging=judging)
    (judged,) = judge_all(judge, [case("quality 5 do=ponder"), case("quality 1 do=ponder")])
    assert [verdict.score for verdict in judged.verdicts] == [5, 1]
    assert judged.nonsense == 2, "what it thought in too little room is counted"


def test_a_busy_and_failing_server_is_asked_again_and_a_refusal_costs_one_answer(
    serve: Servers, connect: Callable[..., AskedJudge]
) -> None:
    url = serve(module=MODULE)
    judge = connect(url)
    (judged,) = judge_all(judge, [case("quality 5"), case("quality 4 do=429:2"), case("quality 3 do=500:1"),
                                  case("quality 2 do=400")])  # fmt: skip
    assert [verdict.score for verdict in judged.verdicts] == [5, 4, 3, None]
    assert "400" in (judged.verdicts[3].failed or "")
    assert httpx2.get(f"{url}/stats").json()["requests"] == 4 + 2 + 1


def test_two_orders_cancel_a_taste_for_what_stands_first(serve: Servers, connect: Callable[..., AskedJudge]) -> None:
    fair = connect(serve(module=MODULE), judging="compare")
    cases = [case(f"quality {n}") for n in (2, 5, 2, 4)]
    (judged,) = judge_all(fair, cases)
    assert [verdict.score for verdict in judged.verdicts] == pytest.approx([1 + 4 * p / 3 for p in (0.5, 3, 0.5, 2)])
    assert judged.orders == (6, 6)
    biased = connect(serve("--biased", module=MODULE), judging="compare")
    (judged,) = judge_all(biased, cases)
    assert [verdict.score for verdict in judged.verdicts] == [3, 3, 3, 3]  # all tied: it gives no pair
    assert judged.orders == (0, 6)


def test_many_questions_are_judged_side_by_side(serve: Servers, connect: Callable[..., AskedJudge]) -> None:
    url = serve("--seconds", "0.1", module=MODULE)
    judge = connect(url)
    groups = [[case(f"quality {1 + (n + i) % 5} of {n}") for i in range(3)] for n in range(8)]
    done = judge_all(judge, *groups)
    assert [[v.score for v in judged.verdicts] for judged in done] == [
        [1 + (n + i) % 5 for i in range(3)] for n in range(8)
    ]
    assert httpx2.get(f"{url}/stats").json()["most"] > 1


def test_the_key_comes_from_the_environment(
    serve: Servers, connect: Callable[..., AskedJudge], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = serve("--key", "s3cret", module=MODULE)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("VIDLLM_API_KEY", raising=False)
    with pytest.raises(EngineError, match="VIDLLM_API_KEY"):
        connect(url)
    monkeypatch.setenv("VIDLLM_API_KEY", "s3cret")
    (judged,) = judge_all(connect(url), [case("quality 5")])
    assert judged.verdicts[0].score == 5
    assert "s3cret" not in json.dumps(judged.verdicts[0].to_dict())


def test_a_server_that_goes_away_ends_the_run_with_one_line(serve: Servers, connect: Callable[..., AskedJudge]) -> None:
    judge = connect(serve(module=MODULE))
    judge_all(judge, [case("quality 5")])
    serve.close()
    with pytest.raises(EngineError, match="nothing answers"):
        judge_all(judge, [case("quality 4")])


def test_nobody_there_or_no_address_is_known_at_once(connect: Callable[..., AskedJudge]) -> None:
    with pytest.raises(EngineError, match="nothing answers"):
        connect("http://127.0.0.1:9/v1")
    with pytest.raises(ConfigError, match="no address"):
        connect("ftp://somewhere")


def test_a_judge_without_evidence_refuses_before_it_is_asked(
    serve: Servers, connect: Callable[..., AskedJudge]
) -> None:
    url = serve(module=MODULE)
    blind = connect(url)
    assert "caption" in (blind.refuses(case("x", evidence=None)) or "")
    assert blind.refuses(case("x", evidence=None, truth="Two.")) is None
    watching = connect(url, watch=True)
    assert watching.refuses(case("x", evidence=None, video=Path("clip.mp4"))) is None
    assert "caption" in (watching.refuses(case("x", evidence=None)) or ""), "a picture is no clip to be shown"


def test_a_watching_judge_is_sent_the_frames(
    serve: Servers, connect: Callable[..., AskedJudge], clips: dict[str, Path]
) -> None:
    """The caption server answers with what it saw: no marks, so nonsense, but kept word for word."""
    judge = connect(serve(), watch=True)
    (judged,) = judge_all(judge, [case("x", video=clips["constant"], evidence=None)])
    assert judged.verdicts[0].score is None
    told = json.loads(judged.verdicts[0].replies[0])
    assert len(told["codes"]) > 2
    assert told["codes"] == sorted(told["codes"])
    assert "which you are shown" in told["prompt"]
    assert told["options"]["temperature"] == 0.0


def test_a_judge_that_is_shown_nothing_is_not_told_that_it_sees(
    serve: Servers, connect: Callable[..., AskedJudge]
) -> None:
    judge = connect(serve(), watch=True)
    (judged,) = judge_all(judge, [case("x")])  # of a row with two clips, say, which has a caption
    told = json.loads(judged.verdicts[0].replies[0])
    assert told["codes"] == []
    assert "which you are shown" not in told["prompt"]


# ------------------------------------------------------------------------------------------------- a model, a verdict


class Shelf:
    """Loads a model, and counts how often it was asked to."""

    def __init__(self, folder: str | Path = "built-in") -> None:
        self.name, self.loads = str(folder), 0

    def __call__(self) -> VideoModel:
        self.loads += 1
        return vidllm.load(self.name, dtype="float32", cache=None)

    def judge(self, **words: Any) -> AskedJudge:
        return open_local_judge(self.name, self, dtype="float32", **words)


def test_a_local_model_is_asked_and_its_nonsense_is_no_verdict() -> None:
    """The built-in model can not judge: it says so by replies without a score, and none is made up."""
    shelf = Shelf()
    judge = shelf.judge()
    assert judge.poll(0.0) == []
    assert shelf.loads == 0, "who only makes other pairs of what was judged waits for no model"
    judgeds = judge_all(judge, [case("The red circle moves right."), case("Nothing happens.")], [case("A ring.")])
    assert all(verdict.score is None and verdict.replies for judged in judgeds for verdict in judged.verdicts)
    assert [judged.nonsense for judged in judgeds] == [4, 2]
    assert shelf.loads == 1
    assert judge.fingerprint.startswith(LocalCaptioner(shelf()).fingerprint + ":")


def other_builtin(folder: Path, **changed: Any) -> Path:
    """A copy of the built-in model with another layout."""
    copy = Path(shutil.copytree(builtin_folder(), folder / "judge"))
    layout = json.loads((copy / "vidllm.json").read_text())
    (copy / "vidllm.json").write_text(json.dumps({**layout, **changed}))
    return copy


@pytest.mark.parametrize("judging", ["scores", "compare"])
def test_a_watching_model_has_room_for_what_it_is_asked(
    judging: Judging, clips: dict[str, Path], tmp_path: Path
) -> None:
    """As many frames as fit beside a short question leave no room for the judge's instructions."""
    judge = Shelf(other_builtin(tmp_path, uniform_stride=1)).judge(judging=judging, watch=True)
    cases = [case(answer, video=clips["constant"]) for answer in ("The red circle moves right.", "Nothing happens.")]
    (judged,) = judge_all(judge, cases)
    assert judged.nonsense == 4
    assert {verdict.failed for verdict in judged.verdicts} == {"the judge's reply can not be read"}


@pytest.mark.parametrize(
    ("watch", "told"), [(True, r" \+ 9 of one frame .* do not let it watch"), (False, "with a longer one$")]
)
def test_a_model_without_room_to_judge_is_told_before_it_is_loaded(watch: bool, told: str, tmp_path: Path) -> None:
    shelf = Shelf(other_builtin(tmp_path, context=400))
    with pytest.raises(ConfigError, match=f"judge: too short a context to judge.*{told}"):
        shelf.judge(watch=watch)
    assert shelf.loads == 0


def test_a_verdict_is_within_the_scale_or_says_why_not() -> None:
    with pytest.raises(ValueError, match="1 to 5"):
        Verdict(score=6.0)
    with pytest.raises(ValueError, match="says why"):
        Verdict(score=None)
    kept = Verdict(score=2.5, criteria=(("accuracy", 2.0),), explanation="so", replies=("a", "b"))
    assert Verdict.from_dict(json.loads(json.dumps(kept.to_dict()))) == kept
