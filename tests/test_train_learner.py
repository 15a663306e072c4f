"""The learner walks the road of asking: same log-probs, transformers' loss, gradients only where they may be."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import tiny_models
from tests.conftest import ROOT, full_disk, needs_bitsandbytes, write_clip
from tests.packed import pack
from tests.test_lmm import clip_pixels, image_prompt, load, pictures, reference, video_prompt
from tests.tiny_models import edit
from vidllm.clip import PlanOptions, open_clip
from vidllm.config import load_config
from vidllm.errors import CheckpointError, ConfigError, IncompleteModel, ModelNotFound, UnsupportedModel
from vidllm.model.anyres import anyres_tokens, tile_grid
from vidllm.model.checkpoint import Quantize, fingerprint, load_model, stop_ids
from vidllm.model.light import LightLlava
from vidllm.model.lmm import ComposableLMM
from vidllm.model.resolve import builtin_folder
from vidllm.prompt import Message, Prompt, build_example, build_prompt
from vidllm.train.adapters import lora_layers
from vidllm.train.batch import Batch, Piece
from vidllm.train.learner import Learner
from vidllm.train.parts import Extra, LearnerOptions, Lora, Parts, part_of
from vidllm_cli import main as command_line

TOLERANCE = 1e-4
COMPOSABLE = ("llava", "vipllava", "llava_next", "llava_next_video", "llava_onevision", "internvl", "gemma3",
              "aya_vision", "cohere2_vision")  # fmt: skip
WHOLE = Parts(projector=1e-3, language_model=1e-3)
ANSWER = " The red circle moves right."


def learner_of(folder: Path, **more: Any) -> Learner:
    return Learner.load(folder, LearnerOptions(**{"parts": WHOLE, **more}), device="cpu")


def piece_with(prompt: Prompt, answer: Sequence[int]) -> Piece:
    """The prompt and what is to be said after it."""
    return Piece(
        ids=(*prompt.input_ids, *answer), trained=(*[False] * prompt.length, *[True] * len(answer)),
        visuals=prompt.visuals, rope_factor=prompt.rope_factor,
    )  # fmt: skip


def answer_ids(model: ComposableLMM, text: str = ANSWER) -> list[int]:
    return list(model.tokenizer.encode(text, add_special_tokens=False).ids)


def asked(model: ComposableLMM, prompt: Prompt, answer: Sequence[int]) -> Tensor:
    """Log-prob of each answer token as asking computes it: prefill, then one token after the other."""
    state = model.prefill(prompt)
    logps = []
    for token in answer:
        logps.append(state.logits.log_softmax(-1)[token])
        state = model.extend(state, [token])
    return torch.stack(logps)


def frames_of(model: ComposableLMM, count: int = 4, seed: int = 0) -> Any:
    return pictures(count, model.spec.image_size, model.spec.image_size, seed)


@pytest.mark.parametrize("name", COMPOSABLE)
def test_log_probs_are_those_of_asking(name: str, tiny: Callable[[str], Path]) -> None:
    """Two videos packed in one row, each with its own strides and RoPE factor, and a still picture."""
    model, learner = load(tiny(name)), learner_of(tiny(name))
    answer = answer_ids(model)
    prompts = [
        video_prompt(model, frames_of(model, 4), [2, 4, 4, 2], factor=1.37),
        video_prompt(model, frames_of(model, 3, seed=1), [1, 2, 2]),
    ]
    single = video_prompt(model, frames_of(model, 1, seed=2), [1])
    if not model.spec.image_grids:
        prompts.append(image_prompt(model, single.input_ids, frames_of(model, 1, seed=2)[0]))
    expected = torch.cat([asked(model, prompt, answer) for prompt in prompts])
    found = learner(Batch(pieces=tuple(piece_with(prompt, answer) for prompt in prompts)))
    torch.testing.assert_close(found.detach(), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["built-in", "llava_onevision"])
def test_an_example_is_learned_as_its_prompts_are_asked(name: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """A clip, and a dialogue of two questions: both answers' log-probs as a user's prompts would give them."""
    learner = Learner.load(builtin_folder() if name == "built-in" else tiny(name), LearnerOptions(parts=WHOLE), "cpu")
    spec, tokenizer = replace(learner.spec, as_said=True, dialogue=True), learner.lmm.tokenizer
    path = write_clip(tmp_path / "clip.mp4", [number / 5 for number in range(20)])
    clip = open_clip(path, "what happens at 0:02?", spec, tokenizer, PlanOptions(frames=4))
    turns = [Message("user", "what happens at 0:02?", (clip,)), Message("assistant", "Nothing happens."),
             Message("user", "how many objects are there at 0:01?"), Message("assistant", "Two.")]  # fmt: skip
    example = build_example(turns, spec, tokenizer)
    found = learner(pack([example])).detach()
    expected = []
    for turn in (1, 3):
        prompt = build_prompt(turns[:turn], spec, tokenizer)
        after = zip(example.prompt.input_ids[prompt.length :], example.trained[prompt.length :], strict=True)
        answer = [token for token, _ in takewhile(lambda pair: pair[1], after)]
        assert example.prompt.input_ids[: prompt.length] == prompt.input_ids
        assert prompt.rope_factor == example.prompt.rope_factor
        expected.append(asked(learner.lmm, prompt, answer))
    torch.testing.assert_close(found, torch.cat(expected), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("kind", "said"),
    [("mistral", {}), ("cohere2", {"sliding_window_pattern": 2}),
     ("qwen2", {"use_sliding_window": True, "max_window_layers": 1})],
)  # fmt: skip
def test_rows_beyond_the_window_of_its_layers(kind: str, said: Any, tmp_path: Path) -> None:
    """All layers of Mistral see one, every other of Cohere's and Qwen's: two answers after one video as each alone."""
    folder = tiny_models.with_text(tmp_path, kind, num_key_value_heads=2, sliding_window=24, **said)
    model, learner = load(folder), learner_of(folder)
    prompt = video_prompt(model, frames_of(model), [2, 4, 4, 2])
    answers = [answer_ids(model), answer_ids(model, " Two.")]
    pieces = [piece_with(prompt, []), *(Piece(ids=(*ids,), trained=(True,) * len(ids), parent=0) for ids in answers)]
    found = learner(Batch(pieces=tuple(pieces))).detach()
    expected = torch.cat([asked(model, prompt, ids) for ids in answers])
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def test_layers_that_do_not_tell_their_window_are_one_line(tmp_path: Path) -> None:
    said = {"use_sliding_window": True, "max_window_layers": 1, "num_experts": 2, "num_experts_per_tok": 1}
    folder = tiny_models.with_text(tmp_path, "qwen2_moe", num_key_value_heads=2, sliding_window=24, **said)
    learner = learner_of(folder)
    video, words = small_batch(learner).pieces
    assert learner(Batch(pieces=(words,))).isfinite().all()
    with pytest.raises(UnsupportedModel, match="its layers do not tell that they see 24 tokens, and a row has"):
        learner(Batch(pieces=(video,)))


@pytest.mark.parametrize("name", ["llava_next", "llava_next_video", "llava_onevision"])
def test_anyres_stills_too(name: str, tiny: Callable[[str], Path]) -> None:
    """Two pictures cut into tiles, the second in the middle of a dialogue that another video follows."""
    model, learner = load(tiny(name)), learner_of(tiny(name))
    answer = answer_ids(model)
    prompts = [still_prompt(model, pictures(1, 100, 300)[0]), still_prompt(model, pictures(1, 400, 90, seed=4)[0])]
    prompts.append(video_prompt(model, frames_of(model, 2), [2, 2]))
    expected = torch.cat([asked(model, prompt, answer) for prompt in prompts])
    found = learner(Batch(pieces=tuple(piece_with(prompt, answer) for prompt in prompts)))
    torch.testing.assert_close(found.detach(), expected, atol=TOLERANCE, rtol=0)


def still_prompt(model: ComposableLMM, image: Any) -> Prompt:
    """USER: a picture, a question, ASSISTANT: as one AnyRes visual."""
    spec = model.spec
    grid = tile_grid(image.shape[:2], spec.image_size, spec.image_grids)
    side = spec.image_size // spec.patch_size
    count = anyres_tokens(image.shape[:2], grid, side, spec.image_max_tiles)
    after = model.tokenizer.encode("\nwhat is this? ASSISTANT:", add_special_tokens=False).ids
    return image_prompt(model, [1, 2, *[spec.image_token_id] * count, *after], image)


def transformers_loss(learner: Learner, piece: Piece, pixels: Tensor) -> tuple[Any, Tensor]:
    """transformers' own network and its own loss for one picture and an answer."""
    network = reference(learner.lmm)
    ids = torch.tensor([piece.ids])
    labels = torch.where(torch.tensor([piece.trained]), ids, -100)
    return network, network(input_ids=ids, pixel_values=pixels, labels=labels).loss


