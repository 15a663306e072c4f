"""Preference losses: values worked out by hand, gradients that point the right way, heads that compute in parts."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vidllm.errors import ConfigError
from vidllm.train.losses import DPO, MPO, PairLogps, PreferenceLoss, RewardShift, Term, answer_logps

BETA = 0.2


def pairs(chosen: list[float], rejected: list[float]) -> PairLogps:
    """Pairs with these log-ratios, under a reference of -20 and -30, of four and eight tokens."""
    count = len(chosen)
    return PairLogps(
        chosen=(torch.tensor(chosen) - 20).requires_grad_(), rejected=(torch.tensor(rejected) - 30).requires_grad_(),
        ref_chosen=torch.full((count,), -20.0), ref_rejected=torch.full((count,), -30.0),
        chosen_tokens=torch.full((count,), 4), rejected_tokens=torch.full((count,), 8),
    )  # fmt: skip


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


BY_HAND: dict[tuple[Term, float], float] = {
    # log-ratios 3 and -2: z = 5, rewards 0.6 and -0.4
    ("sigmoid", 0.0): -log_sigmoid(1.0),
    ("sigmoid", 0.1): -0.9 * log_sigmoid(1.0) - 0.1 * log_sigmoid(-1.0),
    ("robust", 0.1): (-0.9 * log_sigmoid(1.0) + 0.1 * log_sigmoid(-1.0)) / 0.8,
    ("hinge", 0.0): 0.0,
    ("ipo", 0.0): (3 / 4 + 2 / 8 - 2.5) ** 2,
    ("bco", 0.0): -log_sigmoid(0.6 - 0.05) - log_sigmoid(0.05 + 0.4),
    ("anchor", 0.0): -log_sigmoid(0.6),
    ("sft", 0.0): 17 / 4,
}


@pytest.mark.parametrize(("term", "smoothing"), BY_HAND)
def test_each_term_is_what_its_paper_says(term: Term, smoothing: float) -> None:
    loss = PreferenceLoss(terms={term: 1.0}, beta=BETA, label_smoothing=smoothing)
    value = loss(pairs([3.0], [-2.0]), shift=0.05)
    assert value.item() == pytest.approx(BY_HAND[term, smoothing], abs=1e-5)


@pytest.mark.parametrize("term", ["sigmoid", "hinge", "ipo", "robust", "bco"])
def test_a_step_down_prefers_the_chosen(term: Term) -> None:
    """From where policy and reference agree, every preference term raises the chosen and lowers the rejected."""
    agreed = pairs([0.0, 0.0], [0.0, 0.0])
    PreferenceLoss(terms={term: 1.0}, beta=BETA)(agreed).backward()  # type: ignore[no-untyped-call]
    assert agreed.chosen.grad is not None
    assert agreed.rejected.grad is not None
    assert bool((agreed.chosen.grad < 0).all())
    assert bool((agreed.rejected.grad > 0).all())


def test_weights_add_up() -> None:
    """MPO is 0.8 DPO + 0.2 BCO + SFT."""
    some = pairs([1.0, -0.5], [0.3, 0.8])
    parts = [PreferenceLoss(terms={term: weight})(some, 0.1) for term, weight in MPO.items()]
    assert PreferenceLoss(terms=MPO)(some, 0.1).item() == pytest.approx(sum(part.item() for part in parts), rel=1e-6)
    assert PreferenceLoss(terms=DPO)(pairs([0.0], [0.0])).item() == pytest.approx(math.log(2))


def test_sft_is_cross_entropy_per_token() -> None:
    """Two answers of 2 and 4 tokens weigh by their tokens, as a language model's own loss does."""
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([1, 2, 3, 4, 5, 6])
    logps = -F.cross_entropy(logits, targets, reduction="none")
    zeros = torch.zeros(2)
    batch = PairLogps(
        chosen=torch.stack([logps[:2].sum(), logps[2:].sum()]), rejected=zeros, ref_chosen=zeros, ref_rejected=zeros,
        chosen_tokens=torch.tensor([2, 4]), rejected_tokens=torch.tensor([1, 1]),
    )  # fmt: skip
    expected = F.cross_entropy(logits, targets).item()
    sft = PreferenceLoss(terms={"sft": 1.0})
    assert sft(batch).item() == pytest.approx(expected, rel=1e-5)
    parts = [
        replace(batch, chosen=batch.chosen[part], chosen_tokens=batch.chosen_tokens[part], step_chosen_tokens=3.0)
        for part in (slice(1), slice(1, 2))
    ]
    assert sum(sft(part).item() for part in parts) / 2 == pytest.approx(expected, rel=1e-5), "in two micro-batches too"


