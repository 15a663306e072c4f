"""Fractional RoPE: one number per request, exact against transformers' linear scaling."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from vidllm.model.kv import KeyValues
from vidllm.model.rope import scaled_positions, scaled_rows


def llama(**rope: Any) -> LlamaModel:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=4, initializer_range=0.5)  # fmt: skip
    if rope:
        config.rope_parameters = {"rope_theta": config.rope_parameters["rope_theta"], **rope}
    return LlamaModel(config).eval()


def test_factor_one_leaves_integers() -> None:
    positions = scaled_positions(5, 3, 1.0)
    assert positions.dtype == torch.int64
    assert positions.tolist() == [[5, 6, 7]]


def test_positions_are_divided() -> None:
    torch.testing.assert_close(scaled_positions(4, 2, 1.6), torch.tensor([[2.5, 3.125]]))


@pytest.mark.parametrize("factor", [0.5, 0.0, -1.0])
def test_a_factor_below_one_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        scaled_positions(0, 4, factor)
    with pytest.raises(ValueError, match="at least 1"):
        scaled_rows(torch.arange(4)[None], [factor])


@pytest.mark.parametrize(("factor", "tolerance"), [(2.0, 0.0), (4.0, 0.0), (1.37, 1e-4), (1.96875, 1e-4)])
def test_float_positions_are_linear_scaling(factor: float, tolerance: float) -> None:
    """Exact at powers of two; otherwise float32's rounding of position / factor."""
    ids = torch.arange(48)[None] % 64
    built = llama(rope_type="linear", factor=factor)
    with torch.no_grad():
        expected = built(ids).last_hidden_state
        plain = llama()
        cache: Any = KeyValues(range(2), 8)
        scaled = plain(ids, position_ids=scaled_positions(0, 48, factor), past_key_values=cache).last_hidden_state
        unscaled = plain(ids).last_hidden_state
    torch.testing.assert_close(scaled, expected, atol=tolerance, rtol=0)
    assert (scaled - unscaled).abs().max() > 0.01


def test_rows_of_a_batch_have_factors_of_their_own() -> None:
    ids = torch.arange(24).repeat(3, 1)
    factors = [1.0, 1.5, 2.0]
    model = llama()
    with torch.no_grad():
        positions = scaled_rows(torch.arange(24).repeat(3, 1), factors)
        cache: Any = KeyValues(range(2), 8)
        together = model(ids, position_ids=positions, past_key_values=cache).last_hidden_state
        for row, factor in enumerate(factors):
            cache = KeyValues(range(2), 8)
            alone = model(
                ids[:1], position_ids=scaled_positions(0, 24, factor), past_key_values=cache
            ).last_hidden_state
            torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=0)


def test_all_ones_stay_integers() -> None:
    positions = torch.arange(4).repeat(2, 1)
    assert scaled_rows(positions, [1.0, 1.0]) is positions
