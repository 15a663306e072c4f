"""The two fields of an interlaced picture as one packet, where a recording holds them in two.

    packets   t b t b F t b        t, b top and bottom field, F both in one picture
    joined    tb  tb  F tb         a packet a picture, as in mp4

FFmpeg takes a transport stream of H.264 apart by field and gives the second one no time: counted as pictures, they
made a clip of twice its length, with its last picture on screen for half of it. Each slice says what it is of: ITU-T
H.264 7.3.2.1.1 (sequence parameter set), 7.3.3 (slice header), 3.30 (complementary fields).
"""

from __future__ import annotations  # PyAV's Packet is generic for the type checker only

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from av.packet import Packet

from vidllm.video.access import H264_IDR, H264_SLICES, nal_length_size, nal_units

if TYPE_CHECKING:
    from vidllm.video.container import VideoPacket

H264_SPS = 7
HIGH_PROFILES = frozenset({44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244})
"""Their parameter sets tell of colour and scaling, too."""
SLICE_HEAD_BYTES, SPS_BYTES = 32, 2048
"""More than what stands before the field flags of a slice, and of a parameter set, can take."""


@dataclass(frozen=True)
class Field:
    """What one field says of itself."""

    frame_num: int
    is_bottom: bool
    is_reference: bool
    is_idr: bool

    def completes(self, first: Field) -> bool:
        """Whether it is the second one of the picture that `first` began."""
        alike = (self.frame_num, self.is_reference) == (first.frame_num, first.is_reference)
        return alike and self.is_bottom != first.is_bottom and not self.is_idr


@dataclass(frozen=True)
class FieldSyntax:
    """How the slices of an H.264 stream that may be interlaced are read."""

    length_size: int
    """As `nal_length_size`."""
    frame_num_bits: int
    has_planes: bool
    """Each colour is coded by itself."""

    @classmethod
    def of(cls, codec: str, extradata: bytes | None) -> FieldSyntax | None:
        """None for streams whose pictures are all frames, or that do not say."""
        if codec != "h264" or not extradata:
            return None
        length_size = nal_length_size(codec, extradata)
        units = [memoryview(extradata)[8:]] if length_size else nal_units(extradata, 0)  # behind avcC's six and two
        parameters = next((unit for unit in units if len(unit) and unit[0] & 0x1F == H264_SPS), None)
        try:
            return None if parameters is None else _syntax(_Bits(parameters[1:SPS_BYTES]), length_size)
        except ValueError:
            return None

    def field(self, packet: VideoPacket) -> Field | None:
        """The field that a packet holds; None for a whole picture, in whatever parts it is there."""
        slices = (unit for unit in nal_units(memoryview(packet), self.length_size) if unit[0] & 0x1F in H264_SLICES)
        try:
            parts = (self._field(unit[0], _Bits(unit[1:SLICE_HEAD_BYTES])) for unit in slices)
            first = next(parts, None)
            return first if first is not None and all(part == first for part in parts) else None
        except ValueError:
            return None

    def _field(self, head: int, bits: _Bits) -> Field | None:
        for _ in ("first macroblock", "kind", "picture parameter set"):
            bits.number()
        bits.take(2 * self.has_planes)
        frame_num = bits.take(self.frame_num_bits)
        if not bits.take(1):
            return None
        return Field(frame_num, bool(bits.take(1)), bool(head & 0x60), head & 0x1F == H264_IDR)


def joined(packets: Iterable[VideoPacket], syntax: FieldSyntax) -> Iterator[VideoPacket]:
    """The packets with every second field in its first one's; one whose other field is lost stays alone."""
    waiting: VideoPacket | None = None
    begun: Field | None = None
    for packet in packets:
        field = syntax.field(packet)
        if waiting is not None and begun is not None:
            whole = field is not None and field.completes(begun)
            yield _both(waiting, packet) if whole else waiting
            waiting = None
            if whole:
                continue
        if field is None:
            yield packet
        else:
            waiting, begun = packet, field
    if waiting is not None:
        yield waiting


def _both(first: VideoPacket, second: VideoPacket) -> VideoPacket:
    both: VideoPacket = Packet(bytes(first) + bytes(second))  # type: ignore[assignment]
    both.stream, both.time_base = first.stream, first.time_base
    both.pts, both.dts, both.is_keyframe = first.pts, first.dts, first.is_keyframe
    both.duration = (first.duration or 0) + (second.duration or 0)
    return both


def _syntax(bits: _Bits, length_size: int) -> FieldSyntax | None:
    profile = bits.take(8)
    bits.take(16)  # constraints, level
    bits.number()
    has_planes = _skip_colour(bits) if profile in HIGH_PROFILES else False
    frame_num_bits = bits.number() + 4
    order = bits.number()
    if order == 0:
        bits.number()
    elif order == 1:
        bits.take(1)
        bits.numbers(2)
        bits.numbers(bits.number())
    bits.number()  # frames referred to
    bits.take(1)  # gaps
    bits.numbers(2)  # width, height
    return None if bits.take(1) else FieldSyntax(length_size, frame_num_bits, has_planes)


def _skip_colour(bits: _Bits) -> bool:
    """Past what high profiles say of colour and scaling; whether each colour is coded by itself."""
    chroma = bits.number()
    has_planes = bool(bits.take(1)) if chroma == 3 else False
    bits.numbers(2)  # depths
    bits.take(1)
    if bits.take(1):
        for place in range(12 if chroma == 3 else 8):
            if bits.take(1):
                _skip_scaling(bits, 16 if place < 6 else 64)
    return has_planes


def _skip_scaling(bits: _Bits, size: int) -> None:
    last = 8
    for _ in range(size):
        code = bits.number()
        following = (last + ((code + 1) // 2 if code % 2 else -(code // 2))) % 256
        if not following:
            return  # the rest is as the last
        last = following


class _Bits:
    """Reads the bits of a NAL unit behind its first byte. ValueError where they end, or are none of H.264."""

    def __init__(self, unit: memoryview) -> None:
        data = bytes(unit).replace(b"\0\0\3", b"\0\0")  # bytes that keep start codes out
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        """The number in the next `count` bits."""
        self._left -= count
        if self._left < 0:
            raise ValueError("the data end")
        return self._value >> self._left & ((1 << count) - 1)

    def number(self) -> int:
        """The next Exp-Golomb code."""
        zeros = 0
        while not self.take(1):
            zeros += 1
            if zeros > 32:
                raise ValueError("no number is as long")
        return (1 << zeros) - 1 + self.take(zeros)

    def numbers(self, count: int) -> None:
        """Past so many of them."""
        for _ in range(count):
            self.number()
