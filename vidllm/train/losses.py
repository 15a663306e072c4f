"""Preference losses over the summed log-probs of chosen and rejected answers, and what a person reads beside them.

    logratio  = policy logps - reference logps        of one answer; beta * logratio is its implicit reward
    margin z  = logratio(chosen) - logratio(rejected)

N pairs everywhere; all arithmetic in float32. A loss is a weighted sum of terms, so MPO and DPO with an SFT anchor are
lists of weights and not other programs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import Literal

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.nn import functional as F

from vidllm.errors import ConfigError
from vidllm.model.reader import capped

Term = Literal["sigmoid", "hinge", "ipo", "robust", "bco", "anchor", "sft"]

DPO: Mapping[Term, float] = MappingProxyType({"sigmoid": 1.0})
MPO: Mapping[Term, float] = MappingProxyType({"sigmoid": 0.8, "bco": 0.2, "sft": 1.0})
"""Mixed preference optimisation, arXiv 2411.10442."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PairLogps:
    """Log-probs of N pairs, each (N,) and summed over an answer's tokens; `*_tokens` (N,) are how many these are."""

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    step_chosen_tokens: float | None = None
    """Mean tokens of the chosen answers in the whole optimizer step these pairs are a part of; None: they are all."""

    @property
    def logratios(self) -> tuple[Tensor, Tensor]:
        """Policy against reference, of chosen and of rejected."""
        return self.chosen - self.ref_chosen, self.rejected - self.ref_rejected

    @property
    def margin(self) -> Tensor:
        """z: by how much more than the reference the policy prefers the chosen answer."""
        chosen, rejected = self.logratios
        return chosen - rejected


@dataclass(frozen=True, kw_only=True)
class PreferenceLoss:
    """What is minimised: terms with their weights, the reward's scale `beta`, and how many labels may be flipped."""

    terms: Mapping[Term, float]
    beta: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        unknown = sorted(set(self.terms) - set(TERMS))
        if unknown or not self.terms:
            raise ConfigError(f"no loss is called {', '.join(unknown) or '(none given)'}; there are {', '.join(TERMS)}")
        if not all(weight > 0 for weight in self.terms.values()):
            raise ConfigError(f"loss weights {dict(self.terms)} must be above 0: less would teach the opposite")
        if self.beta <= 0:
            raise ConfigError(f"beta {self.beta:g} must be above 0; 0.1 is usual")
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(f"label_smoothing {self.label_smoothing:g} must be in [0, 0.5): half the labels flipped "
                              "say nothing")  # fmt: skip
        if self.label_smoothing and not {"sigmoid", "robust"} & set(self.terms):
            raise ConfigError(f"label_smoothing {self.label_smoothing:g} means nothing to {', '.join(self.terms)}; "
                              "leave it out, or give sigmoid or robust a weight")  # fmt: skip

    def __call__(self, pairs: PairLogps, shift: float = 0.0) -> Tensor:
        """The loss (), the mean over pairs; `shift` is `RewardShift.mean`, which only the term bco looks at."""
        parts = [weight * TERMS[term](self, pairs, shift).mean() for term, weight in self.terms.items()]
        return torch.stack(parts).sum()

    def metrics(self, pairs: PairLogps) -> dict[str, float]:
        """TRL's names: rewards and their margins and accuracies, log-probs of both answers; means over the pairs."""
        chosen, rejected = (self.beta * ratio.detach() for ratio in pairs.logratios)
        return {
            "rewards/chosen": chosen.mean().item(),
            "rewards/rejected": rejected.mean().item(),
            "rewards/accuracies": (chosen > rejected).float().mean().item(),
            "rewards/margins": (chosen - rejected).mean().item(),
            "logps/chosen": pairs.chosen.detach().mean().item(),
            "logps/rejected": pairs.rejected.detach().mean().item(),
        }


@dataclass
class RewardShift:
    """BCO's delta: the running mean of all rewards so far, chosen and rejected. Part of a checkpoint."""

    mean: float = 0.0
    count: int = 0

    def add(self, mean: float, count: int) -> float:
        """Take in `count` rewards of which only the mean is known; the mean with them."""
        self.count += count
        self.mean += count * (mean - self.mean) / self.count
        return self.mean


WINDOW = 10
"""Optimizer steps whose mean is one point of a trend, in a run that is long enough."""
FALLS = 3
"""Windows in a row that must each be below the one before."""
FALLEN_NATS = 1.0
"""How far below the reference the chosen answers must be on average."""


