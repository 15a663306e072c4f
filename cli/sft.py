"""`vidllm sft`: one stage of teaching, as a config says; goes on where it ended, however it ended."""

from __future__ import annotations

from .teaching import Assignments, Config, DryRun, ShowBatch, preview, settled, teach


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
      torchrun --nproc-per-node 2 -m vidllm_cli.main sft configs/video.yaml       several processes on a CPU
      vidllm ask clip.mp4 "what happens at 0:30?" -m taught

    The same command again goes on from the last checkpoint, to the bit; Ctrl-C finishes a step and saves.
    Exit code: 0 when every step is done, 1 when it could not be, 130 after Ctrl-C.
    """
    from vidllm.train.sft import SftConfig, describe, read_lesson, run_sft, shown_batch

    wishes = settled(SftConfig, config, assignments)
    if dry_run or show_batch:
        return preview(wishes, read_lesson, describe, shown_batch, show=show_batch)
    return teach(wishes, run_sft)
