"""A forest in one pass equals every path from root to leaf on its own: log-probs and gradients, float32, 1e-5."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vidllm.model.attention import attend_wide
from vidllm.model.rope import scaled_positions
from vidllm.train import tree
from vidllm.train.batch import Batch, Piece
from vidllm.train.running import run_along_trees
from vidllm.train.tree import TREE, Forest, Node, TreeAttention

VOCABULARY = 60
TOLERANCE = 1e-5


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=4096,
    ))  # fmt: skip


def qwen2() -> Any:
    """Four heads share two heads of keys, and projections have biases."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096,
    ))  # fmt: skip


def mistral() -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, sliding_window=None, max_position_embeddings=4096,
    ))  # fmt: skip


def qwen3_5() -> Any:
    """Layers of linear attention around one that attends; they forget within some hundred tokens."""
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    network = Qwen3_5ForCausalLM(Qwen3_5TextConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, linear_num_key_heads=1, linear_num_value_heads=2, linear_key_head_dim=16,
        linear_value_head_dim=16, layer_types=["linear_attention", "full_attention", "linear_attention"],
        max_position_embeddings=4096,
    ))  # fmt: skip
    for number in (0, 2):
        nn.init.constant_(network.model.layers[number].linear_attn.A_log, -4.0)
    return network


def lfm2() -> Any:
    """Short convolutions around a layer that attends."""
    from transformers import Lfm2Config, Lfm2ForCausalLM

    return Lfm2ForCausalLM(Lfm2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, layer_types=["conv", "full_attention", "conv"], block_auto_adjust_ff_dim=False,
        max_position_embeddings=4096,
    ))  # fmt: skip


def windowed() -> Any:
    """Mistral whose layers all see a window, shorter than most paths."""
    network = mistral()
    network.config.sliding_window = 13
    return network


def alternating() -> Any:
    """Cohere 2: a window in one layer, everything, and no rotary positions, in the other."""
    from transformers import Cohere2Config, Cohere2ForCausalLM

    return Cohere2ForCausalLM(Cohere2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=9, layer_types=["sliding_attention", "full_attention"],
        max_position_embeddings=4096, logit_scale=1.0,
    ))  # fmt: skip


MODELS = {
    "llama": llama, "qwen2": qwen2, "mistral": mistral, "windowed": windowed, "alternating": alternating,
    "qwen3_5": qwen3_5, "lfm2": lfm2,
}  # fmt: skip


def ready(name: str) -> Any:
    """A random model whose weights are large enough for a wrong token to show."""
    torch.manual_seed(3)
    network = MODELS[name]()
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() > 1:
                weight.normal_(std=weight.shape[-1] ** -0.5)
    attend_wide(network.model)
    run_along_trees(network.model)
    return network


