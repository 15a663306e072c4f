"""The contact sheet: what the model was shown, each frame with its time and its size in tokens.

+--------------------------------------------+
| title                                      |
| +---------+ +---------+ +#########+        |
| |         | |         | # fine    #        |     fine frames are drawn larger and framed
| +---------+ +---------+ #         #        |
|  0:00  9    0:05  9     +#########+        |
|                          0:08  16 tokens   |
+--------------------------------------------+
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image, ImageDraw, ImageFont

from vidllm.errors import VideoError
from vidllm.video.decode import FrameSet
from vidllm.video.timecode import format_time

COARSE_SIDE, FINE_SIDE = 168, 252
"""Longest side of a drawn frame in pixels; two fine rows are as high as three coarse ones."""
GAP, MARGIN, FRAME_LINE = 10, 16, 3
TITLE, CAPTION = 30, 22 + FRAME_LINE
"""Heights in pixels of what is written above all and under each frame."""
MAX_WIDTH = 1600
MAX_PIXELS = 60_000_000
"""Above this the whole sheet is drawn smaller: thousands of frames must not take gigabytes."""
BACKGROUND, INK, FAINT, ACCENT = (250, 250, 248), (20, 20, 20), (120, 120, 120), (230, 110, 0)
WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "PingFang.ttc", "msyh.ttc", "simsun.ttc", "DejaVuSans.ttf")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
LARGEST_SIDE = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}
"""Pixels, where the format has a limit."""


@dataclass(frozen=True)
class _Cell:
    """One frame's place: its picture's box (left, top, width, height) in pixels, and what is written under it."""

    left: int
    top: int
    width: int
    height: int
    time: str
    tokens: str
    fine: bool


def save_sheet(frames: FrameSet, path: str | Path, *, tokens: Sequence[int] | None = None, title: str = "") -> Path:
    """`draw_sheet` into a file, whole or not at all. Raises `VideoError` when it can not be written."""
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        raise VideoError(f"{path}: a contact sheet is a picture; name it with one of {', '.join(SUFFIXES)}")
    sheet = draw_sheet(frames, tokens=tokens, title=title)
    if max(sheet.size) > LARGEST_SIDE.get(target.suffix.lower(), max(sheet.size)):
        width, height = sheet.size
        raise VideoError(f"{path}: {width}x{height} pixels are more than such a file holds; name it .png")
    try:
        # a folder, because a temporary file can be read by its owner only, and stays so under its last name
        with TemporaryDirectory(dir=target.parent, prefix=".sheet-") as folder:
            part = Path(folder, target.name)
            sheet.save(part)
            part.replace(target)
    except OSError as error:
        raise VideoError(f"{path}: can not be written ({error.strerror or error}); choose another place") from error
    return target


def draw_sheet(frames: FrameSet, *, tokens: Sequence[int] | None = None, title: str = "") -> Image.Image:
    """An RGB picture of all `frames` in order.

    `tokens` (N,) is each frame's size in visual tokens; those with more than the fewest are fine: larger and framed.
    """
    if tokens is not None and len(tokens) != len(frames):
        raise ValueError(f"{len(frames)} frames, but {len(tokens)} token sizes")
    fine = [size > min(tokens) for size in tokens] if tokens else [False] * len(frames)
    cells, width, height = _layout(frames, tokens, fine, MARGIN + (TITLE if title else 0))
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    if title:
        pen.text((MARGIN, MARGIN), _fitted(pen, title, width - 2 * MARGIN), fill=INK, font=_title_font(title))
    for cell, pixels in zip(cells, frames.pixels, strict=True):
        picture = Image.fromarray(pixels).resize((cell.width, cell.height), Image.Resampling.LANCZOS)
        sheet.paste(picture, (cell.left, cell.top))
        _write_under(pen, cell)
    return sheet


def _layout(
    frames: FrameSet, tokens: Sequence[int] | None, fine: Sequence[bool], top: int
) -> tuple[list[_Cell], int, int]:
    """Cells in reading order; in each row pictures stand on one line. Also the sheet's width and height."""
    scale = _scale(fine)
    times = _times(frames)
    cells: list[_Cell] = []
    row: list[_Cell] = []
    left, width = MARGIN, 0
    for i, is_fine in enumerate(fine):
        picture_width, picture_height = _picture_size(frames, is_fine, scale)
        if row and left + picture_width > MAX_WIDTH - MARGIN:
            top = _close_row(cells, row, top)
            row, left = [], MARGIN
        size = f"{tokens[i]} tok" if tokens is not None else ""
        row.append(_Cell(left, top, picture_width, picture_height, times[i], size, is_fine))
        left += picture_width + GAP
        width = max(width, left - GAP + MARGIN)
    return cells, max(width, 320), _close_row(cells, row, top) - GAP + MARGIN


