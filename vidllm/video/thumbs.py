"""How unlike two pictures are, told by 32x32 pixels of them in blocks of 8x8: glances and cuts are chosen by it."""

import numpy as np
from numpy.typing import NDArray

SIDE, BLOCK = 32, 8


def block_changes(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean difference of each block in grey levels, (N, 16), of pictures (N, 32, 32, 3); either may be one for all."""
    blocks, row = SIDE // BLOCK, BLOCK * 3
    difference = np.maximum(before, after) - np.minimum(before, after)
    of_rows = difference.reshape(-1, row) @ np.full(row, 1 / row, np.float32)
    return np.asarray(of_rows.reshape(-1, blocks, BLOCK, blocks).mean(axis=2).reshape(-1, blocks * blocks), np.float32)
