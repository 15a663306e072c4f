"""`vidllm feedback` from end to end on real clips with the built-in model: pairs, resumption, kills, bad input."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

import vidllm
from tests.conftest import ROOT, Servers, short_story
from vidllm.ask import VideoModel
from vidllm.corpus.asking import HttpOptions
from vidllm.corpus.item import Item
from vidllm.corpus.rows import CaptionRow
from vidllm.errors import ConfigError, EngineError, OutputError, RowError
from vidllm.feedback import rubric
from vidllm.feedback.candidates import Candidate, Sampled, SamplingOptions
from vidllm.feedback.items import read_questions
from vidllm.feedback.journal import Journal, Slot, journal_of
from vidllm.feedback.judge import Judged, Verdict
from vidllm.feedback.loop import Run, Work
from vidllm.feedback.oracle import Oracle, grade, hold_against
from vidllm.feedback.pairs import Pair, PairOptions
from vidllm.feedback.report import lines
from vidllm.feedback.rowfile import pair_row, write_rows
from vidllm.feedback.run import FeedbackDone, FeedbackOptions, feedback
from vidllm.interrupts import Interrupts
from vidllm.model import resolve
from vidllm.model.features import FeatureCache
from vidllm.planning import PlanOptions
from vidllm.train.rows import read_pairs
from vidllm.world.make import save_truth, write_video
from vidllm.world.questions import tell
from vidllm.world.script import Script
from vidllm_cli.main import main

OPTIONS = FeedbackOptions(
    dtype="float32", plan=PlanOptions(), limit=6, sampling=SamplingOptions(k=6, temperature=2.0),
    pairs=PairOptions(rebalance=None, least_chosen=1.0, margin=0.25),
)  # fmt: skip
"""Bold, and content with small differences: pairs come out of any model that ships."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of 8 seconds with their scripts and questions."""
    return two_clips(tmp_path_factory.mktemp("world"), 8)


def two_clips(folder: Path, seconds: float) -> Path:
    for seed in (1, 2):
        script = short_story("feedback", seed, seconds)
        write_video(script, folder / f"{seed}.mp4")
        save_truth(script, folder / f"{seed}.json", seed)
    return folder


@pytest.fixture(scope="module")
def model() -> VideoModel:
    return vidllm.load(dtype="float32", cache=FeatureCache(folder=None))


@pytest.fixture
def run(model: VideoModel, world: Path, tmp_path: Path) -> Callable[..., FeedbackDone]:
    """Run on the world's clips into pairs.jsonl; words change the options."""

    def feed(source: Path = world, output: str = "pairs.jsonl", load: Any = None, **words: Any) -> FeedbackDone:
        return feedback(source, tmp_path / output, replace(OPTIONS, **words), load=load or (lambda: model))

    return feed


def no_model() -> VideoModel:
    raise AssertionError("this run must not load the model")


def journal_lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in journal_of(output).read_text(encoding="utf-8").splitlines()]


# --------------------------------------------------------------------------------------------------- the whole road


def test_pairs_are_right_by_the_script_and_rows_are_what_training_reads(
    run: Callable[..., FeedbackDone], model: VideoModel
) -> None:
    done = run()
    assert (done.report.questions, done.report.asked, done.report.judged) == (6, 6, 6)
    rows = read_pairs(done.output)
    assert not rows.problems
    assert len(rows.rows) == done.report.pairs > 0
    for row in rows.rows:
        script = Script.load(Path(row.media[0].path).with_suffix(".json"))
        chosen, rejected = (grade(row.turns[-1].text, text, script).score for text in (row.chosen, row.rejected))
        assert chosen is not None
        assert rejected is not None
        assert chosen - rejected >= 0.25
        assert row.reference is not None
        assert row.reference.model == model.lmm.fingerprint
        assert row.reference.chosen_logp < 0
    raw = [json.loads(line) for line in done.output.read_text(encoding="utf-8").splitlines()]
    assert {row["judge"]["name"] for row in raw} == {"oracle"}
    assert all(row["judge"]["version"] == Oracle.fingerprint for row in raw)
    assert len({row["id"] for row in raw}) == len(raw)
    told = "\n".join(lines(done.report))
    assert "oracle" in told
    assert json.loads(done.output.with_name("pairs.report.json").read_text(encoding="utf-8"))["pairs"] == len(raw)


def test_as_many_frames_as_are_named_leave_room_for_whole_answers(run: Callable[..., FeedbackDone]) -> None:
    done = run(plan=PlanOptions(frames=16, policy="uniform"), limit=3)
    assert done.report.candidates > 0
    assert "cut off" not in done.report.dropped_candidates