@pytest.mark.parametrize("name", ["llava", "vipllava"])
def test_loss_and_all_gradients_are_transformers(name: str, tiny: Callable[[str], Path]) -> None:
    """The whole model learns, tower included: its loss and every gradient as transformers' own forward has them."""
    learner = learner_of(tiny(name), parts=Parts(vision_tower=1e-4, projector=1e-3, language_model=1e-3))
    image = pictures(1, 112, 112)
    ids = [1, *[learner.spec.image_token_id] * 64, *answer_ids(learner.lmm, " what is this? ASSISTANT:")]
    piece = piece_with(image_prompt(learner.lmm, ids, image[0]), answer_ids(learner.lmm))
    network, expected = transformers_loss(learner, piece, clip_pixels(learner.lmm, image))
    loss = -learner(Batch(pieces=(piece,))).mean()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    loss.backward()
    expected.backward()
    theirs = {n: p.grad for n, p in network.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    mine = {n: p.grad for n, p in learner.network.named_parameters() if p.grad is not None}
    assert set(mine) == set(theirs)
    assert {part_of(n) for n in mine} == {"vision_tower", "projector", "language_model", "embeddings"}
    for weight, gradient in theirs.items():
        torch.testing.assert_close(mine[weight], gradient, atol=1e-5, rtol=1e-4)


def small_batch(learner: Learner, frames: Any = None) -> Batch:
    """A video with its answer, and one of text alone."""
    frames = frames_of(learner.lmm, 3) if frames is None else frames
    prompt = video_prompt(learner.lmm, frames, [2] * len(frames))
    answer = answer_ids(learner.lmm)
    text = answer_ids(learner.lmm, "USER: describe the video. ASSISTANT:")
    words = Piece(ids=(*text, *answer), trained=(*[False] * len(text), *[True] * len(answer)))
    return Batch(pieces=(piece_with(prompt, answer), words))


def taught(learner: Learner, batch: Batch, steps: int = 2) -> Learner:
    """A few steps of plain gradient descent, every part at a rate that shows."""
    optimizer = torch.optim.SGD([{**group, "lr": 0.5} for group in learner.groups()])
    for _ in range(steps):
        optimizer.zero_grad()
        (-learner(batch).mean()).backward()
        optimizer.step()
    return learner


@pytest.mark.parametrize("part", ["vision_tower", "projector", "language_model", "embeddings"])
def test_a_part_learns_alone_and_the_rest_stays_bit_for_bit(part: Any, tiny: Callable[[str], Path]) -> None:
    learner = learner_of(
        tiny("llava"), parts=Parts(**{part: 1e-3, **({} if part == "embeddings" else {"embeddings": 0})})
    )
    before = {name: weight.clone() for name, weight in learner.named_parameters()}
    taught(learner, small_batch(learner))
    moved = {name for name, weight in learner.named_parameters() if not torch.equal(weight, before[name])}
    assert {part_of(name) for name in moved} == {part}
    assert {group["name"] for group in learner.groups()} == {part}


def test_groups_are_the_parts_with_their_rates(tiny: Callable[[str], Path]) -> None:
    learner = learner_of(tiny("llava_next"), parts=Parts(projector=1e-3, language_model=2e-5, newline=1e-4))
    groups = learner.groups()
    assert [(group["name"], group["lr"]) for group in groups] == [
        ("projector", 1e-3), ("newline", 1e-4), ("language_model", 2e-5), ("embeddings", 2e-5),
    ]  # fmt: skip
    names = {id(weight): name for name, weight in learner.named_parameters()}
    assert sorted(names[id(w)] for group in groups for w in group["params"]) == sorted(
        name for name, weight in learner.named_parameters() if weight.requires_grad
    )


def gradients(learner: Learner, batch: Batch) -> dict[str, Tensor]:
    learner.zero_grad(set_to_none=True)
    (-learner(batch).mean()).backward()
    return {name: w.grad.clone() for name, w in learner.named_parameters() if w.grad is not None}


def test_checkpointing_changes_no_gradient(tiny: Callable[[str], Path]) -> None:
    everything = Parts(vision_tower=1e-4, projector=1e-3, language_model=1e-3)
    plain, saving = (learner_of(tiny("llava"), parts=everything, gradient_checkpointing=on) for on in (False, True))
    batch = small_batch(plain)
    calls = count_calls(saving.lmm.language.layers[0].mlp)  # type: ignore[index,union-attr]
    expected, found = gradients(plain, batch), gradients(saving, batch)
    assert calls == [1, 1]  # once on the way there, once on the way back
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-5)


