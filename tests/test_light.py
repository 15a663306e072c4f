"""The LLaVA without transformers against transformers': same weights, same logits, and no import of it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny_models
from tests.test_lmm import pictures, video_prompt
from vidllm.model.checkpoint import load_model
from vidllm.model.light import LightLlava, fits
from vidllm.model.lmm import ComposableLMM


def build(folder: Path, vision: dict[str, Any], text: dict[str, Any], **more: Any) -> Path:
    """A LLaVA of the given settings, saved by transformers."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    tiny_models.llava(folder)
    size = {**tiny_models.VISION, "image_size": 112, "patch_size": 14}
    config = LlavaConfig.from_pretrained(folder)
    base = config.text_config.to_dict()
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**{**size, **vision}), text_config=LlamaConfig(**{**base, **text}),
        image_token_index=config.image_token_id, image_seq_length=64, **more,
    )  # fmt: skip
    network = LlavaForConditionalGeneration(config)
    tiny_models._noise(network)
    network.save_pretrained(folder)
    return folder


SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}, {}),
    "grouped heads": ({}, {"num_key_value_heads": 2}, {}),
    "tied table": ({}, {"tie_word_embeddings": True}, {"tie_word_embeddings": True}),
    "tanh gelu, last layer": ({"hidden_act": "gelu_pytorch_tanh"}, {}, {"vision_feature_layer": -1}),
    "first layer, with class token": ({}, {}, {"vision_feature_layer": 0, "vision_feature_select_strategy": "full"}),
    "other rope base": ({}, {"rope_parameters": {"rope_type": "default", "rope_theta": 50000.0}}, {}),
    "wide heads": ({}, {"head_dim": 16}, {}),
}


def both(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ComposableLMM, ComposableLMM]:
    """The same folder through light and through transformers."""
    light = load_model(folder, device="cpu", dtype="float32")
    with monkeypatch.context() as patched:
        patched.setattr("vidllm.model.checkpoint.fits", lambda *_: False)
        heavy = load_model(folder, device="cpu", dtype="float32")
    assert isinstance(light, ComposableLMM)
    assert isinstance(heavy, ComposableLMM)
    assert isinstance(light.network, LightLlava)
    assert not isinstance(heavy.network, LightLlava)
    return light, heavy


@pytest.mark.parametrize("shape", list(SHAPES))
def test_the_same_logits(shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefill under a fractional factor, a follow-up of several tokens, and single steps."""
    vision, text, more = SHAPES[shape]
    models = both(build(tmp_path, vision, text, **more), monkeypatch)
    frames = pictures(3, 112, 112)
    results = []
    for model in models:
        ids = model.tokenizer.encode("a red circle", add_special_tokens=False).ids
        state = model.prefill(video_prompt(model, frames, [1, 2, 4], factor=1.37))
        grid = model.tower_features(torch.from_numpy(frames))
        assert grid.shape == (3, 65 if model.spec.cls == "keep" else 64, 32)
        steps = [state.logits, (state := model.extend(state, ids)).logits, model.extend(state, ids[:1]).logits]
        results.append((grid, torch.stack(steps)))
    torch.testing.assert_close(results[0][0], results[1][0], atol=2e-5, rtol=0)
    torch.testing.assert_close(results[0][1], results[1][1], atol=5e-5, rtol=0)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        (None, {"model_type": "llava_next"}),
        (None, {"quantization_config": {"load_in_8bit": True}}),
        ("text_config", {"model_type": "mistral"}),
        ("text_config", {"hidden_act": "relu"}),
        ("text_config", {"attention_bias": True}),
        ("text_config", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}),
        ("text_config", {"rope_scaling": {"type": "linear", "factor": 2.5}}),
        ("vision_config", {"model_type": "siglip_vision_model"}),
        ("vision_config", {"hidden_act": "relu"}),
        (None, {"vision_feature_layer": [-2, -3]}),
    ],
)
def test_what_it_does_not_compute_it_leaves_to_transformers(
    part: str | None, change: dict[str, Any], tiny: Any
) -> None:
    folder = tiny("llava")
    config = json.loads((folder / "config.json").read_text())
    assert fits(folder, config)
    (config[part] if part else config).update(change)
    assert not fits(folder, config)


def test_large_checkpoints_are_left_to_transformers(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny("llava")
    monkeypatch.setattr("vidllm.model.light.LARGEST_BYTES", 1000)
    assert not fits(folder, json.loads((folder / "config.json").read_text()))


@pytest.mark.parametrize("sharded", [False, True])
def test_only_the_files_that_are_the_models_are_read(sharded: bool, tiny: Any, tmp_path: Path) -> None:
    """Other weights of the same names beside them, an average of a training run, took their place."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "llava"
    shutil.copytree(tiny("llava"), folder)
    expected = load_model(folder, device="cpu", dtype="float32")
    weights = load_file(folder / "model.safetensors")
    if sharded:
        (folder / "model.safetensors").unlink()
        names = sorted(weights)
        shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
        for file, held in shards.items():
            save_file({name: weights[name] for name in held}, folder / file, {"format": "pt"})
        index = {"metadata": {}, "weight_map": {name: file for file, held in shards.items() for name in held}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({name: weight + 1 for name, weight in weights.items()}, folder / "moving_average.safetensors")
    model = load_model(folder, device="cpu", dtype="float32")
    assert type(model.network).__name__ == "LightLlava"  # type: ignore[attr-defined]
    prompt = video_prompt(model, pictures(2, 112, 112), [2, 2])  # type: ignore[arg-type]
    assert torch.equal(model.prefill(prompt).logits, expected.prefill(prompt).logits)


def test_older_spellings_of_the_weights(tiny: Any, tmp_path: Path) -> None:
    """Hub checkpoints of three generations name the same tensors in three ways."""
    from safetensors.torch import load_file, save_file

    folder = tiny("llava")
    expected = load_model(folder, device="cpu", dtype="float32")
    spellings = (
        ("vision_tower.", "vision_tower.vision_model."),
        ("vision_tower.", "model.vision_tower."),
    )
    for number, (old, new) in enumerate(spellings):
        copy = tmp_path / str(number)
        copy.mkdir()
        for path in folder.iterdir():
            if path.name != "model.safetensors":
                (copy / path.name).write_bytes(path.read_bytes())
        weights = load_file(folder / "model.safetensors")
        renamed = {new + k.removeprefix(old) if k.startswith(old) else k: w for k, w in weights.items()}
        save_file(renamed, copy / "model.safetensors", {"format": "pt"})
        model = load_model(copy, device="cpu", dtype="float32")
        assert isinstance(model, ComposableLMM)
        assert isinstance(model.network, LightLlava)
        prompt = video_prompt(model, pictures(2, 112, 112), [2, 2])
        assert torch.equal(model.prefill(prompt).logits, expected.prefill(prompt).logits)


def test_neither_transformers_nor_torchs_compiler_is_imported(tiny: Any) -> None:
    code = (
        "import sys\n"
        "from vidllm.model.checkpoint import load_model\n"
        f"model = load_model({str(tiny('llava'))!r}, device='cpu')\n"
        "from vidllm.prompt import Message, build_prompt\n"
        "state = model.prefill(build_prompt([Message('user', 'hello')], model.spec, model.tokenizer))\n"
        "model.extend(state, [5, 6])\n"
        "print([name for name in ('transformers', 'torch._dynamo', 'sympy') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
