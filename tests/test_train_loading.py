"""Loading: a row shows what asking shows, is as long as was said before a pixel was decoded, and fails in one line."""

from __future__ import annotations

import shutil
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PIL

from tests.planned import COMPOSABLE, spec_of
from vidllm.ahead import made_ahead
from vidllm.clip import PlanOptions, open_clip, plan_clips
from vidllm.errors import BudgetError, RowError
from vidllm.model.chat import Turn as ChatTurn
from vidllm.model.chat import count_text_tokens, lay_out_spoken
from vidllm.model.families import load_tokenizer
from vidllm.model.media import Shown
from vidllm.model.spec import ModelSpec
from vidllm.prompt import Example, Message, build_prompt
from vidllm.train.loading import Shelf, load_example, open_turns
from vidllm.train.looks import count_row, look_of, shown_in
from vidllm.train.row import Media, Origin, TrainRow, Turn
from vidllm.video.info import probe

PLAN = PlanOptions(frames=5, rope_max=8.0, guard=None)


def row(*turns: tuple[str, str, list[Path]], line: int = 1) -> TrainRow:
    def media(paths: list[Path]) -> tuple[Media, ...]:
        return tuple(Media(kind="image" if p.suffix == ".png" else "video", path=str(p)) for p in paths)

    made = tuple(Turn(role=role, text=text, media=media(paths)) for role, text, paths in turns)  # type: ignore[arg-type]
    return TrainRow(origin=Origin(file="rows.jsonl", line=line, id="x"), turns=made)


def load(row: TrainRow, spec: ModelSpec, plan: PlanOptions = PLAN) -> Example:
    return load_example(row, spec, load_tokenizer(spec.folder), plan)


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stills") / "c.png"
    PIL.fromarray(np.random.default_rng(0).integers(0, 255, (90, 200, 3), np.uint8)).save(path)
    return path


@pytest.mark.parametrize("question", ["what happens?", "what happens at 0:01?"])
@pytest.mark.parametrize("plan", [PLAN, PlanOptions(guard=None)], ids=["five", "default"])
def test_a_row_shows_what_asking_shows(clips: dict[str, Path], question: str, plan: PlanOptions) -> None:
    spec = spec_of("llava")
    tokenizer = load_tokenizer(spec.folder)
    clip = open_clip(clips["constant"], question, spec, tokenizer, plan)
    asked = build_prompt([Message("user", question, (clip,))], spec, tokenizer, rope_max=8)
    example = load(row(("user", question, [clips["constant"]]), ("assistant", "It moves.", [])), spec, plan)
    assert example.prompt.input_ids[: asked.length] == asked.input_ids
    for one, other in zip(example.prompt.visuals, asked.visuals, strict=True):
        assert one.times == other.times
        assert (one.pixels == other.pixels).all()


def looks_at(clip: Path, words: Sequence[int], spec: ModelSpec) -> dict[Hashable, set[tuple[float, ...]]]:
    """Looks that answers of so many words are read behind -> the times that are really shown then."""
    tokenizer, plan, info = load_tokenizer(spec.folder), PlanOptions(guard=None), probe(clip)
    shown: dict[Hashable, set[tuple[float, ...]]] = {}
    for count in words:
        made = row(("user", "describe it.", [clip]), ("assistant", "so " * count, []))
        look = look_of(made.turns, (), (), spec, tokenizer)
        try:
            length = count_row(made.turns, [info], (), spec, tokenizer, plan)
            [seen] = look.within(plan, lambda options: plan_clips([info], "describe it.", spec, tokenizer, options))
        except BudgetError:
            continue
        shown.setdefault(shown_in(made, length, spec, tokenizer, plan).of, set()).add(seen.plan.times)
    return shown


@pytest.mark.parametrize("scalable", [True, False])
def test_long_answers_share_a_look_where_there_is_room(clips: dict[str, Path], scalable: bool) -> None:
    """Descriptions of one clip: in a long context all are read behind one look, in a short one frames give way."""
    spec = replace(spec_of("llava"), rope_scalable=scalable)
    found = {
        context: looks_at(clips["constant"], (20, 70, 120, 200), replace(spec, context=context))
        for context in (300, 400, 500, 700, 1000, 8000)
    }
    assert all(len(times) == 1 for shown in found.values() for times in shown.values())
    assert len(found[8000]) == 1
    assert max(map(len, found.values())) > 1


