"""vidllm caption, end to end: the built-in model on real files, one row for every clip, whatever happens in between."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import vidllm
from benchmarks.caption_kill import Watched, run_and_kill, same_but_for_timings
from tests.caption_rows import rows_of
from tests.conftest import write_clip, write_stories
from tests.test_corpus_identity import remux
from vidllm.corpus.caption import CaptionOptions, caption, dry_run, open_engine
from vidllm.corpus.extras import Extras, write_extras
from vidllm.corpus.item import Item
from vidllm.corpus.local import LocalCaptioner
from vidllm.corpus.progress import Tally
from vidllm.corpus.scenes import Range
from vidllm.corpus.stores import manifest_of
from vidllm.corpus.verify import verify
from vidllm.corpus.workers import AHEAD_BYTES, Decoder
from vidllm.errors import ConfigError, ReaderUnavailable, VidllmError
from vidllm.model.resolve import builtin_folder
from vidllm.options import GenerationOptions
from vidllm.planning import PlanOptions
from vidllm.video.guard import close_workers
from vidllm_cli.main import main

CLIPS, FEW = 8, 3
PROMPT = "describe the video."


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of eight world clips, two of them in a folder below."""
    folder = tmp_path_factory.mktemp("world")
    for path in write_stories(CLIPS, folder)[-2:]:
        (folder / "below").mkdir(exist_ok=True)
        path.rename(folder / "below" / path.name)
    return folder


@pytest.fixture(scope="session")
def few(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of them, for what no more clips would prove better."""
    folder = tmp_path_factory.mktemp("few")
    for path in sorted(world.glob("*.mp4"))[:FEW]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="session")
def model() -> vidllm.VideoModel:
    return vidllm.load(builtin_folder(), dtype="float32", cache=None)


@pytest.fixture(scope="session")
def alone(world: Path, model: vidllm.VideoModel) -> dict[str, vidllm.Answer]:
    """Every clip of the world asked by itself."""
    return {str(path): model.ask(path, PROMPT) for path in world.rglob("*.mp4")}


@pytest.fixture(scope="session")
def captioned(world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of the world that one run of the command wrote, left alone, with as many replicas as there are cores."""
    output = tmp_path_factory.mktemp("captioned") / "out.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VIDLLM_MODEL", raising=False)
        assert main(["caption", str(world), "-o", str(output), "--dtype", "float32", "--retries", "0"]) in (0, 1)
    return rows_of(output)


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("VIDLLM_MODEL", raising=False)
    return tmp_path / "out.jsonl"


def run(inputs: Path | str | Sequence[str], output: Path, *words: str) -> int:
    """The command in this process; float32, so that a caption does not depend on its company, and one replica."""
    named = [str(inputs)] if isinstance(inputs, Path | str) else list(inputs)
    return main(["caption", *named, "-o", str(output), "--dtype", "float32", "--replicas", "1", *words])


