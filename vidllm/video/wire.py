"""Values between the guard and its child: a JSON head and raw array bytes, read straight into the final array.

No pickle: what a child sends may be written by a decoder that a hostile file has taken over, and unpickling runs code.

    | 4 bytes: length of the head | head: JSON | bytes of array 0 | bytes of array 1 | ...
"""

import json
import math
import struct
from collections.abc import Callable
from dataclasses import fields
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vidllm.video.decode import FrameSet
from vidllm.video.info import VideoInfo

VALUES: dict[str, Callable[..., Any]] = {"FrameSet": FrameSet, "VideoInfo": VideoInfo}
"""The dataclasses that may travel."""
_LENGTH = struct.Struct("<I")
MAX_HEAD_BYTES = 64 << 20


class BrokenMessage(Exception):
    """The other side ended, or what it sent is not a message."""


def send(stream: BinaryIO, value: object) -> None:
    """Write one message; `value` holds None, bool, int, float, str, lists, dicts, arrays, fractions and `VALUES`."""
    arrays: list[NDArray[Any]] = []
    head = json.dumps(_pack(value, arrays)).encode()
    _write(stream, _LENGTH.pack(len(head)) + head)
    for array in arrays:
        _write(stream, _bytes_of(np.ascontiguousarray(array)) if array.size else b"")


def receive(stream: BinaryIO, *, max_bytes: int = 1 << 62) -> Any:
    """Read one message whose arrays together hold at most `max_bytes`. Raises `BrokenMessage`."""
    length = _LENGTH.unpack(_read(stream, bytearray(_LENGTH.size)))[0]
    if length > MAX_HEAD_BYTES:
        raise BrokenMessage(f"a head of {length} bytes")
    try:
        return _unpack(json.loads(bytes(_read(stream, bytearray(length)))), _Arrays(stream, max_bytes))
    except (ValueError, TypeError, KeyError) as error:
        raise BrokenMessage(f"not a message: {error}") from error


class _Arrays:
    """Reads arrays off the stream in the order they were packed."""

    def __init__(self, stream: BinaryIO, bytes_left: int) -> None:
        self._stream, self._bytes_left = stream, bytes_left

    def take(self, kind: str, shape: list[int]) -> NDArray[Any]:
        """The next array, of dtype `kind`."""
        dtype = np.dtype(kind)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or min(shape, default=0) < 0 or size > self._bytes_left:
            raise BrokenMessage(f"an array {kind} {shape} that can not be taken")
        self._bytes_left -= size
        array: NDArray[Any] = np.empty(shape, dtype)
        if size:
            _read(self._stream, _bytes_of(array))
        return array


def _pack(value: object, arrays: list[NDArray[Any]]) -> object:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case np.generic():
            return value.item()
        case np.ndarray():
            arrays.append(value)
            return {"array": [value.dtype.str, list(value.shape)]}
        case Fraction():
            return {"fraction": [value.numerator, value.denominator]}
        case list() | tuple():
            return {type(value).__name__: [_pack(item, arrays) for item in value]}
        case dict():
            return {"dict": {str(key): _pack(item, arrays) for key, item in value.items()}}
    name = type(value).__name__
    if name not in VALUES:
        raise TypeError(f"a {name} can not travel between the guard and its child")
    return {name: {f.name: _pack(getattr(value, f.name), arrays) for f in fields(value)}}  # type: ignore[arg-type]


def _unpack(packed: Any, arrays: _Arrays) -> Any:
    if not isinstance(packed, dict):
        return packed
    ((name, inner),) = packed.items()
    match name:
        case "array":
            return arrays.take(*inner)
        case "fraction":
            return Fraction(*inner)
        case "list" | "tuple":
            items = [_unpack(item, arrays) for item in inner]
            return items if name == "list" else tuple(items)
    members = {key: _unpack(item, arrays) for key, item in inner.items()}
    return members if name == "dict" else VALUES[name](**members)


def _bytes_of(array: NDArray[Any]) -> memoryview:
    """The array's own memory, as bytes."""
    return array.reshape(-1).view(np.uint8).data


def _write(stream: BinaryIO, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        written = stream.write(view)  # a raw pipe may take a part
        view = view[written if written is not None else 0 :]


def _read(stream: BinaryIO, into: bytearray | memoryview) -> bytearray | memoryview:
    view = memoryview(into)
    while view:
        count = stream.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise BrokenMessage("the other side has ended")
        view = view[count:]
    return into
