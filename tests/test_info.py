"""The packet index: true times, real key frames, the right stream, the size as shown, errors that name the file."""

import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import av
import numpy as np
import pytest
from av.container import InputContainer
from av.video.stream import VideoStream
from PIL import Image as PIL

from tests.conftest import MATRICES, VARIABLE_TIMES, with_matrix, write_clip
from vidllm.errors import NoFrames, NotAVideo, VideoError, VideoNotFound
from vidllm.sources import open_source
from vidllm.video.access import access_rule, is_hidden, nal_units
from vidllm.video.clock import continued, is_packed, unpacked
from vidllm.video.container import _tiles, opened, pick_stream, video_packets
from vidllm.video.decode import read_frames
from vidllm.video.fields import FieldSyntax
from vidllm.video.info import probe
from vidllm.video.picture import Orientation, believable_aspect, orientation_of_matrix

RealClip = Callable[[str], Path]


def test_constant_rate_clip_is_told_exactly(clips: dict[str, Path]) -> None:
    info = probe(clips["constant"])
    assert (info.num_frames, info.fps, info.is_vfr) == (60, pytest.approx(25), False)
    assert info.duration == pytest.approx(2.4)
    assert np.allclose(info.pts_seconds, np.arange(60) / 25)
    assert np.flatnonzero(info.key_frames).tolist() == [0, 10, 20, 30, 40, 50]
    assert (info.width, info.height, info.codec, info.rotation, info.mirrored) == (160, 96, "h264", 0, False)
    assert info.packet_sizes.sum() < clips["constant"].stat().st_size


def test_variable_rate_keeps_each_frames_own_time(clips: dict[str, Path]) -> None:
    info = probe(clips["variable"])
    assert info.is_vfr
    assert info.pts_seconds == pytest.approx(VARIABLE_TIMES, abs=1e-3)
    assert info.fps == pytest.approx(11 / 3.6, rel=1e-3)


def test_a_photograph_in_tiles_is_not_taken_for_its_first_tile(clips: dict[str, Path]) -> None:
    """As FFmpeg tells a phone's HEIC: each tile a stream that depends on others."""
    with av.open(str(clips["constant"])) as container:
        video = container.streams.video[0]
        tile = SimpleNamespace(disposition=type(video.disposition).dependent)
        photo = SimpleNamespace(format=container.format, streams=SimpleNamespace(video=[tile, tile]))
        assert _tiles(cast(InputContainer, photo)) == 2
        assert _tiles(container) == 0


def test_viewer_clock_starts_at_the_first_frame(clips: dict[str, Path]) -> None:
    info = probe(clips["late"])
    assert info.pts_seconds[0] == 0.0
    assert float(info.pts[0] * info.time_base) == pytest.approx(10.0)
    assert info.duration == pytest.approx(2.4, abs=1e-3)


def test_frame_on_screen_is_the_last_that_has_begun(clips: dict[str, Path]) -> None:
    info = probe(clips["variable"])
    times = [-1.0, 0.0, 0.09, 0.1, 1.29, 1.3, 3.59, 3.6, 99.0]
    assert info.index_at(times).tolist() == [0, 0, 0, 1, 5, 6, 10, 11, 11]


def test_every_frame_is_found_by_its_own_time_printed_and_read_back(clips: dict[str, Path]) -> None:
    for name in ("constant", "variable", "late", "transport"):
        info = probe(clips[name])
        printed = [float(f"{second:.4f}") for second in info.pts_seconds]
        assert info.index_at(printed).tolist() == list(range(info.num_frames))


def test_one_frame_has_a_length_and_no_rate(clips: dict[str, Path]) -> None:
    info = probe(clips["one_frame"])
    assert (info.num_frames, info.fps) == (1, 0.0)
    assert 0 < info.duration <= 0.1


