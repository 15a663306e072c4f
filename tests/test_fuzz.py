"""A small run of the fuzzing benchmark: damaged files end in frames or in one line, and nothing is left behind."""

from pathlib import Path

import pytest

from benchmarks.fuzz import DAMAGES, damaged, fuzz
from benchmarks.fuzz import real_clips as clips_below
from tests.conftest import write_clip
from vidllm.video.guard import Limits


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three containers, made here: so the test runs where the real clips are not."""
    folder = tmp_path_factory.mktemp("sound")
    times = [i / 25 for i in range(50)]
    return [write_clip(folder / name, times) for name in ("clip.mp4", "clip.mkv", "clip.ts")]


def test_a_damaged_file_depends_on_its_seed_and_number_alone(clips: list[Path]) -> None:
    assert damaged(clips, 7, 3) == damaged(clips, 7, 3)
    assert damaged(clips, 7, 3) != damaged(clips, 7, 4)
    assert {damaged(clips, 7, number)[1] for number in range(80)} == set(DAMAGES)


def test_damaged_files_end_in_frames_or_in_one_line(clips: list[Path]) -> None:
    report = fuzz(clips, 60, seed=11, limits=Limits(seconds=60))
    assert not report.failures
    assert report.sound
    assert report.files == 60 == report.frames + sum(report.errors.values())
    assert report.frames > 10
    assert sum(report.errors.values()) > 10


def test_damaged_real_clips_end_in_frames_or_in_one_line(real_clips: Path) -> None:
    report = fuzz(clips_below(real_clips), 40, seed=12, limits=Limits(seconds=60))
    assert not report.failures
    assert report.sound
