"""Preference pairs as one forest: the prompt runs once for both answers, a video once for all that is asked of it.

    pair           prompt ──┬─ chosen                  two prompts about      video ──┬─ question ──┬─ chosen
                            └─ rejected                one video                      │             └─ rejected
                                                                                      └─ question ──┬─ ...
    not sharing    prompt chosen | prompt rejected     the plain layout, row after row, for those who doubt

What is shared, and when, is `sharing`'s business.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vidllm.errors import ModelError
from vidllm.prompt import Example, Message, build_example
from vidllm.train.batch import Batch
from vidllm.train.order import shuffled
from vidllm.train.sharing import Stem, plant
from vidllm.visuals import Visual

if TYPE_CHECKING:
    from vidllm.model.chat import AnyTokenizer
    from vidllm.model.spec import ModelSpec
    from vidllm.train.task import Step


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """Two answers to one prompt, each as a whole conversation; ids and visuals before `start` are the same in both."""

    chosen: Example
    rejected: Example
    start: int
    """Index of the answers' first id."""

    @property
    def ends(self) -> tuple[int, int]:
        """Behind the last id of each answer; what a template writes after it teaches nothing."""
        chosen, rejected = (max(i for i, said in enumerate(e.trained) if said) for e in (self.chosen, self.rejected))
        return chosen + 1, rejected + 1

    @property
    def visuals(self) -> tuple[Visual, ...]:
        """What the prompt shows."""
        return self.chosen.prompt.visuals


def build_pair(
    messages: Sequence[Message], chosen: str, rejected: str, spec: ModelSpec, tokenizer: AnyTokenizer, *,
    rope_max: float = 2.0,
) -> Pair:  # fmt: skip
    """A prompt that ends with the user's turn, and two answers to it. Both get the larger RoPE factor of the two, for
    prompt and reference must not depend on which answer follows; only the answers' own words are trained.

    Raises as `build_example`.
    """
    both = [
        build_example([*messages, Message("assistant", text)], spec, tokenizer, rope_max=rope_max)
        for text in (chosen, rejected)
    ]
    factor = max(example.prompt.rope_factor for example in both)
    starts = [_last_run(example.trained) for example in both]
    start = min(starts)
    if both[0].prompt.input_ids[:start] != both[1].prompt.input_ids[:start] or starts[0] != starts[1]:
        raise ModelError(f"{spec.folder}: the prompt's ids depend on the answer that follows it; teach a model whose "
                         "chat template prints them alike")  # fmt: skip
    made = [_answer_only(example, start, factor) for example in both]
    return Pair(chosen=made[0], rejected=made[1], start=start)


def _last_run(trained: Sequence[bool]) -> int:
    """Where the last run of trained ids begins: the last answer."""
    end = max(i for i, said in enumerate(trained) if said)
    return end + 1 - sum(1 for _ in takewhile(bool, reversed(trained[: end + 1])))


def _answer_only(example: Example, start: int, factor: float) -> Example:
    trained = tuple(said and i >= start for i, said in enumerate(example.trained))
    return Example(prompt=replace(example.prompt, rope_factor=factor), trained=trained)


