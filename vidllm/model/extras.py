"""Learned parts a family's own class has no place for: a newline token, an embedding of when a frame was seen.

They lie in `extras.safetensors` beside the weights, made by training and found again by whoever loads the folder.

    D width of the language model   B buckets of time
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vidllm.errors import IncompleteModel

FILE = "extras.safetensors"
_DIMENSIONS = {"newline": 1, "temporal": 2}


class Extras(nn.Module):
    """`newline` (D,) closes frames or rows; `temporal` (B, D) is added to a frame's tokens by the time it shows.

    Bucket b holds the times from b * `bucket_seconds` up to the next; the last one all that come later.
    """

    def __init__(
        self, *, newline: Tensor | None = None, temporal: Tensor | None = None, bucket_seconds: float = 1.0
    ) -> None:
        super().__init__()
        self.newline = None if newline is None else nn.Parameter(newline)
        self.temporal = None if temporal is None else nn.Parameter(temporal)
        self.bucket_seconds = bucket_seconds

    def timed(self, tokens: Tensor, seconds: float) -> Tensor:
        """A frame's tokens (n, D) with what was learned about its time."""
        if self.temporal is None:
            return tokens
        bucket = min(int(seconds / self.bucket_seconds), len(self.temporal) - 1)
        return tokens + self.temporal[bucket].to(tokens)

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write `weights`, this module's as they are to be kept."""
        save_file(dict(weights), folder / FILE, {"bucket_seconds": repr(self.bucket_seconds)})


def has_extra(folder: Path, name: str) -> bool:
    """Whether the model in `folder` was taught this one; of a damaged file, no: loading explains it."""
    try:
        with safe_open(folder / FILE, framework="pt") as file:
            return name in file.keys()  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError):
        return False


def load_extras(folder: Path, width: int, device: torch.device | str, dtype: torch.dtype) -> Extras | None:
    """What `folder` holds of them; None for nothing.

    Raises:
        IncompleteModel: the file is damaged, or of a model of another width.
    """
    path = folder / FILE
    if not os.path.lexists(path):
        return None
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            seconds = float((file.metadata() or {})["bucket_seconds"])
        if not 0 < seconds < math.inf:
            raise ValueError(f"buckets of {seconds} s")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise IncompleteModel(f"{path}: can not be read ({error}); save the model again") from error
    for name, weight in weights.items():
        if name not in _DIMENSIONS:
            raise IncompleteModel(f"{path}: holds {name!r}, which nobody here knows; use the vidllm that saved it")
        if weight.dim() != _DIMENSIONS[name] or weight.shape[-1] != width or not weight.numel():
            raise IncompleteModel(f"{path}: {name} is {tuple(weight.shape)}, the model {width} wide; "
                                  "it was saved with another model")  # fmt: skip
    placed = {name: weight.to(device, dtype) for name, weight in weights.items()}
    extras = Extras(newline=placed.get("newline"), temporal=placed.get("temporal"), bucket_seconds=seconds)
    extras.requires_grad_(False)
    return extras
