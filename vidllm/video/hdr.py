"""High dynamic range shown in standard range: PQ and HLG with BT.2020's primaries -> BT.709's at 100 % white.

Unmapped, such pictures are grey and pale, unlike all that a vision tower has learned from. The steps are those of a
screen: signal to light (ITU-R BT.2100-2, tables 4 and 5), the primaries (BT.2087), BT.2390-10's curve (5.4.1) from the
brightness of the one screen to that of the other, which leaves hues alone, and light to signal (BT.1886).
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Transfer = Literal["sdr", "pq", "hlg"]

Light = NDArray[np.float32]
"""cd/m2."""

PEAK = 1000.0
"""cd/m2 of the screen that a clip was made for: HLG's own, and most masters' in PQ. Brighter light is white."""
WHITE = 203.0
"""cd/m2 of paper under HDR (BT.2408), and what standard range calls white."""
_AT_ONCE = 1 << 14
"""Pixels, whose light stays in a core's cache: of a whole picture it would be some twenty times the picture's bytes."""
_FFMPEG_TRANSFERS: dict[int, Transfer] = {16: "pq", 18: "hlg"}
_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)  # fmt: skip
_BT2020_LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)


def transfer_of(color_trc: int) -> Transfer:
    """By FFmpeg's number (that of ISO/IEC 23091-2); what says nothing is standard range."""
    return _FFMPEG_TRANSFERS.get(color_trc, "sdr")


def in_standard_range(pixels: NDArray[np.uint8], transfer: Transfer) -> NDArray[np.uint8]:
    """Pictures uint8 (N, H, W, 3) as a screen of standard range shows them; those of standard range are untouched."""
    if transfer == "sdr":
        return pixels
    flat = np.ascontiguousarray(pixels).reshape(-1, 3)
    mapped = np.empty_like(flat)
    for start in range(0, len(flat), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        mapped[part] = _mapped(_light(flat[part], transfer))
    return mapped.reshape(pixels.shape)


def _mapped(light: Light) -> NDArray[np.uint8]:
    light = np.clip(light @ _TO_BT709.T, 0, None)
    brightest, kept = _curve()
    shown = light * np.interp(light.max(axis=-1, keepdims=True), brightest, kept).astype(np.float32)
    signal = np.clip(shown / WHITE, 0, 1) ** (1 / 2.4)
    rounded: NDArray[np.uint8] = np.round(255 * signal).astype(np.uint8)
    return rounded


def _light(pixels: NDArray[np.uint8], transfer: Transfer) -> Light:
    """What the screen that the clip was made for emits, (N, 3) both."""
    signal = np.arange(256) / 255
    if transfer == "pq":
        return pq_light(signal).astype(np.float32)[pixels]
    scene = _hlg_scene(signal).astype(np.float32)[pixels]
    return PEAK * (scene @ _BT2020_LUMA)[..., None] ** 0.2 * scene


def pq_light(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """PQ's EOTF: 0 to 1 -> 0 to 10,000 cd/m2."""
    root = signal ** (1 / _M2)
    light: NDArray[np.float64] = 10000 * (np.maximum(root - _C1, 0) / (_C2 - _C3 * root)) ** (1 / _M1)
    return light


def pq_signal(light: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """The inverse of `pq_light`."""
    power = (np.asarray(light, np.float64) / 10000) ** _M1
    signal: NDArray[np.float64] = ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2
    return signal


_M1, _M2 = 2610 / 16384, 2523 / 4096 * 128
_C1, _C2, _C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32


def _hlg_scene(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """HLG's inverse OETF: 0 to 1 -> light of the scene, 0 to 1."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


@cache
def _curve() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Light, ascending, and the share of it that is left: all of it up to a knee, then a spline that ends at WHITE."""
    light = pq_light(np.linspace(0, pq_signal(PEAK), 1024))
    signal = pq_signal(light) / pq_signal(PEAK)
    most = pq_signal(WHITE) / pq_signal(PEAK)
    knee = 1.5 * most - 0.5
    t = np.clip((signal - knee) / (1 - knee), 0, 1)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    left = pq_light(np.where(signal < knee, signal, spline) * pq_signal(PEAK))
    return light, np.divide(left, light, out=np.ones_like(light), where=light > 0)
