"""One run, however it is cut: by micro-batches, by processes, by Ctrl-C, by kill -9, by a disk that spoils a file."""

import io
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

from tests.train_task import Listener, Network, Parity, figures, options, run, same
from vidllm.ahead import made_ahead
from vidllm.errors import CheckpointError, ConfigError, NotFinite, OutputError, TrainError
from vidllm.train.loop import LoopOptions, train
from vidllm.train.metrics import Metrics, read_metrics, smoothed
from vidllm.train.optim import OptimOptions, make_optimizer, rate_share, set_rates
from vidllm.train.parts import Parts
from vidllm.train.processes import is_left_alone, on_cpu
from vidllm.train.sft import SftConfig
from vidllm.train.state import seed_all
from vidllm.train.watch import TrainWatch

ROOT = Path(__file__).resolve().parents[1]


def weights(network: Network) -> dict[str, torch.Tensor]:
    return network.state_dict()


class Stopping(Parity):
    """Ctrl-C comes while step `stop` is learnt from."""

    stop = 7

    def after(self, record: Mapping[str, float]) -> str | None:
        if record["step"] == self.stop:
            os.kill(os.getpid(), signal.SIGINT)
        return super().after(record)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Network]:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder, Parity())[1]


def test_it_learns_and_tells(whole: tuple[Path, Network]) -> None:
    told = figures(whole[0])
    assert [r["step"] for r in told] == list(range(1, 13))
    assert told[-1]["loss"] < 0.6 < told[0]["loss"]
    assert told[3]["epoch"] == 1
    assert told[0]["rows"] == told[0]["weight"] == 6
    assert told[0]["tokens"] == 6 * 8
    assert 0 <= told[0]["right"] <= 1
    assert (whole[0] / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in sorted((whole[0] / "checkpoints").iterdir())] == ["step-00000010", "step-00000012"]


def test_a_frozen_part_stays(whole: tuple[Path, Network]) -> None:
    assert torch.equal(whole[1].frozen.weight, Network().frozen.weight)
    assert not torch.equal(whole[1].head.weight, Network().head.weight)


@pytest.mark.parametrize("stop", [1, 5, 7, 11])
def test_ctrl_c_saves_and_the_next_run_goes_on_to_the_bit(
    stop: int, whole: tuple[Path, Network], tmp_path: Path
) -> None:
    task, listener = Stopping(), Listener()
    task.stop = stop
    done, _ = run(tmp_path, task, listener)
    assert (done.interrupted, done.step, done.total) == (True, stop, 12)
    assert listener.said[-1] == "finishing this step and saving; Ctrl-C again stops at once"
    again, after = Parity(), Listener()
    done, network = run(tmp_path, again, after)
    assert (done.interrupted, done.step, done.resumed) == (False, 12, stop)
    assert after.said[0] == f"going on from {tmp_path}/checkpoints/step-{stop:08d}: {stop} of 12 steps are done"
    assert figures(tmp_path) == figures(whole[0])
    assert same(weights(network), weights(whole[1]))
    assert again.heard == sum(r["right"] for r in figures(whole[0]))


def test_a_finished_run_has_nothing_left_to_do(whole: tuple[Path, Network]) -> None:
    task = Parity()
    done, network = run(whole[0], task)
    assert (done.step, done.resumed, task.seen) == (12, 12, [])
    assert same(weights(network), weights(whole[1]))


def test_the_size_of_a_micro_batch_changes_no_loss(tmp_path: Path) -> None:
    run(tmp_path / "small", Parity(largest=1, aside=False), dropout=0.0)
    run(tmp_path / "large", Parity(largest=6, aside=False), dropout=0.0)
    for small, large in zip(figures(tmp_path / "small"), figures(tmp_path / "large"), strict=True):
        assert small["loss"] == pytest.approx(large["loss"], abs=1e-6)
        assert small["grad_norm"] == pytest.approx(large["grad_norm"], abs=1e-5)


def test_threads_ahead_change_nothing(whole: tuple[Path, Network], tmp_path: Path) -> None:
    _, network = run(tmp_path, Parity(wait=0.001), workers=2, ahead=3)
    assert figures(tmp_path) == figures(whole[0])
    assert same(weights(network), weights(whole[1]))


