"""The learner walks the road that asking walks: same log-probs, transformers' loss, and gradients only where they may be."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import tiny_models
from tests.test_lmm import clip_pixels, image_prompt, load, pictures, reference, video_prompt
from vidllm.errors import ConfigError, UnsupportedModel
from vidllm.model.lmm import ComposableLMM
from vidllm.prompt import Prompt
from vidllm.train.batch import Batch, Piece
from vidllm.train.learner import Learner, LearnerOptions
from vidllm.train.parts import Extra, Parts

TOLERANCE = 1e-4
COMPOSABLE = ("llava", "vipllava", "llava_next", "llava_next_video", "llava_onevision")
WHOLE = Parts(projector=1e-3, language_model=1e-3)
ANSWER = " The red circle moves right."


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
