"""`vidllm dpo`: teach a model which of two answers is the better one; goes on where it ended, however it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .output import note, write
from .progress import Progress
from .sft import Assignments, Config, DryRun, ShowBatch, teach

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
    if dry_run or show_batch:
        return _look(wishes, show_batch)
    from vidllm.train.dpo import run_dpo

    return teach(wishes, run_dpo)


def _look(config: DpoConfig, show: bool) -> int:
    import sys

    from vidllm.train.dpo import describe, read_contest, shown_batch

    with Progress() as progress:
        contest = read_contest(
            config, note, remember=False, progress=lambda done, rows: progress(f"checking pair {done:,} of {rows:,}")
        )
    told = shown_batch(config, contest, colour=sys.stdout.isatty()) if show else "\n".join(describe(config, contest))
    write(told.rstrip("\n") + "\n")
    return 0
