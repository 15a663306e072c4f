"""Direct preference optimisation: pairs of answers about videos in, a model that would rather give the better one out.

    rows -> checked, every one -> reference log-probs, once -> steps -> forests of shared prompts -> policy : reference

Every shortcut has a switch (`sharing`, `head_only`, `feature_cache`, `reference_cache`) and gives what the plain
computation gives. Rewards, margins and log-probs are told under TRL's names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from vidllm.ahead import made_ahead
from vidllm.caches import cache_folder
from vidllm.errors import ConfigError, RowError
from vidllm.train.cache import ClipCache
from vidllm.train.contest import Contest, describe, read_contest
from vidllm.train.learner import Learner
from vidllm.train.loop import Trained
from vidllm.train.losses import DPO, MPO, TERMS, Falling, PairLogps, PreferenceLoss, RewardShift, Term
from vidllm.train.metrics import Record
from vidllm.train.pairs import PairBatch, PairMicro, lay_out_pairs
from vidllm.train.parts import Extra, Parts
from vidllm.train.processes import on_first, processes
from vidllm.train.reference import (
    Found,
    References,
    RefLogps,
    find_reference,
    reference_key,
    remarks,
    usable_records,
)
from vidllm.train.saves import Identity
from vidllm.train.stage import (
    NowAndThen,
    StageConfig,
    identity,
    load_learner,
    open_cache,
    teach,
    voice,
)
from vidllm.train.task import Micro, Part, Step, Watch

PRESETS: Mapping[str, Mapping[Term, float]] = MappingProxyType({"dpo": DPO, "mpo": MPO})


@dataclass(frozen=True, kw_only=True)
class DpoConfig(StageConfig):
    """The keys of a `dpo` YAML: those of every stage, and these."""

    loss: Literal["dpo", "mpo"] | dict[str, float] = "dpo"
    """Terms and their weights, of sigmoid, hinge, ipo, robust, bco, anchor, sft; or a name: dpo is {sigmoid: 1}, mpo
    {sigmoid: 0.8, bco: 0.2, sft: 1}."""
    beta: float = 0.1
    """Scale of the implicit reward: the smaller, the further the model may go from the reference."""
    label_smoothing: float = 0.0
    """Share of labels taken to be flipped (terms sigmoid and robust)."""
    anchor: float = 0.0
    """Weight of a term that keeps the chosen answers as likely as they were, beside those of `loss`."""
    parts: Parts = field(default_factory=lambda: Parts(language_model=5e-7))
    batch: int = 16
    """Pairs to an optimizer step, on all processes together."""
    tokens: int = 8192
    """Most tokens that go through the model together, prompts and answers; a longer pair goes alone."""
    sharing: bool = True
    """A prompt runs once for both answers, a video once for all its pairs; false: each answer behind its own prompt."""
    reference_cache: bool = True
    """Ask the reference once, before the first step, and keep what it says on disk; false: in every step again."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.preference
        if isinstance(self.loss, dict):  # equal losses are one config, and a sum's last bit knows its order
            object.__setattr__(self, "loss", {term: self.loss[term] for term in TERMS if term in self.loss})

    @property
    def preference(self) -> PreferenceLoss:
        """The loss. Raises ConfigError: no such term, or an impossible number."""
        chosen = PRESETS[self.loss] if isinstance(self.loss, str) else self.loss
        terms = {str(term): weight for term, weight in chosen.items()}
        if self.anchor and "anchor" in terms:
            raise ConfigError(f"anchor is {self.anchor:g}, and loss gives it {terms['anchor']:g}; say it once")
        if self.anchor:
            terms["anchor"] = self.anchor
        return PreferenceLoss(terms=terms, beta=self.beta, label_smoothing=self.label_smoothing)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """A micro-batch of pairs, laid out; `numbers` are their rows."""

    numbers: Micro
    pairs: PairBatch


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
    falling: Falling = field(default_factory=Falling)

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
        with made_ahead(micros[share[0] :: share[1]], self.prepare, workers=threads, ahead=2 * threads) as materials:
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


