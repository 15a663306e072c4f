"""Supervised tuning: conversations about videos and pictures in, a model that says the assistant's words out.

    rows -> checked, every one -> steps by true length -> packed micro-batches -> log-probs of the assistant's tokens

A step's loss is the mean over all its trained tokens, whichever micro-batches and processes they fall on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vidllm.counts import count_of
from vidllm.prompt import Example
from vidllm.train.batch import Batch
from vidllm.train.batches import Step, Strategy, View, plan_steps, tokens_of
from vidllm.train.cache import ClipCache
from vidllm.train.check import Checked, Progress
from vidllm.train.learner import Learner
from vidllm.train.loading import Shelf, load_example
from vidllm.train.looks import shown_in
from vidllm.train.loop import Trained
from vidllm.train.row import Kind, TrainRow
from vidllm.train.rows import read_rows
from vidllm.train.saves import Identity
from vidllm.train.sharing import Stem, plant
from vidllm.train.show import show_batch
from vidllm.train.stage import (
    Base,
    StageConfig,
    check_rows,
    identity,
    load_learner,
    open_cache,
    teach,
    voice,
)
from vidllm.train.task import Micro, Part, Task, Watch


@dataclass(frozen=True, kw_only=True)
class SftConfig(StageConfig):
    """The keys of an `sft` YAML: those of every stage, and these."""

    strategy: Strategy = "mixed"
    """Videos, pictures and texts mixed in every step, every step of one kind, or rows with a video only."""
    sharing: bool = True
    """Read a video once for several rows about it, exactly as if each stood alone; needs packing."""
    packing: bool = True
    """Fill micro-batches with rows of any length, none seeing another; else only rows of about one length."""


@dataclass(frozen=True, eq=False)
class Lesson:
    """Rows that can all be learnt from, their lengths, and the model they were checked for."""

    base: Base
    checked: Checked[TrainRow]
    together: tuple[View, ...] | None = None
    """What each row shows, where rows that show the same are read together."""

    def steps(self, config: SftConfig, epoch: int) -> tuple[Step, ...]:
        """An epoch's optimizer steps."""
        return plan_steps(
            self.checked.lengths, self.checked.kinds, batch=config.batch, tokens=config.tokens,
            strategy=config.strategy, packing=config.packing, seed=config.seed, epoch=epoch,
            together=self.together,
        )  # fmt: skip

    def load(self, config: SftConfig, numbers: Micro, cache: ClipCache | None = None) -> list[Example]:
        """Rows with their media open; a file that several of them show is opened once. Raises RowError."""
        base, shelf = self.base, Shelf(cache)
        rows = [self.checked.rows[number] for number in numbers]
        return [load_example(row, base.spec, base.tokenizer, config.plan, known=shelf) for row in rows]


def read_lesson(
    config: SftConfig,
    say: Callable[[str], None],
    *,
    remember: bool = True,
    progress: Progress | None = None,
) -> Lesson:
    """Read and check every row, before a weight is loaded. See `check_rows`.

    Raises:
        RowError: a row can not be learnt from, or none is left.
        ModelError: the model's folder is not what it should be.
    """
    base = Base.of(config)
    checked = check_rows(config, base, read_rows, say, remember=remember, progress=progress)
    if not (config.sharing and config.packing):
        return Lesson(base, checked)
    together = tuple(
        shown_in(row, length, base.spec, base.tokenizer, config.plan)
        for row, length in zip(checked.rows, checked.lengths, strict=True)
    )
    return Lesson(base, checked, together)


@dataclass(frozen=True, eq=False)
class Material:
    """A micro-batch, laid out."""

    batch: Batch
    kinds: tuple[Kind, ...]
    """Of each piece; only those with targets count."""


