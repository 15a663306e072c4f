"""What a run tells: metrics.jsonl (a line a step, no step twice), loss.png, and TensorBoard where it is asked for.

A checkpoint and these lines go together: when a run goes on from step 120, lines after 120 are cut off, since the steps
they tell of are taken again.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vidllm.errors import ConfigError, OutputError
from vidllm.linefile import LineFile

log = logging.getLogger("vidllm")

Record = Mapping[str, float]
PICTURE_SECONDS = 60.0
PICTURE_SHARE = 0.02
"""Of the run's time that drawing may take: a picture of a long run takes longer than one of a short one."""


class Metrics:
    """The files of one run under `folder`; open from `after` steps done. One writer at a time (OutputError)."""

    def __init__(self, folder: Path, *, after: int, tensorboard: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._picture = folder / "loss.png"
        self._file = LineFile(folder / "metrics.jsonl", name=folder, lock=True)
        self._records = self._kept(after)
        self._board = board_writer()(str(folder / "tensorboard"), purge_step=after + 1) if tensorboard else None
        self._drawn, self._pause = time.monotonic(), PICTURE_SECONDS

    def add(self, record: Record) -> None:
        """Write one step's figures. `record["step"]` counts from 1."""
        self._file.append(json.dumps(record).encode() + b"\n")
        self._records.append(record)
        if self._board is not None:
            self._show(self._board, record)
        if time.monotonic() - self._drawn > self._pause:
            self.draw()

    def sync(self) -> None:
        """Wait until the disk has every line: a checkpoint is about to say that they are there."""
        self._file.sync()

    def _show(self, board: Any, record: Record) -> None:
        """On TensorBoard; where that can not be written nothing more is, see `draw`."""
        try:
            for name, value in record.items():
                board.add_scalar(name, value, int(record["step"]))
        except OSError as error:
            self._board = None
            log.warning("tensorboard: no longer written (%s); metrics.jsonl holds the figures", error.strerror or error)

    def draw(self) -> None:
        """Draw loss.png from all steps so far. Where that can not be written a line is said, and no run ends: at its
        end it would hide why the run did, such as a disk too full for a checkpoint.
        """
        began = time.monotonic()
        try:
            if self._records:
                draw_losses(self._records, self._picture)
        except OSError as error:
            log.warning("%s: not drawn (%s); metrics.jsonl beside it holds the figures", self._picture,
                        error.strerror or error)  # fmt: skip
        self._drawn = time.monotonic()
        self._pause = max(PICTURE_SECONDS, (self._drawn - began) / PICTURE_SHARE)

    def close(self) -> None:
        """Draw what there is and let go of the files."""
        try:
            self.draw()
        finally:
            self._file.close()
            if self._board is not None:
                with suppress(OSError):  # what it had not written yet
                    self._board.close()

    def _kept(self, after: int) -> list[Record]:
        """The lines up to step `after`; what stands behind them is cut off."""
        kept: list[Record] = []
        for place, line in self._file.lines():
            record = _record(line)
            if record is None and ((kept[-1]["step"] if kept else 0) < after or (place == 0 and _is_anothers(line))):
                raise OutputError(f"{self._file.path}: byte {place} is no line of figures; move the file elsewhere and "
                                  "run again, checkpoints do not need it")  # fmt: skip
            if record is None or record["step"] > after:  # a power cut may spoil what no checkpoint waited for
                self._file.cut(place)
                break
            kept.append(record)
        return kept


DRAWN = ("step", "epoch", "loss", "grad_norm")


def _record(line: bytes) -> Record | None:
    """A step's figures; None for a line that lacks one of those that are drawn."""
    try:
        record = json.loads(line)
        return record if all(math.isfinite(record[name]) for name in DRAWN) else None
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None


def _is_anothers(line: bytes) -> bool:
    """Whether another program wrote it: an object, and what a power cut spoils is none."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def board_writer() -> Any:
    """TensorBoard's own class. Raises ConfigError where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError('tensorboard: true needs it installed: pip install "vidllm[tensorboard]"') from error
    return SummaryWriter


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The steps told in a metrics.jsonl, in order; a last line that was never finished is left out."""
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


def smoothed(values: Sequence[float], reach: int) -> list[float]:
    """Exponential mean over about `reach` values, without the pull of its start towards the first one."""
    keep, total, weight, told = 1 - 1 / max(1, reach), 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        told.append(total / weight)
    return told


MOST_POINTS = 4000


def draw_losses(records: Sequence[Record], path: Path) -> None:
    """Loss above, rates and gradient norm below, over optimizer steps; written whole or not at all. Raises OSError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    _draw_loss(upper, records)
    _draw_rates(lower, records)
    partial = path.with_name(path.name + ".part")
    try:
        figure.savefig(partial, format="png", dpi=110)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _draw_loss(axes: Any, records: Sequence[Record]) -> None:
    every = math.ceil(len(records) / MOST_POINTS)
    steps, losses = [r["step"] for r in records][::every], [r["loss"] for r in records]
    reach = max(1, len(records) // 50)
    axes.plot(steps, losses[::every], color="#9db8d2", linewidth=0.8, marker="." if len(steps) < 40 else "",
              label="each step")  # fmt: skip
    if reach > 1:
        axes.plot(steps, smoothed(losses, reach)[::every], color="#1f4e79", linewidth=1.8,
                  label=f"mean over about {reach} steps")  # fmt: skip
    for step in _epoch_ends(records):
        axes.axvline(step, color="#cccccc", linewidth=0.8, linestyle=":")
    axes.set_ylabel("loss")
    axes.set_title(f"loss {smoothed(losses, reach)[-1]:.4g} after {int(records[-1]['step']):,} steps", loc="left")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)


def _epoch_ends(records: Sequence[Record]) -> list[float]:
    pairs = itertools.pairwise(records)
    return [after["step"] - 0.5 for before, after in pairs if math.ceil(before["epoch"]) < math.ceil(after["epoch"])]


def _draw_rates(axes: Any, records: Sequence[Record]) -> None:
    every = math.ceil(len(records) / MOST_POINTS)
    some = records[::every]
    steps = [r["step"] for r in some]
    norms = axes.twinx()
    norms.plot(steps, [r["grad_norm"] for r in some], color="#d9b38c", linewidth=0.7)
    norms.set_ylabel("gradient norm", color="#a06a2c")
    norms.set_ylim(bottom=0)
    for name in [key for key in records[-1] if key.startswith("rate/")]:
        axes.plot(steps, [r.get(name, 0.0) for r in some], linewidth=1.4, label=name.removeprefix("rate/"))
    axes.set_zorder(norms.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.set_ylabel("learning rate")
    axes.set_xlabel("optimizer step")
    axes.legend(frameon=False, loc="upper right", title="part")
    axes.grid(alpha=0.25)