def run_dpo(config: DpoConfig, watch: Watch) -> Trained:
    """Teach, from the newest checkpoint under `config.out` if there is one, and put the model there when it is done.

    Raises:
        RowError, ModelError, ConfigError: before the first step, one line.
        CheckpointError, NotFinite: see `train`.
    """
    say = voice(config, watch)
    contest = read_contest(config, say)
    for line in describe(config, contest):
        say(line)
    task = make_task(config, contest)
    settle_reference(config, contest, task, say)
    return teach(config, task, task.learner, watch, "dpo.yaml")


def make_task(config: DpoConfig, contest: Contest) -> PreferenceTask:
    """The task of these pairs with its learner; the reference was not asked yet.

    Raises:
        ModelError: the weights are not what they should be.
    """
    learner = load_learner(config, contest.base)
    total = config.steps or config.epochs * len(contest.steps(config, 0))
    return PreferenceTask(config, contest, learner, open_cache(config, learner), falling=Falling.over(total))


def settle_reference(config: DpoConfig, contest: Contest, task: PreferenceTask, say: Callable[[str], None]) -> None:
    """Let the task know what the reference gives every pair, or whom to ask in every step.

    Raises:
        RowError: the reference gives a pair no number.
    """
    if config.reference_cache:
        task.references = _known(config, contest, task, say)
    elif config.whole:  # what the model was is not found by leaving an adapter out
        task.live = load_learner(replace(config, gradient_checkpointing=False), contest.base).requires_grad_(False)


def _known(
    config: DpoConfig, contest: Contest, task: PreferenceTask, say: Callable[[str], None]
) -> Mapping[int, RefLogps]:
    """The reference's log-probs of every pair; each is on disk as soon as it was computed."""
    state = processes(config)
    shaping = f"{config.dtype}|{config.quantize}|{task.learner.device.type}|{config.extra}"
    keys = on_first(config, lambda: [reference_key(row, config.plan, shaping) for row in contest.rows])
    file = References((config.cache_folder or cache_folder("references")) / f"{contest.base.fingerprint}.jsonl")
    told, done = NowAndThen(say, "reference: pair"), 0
    for line in remarks(contest.rows, contest.base.fingerprint, config.dtype, config.plan.look):
        say(line)

    def compute(numbers: Sequence[int], keep: bool) -> Mapping[int, RefLogps]:
        def heard(scored: Mapping[int, RefLogps]) -> None:
            nonlocal done
            if keep:
                file.add({keys[number]: logps for number, logps in scored.items()})
                done += len(scored) * state.num_processes
                told(min(done, len(numbers)), len(numbers))

        mine = task.scores(numbers, heard, threads=config.workers, share=(state.process_index, state.num_processes))
        return dict(gather_object(list(mine.items())))

    found = find_reference(
        kept=on_first(config, lambda: {n: known for n, key in enumerate(keys) if (known := file.get(key))}),
        recorded=_recorded(config, contest), tokens=[max(size.chosen, size.rejected) for size in contest.sizes],
        compute=compute, say=say,
    )  # fmt: skip
    _check_finite(found, contest)
    say(f"reference {found}")
    return found.logps


def _recorded(config: DpoConfig, contest: Contest) -> dict[int, RefLogps]:
    """What rows recorded from this very model. Not where positions are scaled: the scale was each answer's own then;
    not where newlines or vectors of time are to be learned: they were not there; not where its weights were whole.
    """
    if config.extra != Extra() or config.quantize is not None:
        return {}
    usable = usable_records(contest.rows, contest.base.fingerprint, config.dtype, config.plan.look)
    context = contest.base.spec.context
    return {n: logps for n, logps in usable.items() if contest.sizes[n].prompt + contest.sizes[n].answers <= context}


def _check_finite(found: Found, contest: Contest) -> None:
    for number, logps in found.logps.items():
        if not (math.isfinite(logps.chosen) and math.isfinite(logps.rejected)):
            raise RowError(f"{contest.rows[number].origin}: the reference gives its answers no finite log-probs "
                           f"({logps.chosen}, {logps.rejected}); leave the row out, or use dtype float32")  # fmt: skip
