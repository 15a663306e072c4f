"""Where the local engine's replicas run: one on every GPU; on a CPU as many as cores and memory carry.

For a CPU no torch is loaded.

    2 cores                  2 replicas of 1 thread          64 cores      16 replicas of 4 threads
    a 7B model, 32 GB        1 replica of all threads        8 GPUs        8 replicas
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vidllm.corpus.local import identity
from vidllm.corpus.replicas import Place, Replicas
from vidllm.errors import ConfigError
from vidllm.machine import cores, cpu_multiplies_bf16, free_memory_bytes, has_no_gpu
from vidllm.model.families import fetch_model, read_spec
from vidllm.model.fingerprint import fingerprint
from vidllm.model.resolve import model_name

if TYPE_CHECKING:
    from vidllm.corpus.caption import CaptionOptions

MOST_CPU_REPLICAS = 16
MEMORY_SHARE = 0.5
"""Of free memory, for replicas and what they write."""
WORKING_BYTES = 1 << 30
"""Of a replica beside its weights: libraries, keys and values, sums."""
WEIGHTS_GROW = 2
"""At most, from the file (16 bits) into memory (32 bits)."""


def open_replicas(options: CaptionOptions, remark: Callable[[str], None]) -> Replicas:
    """The options' model, its weights unread until there is a clip. Raises ModelError or ConfigError."""
    device, dtype = chosen(options.device, options.dtype)
    folder = fetch_model(None if options.model is None else str(options.model))
    spec = read_spec(folder)
    told = identity(fingerprint(folder), spec, dtype, options.quantize, options.same_within)
    return Replicas(
        replace(options, model=folder, device=device, dtype=dtype), places(device, options.replicas, folder),
        model=model_name(options.model), fingerprint=told, spec=spec, remark=remark,
    )  # fmt: skip


def chosen(device: str | None, dtype: str | None) -> tuple[str, str]:
    """Device and number format by name, as `load` would choose them. Loads torch where only torch can tell.

    Raises ConfigError when there is no such device.
    """
    place = "cpu" if device is None and has_no_gpu() else device
    if place == "cpu":
        return "cpu", dtype or ("bfloat16" if cpu_multiplies_bf16() else "float32")
    from vidllm.model.checkpoint import choose_device, choose_dtype

    found = choose_device(None if place == "auto" else place)
    return "auto" if place == "auto" else str(found), str(choose_dtype(dtype, found)).removeprefix("torch.")


def places(device: str, replicas: int | None, folder: Path) -> list[Place]:
    """Where the replicas of the model in `folder` run; `replicas` as asked for, None: what pays."""
    if device == "auto":
        if replicas not in (None, 1):
            raise ConfigError("--device auto spreads one model over all GPUs; leave --replicas out, or name a device")
        return [Place(device=device)]
    if device == "cpu":
        count = replicas or _cpu_replicas(cores(), folder)
        return [Place(device=device, threads=max(cores() // count, 1), share=1 / count)] * count
    gpus = _gpus(device)
    count = replicas or len(gpus)
    share = 1 / -(-count // len(gpus))
    return [Place(device=gpus[number % len(gpus)], share=share) for number in range(count)]


def _cpu_replicas(cores: int, folder: Path) -> int:
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    fits = MEMORY_SHARE * free_memory_bytes() / (WORKING_BYTES + WEIGHTS_GROW * weights)
    return max(min(cores, MOST_CPU_REPLICAS, int(fits)), 1)


def _gpus(device: str) -> list[str]:
    """The devices meant: `cuda` is all that are visible, `cuda:1` that one."""
    if device != "cuda":
        return [device]
    import torch

    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
