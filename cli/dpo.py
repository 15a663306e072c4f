"""`vidllm dpo`: teach a model which of two answers is the better one; goes on where it ended, however it ended."""

from __future__ import annotations

from .teaching import Assignments, Config, DryRun, ShowBatch, preview, settled, teach


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
    from vidllm.train.contest import describe, read_contest, shown_batch
    from vidllm.train.dpo import DpoConfig, run_dpo

    wishes = settled(DpoConfig, config, assignments)
    if dry_run or show_batch:
        return preview(wishes, read_contest, describe, shown_batch, show=show_batch)
    return teach(wishes, run_dpo)
