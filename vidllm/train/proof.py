"""The proof that a language model which nobody tried here learns along trees as from each conversation alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vidllm.errors import UnsupportedModel
from vidllm.prompt import Example, Message, build_example
from vidllm.train.batch import Batch
from vidllm.train.sharing import Stem, plant

if TYPE_CHECKING:
    from vidllm.train.learner import Learner

ANSWERS = ("A red circle.", "Two of them, one above the other.", "Nothing happens.")
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.2}
"""Of a token's log-prob, by what sums are computed in."""


@torch.no_grad()
def prove(learner: Learner) -> None:
    """Raise UnsupportedModel unless answers to one question have the log-probs of the network's own forward."""
    asked, lmm = Message("user", "What do you see?"), learner.lmm
    rows = [build_example([asked, Message("assistant", told)], lmm.spec, lmm.tokenizer) for told in ANSWERS]
    planted = plant([Stem(length=row.trained.index(True), ends=((row, len(row.trained)),)) for row in rows])
    batch = Batch(pieces=planted.pieces)
    found = learner(batch)
    apart = max(
        float((found[batch.targets.owners == leaf] - _alone(learner, row)).abs().max())
        for row, (leaf,) in zip(rows, planted.leaves, strict=True)
    )
    if not apart <= TOLERANCE[learner.options.dtype]:
        raise UnsupportedModel(
            f"{lmm.spec.folder}: no adapter for {lmm.spec.model_type}, and its {lmm.spec.text_type!r} does "
            f"not read answers side by side as each alone (log-probs {apart:.1g} apart); it can be asked, not taught"
        )


def _alone(learner: Learner, row: Example) -> Tensor:
    """Log-probs (N,) of what is learned of one row."""
    ids = torch.tensor([row.prompt.input_ids], device=learner.device)
    places = torch.tensor(row.trained, device=learner.device).nonzero()[:, 0]
    with learner.numbers():
        logits: Tensor = learner.network(input_ids=ids).logits[0].float()
    return logits.log_softmax(dim=-1)[places - 1, ids[0, places]]
