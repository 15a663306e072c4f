"""Many prompts at once: every row says what it would say alone, whatever runs, ends or fails beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import vidllm
from tests import test_lmm, test_native, tiny_models
from tests.test_lmm import pictures, tiny
from vidllm.batching import Batcher, Finished
from vidllm.engine import generate, read
from vidllm.model.checkpoint import load_model
from vidllm.model.features import FeatureCache
from vidllm.model.lmm import ComposableLMM
from vidllm.model.native import NativeLMM
from vidllm.options import GenerationOptions
from vidllm.prompt import Message, Prompt, build_prompt

__all__ = ["tiny"]  # the fixture

Tiny = Callable[[str], Path]
Work = Sequence[tuple[Prompt, GenerationOptions]]


def load(folder: Path) -> Any:
    return load_model(folder, device="cpu", dtype="float32")


def video_prompt(model: Any, frames: int, seed: int, factor: float = 1.0) -> Prompt:
    """A prompt about `frames` frames that no other seed shows."""
    if isinstance(model, NativeLMM):
        pixels = pictures(frames, *test_native.SIZES[model.spec.model_type], seed=seed)
        return test_native.video_prompt(model, pixels, [4.0 * i for i in range(frames)])
    side = model.spec.image_size
    strides = [2 + (seed + i) % 2 for i in range(frames)]
    return test_lmm.video_prompt(model, pictures(frames, side, side, seed=seed), strides, factor)


def mixed_work(model: Any, count: int = 9) -> list[tuple[Prompt, GenerationOptions]]:
    """Prompts of one to five frames, several RoPE factors, replies of 1 to 40 tokens, one of text alone."""
    native = isinstance(model, NativeLMM)
    lengths = [7, 40, 1, 23, 12, 33, 5, 18, 28]
    work = []
    for number in range(count):
        factor = 1.0 if native else (1.0, 1.37, 2.0)[number % 3]
        prompt = video_prompt(model, 1 + number * 2 % 5, number, factor)
        work.append((prompt, GenerationOptions(max_new_tokens=lengths[number % 9])))
    words = model.tokenizer.encode("USER: what is a circle? ASSISTANT:", add_special_tokens=False).ids
    return [*work, (test_lmm.prompt_for(model, words, []), GenerationOptions(max_new_tokens=20))]


def one_by_one(model: Any, work: Work) -> list[tuple[tuple[int, ...], str, str]]:
    """What `read` and `generate` make of each."""
    said = []
    for prompt, options in work:
        told = generate(model, read(model, prompt).state, options).result
        said.append((told.token_ids, told.text, told.finish_reason))
    return said


def run(batcher: Batcher, work: Work) -> dict[int, Finished]:
    """Everything through one batcher, by ticket; no ticket may come twice."""
    for ticket, (prompt, options) in enumerate(work):
        batcher.submit(ticket, prompt, options)
    done: dict[int, Finished] = {}
    while batcher.waiting or batcher.running:
        for finished in batcher.step():
            assert finished.ticket not in done
            done[finished.ticket] = finished
        assert batcher.running <= batcher.slots
    return done


def said(done: dict[int, Finished]) -> list[tuple[tuple[int, ...], str, str]]:
    told = [done[ticket].generated for ticket in range(len(done))]
    return [(one.token_ids, one.text, one.finish_reason) for one in told if one is not None]


@pytest.mark.parametrize("name", list(tiny_models.FAMILIES))
def test_batched_equals_one_by_one(name: str, tiny: Tiny) -> None:
    """Every family, prompts of unlike lengths, frame counts and factors together, and each batch size."""
    model = load(tiny(name))
    work = mixed_work(model)
    expected = one_by_one(model, work)
    assert len({ids for ids, *_ in expected}) == len(expected)  # they say different things: a swap would show
    for slots in (1, 3, 16):
        done = run(Batcher(model, slots=slots), work)
        assert said(done) == expected, f"{slots} slots"
        assert not any(finished.alone for finished in done.values())