def _close_row(cells: list[_Cell], row: list[_Cell], top: int) -> int:
    """Stand the row's pictures on one line; answers with the top of the next row."""
    height = max(cell.height for cell in row)
    cells.extend(replace(cell, top=top + height - cell.height) for cell in row)
    return top + height + CAPTION + GAP


def _picture_size(frames: FrameSet, fine: bool, scale: float) -> tuple[int, int]:
    height, width = frames.pixels.shape[1:3]
    factor = scale * (FINE_SIDE if fine else COARSE_SIDE) / max(height, width)
    return max(round(width * factor), 1), max(round(height * factor), 1)


def _scale(fine: Sequence[bool]) -> float:
    area = sum((FINE_SIDE if is_fine else COARSE_SIDE) ** 2 for is_fine in fine)
    return min(1.0, math.sqrt(MAX_PIXELS / (2 * area)))


def _times(frames: FrameSet) -> list[str]:
    """Whole seconds, or as many decimals as it takes to tell neighbours apart."""
    for decimals in (0, 1, 2):
        shown = [format_time(t, decimals=decimals) for t in frames.pts_seconds]
        if len(set(shown)) == len(set(frames.pts_seconds.tolist())):
            break
    return shown


def _write_under(pen: ImageDraw.ImageDraw, cell: _Cell) -> None:
    right, bottom = cell.left + cell.width, cell.top + cell.height
    if cell.fine:
        box = (cell.left - FRAME_LINE, cell.top - FRAME_LINE, right + FRAME_LINE - 1, bottom + FRAME_LINE - 1)
        pen.rectangle(box, outline=ACCENT, width=FRAME_LINE)
    baseline = bottom + FRAME_LINE + 2
    pen.text((cell.left, baseline), cell.time, fill=INK, font=_font(14))
    used = pen.textlength(cell.time, font=_font(14)) + 8
    if cell.tokens and used + pen.textlength(cell.tokens, font=_font(12)) <= cell.width:
        pen.text((right, baseline + 2), cell.tokens, fill=ACCENT if cell.fine else FAINT, font=_font(12), anchor="ra")


def _fitted(pen: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """`text` on one line, cut with an ellipsis where it is wider than `width` pixels."""
    line = " ".join(text.split())[: width // 2]  # letters are wider than two pixels
    font = _title_font(text)
    if pen.textlength(line, font=font) <= width:
        return line
    while line and pen.textlength(f"{line}…", font=font) > width:
        line = line[:-1]
    return f"{line}…"


def _title_font(text: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own typeface for Latin text; for others one of the system's that draws them, if there is one."""
    if all(ord(char) < 0x250 or 0x2000 <= ord(char) < 0x2070 for char in text):
        return _font(16)
    return _wide_font() or _font(16)


@cache
def _wide_font() -> ImageFont.FreeTypeFont | None:
    for name in WIDE_FONTS:
        with suppress(OSError):
            return ImageFont.truetype(name, 16)
    return None


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own typeface, so that a sheet looks the same on every machine."""
    return ImageFont.load_default(size)
