"""Aya Vision and Command A Vision, whose tiles have words between them: ids and logits are those of transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import (
    AutoTokenizer,
    AyaVisionProcessor,
    Cohere2VisionProcessor,
    GotOcr2ImageProcessorPil,
)

import vidllm
from tests.conftest import write_clip
from tests.planned import QUESTION, clip_of, copied, noise, prompt_of, spec_of, tiny_folder
from tests.test_lmm import load
from tests.test_native import check_logits, torchvision_by_name
from tests.tiny_models import edit
from vidllm.errors import ConfigError, IncompleteModel
from vidllm.model.anyres import canvases, cover_grid
from vidllm.model.families import read_spec
from vidllm.model.stills import shown_still
from vidllm.prompt import Message, Prompt
from vidllm.visuals import Image

FAMILIES = ("aya_vision", "cohere2_vision")
PICTURE = {
    "aya_vision": "<|START_OF_IMG|>TILE_GLOBAL<|IMG_PATCH|><|END_OF_IMG|>",
    "cohere2_vision": "<|START_OF_IMG|><|IMG_PATCH|><|IMG_LINE_BREAK|><|END_OF_IMG|>",
}
MARKER = {"aya_vision": "<image>", "cohere2_vision": "<|IMG_PATCH|>"}
SIZES = [[(112, 112)], [(100, 320)], [(400, 130)], [(250, 250)], [(30, 40), (90, 400)]]
"""One tile, a row, a column, a square of tiles, and two pictures in a prompt."""


@cache
def covering_canvas() -> Callable[..., tuple[int, int]]:
    """Which canvas Command A Vision takes, by its own processor."""
    with torchvision_by_name():
        from transformers.models.cohere2_vision.image_processing_cohere2_vision import get_optimal_tiled_canvas

        return get_optimal_tiled_canvas  # type: ignore[no-any-return]


@cache
def processor(family: str) -> Any:
    """The family's own. Command A Vision's resizes with Pillow here, as Aya Vision's, of which it is made."""
    folder = tiny_folder(family)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    images = GotOcr2ImageProcessorPil.from_pretrained(folder, crop_to_patches=True)
    if family == "aya_vision":
        return AyaVisionProcessor(images, tokenizer, img_size=112)
    return Cohere2VisionProcessor(images, tokenizer)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "cohere2_vision":
        module = "transformers.models.got_ocr2.image_processing_pil_got_ocr2"
        monkeypatch.setattr(f"{module}.get_optimal_tiled_canvas", covering_canvas())
    return str(request.param)


def assert_equal(prompt: Prompt, text: str, pictures: Sequence[NDArray[np.uint8]]) -> None:
    """The prompt's ids are what the real processor makes of `text` with these pictures, and so are the logits."""
    spec = prompt.spec
    inputs = processor(spec.model_type)(text=text, images=list(pictures), add_special_tokens=False, return_tensors="pt")
    assert list(prompt.input_ids) == inputs["input_ids"][0].tolist()
    check_logits(load(spec.folder), prompt, {name: inputs[name] for name in ("input_ids", "pixel_values")})


def asked(content: str) -> str:
    return (
        f"<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>{content}{QUESTION}<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>"
    )


@pytest.mark.usefixtures("across_first")
@pytest.mark.parametrize("sizes", SIZES)
def test_still_images_equal_transformers(family: str, sizes: list[tuple[int, int]]) -> None:
    pictures = [noise(*size) for size in sizes]
    prompt = prompt_of(spec_of(family), [Message("user", QUESTION, tuple(map(Image, pictures)))])
    assert_equal(prompt, asked(MARKER[family] * len(sizes)), pictures)


def test_a_video_equals_transformers_own_pictures(family: str) -> None:
    """Its frames as so many pictures, in a text that tells the time of each."""
    spec = spec_of(family)
    clip = clip_of(spec, QUESTION, frames=4, policy="uniform")
    frames = [noise(112 + number, 112)[:112] for number in range(4)]
    clip = replace(clip, frames=replace(clip.frames, pixels=np.stack(frames)))
    prompt = prompt_of(spec, [Message("user", QUESTION, (clip,))])
    times = [f"0:{int(t):02}" for t in clip.frames.pts_seconds]
    text = asked("".join(f"[{time}] {MARKER[family]}\n" for time in times))
    assert prompt.text == text.replace(MARKER[family], PICTURE[family])
    assert_equal(prompt, text, frames)


