"""Families without an adapter: through their own processor and forward, where that is proven right; else one line."""

from __future__ import annotations

import atexit
import json
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as PIL
from transformers import AutoModelForImageTextToText, AutoProcessor

import vidllm
from tests.conftest import write_clip
from tests.other_device import OTHER, move, other_device
from tests.test_batching import one_by_one, run, said
from tests.test_train_learner import learner_of
from tests.test_train_native import ALL, apart, assert_alike, backward, of_leaves
from tests.tiny_axes import AXES
from tests.tiny_models import edit
from tests.tiny_unlisted import UNLISTED, UNSPOKEN, WANTING_TIMM, WANTING_TORCHVISION
from vidllm.batching import Batcher
from vidllm.caches import cache_folder
from vidllm.clip import Clip, PlanOptions, open_clip
from vidllm.errors import UnsupportedModel
from vidllm.geometry import NativeGeometry
from vidllm.model.checkpoint import load_model
from vidllm.model.families import load_tokenizer, read_spec
from vidllm.model.features import FeatureCache
from vidllm.model.own_processor import of_frames, picture_text
from vidllm.model.unlisted import Unlisted
from vidllm.options import GenerationOptions
from vidllm.prompt import Example, Message, Prompt, build_example, build_prompt
from vidllm.train.parts import Parts, part_of
from vidllm.train.proof import prove
from vidllm.train.sharing import Stem, plant
from vidllm.video.fit import scaled
from vidllm.visuals import Image

TORCHVISION = find_spec("torchvision") is not None
READ = ["ovis2", "aria", "deepseek_vl", "deepseek_vl_hybrid", "janus", "qianfan_ocr", "lighton_ocr", "granite_docling"]
READ += ["paddleocr_vl", "hunyuan_vl", "granite4_vision"]  # positions of several axes, what is added to later layers
if TORCHVISION:  # without which their processors do not load
    READ += ["llama4", "exaone4_5", "hyperclovax_vision_v2", "kimi_k25", "lfm3_vl", "step3p7", "video_llava",
             "minicpmv4_6", "minicpmv4_7", "muse_glimmer", "muse_spark", "deepseek_ocr2", "ernie4_5_vl_moe",
             *AXES]  # fmt: skip
if find_spec("timm"):
    READ += [*WANTING_TIMM]
WANTED = pytest.mark.skipif(not TORCHVISION, reason="its processor wants torchvision")
QUESTION = "what happens at 0:01?"
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of GLM's and ERNIE's processors


