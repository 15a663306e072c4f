"""Stage 1: the vision tower learns to see, with a label on every patch.

Under a language loss alone a vision encoder this small stalls for hours; dense labels (is there an object, which
colour, which shape, where is its centre, how large is it) bring every patch of an object to carry the whole object
within minutes. The heads are thrown away afterwards.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import CLIPVisionConfig, CLIPVisionModel

from vidllm.builtin.stills import IMAGE_SIDE, NOTHING, PATCH, Stills
from vidllm.world.vocabulary import COLOURS, SHAPES

MEAN = STD = 0.5


@dataclass(frozen=True, kw_only=True)
class VisionStage:
    """Settings of stage 1. It ends after `steps` or `minutes`; the learning rate follows whichever is nearer."""

    hidden_size: int = 192
    layers: int = 4
    heads: int = 3
    batch: int = 64
    steps: int = 6000
    minutes: float = 20
    learning_rate: float = 1e-3
    seed: int = 1


def vision_config(stage: VisionStage) -> CLIPVisionConfig:
    """A CLIP vision tower: 96 px in patches of 8, a 12x12 grid."""
    return CLIPVisionConfig(  # type: ignore[call-arg]  # attn_implementation is taken out of the further keywords
        hidden_size=stage.hidden_size,
        intermediate_size=4 * stage.hidden_size,
        num_hidden_layers=stage.layers,
        num_attention_heads=stage.heads,
        image_size=IMAGE_SIDE,
        patch_size=PATCH,
        projection_dim=stage.hidden_size,
        hidden_act="gelu_pytorch_tanh",
        attn_implementation="eager",  # at 145 tokens plain matrix products train faster on a CPU than the fused kernel
    )


class DenseHeads(nn.Module):
    """(B, 144, D) patch features -> per patch: presence 1, colour 8, shape 6, pose 3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 1 + len(COLOURS) + len(SHAPES) + 3)

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        """Presence (B, 144), colour (B, 144, 8), shape (B, 144, 6), pose (B, 144, 3)."""
        present, colour, shape, pose = self.out(self.norm(features)).split([1, len(COLOURS), len(SHAPES), 3], -1)
        return present.squeeze(-1), colour, shape, pose


def normalise(pixels: Tensor) -> Tensor:
    """(B, 96, 96, 3) uint8 -> (B, 3, 96, 96) float, as the image processor that ships does."""
    return (pixels.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


def patch_features(tower: CLIPVisionModel, pixels: Tensor) -> Tensor:
    """(B, 96, 96, 3) uint8 -> (B, 144, D)."""
    features: Tensor = tower(normalise(pixels)).last_hidden_state[:, 1:]
    return features


def dense_loss(heads: DenseHeads, features: Tensor, labels: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, float]]:
    """Sum of the four losses, and what a person reads: accuracies, and the mean error of centre and log radius.

    `features` (B, 144, D); `labels` (B, 12, 12, ...) as `Still` has them: present, colour, shape, pose.
    """
    present, colour, shape, pose = (x.flatten(1, 2) for x in labels)
    p, c, s, q = (x.float() for x in heads(features))
    seen = colour != NOTHING
    loss = F.binary_cross_entropy_with_logits(p, present)
    loss = loss + F.cross_entropy(c[seen], colour[seen]) + F.cross_entropy(s[seen], shape[seen])
    loss = loss + 3 * F.smooth_l1_loss(q[seen], pose[seen], beta=0.05)
    with torch.no_grad():
        report = {
            "present": ((p > 0) == present.bool()).float().mean().item(),
            "colour": (c[seen].argmax(-1) == colour[seen]).float().mean().item(),
            "shape": (s[seen].argmax(-1) == shape[seen]).float().mean().item(),
            "centre": (q[seen][:, :2] - pose[seen][:, :2]).abs().mean().item(),
            "radius": (q[seen][:, 2] - pose[seen][:, 2]).abs().mean().item(),
        }
    return loss, report


def clocked(
    steps: int, minutes: float, agreed: Callable[[float], float] = float
) -> Iterator[tuple[int, float, float]]:
    """(step, minutes gone, how much is done: 0..1) until `steps` or `minutes` are up, whichever is nearer.

    `agreed`: what processes that learn together make of their clocks.
    """
    began = time.monotonic()
    for step in range(steps):
        gone = agreed((time.monotonic() - began) / 60)
        done = max(step / steps, gone / minutes)
        if done >= 1:
            return
        yield step, gone, done


def set_rate(optimizers: Sequence[torch.optim.Optimizer], top: float, warmth: float, done: float) -> float:
    """The learning rate all take next: `top`, by how warm they are (0..1), and a cosine down to three hundredths when
    `done` (0..1) is 1.
    """
    rate = top * warmth * (0.03 + 0.97 * (1 + math.cos(math.pi * done)) / 2)
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = rate
    return rate


def train_vision(stage: VisionStage) -> CLIPVisionModel:
    """Run stage 1."""
    torch.manual_seed(stage.seed)
    tower = CLIPVisionModel(vision_config(stage))
    heads = DenseHeads(stage.hidden_size)
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=0.02)
    loader = iter(DataLoader(Stills(stage.batch, stage.seed), batch_size=None, num_workers=1, prefetch_factor=4))
    for step, minutes, done in clocked(stage.steps, stage.minutes):
        set_rate([optimizer], stage.learning_rate, min(1, (step + 1) / 200), done)
        pixels, *labels = next(loader)
        with torch.autocast("cpu", torch.bfloat16):
            features = patch_features(tower, pixels)
            loss, report = dense_loss(heads, features, tuple(labels))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 25 == 0:
            said = " ".join(f"{k} {v:.3f}" for k, v in report.items())
            print(f"vision {step} {minutes:.1f} min loss {loss.item():.3f} {said}", flush=True)
    return tower
