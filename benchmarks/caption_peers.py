"""What the caption race asks, and who else is asked: clips, models, and what people write with transformers."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import report
import torch
from followup import random_llava
from numpy.typing import NDArray
from PIL import Image

import vidllm
from tests.tiny_models import _noise as redraw
from vidllm.ask import VideoModel
from vidllm.clip import Clip, PlanOptions, open_clip
from vidllm.model.pooling import pool
from vidllm.prompt import Message, Prompt, build_prompt
from vidllm.world.make import make_clips

PROMPT = "describe the video."
SEED = 90_000
"""Of the first world clip."""
NATURAL = report.VIDEOS / "natural"


@dataclass(frozen=True)
class Piece:
    """One clip to caption: a file, or a range of it in seconds."""

    path: Path
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class Work:
    """A piece with all that is settled before any clock runs: its frames, its prompt, what transformers is fed."""

    piece: Piece
    clip: Clip
    prompt: Prompt
    pixels: torch.Tensor
    """(T, 3, S, S), normalised: what the towers see."""


@dataclass(frozen=True)
class Look:
    """How a model is asked."""

    name: str
    model: VideoModel
    plan: PlanOptions
    longest: int
    """Tokens of a caption, at most."""


# ------------------------------------------------------------------------------------------------- what is asked


def world(count: int, folder: Path) -> list[Piece]:
    """Scripted clips of 10 to 60 s; those that lie there already are used."""
    return [Piece(path) for path in make_clips(count, SEED, folder)]


def natural(count: int, seconds: float = 10.0) -> list[Piece]:
    """Ranges of real videos, another range of the same file when there are fewer files than pieces."""
    files = sorted(path for path in NATURAL.iterdir() if path.suffix in (".mp4", ".mkv", ".webm", ".avi"))
    spans = {path: vidllm.probe(path).duration for path in files}
    rng = random.Random(0)
    pieces: list[Piece] = []
    while files and len(pieces) < count:
        for path in files[: count - len(pieces)]:
            start = round(rng.uniform(0, max(0.0, spans[path] - seconds)), 2)
            pieces.append(Piece(path, start, min(start + seconds, spans[path])))
    return pieces


def prepare(look: Look, pieces: Sequence[Piece]) -> list[Work]:
    """Everything known of each piece, opened by vidllm outside the clock."""
    lmm = look.model.lmm
    works = []
    for piece in pieces:
        plan = PlanOptions(**{**vars(look.plan), "start": piece.start, "end": piece.end})
        clip = open_clip(piece.path, PROMPT, lmm.spec, lmm.tokenizer, plan)
        prompt = build_prompt([Message("user", PROMPT, (clip,))], lmm.spec, lmm.tokenizer)
        assert prompt.rope_factor == 1.0, f"{piece.path}: transformers has no RoPE factor per request"
        shown = np.concatenate([visual.pixels for visual in prompt.visuals])
        works.append(Work(piece, clip, prompt, normalised(shown, look)))
    return works


def normalised(shown: NDArray[np.uint8], look: Look) -> torch.Tensor:
    """uint8 (T, S, S, 3) -> (T, 3, S, S) in the model's dtype."""
    mean, std = torch.tensor(look.model.spec.image_mean), torch.tensor(look.model.spec.image_std)
    return ((torch.from_numpy(shown) / 255 - mean) / std).to(look.model.lmm.dtype).permute(0, 3, 1, 2)


# ------------------------------------------------------------------------------------------------ transformers


