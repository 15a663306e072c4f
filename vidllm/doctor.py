"""What this machine can do for vidllm: versions, readers that really load, devices, caches, and what is missing."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vidllm import caches
from vidllm.errors import VidllmError
from vidllm.machine import cores, free_memory_bytes
from vidllm.model.families import read_spec
from vidllm.model.resolve import ENVIRONMENT, local_folder, model_name

Status = Literal["ok", "missing", "broken"]

LIBRARIES = ("vidllm", "torch", "transformers", "tokenizers", "numpy", "av", "decord", "torchcodec", "pysubs2")

ANSWERING = ("torch", "transformers", "tokenizers", "safetensors", "jinja2", "numpy", "pillow")
"""Without any of these no question can be answered."""
READERS = {"pyav": "av", "decord": "decord", "torchcodec": "torchcodec.decoders"}
"""Reader -> the module that must import for it to work."""

CURES = {
    "pyav": "pip install av",
    "decord": "optional; pip install decord==0.6.0 (wheels for x86-64 Linux and Windows only)",
    "torchcodec": "optional; pip install 'vidllm[torchcodec]', and FFmpeg's shared libraries from the system",
    "torch": "install it again: https://pytorch.org/get-started/locally",
    "cuda": "optional; an NVIDIA driver, and a CUDA build of torch: https://pytorch.org/get-started/locally",
    "model": "name one: vidllm ask ... -m FOLDER_OR_HUB_ID, or set VIDLLM_MODEL",
    "quant": "optional; pip install 'vidllm[quant]' keeps models in 8 or 4 bits",
}


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `cure` says how to get what is missing, empty when nothing is."""

    name: str
    status: Status
    detail: str
    cure: str = ""


@dataclass(frozen=True)
class Report:
    """All findings. `healthy`: a question about a video can be answered here."""

    system: str
    versions: dict[str, str | None]
    unmet: tuple[Finding, ...]
    """Libraries that are missing, or of a version vidllm was never seen to work with."""
    readers: tuple[Finding, ...]
    devices: tuple[Finding, ...]
    models: tuple[Finding, ...]
    caches: tuple[caches.CacheUse, ...]

    @property
    def healthy(self) -> bool:
        """True when torch and the reader that needs nothing optional load, and there is a default model."""
        needed = (*(r for r in self.readers if r.name == "pyav"), *self.devices[:1], *self.models[:1])
        absent = {finding.name for finding in self.unmet if finding.status == "missing"}
        return all(finding.status == "ok" for finding in needed) and absent.isdisjoint(ANSWERING)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        uses = [{**asdict(use), "folder": str(use.folder)} for use in self.caches]
        return {**asdict(self), "caches": uses, "healthy": self.healthy}


def examine() -> Report:
    """Look at everything. Imports torch and every reader, so it takes seconds; raises nothing for what is missing."""
    return Report(
        system=f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, {_memory()}",
        versions={name: _version(name) for name in LIBRARIES},
        unmet=tuple(_unmet((_version("vidllm") and importlib.metadata.requires("vidllm")) or ())),
        readers=tuple(_reader(name) for name in READERS),
        devices=_devices(),
        models=(_default_model(), _quantisation()),
        caches=caches.measure(),
    )


def _memory() -> str:
    import psutil

    gib = 1024**3
    memory = psutil.virtual_memory()
    return f"{cores()} cores, {free_memory_bytes() / gib:.1f} of {memory.total / gib:.1f} GiB memory free"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _unmet(requirements: Iterable[str]) -> Iterator[Finding]:
    """What an installer would have brought: somebody else's later `pip install` may have taken it back."""
    from packaging.requirements import Requirement

    for needed in map(Requirement, requirements):
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        version, cure = _version(needed.name), f"pip install '{needed.name}{needed.specifier}'"
        if version is None:
            yield Finding(needed.name, "missing", "not installed", cure)
        elif not needed.specifier.contains(version, prereleases=True):
            yield Finding(needed.name, "broken", f"{version} is installed, vidllm needs {needed.specifier}", cure)


def _reader(name: str) -> Finding:
    """A reader counts when its library really loads: a wheel may be installed and its FFmpeg absent."""
    module = READERS[name]
    if _version(module.split(".")[0]) is None:
        return Finding(name, "missing", "not installed", CURES[name])
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        return Finding(name, "broken", f"installed, does not load: {_reason(error)}", CURES[name])
    return Finding(name, "ok", f"{module.split('.')[0]} {_version(module.split('.')[0])}")


def _reason(error: Exception) -> str:
    """The first line of what it says."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _devices() -> tuple[Finding, ...]:
    """What torch computes on, the CPU first; torch itself where it is missing or one of its libraries does not load."""
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as error:
        status: Status = "broken" if _version("torch") else "missing"
        return (Finding("torch", status, f"does not load: {_reason(error)}", CURES["torch"]),)

    cpu = Finding("cpu", "ok", f"{torch.get_num_threads()} threads")
    if torch.backends.mps.is_available():
        return (cpu, Finding("mps", "ok", "Apple GPU"))
    if not torch.cuda.is_available():
        return (cpu, Finding("cuda", "missing", "no NVIDIA GPU that torch can use", CURES["cuda"]))
    return (cpu, *(_gpu(index) for index in range(torch.cuda.device_count())), _linear_attention())


def _linear_attention() -> Finding:
    """What a GPU computes models with layers of linear attention by."""
    from vidllm.model.running import KERNELS, absent_kernels

    absent = absent_kernels()
    if absent:
        return Finding("linear layers", "missing", f"{', '.join(absent)} not installed",
                       f"optional; pip install {' '.join(absent)} makes Qwen3.5 faster in bfloat16")  # fmt: skip
    return Finding("linear layers", "ok", ", ".join(f"{name} {_version(name)}" for name in KERNELS.values()))


def _gpu(index: int) -> Finding:
    import torch

    name = torch.cuda.get_device_name(index)
    try:
        free, total = torch.cuda.mem_get_info(index)
    except RuntimeError as error:  # full to the last byte, or lent to one process alone
        return Finding(f"cuda:{index}", "broken", f"{name}: {_reason(error)}", "end what uses it: nvidia-smi names it")
    return Finding(f"cuda:{index}", "ok", f"{name}, {free / 1024**3:.1f} of {total / 1024**3:.1f} GiB free")


def _default_model() -> Finding:
    """The model `ask` takes when none is named, found and described as `ask` does; its weights are not opened."""
    name = model_name(None)
    source = f"$VIDLLM_MODEL = {name}" if os.environ.get(ENVIRONMENT) else name
    try:
        folder = local_folder(name)
        if folder is None:
            return Finding("default model", "ok", f"{source} (not a folder here: a Hugging Face id)")
        read_spec(folder)
    except VidllmError as error:
        return Finding("default model", "broken", f"{source}: {error}", CURES["model"])
    if not any(folder.glob("*.safetensors")):
        return Finding("default model", "missing", f"{source}: no weights (*.safetensors) in {folder}", CURES["model"])
    return Finding("default model", "ok", f"{source}: {folder}")


def _quantisation() -> Finding:
    version = _version("bitsandbytes")
    if version is None:
        return Finding("quantisation", "missing", "bitsandbytes not installed", CURES["quant"])
    return Finding("quantisation", "ok", f"bitsandbytes {version}")
