"""ModelSpec: what the planning rooms and the prompt know about a checkpoint, and the JSON files it is read from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vidllm.budget import Fit
from vidllm.config import from_mapping
from vidllm.errors import ConfigError, IncompleteModel
from vidllm.geometry import Geometry, NativeGeometry, Newline, Pooling

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Kind = Literal["composable", "native"]
Stamp = Literal["none", "interleaved", "sentence"]
Cls = Literal["none", "drop", "keep"]
Cut = Literal["padded", "stretched", "covered", "bare"]
Json = Mapping[str, Any]
Mean = tuple[float, float, float]

CLIP_MEAN: Mean = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Mean = (0.26862954, 0.26130258, 0.27577711)
HALF: Mean = (0.5, 0.5, 0.5)
"""SigLIP's mean and standard deviation."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything the planning rooms and the prompt need to know about one checkpoint.

    Composable: `geometry` is a Geometry and vidllm owns the road from vision tower to language model.
    Native: `geometry` is a NativeGeometry and the family lays out frames (strides are 1).
    """

    folder: Path
    """Where config.json, tokenizer.json and the weights lie."""
    model_type: str
    """`model_type` of config.json, e.g. "llava"; "pixtral" of a LLaVA with that tower, which is another family."""
    text_type: str
    """`model_type` of its language model, e.g. "llama"."""
    kind: Kind
    geometry: Geometry | NativeGeometry
    context: int
    """Positions the language model can tell apart as it is configured (a fixed RoPE factor included)."""
    rope_scalable: bool
    """Whether linear position scaling applies on top (rotary positions, one axis)."""
    image_token: str
    """Placeholder of every visual token, image or video frame (one added token of the tokenizer)."""
    image_token_id: int
    image_marker: str | None = None
    """What the family's chat template prints for a picture, if that is another token."""
    video_token: str | None = None
    """Placeholder the family's chat template prints for a video, if it has its own."""
    video_token_id: int | None = None
    """What every visual token of a video is, if it is not `image_token_id`."""
    image_size: int = 0
    """Side of the square the vision tower takes, pixels; 0 for Qwen, whose frames have any size."""
    patch_size: int = 14
    """Side of one patch, pixels."""
    cls: Cls = "none"
    """Vision tower's class token: it has "none", it has one to "drop", or one that still images "keep"."""
    vision_layers: tuple[int, ...] = (-2,)
    """Indices into the tower's hidden states (vision_feature_layer); more than one are concatenated (VipLLaVA).
    Empty: what the tower gives out at last."""
    row_ends: tuple[int, ...] = ()
    """Pixtral's ids behind every row of a picture's tokens, and behind the last one instead; none for others."""
    shuffle: int = 1
    """InternVL's pixel shuffle: so many patches a side stand side by side in one token's features. Others join them in
    the projector."""
    pool_before_projector: bool = True
    """Pool features before or after the projector."""
    fit: Fit = "pad"
    """How a frame that is not square meets the square tile."""
    resample: int = 3
    """The filter that scales it, by Pillow's number: 3 is bicubic, 2 bilinear."""
    image_mean: Mean = CLIP_MEAN
    image_std: Mean = CLIP_STD
    stamp: Stamp = "interleaved"
    """How frame times are told: not at all, as text before every frame, or in LLaVA-Video's sentence."""
    stamp_decimals: int | None = None
    """Decimals of interleaved times; None: none unless frames are closer than a second."""
    frame_text: str = "[{time}] {image}\n"
    """One frame under interleaved stamps; `{time}` is m:ss, `{image}` its `picture_text`."""
    bare_frame_text: str = "{image}"
    """One frame without a stamp of its own; `{number}` counts from 1."""
    picture_text: str = "{image}"
    """One picture, still or frame; `{image}` is its visual tokens, `{tiles}` what stands before those of its last tile.
    """
    tile_text: str = ""
    """One of `{tiles}`, counted by `{number}` from 1, or by `{row}` and `{col}`; empty: all tiles of a picture are one
    run."""
    last_tile_text: str = ""
    """What ends `{tiles}` where there are several, counted as they are."""
    group_text: str = ""
    """One group of frames in a native family that dates each: `{first}` and `{middle}` are its times in seconds,
    `{second}` the first without its fraction, `{clock}` that as mm:ss, `{image}` and `{video}` the tokens."""
    group_joint: str = ""
    """What stands between two of them."""
    media_end_lines: bool = True
    """Whether the chat template ends the line of every medium; if not, a video ends that of its last frame itself."""
    two_way: bool = False
    """Whether the tokens of one picture see each other in both directions; all the rest is read from left to right."""
    far_two_way: bool = True
    """Whether they do in layers without a window, too."""
    all_two_way: bool = False
    """Whether they see those of all other pictures of a prompt so as well."""
    begins: str = ""
    """What every text begins with, whether its chat template prints it or not."""
    default_frames: int = 32
    """Most frames taken when the user names no number."""
    fine_stride: int = 2
    coarse_stride: int = 4
    uniform_stride: int = 2
    image_grids: tuple[tuple[int, int], ...] = ()
    """Resolutions (height, width) in pixels that a still image is cut into tiles from; empty: one square tile."""
    image_cut: Cut = "padded"
    """How it meets the resolution: centred with its padding cut away (LLaVA-NeXT), stretched to that of its aspect
    (InternVL), to that which covers it with the least (Command A Vision), or as InternVL's without a thumbnail."""
    uncut_pixels: float = 0.0
    """A still picture of no more pixels, its sides rounded to whole tokens, is not cut into tiles."""
    image_max_tiles: int | None = None
    """LLaVA-OneVision's anyres_max_N: shrink still-image features above N tiles' worth; None: never."""
    dialogue: bool = True
    """Whether it was taught dialogues; if not, a chat shows it every question alone, right behind the video."""
    as_said: bool = False
    """Whether earlier answers stand in a dialogue as the model said them, end token and all (vidllm teaches it so);
    if not, as the chat template prints them."""

    @property
    def one_run(self) -> bool:
        """Whether all visual tokens of a video stand in one run, with nothing between its frames."""
        return self.model_type in ("qwen2_vl", "qwen2_5_vl")

    @property
    def visual_ids(self) -> frozenset[int]:
        """Ids that stand for what is seen, what ends its rows included."""
        ids = {self.image_token_id, self.video_token_id, *self.row_ends}
        return frozenset(token for token in ids if token is not None)

    @property
    def tiles_have_newlines(self) -> bool:
        """Whether still images end with learned newlines: those whose tiles are joined to one picture do."""
        return bool(self.image_grids) and self.image_cut == "padded"

    @property
    def projector_joins(self) -> bool:
        """Whether the projector makes one token of several patches, so that only what is behind it can be pooled."""
        rows = self.geometry.rows if isinstance(self.geometry, Geometry) else 0
        return not self.pool_before_projector and 0 < rows * self.shuffle < self.image_size // self.patch_size

    @property
    def newline(self) -> Newline:
        """The geometry's newline mode; "none" for native."""
        return self.geometry.newline if isinstance(self.geometry, Geometry) else "none"


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """What a folder's `vidllm.json` may say; None leaves the family's own choice."""

    context: int | None = None
    fit: Fit | None = None
    stamp: Stamp | None = None
    stamp_decimals: int | None = None
    frame_text: str | None = None
    default_frames: int | None = None
    fine_stride: int | None = None
    coarse_stride: int | None = None
    uniform_stride: int | None = None
    pool_before_projector: bool | None = None
    pooling: Pooling | None = None
    newline: Newline | None = None
    dialogue: bool | None = None
    as_said: bool | None = None

    def __post_init__(self) -> None:
        if self.frame_text is not None and self.frame_text.count("{image}") != 1:
            raise ValueError("frame_text must hold {image} exactly once, and may hold {time}")
        for name in ("context", "default_frames", "fine_stride", "coarse_stride", "uniform_stride"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.stamp_decimals is not None and not 0 <= self.stamp_decimals <= MOST_DECIMALS:
            raise ValueError(f"stamp_decimals must be from 0 to {MOST_DECIMALS}, got {self.stamp_decimals}")


MOST_DECIMALS = 6
"""Of a second: finer than any clip's clock."""
OF_COMPOSABLE = (
    "pooling", "newline", "pool_before_projector", "fit", "stamp", "stamp_decimals", "frame_text", "fine_stride",
    "coarse_stride", "uniform_stride",
)  # fmt: skip
"""Overrides that a family which lays out its own frames has no use for."""


def load_tokenizer(folder: Path) -> Tokenizer:
    """The folder's `tokenizer.json` without transformers; IncompleteModel when it is missing or no tokenizer."""
    path = (folder / "tokenizer.json").resolve()
    try:
        return _cached_tokenizer(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise IncompleteModel(f"{folder}: no tokenizer.json; save the model's tokenizer there") from error


@lru_cache(maxsize=4)
def _cached_tokenizer(path: Path, modified: int) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises bare Exception for anything it can not parse
        raise IncompleteModel(f"{path}: no readable tokenizer ({error}); save it again") from error
    # Gemma 4's file holds it as a word like others, and its processor makes it one token then.
    tokenizer.add_special_tokens([word for word in ("<|video|>",) if tokenizer.token_to_id(word) is not None])
    tokenizer.no_padding()  # whoever trained it may have left a length in the file; a prompt is never cut to it
    tokenizer.no_truncation()
    return tokenizer


def stop_ids(folder: Path | str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Every token id that ends an answer: those of generation_config.json, else the tokenizer's end of sequence, else
    those config.json names."""
    generation, texts, config = (
        known_json(Path(folder, f"{name}.json")) for name in ("generation_config", "tokenizer_config", "config")
    )
    text = texts.get("eos_token")
    text = text.get("content") if isinstance(text, dict) else text
    token = tokenizer.token_to_id(text) if isinstance(text, str) else None
    inner = config.get("text_config") or {}
    for named in (generation.get("eos_token_id"), token, config.get("eos_token_id"), inner.get("eos_token_id")):
        ids = named if isinstance(named, list) else [] if named is None else [named]
        if not all(type(one) is int for one in ids):
            raise IncompleteModel(f"{folder}: eos_token_id is {named!r}; a whole number or a list of them is needed")
        if ids:
            return tuple(ids)
    return ()


def known_json(path: Path) -> Json:
    """`read_json` for what every turn of every row asks for: read again when the file changed; empty for no file."""
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        changed = 0
    return _known_json(path, changed)


@lru_cache(maxsize=16)
def _known_json(path: Path, changed: int) -> Json:
    return read_json(path) or {}


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None when there is no such file, IncompleteModel when it holds no object."""
    if not os.path.lexists(path):  # a link that leads nowhere is a file that was lost
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise IncompleteModel(f"{path}: no readable JSON ({error}); download the model again") from error
    if not isinstance(value, dict):
        raise IncompleteModel(f"{path}: a JSON object is needed; download the model again")
    return value


def override(spec: ModelSpec, path: Path) -> ModelSpec:
    """`spec` as the folder's vidllm.json at `path` changes it; unchanged when there is none."""
    values = read_json(path)
    if values is None:
        return spec
    said = asdict(from_mapping(Overrides, values, where=str(path)))
    said = {key: value for key, value in said.items() if value is not None}
    vain = [key for key in OF_COMPOSABLE if key in said]
    if isinstance(spec.geometry, Geometry):
        if said.get("pool_before_projector") and spec.projector_joins:
            raise ConfigError(
                f"{path}: pool_before_projector can not be set for {spec.model_type}, whose projector joins patches"
            )
        grid = {key: said.pop(key) for key in ("pooling", "newline") if key in said}
        return replace(spec, **said, geometry=replace(spec.geometry, **grid))
    if vain:
        raise ConfigError(f"{path}: {', '.join(vain)} can not be set for {spec.model_type}, which lays out its frames")
    return replace(spec, **said)
