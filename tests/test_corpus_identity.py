"""Who a clip is: equal for copies and for re-muxed copies, different for anything that would be captioned otherwise."""

import math
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path

import av
import pytest

from tests.conftest import write_clip
from vidllm.corpus import identity
from vidllm.corpus.caption import CaptionOptions
from vidllm.corpus.identity import content_digest, content_id
from vidllm.corpus.scenes import check_split, fixed_cuts, ranges_of, scene_cuts
from vidllm.errors import ConfigError, NotAVideo, VideoNotFound
from vidllm.video.info import probe


def remux(source: Path, target: Path, *, slower: int = 1) -> Path:
    """The same packets in another container, played `slower` times as slowly."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [packet for packet in old.demux(video=0) if packet.size]
        for packet, following in reversed([*pairwise(packets)]):  # Matroska keeps no decoding times
            if packet.dts is None and following.dts is not None:
                packet.dts = min(following.dts - 1, packet.pts if packet.pts is not None else following.dts)
        for packet in packets:
            assert packet.dts is not None
            packet.pts, packet.dts = (
                (packet.pts if packet.pts is not None else packet.dts) * slower,
                packet.dts * slower,
            )
            packet.stream = stream
            new.mux(packet)
    return target


@pytest.mark.parametrize("target", ["other.mp4", "other.mkv", "other.mov", "other.ts"])
@pytest.mark.parametrize("source", ["constant", "single_key", "one_frame", "late", "variable", "mpeg4"])
def test_a_remuxed_copy_is_the_same_clip(clips: dict[str, Path], tmp_path: Path, source: str, target: str) -> None:
    assert content_id(remux(clips[source], tmp_path / target)) == content_id(clips[source])


@pytest.mark.parametrize("name", ["natural/yoga.mp4", "codec/h265_bframes.mp4", "codec/bear_vp9.webm"])
def test_real_clips_keep_their_name_in_another_container(
    real_clip: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    source = real_clip(name)
    for suffix in (".mkv", ".mp4"):
        assert content_digest(remux(source, tmp_path / f"copy{suffix}")) == content_digest(source)


def test_other_pictures_pace_or_range_are_another_clip(clips: dict[str, Path], tmp_path: Path) -> None:
    base = clips["constant"]
    slow = remux(base, tmp_path / "slow.mp4", slower=2)
    shorter = write_clip(tmp_path / "short.mp4", [number / 25 for number in range(59)])
    ids = [content_id(base), content_id(slow), content_id(shorter), content_id(base, 0, 1), content_id(base, 1, None)]
    ids += [content_id(clips[name]) for name in ("intra", "single_key", "mpeg4", "full_colour", "open_gop")]
    assert len(set(ids)) == len(ids)
    assert content_id(base, 0.0, None) == content_id(base)
    assert content_id(base, 1, 2) == content_id(base, 1.0, 2.0)


def test_one_bit_of_one_picture_is_another_clip(clips: dict[str, Path], tmp_path: Path) -> None:
    with av.open(str(clips["constant"])) as container:
        packet = next(packet for packet in container.demux(video=0) if not packet.is_keyframe)
    assert packet.pos is not None
    data = bytearray(clips["constant"].read_bytes())
    data[packet.pos + packet.size - 1] ^= 1
    (tmp_path / "other.mp4").write_bytes(data)
    assert content_id(tmp_path / "other.mp4") != content_id(clips["constant"])


@pytest.mark.parametrize(
    ("codec", "shown", "passed_over"),
    [
        ("h264", [b"\x01\0", b"\x65\0"], [b"\x60\0", b"\x06\0", b"\x67\0", b"\x09\0"]),
        ("hevc", [b"\x00\1", b"\x3e\1"], [b"\x40\1", b"\x46\1", b"\x4e\1"]),
        ("vvc", [b"\x00\x01", b"\x00\x59"], [b"\x00\x61", b"\x00\x79"]),
    ],
)
def test_slices_are_pictures_and_what_frames_them_is_none(
    codec: str, shown: list[bytes], passed_over: list[bytes]
) -> None:
    def coded(heads: list[bytes]) -> list[bytes]:
        units = [head + b"told" + b"\0\0" for head in heads]
        data = b"".join(len(unit).to_bytes(4, "big") + unit for unit in units)
        return [bytes(part) for part in identity._coded(memoryview(data), codec, 4)]

    assert coded([*passed_over, *shown]) == [head + b"told" for head in shown]
    assert len(coded(passed_over)) == 1, "nothing known: the packet as it is"


def test_a_file_that_changed_is_read_again(clips: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(clips["constant"].read_bytes())
    before = content_id(path)
    path.write_bytes(clips["intra"].read_bytes())
    assert content_id(path) == content_id(clips["intra"]) != before


def test_what_is_no_video_says_so(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video at all")
    with pytest.raises(NotAVideo):
        content_id(tmp_path / "text.mp4")
    with pytest.raises(VideoNotFound):
        content_id(tmp_path / "none.mp4")


def test_the_odd_ones_have_an_identity_or_a_reason(real_clips: Path) -> None:
    from vidllm.errors import VideoError

    told: dict[str, str] = {}
    for path in sorted((real_clips / "odd").iterdir()):
        with suppress(VideoError):
            assert told.setdefault(content_id(path), path.name) == path.name, "two different clips, one identity"
    assert len(told) > 15


@pytest.mark.parametrize(
    ("duration", "length", "cuts"),
    [
        (24, 12, [12]),
        (26, 12, [12]),
        (28, 12, [12, 24]),
        (5, 12, []),
        (14.9, 12, []),
        (0.04, 12, []),
        (36.0000001, 12, [12, 24]),
    ],
)
def test_fixed_pieces(duration: float, length: float, cuts: list[float]) -> None:
    assert fixed_cuts(duration, length) == cuts


@pytest.mark.parametrize("words", ["fixed:0.5s", "fixed:1", "scenes"])
def test_ranges_hold_every_frame_exactly_once(clips: dict[str, Path], words: str) -> None:
    for name in ("constant", "variable", "late", "one_frame"):
        info = probe(clips[name])
        found = [
            [t for t in info.pts_seconds if (start or 0.0) <= t and (end is None or t < end)]
            for start, end in ranges_of(info, words)
        ]
        assert list(chain.from_iterable(found)) == list(info.pts_seconds)


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("natural/lf_2_cooking.avi", 5.2),
        ("natural/psd_testvideo_2cuts.mp4", 6.0),
        ("natural/cosmos_test_30s.mp4", 14.5),
    ],
)
def test_a_cut_is_found(real_clip: Callable[[str], Path], name: str, seconds: float) -> None:
    # a person sees the close-up begin, the leaf turn into black, the fight turn into a face
    assert min(abs(cut - seconds) for cut in scene_cuts(probe(real_clip(name)))) < 0.2


def test_long_scenes_are_divided(real_clip: Callable[[str], Path]) -> None:
    info = probe(real_clip("natural/intel_one_by_one_person_139s.mp4"))
    ranges = ranges_of(info, "scenes")
    assert all(end - start <= 60.001 for start, end in ranges if start is not None and end is not None)
    assert len(ranges) >= 3


@pytest.mark.parametrize(
    ("words", "called"),
    [("fixed:12", "fixed:12s"), ("fixed:12s", "fixed:12s"), ("fixed:0:12", "fixed:12s"), ("fixed:1:30", "fixed:90s"),
     ("fixed:0.50s", "fixed:0.5s"), ("fixed:100", "fixed:100s"), ("scenes", "scenes"), ("none", "none")],
)  # fmt: skip
def test_one_way_to_split_has_one_name(words: str, called: str) -> None:
    assert check_split(words) == check_split(called) == CaptionOptions(split=words).split == called


@pytest.mark.parametrize(
    "words", ["fixed", "fixed:", "fixed:0", "fixed:0.0000001s", "fixed:-3s", "thirds", "fixed:soon"]
)
def test_other_words_are_refused(words: str) -> None:
    with pytest.raises(ConfigError):
        check_split(words)


def test_rates_of_cinema_and_television_stand_clear_of_the_edges() -> None:
    usual = [10, 12, 12.5, 15, 20, Fraction(24000, 1001), 24, 25, Fraction(30000, 1001), 30, 48, 50, 60]
    places = [(math.log(rate) - identity.RATE_ORIGIN) / identity.RATE_STEP for rate in usual]
    assert min(0.5 - abs(place - round(place)) for place in places) * identity.RATE_STEP > 0.004
    pace = identity._Pace(packets=27, timed=26, first=3, last=28)
    assert [pace.step(1 / rate) for rate in (25, 24, 50, 12)] == [0, -1, 14, -15]
    assert identity._Pace(packets=1, timed=1, first=3, last=3).step(1 / 25) is None
