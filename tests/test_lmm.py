"""ComposableLMM against transformers' own classes: same pixels, same template, same logits."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests import tiny_models
from vidllm.errors import ModelError
from vidllm.model.checkpoint import load_model
from vidllm.model.lmm import ComposableLMM
from vidllm.model.anyres import anyres_tokens, cut_tiles, tile_grid
from vidllm.prompt import Prompt, Visual

TOLERANCE = 1e-4


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """name -> folder of a tiny checkpoint, built once per run."""
    root = tmp_path_factory.mktemp("tiny")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            (root / name).mkdir()
            tiny_models.FAMILIES[name](root / name)
        return root / name

    return folder


def pictures(count: int, height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Coloured noise on a gradient, uint8 (count, height, width, 3): no two pixels of two pictures alike."""
    noise = np.random.default_rng(seed).integers(0, 96, (count, height, width, 3))
    return (noise + np.linspace(0, 159, width)[:, None]).astype(np.uint8)


def load(folder: Path) -> ComposableLMM:
    model = load_model(folder, device="cpu", dtype="float32")
    assert isinstance(model, ComposableLMM)
    return model


def prompt_for(model: ComposableLMM, ids: Sequence[int], visuals: Sequence[Visual], factor: float = 1.0) -> Prompt:
    tokens = sum(visual.tokens for visual in visuals)
    return Prompt(
        input_ids=tuple(ids), visuals=tuple(visuals), rope_factor=factor, spec=model.spec, text="", messages=(),
        text_tokens=len(ids) - tokens, video_tokens=tokens,
    )  # fmt: skip


def video_prompt(
    model: ComposableLMM, frames: NDArray[np.uint8], strides: Sequence[int], factor: float = 1.0
) -> Prompt:
    """USER: frames, question, ASSISTANT: with as many placeholders as the geometry promises."""
    geometry = model.spec.geometry
    counts = geometry.frame_tokens(strides)  # type: ignore[union-attr]
    before = model.tokenizer.encode("USER: ", add_special_tokens=False)
    after = model.tokenizer.encode("\nwhat happens at 0:30? ASSISTANT:", add_special_tokens=False)
    visuals = []
    position = len(before)
    for index, (stride, count) in enumerate(zip(strides, counts, strict=True)):
        last = index == len(counts) - 1
        newline = {"one": "frame" if last else "none"}.get(model.spec.newline, model.spec.newline)
        visuals.append(Visual(pixels=frames[index : index + 1], kind="frame", stride=stride, tokens=count,
                              position=position, newline=newline, times=(float(index),)))  # fmt: skip
        position += count
    ids = [*before, *[model.spec.image_token_id] * sum(counts), *after]
    return prompt_for(model, ids, visuals, factor)


def image_prompt(model: ComposableLMM, ids: Sequence[int], image: NDArray[np.uint8]) -> Prompt:
    """A still picture in the place of the placeholders the family's own processor wrote."""
    spec = model.spec
    position = list(ids).index(spec.image_token_id)
    size = (image.shape[0], image.shape[1])
    side = spec.image_size // spec.patch_size
    if not spec.image_grids:
        return prompt_for(model, ids, [Visual(pixels=image[None], kind="image", stride=1, tokens=side * side,
                                              position=position, newline="none")])  # fmt: skip
    grid = tile_grid(size, spec.image_size, spec.image_grids)
    tokens = anyres_tokens(size, grid, side, spec.image_max_tiles)
    return prompt_for(model, ids, [Visual(pixels=cut_tiles(image, spec.image_size, grid), kind="image", stride=1,
                                          tokens=tokens, position=position, newline="grid", grid=grid,
                                          source_size=size)])  # fmt: skip


def messages(kind: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": "what happens at 0:30?"}]}]


def reference(model: ComposableLMM) -> Any:
    """transformers' own class with the same weights, loaded on its own."""
    return type(model.network).from_pretrained(model.spec.folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", ["llava", "vipllava"])
def test_still_image_equals_transformers(name: str, tiny: Callable[[str], Path]) -> None:
    from transformers import AutoProcessor

    model = load(tiny(name))
    processor = AutoProcessor.from_pretrained(tiny(name))
    image = pictures(1, 112, 112)[0]
    text = processor.apply_chat_template(messages("image"), add_generation_prompt=True)
    inputs = processor(images=image, text=text, return_tensors="pt")
    with torch.no_grad():
        expected = reference(model)(**inputs).logits[0, -1]
    state = model.prefill(image_prompt(model, inputs["input_ids"][0].tolist(), image))
    assert state.length == inputs["input_ids"].shape[1]
    torch.testing.assert_close(state.logits, expected, atol=TOLERANCE, rtol=0)


def test_stop(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llava"))
    frames = pictures(4, 112, 112)
    state = model.prefill(video_prompt(model, frames, [2, 4, 2, 4]))
    assert state.frames_encoded == 4
    with pytest.raises(ModelError):
        bad = video_prompt(model, frames, [2, 4, 2, 4])
        object.__setattr__(bad.visuals[0], "stride", 1)
        model.prefill(bad)
