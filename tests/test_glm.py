"""GLM-4.1V, GLM-4.5V and GLM-4.6V, whose videos are dated pictures: ids, positions and logits are transformers' own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoTokenizer, Glm4vImageProcessorPil, Glm46VImageProcessorPil
from transformers.models.glm4v.image_processing_pil_glm4v import smart_resize
from transformers.models.glm4v.processing_glm4v import Glm4vProcessor
from transformers.models.glm46v.processing_glm46v import Glm46VProcessor
from transformers.video_utils import VideoMetadata

from tests.planned import QUESTION, clip_of, copied, noise, noisy, prompt_of, spec_of, tiny_folder
from tests.test_native import check_logits, hf_inputs, load
from tests.tiny_models import edit
from vidllm.clip import Clip
from vidllm.errors import IncompleteModel
from vidllm.geometry import NativeGeometry
from vidllm.model.families import read_spec
from vidllm.prompt import Message
from vidllm.visuals import Image

FAMILIES = ("glm4v", "glm4v_moe", "glm46v")


def processor_of(family: str) -> Any:
    """The family's own without its video processor, which wants torchvision: what it does with texts needs none."""
    made: Any = object.__new__(Glm46VProcessor if family == "glm46v" else Glm4vProcessor)
    images = Glm46VImageProcessorPil if family == "glm46v" else Glm4vImageProcessorPil
    made.tokenizer = AutoTokenizer.from_pretrained(tiny_folder(family))
    made.image_processor = images.from_pretrained(tiny_folder(family))
    made.video_processor = SimpleNamespace(merge_size=2)
    made.image_token = "<|image|>"
    made.image_token_id, made.video_start_id, made.video_end_id = made.tokenizer.convert_tokens_to_ids(
        ["<|image|>", "<|begin_of_video|>", "<|end_of_video|>"]
    )
    return made


def grids_of(processor: Any, media: list[Clip | Image]) -> list[list[int]]:
    """(groups, rows, cols) in patches of every medium."""

    def grid(medium: Clip | Image) -> list[int]:
        if isinstance(medium, Image):
            return list(processor.image_processor(medium.pixels, return_tensors="np")["image_grid_thw"][0])
        frames, height, width, _ = medium.frames.pixels.shape
        return [-(-frames // 2), height // 14, width // 14]

    return [grid(medium) for medium in media]


def expanded(processor: Any, text: str, media: list[Clip | Image]) -> str:
    """The template's text with every placeholder as the family's processor replaces it."""
    for one, grid in zip(media, grids_of(processor, media), strict=True):
        if isinstance(one, Clip):
            at = [round(1000 * float(time)) for time in one.frames.pts_seconds]
            meta = VideoMetadata(total_num_frames=60000, fps=1000.0, frames_indices=at)
            inputs = {"video_grid_thw": np.array([grid]), "video_metadata": [meta]}
            text = text.replace("<|video|>", processor.replace_video_token(inputs, 0).replace("<|image|>", "\0"), 1)
        else:
            shown = processor.replace_image_token({"image_grid_thw": np.array([grid])}, 0)
            text = text.replace("<|image|>", shown.replace("<|image|>", "\0"), 1)
    return text.replace("\0", "<|image|>")


def ids_of(processor: Any, messages: list[dict[str, Any]], media: list[Clip | Image]) -> list[int]:
    text = processor.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(processor.tokenizer(expanded(processor, text, media))["input_ids"])


def asked(*kinds: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*({"type": kind} for kind in kinds), {"type": "text", "text": QUESTION}]}]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("frames", [1, 4, 7])
def test_videos_equal_transformers(family: str, frames: int) -> None:
    """Every pair of frames with the time of its first: whole seconds, GLM-4.6V's in tenths and in words."""
    processor, model = processor_of(family), load(tiny_folder(family))
    clip = noisy(model.spec, frames=frames)
    prompt = prompt_of(model.spec, [Message("user", QUESTION, (clip,))])
    assert list(prompt.input_ids) == ids_of(processor, asked("video"), [clip])
    assert prompt.text_tokens == clip.plan.text_tokens
    assert prompt.video_tokens == clip.plan.video_tokens
    inputs = hf_inputs(model, prompt, clip.frames.pixels, seconds=0)
    inputs["mm_token_type_ids"] = torch.tensor(processor.create_mm_token_type_ids([prompt.input_ids]))
    check_logits(model, prompt, inputs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sizes", [[(300, 421)], [(9, 160)], [(40, 40), (120, 64)]])
def test_still_images_equal_transformers(family: str, sizes: list[tuple[int, int]]) -> None:
    """One of any size, one thinner than a token, and two in a prompt."""
    processor, model = processor_of(family), load(tiny_folder(family))
    pictures = [Image(noise(*size)) for size in sizes]
    prompt = prompt_of(model.spec, [Message("user", QUESTION, tuple(pictures))])
    ids = ids_of(processor, asked(*["image"] * len(sizes)), list(pictures))
    assert list(prompt.input_ids) == ids
    seen = processor.image_processor([one.pixels for one in pictures], return_tensors="pt")
    kinds = torch.tensor(processor.create_mm_token_type_ids([ids]))
    check_logits(model, prompt, {"input_ids": torch.tensor([ids]), "mm_token_type_ids": kinds, **seen})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_question_alone_equals_transformers(family: str) -> None:
    processor, model = processor_of(family), load(tiny_folder(family))
    prompt = prompt_of(model.spec, [Message("user", QUESTION)])
    assert list(prompt.input_ids) == ids_of(processor, asked(), [])
    check_logits(model, prompt, {"input_ids": torch.tensor([prompt.input_ids])})


def test_positions_of_pictures_among_videos_are_transformers_own() -> None:
    """Its classes can not be given both, but they count them."""
    processor, model = processor_of("glm4v"), load(tiny_folder("glm4v"))
    clips = clip_of(model.spec, frames=3), clip_of(model.spec, frames=2)
    media = [clips[0], Image(noise(300, 200)), clips[1], Image(noise(60, 90))]
    prompt = prompt_of(model.spec, [Message("user", QUESTION, tuple(media))])
    ids = ids_of(processor, asked("video", "image", "video", "image"), media)
    assert list(prompt.input_ids) == ids
    grids = torch.tensor(grids_of(processor, media))
    expected, offset = model.model.get_rope_index(
        torch.tensor([ids]), torch.tensor(processor.create_mm_token_type_ids([ids])),
        image_grid_thw=grids[1::2], video_grid_thw=grids[::2],
    )  # fmt: skip
    positions = model.positions_of(prompt.input_ids, prompt.visuals)
    assert torch.equal(positions[0], expected)
    assert positions[1] == int(offset)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dialogue_is_printed_as_the_template_prints_texts(family: str) -> None:
    """GLM-4.1V's prints an answer as it is, and would print a list of parts as Python writes it; the others' leave out
    what was thought."""
    processor, spec = processor_of(family), spec_of(family)
    answer = "<think>a list?</think>\nNo."
    messages = asked("image")
    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "and then?"}]
    messages.insert(0, {"role": "system", "content": "Be short."})
    picture = Image(noise(60, 90))
    prompt = prompt_of(spec, [
        Message("system", "Be short."), Message("user", QUESTION, (picture,)), Message("assistant", answer),
        Message("user", "and then?"),
    ])  # fmt: skip
    assert list(prompt.input_ids) == ids_of(processor, messages, [picture])
    assert ("a list?" in prompt.text) == (family == "glm4v")
    assert "{" not in prompt.text