@pytest.mark.parametrize("name", ["rests.gif", "rests.apng"])
@pytest.mark.parametrize("last", [20, 3000])
def test_the_last_picture_of_an_animation_stays_as_long_as_it_says(tmp_path: Path, name: str, last: int) -> None:
    pictures = [PIL.new("RGB", (8, 8), (40 * number, 0, 0)) for number in range(5)]
    times = [100, 100, 100, 100, last]
    form = "PNG" if name.endswith("apng") else "GIF"
    pictures[0].save(tmp_path / name, form, save_all=True, append_images=pictures[1:], duration=times)
    assert probe(tmp_path / name).duration == pytest.approx((400 + last) / 1000)


@pytest.mark.parametrize("rate", [10, 60])
def test_a_bare_stream_is_as_long_as_it_says(tmp_path: Path, rate: int) -> None:
    """As cameras write them: packets without a time, and the rate in the stream's own header."""
    with av.open(str(tmp_path / "bare.h264"), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(rate):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), number, np.uint8))))
        container.mux(stream.encode(None))
    info = probe(tmp_path / "bare.h264")
    assert not info.has_true_pts
    assert (info.num_frames, info.fps, info.duration) == (rate, pytest.approx(rate), pytest.approx(1.0))


def test_gradual_refresh_offers_no_access_point_but_the_first(clips: dict[str, Path]) -> None:
    """Its key flags are recovery points that need more frames: starting there shows other pixels."""
    info = probe(clips["refresh"])
    assert len(info.access_points) == 1
    assert info.key_frames.sum() > 1


def test_open_gop_is_an_access_point(clips: dict[str, Path]) -> None:
    assert len(probe(clips["open_gop"]).access_points) > 1


@pytest.mark.parametrize(
    ("turn", "rotation", "mirrored", "size"),
    [
        ("upright", 0, False, (160, 96)),
        ("90", 90, False, (96, 160)),
        ("180", 180, False, (160, 96)),
        ("270", 270, False, (96, 160)),
        ("mirrored", 0, True, (160, 96)),
        ("junk", 0, False, (160, 96)),
    ],
)
def test_display_matrix_decides_the_shown_size(
    clips: dict[str, Path], turn: str, rotation: int, mirrored: bool, size: tuple[int, int]
) -> None:
    info = probe(clips[f"turned_{turn}"])
    assert (info.rotation, info.mirrored, (info.width, info.height)) == (rotation, mirrored, size)


@pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (-(2**31),) * 4, (1, 1, -1, 1)])
def test_a_matrix_that_is_no_right_angle_means_upright(matrix: tuple[int, int, int, int]) -> None:
    a, b, c, d = matrix
    assert orientation_of_matrix(a, b, 0, c, d) == Orientation()


