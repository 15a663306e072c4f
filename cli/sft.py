"""`vidllm sft`: one stage of teaching, as a config says; goes on where it ended, however it ended."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from .output import note, write
from .progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from vidllm.train.loop import Trained
    from vidllm.train.sft import SftConfig
    from vidllm.train.stage import StageConfig
    from vidllm.train.task import Watch

AnyStage = TypeVar("AnyStage", bound="StageConfig")

Config = Annotated[
    Path, typer.Argument(metavar="CONFIG.yaml", help="A stage, such as those in configs/.", show_default=False)
]
Assignments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Keys said otherwise than in the file.", show_default=False),
]
ShowBatch = Annotated[
    bool, typer.Option("--show-batch", help="Print one batch, the tokens that are learnt coloured, and stop.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check every row and say what an epoch costs; load no weight, write nothing.")
]
INTERRUPTED = 130
"""128 + SIGINT, as every command ends that a person stopped."""


def sft(config: Config, assignments: Assignments = None, show_batch: ShowBatch = False, dry_run: DryRun = False) -> int:
    """Teach a model from conversations about videos and pictures; the taught model lies in `out`.

    \b
    Examples:
      vidllm sft configs/quick_sft.yaml                                minutes on two cores
      vidllm sft configs/video.yaml model=llava-hf/llava-v1.6-vicuna-7b-hf out=taught
      vidllm sft configs/video_lora.yaml batch=16 parts.language_model=1e-4
      vidllm sft configs/video.yaml --dry-run                          every row checked, nothing written
      vidllm sft configs/video.yaml --show-batch                       what is learnt, and what is only read
      accelerate launch --config_file configs/fsdp.yaml -m vidllm_cli.main sft configs/video.yaml
      vidllm ask clip.mp4 "what happens at 0:30?" -m taught

    The same command again goes on from the last checkpoint, to the bit; Ctrl-C finishes a step and saves.
    Exit code: 0 when every step is done, 1 when it could not be, 130 after Ctrl-C.
    """
    from vidllm.config import load_config
    from vidllm.train.sft import SftConfig

    from .loading import quiet_libraries

    quiet_libraries()
    wishes = load_config(SftConfig, config, assignments or ())
    if dry_run or show_batch:
        return _look(wishes, show_batch)
    from vidllm.train.sft import run_sft

    return teach(wishes, run_sft)


def _look(config: SftConfig, show: bool) -> int:
    import sys

    from vidllm.train.sft import describe, read_lesson, shown_batch

    with Progress() as progress:
        lesson = read_lesson(
            config, note, remember=False, progress=lambda done, rows: progress(f"checking row {done:,} of {rows:,}")
        )
    write(
        shown_batch(config, lesson, colour=sys.stdout.isatty()) if show else "\n".join(describe(config, lesson)) + "\n"
    )
    return 0


def teach(config: AnyStage, run: Callable[[AnyStage, Watch], Trained]) -> int:
    """Run a stage before a person's eyes; its exit code."""
    from vidllm.train.stage import is_first, leave
    from vidllm.train.watch import TrainWatch

    try:
        with TrainWatch() as watch:
            done = run(config, watch)
    except KeyboardInterrupt:
        note("stopped at once; run the same command again to go on from the last checkpoint")
        raise
    if is_first(config) and done.interrupted:
        note(f"stopped after step {done.step:,} of {done.total:,}; run the same command again to go on")
    elif is_first(config):
        note(f"{config.out}: taught in {done.total:,} steps; ask it: vidllm ask VIDEO QUESTION -m {config.out}")
    leave()
    return INTERRUPTED if done.interrupted else 0
