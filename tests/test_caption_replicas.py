"""The local engine's model processes: they say what one model says, and one that dies costs nobody a caption."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import queue
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

import vidllm
from tests.conftest import write_stories
from vidllm.corpus import places as room
from vidllm.corpus import replicas
from vidllm.corpus.caption import CaptionOptions, caption
from vidllm.corpus.places import open_replicas, places
from vidllm.corpus.replicas import Job, Place, _Replica
from vidllm.errors import ConfigError, EngineError, IncompleteModel, NotAVisionModel, VidllmError
from vidllm.model.resolve import builtin_folder
from vidllm.options import GenerationOptions
from vidllm.video import wire
from vidllm.video.guard import child_command, child_environment, close_workers, probe_guarded
from vidllm_cli.main import main

CLIPS = 12
TWO = CaptionOptions(replicas=2, dtype="float32", device="cpu", retries=0, batch=2)
Row = dict[str, Any]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_stories(CLIPS, folder, seed=100)
    return folder


@pytest.fixture(scope="module")
def written(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one model in this process wrote of every clip."""
    output = tmp_path_factory.mktemp("alone") / "out.jsonl"
    model = vidllm.load(builtin_folder("built-in"), dtype="float32", device="cpu", cache=None)
    caption(world, output, CaptionOptions(retries=0, batch=2), model=model)
    return output


@pytest.fixture(scope="module")
def alone(written: Path) -> dict[str, Row]:
    """Its rows."""
    return rows_of(written)


@pytest.fixture(autouse=True)
def _built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIDLLM_MODEL", raising=False)


def rows_of(output: Path) -> dict[str, Row]:
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert len({row["video"] for row in rows}) == len(rows), "a clip has two rows"
    return {row["video"]: row for row in rows}


def said(rows: dict[str, Row]) -> dict[str, Any]:
    """What was said of each clip, and as what it counts."""
    parts = ("caption", "recipe", "usage", "finish_reason", "frames", "engine")
    return {video: [row[part] for part in parts] for video, row in rows.items()}


def replicas_of(parent: int) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(parent).children():
        with contextlib.suppress(psutil.Error):  # it has just ended
            found += [child] if "model_child" in " ".join(child.cmdline()) else []
    return found


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it was reaped between the two
        return False


