"""Direct preference optimisation: pairs of answers about videos in, a model that would rather give the better one out.

    rows -> checked, every one -> reference log-probs, once -> steps -> forests of shared prompts -> policy : reference

Every shortcut has a switch (`sharing`, `head_only`, `feature_cache`, `reference_cache`) and gives what the plain
computation gives. Rewards, margins and log-probs are told under TRL's names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from accelerate.utils import gather_object

from vidllm.caches import cache_folder
from vidllm.clip import PlanOptions
from vidllm.errors import ConfigError, RowError
from vidllm.model.chat import AnyTokenizer, count_text_tokens
from vidllm.model.spec import ModelSpec
from vidllm.prompt import Message
from vidllm.train.cache import ClipCache
from vidllm.train.check import Checked, Progress
from vidllm.train.learner import Learner, LearnerOptions
from vidllm.train.loading import Shelf
from vidllm.train.looks import same_look
from vidllm.train.loop import Trained, train
from vidllm.train.losses import DPO, MPO, TERMS, PreferenceLoss, Term
from vidllm.train.pairs import Pair, PairSize, build_pair, forest_tokens, plan_pairs
from vidllm.train.parts import Extra, Parts
from vidllm.train.preference_task import Falling, PreferenceTask, load_pair
from vidllm.train.reference import (
    Found,
    References,
    RefLogps,
    find_reference,
    in_other_numbers,
    of_another_model,
    reference_key,
    under_another_look,
    usable_records,
)
from vidllm.train.row import PairRow
from vidllm.train.rows import read_pairs
from vidllm.train.stage import (
    Base,
    NowAndThen,
    StageConfig,
    check_rows,
    deliver,
    keep_config,
    load_learner,
    on_first,
    open_cache,
    processes,
    voice,
)
from vidllm.train.task import Micro, Step, Watch

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
    head_only: bool = True
    """Logits of the answers' positions only; false: of all positions."""
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

    @property
    def learning(self) -> LearnerOptions:
        """What learns, and in which numbers."""
        return replace(super().learning, head_only=self.head_only)


@dataclass(frozen=True, eq=False)
class Contest:
    """Pairs that can all be learnt from, their sizes, and the model they were checked for."""

    base: Base
    checked: Checked[PairRow]
    sizes: tuple[PairSize, ...]

    @property
    def rows(self) -> tuple[PairRow, ...]:
        """The pairs."""
        return self.checked.rows

    def steps(self, config: DpoConfig, epoch: int) -> tuple[Step, ...]:
        """An epoch's optimizer steps."""
        return plan_pairs(
            self.sizes, batch=config.batch, tokens=config.tokens, seed=config.seed, epoch=epoch, sharing=config.sharing
        )

    def load(self, config: DpoConfig, numbers: Micro, cache: ClipCache | None = None) -> list[Pair]:
        """Pairs with their media open; a file that several of them show is opened once. Raises RowError."""
        base, shelf = self.base, Shelf(cache)
        rows = [self.rows[number] for number in numbers]
        return [load_pair(row, base.spec, base.tokenizer, config.plan, known=shelf) for row in rows]


def read_contest(
    config: DpoConfig,
    say: Callable[[str], None],
    *,
    remember: bool = True,
    progress: Progress | None = None,
) -> Contest:
    """Read and check every pair, before a weight is loaded. See `check_rows`.

    Raises:
        RowError: a pair can not be learnt from, or none is left.
        ModelError: the model's folder is not what it should be.
    """
    base = Base.of(config)
    checked = check_rows(config, base, read_pairs, say, remember=remember, progress=progress)
    sizes = tuple(
        size_pair(row, length, base.spec, base.tokenizer, config.plan)
        for row, length in zip(checked.rows, checked.lengths, strict=True)
    )
    return Contest(base, checked, sizes)


def size_pair(row: PairRow, length: int, spec: ModelSpec, tokenizer: AnyTokenizer, plan: PlanOptions) -> PairSize:
    """A pair of `length` tokens with its longer answer, taken apart; nothing is opened for it."""
    words = [Message(turn.role, turn.text) for turn in row.prompt]
    text = PairSize.of(build_pair(words, row.chosen, row.rejected, spec, tokenizer, rope_max=plan.rope_max), "")
    prompt = max(length - max(text.chosen, text.rejected), text.prompt)
    question = "\n".join(turn.text for turn in row.prompt if turn.role == "user")
    rest = text.prompt + max(text.chosen, text.rejected) - count_text_tokens(question, spec, tokenizer)
    group = same_look(row, question, plan, rest=rest, length=length, spec=spec)
    return replace(text, prompt=prompt, shown=prompt - text.prompt, group=group)


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
    done = train(task, task.learner, task.learner.groups(), config, config.out, watch,
                 begun=lambda: keep_config(config, "dpo.yaml"))  # fmt: skip
    if done.step == done.total:
        deliver(config, task.learner)
    return done


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
    elif config.learning.whole:  # what the model was is not found by leaving an adapter out
        task.live = _frozen(config, contest.base)


