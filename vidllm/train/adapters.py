"""Low-rank adapters inside a network, and models written as folders that are asked with `-m FOLDER` and nothing else.

    whole     weights as the family's own class saves them, config, tokenizer, processor, vidllm.json, extras
    adapter   the same without the base's weights, which are named and checked: see `vidllm.model.adapter`

A folder without config.json is no model: it goes first and comes back last, so that a half-written one is never loaded.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig

from vidllm.errors import CheckpointError, ConfigError
from vidllm.linefile import sync_folder
from vidllm.model import adapter as adapter_files
from vidllm.model import extras as extras_files
from vidllm.model.adapter import bases
from vidllm.model.checkpoint import load_model
from vidllm.model.families import read_spec
from vidllm.model.fingerprint import ADAPTER_FILE, NAMES_A_PLACE, PEFT_FILE, describing_files
from vidllm.model.quiet import quiet
from vidllm.model.resolve import builtin_name
from vidllm.model.spec import read_json
from vidllm.train.parts import Lora, part_of

if TYPE_CHECKING:
    from vidllm.model.reader import TextReader

ADAPTER = "default"
"""peft's name for the only adapter there is."""
PARTIAL = ".part-model"
OF_A_MODEL = ("model*.safetensors", "model*.safetensors.index.json", adapter_files.WEIGHTS_FILE,
              adapter_files.LEARNED_FILE, extras_files.FILE, ADAPTER_FILE, PEFT_FILE,
              "chat_template.jinja", "chat_template.json", "generation_config.json", "*processor_config.json",
              "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "added_tokens.json",
              "special_tokens_map.json", "vocab.json", "merges.txt")  # fmt: skip
"""What an older model may have left in a folder and a newer one must not be loaded with."""
NETWORK, EXTRAS = "network.", "extras."
"""What the names of a learner's weights begin with."""
WEIGHS_EXPERTS = {"router", "gate", "shared_expert_gate"}
"""What families call the matrices that choose among a mixture's experts. They stay as they are by default, as they do
where a family keeps them as bare numbers: few rows would unbalance what a whole pretraining has balanced."""
_HUB_FOLDER = re.compile(r"/models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})$")
"""Where the Hub's client keeps one commit of a model."""


def add_lora(network: nn.Module, lora: Lora, base: str) -> None:
    """Put an adapter beside the language model's matrices, in place; everything else stays as it is.

    Raises:
        ConfigError: a target names no matrix of the language model.
    """
    from peft import LoraConfig, inject_adapter_in_model

    targets = _targets(lora, (name for name in _matrices(network) if part_of(name) == "language_model"))
    pattern = rf"(.*\.)?(language_model|text_model)\..*\.({'|'.join(map(re.escape, targets))})"
    name, _, commit = (base, "", "") if Path(base).is_absolute() else base.partition("@")
    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=pattern, bias="none",  # type: ignore[arg-type]
        base_model_name_or_path=name, revision=commit or None,
    )  # fmt: skip
    # The holder has no config. By a network's own peft would take names of a mixture's matrices for those of experts.
    holder: Any = nn.ModuleDict({"network": network})
    with torch.random.fork_rng(devices=[]):  # every run and every process begins with the same matrices, on the CPU
        torch.default_generator.manual_seed(0)
        inject_adapter_in_model(config, holder, adapter_name=ADAPTER)
    network.peft_config = holder.peft_config


def check_targets(lora: Lora, text: PretrainedConfig) -> None:
    """Whether a language model of this config has what the adapter is put beside, told before a weight is read.

    Raises:
        ConfigError: a target names no matrix of it.
    """
    family: Any = AutoModel
    with torch.device("meta"):
        _targets(lora, _matrices(family.from_config(text)))


def _targets(lora: Lora, matrices: Iterable[str]) -> tuple[str, ...]:
    """The last words of the names of what is adapted; by default of all matrices in layers but a router's."""
    if lora.targets is None:
        paths = (name.split(".") for name in matrices)
        numbered = (path for path in paths if any(map(str.isdigit, path)))  # layers, whatever their name
        return tuple(sorted({path[-1] for path in numbered if WEIGHS_EXPERTS.isdisjoint(path)}))
    known = {name.rpartition(".")[2] for name in matrices}
    if unknown := [target for target in lora.targets if target not in known]:
        raise ConfigError(f"LoRA target {unknown[0]!r} is no matrix of the language model; "
                          f"there are {', '.join(sorted(known))}")  # fmt: skip
    return lora.targets


def _matrices(network: nn.Module) -> Iterator[str]:
    return (name for name, module in network.named_modules() if isinstance(module, nn.Linear))


