"""What belongs on stderr beside an answer: what was seen, what could not be done as asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidllm.counts import count_of

from .output import note

if TYPE_CHECKING:
    from vidllm.answer import Answer


def remark(answer: Answer, before: Answer | None = None) -> None:
    """Everything about an answer that its reader should know and that is no part of it.

    What was seen is not said again when it is what the answer `before` rests on.
    """
    if before is None or before.frames != answer.frames:
        note(_seen(answer))
    for said in answer.notes:
        note(f"note: {said}")
    if answer.finish_reason == "length":
        note(f"note: cut after {count_of(answer.usage.answer_tokens, 'token')}; --max-new-tokens makes room for more")
    if answer.finish_reason == "repetition":
        note("note: stopped, because the answer went in a circle; --temperature 0.7 may lead out of it")
    for cited in answer.cited:
        if not cited.seen:
            note(f"note: {cited.text} was not looked at{_nearest(cited.nearest)}")


def _seen(answer: Answer) -> str:
    from vidllm.video.timecode import format_time

    times = [frame.time for frame in answer.frames if frame.time is not None]
    span = f" from {format_time(times[0])} to {format_time(times[-1])}" if times else ""
    usage, timing = answer.usage, answer.timing
    seconds = timing.probe + timing.decode + timing.encode + timing.prefill + timing.generate
    return (
        f"saw {count_of(len(answer.frames), 'frame')}{span}, {usage.video_tokens} + {usage.text_tokens} tokens, "
        f"read by {answer.reader or 'pillow'}, {seconds:.1f} s"
    )


def _nearest(time: float | None) -> str:
    from vidllm.video.timecode import format_time

    return "" if time is None else f"; the nearest frame seen is {format_time(time, decimals=1)}"
