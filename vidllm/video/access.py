"""Which packets a decoder may start at and still be right.

A container's key flag is a claim: files without a sync table flag every packet, and a "key" packet of a gradual
refresh decodes without complaint into other pixels than a decoder that came from the start would show. So for the
codecs whose packets say what they are, the packet is read: ITU-T H.264 7.4.1.2.4 and D.2.8 (recovery point SEI),
H.265 table 7-1, H.266 table 5; VP8 RFC 6386 9.1, VP9 bitstream 6.2 for frames that are decoded but never shown.
"""

from collections.abc import Callable, Iterator
from typing import TypeAlias

# Codecs whose key flag means "decodable from here" by construction. Any other codec is decoded from its first packet:
# of H.263 in an AVI every packet is flagged.
TRUSTED_KEY_FLAG = frozenset(
    {"vp8", "vp9", "av1", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "flv1", "prores", "dnxhd", "ffv1"}
)

H264_IDR, H264_SEI, SEI_RECOVERY_POINT = 5, 6, 6
H264_SLICES = range(1, 6)
HEVC_SLICES = range(32)
HEVC_IRAP = range(16, 22)  # BLA, IDR and CRA
VVC_IRAP = range(7, 10)  # IDR and CRA; 10 is gradual refresh

Packet: TypeAlias = "bytes | memoryview"
AccessRule: TypeAlias = Callable[[Packet], bool]


def access_rule(codec: str, extradata: bytes | None) -> AccessRule:
    """The test for a key-flagged packet of this stream: may decoding start there?"""
    length_size = nal_length_size(codec, extradata)
    if codec == "h264":
        return lambda packet: _h264_starts(packet, length_size)
    if codec == "hevc":
        return lambda packet: any((nal[0] >> 1) & 0x3F in HEVC_IRAP for nal in nal_units(packet, length_size))
    if codec == "vvc":
        return lambda packet: any(nal[1] >> 3 in VVC_IRAP for nal in nal_units(packet, length_size))
    return lambda _: codec in TRUSTED_KEY_FLAG


def nal_length_size(codec: str, extradata: bytes | None) -> int:
    """Bytes of the length before each NAL unit; 0 where start codes part them (ISO/IEC 14496-15)."""
    if not extradata or extradata[:3] == b"\0\0\1" or extradata[:4] == b"\0\0\0\1":
        return 0
    if codec == "h264" and len(extradata) > 4:
        return (extradata[4] & 3) + 1
    if codec == "hevc" and len(extradata) > 21:
        return (extradata[21] & 3) + 1
    return 4


def nal_units(packet: Packet, length_size: int) -> Iterator[memoryview]:
    """The NAL units of one packet, at least two bytes each; stops quietly where the packet is broken."""
    data = memoryview(packet)
    cut = _by_length(data, length_size) if length_size else _by_start_code(data)
    return (unit for unit in cut if len(unit) >= 2)


def _by_length(data: memoryview, length_size: int) -> Iterator[memoryview]:
    at = 0
    while at + length_size < len(data):
        length = int.from_bytes(data[at : at + length_size], "big")
        at += length_size
        yield data[at : at + length]
        at += length


def _by_start_code(data: memoryview) -> Iterator[memoryview]:
    flat = bytes(data)
    at = flat.find(b"\0\0\1")
    while at >= 0:
        end = flat.find(b"\0\0\1", at + 3)
        yield data[at + 3 : end if end >= 0 else len(data)]
        at = end


def _h264_starts(packet: Packet, length_size: int) -> bool:
    """An IDR picture, or a recovery point that needs no further frames to recover."""
    recovered = False
    for nal in nal_units(packet, length_size):
        kind = nal[0] & 0x1F
        if kind == H264_IDR:
            return True
        if kind == H264_SEI:
            recovered = recovered or _recovers_at_once(nal[1:])
        elif 1 <= kind < H264_IDR:
            return recovered
    return False


def _recovers_at_once(sei: memoryview) -> bool:
    """Whether the SEI messages hold a recovery point with recovery_frame_cnt 0 (the one-bit code "1")."""
    at = 0
    while at + 2 < len(sei):
        kind, at = _sei_number(sei, at)
        size, at = _sei_number(sei, at)
        if kind == SEI_RECOVERY_POINT and at < len(sei):
            return bool(sei[at] & 0x80)
        at += size
    return False


def _sei_number(sei: memoryview, at: int) -> tuple[int, int]:
    """A payload type or size: bytes of 255 add up until a smaller one ends it. Returns the number and what follows."""
    total = 0
    while at < len(sei) and sei[at] == 0xFF:
        total, at = total + 255, at + 1
    return (total + sei[at], at + 1) if at < len(sei) else (total, at)


def droppable(codec: str, extradata: bytes | None) -> AccessRule | None:
    """The test for a packet no other frame refers to: without it every other frame is bit for bit the same.

    H.264: nal_ref_idc is 0 in all its slices. HEVC: a sub-layer non-reference picture, where the stream declares a
    single temporal layer (higher layers may refer to them). None for codecs whose packets are not read here.
    """
    length_size = nal_length_size(codec, extradata)
    if not length_size or not extradata:
        return None
    if codec == "h264":
        return lambda packet: _all_slices(packet, length_size, lambda head: (head & 0x1F, not head & 0x60), H264_SLICES)
    if codec == "hevc" and len(extradata) > 22 and extradata[21] >> 3 & 7 == 1:
        return lambda packet: _all_slices(packet, length_size, _hevc_kind, HEVC_SLICES)
    return None


def _hevc_kind(head: int) -> tuple[int, bool]:
    """The NAL unit type in a header's first byte, and whether it is one of the even types below 16 (`..._N`)."""
    kind = head >> 1 & 0x3F
    return kind, kind < 16 and kind % 2 == 0


def _all_slices(packet: Packet, length_size: int, kind_of: Callable[[int], tuple[int, bool]], slices: range) -> bool:
    """Whether the packet holds slices and each of them serves nobody. Walks the lengths only: it runs per packet."""
    data = memoryview(packet)
    at, end, found = 0, len(data), False
    while at + length_size < end:
        kind, unreferenced = kind_of(data[at + length_size])
        if kind in slices:
            if not unreferenced:
                return False
            found = True
        at += length_size + int.from_bytes(data[at : at + length_size], "big")
    return found


def is_hidden(codec: str, packet: Packet) -> bool:
    """A VP8 or VP9 packet whose frame only serves others and is never on screen."""
    if codec == "vp8":
        return not packet[0] & 0x10
    return codec == "vp9" and _vp9_hidden(packet)


def _vp9_hidden(data: Packet) -> bool:
    if data[-1] & 0xE0 == 0xC0:  # a superframe packs hidden frames together with a shown one
        return False
    # bits: marker 2, profile 2, (of profile 3 a reserved one), show_existing_frame, frame_type, show_frame, ...
    show_existing, show_frame = (0x04, 0x01) if data[0] & 0x30 == 0x30 else (0x08, 0x02)
    return not data[0] & (show_existing | show_frame)