def lora_layers(network: nn.Module) -> dict[str, Any]:
    """The adapted matrices by name."""
    return {name: module for name, module in network.named_modules() if hasattr(module, "lora_A")}


@contextmanager
def without_lora(network: nn.Module) -> Iterator[None]:
    """Inside it the network is as it was before it was adapted."""
    layers = lora_layers(network).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def base_name(folder: Path) -> str:
    """How others find this base: the name of a model that ships, its Hub id and commit where it lies in the Hub's
    cache, else its full path."""
    if name := builtin_name(folder):
        return name
    found = _HUB_FOLDER.search(folder.resolve().as_posix())
    return f"{found[1]}/{found[2]}@{found[3]}" if found else str(folder.resolve())


def check_place(folder: Path, model: Path, *, adapter: bool) -> None:
    """Raise ConfigError when what is saved into `folder` would destroy a base: `model` itself may be written over by
    a whole model, but not by an adapter of it, and no folder that `model` is an adapter of by either; or when it is no
    folder."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; name a folder as `out`, there or not")
    needed = [*bases(model), *([model] if adapter else [])]
    if folder.resolve() in {base.resolve() for base in needed}:
        raise ConfigError(f"{folder}: a stage can not write over the model it begins from, nor over one that "
                          "model is an adapter of; name another `out`")  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- writing


def save_whole(
    lmm: TextReader, folder: Path, weights: Mapping[str, Tensor], learned: Set[str], dtype: torch.dtype | None = None
) -> None:
    """Write a complete model; an adapter is added into its matrices.

    `weights` are those of the network and of the extras, and `learned` those of them that learned, by the learner's
    names. With `dtype` None these are kept in float32 and the rest as it came: a step of preference tuning is smaller
    than what bf16 can tell from the weight it began with, and would be rounded away.

    Raises:
        CheckpointError: the folder can not be written; what was there before is lost at most in part, never half right.
        ConfigError: see `check_place`.
    """
    config = read_json(lmm.spec.folder / "config.json") or {}
    network: Any = lmm.network
    layers = lora_layers(network)
    plain = {name.replace(".base_layer.", "."): weight for name, weight in _under(NETWORK, weights).items()}
    whole = {name.removeprefix(NETWORK) for name in learned}
    changed = whole | {f"{name}.weight" for name in layers}
    stored = stored_dtype(lmm.spec.folder)
    came = _as_they_came(lmm, plain, stored)
    merged = _merged({**plain, **{name: weight for name, weight in came.items() if name not in whole}}, layers)
    merged |= {name: merged[learns] for name, learns in _tied(network).items()}
    made = _cast(merged, dtype or stored, frozenset() if dtype else changed)
    check_place(folder, lmm.spec.folder, adapter=False)
    widest = max((weight.dtype for weight in made.values()), key=lambda kind: kind.itemsize)
    with _writing(folder) as part:
        with quiet():
            network.save_pretrained(part, state_dict=made)
        (part / "generation_config.json").unlink(missing_ok=True)  # the model's own, if it has one, is copied below
        _describe(lmm, part, {**config, "dtype": str(widest)[6:]})
        if lmm.extras is not None:
            lmm.extras.save(part, _cast(_under(EXTRAS, weights), dtype or torch.float32))


def save_adapter(lmm: TextReader, folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write what was learned (`weights`, by the learner's names; all extras) and where the base lies.

    Raises:
        CheckpointError, ConfigError: as `save_whole`.
    """
    network: Any = lmm.network
    learned = _under(NETWORK, weights)
    low_rank = {
        adapter_files.PEFT_PREFIX + name.replace(f".{ADAPTER}.", "."): weight
        for name, weight in learned.items() if ".lora_" in name
    }  # fmt: skip
    whole = {name: weight for name, weight in learned.items() if ".lora_" not in name}
    base = adapter_files.Base(base=base_name(lmm.spec.folder), base_fingerprint=lmm.fingerprint)
    check_place(folder, lmm.spec.folder, adapter=True)
    with _writing(folder) as part:
        _describe(lmm, part, read_json(lmm.spec.folder / "config.json") or {})
        network.peft_config[ADAPTER].save_pretrained(part)
        save_file(_cast(low_rank), part / adapter_files.WEIGHTS_FILE, {"format": "pt"})
        if whole:
            save_file(_cast(whole), part / adapter_files.LEARNED_FILE, {"format": "pt"})
        if lmm.extras is not None:
            lmm.extras.save(part, _cast(_under(EXTRAS, weights)))
        base.write(part)


