"""What would be wrong with every clip of a run, told once and before the first: one is tried that can be read."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from vidllm.clip import plan_video
from vidllm.errors import ReaderUnavailable
from vidllm.prompt import check_question_fits
from vidllm.video.guard import Limits, read_frames_guarded
from vidllm.video.info import probe

if TYPE_CHECKING:
    from vidllm.corpus.looking import Look
    from vidllm.video.decode import Reader

SAMPLE = Path(str(files("vidllm.builtin"))) / "sample" / "sample.mp4"


def check_room(look: Look, prompt: str) -> None:
    """Raise BudgetError where the prompt and its answer leave no room for the least clip there is: its one frame as
    small as the family allows, without subtitles, and without a time that the prompt names.
    """
    least = replace(probe(SAMPLE), width=1, height=1)
    options = replace(look.options, frames=None, fps=None, policy="uniform", subtitles=False)
    check_question_fits(prompt, look.spec, look.tokenizer, options)
    plan_video(least, prompt, look.spec, look.tokenizer, options)


def check_reader(reader: Reader, limits: Limits) -> None:
    """Raise ReaderUnavailable where the reader that was named does not load. In a child, as it reads clips."""
    if reader in ("auto", "pyav"):
        return
    try:
        read_frames_guarded(SAMPLE, [0.0], limits, max_side=64, reader=reader)
    except ReaderUnavailable as error:
        raise ReaderUnavailable(str(error).removeprefix(f"{SAMPLE}: ")) from error
