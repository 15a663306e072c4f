"""Idefics3, every frame a picture behind its time: ids, squares and logits are those of transformers' classes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import AutoTokenizer, Idefics3ImageProcessorPil, Idefics3Processor
from transformers.models.idefics3.image_processing_pil_idefics3 import get_resize_output_image_size

from tests.planned import QUESTION, clip_of, copied, noise, prompt_of, spec_of, tiny_folder
from tests.test_native import check_logits, load
from tests.tiny_models import edit
from vidllm.errors import IncompleteModel
from vidllm.geometry import NativeGeometry
from vidllm.model.checkpoint import load_model
from vidllm.model.families import read_spec
from vidllm.model.smolvlm import SmolVLM, scaled_size
from vidllm.prompt import Message, Prompt
from vidllm.visuals import Image

PICTURE = "<fake_token_around_image><global-img><image><fake_token_around_image>"


@cache
def processor() -> Any:
    """The family's own, which does not split pictures."""
    folder = tiny_folder("idefics3")
    images = Idefics3ImageProcessorPil.from_pretrained(folder, do_image_splitting=False)
    return Idefics3Processor(images, AutoTokenizer.from_pretrained(folder), image_seq_len=4)


def assert_equal(prompt: Prompt, text: str, pictures: list[NDArray[np.uint8]], *, scaled: bool = True) -> None:
    """The prompt's ids are what the real processor makes of `text` with these pictures, and so are the logits."""
    inputs = processor()(
        text=text, images=[pictures], add_special_tokens=False, do_resize=scaled, return_tensors="pt"
    )
    assert list(prompt.input_ids) == inputs["input_ids"][0].tolist()
    check_logits(load(tiny_folder("idefics3")), prompt, inputs)


@pytest.mark.usefixtures("across_first")
@pytest.mark.parametrize("sizes", [[(128, 128)], [(100, 320)], [(700, 130)], [(30, 40), (90, 401)], [(5, 900)]])
def test_still_images_equal_transformers(sizes: list[tuple[int, int]]) -> None:
    spec, pictures = spec_of("idefics3"), [noise(*size) for size in sizes]
    prompt = prompt_of(spec, [Message("user", QUESTION, tuple(map(Image, pictures)))])
    content = [*({"type": "image"} for _ in sizes), {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}]
    text = processor().tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert_equal(prompt, text, pictures)


@pytest.mark.parametrize("count", [1, 5])
def test_a_video_equals_transformers_own_pictures(count: int) -> None:
    """Its frames as so many pictures, in a text that tells the time of each."""
    spec = spec_of("idefics3")
    clip = clip_of(spec, QUESTION, frames=count, policy="uniform")
    pictures = [noise(128 + number, 128)[:128] for number in range(count)]
    clip = replace(clip, frames=replace(clip.frames, pixels=np.stack(pictures)))
    prompt = prompt_of(spec, [Message("user", QUESTION, (clip,))])
    times = [f"0:{t:02.0f}" for t in np.floor(clip.frames.pts_seconds)]
    frames = "".join(f"[{time}] <image>\n" for time in times)
    text = f"<|im_start|>User:{frames}{QUESTION}<end_of_utterance>\nAssistant:"
    assert prompt.text == text.replace("<image>", PICTURE)
    assert_equal(prompt, text, pictures, scaled=False)


@pytest.mark.parametrize("family", ["idefics3", "smolvlm"])
@pytest.mark.parametrize("said", [{}, {"do_resize": False}, {"size": {"longest_edge": 700}}])
def test_a_picture_is_scaled_before_it_becomes_a_square(family: str, said: dict[str, Any], tmp_path: Path) -> None:
    folder = copied(family, tmp_path)
    edit(folder / "preprocessor_config.json", **said)
    images = Idefics3ImageProcessorPil.from_pretrained(
        folder, do_image_splitting=False, do_rescale=False, do_normalize=False, do_pad=False
    )
    model = load_model(folder, device="cpu", dtype="float32")
    assert isinstance(model, SmolVLM)
    expected = images(noise(60, 301))["pixel_values"][0][0].transpose(1, 2, 0)
    assert np.array_equal(model._fitted(noise(60, 301)[None])[0], expected)


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([364 * 4, 512, 2048, 97]))
def test_the_scale_is_the_one_transformers_takes(height: int, width: int, longest: int) -> None:
    picture = np.broadcast_to(np.uint8(0), (3, height, width))
    assert scaled_size(height, width, longest) == get_resize_output_image_size(picture, longest)


def test_what_a_config_leaves_out_is_what_its_classes_take(tmp_path: Path) -> None:
    folder = copied("idefics3", tmp_path)
    edit(folder / "config.json", scale_factor=None, vision_config={"patch_size": 14})
    edit(folder / "preprocessor_config.json", max_image_size=None, size=None, image_mean=None, image_std=None)
    spec, images = read_spec(folder), Idefics3ImageProcessorPil.from_pretrained(folder)
    square, longest = images.max_image_size["longest_edge"], images.size["longest_edge"]
    assert spec.geometry == NativeGeometry(patch=14, merge=2, square=square, image_longest=longest)
    assert (spec.image_mean, spec.image_std) == (images.image_mean, images.image_std)
    edit(folder / "config.json", scale_factor=5)
    with pytest.raises(IncompleteModel, match="26 patches a side, no multiple of scale factor 5"):
        read_spec(folder)
