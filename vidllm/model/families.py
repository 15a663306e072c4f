"""How each Hugging Face family names its parts: config.json -> ModelSpec. No torch, no transformers, no weights.

    composable   llava  vipllava  llava_next  llava_next_video  llava_onevision  internvl
                 vidllm owns the road from vision tower to language model: per-frame pooling, newlines, RoPE factor
    native       qwen2_vl  qwen2_5_vl  qwen3_vl  qwen3_vl_moe  smolvlm
                 the family lays out its frames; the budget works through number of frames and pixels

A folder may carry `vidllm.json`, whose keys are the fields of `spec.Overrides`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vidllm.budget import Geometry, NativeGeometry, Newline, Pooling
from vidllm.errors import IncompleteModel, ModelNotFound, NotAVisionModel, UnsupportedModel
from vidllm.model.anyres import canvases
from vidllm.model.fingerprint import PEFT_FILE
from vidllm.model.resolve import resolve_model as resolve_model
from vidllm.model.spec import CLIP_MEAN, CLIP_STD, Cls, Json, Mean, override, read_json
from vidllm.model.spec import ModelSpec as ModelSpec
from vidllm.model.spec import load_tokenizer as load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def read_spec(folder: Path) -> ModelSpec:
    """Describe the checkpoint in `folder` from config.json, tokenizer.json, the processor's JSON and vidllm.json.

    Raises:
        ModelNotFound: no such folder or no config.json in it.
        NotAVisionModel: a text-only checkpoint.
        UnsupportedModel: a vision model of a family (or with a tower) that has no adapter.
        IncompleteModel: tokenizer or processor files are missing, or contradict config.json.
        ConfigError: vidllm.json holds an unknown key or a value of the wrong type.
    """
    config = read_json(folder / "config.json")
    if config is None and (folder / PEFT_FILE).is_file():
        raise IncompleteModel(
            f"{folder}: an adapter without the model it belongs to; put it into that model (peft: merge_and_unload, "
            "then save_pretrained) and give the folder that makes"
        )
    if config is None:
        raise ModelNotFound(f"{folder}: no config.json; give a Hugging Face model folder or a Hub id")
    reader = _READERS.get(str(config.get("model_type")))
    if reader is None:
        raise _refusal(folder, config)
    if not (folder / "tokenizer.json").is_file():
        raise IncompleteModel(
            f"{folder}: no tokenizer.json; save the model's tokenizer there "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(folder))"
        )
    try:
        spec = reader(folder, config, load_tokenizer(folder))
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        raise IncompleteModel(
            f"{folder}: its JSON files are no {config['model_type']} configuration ({error}); download the model again"
        ) from error
    return override(spec, folder / "vidllm.json")


def fetch_model(name: str | None) -> Path:
    """The folder of model `name`, for who will load it: gigabytes are fetched from the Hub only once its small files
    say that it can be used. Raises as `resolve_model` and `read_spec`.
    """
    read_spec(resolve_model(name, weights=False))
    return resolve_model(name)


def bare_spec(
    rows: int, cols: int, context: int, *, pooling: Pooling = "average", newline: Newline = "none"
) -> ModelSpec:
    """A model that is only a grid and a context, for planning without a checkpoint: no stamps, LLaVA's strides."""
    return ModelSpec(
        folder=Path(), model_type="none", text_type="none", kind="composable",
        geometry=Geometry(rows=rows, cols=cols, pooling=pooling, newline=newline), context=context,
        rope_scalable=True, image_token="<image>", image_token_id=0, stamp="none",
    )


def _refusal(folder: Path, config: Json) -> NotAVisionModel | UnsupportedModel | IncompleteModel:
    kind = config.get("model_type")
    if kind is None:
        return IncompleteModel(f"{folder}/config.json: names no model_type; give a Hugging Face model folder")
    if any("vision" in key or "visual" in key or key == "image_token_id" for key in config):
        return UnsupportedModel(f"{folder}: no adapter for family {kind!r}; supported are {', '.join(_READERS)}")
    return NotAVisionModel(f"{folder}: {kind!r} is a text-only model; give one that sees ({', '.join(_READERS)})")