def shape(*nodes: tuple[int, int] | tuple[int, int, float], trained_roots: bool = False) -> Batch:
    """(parent, length[, factor]) of each piece; ids at random, children trained whole, of roots the second half."""
    draw = torch.Generator().manual_seed(5)
    pieces = []
    for parent, length, *factor in nodes:
        ids = torch.randint(VOCABULARY, (int(length),), generator=draw).tolist()
        leaf = parent >= 0 or trained_roots
        trained = [leaf and (parent >= 0 or i > length // 2) for i in range(int(length))]
        pieces.append(Piece(ids=tuple(ids), trained=tuple(trained), parent=int(parent),
                            rope_factor=float(factor[0]) if factor else 1.0))  # fmt: skip
    return Batch(pieces=tuple(pieces))


CASES = {
    "one root": shape((-1, 40), trained_roots=True),
    "packed": shape((-1, 17), (-1, 40), (-1, 3), (-1, 40), trained_roots=True),
    "packed, factors of their own": shape((-1, 17, 1.5), (-1, 40, 1.0), (-1, 9, 1.37), trained_roots=True),
    "one prompt, two answers": shape((-1, 50), (0, 7), (0, 12)),
    "one prompt, one token each": shape((-1, 50), (0, 1), (0, 1)),
    "a prompt of one token": shape((-1, 1), (0, 7), (0, 12)),
    "several prompts": shape((-1, 20), (0, 7), (0, 12), (-1, 30, 1.25), (3, 5, 1.25), (3, 6, 1.25), (-1, 9)),
    "a video, two prompts, two answers each": shape(
        (-1, 30, 1.5), (0, 8, 1.5), (1, 5, 1.5), (1, 6, 1.5), (0, 4, 1.5), (4, 7, 1.5), (4, 3, 1.5)
    ),
    "breadth first": shape((-1, 30), (0, 8), (0, 4), (1, 5), (2, 7), (1, 6), (2, 3)),
    "three levels and a chain": shape((-1, 12), (0, 5), (1, 4), (2, 6), (2, 3), (0, 9)),
    "longer than linear attention reads at a time": shape((-1, 150), (0, 70), (1, 66), (1, 1), (0, 140), (-1, 90)),
    "one token between": shape((-1, 5), (0, 1), (1, 1), (2, 4), (1, 2)),
}


def paths(batch: Batch) -> list[list[int]]:
    """Every leaf with the pieces above it, root first."""
    parents = {piece.parent for piece in batch.pieces}
    leaves = [i for i in range(len(batch.pieces)) if i not in parents]
    return [[*batch.forest.ancestors(leaf), leaf] for leaf in leaves]


def positions(batch: Batch) -> Tensor:
    """(1, T): each piece's go on where its parent's end."""
    return torch.cat([
        scaled_positions(offset, len(piece.ids), piece.rope_factor)
        for offset, piece in zip(batch.forest.offsets, batch.pieces, strict=True)
    ], dim=-1)  # fmt: skip


def in_one_pass(network: Any, batch: Batch) -> Tensor:
    """Log-probs of the batch's targets, the forest read once."""
    ids = torch.tensor([[token for piece in batch.pieces for token in piece.ids]])
    hidden = network.model(
        inputs_embeds=network.get_input_embeddings()(ids), position_ids=positions(batch),
        attention_mask=torch.zeros(1, 1, 1, 1), use_cache=False, **{TREE: TreeAttention(batch.forest)},
    ).last_hidden_state[0]  # fmt: skip
    targets = batch.targets
    logps = network.lm_head(hidden[targets.predictors]).log_softmax(-1)
    return logps.gather(1, targets.ids[:, None])[:, 0]


def one_by_one(network: Any, batch: Batch) -> dict[tuple[int, int], Tensor]:
    """(piece, index of its id) -> log-prob, every path alone under transformers' own eager attention."""
    network.config._attn_implementation = "eager"
    found: dict[tuple[int, int], Tensor] = {}
    for path in paths(batch):
        names = [(number, i) for number in path for i in range(len(batch.pieces[number].ids))]
        ids = torch.tensor([[batch.pieces[number].ids[i] for number, i in names]])
        positions = scaled_positions(0, ids.shape[1], batch.pieces[path[0]].rope_factor)
        # without a cache, transformers takes positions that do not grow by one for the seams of packed samples
        logps = network(input_ids=ids, position_ids=positions, use_cache=True).logits[0].log_softmax(-1)
        for place, (number, i) in enumerate(names):
            if batch.pieces[number].trained[i]:
                found.setdefault((number, i), logps[place - 1, ids[0, place]])
    return found


def gradients(network: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    network.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", MODELS)
def test_a_forest_equals_its_paths_alone(name: str, case: str) -> None:
    batch = CASES[case]
    network, twin = ready(name), ready(name)
    logps = in_one_pass(network, batch)
    apart = one_by_one(twin, batch)
    wanted = [(n, i) for n, p in enumerate(batch.pieces) for i, trained in enumerate(p.trained) if trained]
    expected = torch.stack([apart[key] for key in wanted])
    torch.testing.assert_close(logps, expected, atol=TOLERANCE, rtol=0)
    weights = torch.linspace(-1, 1, len(logps)) / len(logps)  # every target counts differently
    mine = gradients(network, (logps * weights).sum())
    theirs = gradients(twin, (expected * weights).sum())
    assert max(g.abs().max() for g in theirs.values()) > 1e-3
    assert mine.keys() == theirs.keys()
    for key, gradient in theirs.items():
        torch.testing.assert_close(mine[key], gradient, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("siblings", "rows"), [(1, 4), (8, 5), (10_000, 10_000)])
@pytest.mark.parametrize("name", ["qwen2", "alternating"])
def test_how_siblings_are_grouped_and_long_ones_cut_changes_nothing(
    name: str, siblings: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = ready(name)
    usual = [in_one_pass(network, batch) for batch in CASES.values()]
    monkeypatch.setattr(tree, "SIBLING_TOKENS", siblings)
    monkeypatch.setattr(tree, "ROWS", rows)
    for before, batch in zip(usual, CASES.values(), strict=True):
        torch.testing.assert_close(in_one_pass(network, batch), before, atol=TOLERANCE, rtol=0)


SHOWN = Forest((
    Node(-1, 20, visuals=((1, 8), (12, 5))), Node(0, 30, visuals=((0, 6), (8, 7), (29, 1))), Node(1, 4),
    Node(0, 9, visuals=((2, 7),)), Node(0, 5), Node(-1, 7), Node(-1, 6, visuals=((0, 6),)),
))  # fmt: skip
"""Pictures of several trees, in prompts and in what branches off them."""


def seen_by(forest: Forest, window: int | None, *, two_way: bool) -> Tensor:
    """(T, T) who sees whom, said of one path after the other."""
    seen = torch.zeros(forest.length, forest.length, dtype=torch.bool)
    for number, node in enumerate(forest.nodes):
        path = [*forest.ancestors(number), number]
        tokens = [forest.starts[i] + place for i in path for place in range(forest.nodes[i].length)]
        starts = [(forest.starts[i] + at, length) for i in path for at, length in forest.nodes[i].visuals]
        shown = [range(start, start + length) for start, length in starts]
        for place in range(len(tokens) - node.length, len(tokens)):
            for other, token in enumerate(tokens):
                both = two_way and any(tokens[place] in run and token in run for run in shown)
                near = window is None or place - other < window
                seen[tokens[place], token] = near and (other <= place or both)
    return seen


@pytest.mark.parametrize("rows", [3, 10, 1024])
@pytest.mark.parametrize("window", [None, 1, 6, 25, 500])
@pytest.mark.parametrize("two_way", [False, True])
def test_what_a_token_sees(two_way: bool, window: int | None, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that are cut between two calls, too."""
    monkeypatch.setattr(tree, "ROWS", rows)
    draw = torch.Generator().manual_seed(2)
    query, key, value = (torch.randn(1, heads, SHOWN.length, 8, generator=draw) for heads in (4, 2, 2))
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen_by(SHOWN, window, two_way=two_way), enable_gqa=True
    )
    found = TreeAttention(SHOWN, two_way=two_way)(query, key, value, None, window)
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["llama", "qwen3_5", "lfm2"])
def test_a_sibling_never_sees_another(name: str) -> None:
    """Another text in one answer, or in another packed sample, leaves this one's log-probs as they are, bit for bit."""
    network = ready(name)
    batch = CASES["several prompts"]
    before = in_one_pass(network, batch)
    for changed in range(len(batch.pieces)):
        pieces = list(batch.pieces)
        old = pieces[changed]
        new = Piece(ids=tuple((i + 1) % VOCABULARY for i in old.ids), trained=old.trained, parent=old.parent,
                    rope_factor=old.rope_factor)  # fmt: skip
        pieces[changed] = new
        after = in_one_pass(network, Batch(pieces=tuple(pieces)))
        for other in range(len(pieces)):
            mine = batch.targets.owners == other
            related = other == changed or changed in batch.forest.ancestors(other)
            assert related or torch.equal(before[mine], after[mine])


def test_no_mask_is_as_long_as_the_sequence_squared() -> None:
    forest = Forest((Node(-1, 3000), Node(0, 1500), Node(0, 20), Node(0, 30), Node(-1, 3000)))
    attention = TreeAttention(forest)
    query, key = torch.randn(1, 4, forest.length, 8), torch.randn(1, 2, forest.length, 8)
    attention(query, key, key, None)
    assert shapes_of(attention) == {(2 * 1024, 4024), (2 * 476, 4500), (2 * 50, 3050)}


def test_no_mask_is_much_wider_than_its_window() -> None:
    forest = Forest((Node(-1, 3000), Node(0, 1500), Node(0, 20), Node(0, 30)))
    attention = TreeAttention(forest)
    query, key = torch.randn(1, 4, forest.length, 8), torch.randn(1, 2, forest.length, 8)
    attention(query, key, key, None, 100)
    assert shapes_of(attention) == {(2 * 1024, 1024), (2 * 1024, 1123), (2 * 952, 1051), (2 * 476, 575), (2 * 50, 149)}


def shapes_of(attention: TreeAttention) -> set[tuple[int, ...]]:
    masks = (mask for blocks in attention._trees for block in blocks for _, mask in block._masks.values())
    return {tuple(mask.shape) for mask in masks}


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ((Node(-1, 0),), "leave an empty one out"),
        ((Node(0, 3),), "parents come first"),
        ((Node(-1, 3), Node(2, 3), Node(0, 1)), "parents come first"),
        ((Node(-1, 3), Node(-1, 3), Node(0, 3)), "a tree that ended"),
        ((Node(-1, 3, visuals=((1, 3),)),), "node 0 has 3 tokens and a visual that is not among them"),
    ],
)
def test_what_is_no_forest(nodes: Sequence[Node], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Forest(tuple(nodes))


def test_positions_go_on_where_the_parent_ends() -> None:
    forest = Forest((Node(-1, 3), Node(0, 2), Node(0, 1), Node(-1, 2)))
    assert (forest.length, forest.starts, forest.offsets) == (8, (0, 3, 5, 6), (0, 3, 3, 0))


def test_a_cache_and_a_tree_do_not_go_together() -> None:
    attention = TreeAttention(Forest((Node(-1, 3),)))
    with pytest.raises(ValueError, match="forest of 3 tokens"):
        attention(torch.randn(1, 2, 1, 8), torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8), None)


def test_targets_and_who_predicts_them() -> None:
    """prompt 10 11 12, answers 20 21 and 30: the prompt's last position predicts the first token of both."""
    prompt = Piece(ids=(10, 11, 12), trained=(False, False, True))
    answers = [Piece(ids=(20, 21), trained=(True, True), parent=0), Piece(ids=(30,), trained=(True,), parent=0)]
    targets = Batch(pieces=(prompt, *answers)).targets
    assert targets.predictors.tolist() == [1, 2, 3, 2]
    assert targets.ids.tolist() == [12, 20, 21, 30]
    assert targets.owners.tolist() == [0, 1, 1, 2]


def test_pieces_that_contradict_themselves() -> None:
    with pytest.raises(ValueError, match="2 ids and 1 marks"):
        Piece(ids=(1, 2), trained=(True,))
    with pytest.raises(ValueError, match="which nothing predicts"):
        Batch(pieces=(Piece(ids=(1, 2), trained=(True, False)),))
    scaled = Piece(ids=(1, 2), trained=(False, True), rope_factor=1.5)
    with pytest.raises(ValueError, match=r"piece 1 has RoPE factor 1\.0, its parent another"):
        Batch(pieces=(scaled, Piece(ids=(3,), trained=(True,), parent=0)))
