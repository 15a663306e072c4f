"""probe(): a packet index of one clip, built without decoding it, and what follows from it alone.

Headers lie (600 and 1000 fps, 0 frames, 231 s of nothing), so frame count, rate and length come from the packets' own
presentation times (PTS). The only pixels touched are those of the first frame, which carries the rotation.
"""

from __future__ import annotations  # PyAV's Packet is generic for the type checker only

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av.error
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from vidllm.errors import NoFrames, VideoError
from vidllm.video.access import AccessRule, access_rule, is_hidden
from vidllm.video.address import is_url, plain_path
from vidllm.video.clock import LEAP_SECONDS, continued, is_packed, unpacked, vops
from vidllm.video.container import SELF_DESCRIBING, VideoPacket, opened, pick_stream, refuse_pipe, video_packets
from vidllm.video.hdr import Transfer, transfer_of
from vidllm.video.picture import Orientation, believable_aspect, orientation_of, shown_size

VFR_DEVIATION = 0.15  # a gap this much off the median gap makes the rate variable
UNKNOWN_LENGTH_SECONDS = 0.04  # of a lone frame whose packet does not tell
MAX_STILL_SECONDS = 3600.0  # a lone frame that claims to stay longer is not believed
MAX_LAST_GAPS = 10  # a last frame that claims to stay longer than this many frames is not believed
EACH_SAYS_HOW_LONG = frozenset({"gif", "apng"})  # but here every frame does; many rest on their last
FIRST_FRAME_TRIES = 32  # packets fed to the decoder in search of the first picture
BARE_STREAM = 0x80  # FFmpeg's AVFMT_NOTIMESTAMPS
CLOCKS_MAY_LEAP = 0x200  # FFmpeg's AVFMT_TS_DISCONT: transport and program streams, which are cut and joined as files
MAX_SPAN_TICKS = 2**62  # time stamps further apart than this are noise, and would overflow
NO_TIME = -(2**63)
NO_MENDING: NDArray[np.int64] = np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class VideoInfo:
    """One clip as its packets tell it. Arrays have one entry per presented frame, in presentation order.

    `pts` (int64, container ticks of `time_base`) leaves out frames an edit list discards and frames a codec hides, and
    holds each time once. `pts_seconds` (float64) is the viewer's clock: the first presented frame is 0.0.
    `width` and `height` are the picture as shown: square pixels, upright; `coded_*` as the decoder gives it.
    """

    path: str
    stream_index: int
    container: str
    codec: str
    pix_fmt: str
    width: int
    height: int
    coded_width: int
    coded_height: int
    rotation: int
    """Degrees clockwise to turn the coded picture: 0, 90, 180 or 270."""
    mirrored: bool
    """Flip left and right, before turning."""
    sample_aspect_ratio: Fraction
    time_base: Fraction
    pts: NDArray[np.int64] = field(repr=False)
    pts_seconds: NDArray[np.float64] = field(repr=False)
    key_frames: NDArray[np.bool_] = field(repr=False)
    packet_sizes: NDArray[np.int64] = field(repr=False)
    """Bytes."""
    decode_ranks: NDArray[np.int64] = field(repr=False)
    """Place of the frame's packet in the stream's order of packets, 0 first."""
    access_points: NDArray[np.int64] = field(repr=False)
    """(K, 3): rank, pts and seek timestamp of the packets a decoder may start at and be right."""
    num_packets: int
    num_frames_from_header: int
    has_true_pts: bool
    """False where no packet's own PTS is known: they were put together from decoding times or a rate, and only the
    order in which pictures leave the decoder tells which is which."""
    has_edits: bool
    """Packets are discarded or hidden: the n-th packet is not the n-th frame."""
    duration: float
    """Seconds from the first frame to the end of the last."""
    fps: float
    """Frames per second by PTS; 0.0 for a lone frame."""
    is_vfr: bool
    subtitle_streams: tuple[int, ...]
    mended_pts: NDArray[np.int64] = field(default_factory=NO_MENDING.copy, repr=False)
    """Every packet's PTS in decoding order, where the container's own mislead (`clock`); else empty."""
    transfer: Transfer = "sdr"
    """How the decoded signal tells light; frames are given in standard range whatever it is (`hdr`)."""

    @property
    def num_frames(self) -> int:
        """Frames that are presented."""
        return len(self.pts)

    @property
    def start_frames(self) -> NDArray[np.int64]:
        """Numbers of the frames that a decoder may start at, ascending."""
        return np.flatnonzero(np.isin(self.decode_ranks, self.access_points[:, 0]))

    def index_at(self, times: Sequence[float] | NDArray[np.float64]) -> NDArray[np.int64]:
        """The frame on screen at each time (N,): the last with `pts_seconds <= t`, clamped to the clip.

        Half a tick of grace: a time that went through decimal text still finds the frame it was read from.
        """
        grace = min(float(self.time_base) / 2, 5e-4)
        found = np.searchsorted(self.pts_seconds, np.asarray(times, dtype=np.float64) + grace, side="right") - 1
        clamped: NDArray[np.int64] = np.clip(found, 0, self.num_frames - 1).astype(np.int64)
        return clamped