def start(inputs: Path | str, output: Path, *words: str) -> subprocess.Popen[str]:
    """The command in a process of its own, with one replica."""
    command = [sys.executable, "-m", "vidllm_cli.main", "caption", str(inputs), "-o", str(output), "--replicas", "1"]
    command += words
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(happens: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not happens():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def lines_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


# ------------------------------------------------------------------------------------------------------ what comes out


def test_every_caption_is_what_asking_about_that_clip_alone_gives(
    captioned: list[dict[str, Any]], alone: dict[str, vidllm.Answer]
) -> None:
    assert sorted(row["video"] for row in captioned) == sorted(alone)
    for row in captioned:
        asked = alone[row["video"]]
        assert row["caption"] == asked.text
        assert row["usage"]["answer_tokens"] == asked.usage.answer_tokens
        assert [frame["time"] for frame in row["frames"]] == pytest.approx(
            [frame.time for frame in asked.frames], abs=1e-5
        )
        assert (row["model"], row["prompt"], row["engine"], row["start"]) == ("built-in", PROMPT, "local", None)
    assert len({row["caption"] for row in captioned}) > CLIPS // 2  # or a swap would not be seen


@pytest.mark.parametrize("batch", [1, 3])
def test_no_caption_is_on_a_wrong_clip_at_any_batch_size(
    world: Path, output: Path, model: vidllm.VideoModel, alone: dict[str, vidllm.Answer], batch: int
) -> None:
    report = caption(world, output, CaptionOptions(batch=batch, retries=0), model=model)
    assert report.counts.total() == CLIPS
    captions = {row["video"]: row["caption"] for row in rows_of(output)}
    assert captions == {video: answer.text for video, answer in alone.items()}


@pytest.mark.parametrize(("what", "value"), [("inputs", None), ("inputs", b"x"), ("output", None), ("options", {})])
def test_arguments_that_are_none_of_theirs_are_told_by_their_type(what: str, value: Any, tmp_path: Path) -> None:
    asked = {"inputs": "clip.mp4", "output": tmp_path / "out.jsonl", "options": None, what: value}
    for work in (caption, dry_run):
        with pytest.raises(VidllmError, match=f"of type {type(value).__name__}$"):
            work(*asked.values())


def test_a_second_run_does_nothing_and_a_new_clip_is_all_it_does(
    few: Path, tmp_path: Path, output: Path, model: vidllm.VideoModel
) -> None:
    folder = tmp_path / "clips"
    shutil.copytree(few, folder)
    first = caption(folder, output, model=model)
    before = output.read_bytes()
    again = caption(folder, output, model=model)
    assert (again.counts.total(), again.skipped, again.standing) == (0, FEW, first.standing)
    assert output.read_bytes() == before
    write_clip(folder / "new.mp4", [i / 25 for i in range(50)])
    assert caption(folder, output, model=model).counts.total() == 1
    assert output.read_bytes().startswith(before)


def test_another_recipe_is_new_work_and_the_old_rows_stay(few: Path, output: Path, model: vidllm.VideoModel) -> None:
    caption(few, output, model=model)
    before = rows_of(output)
    report = caption(few, output, CaptionOptions(prompt="how many objects are there at 0:05?"), model=model)
    assert report.counts.total() == FEW
    assert rows_of(output)[:FEW] == before
    assert len({row["recipe"] for row in rows_of(output)}) == 2
    longer = CaptionOptions(generation=GenerationOptions(max_new_tokens=100))
    assert caption(few, output, longer, model=model).counts.total() == FEW


def test_frames_that_look_alike_encoded_once_are_another_recipe(
    few: Path, output: Path, model: vidllm.VideoModel
) -> None:
    exact = caption(few, output, model=model)
    near = caption(few, output, CaptionOptions(same_within=8), model=model)
    assert near.recipe.digest != exact.recipe.digest
    assert near.counts.total() == FEW
    assert len(rows_of(output)) == 2 * FEW
    assert model.lmm.same_within == 0, "asked itself, the model looks at every frame again"  # type: ignore[attr-defined]


def test_side_files_and_data_sets_hold_clips_with_a_prompt_of_their_own(world: Path, tmp_path: Path) -> None:
    clips = sorted(str(path) for path in world.glob("*.mp4"))[:2]
    listed, output = tmp_path / "clips.jsonl", tmp_path / "out.jsonl"
    asked = ("describe the video.", "what happens first: the red circle moves right or the blue star grows?")
    told = [{"video": clip, "prompt": words} for clip, words in zip(clips, asked, strict=True)]
    listed.write_text("".join(json.dumps(row) + "\n" for row in told), encoding="utf-8")
    assert run(listed, output, "-f", "txt", "--prompt-column", "prompt", "--in-place") == 0
    rows = {row["prompt"]: row for row in rows_of(output)}
    assert set(rows) == set(asked)
    plain = rows["describe the video."]["recipe"]
    for words, row in zip(asked, map(json.loads, listed.read_text(encoding="utf-8").splitlines()), strict=True):
        assert row["caption_v1"] == rows[words]["caption"]
        assert row["caption_v1_recipe"] == f"{plain} prompts:prompt", "captions of a run without it are others"
    assert len(list(tmp_path.rglob("*.txt"))) == 2


def test_side_files_replace_nothing_that_lies_beside_the_clips(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    shutil.copy(sorted(world.glob("*.mp4"))[0], clips / "a.mp4")
    own = {clips / "a.json": '{"truth": 1}', clips / "a.srt": "1\n00:00:00,000 --> 00:00:02,000\nSaid by people.\n"}
    for path, text in own.items():
        path.write_text(text)
    for _ in range(2):
        assert run(clips, tmp_path / "clips.jsonl", "-f", "json,srt") == 0
        assert {path: path.read_text() for path in own} == own
        assert f"json go to {tmp_path / 'clips.captions'}" in capsys.readouterr().err
    side = tmp_path / "clips.captions"
    assert sorted(path.name for path in side.iterdir()) == [".vidllm-files", "a.json", "a.srt"]
    (side / "a.srt").write_text("corrected")
    for words in (["--dry-run"], ["--prompt", "what happens?"]):
        assert run(clips, tmp_path / "clips.jsonl", "-f", "json,srt", *words) == 1
        assert "a.srt: vidllm did not write it, or it was changed" in capsys.readouterr().err
    assert len(rows_of(tmp_path / "clips.jsonl")) == 1  # told before a clip was captioned


def test_two_shards_give_no_file_the_same_name(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("clips").mkdir()
    names = ["clips/a.mkv", "clips/a.mov", "clips/a.mp4", "clips/a.webm", "clips/b.mp4"]
    for source, name in zip(sorted(world.glob("*.mp4")), names, strict=False):
        shutil.copy(source, name)
    for shard in ("1", "2"):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(names).encode())))
        assert run("-", Path(f"s{shard}.jsonl"), "-f", "txt", "--shard", f"{shard}/2") == 0
    files = [sorted(path.name for path in Path(f"s{shard}").glob("*.txt")) for shard in ("1", "2")]
    assert all(files), "each shard has some"
    assert sorted(files[0] + files[1]) == ["a.mkv.txt", "a.mov.txt", "a.mp4.txt", "a.webm.txt", "b.txt"]