def test_a_run_again_asks_nothing_and_other_pairs_cost_nothing(run: Callable[..., FeedbackDone]) -> None:
    first = run()
    before = journal_of(first.output).read_bytes()
    again = run(load=no_model)
    assert again.report == first.report
    assert again.tally.before == 6
    strict = run(load=no_model, pairs=PairOptions(rebalance=None, margin=4.5))  # scores lie at most four apart
    assert strict.report.pairs == 0 < first.report.pairs
    assert journal_of(first.output).read_bytes() == before
    colder = run(sampling=SamplingOptions(k=2, temperature=0.7), limit=2)
    assert colder.tally.sampled == 2


def test_changed_clips_give_rejected_answers(run: Callable[..., FeedbackDone]) -> None:
    done = run(changes=("blank", "shuffled"), sampling=SamplingOptions(k=2, temperature=0.7))
    rows = [json.loads(line) for line in done.output.read_text(encoding="utf-8").splitlines()]
    sources = Counter(row["source"] for row in rows)
    assert sources["blank"] > 0
    candidates = [c for line in journal_lines(done.output) if line["at"] == "sampled" for c in line["candidates"]]
    chosen = {row["chosen"] for row in rows}
    assert chosen <= {c["text"] for c in candidates if c["source"] == "sample"}


def test_a_description_stands_against_itself_without_what_never_happened_or_did(
    run: Callable[..., FeedbackDone], tmp_path: Path
) -> None:
    asked = tmp_path / "asked.txt"
    asked.write_text("describe the video.\n", encoding="utf-8")
    (tmp_path / "clips").mkdir()
    words: dict[str, Any] = {
        "source": two_clips(tmp_path / "clips", 30), "questions": asked, "plan": PlanOptions(frames=8),
        "pairs": PairOptions(rule="twins", most=4), "sampling": SamplingOptions(k=6, temperature=1.5),
    }  # fmt: skip
    done = run(**words)
    twins = Counter[str]()
    for line in journal_lines(done.output):
        for made in line.get("candidates", ()):
            if "twin_of" in made:
                script = Script.load(tmp_path / Path(line["media"][0]).with_suffix(".json"))
                twin, answer = (hold_against(made[key], script) for key in ("text", "twin_of"))
                short = made["source"] == "shortened"
                assert bool(answer.hallucinated) != short
                assert (twin.hallucinated, twin.right) == ((), answer.right - short)
                twins[made["source"]] += 1
    assert min(twins["corrected"], twins["shortened"]) > 0
    rows = [json.loads(line) for line in done.output.read_text(encoding="utf-8").splitlines()]
    assert rows
    assert all(row["reference"]["chosen_logp"] < 0 for row in rows)
    assert run(load=no_model, **words).report == done.report
    with pytest.raises(ConfigError, match="only the oracle"):
        run(**words, judge="http://localhost:1/v1")


def test_another_judge_reads_the_same_candidates_and_is_held_against_the_oracle(
    run: Callable[..., FeedbackDone], serve: Servers
) -> None:
    run()
    served = run(judge=serve(module="tests.judge_server"), load=no_model)  # says 3 of everything
    assert served.report.pairs == 0
    assert served.report.judge == "seer"
    (agreement,) = served.report.agreements
    assert (agreement.other, agreement.alike, agreement.against) == ("oracle", 0, 0)
    marks = [line for line in journal_lines(served.output) if line["at"] == "judged" and line["name"] == "seer"]
    assert all(v["replies"][0].endswith("Score: 3") for line in marks for v in line["verdicts"])
    assert all(line["model"] == "seer-0613" for line in marks)


def test_a_judge_asked_in_two_ways_is_two_judges(run: Callable[..., FeedbackDone], serve: Servers) -> None:
    """Otherwise every pair of answers would be counted twice, and two scales be mixed in one correlation."""
    url = serve("--short", module="tests.judge_server")
    scored = run(judge=url)
    told = json.loads(journal_of(scored.output).read_text(encoding="utf-8").splitlines()[-1])
    assert (told["name"], told["way"]) == ("seer", "scores")
    run(judge=url, judging="compare", load=no_model)
    third = run(judge=serve("--biased", "--model", "other", module="tests.judge_server"), load=no_model)
    assert [found.other for found in third.report.agreements] == ["seer (scores)", "seer (compare)", "oracle"]
    again = run(judge=url, load=no_model)
    itself = next(found for found in again.report.agreements if found.other == "seer (compare)")
    scores = [
        [verdict["score"] for verdict in line["verdicts"]]
        for line in journal_lines(scored.output) if line.get("name") == "seer" and line["way"] == "scores"
    ]  # fmt: skip
    differing = sum(abs(a - b) >= 0.25 for several in scores for a, b in combinations(several, 2))
    assert (itself.alike, itself.against, itself.undecided) == (differing, 0, 0)
    assert differing > 0