def probe(path: str | Path, *, stream: int | None = None) -> VideoInfo:
    """Index the clip at `path`: its best video stream, or the one numbered `stream`. A URL is fetched into the cache.

    Raises VideoNotFound, NotAVideo, NoFrames (a video stream without one frame), FetchError or VideoError.
    """
    if is_url(path):
        from vidllm.video.fetch import fetch_clip  # http's libraries, which no local file needs

        path = fetch_clip(str(path))
    path = plain_path(path)
    refuse_pipe(path)
    return index_clip(path, stream)


def index_clip(path: str | Path, stream: int | None = None) -> VideoInfo:
    """`probe` of a local file or of anything that can be opened: for a process that can be killed."""
    with opened(path, look_inside=False) as container:
        if container.format.name.startswith(SELF_DESCRIBING):
            return _index(path, container, stream)
    with opened(path) as container:
        return _index(path, container, stream)


def _index(path: str | Path, container: InputContainer, number: int | None) -> VideoInfo:
    stream = pick_stream(container, path, number)
    log = _read_packets(container, stream)
    if not log.pts:
        raise NoFrames(f"{path}: a video header without one frame behind it; the file was cut short, copy it again")
    return _build(str(path), container, stream, log)


@dataclass
class _PacketLog:
    """What the demuxer said of each packet, in its order."""

    pts: array[int] = field(default_factory=lambda: array("q"))
    dts: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    keys: bytearray = field(default_factory=bytearray)
    unseen: bytearray = field(default_factory=bytearray)  # discarded by an edit list, or hidden by the codec
    vops: list[str] = field(default_factory=list)  # of MPEG-4 part 2 alone
    access_ranks: list[int] = field(default_factory=list)
    last_duration: int = 0
    picture: VideoFrame | None = None
    """The first that decodes, for what only a frame knows: its real size, format and display matrix."""

    def add(self, packet: VideoPacket, codec: str, starts: AccessRule) -> None:
        """Note one packet."""
        key = packet.is_keyframe
        rank = len(self.pts)
        if key and (rank == 0 or starts(memoryview(packet))):
            self.access_ranks.append(rank)
        self.pts.append(NO_TIME if packet.pts is None else packet.pts)
        self.dts.append(NO_TIME if packet.dts is None else packet.dts)
        self.sizes.append(packet.size)
        self.keys.append(key)
        self.unseen.append(packet.is_discard or is_hidden(codec, memoryview(packet)))
        self.last_duration = packet.duration or 0
        if codec == "mpeg4":
            self.vops.append(vops(memoryview(packet)))

    def decoding_times(self, pts: NDArray[np.int64]) -> NDArray[np.int64]:
        """DTS in ticks, `pts` standing in where there is none."""
        dts = np.array(self.dts, np.int64)
        return np.where(dts == NO_TIME, pts, dts)


def _read_packets(container: InputContainer, stream: VideoStream) -> _PacketLog:
    """Demux the stream to its end; what stands after a demuxing error is lost, as it is for every player."""
    log = _PacketLog()
    codec, context = codec_name(stream), stream.codec_context
    context.thread_count = 1  # with more, the first frame comes late
    starts = access_rule(codec, context.extradata)
    try:
        for packet in video_packets(container, stream):
            if log.picture is None and len(log.pts) < FIRST_FRAME_TRIES:
                log.picture = _picture_in(packet, context)
            log.add(packet, codec, starts)
    except av.error.FFmpegError:
        if not log.pts:
            raise
    return log


def _picture_in(packet: VideoPacket, context: VideoCodecContext) -> VideoFrame | None:
    """The picture of this packet alone, if it needs no other one."""
    if packet.is_discard:  # an edit list hides its picture, not what it tells of the others
        packet = Packet(bytes(packet))  # type: ignore[assignment]
    try:
        frames = context.decode(packet) or context.decode(None)
        context.flush_buffers()
    except (av.error.FFmpegError, ValueError):
        return None  # a broken first packet is the reader's matter; a later one may tell
    return frames[0] if frames else None


