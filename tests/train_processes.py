"""Two processes share one batch, the first a video, the second text alone: their gradients against one process's.

    torchrun --nproc-per-node 2 -m tests.train_processes FOLDER ...

Of every model the first prints the largest difference as a share of the gradient's largest entry, a line for each
wrapper and set of parts. At last it takes longer over its rows than torch would wait for it, and both print what it
found.
"""

import os
import sys
import time
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import _set_pg_timeout

from tests.packed import pack
from tests.test_train_learner import learner_of, small_batch
from tests.test_train_native import shown, worded
from vidllm.model.native import NativeLMM
from vidllm.train.batch import Batch
from vidllm.train.learner import Learner
from vidllm.train.parts import Lora, Parts
from vidllm.train.processes import is_first, leave, on_first
from vidllm.train.sft import SftConfig

SETS: tuple[dict[str, Any], ...] = (
    {"parts": Parts(vision_tower=1e-4, projector=1e-3, language_model=1e-3)},
    {"parts": Parts(projector=1e-3, language_model=1e-3), "lora": Lora(r=4), "gradient_checkpointing": True},
)


def say(told: object) -> None:
    """A line in one piece: both processes write into one pipe."""
    os.write(sys.stdout.fileno(), f"{told}\n".encode())


CONFIG = SftConfig(data=Path("rows.jsonl"), out=Path("out"), parts=Parts(projector=1e-3), device="cpu")


def main(folders: list[str]) -> None:
    """Every set of parts in every wrapper, of every model; then patience."""
    if is_first(CONFIG):  # the group is there now
        say("begun")
    for folder, wrapper, options in product(folders, ("ddp", "fsdp"), SETS):
        worst = difference(Path(folder), wrapper, options)
        if is_first(CONFIG):
            say(f"{folder} {worst}")
    patience()
    leave()


def patience() -> None:
    """Twice: while rows are looked at, and while the model is written."""
    _set_pg_timeout(timedelta(milliseconds=100))
    say(on_first(CONFIG, late))
    if is_first(CONFIG):
        late()


def late() -> str:
    """Far later than 100 ms."""
    time.sleep(0.5)
    return "found"


def difference(folder: Path, wrapper: str, options: dict[str, Any]) -> float:
    """How far the gradients of both together are from those of one that has it all."""
    learner, alone = learner_of(folder, **options), learner_of(folder, **options)
    model = learner.lmm
    native = isinstance(model, NativeLMM)
    batch = pack([shown(model, " how many?", " two")[0], worded(model)[0]]) if native else small_batch(learner)
    (-alone(batch).sum()).backward()
    mine = Batch(pieces=batch.pieces[dist.get_rank() :][:1])
    held = wrapped(learner, wrapper)  # until the gradients are there: DDP sums them only while it lives
    (-held(mine).sum() * dist.get_world_size()).backward()
    expected = {name: weight.grad for name, weight in alone.named_parameters() if weight.grad is not None}
    worst = 0.0
    for name, weight in learner.named_parameters():
        if weight.requires_grad:
            found: Any = weight.grad
            found = found.full_tensor() if wrapper == "fsdp" else found
            largest = float(expected[name].abs().max())
            worst = max(worst, float((found - expected[name]).abs().max()) / (largest + 1e-6))
    return worst


def wrapped(learner: Learner, wrapper: str) -> nn.Module:
    """As accelerate would wrap it."""
    if wrapper == "ddp":
        return nn.parallel.DistributedDataParallel(learner)
    from torch.distributed.fsdp import fully_shard

    for layer in learner.lmm.language.layers:  # type: ignore[union-attr]
        fully_shard(layer)
    fully_shard(learner)
    return learner


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