@pytest.mark.parametrize(("exif", "rotation"), [(1, 0), (3, 180), (6, 90), (8, 270)])
def test_a_cameras_jpegs_say_how_they_are_turned(tmp_path: Path, exif: int, rotation: int) -> None:
    """Motion JPEG as cameras write it; PyAV does not know this kind of side data and fails on all of it."""
    said = PIL.Exif()
    said[0x0112] = exif
    upright = np.zeros((60, 40, 3), np.uint8)
    upright[:20, :20] = 255
    coded = PIL.fromarray(np.rot90(upright, rotation // 90))
    coded.save(tmp_path / "one.jpg", exif=said, quality=95)
    with av.open(str(tmp_path / "cam.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=5)
        stream.width, stream.height, stream.pix_fmt = *coded.size, "yuvj420p"
        for number in range(3):
            packet = av.Packet((tmp_path / "one.jpg").read_bytes())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 5)
            container.mux(packet)
    info = probe(tmp_path / "cam.avi")
    assert (info.rotation, info.width, info.height) == (rotation, 40, 60)
    [shown] = read_frames(info, [0.2]).pixels
    assert np.abs(shown.astype(int) - upright).mean() < 8


@pytest.mark.parametrize(("aspect", "believed"), [(None, 1), (Fraction(0), 1), (Fraction(16, 9), Fraction(16, 9))])
def test_absurd_aspects_are_not_believed(aspect: Fraction | None, believed: Fraction) -> None:
    assert believable_aspect(aspect) == believed
    assert believable_aspect(Fraction(65535, 1)) == 1


def test_key_packets_are_read_not_believed() -> None:
    """H.264 by hand: an IDR slice starts; a plain slice does not; recovery count 0 does, count 1 ("010") does not."""
    starts = access_rule("h264", b"\x01\x64\x00\x1e\xff")  # lengths of 4 bytes
    idr, plain = b"\0\0\0\2\x65\x88", b"\0\0\0\2\x41\x9a"
    at_once, later = b"\0\0\0\4\x06\x06\x01\x80", b"\0\0\0\4\x06\x06\x01\x40"
    assert [starts(packet) for packet in (idr, plain, at_once + plain, later + plain)] == [True, False, True, False]
    assert access_rule("vp9", None)(b"")
    assert not access_rule("unheard_of", None)(b"")


def test_nal_units_of_broken_packets_end_quietly() -> None:
    assert [bytes(unit) for unit in nal_units(b"\0\0\1\x65\x88\0\0\1\x41", 0)] == [b"\x65\x88"]
    assert [bytes(unit) for unit in nal_units(b"\xff\xff\xff\xff\x65\x88", 4)] == [b"\x65\x88"]
    assert list(nal_units(b"\0\0", 4)) == []


def test_hidden_vp9_frames_by_their_first_byte() -> None:
    shown, hidden, superframe = b"\x86\0", b"\x84\0", b"\x84\0\xc0"
    assert [is_hidden("vp9", packet) for packet in (shown, hidden, superframe)] == [False, True, False]


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("missing.mp4", None, VideoNotFound),
        ("empty.mp4", b"", NotAVideo),
        ("text.mp4", b"not a video\n" * 200, NotAVideo),
        ("noise.mp4", bytes(range(256)) * 64, NotAVideo),
        ("list.mp4", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", NotAVideo),
        ("art.txt", b"hello world\n" * 50, NotAVideo),
    ],
)
def test_what_is_no_video_is_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes | None, error: type[VideoError]
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error) as caught:
        probe(path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_codec_is_refused_in_one_line(clips: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "unknown.mp4"
    path.write_bytes(clips["constant"].read_bytes().replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzC"))
    with pytest.raises(VideoError, match=r"unknown\.mp4"):
        read_frames(path, [0.0])


def test_a_folder_and_an_impossible_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoNotFound, match="folder"):
        probe(tmp_path)
    with pytest.raises(VideoNotFound):
        probe("a\0b.mp4")
    with pytest.raises(VideoNotFound):
        probe("x" * 5000)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused_by_name(tmp_path: Path) -> None:
    """Reading it a first time would leave nothing to read a second time; opening it would wait for a writer."""
    os.mkfifo(tmp_path / "pipe.mp4")
    os.mkfifo(tmp_path / "pipe.png")
    for read, name in ((probe, "pipe.mp4"), (open_source, "pipe.mp4"), (open_source, "pipe.png")):
        with pytest.raises(NotAVideo, match=rf"{name}: a pipe .* write it to a file first"):
            read(tmp_path / name)


def test_what_is_no_path_is_refused() -> None:
    with pytest.raises(VideoNotFound, match="None"):
        probe(None)  # type: ignore[arg-type]


def test_a_stream_by_number_must_be_video(clips: dict[str, Path]) -> None:
    assert probe(clips["constant"], stream=0).stream_index == 0
    with pytest.raises(VideoError, match="video streams are"):
        probe(clips["constant"], stream=3)


def test_a_name_that_looks_like_an_option_or_a_protocol_opens(clips: dict[str, Path], tmp_path: Path) -> None:
    assert probe(clips["name"]).num_frames == 60
    odd = write_clip(tmp_path / "concat.mp4", [0.0, 0.1])
    assert probe(odd.rename(tmp_path / "concat:a|b.mp4")).num_frames == 2


# --- real clips


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("odd/audio_only_15s.mp4", NotAVideo),
        ("odd/audio_only_nasa.mp3", NotAVideo),
        ("odd/audio_with_cover_pic.mp3", NotAVideo),
        ("odd/subtitles_only.mkv", NotAVideo),
        ("odd/drm_encrypted.mp4", NotAVideo),
        ("odd/derived_random_bytes.mp4", NotAVideo),
        ("odd/webm_init_only.webm", NotAVideo),
        ("odd/malformed_box.mp4", NotAVideo),
        ("odd/smallest_mpeg4_nostreams.mp4", NotAVideo),
        ("odd/init_segment_only.mp4", NoFrames),
        ("odd/smallest_avi.avi", NoFrames),
    ],
)
def test_real_files_without_pictures(real_clip: RealClip, name: str, error: type[VideoError]) -> None:
    with pytest.raises(error) as caught:
        probe(real_clip(name))
    assert Path(name).name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "fps", "frames"),
    [
        ("codec/flv_sample_fps1000.flv", 30, 30),  # header: 1000 fps
        ("odd/subs_srt.mkv", 30, 30),  # header: 1000 fps
        ("odd/fragmented_nframes0_34s.mp4", 25, 864),  # header: 0 frames
        ("odd/derived_truncated.mkv", 30, 140),  # header: 10.4 s
        ("odd/edit_list_preroll.mp4", 30, 16),  # header: 17 frames, one cut away
        ("codec/vp9_10bit.webm", 23.98, 72),  # 80 packets, 8 hidden
        ("natural/qwen_v_TpB_164s.mp4", 3, 491),
    ],
)
def test_headers_that_lie_are_not_heard(real_clip: RealClip, name: str, fps: float, frames: int) -> None:
    info = probe(real_clip(name))
    assert info.fps == pytest.approx(fps, rel=0.002)
    assert info.num_frames == frames
    assert info.duration == pytest.approx(frames / fps, rel=0.01)