def _processor(folder: Path, config: Json, part: Literal["image", "video"]) -> Json:
    """Settings of the image or video processor, from where transformers takes them: what it saves today stands in
    processor_config.json, beside files that older releases left there."""
    own = {"image": "preprocessor_config.json", "video": "video_preprocessor_config.json"}[part]
    nested = (read_json(folder / "processor_config.json") or {}).get(f"{part}_processor")
    settings = nested or read_json(folder / own)
    if settings is None and part == "image":
        raise IncompleteModel(
            f"{folder}: no preprocessor_config.json; save the processor of the {config['model_type']} model there "
            "(AutoProcessor.from_pretrained(...).save_pretrained(folder))"
        )
    return settings or {}


def _normalisation(settings: Json, mean: Mean, std: Mean) -> tuple[Mean, Mean]:
    """(mean, std) of pixels between 0 and 1, whatever the processor scales pixels to and whether it normalises them."""
    scale = 255 * settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 255.0
    mean, std = _three(settings, "image_mean", mean), _three(settings, "image_std", std)
    if not settings.get("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    scale = round(scale, 9)  # files print 1/255 with a rounding of their own
    if not all(map(math.isfinite, mean)) or not all(0 < value < math.inf for value in std):
        raise ValueError(f"image_mean {mean} and image_std {std} are to be numbers, the latter above 0")
    return tuple(value / scale for value in mean), tuple(value / scale for value in std)  # type: ignore[return-value]


def _three(settings: Json, key: str, default: Mean) -> Mean:
    """A number for each colour; one alone is all three."""
    said = settings.get(key) or default
    red, green, blue = (said,) * 3 if isinstance(said, float | int) else said
    return float(red), float(green), float(blue)


def _whole(values: Json, key: str, default: int) -> int:
    """A size or a number of things: at least one."""
    value = values.get(key, default)
    if type(value) is not int or value < 1:  # true is an int to Python
        raise ValueError(f"{key} is {value!r}, a whole number above 0 is needed")
    return value


_CONTEXTS = {
    "llama": 2048, "mistral": 131072, "qwen2": 32768, "qwen3": 32768, "qwen3_moe": 32768, "gpt_oss": 131072,
    "granite": 2048, "gemma": 8192, "gemma2": 8192, "phi": 2048, "phi3": 4096,
}  # fmt: skip
"""Positions of a text config that leaves them out: the default of that Hugging Face config class."""


def _context(folder: Path, text: Json) -> int:
    """max_position_embeddings, stretched by a factor the checkpoint is configured with: always by a linear one; YaRN
    stretches what it names as original, and whoever switches it on by hand leaves max_position_embeddings as it was."""
    positions = text.get("max_position_embeddings", _CONTEXTS.get(str(text.get("model_type", "llama"))))
    if type(positions) is not int or positions < 1:
        raise IncompleteModel(f"{folder}: config.json names no max_position_embeddings; add it to its text_config")
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind, factor = rope.get("rope_type", rope.get("type")), float(rope.get("factor") or 1.0)
    if kind == "yarn":
        return max(positions, int((rope.get("original_max_position_embeddings") or positions) * factor))
    return int(positions * factor) if kind == "linear" else positions


def _token(folder: Path, tokenizer: Tokenizer, token_id: int) -> str:
    text = tokenizer.id_to_token(token_id)
    if text is None or tokenizer.encode(text, add_special_tokens=False).ids != [token_id]:
        raise IncompleteModel(
            f"{folder}: config.json's visual token {token_id} is no added token of tokenizer.json; "
            "save tokenizer and config from the same model"
        )
    return text


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


def _composable(folder: Path, config: Json, tokenizer: Tokenizer, *, default_tower: Json = _LLAVA_TOWER,
                strategy: str = "default", layers: int | list[int] = -2, image_token: int = 32000) -> ModelSpec:
    """What all LLaVA-shaped families share, LLaVA's own defaults; the geometry pools by average and has no newline."""
    vision = config.get("vision_config") or default_tower
    tower = str(vision.get("model_type", default_tower["model_type"]))
    if tower not in _TOWERS:
        raise UnsupportedModel(f"{folder}: no adapter for vision tower {tower!r}; supported are {', '.join(_TOWERS)}")
    image_size, patch_size, has_cls = _TOWERS[tower]
    image_size, patch_size = _whole(vision, "image_size", image_size), _whole(vision, "patch_size", patch_size)
    text = config.get("text_config") or {}
    token_id = config.get("image_token_index", config.get("image_token_id", image_token))
    chosen = config.get("vision_feature_layer", config.get("vision_feature_layers", layers))
    layers = [chosen] if isinstance(chosen, int) else [int(layer) for layer in chosen]
    depth = _whole(vision, "num_hidden_layers", _TOWER_LAYERS)
    if any(not -depth - 1 <= layer <= depth for layer in layers):
        raise IncompleteModel(
            f"{folder}: config.json takes features from layer {layers} of a vision tower of {depth} layers; "
            "download the model again"
        )
    mean, std = _normalisation(_processor(folder, config, "image"), CLIP_MEAN, CLIP_STD)
    return ModelSpec(
        folder=folder, model_type=config["model_type"], text_type=str(text.get("model_type", "llama")),
        kind="composable", geometry=Geometry(rows=image_size // patch_size, cols=image_size // patch_size),
        context=_context(folder, text), rope_scalable=True,
        image_token=_token(folder, tokenizer, token_id), image_token_id=token_id,
        image_size=image_size, patch_size=patch_size,
        cls=_cls(folder, has_cls, config.get("vision_feature_select_strategy", strategy)),
        vision_layers=tuple(layers),
        image_mean=mean, image_std=std,
    )


def _cls(folder: Path, has_cls: bool, strategy: str) -> Cls:
    if strategy not in ("default", "full"):
        raise IncompleteModel(
            f"{folder}: vision_feature_select_strategy is {strategy!r} in config.json; it is default or full"
        )
    if not has_cls and strategy == "default":
        raise IncompleteModel(
            f"{folder}: config.json drops a class token its vision tower does not have; "
            'set "vision_feature_select_strategy": "full"'
        )
    if not has_cls:
        return "none"
    return "drop" if strategy == "default" else "keep"


_NEXT_GRIDS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def _llava_next(folder: Path, config: Json, tokenizer: Tokenizer, image_token: int = 32000) -> ModelSpec:
    spec = _composable(folder, config, tokenizer, image_token=image_token)
    return replace(spec, image_grids=_grids(folder, config, _NEXT_GRIDS, spec.image_size))


def _llava_next_video(folder: Path, config: Json, tokenizer: Tokenizer) -> ModelSpec:
    spec = _llava_next(folder, config, tokenizer, image_token=32001)
    pooling, stride = config.get("spatial_pool_mode", "average"), _whole(config, "spatial_pool_stride", 2)
    if pooling not in ("average", "max"):
        raise UnsupportedModel(f"{folder}: spatial_pool_mode {pooling!r} is not supported; average and max are")
    video_id = config.get("video_token_index", config.get("video_token_id", 32000))
    assert isinstance(spec.geometry, Geometry)
    return replace(
        spec, geometry=replace(spec.geometry, pooling=pooling), uniform_stride=stride, fine_stride=stride,
        coarse_stride=2 * stride, video_token=_token(folder, tokenizer, video_id), video_token_id=video_id,
        stamp="sentence",
    )


_ONEVISION_SIDES = range(384, 2304 + 1, 384)


def _llava_onevision(folder: Path, config: Json, tokenizer: Tokenizer) -> ModelSpec:
    spec = _composable(folder, config, tokenizer, default_tower=_ONEVISION_TOWER, strategy="full", layers=-1,
                       image_token=151646)
    every = [[height, width] for height in _ONEVISION_SIDES for width in _ONEVISION_SIDES]
    aspect = str(config.get("vision_aspect_ratio", "anyres_max_9"))
    video_id = config.get("video_token_index", config.get("video_token_id", 151647))
    assert isinstance(spec.geometry, Geometry)
    return replace(
        spec, geometry=replace(spec.geometry, pooling="bilinear", newline="one"), fit="stretch", stamp="sentence",
        pool_before_projector=False, image_grids=_grids(folder, config, every, spec.image_size),
        image_max_tiles=int(aspect.removeprefix("anyres_max_")) if aspect.startswith("anyres_max_") else None,
        video_token=_token(folder, tokenizer, video_id), video_token_id=video_id,
    )


def _grids(folder: Path, config: Json, default: list[list[int]], tile: int) -> tuple[tuple[int, int], ...]:
    # The processor decides how a picture is cut; config.json only repeats it for the model.
    pinpoints = (_processor(folder, config, "image").get("image_grid_pinpoints")
                 or config.get("image_grid_pinpoints") or default)
    if any(side % tile or side < tile for size in pinpoints for side in size):
        raise IncompleteModel(f"{folder}: image_grid_pinpoints {pinpoints} are no multiples of the {tile} px tile")
    return tuple((height, width) for height, width in pinpoints)


_INTERNVL_TOWER = {"model_type": "internvl_vision", "image_size": 448, "patch_size": 14, "num_hidden_layers": 24}


def _internvl(folder: Path, config: Json, tokenizer: Tokenizer) -> ModelSpec:
    """Frames of one tile, numbered, each between <img> and </img>; pictures cut into stretched tiles."""
    vision = {**_INTERNVL_TOWER, **(config.get("vision_config") or {})}
    squares = {key: _side(folder, vision[key]) for key in ("image_size", "patch_size")}
    spec = _composable(folder, {**config, "vision_config": {**vision, **squares}}, tokenizer,
                       default_tower=_INTERNVL_TOWER, layers=-1, image_token=151667)
    if not vision.get("use_mean_pooling", True):
        raise UnsupportedModel(f"{folder}: no adapter for a vision tower that normalises its last layer "
                               "(use_mean_pooling is false)")  # fmt: skip
    assert isinstance(spec.geometry, Geometry)
    shuffle = round(1 / config.get("downsample_ratio", 0.5))
    if shuffle < 1 or spec.geometry.rows % shuffle:
        raise IncompleteModel(
            f"{folder}: {spec.geometry.rows} patches a side are no multiple of {shuffle}, by which config.json's "
            "downsample_ratio joins them; download the model again"
        )
    side = spec.geometry.rows // shuffle
    images = _processor(folder, config, "image")
    tiles = canvases(_whole(images, "min_patches", 1), _whole(images, "max_patches", 12))
    return replace(
        spec, geometry=replace(spec.geometry, rows=side, cols=side), shuffle=shuffle, pool_before_projector=False,
        fit="stretch", fine_stride=1, uniform_stride=1, coarse_stride=2, stamp="sentence",
        picture_text="<img>{image}</img>", bare_frame_text="Frame{number}: {image}\n", image_cut="stretched",
        image_grids=tuple((rows * spec.image_size, cols * spec.image_size) for rows, cols in tiles),
    )


def _side(folder: Path, said: int | list[int]) -> int:
    """The side of a square that is written as one number or as two."""
    sides = {said} if isinstance(said, int) else set(said)
    if len(sides) != 1:
        raise UnsupportedModel(f"{folder}: its vision tower looks at oblongs of {said}; squares are supported")
    return sides.pop()


_NATIVE_FRAME_TOKENS = 256
"""Most tokens a native frame gets unless its processor allows fewer: Qwen's own ceiling (768) is for documents."""
_LEAST_FRAME_TOKENS = 4


def _qwen(folder: Path, config: Json, tokenizer: Tokenizer, *, patch: int = 14, positions: int = 32768) -> ModelSpec:
    vision, text = config.get("vision_config") or {}, config.get("text_config") or config
    image, video = _processor(folder, config, "image"), _processor(folder, config, "video")
    geometry = NativeGeometry(
        patch=_whole(vision, "patch_size", patch), merge=_whole(vision, "spatial_merge_size", 2),
        temporal_patch=_whole(vision, "temporal_patch_size", 2),
    )
    least, most = _pixel_bounds(image, geometry.unit, 4, 1280)
    largest = min(_pixel_bounds(video or image, geometry.unit, 128, 768)[1], _NATIVE_FRAME_TOKENS * geometry.unit**2)
    image_id, video_id = config.get("image_token_id", 151655), config.get("video_token_id", 151656)
    mean, std = _normalisation(image, CLIP_MEAN, CLIP_STD)
    return ModelSpec(
        folder=folder, model_type=config["model_type"], text_type=str(text.get("model_type", config["model_type"])),
        kind="native", context=_context(folder, {"max_position_embeddings": positions, **text}), rope_scalable=False,
        geometry=replace(
            geometry, min_pixels=_LEAST_FRAME_TOKENS * geometry.unit**2, max_pixels=largest, image_min_pixels=least,
            image_max_pixels=most,
        ),
        image_token=_token(folder, tokenizer, image_id), image_token_id=image_id,
        video_token=_token(folder, tokenizer, video_id), video_token_id=video_id,
        patch_size=geometry.patch, vision_layers=(), fit="stretch", stamp="none", fine_stride=1, coarse_stride=1,
        uniform_stride=1, image_mean=mean, image_std=std,
    )


def _pixel_bounds(settings: Json, unit: int, least: int, most: int) -> tuple[int, int]:
    """(min, max) pixels of a picture under either spelling; `least` and `most` are the classes' defaults in tokens."""
    size = settings.get("size") or {}
    said = {
        "min_pixels": settings.get("min_pixels") or size.get("shortest_edge") or least * unit**2,
        "max_pixels": settings.get("max_pixels") or size.get("longest_edge") or most * unit**2,
    }
    lower, upper = _whole(said, "min_pixels", 0), _whole(said, "max_pixels", 0)
    if lower > upper:
        raise ValueError(f"min_pixels {lower} are over max_pixels {upper}")
    return lower, upper


def _qwen2_vl(folder: Path, config: Json, tokenizer: Tokenizer) -> ModelSpec:
    """Its positions count frames, not seconds, so the times are told in words."""
    return replace(_qwen(folder, config, tokenizer), stamp="sentence")


def _smolvlm(folder: Path, config: Json, tokenizer: Tokenizer) -> ModelSpec:
    vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
    settings = {**_processor(folder, config, "image"), **_processor(folder, config, "video")}
    patch, merge = _whole(vision, "patch_size", 32), _whole(config, "scale_factor", 2)
    side = _whole(settings.get("max_image_size") or {}, "longest_edge", _whole(vision, "image_size", 224))
    if side // patch % merge:
        raise IncompleteModel(
            f"{folder}: frames of {side} px have {side // patch} patches a side, no multiple of scale factor {merge}; "
            "save config and processor from the same model"
        )
    token_id = config.get("image_token_id", 128257)
    mean, std = _normalisation(settings, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return ModelSpec(
        folder=folder, model_type="smolvlm", text_type=str(text.get("model_type", "llama")), kind="native",
        context=_context(folder, text), rope_scalable=False,
        geometry=NativeGeometry(patch=patch, merge=merge, square=side), image_size=side, patch_size=patch,
        image_token=_token(folder, tokenizer, token_id), image_token_id=token_id, vision_layers=(), fit="stretch",
        stamp="none", fine_stride=1, coarse_stride=1, uniform_stride=1,
        image_mean=mean, image_std=std,
    )


_qwen3_vl = partial(_qwen, patch=16, positions=128000)
_READERS: dict[str, Callable[[Path, Json, Tokenizer], ModelSpec]] = {
    "llava": _composable,
    "vipllava": partial(_composable, layers=[-2, -5, -8, -11, 6]),
    "llava_next": _llava_next,
    "llava_next_video": _llava_next_video,
    "llava_onevision": _llava_onevision,
    "internvl": _internvl,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen3_vl,
    "qwen3_vl_moe": _qwen3_vl,
    "smolvlm": _smolvlm,
}
