"""The learner: what it is shown while training is what it is shown when asked, to the token and to the feature.

Everything here runs on a tiny random model of the shipped kind; what the shipped weights know is measured by
benchmarks/world.py.
"""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as Picture
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionModel, LlamaConfig, LlamaModel, LlavaForConditionalGeneration
from transformers import PreTrainedTokenizerFast as Tokenizer

import vidllm
from tests.share_process import with_its_own
from tests.test_lmm import load
from vidllm.builtin import recipe as recipes
from vidllm.builtin.align import Words, pose_waves, targets
from vidllm.builtin.collate import IGNORE, STRIDES, Batch, Collator, TrainingRows, change_code, slot_base
from vidllm.builtin.language import LanguageShape, answer_logits, calibrate, new_model, score, visual_table
from vidllm.builtin.lean import Attention, hidden_states
from vidllm.builtin.links import Link, Spot, a_second_earlier, aims, padded_links, spots
from vidllm.builtin.rows import COARSE_STRIDE, FINE_STRIDE, Row, clip_rows, still_rows
from vidllm.builtin.sharpen import Before, cell_poses, least_squares
from vidllm.builtin.stills import GRID, PATCH, Still, Stills, crowd, draw_still
from vidllm.builtin.stills import NOTHING as UNLABELLED
from vidllm.builtin.vision import VisionStage, normalise, vision_config
from vidllm.builtin.words import train_tokenizer
from vidllm.clip import open_clip
from vidllm.config import load_config
from vidllm.errors import ConfigError
from vidllm.model.families import load_tokenizer, read_spec
from vidllm.model.lmm import ComposableLMM
from vidllm.prompt import Message, Prompt, build_prompt
from vidllm.still import open_still
from vidllm.video.timecode import find_focus, format_time
from vidllm.visuals import Image, Visual
from vidllm.world import questions
from vidllm.world.generate import generator, make_script
from vidllm.world.make import write_video
from vidllm.world.questions import Question
from vidllm.world.render import frame
from vidllm.world.script import Canvas, Event, Script, Thing
from vidllm.world.vocabulary import COLOURS, SHADES

SHIPPED = Path(vidllm.__file__).parent / "builtin" / "weights"
VISION = VisionStage(hidden_size=48, layers=2, heads=3, batch=4, steps=3)
LANGUAGE = LanguageShape(hidden_size=48, intermediate_size=64, layers=2, heads=3)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The recipe's tokenizer from fewer clips."""
    return train_tokenizer(clips=120)


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of the shipped kind, exported as the recipe exports."""
    torch.manual_seed(0)
    model = new_model(LANGUAGE, CLIPVisionModel(vision_config(VISION)), tokenizer)
    target = tmp_path_factory.mktemp("builtin") / "weights"
    recipes.export(model, tokenizer, target)
    return target


@pytest.fixture(scope="module")
def network(folder: Path) -> LlavaForConditionalGeneration:
    """The exported weights in transformers' own class, as training has them, in float32."""
    return LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def asked(folder: Path) -> ComposableLMM:
    """The exported weights as asking has them, in float32."""
    return load(folder)


# ------------------------------------------------------------------------------------- layout: training is asking


def small_clip(split: str, seed: int, target: Path) -> Path:
    """The mp4 of a script, tiny: its times count here and not its pixels."""
    script = make_script(split, seed)
    write_video(replace(script, canvas=replace(script.canvas, width=32, height=32, noise=0)), target)
    return target


def trained_ids(collate: Collator, row: Row, number: int) -> list[int]:
    """What training shows of a row when its question `number` (from 1) is asked: prefix, question, "ASSISTANT:"."""
    batch = collate([([np.zeros((96, 96, 3), np.uint8)] * (1 + max(i for i, _, _ in row.seen)), [row])], [1.0])
    rows = batch.groups[0]
    shown = rows.ids[0][(rows.blocks[0] == 0) | (rows.blocks[0] == number)].tolist()
    answer = len(collate.ids(" " + row.asked[number - 1].answer)) + 1  # and </s>
    return shown[:-answer]


def asked_prompt(folder: Path, video: Path, question: str) -> Prompt:
    """What asking makes of a video and a question."""
    spec, tokenizer = read_spec(folder), load_tokenizer(folder)
    return build_prompt([Message("user", question, (open_clip(video, question, spec, tokenizer),))], spec, tokenizer)


