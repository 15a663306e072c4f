"""What must be kept so that a run goes on to the bit: weights that learn, the optimizer's memory, random numbers.

Weights that do not learn are the model's own and are not kept again. Under DDP and FSDP the full tensors are gathered
on the first process, so that a checkpoint knows nothing of how many processes made it.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from vidllm.errors import CheckpointError
from vidllm.train.saves import Saved

_GATHER = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
_SPREAD = StateDictOptions(full_state_dict=True, broadcast_from_rank0=False, strict=False)


def learnt(model: nn.Module) -> dict[str, Any]:
    """The weights that learn, by name, on the CPU; empty on all processes but the first when they are spread."""
    learning = _learning(model, every_name=True)  # torch keeps a frozen token table under its name as the head
    kept = get_model_state_dict(model, options=_GATHER)
    return {name: weight for name, weight in kept.items() if name in learning}


def memory(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state by the names of weights."""
    return dict(get_optimizer_state_dict(model, optimizer, options=_GATHER))


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, saved: Saved) -> None:
    """Put both back, on every process.

    Raises:
        CheckpointError: these are the weights of other parts than those that learn now, as another version of vidllm
            may have it under the same settings: what was learnt of them would be lost without a word.
    """
    weights = saved.load("weights.pt")
    missing, more = _learning(model) - set(weights), set(weights) - _learning(model, every_name=True)
    if missing or more:
        differ = f"without {min(missing)}, which learns" if missing else f"with {min(more)}, which does not learn"
        raise CheckpointError(f"{saved.folder} was made {differ} now: go on with the version of vidllm that made it, "
                              "or give this run another `out`")  # fmt: skip
    set_model_state_dict(model, weights, options=_SPREAD)
    set_optimizer_state_dict(model, optimizer, saved.load("optimizer.pt"), options=_SPREAD)


def _learning(model: nn.Module, *, every_name: bool = False) -> set[str]:
    """The names of weights that learn; with `every_name` all of one that has several."""
    named = model.named_parameters(remove_duplicate=not every_name)
    return {_plain(name) for name, weight in named if weight.requires_grad}


def _plain(name: str) -> str:
    """The name without what DDP and FSDP put into it."""
    return name.removeprefix("module.").replace("_fsdp_wrapped_module.", "")


def random_state() -> dict[str, Any]:
    """Of this process: Python's, NumPy's, torch's and the GPU's generators, as plain values and tensors."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [kind, keys.tolist(), int(position), int(has_gauss), float(cached)],  # type: ignore[union-attr]
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Go on where `random_state` was taken."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def seed_all(seed: int, rank: int) -> None:
    """Every generator of this process from one seed, a different stream on every process."""
    random.seed(f"{seed}/{rank}")
    np.random.seed([seed % 2**32, rank])
    torch.manual_seed((seed * 1_000_003 + rank) % 2**63)