def subtitles_of(clip: Path, words: str) -> None:
    clip.with_suffix(".srt").write_text(f"1\n00:00:00,000 --> 00:00:02,000\n{words}\n")


def test_a_clip_whose_subtitles_changed_is_captioned_again(
    world: Path, tmp_path: Path, output: Path, model: vidllm.VideoModel
) -> None:
    clip, copy = tmp_path / "a.mp4", tmp_path / "b.mp4"
    for path in (clip, copy):
        shutil.copy(sorted(world.glob("*.mp4"))[0], path)
    subtitles_of(clip, "The red circle.")
    assert caption([clip, copy], output, model=model).counts["duplicate"] == 0  # one was captioned with words
    first = {row["video"]: row for row in rows_of(output)}
    assert caption([clip, copy], output, model=model).skipped == 2
    subtitles_of(clip, "There are two objects, a red circle and a blue square.")
    again = caption([clip, copy], output, model=model)
    assert (again.counts.total(), again.skipped, again.counts["duplicate"]) == (1, 1, 0)
    rows = {row["video"]: row for row in rows_of(output)}
    assert rows[str(copy)] == first[str(copy)]
    assert rows[str(clip)]["id"] == first[str(clip)]["id"] == rows[str(copy)]["id"], "the video is the same"
    tokens = [row["usage"]["text_tokens"] for row in (first[str(copy)], first[str(clip)], rows[str(clip)])]
    assert tokens == sorted(set(tokens)), "more words were read each time"


def test_subtitles_that_are_not_shown_make_no_work(
    world: Path, tmp_path: Path, output: Path, model: vidllm.VideoModel
) -> None:
    clip, silent = tmp_path / "a.mp4", CaptionOptions(plan=PlanOptions(subtitles=False))
    shutil.copy(sorted(world.glob("*.mp4"))[0], clip)
    caption(clip, output, silent, model=model)
    subtitles_of(clip, "The red circle.")
    assert caption(clip, output, silent, model=model).skipped == 1


def test_copies_and_copies_in_another_container_are_captioned_once(
    world: Path, tmp_path: Path, output: Path, model: vidllm.VideoModel
) -> None:
    clip = sorted(world.glob("*.mp4"))[0]
    shutil.copy(clip, tmp_path / "a.mp4")
    shutil.copy(clip, tmp_path / "b.mp4")
    remux(clip, tmp_path / "c.mkv")
    report = caption([tmp_path / name for name in ("a.mp4", "b.mp4", "c.mkv")], output, model=model)
    rows = rows_of(output)
    assert report.counts["duplicate"] == 2
    assert len({row["caption"] for row in rows}) == len({row["id"] for row in rows}) == 1
    [original] = [row["video"] for row in rows if row["status"] != "duplicate"]
    assert {row["duplicate_of"] for row in rows if row["status"] == "duplicate"} == {original}
    lines = output.read_text().splitlines(keepends=True)
    output.write_text("".join(line for line in lines if json.loads(line)["video"] != original))
    caption([tmp_path / "a.mp4", tmp_path / "b.mp4"], output, model=model)
    [row] = [row for row in rows_of(output) if row["video"] == original]
    assert row["duplicate_of"] not in (None, original)  # of what was its copy: nothing is a copy of itself
    assert verify(output).ok


