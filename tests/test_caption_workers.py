"""Decode workers: frames as without them, a poison clip that costs its own time only, and a bounded number of bytes."""

from __future__ import annotations

import os
import shutil
import signal
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.conftest import write_clip
from vidllm.corpus.identity import content_id
from vidllm.corpus.inputs import admit
from vidllm.corpus.item import Item
from vidllm.corpus.ledger import Ledger
from vidllm.corpus.looking import Look, Opened, Seen, clip_of
from vidllm.corpus.output import Output
from vidllm.corpus.recipe import Recipe
from vidllm.corpus.rows import CaptionRow
from vidllm.corpus.scenes import Cut
from vidllm.corpus.scratch import PREFIX, Scratch, _clear_left
from vidllm.corpus.workers import DecodePool, Decoder
from vidllm.errors import NotAVideo, VideoError
from vidllm.model.families import bare_spec
from vidllm.options import GenerationOptions
from vidllm.planning import PlanOptions
from vidllm.video.guard import Limits
from vidllm.video.info import probe

SPEC = replace(bare_spec(4, 4, 4096), image_size=96)
LOOK = Look(spec=SPEC, prompt="describe the video.", options=PlanOptions(frames=8), limits=Limits(seconds=60))
FRAME_BYTES = 8 * 58 * 96 * 3
"""Of eight frames of 160 x 96, fitted into the 96 px tile."""
posix = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes and signals are POSIX")


