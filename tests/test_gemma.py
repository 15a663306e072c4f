"""Gemma 3, every frame a picture whose tokens see each other: ids and logits are those of transformers' classes."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import vidllm
from tests.conftest import write_clip
from tests.planned import QUESTION, clip_of, copied, noise, prompt_of, spec_of, tiny_folder
from tests.tiny_models import edit
from vidllm.batching import Batcher
from vidllm.engine import Written, generate, read
from vidllm.errors import NotAVisionModel, UnsupportedModel
from vidllm.model import windows
from vidllm.model.checkpoint import load_model
from vidllm.model.families import ModelSpec, read_spec
from vidllm.model.gemma import Gemma3
from vidllm.options import GenerationOptions
from vidllm.prompt import Message, Prompt
from vidllm.video.timecode import format_time
from vidllm.visuals import Image


@cache
def model_of(folder: Path) -> Gemma3:
    model = load_model(folder, device="cpu", dtype="float32")
    assert isinstance(model, Gemma3)
    return model


@cache
def theirs(folder: Path) -> tuple[Any, Any]:
    """transformers' own processor and model."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    network = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return AutoProcessor.from_pretrained(folder, backend="pil"), network


def inputs_of(folder: Path, content: Sequence[dict[str, str]], pictures: Sequence[NDArray[np.uint8]]) -> Any:
    """What their processor makes of one turn."""
    processor, _ = theirs(folder)
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor(images=list(pictures), text=text, return_tensors="pt", add_special_tokens=False)


def expected(folder: Path, inputs: Any) -> Tensor:
    with torch.no_grad():
        return theirs(folder)[1](**inputs).logits[0]


def noisy(spec: ModelSpec, **options: object) -> Prompt:
    """Six frames of noise and the question."""
    clip = clip_of(spec, QUESTION, **options)
    side = spec.image_size
    pixels = np.stack([noise(side, side, seed=n) for n in range(len(clip.frames.pixels))])
    clip = replace(clip, frames=replace(clip.frames, pixels=pixels))
    return prompt_of(spec, [Message("user", QUESTION, (clip,))])


IMAGE, ASKED = {"type": "image"}, {"type": "text", "text": QUESTION}


@pytest.mark.usefixtures("across_first")
@pytest.mark.parametrize("sizes", [[(112, 112)], [(100, 320)], [(400, 130)], [(30, 40), (90, 400), (250, 250)]])
def test_still_images_equal_transformers(sizes: list[tuple[int, int]]) -> None:
    spec, pictures = spec_of("gemma3"), [noise(*size) for size in sizes]
    inputs = inputs_of(spec.folder, [*[IMAGE] * len(sizes), ASKED], pictures)
    prompt = prompt_of(spec, [Message("user", QUESTION, tuple(map(Image, pictures)))])
    assert list(prompt.input_ids) == inputs["input_ids"][0].tolist()
    logits = model_of(spec.folder).prefill(prompt).logits
    torch.testing.assert_close(logits, expected(spec.folder, inputs)[-1], atol=1e-4, rtol=0)


def test_a_video_equals_pictures_with_their_times_between() -> None:
    """As somebody who shows the family a video picture by picture would write it."""
    spec = spec_of("gemma3")
    prompt = noisy(spec, stride=1)
    frames = [visual.pixels[0] for visual in prompt.visuals]
    times = [f"[{format_time(visual.times[0], decimals=1)}]" for visual in prompt.visuals]
    content = [part for time in times for part in ({"type": "text", "text": time}, IMAGE)]
    inputs = inputs_of(spec.folder, [*content, ASKED], frames)
    assert list(prompt.input_ids) == inputs["input_ids"][0].tolist()
    logits = model_of(spec.folder).prefill(prompt).logits
    torch.testing.assert_close(logits, expected(spec.folder, inputs)[-1], atol=1e-4, rtol=0)
    causal = {key: value for key, value in inputs.items() if key != "token_type_ids"}
    assert (expected(spec.folder, causal)[-1] - logits).abs().max() > 0.01


