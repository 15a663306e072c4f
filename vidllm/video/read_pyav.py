"""The indexed reader: PyAV told by the packet index where to start, what to leave out and when to stop.

    packets   K r b b r b b K r b b r b b K ...      K may be started at, r serves others, b serves nobody
    wanted            ^             ^
    decoded   K r   b         K r   b                the rest is skipped by a seek, or dropped undecoded

Notable: a frame that serves nobody is not decoded unless it is wanted (exact, see `access.droppable`); after the
last wanted packet the decoder is drained instead of fed on; where a seek landed is checked against the index, and where
anything fails to come the clip is decoded from its start, keeping what can be kept.
"""

from __future__ import annotations  # PyAV's Packet is generic for the type checker only

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from itertools import repeat
from threading import Event

import av.error
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from vidllm.errors import NoFrames
from vidllm.machine import cores
from vidllm.video.access import droppable
from vidllm.video.container import SELF_DESCRIBING, VideoPacket, as_video_error, opened, pick_stream, video_packets
from vidllm.video.harvest import Harvest
from vidllm.video.info import VideoInfo
from vidllm.video.picture import Orientation, Painter
from vidllm.video.runs import Run, plan_runs, share

SEEK_PACKETS = 64  # a gap shorter than this is demuxed and dropped: cheaper than a seek and the re-reading after it
# Codecs whose packets are not read for `droppable`, but whose decoder can leave out unreferenced frames exactly.
DECODER_SKIPS = frozenset({"mpeg4", "mpeg2video", "mpeg1video"})
MAX_THREADS = 4  # more only adds memory: 64 frames of a clip are read, not a film
# Decoders whose frame threads show other pixels: of interlaced MPEG-4, in pictures between others.
SINGLE_THREAD = frozenset({"mpeg4"})
# Decoders that end and begin all their threads at every seek: 16 frames of a 6-minute clip 245 ms with, 57 without.
SLOW_TO_START = frozenset({"av1"})
# What is transparent in them is meant to be; of others, the fourth number of a pixel may hold anything.
TRANSPARENT = frozenset({"apng", "png"})
PAINTED_ASIDE = 4  # whole frames that wait for their scaling
BACK_OFF = (0, 1, 2, 4, 8)  # access points to step back when a seek lands behind its target


class _Lost(Exception):
    """A wanted frame did not come out of the short way; the caller takes the long one."""


def read_pyav(info: VideoInfo, wanted: NDArray[np.int64], size: tuple[int, int]) -> Harvest:
    """Decode the frames with presentation numbers `wanted` (K,), sorted and distinct, as RGB of `size` (height, width).

    Raises NoFrames when nothing decodes, NotAVideo or VideoError when the file can no longer be opened.
    """
    if info.has_true_pts:
        try:
            return _read_runs(info, wanted, size)
        except _Lost:
            pass
    try:
        return _read_all(info, wanted, size, _painter(info, size))
    except av.error.FFmpegError as error:  # scaling failed: a pixel format or size FFmpeg can not convert
        raise as_video_error(info.path, error) from error


def frame_threads() -> int:
    """For one decoder: one more than cores, so that none idles while a frame waits for the one it refers to."""
    return 1 if cores() == 1 else min(MAX_THREADS, cores() + 1)


def _painter(info: VideoInfo, size: tuple[int, int]) -> Painter:
    return Painter(size, Orientation(info.rotation, info.mirrored), on_white=info.codec in TRANSPARENT)


