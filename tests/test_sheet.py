"""The contact sheet: every frame is there, told by its colour; nothing is written but the whole picture."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vidllm.errors import VideoError
from vidllm.video.decode import FrameSet
from vidllm.video.sheet import ACCENT, MAX_PIXELS, draw_sheet, save_sheet


def coloured(count: int, height: int = 60, width: int = 100, step: float = 1.0) -> FrameSet:
    """Frames of one colour each, all different, `step` seconds apart."""
    shades = np.stack([np.linspace(40, 220, count), np.linspace(220, 40, count), np.full(count, 77)], axis=1)
    pixels = np.broadcast_to(shades.astype(np.uint8)[:, None, None], (count, height, width, 3)).copy()
    times = np.arange(count) * step
    return FrameSet(pixels, times, times, "pyav")


def areas(sheet: Image.Image, frames: FrameSet) -> list[int]:
    """How many of the sheet's pixels show each frame."""
    weights = np.asarray([65536, 256, 1])
    codes, counts = np.unique(np.asarray(sheet).astype(np.int64) @ weights, return_counts=True)
    found = dict(zip(codes.tolist(), counts.tolist(), strict=True))
    return [found.get(int(picture[0, 0].astype(np.int64) @ weights), 0) for picture in frames.pixels]


@pytest.mark.parametrize("count", [1, 2, 9, 40, 130])
def test_every_frame_is_drawn_at_the_same_size(count: int) -> None:
    frames = coloured(count)
    shown = areas(draw_sheet(frames, title="clip.mp4"), frames)
    assert min(shown) > 1000
    assert max(shown) == min(shown)


@pytest.mark.parametrize(("height", "width"), [(60, 100), (100, 60), (96, 96), (1, 300), (300, 1)])
def test_fine_frames_are_larger_and_framed(height: int, width: int) -> None:
    frames = coloured(6, height, width)
    fine = [False, True, True, False, False, False]
    sheet = draw_sheet(frames, tokens=[9, 36, 36, 9, 9, 9])
    shown = areas(sheet, frames)
    assert min(size for size, is_fine in zip(shown, fine, strict=True) if is_fine) > max(shown[3:])
    assert (np.asarray(sheet) == ACCENT).all(axis=2).sum() > 100


def test_frames_of_one_size_in_tokens_are_not_framed() -> None:
    plain = draw_sheet(coloured(3), tokens=[9, 9, 9])
    assert not (np.asarray(plain) == ACCENT).all(axis=2).any()


def test_times_and_tokens_are_written() -> None:
    frames = coloured(3)
    blank = np.asarray(draw_sheet(frames))
    assert not np.array_equal(blank, np.asarray(draw_sheet(frames, tokens=[9, 9, 9])))
    later = FrameSet(frames.pixels, frames.pts_seconds + 60, frames.requested_seconds, "pyav")
    assert not np.array_equal(blank, np.asarray(draw_sheet(later)))
    near = coloured(3, step=0.2)
    assert not np.array_equal(blank, np.asarray(draw_sheet(near)))


@pytest.mark.parametrize("title", ["clip.mp4", "x" * 1000, "两个\n标题 – 第30秒", ""])
def test_any_title_fits(title: str) -> None:
    plain = draw_sheet(coloured(3))
    assert draw_sheet(coloured(3), title=title).width == plain.width


def test_very_many_frames_do_not_take_all_memory() -> None:
    sheet = draw_sheet(coloured(3000, 24, 24))
    assert sheet.width * sheet.height < 2 * MAX_PIXELS


def test_counts_must_agree() -> None:
    with pytest.raises(ValueError, match="3 frames, but 2 token sizes"):
        draw_sheet(coloured(3), tokens=[9, 9])


@pytest.mark.parametrize("name", ["sheet.png", "sheet.JPG", "sheet.webp"])
def test_a_sheet_is_saved_whole(tmp_path: Path, name: str) -> None:
    frames = coloured(4)
    path = save_sheet(frames, tmp_path / name, tokens=[9] * 4, title="clip.mp4")
    with Image.open(path) as read:
        assert read.size == draw_sheet(frames, tokens=[9] * 4, title="clip.mp4").size
    assert [item.name for item in tmp_path.iterdir()] == [name]
    other = tmp_path / "other"
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode, "who may read it is the user's own setting"


@pytest.mark.parametrize("name", ["sheet.txt", "sheet", "none/sheet.png"])
def test_a_place_that_can_not_be_written_is_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(VideoError) as caught:
        save_sheet(coloured(1), tmp_path / name)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_sheet_larger_than_its_format_is_one_line(tmp_path: Path) -> None:
    frames = coloured(1200, height=20, width=30)
    with pytest.raises(VideoError, match=r"pixels are more than such a file holds; name it \.png"):
        save_sheet(frames, tmp_path / "sheet.webp")
    assert not list(tmp_path.iterdir())
