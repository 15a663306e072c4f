"""Nothing is left on the CPU that a GPU would need: every family is asked, batched and taught on a simulated device."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.other_device import OTHER, Away, move, other_device
from tests.test_batching import load, mixed_work, one_by_one, run
from tests.test_train_learner import learner_of, small_batch
from tests.test_train_native import shown, worded
from tests.tiny_models import FAMILIES
from vidllm.batching import Batcher
from vidllm.model.lmm import ComposableLMM
from vidllm.train.batch import Batch
from vidllm.train.learner import Learner
from vidllm.train.parts import Lora, Parts
from vidllm.train.sharing import Stem, plant

Tiny = Callable[[str], Path]


def test_tensors_of_two_devices_do_not_meet() -> None:
    with other_device():
        there = torch.ones(3, device=OTHER)
        assert isinstance(there + 1, Away)
        assert (there.cpu() + torch.ones(3)).tolist() == [2, 2, 2]
        with pytest.raises(RuntimeError, match="aten::add mixes devices"):
            there + torch.ones(3)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_model_on_another_device_says_the_same(name: str, tiny: Tiny) -> None:
    model: Any = load(tiny(name))
    work = [(prompt, replace(options, max_new_tokens=5)) for prompt, options in mixed_work(model, 2)]
    expected = one_by_one(model, work)
    move(model.network)
    with other_device():
        assert model.device == OTHER
        assert one_by_one(model, work) == expected
        done = run(Batcher(model, slots=3), work)
    answers = [done[ticket].generated for ticket in range(len(work))]
    assert [(a.token_ids, a.text, a.finish_reason) for a in answers if a] == expected


def lesson(learner: Learner) -> Batch:
    """Videos, of which one is asked about twice, and words alone."""
    model: Any = learner.lmm
    if isinstance(model, ComposableLMM):
        return small_batch(learner)
    told = [shown(model, " how many?", " two"), shown(model, " where?", " right"), worded(model),
            shown(model, " how many?", " three", seed=1)]  # fmt: skip
    stems = [Stem(length=e.trained.index(True), ends=((e, len(e.trained)),)) for e, _ in told]
    return Batch(pieces=plant(stems, sharing=True).pieces)


def learnt(learner: Learner, batch: Batch) -> list[torch.Tensor]:
    """Log-probs before a step and behind it."""
    optimizer = torch.optim.AdamW(learner.groups(), lr=1e-3)
    before = learner(batch)
    (-before.mean()).backward()
    torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        return [before.detach(), learner(batch)]


ADAPTER = {"parts": Parts(language_model=1e-3), "lora": Lora(targets=("q_proj", "v_proj"))}
WHOLE = {"parts": Parts(vision_tower=1e-4, projector=1e-3, language_model=1e-3), "gradient_checkpointing": True}


ADAPTED = ("llava", "qwen3_5_moe", "gemma4")
"""What an adapter adds lies beside a matrix of any family; all that families differ in is learnt by the whole model."""


@pytest.mark.parametrize(
    ("name", "options"), [*((name, WHOLE) for name in FAMILIES), *((name, ADAPTER) for name in ADAPTED)]
)
def test_a_model_on_another_device_learns_the_same(name: str, options: dict[str, Any], tiny: Tiny) -> None:
    if name == "gemma4_unified":  # it has no tower
        options = {**options, "parts": replace(options["parts"], vision_tower=0.0)}
    learner = learner_of(tiny(name), **options)
    batch = lesson(learner)
    expected = learnt(learner_of(tiny(name), **options), batch)
    move(learner)
    with other_device():
        assert learner.device == OTHER
        found = [logps.cpu() for logps in learnt(learner, batch)]
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)