SIDES = st.integers(1, 3000)


@given(SIDES, SIDES, st.sampled_from([(12544, 9633792), (12544, 47040000), (2 * 4 * 28**2, 2 * 50 * 28**2)]))
@example(20, 1000, (12544, 9633792))
def test_a_picture_has_the_size_transformers_gives_it(height: int, width: int, bounds: tuple[int, int]) -> None:
    least, most = bounds
    geometry = NativeGeometry(
        patch=14, merge=2, temporal_patch=2, image_min_pixels=least // 2, image_max_pixels=most // 2, enlarges=True
    )
    try:
        expected = smart_resize(2, height, width, min_pixels=least, max_pixels=most)
    except ValueError:  # a strip: 200 times as long as wide
        return
    assert geometry.image_size(height, width) == expected


@pytest.mark.parametrize(
    ("family", "named", "told"),
    [("glm4v", "Glm46VProcessor", "29.8 seconds"), ("glm46v", "Glm4vProcessor", "29"), ("glm46v", None, "29.8 seconds"),
     ("glm4v_moe", None, "29"), ("glm4v_moe", "Glm46VProcessor", "29.8 seconds")],
)  # fmt: skip
def test_the_processor_says_how_times_are_told(family: str, named: str | None, told: str, tmp_path: Path) -> None:
    """GLM-4.6V's checkpoints are of GLM-4.1V's and GLM-4.5V's classes, but for their processor."""
    folder = copied(family, tmp_path)
    edit(folder / "preprocessor_config.json", processor_class=named)
    spec = read_spec(folder)
    text = prompt_of(spec, [Message("user", "?", (clip_of(spec, frames=5),))]).text
    assert f"<|end_of_image|>{told}<|begin_of_image|>" in text


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_config_leaves_out_has_the_default_of_its_class(family: str, tmp_path: Path) -> None:
    folder = copied(family, tmp_path)
    edit(folder / "config.json", vision_config=None, text_config={"max_position_embeddings": None})
    edit(folder / "preprocessor_config.json", size=None, image_mean=None)
    config, images = AutoConfig.from_pretrained(folder), Glm4vImageProcessorPil.from_pretrained(folder)
    spec = read_spec(folder)
    assert spec.context == config.text_config.max_position_embeddings
    assert isinstance(spec.geometry, NativeGeometry)
    assert (spec.geometry.patch, spec.geometry.merge) == (14, 2)
    assert 2 * spec.geometry.image_min_pixels == images.size["shortest_edge"]
    assert 2 * spec.geometry.image_max_pixels == images.size["longest_edge"]
    edit(folder / "config.json", image_token_id=None, text_config=None)
    token_id = AutoConfig.for_model(family).image_token_id
    with pytest.raises(IncompleteModel, match=f"visual token {token_id} is no added"):
        read_spec(folder)
