"""Opening a file with FFmpeg's libraries: closed on every way out, and every foreign error told in our words.

Notable: the path is always opened as `file:PATH` with only the file protocol allowed, so neither a name such as
`concat:a|b` nor a playlist inside a file can make the demuxer reach for another place.
PyAV by itself keeps FFmpeg's log off the terminal; its Python log callback (any `av.logging.set_level`) can dead-lock
with decoder threads, so it stays off.
"""

from __future__ import annotations  # PyAV's Packet is generic for the type checker only

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import av
import av.error
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from vidllm.errors import NotAVideo, VideoError, VideoNotFound
from vidllm.video.animation import moves
from vidllm.video.fields import FieldSyntax, joined

VideoPacket: TypeAlias = "Packet[VideoStream]"

# Formats that only point at other files, and text art, are no clips even where FFmpeg finds a "video" in them.
REFUSED_FORMATS = frozenset({"hls", "concat", "dash", "tty", "bin", "xbin", "adf", "idf", "applehttp"})


# Containers that tell times and sizes themselves: FFmpeg need not decode frames to find them out while opening, which
# for H.264 without reordering hints means seven frames. Others, such as AVI, need it for their presentation times.
SELF_DESCRIBING = ("mov,", "matroska,")


@contextmanager
def opened(path: str | Path, *, look_inside: bool = True) -> Iterator[InputContainer]:
    """Open `path` for reading; errors of FFmpeg inside the block come out as `VideoError`s naming the file.

    Without `look_inside` FFmpeg decodes nothing while opening: right for `SELF_DESCRIBING` containers only.
    """
    check_file(path)
    try:
        with av.open(
            f"file:{path}",
            metadata_errors="replace",
            container_options={"protocol_whitelist": "file"},
            options={} if look_inside else {"skip_frame": "all"},
        ) as container:
            if REFUSED_FORMATS & set(container.format.name.split(",")):
                raise NotAVideo(f"{path}: a {container.format.name} file is no clip; give the video file itself")
            if container.format.name == "webp_pipe" and moves(path):
                raise NotAVideo(f"{path}: an animated WebP, which FFmpeg does not read; save it as GIF, APNG or mp4")
            yield container
    except av.error.FFmpegError as error:
        raise as_video_error(path, error) from error


def check_file(path: str | Path) -> None:
    """Raise `VideoNotFound`, `NotAVideo` or `VideoError` where a look at the file system already tells the end."""
    _check_name(path)
    if path == "":  # a shell's variable that was never set; as a Path it would be the folder we are in
        raise VideoNotFound("the video's name is empty; give a file, or an http(s) URL")
    try:
        file = Path(path)
        if file.is_dir():
            raise VideoNotFound(f"{path}: is a folder; name one video file inside it")
        if not file.exists():
            raise VideoNotFound(f"{path}: no such file; check the spelling and the folder you are in")
        if file.is_file() and file.stat().st_size == 0:
            raise NotAVideo(f"{path}: the file is empty (0 bytes); copy or download it again")
    except (OSError, ValueError) as error:  # too long, a null byte, a folder closed to us
        raise VideoNotFound(f"{path!r}: can not be looked up ({error}); check the path") from error


def refuse_pipe(path: str | Path) -> None:
    """Raise `NotAVideo` for what is no file: a pipe is empty when its index has been read, and may block for ever."""
    _check_name(path)
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return  # whoever opens it says what is wrong
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise NotAVideo(f"{path}: a pipe or a device, which can be read only once; write it to a file first")


def _check_name(path: object) -> None:
    if not isinstance(path, str | Path):  # a number is a file of ours that is open, to the system
        raise VideoNotFound(f"a video's name can not be of type {type(path).__name__}; give a path")


def as_video_error(path: str | Path, error: av.error.FFmpegError) -> VideoError:
    """Our error for one of FFmpeg's: what, where, what to do next, on one line."""
    if isinstance(error, av.error.PermissionError):
        return VideoError(f"{path}: may not be read; check its permissions")
    if isinstance(error, (av.error.InvalidDataError, av.error.EOFError)):
        return NotAVideo(
            f"{path}: not a readable video (no video data, damaged, cut short or encrypted); "
            "check that it plays, or copy it again"
        )
    if isinstance(error, av.error.DecoderNotFoundError):
        return VideoError(f"{path}: no decoder for its video codec here; convert it to H.264 or AV1")
    reason = " ".join(str(error.strerror or error).split())
    return VideoError(f"{path}: FFmpeg can not read it ({reason}); check that it plays, or convert it to mp4")


def pick_stream(container: InputContainer, path: str | Path, index: int | None = None) -> VideoStream:
    """The stream a player would show, or the one with `index`; cover art is not a video. Raises `NotAVideo`."""
    stream = _named_stream(container, path, index) if index is not None else container.streams.best("video")
    if not isinstance(stream, VideoStream):
        raise NotAVideo(f"{path}: holds no video stream (audio, subtitles or nothing); give a file with pictures")
    if stream.disposition & stream.disposition.attached_pic:
        raise NotAVideo(f"{path}: its only picture is the cover of an audio file; give a file with video")
    if index is None and stream.frames < 2 and _tiles(container) > 1:
        raise NotAVideo(f"{path}: a picture in tiles (HEIC, AVIF), of which FFmpeg shows one; save it as JPEG or PNG")
    if stream.codec_context is None:
        raise VideoError(f"{path}: no decoder for its video codec here; convert it to H.264 or AV1")
    if not stream.time_base:
        raise NotAVideo(f"{path}: its video stream has no clock; copy the file again or convert it to mp4")
    return stream


def _tiles(container: InputContainer) -> int:
    """How many of its streams are parts of one picture, as phones save their photographs."""
    if not container.format.name.startswith("mov,"):
        return 0
    return sum(bool(stream.disposition & stream.disposition.dependent) for stream in container.streams.video)


def _named_stream(container: InputContainer, path: str | Path, index: int) -> object:
    videos = [stream.index for stream in container.streams.video]
    if index not in videos:
        raise VideoError(f"{path}: stream {index} is no video stream; its video streams are {videos}")
    return container.streams[index]


def video_packets(container: InputContainer, stream: VideoStream) -> Iterator[VideoPacket]:
    """The stream's packets in decoding order, one a picture, without the empty ones that only mean "end"."""
    context = stream.codec_context
    syntax = FieldSyntax.of(context.codec.canonical_name, context.extradata)
    packets = _demuxed(container, stream)
    return packets if syntax is None else joined(packets, syntax)


def _demuxed(container: InputContainer, stream: VideoStream) -> Iterator[VideoPacket]:
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except IndexError:
        return  # PyAV asks streams that came up while it read for their last packets, and does not know them