@pytest.mark.parametrize("family", ["llava", "internvl", "qwen2_5_vl", "qwen3_vl"])
def test_words_that_a_video_stands_among_are_counted_as_it_cuts_them(family: str) -> None:
    spec = spec_of(family)
    tokenizer, words, at = load_tokenizer(spec.folder), "The red circle moves right.", (6,)
    shown = Shown(kind="video", times=(0.0, 1.0, 2.0, 3.0), duration=4.0)
    said = [ChatTurn("user", words, (shown,), at), ChatTurn("assistant", "Yes.")]
    whole = lay_out_spoken(said, spec, tokenizer)[0].text_tokens
    turns = (Turn(role="user", text=words, media=(Media(kind="video", path="a.mp4"),), at=at),
             Turn(role="assistant", text="Yes."))  # fmt: skip
    assert look_of(turns, (), (), spec, tokenizer).rest == whole - count_text_tokens(words, spec, tokenizer, shown)


@pytest.mark.parametrize("family", ["llava", "internvl", "qwen2_5_vl", "qwen3_vl", "gemma4", "smolvlm"])
def test_a_row_with_media_among_its_words_fits_as_counted(clips: dict[str, Path], still: Path, family: str) -> None:
    """And only rows with the same words before what they show have that in common."""
    spec = replace(spec_of(family), context=900, rope_scalable=False)
    tokenizer, plan, info = load_tokenizer(spec.folder), PlanOptions(guard=None), probe(clips["constant"])
    shown = (Media(kind="image", path=str(still)), Media(kind="video", path=str(clips["constant"])))
    views = []
    for words, answer in (("Here are more", "so " * 60), ("Here are less", "so " * 60), ("Then are more", "so " * 60)):
        turn = Turn(role="user", text=words, media=shown, at=(5, 8))
        made = TrainRow(origin=Origin(file="rows.jsonl", line=1, id=""),
                        turns=(turn, Turn(role="assistant", text=answer)))  # fmt: skip
        told = count_row(made.turns, [info], [(90, 200)], spec, tokenizer, plan)
        assert load(made, spec, plan).prompt.length == told
        views.append(shown_in(made, told, spec, tokenizer, plan))
    assert views[0] == views[1]
    assert views[0].of != views[2].of


@pytest.mark.parametrize("family", COMPOSABLE)
def test_the_length_told_beforehand_is_the_length(clips: dict[str, Path], still: Path, family: str) -> None:
    spec = spec_of(family)
    shown = [clips["constant"], still, clips["variable"]]
    made = row(
        ("user", "same place?", shown), ("assistant", "No, two.", []), ("user", "and here?", [clips["late"]]),
        ("assistant", "Neither.", []),
    )  # fmt: skip
    infos = [probe(clips[name]) for name in ("constant", "variable", "late")]
    told = count_row(made.turns, infos, [(90, 200)], spec, load_tokenizer(spec.folder), PLAN)
    assert load(made, spec).prompt.length == told


def test_text_alone_is_a_row_too() -> None:
    spec = spec_of("llava")
    made = row(("user", "two and two?", []), ("assistant", "Four.", []))
    assert load(made, spec).prompt.length == count_row(made.turns, [], [], spec, load_tokenizer(spec.folder), PLAN)


def test_frames_give_way_to_a_long_answer_only(clips: dict[str, Path]) -> None:
    """16 tokens a frame: in a context of 1100 all 32 fit beside a short answer, and fewer beside one of 600 tokens."""
    spec = replace(spec_of("llava"), context=1100, stamp="none")
    plan = PlanOptions(rope_max=1.0, guard=None)
    question = ("user", "what happens?", [clips["constant"]])
    short = load(row(question, ("assistant", "It moves.", [])), spec, plan)
    long = load(row(question, ("assistant", "moves right " * 300, [])), spec, plan)
    asked = open_clip(clips["constant"], "what happens?", spec, load_tokenizer(spec.folder), plan)
    assert len(short.prompt.visuals) == len(asked.plan.frames)
    assert 1 <= len(long.prompt.visuals) < len(short.prompt.visuals)
    assert long.prompt.length <= 1100


