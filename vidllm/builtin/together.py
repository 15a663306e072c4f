"""Several processes that teach one model, each from clips of its own: `torchrun --nproc_per_node 2 -m ...recipe`.

On CPUs processes of one thread each meet once a step. The threads of one process wait for each other behind every small
matrix product, and for whichever of them other work has held up.
"""

from collections.abc import Iterable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = timedelta(hours=3)
"""How long the others wait for the one that works alone: for a whole stage."""


def meet() -> None:
    """Join the other processes where `torchrun` started several."""
    if dist.is_torchelastic_launched() and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=PATIENCE)


def part() -> int:
    """This process's number, from 0 on."""
    return dist.get_rank() if dist.is_initialized() else 0


def parts() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wait() -> None:
    """Until all are here."""
    if parts() > 1:
        dist.barrier()


def leave() -> None:
    """End together: a process that goes while others still speak to it takes them along."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def agreed(number: float) -> float:
    """The first process's number, for all: clocks differ."""
    if parts() == 1:
        return number
    said = torch.tensor(number, dtype=torch.float64)
    dist.broadcast(said, 0)
    return said.item()


def share_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Every gradient becomes the mean of all processes'."""
    if parts() == 1:
        return
    shared = [p for p in parameters if p.requires_grad]
    flat = torch.cat([_gradient(p).flatten() for p in shared])
    dist.all_reduce(flat)
    means = torch.split(flat / parts(), [p.numel() for p in shared])
    for parameter, mean in zip(shared, means, strict=True):
        parameter.grad = mean.view_as(parameter)


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Zeros where this process's clips did not need the parameter."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
