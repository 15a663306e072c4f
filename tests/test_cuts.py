"""Hard cuts: of clips made here, whose shots are known, and of real ones in which a person has seen them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from vidllm.video import cuts
from vidllm.video.cuts import hard_cuts
from vidllm.video.info import VideoInfo, probe

PLACES = np.indices((120, 160)).sum(0)


def shot(number: int, frame: int, speed: float) -> NDArray[np.uint8]:
    """Stripes as wide as no other shot's, which wander by `speed` pixels a frame."""
    grey = 128 + 100 * np.sin((PLACES + speed * frame) / (6 + 5 * number))
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def write(path: Path, pictures: Sequence[NDArray[np.uint8]], *, gop: int = 300, scenecut: int = 0) -> VideoInfo:
    """20 frames a second, 160x120."""
    with av.open(str(path), "w") as container:
        options = {"g": str(gop), "sc_threshold": str(scenecut), "crf": "23"}
        stream = container.add_stream("libx264", rate=20, options=options)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return probe(path)


@pytest.mark.parametrize("speed", [0.0, 3.0])
def test_cuts_are_where_one_shot_follows_another(
    tmp_path: Path, speed: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Still and moving: no packet tells of them, for the encoder was forbidden to set key frames."""
    lengths = (30, 7, 45, 60)
    pictures = [shot(n, i, speed) for n, length in enumerate(lengths) for i in range(length)]
    info = write(tmp_path / "clip.mp4", pictures)
    monkeypatch.setattr(cuts, "BATCH", 37)  # the second cut lies on the edge of one
    assert np.allclose(hard_cuts(info), np.cumsum(lengths)[:-1] / 20)


def test_what_moves_and_what_fades_is_no_cut(tmp_path: Path) -> None:
    moves = [shot(0, i, 8.0) for i in range(60)]
    fades = [(moves[-1] * (1 - i / 60) + shot(3, 0, 0) * (i / 60)).astype(np.uint8) for i in range(60)]
    assert not len(hard_cuts(write(tmp_path / "clip.mp4", moves + fades)))


def test_a_cut_between_black_bars_is_one(tmp_path: Path) -> None:
    """A portrait recording in a wide picture: two thirds of it are black."""
    pictures = [shot(n, i, 1.0) for n in (0, 2) for i in range(30)]
    for picture in pictures:
        picture[:, :50] = picture[:, 110:] = 0
    assert np.allclose(hard_cuts(write(tmp_path / "clip.mp4", pictures)), [1.5])


def test_a_long_clip_is_cut_where_packets_and_key_frames_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second sign is one frame of noise, paid for like a new picture, after which the old one is back."""
    pictures = [shot(0, 0, 0)] * 62 + [shot(3, 0, 0)] * 118
    pictures[130] = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)
    info = write(tmp_path / "clip.mp4", pictures, gop=30)
    monkeypatch.setattr(cuts, "MOST_PIXELS", 0)
    signs = info.pts_seconds[cuts._signs(info)]
    assert any(abs(sign - 6.5) < 0.11 for sign in signs)
    found = hard_cuts(info)
    assert len(found) == 1
    assert abs(found[0] - 3.1) < 0.11, "of frames that refer on, the first"
    monkeypatch.setattr(cuts, "MOST_KEY_PIXELS", 0)
    assert hard_cuts(info).tolist() == signs.tolist()


@pytest.mark.parametrize("name", ["one_frame", "constant"])
def test_short_and_still_clips(clips: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    info = probe(clips[name])
    seen = hard_cuts(info)
    assert set(seen.tolist()) <= set(info.pts_seconds.tolist())
    monkeypatch.setattr(cuts, "MOST_FRAMES", 0)
    assert set(hard_cuts(info).tolist()) <= set(info.pts_seconds.tolist())


def test_cuts_that_people_saw(real_clip: Callable[[str], Path]) -> None:
    """The montage's five, alone and as the left half of a picture; three of an animation; none in one shot of 40 s."""
    street = [1.2, 3.04, 5.48, 7.48, 9.68]
    for name in ("natural/bikes.mp4", "natural/skv_scene_cuts.mp4"):
        assert np.allclose(hard_cuts(probe(real_clip(name))), street)
    assert np.allclose(hard_cuts(probe(real_clip("natural/bbb_0_30_vp8.webm"))), [11.79, 15.67, 22.96], atol=0.01)
    assert not len(hard_cuts(probe(real_clip("natural/intel_bottle_detection.mp4"))))


def test_the_cuts_of_a_known_detector(real_clip: Callable[[str], Path], real_clips: Path) -> None:
    """PySceneDetect's content detector also counts a fade; the hard ones are the same frames."""
    golden = json.loads((real_clips / "goldens/testvideo.mp4.ContentDetector.default.json").read_text())["cuts"]
    info = probe(real_clip("natural/psd_testvideo_2cuts.mp4"))
    assert info.index_at(hard_cuts(info)).tolist() == golden[:2]
