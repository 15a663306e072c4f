"""Linear scaling of rotary positions: fractional, and each row its own.

Dividing the positions by a factor is what `rope_type: linear` does to the frequencies: the angle is position times
frequency over factor either way. Every rotary embedding of the families here multiplies float positions, so nothing is
patched, rows of one batch may differ, and a KV cache filled under a factor is continued under the same one.

The factor is a number a request carries. The reference decided on scaling by looking for a word in the checkpoint's
path, so its best known checkpoint was never scaled at all; here no name is consulted.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def scaled_positions(start: int, length: int, factor: float, device: torch.device | str | None = None) -> Tensor:
    """Positions start .. start + length - 1 over `factor`, shape (1, length); as `scaled_rows`."""
    return scaled_rows(torch.arange(start, start + length, device=device)[None], (factor,))


def scaled_rows(positions: Tensor, factors: Sequence[float]) -> Tensor:
    """Rows of integer positions (B, L), each over its own factor.

    Integers when every factor is 1.0, so that an unscaled request is the model untouched; float32 otherwise.

    Raises:
        ValueError: a factor is below 1 (that would be a context smaller than the model's own).
    """
    if min(factors) < 1.0:
        raise ValueError(f"a RoPE factor is at least 1.0, not {min(factors)}")
    if all(factor == 1.0 for factor in factors):
        return positions
    return positions.float() / torch.tensor(factors, device=positions.device)[:, None]
