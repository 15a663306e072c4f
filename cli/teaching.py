"""What the commands of teaching share: their arguments, a look at what would be learnt, a run that is watched."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from .loading import quiet_libraries
from .output import INTERRUPTED, note, write
from .progress import Progress

if TYPE_CHECKING:
    from vidllm.train.loop import Trained
    from vidllm.train.stage import StageConfig
    from vidllm.train.task import Watch

AnyStage = TypeVar("AnyStage", bound="StageConfig")
AnyRows = TypeVar("AnyRows")

Config = Annotated[
    Path, typer.Argument(metavar="CONFIG.yaml", help="A stage, such as those in configs/.", show_default=False)
]
Assignments = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Keys said otherwise than in the file.", show_default=False),
]
ShowBatch = Annotated[
    bool, typer.Option("--show-batch", help="Print one batch, the tokens that are learnt coloured, and stop.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check every row and say what an epoch costs; load no weight, write nothing.")
]


def settled(kind: type[AnyStage], config: Path, assignments: Sequence[str] | None) -> AnyStage:
    """The stage that a person described. Raises ConfigError."""
    from vidllm.config import load_config

    quiet_libraries()
    return load_config(kind, config, assignments or ())


def preview(
    config: AnyStage, read: Callable[..., AnyRows], describe: Callable[[AnyStage, AnyRows], list[str]],
    shown_batch: Callable[..., str], *, show: bool,
) -> int:  # fmt: skip
    """What a stage would learn from, no weight loaded and nothing written: its rows and what an epoch of them costs,
    or with `show` its first batch. The functions are those of `train.sft` or of `train.dpo`.
    Of several processes the first tells.
    """
    from vidllm.train.processes import is_first, leave

    first = is_first(config)
    with Progress() as progress:
        rows = read(
            config, note if first else lambda text: None, remember=False,
            progress=lambda done, rows: progress(f"checking row {done:,} of {rows:,}"),
        )  # fmt: skip
    if first:
        told = shown_batch(config, rows, colour=sys.stdout.isatty()) if show else "\n".join(describe(config, rows))
        write(told.rstrip("\n") + "\n")
    leave()
    return 0


def teach(config: AnyStage, run: Callable[[AnyStage, Watch], Trained]) -> int:
    """Run a stage before a person's eyes; its exit code."""
    from vidllm.train.processes import is_first, is_left_alone, leave
    from vidllm.train.watch import TrainWatch

    if is_left_alone(config):
        note("one process: on a CPU accelerate starts no more; `torchrun --nproc-per-node N -m vidllm_cli.main` does")
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