class Transformers:
    """The same checkpoint in transformers' own class, and the loops people write around it."""

    def __init__(self, look: Look) -> None:
        from transformers import LlavaForConditionalGeneration

        self.look = look
        folder, dtype = look.model.spec.folder, look.model.lmm.dtype
        self.network: Any = LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype)
        self.pad = self.network.generation_config.pad_token_id or 0

    def load(self, work: Work) -> torch.Tensor:
        """Decode the file up to the last wanted frame, keep those wanted, resize and normalise; (T, 3, S, S)."""
        side = self.look.model.spec.image_size
        pictures = [Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC) for frame in wanted(work)]
        shown = np.stack([np.asarray(picture) for picture in pictures])
        assert normalised(shown, self.look).shape == work.pixels.shape
        return work.pixels

    @torch.inference_mode()
    def answer(self, works: Sequence[Work], pixels: Sequence[torch.Tensor]) -> list[tuple[int, ...]]:
        """Token ids of each caption, all prompts in one left-padded batch."""
        rows = [self._embeddings(work, shown) for work, shown in zip(works, pixels, strict=True)]  # (L, D) each
        longest = max(len(row) for row in rows)
        inputs = rows[0].new_zeros(len(rows), longest, rows[0].shape[1])
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for number, row in enumerate(rows):
            inputs[number, longest - len(row) :] = row
            mask[number, longest - len(row) :] = 1
        said = self.network.generate(
            inputs_embeds=inputs, attention_mask=mask, do_sample=False, max_new_tokens=self.look.longest,
            pad_token_id=self.pad,
        )  # fmt: skip
        return [self._trimmed(row) for row in said.tolist()]

    def _embeddings(self, work: Work, pixels: torch.Tensor) -> torch.Tensor:
        """The prompt's embeddings (L, D) with every frame's tokens in their places."""
        spec, model = self.look.model.spec, self.network.model
        states = model.vision_tower(pixels, output_hidden_states=True).hidden_states
        patches = torch.cat([states[layer][:, 1:] for layer in spec.vision_layers], dim=-1)
        strides = {visual.stride for visual in work.prompt.visuals}
        assert len(strides) == 1, "one stride for the whole clip, as transformers' own video models have"
        geometry: Any = spec.geometry
        shape = (geometry.rows, geometry.cols, strides.pop(), geometry.pooling)
        if spec.pool_before_projector:
            tokens = model.multi_modal_projector(pool(patches, *shape).flatten(1, 2))
        else:
            tokens = pool(model.multi_modal_projector(patches), *shape).flatten(1, 2)
        ids = torch.tensor(work.prompt.input_ids)
        holes = ids == spec.image_token_id
        embeddings: torch.Tensor = self.network.get_input_embeddings()(ids.masked_fill(holes, 0))
        embeddings[holes] = tokens.flatten(0, 1).to(embeddings)
        return embeddings

    def _trimmed(self, ids: list[int]) -> tuple[int, ...]:
        """Up to the end of the turn."""
        ends = self.network.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        cut = next((at for at, token in enumerate(ids) if token in ends), len(ids))
        return tuple(ids[:cut])


def wanted(work: Work) -> Iterator[NDArray[np.generic]]:
    """The frames the plan shows, as the common snippet takes them: seek to the range, decode on, keep those wanted."""
    times = [float(time) for time in work.clip.frames.pts_seconds]
    with av.open(str(work.piece.path)) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        first = float((stream.start_time or 0) * stream.time_base)
        if work.piece.start:
            container.seek(int((first + times[0]) / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            while times and frame.time - first >= times[0] - 1e-3:
                del times[0]
                yield frame.to_ndarray(format="rgb24")
            if not times:
                return
        for _ in times:  # a container whose clock starts elsewhere: its last frames are the file's last
            yield frame.to_ndarray(format="rgb24")


def batches(works: Sequence[Work], size: int) -> list[Sequence[Work]]:
    """Consecutive works, `size` together."""
    return [works[at : at + size] for at in range(0, len(works), size)]


def transformers_run(other: Transformers, works: Sequence[Work], size: int, *, loads: bool) -> list[tuple[int, ...]]:
    """Captions in static batches of `size`; with `loads` every file is opened, else its frames are at hand."""
    said = []
    for group in batches(works, size):
        pixels = [other.load(work) if loads else work.pixels for work in group]
        said += other.answer(group, pixels)
    return said


def look_of(name: str, dtype: str, folder: Path) -> Look:
    """The model and how it is asked."""
    if name == "built-in":
        model = vidllm.load(dtype=dtype, cache=None)
        return Look(name, model, PlanOptions(max_new_tokens=96), 96)
    made = random_llava(folder, side=96, patch=8, vision=(512, 6), text=(768, 10), context=2048, vocabulary=8000)
    make_talkative(made)
    model = vidllm.load(made, dtype=dtype, cache=None)
    count = sum(weight.numel() for weight in model.lmm.network.parameters()) / 1e6  # type: ignore[attr-defined]
    return Look(f"random, {count:.0f}M", model, PlanOptions(frames=16, stride=2, max_new_tokens=64), 64)


def make_talkative(folder: Path) -> None:
    """Redraw the weights so that answers vary and end now and then: the usual start says one word for ever.

    Words as long as what the layers add to them, attention that picks instead of averaging. Logits are about N(0, 1),
    the largest of 8,000 about 3.8; times 2.2, the end of the turn passes that at some 4 % of the tokens.
    """
    from transformers import LlavaForConditionalGeneration

    network: Any = redraw(LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32))
    with torch.no_grad():
        network.get_input_embeddings().weight *= 30.0
        for layer in network.model.language_model.layers:
            layer.self_attn.q_proj.weight *= 5.0
        network.lm_head.weight[network.config.text_config.eos_token_id] *= 2.2
    network.save_pretrained(folder)
