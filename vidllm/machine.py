"""What this machine computes on: cores, memory, number formats, GPUs; told without torch where that is certain."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

CONTAINER = Path("/sys/fs/cgroup")
"""Where Linux tells a container its limits."""
CPUINFO = Path("/proc/cpuinfo")
GPU_DEVICES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg")
"""One of these is there wherever an x86 Linux lets a process use a GPU."""


_share: int | None = None


def take_share(most: int) -> None:
    """From now on `cores` tells this process of so many at most: others like it work beside it."""
    global _share
    _share = most


def cores() -> int:
    """Processor cores this process may use, under the container's own limit too."""
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(seen, _container_cores(), _share or seen)


def has_no_gpu() -> bool:
    """True when there is certainly none; False when only torch can tell."""
    plain = sys.platform == "linux" and platform.machine() == "x86_64"
    return plain and not any(Path(device).exists() for device in GPU_DEVICES)


def cpu_multiplies_bf16() -> bool:
    """Whether bfloat16 matrix products are faster than float32 ones here. Loads torch where Linux does not tell."""
    if sys.platform == "linux" and platform.machine() == "x86_64":
        return _x86_multiplies_bf16(CPUINFO.read_text(encoding="utf-8"))
    import torch

    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _x86_multiplies_bf16(cpuinfo: str) -> bool:
    """Whether it has AMX, or AVX512-BF16 of another maker than Intel: Intel's takes longer than its float32 does."""
    told = dict(line.split("\t", 1) for line in cpuinfo.splitlines() if "\t" in line)
    flags, maker = told.get("flags", "").split(), told.get("vendor_id", "")
    return "amx_tile" in flags or ("avx512_bf16" in flags and "GenuineIntel" not in maker)


def free_memory_bytes() -> int:
    """Main memory that could be allocated now, under the container's own limit too."""
    import psutil  # which those who count cores do without

    return min(int(psutil.virtual_memory().available), _container_bytes())


def _container_cores() -> int:
    """What a container may compute at a time, whole cores; a number beyond any machine where nothing is limited."""
    try:
        quota, period = (CONTAINER / "cpu.max").read_text().split()  # microseconds of each period, or the word "max"
        return max(-(-int(quota) // int(period)), 1)
    except (OSError, ValueError, ZeroDivisionError):
        return sys.maxsize


def _container_bytes() -> int:
    """What a container's own limit leaves; a number beyond any memory where there is none."""
    try:
        most = int((CONTAINER / "memory.max").read_text())  # the word "max" where nothing is limited
        return most - int((CONTAINER / "memory.current").read_text()) + _droppable_bytes()
    except (OSError, ValueError):
        return sys.maxsize


def _droppable_bytes() -> int:
    """Files read a while ago that count as the container's memory until somebody needs it: weights, clips."""
    try:
        lines = (CONTAINER / "memory.stat").read_text().splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
    except OSError:
        return 0
