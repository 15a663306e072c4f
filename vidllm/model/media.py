"""What stands in the prompt's text for one medium: a placeholder per run of visual tokens, and the frames' times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Literal

from vidllm.geometry import NativeGeometry
from vidllm.model.spec import ModelSpec
from vidllm.video.timecode import format_time


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One medium as its text knows it. A video has the times of its frames, and its duration, in seconds."""

    kind: Literal["image", "video"]
    times: tuple[float, ...] = ()
    duration: float = 0.0
    subtitles: tuple[str, ...] = ()
    tiles: int = 1
    """Of an image whose tiles have words between them: a placeholder for each."""
    cols: int = 1
    """Of these in a row."""


def runs_of(shown: Shown, spec: ModelSpec) -> int:
    """How many placeholders a medium has: one per frame, tile, native group, or (`one_run`) one in all."""
    if shown.kind == "image" or spec.one_run:
        return shown.tiles
    return spec.geometry.groups(len(shown.times)) if isinstance(spec.geometry, NativeGeometry) else len(shown.times)


def medium_text(shown: Shown, spec: ModelSpec) -> str:
    """What stands in the prompt for one medium: a placeholder per run, and the times as the family tells them."""
    picture = spec.picture_text.replace("{tiles}", _tiles_text(shown, spec)).replace("{image}", spec.image_token)
    if shown.kind == "image":
        return picture
    if spec.model_type == "smolvlm":
        return _smolvlm_text(shown, picture)
    if spec.one_run:
        return marker(shown, spec)
    if spec.group_text:
        return _dated_groups(shown, spec)
    form = (spec.frame_text if spec.stamp == "interleaved" else spec.bare_frame_text).replace("{image}", picture)
    decimals = stamp_decimals(shown.times) if spec.stamp_decimals is None else spec.stamp_decimals
    frames = [
        form.replace("{time}", format_time(t, decimals=decimals)).replace("{number}", str(number))
        for number, t in enumerate(shown.times, 1)
    ]
    return "".join(frames).removesuffix("\n" if spec.media_end_lines else "")


def _tiles_text(shown: Shown, spec: ModelSpec) -> str:
    """What stands before the visual tokens of the last tile."""

    def counted(text: str, number: int) -> str:
        row, col = divmod(number - 1, shown.cols)
        places = {"{number}": number, "{row}": row + 1, "{col}": col + 1}
        for name, value in places.items():
            text = text.replace(name, str(value))
        return text

    if shown.tiles == 1:
        return ""
    before = [counted(spec.tile_text, number) for number in range(1, shown.tiles)]
    return "".join([*before, counted(spec.last_tile_text, shown.tiles)])


def stamp_decimals(times: Sequence[float]) -> int:
    """Decimals that keep frame times apart: none when frames are a second or more apart, else one or two.

    One picture that stands for several moments of a damaged clip has one time, which no decimals tell apart.
    """
    gap = min((b - a for a, b in pairwise(times) if b > a), default=1.0)
    return 0 if gap >= 1 else 1 if gap >= 0.1 else 2


def time_sentence(shown: Shown) -> str:
    """LLaVA-Video's time instruction, to the byte: the missing space after the period was trained so."""
    at = ",".join(f"{t:.2f}s" for t in shown.times)
    return (
        f"The video lasts for {shown.duration:.2f} seconds, and {len(shown.times)} frames are uniformly sampled from "
        f"it. These frames are located at {at}.Please answer the following questions related to this video."
    )


def _dated_groups(shown: Shown, spec: ModelSpec) -> str:
    assert isinstance(spec.geometry, NativeGeometry)
    tokens = {"image": spec.image_token, "video": spec.video_token}
    size = spec.geometry.temporal_patch
    groups = [shown.times[i : i + size] for i in range(0, len(shown.times), size)]
    # A group short of a frame repeats the last one, so its middle is the mean of first and last all the same.
    return spec.group_joint.join(
        spec.group_text.format(
            first=group[0], second=int(group[0]), middle=(group[0] + group[-1]) / 2, clock=_clock(group[0]), **tokens
        )
        for group in groups
    )  # fmt: skip


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60):02d}:{int(seconds % 60):02d}"


def _smolvlm_text(shown: Shown, picture: str) -> str:
    frames = [f"\nFrame from {_clock(time)}:{picture}" for time in shown.times]
    intro = (
        f"You are provided the following series of {number_words(len(shown.times))} frames from a "
        f"{timedelta(seconds=int(shown.duration))} [H:MM:SS] video.\n"
    )
    return intro + "".join(frames) + "\n\n"


_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def number_words(number: int) -> str:
    """0 to 999,999 in English words, as SmolVLM's prompt counts its frames: 132 is "one hundred and thirty-two"."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        return f"{_ONES[hundreds]} hundred" + (f" and {number_words(rest)}" if rest else "")
    thousands, rest = divmod(number, 1000)
    joint = " and " if rest < 100 else ", "
    return f"{number_words(thousands)} thousand" + (joint + number_words(rest) if rest else "")


def marker(shown: Shown, spec: ModelSpec) -> str:
    """What the chat template prints for a medium. Composable models see a video as one image that becomes frames."""
    if shown.kind == "image" or spec.kind == "composable":
        return spec.image_marker or spec.image_token
    return spec.video_token or "<video>"
