"""`vidllm dpo`: teach a model which of two answers is the better one; goes on where it ended, however it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .output import note, write
from .sft import INTERRUPTED, Assignments, Config, DryRun, ShowBatch

if TYPE_CHECKING:
    from vidllm.train.dpo import DpoConfig


def dpo(config: Config, assignments: Assignments = None, show_batch: ShowBatch = False, dry_run: DryRun = False) -> int:
    """Teach a model from pairs of answers about videos, a better and a worse one; the taught model lies in `out`.

    \b
    Examples:
      vidllm dpo configs/quick_dpo.yaml                                minutes on two cores
      vidllm dpo configs/dpo.yaml model=taught out=preferred
      vidllm dpo configs/dpo_mpo.yaml beta=0.2 parts.language_model=1e-6
      vidllm dpo configs/dpo.yaml --dry-run                            every pair checked, nothing written
      vidllm ask clip.mp4 "what happens at 0:30?" -m preferred

    Pairs come from `vidllm feedback`, or from rows {"video", "prompt", "chosen", "rejected"}. The same command again
    goes on from the last checkpoint, to the bit; Ctrl-C finishes a step and saves.
    Exit code: 0 when every step is done, 1 when it could not be, 130 after Ctrl-C.
    """
    from vidllm.config import load_config
    from vidllm.train.dpo import DpoConfig

    from .loading import quiet_libraries

    quiet_libraries()
    wishes = load_config(DpoConfig, config, assignments or ())
    return _look(wishes, show_batch) if dry_run or show_batch else _teach(wishes)


def _look(config: DpoConfig, show: bool) -> int:
    import sys

    from vidllm.train.dpo import describe, read_contest, shown_batch

    contest = read_contest(config, note)
    told = shown_batch(config, contest, colour=sys.stdout.isatty()) if show else "\n".join(describe(config, contest))
    write(told.rstrip("\n") + "\n")
    return 0


def _teach(config: DpoConfig) -> int:
    from vidllm.train.dpo import run_dpo
    from vidllm.train.watch import TrainWatch

    with TrainWatch() as watch:
        done = run_dpo(config, watch)
    if done.interrupted:
        note(f"stopped after step {done.step:,} of {done.total:,}; run the same command again to go on")
        return INTERRUPTED
    note(f"{config.out}: taught in {done.total:,} steps; ask it: vidllm ask VIDEO QUESTION -m {config.out}")
    return 0
