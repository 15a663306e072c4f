"""What a checkpoint folder is, in forty letters: equal for copies, another for all that could answer otherwise."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from vidllm.errors import ModelNotFound
from vidllm.model.spec import read_json

WHOLE_FILE_BYTES = 64 * 2**20
"""A weight file up to this size is digested whole, a larger one by header and samples."""
_DESCRIBING = (".json", ".jinja", ".model", ".txt")
ADAPTER_FILE = "vidllm_adapter.json"
PEFT_FILE = "adapter_config.json"
NAMES_A_PLACE = {ADAPTER_FILE: "base", PEFT_FILE: "base_model_name_or_path"}
"""File -> its key that says where an adapter's base lies; where that is makes no other model."""
SAMPLE_BYTES = 4096
PICKLE_SAMPLES = 64


def fingerprint(folder: Path | str) -> str:
    """Hex digest of everything in a checkpoint that shapes its answers: JSON files, templates and weights.

    A weight file over 64 MiB is represented by its size, its safetensors header (names, shapes, dtypes, offsets) and
    the middle 4 KiB of every tensor: a projector taught alone shows, while one flipped bit could be missed. Smaller
    files are digested whole.

    Raises:
        ModelNotFound: the folder holds no weights.
    """
    folder = Path(folder)
    weights = sorted(path for kind in ("safetensors", "bin") for path in folder.glob(f"*.{kind}") if path.is_file())
    if not weights:
        raise ModelNotFound(f"{folder}: no weights (*.safetensors) in it")
    digest = hashlib.blake2b(digest_size=20)
    for path in describing_files(folder):
        digest.update(path.name.encode() + _said(path))
    for path in weights:
        _digest_weights(digest, path)
    return digest.hexdigest()


def describing_files(folder: Path) -> list[Path]:
    """The files that describe a model beside its weights, by name; an index only says where those lie."""
    ours = (path for path in folder.iterdir() if path.suffix in _DESCRIBING and path.is_file())
    return sorted(path for path in ours if not path.name.endswith(".index.json"))


def _said(path: Path) -> bytes:
    """What a file says of the model: all of it, save the place where an adapter's base lies."""
    key = NAMES_A_PLACE.get(path.name)
    if key is None:
        return path.read_bytes()
    values = read_json(path) or {}
    return json.dumps({name: value for name, value in values.items() if name != key}, sort_keys=True).encode()


def _digest_weights(digest: hashlib.blake2b, path: Path) -> None:
    size = path.stat().st_size
    digest.update(f"{path.name}|{size}|".encode())
    with path.open("rb") as file:
        if size <= WHOLE_FILE_BYTES:
            digest.update(file.read())
            return
        header = b"" if path.suffix == ".bin" else file.read(min(int.from_bytes(file.read(8), "little"), 2**26))
        digest.update(header)
        for place in _samples(header, size):
            file.seek(place)
            digest.update(file.read(SAMPLE_BYTES))


def _samples(header: bytes, size: int) -> Iterator[int]:
    """Where to look into a file: the middle of each tensor a safetensors header names, else places spread evenly."""
    try:
        tensors = json.loads(header)
        spans = [entry["data_offsets"] for name, entry in tensors.items() if name != "__metadata__"]
    except (ValueError, KeyError, AttributeError, TypeError):  # a pickle; or damaged, which loading will explain
        yield from ((size - SAMPLE_BYTES) * sample // (PICKLE_SAMPLES - 1) for sample in range(PICKLE_SAMPLES))
        return
    first = 8 + len(header)
    yield from (first + max(begin, (begin + end - SAMPLE_BYTES) // 2) for begin, end in spans)
