"""Which parts of a model learn, each at its own rate, and how an adapter takes a language model's place.

    vision_tower -> projector (newline, temporal) -> language_model, between its embeddings and its head

The stages of the papers are such sets of rates; configs/ has them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, get_args

from vidllm.errors import ConfigError
from vidllm.geometry import Newline

Part = Literal["vision_tower", "projector", "newline", "temporal", "language_model", "embeddings"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The learning rate of every part; at 0 it stays as it is."""

    vision_tower: float = 0.0
    """2e-6 beside a language model at 1e-5 in LLaVA-NeXT-Video."""
    projector: float = 0.0
    newline: float = 0.0
    """The token that closes frames or rows: the family's own, or a new one, see `Extra.newline`."""
    temporal: float = 0.0
    """What is added to a frame's tokens by its time, see `Extra.temporal_buckets`."""
    language_model: float = 0.0
    """Its layers; under LoRA the adapter in their place."""
    embeddings: float | None = None
    """Token table and output head. None: as the language model, and left alone under LoRA."""

    def __post_init__(self) -> None:
        for name, rate in self.rates(lora=False).items():
            if not 0 <= rate < 1:
                raise ValueError(f"learning rate {name} {rate:g} must be at least 0 and below 1")

    def rates(self, *, lora: bool) -> dict[Part, float]:
        """The rate of every part."""
        table = self.embeddings
        if table is None:
            table = 0.0 if lora else self.language_model
        known = {f.name: getattr(self, f.name) for f in fields(self)}
        return {part: table if part == "embeddings" else known[part] for part in PARTS}


@dataclass(frozen=True, kw_only=True)
class Lora:
    """A low-rank adapter in place of the language model's own matrices (arXiv 2106.09685)."""

    r: int = 16
    """Rank."""
    alpha: float = 32.0
    """The adapter's sum is scaled by alpha / r."""
    dropout: float = 0.0
    """Of the adapter's input, while it learns. Above 0, equal log-probs are not to be expected."""
    targets: tuple[str, ...] | None = None
    """Which matrices of the layers, such as `[q_proj, v_proj]`; None: every one, of linear attention and convolutions,
    too (peft's "all-linear"). A mixture's experts, which are one block of numbers, and what chooses among them stay as
    they are."""

    def __post_init__(self) -> None:
        if self.r < 1 or self.alpha <= 0:
            raise ValueError(f"LoRA needs r of at least 1 and alpha above 0, not r={self.r}, alpha={self.alpha:g}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"LoRA dropout {self.dropout:g} must be at least 0 and below 1")
        if self.targets is not None and not self.targets:
            raise ValueError("LoRA needs at least one of the language model's matrices as target, such as q_proj")


@dataclass(frozen=True, kw_only=True)
class Extra:
    """Parts a model is given that its family does not have; made new where the folder has none, and saved with it."""

    temporal_buckets: int = 0
    """So many learned vectors for the times of frames (as Video-LLaVA's temporal positions); 0 for none."""
    bucket_seconds: float = 1.0
    """Seconds of video that share one of them."""
    newline: Newline | None = None
    """Where newline tokens stand in videos; None as the model has it."""

    def __post_init__(self) -> None:
        if self.temporal_buckets < 0 or self.bucket_seconds <= 0:
            raise ValueError("temporal_buckets must be at least 0 and bucket_seconds above 0")


@dataclass(frozen=True, kw_only=True)
class LearnerOptions:
    """What learns, and in which numbers. Raises ConfigError at birth."""

    parts: Parts = field(default_factory=Parts)
    """The learning rate of every part; at 0 it stays as it is."""
    lora: Lora | None = None
    """An adapter in place of the language model's matrices; its rate is parts.language_model."""
    extra: Extra = field(default_factory=Extra)
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What sums are computed in. What learns is kept in float32 either way; what is frozen, in this."""
    quantize: Literal["int4"] | None = None
    """Under `lora`: the language model's own matrices in so few bits while the adapter learns (QLoRA, arXiv
    2305.14314), which is put on the whole ones when it is asked."""
    gradient_checkpointing: bool = False
    """Keep only what goes between layers and compute the rest again: less memory, a third more work."""
    head_only: bool = True
    """Logits of the positions that predict a target only; False: of all positions, as elsewhere."""

    def __post_init__(self) -> None:
        rates = self.parts.rates(lora=self.lora is not None)
        if self.quantize is not None and self.lora is None:
            raise ConfigError(f"quantize is {self.quantize}, and matrices of so few bits do not learn; say lora={{}} "
                              "for an adapter beside them, or leave it out")  # fmt: skip
        if self.lora is not None and not rates["language_model"]:
            raise ConfigError("an adapter is asked for and no language_model rate; add for example "
                              "parts.language_model=1e-4")  # fmt: skip
        if self.extra.temporal_buckets and not rates["temporal"]:
            raise ConfigError("extra.temporal_buckets makes vectors that are nothing before they learn, and they have "
                              "no rate; add for example parts.temporal=1e-4")  # fmt: skip
        if not any(rates.values()):
            raise ConfigError("nothing learns: give a part a rate, for example parts.projector=1e-3")

    @property
    def whole(self) -> list[Part]:
        """The parts whose own weights learn: not those that an adapter learns for."""
        rates = self.parts.rates(lora=self.lora is not None)
        return [part for part in PARTS if rates[part] and (part != "language_model" or self.lora is None)]


_WORDS: Mapping[str, Part] = {
    "patch_merger": "projector", "image_newline": "newline", "newline": "newline", "temporal": "temporal",
    "multi_modal_projector": "projector", "merger": "projector", "deepstack_merger_list": "projector",
    "connector": "projector", "projector": "projector", "embed_vision": "projector",
    "vision_tower": "vision_tower", "visual": "vision_tower", "vision_model": "vision_tower",
    "audio_tower": "vision_tower", "embed_audio": "vision_tower",  # of its weights that nothing seen ever teaches
    "embed_tokens": "embeddings", "embed_tokens_per_layer": "embeddings", "lm_head": "embeddings",
    "language_model": "language_model", "text_model": "language_model",
}  # fmt: skip
"""What families call them; the first word that is in a parameter's name decides: a projector may stand in a tower."""


_TOWER = re.compile("(vision|visual|image).*(tower|model|encoder)")
"""What most call theirs that are not named above."""


def part_of(name: str) -> Part:
    """The part a parameter of the learner belongs to, by its full name; what is none else stands between the tower and
    the language model."""
    words = set(name.split("."))
    for word, part in _WORDS.items():
        if word in words:
            return part
    return "vision_tower" if any(_TOWER.fullmatch(word) for word in words) else "projector"
