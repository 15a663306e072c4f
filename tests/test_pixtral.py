"""Pixtral and Mistral Small 3.1, every frame a picture: ids and logits are those of transformers' own classes."""

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
from transformers import AutoTokenizer, PixtralImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import get_resize_output_image_size

from tests import tiny_models
from tests.planned import QUESTION, clip_of, copied, picture, prompt_of, spec_of
from tests.test_native import check_logits, torchvision_by_name
from tests.tiny_models import edit
from vidllm.clip import Clip
from vidllm.errors import IncompleteModel, ModelError, UnsupportedModel
from vidllm.geometry import NativeGeometry, bounded_size
from vidllm.model.checkpoint import load_model
from vidllm.model.families import load_tokenizer, read_spec
from vidllm.model.features import FeatureCache
from vidllm.model.lmm import VideoLMM
from vidllm.model.spec import ModelSpec
from vidllm.prompt import Message, Prompt, build_example
from vidllm.visuals import Image

with torchvision_by_name():
    from transformers.models.pixtral.processing_pixtral import PixtralProcessor

BOTH = pytest.mark.parametrize("family", ["pixtral", "mistral3"])


@cache
def processor(folder: Path) -> Any:
    """The family's own, with the image processor that needs no torchvision."""
    patch, merge = {"pixtral": (16, 1), "mistral3": (14, 2)}[read_spec(folder).model_type]
    images, tokenizer = PixtralImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    return PixtralProcessor(images, tokenizer, patch_size=patch, spatial_merge_size=merge)


@cache
def lmm(folder: Path) -> VideoLMM:
    return load_model(folder, device="cpu", dtype="float32")


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)


def noisy_clip(spec: ModelSpec, size: tuple[int, int] | None = None, **options: object) -> Clip:
    """A clip whose frames are as the plan wants them, or of another size."""
    clip = clip_of(spec, QUESTION, **options)
    height, width = size or clip.plan.frame_size or (0, 0)
    assert isinstance(spec.geometry, NativeGeometry)
    frames = tuple(replace(frame, tokens=spec.geometry.tokens(height, width)) for frame in clip.plan.frames)
    plan = replace(clip.plan, frames=frames, video_tokens=sum(frame.tokens for frame in frames))
    pixels = noise(len(frames), height, width, seed=height)
    return replace(clip, plan=plan, frames=replace(clip.frames, pixels=pixels))


def pictures_of(prompt: Prompt) -> list[NDArray[np.uint8]]:
    """Everything that is shown, frame by frame."""
    return [pixels for visual in prompt.visuals for pixels in visual.pixels]


def check_against_transformers(prompt: Prompt, folder: Path) -> None:
    """What transformers makes of the same text and pictures: the same ids, and the same logits."""
    shown = pictures_of(prompt)
    inputs = processor(folder)(text=[prompt.text], images=[shown] if shown else None, add_special_tokens=False,
                               return_tensors="pt")  # fmt: skip
    assert inputs["input_ids"][0].tolist() == list(prompt.input_ids)
    check_logits(lmm(folder), prompt, inputs)


@pytest.mark.usefixtures("across_first")
@BOTH
@pytest.mark.parametrize(
    "sizes", [[(64, 96)], [(100, 320)], [(400, 130)], [(15, 33)], [(20, 700)], [(30, 40), (90, 400), (250, 250)], []]
)
def test_still_images_equal_transformers(family: str, sizes: list[tuple[int, int]]) -> None:
    """Small ones grow to whole tokens, large ones shrink, and several of unlike sizes stand in one prompt."""
    spec = spec_of(family)
    media = tuple(Image(noise(*size)) for size in sizes)
    prompt = prompt_of(spec, [Message("user", QUESTION, media)])
    content = [*({"type": "image"} for _ in sizes), {"type": "text", "text": QUESTION, "content": QUESTION}]
    messages = [{"role": "user", "content": content}]
    printed = processor(spec.folder).tokenizer.apply_chat_template(messages, tokenize=False)
    assert prompt.text == printed
    check_against_transformers(prompt, spec.folder)


@BOTH
def test_a_video_is_its_frames_as_pictures_behind_their_times(family: str) -> None:
    """Nothing the processor does to a picture changes a frame: it has the size that was planned, to the last token."""
    spec = spec_of(family)
    prompt = prompt_of(spec, [Message("user", QUESTION, (noisy_clip(spec, frames=5),))])
    assert "[INST][0:00.0] [IMG]\n[0:29.5] [IMG]\n[0:30.0] [IMG]\n" in prompt.text
    assert f"[IMG]\n{QUESTION}[/INST]" in prompt.text
    check_against_transformers(prompt, spec.folder)


