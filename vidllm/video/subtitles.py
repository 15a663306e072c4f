"""What is said while the frames are on screen: a sidecar .srt/.vtt, or else a text track inside the file.

A sidecar is named like the clip (`talk.mp4`: `talk.srt`, `talk.vtt`, `talk.en.srt`, ...) and counts from 0:00 of the
viewer's clock, as players take it. Times of an embedded track are the container's and are moved to that clock.
Picture subtitles (PGS, VobSub) hold no text and are passed over.
"""

from __future__ import annotations  # PyAV's Packet is generic for the type checker only

import html
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import av.error
from av.container import InputContainer
from av.packet import Packet
from av.subtitles.stream import SubtitleStream
from av.subtitles.subtitle import AssSubtitle

from vidllm.errors import VideoError
from vidllm.video.container import opened
from vidllm.video.encodings import decoded
from vidllm.video.info import VideoInfo
from vidllm.video.timecode import format_time

EXTENSIONS = ("srt", "vtt")
LANGUAGES = ("", "en", "eng", "en-US", "en-GB", "zh", "chi", "zho", "zh-CN", "zh-Hans", "zh-TW", "zh-Hant")
"""Looked for in this order, by name: listing a folder of a million clips for each of them would not end."""
LISTED_FOLDERS = 8
MAX_SIDECAR_BYTES = 16 << 20
UNKNOWN_LENGTH_SECONDS = 4.0
"""How long an embedded line without a duration stays, if no next one ends it sooner."""
LOOK_BACK_SECONDS = 30.0
"""A line that began this long before the range may still be on screen in it."""


@dataclass(frozen=True)
class Line:
    """One subtitle: on screen in `[start, end)` seconds of the viewer's clock. Its text is one line."""

    start: float
    end: float
    text: str

    def __str__(self) -> str:
        return f"[{format_time(self.start)}] {self.text}"


def read_subtitles(info: VideoInfo, start: float = 0.0, end: float = float("inf")) -> tuple[Line, ...]:
    """The lines on screen at some moment of `[start, end)`, in order; none when the clip has no subtitles.

    Raises `VideoError` when a sidecar is there and can not be read, rather than to act as if it were not.
    """
    sidecar = find_sidecar(info.path)
    lines = _sidecar_lines(sidecar) if sidecar is not None else ()
    if not lines and info.subtitle_streams:
        lines = _embedded_lines(info, start, end)
    return tuple(_without_echoes(line for line in lines if line.start < end and line.end > start))


def find_sidecar(path: str | Path) -> Path | None:
    """The subtitle file that lies beside the clip at `path`, if one does."""
    clip = Path(path)
    for name in _sidecar_names(clip.stem):
        if os.path.isfile(sidecar := clip.with_name(name)):  # False, too, where the clip's is the longest of names
            return sidecar
    return None


def find_sidecar_of_many(path: str | Path) -> Path | None:
    """`find_sidecar` for one clip after the other: their folder is listed once, and again when it has changed."""
    clip = Path(path)
    try:
        listed = _subtitle_files(str(clip.parent), os.stat(clip.parent).st_mtime_ns)
    except (OSError, ValueError):
        return None
    if not listed:
        return None
    names = (name for name in _sidecar_names(clip.stem) if name in listed)
    return next((clip.with_name(name) for name in names if clip.with_name(name).is_file()), None)


def _sidecar_names(stem: str) -> Iterator[str]:
    """What the subtitles of a clip may be called, in the order in which they are looked for."""
    for language in LANGUAGES:
        for extension in (*EXTENSIONS, *map(str.upper, EXTENSIONS)):  # Windows and DVD tools write TALK.SRT
            yield ".".join(filter(None, [stem, language, extension]))


@lru_cache(LISTED_FOLDERS)
def _subtitle_files(folder: str, mtime_ns: int) -> frozenset[str]:
    """Names of the subtitle files in a folder. Raises OSError."""
    with os.scandir(folder) as entries:
        return frozenset(entry.name for entry in entries if entry.name.lower().endswith(EXTENSIONS))


def _sidecar_lines(path: Path) -> tuple[Line, ...]:
    try:
        if path.stat().st_size > MAX_SIDECAR_BYTES:
            raise VideoError(f"{path}: too large for subtitles ({path.stat().st_size} bytes); leave subtitles out")
        lines = [line for line in _cues(decoded(path.read_bytes())) if line.text and line.end > line.start]
    except (OSError, ValueError) as error:
        raise VideoError(f"{path}: can not be read as subtitles ({error}); mend it or leave subtitles out") from error
    return tuple(sorted(lines, key=lambda line: (line.start, line.end)))


_TIME = r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2})(?:[.,](\d{1,9}))?"
_NUMBER = r"(?:[ \t]*\d+[ \t]*\n|(?<=\n\n)[ \t]*\d+\s*\n)"
_TIMES = re.compile(rf"^{_NUMBER}?[ \t]*{_TIME}[ \t]*--? ?>[ \t]*{_TIME}.*", re.MULTILINE)
"""When a cue is shown, and its number on a line before: hours may be left out, and so may parts of a second;
machine translation shortens the arrow."""


