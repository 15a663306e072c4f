"""H.264 in fields, written bit by bit, for no encoder here makes it: pictures of one grey level each, uncompressed."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av

COLUMNS = 4
"""Macroblocks of 16 pixels side by side; a field is one row of them, a picture two."""
TICKS = 3600
"""Of a picture: 25 a second in ticks of 1/90000 s."""
GOP = 10


class Bits:
    """Bits that are written one behind the other."""

    def __init__(self) -> None:
        self.bits = ""

    def put(self, *numbers: tuple[int, int]) -> "Bits":
        """Each (number, bits)."""
        self.bits += "".join(f"{number:0{count}b}" for number, count in numbers)
        return self

    def golomb(self, *numbers: int) -> "Bits":
        """Each as an Exp-Golomb code."""
        return self.put(*((number + 1, 2 * (number + 1).bit_length() - 1) for number in numbers))

    def align(self) -> "Bits":
        self.bits += "0" * (-len(self.bits) % 8)
        return self

    def nal(self, head: int) -> bytes:
        """A NAL unit behind a start code, closed; a level of at least 4 needs nothing to keep start codes out."""
        whole = self.put((1, 1)).align().bits
        return b"\0\0\0\1" + bytes([head]) + int(whole, 2).to_bytes(len(whole) // 8, "big")


def parameters() -> bytes:
    """Sequence and picture parameter sets: pictures may be in fields, and 25 come in a second."""
    sequence = Bits().put((77, 8), (0, 8), (30, 8)).golomb(0, 0, 0, 4, 1).put((0, 1)).golomb(COLUMNS - 1, 0)
    sequence.put((0b001, 3), (0, 1), (1, 1), (0b0000, 4), (1, 1), (1, 32), (50, 32), (1, 1), (0, 4))
    picture = Bits().golomb(0, 0).put((0, 2)).golomb(0, 0, 0).put((0, 3)).golomb(0, 0, 0).put((0b100, 3))
    return sequence.nal(0x67) + picture.nal(0x68)


def coded(number: int, level: int, field: int | None) -> bytes:
    """Picture `number` in one grey level, or its top (0) or bottom (1) field."""
    place = number % GOP
    is_idr = place == 0 and field != 1
    bits = Bits().golomb(0, 7, 0).put((place, 4), (field is not None, 1))
    if field is not None:
        bits.put((field, 1))
    if is_idr:
        bits.golomb(number % 2)
    bits.put((2 * place + (field or 0), 8), (0, 2 if is_idr else 1)).golomb(0, 1)
    for _ in range(COLUMNS * (2 if field is None else 1)):
        bits.golomb(25).align().put(*[(level, 8)] * 256, *[(128, 8)] * 128)
    opening = b"\0\0\0\1\x09\x10" + (parameters() if is_idr else b"")
    return opening + bits.nal(0x65 if is_idr else 0x21)


def write_interlaced(path: Path, levels: Sequence[int], *, whole: Sequence[int] = (), apart: bool = False) -> Path:
    """A picture of each grey level, 25 a second: those numbered in `whole` as frames, the others as two fields, which
    have packets and times of their own where they are `apart`.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16 * COLUMNS, 32, "yuv420p"
        stream.time_base = Fraction(1, 90_000)
        stream.codec_context.extradata = parameters()
        for number, level in enumerate(levels):
            parts = [coded(number, level, field) for field in ([None] if number in whole else [0, 1])]
            for place, data in enumerate(parts if apart else [b"".join(parts)]):
                packet = av.Packet(data)
                packet.stream, packet.time_base = stream, stream.time_base
                packet.pts = packet.dts = 90_000 + number * TICKS + place * TICKS // 2
                packet.is_keyframe = number % GOP == 0 and place == 0
                container.mux(packet)
    return path
