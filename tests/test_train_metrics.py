"""What a run tells on TensorBoard; metrics.jsonl and loss.png are held to it with the loop that writes them."""

import errno
import json
import sys
from pathlib import Path

import pytest

from vidllm.errors import ConfigError, OutputError
from vidllm.train.loop import LoopOptions
from vidllm.train.metrics import Metrics, read_metrics


def told(folder: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) as TensorBoard itself reads them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def write(folder: Path, after: int, steps: range, loss: float) -> None:
    metrics = Metrics(folder, after=after, tensorboard=True)
    for step in steps:
        metrics.add({"step": step, "epoch": 0, "loss": loss, "grad_norm": 1.0, "rate/projector": 1e-3})
    metrics.close()


def test_steps_taken_again_stand_once_on_the_board(tmp_path: Path) -> None:
    """A run that goes on from its checkpoint at step 2 had told of steps 3 and 4 before it was killed."""
    write(tmp_path, 0, range(1, 5), loss=1.0)
    write(tmp_path, 2, range(3, 6), loss=0.5)
    assert told(tmp_path, "loss") == [(1, 1.0), (2, 1.0), (3, 0.5), (4, 0.5), (5, 0.5)]
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path / "metrics.jsonl")] == told(tmp_path, "loss")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_board_that_can_not_be_written_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """TensorBoard writes in a thread, whose error comes with a later figure and with its end."""
    tensorboard = pytest.importorskip("tensorboard.summary.writer.event_file_writer")

    class Full:
        """A file on a full disk."""

        def write(self, data: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        flush = close = lambda self: None

    metrics = Metrics(tmp_path, after=0, tensorboard=True)
    writer = tensorboard._AsyncWriter(Full())
    metrics._board._get_file_writer().event_writer._async_writer = writer
    for step in (1, 2, 3):
        metrics.add({"step": step, "epoch": 0, "loss": 1.0, "grad_norm": 1.0, "rate/projector": 1e-3})
        writer._worker.join()  # its end is the error
    metrics.close()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 3
    assert caplog.text.count("tensorboard: no longer written (No space left on device)") == 1


@pytest.mark.parametrize("spoilt", [b"garbage", b"\0" * 40, b"[1]", b"{}", b"3", b'{"step": 2, "lots": 1.0}'])
def test_a_spoilt_line_costs_what_no_checkpoint_tells_of(spoilt: bytes, tmp_path: Path) -> None:
    """Before the checkpoint it is one line that says what to do, behind it those steps are taken again anyway."""
    path = tmp_path / "metrics.jsonl"
    told = {"epoch": 0, "loss": 1.0, "grad_norm": 1.0, "rate/projector": 1e-3}
    lines = [json.dumps({"step": step, **told}).encode() for step in (1, 2, 3)]
    path.write_bytes(b"\n".join([*lines[:2], spoilt, lines[2], b""]))
    Metrics(tmp_path, after=2).close()
    assert [line["step"] for line in read_metrics(path)] == [1, 2]
    path.write_bytes(b"\n".join([lines[0], spoilt, lines[2], b""]))
    with pytest.raises(OutputError, match="is no line of figures; move the file elsewhere and run again"):
        Metrics(tmp_path, after=3)


def test_what_another_program_wrote_is_not_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.4}\n')
    with pytest.raises(OutputError, match="is no line of figures; move the file elsewhere and run again"):
        Metrics(tmp_path, after=0)
    assert len(path.read_text().splitlines()) == 2


def test_a_board_that_is_not_installed_is_named_before_a_row_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install .*vidllm\[tensorboard\]"):
        LoopOptions(tensorboard=True)


@pytest.mark.parametrize("obstacle", ["a full disk", "a folder"])
def test_a_picture_that_can_not_be_drawn_ends_no_run(
    obstacle: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its last picture is drawn while the error that ended it, if one did, is on its way up."""
    if obstacle == "a folder":
        (tmp_path / "loss.png").mkdir()
    else:
        (tmp_path / "loss.png.part").symlink_to("/dev/full")
    metrics = Metrics(tmp_path, after=0)
    metrics.add({"step": 1, "epoch": 0, "loss": 1.0, "grad_norm": 1.0, "rate/projector": 1e-3})
    metrics.close()
    assert "loss.png: not drawn" in caplog.text
    assert not (tmp_path / "loss.png.part").exists()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