def test_a_bad_caption_of_a_file_that_was_touched_is_still_one(
    world: Path, tmp_path: Path, output: Path, model: vidllm.VideoModel
) -> None:
    clip, short = tmp_path / "a.mp4", CaptionOptions(generation=GenerationOptions(max_new_tokens=2), retries=0)
    shutil.copy(sorted(world.glob("*.mp4"))[0], clip)
    assert caption(clip, output, short, model=model).failed == 1
    os.utime(clip, (1, 1))
    again = caption(clip, output, short, model=model)
    assert (again.failed, again.standing) == (1, Counter(truncated=1))


def test_a_poor_caption_is_asked_for_again_in_another_way(few: Path, output: Path, model: vidllm.VideoModel) -> None:
    tight = CaptionOptions(
        generation=GenerationOptions(max_new_tokens=3), retries=2, plan=vidllm.PlanOptions(max_new_tokens=3)
    )
    report = caption(few, output, tight, model=model)
    assert report.counts["truncated"] > 0
    for row in rows_of(output):
        if row["status"] == "truncated":
            assert row["attempts"] == 3
            assert "max-new-tokens" in row["error"]
    assert report.failed == sum(count for status, count in report.counts.items() if status not in ("ok", "duplicate"))


def test_a_caption_cut_off_gets_twice_the_room_where_nobody_set_it(
    few: Path, output: Path, model: vidllm.VideoModel
) -> None:
    """One sentence about a world clip takes six tokens or more: four cut all of them off, eight come after four."""
    options = CaptionOptions(generation=GenerationOptions(max_new_tokens=4), retries=1)
    caption(few, output, options, model=model)
    rows = rows_of(output)
    assert all(row["attempts"] == 2 for row in rows)
    assert max(row["usage"]["answer_tokens"] for row in rows) > 4


def test_a_long_video_is_captioned_range_by_range_and_as_a_whole(
    world: Path, output: Path, model: vidllm.VideoModel
) -> None:
    clip = sorted(world.glob("*.mp4"))[0]
    options = CaptionOptions(split="fixed:4s", summarise=True)
    told: list[tuple[int, int | None]] = []
    report = caption(clip, output, options, model=model, tell=lambda tally: told.append((tally.written, tally.total)))
    rows = rows_of(output)
    assert told[-1] == (len(rows), len(rows)), "as many as were announced"
    parts = sorted((row for row in rows if row["end"] is not None), key=lambda row: row["start"])
    [whole] = [row for row in rows if row["end"] is None]
    assert parts[0]["start"] == 0
    assert all(one["end"] == other["start"] for one, other in pairwise(parts))
    assert all(row["start"] <= frame["time"] < row["end"] for row in parts for frame in row["frames"])
    assert (whole["frames"], whole["video"]) == ([], str(clip))
    assert "descriptions of the consecutive parts" in whole["prompt"]
    assert caption(clip, output, options, model=model).counts.total() == 0
    assert report.standing.total() == len(rows)


def test_a_split_video_whose_file_was_touched_is_not_summed_up_again(
    world: Path, tmp_path: Path, output: Path, model: vidllm.VideoModel
) -> None:
    clip = Path(shutil.copy(sorted(world.glob("*.mp4"))[0], tmp_path / "a.mp4"))
    options = CaptionOptions(split="fixed:5s", summarise=True)
    caption(clip, output, options, model=model)
    [whole] = [row for row in rows_of(output) if row["end"] is None]
    os.utime(clip, (1, 1))
    caption(clip, output, options, model=model)
    [again] = [row for row in rows_of(output) if row["end"] is None]
    assert again["stamp"] != whole["stamp"]
    assert again == {**whole, "stamp": again["stamp"]}  # its time, too: the model did not work for it
    assert caption(clip, output, options, model=model).counts.total() == 0


