"""Folder -> VideoLMM: device and dtype chosen and said, weights checked, nothing of a checkpoint executed.

Only the classes a checkpoint needs are imported, and only safetensors are read: a pickle can run code.
`trust_remote_code` does not exist here.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from vidllm.errors import ConfigError, IncompleteModel, ModelNotFound, UnsupportedModel
from vidllm.machine import cpu_multiplies_bf16
from vidllm.model.adapter import Base, base_folder, merge_adapter, read_base
from vidllm.model.attention import attend_wide
from vidllm.model.classes import is_listed, network_class, reader_class
from vidllm.model.decoder import RUNNING_LAYERS, language_of, like
from vidllm.model.extras import load_extras
from vidllm.model.families import ModelSpec, load_tokenizer, read_spec
from vidllm.model.fingerprint import ADAPTER_FILE
from vidllm.model.fingerprint import fingerprint as fingerprint
from vidllm.model.light import LightLlava, fits, load_light
from vidllm.model.lmm import VideoLMM
from vidllm.model.memory import is_out_of_memory
from vidllm.model.quiet import one_line, quiet
from vidllm.model.running import note_slow_layers
from vidllm.model.spec import read_json
from vidllm.model.spec import stop_ids as stop_ids

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import nn


log = logging.getLogger("vidllm")

Quantize = Literal["int8", "int4"]
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Ways to spread a model, as accelerate calls them; any other word is one device."""

SDPA = {"attn_implementation": "sdpa"}
"""PyTorch's own attention, by transformers' name."""
_LOADING_ERRORS = (
    OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ZeroDivisionError, AssertionError,
    SafetensorError, StrictDataclassError,
)  # fmt: skip
"""What a damaged or contradictory checkpoint makes transformers raise."""
_PARTLY_ON_CPU = "dispatched on the CPU or the disk"
"""What it says where not all weights in 8 or 4 bits fit on GPUs."""


def load_model(
    folder: Path | str,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: str | Mapping[str, str | int] | None = None,
    quantize: Quantize | None = None,
    *,
    light: bool = True,
) -> VideoLMM:
    """Load a checkpoint folder in Hugging Face layout.

    `device` ("cuda", "mps", "cpu") and `dtype` ("float32", "bfloat16", "float16") are chosen by `choose_device` and
    `choose_dtype` when None. `device_map` ("auto" or module -> device) spreads a model over several devices. `quantize`
    keeps the language model's matrices in 8 or 4 bits; tower and projector stay whole. Without `light` a small model
    is built on transformers' own class too: that of who will save it again.

    Raises:
        ModelNotFound, UnsupportedModel, IncompleteModel: one line, naming the folder and what is wrong with it.
        ConfigError: an impossible device, dtype or quantization, or its package is not installed.
    """
    folder = Path(folder)
    spec = read_spec(folder)
    if quantize is not None:
        check_quantize(quantize)
    for there in device_map.values() if isinstance(device_map, Mapping) else [device_map]:
        if there not in (None, "disk", *DEVICE_MAPS):
            choose_device(f"cuda:{there}" if isinstance(there, int) else there)
    place = choose_device(device)
    number = choose_dtype(dtype, place)
    tokenizer = load_tokenizer(folder)
    stop_ids(folder, tokenizer)  # what is wrong with them is told before the weights are read, not by the first answer
    network = _load_network(spec, place, number, device_map, quantize, light)
    model = _adapt(spec, tokenizer, network, fingerprint(folder))
    log.info("model: %s", describe(model))
    if not is_listed(spec.model_type):
        from vidllm.model.proof import prove

        prove(model)  # type: ignore[arg-type]  # `reader_class` has made it an Unlisted
    if getattr(model, "sums", False):
        note_slow_layers(spec.model_type, place)
    return model


