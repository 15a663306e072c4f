"""Stage 4: vision tower and projector learn where things are to the pixel, in the words the language model knows.

A label on every patch teaches within minutes what is there; where exactly, and how large, comes late, and slow growth
or a slow move is nothing else. By the time a language model reads the tokens they can no longer change at will. So
poses are told on patches and on projected tokens, and every token is held near what it was, but for its pose: near what
it would have been, had the pose been seen exactly.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

from vidllm.builtin import together
from vidllm.builtin.align import pose_waves
from vidllm.builtin.collate import STRIDES, slot_base
from vidllm.builtin.language import optimizers_for, projected, take_step
from vidllm.builtin.stills import IMAGE_SIDE, NOTHING, Stills, crowd
from vidllm.builtin.vision import clocked, patch_features, set_rate
from vidllm.world.vocabulary import COLOURS, SHAPES

POSE_UNITS = (0.02, 0.02, 0.05)
"""An error of x, y and log radius that counts as one: two pixels, a twentieth of the size."""
LEAST_SHARE = {1: 1.0, 2: 0.25, 3: 0.25, 4: 0.12, 6: 0.12}
"""By stride, the part of a cell that one object has to cover for the cell to be asked about it."""
WHAT_WEIGHT = 0.5
"""Of presence, colour and shape, which the tower knows, beside poses."""


@dataclass(frozen=True, kw_only=True)
class SharpenStage:
    """Settings of this stage. It ends after `steps` or `minutes`, and its learning rate follows whichever is nearer."""

    batch: int = 32
    """Pictures per step and process."""
    held: int = 10
    """Of these, how many also show what the tokens were."""
    steps: int = 100_000
    minutes: float = 36
    learning_rate: float = 1.2e-3
    warmup: int = 50
    seed: int = 9


class SharpHeads(nn.Module):
    """What patches, (N, C), and projected tokens, (N, D), tell; thrown away afterwards."""

    def __init__(self, features: int, tokens: int) -> None:
        super().__init__()
        self.patch_norm, self.token_norm = nn.RMSNorm(features), nn.RMSNorm(tokens)
        self.what = nn.Linear(features, 1 + len(COLOURS) + len(SHAPES))
        self.patch_pose, self.token_pose = nn.Linear(features, 3), nn.Linear(tokens, 3)

    def patch(self, features: Tensor) -> Tensor:
        """x, y, log radius (N, 3) by patches."""
        return cast(Tensor, self.patch_pose(self.patch_norm(features)))

    def token(self, tokens: Tensor) -> Tensor:
        """x, y, log radius (N, 3) by projected tokens."""
        return cast(Tensor, self.token_pose(self.token_norm(tokens)))


class Before:
    """A model as it was, and what its tokens would have been, had it seen poses exactly.

    Two least-squares fits over some pictures: what a pose adds to a token, and which pose a token tells of. The
    difference of the true pose and the one told of, put through the first, is what a token lacks.
    """

    def __init__(self, model: LlavaForConditionalGeneration, batches: Sequence[Sequence[Tensor]]) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        tokens, poses = zip(*(self._shown(batch) for batch in batches), strict=True)
        shown, waves = torch.cat(tokens), pose_waves(torch.cat(poses))
        self.adds, self.tells = least_squares(waves, shown), least_squares(shown, waves)

    @torch.no_grad()
    def tokens(self, pixels: Tensor) -> Tensor:
        """(F, 96, 96, 3) uint8 -> (slots, D), as they were."""
        return projected(self.model, patch_features(self.model.model.vision_tower, pixels))

    def wanted(self, pixels: Tensor, told: Tensor, poses: Tensor) -> Tensor:
        """The same with poses mended where cells are told of: `told` (slots,) bool, `poses` (slots, 3)."""
        tokens = self.tokens(pixels)
        lack = pose_waves(poses[told]) - (tokens[told] @ self.tells[:-1] + self.tells[-1])
        tokens[told] += lack @ self.adds[:-1]
        return tokens

    def _shown(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        pixels, present, _, _, pose = batch
        told, poses = cell_poses(present, pose)
        return self.tokens(pixels)[told], poses[told]


def least_squares(given: Tensor, wanted: Tensor) -> Tensor:
    """(N, A), (N, B) -> (A + 1, B): weights, and the constant in the last row."""
    given = torch.cat([given, torch.ones(len(given), 1)], 1)
    square = given.T @ given
    ridge = 1e-3 * square.diag().mean() * torch.eye(len(square))
    found: Tensor = torch.linalg.solve(square + ridge, given.T @ wanted)
    return found


def cell_poses(present: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
    """Labels of patches, (F, 12, 12) and (F, 12, 12, 3), -> of all pooled cells, laid as `visual_table` lays them:
    which show enough of one object and nothing of another, (slots,) bool, and its pose, (slots, 3).
    """
    shown = present[:, None]
    planes = torch.cat([shown, pose.permute(0, 3, 1, 2) * shown, pose.permute(0, 3, 1, 2).square() * shown], 1)
    told, poses = [], []
    for stride in STRIDES:
        share, total, squares = torch.split(F.avg_pool2d(planes, stride), [1, 3, 3], 1)
        mean = total / share.clamp(min=1e-6)
        one = ((squares / share.clamp(min=1e-6) - mean.square()).abs() < 1e-5).all(1)
        told.append((one & (share[:, 0] >= LEAST_SHARE[stride] - 1e-3)).flatten())
        poses.append(mean.flatten(2).transpose(1, 2).flatten(0, 1))
    return torch.cat(told), torch.cat(poses)


def cells_shown(present: Tensor) -> Tensor:
    """(F, 12, 12) -> (slots,) bool: which cells show anything of an object."""
    return torch.cat([F.avg_pool2d(present[:, None], stride).flatten() > 0 for stride in STRIDES])


def sharpen(stage: SharpenStage, model: LlavaForConditionalGeneration) -> None:
    """Run the stage, in place, the language model frozen."""
    torch.manual_seed(stage.seed)
    model.requires_grad_(True)
    cast(nn.Module, model.model.language_model).requires_grad_(False)
    looked_at = iter(Stills(2 * stage.batch, stage.seed + 1, crowd))
    fitted, held_out = ([next(looked_at) for _ in range(n)] for n in (12, 4))
    before = Before(model, fitted)
    heads = SharpHeads(
        model.model.vision_tower.config.hidden_size,
        cast("nn.Embedding", model.get_input_embeddings()).embedding_dim,
    )
    optimizers = optimizers_for(model, heads)
    pictures = iter(Stills(stage.batch, stage.seed + 2 + together.part(), crowd))
    first = together.part() == 0
    for step, minutes, done in clocked(stage.steps, stage.minutes, together.agreed):
        set_rate(optimizers, stage.learning_rate, min(1, (step + 1) / stage.warmup), done)
        loss = sharpen_loss(model, heads, before, next(pictures), stage.held)
        take_step(optimizers, loss, most=5.0)
        if first and step % 100 == 99:
            print(f"sharpen {step + 1} {minutes:.1f} min loss {loss.item():.3f}", flush=True)
            if step % 500 == 499:
                print(f"unseen: {errors(model, heads, held_out)}", flush=True)
    if first:
        print(f"unseen at the end: {errors(model, heads, held_out)}", flush=True)


def sharpen_loss(
    model: LlavaForConditionalGeneration, heads: SharpHeads, before: Before, batch: Sequence[Tensor], held: int
) -> Tensor:
    """Poses by patches and by tokens, in `POSE_UNITS`; what patches show; and how far the first `held` pictures' tokens
    have moved.
    """
    pixels, present, colour, shape, pose = batch
    features = patch_features(model.model.vision_tower, pixels)
    told, poses = cell_poses(present, pose)
    seen = colour != NOTHING
    mine = torch.unflatten(features, 1, colour.shape[1:])
    off = _misplaced(heads.patch(mine[seen]), pose[seen])
    off = off + _misplaced(heads.token(projected(model, features)[told]), poses[told])
    here, colours, shapes = torch.split(heads.what(heads.patch_norm(mine)), [1, len(COLOURS), len(SHAPES)], -1)
    what = F.binary_cross_entropy_with_logits(here[..., 0], present)
    what = what + F.cross_entropy(colours[seen], colour[seen]) + F.cross_entropy(shapes[seen], shape[seen])
    tokens = projected(model, features[:held])
    return off + WHAT_WEIGHT * what + _moved(tokens, before, pixels[:held], present[:held], pose[:held])


def _moved(tokens: Tensor, before: Before, pixels: Tensor, present: Tensor, pose: Tensor) -> Tensor:
    """How far some pictures' tokens (slots, D) are from what they ought to be, objects and background alike, an
    object's token being 1 long.
    """
    wanted = before.wanted(pixels, *cell_poses(present, pose))
    shown, length = cells_shown(present), wanted.square().sum(-1)
    moved = (tokens - wanted).square().sum(-1)
    return (moved[shown].mean() + moved[~shown].mean()) / length[shown].mean()


def _misplaced(told: Tensor, true: Tensor) -> Tensor:
    error = (told - true) / torch.tensor(POSE_UNITS)
    return F.smooth_l1_loss(error, torch.zeros_like(error))


@torch.no_grad()
def errors(model: LlavaForConditionalGeneration, heads: SharpHeads, batches: Sequence[Sequence[Tensor]]) -> str:
    """How far off poses are by the tokens of stride 2: the middle error and the tenth worst, of place and of size."""
    found = []
    for pixels, present, _, _, pose in batches:
        told, poses = cell_poses(present, pose)
        base = slot_base(len(pixels))
        fine = slice(base[2], base[3])
        tokens = projected(model, patch_features(model.model.vision_tower, pixels))[fine]
        found.append((heads.token(tokens) - poses[fine]).abs()[told[fine]])
    error = torch.cat(found)
    place, size = (IMAGE_SIDE * error[:, :2]).flatten(), error[:, 2]
    shares = torch.tensor([0.5, 0.9])
    (a, b), (c, d) = place.quantile(shares).tolist(), size.quantile(shares).tolist()
    return f"place {a:.2f} {b:.2f} px size {100 * c:.1f} {100 * d:.1f} %"
