"""Pictures as the processors scale them that models are mostly run with: those of transformers with torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.conftest import needs_torchvision
from tests.planned import prompt_of, spec_of
from vidllm.model.checkpoint import load_model
from vidllm.prompt import Message
from vidllm.video.fit import scaled
from vidllm.visuals import Image

SIZES = [(30, 40), (112, 113), (100, 320), (400, 130), (60, 1000), (480, 640), (713, 401)]
PATCHES = ("patch_embedding", "patch_embed.proj", "patch_conv")
"""What the first layer of a tower is called."""


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize(("resample", "mode"), [(2, "bilinear"), (3, "bicubic")])
@pytest.mark.parametrize("target", [(112, 112), (224, 112), (112, 448), (476, 644)])
def test_a_picture_is_scaled_as_torch_scales_it(resample: int, mode: str, target: tuple[int, int]) -> None:
    """torchvision's filter is torch's. Of noise, where the other order of rows and columns is 20 grey levels away."""
    for size in SIZES:
        pixels = noise(*size)
        picture = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        theirs = interpolate(picture, target, mode=mode, antialias=True)[0].permute(1, 2, 0).numpy()
        apart = np.abs(scaled(pixels, *target, resample).astype(int) - theirs)
        assert apart.max() <= 2, size
        assert apart.mean() <= 0.05, size


def shown_to(network: nn.Module) -> list[Tensor]:
    """Where all that the network's tower is shown from now on is kept."""
    kept: list[Tensor] = []
    first = next(module for name, module in network.named_modules() if name.endswith(PATCHES))
    first.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    return kept


def rows(shown: list[Tensor]) -> Tensor:
    """Pictures, or patches without those that only fill up a batch."""
    flat = torch.cat([part.flatten(0, -4) if part.dim() > 3 else part.flatten(0, -2) for part in shown]).flatten(1)
    return flat[flat.abs().sum(1) > 0]


@needs_torchvision
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of a processor of theirs
@pytest.mark.parametrize(
    "family",
    [
        "llava_next", "llava_onevision", "gemma3", "aya_vision", "cohere2_vision", "qwen2_5_vl", "qwen3_vl", "glm4v",
        "mistral3", "video_llama_3", "lfm2_vl",
    ],
)  # fmt: skip
def test_a_tower_is_shown_what_the_processor_with_torchvision_shows_it(family: str) -> None:
    """The same ids, and pixels two grey levels apart at most, of pictures of many sizes."""
    spec = spec_of(family)
    processor = AutoProcessor.from_pretrained(spec.folder)
    reference = AutoModelForImageTextToText.from_pretrained(spec.folder, dtype=torch.float32).eval()
    model = load_model(spec.folder, device="cpu", dtype="float32")
    theirs = shown_to(reference)
    mine = shown_to(model.model if spec.kind == "native" else model.parts.vision_tower)  # type: ignore[attr-defined]
    for size in SIZES:
        theirs.clear(), mine.clear()
        content = [{"type": "image", "image": noise(*size)}, {"type": "text", "text": "what happens?"}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt",
        )  # fmt: skip
        prompt = prompt_of(spec, [Message("user", "what happens?", (Image(noise(*size)),))])
        assert list(prompt.input_ids) == inputs["input_ids"][0].tolist()
        with torch.no_grad():
            reference(**inputs)
        model.prefill(prompt)
        here, there = rows(mine), rows(theirs)
        assert here.shape == there.shape
        levels = (here - there).abs() * (255 * max(spec.image_std))
        assert levels.max() < 2.5, size  # the narrowest of three channels is taken for the widest
        assert levels.mean() <= 0.05, size