def item(path: Path | str, **more: float) -> Item:
    return Item(video=str(path), path=str(path), **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 s at 25 fps."""
    return write_clip(tmp_path_factory.mktemp("workers") / "clip.mp4", [i / 25 for i in range(100)], gop=25)


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    decoder = Decoder(replace(LOOK, limits=Limits(seconds=60)))
    yield decoder
    decoder.close()


def opened(decoder: Decoder, item: Item) -> Opened:
    return decoder.open(item, decoder.look_at(item), LOOK.limits.seconds)


def take_all(pool: DecodePool, release: bool = True) -> list[Opened]:
    """Everything the pool gives, until it has finished."""
    taken = []
    deadline = time.monotonic() + 120
    while not pool.finished:
        assert time.monotonic() < deadline, "the pool does not end"
        if (one := pool.take(0.1)) is not None:
            taken.append(one)
            if release:
                pool.release(one)
    return taken


def test_a_member_of_a_tar_is_told_by_its_own_name(decoder: Decoder, tmp_path: Path) -> None:
    """Not by that of the copy it was read from, which is gone when somebody reads this."""
    (tmp_path / "bad.mp4").write_bytes(b"no video at all")
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        tar.add(tmp_path / "bad.mp4", "bad.mp4")
    [bad] = admit([str(tmp_path / "s.tar")])
    with pytest.raises(NotAVideo) as cut:
        decoder.ranges(bad, "fixed:1s")
    for said in (str(cut.value), opened(decoder, bad).seen.error):
        assert said is not None
        assert said.startswith(f"{tmp_path / 's.tar'}!bad.mp4: not a readable video")


def test_nothing_that_was_extracted_is_left_behind(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed, as all are in the end, can not remove what it has in hand."""
    (folder := tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        tar.add(clip, "a.mp4")
    [member] = admit([str(tmp_path / "s.tar")])
    decoder = Decoder(LOOK)
    assert opened(decoder, member).clip is not None
    assert list(folder.rglob("*.mp4"))
    decoder.close()
    assert list(folder.iterdir()) == []


def test_a_clip_that_another_takes_the_place_of_gives_its_frames_to_nobody(clip: Path, tmp_path: Path) -> None:
    """It may wait long for its turn, and copies of what it was wait for its caption."""
    changing = shutil.copyfile(clip, tmp_path / "a.mp4")

    def wanted(_: Item, seen: Seen) -> bool:
        write_clip(changing, [i / 25 for i in range(50)], gop=5)
        return seen.status is None

    pool = DecodePool(iter([item(changing)]), LOOK, wanted=wanted)
    [one] = take_all(pool)
    assert (one.clip, one.seen.status, one.seen.id) == (None, "error", content_id(clip))
    assert one.seen.error == f"{changing}: was changed while it was read; run the same command again"
    assert one.seen.stamp != LOOK.stamp_of(item(changing)), "so the next run does it again"


def test_what_a_killed_run_has_extracted_is_cleared_and_what_another_holds_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    held = Scratch()
    (tmp_path / f"{PREFIX}left").mkdir()
    (tmp_path / f"{PREFIX}left" / "vidllm-1.mp4").write_bytes(b"of a tar")
    (tmp_path / "vidllm-else").mkdir()
    _clear_left.cache_clear()
    mine = Scratch()
    assert sorted(tmp_path.iterdir()) == sorted([Path(held.name), Path(mine.name), tmp_path / "vidllm-else"])
    for folder in (held, mine):
        folder.cleanup()
    assert list(tmp_path.iterdir()) == [tmp_path / "vidllm-else"]


def test_a_worker_gives_the_frames_that_are_read_without_it(decoder: Decoder, clip: Path) -> None:
    there, here = opened(decoder, item(clip)), clip_of(item(clip), LOOK, probe(clip))
    assert there.clip is not None
    assert np.array_equal(there.clip.frames.pixels, here.frames.pixels)
    assert np.array_equal(there.clip.frames.pts_seconds, here.frames.pts_seconds)
    assert there.clip.plan == here.plan
    assert (there.seen.id, there.seen.status) == (content_id(clip, None, None), None)
    assert there.seen.bytes >= there.clip.frames.pixels.nbytes


def test_a_range_keeps_the_sources_clock(decoder: Decoder, clip: Path) -> None:
    whole, part = opened(decoder, item(clip)), opened(decoder, item(clip, start=1.0, end=2.0))
    assert part.clip is not None
    assert 1.0 <= part.clip.frames.pts_seconds.min() <= part.clip.frames.pts_seconds.max() < 2.0
    assert part.seen.id != whole.seen.id


def test_what_a_clip_costs_is_known_before_it_is_decoded(decoder: Decoder, clip: Path) -> None:
    seen = decoder.look_at(item(clip))
    assert (seen.frames, seen.status) == (8, None)
    assert seen.seconds == pytest.approx(4.0, abs=0.05)
    assert seen.bytes >= FRAME_BYTES


@pytest.mark.parametrize(
    ("content", "status", "cause"),
    [(b"", "undecodable", "empty"), (b"no video at all" * 99, "undecodable", "not a"), (None, "error", "no such file")],
)
def test_bad_media_is_a_status_and_a_cause(
    decoder: Decoder, tmp_path: Path, content: bytes | None, status: str, cause: str
) -> None:
    path = tmp_path / "bad.mp4"
    if content is not None:
        path.write_bytes(content)
    bad = opened(decoder, item(path))
    assert (bad.seen.status, bad.clip) == (status, None)
    assert bad.seen.error is not None
    assert cause in bad.seen.error
    assert "\n" not in bad.seen.error


@posix
def test_a_poison_clip_costs_its_own_time_limit_and_nothing_else(hanging: Path, clip: Path) -> None:
    look = replace(LOOK, limits=Limits(seconds=5))
    items = [item(clip, start=0.1 * n) for n in range(3)]
    pool = DecodePool(iter([items[0], item(hanging), *items[1:]]), look, workers=1)
    taken = take_all(pool)
    assert sorted(opened.seen.status or "" for opened in taken) == ["", "", "", "undecodable"]
    [poison] = [opened for opened in taken if opened.seen.status]
    assert "5 s" in (poison.seen.error or "")


@posix
def test_a_worker_that_is_killed_is_replaced(decoder: Decoder, clip: Path) -> None:
    opened(decoder, item(clip))
    assert decoder._worker is not None
    os.kill(decoder._worker.process.pid, signal.SIGKILL)
    assert opened(decoder, item(clip)).clip is not None


@posix
@pytest.mark.parametrize("times", [1, 2])
def test_what_a_worker_that_somebody_killed_had_in_hand_is_begun_once_more(
    decoder: Decoder, clip: Path, hanging: Path, times: int
) -> None:
    """Where memory runs out the system kills whom it likes: that says nothing of the clip."""

    def kill() -> None:
        for number in range(1, times + 1):
            with open(hanging, "wb"):  # waits for the worker to open it
                assert decoder._worker is not None
                if number == times == 1:
                    hanging.unlink()
                    shutil.copyfile(clip, hanging)
                decoder._worker.process.kill()
                decoder._worker.process.wait()

    threading.Thread(target=kill, daemon=True).start()
    seen = decoder.look_at(item(hanging))
    assert (seen.status, seen.frames) == ((None, 8) if times == 1 else ("error", 0))
    if times == 2:
        assert "the decoder was killed (SIGKILL)" in str(seen.error)


def test_frames_past_the_memory_limit_are_refused_before_they_are_decoded(clip: Path) -> None:
    decoder = Decoder(replace(LOOK, options=PlanOptions(frames=80), limits=Limits(memory_bytes=2 << 20)))
    seen = decoder.look_at(item(clip))
    decoder.close()
    assert seen.status == "undecodable"
    assert "MB" in (seen.error or "")


def test_no_more_bytes_are_held_than_allowed(clip: Path) -> None:
    items = [item(clip, start=0.01 * n) for n in range(40)]
    most = 3 * (FRAME_BYTES + 100 * 40)
    pool = DecodePool(iter(items), LOOK, workers=2, ahead_bytes=most, ahead=100)
    held, taken = [], []
    while not pool.finished:
        if (opened := pool.take(0.1)) is not None:
            held.append(pool._held)
            time.sleep(0.01)
            taken.append(opened)
            pool.release(opened)
    assert len(taken) == 40
    assert max(held) <= most
    assert pool._held == 0


def test_a_clip_larger_than_all_that_is_allowed_goes_alone(clip: Path) -> None:
    pool = DecodePool(iter([item(clip), item(clip, start=1.0)]), LOOK, workers=2, ahead_bytes=1)
    assert [opened.seen.status for opened in take_all(pool)] == [None, None]


def test_what_is_not_wanted_is_never_decoded(clip: Path) -> None:
    asked: list[Seen] = []

    def wanted(item: Item, seen: Seen) -> bool:
        asked.append(seen)
        return False

    pool = DecodePool(iter([item(clip)]), LOOK, wanted=wanted)
    assert take_all(pool) == []
    assert [seen.frames for seen in asked] == [8]


def test_a_long_clip_becomes_ranges_without_gaps(clip: Path) -> None:
    cuts: list[Cut] = []
    pool = DecodePool(iter([item(clip)]), LOOK, workers=2, split="fixed:1s", on_cut=lambda one, cut: cuts.append(cut))
    taken = sorted(take_all(pool), key=lambda opened: opened.item.start or 0)
    assert [(o.item.start, o.item.end) for o in taken] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert len({opened.seen.id for opened in taken}) == 4
    assert cuts == [Cut("fixed:1s", item(clip).stamp(), ((0, 1), (1, 2), (2, 3), (3, 4)))]


def test_a_clip_too_short_to_cut_stays_whole(clip: Path) -> None:
    [opened] = take_all(DecodePool(iter([item(clip)]), LOOK, split="fixed:1:00"))
    assert (opened.item.start, opened.item.end, opened.seen.stamp) == (None, None, item(clip).stamp())


def test_a_clip_that_has_its_row_as_a_whole_and_could_not_be_cut_is_cut_by_the_next_run(
    clip: Path, tmp_path: Path
) -> None:
    """The row is of a run without a split; what failed may have been the decoder's process, or the time it had."""

    class Crashing(Decoder):
        def ranges(self, item: Item, split: str) -> tuple[tuple[float | None, float | None], ...]:
            raise VideoError(f"{item.video}: the decoder crashed")

    recipe = Recipe.of("m", LOOK.prompt, LOOK.options, GenerationOptions())
    found = []
    for decoder in (None, Crashing(LOOK), Decoder(LOOK)):
        with Output.open(tmp_path / "out.jsonl", recipe) as output:
            ledger = Ledger(output, LOOK)
            split = "none" if decoder is None else "fixed:1s"
            pool = DecodePool(
                iter([item(clip)]), LOOK, skip=ledger.skip, wanted=ledger.wanted, split=split,
                known_cut=ledger.known_cut, on_cut=ledger.cut, decoders=decoder and [decoder],
            )  # fmt: skip
            found.append(taken := take_all(pool))
            for one in taken:
                row = CaptionRow.of(one.item, id=one.seen.id, recipe=recipe.digest, status="ok", stamp=one.seen.stamp)
                ledger.settle(replace(row, caption="a caption"))
    assert [len(taken) for taken in found] == [1, 0, 4]


def test_what_goes_wrong_with_the_items_is_raised_where_they_are_taken(clip: Path) -> None:
    def items() -> Iterator[Item]:
        yield item(clip)
        raise OSError("the list broke off")

    pool = DecodePool(items(), LOOK)
    with pytest.raises(OSError, match="broke off"):
        take_all(pool)
    pool.close()


def test_closing_leaves_no_process_behind(clip: Path) -> None:
    before = set(psutil.Process().children())
    pool = DecodePool(iter([item(clip, start=0.001 * n) for n in range(500)]), LOOK, workers=2)
    assert pool.take(60) is not None
    pool.close()
    deadline = time.monotonic() + 30
    while set(psutil.Process().children()) - before:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_clip_that_was_to_be_cut_when_the_run_ended_is_not_admitted(clip: Path) -> None:
    """Its ranges were not found for the end alone: the next run cuts it, and nobody waits for a row of the whole."""
    begun, killed = threading.Event(), threading.Event()

    class Slow(Decoder):
        def ranges(self, item: Item, split: str) -> tuple[tuple[float | None, float | None], ...]:
            begun.set()
            killed.wait(60)
            raise VideoError(f"{item.video}: the run was stopped")

        def kill(self) -> None:
            killed.set()

    asked: list[Item] = []
    pool = DecodePool(
        iter([item(clip)]), LOOK, split="fixed:1s", decoders=[Slow(LOOK)], skip=lambda one: bool(asked.append(one))
    )
    assert begun.wait(60)
    pool.close()
    while not pool.finished:
        time.sleep(0.01)
    assert not asked