class _Tape:
    """One open stream that knows which packet comes next and can be wound to an access point."""

    def __init__(self, info: VideoInfo, threads: int) -> None:
        self._info, self._threads = info, threads
        self._stack = ExitStack()
        self._open()

    def _open(self) -> None:
        self._stack.close()
        look_inside = not self._info.container.startswith(SELF_DESCRIBING)
        self._container: InputContainer = self._stack.enter_context(opened(self._info.path, look_inside=look_inside))
        self.stream: VideoStream = pick_stream(self._container, self._info.path, self._info.stream_index)
        self.decoder = self.stream.codec_context
        self.decoder.thread_type = "FRAME" if self._threads > 1 else "NONE"
        self.decoder.thread_count = self._threads
        self._packets = video_packets(self._container, self.stream)
        self.rank = 0

    def close(self) -> None:
        """Close the file."""
        self._stack.close()

    def next(self) -> VideoPacket | None:
        """The packet of `rank`, then one further."""
        packet = next(self._packets, None)
        if packet is not None and self.rank < len(self._info.mended_pts):
            packet.pts = int(self._info.mended_pts[self.rank])
        self.rank += 1
        return packet

    def wind(self, access: int) -> VideoPacket:
        """Go to an access point and return its packet. Raises _Lost when it is not found even from the start."""
        rank, pts = (int(number) for number in self._info.access_points[access, :2])
        if 0 <= rank - self.rank <= SEEK_PACKETS:
            return self._forward(rank)
        dropped = self._info.container == "avi" and self._info.is_vfr  # FFmpeg miscounts such frames when it seeks
        if dropped or len(self._info.mended_pts):  # times are ambiguous: a packet is known by its place alone
            if rank < self.rank:
                self._open()
            return self._forward(rank)
        for step in BACK_OFF:
            landing = max(access - step, 0)
            packet = self._seek(int(self._info.access_points[landing, 2]), pts)
            if packet is not None:
                self.rank = rank + 1
                return packet
            if not landing:
                break
        self._open()
        return self._forward(rank)

    def _forward(self, rank: int) -> VideoPacket:
        while self.rank < rank:
            self.next()
        packet = self.next()
        if packet is None:
            raise _Lost
        return packet

    def _seek(self, timestamp: int, pts: int) -> VideoPacket | None:
        """Seek, then demux up to the key packet with `pts`; None when the seek landed behind it."""
        try:
            self._container.seek(timestamp, stream=self.stream)
        except av.error.FFmpegError:
            return None
        self._packets = video_packets(self._container, self.stream)
        for packet in self._packets:
            time = packet.dts if packet.pts is None else packet.pts
            if packet.is_keyframe and time == pts:
                return packet
            if packet.is_keyframe and time is not None and time > pts:
                return None
        return None


def _read_runs(info: VideoInfo, wanted: NDArray[np.int64], size: tuple[int, int]) -> Harvest:
    """The short way: only the packets the wanted frames need, groups of pictures side by side where there are several.

    Raises _Lost as soon as it does not work out.
    """
    pixels = np.empty((len(wanted), *size, 3), np.uint8)
    canvas = _Canvas(info, size, {int(info.pts[index]): pixels[row] for row, index in enumerate(wanted.tolist())})
    shares = share(info, wanted, min(MAX_THREADS, cores()))
    if len(shares) == 1:
        canvas.fill(wanted, frame_threads())
    else:
        canvas.fill_together(shares)
    return Harvest(pixels, info.pts[wanted], np.zeros(len(wanted), np.bool_))


@dataclass(frozen=True, eq=False)
class _Canvas:
    """Where each wanted picture goes, by its time in ticks: (H, W, 3), `size` being (H, W)."""

    info: VideoInfo
    size: tuple[int, int]
    places: dict[int, NDArray[np.uint8]]
    given_up: Event = field(default_factory=Event)
    """What one thread has lost the others need not go on with."""

    def fill_together(self, shares: list[NDArray[np.int64]]) -> None:
        """Each share in a thread of its own. Raises _Lost."""
        with ThreadPoolExecutor(len(shares)) as pool:
            try:
                list(pool.map(self.fill, shares, repeat(1)))
            finally:
                self.given_up.set()  # Ctrl-C comes to this thread alone

    def fill(self, wanted: NDArray[np.int64], threads: int) -> None:
        """Decode and paint `wanted` through a tape and a painter of its own. Raises _Lost."""
        runs = plan_runs(self.info, wanted)
        alone = self.info.codec in SINGLE_THREAD or (len(runs) > 1 and self.info.codec in SLOW_TO_START)
        brush = _Brush(_painter(self.info, self.size), aside=threads > 1)
        with closing(_Tape(self.info, threads=1 if alone else threads)) as tape, brush:
            try:
                for run in runs:
                    self._fill_run(tape, run, brush)
                brush.dry()
            except (av.error.FFmpegError, ValueError, _Lost) as error:
                self.given_up.set()
                raise _Lost from error

    def _fill_run(self, tape: _Tape, run: Run, brush: _Brush) -> None:
        wanted, seen = {int(self.info.pts[index]) for index in run.wanted}, set[int]()
        for frame in _frames_of_run(self.info, tape, run):
            if self.given_up.is_set():
                raise _Lost
            if frame.pts in wanted:
                if frame.is_corrupt:
                    raise _Lost
                seen.add(frame.pts)
                brush.paint(frame, self.places[frame.pts])  # of two frames at one time the later stays on screen
        if seen != wanted:
            raise _Lost