def count_calls(module: Any) -> list[int]:
    """Grows by the batch size of each call of `module`."""
    calls: list[int] = []
    module.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    return calls


def test_equal_frames_are_encoded_once(tiny: Callable[[str], Path]) -> None:
    """Six frames, three of them alike, in two samples of one batch: four pictures go through the tower; and of a tower
    that learns, all copies contribute to its gradient."""
    frames = frames_of(load(tiny("llava")), 4)
    frames = frames[[0, 1, 1, 2, 1, 3]]
    for parts in (WHOLE, replace(WHOLE, vision_tower=1e-4)):
        learner = learner_of(tiny("llava"), parts=parts)
        answer = answer_ids(learner.lmm)
        pieces = [piece_with(video_prompt(learner.lmm, part, [2] * 3), answer) for part in (frames[:3], frames[3:])]
        calls = count_calls(learner.lmm.parts.vision_tower.pre_layrnorm)
        once = gradients(learner, Batch(pieces=tuple(pieces)))
        assert sum(calls) == 4
        learner.lmm.see = lambda prompts, cache=None, see=learner.lmm.see: [  # type: ignore[method-assign,misc]
            see([[visual]])[0] if len(visuals) == 1 else ([see([[v]])[0][0][0] for v in visuals], 0)
            for visuals in prompts for visual in visuals[:1]
        ]  # fmt: skip
        apart = gradients(learner, Batch(pieces=tuple(pieces)))
        assert sum(calls) == 4 + 6
        for name, gradient in apart.items():
            torch.testing.assert_close(once[name], gradient, atol=1e-5, rtol=1e-4)


def test_the_head_on_all_positions_gives_the_same(tiny: Callable[[str], Path]) -> None:
    plain, whole = learner_of(tiny("llava")), learner_of(tiny("llava"), head_only=False)
    batch = small_batch(plain)
    torch.testing.assert_close(plain(batch), whole(batch), atol=1e-6, rtol=0)
    expected = gradients(whole, batch)
    for name, gradient in gradients(plain, batch).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("parts", "stage"), [(Parts(language_model=1e-3), "tokens"), (WHOLE, "tower")])
def test_features_that_are_ready_are_taken(parts: Parts, stage: str, tiny: Callable[[str], Path]) -> None:
    """Log-probs and gradients as with pixels, which are not even there."""
    learner = learner_of(tiny("llava_onevision"), parts=parts)
    batch = small_batch(learner)
    expected, gradient = learner(batch), gradients(learner, batch)
    known = learner.features(batch.pieces[0].visuals)
    assert learner.stage == stage
    blind = tuple(replace(v, pixels=np.zeros((0, 0, 0, 3), np.uint8)) for v in batch.pieces[0].visuals)
    ready = Batch(pieces=(replace(batch.pieces[0], visuals=blind, features=known), batch.pieces[1]))
    calls = count_calls(learner.lmm.parts.vision_tower.embeddings)
    assert torch.equal(learner(ready), expected)
    for name, value in gradients(learner, ready).items():
        assert torch.equal(value, gradient[name])
    assert calls == []


def test_a_tower_that_learns_has_no_features_to_keep(tiny: Callable[[str], Path]) -> None:
    learner = learner_of(tiny("llava"), parts=Parts(vision_tower=1e-5))
    assert learner.stage is None


def test_text_alone_gives_every_part_a_gradient_of_zero(tiny: Callable[[str], Path]) -> None:
    """Processes that wait for each other's gradients must not wait for ever when one of them sees no video."""
    learner = learner_of(
        tiny("llava_next"), parts=Parts(vision_tower=1e-5, projector=1e-3, newline=1e-3, language_model=1e-3)
    )
    found = gradients(learner, Batch(pieces=small_batch(learner).pieces[1:]))
    assert set(found) == {name for name, weight in learner.named_parameters() if weight.requires_grad}
    for name, gradient in found.items():
        assert bool(gradient.any()) == (part_of(name) in ("language_model", "embeddings"))


SHARED = ("llava", "gemma3", "qwen3_vl", "qwen3_5")


