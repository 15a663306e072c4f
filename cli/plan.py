"""`vidllm plan`: which frames, how many tokens, what RoPE factor: sums without weights."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from vidllm.geometry import Geometry
from vidllm.starting import uncollected, unthreaded

from . import options
from .output import note, one_line, write, write_json
from .progress import Progress

if TYPE_CHECKING:
    from vidllm.model.families import ModelSpec
    from vidllm.planned import Plan


def _grid(text: str) -> Geometry:
    """The grid that `24x24` means; a usage error for anything else."""
    match = re.fullmatch(r"([1-9]\d{0,3})[x×]([1-9]\d{0,3})", text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a grid; write rows x columns, such as 24x24")
    return Geometry(rows=int(match[1]), cols=int(match[2]))


Grid = Annotated[
    Geometry | None,
    typer.Option("--grid", parser=_grid, metavar="RxC", help="Plan for this patch grid instead of a model."),
]
Context = Annotated[
    int | None,
    typer.Option("--context", min=1, metavar="N", help="Plan for this context; with --grid 4096, else the model's."),
]


@options.takes(look={**options.RANGE, **options.LOOK})
@uncollected()
@unthreaded()
def plan(
    video: options.Video,
    question: options.OptionalQuestion = "",
    model: options.Model = None,
    look: options.Words = options.UNSAID,
    grid: Grid = None,
    context: Context = None,
    as_json: options.Json = False,
) -> None:
    """Say what `ask` would look at and what it would cost; no weights are loaded, and no frame is
    decoded but for the glances of --policy change.

    \b
    Examples:
      vidllm plan clip.mp4
      vidllm plan clip.mp4 "what happens at 0:30?" --policy focus
      vidllm plan clip.mp4 --grid 24x24 --context 4096 --stride 2 --frames 56 --json
    """
    from vidllm.model.families import load_tokenizer
    from vidllm.planned import plan_source
    from vidllm.planning import PlanOptions

    spec = _spec(model, grid, context)
    tokenizer = None if grid else load_tokenizer(spec.folder)
    with Progress() as progress:
        planned = plan_source(video, question, spec, tokenizer, PlanOptions(**look), progress=progress.stage)
    if as_json:
        write_json(planned.to_dict())
    else:
        write("\n".join(_lines(planned)) + "\n")
    for remark in planned.notes:
        note(f"note: {remark}")


def _spec(model: str | None, grid: Geometry | None, context: int | None) -> ModelSpec:
    from vidllm.errors import ConfigError
    from vidllm.model.families import bare_spec, read_spec, resolve_model

    if grid is None:
        spec = read_spec(resolve_model(model, weights=False))
        return spec if context is None else replace(spec, context=context)
    if model is not None:
        raise ConfigError("--grid plans without a model and --model names one; leave one of them out")
    return bare_spec(grid.rows, grid.cols, context or 4096)


def _lines(plan: Plan) -> list[str]:
    """The plan as a person reads it: the clip, the frames by cost, the sum."""
    costs = Counter((frame.stride, frame.tokens) for frame in plan.frames if frame.tokens)
    many = "" if costs.total() == len(plan.frames) else " groups"  # of frames that share their tokens
    sizes = ", ".join(f"{n}{many} x {tokens} (stride {stride})" for (stride, tokens), n in sorted(costs.items()))
    stretched = f" = {plan.context} x RoPE {plan.rope_factor:g}" if plan.rope_factor > 1 else ""
    room = math.floor(plan.context * plan.rope_factor + 1e-9)  # 1000 x 1.001 is a rounding short of 1001
    return [
        _about(plan),
        f"policy  {plan.policy}, reader {plan.reader or 'pillow'}",
        f"look    {_look(plan)}",
        f"frames  {len(plan.frames)}{_times(plan)}",
        f"video   {plan.video_tokens:>6} tokens: {sizes}",
        f"text    {plan.text_tokens:>6}",
        f"answer  {plan.max_new_tokens:>6}",
        f"total   {plan.total:>6} of {room}{stretched}",
    ]


def _about(plan: Plan) -> str:
    from vidllm.counts import count_of
    from vidllm.video.timecode import format_time

    video, path = plan.video, one_line(plan.video.path)
    if plan.info is None:
        return f"{path}: a picture, {video.width}x{video.height}"
    return (
        f"{path}: {format_time(video.duration, decimals=1)}, {video.width}x{video.height}, {video.fps:.4g} fps, "
        f"{count_of(video.frames, 'frame')}"
    )


def _look(plan: Plan) -> str:
    """How a frame becomes the model's: its size, how it meets the tile, whether it is the very frame of its time."""
    cut = f"cut into {plan.tiles[0]} x {plan.tiles[1]} tiles" if plan.tiles else ""
    size = f"{plan.frame_size[1]}x{plan.frame_size[0]} px" if plan.frame_size else ""
    fit = f"fit {plan.fit}" if plan.fit else ""
    snap = f"key frames within {plan.tolerance:.3g} s stand in" if plan.tolerance else ""
    return ", ".join(filter(None, (cut, size, fit, snap))) or "as it is"


def _times(plan: Plan) -> str:
    from vidllm.video.timecode import format_time

    times = [format_time(time, decimals=1) for time in plan.times]
    return " ".join(["", "at", *times]) if times else ""