@BOTH
def test_videos_and_pictures_of_unlike_sizes_stand_in_one_prompt(family: str) -> None:
    spec = spec_of(family)
    unit = 16 if family == "pixtral" else 28
    media = (
        noisy_clip(spec, frames=3), Image(noise(90, 33)), noisy_clip(spec, (3 * unit, unit), frames=4),
        noisy_clip(spec, (unit, 3 * unit), frames=2),
    )  # fmt: skip
    prompt = prompt_of(spec, [Message("user", "compare", media)])
    check_against_transformers(prompt, spec.folder)
    assert [visual.tokens for visual in prompt.visuals][2:] == [4 * 3 * 2, 2 * 4]


@BOTH
def test_a_rope_factor_is_what_divides_the_positions(family: str) -> None:
    spec = replace(spec_of(family), context=150)
    prompt = prompt_of(spec, [Message("user", QUESTION, (noisy_clip(spec, frames=4, max_new_tokens=9),))])
    assert prompt.rope_factor > 1
    check_against_transformers(prompt, spec.folder)
    model = lmm(spec.folder)
    whole = model.prefill(replace(prompt, input_ids=(*prompt.input_ids, 65, 66))).logits
    assert (whole - model.extend(model.prefill(prompt), [65, 66]).logits).abs().max() < 1e-5


@BOTH
def test_features_are_kept_by_size_and_pixels(family: str, tmp_path: Path) -> None:
    """The same bytes as a row and as a column of tokens; the second time none of them goes through the tower."""
    spec = spec_of(family)
    unit = 16 if family == "pixtral" else 28
    pixels = noise(unit, 2 * unit)
    media = (Image(pixels), Image(pixels.reshape(2 * unit, unit, 3)), noisy_clip(spec, frames=2))
    prompt = prompt_of(spec, [Message("user", QUESTION, media)])
    plain, cold, warm = (lmm(spec.folder).prefill(prompt, kept) for kept in (None, *[FeatureCache(tmp_path)] * 2))
    assert (plain.frames_encoded, cold.frames_encoded, warm.frames_encoded) == (4, 4, 0)  # type: ignore[attr-defined]
    assert torch.equal(plain.logits, cold.logits)
    assert torch.equal(plain.logits, warm.logits)
    check_against_transformers(prompt, spec.folder)


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([14, 16, 28]), st.sampled_from([1000, 1024, 1540]))
def test_a_picture_gets_the_size_that_transformers_gives_it(height: int, width: int, unit: int, longest: int) -> None:
    theirs = get_resize_output_image_size(np.zeros((3, height, width), bool), longest, unit, "channels_first")
    mine = bounded_size(height, width, unit, longest)
    assert mine == (max(theirs[0], unit), max(theirs[1], unit)), "theirs is nothing of a strip that rounds to nothing"


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 20))
def test_frames_are_pictures_that_need_no_more_scaling(height: int, width: int, units: int) -> None:
    """Of every size there is to choose from; each smaller one has fewer tokens, what ends the rows included."""
    geometry = NativeGeometry(
        patch=14, merge=2, max_pixels=100 * 28**2, min_pixels=28**2, longest_edge=units * 28, row_end=1
    )
    sizes = geometry.sizes(height, width)
    assert all(geometry.image_size(*size) == size for size in sizes)
    tokens = [geometry.tokens(*size) for size in sizes]
    assert tokens == [rows // 28 * (cols // 28 + 1) for rows, cols in sizes]
    assert sorted(set(tokens), reverse=True) == tokens


def test_smaller_frames_make_room() -> None:
    """Sixty frames of 40 tokens are too many for this context; sixty smaller ones fit, and the prompt says so."""
    spec = replace(spec_of("pixtral"), context=1024)
    clip = noisy_clip(spec, frames=60)
    assert clip.plan.frame_size != (80, 128)
    prompt = prompt_of(spec, [Message("user", QUESTION, (clip,))])
    assert (prompt.video_tokens, prompt.text_tokens) == (clip.plan.video_tokens, clip.plan.text_tokens)
    check_against_transformers(prompt, spec.folder)


def test_ministral_3_scales_its_queries_by_their_positions(tmp_path: Path) -> None:
    """Another language model behind the tower."""
    from transformers import AutoConfig, Mistral3Config, Mistral3ForConditionalGeneration

    config: Any = Mistral3Config.from_pretrained(tiny_models.mistral3(tmp_path))
    rope = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 64.0, "original_max_position_embeddings": 64,
            "llama_4_scaling_beta": 0.5}  # fmt: skip
    config.text_config = AutoConfig.for_model(
        "ministral3", vocab_size=config.text_config.vocab_size, **tiny_models.TEXT, num_key_value_heads=2, head_dim=8,
        max_position_embeddings=4096, rope_parameters=rope,
    )  # fmt: skip
    network: Any = tiny_models._noise(Mistral3ForConditionalGeneration(config))
    network.save_pretrained(tmp_path)
    spec = read_spec(tmp_path)
    assert (spec.text_type, spec.context) == ("ministral3", 4096)
    check_against_transformers(prompt_of(spec, [Message("user", QUESTION, (noisy_clip(spec, frames=6),))]), tmp_path)


