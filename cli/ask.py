"""`vidllm ask`: a video and a question in, the answer on stdout as it is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .loading import load
from .output import note, write, write_json
from .progress import Progress
from .remarks import remark
from .source import check_before_loading

if TYPE_CHECKING:
    from vidllm.answer import Answer

Sheet = Annotated[
    Path | None,
    typer.Option("--sheet", metavar="OUT.png", help="Also draw what was seen, with times and tokens of each frame."),
]


def ask(
    video: options.Video,
    question: options.Question,
    model: options.Model = None,
    start: options.From = None,
    end: options.To = None,
    frames: options.Frames = None,
    fps: options.Fps = None,
    policy: options.Policy = "auto",
    stride: options.Stride = None,
    rope_max: options.RopeMax = 2.0,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = 0.0,
    seed: options.Seed = 0,
    reader: options.Reader = "auto",
    fit: options.FitMode = None,
    snap: options.Snap = False,
    no_subtitles: options.NoSubtitles = False,
    sheet: Sheet = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    as_json: options.Json = False,
) -> None:
    """Answer a question about a video. The answer goes to stdout as it is written, everything else to stderr.

    \b
    Examples:
      vidllm ask clip.mp4 "what happens at 0:30?"
      vidllm ask clip.mp4 "describe the video." --from 1:00 --to 2:30 --frames 32
      vidllm ask clip.mp4 "when does the red circle move right?" --json | jq .cited
      vidllm ask clip.mp4 "who is speaking?" -m llava-hf/LLaVA-NeXT-Video-7B-hf --sheet seen.png
    """
    check_before_loading(video, sheet)
    with Progress() as progress:
        stream = load(model, progress, device=device, dtype=dtype, quantize=quantize).stream(
            video, question, progress=progress.stage, start=start, end=end, frames=frames, fps=fps, policy=policy,
            stride=stride, rope_max=rope_max, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed,
            reader=reader, fit=fit, snap=snap, subtitles=not no_subtitles,
        )  # fmt: skip
        if not as_json:
            progress.clear()
            for piece in stream:
                write(piece)
            write("\n")
        answer = stream.answer
    if as_json:
        write_json(answer.to_dict())
    if sheet is not None:
        _draw(answer, sheet, question)
    remark(answer)


def _draw(answer: Answer, sheet: Path, question: str) -> None:
    from vidllm.video.sheet import save_sheet

    clip = answer.clips[0]
    save_sheet(clip.frames, sheet, tokens=[frame.tokens for frame in clip.plan.frames], title=question)
    note(f"drew {len(clip.frames)} frames on {sheet}")
