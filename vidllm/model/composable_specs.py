"""config.json -> ModelSpec of LLaVA and its relatives: every frame one square tile, whose tokens vidllm pools."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vidllm.errors import IncompleteModel, UnsupportedModel
from vidllm.geometry import Geometry
from vidllm.model.anyres import canvases
from vidllm.model.settings import (
    class_token,
    context_of,
    normalisation,
    processor_settings,
    rope_kind,
    token_id_of,
    token_text,
    tower_layers,
    whole,
)
from vidllm.model.spec import CLIP_MEAN, CLIP_STD, Json, ModelSpec, read_json
from vidllm.model.templates import special_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_TOWERS: dict[str, tuple[int, int, bool]] = {
    "clip_vision_model": (224, 32, True),
    "siglip_vision_model": (224, 16, False),
    "internvl_vision": (448, 14, True),
}
"""Vision tower -> image size and patch size its config class falls back to, and whether it has a class token."""
_TOWER_LAYERS = 12
"""Of the first two, where the config leaves them out."""
_LLAVA_TOWER = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14, "num_hidden_layers": 24}
_ONEVISION_TOWER = {"model_type": "siglip_vision_model", "image_size": 384, "patch_size": 14, "num_hidden_layers": 26}


def _llava(folder: Path, config: Json, tokenizer: Tokenizer, *, default_tower: Json = _LLAVA_TOWER,
           strategy: str = "default", layers: int | list[int] = -2, image_token: int = 32000) -> ModelSpec:
    """What all LLaVA-shaped families share, LLaVA's own defaults; the geometry pools by average and has no newline."""
    vision = config.get("vision_config") or default_tower
    tower = str(vision.get("model_type", default_tower["model_type"]))
    if tower not in _TOWERS:
        raise UnsupportedModel(f"{folder}: no adapter for vision tower {tower!r}; supported are {', '.join(_TOWERS)}")
    image_size, patch_size, has_cls = _TOWERS[tower]
    image_size, patch_size = whole(vision, "image_size", image_size), whole(vision, "patch_size", patch_size)
    text = config.get("text_config") or {}
    token_id = config.get("image_token_index", config.get("image_token_id", image_token))
    chosen = config.get("vision_feature_layer", config.get("vision_feature_layers", layers))
    mean, std = normalisation(processor_settings(folder, config, "image"), CLIP_MEAN, CLIP_STD)
    return ModelSpec(
        folder=folder, model_type=config["model_type"], text_type=str(text.get("model_type", "llama")),
        kind="composable", geometry=Geometry(rows=image_size // patch_size, cols=image_size // patch_size),
        context=context_of(folder, text), rope_scalable=True,
        image_token=token_text(folder, tokenizer, token_id), image_token_id=token_id,
        image_size=image_size, patch_size=patch_size,
        cls=class_token(folder, has_cls, config.get("vision_feature_select_strategy", strategy)),
        vision_layers=tower_layers(folder, chosen, whole(vision, "num_hidden_layers", _TOWER_LAYERS)),
        image_mean=mean, image_std=std,
    )


_NEXT_GRIDS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def _llava_next(folder: Path, config: Json, tokenizer: Tokenizer, image_token: int = 32000) -> ModelSpec:
    spec = _llava(folder, config, tokenizer, image_token=image_token)
    return replace(spec, image_grids=_grids(folder, config, _NEXT_GRIDS, spec.image_size))


def _llava_next_video(folder: Path, config: Json, tokenizer: Tokenizer) -> ModelSpec:
    spec = _llava_next(folder, config, tokenizer, image_token=32001)
    pooling, stride = config.get("spatial_pool_mode", "average"), whole(config, "spatial_pool_stride", 2)
    if pooling not in ("average", "max"):
        raise UnsupportedModel(f"{folder}: spatial_pool_mode {pooling!r} is not supported; average and max are")
    video_id = config.get("video_token_index", config.get("video_token_id", 32000))
    assert isinstance(spec.geometry, Geometry)
    return replace(
        spec, geometry=replace(spec.geometry, pooling=pooling), uniform_stride=stride, fine_stride=stride,
        coarse_stride=2 * stride, video_token=token_text(folder, tokenizer, video_id), video_token_id=video_id,
        stamp="sentence",
    )


_ONEVISION_SIDES = range(384, 2304 + 1, 384)


def _llava_onevision(folder: Path, config: Json, tokenizer: Tokenizer) -> ModelSpec:
    spec = _llava(folder, config, tokenizer, default_tower=_ONEVISION_TOWER, strategy="full", layers=-1,
                       image_token=151646)
    every = [[height, width] for height in _ONEVISION_SIDES for width in _ONEVISION_SIDES]
    aspect = str(config.get("vision_aspect_ratio", "anyres_max_9"))
    video_id = config.get("video_token_index", config.get("video_token_id", 151647))
    assert isinstance(spec.geometry, Geometry)
    return replace(
        spec, geometry=replace(spec.geometry, pooling="bilinear", newline="one"), fit="stretch", stamp="sentence",
        pool_before_projector=False, image_grids=_grids(folder, config, every, spec.image_size),
        image_max_tiles=int(aspect.removeprefix("anyres_max_")) if aspect.startswith("anyres_max_") else None,
        video_token=token_text(folder, tokenizer, video_id), video_token_id=video_id,
    )


def _grids(folder: Path, config: Json, default: list[list[int]], tile: int) -> tuple[tuple[int, int], ...]:
    # The processor decides how a picture is cut; config.json only repeats it for the model.
    pinpoints = (processor_settings(folder, config, "image").get("image_grid_pinpoints")
                 or config.get("image_grid_pinpoints") or default)
    if any(side % tile or side < tile for size in pinpoints for side in size):
        raise IncompleteModel(f"{folder}: image_grid_pinpoints {pinpoints} are no multiples of the {tile} px tile")
    return tuple((height, width) for height, width in pinpoints)


_INTERNVL_TOWER = {"model_type": "internvl_vision", "image_size": 448, "patch_size": 14, "num_hidden_layers": 24}


def _internvl(folder: Path, config: Json, tokenizer: Tokenizer) -> ModelSpec:
    """Frames of one tile, numbered, each between <img> and </img>; pictures cut into stretched tiles."""
    vision = {**_INTERNVL_TOWER, **(config.get("vision_config") or {})}
    squares = {key: _side(folder, vision[key]) for key in ("image_size", "patch_size")}
    spec = _llava(folder, {**config, "vision_config": {**vision, **squares}}, tokenizer,
                       default_tower=_INTERNVL_TOWER, layers=-1, image_token=151667)
    if not vision.get("use_mean_pooling", True):
        raise UnsupportedModel(f"{folder}: no adapter for a vision tower that normalises its last layer "
                               "(use_mean_pooling is false)")  # fmt: skip
    shuffle = round(1 / config.get("downsample_ratio", 0.5))
    images = processor_settings(folder, config, "image")
    least, most = whole(images, "min_patches", 1), whole(images, "max_patches", 12)
    return replace(
        _joined(spec, shuffle, "downsample_ratio", least, most), shuffle=shuffle, stamp="sentence",
        picture_text="<img>{image}</img>", bare_frame_text="Frame{number}: {image}\n",
    )


def _joined(spec: ModelSpec, factor: int, key: str, least: int, most: int) -> ModelSpec:
    """`spec` with factor x factor patches joined to one token, as `key` of config.json says, and pictures stretched
    over `least` to `most` tiles."""
    assert isinstance(spec.geometry, Geometry)
    if factor < 1 or spec.geometry.rows % factor:
        raise IncompleteModel(
            f"{spec.folder}: {spec.geometry.rows} patches a side are no multiple of {factor}, by which config.json's "
            f"{key} joins them; download the model again"
        )
    side = spec.geometry.rows // factor
    return replace(
        spec, geometry=replace(spec.geometry, rows=side, cols=side), pool_before_projector=False, fit="stretch",
        fine_stride=1, uniform_stride=1, coarse_stride=2, image_cut="stretched",
        image_grids=tuple((rows * spec.image_size, cols * spec.image_size) for rows, cols in canvases(least, most)),
    )


def _side(folder: Path, said: int | list[int]) -> int:
    """The side of a square that is written as one number or as two."""
    sides = {said} if isinstance(said, int) else set(said)
    if len(sides) != 1:
        raise UnsupportedModel(f"{folder}: its vision tower looks at oblongs of {said}; squares are supported")
    return sides.pop()


def _gemma3(folder: Path, config: Json, tokenizer: Tokenizer) -> ModelSpec:
    """Patches averaged to mm_tokens_per_image, each picture on lines of its own. Its positions are not stretched: most
    layers see a window and never far, and the others' own factor is in the checkpoint."""
    text = {"model_type": "gemma3_text", **(config.get("text_config") or {})}
    if (turning := rope_kind(text)) in ("dynamic", "longrope"):
        raise UnsupportedModel(f"{folder}: no adapter for gemma3 with positions that are {turning}")
    spec = _llava(folder, {**config, "text_config": text}, tokenizer,
                  default_tower={"model_type": "siglip_vision_model"}, strategy="full", layers=-1, image_token=262144)
    assert isinstance(spec.geometry, Geometry)
    patches, tokens = spec.geometry.rows, whole(config, "mm_tokens_per_image", 256)
    side = math.isqrt(tokens)
    if side * side != tokens or patches % side:
        raise IncompleteModel(
            f"{folder}: {patches} patches a side can not be averaged to config.json's mm_tokens_per_image {tokens}; "
            "download the model again"
        )
    begin, end = (token_text(folder, tokenizer, config.get(f"{name}_token_index", usual))
                  for name, usual in (("boi", 255999), ("eoi", 256000)))  # fmt: skip
    images = processor_settings(folder, config, "image")
    mean, std = normalisation(images, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return replace(
        spec, geometry=replace(spec.geometry, rows=side, cols=side), vision_layers=(), rope_scalable=False,
        two_way=True, fit="stretch", resample=whole(images, "resample", 2), image_mean=mean, image_std=std,
        fine_stride=1, uniform_stride=1, coarse_stride=2, image_marker=begin,
        picture_text=f"\n\n{begin}{{image}}{end}\n\n", frame_text="[{time}]{image}", media_end_lines=False,
    )


_AYA_WORDS = {
    "image_token": "<image>", "start_of_img_token": "<|START_OF_IMG|>", "end_of_img_token": "<|END_OF_IMG|>",
    "tile_token": "TILE", "tile_global_token": "TILE_GLOBAL",
}  # fmt: skip


def _aya_vision(folder: Path, config: Json, tokenizer: Tokenizer) -> ModelSpec:
    """Frames of one tile; pictures cut into stretched tiles, each behind its name."""
    tower = {"image_size": 384, "patch_size": 14, "num_hidden_layers": 26}
    images, said = processor_settings(folder, config, "image"), read_json(folder / "processor_config.json") or {}
    spec = _cohere(folder, config, tokenizer, tower, whole(images, "min_patches", 1), whole(images, "max_patches", 12))
    marker, start, end, tile, last = (str(said.get(name, word)) for name, word in _AYA_WORDS.items())
    for token in (start, end):
        token_id_of(folder, tokenizer, token)
    return replace(
        spec, image_marker=marker, tile_text=f"{tile}_{{number}}{{image}}",
        picture_text=f"{start}{{tiles}}{last}{{image}}{end}",
    )


_COMMAND_WORDS = {
    "boi_token": "<|START_OF_IMG|>", "img_line_break_token": "<|IMG_LINE_BREAK|>", "eoi_token": "<|END_OF_IMG|>"
}  # fmt: skip


def _cohere2_vision(folder: Path, config: Json, tokenizer: Tokenizer) -> ModelSpec:
    """Command A Vision: as Aya Vision, with nameless tiles of another grid and a tower that normalises its end."""
    tower = {"image_size": 512, "patch_size": 16, "num_hidden_layers": 27}
    images, said = processor_settings(folder, config, "image"), special_tokens(folder)
    most = whole(images, "max_patches", 12) if images.get("crop_to_patches", True) else 1
    spec = _cohere(folder, config, tokenizer, tower, 1, most)
    start, line, end = (said.get(name, word) for name, word in _COMMAND_WORDS.items())
    for token in (start, line, end):
        token_id_of(folder, tokenizer, token)
    return replace(
        spec, vision_layers=(), image_cut="covered", tile_text=f"{{image}}{line}",
        picture_text=f"{start}{{tiles}}{{image}}{line}{end}",
    )


def _cohere(folder: Path, config: Json, tokenizer: Tokenizer, tower: Json, least: int, most: int) -> ModelSpec:
    """What Cohere's two have in common: patches are joined in the projector."""
    text = {"model_type": "cohere2", **(config.get("text_config") or {})}
    spec = _llava(
        folder, {**config, "text_config": text}, tokenizer, strategy="full", layers=-1, image_token=255036,
        default_tower={"model_type": "siglip_vision_model", **tower},
    )  # fmt: skip
    joined = _joined(spec, whole(config, "downsample_factor", 2), "downsample_factor", least, most)
    # Layers of cohere2 have rotary positions and a short window, or neither: there is nothing to stretch.
    return replace(joined, rope_scalable=spec.text_type != "cohere2", media_end_lines=False)


COMPOSABLE: Mapping[str, Callable[[Path, Json, Tokenizer], ModelSpec]] = {
    "llava": _llava,
    "vipllava": partial(_llava, layers=[-2, -5, -8, -11, 6]),
    "llava_next": _llava_next,
    "llava_next_video": _llava_next_video,
    "llava_onevision": _llava_onevision,
    "internvl": _internvl,
    "gemma3": _gemma3,
    "aya_vision": _aya_vision,
    "cohere2_vision": _cohere2_vision,
}
"""model_type -> who reads its configuration."""
