"""A small run of the fuzzing benchmark: damaged files end in frames or in one line, and nothing is left behind."""

from pathlib import Path

import pytest
from conftest import REAL_CLIPS, write_clip

from benchmarks.fuzz import DAMAGES, damaged, fuzz, real_clips
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


@pytest.mark.skipif(not REAL_CLIPS.is_dir(), reason="the folder of real clips is not here")
def test_damaged_real_clips_end_in_frames_or_in_one_line() -> None:
    report = fuzz(real_clips(REAL_CLIPS), 40, seed=12, limits=Limits(seconds=60))
    assert not report.failures
    assert report.sound