def test_other_pairs_of_what_a_local_model_judged_load_no_model(world: Path, tmp_path: Path, model: VideoModel) -> None:
    wishes, output = replace(OPTIONS, judge="built-in", limit=1), tmp_path / "pairs.jsonl"
    done = feedback(world, output, wishes, load=lambda: model, load_judge=lambda: model)
    assert (done.report.judge, done.tally.judged) == ("built-in", 1)
    other = replace(wishes, pairs=replace(wishes.pairs, margin=2.0))
    assert feedback(world, output, other, load=no_model, load_judge=no_model).tally.before == 1


@pytest.mark.parametrize("judging", ["scores", "compare"])
def test_a_servers_taste_becomes_pairs(run: Callable[..., FeedbackDone], serve: Servers, judging: Any) -> None:
    """A judge that likes five words and no more: that is what its pairs say, and the oracle does not agree with it."""
    taste = serve("--short", module="tests.judge_server")
    asked = {"sampling": SamplingOptions(k=4, temperature=2.0), "limit": 4}
    done = run(judge=taste, judging=judging, pairs=PairOptions(rebalance=None, margin=2.0, most=9), **asked)
    rows = [json.loads(line) for line in done.output.read_text(encoding="utf-8").splitlines()]
    assert rows
    assert all(len(row["chosen"].split()) <= 5 < len(row["rejected"].split()) for row in rows)
    assert {(row["judge"]["name"], row["judge"]["version"]) for row in rows} == {("seer", "seer-0613")}
    (agreement,) = done.report.agreements
    assert agreement.alike + agreement.against + agreement.undecided > 0
    alike, compared = done.report.both_orders
    assert alike == compared
    assert (compared > 0) == (judging == "compare")


