"""HDR in standard range: values that the standards print, and real clips through every reader."""

from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

import vidllm
from vidllm.video.hdr import PEAK, WHITE, Transfer, _light, in_standard_range, pq_light, pq_signal, transfer_of

SIDE = 64
FFMPEG_TRANSFERS = {"sdr": 1, "pq": 16, "hlg": 18}
GREY, RED = (0.58, 0.0, 0.0), (0.2627 * 0.75, -0.1046 * 0.75 * 2627 / 1967, 0.375)
"""Y', Cb, Cr: a grey of 58 %, and BT.2020's red at 75 %."""


def patch(red: int, green: int, blue: int) -> NDArray[np.uint8]:
    """One picture of one colour, (1, 1, 1, 3)."""
    return np.array([red, green, blue], np.uint8).reshape(1, 1, 1, 3)


@pytest.mark.parametrize(("signal", "transfer"), [(0.58, "pq"), (0.75, "hlg")])
def test_reference_white_is_where_bt_2408_has_it(signal: float, transfer: Transfer) -> None:
    light = _light(patch(*[round(signal * 255)] * 3).reshape(1, 3), transfer)
    assert light.shape == (1, 3)
    assert light == pytest.approx(WHITE, rel=0.02)


def test_pq_is_the_curve_of_st_2084() -> None:
    """A signal of 0.5081 is 100 cd/m2, one of 0.7518 is 1,000, 1 is 10,000."""
    assert pq_light(np.array([0.0, 0.5081, 0.7518, 1.0])) == pytest.approx([0, 100, 1000, 10000], rel=2e-3)
    assert pq_signal(pq_light(np.linspace(0, 1, 11))) == pytest.approx(np.linspace(0, 1, 11), abs=1e-6)


@pytest.mark.parametrize("transfer", ["pq", "hlg"])
def test_greys_stay_grey_and_in_order(transfer: Transfer) -> None:
    ramp = np.arange(256, dtype=np.uint8)[None, None, :, None].repeat(3, axis=3)
    mapped = in_standard_range(ramp, transfer)[0, 0]
    assert np.ptp(mapped.astype(int), axis=1).max() <= 1
    assert (np.diff(mapped[:, 1].astype(int)) >= 0).all()
    assert mapped[0, 1] == 0
    assert mapped[-1, 1] == 255


@pytest.mark.parametrize("signal", [70, 100, 125])
def test_below_the_knee_light_is_kept(signal: int) -> None:
    """BT.2390 changes nothing of what is dark enough for both screens, here 90 cd/m2."""
    light = pq_light(np.array(signal / 255))
    assert light < 90
    [[[[red, *_]]]] = in_standard_range(patch(signal, signal, signal), "pq")
    assert red == pytest.approx(255 * (light / WHITE) ** (1 / 2.4), abs=0.6)


def test_what_is_bright_keeps_its_hue() -> None:
    """The light of all three colours is dimmed alike: BT.709's red, of 600 cd/m2, stays without green and blue."""
    bt709_red = np.array([0.6274, 0.0691, 0.0164])  # in BT.2020's primaries (BT.2087)
    signal = np.round(255 * pq_signal(600 * bt709_red)).astype(int)
    [[[[red, green, blue]]]] = in_standard_range(patch(*signal), "pq")
    assert red > 240
    assert max(green, blue) < 40


def test_light_beyond_the_peak_is_white() -> None:
    signal = round(255 * float(pq_signal(2 * PEAK)))
    assert in_standard_range(patch(signal, signal, signal), "pq").min() == 255


def test_standard_range_is_not_touched() -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    assert in_standard_range(pixels, transfer_of(FFMPEG_TRANSFERS["sdr"])) is pixels


@pytest.fixture(scope="module")
def hdr_clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Clips of 10 bits in BT.2020, left half grey and right half red, with each transfer."""
    folder = tmp_path_factory.mktemp("hdr")
    return {name: write_patches(folder / f"{name}.mp4", number) for name, number in FFMPEG_TRANSFERS.items()}


def write_patches(path: Path, color_trc: int) -> Path:
    """H.264 of 10 bits, limited range, BT.2020."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p10le"
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace, context.color_range = 9, color_trc, 9, 1
        for number in range(4):
            frame = av.VideoFrame(SIDE, SIDE, "yuv420p10le")
            ranges = ((876, 64), (896, 512), (896, 512))
            for plane, values, (scale, zero) in zip(frame.planes, zip(GREY, RED, strict=True), ranges, strict=True):
                row = np.repeat([round(zero + scale * value) for value in values], plane.width // 2)
                padded = np.zeros((plane.height, plane.line_size // 2), np.uint16)
                padded[:, : plane.width] = row
                plane.update(padded.tobytes())
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("reader", ["pyav", "decord"])
@pytest.mark.parametrize("name", ["sdr", "pq", "hlg"])
def test_a_clip_is_shown_in_standard_range(hdr_clips: dict[str, Path], name: Transfer, reader: str) -> None:
    """The readers give the signal as the clip has it, by its own matrix; what it means is one thing for all."""
    seen = vidllm.read_frames(hdr_clips[name], [0.2], reader=reader)  # type: ignore[arg-type]
    grey, red = seen.pixels[0, SIDE // 2, SIDE // 4], seen.pixels[0, SIDE // 2, 3 * SIDE // 4]
    for shown, signal in ((grey, [148, 148, 148]), (red, [191, 0, 0])):
        wanted = in_standard_range(patch(*signal), name)[0, 0, 0]
        assert np.abs(shown.astype(int) - wanted).max() <= 8


@pytest.mark.parametrize(("name", "said"), [("sdr", []), ("hlg", ["HDR (HLG) shown in standard range"])])
def test_a_plan_says_that_the_range_was_mapped(hdr_clips: dict[str, Path], name: str, said: list[str]) -> None:
    assert [note for note in vidllm.plan(hdr_clips[name]).notes if "HDR" in note] == said
