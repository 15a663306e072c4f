"""NativeLMM against transformers' own classes of every family that lays out frames: same frames, same logits."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.test_lmm import TOLERANCE, pictures, prompt_for
from vidllm.errors import ModelError
from vidllm.model.attention import Sight
from vidllm.model.checkpoint import load_model
from vidllm.model.features import FeatureCache
from vidllm.model.native import NativeLMM
from vidllm.prompt import Prompt
from vidllm.visuals import Visual

Tiny = Callable[[str], Path]
SIZES = {
    "qwen2_vl": (56, 84), "qwen2_5_vl": (56, 84), "qwen3_vl": (64, 96), "qwen3_vl_moe": (64, 96), "smolvlm": (128, 128),
    "idefics3": (128, 128), "glm4v": (56, 84), "glm4v_moe": (56, 84), "glm46v": (84, 56), "pixtral": (64, 96),
    "mistral3": (56, 84), "qwen3_5": (64, 96), "qwen3_5_moe": (64, 96), "video_llama_3": (56, 84),
    "lfm2_vl": (64, 96), "gemma4": (24, 36), "gemma4_unified": (24, 36), "molmo2": (84, 84),
}  # fmt: skip
COMPARED = [name for name in SIZES if name not in ("gemma4_unified", "molmo2")]
"""With transformers' classes as they are. One in whose masks these contradict themselves, and one that is given more
than the others, have tests of their own.
"""
TOKENS = dict.fromkeys(SIZES, 6) | {"smolvlm": 4, "idefics3": 4, "pixtral": 28, "mistral3": 8}
"""Of one group of frames of that size: (rows / merge) * (cols / merge), with what ends the rows of a Pixtral's."""


def load(folder: Path) -> NativeLMM:
    model = load_model(folder, device="cpu", dtype="float32")
    assert isinstance(model, NativeLMM)
    return model


