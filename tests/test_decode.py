"""The battery: every clip x every reader, pixels against a linear decode, times against its PTS."""

import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import MATRICES, REAL_CLIPS, VARIABLE_TIMES, bar_code, read_code, remuxed, write_clip
from tests.interlaced import write_interlaced
from vidllm.errors import ConfigError, NoFrames, NotAVideo, ReaderUnavailable, VideoError
from vidllm.video import read_pyav
from vidllm.video.decode import READERS, FrameSet, read_frames
from vidllm.video.info import VideoInfo, probe
from vidllm.video.picture import Orientation, Painter, fitted_size
from vidllm.video.read_decord import leading_frames
from vidllm.video.runs import plan_runs, share

SIDE = 112
RIVALS_TOLERANCE = 12.0  # mean absolute difference: other readers scale with another filter, but show the same frame

REAL_NAMES = sorted(str(path.relative_to(REAL_CLIPS)) for path in REAL_CLIPS.glob("[cno]*/*")) or ["absent"]
LONG = {"codec/long_363s_1080p_h264_noaudio.mp4", "codec/long_363s_180p_av1_60fps.mp4", "codec/hevc_8k_300ms.mp4"}
MADE_NAMES = [
    "constant",
    "variable",
    "late",
    "one_frame",
    "single_key",
    "intra",
    "transport",
    "mpeg4",
    "full_colour",
    "open_gop",
    "refresh",
    "name",
    "turned_90",
    "turned_mirrored",
    "truncated",
    "headless",
    "twice",
]


