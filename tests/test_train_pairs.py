"""Preference pairs as a forest: shared beginnings give what rows one by one give, and only what is equal is shared."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import tiny_models
from vidllm.clip import Clip, PlanOptions, open_clip
from vidllm.prompt import Message
from vidllm.train.learner import Learner
from vidllm.train.losses import DPO, PairLogps, PreferenceLoss
from vidllm.train.pairs import Pair, PairBatch, PairSize, build_pair, forest_tokens, lay_out_pairs, plan_pairs
from vidllm.train.parts import LearnerOptions, Parts
from vidllm.visuals import Image

QUESTIONS = ("what happens at 0:01?", "how many objects are there?", "describe the video.")
ANSWERS = ("The red circle moves right.", "Two.", "The red circle moves right. Then the blue square disappears.")
EVERYTHING = Parts(projector=1e-5, language_model=1e-5)


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> Learner:
    folder = tiny_models.llava(tmp_path_factory.mktemp("llava"))
    return Learner.load(folder, LearnerOptions(parts=EVERYTHING), device="cpu")


def look(path: Path, learner: Learner) -> Clip:
    return open_clip(path, "", learner.spec, learner.lmm.tokenizer, PlanOptions(frames=3))


def make_pair(
    learner: Learner, question: str, chosen: str, rejected: str, *media: Clip | Image, earlier: tuple[Message, ...] = ()
) -> Pair:
    messages = [*earlier, Message("user", question, media)]
    return build_pair(messages, chosen, rejected, learner.spec, learner.lmm.tokenizer)


@pytest.fixture(scope="module")
def pairs(learner: Learner, clips: dict[str, Path]) -> list[Pair]:
    """Two questions and one repeated about one clip, one about another clip, one about nothing."""
    one, other = look(clips["constant"], learner), look(clips["variable"], learner)
    first, second, third = ANSWERS
    return [
        make_pair(learner, QUESTIONS[0], first, second, one),
        make_pair(learner, QUESTIONS[1], second, third, one),
        make_pair(learner, QUESTIONS[0], third, first, one),
        make_pair(learner, QUESTIONS[0], first, third, other),
        make_pair(learner, QUESTIONS[2], first, second),
    ]


def loss_and_gradients(learner: Learner, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
    learner.zero_grad()
    chosen, rejected = batch.summed(learner(batch.batch))
    chosen_tokens, rejected_tokens = batch.tokens
    told = PairLogps(
        chosen=chosen, rejected=rejected, ref_chosen=chosen.detach() + 1, ref_rejected=rejected.detach() - 2,
        chosen_tokens=chosen_tokens, rejected_tokens=rejected_tokens,
    )  # fmt: skip
    loss = PreferenceLoss(terms=DPO)(told)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), {n: p.grad.clone() for n, p in learner.named_parameters() if p.grad is not None}


def close(ours: dict[str, Tensor], plain: dict[str, Tensor], within: float = 1e-5) -> None:
    """Every gradient, as far as `within` of the longest one."""
    assert ours.keys() == plain.keys()
    longest = max(float(g.abs().max()) for g in plain.values())
    worst = max(float((ours[n] - plain[n]).abs().max()) for n in plain)
    assert worst <= within * max(longest, 1.0), f"{worst} of {longest}"


def test_shared_beginnings_give_the_loss_and_gradients_of_plain_rows(learner: Learner, pairs: list[Pair]) -> None:
    shared, plain = lay_out_pairs(pairs), lay_out_pairs(pairs, sharing=False)
    loss, gradients = loss_and_gradients(learner, shared)
    plain_loss, plain_gradients = loss_and_gradients(learner, plain)
    assert loss.item() == pytest.approx(plain_loss.item(), abs=1e-5)
    assert len(gradients) > 10
    close(gradients, plain_gradients)


def test_each_pair_has_the_log_probs_it_has_alone(learner: Learner, pairs: list[Pair]) -> None:
    with torch.no_grad():
        batch = lay_out_pairs(pairs)
        together = torch.stack(batch.summed(learner(batch.batch)), dim=1)
        for number, pair in enumerate(pairs):
            alone = lay_out_pairs([pair], sharing=False)
            expected = torch.stack(alone.summed(learner(alone.batch)), dim=1)
            torch.testing.assert_close(together[number : number + 1], expected, atol=1e-4, rtol=1e-5)


def test_a_video_runs_once_for_all_its_pairs(pairs: list[Pair]) -> None:
    batch = lay_out_pairs(pairs[:3]).batch
    assert sum(len(piece.visuals) for piece in batch.pieces) == 3  # frames of one clip
    assert Counter(piece.parent for piece in batch.pieces)[-1] == 1
    shown = sum(visual.tokens for visual in pairs[0].visuals)
    assert shown < batch.length < shown + 250
    assert lay_out_pairs(pairs[:3], sharing=False).batch.length > 6 * shown


def test_equal_prompts_are_one_piece_with_four_answers(pairs: list[Pair]) -> None:
    batch = lay_out_pairs([pairs[0], pairs[2]])
    assert [piece.parent for piece in batch.batch.pieces] == [-1, 0, 0, 0, 0]
    assert batch.answers == ((1, 2), (3, 4))
    prompt = batch.batch.pieces[0]
    assert len(prompt.ids) == pairs[0].start
    assert not any(prompt.trained)


def test_the_tree_of_two_questions_has_two_levels(pairs: list[Pair]) -> None:
    pieces = lay_out_pairs(pairs[:2]).batch.pieces
    assert [piece.parent for piece in pieces] == [-1, 0, 1, 1, 0, 4, 4]
    assert len(pieces[0].visuals) == 3
    assert not any(piece.visuals for piece in pieces[1:])


def test_equal_ids_with_other_pictures_share_nothing(learner: Learner) -> None:
    rng = np.random.default_rng(0)
    pictures = [Image(rng.integers(0, 256, (112, 112, 3), dtype=np.uint8)) for _ in range(2)]
    made = [make_pair(learner, QUESTIONS[0], ANSWERS[0], ANSWERS[1], picture) for picture in pictures]
    assert made[0].chosen.prompt.input_ids == made[1].chosen.prompt.input_ids
    assert sum(piece.parent < 0 for piece in lay_out_pairs(made).batch.pieces) == 2
    again = [made[0], make_pair(learner, QUESTIONS[0], ANSWERS[1], ANSWERS[2], Image(pictures[0].pixels.copy()))]
    assert sum(piece.parent < 0 for piece in lay_out_pairs(again).batch.pieces) == 1


def test_another_rope_factor_shares_nothing(pairs: list[Pair]) -> None:
    stretched = replace(
        pairs[0],
        **{name: replace(e, prompt=replace(e.prompt, rope_factor=1.5))
           for name, e in (("chosen", pairs[0].chosen), ("rejected", pairs[0].rejected))},
    )  # fmt: skip
    assert sum(piece.parent < 0 for piece in lay_out_pairs([pairs[0], stretched]).batch.pieces) == 2


def test_the_longer_answer_settles_the_rope_factor_of_both(learner: Learner) -> None:
    spec = replace(learner.spec, context=32)
    pair = build_pair(
        [Message("user", "describe the video.")], "Two.", ANSWERS[2], spec, learner.lmm.tokenizer, rope_max=4.0
    )
    assert pair.chosen.prompt.length < 32
    assert pair.chosen.prompt.rope_factor == pair.rejected.prompt.rope_factor > 1


def test_only_the_last_answer_is_trained(learner: Learner) -> None:
    earlier = (Message("user", QUESTIONS[1]), Message("assistant", ANSWERS[1]))
    pair = make_pair(learner, QUESTIONS[2], ANSWERS[0], ANSWERS[2], earlier=earlier)
    for example in (pair.chosen, pair.rejected):
        assert not any(example.trained[: pair.start])
        assert all(example.trained[pair.start : pair.start + 3])
    batch = lay_out_pairs([pair])
    words = [learner.lmm.tokenizer.decode(list(batch.batch.pieces[i].ids)) for i in batch.answers[0]]
    assert [word.strip() for word in words] == [ANSWERS[0], ANSWERS[2]]
    assert [int(n) for n in batch.tokens[0]] == [sum(batch.batch.pieces[1].trained)]


SIZES = [
    PairSize(prompt=50 + shown, shown=shown, chosen=8, rejected=12, group=f"clip {shown}-{g}")
    for shown in (100, 300) for g in range(3) for _ in range(4)
]  # fmt: skip


@pytest.mark.parametrize("batch", [1, 3, 8, 100])
def test_every_pair_is_planned_once_and_videos_stay_together(batch: int) -> None:
    steps = plan_pairs(SIZES, batch=batch, tokens=900, seed=1, epoch=0)
    flat = [number for step in steps for micro in step for number in micro]
    assert sorted(flat) == list(range(len(SIZES)))
    assert [sum(map(len, step)) for step in steps[:-1]] == [batch] * (len(steps) - 1)
    groups = [SIZES[number].group for number in flat]
    assert sum(a != b for a, b in pairwise(groups)) == 5
    assert all(forest_tokens([SIZES[i] for i in micro]) <= 900 for step in steps for micro in step)


def test_the_order_is_seed_and_epoch_and_nothing_else() -> None:
    plans = [plan_pairs(SIZES, batch=4, tokens=500, seed=s, epoch=e) for s, e in ((1, 0), (1, 0), (2, 0), (1, 1))]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]
    assert plans[0] != plans[3]


def test_a_pair_longer_than_the_room_stands_alone() -> None:
    steps = plan_pairs(SIZES, batch=24, tokens=100, seed=0, epoch=0)
    assert all(len(micro) == 1 for micro in steps[0])


def test_tokens_are_counted_as_they_are_laid_out(pairs: list[Pair]) -> None:
    sizes = [PairSize.of(pair, group) for pair, group in zip(pairs, "aaabc", strict=True)]
    assert forest_tokens(sizes, sharing=False) == lay_out_pairs(pairs, sharing=False).batch.length
    assert forest_tokens(sizes) >= lay_out_pairs(pairs).batch.length