def test_the_best_stream_is_chosen_not_the_first(real_clip: RealClip) -> None:
    info = probe(real_clip("natural/nasa_13013_multistream.mp4"))
    assert (info.width, info.height, info.num_frames) == (480, 270, 390)
    assert len(info.subtitle_streams) == 2


def test_square_pixels(real_clip: RealClip) -> None:
    info = probe(real_clip("odd/one_frame_sar_16_9.mp4"))
    assert (info.width, info.height, info.coded_width, info.coded_height) == (1138, 480, 640, 480)


def test_pts_are_those_of_a_linear_decode(real_clips: Path) -> None:
    """Every frame a full decode shows is in the index with its time, and nothing else is."""
    damaged = {"decord_corrupted", "derived_bitrot_mid", "derived_truncated_tail_mp4", "invalid_nalu"}
    too_long = {"hevc_8k_300ms", "long_363s_1080p_h264_noaudio", "long_363s_180p_av1_60fps"}
    checked = 0
    for path in sorted(real_clips.glob("[cno]*/*")):
        if path.stem in damaged | too_long or "header_says" in path.name:
            continue
        try:
            info = probe(path)
        except VideoError:
            continue
        with av.open(str(path)) as container:
            shown = [frame.pts for frame in container.decode(container.streams.best("video"))]
        assert info.pts.tolist() == shown, path.name
        checked += 1
    assert checked > 50


def test_a_stream_that_comes_up_late_does_not_hide_the_others(clips: dict[str, Path]) -> None:
    """PyAV then fails behind the last packet, by what lies in memory, so not every time."""

    class Growing:
        def __init__(self, container: InputContainer) -> None:
            self.container = container

        def demux(self, stream: VideoStream) -> Iterator[object]:
            yield from self.container.demux(stream)
            raise IndexError("list index out of range")

    with opened(clips["transport"]) as container:
        stream = pick_stream(container, clips["transport"])
        packets = video_packets(cast(InputContainer, Growing(container)), stream)
        assert len(list(packets)) == 60


