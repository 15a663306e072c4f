"""Pictures: upright, RGB, and one line for what is none."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PIL
from PIL import ImageOps

from vidllm.errors import LimitExceeded, NotAVideo, VideoNotFound
from vidllm.sources import open_source
from vidllm.still import is_still, open_still
from vidllm.video.animation import moves
from vidllm.video.decode import read_frames
from vidllm.video.info import probe
from vidllm.visuals import Image
from vidllm_cli.main import main


def quadrants(mode: str = "RGB") -> PIL.Image:
    """4 x 2 pixels, the left half red, the right half blue."""
    pixels = np.zeros((2, 4, 3), np.uint8)
    pixels[:, :2, 0] = pixels[:, 2:, 2] = 255
    return PIL.fromarray(pixels).convert(mode)


def test_the_ending_says_what_is_a_picture() -> None:
    assert is_still("a/B.JPG")
    assert is_still(Path("图.webp"))
    assert not is_still("clip.mp4")
    assert not is_still("moves.gif")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    quadrants(mode).save(path)
    image = open_still(path)
    assert image.pixels.shape == (2, 4, 3)
    assert image.pixels[0, 0].tolist() == [255, 0, 0]
    assert image.source == str(path)


def test_grey_of_sixteen_bits_is_not_all_white(tmp_path: Path) -> None:
    PIL.fromarray(np.array([[0, 257, 128 * 257, 65535]], np.uint16)).save(tmp_path / "deep.png")
    PIL.fromarray(np.array([[0, 1, 128, 255]], np.int32)).save(tmp_path / "flat.tif")
    for name in ("deep.png", "flat.tif"):
        assert open_still(tmp_path / name).pixels[0, :, 1].tolist() == [0, 1, 128, 255]


def test_grey_of_fractions_is_not_all_black(tmp_path: Path) -> None:
    PIL.fromarray(np.array([[0, 1 / 255, 128 / 255, 1]], np.float32)).save(tmp_path / "shares.tif")
    PIL.fromarray(np.array([[-1, 1, 128, 300]], np.float32)).save(tmp_path / "bytes.tif")
    assert open_still(tmp_path / "shares.tif").pixels[0, :, 1].tolist() == [0, 1, 128, 255]
    assert open_still(tmp_path / "bytes.tif").pixels[0, :, 1].tolist() == [0, 1, 128, 255]


def test_transparency_shows_white(tmp_path: Path) -> None:
    PIL.new("RGBA", (1, 1), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert open_still(tmp_path / "a.png").pixels.tolist() == [[[255, 255, 255]]]


def test_a_photo_taken_sideways_is_turned(tmp_path: Path) -> None:
    """EXIF orientation 6: turn 90 degrees clockwise to show; what was left is on top."""
    picture = quadrants()
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    pixels = open_still(tmp_path / "a.png").pixels
    assert pixels.shape == (4, 2, 3)
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert pixels[3, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
def test_every_orientation_is_turned_as_pillow_turns_it(orientation: int, ending: str, tmp_path: Path) -> None:
    exif = PIL.Exif()
    exif[0x0112] = orientation
    quadrants().save(tmp_path / f"a.{ending}", exif=exif)
    with PIL.open(tmp_path / f"a.{ending}") as opened:
        assert np.array_equal(open_still(tmp_path / f"a.{ending}").pixels, np.asarray(ImageOps.exif_transpose(opened)))


def test_a_grey_tiff_that_lies_on_its_side_is_turned(tmp_path: Path) -> None:
    exif = PIL.Exif()
    exif[0x0112] = 6
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6)
    PIL.fromarray(grey).save(tmp_path / "a.tif", exif=exif)
    assert np.array_equal(open_still(tmp_path / "a.tif").pixels[..., 0], np.rot90(grey, -1))


def test_an_odd_tag_beside_the_orientation_costs_nothing(tmp_path: Path) -> None:
    """A width in pixels told as text: Pillow reads the tag and can not write it again."""
    entries = struct.pack("<HHI4s", 0x0100, 2, 4, b"wide") + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    quadrants().save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    assert open_still(tmp_path / "a.jpg").pixels.shape == (4, 2, 3)


def test_a_picture_with_a_field_of_another_kind_is_told(tmp_path: Path) -> None:
    """The place of a TIFF's pixels as one byte of text instead of a number."""
    quadrants().save(tmp_path / "a.tif")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    at = data.index(struct.pack("<HH", 0x0111, 4))
    data[at + 2 : at + 4] = struct.pack("<H", 7)
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(NotAVideo, match="not a picture that can be read"):
        open_still(tmp_path / "a.tif")