def _under(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype a checkpoint's config says its weights have, under either spelling; float32 when it does not say, and
    of an adapter, whose config is its base's: what it learned is in float32."""
    if (folder / ADAPTER_FILE).is_file():
        return torch.float32
    config = read_json(folder / "config.json") or {}
    name = config.get("dtype") or config.get("torch_dtype") or (config.get("text_config") or {}).get("dtype")
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(str(name), torch.float32)


def _as_they_came(lmm: TextReader, weights: Mapping[str, Tensor], stored: torch.dtype) -> dict[str, Tensor]:
    """The network's weights read again from the checkpoint, where it has wider numbers than the bf16 that weights which
    do not learn were kept in; else none."""
    if stored == torch.bfloat16 or all(weight.dtype != torch.bfloat16 for weight in weights.values()):
        return {}
    again: Any = load_model(lmm.spec.folder, "cpu", "float32", light=False)
    return dict(again.network.state_dict())


def _tied(network: nn.Module) -> dict[str, str]:
    """Other names of weights that have several -> the one they learn under: a head may be the token table, and what was
    read again, or gathered from several processes, no longer is."""
    first: dict[int, str] = {}
    names = network.named_parameters(remove_duplicate=False)
    told = ((name, first.setdefault(id(weight), name)) for name, weight in names)
    return {name: learns for name, learns in told if name != learns}


def _merged(weights: Mapping[str, Tensor], layers: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights with the adapter's sums added in float32, and its own matrices gone."""
    plain = {name: weight for name, weight in weights.items() if ".lora_" not in name}
    for name, layer in layers.items():
        down, up = (weights[f"{name}.lora_{side}.{ADAPTER}.weight"].float().cpu() for side in "AB")
        plain[f"{name}.weight"] = plain[f"{name}.weight"].float().cpu() + layer.scaling[ADAPTER] * up @ down
    return plain


def _cast(
    weights: Mapping[str, Tensor], dtype: torch.dtype = torch.float32, wide: Set[str] = frozenset()
) -> dict[str, Tensor]:
    """Copies on the CPU, those named in `wide` in float32; what was one tensor under two names still is."""
    keys = {name: (weight.data_ptr(), weight.shape) for name, weight in weights.items()}
    widened = {keys[name] for name in wide & keys.keys()}
    made: dict[tuple[int, torch.Size], Tensor] = {}
    for name, weight in weights.items():
        if (key := keys[name]) not in made:
            kind = torch.float32 if key in widened else dtype
            made[key] = weight.detach().to("cpu", kind).contiguous()
    return {name: made[keys[name]] for name in weights}


def _describe(lmm: TextReader, part: Path, config: Mapping[str, Any]) -> None:
    """All that is not weights, as the model had it: another tool, or a later vidllm, must find nothing missing."""
    source = lmm.spec.folder
    ours = {*NAMES_A_PLACE, "config.json"}
    for path in describing_files(source):
        if path.name not in ours:
            shutil.copyfile(path, part / path.name)
    (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    # what rows were laid out with must be asked with: newlines in videos, earlier answers as the model said them
    said = {**(read_json(part / "vidllm.json") or {}), "as_said": True}
    if lmm.spec.newline != read_spec(source).newline:
        said["newline"] = lmm.spec.newline
    (part / "vidllm.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


@contextmanager
def _writing(folder: Path) -> Iterator[Path]:
    """A folder beside the model's files to write into; on leaving they take the old ones' places, config.json last."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(PARTIAL + "*"):  # by a run that was killed
            shutil.rmtree(left)
        part = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder))
        try:
            yield part
            _put(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"{folder}: the model could not be saved ({reason}); make room and run again: "
                              "checkpoints are kept") from error  # fmt: skip


def _put(part: Path, folder: Path) -> None:
    made = {path.name for path in part.iterdir()}
    readable = (part / "config.json").stat().st_mode  # weights are written for their owner's eyes only otherwise
    for name in made:
        (part / name).chmod(readable)
    (folder / "config.json").unlink(missing_ok=True)
    for path in {path for pattern in OF_A_MODEL for path in folder.glob(pattern)}:
        if path.name not in made:
            path.unlink()
    for name in sorted(made - {"config.json"}):
        _place(part / name, folder / name)
    _place(part / "config.json", folder / "config.json")
    sync_folder(folder)


def _place(source: Path, target: Path) -> None:
    """On the disk before it is seen: a power cut leaves the old file or the new one."""
    with source.open("rb") as file:
        os.fsync(file.fileno())
    source.replace(target)