@dataclass(eq=False)
class SftTask(Task):
    """The assistant's words of every row, each token as much as any other. `learner` is the bare one."""

    config: SftConfig
    lesson: Lesson
    learner: Learner
    cache: ClipCache | None = None

    def identity(self) -> Identity:
        """Model, rows and settings."""
        return identity(self.config, self.lesson.base, "rows", self.lesson.checked)

    def steps(self, epoch: int) -> tuple[Step, ...]:
        """As the lesson plans them."""
        return self.lesson.steps(self.config, epoch)

    def prepare(self, numbers: Micro) -> Material:
        """Rows opened and packed. Raises RowError."""
        kinds = [self.lesson.checked.kinds[number] for number in numbers]
        examples = self.lesson.load(self.config, numbers, self.cache)
        planted = plant([_stem(example) for example in examples], sharing=self.config.sharing)
        of_pieces = dict(zip((leaf for [leaf] in planted.leaves), kinds, strict=True))
        batch = Batch(pieces=planted.pieces)
        return Material(batch, tuple(of_pieces.get(piece, kinds[0]) for piece in range(len(batch.pieces))))

    def loss(self, model: nn.Module, material: Material) -> Part:
        """Negative log-probs, summed over the micro-batch's trained tokens."""
        batch = material.batch
        if self.cache is not None:
            batch = self.cache.furnish(batch, self.learner.features)
        losses = -model(batch)
        by_kind = _by_kind(losses.detach(), batch.targets.owners, material.kinds)
        return Part(loss=losses.sum(), weight=len(losses), tokens=batch.length, metrics=by_kind)

    def name(self, number: int) -> str:
        """File, line and id."""
        return str(self.lesson.checked.rows[number].origin)


def _stem(example: Example) -> Stem:
    """All before the first word that is learnt may be shared."""
    return Stem(length=example.trained.index(True), ends=((example, len(example.trained)),))


def _by_kind(losses: Tensor, owners: Tensor, kinds: Sequence[Kind]) -> dict[str, tuple[float, float]]:
    """loss/video, loss/image, loss/text: sums and counts of the tokens of each; named only where rows differ."""
    sums = losses.new_zeros(len(kinds)).index_add(0, owners.to(losses.device), losses).tolist()
    counts = torch.bincount(owners, minlength=len(kinds)).tolist()
    told: dict[str, tuple[float, float]] = {}
    for kind, total, count in zip(kinds, sums, counts, strict=True):
        before = told.get(f"loss/{kind}", (0.0, 0.0))
        told[f"loss/{kind}"] = (before[0] + total, before[1] + count)
    return told


def run_sft(config: SftConfig, watch: Watch) -> Trained:
    """Teach, from the newest checkpoint under `config.out` if there is one, and put the model there when it is done.

    Raises:
        RowError, ModelError, ConfigError: before the first step, one line.
        CheckpointError, NotFinite: see `train`.
    """
    say = voice(config, watch)
    lesson = read_lesson(config, say)
    for line in describe(config, lesson):
        say(line)
    learner = load_learner(config, lesson.base)
    task = SftTask(config, lesson, learner, open_cache(config, learner))
    return teach(config, task, learner, watch, "sft.yaml")


def describe(config: SftConfig, lesson: Lesson) -> list[str]:
    """The rows and what an epoch of them costs, in a few lines."""
    steps = lesson.steps(config, 0)
    micros = [micro for step in steps for micro in step]
    full = sum(tokens_of(micro, lesson.checked.lengths, lesson.together) for micro in micros) / len(micros)
    rows = max(sum(map(len, step)) for step in steps)  # fewer than a batch where there are not so many
    told = (f"an epoch: {count_of(len(steps), 'step')} of {count_of(rows, 'row')}, "
            f"{count_of(len(micros), 'micro-batch', 'es')} of some {full:,.0f} tokens")  # fmt: skip
    return [*lesson.checked.lines(), told]


def shown_batch(config: SftConfig, lesson: Lesson, *, colour: bool) -> str:
    """The first micro-batch of the first step as a person can read it, what is learnt set apart."""
    examples = lesson.load(config, lesson.steps(config, 0)[0][0])
    return show_batch(examples, lesson.base.tokenizer, colour=colour)