def codec_name(stream: VideoStream) -> str:
    """The coded format ("av1"), not the decoder that happens to read it ("libdav1d")."""
    return stream.codec_context.codec.canonical_name


def _build(path: str, container: InputContainer, stream: VideoStream, log: _PacketLog) -> VideoInfo:
    time_base = Fraction(stream.time_base or 0)
    raw, has_true_pts = _presentation_times(path, container, stream, log)
    leap = LEAP_SECONDS / float(time_base) if container.format.flags & CLOCKS_MAY_LEAP else math.inf
    pts = _mended(raw, log, leap) if has_true_pts else raw
    if has_true_pts:
        _hide_what_leads(path, container, stream, pts, log)
    order = _presented(pts, log)
    if not len(order):
        raise NoFrames(
            f"{path}: every frame is cut away by its edit list; re-encode it, or play it to see what it shows"
        )
    seconds = (pts[order] - pts[order[0]]) * float(time_base)
    frame, context = log.picture, stream.codec_context
    orientation = orientation_of(frame) if frame is not None else Orientation()
    coded = (frame.width, frame.height) if frame is not None else (context.width, context.height)
    aspect = believable_aspect(stream.sample_aspect_ratio or context.sample_aspect_ratio)
    height, width = shown_size(*coded, aspect, orientation)
    is_told = container.format.name in EACH_SAYS_HOW_LONG
    length = _last_length(seconds, log.last_duration * float(time_base), is_told=is_told)
    return VideoInfo(
        path=path,
        stream_index=stream.index,
        container=container.format.name,
        codec=codec_name(stream),
        pix_fmt=(frame.format.name if frame is not None else context.pix_fmt) or "",
        width=width,
        height=height,
        coded_width=coded[0],
        coded_height=coded[1],
        rotation=orientation.rotation,
        mirrored=orientation.mirrored,
        sample_aspect_ratio=aspect,
        time_base=time_base,
        pts=pts[order],
        pts_seconds=seconds,
        key_frames=np.frombuffer(bytes(log.keys), np.bool_)[order],
        packet_sizes=np.array(log.sizes, np.int64)[order],
        decode_ranks=order,
        access_points=_access_points(container, pts, log),
        mended_pts=NO_MENDING if pts is raw else pts,
        num_packets=len(pts),
        num_frames_from_header=stream.frames,
        has_true_pts=has_true_pts,
        has_edits=any(log.unseen) or len(order) != len(pts),
        duration=float(seconds[-1]) + length,
        fps=(len(seconds) - 1) / float(seconds[-1]) if len(seconds) > 1 else 0.0,
        is_vfr=_is_variable(seconds, float(time_base)),
        subtitle_streams=tuple(text.index for text in container.streams.subtitles),
        transfer=transfer_of(context.color_trc),
    )


def _presentation_times(
    path: str, container: InputContainer, stream: VideoStream, log: _PacketLog
) -> tuple[NDArray[np.int64], bool]:
    """Each packet's PTS in ticks, and whether the container gave them all.

    Where one is missing, decoding times stand in (an AVI has no others); where these fail too, the header's rate.
    """
    pts = np.array(log.pts, np.int64)
    missing = (pts == NO_TIME).any()
    made_up = not missing and _are_made_up(pts, container, stream)
    decoding = log.decoding_times(pts)
    if missing:
        pts = decoding
    elif made_up:  # either may have lost some
        pts = max(decoding, pts, key=lambda times: len(np.unique(times)))
    if (pts == NO_TIME).any():
        # of a bare H.264 or HEVC stream FFmpeg calls 25 the average, whatever rate the stream itself says
        rate = stream.guessed_rate or stream.average_rate or Fraction(25)
        time_base = stream.time_base or Fraction(1, 25)
        pts = np.arange(len(pts), dtype=np.int64) * max(1, round(1 / (rate * time_base)))
    if int(pts.max()) - int(pts.min()) > MAX_SPAN_TICKS:
        raise VideoError(f"{path}: its time stamps are broken; re-encode it")
    return pts, not (missing or made_up)


def _are_made_up(pts: NDArray[np.int64], container: InputContainer, stream: VideoStream) -> bool:
    """Whether FFmpeg made PTS of decoding times without knowing the order of pictures: AVI and ASF hold no others, nor
    do most MXF, and bare streams none. Of MPEG-4 it reads the order from the packets, and of MPEG-1 and 2 in an AVI;
    of H.264 and HEVC it guesses, mostly that there is none."""
    if not stream.codec_context.has_b_frames:
        return False
    codec, name = codec_name(stream), container.format.name
    if codec in ("mpeg1video", "mpeg2video"):
        return bool(container.format.flags & BARE_STREAM) or (name == "asf" and _ascend(pts))
    return codec in ("h264", "hevc") and (name in ("avi", "asf") or (name == "mxf" and _ascend(pts)))


