"""What a shared beginning saves: one forward and backward pass of two answers to one prompt, three ways.

    python benchmarks/tree.py [--runs 5] [--case 600,32 --case 2048,64 ...]

    shared      the prompt once, both answers below it, the head where an answer's token is predicted
    repeated    the prompt before each answer, the head still on the answers alone
    plain       the same through transformers' own class in one batch: logits of every position, in float32

A random Llama of 6 layers, 256 wide, with 32,000 words; text alone, float32. The three give the same log-probs: the
largest difference is printed beside the times. A prompt that four answers share is timed as well.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import report
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from vidllm.model.attention import attend_wide
from vidllm.train.batch import Batch, Piece
from vidllm.train.losses import answer_logps
from vidllm.train.tree import TREE, TreeAttention

VOCABULARY = 32000


def main() -> None:
    """Time every case and write results/tree.md and .json."""
    parser = report.parser(__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--case", action="append", help="tokens of the prompt, of an answer, and how many answers")
    told = parser.parse_args()
    cases = [tuple(map(int, case.split(","))) for case in told.case or ("600,32,2", "600,32,4", "2048,64,2")]
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=256, intermediate_size=688, num_hidden_layers=6,
                         num_attention_heads=4, max_position_embeddings=4096)  # fmt: skip
    network = LlamaForCausalLM(config)
    attend_wide(network.model)
    rows = [row(network, *case, runs=told.runs) for case in cases]
    notes = (f"seconds for forward and backward, medians of {told.runs}; threads: {torch.get_num_threads()}",)
    report.write("tree", "Answers that share a prompt: forward and backward", rows, notes)


def row(network: Any, prompt: int, answer: int, answers: int = 2, *, runs: int) -> report.Row:
    """One case: times, how many times as fast as the other two, and the largest difference of a log-prob."""
    said = torch.randint(VOCABULARY, (answers, answer))
    asked = torch.randint(VOCABULARY, (prompt,))
    batches = shared(asked, said), repeated(asked, said)
    ways: list[Callable[[], Tensor]] = [lambda batch=b: along(network, batch) for b in batches]  # type: ignore[misc]
    ways.append(lambda: plain(network, asked, said))
    logps = [way().detach() for way in ways]
    seconds = [median(timed(network, way) for _ in range(runs)) for way in ways]
    apart = max(float((logp - logps[-1]).abs().max()) for logp in logps)
    return {
        "prompt": prompt, "answers": f"{answers} x {answer}", "shared s": seconds[0], "repeated s": seconds[1],
        "plain s": seconds[2], "over repeated": seconds[1] / seconds[0], "over plain": seconds[2] / seconds[0],
        "log-probs differ by": f"{apart:.0e}",
    }  # fmt: skip


def shared(asked: Tensor, said: Tensor) -> Batch:
    """The prompt as a root, every answer below it."""
    root = Piece(ids=tuple(asked.tolist()), trained=(False,) * len(asked))
    leaves = [Piece(ids=tuple(ids), trained=(True,) * len(ids), parent=0) for ids in said.tolist()]
    return Batch(pieces=(root, *leaves))


def repeated(asked: Tensor, said: Tensor) -> Batch:
    """Every answer behind a prompt of its own."""
    trained = (*(False,) * len(asked), *(True,) * said.shape[1])
    return Batch(pieces=tuple(Piece(ids=(*asked.tolist(), *ids), trained=trained) for ids in said.tolist()))


def positions(batch: Batch) -> Tensor:
    """(1, T): each piece's go on where its parent's end."""
    starts = zip(batch.forest.offsets, batch.pieces, strict=True)
    return torch.cat([torch.arange(start, start + len(piece.ids)) for start, piece in starts])[None]


def along(network: Any, batch: Batch) -> Tensor:
    """Log-probs of the answers, the batch read along its tree."""
    ids = torch.tensor([[token for piece in batch.pieces for token in piece.ids]])
    hidden = network.model(
        inputs_embeds=network.get_input_embeddings()(ids), position_ids=positions(batch), use_cache=False,
        attention_mask=torch.zeros(1, 1, 1, 1), **{TREE: TreeAttention(batch.forest)},
    ).last_hidden_state[0]  # fmt: skip
    targets = batch.targets
    return answer_logps(hidden[targets.predictors], network.lm_head.weight, targets.ids)


def plain(network: Any, asked: Tensor, said: Tensor) -> Tensor:
    """The same as a trainer without any of this computes them."""
    ids = torch.cat([asked.expand(len(said), -1), said], dim=1)
    logps = network(input_ids=ids).logits.float()[:, :-1].log_softmax(-1)
    found: Tensor = logps.gather(2, ids[:, 1:, None])[:, len(asked) - 1 :, 0].flatten()
    return found


def timed(network: Any, way: Callable[[], Tensor]) -> float:
    """Seconds of one forward and backward, answers weighted against each other as a preference loss does."""
    network.zero_grad(set_to_none=True)
    began = time.perf_counter()
    logps = way()
    torch.autograd.backward((logps * torch.linspace(-1, 1, len(logps))).sum())
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
