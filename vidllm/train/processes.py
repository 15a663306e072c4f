"""The processes that share a run, as `accelerate launch` or `torchrun` made them: which is the first, and who waits."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import GradientAccumulationPlugin, TorchDynamoPlugin, parse_flag_from_env
from accelerate.utils.environment import get_cpu_distributed_information

from vidllm.errors import ConfigError

if TYPE_CHECKING:
    from vidllm.train.loop import LoopOptions

T = TypeVar("T")
PATIENCE = timedelta(days=7)
"""How long processes wait for the first, which looks at every clip of a corpus, or writes a large model; torch's own
limit of some minutes is for the steps, where a process that is late is lost."""


def check_launcher() -> None:
    """Raise ConfigError where a launcher was told to spread the model in a way that is not ours: what would be summed,
    clipped and saved then is a share of it.
    """
    first = os.environ.get("FSDP_VERSION", "1") == "1"
    told = {
        "DeepSpeed": parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"),
        "Megatron-LM": parse_flag_from_env("ACCELERATE_USE_MEGATRON_LM"),
        "FSDP 1": first and parse_flag_from_env("ACCELERATE_USE_FSDP"),
    }
    for name in (name for name, is_told in told.items() if is_told):
        raise ConfigError(f"accelerate is told to spread the model by {name}; launch with --config_file "
                          "configs/fsdp.yaml, which spreads it by FSDP 2, or with one that does not")  # fmt: skip


def accelerator(device: str | None) -> Accelerator:
    """Processes, device and FSDP as `accelerate launch` said; numbers are the learner's own business, and steps the
    task's: what ACCELERATE_* variables or a launcher's defaults say of either would change every loss unseen.
    """
    return Accelerator(
        cpu=on_cpu(device), mixed_precision="no", dynamo_plugin=TorchDynamoPlugin(backend="no"),
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )  # fmt: skip


def on_cpu(device: str | None) -> bool:
    """Whether accelerate is told to stay on the CPU, by the config or else by `accelerate launch --cpu`; untold, and
    without a GPU, it takes each of several processes for the only one, and all of them would write the same run."""
    told = device == "cpu" or (device is None and parse_flag_from_env("ACCELERATE_USE_CPU"))
    return told or (get_cpu_distributed_information().world_size > 1 and not torch.cuda.is_available())


def processes(config: LoopOptions) -> PartialState:
    """What `accelerate launch` or `torchrun` made of us; one process on the device that is there without them."""
    return PartialState(cpu=on_cpu(config.device))


def is_left_alone(config: LoopOptions) -> bool:
    """Whether `accelerate launch` was asked for several processes on a CPU: without MPI it starts one, and says to it
    no more of the others than where they would have met."""
    several = "MASTER_PORT" in os.environ and parse_flag_from_env("ACCELERATE_USE_CPU")
    return several and processes(config).num_processes == 1


def on_first(config: LoopOptions, make: Callable[[], T]) -> T:
    """What `make` gives on the first process, on all of them: files are read, or downloaded, once."""
    state = processes(config)
    if state.num_processes == 1:
        return make()
    patient = _patient()
    made: list[T | None] = [make() if state.is_main_process else None]
    dist.broadcast_object_list(made, src=0, group=patient)
    return made[0]  # type: ignore[return-value]  # the first process has put it there


@cache
def _patient() -> dist.ProcessGroup:
    """All processes, as a group that waits; every process makes it at the same place, once."""
    made: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=PATIENCE)
    return made


def is_first(config: LoopOptions) -> bool:
    """Whether this process is the one that tells and writes."""
    return bool(processes(config).is_main_process)


def leave() -> None:
    """Part from the other processes, the work being done; every process calls it.

    A wrapped model that waits for the garbage collector holds the group's threads beyond the group's end, and a process
    that ends with them aborts. One that left while another was still at work would cost that one its result.
    """
    if dist.is_initialized():
        gc.collect()
        dist.barrier(group=_patient())
        dist.destroy_process_group()
        _patient.cache_clear()
