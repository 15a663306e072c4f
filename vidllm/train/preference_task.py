"""DPO as a task for the loop: pairs -> one forest -> log-probs of all answers -> the loss and TRL's figures.

    prepare    rows -> clips (recalled or decoded) -> ids -> forest          in threads, ahead of the model
    loss       frozen features (recalled, or encoded once and kept) -> log-probs -> policy against reference

What the reference thinks is known before the first step (`reference`); only with its cache switched off is it asked
again for every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vidllm.errors import RowError, VidllmError
from vidllm.train.ahead import Ahead
from vidllm.train.loading import open_turns
from vidllm.train.losses import PairLogps, RewardShift
from vidllm.train.pairs import Pair, PairBatch, PairMicro, build_pair, lay_out_pairs
from vidllm.train.reference import RefLogps
from vidllm.train.row import advice
from vidllm.train.stage import identity
from vidllm.train.task import Micro, Part, Step

if TYPE_CHECKING:
    from vidllm.clip import Known, PlanOptions
    from vidllm.model.chat import AnyTokenizer
    from vidllm.model.spec import ModelSpec
    from vidllm.train.cache import ClipCache
    from vidllm.train.dpo import Contest, DpoConfig
    from vidllm.train.learner import Learner
    from vidllm.train.metrics import Record
    from vidllm.train.row import PairRow
    from vidllm.train.saves import Identity


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """A micro-batch of pairs, laid out; `numbers` are their rows."""

    numbers: Micro
    pairs: PairBatch


def load_pair(
    row: PairRow, spec: ModelSpec, tokenizer: AnyTokenizer, plan: PlanOptions, *, known: Known | None = None
) -> Pair:
    """A row with its media open, once for both answers. Clips that `known` recalls are not decoded.

    Raises:
        RowError: a medium can not be read any more, or the pair does not fit; the line names file and line.
    """
    answers = (row.chosen, row.rejected)
    try:
        messages = open_turns(row.prompt, spec, tokenizer, plan, answers=answers, known=known)
        return build_pair(messages, *answers, spec, tokenizer, rope_max=plan.rope_max)
    except VidllmError as error:
        raise RowError(f"{row.origin}: {advice(error)}") from error


@dataclass(eq=False)
class PreferenceTask:
    """What the loop needs to know of DPO. `learner` is the bare one, whatever the loop wraps it in."""

    config: DpoConfig
    contest: Contest
    learner: Learner
    cache: ClipCache | None = None
    references: Mapping[int, RefLogps] | None = None
    """Of every row. None: `live` is asked in every step."""
    live: Learner | None = None
    """Who is asked: a frozen second model, or None for the learner without its adapter."""
    shift: RewardShift = field(default_factory=RewardShift)
    falling: Falling = field(default_factory=lambda: Falling())

    def identity(self) -> Identity:
        """Model, pairs and settings."""
        return identity(self.config, self.contest.base, "pairs", self.contest.checked)

    def steps(self, epoch: int) -> tuple[Step, ...]:
        """As the contest plans them."""
        return self.contest.steps(self.config, epoch)

    def name(self, number: int) -> str:
        """File, line, id."""
        return str(self.contest.rows[number].origin)

    def prepare(self, numbers: Micro) -> Material:
        """A micro-batch, read and laid out."""
        pairs = lay_out_pairs(self.contest.load(self.config, numbers, self.cache), sharing=self.config.sharing)
        return Material(numbers=numbers, pairs=pairs)

    def loss(self, model: nn.Module, material: Material) -> Part:
        """The loss of a micro-batch, summed over its pairs."""
        pairs, preference = self._furnished(material.pairs), self.config.preference
        told = self._told(model(pairs.batch), pairs, material.numbers)
        count = len(pairs)
        metrics = {name: (mean * count, count) for name, mean in preference.metrics(told).items()}
        loss = preference(told, self.shift.mean) * count
        return Part(loss=loss, weight=count, tokens=pairs.batch.length, metrics=metrics)

    def after(self, record: Record) -> str | None:
        """The mean reward moves on after a step, so that a step's loss is one however it is cut; trends are watched."""
        mean = (record["rewards/chosen"] + record["rewards/rejected"]) / 2
        self.shift.add(mean, 2 * int(record["weight"]))
        return self.falling.hear(record["rewards/chosen"] / self.config.beta)

    def state(self) -> dict[str, Any]:
        """The running mean of rewards, what was seen of the chosen answers, and the reference held against."""
        known = self.references or {}
        reference = [(known[number].chosen, known[number].rejected) for number in sorted(known)]
        return {"shift": asdict(self.shift), "falling": asdict(self.falling), "reference": reference}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, against the very reference of then: one that was found anew, or that rows have
        lost since, agrees with it to rounding only.
        """
        self.shift = RewardShift(**state["shift"])
        self.falling = Falling(**state["falling"])
        if self.references is not None:
            self.references = {number: RefLogps(*logps) for number, logps in enumerate(state["reference"])}

    # ------------------------------------------------------------------------------------------------- the reference

    @torch.no_grad()
    def scores(
        self, numbers: Sequence[int], heard: Callable[[Mapping[int, RefLogps]], None], *, threads: int,
        share: tuple[int, int] = (0, 1),
    ) -> dict[int, RefLogps]:  # fmt: skip
        """What the learner as it stands gives these pairs. `share` = (i, n): every n-th micro-batch, from the i-th.

        `heard` gets each micro-batch's as they come. Micro-batches are those of all pairs, whichever are asked for: a
        pair's last bits are the same when a pass goes on that was killed half-way.
        """
        wanted, everything = set(numbers), replace(self.config, batch=len(self.contest.rows), seed=0)
        [step] = self.contest.steps(everything, 0)
        micros = [micro for micro in step if wanted & set(micro)]
        found: dict[int, RefLogps] = {}
        with Ahead(micros[share[0] :: share[1]], self.prepare, workers=threads, ahead=2 * threads) as materials:
            for material in materials:
                scored = {n: logps for n, logps in self._scored(material).items() if n in wanted}
                heard(scored)
                found |= scored
        return found

    def _scored(self, material: Material) -> dict[int, RefLogps]:
        pairs = self._furnished(material.pairs)
        chosen, rejected = (logps.tolist() for logps in pairs.summed(self.learner(pairs.batch)))
        return {n: RefLogps(c, r) for n, c, r in zip(material.numbers, chosen, rejected, strict=True)}

    def _told(self, logps: Tensor, pairs: PairBatch, numbers: Micro) -> PairLogps:
        chosen, rejected = pairs.summed(logps)
        ref_chosen, ref_rejected = self._reference(pairs, numbers, chosen)
        chosen_tokens, rejected_tokens = pairs.tokens
        return PairLogps(
            chosen=chosen, rejected=rejected, ref_chosen=ref_chosen, ref_rejected=ref_rejected,
            chosen_tokens=chosen_tokens.to(chosen.device), rejected_tokens=rejected_tokens.to(chosen.device),
            step_chosen_tokens=numbers.step_chosen_tokens if isinstance(numbers, PairMicro) else None,
        )  # fmt: skip

    def _reference(self, pairs: PairBatch, numbers: Micro, like: Tensor) -> tuple[Tensor, Tensor]:
        if self.references is None:
            return self._asked(pairs)
        known = [self.references[number] for number in numbers]
        return like.new_tensor([k.chosen for k in known]), like.new_tensor([k.rejected for k in known])

    @torch.no_grad()
    def _asked(self, pairs: PairBatch) -> tuple[Tensor, Tensor]:
        """The reference as it is now: nothing of it was kept."""
        bare: AbstractContextManager[None] = nullcontext() if self.live is not None else self.learner.reference()
        with bare:
            return pairs.summed((self.live or self.learner)(pairs.batch))

    def _furnished(self, pairs: PairBatch) -> PairBatch:
        if self.cache is None:
            return pairs
        return replace(pairs, batch=self.cache.furnish(pairs.batch, self.learner.features))


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