def _ascend(pts: NDArray[np.int64]) -> bool:
    return bool((np.diff(pts) >= 0).all())


def _mended(pts: NDArray[np.int64], log: _PacketLog, leap: float) -> NDArray[np.int64]:
    """The viewer's PTS; `pts` itself where nothing is to be mended. `leap` as `continued` takes it."""
    decoding = log.decoding_times(pts)
    if is_packed(log.vops) and _ascend(pts):
        pts = unpacked(decoding, log.vops, np.array(log.sizes, np.int64))
    return continued(pts, decoding, leap)


def _hide_what_leads(
    path: str, container: InputContainer, stream: VideoStream, pts: NDArray[np.int64], log: _PacketLog
) -> None:
    """What a recording that was begun or cut in the middle has before its first whole picture is on no screen.

    Those packets refer to others that are gone; but some encoders also begin with pictures that lead the first key
    frame and need nothing else, so the decoder is asked where it begins.
    """
    if not log.access_ranks:
        return
    access = log.access_ranks[0]
    near = access + FIRST_FRAME_TRIES  # no codec's leading pictures are as many
    unseen = np.frombuffer(bytes(log.unseen), np.bool_).copy()
    if not access and not ((pts < pts[0]) & ~unseen)[:near].any():
        return
    look_inside = not container.format.name.startswith(SELF_DESCRIBING)
    first = _first_shown(path, stream.index, near, look_inside=look_inside)
    if first is not None:
        unseen[:near] |= pts[:near] < first
        log.unseen = bytearray(unseen.tobytes())


def _first_shown(path: str, number: int, tries: int, *, look_inside: bool) -> int | None:
    """PTS of the first picture that leaves the decoder within so many packets from the start."""
    with opened(path, look_inside=look_inside) as container:
        stream = pick_stream(container, path, number)
        stream.codec_context.thread_count = 1
        for packet in islice(video_packets(container, stream), tries):
            try:
                frames = stream.codec_context.decode(packet)
            except (av.error.FFmpegError, ValueError):
                continue
            if frames:
                return frames[0].pts
    return None


def _presented(pts: NDArray[np.int64], log: _PacketLog) -> NDArray[np.int64]:
    """Ranks of the packets that are shown, by time; of several with one time the last, which stays on screen."""
    shown = np.flatnonzero(np.frombuffer(bytes(log.unseen), np.uint8) == 0)
    ordered = shown[np.argsort(pts[shown], kind="stable")]
    last_of_its_time = np.append(np.diff(pts[ordered]) > 0, True) if len(ordered) else np.zeros(0, np.bool_)
    presented: NDArray[np.int64] = ordered[last_of_its_time].astype(np.int64)
    return presented


def _access_points(container: InputContainer, pts: NDArray[np.int64], log: _PacketLog) -> NDArray[np.int64]:
    """(K, 3): rank, pts, and the timestamp to seek to: PTS by Matroska's cues, decoding time in other containers."""
    ranks = np.array(log.access_ranks or [0], np.int64)
    times, packets = np.unique(pts, return_counts=True)
    alone = ~np.isin(pts[ranks], times[packets > 1])  # a seek knows a packet by its time
    ranks = ranks[alone | (ranks == ranks[0])]
    seek = pts if "matroska" in container.format.name else log.decoding_times(pts)
    return np.stack([ranks, pts[ranks], seek[ranks]], axis=1)


def _last_length(seconds: NDArray[np.float64], claimed: float, *, is_told: bool) -> float:
    """Seconds the last frame stays: what its packet claims if that fits the other gaps, else their median.

    Of a lone frame, and with `is_told`, nearly any claim is believed.
    """
    gap = float(np.median(np.diff(seconds))) if len(seconds) > 1 else UNKNOWN_LENGTH_SECONDS
    anything = is_told or len(seconds) < 2
    least, most = (0.0, MAX_STILL_SECONDS) if anything else (gap / 2, gap * MAX_LAST_GAPS)
    return claimed if least < claimed <= most else gap


def _is_variable(seconds: NDArray[np.float64], tick: float) -> bool:
    """Some gap is further from the median than rounding to the container's ticks explains."""
    if len(seconds) < 3:
        return False
    gaps = np.diff(seconds)
    middle = float(np.median(gaps))
    return bool((np.abs(gaps - middle) > max(VFR_DEVIATION * middle, 1.5 * tick)).any())