def test_a_row_over_the_context_is_told_before_and_when_loaded(clips: dict[str, Path]) -> None:
    spec = spec_of("llava")
    made = row(("user", "?", [clips["constant"]]), ("assistant", "圆" * 9000, []), line=7)
    with pytest.raises(BudgetError, match="over context"):
        count_row(made.turns, [probe(clips["constant"])], [], spec, load_tokenizer(spec.folder), PlanOptions())
    with pytest.raises(RowError, match=r"^rows.jsonl:7 \(x\): .* over context"):
        load(made, spec, PlanOptions())


def test_answers_not_yet_said_have_their_room(clips: dict[str, Path]) -> None:
    spec = replace(spec_of("llava"), context=1200)
    turns = row(("user", "?", [clips["constant"]])).turns
    tokenizer = load_tokenizer(spec.folder)
    plan = PlanOptions(rope_max=1.0)
    (message,) = open_turns(turns, spec, tokenizer, plan, answers=["No.", "moves right " * 300])
    (fewer,) = message.media
    (message,) = open_turns(turns, spec, tokenizer, plan, answers=["No.", "Yes."])
    (more,) = message.media
    assert len(fewer.frames.pts_seconds) < len(more.frames.pts_seconds)  # type: ignore[union-attr]


def test_a_poisoned_clip_is_named_and_takes_nothing_with_it(clips: dict[str, Path], tmp_path: Path) -> None:
    spec = spec_of("llava")
    poison = tmp_path / "poison.mp4"
    poison.write_bytes(clips["constant"].read_bytes()[:600])
    shelf = Shelf()
    for path, line in ((poison, 9), (clips["late"], 1)):
        made = row(("user", "?", [path]), ("assistant", "Yes.", []), line=line)
        if path is poison:
            with pytest.raises(RowError, match=r"^rows.jsonl:9 \(x\): .*poison.mp4"):
                load_example(made, spec, load_tokenizer(spec.folder), PLAN, known=shelf)
        else:
            assert load_example(made, spec, load_tokenizer(spec.folder), PLAN, known=shelf).prompt.visuals


def test_a_picture_that_is_none_is_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "c.png"
    broken.write_bytes(b"\x89PNG nothing more")
    with pytest.raises(RowError, match=r"^rows.jsonl:1 \(x\): .*not a picture"):
        load(row(("user", "?", [broken]), ("assistant", "No.", [])), spec_of("llava"))


def test_a_file_is_opened_once_for_the_rows_that_show_it(clips: dict[str, Path], still: Path, tmp_path: Path) -> None:
    """After the first row the files are gone, and the second sees the same."""
    spec = spec_of("llava")
    film, photo = tmp_path / "film.mp4", tmp_path / "photo.png"
    shutil.copy(clips["constant"], film)
    shutil.copy(still, photo)
    shelf = Shelf()
    first, second = (row(("user", text, [film, photo]), ("assistant", "Yes.", [])) for text in ("one?", "two?"))
    one = load_example(first, spec, load_tokenizer(spec.folder), PLAN, known=shelf)
    film.unlink()
    photo.unlink()
    two = load_example(second, spec, load_tokenizer(spec.folder), PLAN, known=shelf)
    assert all((a.pixels == b.pixels).all() for a, b in zip(one.prompt.visuals, two.prompt.visuals, strict=True))


def test_portions_made_ahead_by_several_threads_are_those_made_in_turn(clips: dict[str, Path]) -> None:
    spec = spec_of("llava")
    names = ["constant", "late", "variable", "one_frame"] * 3
    rows = [row(("user", f"question {i}?", [clips[n]]), ("assistant", "Yes.", [])) for i, n in enumerate(names)]
    portions = [(0, 5, 7), (3,), (1, 2, 4, 8), (6, 11), (9, 10)]

    def opened(numbers: Sequence[int]) -> list[Example]:
        shelf = Shelf()
        return [load_example(rows[n], spec, load_tokenizer(spec.folder), PLAN, known=shelf) for n in numbers]

    plain = [opened(portion) for portion in portions]
    with made_ahead(portions, opened, workers=3, ahead=4) as ahead:
        for expected, made in zip(plain, ahead, strict=True):
            assert [e.prompt.input_ids for e in made] == [e.prompt.input_ids for e in expected]
            assert all(
                (a.pixels == b.pixels).all()
                for one, other in zip(made, expected, strict=True)
                for a, b in zip(one.prompt.visuals, other.prompt.visuals, strict=True)
            )
