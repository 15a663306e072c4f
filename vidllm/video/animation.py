"""Picture files that move: told by their first bytes, for their endings do not say."""

import struct
from pathlib import Path
from typing import BinaryIO

_PNG = b"\x89PNG\r\n\x1a\n"
_WEBP_MOVES = 2
"""Bit of a WebP's flags (container specification, "Extended File Format")."""


def moves(path: str | Path) -> bool:
    """Whether the PNG or WebP at `path` is an animation; False for any other file, and for none."""
    try:
        with open(path, "rb") as file:
            head = file.read(21)
            if head.startswith(_PNG):
                return _png_frames(file) > 1
            return head[8:16] == b"WEBPVP8X" and len(head) > 20 and bool(head[20] & _WEBP_MOVES)
    except (OSError, ValueError):
        return False


def _png_frames(file: BinaryIO) -> int:
    """What the chunk `acTL`, which stands before the picture, says (APNG specification)."""
    place = len(_PNG)
    while True:
        file.seek(place)
        head = file.read(12)
        if len(head) < 12 or head[4:8] == b"IDAT":
            return 1
        if head[4:8] == b"acTL":
            return int(struct.unpack(">I", head[8:12])[0])
        place += 12 + int(struct.unpack(">I", head[:4])[0])