def _frozen(config: DpoConfig, base: Base) -> Learner:
    """A second copy of the model, which stays as it is."""
    return load_learner(replace(config, gradient_checkpointing=False), base).requires_grad_(False)


def _known(
    config: DpoConfig, contest: Contest, task: PreferenceTask, say: Callable[[str], None]
) -> Mapping[int, RefLogps]:
    """The reference's log-probs of every pair; each is on disk as soon as it was computed."""
    state = processes(config)
    shaping = f"{config.dtype}|{config.quantize}|{task.learner.device.type}|{config.extra}"
    keys = on_first(config, lambda: [reference_key(row, config.plan, shaping) for row in contest.rows])
    file = References(_reference_file(config, contest.base))
    told, done = NowAndThen(say, "reference: pair"), 0
    other = in_other_numbers(contest.rows, contest.base.fingerprint, config.dtype, config.plan.look)
    for numbers, count in other.items():
        say(f"{count:,} rows hold log-probs of this model in {numbers}; dtype={numbers} takes them as they are")
    if strange := under_another_look(contest.rows, contest.base.fingerprint, config.plan.look):
        say(f"{strange:,} rows hold answers and log-probs of this model under another look at their clips; say frames, "
            "policy and the like as `vidllm feedback` was told, and they are taken as they are")  # fmt: skip

    def compute(numbers: Sequence[int], keep: bool) -> Mapping[int, RefLogps]:
        def heard(scored: Mapping[int, RefLogps]) -> None:
            nonlocal done
            if keep:
                file.add({keys[number]: logps for number, logps in scored.items()})
                done += len(scored) * state.num_processes
                told(min(done, len(numbers)), len(numbers))

        mine = task.scores(numbers, heard, threads=config.workers, share=(state.process_index, state.num_processes))
        return dict(gather_object(list(mine.items()))) if state.num_processes > 1 else mine

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


def _reference_file(config: DpoConfig, base: Base) -> Path:
    name = f"{base.fingerprint}.jsonl"
    return cache_folder("references") / name if config.cache_folder is None else config.cache_folder / name


def _check_finite(found: Found, contest: Contest) -> None:
    for number, logps in found.logps.items():
        if not (math.isfinite(logps.chosen) and math.isfinite(logps.rejected)):
            raise RowError(f"{contest.rows[number].origin}: the reference gives its answers no finite log-probs "
                           f"({logps.chosen}, {logps.rejected}); leave the row out, or use dtype float32")  # fmt: skip


def describe(config: DpoConfig, contest: Contest) -> list[str]:
    """The pairs and what an epoch of them costs, in a few lines."""
    sizes, steps = contest.sizes, contest.steps(config, 0)
    plain, laid = (
        sum(forest_tokens([sizes[n] for n in micro], sharing) for step in steps for micro in step)
        for sharing in (False, config.sharing)
    )
    groups = len({size.group for size in sizes})
    strange = of_another_model(contest.rows, contest.base.fingerprint)
    return [
        *contest.checked.lines(),
        *([f"{strange:,} pairs hold answers of another model: their reference is computed, and a model learns less "
           "from them than from its own, which `vidllm feedback` collects"] if strange else []),
        f"an epoch: {len(steps):,} steps of {config.batch} pairs, {sum(map(len, steps)):,} micro-batches; {groups:,} "
        f"different looks, {laid:,} tokens ({plain:,} if each answer stood behind its own prompt)",
    ]


def shown_batch(config: DpoConfig, contest: Contest, *, colour: bool) -> str:
    """The first micro-batch of the first step as a person can read it, answer by answer, what is learnt set apart."""
    from vidllm.train.show import show_batch

    pairs = contest.load(config, contest.steps(config, 0)[0][0])
    examples = [example for pair in pairs for example in (pair.chosen, pair.rejected)]
    return show_batch(examples, contest.base.tokenizer, colour=colour)
