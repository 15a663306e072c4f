"""How much memory is free on a device, how much was taken, and whether an exception means that there was too little."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vidllm.errors import ModelError
from vidllm.machine import free_memory_bytes

if sys.platform == "win32":
    import psutil
else:
    import resource

_SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "unable to allocate")
"""What torch and numpy say when an allocation fails, in lower case."""


def free_bytes(device: torch.device) -> int:
    """Bytes that could be allocated now, those that PyTorch holds and does not use included."""
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + idle
    return free_memory_bytes()


def peak_bytes() -> int:
    """The most that was taken so far: of the GPU where there is one, else by this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def is_out_of_memory(error: BaseException) -> bool:
    """On a GPU it has a class of its own; on a CPU it is a RuntimeError that says so."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


@contextmanager
def told_when_it_runs_out(line: str) -> Iterator[None]:
    """Too little memory is a ModelError that says `line`; whatever else is raised flies on."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(line) from error


def give_back(device: torch.device) -> None:
    """Hand what PyTorch holds and does not use back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
