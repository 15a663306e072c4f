"""Molmo 2, frames that all see one another: ids and logits are those of transformers' classes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.planned import clip_of, prompt_of
from tests.test_train_learner import learner_of
from tests.test_train_native import ALL, apart, check_as_if_alone
from tests.tiny_models import MOLMO_WORDS, edit, molmo2
from vidllm.errors import IncompleteModel, UnsupportedModel
from vidllm.model.attention import Sight
from vidllm.model.checkpoint import load_model
from vidllm.model.families import load_tokenizer, read_spec
from vidllm.model.molmo import Molmo2
from vidllm.model.spec import read_json
from vidllm.prompt import Message, Prompt, build_example
from vidllm.train.parts import Parts
from vidllm.visuals import Image

QUESTION = "what happens at 0:30?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return molmo2(tmp_path_factory.mktemp("molmo2"))


@cache
def model_of(folder: Path) -> Molmo2:
    model = load_model(folder, device="cpu", dtype="float32")
    assert isinstance(model, Molmo2)
    return model


@cache
def theirs(folder: Path) -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, dtype="float32").eval()


def seen(folder: Path, question: str, frames: int = 5, seed: int = 0) -> Message:
    """A question about frames that are noise."""
    clip = clip_of(read_spec(folder), question, frames=frames)
    pixels = np.random.default_rng(seed).integers(0, 256, clip.frames.pixels.shape, np.uint8)
    return Message("user", question, (replace(clip, frames=replace(clip.frames, pixels=pixels)),))


def noisy(folder: Path, question: str = QUESTION, frames: int = 5, seed: int = 0) -> Prompt:
    return prompt_of(read_spec(folder), [seen(folder, question, frames, seed)])


def inputs_of(prompt: Prompt) -> dict[str, Tensor]:
    """What transformers' processor makes of the same words and frames; the class itself wants torchvision."""
    tokenizer, settings = load_tokenizer(prompt.spec.folder), read_json(prompt.spec.folder / "processor_config.json")
    kind = "frame" if settings and settings["use_frame_special_tokens"] else "im"
    frame = f"<{kind}_start>{'<im_patch>' * 4}<{kind}_end>"
    ids = torch.tensor([tokenizer.encode(prompt.text.replace("<im_patch>", frame), add_special_tokens=False).ids])
    pixels = torch.from_numpy(np.concatenate([visual.pixels for visual in prompt.visuals]))
    patches = pixels.float().div(255).sub(0.5).div(0.5).view(-1, 6, 14, 6, 14, 3).transpose(2, 3)
    numbers = torch.arange(36).view(2, 3, 2, 3).transpose(1, 2).reshape(4, 9)
    visual = torch.tensor([tokenizer.token_to_id(word) for word in MOLMO_WORDS])
    return {
        "input_ids": ids, "pixel_values_videos": patches.reshape(len(pixels), 36, -1),
        "video_token_pooling": torch.cat([numbers + 36 * frame for frame in range(len(pixels))]),
        "video_grids": torch.tensor([[len(pixels), 2, 2]]), "mm_token_type_ids": torch.isin(ids, visual).long(),
    }  # fmt: skip


def test_a_clip_is_laid_out_as_its_processor_does(folder: Path) -> None:
    prompt = noisy(folder, frames=3)
    at = [f"{time:.1f} <im_patch>" for time in prompt.visuals[0].times]
    assert prompt.text == f"<|im_end|>{' '.join(at)}<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    assert (prompt.visuals[0].tokens, prompt.length) == (18, inputs_of(prompt)["input_ids"].shape[1])


@pytest.mark.skipif(not find_spec("torchvision"), reason="its processor wants torchvision")
def test_what_it_is_given_is_what_its_processor_makes(folder: Path) -> None:
    from transformers import AutoProcessor
    from transformers.video_utils import VideoMetadata

    prompt = noisy(folder)
    [video] = prompt.visuals
    told = VideoMetadata(total_num_frames=600, fps=10.0, frames_indices=[round(10 * t) for t in video.times])
    words = prompt.text.removeprefix("<|im_end|>")
    layout = " ".join(f"{time:.1f} <im_patch>" for time in video.times)
    processor: Any = AutoProcessor.from_pretrained(folder)
    made = processor(
        text=[words.replace(layout, "<|video|>")], videos=[torch.from_numpy(video.pixels).permute(0, 3, 1, 2)],
        video_metadata=[told], do_sample_frames=False, return_tensors="pt",
    )  # fmt: skip
    for name, mine in inputs_of(prompt).items():
        torch.testing.assert_close(mine, made[name].to(mine.dtype), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("frames", "marks"), [(1, False), (5, False), (3, True)])