@dataclass(frozen=True, kw_only=True, eq=False)
class PairBatch:
    """N pairs laid out for one forward pass; `answers` are the pieces of each pair's chosen and rejected answer."""

    batch: Batch
    answers: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.answers)

    def summed(self, logps: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probs (T,) of all targets -> each (N,): of the chosen and of the rejected answers."""
        total = logps.new_zeros(len(self.batch.pieces)).index_add(0, self.batch.targets.owners.to(logps.device), logps)
        return self._by_pair(total)

    @property
    def tokens(self) -> tuple[Tensor, Tensor]:
        """How many tokens each (N,) chosen and rejected answer has, the token that ends it included."""
        return self._by_pair(torch.bincount(self.batch.targets.owners, minlength=len(self.batch.pieces)))

    def _by_pair(self, of_pieces: Tensor) -> tuple[Tensor, Tensor]:
        places = torch.tensor(self.answers, device=of_pieces.device)
        return of_pieces[places[:, 0]], of_pieces[places[:, 1]]


def lay_out_pairs(pairs: Sequence[Pair], *, sharing: bool = True) -> PairBatch:
    """Pairs as pieces of one batch. `sharing` False repeats every prompt before each of its answers."""
    stems = [
        Stem(length=pair.start, ends=tuple(zip((pair.chosen, pair.rejected), pair.ends, strict=True))) for pair in pairs
    ]
    planted = plant(stems, sharing=sharing)
    answers = tuple((chosen, rejected) for chosen, rejected in planted.leaves)
    return PairBatch(batch=Batch(pieces=planted.pieces), answers=answers)


@dataclass(frozen=True, kw_only=True)
class PairSize:
    """A pair in tokens: the whole `prompt`, `shown` of them visual, and both answers. Pairs of one `group` show the
    same."""

    prompt: int
    shown: int
    chosen: int
    rejected: int
    group: Hashable

    @property
    def answers(self) -> int:
        """Both."""
        return self.chosen + self.rejected

    @classmethod
    def of(cls, pair: Pair, group: Hashable) -> PairSize:
        """Of a pair that is laid out."""
        chosen, rejected = (end - pair.start for end in pair.ends)
        shown = sum(visual.tokens for visual in pair.visuals)
        return cls(prompt=pair.start, shown=shown, chosen=chosen, rejected=rejected, group=group)


class PairMicro(tuple[int, ...]):
    """Numbers of pairs that go through the model together, as a part of a step."""

    step_chosen_tokens: float
    """Mean tokens of the chosen answers in the whole step: what the term `sft` divides by, however a step is cut."""

    @classmethod
    def of(cls, numbers: Sequence[int], step_chosen_tokens: float) -> PairMicro:
        """These pairs of that step."""
        made = cls(numbers)
        made.step_chosen_tokens = step_chosen_tokens
        return made


def plan_pairs(
    sizes: Sequence[PairSize], *, batch: int, tokens: int, seed: int, epoch: int, sharing: bool = True
) -> tuple[Step, ...]:
    """Optimizer steps of `batch` pairs in micro-batches of at most `tokens` tokens; a single longer pair stands alone.

    Pairs of one group follow each other, so that their video is read once; groups come in an order drawn from
    (seed, epoch) and nothing else.
    """
    groups: dict[Hashable, list[int]] = {}
    for number, size in enumerate(sizes):
        groups.setdefault(size.group, []).append(number)
    found = list(groups.values())
    order = [shuffled(found[place], seed, epoch, place) for place in shuffled(range(len(found)), seed, epoch)]
    flat = [number for group in order for number in group]
    steps = [flat[i : i + batch] for i in range(0, len(flat), batch)]
    return tuple(_micro_batches(step, sizes, tokens, sharing) for step in steps)


def _micro_batches(step: Sequence[int], sizes: Sequence[PairSize], tokens: int, sharing: bool) -> tuple[PairMicro, ...]:
    micros: list[list[int]] = []
    for number in step:
        if micros and forest_tokens([sizes[i] for i in (*micros[-1], number)], sharing) <= tokens:
            micros[-1].append(number)
        else:
            micros.append([number])
    mean = sum(sizes[number].chosen for number in step) / max(len(step), 1)
    return tuple(PairMicro.of(micro, mean) for micro in micros)


def forest_tokens(sizes: Sequence[PairSize], sharing: bool = True) -> int:
    """Tokens that these pairs are laid out in: what a group shows counts once."""
    if not sharing:
        return sum(2 * size.prompt + size.answers for size in sizes)
    shown: dict[Hashable, int] = {}
    for size in sizes:
        shown[size.group] = max(shown.get(size.group, 0), size.shown)
    return sum(shown.values()) + sum(size.prompt - size.shown + size.answers for size in sizes)