@pytest.mark.parametrize(
    "times",
    [
        [*range(0, 400, 4)],
        [*range(0, 200, 4), 9_000_000, *range(204, 400, 4)],
        [*range(0, 200, 4), -9_000_000, *range(204, 400, 4)],
        [*range(0, 200, 4), *range(180, 400, 4)],
        [*range(0, 40, 4), 0, 4, 8],
        [*range(0, 200, 4), *range(700, 900, 4)],
        [*range(0, 200_000, 4000)],
    ],
    ids=["steady", "one far ahead", "one far behind", "a little back", "the last ones back", "a hole", "slides"],
)
def test_a_clock_that_stumbles_does_not_begin_again(times: list[int]) -> None:
    pts = np.array(times)
    assert continued(pts, pts) is pts
    assert continued(pts, pts, leap=900) is pts


@pytest.mark.parametrize(
    "junk", [b"\x67", b"\x67\x4d\0\x1e" + b"\0" * 99, b"\x67\x4d\0\x1e\xd3\0\0\0" + b"\xff" * (1 << 20)], ids=len
)
def test_a_parameter_set_of_junk_is_none_and_is_soon_read(junk: bytes) -> None:
    """The last one promises a list of millions of numbers, and has them."""
    for extradata in (b"\0\0\0\1" + junk, b"\1\x4d\0\x1e\xff\xe1\0\4" + junk):
        syntax = FieldSyntax.of("h264", extradata)
        assert syntax is None or syntax.field(av.Packet(junk)) is None


def test_pictures_packed_with_others_are_shown_before_them() -> None:
    """P2 and B1 come in one packet and a filler stands for B1; a small B picture of its own is none."""
    assert is_packed(["I", "PB", ""])
    assert not is_packed(["I", "P", "", "B"])
    sizes = np.array([1000, 900, 7, 900, 7])
    assert unpacked(np.arange(5), ["I", "PB", "P", "PB", ""], sizes).tolist() == [0, 2, 1, 4, 3]
    assert unpacked(np.arange(3), ["I", "P", "B"], sizes[:3]).tolist() == [0, 2, 1]


def test_a_clip_trimmed_within_its_first_group_is_turned_too(tmp_path: Path) -> None:
    """As phones trim: the key frame stays in the file, and is shown by none."""
    trimmed = write_clip(tmp_path / "trimmed.mp4", [number / 25 - 0.4 for number in range(60)], gop=1000)
    info = probe(with_matrix(trimmed, tmp_path / "turned.mp4", MATRICES["90"]))
    assert info.has_edits
    assert not info.key_frames.any()
    assert (info.rotation, info.width, info.height) == (90, 96, 160)


def test_a_hole_is_no_restart_where_pictures_behind_it_are_decoded_before_it() -> None:
    """Slides in a transport stream: the picture at 960 is decoded before the one at 36."""
    pts = np.array([0, 12, 4, 8, 24, 16, 20, 36, 28, 32, 960, 40, 44, *range(964, 1040, 4)])
    decoding = np.sort(pts) - 8
    assert continued(pts, decoding, leap=400) is pts


def test_a_clock_that_begins_again_goes_on() -> None:
    first, second = np.arange(100, 400, 4), np.arange(3, 83, 4)
    pts = np.concatenate([first, second, second])
    assert continued(pts, pts).tolist() == list(range(100, 100 + 4 * len(pts), 4))
    later = np.concatenate([first, second + 5000])
    assert continued(later, later) is later
    assert continued(later, later, leap=900).tolist() == list(range(100, 100 + 4 * len(later), 4))
    short, long = np.arange(100), np.arange(1000)
    again = np.concatenate([short, long])
    assert continued(again, again).tolist() == [*range(1100)]
    noise = np.array([2**61] * 20 + [-(2**61)] * 20)
    assert continued(noise, noise, leap=900) is noise
