"""What each Hugging Face family is, read from its JSON files alone: no torch, no transformers, no weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vidllm.budget import Fit, Geometry, NativeGeometry, Newline

Kind = Literal["composable", "native"]
Stamp = Literal["none", "interleaved", "sentence"]
Cls = Literal["none", "drop", "keep"]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything the planning rooms and the prompt need to know about one checkpoint.

    Composable: `geometry` is a Geometry and vidllm owns the road from vision tower to language model.
    Native: `geometry` is a NativeGeometry and the family's processor lays out frames (strides are 1).
    """

    folder: Path
    """Where config.json, tokenizer.json and the weights lie."""
    model_type: str
    """`model_type` of config.json, e.g. "llava"."""
    kind: Kind
    geometry: Geometry | NativeGeometry
    context: int
    """Positions the language model was trained on (before any scaling asked for here)."""
    rope_scalable: bool
    """Whether linear position scaling applies (rotary positions, one axis)."""
    image_size: int
    """Side of the square the vision tower takes, pixels; 0 for native."""
    patch_size: int
    """Side of one patch, pixels."""
    cls: Cls
    """Vision tower's class token: it has "none", it has one to "drop", or one that still images "keep"."""
    vision_layers: tuple[int, ...]
    """Indices into the tower's hidden states (vision_feature_layer); more than one are concatenated (VipLLaVA)."""
    pool_before_projector: bool
    """Pool features before (HF LLaVA-NeXT-Video) or after the projector."""
    fit: Fit
    """How a frame that is not square meets the square tile."""
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    stamp: Stamp
    """How frame times are told: not at all, "m:ss " before every frame, or LLaVA-Video's sentence."""
    stamp_decimals: int | None
    """Decimals of interleaved stamps; None: none unless frames are closer than a second."""
    default_frames: int
    """Most frames taken when the user names no number."""
    fine_stride: int
    coarse_stride: int
    uniform_stride: int
    image_token: str
    """Placeholder of every visual token, image or video frame (one added token of the tokenizer)."""
    image_token_id: int
    video_token: str | None
    """Placeholder the family's chat template prints for a video, if it has its own."""
    image_grids: tuple[tuple[int, int], ...]
    """AnyRes resolutions (height, width) in pixels for still images; empty: one square tile."""
    image_max_tiles: int | None
    """LLaVA-OneVision's anyres_max_N: shrink still-image features above N tiles' worth; None: never."""

    @property
    def newline(self) -> Newline:
        """The geometry's newline mode; "none" for native."""
        return self.geometry.newline if isinstance(self.geometry, Geometry) else "none"
