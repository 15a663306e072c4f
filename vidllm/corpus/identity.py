"""Who a clip is: a digest of its coded pictures, equal for copies and for copies in another container; nothing decoded.

A container adds framing to the same coded pictures: start codes or lengths before NAL units, parameter sets repeated
or kept in the header, delimiters. So of H.264, H.265 and H.266 only the slices are read; packets of other codecs are
taken whole. Time counts too, coarsely, since containers round it: at twice the speed it is another clip.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import av.error

from vidllm.corpus.item import digest_of
from vidllm.video.access import nal_length_size, nal_units
from vidllm.video.container import VideoPacket, opened, pick_stream, video_packets
from vidllm.video.info import codec_name

RATE_STEP = math.log(1.05)
"""Rates are told apart in steps of five per cent."""
RATE_ORIGIN = math.log(25.15)
"""The middle of a step, chosen so that 10, 12, 12.5, 15, 20, 23.976, 24, 25, 29.97, 30, 48, 50 and 60 frames a second
all stay 0.4 % from a step's edge: rounding to Matroska's milliseconds moves the rate of a second of video by 0.1 %."""
KNOWN_CONTENTS = 64
"""Files whose digest a process remembers: the ranges of one long video follow each other."""


def content_id(path: str | Path, start: float | None = None, end: float | None = None) -> str:
    """32 hex digits for the content of `[start, end)` seconds of the clip: its bytes are read once, none decoded.

    Raises VideoNotFound, NotAVideo or VideoError where the file holds no video packets.
    """
    return digest_of(content_digest(path), None if not start else float(start), None if end is None else float(end))


def content_digest(path: str | Path) -> str:
    """32 hex digits for the whole clip's pictures and pace. Raises as `content_id`."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return _digest(str(path))  # raises what can be said about it
    return _remembered(str(path), status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(KNOWN_CONTENTS)
def _remembered(path: str, inode: int, size: int, mtime_ns: int) -> str:
    return _digest(path)


@dataclass
class _Pace:
    """First and last presentation time, in ticks of the time base, and how many packets had one."""

    packets: int = 0
    timed: int = 0
    first: int = 0
    last: int = 0

    def note(self, packet: VideoPacket) -> None:
        """Count one packet."""
        self.packets += 1
        time = packet.pts if packet.pts is not None else packet.dts
        if time is None:
            return
        self.first = time if not self.timed else min(self.first, time)
        self.last = time if not self.timed else max(self.last, time)
        self.timed += 1

    def step(self, tick: float) -> int | None:
        """Which step of five per cent the mean rate falls in; None where there is no rate."""
        span = (self.last - self.first) * tick
        return round((math.log((self.timed - 1) / span) - RATE_ORIGIN) / RATE_STEP) if span > 0 else None


def _digest(path: str) -> str:
    pace, pictures = _Pace(), hashlib.blake2b(digest_size=16)
    with opened(path, look_inside=False) as container:
        stream = pick_stream(container, path)
        codec = codec_name(stream)
        length_size = nal_length_size(codec, stream.codec_context.extradata)
        try:
            for packet in video_packets(container, stream):
                pace.note(packet)
                _feed(pictures, packet, codec, length_size)
        except av.error.FFmpegError:
            if not pace.packets:
                raise
        size = (stream.codec_context.width, stream.codec_context.height)
        step = pace.step(float(stream.time_base or 0))
    return digest_of(codec, size, pace.packets, step, pictures.hexdigest())


def _feed(pictures: "hashlib.blake2b", packet: VideoPacket, codec: str, length_size: int) -> None:
    """One packet's coded pictures, each behind its length, and whether an edit list hides it."""
    pictures.update(b"hidden" if packet.is_discard else b"shown")
    for part in _coded(memoryview(packet), codec, length_size):
        pictures.update(len(part).to_bytes(8, "little"))
        pictures.update(part)


def _coded(data: memoryview, codec: str, length_size: int) -> Iterator[bytes | memoryview]:
    if codec not in _IS_SLICE:
        yield data
        return
    is_slice, found = _IS_SLICE[codec], False
    for unit in nal_units(data, length_size):
        if is_slice(unit[0], unit[1]):
            found = True
            yield bytes(unit).rstrip(b"\0")  # zero bytes may be stuffed before the next start code
    if not found:
        yield data  # damaged, or framed in a way that is not known here: equal bytes are still equal


_IS_SLICE: dict[str, Callable[[int, int], bool]] = {
    "h264": lambda first, _: 1 <= first & 0x1F <= 5,
    "hevc": lambda first, _: first >> 1 & 0x3F < 32,
    "vvc": lambda _, second: second >> 3 < 12,
}
"""By the first two bytes of a NAL unit, whether it holds coded picture data (H.264 table 7-1, H.265 table 7-1, H.266
table 5)."""