@pytest.fixture(scope="module")
def two_processes(tiny: Callable[[str], Path]) -> list[str]:
    """What they printed of these models, and of their patience."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python",
               sys.executable, "-m", "tests.train_processes", *(str(tiny(name)) for name in SHARED)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_processes_wait_for_the_first_longer_than_for_each_other(two_processes: list[str]) -> None:
    """Hours go by while the first looks at a corpus: the others must not give up on it, nor while it writes a model."""
    assert (two_processes[0], two_processes[-2:]) == ("begun", ["found", "found"])


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_processes_of_which_one_sees_no_video(
    name: str, two_processes: list[str], tiny: Callable[[str], Path]
) -> None:
    """Nobody waits for ever, under DDP as under FSDP, and the gradients are those of one process."""
    shares = [float(line.split()[1]) for line in two_processes if line.startswith(f"{tiny(name)} ")]
    assert len(shares) == 4
    assert max(shares) < 1e-5


def test_bf16_keeps_what_learns_in_float32(tiny: Callable[[str], Path]) -> None:
    whole = learner_of(tiny("llava"))
    half = learner_of(tiny("llava"), dtype="bfloat16")
    dtypes = {part_of(name): weight.dtype for name, weight in half.named_parameters()}
    assert dtypes["vision_tower"] == torch.bfloat16
    assert dtypes["projector"] == dtypes["language_model"] == torch.float32
    batch = small_batch(whole)
    torch.testing.assert_close(half(batch), whole(batch), atol=0.15, rtol=0.05)
    assert all(gradient.isfinite().all() for gradient in gradients(half, batch).values())


@pytest.mark.parametrize(
    "more", [{"parts": Parts(projector=1e-3, temporal=1e-3)},
             {"parts": Parts(projector=1e-3, temporal=1e-3, language_model=1e-3), "lora": Lora(r=4)}]
)  # fmt: skip
def test_what_learns_loses_no_bit_where_sums_are_in_bf16(
    more: Any, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """Of a model in float32, also where the language model learns nothing itself."""
    first = learner_of(tiny("llava"), parts=Parts(temporal=1e-3), extra=Extra(temporal_buckets=4))
    torch.nn.init.normal_(first.extras.temporal)
    first.save(tmp_path)
    read = dict(learner_of(tmp_path, dtype="bfloat16", **more).named_parameters())
    for name, weight in first.named_parameters():
        if part_of(name) in ("projector", "temporal"):
            assert torch.equal(read[name], weight)


@pytest.mark.parametrize("merge", [False, True])
def test_what_stays_loses_no_bit_where_sums_are_in_bf16(
    merge: bool, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """Newlines and vectors of time, the family's own and taught ones, beside an adapter that learns."""
    first = learner_of(tiny("llava_next"), parts=Parts(temporal=1e-3), extra=Extra(temporal_buckets=4))
    torch.nn.init.normal_(first.extras.temporal)
    first.save(tmp_path / "first")
    second = learner_of(tmp_path / "first", parts=LOW_RANK, lora=Lora(r=2), dtype="bfloat16")
    second.save(tmp_path / "second", merge=merge)
    asked = load(tmp_path / "second")
    assert asked.extras is not None
    assert torch.equal(asked.extras.temporal, first.extras.temporal)
    assert torch.equal(asked.newline, first.lmm.newline)


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision", "internvl", "gemma3", "vipllava", "cohere2_vision"])
@pytest.mark.parametrize("learning", ["vision_tower", "projector", "language_model", "all"])
def test_every_part_learns_in_bf16(name: str, learning: str, tiny: Callable[[str], Path]) -> None:
    """configs/video.yaml teaches all parts so: the tower's layers behind its features must bear what comes."""
    parts = ("vision_tower", "projector", "language_model") if learning == "all" else (learning,)
    learner = learner_of(tiny(name), parts=Parts(**dict.fromkeys(parts, 1e-4)), dtype="bfloat16")
    assert all(gradient.isfinite().all() for gradient in gradients(learner, small_batch(learner)).values())


# ------------------------------------------------------------------------------------------------------ saved and asked