def test_metrics_have_the_names_that_trl_prints() -> None:
    seen = PreferenceLoss(terms=DPO, beta=BETA).metrics(pairs([3.0, -1.0], [-2.0, 0.0]))
    expected = {
        "rewards/chosen": 0.2, "rewards/rejected": -0.2, "rewards/accuracies": 0.5, "rewards/margins": 0.4,
        "logps/chosen": -19.0, "logps/rejected": -31.0,
    }  # fmt: skip
    assert seen == pytest.approx(expected, abs=1e-5)
    assert PreferenceLoss(terms=DPO).metrics(pairs([0.0], [0.0]))["rewards/accuracies"] == 0, "a tie is no success"


def test_the_shift_is_the_mean_of_all_rewards_so_far() -> None:
    shift = RewardShift()
    shift.add(0.5 * (1 + 3 + 0 + 0) / 4, 4)
    assert shift.add(0.5 * (5 - 1) / 2, 2) == shift.mean == pytest.approx(0.5 * (1 + 3 + 0 + 0 + 5 - 1) / 6)
    assert shift.count == 6


@pytest.mark.parametrize(
    ("terms", "beta", "smoothing", "told"),
    [
        ({"simpo": 1.0}, 0.1, 0.0, "simpo"),
        ({}, 0.1, 0.0, "none given"),
        ({"sigmoid": 1.0}, 0.0, 0.0, "beta"),
        ({"sigmoid": 1.0, "sft": 0.0}, 0.1, 0.0, "must be above 0"),
        ({"robust": 1.0}, 0.1, 0.5, "label_smoothing"),
        ({"sigmoid": 1.0}, 0.1, -0.1, "label_smoothing"),
        ({"hinge": 1.0, "sft": 1.0}, 0.1, 0.1, "means nothing to hinge, sft"),
    ],
)
def test_what_can_not_be_is_refused_in_one_line(
    terms: dict[Term, float], beta: float, smoothing: float, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        PreferenceLoss(terms=terms, beta=beta, label_smoothing=smoothing)


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_a_head_in_parts_gives_the_logps_and_gradients_of_the_whole(chunk: int) -> None:
    seed = torch.Generator().manual_seed(1)
    targets = torch.randint(0, 11, (7,), generator=seed)
    start = torch.randn(7, 5, generator=seed), torch.randn(11, 5, generator=seed)

    def run(parts: int | None) -> tuple[Tensor, ...]:
        hidden, head = (x.clone().requires_grad_() for x in start)
        logps = answer_logps(hidden, head, targets, chunk=parts) if parts else (
            torch.log_softmax(hidden @ head.T, -1)[torch.arange(7), targets]
        )  # fmt: skip
        (logps * torch.arange(7)).sum().backward()  # type: ignore[no-untyped-call]
        assert hidden.grad is not None
        assert head.grad is not None
        return logps.detach(), hidden.grad, head.grad

    for ours, theirs in zip(run(chunk), run(None), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_no_answer_positions_give_no_logps() -> None:
    assert answer_logps(torch.zeros(0, 4), torch.zeros(9, 4), torch.zeros(0, dtype=torch.long)).shape == (0,)
