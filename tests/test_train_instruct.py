"""Instruction rows: of scripts, with answers that a person could check against the script; of captions, by a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from vidllm.errors import ConfigError, OutputError, RowError
from vidllm.feedback.tutor import KINDS, REMINDER
from vidllm.train.instruct import InstructOptions, instruct
from vidllm.train.lessons import FAMILIES, choose, clip_lessons, picture_lessons
from vidllm.train.rows import read_rows
from vidllm.world.generate import generator, make_script
from vidllm.world.make import make_clips, save_truth
from vidllm.world.questions import visible
from vidllm.world.script import Script
from vidllm_cli.main import main

SCRIPTS = [make_script("user", seed) for seed in range(40)]


@pytest.fixture(scope="module")
def clips_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_clips(2, 3, folder)
    return folder


def lessons(script: Script, family: str, seed: int = 0) -> dict[str, str]:
    return {q.text: q.answer for q in clip_lessons(script, generator("t", seed)) if q.family == family}


@pytest.mark.parametrize("script", SCRIPTS[:15], ids=lambda script: script.seed)
def test_events_that_never_happen_are_probed_as_often_as_those_that_do(script: Script) -> None:
    asked = [q for q in clip_lessons(script, generator("t", 1)) if q.family == "happens"]
    phrases = {event.phrase for event in script.events}
    assert {q.answer for q in asked} == {"Yes.", "No."}
    for question in asked:
        if question.answer == "Yes.":
            continue
        assert not any(phrase in question.text for phrase in phrases), "that did happen"


@pytest.mark.parametrize("script", SCRIPTS[:15], ids=lambda script: script.seed)
def test_reasoning_is_right(script: Script) -> None:
    numbers = ("Zero.", "One.", "Two.", "Three.", "Four.", "Five.")
    for text, answer in lessons(script, "reasoning").items():
        if text.startswith("how many objects"):
            assert answer == numbers[len(visible(script, script.duration))]
        elif text.startswith("how "):
            assert answer == numbers[len(script.events)]
        elif " before the " in text:
            starts = [e.start for e in script.events if e.name in text]
            assert answer in ("Yes.", "No.")
            assert len(starts) >= 1


def test_before_is_told_from_after() -> None:
    said: Counter[str] = Counter()
    for script in SCRIPTS:
        names = {event.phrase: event.start for event in script.events}
        for text, answer in lessons(script, "reasoning").items():
            if not text.startswith("is it true that the "):
                continue
            first, second = text.removeprefix("is it true that the ").removesuffix("?").split(" before the ")
            assert (names[first] < names[second]) == (answer == "Yes."), text
            said[answer] += 1
    assert min(said["Yes."], said["No."]) > 0.3 * sum(said.values())


def test_times_in_a_timeline_are_the_events_starts() -> None:
    for script in SCRIPTS:
        (told,) = lessons(script, "timeline").values()
        assert told.count("At ") == len(script.events)
        assert told.startswith(f"At 0:{int(script.events[0].start):02d} the {script.events[0].phrase}.")


def test_a_picture_is_not_asked_about_times() -> None:
    for script in SCRIPTS:
        asked = picture_lessons(script, 5.0, generator("t", 2))
        assert not any("0:05" in q.text or "happens" in q.text for q in asked)
        assert {q.family for q in asked} <= {"picture", "count", "colour", "shape", "where", "exists"}


def test_rows_are_rows(clips_made: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    done = instruct(clips_made, output, InstructOptions(per_clip=20, images=2))
    read = read_rows(output)
    assert not read.problems
    assert len(read.rows) == done.rows == sum(done.families.values())
    assert {m.kind for row in read.rows for m in row.media} == {"video", "image"}
    assert len({row.origin.id for row in read.rows}) == done.rows
    assert set(done.families) <= set(FAMILIES)
    for row in read.rows:
        if row.media[0].kind == "image":
            assert np.asarray(Image.open(row.media[0].path)).shape[2] == 3


def test_the_same_command_gives_the_same_bytes(clips_made: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        instruct(clips_made, tmp_path / name / "rows.jsonl", InstructOptions(images=1))
    assert (tmp_path / "a/rows.jsonl").read_bytes() == (tmp_path / "b/rows.jsonl").read_bytes()
    instruct(clips_made, tmp_path / "c" / "rows.jsonl", InstructOptions(images=1, seed=1))
    assert (tmp_path / "a/rows.jsonl").read_bytes() != (tmp_path / "c/rows.jsonl").read_bytes()


def test_rows_in_a_folder_that_is_a_link_find_their_clips(clips_made: Path, tmp_path: Path) -> None:
    (tmp_path / "disk" / "runs").mkdir(parents=True)
    link = tmp_path / "runs"
    link.symlink_to(tmp_path / "disk" / "runs")
    instruct(clips_made, link / "rows.jsonl", InstructOptions(per_clip=1, images=1))
    found = read_rows(link / "rows.jsonl")
    assert found.rows
    assert not found.problems


def test_a_clip_may_have_any_name(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff")  # no UTF-8
    save_truth(SCRIPTS[0], tmp_path / f"{name}.json", 0)
    (tmp_path / f"{name}.mp4").touch()
    instruct(tmp_path, tmp_path / "rows.jsonl", InstructOptions())
    found = read_rows(tmp_path / "rows.jsonl")
    assert len(found.rows) == 8
    assert not found.problems


def test_an_output_that_is_a_link_stays_one(clips_made: Path, tmp_path: Path) -> None:
    link, elsewhere = tmp_path / "rows.jsonl", tmp_path / "disk" / "kept.jsonl"
    elsewhere.parent.mkdir()
    link.symlink_to(elsewhere)
    for seed in (0, 1):
        instruct(clips_made, link, InstructOptions(per_clip=1, seed=seed))
        assert link.is_symlink()
        assert not read_rows(link).problems
    assert elsewhere.is_file()


def test_other_rows_are_never_written_over(clips_made: Path, tmp_path: Path) -> None:
    rows, paid = tmp_path / "rows.jsonl", tmp_path / "paid.jsonl"
    instruct(clips_made, rows, InstructOptions())
    instruct(clips_made, rows, InstructOptions(seed=1))
    paid.write_text('{"id": "a model wrote this"}\n')
    with pytest.raises(RowError, match="holds other rows"):
        instruct(clips_made, paid, InstructOptions())
    assert paid.read_text() == '{"id": "a model wrote this"}\n'
    with rows.open("a") as file:  # as `--from` does, to rows that were there
        file.write(paid.read_text())
    with pytest.raises(RowError, match="holds other rows"):
        instruct(clips_made, rows, InstructOptions())
    os.mkfifo(tmp_path / "pipe")  # as /dev/null
    for no_file, reason in (("pipe", "no file"), (".", "is a folder")):
        with pytest.raises(OutputError, match=reason):
            instruct(clips_made, tmp_path / no_file, InstructOptions())
    assert (tmp_path / "pipe").is_fifo()


def test_no_row_at_all_is_an_error_and_leaves_what_was_there(clips_made: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    instruct(clips_made, rows, InstructOptions())
    before = rows.read_bytes()
    with pytest.raises(RowError, match="nothing to ask of picture"):
        instruct(clips_made, rows, InstructOptions(families=("picture",)))
    assert rows.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_dialogues_and_chosen_families(clips_made: Path, tmp_path: Path) -> None:
    wishes = InstructOptions(per_clip=6, turns=3, families=("describe", "when", "what"))
    instruct(clips_made, tmp_path / "rows.jsonl", wishes)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {family for row in rows for family in row["families"]} <= {"describe", "when", "what"}
    assert any(len(row["conversations"]) == 6 for row in rows)
    assert all(sum("<video>" in turn["value"] for turn in row["conversations"]) == 1 for row in rows)


def test_what_can_not_be_made_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RowError, match="vidllm world make"):
        instruct(tmp_path, tmp_path / "rows.jsonl", InstructOptions())
    (tmp_path / "a.mp4").touch()
    for other in ("{}", "[]", "7", '"a"', "[" * 100_000, '{"canvas": 7, "things": [], "events": []}'):
        (tmp_path / "a.json").write_text(other)
        with pytest.raises(RowError, match="no script of a clip"):
            instruct(tmp_path, tmp_path / "rows.jsonl", InstructOptions())
    with pytest.raises(ConfigError, match="no questions of family"):
        InstructOptions(families=("colours",))
    assert not (tmp_path / "rows.jsonl").exists()


# ------------------------------------------------------------------------------------------------------- from captions


@pytest.fixture
def writer() -> Iterator[str]:
    """The address of a server that writes."""
    command = [sys.executable, "-m", "tests.tutor_server"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    process.kill()
    process.wait()
    process.stdout.close()


def captions(folder: Path, *rows: dict[str, Any]) -> Path:
    for row in rows:
        (folder / row["video"]).touch()
    path = folder / "captions.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def run(folder: Path, writer: str, *more: str) -> tuple[int, list[dict[str, Any]]]:
    output = folder / "out" / "rows.jsonl"
    words = ["instruct", "--from", str(folder / "captions.jsonl"), "--endpoint", writer, "-o", str(output), *more]
    code = main(words)
    return code, [json.loads(line) for line in output.read_bytes().splitlines()] if output.exists() else []


def requests(writer: str) -> int:
    with urllib.request.urlopen(f"{writer}/asked") as reply:
        return int(json.load(reply)["requests"])


def test_a_caption_becomes_three_kinds_of_rows(tmp_path: Path, writer: str, capsys: pytest.CaptureFixture[str]) -> None:
    ball = {"id": "x", "video": "a.mp4", "caption": "A red ball {rolls}."}
    captions(tmp_path, ball, {"video": "b.mp4", "caption": "Rain."})
    code, rows = run(tmp_path, writer)
    assert code == 0
    assert {row["id"] for row in rows} == {f"{name}/{kind}" for name in ("x", "2") for kind in KINDS}
    assert all("A red ball {rolls}." in row["prompt"] for row in rows if row["id"].startswith("x/"))
    assert {row["model"] for row in rows} == {"writer-1"}
    assert not read_rows(tmp_path / "out" / "rows.jsonl").problems
    assert "6 rows written, 0 were there" in capsys.readouterr().out
    code, again = run(tmp_path, writer)
    assert (code, again) == (0, rows)
    assert requests(writer) == 6, "what is there is not asked for again"


def test_a_late_server_is_given_up_when_asked_to(
    tmp_path: Path, writer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    captions(tmp_path, {"video": "a.mp4", "caption": "A ball. do=late"}, {"video": "b.mp4", "caption": "Rain."})
    code, rows = run(tmp_path, writer, "--kinds", "detail", "--request-timeout", "0.3")
    assert code == 1
    assert [row["id"] for row in rows] == ["2/detail"]
    told = capsys.readouterr().err
    assert "2 times" in told
    assert told.count("no answer within 0.3 s; --request-timeout says how long one is waited for") == 1


def test_a_caption_may_hold_any_character(tmp_path: Path, writer: str) -> None:
    """U+2028 and U+0085 end a line for some, but not in JSONL."""
    text = "A red ball\u2028rolls,\x85and stops."
    captions(tmp_path, {"id": "x", "video": "a.mp4", "caption": text}, {"video": "b.mp4", "caption": "Rain."})
    code, rows = run(tmp_path, writer, "--kinds", "detail")
    prompts = {row["id"]: row["prompt"] for row in rows}
    assert (code, prompts.keys()) == (0, {"x/detail", "2/detail"})
    assert text in prompts["x/detail"]
    assert not read_rows(tmp_path / "out" / "rows.jsonl").problems


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no file is named so")
def test_a_clip_may_have_a_name_that_is_no_text(tmp_path: Path, writer: str) -> None:
    """Such a name stands in the captions with half a character; the file begins with the mark that Windows sets."""
    clip = {"id": "a\udcff", "video": "a\udcff.mp4", "caption": "A red ball."}
    (tmp_path / clip["video"]).touch()
    (tmp_path / "captions.jsonl").write_text(json.dumps(clip), encoding="utf-8-sig")
    code, rows = run(tmp_path, writer, "--kinds", "detail")
    assert (code, [row["id"] for row in rows]) == (0, ["a\udcff/detail"])
    [row] = read_rows(tmp_path / "out" / "rows.jsonl").rows
    assert row.media[0].path.endswith("a\udcff.mp4")


def test_a_bad_reply_is_asked_for_again_and_then_told(
    tmp_path: Path, writer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    orders = {"ok": "once", "no": "prose", "tell": "notes", "few": "short", "cut": "cut"}
    captions(tmp_path, *({"id": name, "video": "a.mp4", "caption": f"do={order}"} for name, order in orders.items()))
    code, rows = run(tmp_path, writer, "--kinds", "conversation")
    told = capsys.readouterr().err
    assert code == 1
    assert [row["id"] for row in rows] == ["ok/conversation"]
    assert rows[0]["prompt"].endswith(REMINDER), "the words it was asked for with"
    for words in ("no/conversation: the reply can not be used (no JSON in it)", "it speaks of 'caption'", "1 questions",
                  "cut off"):  # fmt: skip
        assert words in told
    assert requests(writer) == 2 * 5


def test_lines_broken_in_json_and_words_behind_it_are_read(tmp_path: Path, writer: str) -> None:
    captions(tmp_path, {"id": "x", "video": "a.mp4", "caption": "do=lines"})
    code, rows = run(tmp_path, writer, "--kinds", "conversation,reasoning")
    assert (code, [row["conversations"][1]["value"] for row in rows]) == (0, ["A ball:\n- red"] * 2)


def test_a_text_that_is_seen_in_the_clip_may_be_spoken_of(
    tmp_path: Path, writer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {"seen": "A ball with texts on it. do=sign", "not": "A ball, described in context. do=sign"}
    captions(tmp_path, *({"id": name, "video": "a.mp4", "caption": caption} for name, caption in told.items()))
    code, rows = run(tmp_path, writer, "--kinds", "conversation")
    assert (code, [row["id"] for row in rows]) == (1, ["seen/conversation"])
    assert "not/conversation: the reply can not be used (it speaks of 'The text')" in capsys.readouterr().err


@pytest.mark.parametrize("there", ["[" * 100_000, "[1]", "words"])
def test_an_output_of_other_lines_is_left_alone(
    tmp_path: Path, writer: str, capsys: pytest.CaptureFixture[str], there: str
) -> None:
    captions(tmp_path, {"id": "x", "video": "a.mp4", "caption": "Rain."})
    output = tmp_path / "out" / "rows.jsonl"
    output.parent.mkdir()
    output.write_text(f"{there}\n", encoding="utf-8")
    assert main(["instruct", "--from", str(tmp_path / "captions.jsonl"), "--endpoint", writer, "-o", str(output)]) == 1
    assert "holds lines that are no rows of instruct; give the rows another name" in capsys.readouterr().err
    assert output.read_text(encoding="utf-8") == f"{there}\n"


def test_thoughts_are_no_part_of_a_row(tmp_path: Path, writer: str) -> None:
    captions(tmp_path, {"id": "x", "video": "a.mp4", "caption": "do=think"})
    code, rows = run(tmp_path, writer)
    assert (code, len(rows)) == (0, 3)
    assert "think" not in json.dumps([row["conversations"] for row in rows])


def test_what_no_row_can_hold_costs_its_own_row(
    tmp_path: Path, writer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    orders = ("deep", "half", "well")
    captions(tmp_path, *({"id": order, "video": "a.mp4", "caption": f"do={order}"} for order in orders))
    code, rows = run(tmp_path, writer, "--kinds", "conversation")
    told = capsys.readouterr().err
    assert (code, [row["id"] for row in rows]) == (1, ["well/conversation"])
    assert "deep/conversation: the reply can not be used (JSON nested too deep)" in told
    assert "half/conversation: the reply can not be used (it holds half a character)" in told


def test_a_clip_captioned_twice_gives_one_row_of_a_kind(tmp_path: Path, writer: str) -> None:
    """A second prompt, and a copy of the clip: the content's id is the same."""
    rain: dict[str, Any] = {"id": "x", "video": "a.mp4", "caption": "Rain."}
    more = {"caption": "Rain falls.", "recipe": "r2"}, {"video": "b.mp4", "caption": "", "status": "error"}
    captions(tmp_path, rain, *({**rain, **told} for told in more))
    code, rows = run(tmp_path, writer, "--kinds", "detail,detail")
    assert (code, [row["id"] for row in rows]) == (0, ["x/detail"])
    assert "Rain falls." in rows[0]["prompt"]


