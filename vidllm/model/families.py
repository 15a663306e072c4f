"""The Hugging Face families there are adapters for: a folder -> its ModelSpec. No torch, no transformers, no weights.

    composable_specs   vidllm owns the road from vision tower to language model: pooling, newlines, RoPE factor
    native_specs       the family lays out its frames; the budget works through number of frames and pixels
    unlisted_specs     all others, through transformers and their own processors, whose words are kept

A folder may carry `vidllm.json`, whose keys are the fields of `spec.Overrides`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vidllm.errors import IncompleteModel, ModelNotFound, NotAVisionModel, UnsupportedModel
from vidllm.geometry import Geometry, Newline, Pooling
from vidllm.model.composable_specs import COMPOSABLE
from vidllm.model.fingerprint import PEFT_FILE
from vidllm.model.native_specs import NATIVE
from vidllm.model.resolve import resolve_model as resolve_model
from vidllm.model.settings import Files
from vidllm.model.spec import Json, override, read_json
from vidllm.model.spec import ModelSpec as ModelSpec
from vidllm.model.spec import load_tokenizer as load_tokenizer

_FAMILIES = {**COMPOSABLE, **NATIVE}
_SEEING = ("image_token_id", "image_token_index")
"""Keys of a configuration that sees, besides those that name a vision part."""


def read_spec(folder: Path) -> ModelSpec:
    """Describe the checkpoint in `folder` from config.json, tokenizer.json, the processor's JSON and vidllm.json.

    Raises:
        ModelNotFound: no such folder or no config.json in it.
        NotAVisionModel: a text-only checkpoint.
        UnsupportedModel: a vision model with a tower that has no adapter, or of a family without one whose own
            processor can not be used either.
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
    reader = _reader_of(config) or _reader_of_unlisted(folder, config)
    if not (folder / "tokenizer.json").is_file():
        raise IncompleteModel(
            f"{folder}: no tokenizer.json; save the model's tokenizer there "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(folder))"
        )
    try:
        spec = reader(Files(folder, config, load_tokenizer(folder)))
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        raise IncompleteModel(
            f"{folder}: its JSON files are no {config['model_type']} configuration ({error}); download the model again"
        ) from error
    return override(spec, folder / "vidllm.json")


def _reader_of(config: Json) -> Callable[[Files], ModelSpec] | None:
    kind, vision = str(config.get("model_type")), config.get("vision_config")
    tower = vision.get("model_type") if isinstance(vision, dict) else None
    return _FAMILIES.get(f"{kind}/{tower}") or _FAMILIES.get(kind)


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


def _reader_of_unlisted(folder: Path, config: Json) -> Callable[[Files], ModelSpec]:
    """Who reads a checkpoint of a family without an adapter. Raises what it is told that can not be one."""
    kind = config.get("model_type")
    if kind is None:
        raise IncompleteModel(f"{folder}/config.json: names no model_type; give a Hugging Face model folder")
    if isinstance(thinker := config.get("thinker_config"), dict):  # beside parts that speak
        raise UnsupportedModel(
            f"{folder}: of {kind!r} the part that sees is {thinker.get('model_type')!r}, which is read by itself; save "
            "it and the processor in a folder of their own (its class's from_pretrained, then save_pretrained)"
        )
    if not any("vision" in key or "visual" in key or key in _SEEING for key in config):
        raise NotAVisionModel(f"{folder}: {kind!r} is a text-only model; give one that sees ({', '.join(_FAMILIES)})")
    if not (folder / "tokenizer.json").is_file():  # which in a family that nobody knows is not what is to be mended
        with _naming_families():
            from vidllm.model.unlisted_specs import check_known

            check_known(folder, str(kind))
    return _unlisted


def _unlisted(files: Files) -> ModelSpec:
    """The spec of a family without an adapter, which transformers and its own processor are asked for."""
    from vidllm.model.unlisted_specs import unlisted_spec

    with _naming_families():
        return unlisted_spec(files)


@contextmanager
def _naming_families() -> Iterator[None]:
    try:
        yield
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{error}; adapters are there for {', '.join(_FAMILIES)}") from error