def test_what_was_cut_once_is_not_searched_for_cuts_again(
    world: Path, tmp_path: Path, output: Path, model: vidllm.VideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by the next run nor for another prompt; one that changed is, and with --retry-errors one that failed."""
    folder = tmp_path / "in"
    folder.mkdir()
    clip = Path(shutil.copy(sorted(world.glob("*.mp4"))[0], folder / "a.mp4"))
    (folder / "b.mp4").write_bytes(b"no video")
    searched: list[str] = []
    ranges = Decoder.ranges

    def heard(self: Decoder, item: Item, split: str) -> tuple[Range, ...]:
        searched.append(Path(item.video).name)
        return ranges(self, item, split)

    monkeypatch.setattr(Decoder, "ranges", heard)

    def run(**said: Any) -> tuple[list[str], int]:
        searched.clear()
        report = caption(folder, output, CaptionOptions(workers=1, **{"split": "fixed:5s", **said}), model=model)
        return sorted(searched), report.counts.total()

    parts = run()[1] - 1
    assert parts > 1
    assert run() == ([], 0)
    assert run(retry_errors=True) == (["b.mp4"], 1)
    assert run(prompt="What moves?") == (["b.mp4"], parts + 1)  # it has no row under this recipe yet
    assert run(split="scenes") == (["a.mp4", "b.mp4"], 1)
    assert run() == ([], 0)
    os.utime(clip, (1, 1))
    assert run() == (["a.mp4"], parts)
    assert verify(output).ok


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_failure_of_what_was_cut_later_does_not_stay(
    world: Path, tmp_path: Path, model: vidllm.VideoModel, kind: str
) -> None:
    """The ranges stand for the video now: the run that made them said that all is well, and so must the rows."""
    output, names = tmp_path / f"out.{kind}", tmp_path / "names.txt"
    names.write_text("late.mp4\ngone.mp4\n")
    options = CaptionOptions(split="fixed:5s", workers=1)
    assert caption(names, output, options, model=model).counts == {"error": 2}
    shutil.copy(sorted(world.glob("*.mp4"))[0], tmp_path / "late.mp4")
    parts = caption(names, output, options, model=model).counts
    found = verify(output)
    assert found.ok
    assert found.statuses == {**parts, "error": 1}
    assert caption(names, output, options, model=model).counts.total() == 0


def test_what_another_split_wrote_is_not_among_this_ones_captions(
    world: Path, tmp_path: Path, output: Path, model: vidllm.VideoModel
) -> None:
    listed, whole = tmp_path / "rows.json", sorted(world.glob("*.mp4"))[0]
    listed.write_text(json.dumps([{"id": 1, "video": str(whole)}]))
    for number, split in enumerate(("none", "fixed:5s", "fixed:3s", "fixed:5s", "none"), 1):
        done = caption(listed, output, CaptionOptions(split=split, summarise=split != "none"), model=model)
        list(write_extras(done, Extras(formats="json", in_place=True, report=tmp_path / "page.html")))
        lines = json.loads((tmp_path / "out" / f"{whole.stem}.json").read_text())["segments"]
        assert all(one["end"] == other["start"] for one, other in pairwise(lines)), split
        assert (len(lines) == 1) is (split == "none")
        [row] = json.loads(listed.read_text())
        said = "caption_v" + str({"none": 1, "fixed:5s": 2, "fixed:3s": 3}[split])
        assert row[said].splitlines() == [line["text"] for line in lines]
        assert (f"caption_v{number}" in row) is (number <= 3)  # the first two came again
        page = (tmp_path / "page.html").read_text()
        assert f"{len(lines) + (split != 'none'):,} clips, " in page, "as many as were told of when the run ended"
        assert ("{captions}" in page) == (split != "none")
        if split != "none":  # the video's own row is told of its parts as they are now
            [summary] = [row for row in rows_of(output) if "consecutive parts" in row["prompt"]]
            assert summary["prompt"].count(": ") == len(lines)
    assert verify(output).ok


# ------------------------------------------------------------------------------------------------------------ bad input


def test_every_odd_file_between_good_ones_has_its_row(
    real_clips: Path, world: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = sorted(str(path) for path in (real_clips / "odd").iterdir())
    good = sorted(str(path) for path in world.glob("*.mp4"))
    inputs = [name for pair in zip(odd, good * len(odd), strict=False) for name in pair]
    assert run(inputs, output, "--time-limit", "60") == 1
    rows = {row["video"]: row for row in rows_of(output)}
    assert set(rows) == {*odd, *good}
    assert all(rows[name]["caption"] for name in good)
    for row in rows.values():
        assert (row["error"] is None) == (row["status"] in ("ok", "duplicate"))
    statuses = Counter(row["status"] for row in rows.values())
    assert statuses["undecodable"] >= 10
    said = capsys.readouterr().err
    assert "no good caption: " in said
    assert f"undecodable {statuses['undecodable']}" in said


def test_damaged_pictures_are_told_of_in_the_row_its_copy_and_the_closing_lines(
    tmp_path: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    [clip] = write_stories(1, folder)
    data = bytearray(clip.read_bytes())
    pictures = data.index(b"mdat")
    for at in range(pictures + (len(data) - pictures) // 3, pictures + (len(data) - pictures) * 2 // 3, 97):
        data[at] ^= 0x55
    clip.write_bytes(data)
    shutil.copy(clip, folder / "copy.mp4")
    run(folder, output, "--retries", "0")
    rows = rows_of(output)
    assert [row["status"] for row in rows if row["duplicate_of"]] == ["duplicate"]
    for row in rows:
        assert row["reader"] == "pyav"
        assert any("pictures are damaged (at " in note for note in row["notes"])
    assert "2 clips with a note in the row: pictures are damaged" in capsys.readouterr().err


def test_what_ask_says_of_a_plan_stands_in_the_row(tmp_path: Path, output: Path, model: vidllm.VideoModel) -> None:
    clip = write_clip(tmp_path / "clip.mp4", [0.0, 0.04, 0.08])
    caption(clip, output, CaptionOptions(plan=PlanOptions(frames=8), retries=0), model=model)
    [row] = rows_of(output)
    assert row["notes"]
    assert tuple(row["notes"]) == model.ask(clip, PROMPT, frames=8).notes


def test_what_failed_is_tried_again_only_when_asked(
    tmp_path: Path, output: Path, world: Path, model: vidllm.VideoModel
) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"not yet")
    status = os.stat(clip)
    assert caption(clip, output, model=model).counts == {"undecodable": 1}
    good = sorted(world.glob("*.mp4"))[0].read_bytes()
    shutil.copy(sorted(world.glob("*.mp4"))[0], clip)
    os.utime(clip, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert len(good) != len(b"not yet")
    report = caption(clip, output, CaptionOptions(retry_errors=True), model=model)
    assert report.counts.total() == 1
    assert [row["status"] for row in rows_of(output)] == [*report.standing]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt", "@missing.txt"], "missing.txt: the prompt can not be read"),
        (["--prompt", "detailled"], "did you mean detailed?"),
        (["--shard", "9/8"], "no shard"),
        (["--split", "halves"], "no way to split"),
        (["--summarise"], "say how to split"),
        (["--engine", "magic"], "use local, ray or the http address"),
        (["--dry-run", "-f", "doc"], "'doc' is no format"),
        (["--dry-run", "--report", "page.txt"], "end its name with .html"),
        (["--max-new-tokens", "2030"], "9 + 13 text + 2030 reply = 2052 tokens, over context 1024 x RoPE 2"),
        (["--stride", "13"], "stride 13 on a 12x12 grid leaves no token"),
        (["--prompt", "word " * 3000], "use a shorter question"),
    ],
)
def test_a_wrong_word_is_one_line_before_anything_is_loaded(
    world: Path, output: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert run(world, output, *words) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert not output.exists()


def test_a_reader_that_does_not_load_is_told_before_anything_is_written(
    world: Path, output: Path, model: vidllm.VideoModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its library is missing, or what it needs: one that breaks takes its place in every child."""
    (tmp_path / "decord.py").write_text("raise OSError('libav is not there')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    close_workers()
    for begin in (caption, dry_run):
        with pytest.raises(ReaderUnavailable, match=r"^decord is not installed or does not load; use reader pyav"):
            begin(world, output, CaptionOptions(plan=PlanOptions(reader="decord")), model=model)
    close_workers()
    assert not manifest_of(output).exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX")
def test_a_prompt_from_a_pipe_is_read_once_and_from_a_file_each_time(
    world: Path, tmp_path: Path, output: Path, model: vidllm.VideoModel
) -> None:
    asked, clip = tmp_path / "prompt", sorted(world.glob("*.mp4"))[0]
    options = CaptionOptions(prompt=f"@{asked}", retries=0)
    os.mkfifo(asked)
    writer = threading.Thread(target=asked.write_text, args=["what happens at 0:05?"], daemon=True)
    writer.start()
    caption(clip, output, options, model=model)
    asked.unlink()
    asked.write_text("what happens at 0:06?")
    caption(clip, output, options, model=model)
    assert [row["prompt"] for row in rows_of(output)] == ["what happens at 0:05?", "what happens at 0:06?"]


def test_a_folder_without_clips_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    assert run(tmp_path / "in", tmp_path / "out.jsonl") == 1
    assert "no video in it" in capsys.readouterr().err


def test_a_shard_without_a_clip_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its output is there, so that all of them can be proven; the exit code of a run with no clips at all stays 1."""
    outs = [tmp_path / f"{number}.jsonl" for number in (1, 2, 3)]
    shards = [["--shard", f"{number}/3"] for number in (1, 2, 3)]
    codes = [run(tmp_path / "nope.mp4", out, *shard) for out, shard in zip(outs, shards, strict=True)]
    assert sorted(codes) == [0, 0, 1]
    assert [len(rows_of(out)) for out in outs] == codes
    assert "no clip falls to shard" in capsys.readouterr().err
    (tmp_path / "in").mkdir()
    assert run(tmp_path / "in", tmp_path / "out.jsonl", *shards[0]) == 1


def test_a_clip_that_is_not_there_is_a_row_and_the_exit_code_says_so(tmp_path: Path, output: Path, world: Path) -> None:
    good = str(sorted(world.glob("*.mp4"))[0])
    assert run([good, str(tmp_path / "nope.mp4")], output) == 1
    assert sorted((Path(row["video"]).name, row["status"] == "error") for row in rows_of(output))[-1] == (
        "nope.mp4",
        True,
    )


def test_a_half_written_last_line_is_written_again(few: Path, output: Path, model: vidllm.VideoModel) -> None:
    caption(few, output, model=model)
    whole = output.read_bytes()
    output.write_bytes(whole[:-40])
    report = caption(few, output, model=model)
    assert report.counts.total() == 1
    assert same_rows(rows_of(output), [json.loads(line) for line in whole.splitlines()])


def same_rows(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    """Equal up to order and timings."""
    keyed = [{(row["key"], row["recipe"]): row for row in rows} for rows in (one, other)]
    return not same_but_for_timings(*keyed)


# ------------------------------------------------------------------------------------------------ stopped, and gone on


def test_killed_again_and_again_nothing_is_lost_and_nothing_is_there_twice(
    world: Path, captioned: list[dict[str, Any]], output: Path
) -> None:
    watched, rng = Watched(output), random.Random(1)
    for _ in range(3):
        run_and_kill(world, watched, rng, 6.0)
        watched.read()
    run(world, watched.path, "--retries", "0")
    assert same_rows(rows_of(watched.path), captioned)
    assert len(rows_of(watched.path)) == CLIPS


def test_ctrl_c_finishes_what_is_in_flight_and_says_how_to_go_on(world: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    process = start(world, output, "--batch", "2")
    wait_for(lambda: lines_in(output) >= 1, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "finishing the clips in flight" in said
    assert "run the same command again" in said
    written = lines_in(output)
    assert 1 <= written <= CLIPS
    process = start(world, output)
    process.communicate(timeout=300)
    assert process.returncode in (0, 1)
    assert len({row["key"] for row in rows_of(output)}) == len(rows_of(output)) == CLIPS


def test_a_second_ctrl_c_stops_at_once(world: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    many = tmp_path / "many.jsonl"  # ranges of the same clips: more than two key presses can wait for
    lines = [{"video": str(p), "start": s, "end": s + 5} for p in world.rglob("*.mp4") for s in range(0, 8, 1)]
    many.write_text("".join(json.dumps(line) + "\n" for line in lines))
    process = start(many, output, "--batch", "40")
    wait_for(lambda: lines_in(output) >= 1, process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in said
    for row in rows_of(output):
        assert row["status"]


def test_two_runs_on_one_output_at_once_are_one_run_and_one_line(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    process = start(world, output, "--batch", "1")
    try:
        wait_for(lambda: lines_in(output) >= 1, process)
        process.send_signal(signal.SIGSTOP)
        assert run(world, output) == 1
        assert "another run is writing it" in capsys.readouterr().err.splitlines()[-1]
    finally:
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=300)
    assert len(rows_of(output)) == CLIPS


# ------------------------------------------------------------------------------------------------------------- comfort


def test_a_dry_run_counts_measures_and_writes_nothing(
    few: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([str(few), "nope.mp4"], output, "--dry-run") == 0
    told = capsys.readouterr().out
    assert f"{FEW} to caption" in told
    assert "1 that can not be read" in told
    assert f"by {FEW} clips captioned now" in told
    assert not output.exists()


def test_ctrl_c_ends_a_dry_run_while_it_tries(
    world: Path, output: Path, model: vidllm.VideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalCaptioner, "poll", lambda self, wait: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        dry_run(world, output, model=model)


@pytest.mark.parametrize("split", ["none", "fixed:5s"])
def test_a_dry_run_counts_what_the_run_then_does(
    few: Path, tmp_path: Path, output: Path, model: vidllm.VideoModel, split: str
) -> None:
    folder = tmp_path / "clips"
    shutil.copytree(few, folder)
    shutil.copy(sorted(few.glob("*.mp4"))[0], folder / "copy.mp4")
    (folder / "bad.mp4").write_bytes(b"no video")
    options = CaptionOptions(split=split, summarise=split != "none", retries=0)
    told = dry_run(folder, output, options, model=model)
    assert not output.exists()
    report = caption(folder, output, options, model=model)
    rows = [row for row in rows_of(output) if row["status"] not in ("undecodable", "duplicate")]
    shown = [row for row in rows if row["frames"]]
    assert (told.clips, told.frames) == (len(shown), sum(len(row["frames"]) for row in shown))
    assert told.tokens == sum(row["usage"]["video_tokens"] + row["usage"]["text_tokens"] for row in shown)
    assert (told.copies, told.bad) == (report.counts["duplicate"], 1)
    assert told.wholes == len(rows) - len(shown) == (0 if split == "none" else FEW + 1)
    before = manifest_of(output).read_bytes()
    shutil.copy(folder / "copy.mp4", folder / "late.mp4")
    again = dry_run(folder, output, options, model=model)
    assert (again.done, again.clips) == (report.standing.total(), 0)
    assert again.copies == (1 if split == "none" else told.copies)
    other = CaptionOptions(prompt="what happens at 0:05?")
    assert dry_run(folder, output, other, model=model).clips == FEW
    assert manifest_of(output).read_bytes() == before


def test_progress_is_told_while_it_goes_on(world: Path, output: Path, model: vidllm.VideoModel) -> None:
    told: list[tuple[int, int]] = []
    lines: list[str] = []

    def hear(tally: Tally) -> None:
        told.append((tally.written, tally.in_flight))
        lines.append(tally.line())

    caption(world, output, model=model, tell=hear)
    assert told[-1] == (CLIPS, 0)
    assert sorted(told)[0][0] == 0
    assert max(in_flight for _, in_flight in told) > 1
    assert lines[-1].startswith(f"{CLIPS} of {CLIPS} clips · ")
    assert "x real time · 0 s left" in lines[-1]


def test_impossible_options_are_told_at_once(model: vidllm.VideoModel) -> None:
    for wrong in ({"batch": 0}, {"retries": -1}, {"time_limit": 0}, {"engine": "x"}, {"workers": 0}, {"limit": 0},
                  {"batch": 2.5}, {"workers": 100_000_000}, {"replicas": 100_000_000}):  # fmt: skip
        with pytest.raises(ConfigError):
            CaptionOptions(**wrong)  # type: ignore[arg-type]
    for unheard in ({"batch": 2}, {"dtype": "float32"}, {"device": "cpu"}, {"same_within": 3}, {"replicas": 2}):
        with pytest.raises(ConfigError, match=f"^{next(iter(unheard))} .*leave (it|them) out$"):
            CaptionOptions(engine="http://me:secret@host/v1", **unheard)  # type: ignore[arg-type]
    for name, value in (("stride", 2), ("rope_max", 1.0), ("fit", "pad")):
        with pytest.raises(ConfigError, match=f"^{name} is for a model that runs here.*leave it out$"):
            CaptionOptions(engine="http://host/v1", plan=PlanOptions(**{name: value}))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^start is no option of a corpus: clips have ranges"):
        CaptionOptions(plan=PlanOptions(start=3.0))
    with pytest.raises(ConfigError, match="address is a Ray cluster's, and the engine is local"):
        CaptionOptions(address="head:6379")
    for unheard in ({"engine": "ray"}, {"replicas": 2}, {"quantize": "int8"}):
        with pytest.raises(ConfigError, match=f"^{next(iter(unheard))} .*loaded already.*leave it out$"):
            open_engine(CaptionOptions(**unheard), model)  # type: ignore[arg-type]
    assert CaptionOptions().ahead_bytes >= AHEAD_BYTES
