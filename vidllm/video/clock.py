"""Presentation times (PTS, ticks) where the container's own are not the viewer's.

    joined    0 1 2 3 4 0 1 2 3       ->  0 1 2 3 4 5 6 7 8     two recordings in one file, each with a clock of its own
              0 1 2 3 4 90 91 92 93   ->  0 1 2 3 4 5 6 7 8     the same, where a container's clock may leap
    packed    I0 P2+B1 - P4+B3 -      ->  what DivX put into the packet of another picture is shown before that one

Arrays hold one entry a packet, in decoding order.
"""

import math

import numpy as np
from numpy.typing import NDArray

Ticks = NDArray[np.int64]

NEIGHBOURS = 8
"""Packets on each side of a place where a clock begins again: all behind must come before all in front. A broken time
stamp, and pictures out of order, are no such place."""
LATEST = 256
"""Packets that tell when a recording ends, and its rate."""
LEAP_SECONDS, LEAP_STEPS = 10.0, 20.0
"""Such a hole in a broadcast, so many times the usual distance, is between two recordings: players go on at once."""
MAX_SHIFT = 2**60
"""Ticks; what is further apart is noise, and would overflow."""
VOP_START = b"\0\0\1\xb6"
MAX_FILLER_BYTES = 19
"""A packet up to this size stands in for a picture that came packed with the one before it."""


def continued(pts: Ticks, decoding: Ticks, leap: float = math.inf) -> Ticks:
    """`pts` with every recording that begins its clock again moved behind the one before it; else `pts` itself.

    So is one whose clock is ahead by more than `leap` ticks.
    """
    begins = _restarts(pts, decoding, leap)
    if not begins:
        return pts
    moved = pts.copy()
    for begin, end in zip(begins, [*begins[1:], len(pts)], strict=True):
        before = np.sort(moved[max(begin - LATEST, 0) : begin])
        step = max(int(np.median(np.diff(before))), 1)
        shift = int(before[-1]) + step - int(pts[begin:end].min())
        if abs(shift) > MAX_SHIFT:
            return pts
        moved[begin:end] += shift
    return moved


def _restarts(pts: Ticks, decoding: Ticks, leap: float) -> list[int]:
    """Places where decoding times fall back behind all of their neighbours, or PTS leap ahead of them, and stay there.

    Not where decoding times leap: before a hole that lies within one recording, as in a show of slides, pictures are
    decoded that are shown behind it.
    """
    if len(decoding) < 2 * NEIGHBOURS:
        return []
    steps = np.diff(decoding.astype(np.float64))
    leap = max(leap, LEAP_STEPS * float(np.median(np.abs(steps))))
    if ((steps >= 0) & (steps <= leap)).all():
        return []
    behind, ahead = _neighbours(decoding)
    falls = behind.min(axis=1) > ahead.max(axis=1)
    behind, ahead = _neighbours(pts)
    leaps = ahead.min(axis=1) - behind.max(axis=1) > leap
    return [int(place) + NEIGHBOURS for place in np.flatnonzero(falls | leaps)]


def _neighbours(ticks: Ticks) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each place, the ticks behind it and those ahead, (places, NEIGHBOURS)."""
    windows = np.lib.stride_tricks.sliding_window_view(ticks.astype(np.float64), NEIGHBOURS)
    return windows[:-NEIGHBOURS], windows[NEIGHBOURS:]


def vops(packet: memoryview) -> str:
    """The kinds of the pictures in one packet of MPEG-4 part 2, such as "P" or "PB"."""
    _, *pictures = bytes(packet).split(VOP_START)
    return "".join("IPBS"[picture[0] >> 6] for picture in pictures if picture)


def is_packed(kinds: list[str]) -> bool:
    """Whether a packet holds several pictures, by what `vops` told of each."""
    return any(len(kind) > 1 for kind in kinds)


def unpacked(decoding: Ticks, kinds: list[str], sizes: Ticks) -> Ticks:
    """PTS of a packed stream from its decoding times, what `vops` told of each packet, and its size in bytes.

    The decoder takes one picture a packet: those that wait go before those that come.
    """
    waiting = ""
    shown: list[int] = []
    held: int | None = None  # a picture others refer to is shown when the next such one has come
    for place, kind in enumerate(kinds):
        filler = waiting and len(kind) < 2 and sizes[place] <= MAX_FILLER_BYTES
        waiting += "" if filler else kind
        taken, waiting = waiting[:1], waiting[1:]
        if taken == "B":
            shown.append(place)
            continue
        if held is not None:
            shown.append(held)
        held = place
    mended = np.empty_like(decoding)
    mended[[*shown, *([held] if held is not None else [])]] = np.sort(decoding)
    return mended