def describe(model: VideoLMM) -> str:
    """One line for a person: family, size, device and number format."""
    network: Any = model.network  # type: ignore[attr-defined]
    if isinstance(network, LightLlava):
        count = sum({w.data_ptr(): w.numel() for w in network.parameters()}.values())  # a tied head is the table's
    else:
        count = network.num_parameters()  # which knows that numbers of 4 bits share a byte
    return f"{model.spec.model_type}, {count / 1e6:.1f}M parameters, {model.device}, {str(model.dtype)[6:]}"


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device named, else cuda, else mps, else cpu.

    Raises:
        ConfigError: it is unknown, or not there on this machine.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = str(device)
    if device.split(":")[0] not in ("cuda", "mps", "cpu"):
        raise ConfigError(f"device {device!r} is none of cuda, mps, cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {device!r} is not usable here ({one_line(error)}); try cpu") from error
    return torch.device(device)


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype named, else bfloat16 where the device multiplies it fast, float16 on other GPUs, float32 on other CPUs.

    A CPU with AMX, or AMD's with AVX512-BF16, runs bf16 matrix products two to four times as fast as float32. Intel's
    AVX512-BF16 alone reaches 0.6 of its float32, and CPUs without either emulate them.

    Raises:
        ConfigError: no such dtype.
    """
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype is not None:
        name = str(dtype).removeprefix("torch.")
        if name not in names:
            raise ConfigError(f"dtype {name!r} is none of {', '.join(names)}")
        return names[name]
    if device.type == "cpu":
        return torch.bfloat16 if cpu_multiplies_bf16() else torch.float32
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float16


def _load_network(
    spec: ModelSpec,
    device: torch.device,
    dtype: torch.dtype,
    device_map: str | Mapping[str, str | int] | None,
    quantize: Quantize | None,
    light: bool,
) -> nn.Module:
    """The network with all its weights, in evaluation mode: light where it fits, else transformers' own class."""
    if (base := read_base(spec.folder)) is not None:
        place = _checked_base(spec.folder, base)
        adapted = _load_network(read_spec(place), device, dtype, device_map, quantize, light)
        merge_adapter(adapted, spec.folder, dtype)
        return adapted
    _check_files(spec.folder)
    config = read_json(spec.folder / "config.json") or {}
    network = None
    if light and device_map is None and quantize is None and fits(spec.folder, config):
        try:
            network = load_light(spec.folder, config, device, dtype)
        except _LOADING_ERRORS as error:
            if is_out_of_memory(error):
                raise
            raise IncompleteModel(f"{spec.folder}: {one_line(error)}; download the model again") from error
    if network is None:
        options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
        if spec.two_way:
            options |= SDPA  # another attention takes no table of what each token sees
        if device_map is not None or quantize is not None:
            options["device_map"] = device_map or {"": str(device)}
        if quantize is not None:
            options["quantization_config"] = _quantization(quantize, dtype)
        network = _load_transformers(spec, options)
        attend_wide(language_of(network))
        if "device_map" not in options:
            network.to(device)
    network.eval()
    network.requires_grad_(False)
    return network


def _checked_base(folder: Path, base: Base) -> Path:
    """Where the base of the adapter in `folder` lies, if it is still the one it was made on."""
    place = base_folder(folder, base)
    with suppress(ModelNotFound):  # no weights there
        if fingerprint(place) == base.base_fingerprint:
            return place
    raise IncompleteModel(f"{folder}: an adapter of another model than {place} is now; name the right one as "
                          f'"base" in {ADAPTER_FILE}')  # fmt: skip


ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
"""Layers whose past is keys and values, by transformers' names of kinds of layers."""


def unknown_layers(spec: ModelSpec, text: Any) -> list[str]:
    """Kinds of layers in a language model of config `text` whose past is nothing that `kv` keeps."""
    kinds = set(getattr(text, "layer_types", None) or ())
    # of composable models with a running state none was tried
    return sorted(kinds - ATTENTION - (RUNNING_LAYERS if spec.kind == "native" and kinds & ATTENTION else set()))


def _check_language(spec: ModelSpec, language: Any) -> None:
    """Refuse a language model that can not be read on or stretched as `kv` and `rope` do it."""
    others = unknown_layers(spec, language.config)
    kinds = getattr(language.config, "layer_types", None) or ()
    if others or (language._is_stateful and RUNNING_LAYERS.isdisjoint(kinds)):
        raise UnsupportedModel(
            f"{spec.folder}: its language model {spec.text_type!r} keeps more of the past than keys and values "
            f"({others[0] if others else 'a state'}); only attention in all layers is supported"
        )
    if not any(name.rpartition(".")[2] == "rotary_emb" for name, _ in language.named_modules()):
        raise UnsupportedModel(
            f"{spec.folder}: its language model {spec.text_type!r} has no rotary positions, others are not supported"
        )


