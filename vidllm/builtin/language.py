"""Stages 3 and 5: projector and language model learn to answer from a frozen vision tower, first pictures, then video.

The whole is a plain `LlavaForConditionalGeneration`; only the road between its parts is ours, as it is when vidllm
answers.
"""

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import (
    CLIPVisionModel,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from vidllm.builtin import together
from vidllm.builtin.collate import IGNORE, STRIDES, Batch, Collator, Rows, TrainingRows
from vidllm.builtin.lean import Trace, hidden_states
from vidllm.builtin.links import HEADS
from vidllm.builtin.rows import clip_rows, still_rows
from vidllm.builtin.stills import GRID
from vidllm.builtin.vision import clocked, patch_features, set_rate
from vidllm.builtin.words import IMAGE
from vidllm.machine import cpu_multiplies_bf16
from vidllm.world.vocabulary import ACTIONS, COLOURS, SHAPES

CONTEXT = 1024
MOTION_SCALE = (0.1, 0.1, 0.2, 0.5) * 2
"""What counts as much of a `Motion`."""
CHANGES_WEIGHT, LINKS_WEIGHT, CLOCK_WEIGHT = 1.0, 0.3, 0.3
"""Of what is told besides answers, beside an answer's token's 1."""


@dataclass(frozen=True, kw_only=True)
class LanguageShape:
    """Size of the language model, and the seed its first weights are drawn from."""

    hidden_size: int = 192
    intermediate_size: int = 512
    layers: int = 6
    heads: int = 3
    seed: int = 2


@dataclass(frozen=True, kw_only=True)
class AnswerStage:
    """Settings of one stage of learning to answer: it ends after `steps` or `minutes`, whichever is nearer.

    The learning rate follows the same clock: a warmup of `warmup` steps, then a cosine.
    """

    clips: int = 4
    """Clips per optimizer step and process, about seven rows each."""
    moments: int = 2
    whole: int = 3
    """Of a video: how many moments are asked about in focus, and how often the whole clip."""
    stills: bool = False
    """Learn from single pictures; else from videos with some pictures among them."""
    frozen_projector: bool = False
    """Leave the projector as it is: under video it else grows until attention can add nothing to its tokens."""
    steps: int = 100_000
    minutes: float = 100
    learning_rate: float = 1e-3
    warmup: int = 60
    first_seed: int = 0
    """The first training clip's seed; a later stage begins where an earlier one can not have come."""
    check_minutes: float = 6
    check_clips: int = 60


def new_model(
    shape: LanguageShape, tower: CLIPVisionModel, tokenizer: PreTrainedTokenizerFast
) -> LlavaForConditionalGeneration:
    """The LLaVA model of the shipped size around a trained vision tower, everything else fresh from the seed."""
    torch.manual_seed(shape.seed)
    text = LlamaConfig(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        vocab_size=-(-len(tokenizer) // 64) * 64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.05,  # 0.02 suits wide models; at this width attention would start out blind
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=text,
        image_token_index=tokenizer.get_vocab()[IMAGE],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=GRID * GRID,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    return model


@torch.no_grad()
def calibrate(model: LlavaForConditionalGeneration, frames: Tensor) -> None:
    """Start the projector from standardised features and let it speak as loudly as the words do.

    Nine patches of ten show nothing and a raw tower's features share a large mean, so without this all visual tokens
    look alike and drown the text. The mean and deviation are folded into the first layer: the architecture stays
    LLaVA's. `frames` (F, 96, 96, 3) uint8 are any that show what frames show.
    """
    projector = model.model.multi_modal_projector
    features = patch_features(model.model.vision_tower, frames).flatten(0, 1).float()
    mean, deviation = features.mean(0), features.std(0)
    first, second = cast("tuple[nn.Linear, nn.Linear]", (projector.linear_1, projector.linear_2))
    nn.init.normal_(first.weight, std=first.in_features**-0.5)
    nn.init.normal_(second.weight, std=second.in_features**-0.5)
    first.weight /= deviation
    first.bias.copy_(-first.weight @ mean)
    loudness = projector(features).std()
    second.weight *= cast("nn.Embedding", model.get_input_embeddings()).weight.std() / loudness
    second.bias.zero_()
    layers = cast("Sequence[LlamaDecoderLayer]", model.model.language_model.layers)
    for layer in layers:  # each adds to the residual stream: the more of them there are, the quieter
        for out in (layer.self_attn.o_proj, layer.mlp.down_proj):
            out.weight *= (2 * len(layers)) ** -0.5


def visual_table(model: LlavaForConditionalGeneration, frames: Tensor, kind: torch.dtype | None = None) -> Tensor:
    """(F, 96, 96, 3) uint8 -> (slots, D): every frame's tokens at every stride, laid out as `slot_base` says.

    `kind` is what is computed in and given out: float32 to compare with what asking computes; by default, to train,
    what this processor multiplies faster.
    """
    kind = kind or (torch.bfloat16 if cpu_multiplies_bf16() else torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == torch.bfloat16):
        with torch.no_grad():
            features = patch_features(model.model.vision_tower, frames)
        return projected(model, features.to(kind))


def projected(model: LlavaForConditionalGeneration, features: Tensor) -> Tensor:
    """(F, 144, C) patch features -> (slots, D), as `visual_table` lays them."""
    maps = torch.unflatten(features.transpose(1, 2), 2, (GRID, GRID))  # (F, C, 12, 12)
    pooled = torch.cat([F.avg_pool2d(maps, stride).flatten(2).transpose(1, 2).flatten(0, 1) for stride in STRIDES])
    return cast(Tensor, model.model.multi_modal_projector(pooled))


class ChangeHeads(nn.Module):
    """What an object has been doing since the frame before, read off its token in the middle of the language model.

    An answer says one thing about twenty frames; this says one about every object of each, so that changes are seen
    long before answers could have taught it: how far it moved, grew and faded, and what a person would call that.
    Thrown away afterwards.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.early = nn.Linear(width, len(MOTION_SCALE))
        self.out = nn.Linear(width, len(ACTIONS) + 1 + len(COLOURS) + len(SHAPES) + len(MOTION_SCALE) + 1)

    def loss(self, early: Tensor, hidden: Tensor, codes: Tensor, motions: Tensor) -> tuple[Tensor, float]:
        """Hidden states (N, D) of two layers, change codes (N,), motions (N, 8) -> the loss, the share told right.

        The earlier layer tells motions only: the next one compares them with those a frame earlier.
        """
        action, colour, shape, motion, begun = self.out(self.norm(hidden.float())).split(
            [len(ACTIONS) + 1, len(COLOURS), len(SHAPES), len(MOTION_SCALE), 1], -1
        )
        happened = codes > 0
        number = (codes - 1).clamp(min=0)
        action_number = number // (len(COLOURS) * len(SHAPES))
        began = happened & (action_number >= len(ACTIONS))
        kind = torch.where(happened, action_number % len(ACTIONS) + 1, 0)
        whose_colour, whose_shape = number // len(SHAPES) % len(COLOURS), number % len(SHAPES)
        rare = torch.ones(len(ACTIONS) + 1)
        rare[0] = 0.3  # most frames bring nothing new
        total = F.cross_entropy(action, kind, weight=rare)
        wanted = motions / torch.tensor(MOTION_SCALE)
        for told in (motion, self.early(self.norm(early.float()))):
            total = total + 2 * F.smooth_l1_loss(told, wanted, beta=0.1)
        if happened.any():
            total = total + F.binary_cross_entropy_with_logits(begun[happened, 0], began[happened].float())
            total = total + F.cross_entropy(colour[happened], whose_colour[happened])
            total = total + F.cross_entropy(shape[happened], whose_shape[happened])
        right = (action.argmax(-1) == kind) & ((begun[:, 0] > 0) == began)
        right &= (colour.argmax(-1) == whose_colour) & (shape.argmax(-1) == whose_shape)
        return total, right[happened].float().mean().item()


def answer_logits(
    model: LlavaForConditionalGeneration, table: Tensor, rows: Rows, trace: Trace | None = None
) -> tuple[Tensor, Tensor]:
    """Logits (N, V) float32 and targets (N,) at the positions that predict an answer's token; see `hidden_states`."""
    visual = rows.slots >= 0
    embeds = model.get_input_embeddings()(rows.ids).to(table.dtype)
    embeds = torch.where(visual[..., None], table[rows.slots.clamp(min=0)], embeds)
    causal = torch.ones(rows.ids.shape[1], rows.ids.shape[1], dtype=torch.bool).tril()
    allowed = (rows.blocks[:, :, None] == rows.blocks[:, None, :]) | (rows.blocks[:, None, :] == 0)
    hidden = hidden_states(
        model.model.language_model, embeds, allowed & causal, rows.positions / rows.scale[:, None], trace
    )
    answers = rows.labels != IGNORE
    return F.linear(hidden[answers], model.lm_head.weight.to(hidden.dtype)).float(), rows.labels[answers]


def learn_to_answer(
    stage: AnswerStage, model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast
) -> None:
    """One stage, in place, the vision tower frozen; what was learnt is told from time to time.

    Processes that `torchrun` started learn together, each from its own clips; the first tells.
    """
    torch.manual_seed(stage.first_seed)  # every process draws the same heads
    model.model.vision_tower.requires_grad_(False)
    cast(nn.Module, model.model.multi_modal_projector).requires_grad_(not stage.frozen_projector)
    heads = ChangeHeads(cast(nn.Embedding, model.get_input_embeddings()).embedding_dim)
    optimizers = optimizers_for(model, heads)
    draw = still_rows if stage.stills else partial(clip_rows, moments=stage.moments, whole=stage.whole)
    rows = TrainingRows(tokenizer, draw, stage.clips, stage.first_seed, part=together.part(), parts=together.parts())
    data = iter(DataLoader(rows, batch_size=None, num_workers=1, prefetch_factor=6))
    first = together.part() == 0
    held_out = held_out_batches(tokenizer, stage.check_clips) if first else []
    told: list[tuple[float, float, float]] = []
    checked = time.monotonic()
    for step, minutes, done in clocked(stage.steps, stage.minutes, together.agreed):
        rate = set_rate(optimizers, stage.learning_rate, min(1, (step + 1) / stage.warmup), done)
        told.append(train_step(model, next(data), optimizers, heads))
        if not first:
            continue
        if step % 20 == 19:
            loss, missed, right = (sum(values) / len(told) for values in zip(*told, strict=True))
            said = f"loss {loss:.4f} links {missed:.3f} changes {right:.3f}"
            print(f"{step + 1} {minutes:.1f} min {said} rate {rate:.1e}", flush=True)
            told.clear()
        if time.monotonic() - checked > stage.check_minutes * 60:
            print(f"unseen at {minutes:.0f} min: {spoken(score(model, held_out))}", flush=True)
            checked = time.monotonic()
    if first:
        print(f"unseen at the end: {spoken(score(model, held_out))}", flush=True)


def optimizers_for(model: LlavaForConditionalGeneration, heads: nn.Module) -> tuple[torch.optim.Optimizer, ...]:
    """For what learns of a model: Muon for its layers' matrices, AdamW for the rest, without decay of norms and biases.

    The learning rate is set before every step; Muon's updates are scaled to AdamW's, so both take the same.
    """
    matrices: list[Tensor] = []
    tables: list[Tensor] = []
    vectors: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            inner = parameter.ndim == 2 and ".layers." in name
            (matrices if inner else tables if parameter.ndim > 1 else vectors).append(parameter)
    groups = [
        {"params": tables, "weight_decay": 0.05},
        {"params": [*vectors, *heads.parameters()], "weight_decay": 0.0},
    ]
    return (
        torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", weight_decay=0.05),
        torch.optim.AdamW(groups, betas=(0.9, 0.98)),
    )


def train_step(
    model: LlavaForConditionalGeneration, batch: Batch, optimizers: Sequence[torch.optim.Optimizer], heads: ChangeHeads
) -> tuple[float, float, float]:
    """One optimizer step over a batch: the mean loss of an answer's token, of links, and the changes told right."""
    table = visual_table(model, batch.frames)
    pairs, earlies, middles, codes, motions, timed, stamps, misses = [], [], [], [], [], [], [], []
    for rows in batch.groups:
        trace = Trace()
        pairs.append(answer_logits(model, table, rows, trace))
        told = rows.changes != IGNORE
        middle = len(trace.hidden) // 2
        earlies.append(trace.hidden[middle - 1][told])
        middles.append(trace.hidden[middle][told])
        stamped = rows.stamps != IGNORE
        timed.append(trace.hidden[middle][stamped])
        stamps.append(rows.stamps[stamped])
        codes.append(rows.changes[told])
        motions.append(rows.motions[told])
        misses.append(links_missed(rows, trace))
    clock = _clock_missed(model, torch.cat(timed), torch.cat(stamps))
    answers = F.cross_entropy(torch.cat([logits for logits, _ in pairs]), torch.cat([labels for _, labels in pairs]))
    seen = [torch.cat(parts) for parts in (earlies, middles, codes, motions)]
    changes, right = heads.loss(*seen) if len(seen[2]) else (0.0, math.nan)
    missed = torch.stack(misses).mean()
    take_step(optimizers, answers + CHANGES_WEIGHT * changes + LINKS_WEIGHT * missed + CLOCK_WEIGHT * clock)
    return answers.item(), missed.item(), right


def take_step(optimizers: Sequence[torch.optim.Optimizer], loss: Tensor, most: float = 1.0) -> None:
    """One step of every process together against a loss, gradients no longer than `most`."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    learning = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    together.share_gradients(learning)
    nn.utils.clip_grad_norm_(learning, most)
    for optimizer in optimizers:
        optimizer.step()


def _clock_missed(model: LlavaForConditionalGeneration, hidden: Tensor, stamps: Tensor) -> Tensor:
    """How badly an object's tokens, (N, D) in the middle of the language model, tell their frame's time (N,): read off
    with the head itself, so that what looks at the object later finds the time spelled as it is said.
    """
    if not len(stamps):
        return torch.zeros(())
    norm = cast("LlamaModel", model.model.language_model).norm
    logits = F.linear(norm(hidden.float()), model.lm_head.weight)
    return F.cross_entropy(logits, stamps)


def links_missed(rows: Rows, trace: Trace) -> Tensor:
    """How little the heads that are told where to look do look there, summed over kinds; 0: all of their attention."""
    layers = len(trace.looks)
    total = torch.zeros(())
    for kind, links in rows.links.items():
        for depth, head in HEADS[kind]:
            total = total + links.missed(trace.looks[int(depth * layers)], head) / len(HEADS[kind])
    return total


def held_out_batches(tokenizer: PreTrainedTokenizerFast, clips: int) -> list[Batch]:
    """Clips of a split of their own, asked in the contract's words with the layouts that asking uses."""
    collate = Collator(tokenizer)
    albums = [clip_rows("check", seed, moments=4, plain=True) for seed in range(clips)]
    return [
        collate(part, [1.0] * sum(len(rows) for _, rows in part))
        for part in (albums[i : i + 6] for i in range(0, clips, 6))
    ]


@torch.no_grad()
def score(model: LlavaForConditionalGeneration, batches: Iterable[Batch]) -> dict[str, tuple[int, int]]:
    """Per family (right, asked): an answer is right when every one of its tokens is the most likely one."""
    tally: dict[str, list[bool]] = defaultdict(list)
    for batch in batches:
        table = visual_table(model, batch.frames)
        for rows in batch.groups:
            logits, labels = answer_logits(model, table, rows)
            right = rows.labels == IGNORE  # what predicts nothing is not wrong
            right[~right] = logits.argmax(-1) == labels
            for r, families in enumerate(rows.families):
                for number, family in enumerate(families, 1):
                    tally[family].append(bool(right[r][rows.blocks[r] == number].all()))
    return {family: (sum(marks), len(marks)) for family, marks in sorted(tally.items())}


def spoken(scores: dict[str, tuple[int, int]]) -> str:
    """ "what 41/98 (42 %) when ..." """
    return " ".join(
        f"{family} {right}/{asked} ({100 * right / asked:.0f} %)" for family, (right, asked) in scores.items()
    )
