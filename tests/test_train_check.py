"""Before the first step: every file opened, every row counted, every fault told with file and line, and once only."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PIL

from tests.planned import spec_of
from vidllm.clip import PlanOptions
from vidllm.errors import BudgetError, RowError, VideoError, Way
from vidllm.model.families import load_tokenizer
from vidllm.train.check import Checked, check
from vidllm.train.loading import load_example
from vidllm.train.row import TrainRow, advice
from vidllm.train.rows import read_pairs, read_rows

PLAN = PlanOptions(frames=4)
SPEC = spec_of("llava")


@pytest.fixture
def folder(tmp_path: Path, clips: dict[str, Path]) -> Path:
    """Media of every kind, and `rows.jsonl` with one row about each: lines 1-4 are good, 5-8 are not."""
    whole = clips["constant"].read_bytes()
    (tmp_path / "whole.mp4").write_bytes(whole)
    (tmp_path / "late.mkv").write_bytes(clips["late"].read_bytes())
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 6 // 10])
    (tmp_path / "junk.mp4").write_bytes(os.urandom(5000))
    PIL.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "fine.png")
    good = (tmp_path / "fine.png").read_bytes()
    (tmp_path / "half.png").write_bytes(good[: len(good) // 2])
    answer = {"whole.mp4": "It moves.", "late.mkv": "It moves to the right.", "fine.png": "Black.", "": "Four."}
    rows = [said(name, text) for name, text in answer.items()]
    rows += [said("cut.mp4"), said("junk.mp4"), said("half.png"), said("whole.mp4", "圆" * 9000)]
    write(tmp_path, rows)
    return tmp_path


def said(name: str, answer: str = "Yes.") -> dict[str, object]:
    shown = {"image" if name.endswith("png") else "video": name} if name else {}
    turns = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": answer}]
    return {"id": name, **shown, "conversations": turns}


def write(folder: Path, rows: list[dict[str, object]]) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def look(folder: Path, plan: PlanOptions = PLAN, **options: object) -> Checked[TrainRow]:
    rows = read_rows(folder / "rows.jsonl").rows
    return check(rows, SPEC, load_tokenizer(SPEC.folder), plan, **options)  # type: ignore[arg-type]


def test_good_rows_have_their_true_length_and_bad_ones_a_line(folder: Path) -> None:
    checked = look(folder)
    assert [row.origin.line for row in checked.rows] == [1, 2, 3, 4]
    assert checked.kinds == ("video", "video", "image", "text")
    loaded = [load_example(row, SPEC, load_tokenizer(SPEC.folder), PLAN) for row in checked.rows]
    assert checked.lengths == tuple(example.prompt.length for example in loaded)
    told = [str(problem) for problem in checked.problems]
    assert [text.partition(": ")[0] for text in told] == [
        f"{folder}/rows.jsonl:{line} ({name})"
        for line, name in ((5, "cut.mp4"), (6, "junk.mp4"), (7, "half.png"), (8, "whole.mp4"))
    ]
    for text, words in zip(told, ("cut off, ", "junk.mp4", "not a picture", "over context"), strict=True):
        assert words in text
        assert "\n" not in text


@pytest.mark.parametrize("name", ["moves.gif", "moves.png", "moves.webp"])
def test_a_picture_that_moves_is_no_picture(name: str, folder: Path) -> None:
    """All but the first of its pictures would be lost; a GIF of one is as good as any other picture."""
    black, white = (PIL.new("L", (40, 30), grey) for grey in (0, 255))
    black.save(folder / name, save_all=True, append_images=[white])
    black.save(folder / "still.gif")
    turns = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "Yes."}]
    write(folder, [{"image": image, "conversations": turns} for image in (name, "still.gif")])
    checked = look(folder)
    assert [row.origin.line for row in checked.rows] == [2]
    assert re.search(rf'{name}: a picture that moves; name it under "video" \(a WebP saved', str(checked.problems[0]))
    with pytest.raises(RowError, match="a picture that moves"):
        load_example(read_rows(folder / "rows.jsonl").rows[0], SPEC, load_tokenizer(SPEC.folder), PLAN)


@pytest.mark.parametrize(
    ("plan", "answer", "advised"),
    [
        (PlanOptions(), "圆" * 9000, r"use a shorter answer or rope_max=\d\.\d+; shorten the row"),
        (PlanOptions(frames=4, rope_max=1), "圆" * 1350, r"use frames=\d+ or .*; shorten the row"),
    ],
)
def test_a_row_that_is_too_long_is_told_what_the_config_can_do(
    folder: Path, plan: PlanOptions, answer: str, advised: str
) -> None:
    write(folder, [said("whole.mp4", answer)])
    [problem] = look(folder, plan).problems
    assert re.search(advised, str(problem)), str(problem)
    assert "--" not in str(problem)
    with pytest.raises(RowError) as caught:  # as when it is met in the middle of a run
        load_example(read_rows(folder / "rows.jsonl").rows[0], SPEC, load_tokenizer(SPEC.folder), plan)
    assert "over context" in str(caught.value)
    assert "--" not in str(caught.value)


@pytest.mark.parametrize(
    ("ways", "asked", "taught"),
    [
        ((Way("frames", 3), Way("stride", 4)), "--frames 3 or --stride 4", "frames=3 or stride=4"),
        ((Way("max_new_tokens", 20), Way("rope_max", 19.5)), "--max-new-tokens 20 or --rope-max 19.5",
         "a shorter answer or rope_max=19.5"),
        ((Way("subtitles", False), Way("context", 9)), "--no-subtitles or a model with a context of 9 tokens",
         "subtitles=false or a model with a context of 9 tokens"),
    ],
)  # fmt: skip
def test_who_asks_and_who_teaches_are_told_the_same_ways_in_their_own_words(
    ways: tuple[Way, ...], asked: str, taught: str
) -> None:
    error = BudgetError("9 tokens, over context 8", ways)
    assert str(error) == f"9 tokens, over context 8; use {asked}"
    assert advice(error) == f"9 tokens, over context 8; use {taught}"
    assert advice(VideoError("a.mp4: cut off at --from")) == "a.mp4: cut off at --from"


def test_problems_are_refused_in_one_line(folder: Path) -> None:
    with pytest.raises(RowError, match=r"rows.jsonl:5 .* and 3 more: mend the rows"):
        look(folder).refuse_problems()


def test_a_table_for_people(folder: Path) -> None:
    lines = look(folder).lines()
    assert [line.split()[0] for line in lines] == ["rows", "video", "image", "text", "bad"]
    assert lines[1].split()[1] == "2"
    assert lines[-1].split() == ["bad", "4"]


def test_what_was_found_good_is_not_opened_again(folder: Path) -> None:
    cache = folder / "out" / "checked.jsonl"
    first = look(folder, cache=cache)
    stamp = (folder / "whole.mp4").stat()
    (folder / "whole.mp4").write_bytes(b"x" * stamp.st_size)  # same size, same time: nobody looks inside
    os.utime(folder / "whole.mp4", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    again = look(folder, cache=cache)
    assert (again.lengths, again.kinds) == (first.lengths, first.kinds)
    assert len(again.problems) == 4, "a fault is looked at anew every time"


@pytest.mark.parametrize("change", ["file", "plan", "words"])
def test_what_changed_is_looked_at_again(folder: Path, change: str) -> None:
    cache = folder / "checked.jsonl"
    first = look(folder, cache=cache)
    if change == "file":
        (folder / "whole.mp4").write_bytes(b"x" * 100)
        assert [p.origin.line for p in look(folder, cache=cache).problems] == [1, 5, 6, 7, 8]
    elif change == "plan":
        assert look(folder, replace(PLAN, frames=8), cache=cache).lengths[0] > first.lengths[0]
    else:
        write(folder, [said("whole.mp4", "It moves to the right and then it stops.")])
        assert look(folder, cache=cache).lengths[0] > first.lengths[0]


def test_one_file_is_another_row_as_a_picture(folder: Path) -> None:
    shades = [PIL.fromarray(np.full((40, 60, 3), shade, np.uint8)) for shade in (0, 80, 160, 240)]
    shades[0].save(folder / "a.gif", save_all=True, append_images=shades[1:], duration=200)
    write(folder, [said("a.gif")])
    moving = look(folder, cache=folder / "checked.jsonl")
    write(folder, [{**said(""), "image": "a.gif"}])
    still = look(folder, cache=folder / "checked.jsonl")
    assert still.lengths == look(folder).lengths < moving.lengths


def test_subtitles_that_are_laid_beside_a_clip_are_counted(folder: Path) -> None:
    cache = folder / "checked.jsonl"
    before = look(folder, cache=cache).lengths
    (folder / "whole.srt").write_text("1\n00:00:00,000 --> 00:00:02,000\nWatch the red circle.\n")
    after = look(folder, cache=cache).lengths
    assert after[0] > before[0]
    assert after[1:] == before[1:]
    assert look(folder, replace(PLAN, subtitles=False), cache=cache).lengths == before


def test_a_half_written_cache_is_mended(folder: Path) -> None:
    cache = folder / "checked.jsonl"
    first = look(folder, cache=cache)
    cache.write_bytes(b'{"key": 3}\nnoise\n' + cache.read_bytes()[:-9])
    assert look(folder, cache=cache).lengths == first.lengths
    lines = [json.loads(line) for line in cache.read_bytes().split(b"\n")[2:-1]]
    wrong = [{**line, "tokens": line["tokens"] + 8} for line in lines] + [{"key": "a", "tokens": 1e999}]
    cache.write_text("".join(json.dumps(line) + "\n" for line in wrong))
    assert look(folder, cache=cache).lengths == first.lengths, "a length that changed on the disk is not believed"


def test_a_resume_counts_no_row_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, [said("whole.mp4", f"It moves {i} times.") for i in range(1000)])
    cache = folder / "checked.jsonl"
    first = look(folder, cache=cache)
    monkeypatch.delattr("vidllm.train.check.count_row")
    assert look(folder, cache=cache).lengths == first.lengths


def test_rows_longer_than_the_model_looks_back_are_told(folder: Path) -> None:
    """Whether or not their length was found by an earlier look."""
    cache = folder / "checked.jsonl"
    longest = max(look(folder, cache=cache).lengths)
    assert len(look(folder, cache=cache, window=longest).problems) == 4
    checked = look(folder, cache=cache, window=longest - 1)
    assert max(checked.lengths) < longest
    told = [str(problem) for problem in checked.problems if "be taught" in problem.what]
    assert told
    assert told[0].endswith(f": {longest} tokens, and {longest - 1} is the most that this model can be taught; "
                            "shorten the row, plan fewer frames, or leave it out")  # fmt: skip


def test_pairs_are_counted_with_their_longer_answer(folder: Path) -> None:
    pair = {"video": "whole.mp4", "prompt": "what?", "chosen": "No.", "rejected": "It moves to the right."}
    path = folder / "pairs.jsonl"
    path.write_text(json.dumps(pair))
    write(folder, [said("whole.mp4", "It moves to the right.")])
    checked = check(read_pairs(path).rows, SPEC, load_tokenizer(SPEC.folder), PLAN)
    assert checked.lengths == look(folder).lengths


def test_progress_hears_of_every_row(folder: Path) -> None:
    heard: list[tuple[int, int]] = []
    look(folder, progress=lambda done, total: heard.append((done, total)))
    assert heard[-1] == (8, 8)
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)
