"""An adapter folder: everything of a model but its base weights, which are found where it says and checked.

    config, tokenizer, processor, vidllm.json     as the base has them: planning and prompts need nothing else
    adapter_config.json, adapter_model.safetensors     low-rank matrices as peft writes them
    learned.safetensors     parts that learned whole beside them
    extras.safetensors      see `extras`
    vidllm_adapter.json     which base, and its fingerprint

A base may be an adapter folder itself: what was learned first is put in first. Loading adds the matrices into the
weights they adapt, so that asking costs what it always costs; beside weights of 8 or 4 bits, which could not hold what
is added, they stay.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vidllm.config import from_mapping
from vidllm.errors import ConfigError, IncompleteModel, ModelNotFound
from vidllm.model.fingerprint import ADAPTER_FILE as FILE
from vidllm.model.fingerprint import PEFT_FILE as CONFIG_FILE
from vidllm.model.resolve import resolve_model
from vidllm.model.spec import read_json

WEIGHTS_FILE = "adapter_model.safetensors"
LEARNED_FILE = "learned.safetensors"
PEFT_PREFIX = "base_model.model."
"""What peft's weight files put before a module's own name."""
TABLE, HEAD = "language_model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True, kw_only=True)
class Base:
    """What an adapter was made on: a folder or a Hub id, and the fingerprint it must have."""

    base: str
    base_fingerprint: str

    def write(self, folder: Path) -> None:
        """Into an adapter folder."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def read_base(folder: Path) -> Base | None:
    """What the adapter in `folder` was made on; None when it is no adapter folder.

    Raises:
        IncompleteModel: the file that says so is damaged, or part of the adapter is missing.
    """
    values = read_json(folder / FILE)
    if values is None:
        return None
    try:
        base = from_mapping(Base, values, where=str(folder / FILE))
    except ConfigError as error:
        raise IncompleteModel(f"{error}; save the adapter again") from error
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise IncompleteModel(f"{folder}: an adapter without its {name}; save or copy it again")
    return base


def base_folder(folder: Path, base: Base) -> Path:
    """Where the base of the adapter in `folder` lies.

    Raises:
        ModelNotFound: it is not there any more.
    """
    try:
        return resolve_model(base.base)
    except ModelNotFound as error:
        raise ModelNotFound(
            f"{folder}: an adapter of {base.base}, which is not there; put it back, or name its new place as \"base\" "
            f"in {FILE}"
        ) from error


def bases(folder: Path) -> list[Path]:
    """The folders a model can not be loaded without besides its own, nearest first; none for a whole model.

    Raises:
        ModelNotFound, IncompleteModel: one of them is missing or damaged.
    """
    base = read_base(folder)
    if base is None:
        return []
    below = base_folder(folder, base)
    return [below, *bases(below)]


def merge_adapter(network: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    """Put what `folder` learned into the base's weights, in place: low-rank sums added, whole parts replaced. Beside
    weights of 8 or 4 bits low-rank matrices are kept in `dtype`, what the network computes in.

    Raises:
        IncompleteModel: a file is damaged, or adapts matrices this network does not have.
        ConfigError: not all of the weights lie on a device.
    """
    config = read_json(folder / CONFIG_FILE) or {}
    places = {name.removeprefix("model."): weight for name, weight in network.named_parameters()}
    matrices = {name.removeprefix("model."): module for name, module in network.named_modules()}
    with torch.no_grad():
        for name, low_rank in _low_ranks(_read(folder / WEIGHTS_FILE), config, folder).items():
            matrix = matrices.get(name.removeprefix("model.").removesuffix(".weight"))
            if isinstance(matrix, nn.Linear) and not matrix.weight.is_floating_point():
                if low_rank.shape != (there := (matrix.out_features, matrix.in_features)):
                    raise _of_another(folder, name, low_rank.shape, there)
                low_rank.put_beside(matrix, dtype)
            else:
                weight = _place(places, name, low_rank.shape, folder)
                weight.copy_(weight.float() + low_rank.sum().to(weight.device))
        if os.path.lexists(folder / LEARNED_FILE):
            for name, learned in _tied(_read(folder / LEARNED_FILE), places).items():
                _place(places, name, learned.shape, folder).copy_(learned)


def _tied(learned: dict[str, Tensor], places: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A head that learned as the token table it is tied to; the small reader may keep the two apart."""
    table = learned.get(f"model.{TABLE}")
    if table is not None and HEAD not in learned and HEAD in places:
        learned[HEAD] = table
    return learned


@dataclass(frozen=True, eq=False)
class _LowRank:
    """What is added to a matrix: `up` (out, r), with alpha / r in it, times `down` (r, in), in float32."""

    up: Tensor
    down: Tensor

    def __post_init__(self) -> None:
        if self.up.shape[1:] != self.down.shape[:1]:
            raise ValueError(f"B {tuple(self.up.shape)} and A {tuple(self.down.shape)} do not fit each other")

    @property
    def shape(self) -> torch.Size:
        """(out, in)."""
        return self.up.shape[:1] + self.down.shape[1:]

    def sum(self) -> Tensor:
        """All that is added, (out, in)."""
        return self.up @ self.down

    def put_beside(self, matrix: nn.Linear, dtype: torch.dtype) -> None:
        """Add its product to that of a matrix that stays as it is."""
        up, down = (part.to(matrix.weight.device, dtype) for part in (self.up, self.down))
        matrix.register_forward_hook(lambda _, inputs, product: product + F.linear(F.linear(inputs[0], down), up))


def _low_ranks(weights: Mapping[str, Tensor], config: Mapping[str, object], folder: Path) -> dict[str, _LowRank]:
    """Name of a matrix -> what is added to it."""
    try:
        scale = float(config["lora_alpha"]) / int(config["r"])  # type: ignore[arg-type,call-overload]
        downs = [name for name in weights if name.endswith(".lora_A.weight")]
        if len(weights) != 2 * len(downs):
            raise ValueError(f"{len(downs)} matrices A among {len(weights)}, half of them are expected to be")
        return {
            name.removeprefix(PEFT_PREFIX).replace(".lora_A.", "."):
                _LowRank(scale * weights[name.replace(".lora_A.", ".lora_B.")].float(), weights[name].float())
            for name in downs
        }  # fmt: skip
    except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise IncompleteModel(f"{folder}: {CONFIG_FILE} and {WEIGHTS_FILE} do not belong together ({error!r}); "
                              "save the adapter again") from error  # fmt: skip


def _place(places: Mapping[str, Tensor], name: str, shape: torch.Size, folder: Path) -> Tensor:
    weight = places.get(name.removeprefix("model."))
    if weight is None or weight.shape != shape:
        raise _of_another(folder, name, shape, None if weight is None else weight.shape)
    if weight.is_meta:  # accelerate keeps it elsewhere until it is needed, and what is added here would be lost
        raise ConfigError(f"{folder}: its base does not fit into the device's memory, and an adapter can not be put "
                          "into weights that lie elsewhere; save it merged, or name another --device")  # fmt: skip
    return weight


def _of_another(folder: Path, name: str, shape: torch.Size, there: tuple[int, ...] | None) -> IncompleteModel:
    has = "none" if there is None else str(tuple(there))
    return IncompleteModel(f"{folder}: adapts {name} {tuple(shape)}, the base has {has}; it is of another model")


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise IncompleteModel(f"{path}: can not be read ({error}); save or copy the adapter again") from error