def wait_for(happens: Callable[[], object], seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < until
        time.sleep(0.01)


# -------------------------------------------------------------------------------------------------- as one model says


def test_two_replicas_say_what_one_model_says_under_the_same_recipe(
    world: Path, alone: dict[str, Row], tmp_path: Path
) -> None:
    output, remarks, in_hand = tmp_path / "out.jsonl", [], []

    def tell(tally: object) -> None:
        in_hand.append(len(replicas_of(os.getpid())))

    report = caption(world, output, TWO, tell=tell, remark=remarks.append)
    assert report.counts.total() == CLIPS
    assert said(rows_of(output)) == said(alone)
    assert max(in_hand) == 2
    assert len(remarks) == 1, "two replicas are one model"
    assert "built-in" in remarks[0]
    assert not replicas_of(os.getpid())
    assert {row["model"] for row in rows_of(output).values()} == {"built-in"}


def test_one_clip_starts_one_replica(world: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    first = sorted(world.glob("*.mp4"))[0]
    caption(first, tmp_path / "out.jsonl", TWO, tell=lambda tally: seen.append(len(replicas_of(os.getpid()))))
    assert max(seen) == 1


def test_no_child_runs_what_lies_in_the_working_directory(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither those that probe and decode nor those with a model, whatever they import."""
    (tmp_path / "vidllm").mkdir()
    for name in ("fractions.py", "numpy.py", "torch.py", "vidllm/__init__.py"):
        (tmp_path / name).write_text("open('was_run', 'w').close()\nraise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    close_workers()
    first = sorted(world.glob("*.mp4"))[0]
    assert probe_guarded(first).num_frames
    assert caption(first, tmp_path / "out.jsonl", TWO).counts["ok"] == 1
    assert not (tmp_path / "was_run").exists()


def test_where_nothing_is_left_to_do_no_model_is_loaded(world: Path, written: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from vidllm_cli.main import main; sys.exit(main(sys.argv[1:]))"
    words = ["caption", str(world), "-o", str(written), "--device", "cpu", "--dtype", "float32", "--retries", "0"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"nothing new; {CLIPS} done before" in done.stderr


# ------------------------------------------------------------------------------------------------------- those that die


Given = Callable[[_Replica, Job], bool]


@pytest.fixture
def kill_when(monkeypatch: pytest.MonkeyPatch) -> Callable[[Given], list[int]]:
    """Kill a replica the moment it is given a clip of which `given` says so; the processes killed so far."""
    give, killed = _Replica.give, []

    def patched(given: Given) -> list[int]:
        def watched(one: _Replica, job: Job) -> None:
            give(one, job)
            if one.process.pid not in killed and given(one, job):
                killed.append(one.process.pid)
                one.process.kill()

        monkeypatch.setattr(_Replica, "give", watched)
        return killed

    return patched


def path_of(job: Job) -> str:
    assert job.clip is not None
    return job.clip.info.path


def test_a_killed_replica_costs_no_clip(
    world: Path, alone: dict[str, Row], tmp_path: Path, kill_when: Callable[[Given], list[int]]
) -> None:
    output, given, remarks = tmp_path / "out.jsonl", [], []

    def is_tenth(one: _Replica, job: Job) -> bool:
        given.append(job)
        return len(given) == 10

    killed = kill_when(is_tenth)
    report = caption(world, output, TWO, remark=remarks.append)
    assert len(killed) == 1
    assert report.failed == 0
    assert said(rows_of(output)) == said(alone)
    assert any("SIGKILL" in line and "again" in line for line in remarks)


def test_clips_that_kill_replicas_cost_their_own_rows(
    world: Path, alone: dict[str, Row], tmp_path: Path, kill_when: Callable[[Given], list[int]]
) -> None:
    """Three, one after the other, with the only replica: it dies with the first among others, then with each alone."""
    output, poison = tmp_path / "out.jsonl", {str(path) for path in sorted(world.glob("*.mp4"))[:3]}
    killed, loading = kill_when(lambda one, job: path_of(job) in poison), []
    options = replace(TWO, replicas=1, workers=1)
    report = caption(world, output, options, tell=lambda tally: loading.append(tally.loading))
    rows = rows_of(output)
    assert len(killed) == 4
    assert report.counts["error"] == 3
    assert all("ended with it in hand" in rows.pop(path)["error"] for path in poison)
    assert said(rows) == {video: row for video, row in said(alone).items() if video not in poison}
    first_ready = loading.index(False, loading.index(True))
    assert not any(loading[first_ready:]), "the clock of the rates would begin anew"


def test_replicas_that_do_nothing_but_die_end_the_run_in_one_line(
    world: Path, tmp_path: Path, kill_when: Callable[[Given], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even when each takes a clip's error row with it: else a broken GPU would cost every clip one."""
    monkeypatch.setattr(replicas, "MOST_DEATHS", 3)
    killed, output = kill_when(lambda one, job: True), tmp_path / "out.jsonl"
    with pytest.raises(EngineError, match=r"3 times with no caption between \(SIGKILL\).*run the same command again"):
        caption(world, output, replace(TWO, replicas=1))
    assert len(killed) == 3
    assert [row["status"] for row in rows_of(output).values()] == ["error"]
    assert not replicas_of(os.getpid())


def test_replicas_that_die_while_they_load_end_the_run_in_one_line(world: Path, tmp_path: Path) -> None:
    def kill_all(tally: object) -> None:
        for one in replicas_of(os.getpid()):
            one.kill()

    with pytest.raises(EngineError, match=r"while it loaded the model \(SIGKILL\).*run the same command again"):
        caption(world, tmp_path / "out.jsonl", TWO, tell=kill_all)
    assert not replicas_of(os.getpid())


def test_what_was_said_before_an_error_is_told() -> None:
    """An answer and then the end of the run in one poll: the answer first, the error the next time."""
    captioner = open_replicas(replace(TWO, replicas=1), lambda line: None)
    try:
        for ticket in (1, 2):
            captioner.submit(ticket, None, "describe the video.", GenerationOptions(max_new_tokens=4))
        one, told = captioner._heard.get(timeout=120)
        while told is not None and "said" not in told:
            captioner._hear(one, told)
            captioner._house()
            one, told = captioner._heard.get(timeout=120)
        assert told is not None
        captioner._heard = queue.SimpleQueue()
        captioner._heard.put((one, {**told, "said": told["said"][:1]}))
        captioner._heard.put((one, {"failed": "EngineError", "message": "the model overflows"}))
        assert [answer.ticket for answer in captioner.poll(0.0)] == [told["said"][0].ticket]
        for _ in range(2):
            with pytest.raises(EngineError, match="overflows"):
                captioner.poll(0.0)
    finally:
        captioner.close()


def test_a_model_process_that_failed_ends_whatever_hangs_in_its_farewell() -> None:
    hang = "import atexit, time; atexit.register(time.sleep, 600)"
    command = child_command("vidllm.corpus.model_child")
    command[-1] = f"{hang}; {command[-1]}"
    start = (CaptionOptions(model="no/such/model", device="cpu"), "none", Place(device="cpu"))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment()) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        wire.send(process.stdin, base64.b64encode(pickle.dumps(start)).decode())
        process.stdin.flush()
        assert "failed" in wire.receive(process.stdout)
        try:
            assert process.wait(timeout=30) == 1
        finally:
            process.kill()


def test_how_a_model_computes_is_part_of_who_it_is() -> None:
    """Weights of 4 bits are multiplied in the chosen numbers."""
    ways = [(None, "float32"), (None, "bfloat16"), ("int8", "float32"), ("int4", "float32"), ("int4", "bfloat16")]
    told = {
        open_replicas(replace(TWO, quantize=quantize, dtype=dtype), lambda line: None).fingerprint  # type: ignore[arg-type]
        for quantize, dtype in ways
    }
    assert len(told) == len(ways)


def test_the_first_to_be_loaded_leaves_the_others_their_share() -> None:
    """And takes of that when it has nothing else to do, for the others may never be."""
    captioner, given = open_replicas(replace(TWO, batch=None), lambda line: None), []
    captioner._replicas = [_Replica(place, cast("subprocess.Popen[bytes]", None)) for place in captioner._places]
    captioner._places.clear()
    for ticket in range(12):
        captioner.submit(ticket, None, "describe the video.", GenerationOptions())
    first, second = captioner._replicas
    for one in (first, first, second):
        one.capacity = 24
        one.jobs.clear()
        captioner._house()
        given.append((len(first.jobs), len(second.jobs)))
    assert given == [(6, 0), (3, 0), (3, 3)]


def test_no_more_is_asked_for_than_the_batch_takes() -> None:
    """Before any replica has said how much that is."""
    rooms = {batch: open_replicas(replace(TWO, batch=batch), lambda line: None).room() for batch in (1, 2, 100, None)}
    assert rooms == {1: 2 * 2, 2: 2 * 4, 100: 2 * 24, None: 2 * 24}


def test_weights_are_fetched_once_the_small_files_say_that_they_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    patterns: list[str] = []

    def snapshot_download(name: str, *, allow_patterns: list[str], **more: object) -> str:
        patterns.extend(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(NotAVisionModel, match="text-only"):
        open_replicas(replace(TWO, model="some/text-only-model"), lambda line: None)
    assert "*.json" in patterns
    assert "*.safetensors" not in patterns


def test_a_model_that_can_not_be_loaded_is_its_own_error(world: Path, tmp_path: Path) -> None:
    broken = tmp_path / "model"
    shutil.copytree(builtin_folder(), broken)
    for weights in broken.glob("*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(IncompleteModel):
        caption(world, tmp_path / "out.jsonl", CaptionOptions(model=broken, replicas=2, device="cpu"))
    assert not (tmp_path / "out.jsonl").exists() or not (tmp_path / "out.jsonl").read_bytes()


# -------------------------------------------------------------------------------------------------------- and the end


def started(world: Path, output: Path) -> subprocess.Popen[str]:
    words = ["caption", str(world), "-o", str(output), "--replicas", "2", "--batch", "1"]
    command = [sys.executable, "-m", "vidllm_cli.main", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_leaves_no_replica_and_the_next_run_goes_on(world: Path, tmp_path: Path, times: int) -> None:
    output = tmp_path / "out.jsonl"
    process = started(world, output)
    wait_for(lambda: output.exists() and output.read_bytes().count(b"\n") >= 1)
    children = replicas_of(process.pid)
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert "run the same command again" in told
    assert "Traceback" not in told
    assert children
    assert not any(map(lives, children))
    assert len(rows_of(output)) < CLIPS, "nothing is left for the next run"
    main(["caption", str(world), "-o", str(output), "--replicas", "1"])
    assert len(rows_of(output)) == CLIPS


def test_replicas_end_with_a_killed_parent(world: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    process = started(world, output)
    wait_for(lambda: output.exists() and output.read_bytes().count(b"\n") >= 1)
    children = replicas_of(process.pid)
    process.kill()
    process.communicate(timeout=60)
    assert children
    wait_for(lambda: not any(map(lives, children)), 60)


# ----------------------------------------------------------------------------------------------------- how many, where


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """A machine of so many cores and free GB."""

    def is_so(cores: int, free_gb: int) -> None:
        monkeypatch.setattr(room, "cores", lambda: cores)
        monkeypatch.setattr(room, "free_memory_bytes", lambda: free_gb << 30)

    return is_so


@pytest.mark.parametrize(
    ("cores", "free_gb", "replicas", "threads"),
    [(1, 8, 1, 1), (2, 8, 2, 1), (2, 2, 1, 2), (16, 64, 16, 1), (64, 256, 16, 4), (8, 7, 3, 2)],
)
def test_a_cpu_has_as_many_replicas_as_cores_and_memory_carry(
    machine: Callable[[int, int], None], cores: int, free_gb: int, replicas: int, threads: int
) -> None:
    machine(cores, free_gb)
    found = places("cpu", None, builtin_folder())
    told = [(place.device, place.threads, place.share) for place in found]
    assert told == [("cpu", threads, 1 / replicas)] * replicas


def test_a_large_model_has_one_replica_of_all_threads(machine: Callable[[int, int], None], tmp_path: Path) -> None:
    machine(16, 64)
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(14 << 30)
    assert [(place.threads, place.share) for place in places("cpu", None, tmp_path)] == [(16, 1.0)]


def test_as_many_as_asked_for(machine: Callable[[int, int], None]) -> None:
    machine(8, 64)
    assert [place.threads for place in places("cpu", 3, builtin_folder())] == [2, 2, 2]


def test_every_gpu_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    found = places("cuda", None, builtin_folder())
    assert [(place.device, place.share) for place in found] == [(f"cuda:{number}", 1.0) for number in range(8)]
    assert [place.device for place in places("cuda:5", None, builtin_folder())] == ["cuda:5"]
    shared = places("cuda", 12, builtin_folder())
    assert [place.device for place in shared[7:9]] == ["cuda:7", "cuda:0"]
    assert {place.share for place in shared} == {0.5}


def test_what_can_not_be_is_one_line(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave --replicas out"):
        places("auto", 2, builtin_folder())
    with pytest.raises(ConfigError, match="local engine"):
        CaptionOptions(engine="ray", replicas=2)
    for said in ({"device": "cuda:77"}, {"device": "tpu"}, {"model": "no/such/model"}):
        wrong = CaptionOptions(**said)
        with pytest.raises(VidllmError):
            caption(world, tmp_path / "out.jsonl", wrong)
        assert not (tmp_path / "out.jsonl").exists()