def spoil(path: Path) -> None:
    """Flip one bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("name", "harm", "why"),
    [
        ("optimizer.pt", spoil, "optimizer.pt is damaged"),
        ("weights.pt", cut, "weights.pt is damaged"),
        ("random.pt", Path.unlink, "random.pt is missing"),
        ("manifest.json", cut, ""),
        ("manifest.json", Path.unlink, "no checkpoint of vidllm (no readable manifest.json)"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_aloud(
    name: str, harm: Any, why: str, whole: tuple[Path, Network], tmp_path: Path
) -> None:
    run(tmp_path, Parity())
    newest = tmp_path / "checkpoints" / "step-00000012"
    harm(newest / name)
    listener = Listener()
    if not why:  # only the line feed is gone: nothing is lost
        assert run(tmp_path, Parity(), listener)[0].resumed == 12
        return
    done, network = run(tmp_path, Parity(), listener)
    assert listener.said[0] == f"{newest}: {why}; passed over"
    assert done.resumed == 10
    if "no checkpoint" in why:  # it may be somebody else's
        assert listener.said[-1].endswith("in the way of one; it is aside-0-step-00000012 now")
        assert (newest.with_name("aside-0-step-00000012") / "weights.pt").exists()
    assert figures(tmp_path) == figures(whole[0])
    assert same(weights(network), weights(whole[1]))


def test_another_run_is_refused_by_what_differs(whole: tuple[Path, Network]) -> None:
    with pytest.raises(CheckpointError) as told:
        run(whole[0], Parity(batch=8), optim=OptimOptions(warmup=0.2))
    assert str(told.value) == (
        f"{whole[0]}/checkpoints/step-00000012 was made with batch 6, now 8; steps in all 12, now 9; warmup 0.1, now "
        "0.2: put that back to go on, or give this run another `out`"
    )


@pytest.mark.parametrize(
    ("learns", "how"),
    [("frozen", "without frozen.bias, which learns now"), ("aside", "with aside.bias, which does not learn now")],
)
def test_a_checkpoint_of_other_parts_is_refused(learns: str, how: str, whole: tuple[Path, Network]) -> None:
    """Under the same settings they differ where another version of vidllm chose them."""
    network = Network()
    part = getattr(network, learns)
    part.requires_grad_(not part.weight.requires_grad)
    with pytest.raises(CheckpointError, match=rf"/step-00000012 was made {how}: go on with the version of vidllm that"):
        train(Parity(), network, network.groups(), options(), whole[0], Listener())


def test_a_row_that_is_no_number_ends_the_run_before_the_step(tmp_path: Path) -> None:
    task = Parity(poison=(5, 17))
    with pytest.raises(NotFinite) as told:
        run(tmp_path, task, checkpoint_every=1)
    step = next(i for i, step in enumerate(task.steps(0)) if {5, 17} & {n for micro in step for n in micro})
    rows = {n for micro in task.steps(0)[step] for n in micro}
    bad = [f"parity.jsonl:{n + 1} (row {n})" for n in (5, 17) if n in rows]
    assert str(told.value).startswith(f"step {step + 1}: the loss is nan, because of {', '.join(bad)}; stopped before")
    assert len(figures(tmp_path)) == step
    kept = sorted((tmp_path / "checkpoints").glob("*"))
    assert [p.name for p in kept[-1:]] == ([f"step-{step:08d}"] if step else [])


def test_a_gradient_that_is_no_number_ends_it_too(tmp_path: Path) -> None:
    class Steep(Parity):
        def loss(self, model: Any, material: Any) -> Any:
            part = super().loss(model, material)
            if 9 in material[0]:
                part.loss.register_hook(lambda gradient: gradient * math.inf)
            return part

    with pytest.raises(NotFinite, match=r"the gradient's norm is (nan|inf), because of parity.jsonl:10 \(row 9\);"):
        run(tmp_path, Steep())


def test_an_error_while_reading_a_row_arrives_as_it_is(tmp_path: Path) -> None:
    class Broken(Parity):
        def prepare(self, numbers: Any) -> Any:
            if 4 in numbers:
                raise TrainError("rows.jsonl:5: its clip is gone")
            return super().prepare(numbers)

    with pytest.raises(TrainError, match=r"^rows.jsonl:5: its clip is gone$"):
        run(tmp_path, Broken(), workers=2)


def test_no_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="no rows to learn from"):
        run(tmp_path, Parity(rows=0))


def test_two_runs_do_not_write_into_one_folder(tmp_path: Path) -> None:
    other = Metrics(tmp_path, after=0)
    with pytest.raises(OutputError, match="another run is writing it"):
        run(tmp_path, Parity())
    other.close()
    assert run(tmp_path, Parity())[0].step == 12


def test_a_last_line_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]


def test_steps_go_on_into_more_epochs(tmp_path: Path) -> None:
    done, _ = run(tmp_path, Parity(), epochs=1, steps=6)
    assert (done.step, figures(tmp_path)[-1]["epoch"]) == (6, 1.5)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"keep": 0}, {"device": "tpu"}, {"workers": -1}, {"ahead": -1}])
def test_impossible_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        LoopOptions(**wrong)


@pytest.mark.parametrize("seed", [-5, 10**20])
def test_any_whole_number_is_a_seed(seed: int) -> None:
    drawn = []
    for rank in (0, 0, 1):
        seed_all(seed, rank)
        drawn.append(torch.rand(2).tolist())
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_no_cpu() -> None:
    with pytest.raises(ConfigError, match=r"device is cuda, and torch finds no CUDA .*or leave device out"):
        LoopOptions(device="cuda")


# Processes


def started(
    folder: Path, *words: str, launcher: tuple[str, ...] = (), environment: Mapping[str, str] = MappingProxyType({})
) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "tests.train_task", str(folder), *words], cwd=ROOT, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


COMMON = ("loop.epochs=3", "loop.checkpoint_every=2", "loop.optim.warmup=0.1")


def finished(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def test_what_the_environment_says_to_accelerate_changes_no_number(tmp_path: Path) -> None:
    said = {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
            "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}  # fmt: skip
    run(tmp_path / "plain", Parity(), Listener(), dropout=0.0, steps=3)
    finished(started(tmp_path / "told", "loop.steps=3", "dropout=0.0", environment=said))
    assert figures(tmp_path / "told") == figures(tmp_path / "plain")


@pytest.mark.parametrize(
    ("said", "device", "cpu"),
    [({}, None, False), ({}, "cpu", True), ({"ACCELERATE_USE_CPU": "True"}, None, True),
     ({"ACCELERATE_USE_CPU": "True"}, "cuda", False), ({"ACCELERATE_USE_CPU": "False"}, None, False),
     ({"WORLD_SIZE": "2"}, None, True), ({"OMPI_COMM_WORLD_SIZE": "2"}, None, True), ({"PMI_SIZE": "2"}, None, True)],
)  # fmt: skip
def test_a_launcher_can_ask_for_the_cpu(
    said: dict[str, str], device: str | None, cpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own word, and by starting several processes where there is no GPU, each in the way of its kind."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert on_cpu(device) == cpu


@pytest.mark.parametrize(
    ("said", "name"),
    [({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed"), ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM"),
     ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "FSDP 1"), ({"ACCELERATE_USE_FSDP": "true"}, "FSDP 1")],
)  # fmt: skip
def test_a_model_spread_in_another_way_is_refused(
    said: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate's own default is FSDP 1, of which a process would save its share as the whole."""
    for key, value in said.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ConfigError, match=f"told to spread the model by {name}; launch with --config_file"):
        LoopOptions()
    monkeypatch.setenv("FSDP_VERSION", "2")
    if name == "FSDP 1":
        LoopOptions()