@dataclass
class Falling:
    """Likelihood displacement: chosen answers grow less likely while the margin still grows. Said once. Plain values,
    part of a checkpoint."""

    size: int = WINDOW
    window: list[float] = field(default_factory=list)
    means: list[float] = field(default_factory=list)
    """Of the last windows."""
    said: bool = False

    @classmethod
    def over(cls, steps: int) -> Falling:
        """For a run of so many steps: in a short one the windows are so small that half of it can tell a trend."""
        return cls(min(WINDOW, max(1, steps // 2 // (FALLS + 1))))

    def hear(self, log_ratio: float) -> str | None:
        """Take a step's mean log-ratio of the chosen answers, in nats; a warning when it has been falling."""
        self.window.append(log_ratio)
        if len(self.window) < self.size:
            return None
        self.means = [*self.means[-FALLS:], sum(self.window) / self.size]
        self.window = []
        steadily = len(self.means) > FALLS and all(later < before for before, later in pairwise(self.means))
        if self.said or not steadily or self.means[-1] > -FALLEN_NATS:
            return None
        self.said = True
        steps, fallen = FALLS * self.size, -self.means[-1]
        return (
            f"logps/chosen has been falling for {steps} steps: chosen answers are now {fallen:.1f} nats less likely "
            "than to the reference (likelihood displacement); give `anchor` or `sft` a weight in `loss`, raise beta, "
            "or stop earlier"
        )


def _sigmoid(loss: PreferenceLoss, pairs: PairLogps, _: float) -> Tensor:
    """DPO, arXiv 2305.18290 equation 7; with label smoothing the conservative form of the authors' later note."""
    z, flipped = loss.beta * pairs.margin, loss.label_smoothing
    return -(1 - flipped) * F.logsigmoid(z) - flipped * F.logsigmoid(-z)


def _robust(loss: PreferenceLoss, pairs: PairLogps, _: float) -> Tensor:
    """Robust DPO, arXiv 2403.00409: unbiased when `label_smoothing` of the labels are flipped."""
    z, flipped = loss.beta * pairs.margin, loss.label_smoothing
    return (-(1 - flipped) * F.logsigmoid(z) + flipped * F.logsigmoid(-z)) / (1 - 2 * flipped)


def _hinge(loss: PreferenceLoss, pairs: PairLogps, _: float) -> Tensor:
    """SLiC's margin, arXiv 2305.10425, on DPO's implicit rewards."""
    return torch.relu(1 - loss.beta * pairs.margin)


def _ipo(loss: PreferenceLoss, pairs: PairLogps, _: float) -> Tensor:
    """IPO, arXiv 2310.12036 equation 17, on log-ratios per token, which its authors recommend for texts."""
    chosen, rejected = pairs.logratios
    z = chosen / pairs.chosen_tokens - rejected / pairs.rejected_tokens
    return (z - 1 / (2 * loss.beta)) ** 2


def _bco(loss: PreferenceLoss, pairs: PairLogps, shift: float) -> Tensor:
    """BCO, arXiv 2404.04656: each answer alone is told good or bad, against the mean reward."""
    chosen, rejected = (loss.beta * ratio for ratio in pairs.logratios)
    return -F.logsigmoid(chosen - shift) - F.logsigmoid(shift - rejected)


def _anchor(loss: PreferenceLoss, pairs: PairLogps, _: float) -> Tensor:
    """mDPO's anchor, arXiv 2406.11839: the chosen answer must not become less likely than it was."""
    return -F.logsigmoid(loss.beta * pairs.logratios[0])


def _sft(_: PreferenceLoss, pairs: PairLogps, __: float) -> Tensor:
    """Cross entropy of the chosen answers, per token over the whole batch."""
    mean = pairs.step_chosen_tokens or pairs.chosen_tokens.sum() / len(pairs.chosen)
    return -(pairs.chosen / mean)


TERMS: dict[Term, Callable[[PreferenceLoss, PairLogps, float], Tensor]] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
    "robust": _robust,
    "bco": _bco,
    "anchor": _anchor,
    "sft": _sft,
}


def answer_logps(
    hidden: Tensor, head: Tensor, targets: Tensor, *, chunk: int = 1024, cap: float | None = None
) -> Tensor:
    """Log-probs (T,) float32 of `targets` (T,) after `hidden` (T, D), with the head's weight (V, D) and logits' `cap`.

    Only positions that predict an answer's token come in: logits of a prompt are the larger part of what other trainers
    compute. `chunk` positions' logits, (chunk, V) float32, are held at a time, and are computed again for the gradient.
    """
    if not len(targets):
        return hidden.new_zeros(0, dtype=torch.float32)
    parts = [
        torch.utils.checkpoint.checkpoint(_chunk_logps, h, head, t, cap, use_reentrant=False)
        for h, t in zip(torch.split(hidden, chunk), torch.split(targets, chunk), strict=True)
    ]
    return torch.cat(parts)


def _chunk_logps(hidden: Tensor, head: Tensor, targets: Tensor, cap: float | None) -> Tensor:
    return -F.cross_entropy(capped(F.linear(hidden, head).float(), cap), targets, reduction="none")