def _load_transformers(spec: ModelSpec, options: Mapping[str, Any]) -> nn.Module:
    """The real class through `from_pretrained`, refused unless every weight was there."""
    # Mismatched sizes are let pass so that they are reported, and refused in one line.
    always = {"local_files_only": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        with quiet():
            network, report = network_class(spec.model_type).from_pretrained(spec.folder, **always, **options)
    except ImportError as error:
        if "FlashAttention" in str(error) and not SDPA.keys() & options:
            log.warning("%s: asks for FlashAttention, which is not installed; PyTorch's own attention is used",
                        spec.folder)  # fmt: skip
            return _load_transformers(spec, {**options, **SDPA})
        if "quantization_config" in options:
            raise ConfigError(f'{one_line(error)}; quantize needs pip install -U "vidllm[quant]"') from error
        # quantized by somebody, with a package of theirs
        raise UnsupportedModel(f"{spec.folder}: {one_line(error)}; or name the model as it was before it was "
                               "quantized") from error  # fmt: skip
    except _LOADING_ERRORS as error:
        if is_out_of_memory(error):
            raise
        if "quantization_config" in options and _PARTLY_ON_CPU in str(error):
            raise ConfigError(f"{spec.folder}: quantized weights lie all on GPUs or all on the CPU; name a device that "
                              "holds the whole model, or leave quantize out") from error  # fmt: skip
        cure = _cure(spec.folder, options.get("device_map"))
        raise IncompleteModel(f"{spec.folder}: {one_line(error)}; {cure}") from error
    _check_report(spec.folder, report)
    for module in network.modules():
        if hasattr(module, "config"):
            module.config.return_dict = True  # what its parts return is read by name here, whatever its files prefer
    language: Any = language_of(network)
    _check_language(spec, language)
    _check_depth(spec.folder, report["unexpected_keys"], len(language.layers))
    return network  # type: ignore[no-any-return]


def _check_files(folder: Path) -> None:
    """Say what is missing before seconds are spent on imports.

    Raises:
        IncompleteModel: no weights, not all of them, or only such as could run code.
    """
    if (folder / "model.safetensors").is_file():
        return
    if any(folder.glob("*.safetensors")):
        return _check_shards(folder)
    pickles = sorted(folder.glob("*.bin"))
    if not pickles:
        raise IncompleteModel(f"{folder}: no weights (*.safetensors); download the model again")
    raise IncompleteModel(
        f"{folder}: its weights are a pickle ({pickles[0].name}), which can run code; save the model again as "
        "safetensors (from_pretrained, then save_pretrained)"
    )


def _check_shards(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    values = read_json(index)
    if values is None:
        raise IncompleteModel(f"{folder}: neither model.safetensors nor {index.name}, which says in which file each "
                              "weight lies; download the model again")  # fmt: skip
    named = values.get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise IncompleteModel(f"{index}: no weight_map from weights to files; download the model again")
    files = sorted(set(named.values()))
    if gone := [name for name in files if not (folder / name).is_file()]:
        raise IncompleteModel(f"{folder}: {len(gone)} of {len(files)} weight files are missing, {gone[0]} first; "
                              "download it again")  # fmt: skip


def _check_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose weights do not cover the model: transformers would fill the gaps with noise."""
    missing = sorted(report["missing_keys"])
    mismatched = sorted(entry[0] for entry in report["mismatched_keys"])
    if missing or mismatched:
        what = "missing" if missing else "of another shape than the config says"
        names = missing or mismatched
        raise IncompleteModel(f"{folder}: {len(names)} weights are {what}, {names[0]} first; {_cure(folder)}")


_LANGUAGE_LAYER = re.compile(r"(?<!encoder\.)(?<!transformer\.)\blayers\.(\d+)\.")
"""Where a weight's name says in which layer of the language model it lies; a tower's are an encoder's layers, Pixtral's
a transformer's."""


def _check_depth(folder: Path, unused: Iterable[str], depth: int) -> None:
    """Refuse a config that names fewer layers than there are weights for: what is left of the model would talk noise.

    Other weights nobody asked for are let pass: older checkpoints keep tables that are computed today.
    """
    found = [int(match[1]) for name in unused if (match := _LANGUAGE_LAYER.search(name))]
    if (held := max(found, default=0) + 1) > depth:
        raise IncompleteModel(f"{folder}: config.json names {depth} layers of the language model, its weights are of "
                              f"{held}; download the model again")  # fmt: skip


def _cure(folder: Path, places: object = None) -> str:
    """What brings weights the config has; transformers renames them from time to time, and knows only older names.

    Where a mapping says in which `places` the parts lie, it may be that which is wrong.
    """
    import transformers

    def parts(version: str) -> list[int]:
        return [int(part) for part in version.split(".")[:2] if part.isdigit()]

    here, there = transformers.__version__, str((read_json(folder / "config.json") or {}).get("transformers_version"))
    if parts(there) > parts(here):
        return f"transformers {there} saved it and {here} is installed: pip install -U transformers"
    if isinstance(places, Mapping) and any(places):
        return 'let device_map place every part, tied weights together, as "auto" does; or download it again'
    return "download it again"


def check_quantize(quantize: Quantize) -> None:
    """Raise ConfigError where no model can be kept in so few bits here."""
    if quantize not in ("int8", "int4"):
        raise ConfigError(f"quantize {quantize!r} is none of int8, int4")
    try:
        importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise ConfigError(f'quantize={quantize} needs bitsandbytes: pip install "vidllm[quant]"') from error


def _quantization(quantize: Quantize, dtype: torch.dtype) -> Any:
    from transformers.utils.quantization_config import BitsAndBytesConfig

    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # warns of each product of numbers
    config: Callable[..., Any] = BitsAndBytesConfig
    # Patterns match from the start of a module's full name, or its end.
    parts = "vision_tower|multi_modal_projector|visual|vision_model|connector|projector"
    whole = [rf".*\.({parts}|embed_vision|audio_tower|embed_audio|per_layer_model_projection)", "lm_head"]
    if quantize == "int8":
        return config(load_in_8bit=True, llm_int8_skip_modules=whole)
    return config(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=whole
    )


def _adapt(spec: ModelSpec, tokenizer: Tokenizer, network: nn.Module, mark: str) -> VideoLMM:
    reader = reader_class(spec.model_type)
    if spec.kind == "native":
        return reader(spec, tokenizer, network, mark)  # type: ignore[no-any-return]
    table = network.get_input_embeddings()  # type: ignore[operator]
    place = like(table)
    extras = load_extras(spec.folder, table.weight.shape[1], place.device, place.dtype)
    return reader(spec, tokenizer, network, mark, extras=extras)  # type: ignore[no-any-return]