def test_the_command_prints_its_report_and_ends_with_the_truth(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["feedback", str(world), "-o", str(tmp_path / "pairs.jsonl"), "--dtype", "float32", "--temperature", "2.0",
             "-k", "6", "--limit", "6", "--least-chosen", "1", "--rebalance", "-1"]  # fmt: skip
    assert main([*words, "--margin", "0.25", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["questions"], told["judge"]) == (6, "oracle")
    assert main([*words, "--margin", "0.25"]) == 0
    assert re.search(rf"^pairs +{told['pairs']}\b", capsys.readouterr().out, re.MULTILINE)
    assert main([*words, "--margin", "4.5"]) == 1  # scores lie at most four apart
    assert "no pair came out" in capsys.readouterr().err
    assert main([*words, "--margin", "0"]) == 1
    assert "margin is 0" in capsys.readouterr().err
    assert main([*words, "--perturb", "slowed"]) == 1
    assert main([*words, "--pairs", "worst"]) == 2


# ------------------------------------------------------------------------------------------- what stops a run, and how


def words_of(world: Path, output: Path, judge: str) -> list[str]:
    """Bold answers, every two of them compared in both orders: a question alone fills the judge's hands, so that the
    first verdict comes long before the last question is asked.
    """
    return ["feedback", str(world), "-o", str(output), "--dtype", "float32", "--temperature", "2.0", "-k", "4",
            "--limit", "6", "--rebalance", "-1", "--judge", judge, "--judging", "compare"]  # fmt: skip


def told_of(output: Path) -> Counter[str]:
    """How many lines of the journal tell of what; one that is being written does not count."""
    if not journal_of(output).exists():
        return Counter()
    whole = journal_of(output).read_bytes().split(b"\n")[:-1]
    return Counter(json.loads(line)["at"] for line in whole)


def wait_for(at: str, output: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the journal tells of one."""
    deadline = time.monotonic() + 120
    while not told_of(output)[at] and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)


def test_kills_lose_at_most_the_question_in_flight_and_judge_none_twice(
    world: Path, tmp_path: Path, serve: Servers
) -> None:
    output = tmp_path / "pairs.jsonl"
    slow = serve("--short", "--seconds", "0.05", "--slots", "1", module="tests.judge_server")
    for at in ("sampled", "judged"):
        process = subprocess.Popen([sys.executable, "-m", "vidllm_cli.main", *words_of(world, output, slow)], cwd=ROOT,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        wait_for(at, output, process)
        process.kill()
        process.wait()
    before = told_of(output)
    assert 0 < before["judged"] <= before["sampled"] < 6
    assert not output.exists()
    quick = serve("--short", module="tests.judge_server")
    assert main(words_of(world, output, quick)) == 0
    told = Counter((line["at"], line["key"]) for line in journal_lines(output))
    assert max(told.values()) == 1
    assert sum(at == "sampled" for at, _ in told) == 6
    whole = tmp_path / "whole.jsonl"
    assert main(words_of(world, whole, quick)) == 0
    assert output.read_bytes() == whole.read_bytes() != b""


def test_ctrl_c_finishes_what_is_in_flight_and_says_how_to_go_on(
    world: Path, tmp_path: Path, serve: Servers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pressed when the first verdict is written down."""
    output, add_judged = tmp_path / "pairs.jsonl", Journal.add_judged

    def press(journal: Journal, *verdict: Any) -> None:
        add_judged(journal, *verdict)
        monkeypatch.setattr(Journal, "add_judged", add_judged)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Journal, "add_judged", press)
    assert main(words_of(world, output, serve("--short", module="tests.judge_server"))) == 130
    assert "run the same command again to go on" in capsys.readouterr().err
    told = told_of(output)
    assert 0 < told["judged"] <= told["sampled"] < 6
    assert output.exists()  # the pairs of what is done


def test_a_judge_that_hangs_does_not_keep_a_run_from_stopping(world: Path, tmp_path: Path, serve: Servers) -> None:
    output, url = tmp_path / "pairs.jsonl", serve(module="tests.judge_server")
    hurried = (
        "import sys, vidllm.corpus.http as http, vidllm.feedback.rubric as rubric; http.STOP_SECONDS = 1.0;"
        "rubric.COMPARE = 'do=hang ' + rubric.COMPARE; from vidllm_cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    process = subprocess.Popen([sys.executable, "-c", hurried, *words_of(world, output, url)], cwd=ROOT,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip
    wait_for("sampled", output, process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=100)  # a verdict is waited for longer, and then asked for again
    assert process.returncode == 130
    assert b"run the same command again to go on" in said
    assert told_of(output)["judged"] == 0


def test_a_question_that_waits_for_the_judge_does_not_keep_a_run_from_stopping(world: Path, tmp_path: Path) -> None:
    """The judge has room for one question, and the run is asked to stop while the second waits for its turn."""
    interrupts = Interrupts()

    class Busy(Oracle):
        def room(self) -> bool:
            interrupts.asked = interrupts.asked or bool(self._done)
            return not self._done

        def poll(self, wait: float) -> list[Judged]:
            return super().poll(wait) if interrupts.asked else []

    class Sampler:
        def sample(self, *asked: Any) -> Sampled:
            told = (Candidate(text=text, logp=-1.0, tokens=2) for text in ("Red.", "Blue."))
            return Sampled(candidates=tuple(told), dropped={}, model="model|float32")

    asked = read_questions(world, limit=3).asked
    work = Work(
        questions=asked, slots=[Slot(one.key, one.stamp(), "r") for one in asked], opinions=["oracle"] * len(asked),
        judge=Busy(), look=lambda one: [], sampler=Sampler,
    )  # fmt: skip
    with Journal(tmp_path / "pairs.jsonl") as journal:
        tally = Run(work, journal).go(interrupts)
    assert (tally.sampled, tally.judged) == (2, 1)


def test_a_verdict_is_waited_for_as_long_as_one_says(
    world: Path, tmp_path: Path, serve: Servers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vidllm.feedback.rubric.SCORE", "do=hang " + rubric.SCORE)
    words = ["feedback", str(world), "-o", str(tmp_path / "pairs.jsonl"), "--dtype", "float32", "--temperature", "2.0",
             "-k", "4", "--limit", "1", "--judge", serve(module="tests.judge_server")]  # fmt: skip
    assert main([*words, "--request-timeout", "0.5"]) == 1
    said = capsys.readouterr()
    assert "--request-timeout says how long one is waited for" in said.err
    assert re.search(r"\d answers have no verdict", said.err)


def test_a_dead_judge_ends_the_run_and_what_was_asked_is_kept(
    run: Callable[..., FeedbackDone], serve: Servers, tmp_path: Path, model: VideoModel
) -> None:
    url = serve("--seconds", "0.05", module="tests.judge_server")

    def load() -> VideoModel:
        serve.close()  # it goes as soon as there is something to judge
        return model

    with pytest.raises(EngineError, match="nothing answers"):
        run(judge=url, load=load, patience=HttpOptions(absent_seconds=0.5))
    told = journal_lines(tmp_path / "pairs.jsonl")
    assert told
    assert all(line["at"] == "sampled" for line in told)
    again = run(load=lambda: model)
    told = journal_lines(again.output)
    assert Counter(line["key"] for line in told if line["at"] == "sampled").most_common(1)[0][1] == 1
    assert again.report.judged == 6


def test_answers_without_a_verdict_are_judged_again_when_asked_for(
    run: Callable[..., FeedbackDone], serve: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidllm.feedback.rubric.SCORE", "do=mumble " + rubric.SCORE)
    url = serve(module="tests.judge_server")
    babbled = run(judge=url)
    unjudged = babbled.report.unjudged["the judge's reply can not be read"]
    assert 0 < unjudged <= babbled.report.candidates  # a single answer to a question is not judged
    assert babbled.report.nonsense == 2 * unjudged
    assert babbled.report.dropped_questions["no verdict on two candidates"] > 0
    assert run(judge=url, load=no_model).report.nonsense == babbled.report.nonsense  # nobody was asked again
    before = len(journal_lines(babbled.output))
    run(judge=url, load=no_model, retry_errors=True)
    assert len(journal_lines(babbled.output)) == before + sum(
        line["at"] == "judged" for line in journal_lines(babbled.output)[:before]
    )


def test_one_writer_at_a_time(run: Callable[..., FeedbackDone], tmp_path: Path) -> None:
    with Journal(tmp_path / "pairs.jsonl"), pytest.raises(OutputError, match="another run"):
        run()


# ------------------------------------------------------------------------------------------------------ what is asked


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_rows_questions_and_talks_are_asked(world: Path, tmp_path: Path) -> None:
    video = str(world / "1.mp4")
    source = write(
        tmp_path / "rows.jsonl",
        {"id": "q", "video": video, "question": "what happens?", "answer": "Much.", "caption": "A clip."},
        {"id": "t", "video": video, "conversations": [
            {"from": "human", "value": "<video>\nwhat happens first?"}, {"from": "gpt", "value": "This."},
            {"from": "human", "value": "and then?"}, {"from": "gpt", "value": "That."}]},
        {"id": "again", "video": video, "prompt": "what happens?"},
    )  # fmt: skip
    found = read_questions(source)
    assert [(one.id, one.question, one.truth, one.evidence) for one in found.asked] == [
        ("q", "what happens?", "Much.", "A clip."), ("t/1", "what happens first?", "This.", None),
        ("t/2", "and then?", "That.", None),
    ]  # fmt: skip
    assert found.repeated == 1
    assert [turn.text for turn in found.asked[2].turns] == ["what happens first?", "This.", "and then?"]
    assert found.asked[2].case("x").before == "User: what happens first?\nAssistant: This."
    assert found.asked[1].case("x").before == ""
    alone = read_questions(source, dialogue=False).asked[2]
    assert [turn.text for turn in alone.turns] == ["and then?"]
    assert [medium.path for medium in alone.media] == [video]


def test_pairs_of_talks_and_several_media_are_read_as_they_were_asked(world: Path, tmp_path: Path) -> None:
    one, other = "1.mp4", str(world / "2.mp4")
    source = write(
        world / "rows.jsonl",
        {"id": "two", "videos": [one, other], "prompt": "<video>\n<video>\nwhich is shorter?"},
        {"id": "talk", "video": one, "messages": [
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": "<video>\nwhat happens?"},
            {"role": "assistant", "content": "A ring grows."}, {"role": "user", "content": "and then?"}]},
        {"id": "plain", "video": one, "prompt": "what happens?"},
        {"id": "among", "videos": [one, other, one], "prompt": "<video>\nA <video><video> B, or"},
        {"id": "behind", "video": one, "messages": [
            {"role": "user", "content": [{"type": "text", "text": "What is\n"}, {"type": "video"}]}]},
    )  # fmt: skip
    output = tmp_path / "pairs.jsonl"
    good, bad = Candidate(text="yes", logp=-1.0, tokens=2), Candidate(text="no", logp=-2.0, tokens=2)
    pair = Pair(question=0, chosen=good, rejected=bad, chosen_score=5.0, rejected_score=1.0)
    asked = {one.id: one for one in read_questions(source).asked}
    told = [asked[name] for name in ("two", "talk/2", "plain", "among", "behind")]
    write_rows(output, [pair_row(o, pair, o.id, model="m", judge={}, output=output) for o in told])
    read = read_pairs(output)
    assert not read.problems
    for row, one_asked in zip(read.rows, told, strict=True):
        assert [(t.role, t.text, t.at) for t in row.turns] == [(t.role, t.text, t.at) for t in one_asked.turns]
        assert [Path(m.path).name for m in row.media] == [Path(m.path).name for m in one_asked.media]
    assert asked["two"].case("x").video is None  # the oracle would not know which
    assert "script" in (Oracle().refuses(asked["two"].case("x")) or "")


def test_a_clip_that_is_a_link_is_taught_under_the_name_it_was_asked_by(world: Path, tmp_path: Path) -> None:
    clip = tmp_path / "shown" / "walk.mp4"
    clip.parent.mkdir()
    clip.symlink_to(world / "1.mp4")
    clip.with_suffix(".srt").write_text("1\n00:00:00,000 --> 00:00:02,000\nWatch the ring.\n")
    source, output = write(tmp_path / "rows.jsonl", {"video": str(clip), "prompt": "what?"}), tmp_path / "pairs.jsonl"
    good, bad = Candidate(text="yes", logp=-1.0, tokens=2), Candidate(text="no", logp=-2.0, tokens=2)
    pair = Pair(question=0, chosen=good, rejected=bad, chosen_score=5.0, rejected_score=1.0)
    [asked] = read_questions(source).asked
    write_rows(output, [pair_row(asked, pair, "a", model="m", judge={}, output=output)])
    [row] = read_pairs(output).rows
    assert row.media == asked.media  # and so with its subtitles


def test_a_reference_measured_under_two_factors_is_left_to_the_trainer(world: Path, tmp_path: Path) -> None:
    asked = read_questions(world).asked[0]
    good = Candidate(text="yes", logp=-1.0, tokens=2, rope_factor=1.5)
    pair = Pair(question=0, chosen=good, rejected=Candidate(text="no", logp=-2.0, tokens=2), chosen_score=5.0,
                rejected_score=1.0)  # fmt: skip
    assert "reference" not in pair_row(asked, pair, "x", model="m", judge={}, output=tmp_path / "o.jsonl")


def test_a_folder_is_asked_a_file_of_questions(world: Path, tmp_path: Path) -> None:
    words = tmp_path / "ask.txt"
    words.write_text("<video>\nwhat happens?\n\n<video> how does it end?\n", encoding="utf-8")
    found = read_questions(world, questions=words)
    assert [(one.id, one.question) for one in found.asked] == [
        ("1/1", "what happens?"), ("1/2", "how does it end?"), ("2/1", "what happens?"), ("2/2", "how does it end?")
    ]  # fmt: skip


def test_what_is_wrong_with_a_question_for_every_clip_is_told_once(world: Path, tmp_path: Path) -> None:
    words = tmp_path / "ask.txt"
    words.write_text("why?\nwho " + 99 * "really " + "knows?\n", encoding="utf-8")
    told: list[str] = []
    with pytest.raises(RowError, match=r"4 of 4 questions can not be asked"):
        feedback(world, tmp_path / "pairs.jsonl", replace(OPTIONS, limit=None, questions=words), remark=told.append)
    assert [re.findall(r"1\.mp4:\d and 1 more: '\w+", line) for line in told] == [
        ["1.mp4:1 and 1 more: 'why"], ["1.mp4:2 and 1 more: 'who"]
    ]  # fmt: skip
    assert max(map(len, told)) < 400


@pytest.mark.parametrize("k", [1, 10**9])
def test_no_more_candidates_than_stand_in_memory(k: int) -> None:
    with pytest.raises(ConfigError, match=f"k is {k}; "):
        SamplingOptions(k=k)


def test_a_folder_is_searched_as_captions_search_it(world: Path, tmp_path: Path) -> None:
    """Clips of one name in two folders have ids of their own; hidden ones and folders are none; a dead link is told."""
    for name in ("1", "deep/1", "deep/.hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        for suffix in (".mp4", ".json"):
            shutil.copy(world / f"1{suffix}", tmp_path / f"{name}{suffix}")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "dead.mp4").symlink_to("nowhere")
    words = tmp_path / "ask.txt"
    words.write_text("what happens?\n", encoding="utf-8")
    for questions in (None, words):
        found = read_questions(tmp_path, questions=questions)
        assert {one.id.rpartition("/")[0] for one in found.asked} == {"1", "deep/1"}
        assert len({one.id for one in found.asked}) == len(found.asked)
        assert [problem.what for problem in found.problems] == ["no such file: the link leads nowhere"]


def caption_row(clip: Path, caption: str, **words: Any) -> CaptionRow:
    item = Item(video=str(clip), path=str(clip))
    row = CaptionRow.of(item, id="0" * 32, recipe="0" * 16, status="ok", stamp="0" * 16)
    return replace(row, caption=caption, **words)


def evidence_of(world: Path, captions: Path, clip: str) -> set[str | None]:
    """The evidence of the questions about a clip."""
    found = read_questions(world, captions=captions).asked
    return {one.evidence for one in found if one.media[0].path.endswith(clip)}


def test_captions_of_a_run_are_evidence(world: Path, tmp_path: Path) -> None:
    captions = write(tmp_path / "captions.jsonl", caption_row(world / "1.mp4", "A ring grows.").to_dict())
    assert evidence_of(world, captions, "1.mp4") == {"A ring grows."}
    assert evidence_of(world, captions, "2.mp4") == {tell(Script.load(world / "2.json").events)}  # what the script says


def test_captions_of_parts_are_no_caption_of_the_clip(world: Path, tmp_path: Path) -> None:
    """They are told with their times, in their order; of a clip that was also captioned whole, that is its caption."""
    one, two = world / "1.mp4", world / "2.mp4"
    parts = [
        caption_row(one, "B.", id="1" * 32, key="1" * 32, start=5.0, end=8.0),
        caption_row(one, "A.", id="2" * 32, key="2" * 32, start=0.0, end=5.0),
        caption_row(two, "Whole.", id="3" * 32, key="3" * 32),
        caption_row(two, "A part.", id="4" * 32, key="4" * 32, start=3.0),
    ]
    captions = write(tmp_path / "captions.jsonl", *(row.to_dict() for row in parts))
    assert evidence_of(world, captions, "1.mp4") == {"From 0:00 to 0:05: A.\nFrom 0:05 to 0:08: B."}
    assert evidence_of(world, captions, "2.mp4") == {"Whole."}


def test_copies_and_captions_made_beside_their_output_are_found(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world, tmp_path / "clips")
    copied = replace(caption_row(Path("clips/1.mp4"), "A ring grows."), status="duplicate", duplicate_of="x.mp4")
    captions = write(tmp_path / "captions.jsonl", copied.to_dict())
    assert evidence_of(tmp_path / "clips", captions, "1.mp4") == {"A ring grows."}
    with pytest.raises(RowError, match="no good caption in it is of one of these clips"):
        read_questions(world, captions=captions)


def test_every_bad_row_is_told_with_its_line_before_anything_is_asked(
    world: Path, tmp_path: Path, model: VideoModel
) -> None:
    video = str(world / "1.mp4")
    source = write(
        tmp_path / "rows.jsonl",
        {"id": "ok", "video": video, "question": "what happens first?"},
        {"id": "gone", "video": "nowhere.mp4", "question": "what happens?"},
        {"id": "mute", "video": video},
        {"id": "blind", "question": "<video>\nwhat happens?"},
        {"id": "odd", "video": video, "question": "what is love?"},
        "text",
        {"id": "typo", "video": video, "question": "what happens first?", "captoin": "A ring grows."},
    )
    told: list[str] = []
    output = tmp_path / "pairs.jsonl"
    with pytest.raises(RowError, match="6 of 7 questions"):
        feedback(source, output, OPTIONS, load=no_model, remark=told.append)
    for line, name in ((2, "gone"), (3, "mute"), (4, "blind"), (5, "odd"), (6, ""), (7, "mean 'caption' where")):
        assert any(f"rows.jsonl:{line}" in said and name in said for said in told), line
    assert not journal_of(output).exists()
    done = feedback(source, output, replace(OPTIONS, skip_bad=True), load=lambda: model, remark=told.append)
    assert done.report.asked == 1


def test_a_clip_that_breaks_costs_its_own_questions(
    run: Callable[..., FeedbackDone], world: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes((world / "1.mp4").read_bytes()[:900])
    (tmp_path / "broken.json").write_bytes((world / "1.json").read_bytes())
    source = write(tmp_path / "rows.jsonl", {"video": str(broken), "question": "what happens first?"},
                   {"video": str(world / "1.mp4"), "question": "what happens first?"})  # fmt: skip
    done = run(source=source)
    assert (done.report.asked, sum(done.report.failed.values())) == (1, 1)
    assert run(source=source, load=no_model).tally.failed == 0  # not tried again ...
    broken.write_bytes((world / "1.mp4").read_bytes())
    assert run(source=source).report.asked == 2  # ... unless the file has changed


def test_impossible_wishes_are_one_line(run: Callable[..., FeedbackDone], world: Path, tmp_path: Path) -> None:
    taken = tmp_path / "pairs.jsonl"
    taken.write_text("precious\n", encoding="utf-8")
    for _ in range(2):
        with pytest.raises(OutputError, match="not as a feedback run leaves it"):
            run()
        assert taken.read_text(encoding="utf-8") == "precious\n"
        journal_of(taken).touch()  # as of pairs.json, which has the same
    rows = write(tmp_path / "rows.jsonl", {"video": str(world / "1.mp4"), "question": "what happens first?"})
    with pytest.raises(ConfigError, match="is the input"):
        run(source=rows, output="rows.jsonl")
    with pytest.raises(RowError, match="no such file"):
        run(source=tmp_path / "absent.jsonl", output="other.jsonl")
    with pytest.raises(ConfigError, match="folder of clips"):
        run(source=rows, output="other.jsonl", questions=rows)
    strange = write(tmp_path / "strange.candidates.jsonl", {"at": "lunch"})
    with pytest.raises(OutputError, match=r"strange.candidates.jsonl: byte 0"):
        run(output="strange.jsonl")
    assert strange.exists()
    write(tmp_path / "half.candidates.jsonl", {"at": "judged", "key": "k", "stamp": "s", "recipe": "r"})
    with pytest.raises(OutputError, match=r"half.candidates.jsonl: byte 0"):
        run(output="half.jsonl")
    for unheard in ({"watch": True}, {"judging": "compare"}, {"judge_model": "x"}, {"media": tmp_path}):
        with pytest.raises(ConfigError):
            run(output="other.jsonl", **unheard)
    command = ["feedback", str(world), "-o", str(tmp_path / "other.jsonl"), "--request-timeout", "5"]
    assert main(command) == 1


def test_weights_are_fetched_once_there_is_a_question_that_can_be_asked(
    run: Callable[..., FeedbackDone], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.extend(allow_patterns)
        return str(resolve.builtin_folder())

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    resolve._download.cache_clear()
    bad = write(tmp_path / "rows.jsonl", {"video": "absent.mp4", "question": "what happens first?"})
    with pytest.raises(RowError, match="1 of 1 questions"):
        run(source=bad, model="some/model")
    assert asked
    assert "*.safetensors" not in asked
    run(model="some/model", limit=1)
    assert asked.count("*.safetensors") == 1


def test_what_is_no_file_is_never_replaced(run: Callable[..., FeedbackDone], tmp_path: Path) -> None:
    """A pipe stands for /dev/null here: whoever may write beside it could put a file in its place."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="no file"):
        run(output="pipe")
    with pytest.raises(OutputError, match="no file"):
        write_rows(tmp_path / "pipe", [])
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
    assert (tmp_path / "pipe").is_fifo()


def test_half_a_character_is_kept_as_a_server_said_it(tmp_path: Path) -> None:
    output, slot = tmp_path / "pairs.jsonl", Slot("k", "s", "r")
    said = Verdict(score=3.0, explanation="a star \ud83d", replies=("\ud83d", "ü"))
    with Journal(output) as journal:
        journal.add_judged(slot, "j", Oracle(), Judged(ticket=1, verdicts=(said,)))
    with Journal(output) as journal:
        assert journal.opinions[slot]["j"].verdicts == (said,)
    write_rows(output, [{"video": "\udcff.mp4"}])  # how Python reads a name that is no UTF-8
    assert json.loads(output.read_bytes()) == {"video": "\udcff.mp4"}


def test_a_slot_is_the_question_its_files_and_its_recipe(world: Path) -> None:
    first, *rest = read_questions(world).asked
    assert len({one.key for one in (first, *rest)}) == 1 + len(rest)
    before = Slot(first.key, first.stamp(), "r")
    os.utime(first.media[0].path, (1, 1))
    after = Slot(first.key, first.stamp(), "r")
    assert after != before
    sidecar = Path(first.media[0].path).with_suffix(".srt")
    try:
        sidecar.write_text("1\n00:00:00,000 --> 00:00:02,000\nWatch the ring.\n")
        assert Slot(first.key, first.stamp(), "r") != after
    finally:
        sidecar.unlink()
