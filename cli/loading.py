"""A model for a command: loaded with our one line of progress instead of other libraries' bars and warnings."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Literal

from vidllm.starting import uncollected

from .output import note
from .progress import Progress

if TYPE_CHECKING:
    from vidllm.ask import VideoModel

NO_MEMORY = (
    "out of memory while it was loaded; take a smaller model, --dtype bfloat16 or float16, --quantize int4, or another "
    "--device (auto spreads it over all there are)"
)


def quiet_libraries() -> None:
    """Our lines only: warnings of this library as notes, none of other libraries' tables, no bars unwatched."""
    import logging  # not on the way to --help

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            note(f"note: {record.getMessage()}")

    logging.getLogger("vidllm").handlers = [Notes(logging.WARNING)]
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        _disable_bars()


@uncollected()
def load(
    model: str | None,
    progress: Progress,
    *,
    device: str | None = None,
    dtype: str | None = None,
    quantize: Literal["int8", "int4"] | None = None,
) -> VideoModel:
    """The model named, else the default one; says on stderr where it runs, and of the built-in one what it knows."""
    from vidllm.model.families import fetch_model
    from vidllm.model.resolve import model_name

    quiet_libraries()
    progress("looking for the model")
    fetch_model(model)  # a download keeps its own bars on a terminal: gigabytes want a percentage
    _disable_bars()
    progress.stage("load")
    from vidllm.ask import load
    from vidllm.model.memory import told_when_it_runs_out

    spread = device == "auto"
    with told_when_it_runs_out(f"{model_name(model)}: {NO_MEMORY}"):
        loaded = load(
            model, device=None if spread else device, device_map="auto" if spread else None, dtype=dtype,
            quantize=quantize, progress=progress.stage,
        )  # fmt: skip
    progress.say(loaded.about)
    return loaded


def _disable_bars() -> None:
    """For a hub that is not imported yet, and for one that is; importing it for this would cost a fifth of a second."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if "huggingface_hub" in sys.modules:
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