def assert_asks_alike(learner: Learner, model: ComposableLMM, tolerance: float = TOLERANCE) -> None:
    """Log-probs of an answer from the learner, and from a model that was loaded to be asked."""
    prompt = video_prompt(model, frames_of(model, 3), [2, 2, 2], factor=1.5)
    answer = answer_ids(model)
    found = learner(Batch(pieces=(piece_with(prompt, answer),))).detach()
    torch.testing.assert_close(asked(model, prompt, answer), found, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", COMPOSABLE)
def test_a_saved_model_is_asked_as_it_learned(name: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    learner = learner_of(tiny(name), parts=replace(WHOLE, vision_tower=1e-3))
    taught(learner, small_batch(learner))
    learner.save(tmp_path / "out")
    model = load(tmp_path / "out")
    assert_asks_alike(learner, model)
    assert replace(model.spec, folder=Path()) == replace(learner.spec, folder=Path(), as_said=True)
    assert stop_ids(tmp_path / "out", model.tokenizer) == stop_ids(tiny(name), model.tokenizer)
    files = {path.name for path in tiny(name).iterdir()}
    assert files <= {path.name for path in (tmp_path / "out").iterdir()}
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1
    assert fingerprint(tmp_path / "out") != fingerprint(tiny(name))


@pytest.mark.parametrize("lora", [None, Lora(r=2)])
def test_nothing_of_an_older_model_is_asked_with(
    lora: Lora | None, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """Its template or end tokens would be, in place of none. What is no model's stays."""
    for name in ("chat_template.jinja", "generation_config.json", "added_tokens.json", "notes.txt"):
        (tmp_path / name).write_text("{}")
    learner = learner_of(tiny("llava"), parts=LOW_RANK, lora=lora)
    learner.save(tmp_path)
    made = {path.name for path in learner.spec.folder.iterdir()}
    left = {path.name for path in tmp_path.iterdir() if path.name not in made}
    assert "notes.txt" in left
    assert not left & {"chat_template.jinja", "generation_config.json", "added_tokens.json"}


def test_transformers_loads_what_was_saved(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    from transformers import AutoProcessor

    learner = learner_of(tiny("llava"))
    taught(learner, small_batch(learner)).save(tmp_path, dtype=torch.bfloat16)
    theirs = reference(load(tmp_path))
    for name, weight in theirs.named_parameters():
        torch.testing.assert_close(weight, dict(learner.network.named_parameters())[name].bfloat16().float())
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoProcessor.from_pretrained(tmp_path)


def test_the_built_in_model_is_taught_and_saved(tmp_path: Path) -> None:
    """Tied embeddings stay tied and are written once; the small reader without transformers loads the result."""
    learner = Learner.load(builtin_folder(), LearnerOptions(parts=WHOLE), device="cpu")
    batch = small_batch(learner)
    optimizer = torch.optim.SGD(learner.groups(), lr=1e-3)
    (-learner(batch).mean()).backward()
    optimizer.step()
    learner.save(tmp_path, dtype=torch.float32)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert len([name for name in names if "lm_head" in name or "embed_tokens" in name]) == 1
    assert_asks_alike(learner, load(tmp_path))
    learner.save(tmp_path, dtype=torch.bfloat16)
    assert {weight.dtype for weight in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize("lora", [None, Lora(r=4, alpha=8)])
def test_sums_in_bf16_cost_a_saved_model_nothing(
    lora: Lora | None, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """A model that came in float32: what did not learn is saved to the bit, what an adapter adapts with exact sums."""
    parts = LOW_RANK if lora else Parts(projector=1e-3)
    learner = learner_of(tiny("llava"), dtype="bfloat16", parts=parts, lora=lora)
    taught(learner, small_batch(learner))
    learner.save(tmp_path, merge=True)
    before, after = (dict(reference(load(folder)).named_parameters()) for folder in (tiny("llava"), tmp_path))
    moved = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    if lora is None:
        assert {part_of(name) for name in moved} == {"projector"}
        return
    assert len(moved) == 14
    for name, layer in lora_layers(learner.network).items():
        expected = before[f"{name}.weight"] + layer.get_delta_weight("default")
        torch.testing.assert_close(after[f"{name}.weight"], expected, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("gathered", [False, True])
def test_a_head_that_is_the_token_table_learns_with_it_in_bf16(gathered: bool, tmp_path: Path) -> None:
    """Of a model in float32 what did not learn is read again, and a tied head has no name among what did; gathered from
    several processes the two are one no more."""
    before, taught_there = tmp_path / "before", tmp_path / "taught"
    Learner.load(builtin_folder(), LearnerOptions(parts=WHOLE), device="cpu").save(before, dtype=torch.float32)
    learner = Learner.load(before, LearnerOptions(parts=WHOLE, dtype="bfloat16"), device="cpu")
    taught(learner, small_batch(learner))
    own = {name: weight.clone() for name, weight in learner.state_dict().items()}
    learner.save(taught_there, weights=own if gathered else None)
    names = set(load_file(taught_there / "model.safetensors"))
    assert len([name for name in names if "lm_head" in name or "embed_tokens" in name]) == 1
    for light in (False, True):
        asked_of = load_model(taught_there, "cpu", "float32", light=light)
        assert torch.equal(asked_of.head.weight, learner.lmm.embed.weight)


def test_a_step_too_small_for_bf16_is_not_lost(tmp_path: Path) -> None:
    """What learned is kept in float32 though the model came in bf16; the tower, which did not, as it came."""
    learner = Learner.load(builtin_folder(), LearnerOptions(parts=WHOLE), device="cpu")
    before = {name: weight.detach().clone() for name, weight in learner.network.named_parameters()}
    with torch.no_grad():
        for weight in learner.parameters():
            if weight.requires_grad:
                weight.mul_(1 + 2**-12)
    learner.save(tmp_path)
    dtypes = {part_of(name): weight.dtype for name, weight in load_file(tmp_path / "model.safetensors").items()}
    assert dtypes == {"vision_tower": torch.bfloat16, "projector": torch.float32, "language_model": torch.float32,
                      "embeddings": torch.float32}  # fmt: skip
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"
    for name, weight in reference(load(tmp_path)).named_parameters():
        grown = part_of(name) != "vision_tower"
        torch.testing.assert_close(weight, before[name] * (1 + grown * 2**-12), atol=0, rtol=1e-7)


def test_dropout_is_off_unless_an_adapter_asks_for_it(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(tiny("llava"), tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    config["text_config"]["attention_dropout"] = config["vision_config"]["attention_dropout"] = 0.5
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    learner = learner_of(tmp_path / "base")
    batch = small_batch(learner)
    assert learner.training
    assert torch.equal(learner(batch), learner_of(tiny("llava"))(batch))
    adapter = learner_of(tmp_path / "base", parts=LOW_RANK, lora=Lora(r=4, dropout=0.5))
    taught(adapter, batch)
    assert not torch.equal(adapter(batch), adapter(batch))
    with adapter.reference():
        assert torch.equal(adapter(batch), adapter(batch))
    adapter.eval()
    assert torch.equal(adapter(batch), adapter(batch))


LOW_RANK = Parts(language_model=1e-3)


def adapted(folder: Path, **more: Any) -> Learner:
    """An adapter of rank 4 that has learned something."""
    learner = learner_of(folder, **{"parts": LOW_RANK, "lora": Lora(r=4, alpha=8), **more})
    return taught(learner, small_batch(learner), steps=3)


@pytest.mark.parametrize("name", ["llava", "llava_onevision", "internvl", "gemma3", "aya_vision"])
def test_an_adapter_begins_as_nothing_and_is_its_own_reference(name: str, tiny: Callable[[str], Path]) -> None:
    learner = learner_of(tiny(name), parts=LOW_RANK, lora=Lora(r=4, alpha=8))
    batch = small_batch(learner)
    base = learner_of(tiny(name))(batch).detach()
    torch.testing.assert_close(learner(batch).detach(), base, atol=1e-6, rtol=0)
    trainable = {name for name, weight in learner.named_parameters() if weight.requires_grad}
    assert len(trainable) == 2 * 2 * 7  # two matrices for each of seven, in two layers
    assert all(".lora_" in name for name in trainable)
    taught(learner, batch)
    assert (learner(batch) - base).abs().max() > 1e-2
    with learner.reference(), torch.no_grad():
        torch.testing.assert_close(learner(batch), base, atol=1e-6, rtol=0)
    assert {name for name, weight in learner.named_parameters() if weight.requires_grad} == trainable


@pytest.mark.parametrize("name", ["llava", "llava_next_video", "llava_onevision", "internvl", "gemma3"])
@pytest.mark.parametrize("merge", [False, True])
def test_an_adapter_is_asked_as_it_learned(name: str, merge: bool, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Low-rank matrices, and a projector that learned whole beside them."""
    learner = adapted(tiny(name), parts=replace(LOW_RANK, projector=1e-3))
    learner.save(tmp_path, merge=merge)
    model = load(tmp_path)
    assert_asks_alike(learner, model)
    assert (tmp_path / "adapter_model.safetensors").exists() != merge
    assert (tmp_path / "model.safetensors").exists() == merge
    base = load(tiny(name))
    prompt = video_prompt(base, frames_of(base, 2), [2, 2])
    assert (model.prefill(prompt).logits - base.prefill(prompt).logits).abs().max() > 1e-2


@needs_bitsandbytes
@pytest.mark.parametrize("name", ["llava", "llava_onevision", "internvl", "gemma3", "aya_vision"])
def test_an_adapter_learns_beside_matrices_of_4_bits(name: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """As it would beside the same numbers written out; it is put on the model's whole matrices, or beside those of
    4 bits again.
    """
    from bitsandbytes.functional import dequantize_4bit

    more: Any = {"parts": LOW_RANK, "lora": Lora(r=4, alpha=8)}
    learner, plain = learner_of(tiny(name), quantize="int4", **more), learner_of(tiny(name), **more)
    layers = lora_layers(plain.network)
    for path, packed in lora_layers(learner.network).items():
        base = packed.base_layer.weight
        layers[path].base_layer.weight.data = dequantize_4bit(base.data, base.quant_state)
    batch = small_batch(learner)
    before = learner(batch).detach()
    for one in (learner, plain):
        taught(one, batch)
    torch.testing.assert_close(learner(batch), plain(batch), atol=1e-3, rtol=0)
    assert (learner(batch) - before).abs().max() > 1e-2
    with learner.reference(), torch.no_grad():
        torch.testing.assert_close(learner(batch), before, atol=1e-6, rtol=0)
    learner.save(tmp_path)
    models = (load_model(folder, "cpu", "float32", light=False) for folder in (tmp_path, tiny(name)))
    whole, base = (dict(model.network.named_parameters()) for model in models)  # type: ignore[attr-defined]
    for path, layer in lora_layers(learner.network).items():
        learnt = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        torch.testing.assert_close(whole[f"{path}.weight"], base[f"{path}.weight"] + learnt)
    assert_asks_alike(learner, load_model(tmp_path, "cpu", "float32", quantize="int4"))  # type: ignore[arg-type]


@needs_bitsandbytes
def test_what_learned_in_4_bits_learns_on_in_4_bits(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    first = adapted(tiny("llava"), quantize="int4")
    first.save(tmp_path / "first")
    second = learner_of(tmp_path / "first", parts=LOW_RANK, lora=Lora(r=4), quantize="int4")
    batch = small_batch(second)
    with torch.no_grad():
        torch.testing.assert_close(second(batch), first(batch), atol=1e-6, rtol=0)
    taught(second, batch)
    second.save(tmp_path / "second")
    assert_asks_alike(second, load_model(tmp_path / "second", "cpu", "float32", quantize="int4"))  # type: ignore[arg-type]


@needs_bitsandbytes
@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_an_adapter_of_another_shape_is_refused(
    quantize: Quantize | None, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    adapted(tiny("llava")).save(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    name = next(name for name in weights if ".lora_A." in name)
    save_file({**weights, name: weights[name][:, :-1].contiguous()}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(IncompleteModel, match="it is of another model"):
        load_model(tmp_path, "cpu", "float32", quantize=quantize)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for an attribute it renamed
def test_peft_loads_the_adapter(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    from peft import PeftModel

    learner = adapted(tiny("llava"))
    learner.save(tmp_path)
    network = PeftModel.from_pretrained(reference(load(tiny("llava"))), tmp_path).eval()
    prompt = video_prompt(learner.lmm, frames_of(learner.lmm, 1), [1])
    with torch.no_grad():
        theirs = network(
            input_ids=torch.tensor([prompt.input_ids]), pixel_values=clip_pixels(learner.lmm, frames_of(learner.lmm, 1))
        )
    torch.testing.assert_close(load(tmp_path).prefill(prompt).logits, theirs.logits[0, -1], atol=TOLERANCE, rtol=0)


def test_an_adapter_of_the_built_in_model_is_read_without_transformers(tmp_path: Path) -> None:
    """Its head is tied to the token table, which learned whole beside the adapter."""
    options = LearnerOptions(parts=replace(LOW_RANK, embeddings=1e-3), lora=Lora(r=4, alpha=8))
    learner = Learner.load(builtin_folder(), options, device="cpu")
    optimizer = torch.optim.SGD(learner.groups(), lr=1e-3)
    for _ in range(2):
        (-learner(small_batch(learner)).mean()).backward()
        optimizer.step()
    learner.save(tmp_path)
    assert json.loads((tmp_path / "vidllm_adapter.json").read_text())["base"] == "built-in"  # also on another machine
    model = load(tmp_path)
    assert isinstance(model.network, LightLlava)
    assert_asks_alike(learner, model)
    assert_asks_alike(learner, load_model(tmp_path, "cpu", "float32", light=False))  # type: ignore[arg-type]


@pytest.mark.parametrize("merge", [False, True])
def test_a_blend_lies_between_what_was_and_what_was_learnt(
    merge: bool, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    learner = adapted(tiny("llava"))
    learner.save(tmp_path / "all", merge=merge)
    learner.save(tmp_path / "third", merge=merge, blend=1 / 3)
    before, learnt, blended = (
        dict(load(folder).network.named_parameters())  # type: ignore[attr-defined]
        for folder in (tiny("llava"), tmp_path / "all", tmp_path / "third")
    )
    for name, weight in blended.items():
        torch.testing.assert_close(weight, before[name] + (learnt[name] - before[name]) / 3, atol=1e-6, rtol=0)
    assert any(not torch.equal(weight, before[name]) for name, weight in blended.items())


def test_an_adapter_on_an_adapter(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Supervised, then by preference: the second adapter's reference is the first."""
    first = adapted(tiny("llava"))
    first.save(tmp_path / "sft")
    second = adapted(tmp_path / "sft")
    batch = small_batch(second)
    with second.reference(), torch.no_grad():
        torch.testing.assert_close(second(batch), first(batch), atol=1e-5, rtol=0)
    second.save(tmp_path / "dpo")
    assert_asks_alike(second, load(tmp_path / "dpo"))
    second.save(tmp_path / "merged", merge=True)
    shutil.rmtree(tmp_path / "sft")
    assert_asks_alike(second, load(tmp_path / "merged"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_an_adapter_learned_is_not_rounded_by_a_whole_model_after_it(dtype: str, tmp_path: Path) -> None:
    """The built-in model came in bf16, its adapter learned in float32, and the next stage leaves that alone."""
    parts = replace(LOW_RANK, projector=1e-3)
    first = Learner.load(builtin_folder(), LearnerOptions(parts=parts, lora=Lora(r=4, targets=("q_proj",))), "cpu")
    taught(first, small_batch(first))
    first.save(tmp_path / "sft")
    options = LearnerOptions(parts=LOW_RANK, lora=Lora(r=4, targets=("v_proj",)), dtype=dtype)  # type: ignore[arg-type]
    Learner.load(tmp_path / "sft", options, "cpu").save(tmp_path / "dpo", merge=True)
    expected = load_model(tmp_path / "sft", "cpu", "float32", light=False)
    found = load_model(tmp_path / "dpo", "cpu", "float32", light=False)
    weights = dict(found.network.named_parameters())  # type: ignore[attr-defined]
    for name, weight in expected.network.named_parameters():  # type: ignore[attr-defined]
        assert torch.equal(weights[name], weight), name


def test_a_base_on_the_hub_is_named_with_its_commit_where_peft_looks(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "models--owner--name" / "snapshots" / commit
    shutil.copytree(tiny("llava"), folder)
    learner_of(folder, parts=LOW_RANK, lora=Lora(r=4)).save(tmp_path / "adapter")
    told = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (told["base_model_name_or_path"], told["revision"]) == ("owner/name", commit)
    assert json.loads((tmp_path / "adapter" / "vidllm_adapter.json").read_text())["base"] == f"owner/name@{commit}"


def test_two_adapters_begin_alike_whatever_was_drawn_before(tiny: Callable[[str], Path]) -> None:
    weights = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        learner = learner_of(tiny("llava"), parts=LOW_RANK, lora=Lora(r=4))
        weights.append([w.detach().clone() for n, w in learner.named_parameters() if ".lora_" in n])
        assert not torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "longrope", "original_max_position_embeddings": 40}, 40),
        ({"rope_type": "dynamic", "factor": 2.0}, 4096),
        ({"rope_type": "llama3", "original_max_position_embeddings": 40}, None),
        (None, None),
    ],
)
def test_a_row_that_turns_the_positions_of_others_is_refused(
    rope: dict[str, Any] | None, limit: int | None, tiny: Callable[[str], Path]
) -> None:
    learner = learner_of(tiny("llava"))
    learner.lmm.language.config.rope_parameters = rope  # type: ignore[union-attr]
    assert learner.lmm.window == limit
    learner.lmm.language.config.rope_parameters = {"rope_type": "default"}  # type: ignore[union-attr]
    assert learner.lmm.window is None


def test_layers_that_attend_otherwise_are_refused(tiny: Callable[[str], Path]) -> None:
    """They would not look along the tree, and packed samples would see each other."""
    learner = learner_of(tiny("llava"))
    learner.lmm.language.config._attn_implementation = "eager"  # type: ignore[union-attr]
    with pytest.raises(UnsupportedModel, match="2 of its layers do not attend by SDPA"):
        learner(small_batch(learner))


def test_a_taught_adapter_at_the_command_line(
    tiny: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`vidllm ask -m OUT` needs nothing else; without the base it is one line and exit code 1."""
    shutil.copytree(tiny("llava"), tmp_path / "base")
    adapted(tmp_path / "base").save(tmp_path / "out")
    clip = write_clip(tmp_path / "clip.mp4", [number / 5 for number in range(10)])
    words = ["ask", str(clip), "what happens?", "-m", str(tmp_path / "out"), "--frames", "2",
             "--max-new-tokens", "3", "--device", "cpu", "--dtype", "float32"]  # fmt: skip
    assert command_line.main(words) == 0
    assert capsys.readouterr().out.strip()
    shutil.rmtree(tmp_path / "base")
    assert command_line.main(words) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"vidllm: \S+out: an adapter of \S+base, which is not there; .*\n", said)


def test_an_adapter_without_its_base_says_so(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(tiny("llava"), tmp_path / "base")
    adapted(tmp_path / "base").save(tmp_path / "out")
    known = fingerprint(tmp_path / "out")
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(ModelNotFound, match=r"an adapter of .*base, which is not there; put it back"):
        load(tmp_path / "out")
    reference_file = tmp_path / "out" / "vidllm_adapter.json"
    reference_file.write_text(reference_file.read_text().replace(str(tmp_path / "base"), str(tmp_path / "moved")))
    assert fingerprint(tmp_path / "out") == known == load(tmp_path / "out").fingerprint
    config = json.loads((tmp_path / "moved" / "config.json").read_text())
    (tmp_path / "moved" / "config.json").write_text(json.dumps({**config, "image_seq_length": 65}))
    with pytest.raises(IncompleteModel, match="an adapter of another model"):
        load(tmp_path / "out")


def test_a_damaged_adapter_is_one_line(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    learner = adapted(tiny("llava"))
    for name, words in [("adapter_model.safetensors", "can not be read"), ("adapter_config.json", "do not belong")]:
        learner.save(tmp_path)
        (tmp_path / name).write_text("{}")
        with pytest.raises(IncompleteModel, match=words):
            load(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(IncompleteModel, match=f"without its {name}"):
            load(tmp_path)


def test_an_adapter_is_not_lost_in_weights_that_are_offloaded(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """`--device auto` keeps what does not fit on disk, where adding to it would change nothing, and nobody told."""
    adapted(tiny("llava")).save(tmp_path)
    language = [f"language_model.{part}" for part in ("embed_tokens", "layers.0", "norm", "rotary_emb")]
    places = {f"model.{part}": "cpu" for part in ("vision_tower", "multi_modal_projector", *language)}
    places |= {"lm_head": "cpu", "model.language_model.layers.1": "disk"}
    with pytest.raises(ConfigError, match="save it merged, or name another --device"):
        load_model(tmp_path, "cpu", "float32", device_map=places)


def test_saving_over_another_kind_of_model_leaves_nothing_of_it(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    learner = adapted(tiny("llava"), extra=Extra(temporal_buckets=4), parts=replace(LOW_RANK, temporal=1e-3))
    (tmp_path / ".part-model-killed").mkdir()
    for name in ("metrics.jsonl", "model_card.md", "model.png"):
        (tmp_path / name).write_text("kept\n")
    learner.save(tmp_path, merge=True)
    learner.save(tmp_path)
    assert not list(tmp_path.glob(".part*")) + list(tmp_path.glob("model*.safetensors"))
    for name in ("metrics.jsonl", "model_card.md", "model.png"):
        assert (tmp_path / name).read_text() == "kept\n"
    plain = learner_of(tiny("llava"))
    plain.save(tmp_path)
    assert not list(tmp_path.glob("*adapter*")) + list(tmp_path.glob("extras*"))
    assert_asks_alike(plain, load(tmp_path))


def test_an_adapter_never_takes_the_place_of_its_base(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(tiny("llava"), tmp_path / "base")
    first = adapted(tmp_path / "base")
    with pytest.raises(ConfigError, match="can not write over the model it begins from"):
        first.save(tmp_path / "base")
    first.save(tmp_path / "sft")
    second = adapted(tmp_path / "sft")
    for merge in (False, True):
        with pytest.raises(ConfigError, match="nor over one that model is an adapter of"):
            second.save(tmp_path / "base", merge=merge)
    second.save(tmp_path / "sft", merge=True)  # whole: nothing beneath it is needed any more
    assert_asks_alike(second, load(tmp_path / "sft"))
    assert load(tmp_path / "base").fingerprint == fingerprint(tiny("llava"))
    again = learner_of(tmp_path / "base")
    taught(again, small_batch(again)).save(tmp_path / "base")  # a whole one may
    assert_asks_alike(again, load(tmp_path / "base"))


def test_a_folder_that_takes_nothing(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        learner_of(tiny("llava")).save(tmp_path / "file")
    with pytest.raises(CheckpointError, match="could not be saved"):
        learner_of(tiny("llava")).save(tmp_path / "file" / "in it")


def test_a_disk_that_is_full_leaves_the_last_model(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """No file may grow beyond 20 kB: one line for a whole model, one for an adapter, and the old one still loads."""
    learner_of(tiny("llava")).save(tmp_path / "out")
    before = fingerprint(tmp_path / "out")
    for lora in (None, Lora(r=4)):
        learner = learner_of(tiny("llava"), parts=Parts(language_model=1e-3), lora=lora)
        with full_disk(20_000), pytest.raises(CheckpointError) as told:
            learner.save(tmp_path / "out")
        assert re.fullmatch(
            r".*/out: the model could not be saved \(.*\); make room and run again: .*", str(told.value)
        )
    assert fingerprint(tmp_path / "out") == before == load(tmp_path / "out").fingerprint
    assert not list((tmp_path / "out").glob(".part*"))


# ------------------------------------------------------------------------------------------- parts beyond the family


def test_times_begin_as_nothing_and_are_asked_with(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Four buckets of two seconds: frames at 0 and 1 s share one, all from 6 s on share the last."""
    learner = learner_of(tiny("llava"), parts=Parts(temporal=1e-2), extra=Extra(temporal_buckets=4, bucket_seconds=2.0))
    batch = small_batch(learner, frames_of(learner.lmm, 9))
    torch.testing.assert_close(learner(batch), learner_of(tiny("llava"))(batch), atol=1e-6, rtol=0)
    taught(learner, batch)
    table = learner.lmm.extras.temporal  # type: ignore[union-attr]
    assert table is not None
    assert (table.abs().max(dim=1).values > 1e-4).all()
    learner.save(tmp_path)
    model = load(tmp_path)
    assert_asks_alike(learner, model)
    frame = video_prompt(model, frames_of(model, 1), [2]).visuals[0]
    plain = load(tiny("llava")).encode([frame])[0][0]
    for seconds, bucket in [(0.0, 0), (1.9, 0), (2.0, 1), (6.5, 3), (500.0, 3)]:
        tokens = model.encode([replace(frame, times=(seconds,))])[0][0]
        torch.testing.assert_close(tokens - plain, table[bucket].detach().expand_as(plain), atol=1e-5, rtol=0)
    again = learner_of(tmp_path, parts=Parts(temporal=1e-2))
    assert torch.equal(again.lmm.extras.temporal, table)  # type: ignore[union-attr,arg-type]
    with pytest.raises(ConfigError, match="4 time buckets of 2 s"):
        learner_of(tmp_path, parts=Parts(temporal=1e-2), extra=Extra(temporal_buckets=8))


@pytest.mark.parametrize("name", ["llava", "llava_next"])
@pytest.mark.parametrize("mode", ["frame", "grid"])
def test_newlines_that_were_taught_are_counted_and_shown(
    name: str, mode: Any, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """LLaVA-1.5 gets its first newline token; LLaVA-NeXT's own, of still pictures, comes to stand in videos."""
    learner = learner_of(tiny(name), parts=Parts(newline=1e-2), extra=Extra(newline=mode))
    before = load(tiny(name)).spec.geometry.frame_tokens([2, 2])  # type: ignore[union-attr]
    assert learner.spec.newline == mode
    taught(learner, small_batch(learner))
    learner.save(tmp_path)
    model = load(tmp_path)
    assert model.spec.newline == mode
    grown = model.spec.geometry.frame_tokens([2, 2])  # type: ignore[union-attr]
    assert [a - b for a, b in zip(grown, before, strict=True)] == {"frame": [1, 1], "grid": [4, 4]}[mode]
    torch.testing.assert_close(model.newline, learner.lmm.newline)
    assert_asks_alike(learner, model)


def test_extras_of_another_model_are_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(tiny("llava"), tmp_path / "out")
    for weights, words in [
        ({"temporal": torch.zeros(4, 7)}, r"\(4, 7\), the model 32 wide"),
        ({"temporal": torch.zeros(0, 32)}, r"\(0, 32\), the model 32 wide"),
        ({"newline": torch.tensor(1.0)}, r"\(\), the model 32 wide"),
        ({"colour": torch.zeros(4, 32)}, "'colour', which nobody here knows"),
    ]:
        save_file(weights, tmp_path / "out" / "extras.safetensors", {"bucket_seconds": "1.0"})
        with pytest.raises(IncompleteModel, match=words):
            load(tmp_path / "out")
    save_file({"temporal": torch.zeros(4, 32)}, tmp_path / "out" / "extras.safetensors", {"bucket_seconds": "-1.0"})
    with pytest.raises(IncompleteModel, match=r"buckets of -1\.0 s"):
        load(tmp_path / "out")
    (tmp_path / "out" / "extras.safetensors").write_text("torn")
    with pytest.raises(IncompleteModel, match="can not be read"):
        load(tmp_path / "out")


# ------------------------------------------------------------------------------------------------------ what is refused


def test_a_language_model_whose_layers_keep_a_state_is_one_line(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Before its weights are read: of the families that pool none with such layers was tried."""
    folder = Path(shutil.copytree(tiny("llava"), tmp_path / "out"))
    edit(folder / "config.json", text_config={"layer_types": ["linear_attention", "full_attention"]})
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnsupportedModel, match=r"layers of linear_attention .* teach a model with attention in all"):
        learner_of(folder)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"parts": Parts(temporal=1e-3)}, "no temporal that could learn"),
        ({"extra": Extra(temporal_buckets=4)}, "no rate; add for example parts.temporal"),
        ({"parts": Parts(newline=1e-3)}, "no newline that could learn"),
        ({"parts": LOW_RANK, "lora": Lora(targets=("q_proj", "fc1"))}, "'fc1' is no matrix of the language model"),
        ({"lora": Lora()}, "no language_model rate"),
        ({"quantize": "int4"}, "matrices of so few bits do not learn"),
        ({"parts": Parts()}, "nothing learns"),
    ],
)
def test_what_can_not_learn(more: Any, words: str, tiny: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match=words):
        learner_of(tiny("llava"), **{"parts": Parts(projector=1e-3), **more})


def test_parts_in_a_config_file(tmp_path: Path) -> None:
    path = tmp_path / "sft.yaml"
    path.write_text("parts: {projector: 1e-3, langauge_model: 2e-5}\n")
    with pytest.raises(ConfigError, match=r"unknown key 'langauge_model'; did you mean 'language_model'"):
        load_config(LearnerOptions, path)
    path.write_text("parts: {projector: 1e-3}\nlora: {r: 0}\n")
    with pytest.raises(ConfigError, match="r of at least 1"):
        load_config(LearnerOptions, path)
    with pytest.raises(ConfigError, match="learning rate projector 2 must"):
        load_config(LearnerOptions, None, ["parts.projector=2"])
    assert load_config(LearnerOptions, None, ["parts.projector=1e-3"]).parts == Parts(projector=1e-3)