def test_an_answer_is_read_as_transformers_reads_it(frames: int, marks: bool, folder: Path, tmp_path: Path) -> None:
    """Between marks of pictures or of its own."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    edit(copy / "processor_config.json", use_frame_special_tokens=marks)
    model, prompt = model_of(copy), noisy(copy, frames=frames)
    made = theirs(folder).generate(
        **inputs_of(prompt), max_new_tokens=4, min_new_tokens=4, do_sample=False, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    state = model.prefill(prompt)
    for step, token in zip(made.logits, made.sequences[0, -4:].tolist(), strict=True):
        torch.testing.assert_close(state.logits, step[0], atol=1e-4, rtol=0)
        state = model.extend(state, [token])


def test_a_still_picture_is_seen_as_a_frame_is(folder: Path) -> None:
    model = model_of(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8)
    prompt = prompt_of(model.spec, [Message("user", "what is it?", (Image(pixels),))])
    [picture] = prompt.visuals
    assert (picture.tokens, prompt.text.count("<im_patch>")) == (6, 1)
    model.prefill(prompt)


@pytest.mark.parametrize("sharing", [False, True])
def test_what_is_learned_together_is_learned_as_from_each_alone(sharing: bool, folder: Path) -> None:
    learner, network = learner_of(folder, parts=ALL), type(theirs(folder)).from_pretrained(folder, dtype="float32")
    told = [("how many?", "Two.", 0), ("where?", "On the left.", 0), ("which colour?", "Red.", 1)]
    turns = [[seen(folder, asked, 3, seed), Message("assistant", answer)] for asked, answer, seed in told]
    examples = [build_example(turn, learner.spec, learner.lmm.tokenizer) for turn in turns]
    expected = [apart(network, (example, inputs_of(example.prompt))) for example in examples]
    check_as_if_alone(learner, examples, network, expected, sharing=sharing)


def test_nothing_is_kept_of_frames_while_the_marks_around_them_learn(folder: Path) -> None:
    learned, frozen = (learner_of(folder, parts=Parts(language_model=1e-3, embeddings=rate)) for rate in (None, 0.0))
    assert (learned.stage, frozen.stage) == (None, "tokens")


@pytest.mark.parametrize(
    ("video", "refused", "message"),
    [
        ({"pooling_size": [2, 2]}, None, ""),
        ({"pooling_size": [4, 4]}, UnsupportedModel, r"pools 6 patches by \[4, 4\]"),
        ({"patch_size": 12}, IncompleteModel, "in patches of 12 px are none of its tower"),
        ({"size": {"height": 84, "width": 56}}, IncompleteModel, "are none of its tower"),
    ],
)
def test_frames_are_those_of_the_video_processor(
    video: dict[str, Any], refused: type[Exception] | None, message: str, folder: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    edit(copy / "processor_config.json", video_processor=video)
    if refused is None:
        assert noisy(copy, frames=3).visuals[0].tokens == 3 * (9 + 2)
        return
    with pytest.raises(refused, match=message):
        read_spec(copy)


def test_a_tower_may_be_told_in_the_words_of_its_first_releases(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    vision = config.pop("vision_config")
    config["vit_config"] = {"image_default_input_size": vision.pop("image_size"),
                            "image_patch_size": vision.pop("patch_size"), **vision}  # fmt: skip
    (copy / "config.json").write_text(json.dumps(config))
    assert replace(read_spec(copy), folder=folder) == read_spec(folder)


@pytest.mark.parametrize("begun", [0, 1])
def test_no_mask_holds_all_of_a_long_prompt(begun: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also behind a text that is read already, a few rows at a time it is the prompt read at once."""
    model, prompt = model_of(folder), noisy(folder)
    made: list[Tensor] = []
    state, ready = model.prefill(prompt), model.prepare([prompt])[0].part(begun)
    state.kv.rewind(begun)
    rows = Sight.__getitem__
    monkeypatch.setattr(Sight, "__getitem__", lambda self, at: (made.append(rows(self, at)), made[-1])[1])
    monkeypatch.setattr("vidllm.model.attention.ROWS", 8)
    torch.testing.assert_close(model.read(ready.embeddings, state.kv, ready.positions, **ready.deep), state.logits,
                               atol=1e-5, rtol=0)  # fmt: skip
    assert len(made) > 2
    assert max(mask.shape[-2] for mask in made) <= 8