def _cues(text: str) -> Iterator[Line]:
    """What the file holds, SubRip or WebVTT, whatever its ending: many carry the other one's.

    A cue says what stands between its times and the next one's, of WebVTT up to an empty line: notes, styles and the
    names of cues, which nobody says, come behind one. Raises ValueError where there are times and none that can be
    read: silence would pass for no subtitles.
    """
    text = re.sub(r"\r{0,2}\n|\r", "\n", text.replace("\ufeff", ""))  # which marks each of files that were joined
    is_webvtt = text.lstrip().startswith("WEBVTT")
    times = list(_TIMES.finditer(text))
    if not times and "-->" in text:
        raise ValueError("no time in it is written as 00:01:02,500")
    for found, following in zip(times, [*times[1:], None], strict=False):
        said = text[found.end() : following.start() if following else len(text)]
        start, end = _seconds(*found.groups()[:4]), _seconds(*found.groups()[4:])
        yield Line(start, end, _plain(said.partition("\n\n")[0] if is_webvtt else said))


def _seconds(hours: str | None, minutes: str, seconds: str, fraction: str | None) -> float:
    thousandths = int(f"{seconds}{(fraction or '')[:3]:0<3}")
    return (int(hours or 0) * 3_600_000 + int(minutes) * 60_000 + thousandths) / 1000


def _embedded_lines(info: VideoInfo, start: float, end: float) -> tuple[Line, ...]:
    """Lines of the first track that holds text in the range."""
    for index in info.subtitle_streams:
        if lines := tuple(_track_lines(info, index, start, end)):
            return lines
    return ()


def _track_lines(info: VideoInfo, index: int, start: float, end: float) -> Iterator[Line]:
    found = sorted(_packets(info, index, start, end))
    nexts = [*(begin for begin, _, _ in found[1:]), float("inf")]
    for (begin, length, text), following in zip(found, nexts, strict=False):  # a silent track has no line and no next
        yield Line(begin, begin + length if length > 0 else min(begin + UNKNOWN_LENGTH_SECONDS, following), text)


def _packets(info: VideoInfo, index: int, start: float, end: float) -> Iterator[tuple[float, float, str]]:
    """(start, length, text) of the track's packets; the file is read from shortly before the range to its end only."""
    first = float(info.pts[0] * info.time_base)
    with opened(info.path) as container:
        stream = container.streams[index]
        if not isinstance(stream, SubtitleStream) or not stream.time_base:
            return
        if start > LOOK_BACK_SECONDS:
            container.seek(int((start - LOOK_BACK_SECONDS + first) * 1_000_000))
        for packet in _demuxed(container, stream):
            if packet.pts is None:
                continue
            begin = float(packet.pts * stream.time_base) - first
            if begin >= end:
                return
            texts = [_plain(_dialogue(part)) for part in _decoded(packet) if isinstance(part, AssSubtitle)]
            if text := " ".join(filter(None, texts)):
                yield begin, float((packet.duration or 0) * stream.time_base), text


def _demuxed(container: InputContainer, stream: SubtitleStream) -> Iterator[Packet[SubtitleStream]]:
    """The track's packets up to where the file can no longer be read: its frames end there, too."""
    try:
        yield from container.demux(stream)
    except (av.error.FFmpegError, IndexError):  # as `video_packets`
        return


def _decoded(packet: Packet[SubtitleStream]) -> Sequence[object]:
    """What the packet holds; nothing where it is broken, or where FFmpeg has no decoder for the track: teletext and
    Japanese captions are of recordings whose pictures are fine."""
    try:
        return packet.decode()
    except av.error.FFmpegError:
        return ()


def _dialogue(subtitle: AssSubtitle) -> str:
    import pysubs2  # a plan without such a track need not wait for it

    event = pysubs2.SSAEvent(text=subtitle.dialogue.decode("utf-8", "replace"))
    return "" if event.is_drawing else event.plaintext  # a shape's outline is no word


_MARKUP = re.compile(r"</?[A-Za-z][^<>]*>|<\d+:[\d:.,]+>|\{\\[^{}]*\}")
"""Tags, the times of single words, and what SubStation writes into a line; but not what stands in "3 < 5 and 7 > 6"."""


def _plain(text: str) -> str:
    """Text without markup, its lines kept apart."""
    bare = html.unescape(_MARKUP.sub("", text).replace(r"\N", "\n").replace(r"\h", " "))
    return "\n".join(filter(None, (" ".join(line.split()) for line in bare.splitlines())))


def _without_echoes(lines: Iterable[Line]) -> Iterator[Line]:
    """Each line once: automatic captions roll, and every one of them repeats what the one before it said last."""
    before: list[str] = []
    until = float("-inf")
    for line in lines:
        said = line.text.split("\n")
        fresh = [part for part in said if part not in before] if line.start <= until + 0.1 else said
        before, until = said, line.end
        if fresh:
            yield Line(max(line.start, 0.0), line.end, " ".join(fresh))