def linear_frames(info: VideoInfo, size: tuple[int, int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(pts, pixels) of everything that decodes, one packet after the other, one thread, nothing left out."""
    painter = Painter(size, Orientation(info.rotation, info.mirrored))
    with av.open(info.path) as container:
        stream = container.streams[info.stream_index]
        stream.codec_context.thread_count = 1
        for packet in container.demux(stream):
            try:
                frames = stream.codec_context.decode(packet)
            except (av.error.FFmpegError, ValueError):
                continue
            for frame in frames:
                pixels = np.empty((*size, 3), np.uint8)
                painter.paint(frame, pixels)
                yield frame.pts, pixels


@cache
def truth(path: Path) -> tuple[VideoInfo, dict[int, NDArray[np.uint8]]]:
    """A clip's index and its linear decode, once for all readers."""
    info = probe(path)
    return info, dict(linear_frames(info, fitted_size((info.height, info.width), SIDE, None)))


def wishes(info: VideoInfo) -> dict[str, NDArray[np.float64]]:
    """The ways a clip is asked: spread out, dense, one late moment, backwards, at random, beyond both ends."""
    last = info.pts_seconds[-1]
    return {
        "uniform": np.linspace(0, last, 16),
        "dense": np.linspace(last * 0.4, last * 0.6, 24),
        "one": np.array([last * 0.61]),
        "backwards": np.array([last * 0.95, last * 0.35, last * 0.95]),
        "random": np.random.default_rng(0).uniform(0, info.duration, 9),
        "outside": np.array([-5.0, info.duration + 60]),
    }


def check_against_truth(path: Path, reader: str, same: Callable[[NDArray[np.uint8], NDArray[np.uint8]], bool]) -> None:
    """Each answer is the last frame that decodes before or at its time, with that frame's own pts and pixels."""
    info, linear = truth(path)
    decodable = np.array(sorted(linear))
    for wish, times in wishes(info).items():
        frames = read_frames(info, times, max_side=SIDE, reader=reader)
        on_screen = info.pts[info.index_at(times)]
        expected = decodable[np.maximum(np.searchsorted(decodable, on_screen, side="right") - 1, 0)]
        got = info.pts[0] + np.round(frames.pts_seconds / float(info.time_base)).astype(np.int64)
        assert got.tolist() == expected.tolist(), f"{path.name} {wish}: wrong times"
        assert bool(frames.notes) >= bool((expected != on_screen).any()), f"{path.name} {wish}: silent about a loss"
        for row, pts in enumerate(expected.tolist()):
            assert same(frames.pixels[row], linear[pts]), f"{path.name} {wish}: wrong picture at {times[row]:.3f} s"


def alike(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> bool:
    return float(np.abs(left.astype(np.int16) - right).mean()) <= RIVALS_TOLERANCE


def loads(reader: str) -> bool:
    """Whether the reader can be had here: installed is not enough, it must import."""
    if importlib.util.find_spec(reader) is None:
        return False
    try:
        importlib.import_module("torchcodec.decoders" if reader == "torchcodec" else reader)
    except (ImportError, OSError, RuntimeError):
        return False
    return True


@pytest.fixture
def on_cores(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Read as on a machine of so many cores, where even small clips are worth sharing among them."""

    def bound(cores: int) -> None:
        monkeypatch.setattr("vidllm.video.read_pyav.cores", lambda: cores)
        monkeypatch.setattr("vidllm.video.runs.WORTH_SHARING", 0)

    return bound


@pytest.mark.parametrize("cores", [1, 3])
@pytest.mark.parametrize("name", MADE_NAMES)
def test_made_clips_pixel_for_pixel(
    clips: dict[str, Path], name: str, cores: int, on_cores: Callable[[int], None]
) -> None:
    on_cores(cores)
    check_against_truth(clips[name], "pyav", np.array_equal)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in REAL_NAMES if name not in LONG])
def test_real_clips_pixel_for_pixel(real_clips: Path, name: str, on_cores: Callable[[int], None]) -> None:
    on_cores(2)
    try:
        probe(real_clips / name)
    except VideoError:
        return  # told in test_info
    if not truth(real_clips / name)[1]:
        with pytest.raises(NoFrames):
            read_frames(real_clips / name, [0.0])
        return
    check_against_truth(real_clips / name, "pyav", np.array_equal)


@pytest.mark.parametrize("reader", [name for name in READERS if name != "pyav"])
@pytest.mark.parametrize("name", MADE_NAMES)
def test_other_readers_show_the_same_frames_or_refuse(clips: dict[str, Path], name: str, reader: str) -> None:
    if not loads(reader):
        pytest.skip(f"{reader} does not load here")
    refusal = ""
    try:
        check_against_truth(clips[name], reader, alike)
    except ReaderUnavailable as error:
        refusal = str(error)
    assert not refusal or re.search(f"{re.escape(clips[name].name)}.*pyav", refusal)


@pytest.mark.slow
@pytest.mark.parametrize("reader", [name for name in READERS if name != "pyav"])
@pytest.mark.parametrize("name", [name for name in REAL_NAMES if name not in LONG])
def test_other_readers_on_real_clips(real_clips: Path, name: str, reader: str) -> None:
    if not loads(reader):
        pytest.skip(f"{reader} does not load here")
    try:
        info = probe(real_clips / name)
        read_frames(info, [0.0], max_side=SIDE, reader=reader)
    except VideoError:
        return  # no video, or refused by its index
    if truth(real_clips / name)[1]:
        with suppress(ReaderUnavailable):  # it may give a damaged clip up, never show a wrong frame
            check_against_truth(real_clips / name, reader, alike)


# --- what a person could check


def test_every_frame_of_every_made_clip_says_its_number(clips: dict[str, Path]) -> None:
    for name in (
        "constant",
        "variable",
        "late",
        "single_key",
        "transport",
        "mpeg4",
        "full_colour",
        "open_gop",
        "refresh",
    ):
        info = probe(clips[name])
        frames = read_frames(info, info.pts_seconds[::-1])
        assert [read_code(pixels) for pixels in frames.pixels] == list(reversed(range(info.num_frames))), name


def packed(source: Path, target: Path) -> Path:
    """An MPEG-4 AVI as DivX and XviD wrote it: each B-frame in the packet of the P-frame before it, a filler after."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        pictures = [bytes(packet) for packet in old.demux(video=0) if packet.size]
        stream = new.add_stream_from_template(old.streams.video[0])
        packets: list[bytes] = []
        for picture in pictures:
            header, start, data = picture.partition(b"\0\0\1\xb6")
            if data[0] >> 6 == 2:  # B
                packets[-1] += picture
                packets.append(b"\0\0\1\xb6\x51\0\0\x7f")
            else:
                header = header.partition(b"\0\0\1\xb2")[0] + b"\0\0\1\xb2DivX503b1393p" if header else b""
                packets.append(header + start + data)
        for number, data in enumerate(packets):
            packet = av.Packet(data)
            packet.pts = packet.dts = number
            packet.time_base, packet.stream = Fraction(1, 25), stream
            packet.is_keyframe = data[:4] != b"\0\0\1\xb6"
            new.mux(packet)
    return target


def write_steady(
    path: Path, codec: str, pictures: Iterable[NDArray[np.uint8]], options: dict[str, str] | None = None
) -> Path:
    """Pictures (48, 64, 3) at 25 a second, two B-frames: for formats that have no ticks of a millisecond."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = 12
        stream.codec_context.max_b_frames = 0 if codec == "h263p" else 2
        stream.codec_context.options = options or {}
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("clip.asf", "libx264"), ("clip.asf", "mpeg2video"), ("clip.asf", "mpeg4"), ("clip.mxf", "libx264"),
        ("clip.mxf", "mpeg2video"), ("clip.m1v", "mpeg1video"), ("clip.m2v", "mpeg2video"),
        ("clip.avi", "mpeg2video"), ("clip.avi", "h263p"),
    ],
)  # fmt: skip
def test_frames_are_in_order_whatever_the_container_tells_of_it(tmp_path: Path, name: str, codec: str) -> None:
    """ASF, MXF and bare streams hold decoding times or none; an AVI calls every frame of H.263 a key frame."""
    info = probe(write_steady(tmp_path / name, codec, [bar_code(number, 64, 48) for number in range(50)]))
    assert (info.num_frames, info.duration) == (50, pytest.approx(2.0, abs=0.01))
    for numbers in (range(50), [1], [34, 21, 49], [17, 18]):
        frames = read_frames(info, info.pts_seconds[list(numbers)])
        assert [read_code(pixels) for pixels in frames.pixels] == list(numbers)
        assert frames.notes == ()


def test_interlaced_mpeg4_is_decoded_as_by_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg's frame threads make other pictures of it."""
    noise = np.random.default_rng(0).integers(0, 256, (50, 48, 64, 3), dtype=np.uint8)
    interlaced = {"flags": "+ildct+ilme+qscale", "global_quality": "354"}
    info = probe(write_steady(tmp_path / "clip.mp4", "mpeg4", noise, interlaced))
    linear = dict(linear_frames(info, (48, 64)))
    monkeypatch.setattr("vidllm.video.read_pyav.cores", lambda: 4)
    frames = read_frames(info, info.pts_seconds)
    for pts, pixels in zip(info.pts.tolist(), frames.pixels, strict=True):
        np.testing.assert_array_equal(pixels, linear[pts])


def test_a_seek_takes_no_packet_for_another_of_the_same_time(
    clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidllm.video.read_pyav.SEEK_PACKETS", 0)
    info = probe(clips["twice"])
    [shown] = read_frames(info, [info.pts_seconds[26]]).pixels
    assert read_code(shown) == 27


def test_frames_that_an_avi_dropped_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidllm.video.read_pyav.SEEK_PACKETS", 0)
    with av.open(str(tmp_path / "clip.avi"), "w") as container:
        stream, sound = container.add_stream("mjpeg", rate=25), container.add_stream("pcm_s16le", rate=8000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for number, tick in enumerate(np.cumsum(np.random.default_rng(0).choice([1, 1, 3, 10], 40)).tolist()):
            picture = av.VideoFrame.from_ndarray(bar_code(number, 64, 48))
            picture.pts, picture.time_base = tick, Fraction(1, 25)
            container.mux(stream.encode(picture))
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 640), np.int16), format="s16", layout="stereo")
            silence.rate = 8000
            container.mux(sound.encode(silence))
    info = probe(tmp_path / "clip.avi")
    for number in range(0, 40, 3):
        [shown] = read_frames(info, [info.pts_seconds[number]]).pixels
        assert read_code(shown) == number


@pytest.mark.parametrize("name", ["clip.avi", "clip.asf"])
def test_frames_are_in_order_where_ffmpeg_guesses_it_from_uneven_times(tmp_path: Path, name: str) -> None:
    times = np.cumsum(np.random.default_rng(0).choice([0.02, 0.03, 0.1, 0.2, 0.3], 60))
    told = {"x264-params": "nal-hrd=vbr:vbv-maxrate=1000:vbv-bufsize=1000"}
    info = probe(write_clip(tmp_path / name, times.tolist(), gop=5, options=told))
    frames = read_frames(info, info.pts_seconds)
    assert [read_code(pixels) for pixels in frames.pixels] == list(range(60))


@pytest.mark.parametrize("name", ["h264.avi", "packed.avi"])
def test_an_avi_that_tells_no_order_shows_its_frames_in_order(tmp_path: Path, name: str) -> None:
    codec = "libx264" if name == "h264.avi" else "mpeg4"
    path = write_clip(tmp_path / "plain.avi", [i / 25 for i in range(61)], codec=codec, b_frames=1)
    info = probe(packed(path, tmp_path / name) if name == "packed.avi" else path)
    assert (info.num_frames, info.duration) == (61, pytest.approx(2.44))
    for numbers in (range(61), [1], [34, 21, 60], [17, 18]):
        frames = read_frames(info, info.pts_seconds[list(numbers)])
        assert [read_code(pixels) for pixels in frames.pixels] == list(numbers)
        assert frames.notes == ()


LEVELS = range(30, 230, 4)
"""Grey, of fifty pictures."""


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("all.ts", {"apart": True}), ("some.ts", {"apart": True, "whole": range(0, 50, 3)}),
        ("some.mp4", {"apart": True, "whole": range(0, 50, 3)}), ("as broadcast.ts", {}),
        ("some as broadcast.ts", {"whole": range(0, 50, 3)}),
    ],
)
def test_an_interlaced_picture_is_one_however_its_fields_come(tmp_path: Path, name: str, how: dict[str, Any]) -> None:
    """A broadcast was taken for twice as many pictures as it has, and for twice as long."""
    path = write_interlaced(tmp_path / "tape.ts", LEVELS, **how)
    info = probe(remuxed(path, tmp_path / name) if "apart" in how else path)
    assert (info.num_frames, info.has_true_pts, info.is_vfr) == (50, True, False)
    assert info.duration == pytest.approx(2.0, abs=0.02)
    for numbers in (range(50), [1], [37, 7, 29], [48, 0]):
        frames = read_frames(info, info.pts_seconds[list(numbers)])
        grey = [(LEVELS[number] - 16) * 255 / 219 for number in numbers]
        np.testing.assert_allclose(frames.pixels.mean((1, 2, 3)), grey, atol=1)
        assert frames.notes == ()


def test_a_field_whose_other_one_is_lost_takes_none_of_the_next_picture(tmp_path: Path) -> None:
    whole = write_interlaced(tmp_path / "whole.ts", LEVELS, apart=True)
    info = probe(remuxed(whole, tmp_path / "cut.ts", skip=1))
    assert info.num_frames == 50
    frames = read_frames(info, info.pts_seconds[[2, 30]])
    np.testing.assert_allclose(frames.pixels.mean((1, 2, 3)), [(LEVELS[n] - 16) * 255 / 219 for n in (2, 30)], atol=1)
    assert frames.notes == ()


@pytest.mark.parametrize("later", [0.0, 36_000.0])
def test_recordings_put_end_to_end_follow_each_other(tmp_path: Path, later: float) -> None:
    """Each counts from a zero of its own, or by the time of day; the second is no second edition of the first, and
    between them are no ten hours of one picture.
    """
    begins = {60: 0.0, 100: later}
    parts = [write_clip(tmp_path / f"{n}.ts", [begin + i / 25 for i in range(n)]) for n, begin in begins.items()]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    info = probe(joined)
    assert (info.num_frames, info.is_vfr, info.duration) == (160, False, pytest.approx(6.4))
    for times in (info.pts_seconds, [3.0], [1.0, 2.38, 2.42, 6.0], [6.3, 0.0]):
        frames = read_frames(info, times)
        numbers = [round(float(second) * 25) for second in frames.pts_seconds]
        assert [read_code(pixels) for pixels in frames.pixels] == [n if n < 60 else n - 60 for n in numbers]
        assert frames.notes == ()
    with pytest.raises(ReaderUnavailable):
        read_frames(info, [1.0], reader="torchcodec")


@pytest.mark.parametrize("skip", [0, 4], ids=["cut at a key frame", "cut before the next one"])
def test_a_recording_cut_in_the_middle_begins_with_its_first_whole_picture(
    clips: dict[str, Path], tmp_path: Path, skip: int
) -> None:
    """What leads the first key frame there, or stands before it, refers to what was cut off: no player shows it."""
    whole = probe(clips["open_gop"])
    ranks = whole.access_points[:, 0].tolist()
    start = int(np.flatnonzero(whole.decode_ranks == ranks[2 if skip else 1])[0])
    assert bool(leading_frames(whole).any())
    info = probe(remuxed(clips["open_gop"], tmp_path / "cut.mkv", skip=ranks[1] + skip))
    frames = read_frames(info, info.pts_seconds)
    assert [read_code(pixels) for pixels in frames.pixels] == list(range(start, 60))
    assert (frames.pts_seconds[0], frames.notes) == (0.0, ())


def test_a_moment_shows_the_frame_on_screen(clips: dict[str, Path]) -> None:
    frames = read_frames(clips["variable"], [1.29, 0.0, 1.31, 3.0])
    assert [read_code(pixels) for pixels in frames.pixels] == [5, 0, 6, 10]
    assert frames.pts_seconds == pytest.approx([VARIABLE_TIMES[frame] for frame in (5, 0, 6, 10)], abs=1e-3)
    assert frames.requested_seconds.tolist() == [1.29, 0.0, 1.31, 3.0]


def transformed(picture: NDArray[np.uint8], matrix: tuple[float, ...]) -> NDArray[np.uint8]:
    """Every pixel moved as the display matrix says: x' = ax + cy, y' = bx + dy, then shifted to the origin."""
    a, b, c, d = (int(number) for number in matrix)
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    new_x, new_y = a * x + c * y, b * x + d * y
    out = np.empty((int(np.ptp(new_y)) + 1, int(np.ptp(new_x)) + 1, 3), np.uint8)
    out[new_y - new_y.min(), new_x - new_x.min()] = picture
    return out


@pytest.mark.parametrize("turn", [turn for turn in MATRICES if turn != "junk"])
def test_pictures_are_upright(clips: dict[str, Path], turn: str) -> None:
    """Against the matrix applied pixel by pixel, by definition, to the unturned picture."""
    plain = read_frames(clips["constant"], [0.2]).pixels[0]
    turned = read_frames(clips[f"turned_{turn}"], [0.2]).pixels[0]
    assert np.array_equal(turned, transformed(plain, MATRICES[turn]))


def test_sizes(clips: dict[str, Path]) -> None:
    assert read_frames(clips["constant"], [0.0]).pixels.shape == (1, 96, 160, 3)
    assert read_frames(clips["constant"], [0.0], max_side=80).pixels.shape == (1, 48, 80, 3)
    assert read_frames(clips["constant"], [0.0], max_side=4000).pixels.shape == (1, 96, 160, 3)
    assert read_frames(clips["turned_90"], [0.0], max_side=80).pixels.shape == (1, 80, 48, 3)
    assert read_frames(clips["constant"], [0.0], size=(96, 96)).pixels.shape == (1, 96, 96, 3)
    code = read_frames(clips["constant"], [1.0], size=(31, 77)).pixels
    assert (code.shape, read_code(code[0])) == ((1, 31, 77, 3), 25)


def test_a_small_picture_of_an_interlaced_one_has_no_combs(tmp_path: Path) -> None:
    """Each field of it shows the bar at another place; what is small shows both, in every row alike."""
    picture = np.full((480, 640, 3), 20, np.uint8)
    picture[::2, 100:200] = picture[1::2, 160:260] = 220
    with av.open(str(tmp_path / "tape.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        stream.codec_context.options = {"x264-params": "tff=1", "preset": "superfast", "crf": "10"}
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode(None))
    [shown] = read_frames(tmp_path / "tape.mp4", [0.0], size=(60, 80)).pixels.astype(int)
    assert np.abs(np.diff(shown, axis=0)).max() <= 8
    assert shown[30, 15].mean() == pytest.approx(120, abs=8)
    assert read_frames(tmp_path / "tape.mp4", [0.0], max_side=1).pixels.shape == (1, 1, 1, 3)


def test_colours_are_true(tmp_path: Path) -> None:
    """White is white and black is black, within what compression leaves."""
    pixels = read_frames(write_clip(tmp_path / "one.mp4", [0.0]), [0.0]).pixels[0].astype(int)
    assert np.abs(pixels - bar_code(0)).mean() < 4


def test_snapping_answers_with_key_frames_and_says_so(clips: dict[str, Path]) -> None:
    frames = read_frames(clips["constant"], [0.05, 0.45, 0.95], tolerance=0.1)
    assert [read_code(pixels) for pixels in frames.pixels] == [0, 10, 23]
    assert frames.pts_seconds == pytest.approx([0.0, 0.4, 0.92])
    assert frames.notes == ("2 of 3 times answered by the nearest key frame",)


def test_lost_frames_are_answered_truly_and_told(clips: dict[str, Path]) -> None:
    info = probe(clips["truncated"])
    frames = read_frames(info, info.pts_seconds)
    shown = [read_code(pixels) for pixels in frames.pixels]
    assert shown == [round(second * 25) for second in frames.pts_seconds]
    assert any("could not be decoded" in note for note in frames.notes)


def test_a_picture_that_damage_made_late_is_passed_over(
    clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some broken streams come out of FFmpeg so, and not every time: here two pictures change places."""
    surviving = read_pyav._surviving_frames

    def lost(*_: object) -> None:
        raise read_pyav._Lost

    def disordered(info: VideoInfo) -> Iterator[object]:
        frames = list(surviving(info))
        frames[10], frames[14] = frames[14], frames[10]
        yield from frames

    monkeypatch.setattr(read_pyav, "_read_runs", lost)
    monkeypatch.setattr(read_pyav, "_surviving_frames", disordered)
    frames = read_frames(probe(clips["constant"]), [i / 25 for i in range(60)])
    shown = [read_code(pixels) for pixels in frames.pixels]
    assert shown == [*range(10), *[9] * 4, *[14], *range(15, 60)]
    assert [round(float(t) * 25) for t in frames.pts_seconds] == shown


def test_a_clip_that_changed_under_the_index_does_not_lie(clips: dict[str, Path], tmp_path: Path) -> None:
    """The index is of another file: what comes out still carries its own number."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(clips["constant"].read_bytes())
    info = probe(path)
    path.write_bytes(clips["single_key"].read_bytes())
    frames = read_frames(info, [0.4, 1.6])
    assert [read_code(pixels) for pixels in frames.pixels] == [10, 40]
    path.write_bytes(b"gone")
    with pytest.raises(NotAVideo):
        read_frames(info, [0.4])


def test_runs_seek_only_where_a_group_is_skipped(clips: dict[str, Path]) -> None:
    info = probe(clips["constant"])
    close = plan_runs(info, np.array([3, 8, 13]))
    far = plan_runs(info, np.array([3, 45]))
    assert [(run.start, run.wanted) for run in close] == [(0, (3, 8, 13))]
    assert [(run.start, run.wanted) for run in far] == [(0, (3,)), (40, (45,))]
    assert all(run.stop - run.start < 12 for run in far)


def test_leading_frames_of_an_open_group_start_one_group_earlier(clips: dict[str, Path]) -> None:
    """They come after their key packet, but refer to frames before it."""
    info = probe(clips["open_gop"])
    leading = np.flatnonzero(leading_frames(info)).tolist()
    assert leading
    assert not leading_frames(probe(clips["constant"])).any()
    for index in leading:
        (run,) = plan_runs(info, np.array([index]))
        assert info.access_points[run.access, 1] <= info.pts[index]


@pytest.mark.parametrize("cores", [1, 2, 3])
def test_open_groups_are_read_the_short_way(
    clips: dict[str, Path], cores: int, on_cores: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key frame comes before the frames that lead it, which belong to the group before."""
    on_cores(cores)
    monkeypatch.setattr("vidllm.video.read_pyav._read_all", lambda *_: pytest.fail("the whole file was read"))
    info = probe(clips["open_gop"])
    assert read_frames(info, info.pts_seconds, max_side=SIDE, reader="pyav").notes == ()
    assert read_frames(info, info.pts_seconds[29:31], max_side=SIDE, reader="pyav").notes == ()


@pytest.mark.parametrize("threads", [2, 3, 4])
def test_threads_share_whole_groups_of_about_equal_weight(clips: dict[str, Path], threads: int) -> None:
    info = probe(clips["constant"])
    assert len(info.access_points) >= threads, "a clip of several groups"
    wanted = np.arange(info.num_frames)
    shares = share(replace(info, coded_width=4000, coded_height=4000), wanted, threads)
    assert len(shares) == threads
    assert sorted(np.concatenate(shares)) == wanted.tolist()
    owners = [{run.access for index in part for run in plan_runs(info, np.array([index]))} for part in shares]
    assert sum(map(len, owners)) == len(set().union(*owners)), "no group is decoded twice"


def test_little_work_and_one_group_are_not_shared(clips: dict[str, Path]) -> None:
    info = probe(clips["constant"])
    assert len(share(info, np.arange(info.num_frames), 2)) == 1, "opening it again would cost more"
    large = replace(info, coded_width=4000, coded_height=4000)
    assert len(share(large, np.array([1, 2, 3]), 2)) == 1, "one group"
    assert len(share(large, np.array([9, 49]), 1)) == 1, "one core"
    lopsided = replace(large, packet_sizes=np.where(np.arange(info.num_frames) < 10, 10_000, 1))
    assert len(share(lopsided, np.array([9, 19, 29]), 2)) == 1, "one thread would have nearly all of it"


@pytest.mark.parametrize(
    "times", [["0:30"], None, [[0.0], [1.0, 2.0]], [0.0, "soon"], [], [float("nan")], [float("inf")]]
)
def test_what_is_no_list_of_numbers_is_one_line(clips: dict[str, Path], times: object) -> None:
    with pytest.raises(ConfigError, match="seconds") as caught:
        read_frames(clips["constant"], times)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_times_outside_the_clip_are_answered_by_its_ends_and_said(clips: dict[str, Path]) -> None:
    """The clip lasts 2.40 s; its end itself is no mistake, players show it."""
    seen = read_frames(clips["constant"], [-1.0, 0.0, 2.4, 100.0])
    assert [read_code(picture) for picture in seen.pixels] == [0, 0, 59, 59]
    assert seen.notes == (
        "-1.00 s: before the start; the first frame stands in",
        "100.00 s: past the end at 2.40 s; the last frame stands in",
    )
    assert read_frames(clips["constant"], [0.0, 2.4]).notes == ()


def test_contradicting_sizes_and_unknown_readers_are_refused(clips: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="contradict"):
        read_frames(clips["constant"], [0.0], max_side=10, size=(10, 10))
    wrong: dict[str, Any]
    for wrong in (
        {"size": (0, 10)}, {"size": (10,)}, {"size": 10}, {"max_side": 0}, {"max_side": "336"}, {"tolerance": -1},
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="must be"):
            read_frames(clips["constant"], [0.0], **wrong)
    with pytest.raises(ConfigError, match="unknown reader"):
        read_frames(clips["constant"], [0.0], reader="imageio")  # type: ignore[arg-type]


def test_frame_sets_are_checked_at_birth() -> None:
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="2 pictures, 1 times"):
        FrameSet(pixels, np.zeros(1), np.zeros(2), "pyav")
    with pytest.raises(ValueError, match="uint8"):
        FrameSet(pixels.astype(np.float32), np.zeros(2), np.zeros(2), "pyav")


def test_files_are_closed(clips: dict[str, Path]) -> None:
    open_files = Path("/proc/self/fd")
    if not open_files.is_dir():
        pytest.skip("no /proc here to count open files")
    before = len(list(open_files.iterdir()))
    for _ in range(5):
        read_frames(clips["constant"], [0.0, 2.0])
        with pytest.raises(NotAVideo):
            read_frames(Path(__file__), [0.0])
    assert len(list(open_files.iterdir())) <= before


@pytest.mark.parametrize(("matrix", "kr", "kb"), [(1, 0.2126, 0.0722), (5, 0.299, 0.114)], ids=["bt709", "bt601"])
def test_colours_are_those_of_the_standard(matrix: int, kr: float, kb: float) -> None:
    """Plain frames, limited range, scaled: within a grey level of the matrix (ITU-T H.273, 8.3), and without a bias."""
    rng = np.random.default_rng(0)
    painter, errors = Painter((60, 66), Orientation()), []
    for red, green, blue in rng.uniform(20, 235, (40, 3)):
        light = kr * red + (1 - kr - kb) * green + kb * blue
        coded = (light * 219 / 255 + 16, (blue - light) / (2 * (1 - kb)) * 224 / 255 + 128,
                 (red - light) / (2 * (1 - kr)) * 224 / 255 + 128)  # fmt: skip
        y, cb, cr = (round(value) for value in coded)
        frame = av.VideoFrame(160, 120, "yuv420p")
        frame.colorspace, frame.color_range = matrix, 1
        for plane, value in zip(frame.planes, (y, cb, cr), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        out = np.empty((60, 66, 3), np.uint8)
        painter.paint(frame, out)
        light, blueness, redness = ((y - 16) * 255 / 219, (cb - 128) * 255 / 224, (cr - 128) * 255 / 224)
        r, b = light + 2 * (1 - kr) * redness, light + 2 * (1 - kb) * blueness
        errors.append(out.mean((0, 1)) - [r, (light - kr * r - kb * b) / (1 - kr - kb), b])
    assert np.abs(errors).max() < 1.0
    assert np.abs(np.mean(errors, axis=0)).max() < 0.3
