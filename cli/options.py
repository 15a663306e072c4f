"""The options several commands share, said once: same word, same meaning, same default everywhere."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_type_hints

import typer

from vidllm.errors import ConfigError
from vidllm.video.address import plain_path
from vidllm.video.timecode import parse_time


def _seconds(text: str) -> float:
    try:
        return parse_time(text)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error


def place(text: str) -> Path:
    """A file or folder. "", a shell's variable that was never set, is refused; as a Path it is the folder we are in."""
    if not text:
        raise typer.BadParameter("the name is empty")
    return Path(text)


def _unless_empty(name: str | None) -> str | None:
    """A shell's variable that was never set is not the wish for the default."""
    if name == "":
        raise typer.BadParameter("the name is empty")
    return name


Video = Annotated[
    str, typer.Argument(metavar="VIDEO", help="A video file or an http(s) URL; ask, chat and plan take pictures, too.",
                        callback=lambda video: str(plain_path(video)), show_default=False)
]  # fmt: skip
Question = Annotated[
    str,
    typer.Argument(metavar="QUESTION", help="What to answer; times in it (0:30) draw the look.", show_default=False),
]
OptionalQuestion = Annotated[
    str, typer.Argument(metavar="QUESTION", help="The question to plan for; times in it draw the look.")
]
Model = Annotated[
    str | None,
    typer.Option(
        "-m",
        "--model",
        metavar="MODEL",
        help="A folder, a Hugging Face id or ID@COMMIT. Default: $VIDLLM_MODEL, else the small built-in one.",
        callback=_unless_empty,
        show_default=False,
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="D", help="cpu, mps, cuda, cuda:1, or auto: spread over all. Default: the best."),
]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option("--dtype", help="Number format. Default: what is fast and safe there.", show_default=False),
]
Quantize = Annotated[
    Literal["int8", "int4"] | None,
    typer.Option("--quantize", help="Keep the language model in so few bits; needs vidllm[quant].", show_default=False),
]
From = Annotated[
    float | None,
    typer.Option("--from", parser=_seconds, metavar="T", help="Look from here on: 90, 1:30, 1m30s or 0:01:30.5."),
]
To = Annotated[
    float | None,
    typer.Option("--to", parser=_seconds, metavar="T", help="Look up to here; the frame at T is not taken."),
]
Frames = Annotated[
    int | None,
    typer.Option("--frames", min=1, metavar="N", help="So many frames. Default: what fits, up to the model's own."),
]
Fps = Annotated[
    float | None,
    typer.Option("--fps", min=1e-6, metavar="F", help="Frames per second of the range; with --frames, the fewer."),
]
Policy = Annotated[
    Literal["auto", "uniform", "slowfast", "focus", "change"],
    typer.Option(
        "--policy",
        help="uniform: even steps, even tokens; slowfast: few fine, many coarse frames; focus: fine near the times the "
        "question names; change: those that, after a glance at the clip, show most of it; auto: focus when the "
        "question names a time, else uniform.",
    ),
]
Stride = Annotated[
    int | None,
    typer.Option("--stride", min=1, metavar="S", help="Pool every frame's patches S x S. Default: the model's own."),
]
RopeMax = Annotated[
    float,
    typer.Option("--rope-max", min=1.0, metavar="F", help="Positions may be stretched to so many contexts; 1: never."),
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option("--max-new-tokens", min=1, metavar="N", help="Room for the answer. Default: 256, less when tight."),
]
Temperature = Annotated[
    float, typer.Option("--temperature", min=0.0, metavar="T", help="0: always the likeliest word; higher: bolder.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, metavar="N", help="The same seed gives the same sample.")]
Reader = Annotated[
    Literal["auto", "pyav", "decord", "torchcodec"],
    typer.Option("--reader", help="Who decodes; auto: pyav, the one that is right on every clip measured."),
]
NoSubtitles = Annotated[bool, typer.Option("--no-subtitles", help="Leave out subtitles, beside the clip or in it.")]
Snap = Annotated[
    bool,
    typer.Option("--snap", help="Let a key frame stand in that is nearer than half a step between frames: faster."),
]
FitMode = Annotated[
    Literal["pad", "stretch", "crop"] | None,
    typer.Option("--fit", help="How a frame meets the model's square. Default: the model's own.", show_default=False),
]
REQUEST_SECONDS = 120.0
RequestTimeout = Annotated[
    float,
    typer.Option("--request-timeout", min=0.1, metavar="S", help="Seconds a server may take for one answer."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]

Words: TypeAlias = Mapping[str, Any]
"""What was said of one group of options, by name."""
UNSAID: Words = {}
Group: TypeAlias = Mapping[str, tuple[Any, Any]]
"""Options by name: what each is, and its default."""

RANGE: Group = {"start": (From, None), "end": (To, None)}
LOOK: Group = {
    "frames": (Frames, None), "fps": (Fps, None), "policy": (Policy, "auto"), "stride": (Stride, None),
    "rope_max": (RopeMax, 2.0), "max_new_tokens": (MaxNewTokens, None), "reader": (Reader, "auto"),
    "fit": (FitMode, None), "snap": (Snap, False), "no_subtitles": (NoSubtitles, False),
}  # fmt: skip
SAYING: Group = {"temperature": (Temperature, 0.0), "seed": (Seed, 0)}
PLACE: Group = {"device": (Device, None), "dtype": (Dtype, None), "quantize": (Quantize, None)}


def takes(**groups: Group) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A command's parameters of these names become the options of a group each: one word each on the command line, one
    mapping in the command, with the names of the library's own options.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        hints = get_type_hints(command, include_extras=True)
        taken: dict[str, inspect.Parameter] = {}
        for name, parameter in inspect.signature(command).parameters.items():
            own = {name: (hints[name], parameter.default)}
            for word, (kind, default) in groups.get(name, own).items():
                taken[word] = inspect.Parameter(word, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)

        @wraps(command)
        def run(**said: Any) -> Any:
            told = {group: {word: said.pop(word) for word in words} for group, words in groups.items()}
            for words in told.values():
                if "no_subtitles" in words:
                    words["subtitles"] = not words.pop("no_subtitles")
            return command(**said, **told)

        run.__signature__ = inspect.Signature(list(taken.values()))  # type: ignore[attr-defined]
        run.__annotations__ = {name: parameter.annotation for name, parameter in taken.items()}
        return run

    return decorate