def video_prompt(model: NativeLMM, frames: NDArray[np.uint8], times: Sequence[float]) -> Prompt:
    """The ids the family's processor makes: one run of placeholders, or one per group of frames behind its time."""
    name = model.spec.model_type
    group, count = model.geometry.temporal_patch, TOKENS[name]
    groups = -(-len(frames) // group)
    run = model.spec.image_token if model.geometry.square else f"<|vision_start|>{model.spec.video_token}<|vision_end|>"
    marker = model.spec.image_token if model.spec.video_token_id is None else model.spec.video_token or ""
    if name.startswith("gemma4"):
        shown = " ".join(f"00:{int(t):02d} <|image>{marker * count}<image|>" for t in times)
    elif model.spec.all_two_way:
        shown = " ".join(f"{t:.1f} {marker * count}" for t in times)
    elif name.startswith("glm"):
        run = f"<|begin_of_image|>{marker * count}<|end_of_image|>"
        shown = "".join(f"{run}{int(t)}" for t in times[::group])
    elif model.spec.row_ends:
        rows, cols = (side // model.geometry.unit for side in frames.shape[1:3])
        picture = "[IMG_BREAK]".join(["[IMG]" * cols] * rows) + "[IMG_END]"
        shown = "".join(f"[{t:.1f}] {picture}\n" for t in times)
    elif model.spec.uncut_pixels:
        shown = "".join(f"[{t:.1f}] <|image_start|>{marker * count}<|image_end|>\n" for t in times)
    elif model.spec.group_joint:
        shown = ",".join(f"Time {t:.1f}s:{marker * count}" for t in times)
    elif model.spec.one_run:
        shown = run.replace(marker, marker * count * groups)
    else:
        shown = "".join(f"<{t:.1f} seconds>" + run.replace(marker, marker * count) for t in times[::group])
    ids = model.tokenizer.encode(f"user {shown} what happens at 0:30?", add_special_tokens=False).ids
    first = ids.index(model.tokenizer.token_to_id(marker))
    visual = Visual(pixels=frames, kind="video", stride=1, tokens=count * groups, position=first, newline="none",
                    times=tuple(times))  # fmt: skip
    return prompt_for(model, ids, [visual])  # type: ignore[arg-type]


@contextmanager
def torchvision_by_name() -> Iterator[None]:
    """Modules of transformers that import torchvision, to resize pictures as nothing here does, can be imported."""
    absent = "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None
    names = [f"torchvision{part}" for part in ("", ".transforms", ".transforms.v2", ".transforms.v2.functional")]
    stand_in = {name: ModuleType(name) for name in names}
    for outer, inner in pairwise(names):
        setattr(stand_in[outer], inner.rsplit(".", 1)[1], stand_in[inner])
    setattr(stand_in[names[-1]], "InterpolationMode", int)  # noqa: B010
    with mock.patch.dict(sys.modules, stand_in if absent else {}):
        yield


@cache
def qwen_layout() -> Any:
    """transformers' own video processor for the sake of its `patchify`, which is plain torch."""
    with torchvision_by_name():
        from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

        return object.__new__(Qwen2VLVideoProcessor)


@cache
def lfm_processing() -> Any:
    """transformers' own module of LFM2-VL's image processor, which scales by torchvision and cuts in plain torch."""
    with torchvision_by_name():
        return importlib.import_module("transformers.models.lfm2_vl.image_processing_lfm2_vl")


def lfm_pictures(normal: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Pictures (h, w, 3) in normalised pixels, cut and padded by transformers' own LFM2-VL."""
    theirs = lfm_processing()
    cut = [theirs.convert_image_to_patches(one.permute(2, 0, 1)[None], 16) for one in normal]
    padded = [theirs.pad_along_first_dim(one, max(part.shape[1] for part in cut)) for one in cut]
    shapes = [[one.shape[0] // 16, one.shape[1] // 16] for one in normal]
    return {"pixel_values": torch.cat([one for one, _ in padded]), "spatial_shapes": torch.tensor(shapes),
            "pixel_attention_mask": torch.stack([mask for _, mask in padded])}  # fmt: skip


def frames_in_patches(frames: NDArray[np.uint8], *, merged: bool = False) -> dict[str, torch.Tensor]:
    """Frames as Gemma 4's video processor lays them out, by what its image processor does with one: the former wants
    torchvision. Of the tiny one's 4 px patches there is room for 70 times 3x3; of its 12B as many are `merged`."""
    from transformers.models.gemma4.image_processing_pil_gemma4 import convert_image_to_patches, pad_along_first_dim

    down, right = (side // 4 for side in frames.shape[1:3])
    across = np.array([[x, y] for y in range(down) for x in range(right)])
    cells = [convert_image_to_patches(frame.transpose(2, 0, 1) / np.float32(255), 4) for frame in frames]
    padded = [pad_along_first_dim(cell, across, 70 * 9) for cell in cells]
    patches, places = (torch.from_numpy(np.stack(part)) for part in zip(*padded, strict=True))
    many = torch.tensor([len(frames)])
    if merged:
        patches, places = merged_patches(patches[:, : down * right], places[:, : down * right])
    return {"pixel_values_videos": patches, "video_position_ids": places, "num_frames_per_video": many}


def merged_patches(patches: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """3x3 patches of each picture as one, padded to 70."""
    with torchvision_by_name():
        from transformers.models.gemma4_unified.image_processing_gemma4_unified import (
            pad_along_first_dim,
            patches_merge,
        )
    made = zip(*patches_merge(patches, places, patches.shape[1] // 9), strict=True)
    padded = [pad_along_first_dim(*one, 70) for one in made]
    return torch.stack([cells for cells, _ in padded]), torch.stack([places for _, places in padded])


def hf_inputs(model: NativeLMM, prompt: Prompt, frames: NDArray[np.uint8], seconds: float) -> dict[str, Any]:
    """What transformers' processor would hand over: normalised as documented, laid out by its own `patchify`."""
    spec = model.spec
    ids = torch.tensor([prompt.input_ids])
    normal = (torch.from_numpy(frames).float() / 255 - torch.tensor(spec.image_mean)) / torch.tensor(spec.image_std)
    video = normal.permute(0, 3, 1, 2)[None]
    if model.geometry.square:
        return {"input_ids": ids, "pixel_values": video}
    if model.geometry.fills:
        return {"input_ids": ids, **frames_in_patches(frames)}
    if spec.row_ends:
        sizes = torch.tensor([frames.shape[1:3]] * len(frames))
        return {"input_ids": ids, "pixel_values": video[0], "image_sizes": sizes}
    if spec.uncut_pixels:
        return {"input_ids": ids, **lfm_pictures(list(normal))}
    depth = model.geometry.temporal_patch
    patches, *grid = qwen_layout().patchify(video, patch_size=spec.patch_size, merge_size=2, temporal_patch_size=depth)
    inputs = {"input_ids": ids, "pixel_values_videos": patches[0], "video_grid_thw": torch.tensor([grid])}
    if spec.group_joint:
        return inputs | {"video_merge_sizes": torch.tensor([2])}
    inputs["mm_token_type_ids"] = 2 * (ids == (spec.video_token_id or spec.image_token_id)).int()
    return inputs | ({"second_per_grid_ts": [seconds]} if spec.model_type == "qwen2_5_vl" else {})


def reference(model: NativeLMM) -> Any:
    return type(model.network).from_pretrained(model.spec.folder, dtype=torch.float32).eval()


def check_logits(model: Any, prompt: Prompt, inputs: dict[str, Any]) -> None:
    """Behind the prompt, beside transformers' own of the inputs, whose positions are divided as the prompt's are."""
    if prompt.rope_factor > 1:
        inputs["position_ids"] = torch.arange(prompt.length)[None] / prompt.rope_factor
    with torch.no_grad():
        expected = reference(model)(**inputs).logits[0, -1]
    torch.testing.assert_close(model.prefill(prompt).logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("count", [6, 5])
@pytest.mark.parametrize("name", COMPARED)
def test_video_equals_transformers(name: str, count: int, tiny: Tiny) -> None:
    """Also with an odd number of frames, where the last one is repeated to fill its pair."""
    model = load(tiny(name))
    frames = pictures(count, *SIZES[name])
    prompt = video_prompt(model, frames, [4.0 * i for i in range(count)])
    with torch.no_grad():
        expected = reference(model)(**hf_inputs(model, prompt, frames, seconds=8.0)).logits[0, -1]
    state = model.prefill(prompt)
    torch.testing.assert_close(state.logits, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", COMPARED)
def test_decoding_equals_transformers(name: str, tiny: Tiny) -> None:
    """Twelve greedy tokens, one by one: positions go on where the family's own count of a video's ends."""
    model = load(tiny(name))
    frames = pictures(4, *SIZES[name])
    prompt = video_prompt(model, frames, [0.0, 5.0, 10.0, 15.0])
    network = reference(model)
    inputs = hf_inputs(model, prompt, frames, seconds=10.0)
    expected = network.generate(**inputs, max_new_tokens=12, min_new_tokens=12, do_sample=False)[0, -12:].tolist()
    banned = torch.tensor(network.generation_config.eos_token_id)
    state, chosen = model.prefill(prompt), []
    for _ in range(12):
        chosen.append(int(state.logits.index_fill(0, banned, -torch.inf).argmax()))
        state = model.extend(state, chosen[-1:])
    assert chosen == expected


@pytest.mark.parametrize("name", list(SIZES))
def test_extend_equals_prefill_of_the_whole(name: str, tiny: Tiny) -> None:
    model = load(tiny(name))
    prompt = video_prompt(model, pictures(4, *SIZES[name]), [0.0, 10.0, 20.0, 30.0])
    more = model.tokenizer.encode(" The red circle moves right.", add_special_tokens=False).ids
    whole = model.prefill(prompt_for(model, [*prompt.input_ids, *more], prompt.visuals)).logits  # type: ignore[arg-type]
    start = model.prefill(prompt)
    torch.testing.assert_close(model.extend(start, more).logits, whole, atol=1e-5, rtol=0)
    again = model.extend(model.rewind(start), more)
    torch.testing.assert_close(again.logits, whole, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("across_first")
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen3_5_moe"])
def test_still_image_equals_transformers(name: str, tiny: Tiny) -> None:
    """A picture of any size through the family's own image processor."""
    from transformers import Qwen2VLImageProcessorPil

    model = load(tiny(name))
    image = pictures(1, 300, 421)[0]
    seen = Qwen2VLImageProcessorPil.from_pretrained(tiny(name))(image, return_tensors="pt")
    count = int(seen["image_grid_thw"].prod()) // 4
    marker = model.spec.image_token
    ids = model.tokenizer.encode(f"<|vision_start|>{marker * count}<|vision_end|> what is this?").ids
    kinds = (torch.tensor([ids]) == model.spec.image_token_id).int()
    with torch.no_grad():
        expected = reference(model)(input_ids=torch.tensor([ids]), mm_token_type_ids=kinds, **seen).logits[0, -1]
    visual = Visual(pixels=image[None], kind="image", stride=1, tokens=count, position=1, newline="none")
    state = model.prefill(prompt_for(model, ids, [visual]))  # type: ignore[arg-type]
    torch.testing.assert_close(state.logits, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "smolvlm", "gemma4"])
def test_a_long_prompt_behind_a_text_is_read_by_few_rows_of_a_mask(
    name: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tiny(name))
    prompt = video_prompt(model, pictures(4, *SIZES[name]), [0.0, 1.0, 2.0, 3.0])
    state, rest = model.prefill(prompt), model.prepare([prompt])[0].part(1)
    state.kv.rewind(1)
    made: list[Tensor] = []
    rows = Sight.__getitem__
    monkeypatch.setattr(Sight, "__getitem__", lambda self, at: (made.append(rows(self, at)), made[-1])[1])
    monkeypatch.setattr("vidllm.model.attention.ROWS", 8)
    found = model.read(rest.embeddings, state.kv, rest.positions, **rest.deep)
    torch.testing.assert_close(found, state.logits, atol=1e-5, rtol=0)
    assert len(made) > 2
    assert max(mask.shape[-2] for mask in made) <= 8


@pytest.mark.parametrize("name", list(SIZES))
def test_reversing_the_frames_changes_the_logits(name: str, tiny: Tiny) -> None:
    model = load(tiny(name))
    frames = pictures(4, *SIZES[name])
    forward = model.prefill(video_prompt(model, frames, [0.0, 1.0, 2.0, 3.0])).logits
    backward = model.prefill(video_prompt(model, frames[::-1].copy(), [0.0, 1.0, 2.0, 3.0])).logits
    assert (forward - backward).abs().max() > 1e-3


def test_uneven_times_reach_the_positions(tiny: Tiny) -> None:
    """Qwen2.5-VL counts two positions a second; a pair seen at 31.5 s stands at 63, whatever came between."""
    model = load(tiny("qwen2_5_vl"))
    frames = pictures(6, 56, 84)
    prompt = video_prompt(model, frames, [0.0, 0.5, 30.0, 30.5, 31.5, 60.0])
    positions, _ = model.positions_of(prompt.input_ids, prompt.visuals)
    first = prompt.visuals[0].position
    at = positions[0, 0, first : first + 18 : 6] - first
    assert at.tolist() == [0, 60, 63]


def test_an_hour_of_half_seconds_stays_on_its_positions_in_single_precision(tiny: Tiny) -> None:
    """A Mac's GPU knows no float64: positions were computed in nothing else."""
    model = load(tiny("qwen2_5_vl"))
    times = [7.04 + 0.5 * i for i in range(7200)]
    visual = Visual(pixels=np.zeros((1, 28, 28, 3), np.uint8), kind="video", stride=1, tokens=3600, position=0,
                    newline="none", times=tuple(times))  # fmt: skip
    seconds = model._seconds_per_group(visual)
    assert seconds.dtype == torch.float32
    at = model.model.get_vision_position_ids(0, torch.tensor([3600, 2, 2]), 1, 2, 2 * seconds)[0]
    assert at.tolist() == [2 * i for i in range(3600)]


@pytest.mark.parametrize("name", list(SIZES))
def test_cached_equals_computed(name: str, tiny: Tiny, tmp_path: Path) -> None:
    model = load(tiny(name))
    prompt = video_prompt(model, pictures(4, *SIZES[name]), [0.0, 1.0, 2.0, 3.0])
    plain = model.prefill(prompt)
    cold = model.prefill(prompt, FeatureCache(tmp_path))
    warm = model.prefill(prompt, FeatureCache(tmp_path))
    assert (plain.frames_encoded, cold.frames_encoded, warm.frames_encoded) == (4, 4, 0)
    assert torch.equal(plain.logits, cold.logits)
    assert torch.equal(plain.logits, warm.logits)


def test_wrong_counts_and_a_rope_factor_are_refused(tiny: Tiny) -> None:
    model = load(tiny("qwen3_vl"))
    prompt = video_prompt(model, pictures(4, 64, 96), [0.0, 1.0, 2.0, 3.0])
    with pytest.raises(ModelError, match="holds 13 visual tokens, the model made 12"):
        model.prefill(replace(prompt, visuals=(replace(prompt.visuals[0], tokens=13),)))
    with pytest.raises(ModelError, match="RoPE factor"):
        model.prefill(replace(prompt, rope_factor=1.5))