def test_words_stand_between_the_tiles(family: str) -> None:
    """Each tile is one run of tokens, and pictures are encoded a tile at a time."""
    spec = spec_of(family)
    prompt = prompt_of(spec, [Message("user", QUESTION, (Image(noise(100, 320)),))])
    assert shown_still(100, 320, spec).tiles == len(prompt.visuals) == 4
    tiles = {
        "aya_vision": "TILE_1<|IMG_PATCH|>TILE_2<|IMG_PATCH|>TILE_3<|IMG_PATCH|>TILE_GLOBAL<|IMG_PATCH|>",
        "cohere2_vision": "<|IMG_PATCH|><|IMG_LINE_BREAK|>" * 4,
    }
    assert f"<|START_OF_IMG|>{tiles[family]}<|END_OF_IMG|>" in prompt.text
    assert [visual.tokens for visual in prompt.visuals] == [16] * 4
    for visual in prompt.visuals:
        run = prompt.input_ids[visual.position : visual.position + visual.tokens]
        assert set(run) == {spec.image_token_id}


def test_a_prompt_beyond_the_window_equals_transformers(family: str, tmp_path: Path) -> None:
    """Every other layer sees only the last tokens of it."""
    folder = copied(family, tmp_path)
    edit(folder / "config.json", text_config={"sliding_window": 24})
    prompt = prompt_of(read_spec(folder), [Message("user", QUESTION, (Image(noise(100, 320)),))])
    assert_equal(prompt, asked(MARKER[family]), [noise(100, 320)])
    model, ids = load(folder), [*range(40, 70)]
    state = model.prefill(prompt)
    whole = model.extend(state, ids)
    for token in ids:
        state = model.extend(state, [token])
    torch.testing.assert_close(state.logits, whole.logits, atol=1e-5, rtol=0)


def test_the_tokens_told_of_pictures_are_those_of_all_their_tiles(family: str, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", [0.0, 0.5, 1.0])
    media = [Image(noise(100, 320)), tmp_path / "clip.mp4", Image(noise(60, 60))]
    answer = vidllm.load(tiny_folder(family), device="cpu", cache=None).ask(media, "what?", frames=2, max_new_tokens=2)
    assert [frame.tokens for frame in answer.frames] == [64, 16, 16, 16]
    assert sum(frame.tokens for frame in answer.frames) == answer.usage.video_tokens


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 12))
def test_the_canvas_is_the_one_command_a_vision_takes(height: int, width: int, most: int) -> None:
    resolutions = [(rows * 512, cols * 512) for rows, cols in canvases(1, most)]
    rows, cols = cover_grid((height, width), 512, resolutions)
    assert (cols, rows) == covering_canvas()((height, width), (512, 512), 1, most)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_config_leaves_out_is_what_its_classes_take(family: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    joined = {"aya_vision": 3, "cohere2_vision": None}[family]  # 2 does not divide the sides of Aya's default tower
    folder = copied(family, tmp_path)
    edit(folder / "config.json", vision_config=None, text_config=None, downsample_factor=joined)
    spec, config = read_spec(folder), AutoConfig.from_pretrained(folder)
    vision, text = config.vision_config, config.text_config
    assert (spec.image_size, spec.patch_size) == (vision.image_size, vision.patch_size)
    assert (spec.context, spec.text_type) == (text.max_position_embeddings, text.model_type)
    assert spec.geometry.rows == vision.image_size // vision.patch_size // config.downsample_factor  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("family", "file"), [("aya_vision", "processor_config.json"), ("cohere2_vision", "tokenizer_config.json")]
)
def test_words_that_are_no_tokens_are_one_line(family: str, file: str, tmp_path: Path) -> None:
    folder = copied(family, tmp_path)
    edit(folder / file, start_of_img_token="<a>", extra_special_tokens={"boi_token": "<a>"})
    with pytest.raises(IncompleteModel, match=r"tokenizer\.json has no '<a>'"):
        read_spec(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_patches_that_can_not_be_joined_are_one_line(family: str, tmp_path: Path) -> None:
    folder = copied(family, tmp_path)
    (folder / "vidllm.json").write_text('{"pool_before_projector": true}')
    with pytest.raises(ConfigError, match="pool_before_projector can not be set for"):
        read_spec(folder)
    edit(folder / "config.json", downsample_factor=3)
    with pytest.raises(IncompleteModel, match="8 patches a side are no multiple of 3, by which"):
        read_spec(folder)
