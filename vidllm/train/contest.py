"""Pairs of answers, read and checked before a weight is loaded: their sizes, an epoch's steps, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vidllm.clip import Known, PlanOptions
from vidllm.counts import count_of
from vidllm.errors import RowError, VidllmError
from vidllm.model.chat import AnyTokenizer, count_text_tokens
from vidllm.model.spec import ModelSpec
from vidllm.prompt import Message
from vidllm.train.cache import ClipCache
from vidllm.train.check import Checked, Progress
from vidllm.train.loading import Shelf, open_turns
from vidllm.train.looks import same_look
from vidllm.train.pairs import Pair, PairSize, build_pair, forest_tokens, plan_pairs
from vidllm.train.reference import of_another_model
from vidllm.train.row import PairRow, advice
from vidllm.train.rows import read_pairs
from vidllm.train.show import show_batch
from vidllm.train.stage import Base, check_rows
from vidllm.train.task import Micro, Step

if TYPE_CHECKING:
    from vidllm.train.dpo import DpoConfig


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


def load_pair(
    row: PairRow, spec: ModelSpec, tokenizer: AnyTokenizer, plan: PlanOptions, *, known: Known | None = None
) -> Pair:
    """A row with its media open, once for both answers. Clips that `known` recalls are not decoded.

    Raises:
        RowError: a medium can not be read any more, or the pair does not fit; the line names file and line.
    """
    try:
        messages = open_turns(row.turns, spec, tokenizer, plan, answers=row.answers, known=known)
        return build_pair(messages, row.chosen, row.rejected, spec, tokenizer, rope_max=plan.rope_max)
    except VidllmError as error:
        raise RowError(f"{row.origin}: {advice(error)}") from error


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
    words = [Message(turn.role, turn.text) for turn in row.turns]
    text = PairSize.of(build_pair(words, row.chosen, row.rejected, spec, tokenizer, rope_max=plan.rope_max), "")
    prompt = max(length - max(text.chosen, text.rejected), text.prompt)
    question = "\n".join(turn.text for turn in row.turns if turn.role == "user")
    rest = text.prompt + max(text.chosen, text.rejected) - count_text_tokens(question, spec, tokenizer)
    group = same_look(row, question, plan, rest=rest, length=length, spec=spec)
    return replace(text, prompt=prompt, shown=prompt - text.prompt, group=group)


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
        f"an epoch: {count_of(len(steps), 'step')} of {count_of(max(sum(map(len, step)) for step in steps), 'pair')}, "
        f"{count_of(sum(map(len, steps)), 'micro-batch', 'es')}; {groups:,} different looks, {laid:,} tokens "
        f"({plain:,} if each answer stood behind its own prompt)",
    ]


def shown_batch(config: DpoConfig, contest: Contest, *, colour: bool) -> str:
    """The first micro-batch of the first step as a person can read it, answer by answer, what is learnt set apart."""
    pairs = contest.load(config, contest.steps(config, 0)[0][0])
    examples = [example for pair in pairs for example in (pair.chosen, pair.rejected)]
    return show_batch(examples, contest.base.tokenizer, colour=colour)