@cache
def folder_of(family: str) -> Path:
    """A tiny checkpoint, read only."""
    folder = Path(tempfile.mkdtemp(prefix=f"vidllm-{family}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return {**UNLISTED, **UNSPOKEN, **WANTING_TORCHVISION, **WANTING_TIMM, **AXES}[family](folder)


def load(family: str) -> Unlisted:
    model = load_model(folder_of(family), device="cpu", dtype="float32")
    assert isinstance(model, Unlisted)
    return model


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds, wider than high, no two frames alike."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_clip(path, [0.1 * n for n in range(30)], size=(160, 96))
    return path


def seen(model: Unlisted, path: Path, frames: int = 5) -> Clip:
    return open_clip(path, QUESTION, model.spec, model.tokenizer, PlanOptions(frames=frames))


def theirs(prompt: Prompt, pictures: NDArray[np.uint8]) -> dict[str, Any]:
    """What transformers makes of the same words and pictures."""
    processor: Any = AutoProcessor.from_pretrained(prompt.spec.folder)
    of_frames(processor)
    words = prompt.text.replace(picture_text(prompt.spec), prompt.spec.image_marker or "")
    shown = [[PIL.fromarray(one) for one in pictures]]
    kinds = {"return_mm_token_type_ids": True} if "mm_token_type_ids" in processor.model_input_names else {}
    made = processor(text=[words], images=shown, return_tensors="pt", add_special_tokens=False, **kinds)
    return dict(made.to(torch.float32))


@cache
def reference(family: str) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder_of(family), dtype="float32").eval()


@pytest.mark.parametrize("family", READ)
def test_a_clip_is_read_as_transformers_reads_its_frames(family: str, clip: Path) -> None:
    model = load(family)
    shown = seen(model, clip)
    prompt = build_prompt([Message("user", QUESTION, (shown,))], model.spec, model.tokenizer)
    inputs = theirs(prompt, shown.frames.pixels)
    assert len(inputs["input_ids"][0]) == prompt.length
    made = reference(family).generate(
        **inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    state = model.prefill(prompt)
    for step, token in zip(made.logits, made.sequences[0, -4:].tolist(), strict=True):
        torch.testing.assert_close(state.logits, step[0], atol=1e-4, rtol=0)
        state = model.extend(state, [token])


@pytest.mark.parametrize("family", READ)
def test_a_still_picture_is_the_largest_square_or_keeps_its_aspect(family: str) -> None:
    model = load(family)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8)
    prompt = build_prompt([Message("user", "what is it?", (Image(pixels),))], model.spec, model.tokenizer)
    geometry = model.spec.geometry
    assert isinstance(geometry, NativeGeometry)
    height, width = geometry.image_size(50, 90)
    assert (height == width) != geometry.fits_itself
    inputs = theirs(prompt, scaled(pixels, height, width)[None])
    assert len(inputs["input_ids"][0]) == prompt.length
    with torch.no_grad():
        expected = reference(family)(**inputs).logits[0, -1]
    torch.testing.assert_close(model.prefill(prompt).logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", READ)
@pytest.mark.parametrize("policy", ["uniform", "auto"])
def test_an_asked_clip_is_planned_to_the_token(family: str, policy: str, clip: Path) -> None:
    model = vidllm.load(folder_of(family), device="cpu", dtype="float32", cache=None)
    answer = model.ask(clip, QUESTION, frames=7, policy=policy, max_new_tokens=3)
    plan = vidllm.plan(clip, QUESTION, model=folder_of(family), frames=7, policy=policy, max_new_tokens=3)
    assert (answer.usage.video_tokens, answer.usage.text_tokens) == (plan.video_tokens, plan.text_tokens)


def test_more_frames_than_there_is_room_for_are_smaller(clip: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(folder_of("lighton_ocr"), tmp_path / "short")
    edit(folder / "config.json", text_config={"max_position_embeddings": 480})
    few, many = (vidllm.plan(clip, "?", model=folder, frames=n, rope_max=1, max_new_tokens=64) for n in (8, 20))
    assert (few.frame_size, [frame.tokens for frame in few.frames]) == ((112, 112), [16] * 8)
    assert (many.frame_size, [frame.tokens for frame in many.frames]) == ((84, 84), [9] * 20)


@pytest.mark.parametrize("family", sorted({*READ} - {"muse_spark"}))  # whose [:, [0, 2, 1]] the simulated one spoils
def test_on_another_device_it_says_the_same(family: str, clip: Path) -> None:
    model = load(family)
    prompt = build_prompt([Message("user", QUESTION, (seen(model, clip),))], model.spec, model.tokenizer)
    work = [(prompt, GenerationOptions(max_new_tokens=5))]
    expected = one_by_one(model, work)
    move(model.network)
    with other_device():
        assert model.device == OTHER
        assert one_by_one(model, work) == expected


@pytest.mark.parametrize("family", ["ovis2", "lighton_ocr", "paddleocr_vl"])
def test_rows_side_by_side_are_answered_as_if_alone(family: str, clip: Path) -> None:
    model, work = load(family), []
    for words, frames, most in ((QUESTION, 3, 9), ("describe the video.", 6, 4), ("how many?", 1, 14)):
        turn = Message("user", words, (seen(model, clip, frames),))
        work.append((build_prompt([turn], model.spec, model.tokenizer), GenerationOptions(max_new_tokens=most)))
    assert said(run(Batcher(model, slots=3), work)) == one_by_one(model, work)


@pytest.mark.parametrize("family", ["janus", "paddleocr_vl"])
def test_a_follow_up_is_as_if_all_was_read_again_and_frames_are_kept(family: str, clip: Path, tmp_path: Path) -> None:
    model = vidllm.load(folder_of(family), device="cpu", dtype="float32", cache=None)
    chat = model.chat(clip, frames=4)
    first = chat.ask(QUESTION, max_new_tokens=4)
    second = chat.ask("and then?", max_new_tokens=6)
    shown = seen(load(family), clip, 4)
    words = [Message("user", QUESTION, (shown,)), Message("assistant", first.text), Message("user", "and then?")]
    whole = build_prompt(words, model.spec, load_tokenizer(model.spec.folder))
    [(_, text, _)] = one_by_one(load(family), [(whole, GenerationOptions(max_new_tokens=6))])
    assert text == second.text
    counts = [load(family).prefill(whole, FeatureCache(tmp_path)).frames_encoded for _ in range(2)]
    assert counts == [4, 0]


def test_positions_are_those_its_own_forward_counts() -> None:
    """Two words, a picture of 2x2 tokens, a word, a picture of 4x4, two words: time, rows and columns of each."""
    model = load("paddleocr_vl")
    picture = model.spec.image_token_id
    ids = [1, 2, *[picture] * 4, 3, *[picture] * 16, 4, 5]
    places, offset = model.positions_at(ids, [(56, 56), (112, 112)])
    small = [[2, 2, 2, 2], [2, 2, 3, 3], [2, 3, 2, 3]]
    large = [[5] * 16, [5 + i // 4 for i in range(16)], [5 + i % 4 for i in range(16)]]
    assert places[:, 0].tolist() == [[0, 1, *one, 4, *two, 9, 10] for one, two in zip(small, large, strict=True)]
    assert offset == 11 - len(ids)
    assert model.positions_of([1, 2, 3], ())[0].tolist() == [[[0, 1, 2]]] * 3


# ----------------------------------------------------------------------------------------------------------- teaching


def told(model: Unlisted, shown: Clip, question: str, answer: str) -> tuple[Example, dict[str, Any]]:
    """A conversation, and what transformers' own class is given for it alone."""
    turns = [Message("user", question, (shown,)), Message("assistant", answer)]
    example = build_example(turns, model.spec, model.tokenizer)
    return example, theirs(example.prompt, shown.frames.pixels)


@pytest.mark.parametrize("family", sorted({*READ} - {"llama4"}))  # whose rows, longer than a chunk, a run refuses
def test_what_is_learned_together_is_learned_as_from_each_alone(family: str, clip: Path) -> None:
    """Tower, projector and language model, two questions about one clip, which is seen once, and one about another."""
    learner = learner_of(folder_of(family), parts=ALL)
    model = learner.lmm
    assert isinstance(model, Unlisted)
    long, short = seen(model, clip), seen(model, clip, 2)
    rows = [told(model, long, "how many?", "Two."), told(model, long, "where?", "On the left."),
            told(model, short, "which colour?", "Red.")]  # fmt: skip
    stems = [Stem(length=e.trained.index(True), ends=((e, len(e.trained)),)) for e, _ in rows]
    batch, found = of_leaves(learner, plant(stems))
    assert batch.length < sum(example.prompt.length for example, _ in rows)
    network = AutoModelForImageTextToText.from_pretrained(folder_of(family), dtype="float32")
    expected = [apart(network, row) for row in rows]
    for mine, own in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, own, atol=1e-5, rtol=0)
    taught = backward(network, expected)
    assert_alike(backward(learner.network, found), {n: w for n, w in taught.items() if part_of(n) != "newline"})


def test_pictures_are_not_kept_while_the_words_in_them_learn() -> None:
    rates = {None: None, 0.0: "tokens"}  # of the table, which learns with the language model unless it is told not to
    for rate, stage in rates.items():
        assert learner_of(folder_of("ovis2"), parts=Parts(language_model=1e-3, embeddings=rate)).stage == stage


def test_what_learns_along_a_tree_otherwise_than_alone_is_not_taught(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = learner_of(folder_of("janus"), parts=ALL)
    monkeypatch.setattr(learner.lmm, "positions_of", lambda ids, *_: (torch.zeros(1, len(ids)), 0))
    with pytest.raises(UnsupportedModel, match=r"'llama' does not read .* can be asked, not taught"):
        prove(learner)


# -------------------------------------------------------------------------------------------------------- what is not


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("idefics2", "a picture and a question its processor makes"),  # writes pictures by what stands behind them
        ("paligemma", "its (own )?processor"),  # pictures before the text begins
        ("mllama", "a picture and a question its processor makes"),
        ("chameleon", "does not have a chat template"),
        ("blip_2", "its processor has no word for a picture"),
        pytest.param("minimax_m3_vl", "keeps more of the past than keys and values", marks=WANTED),
        pytest.param("exaone4_5", "orchvision", marks=pytest.mark.skipif(TORCHVISION, reason="torchvision is there")),
    ],
)  # fmt: skip
def test_what_is_read_in_another_way_is_refused_in_one_line(family: str, message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message) as raised:
        load(family)
    assert "\n" not in str(raised.value)


def test_what_was_asked_and_proven_is_kept_and_asked_again_when_it_is_damaged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clip: Path
) -> None:
    monkeypatch.setenv("VIDLLM_CACHE", str(tmp_path))
    first = read_spec(folder_of("aria"))
    load("aria")
    asked, proven = sorted(cache_folder("families").iterdir())
    assert (asked.suffixes[-2:], json.loads(proven.read_text())["apart"] <= 1e-3) == ([".asked", ".json"], True)
    for spoilt in ("", "{}", '{"marker": 1}', "[1, 2"):
        asked.write_text(spoilt)
        assert read_spec(folder_of("aria")) == first
        assert json.loads(asked.read_text())["marker"] == first.image_marker
    monkeypatch.setenv("VIDLLM_CACHE", str(clip))  # a file: nothing can be kept there
    assert read_spec(folder_of("aria")) == first


def test_a_plan_of_what_was_asked_before_loads_no_transformers(clip: Path) -> None:
    folder = folder_of("aria")
    read_spec(folder)
    plan = f"vidllm.plan({str(clip)!r}, model={str(folder)!r})"
    code = f"import sys, vidllm; {plan}; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["False"]