class _Brush:
    """A painter that may work `aside`, so that the threads of a decoder are fed while it paints."""

    def __init__(self, painter: Painter, *, aside: bool) -> None:
        self._painter, self._wet = painter, deque[Future[None]]()
        self._pool = ThreadPoolExecutor(1) if aside else None

    def __enter__(self) -> _Brush:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown()

    def paint(self, frame: VideoFrame, out: NDArray[np.uint8]) -> None:
        """Fill `out` (H, W, 3), now or soon; full frames are not piled up."""
        if self._pool is None:
            self._painter.paint(frame, out)
            return
        self._wet.append(self._pool.submit(self._painter.paint, frame, out))
        if len(self._wet) > PAINTED_ASIDE:
            self._wet.popleft().result()

    def dry(self) -> None:
        """Wait for what is still being painted. Raises what the painter raised."""
        while self._wet:
            self._wet.popleft().result()


def _frames_of_run(info: VideoInfo, tape: _Tape, run: Run) -> Iterator[VideoFrame]:
    """Decode the run's packets, then drain the decoder and leave it empty."""
    needed = {int(info.decode_ranks[index]) for index in run.wanted}
    drop = droppable(info.codec, tape.decoder.extradata)
    skip = info.codec in DECODER_SKIPS and not len(info.mended_pts)  # a packet may hold another packet's picture
    packet: VideoPacket | None = tape.wind(run.access)
    tape.decoder.flush_buffers()
    for rank in range(run.start, run.stop + 1):
        if packet is None:
            break
        if skip:
            tape.decoder.skip_frame = "DEFAULT" if rank in needed else "NONREF"
        if rank in needed or drop is None or not drop(memoryview(packet)):
            yield from tape.decoder.decode(packet)
        packet = tape.next() if rank < run.stop else None
    yield from tape.decoder.decode(None)
    tape.decoder.flush_buffers()


def _read_all(info: VideoInfo, wanted: NDArray[np.int64], size: tuple[int, int], painter: Painter) -> Harvest:
    """The long way: every packet from the start, passing over those that fail; each wanted time gets the last frame
    that decoded before or at it, or the first of all where none did."""
    harvest = Harvest(np.empty((len(wanted), *size, 3), np.uint8), info.pts[wanted], np.zeros(len(wanted), np.bool_))
    row, last = 0, None
    for found in _surviving_frames(info):
        if last is not None and found.pts < last.pts:
            continue  # what damage made late is passed over: a later picture is on screen already
        row = _fill(harvest, row, last, until=found.pts, painter=painter)
        if row == len(wanted):
            return harvest
        last = found
    if last is None:
        raise NoFrames(f"{info.path}: none of its frames can be decoded; the file is damaged, copy it again")
    _fill(harvest, row, last, until=None, painter=painter)
    return harvest


@dataclass(frozen=True)
class _Found:
    """A frame that decoded, and its time in ticks."""

    frame: VideoFrame
    pts: int


def _fill(harvest: Harvest, row: int, found: _Found | None, *, until: int | None, painter: Painter) -> int:
    """Answer the wanted times from `row` on that lie before `until` with `found`; returns the next row to answer."""
    while found is not None and row < len(harvest.pts) and (until is None or harvest.pts[row] < until):
        painter.paint(found.frame, harvest.pixels[row])
        harvest.pts[row], harvest.damaged[row] = found.pts, found.frame.is_corrupt
        row += 1
    return row


def _surviving_frames(info: VideoInfo) -> Iterator[_Found]:
    """All that decodes, in the order of presentation but for what damage delays."""
    with closing(_Tape(info, threads=1)) as tape:
        for count, frame in enumerate(_frames_despite_errors(tape)):
            numbered = int(info.pts[min(count, info.num_frames - 1)])
            yield _Found(frame, frame.pts if info.has_true_pts and frame.pts is not None else numbered)


def _frames_despite_errors(tape: _Tape) -> Iterator[VideoFrame]:
    while True:
        packet: VideoPacket | None = None
        with suppress(av.error.FFmpegError):  # else the demuxer gave up: what is behind is lost
            packet = tape.next()
        with suppress(av.error.FFmpegError, ValueError):  # a broken one; wanted frames it held are missed by their pts
            yield from tape.decoder.decode(packet)
        if packet is None:
            return
