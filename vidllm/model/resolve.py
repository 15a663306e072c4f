"""A name a user types -> the folder of a checkpoint: built-in, local, or downloaded from the Hugging Face Hub."""

from __future__ import annotations

import errno
import os
import re
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from vidllm.errors import IncompleteModel, ModelNotFound

ENVIRONMENT = "VIDLLM_MODEL"
_DESCRIBING = ("*.json", "*.jinja", "*.model", "*.txt")
_WEIGHTS = ("*.safetensors",)
"""No pickles: a checkpoint is only read as safetensors."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(?:@\w[\w./-]*)?")
"""OWNER/NAME, and behind an @ the branch, tag or commit that is meant."""


BUILTIN = {"built-in": "weights", "built-in-images": "image", "built-in-dpo": "dpo"}
"""Models that ship, by name: the video model, the image model it was made from, and what preferences made of it."""
ABOUT_BUILTIN = (
    "only knows synthetic shapes (`vidllm world make`); "
    "for real videos name a Hugging Face id or a folder: -m llava-hf/LLaVA-NeXT-Video-7B-hf"
)
"""What its user must know."""


def model_name(model: str | Path | None) -> str:
    """How people call it: as named, else $VIDLLM_MODEL, else built-in."""
    return str(model or os.environ.get(ENVIRONMENT) or "built-in")


def builtin_folder(name: str = "built-in") -> Path:
    """Where a small model that ships lies, whether or not its weights are there."""
    return Path(str(files("vidllm.builtin"))) / BUILTIN[name]


def builtin_name(folder: Path) -> str | None:
    """The name of the model that ships in `folder`; None for any other."""
    place = folder.resolve()
    return next((name for name in BUILTIN if builtin_folder(name).resolve() == place), None)


def resolve_model(name: str | None, *, weights: bool = True) -> Path:
    """The folder of model `name`: a local folder, else a Hub id; None is $VIDLLM_MODEL, else the built-in model.

    A Hub id may say which of its revisions is meant: `OWNER/NAME@COMMIT`, or a branch or tag. `built-in`,
    `built-in-images` and `built-in-dpo` are the models that ship. Without `weights` the Hub is asked only for the small
    files that describe the model: a plan needs no more.

    Raises:
        ModelNotFound: neither a folder nor a Hub id that can be reached (the message says which, and what to do).
        IncompleteModel: the built-in weights did not come with this installation.
    """
    name = model_name(name)
    return local_folder(name) or _download(name, _DESCRIBING + _WEIGHTS if weights else _DESCRIBING)


def local_folder(name: str) -> Path | None:
    """The folder of model `name` without asking the Hub; None for what looks like a Hub id. Raises as above."""
    if name in BUILTIN:
        return _builtin(name)
    folder = Path(os.path.expanduser(name))  # Path's own fails where there is no such user
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelNotFound(f"{name}: a file, not a model; give the folder that holds config.json")
    if not _HUB_ID.fullmatch(name):
        raise ModelNotFound(f"{name}: no such folder; give a model folder or a Hub id such as llava-hf/llava-1.5-7b-hf")
    return None


def _builtin(name: str) -> Path:
    folder = builtin_folder(name)
    if not (folder / "config.json").is_file():
        raise IncompleteModel(f"{folder}: the built-in model is not in this installation; name a model with -m")
    return folder


@lru_cache  # who loads a model asks for its folder several times, and the Hub need be asked once
def _download(name: str, wanted: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:  # the Hub's client moved from httpx to its successor; an interrupted download raises that library's own error
        from httpx2 import HTTPError
    except ImportError:
        from httpx import HTTPError  # type: ignore[assignment,import-not-found,no-redef,unused-ignore]
    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(wanted)))
    except GatedRepoError as error:
        raise ModelNotFound(f"{name}: gated on the Hub; accept its terms there and run `hf auth login`") from error
    except RevisionNotFoundError as error:
        raise ModelNotFound(f"{name}: no such commit, branch or tag of {repository}; check it on the Hub") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelNotFound(f"{name}: neither a local folder nor a model on the Hub; check its spelling") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, HTTPError, ConnectionError) as error:
        raise ModelNotFound(
            f"{name}: no folder here, not in the local cache, and the Hub can not be reached; download it where there "
            "is a network (`hf download`) and give the folder"
        ) from error
    except OSError as error:
        cure = "free some disk space" if error.errno == errno.ENOSPC else "set HF_HOME to a folder that can be written"
        raise ModelNotFound(f"{name}: could not be stored ({error.strerror or error}); {cure}") from error