def test_a_caption_of_what_a_clip_was_before_is_left_out(
    tmp_path: Path, writer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rain: dict[str, Any] = {"id": "x", "video": "a.mp4", "caption": "Rain.", "recipe": "r"}
    people = ({"video": "b.mp4", "caption": f"{number} words."} for number in range(2))  # each has a word of their own
    captions(tmp_path, rain, {**rain, "id": "y", "caption": "Snow."}, *people)
    code, rows = run(tmp_path, writer, "--kinds", "detail")
    assert (code, {row["id"] for row in rows}) == (0, {"y/detail", "3/detail", "4/detail"})
    assert "1 captions were left out: its clip is another now" in capsys.readouterr().err


def test_captions_nothing_can_be_made_of_are_counted(
    tmp_path: Path, writer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more: dict[str, dict[str, Any]] = {
        "a": {"status": "ok"}, "b": {"status": "error"}, "c": {"caption": " "}, "d": {"start": 3.0, "end": 5.0}, "e": {}
    }  # fmt: skip
    rain = {"caption": "Rain."}
    path = captions(tmp_path, *({"id": name, "video": f"{name}.mp4", **rain, **told} for name, told in more.items()))
    (tmp_path / "e.mp4").unlink()
    code, rows = run(tmp_path, writer, "--kinds", "detail")
    told = capsys.readouterr().err
    assert (code, [row["id"] for row in rows]) == (0, ["a/detail"])
    reasons = ("its caption is error", "its caption is empty", "it is about a part of its clip", "its clip is not")
    for reason in reasons:
        assert f"1 captions were left out: {reason}" in told
    captions(tmp_path, {"id": "z", "video": "z.mp4", **rain, "status": "error"})
    (tmp_path / "out" / "rows.jsonl").unlink()
    assert run(tmp_path, writer) == (1, []), "a run that has no row is no success"
    path.write_text("{}\n")
    assert run(tmp_path, writer)[0] == 1
    assert 'no line with "video" and "caption"' in capsys.readouterr().err
    path.unlink()
    assert run(tmp_path, writer)[0] == 1
    assert "give the output of `vidllm caption`" in capsys.readouterr().err


def test_the_commands_own_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions = tmp_path / "c.jsonl"
    captions.touch()
    for words in ([], [str(captions)]):
        assert main(["instruct", *words, "-o", str(tmp_path / "r.jsonl")]) == 1
        assert "name a folder of scripted clips (`vidllm world make`), or captions" in capsys.readouterr().err
    assert main(["instruct", "-o", str(tmp_path / "r.jsonl"), "--from", "c.jsonl"]) == 1
    told = capsys.readouterr().err
    assert "--from needs --endpoint" in told
    folder, made = str(tmp_path), ["instruct", "--from", "c.jsonl", "--endpoint", "http://localhost:1/v1"]
    for words, unheard in (
        (["instruct", folder, "--endpoint", "http://localhost:1/v1"], "--endpoint is for rows of captions"),
        (["instruct", folder, "--questions", "6"], "--questions is for rows of captions"),
        (["instruct", folder, "--request-timeout", "5"], "--request-timeout is for rows of captions"),
        ([*made, "--images", "2"], "--images is for rows of scripted clips"),
        ([*made, "--kinds", " detail , prose"], "prose"),
    ):  # fmt: skip
        assert main([*words, "-o", str(tmp_path / "r.jsonl")]) == 1
        assert unheard in capsys.readouterr().err


def test_a_clips_questions_are_of_many_kinds() -> None:
    """Families in turn: eight questions are of eight families, and none is rare over many clips."""
    seen: Counter[str] = Counter()
    for script in SCRIPTS:
        chosen = choose(clip_lessons(script, generator("t", 3)), 8, generator("t", 4))
        families = [question.family for question in chosen]
        assert len(set(families)) == min(8, len({q.family for q in clip_lessons(script, generator("t", 3))}))
        seen.update(families)
    assert min(seen[family] for family in FAMILIES if family != "picture") >= len(SCRIPTS) // 5