@pytest.mark.parametrize("shown", [0, 2])
def test_a_dialogue_equals_transformers(shown: int) -> None:
    """With a system's words, an earlier answer, and pictures or words alone."""
    spec, pictures = spec_of("gemma3"), [noise(90, 120, seed) for seed in range(shown)]
    said = [Message("system", "Be brief."), Message("user", QUESTION, tuple(map(Image, pictures))),
            Message("assistant", "Nothing."), Message("user", "and then?")]  # fmt: skip
    texts = [{"role": m.role, "content": [*[IMAGE] * len(m.media), {"type": "text", "text": m.text}]} for m in said]
    processor, _ = theirs(spec.folder)
    text = processor.apply_chat_template(texts, add_generation_prompt=True)
    inputs = processor(images=pictures or None, text=text, return_tensors="pt", add_special_tokens=False)
    prompt = prompt_of(spec, said)
    assert list(prompt.input_ids) == inputs["input_ids"][0].tolist()
    logits = model_of(spec.folder).prefill(prompt).logits
    torch.testing.assert_close(logits, expected(spec.folder, inputs)[-1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("piece", [1, 40])
def test_pieces_of_a_prompt_end_behind_pictures(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read little by little it is the prompt read at once."""
    spec = spec_of("gemma3")
    prompt, model = noisy(spec, stride=1), model_of(spec.folder)
    whole = model.prefill(prompt).logits
    monkeypatch.setattr(windows, "READ", piece)
    state = model.prefill(prompt)
    assert state.length == prompt.length
    torch.testing.assert_close(state.logits, whole, atol=1e-5, rtol=0)


def batched(model: Gemma3, prompts: Sequence[Prompt], options: GenerationOptions) -> list[Written]:
    """Their answers, all rows running together."""
    batcher = Batcher(model, slots=len(prompts))
    for ticket, prompt in enumerate(prompts):
        batcher.submit(ticket, prompt, options)
    told = {}
    while batcher.waiting or batcher.running:
        told |= {done.ticket: done for done in batcher.step()}
    assert not any(done.alone for done in told.values())
    return [done.generated for _, done in sorted(told.items()) if done.generated is not None]


def test_an_answer_is_read_as_transformers_reads_it() -> None:
    """Token by token behind the prompt, and in rows of several lengths that are all longer than the window."""
    spec = spec_of("gemma3")
    model = model_of(spec.folder)
    prompts = [noisy(spec, stride=1), noisy(spec, stride=2), noisy(spec, frames=9)]
    options = GenerationOptions(max_new_tokens=12, stop_on_loop=False)
    alone = [generate(model, read(model, prompt).state, options).result for prompt in prompts]
    together = batched(model, prompts, options)
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    ids = [*prompts[0].input_ids, *alone[0].token_ids]
    with torch.no_grad():
        pixels = torch.from_numpy(np.stack([v.pixels[0] for v in prompts[0].visuals])).permute(0, 3, 1, 2) / 127.5 - 1
        tokens = torch.tensor([ids])
        logits = theirs(spec.folder)[1](
            input_ids=tokens, pixel_values=pixels, token_type_ids=(tokens == spec.image_token_id).int()
        ).logits[0]  # fmt: skip
    assert logits[prompts[0].length - 1 : -1].argmax(-1).tolist() == list(alone[0].token_ids)
    torch.testing.assert_close(alone[0].state.logits, logits[-2], atol=1e-4, rtol=0)


def test_pictures_behind_words_that_were_read_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second prompt of a batch copies the words both begin with, and reads its pictures whole behind them."""
    spec = spec_of("gemma3")
    model = model_of(spec.folder)
    system = Message("system", "You are a helpful assistant. " * 9)
    prompts = [prompt_of(spec, [system, *noisy(spec, stride=stride).messages]) for stride in (1, 2)]
    options = GenerationOptions(max_new_tokens=8, stop_on_loop=False)
    alone = [generate(model, read(model, prompt).state, options).result.token_ids for prompt in prompts]
    lengths: list[int] = []
    whole = Gemma3._mask
    monkeypatch.setattr(
        Gemma3, "_mask", lambda self, sight, *ends: (lengths.append(len(sight)), whole(self, sight, *ends))[1]
    )
    assert [one.token_ids for one in batched(model, prompts, options)] == alone
    assert lengths == [prompts[0].length, prompts[1].length - prompts[1].visuals[0].position]


def test_pooling_goes_on_where_the_family_pools() -> None:
    """A coarser frame is an average of more patches, then normed and projected as any picture is."""
    spec = spec_of("gemma3")
    model = model_of(spec.folder)
    visual = noisy(spec, stride=2).visuals[0]
    [tokens], _ = model.encode([visual])
    reference = theirs(spec.folder)[1].model
    pixels = torch.from_numpy(visual.pixels).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        patches = reference.vision_tower(pixels).last_hidden_state.view(2, 4, 2, 4, 32).mean(dim=(1, 3)).view(4, 32)
        projector = reference.multi_modal_projector
        expected = projector.mm_soft_emb_norm(patches) @ projector.mm_input_projection_weight
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return copied("gemma3", tmp_path)


def test_the_factor_of_its_full_layers_is_in_its_context(folder: Path) -> None:
    """As the Hub has it: 131072 positions, which a factor of 8 made of what it first learned."""
    text = {"max_position_embeddings": None, "rope_parameters": None}
    edit(folder / "config.json", text_config={**text, "rope_scaling": {"rope_type": "linear", "factor": 8.0}})
    assert read_spec(folder).context == 131072
    rope = theirs(folder)[1].config.text_config.rope_parameters
    assert rope["full_attention"]["factor"] == 8
    assert "factor" not in rope["sliding_attention"]
    pictures = [noise(112, 112, seed) for seed in range(6)]
    prompt = prompt_of(read_spec(folder), [Message("user", QUESTION, tuple(map(Image, pictures)))])
    inputs = inputs_of(folder, [*[IMAGE] * 6, ASKED], pictures)
    torch.testing.assert_close(model_of(folder).prefill(prompt).logits, expected(folder, inputs)[-1], atol=1e-4, rtol=0)


def test_yarn_by_hand_stretches_its_context(folder: Path) -> None:
    full = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    edit(folder / "config.json", text_config={"rope_parameters": {"full_attention": full}})
    assert read_spec(folder).context == 16384


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_positions_that_turn_with_the_length_are_refused(kind: str, folder: Path) -> None:
    edit(folder / "config.json", text_config={"rope_parameters": {"full_attention": {"rope_type": kind}}})
    with pytest.raises(UnsupportedModel, match=f"positions that are {kind}"):
        read_spec(folder)


def test_rope_max_is_said_to_have_no_effect(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", [0.0, 0.5, 1.0])
    assert "gemma3 does not scale its positions, so --rope-max has no effect" in " ".join(
        vidllm.plan(clip, QUESTION, model=tiny_folder("gemma3"), rope_max=4.0).notes
    )


def test_its_language_model_alone_is_a_text_model(folder: Path) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    (folder / "config.json").write_text(json.dumps(text))
    with pytest.raises(NotAVisionModel, match="'gemma3_text' is a text-only model"):
        read_spec(folder)


def test_eyes_that_lie_on_disk_are_brought() -> None:
    spec = spec_of("gemma3")
    prompt = noisy(spec)
    places = {"lm_head": "cpu", "model.language_model": "cpu", "model.vision_tower": "disk",
              "model.multi_modal_projector": "disk"}  # fmt: skip
    spread = load_model(spec.folder, device="cpu", dtype="float32", device_map=places)
    torch.testing.assert_close(spread.prefill(prompt).logits, model_of(spec.folder).prefill(prompt).logits)


def test_another_attention_of_its_config_is_not_taken(folder: Path) -> None:
    """What a picture sees is a table that PyTorch's own attention reads."""
    edit(folder / "config.json", _attn_implementation="eager", text_config={"_attn_implementation": "eager"})
    prompt = noisy(spec_of("gemma3"))
    torch.testing.assert_close(
        model_of(folder).prefill(prompt).logits, model_of(tiny_folder("gemma3")).prefill(prompt).logits
    )