def test_rows_are_laid_out_as_asking_lays_them_out(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Moments, spans and whole clips at several frame rates: the same ids, hence frames, stamps and strides."""
    collate, compared = Collator(tokenizer), set()
    for seed in (0, 2, 8, 13):
        video = small_clip("layout", seed, tmp_path / f"{seed}.mp4")
        for row in clip_rows("layout", seed, moments=5, plain=True)[1]:
            for number, question in enumerate(row.asked, 1):
                prompt = asked_prompt(folder, video, question.text)
                assert list(prompt.input_ids) == trained_ids(collate, row, number), (seed, question.text)
                assert [v.stride for v in prompt.visuals] == [stride for _, stride, _ in row.seen]
                compared.add(question.family)
    assert compared >= {"what", "when", "count", "colour", "where", "exists", "span", "describe", "order", "first"}


def test_a_moment_is_seen_fine_and_the_rest_coarse(folder: Path, tmp_path: Path) -> None:
    """Eleven fine frames of 6x6 tokens around 0:05; the others 2x2. The whole clip: 32 frames of 3x3."""
    video = small_clip("layout", 0, tmp_path / "clip.mp4")
    fine = [v for v in asked_prompt(folder, video, "what happens at 0:05?").visuals if v.stride == FINE_STRIDE]
    coarse = [v for v in asked_prompt(folder, video, "what happens at 0:05?").visuals if v.stride == COARSE_STRIDE]
    moments = [3, 3.5, 4, 4.5, 4.75, 5, 5.25, 5.5, 6, 6.5, 7]
    assert [v.times[0] for v in fine] == pytest.approx(moments, abs=0.13)
    assert {v.tokens for v in fine} == {36}
    assert {v.tokens for v in coarse} == {4}
    assert 8 <= len(coarse) <= 12
    assert [v.tokens for v in asked_prompt(folder, video, "describe the video.").visuals] == [9] * 32


def test_a_still_is_laid_out_as_asking_lays_it_out(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    picture = frame(make_script("layout", 3), 1.0)
    Picture.fromarray(picture).save(tmp_path / "still.png")
    question = Question("still count", "how many objects are there?", "Two.")
    spec = read_spec(folder)
    media = (open_still(tmp_path / "still.png"),)
    prompt = build_prompt([Message("user", question.text, media)], spec, load_tokenizer(folder))
    row = Row(((0, 1, None),), (question,), spots=((),), earlier=(0,), aims=((),))
    assert list(prompt.input_ids) == trained_ids(Collator(tokenizer), row, 1)


WORDINGS = [
    *product((questions.WHAT, questions.COUNT, questions.COLOUR, questions.WHERE, questions.EXISTS), (True,)),
    *product((questions.WHEN, questions.FIRST_OF, questions.FIRST, questions.LAST, questions.BEFORE), (False,)),
    *product((questions.AFTER, questions.DESCRIBE), (False,)),
]
"""(ways to ask, whether they name a moment)."""


def worded(ways: Sequence[str], time: str) -> list[str]:
    """Every way to ask, filled in."""
    return [
        way.format(t=time, o="red circle", e="red ring move up", s="red ring moves up", a="x", b="y") for way in ways
    ]


@pytest.mark.parametrize(("ways", "names_a_moment"), WORDINGS)
def test_asking_focuses_where_training_did(ways: Sequence[str], names_a_moment: bool) -> None:
    for (pattern, _), seconds in product(questions.MOMENTS, (0, 1, 30, 75)):
        for text in worded(ways, pattern.format(c=format_time(seconds), s=seconds)):
            focus = find_focus(text, 80.0)
            assert (focus.spans if focus else None) == (((seconds, seconds),) if names_a_moment else None), text


@pytest.mark.parametrize("way", questions.WHAT_SPAN)
@pytest.mark.parametrize(("start", "end"), [(0, 5), (10, 20), (55, 65)])
def test_asking_focuses_on_the_span_that_training_did(way: str, start: int, end: int) -> None:
    focus = find_focus(way.format(a=format_time(start), b=format_time(end)), 80.0)
    assert focus is not None
    assert focus.spans == ((start, end),)


def test_pieces_of_text_have_the_ids_of_the_whole(tokenizer: Tokenizer) -> None:
    """Training joins ids of pieces, asking encodes the whole text: no wording may tell the two apart."""
    collate = Collator(tokenizer)
    for ways, _ in WORDINGS:
        for text in worded(ways, "0:30"):
            whole = tokenizer.encode(
                f"<s>USER: 0:02<image>\n{text} ASSISTANT: Nothing happens.</s>", add_special_tokens=False
            )
            head = [collate.bos, *collate.ids("USER: "), *collate.ids("0:02"), collate.image, *collate.ids("\n")]
            tail = [*collate.ids(text + " ASSISTANT:"), *collate.ids(" Nothing happens."), collate.eos]
            assert whole == head + tail, text


def test_a_clock_time_is_one_token(tokenizer: Tokenizer) -> None:
    for seconds in (0, 30, 75, 599):
        assert len(tokenizer.encode(format_time(seconds), add_special_tokens=False)) == 1
    assert tokenizer.decode(tokenizer.encode("At 0:14.", add_special_tokens=False)) == "At 0:14."


# ------------------------------------------------------------------------------------- numbers: training is asking


def test_visual_tokens_are_those_of_asking(network: LlavaForConditionalGeneration, asked: ComposableLMM) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
    table = visual_table(network, torch.from_numpy(pictures), torch.float32).detach()
    base = slot_base(len(pictures))
    for stride in STRIDES:
        tokens = (GRID // stride) ** 2
        visuals = [visual_of(picture, stride, tokens) for picture in pictures]
        with torch.inference_mode():
            told = torch.cat(asked.encode(visuals)[0])
        torch.testing.assert_close(told, table[base[stride] :][: len(told)], atol=1e-6, rtol=1e-5)


def visual_of(picture: NDArray[np.uint8], stride: int, tokens: int) -> Visual:
    """One frame as asking carries it."""
    return Visual(
        pixels=picture[None], kind="frame", stride=stride, tokens=tokens, position=0, newline="none"
    )


def test_an_answer_is_as_likely_in_training_as_when_asked(
    folder: Path, tokenizer: Tokenizer, network: LlavaForConditionalGeneration, asked: ComposableLMM, tmp_path: Path
) -> None:
    """The whole road at once, token by token: the second question of a row against the same question asked alone."""
    video = small_clip("layout", 5, tmp_path / "clip.mp4")
    row = next(row for row in clip_rows("layout", 5, plain=True)[1] if len(row.asked) > 1)
    question = row.asked[1]
    prompt = asked_prompt(folder, video, question.text)
    pictures = [visual.pixels[0] for visual in prompt.visuals]
    shown = tuple((i, stride, stamp) for i, (_, stride, stamp) in enumerate(row.seen))
    collate = Collator(tokenizer)
    batch = collate([(pictures, [replace(row, seen=shown)])], [1.0])
    with torch.no_grad():
        trained, labels = answer_logits(network, visual_table(network, batch.frames, torch.float32), batch.groups[0])
    first = len(collate.ids(" " + row.asked[0].answer)) + 1
    answer = [*collate.ids(" " + question.answer), collate.eos]
    assert labels[first : first + len(answer)].tolist() == answer
    state = asked.prefill(prompt)
    for position, token in enumerate(answer):
        torch.testing.assert_close(state.logits, trained[first + position], atol=1e-4, rtol=1e-4)
        state = asked.extend(state, [token])


def test_the_normaliser_is_the_shipped_processors(folder: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (1, 96, 96, 3), dtype=np.uint8)
    spec = read_spec(folder)
    mean, std = np.asarray(spec.image_mean), np.asarray(spec.image_std)
    expected = ((pixels / 255 - mean) / std).transpose(0, 3, 1, 2)
    assert np.allclose(normalise(torch.from_numpy(pixels)).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1.7])
def test_the_lean_pass_equals_transformers(scale: float) -> None:
    """Fractional positions, blocks that see the prefix and themselves only, weights of norms that are not 1."""
    torch.manual_seed(3)
    config = LlamaConfig(
        hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=3,
        vocab_size=64, attn_implementation="eager",
    )  # fmt: skip
    model = LlamaModel(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    blocks = torch.tensor([[0] * 7 + [1] * 5 + [2] * 4, [0] * 9 + [1] * 3 + [-1] * 4])
    positions = torch.tensor([[*range(7), *range(7, 12), *range(7, 11)], [*range(9), *range(9, 12), *[0] * 4]]) / scale
    allowed = (blocks[:, :, None] == blocks[:, None, :]) | (blocks[:, None, :] == 0)
    allowed &= torch.ones(16, 16, dtype=torch.bool).tril()
    embeds = torch.randn(2, 16, 48)
    bias = torch.zeros(2, 1, 16, 16).masked_fill(~allowed[:, None], torch.finfo(torch.float32).min)
    with torch.no_grad():
        theirs = model(inputs_embeds=embeds, attention_mask=bias, position_ids=positions, use_cache=False)
        ours = hidden_states(model, embeds, allowed, positions)
    torch.testing.assert_close(ours, theirs.last_hidden_state, atol=1e-5, rtol=1e-5)


def test_calibration_makes_pictures_as_loud_as_words(tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    model = new_model(LANGUAGE, CLIPVisionModel(vision_config(VISION)), tokenizer)
    pictures = torch.from_numpy(np.stack(clip_rows("loud", 0)[0]))
    calibrate(model, pictures)
    words: Tensor = model.get_input_embeddings().weight
    first = visual_table(model, pictures, torch.float32)[: GRID * GRID * len(pictures)]  # stride 1
    assert first.std().item() == pytest.approx(words.std().item(), rel=0.05)


# ------------------------------------------------------------------------------------- rows and their labels


@pytest.fixture(scope="module")
def batch(tokenizer: Tokenizer) -> Batch:
    """Three training clips in one batch, as the stage draws them, and a still one."""
    albums = [*(clip_rows("rows", seed) for seed in range(3)), still_rows("rows", 3)]
    return Collator(tokenizer)(albums, [1.0] * sum(len(rows) for _, rows in albums))


def test_labels_are_the_answers_tokens_and_nothing_else(tokenizer: Tokenizer, batch: Batch) -> None:
    told = 0
    for rows in batch.groups:
        for r, families in enumerate(rows.families):
            assert set(rows.blocks[r].tolist()) - {-1} == set(range(len(families) + 1))
            assert (rows.labels[r][rows.blocks[r] <= 0] == IGNORE).all()
            for number in range(1, len(families) + 1):
                mine = rows.blocks[r] == number
                ids, labels = rows.ids[r][mine].tolist(), rows.labels[r][mine].tolist()
                answer = [label for label in labels if label != IGNORE]
                begin = labels.index(answer[0])
                assert labels == [IGNORE] * begin + ids[begin + 1 :] + [IGNORE], "each predicts the one after it"
                text = tokenizer.decode(ids)
                assert text.endswith(f" ASSISTANT:{tokenizer.decode(answer)}")
                assert tokenizer.decode(answer).startswith(" ")
                assert tokenizer.decode(answer).endswith("</s>")
                told += 1
    assert told > 30


def test_positions_restart_behind_the_prefix(batch: Batch) -> None:
    for rows in batch.groups:
        for blocks, positions in zip(rows.blocks, rows.positions, strict=True):
            prefix = int((blocks == 0).sum())
            assert positions[blocks == 0].tolist() == list(range(prefix))
            for number in range(1, int(blocks.max()) + 1):
                mine = positions[blocks == number].tolist()
                assert mine == list(range(prefix, prefix + len(mine)))


def test_every_visual_token_has_a_slot_of_its_own_clip(tokenizer: Tokenizer) -> None:
    """Two clips in a batch: the second one's rows point at the second one's pictures, at the stride they name."""
    albums = [clip_rows("rows", seed, plain=True) for seed in (4, 5)]
    batch = Collator(tokenizer)(albums, [1.0] * sum(len(rows) for _, rows in albums))
    counts = [len(pictures) for pictures, _ in albums]
    assert len(batch.frames) == sum(counts)
    base = slot_base(sum(counts))
    expected = set()
    for offset, (_, rows) in zip((0, counts[0]), albums, strict=True):
        for row in rows:
            slots: list[int] = []
            for picture, stride, _ in row.seen:
                tokens = (GRID // stride) ** 2
                first = base[stride] + (offset + picture) * tokens
                slots += range(first, first + tokens)
            expected.add(tuple(slots))
    found = {tuple(s[s >= 0].tolist()) for rows in batch.groups for s in rows.slots}
    assert found == expected
    assert all(bool((rows.ids[rows.slots >= 0] == Collator(tokenizer).image).all()) for rows in batch.groups)


def test_stamps_are_the_times_of_the_pictures(tokenizer: Tokenizer, batch: Batch) -> None:
    for rows in batch.groups:
        for ids, blocks in zip(rows.ids, rows.blocks, strict=True):
            text = tokenizer.decode(ids[blocks == 0]).replace("<image>", " ")
            assert text.startswith("<s>USER: ")
            stamps = text.removeprefix("<s>USER: ").split()
            seconds = [int(m) * 60 + int(s) for m, s in (stamp.split(":") for stamp in stamps)]
            assert seconds == sorted(seconds)


def test_a_row_remembers_right_answers(batch: Batch, network: LlavaForConditionalGeneration) -> None:
    """`score` counts every question once, under its family."""
    asked = sum(len(families) for rows in batch.groups for families in rows.families)
    counted = score(network, [batch])
    assert sum(total for _, total in counted.values()) == asked
    assert all(0 <= right <= total for right, total in counted.values())


def test_training_rows_repeat_and_never_meet_the_checks(tokenizer: Tokenizer) -> None:
    one, other = (next(iter(TrainingRows(tokenizer, clip_rows, 1, 5))) for _ in range(2))
    assert torch.equal(one.frames, other.frames)
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(one.groups, other.groups, strict=True))
    drawn = {replace(make_script(split, seed), seed="") for split in ("train", "check", "test") for seed in range(20)}
    assert len(drawn) == 60


def test_processes_draw_different_clips(tokenizer: Tokenizer) -> None:
    """Two of them, a clip at a time from seed 5 on: 5, 7, 9 ... and 6, 8, 10 ..."""
    parts = [iter(TrainingRows(tokenizer, clip_rows, 1, 5, part=part, parts=2)) for part in range(2)]
    whole = iter(TrainingRows(tokenizer, clip_rows, 1, 5))
    for drawn in (parts[0], parts[1], parts[0]):
        assert torch.equal(next(drawn).frames, next(whole).frames)


# ------------------------------------------------------------------------------------- pictures and their labels


@pytest.fixture(scope="module")
def stills() -> list[Still]:
    rng = generator("stills/test", 0)
    return [draw_still(rng) for _ in range(120)]


def test_a_patch_is_labelled_with_the_colour_it_shows(stills: list[Still]) -> None:
    """By the angle between a patch's mean colour and the shades people call by each name."""
    anchors = {colour: np.asarray(shades, float) for colour, shades in SHADES.items()}
    right = total = 0
    for still in stills:
        patches = still.pixels.numpy().reshape(GRID, PATCH, GRID, PATCH, 3).mean((1, 3))
        bright = (patches.max(-1) > 130) & (still.colour.numpy() != UNLABELLED)
        for mean, label in zip(patches[bright], still.colour.numpy()[bright], strict=True):
            angles = {c: max(mean @ a.T / np.linalg.norm(mean) / np.linalg.norm(a, axis=1)) for c, a in anchors.items()}
            right += max(angles, key=lambda colour: angles[colour]) == COLOURS[label]
            total += 1
    assert total > 500
    assert right / total > 0.93


def test_labels_stand_where_something_is_to_be_seen(stills: list[Still]) -> None:
    labelled, empty = [], []
    for still in stills:
        value = still.pixels.numpy().max(-1).reshape(GRID, PATCH, GRID, PATCH).max((1, 3))
        assert torch.equal(still.present.bool(), still.colour != UNLABELLED)
        assert torch.equal(still.present.bool(), still.shape != UNLABELLED)
        labelled += value[still.present.bool().numpy()].tolist()
        empty += value[~still.present.bool().numpy()].tolist()
    assert np.mean(labelled) > np.mean(empty) + 80


def test_pose_is_the_middle_of_an_objects_patches(stills: list[Still]) -> None:
    errors = []
    for still in stills:
        poses = still.pose[still.present.bool()].unique(dim=0)
        if len(poses) != 1:
            continue
        rows, cols = np.nonzero(still.present.numpy())
        errors.append(max(abs((cols.mean() + 0.5) / GRID - poses[0, 0]), abs((rows.mean() + 0.5) / GRID - poses[0, 1])))
    assert len(errors) > 10
    assert max(errors) < 0.08


def test_a_cell_is_told_in_full_however_little_of_it_an_object_covers() -> None:
    """One patch of sixteen shows the object, and the cell says its colour, shape and place as loudly as a full one."""
    words = Words(torch.eye(8, 40), torch.eye(6, 40).roll(8, 1), torch.eye(5, 40).roll(14, 1), torch.zeros(7, 40))
    present, colour, shape = (
        torch.zeros(1, 12, 12),
        torch.full((1, 12, 12), UNLABELLED),
        torch.full((1, 12, 12), UNLABELLED),
    )
    present[0, 1, 2], colour[0, 1, 2], shape[0, 1, 2] = 1, 3, 2
    pose = torch.zeros(1, 12, 12, 3)
    pose[0, 1, 2] = torch.tensor([0.2, 0.1, 0.0])
    wanted = targets(words, (present, colour, shape, pose), 4)
    assert wanted.shape == (1, 9, 40)
    assert wanted[0, 0].nonzero().flatten().tolist() == [3, 8 + 2, 14 + 0, 14 + 2]  # yellow, triangle, top, left
    assert not wanted[0, 1:].any()


def test_the_token_under_a_moving_object_is_told_what_it_does(tokenizer: Tokenizer) -> None:
    """A red circle crosses from left to right at mid height: at stride 6 (2x2 cells) it is told in the lower row."""
    circle = Thing(colour="red", shape="circle", x=0.2, y=0.6, radius=0.1, rgb=(255, 0, 0))
    move = Event(thing=0, name="red circle", action="moves right", start=2.0, end=4.0, amount=0.6)
    canvas = Canvas(width=96, height=96, fps=10.0, background=(0, 0, 0))
    script = Script(seed="move", duration=8.0, canvas=canvas, things=(circle,), events=(move,))
    times = np.array([0.0, 1.0, 2.5, 5.0, 6.0])
    seen = spots(script, times)
    assert [[spot.event and spot.event.phrase for spot in frame] for frame in seen] == [
        [None], [None], ["red circle moves right"], ["red circle moves right"], [None],
    ]  # fmt: skip
    row = Row(tuple((0, 6, None) for _ in range(5)), (), seen, a_second_earlier([0, 1, 2, 3, 4]), ())
    planes = Collator(tokenizer)([([np.zeros((96, 96, 3), np.uint8)], [row])], [1.0]).groups[0]
    told = {int(i): int(planes.changes[0, i]) for i in (planes.changes[0] >= 0).nonzero()}
    start = int((planes.slots[0] >= 0).nonzero()[0])
    begun, going_on = change_code(move, True), change_code(move)
    assert told == {start + 6: 0, start + 10: begun, start + 15: going_on, start + 19: 0}
    before = planes.links["before"]
    linked = list(zip(before.query[before.link].tolist(), before.key.tolist(), strict=True))
    assert linked == [(start + q, start + k) for q, k in ((6, 2), (10, 6), (15, 10), (19, 15))]


def test_a_ring_is_asked_about_where_it_is_seen() -> None:
    """A large ring's middle shows the background: no token there can tell of it."""
    canvas = Canvas(width=96, height=96, fps=10.0, background=(0, 0, 0))
    ring = Thing(colour="red", shape="ring", x=0.45, y=0.45, radius=0.36, thickness=0.3, rgb=(255, 0, 0))

    def seen(thing: Thing) -> Spot:
        return spots(Script(seed="ring", duration=2.0, canvas=canvas, things=(thing,)), np.array([0.0]))[0][0]

    large, small, filled = seen(ring), seen(replace(ring, radius=0.1)), seen(replace(ring, shape="circle"))
    assert large.cells(6) == [2, 3, 7, 9, 10, 12, 16, 18, 19, 21, 22, 25, 26, 27]
    assert large.cell(6) == 26
    assert large.cell(2) == 0  # a cell as wide as half the picture shows the ring's band too
    assert small.cell(6) == filled.cell(6) == 14


MOVE = "red circle moves right"
AIMED = {
    "what happens at 0:03?": (Question("what", "", f"The {MOVE}.", moment=3.0), [{(3, 0), (4, 0)}]),
    "what happens at 0:06?": (Question("what", "", "Nothing happens.", moment=6.0), []),
    "when does the red circle move right?": (Question("when", "when does the red circle move right?", "At 0:02."),
                                             [{(3, 0)}]),
    "what colour is the circle at 0:01?": (Question("colour", "what colour is the circle", "Red.", moment=1.0),
                                           [{(1, 0)}]),
    "how many objects are there at 0:08?": (Question("count", "", "One.", moment=8.0), [{(8, 1)}]),
    "where is the blue star at 0:07?": (Question("where", "where is the blue star", "", moment=7.0), [{(7, 1)}]),
    "describe the video.": (Question("describe", "", f"The {MOVE}. Then the red circle disappears."),
                            [{(3, 0), (4, 0)}, {(8, 0)}]),
    "what happens after the red circle moves right?": (Question("order", "", "The red circle disappears."),
                                                       [{(8, 0)}]),
}  # fmt: skip


@pytest.mark.parametrize("question", AIMED)
def test_a_word_is_told_to_look_at_what_it_is_about(question: str) -> None:
    """Of a clip seen once a second, the frames by which an event has gone on, and the object that it is about."""
    things = (
        Thing(colour="red", shape="circle", x=0.2, y=0.6, radius=0.1, rgb=(255, 0, 0)),
        Thing(colour="blue", shape="star", x=0.7, y=0.2, radius=0.1, rgb=(0, 0, 255)),
    )
    events = (
        Event(thing=0, name="red circle", action="moves right", start=2.0, end=4.0, amount=0.6),
        Event(thing=0, name="red circle", action="disappears", start=7.1, end=7.3),
    )
    canvas = Canvas(width=96, height=96, fps=10.0, background=(0, 0, 0))
    script = Script(seed="aims", duration=10.0, canvas=canvas, things=things, events=events)
    asked, wanted = AIMED[question]
    assert [set(found) for found in aims(script, asked, np.arange(10.0))] == wanted


def test_links_lead_from_words_to_the_cells_of_their_object(tokenizer: Tokenizer) -> None:
    """Over real rows: whoever follows an answer's link stands on a token of the picture, not later than the word."""
    albums = [clip_rows("links", seed) for seed in range(3)]
    batch = Collator(tokenizer)(albums, [1.0] * sum(len(rows) for _, rows in albums))
    kinds = set()
    for rows in batch.groups:
        for kind, links in rows.links.items():
            row, query = links.row[links.link], links.query[links.link]  # of every key
            visual = rows.slots[row, links.key] >= 0
            assert bool((~visual if kind in ("stamp", "clock") else visual).all())
            assert bool((links.key < query).all())
            said = rows.labels[links.row, links.query]
            assert bool((said != IGNORE).all()) == (kind in ("answer", "clock"))
            if kind == "clock":
                copied = rows.ids[row, links.key]
                assert bool((rows.labels[row, query] == copied).all()), "a time is copied from where it stands"
            kinds.add(kind)
    assert kinds == {"stamp", "before", "earlier", "answer", "clock"}


def test_a_link_is_missed_by_what_attention_gives_elsewhere() -> None:
    """Two links of one row: one gets 0.25 + 0.5 of the attention, the other all of it."""
    links = padded_links([[Link("answer", 2, (0, 1)), Link("answer", 3, (1,))]])["answer"]
    wanted = torch.tensor([[0.25, 0.5, 0.25, 0.0], [0.0, 1.0, 0.0, 0.0]]).log()
    queries = torch.zeros(1, 2, 4, 4)
    queries[0, 1, 2:] = wanted.clamp(min=-30)
    keys = torch.eye(4).expand(1, 2, 4, 4)  # so a query's numbers are its logits
    look = Attention(queries, keys, torch.zeros(1, 1, 4, 4))
    assert links.missed(look, 1).item() == pytest.approx(-np.log(0.75) / 2, abs=1e-3)


def test_attention_is_paid_as_the_mask_allows() -> None:
    """Probabilities, none of them to a token that may not be seen."""
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    bias = torch.zeros(2, 1, 5, 5).masked_fill_(~torch.ones(5, 5, dtype=torch.bool).tril(), float("-inf"))
    paid = Attention(queries, keys, bias).paid(1, 2, torch.tensor([0, 3]))
    assert paid[0].tolist() == [1, 0, 0, 0, 0]
    wanted = torch.softmax(queries[1, 2, 3] @ keys[1, 2, :4].T, -1)
    torch.testing.assert_close(paid[1], torch.cat([wanted, torch.zeros(1)]))


def test_an_object_is_compared_with_itself_a_second_earlier() -> None:
    """Not with the frame before, where that is nearer; the first frame has none but itself."""
    times = [0.0, 0.5, 1.0, 1.25, 1.5, 4.0]
    assert a_second_earlier(times) == (0, 0, 0, 0, 1, 4)
    circle = Thing(colour="red", shape="circle", x=0.2, y=0.5, radius=0.1, rgb=(255, 0, 0))
    move = Event(thing=0, name="red circle", action="moves right", start=0.0, end=2.0, amount=0.4)
    canvas = Canvas(width=96, height=96, fps=10.0, background=(0, 0, 0))
    script = Script(seed="slow", duration=5.0, canvas=canvas, things=(circle,), events=(move,))
    motions = [frame[0].motion for frame in spots(script, np.asarray(times))]
    assert [round(m[0], 6) for m in motions] == [0, 0.1, 0.1, 0.05, 0.05, 0.1], "since the frame before"
    assert [round(m[4], 6) for m in motions] == [0, 0.1, 0.2, 0.25, 0.2, 0.1], "and since a second earlier"


# ------------------------------------------------------------------------------------- sharper eyes


def test_a_cell_is_asked_about_the_one_object_that_it_shows() -> None:
    """One object's patches agree and its cells are told of at every stride; two in one cell are not."""
    present, pose = torch.zeros(1, 12, 12), torch.zeros(1, 12, 12, 3)
    present[0, :4, :4], pose[0, :4, :4] = 1, torch.tensor([0.2, 0.1, 0.3])
    present[0, 6, 6], pose[0, 6, 6] = 1, torch.tensor([0.5, 0.5, -0.2])
    present[0, 7, 7], pose[0, 7, 7] = 1, torch.tensor([0.7, 0.6, -0.2])
    told, poses = cell_poses(present, pose)
    base = slot_base(1)
    assert told[base[2] : base[3]].nonzero().flatten().tolist() == [0, 1, 6, 7]
    assert told[base[6] :].nonzero().flatten().tolist() == [0]
    torch.testing.assert_close(poses[base[6]], torch.tensor([0.2, 0.1, 0.3]))


def test_tokens_are_held_where_they_would_have_been_had_the_pose_been_seen() -> None:
    """Of the model that ships: what tells of an object tells its true pose afterwards, the background stays."""
    network = LlavaForConditionalGeneration.from_pretrained(SHIPPED, dtype=torch.float32)
    batches = [next(iter(Stills(24, seed, crowd))) for seed in range(3)]
    before = Before(network, batches)
    pixels, present, _, _, pose = batches[0]
    told, poses = cell_poses(present, pose)
    were, wanted = before.tokens(pixels), before.wanted(pixels, told, poses)
    assert torch.equal(were[~told], wanted[~told])
    read = least_squares(were[told], pose_waves(poses[told]))
    fit = torch.cat([were[told], torch.ones(int(told.sum()), 1)], 1) @ read
    better = torch.cat([wanted[told], torch.ones(int(told.sum()), 1)], 1) @ read
    off, less = ((x - pose_waves(poses[told])).square().mean() for x in (fit, better))
    assert less < 0.5 * off
    assert not any(p.requires_grad for p in before.model.parameters())
    torch.testing.assert_close(before.tokens(pixels), visual_table(network, pixels, torch.float32))


# ------------------------------------------------------------------------------------- the recipe, start to end


COURSE = Path(__file__).resolve().parents[1] / "configs" / "builtin.yaml"
TOY = (
    "threads=1", "tokenizer_clips=40", "vision.hidden_size=48", "vision.layers=2", "vision.batch=4", "vision.steps=2",
    "language.hidden_size=48", "language.intermediate_size=64", "language.layers=2", "align.batch=4", "align.steps=2",
    "sharpen.batch=2", "sharpen.held=1", "sharpen.steps=2",
    *(f"{stage}.{said}" for stage in ("images", "video", "again")
      for said in ("clips=1", "moments=1", "whole=1", "steps=2", "warmup=1", "check_clips=2")),
)  # fmt: skip
"""Said behind the course that ships: two steps of every stage, so that nothing is learnt."""


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a course that ran from its beginning to its end."""
    run = tmp_path_factory.mktemp("course") / "run"
    assert recipes.run(load_config(recipes.Recipe, COURSE, [*TOY, f"folder={run}"])) == run / "weights"
    return run


def test_the_recipe_ends_in_a_model_that_answers(course: Path, tmp_path: Path) -> None:
    video = small_clip("layout", 0, tmp_path / "clip.mp4")
    model = vidllm.load(course / "weights", cache=None)
    assert model.spec.fit == "stretch"
    answer = model.ask(video, "what happens at 0:05?", max_new_tokens=12)
    assert isinstance(answer.text, str)
    assert answer.finish_reason in ("stop", "length", "repetition")
    assert {f.tokens for f in answer.frames} == {36, 4}
    picture = Image(np.zeros((96, 96, 3), np.uint8))
    for made in (model, vidllm.load(course / "image", cache=None)):
        assert isinstance(made.ask(picture, "what is in the image?", max_new_tokens=4).text, str)
    images, video, again, shipped = (
        load_file(course / name / "model.safetensors")["language_model.model.layers.0.mlp.up_proj.weight"]
        for name in ("images", "video", "again", "weights")
    )
    assert not images.equal(video)
    assert not video.equal(again)
    assert shipped.equal(((video + again) / 2).bfloat16())


def test_the_recipe_goes_on_where_it_was_killed(course: Path, tmp_path: Path) -> None:
    """What stands there is not made again, what was half saved is, and the end is what it would have been."""
    shutil.copytree(course, tmp_path, dirs_exist_ok=True)
    made = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*.safetensors")}
    for name in ("video", "again", "weights", "image"):
        shutil.rmtree(tmp_path / name)
    (tmp_path / "sharp").rename(tmp_path / "sharp.part")
    (tmp_path / "sharp.part" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "sharp.part" / "config.json").unlink()
    recipes.run(load_config(recipes.Recipe, COURSE, [*TOY, f"folder={tmp_path}"]))
    assert {path for path, (written, _) in made.items() if path.stat().st_mtime_ns == written} == {
        tmp_path / name / "model.safetensors" for name in ("vision", "aligned", "images")
    }
    assert all(path.read_bytes() == weights for path, (_, weights) in made.items())


def test_a_folder_that_other_settings_made_is_refused(course: Path, tmp_path: Path) -> None:
    """A stage that is not there yet may be told otherwise; one that is, or what it was made from, may not."""
    shutil.copytree(course, tmp_path, dirs_exist_ok=True)
    for name in ("again", "vision"):
        shutil.rmtree(tmp_path / name)
    words = [str(COURSE), *TOY, f"folder={tmp_path}", "threads=2", "again.steps=1"]
    said = r"aligned was made with vision.steps 2, now 3: put that back to go on, or give this run another `folder`$"
    with pytest.raises(ConfigError, match=said):
        recipes.run(load_config(recipes.Recipe, COURSE, [*words[1:], "vision.steps=3"]))
    refused = subprocess.run(
        [sys.executable, "-m", "vidllm.builtin.recipe", *words, "video.clips=2"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"recipe: {tmp_path / 'video'} was made with video.clips 1, now 2: ")
    assert refused.stderr.count("\n") == 1
    (tmp_path / "images" / recipes.MADE_BY).unlink()  # as an earlier vidllm left it
    recipes.run(load_config(recipes.Recipe, COURSE, words[1:]))
    assert (tmp_path / "again").exists()


def test_two_processes_teach_one_model(tmp_path: Path) -> None:
    """`torchrun` starts two; the first does the early stages, both learn, each from its own clips, and end alike."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "vidllm.builtin.recipe"]
    words = [sys.executable, *command, str(COURSE), *TOY, f"folder={tmp_path}"]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("unseen at the end") == 4, "the first process tells, once a stage"
    assert vidllm.load(tmp_path / "weights", cache=None).spec.fit == "stretch"


def test_gradients_are_shared_by_their_mean(tmp_path: Path) -> None:
    """And where clocks differ the first process's counts."""
    torch.multiprocessing.spawn(with_its_own, (tmp_path,), nprocs=2)
    for part in range(2):
        both, one, agreed, number, parts = torch.load(tmp_path / f"{part}.pt")
        assert (both.tolist(), one.tolist(), agreed, number, parts) == ([2, 2], [0.5], 0.25, part, 2)