def test_a_process_that_was_to_have_company_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `accelerate launch --cpu --num_processes 2` sets for the one process it starts."""
    config = SftConfig(data=tmp_path / "rows.jsonl", out=tmp_path / "out", parts=Parts(projector=1e-3))
    assert not is_left_alone(config)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert not is_left_alone(config)  # one was asked for
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert is_left_alone(config)


@pytest.mark.slow
def test_two_processes_lose_what_one_loses(tmp_path: Path) -> None:
    run(tmp_path / "one", Parity(), dropout=0.0, checkpoint_every=2, device="cpu")
    two = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    finished(started(tmp_path / "two", *COMMON, "dropout=0.0", "loop.device=cpu", launcher=two))
    one, both = figures(tmp_path / "one"), figures(tmp_path / "two")
    assert len(one) == len(both) == 12
    for alone, shared in zip(one, both, strict=True):
        assert alone.keys() == shared.keys()
        assert shared["loss"] == pytest.approx(alone["loss"], abs=1e-6)
        assert shared["grad_norm"] == pytest.approx(alone["grad_norm"], abs=1e-5)
        assert shared["right"] == pytest.approx(alone["right"])
    told = Listener()
    run(tmp_path / "two", Parity(), told, checkpoint_every=2)  # the run of two is over; one looks at what it left
    assert "made with processes 2, now 1" in told.said[1]
    assert "losses agree to rounding" in told.said[1]


@pytest.mark.slow
def test_kill_9_at_any_instant_costs_nothing(tmp_path: Path) -> None:
    words = (*COMMON, "wait=0.01")
    run(tmp_path / "whole", Parity(), checkpoint_every=2)
    dice, kills = random.Random(5), 0
    while True:
        process = started(tmp_path / "killed", *words)
        if kills < 4:
            process.stdout.readline()  # type: ignore[union-attr]  # the first step of this attempt
            time.sleep(dice.uniform(0, 0.08))
            process.kill()
            process.communicate()
            kills += 1
        else:
            finished(process)
            break
    assert figures(tmp_path / "killed") == figures(tmp_path / "whole")
    newest = [tmp_path / name / "checkpoints" / "step-00000012" / "weights.pt" for name in ("killed", "whole")]
    killed, never = (torch.load(path, weights_only=True) for path in newest)
    assert same(killed, never)
    assert not list((tmp_path / "killed" / "checkpoints").glob(".part-*"))


# Rates, and making ahead


def test_rates_by_hand() -> None:
    linear = OptimOptions(schedule="linear", warmup=0.3)
    assert [rate_share(step, 10, linear) for step in range(10)] == pytest.approx(
        [1 / 4, 2 / 4, 3 / 4, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7]
    )
    cosine = OptimOptions(schedule="cosine", warmup=0.0)
    assert [rate_share(step, 4, cosine) for step in range(4)] == pytest.approx([1, 0.8535534, 0.5, 0.1464466])
    assert rate_share(3, 4, OptimOptions(schedule="constant", warmup=0)) == 1
    short = OptimOptions(schedule="constant", warmup=0.03)
    assert [rate_share(step, 4, short) for step in range(4)] == [0.5, 1, 1, 1], "a warm-up is never rounded away"
    assert rate_share(0, 1, short) == 1, "a single step learns at its rate"


def test_every_part_has_its_rate_and_vectors_no_decay() -> None:
    optimizer = make_optimizer(Network().groups(), OptimOptions(weight_decay=0.1))
    told = {group["name"]: (group["rate"], group["weight_decay"]) for group in optimizer.param_groups}
    assert told == {"body": (3e-3, 0.1), "body/vectors": (3e-3, 0.0), "head": (1e-2, 0.1), "head/vectors": (1e-2, 0.0)}
    assert set_rates(optimizer, 0.5) == {"body": 1.5e-3, "head": 5e-3}


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_what_is_made_ahead_comes_in_order_and_is_bounded(workers: int) -> None:
    asked: list[int] = []

    def items() -> Any:
        for number in range(20):
            asked.append(number)
            yield number

    with made_ahead(items(), lambda number: number * number, workers=workers, ahead=4) as made:
        for number in range(10):
            assert next(made) == number * number
            assert len(asked) <= number + (4 if workers else 1)


def test_a_smoothed_line_starts_at_its_first_value() -> None:
    assert smoothed([4.0, 4.0, 4.0], 10) == pytest.approx([4, 4, 4])
    assert smoothed([2.0, 4.0], 2) == pytest.approx([2, 10 / 3])


# Those who watch


def told_by(stream: io.StringIO, seconds: list[float]) -> TrainWatch:
    return TrainWatch(stream, clock=lambda: seconds[0])


def record(step: int) -> dict[str, float]:
    return {"step": step, "loss": 1.5, "tokens": 600, "peak_memory_gib": 2.0}


def test_where_nobody_watches_a_line_now_and_then() -> None:
    stream, now = io.StringIO(), [100.0]
    with told_by(stream, now) as watch:
        watch.say("going on")
        watch.begin(40, 60)
        for step in range(41, 61):
            now[0] += 2
            watch.step(record(step))
    assert stream.getvalue().splitlines() == [
        "going on",
        "step 41 of 60 · loss 1.5000 · 300 tokens/s · 2.0 GiB · 0:38 left",
        "step 56 of 60 · loss 1.5000 · 300 tokens/s · 2.0 GiB · 0:08 left",
        "step 60 of 60 · loss 1.5000 · 300 tokens/s · 2.0 GiB",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_bar_with_lines_above_it() -> None:
    stream = Terminal()
    with TrainWatch(stream) as watch:
        watch.begin(0, 2)
        watch.step(record(1))
        watch.say("[a line] that stays")
        watch.step(record(2))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "[a line] that stays\n" in text
    assert "2/2" in text
    assert "loss 1.5000" in text


def test_a_reader_that_is_gone_ends_no_run() -> None:
    """`vidllm sft ... 2>&1 | head`."""
    back, front = os.pipe()
    os.close(back)
    stream = os.fdopen(front, "w")
    with TrainWatch(stream) as watch:
        watch.say("going on")
        watch.begin(0, 1)
        watch.step(record(1))
    with suppress(OSError):
        stream.close()
