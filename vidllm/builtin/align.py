"""Stage 2: the projector alone learns to say what a patch shows in the language model's own words.

Where an object is, the projected token becomes the sum of the embeddings of its colour, its shape and its place, plus
its exact pose along a few directions of its own; where nothing is, it becomes nothing. A question's word then resembles
the tokens it asks for, and matching them takes minutes to learn instead of hours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from vidllm.builtin.collate import STRIDES
from vidllm.builtin.stills import GRID, NOTHING, Stills
from vidllm.builtin.vision import clocked, patch_features, set_rate
from vidllm.world.vocabulary import COLOURS, SHAPES

PLACES = ("top", "bottom", "left", "right", "center")


@dataclass(frozen=True, kw_only=True)
class AlignStage:
    """Settings of the projector's stage; it ends after `steps` or `minutes`."""

    batch: int = 64
    steps: int = 2000
    minutes: float = 4
    learning_rate: float = 2e-3
    seed: int = 5


@dataclass(frozen=True)
class Words:
    """What labels look like among the embeddings: `colours` (8, D), `shapes` (6, D), `places` (5, D), `pose` (7, D)."""

    colours: Tensor
    shapes: Tensor
    places: Tensor
    pose: Tensor


def words_of(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, seed: int) -> Words:
    """The words' embeddings, each group without its mean and all of one length; poses get random directions."""
    table = cast("nn.Embedding", model.get_input_embeddings()).weight.detach()
    length = table.norm(dim=-1).mean()

    def group(names: tuple[str, ...]) -> Tensor:
        ids = [tokenizer.encode(" " + name, add_special_tokens=False)[-1] for name in names]
        rows = table[ids] - table[ids].mean(0)
        return cast(Tensor, F.normalize(rows, dim=-1) * length)

    random = torch.randn(7, table.shape[1], generator=torch.Generator().manual_seed(seed))
    return Words(group(COLOURS), group(SHAPES), 0.6 * group(PLACES), F.normalize(random, dim=-1) * length)


def pose_waves(pose: Tensor) -> Tensor:
    """x, y, log radius (..., 3) -> (..., 7): what a linear map needs to tell nine places and a size apart."""
    x, y, size = pose.unbind(-1)
    waves = [f(math.pi * c) for c in (x, y) for f in (torch.sin, torch.cos)]
    return torch.stack([x * 2 - 1, y * 2 - 1, size, *waves], -1)


def targets(words: Words, labels: Sequence[Tensor], stride: int) -> Tensor:
    """A still's four labels (B, 12, 12[, 3]) -> what each pooled token should be, (B, tokens, D).

    A cell that several objects share is their mixture by area; one that an object only touches is told in full.
    """
    present, colour, shape, pose = labels
    x, y, _ = pose.unbind(-1)
    places = torch.stack([y < 1 / 3, y > 2 / 3, x < 1 / 3, x > 2 / 3, (x - 0.5).abs() < 1 / 6], -1).float()
    full = places @ words.places + pose_waves(pose) @ words.pose
    full = full + words.colours[colour.clamp(min=0)] + words.shapes[shape.clamp(min=0)]
    solid = (present * (colour != NOTHING))[..., None]
    total = F.avg_pool2d((full * solid).permute(0, 3, 1, 2), stride)
    share = F.avg_pool2d(solid.permute(0, 3, 1, 2), stride)
    return (total / share.clamp(min=1e-6) * (share > 0)).flatten(2).transpose(1, 2)


def align(stage: AlignStage, model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
    """Train the projector, in place; every stride a frame may be pooled with takes part."""
    words = words_of(model, tokenizer, stage.seed)
    projector = cast(nn.Module, model.model.multi_modal_projector)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=stage.learning_rate, betas=(0.9, 0.98))
    loader = iter(DataLoader(Stills(stage.batch, stage.seed), batch_size=None, num_workers=1, prefetch_factor=4))
    for step, minutes, done in clocked(stage.steps, stage.minutes):
        set_rate([optimizer], stage.learning_rate, 1, done)
        pixels, *labels = next(loader)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            features = patch_features(model.model.vision_tower, pixels)
        maps = torch.unflatten(features.float().transpose(1, 2), 2, (GRID, GRID))
        pooled = torch.cat([F.avg_pool2d(maps, s).flatten(2).transpose(1, 2) for s in STRIDES], 1)
        wanted = torch.cat([targets(words, labels, s) for s in STRIDES], 1)
        loss = (projector(pooled) - wanted).square().sum(-1)
        shown = wanted.square().sum(-1) > 0
        total = loss[shown].mean() + loss[~shown].mean()  # nine tokens of ten show nothing: both kinds count alike
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        if step % 25 == 0:
            unexplained = loss[shown].mean() / wanted[shown].square().sum(-1).mean()
            print(f"align {step} {minutes:.1f} min unexplained {unexplained.item():.3f}", flush=True)
