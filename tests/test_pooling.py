"""Pooling, newlines and AnyRes packing: counts against the budget's, values against transformers' own."""

from typing import get_args

import pytest
import torch

from vidllm.geometry import Geometry, Newline, Pooling
from vidllm.model.anyres import anyres_tokens
from vidllm.model.pooling import lay_out, pack_tiles, pool
from vidllm.visuals import _newline

MODES = get_args(Pooling)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("newline", get_args(Newline))
@pytest.mark.parametrize(("rows", "cols"), [(12, 12), (24, 24), (27, 27), (9, 16), (7, 5)])
def test_the_budget_counts_what_pooling_makes(mode: Pooling, newline: Newline, rows: int, cols: int) -> None:
    geometry = Geometry(rows=rows, cols=cols, pooling=mode, newline=newline)
    for stride in range(1, min(rows, cols) + 1):
        tokens = pool(torch.randn(2, rows * cols, 3), rows, cols, stride, mode)
        frames = [lay_out(frame, torch.zeros(3), _newline(newline, i == 1)) for i, frame in enumerate(tokens)]
        assert tuple(len(frame) for frame in frames) == geometry.frame_tokens([stride, stride])


def test_pooled_values_by_hand() -> None:
    grid = torch.tensor([[0.0, 1, 2], [3, 4, 5], [6, 7, 8]]).view(1, 9, 1)  # a 3x3 grid, one feature
    assert pool(grid, 3, 3, 2, "average").flatten().tolist() == [2.0]  # the mean of 0 1 3 4; the ragged edge is dropped
    assert pool(grid, 3, 3, 2, "max").flatten().tolist() == [4.0]
    assert pool(grid, 3, 3, 3, "average").flatten().tolist() == [4.0]
    # bilinear to 2x2: centres at 0.25 and 1.75 of the pixel grid
    expected = [1.0, 2.5, 5.5, 7.0]
    torch.testing.assert_close(pool(grid, 3, 3, 2, "bilinear").flatten(), torch.tensor(expected))
    for mode in MODES:
        assert torch.equal(pool(grid, 3, 3, 1, mode).flatten(), grid.flatten())


def test_average_pooling_is_transformers_own() -> None:
    from transformers import CLIPVisionConfig, LlavaNextVideoConfig
    from transformers.models.llava_next_video.modeling_llava_next_video import LlavaNextVideoPooler

    features = torch.randn(2, 81, 12)
    for stride in (1, 2, 3, 4):
        vision = CLIPVisionConfig(image_size=126, patch_size=14, hidden_size=12)
        config = LlavaNextVideoConfig(vision_config=vision, spatial_pool_mode="average", spatial_pool_stride=stride)
        theirs = LlavaNextVideoPooler(config)(features)
        torch.testing.assert_close(pool(features, 9, 9, stride, "average").flatten(1, 2), theirs, atol=0, rtol=0)


def test_impossible_pooling_is_refused() -> None:
    with pytest.raises(ValueError, match="65 patch features are no 8x8 grid"):
        pool(torch.zeros(1, 65, 2), 8, 8, 2, "average")
    with pytest.raises(ValueError, match="stride 9 leaves nothing of a 8x8 grid"):
        pool(torch.zeros(1, 64, 2), 8, 8, 9, "max")
    with pytest.raises(ValueError, match="stride 0 leaves nothing"):
        pool(torch.zeros(1, 64, 2), 8, 8, 0, "bilinear")
    with pytest.raises(ValueError, match="learned newline"):
        lay_out(torch.zeros(2, 2, 3), None, "grid")


@pytest.mark.parametrize(("mode", "layout"), [("none", "abcd"), ("frame", "abcd|"), ("grid", "ab|cd|")])
def test_where_newlines_stand(mode: Newline, layout: str) -> None:
    tokens = torch.tensor([[ord("a"), ord("b")], [ord("c"), ord("d")]]).float()[..., None]
    flat = lay_out(tokens, torch.tensor([float(ord("|"))]), mode)
    assert "".join(chr(int(code)) for code in flat.flatten()) == layout


@pytest.mark.parametrize("max_tiles", [None, 9, 1])
@pytest.mark.parametrize("size", [(300, 400), (400, 300), (1000, 100), (77, 1000), (50, 50)])
@pytest.mark.parametrize("tiles", [(1, 2), (2, 1), (2, 2), (1, 3), (4, 1), (6, 6)])
def test_packed_tiles_are_as_many_as_counted(
    size: tuple[int, int], tiles: tuple[int, int], max_tiles: int | None
) -> None:
    features = torch.randn(1 + tiles[0] * tiles[1], 81, 4)
    packed = pack_tiles(features, size, tiles, torch.zeros(4), max_tiles)
    assert len(packed) == anyres_tokens(size, tiles, 9, max_tiles)
    assert torch.equal(packed[:81], features[0])  # the whole picture comes first, untouched


def test_tiles_are_joined_where_they_were_cut() -> None:
    """Each feature says (row, column) of its patch in the whole picture; after packing they must read in order."""
    side, tiles = 2, (2, 3)
    whole = torch.stack(torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij"), dim=-1)  # (4, 6, 2)
    cut = whole.view(2, side, 3, side, 2).transpose(1, 2).reshape(6, side * side, 2)
    packed = pack_tiles(torch.cat([torch.zeros(1, 4, 2), cut]), (400, 600), tiles, torch.full((2,), -1.0))
    lines = packed[4:].view(4, 7, 2)  # four rows of six patches and a newline
    assert torch.equal(lines[:, :6], whole)
    assert (lines[:, 6] == -1).all()
