"""AdamW with a rate for every part, and a schedule that is a function of the step alone: none of it need be saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from vidllm.errors import ConfigError

Schedule = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True, kw_only=True)
class OptimOptions:
    """How weights follow their gradients. Rates are said per part and not here. Raises ConfigError at birth."""

    schedule: Schedule = "cosine"
    """What a rate does after the warm-up: falls to nothing along a half cosine or a line, or stays."""
    warmup: float = 0.03
    """Share of all steps over which rates rise from nothing; above 0 it is one step at least, in a run of several."""
    weight_decay: float = 0.0
    """Of matrices; norms and biases are never decayed."""
    beta1: float = 0.9
    beta2: float = 0.999
    clip: float | None = 1.0
    """Longest gradient, over all parts together; null: as long as it comes."""

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup {self.warmup:g} must be a share of all steps, in [0, 1)")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ConfigError(f"beta1 {self.beta1:g} and beta2 {self.beta2:g} must be in [0, 1)")
        if self.weight_decay < 0:
            raise ConfigError(f"weight_decay {self.weight_decay:g} must be at least 0")
        if self.clip is not None and self.clip <= 0:
            raise ConfigError(f"clip {self.clip:g} must be above 0; null leaves gradients as they are")


def rate_share(step: int, total: int, options: OptimOptions) -> float:
    """What optimizer step `step` of 0 .. `total` - 1 takes of every part's rate; never 0, never above 1.

    Warm-up of w steps: 1/(w+1), 2/(w+1) ... then 1 and down; `linear` ends at 1/(total-w), `cosine` just above 0.
    """
    warm = round(options.warmup * total) or int(options.warmup > 0 and total > 1)
    if step < warm:
        return (step + 1) / (warm + 1)
    return _SHAPES[options.schedule]((step - warm) / max(1, total - warm))


_SHAPES: Mapping[Schedule, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
}


def make_optimizer(groups: Iterable[Mapping[str, Any]], options: OptimOptions) -> torch.optim.AdamW:
    """AdamW over groups of {"name", "params", "lr"}, one for each part that learns.

    Every group is split in two, since vectors (norms, biases, newlines) are not decayed.
    """
    split = [half for group in groups for half in _by_decay(group, options.weight_decay)]
    return torch.optim.AdamW(split, betas=(options.beta1, options.beta2))


def _by_decay(group: Mapping[str, Any], decay: float) -> list[dict[str, Any]]:
    """`rate` is kept beside `lr`, which the schedule moves."""
    params = list(group["params"])
    halves = (("", decay, [p for p in params if p.ndim > 1]), ("/vectors", 0.0, [p for p in params if p.ndim <= 1]))
    return [
        {"name": group["name"] + mark, "rate": group["lr"], "lr": group["lr"], "weight_decay": much, "params": some}
        for mark, much, some in halves
        if some
    ]


def set_rates(optimizer: torch.optim.Optimizer, share: float) -> dict[str, float]:
    """Give every group its part's rate times `share`; the rates by part."""
    for group in optimizer.param_groups:
        group["lr"] = group["rate"] * share
    return {group["name"].removesuffix("/vectors"): group["lr"] for group in optimizer.param_groups}