def test_a_template_that_moves_the_systems_words_can_not_be_taught() -> None:
    """Pixtral's says them before the last question, wherever that is: no prompt begins its conversation."""
    spec = spec_of("pixtral")
    turns = [Message("system", "Be short."), *[Message(role, "?") for role in ("user", "assistant") * 2]]
    with pytest.raises(IncompleteModel, match="prints earlier turns otherwise once more turns follow"):
        build_example(turns, spec, load_tokenizer(spec.folder))


def test_a_break_in_a_question_is_text_even_where_it_is_no_special_token(tmp_path: Path) -> None:
    folder = copied("pixtral", tmp_path)
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"special": true', '"special": false'))
    spec = read_spec(folder)
    prompt = prompt_of(spec, [Message("user", "what do [IMG] and [IMG_BREAK] mean?", (picture(30, 40),))])
    assert "[ IMG] and [ IMG_BREAK]" in prompt.text
    assert sum(token in spec.visual_ids for token in prompt.input_ids) == prompt.video_tokens == 2 * 4


def edited(family: str, tmp_path: Path, file: str, **said: object) -> Path:
    folder = copied(family, tmp_path)
    edit(folder / file, **said)
    return folder


@pytest.mark.parametrize(
    ("family", "file", "said", "error", "message"),
    [
        ("pixtral", "config.json", {"vision_feature_select_strategy": None}, IncompleteModel, "does not have; set"),
        ("pixtral", "config.json", {"vision_config": {"patch_size": 14}}, IncompleteModel, "16 px wide .* and 14 to"),
        ("mistral3", "config.json", {"spatial_merge_size": 1}, IncompleteModel, "is 28 px wide to .* and 14 to config"),
        ("mistral3", "config.json", {"vision_feature_layer": 4}, IncompleteModel, r"\[4\] of a vision tower of 3"),
        ("mistral3", "config.json", {"vision_config": {"model_type": "siglip_vision_model"}}, UnsupportedModel,
         "vision tower 'siglip_vision_model' of a mistral3; supported is pixtral"),
        ("pixtral", "preprocessor_config.json", {"size": {"longest_edge": None, "height": 64}}, IncompleteModel,
         "longest_edge is 0, a whole number"),
        ("pixtral", "processor_config.json", {"image_break_token": "[ROW]"}, IncompleteModel, "has no '.ROW.'; save"),
        ("pixtral", "config.json", {"image_token_index": 999}, IncompleteModel, "token 999 is no added token"),
    ],
)  # fmt: skip
def test_files_that_contradict_each_other_are_one_line(
    family: str, file: str, said: dict[str, object], error: type[ModelError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        read_spec(edited(family, tmp_path, file, **said))


def test_what_the_files_leave_out_is_the_classes_own(tmp_path: Path) -> None:
    """Mistral3Config's tower, patches and merging; older processors did not write the latter."""
    folder = edited("mistral3", tmp_path, "config.json", vision_config=None, spatial_merge_size=None)
    edit(folder / "processor_config.json", spatial_merge_size=None, image_break_token=None)
    edit(folder / "preprocessor_config.json", size=None)
    geometry = read_spec(folder).geometry
    assert isinstance(geometry, NativeGeometry)
    assert (geometry.patch, geometry.merge, geometry.longest_edge) == (14, 2, 1024)