def test_what_is_no_picture_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    whole = tmp_path / "whole.png"
    PIL.effect_noise((64, 64), 50).save(whole)
    (tmp_path / "half.png").write_bytes(whole.read_bytes()[:2000])
    for name in ("text.png", "empty.jpg", "half.png"):
        with pytest.raises(NotAVideo, match=name) as caught:
            open_still(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(VideoNotFound):
        open_still(tmp_path / "none.png")
    with pytest.raises(VideoNotFound):
        open_still(tmp_path)


@pytest.mark.parametrize("name", ["moves.png", "moves.webp"])
def test_an_animation_is_a_video_whatever_its_ending(name: str, tmp_path: Path) -> None:
    """APNG is read whole; FFmpeg reads no animated WebP, and to take its first picture for all of it would be a lie."""
    pictures = [PIL.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    moving, resting = tmp_path / name, tmp_path / f"rests{Path(name).suffix}"
    pictures[0].save(moving, save_all=True, append_images=pictures[1:], duration=500)
    pictures[0].save(resting)
    assert moves(moving)
    assert not moves(resting)
    assert isinstance(open_source(resting), Image)
    assert open_source(moving) == moving
    if name == "moves.webp":
        with pytest.raises(NotAVideo, match="an animated WebP, which FFmpeg does not read; save it as GIF"):
            probe(moving)
    else:
        frames = read_frames(moving, [0.0, 0.7, 1.2])
        assert frames.pts_seconds.tolist() == [0.0, 0.5, 1.0]
        assert frames.pixels[:, 0, 0].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("size", [(16, 16), (8, 8)])
def test_what_is_transparent_in_a_picture_that_moves_is_white_as_in_one_that_rests(
    mode: str, size: tuple[int, int], tmp_path: Path
) -> None:
    """Stickers are often drawn in black on nothing, under which lies black."""
    pictures = [PIL.new("RGBA", (16, 16), (0, 0, 0, 0)) for _ in range(2)]
    for number, picture in enumerate(pictures):
        picture.paste((0, 0, 0, 255), (4 * number, 0, 4 * number + 4, 16))
    first, second = (picture.convert(mode) for picture in pictures)
    first.save(tmp_path / "moves.png", save_all=True, append_images=[second], duration=500)
    shown = read_frames(tmp_path / "moves.png", [0.0], size=size).pixels[0]
    assert shown[0, -1].tolist() == [255, 255, 255]
    assert shown[0, 0].tolist() == [0, 0, 0]


def test_frames_of_a_picture_are_told_to_be_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quadrants().save(tmp_path / "a.png")
    assert main(["frames", str(tmp_path / "a.png"), "-o", str(tmp_path / "sheet.png")]) == 1
    assert "a.png: a still picture, and frames are a video's" in capsys.readouterr().err
    assert not (tmp_path / "sheet.png").exists()


def png_header(path: Path, width: int, height: int) -> Path:
    """A PNG that claims a size and holds nothing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    path.write_bytes(start + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))
    return path


@pytest.mark.parametrize("side", [12000, 30000])
def test_a_bomb_is_not_opened(side: int, tmp_path: Path) -> None:
    with pytest.raises(LimitExceeded, match="over 134 megapixels"):
        open_still(png_header(tmp_path / "bomb.png", side, side))
