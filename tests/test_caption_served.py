"""A whole corpus captioned by a server: every clip its own row, whatever the server does; and `transformers serve`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.caption_rows import rows_of
from tests.conftest import ROOT, Servers, write_clip
from vidllm_cli.main import main

PATIENT_SECONDS = 600
CLIPS = 30
IMPATIENT = (
    "import sys, functools, vidllm.corpus.asking as asking;"
    "asking.HttpOptions = functools.partial(asking.HttpOptions, absent_seconds=2.0);"
    "from vidllm_cli.main import main; sys.exit(main(sys.argv[1:]))"
)
"""The program, but it waits two seconds for a server that is gone, where users get a minute."""
HURRIED = (
    "import sys, vidllm.corpus.http as http; http.STOP_SECONDS = 1.0;"
    "from vidllm_cli.main import main; sys.exit(main(sys.argv[1:]))"
)
"""The program, but when it is to stop a server has one second for what is in flight, where users give it twenty."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips whose first picture shows bar code 0 and whose number of frames is their own: clip n has 20 + n."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(CLIPS):
        write_clip(folder / f"clip{number:02d}.mp4", [k / 25 for k in range(20 + number)])
    (folder / "broken.mp4").write_bytes(b"no video at all")
    return folder


def words_of(corpus: Path, output: Path, url: str, *words: str) -> list[str]:
    """`caption --engine URL`."""
    return ["caption", str(corpus), "-o", str(output), "--engine", url, *words]


def caption(corpus: Path, output: Path, url: str, *words: str) -> int:
    """The same in this process: its exit code."""
    return main(words_of(corpus, output, url, *words))


def verify(*outputs: Path) -> int:
    return main(["caption-verify", *map(str, outputs)])


def check_binding(rows: list[dict[str, Any]]) -> None:
    """What the server saw in each row is that row's clip: its last frame's code is its number of frames less one."""
    for row in rows:
        if row["video"].endswith("broken.mp4"):
            assert row["status"] == "undecodable"
            continue
        assert row["status"] == "ok", row["error"]
        codes = json.loads(row["caption"])["codes"]
        number = int(Path(row["video"]).stem.removeprefix("clip"))
        assert codes == [round(frame["time"] * 25) for frame in row["frames"]], "the frames it says, at their times"
        assert max(codes) > (19 + number) * 0.8
        assert (row["usage"]["video_tokens"], row["usage"]["answer_tokens"]) == (None, 12)
        assert (row["model"], row["engine"], row["finish_reason"]) == ("seer@served", "http", "stop")


def test_every_clip_gets_its_own_caption(corpus: Path, serve: Servers, tmp_path: Path) -> None:
    """In a process of its own, as a user runs it."""
    url = serve("--slots", "4", "--crowd", "2", "--seconds", "0.05")
    command = [sys.executable, "-m", "vidllm_cli.main", *words_of(corpus, tmp_path / "out.jsonl", url)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENT_SECONDS, cwd=ROOT)
    assert done.returncode == 1, done.stderr  # not all is well: one is no video
    rows = rows_of(tmp_path / "out.jsonl")
    assert len({row["video"] for row in rows}) == len(rows) == CLIPS + 1
    check_binding(rows)
    assert verify(tmp_path / "out.jsonl") == 0


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_loses_nothing(
    corpus: Path, serve: Servers, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    url = serve("--slots", "2", "--seconds", "0.3")
    command = [sys.executable, "-c", IMPATIENT, "caption", str(corpus), "-o", str(output), "--engine", url]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as run:
        until = time.monotonic() + PATIENT_SECONDS
        while not (output.exists() and output.read_bytes().count(b"\n") >= 5):
            assert run.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        serve.processes[0].kill()
        assert run.stderr is not None
        said = run.stderr.read().strip().splitlines()[-1]
        assert run.wait(PATIENT_SECONDS) == 1
    assert "nothing answers at" in said
    assert "run the same command again" in said
    assert 5 <= len(rows_of(output)) < CLIPS
    serve("--port", url.rpartition(":")[2])
    caption(corpus, output, url)
    rows = rows_of(output)
    assert Counter(row["video"] for row in rows).most_common(1)[0][1] == 1
    assert len(rows) == CLIPS + 1
    check_binding(rows)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_that_hangs_does_not_keep_a_run_from_stopping(
    corpus: Path, serve: Servers, tmp_path: Path, number: signal.Signals
) -> None:
    output, url = tmp_path / "out.jsonl", serve()
    words = ["caption", str(corpus), "-o", str(output), "--engine", url, "--prompt", "A do=hang"]
    patience = ["--request-timeout", str(PATIENT_SECONDS)]  # it would be waited for so long, and then asked again
    command = [sys.executable, "-c", HURRIED, *words, *patience]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as run:
        while not httpx2.get(f"{url}/stats").json()["requests"]:
            assert run.poll() is None
            time.sleep(0.05)
        run.send_signal(number)
        _, said = run.communicate(timeout=PATIENT_SECONDS / 2)
    assert run.returncode == 130
    assert said.strip().splitlines()[-1].startswith("stopped; every finished caption is in")
    assert all(row["status"] == "undecodable" for row in rows_of(output)), "what hung has no row"


def test_frames_may_be_sent_as_one_video_and_that_is_another_recipe(
    corpus: Path, serve: Servers, tmp_path: Path
) -> None:
    url = serve()
    few = ("--limit", "5")
    caption(corpus, tmp_path / "out.jsonl", url, *few)
    caption(corpus, tmp_path / "out.jsonl", url, *few, "--send", "video")
    rows = [row for row in rows_of(tmp_path / "out.jsonl") if row["status"] == "ok"]
    assert len({row["recipe"] for row in rows}) == 2
    assert all(json.loads(row["caption"])["codes"] for row in rows)
    check_binding(rows)


def test_bad_answers_have_a_status_and_a_cause_and_are_tried_again_when_asked(
    corpus: Path, serve: Servers, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    url = serve()
    few = ("--limit", "4", "--retries", "1")
    caption(corpus, output, url, *few, "--prompt", "A do=empty")
    rows = [row for row in rows_of(output) if "clip" in Path(row["video"]).name]
    assert {(row["status"], row["error"]) for row in rows} == {("error", "the model said nothing")}
    assert {row["attempts"] for row in rows} == {2}
    caption(corpus, output, url, *few, "--prompt", "B do=400:99999")
    assert any("At most 1 image" in (row["error"] or "") for row in rows_of(output))
    assert any(row["error"] == "the model said nothing" for row in rows_of(output)), "another prompt is another row"


def test_what_a_model_thinks_aloud_is_no_part_of_its_caption(corpus: Path, serve: Servers, tmp_path: Path) -> None:
    caption(corpus, tmp_path / "out.jsonl", serve(), "--limit", "4", "--prompt", "A do=aloud")
    check_binding([row for row in rows_of(tmp_path / "out.jsonl") if row["status"] == "ok"])


def test_shards_part_the_corpus_and_joined_they_are_the_whole(
    corpus: Path, serve: Servers, tmp_path: Path
) -> None:
    url = serve()
    parts = [tmp_path / f"part{number}.jsonl" for number in (1, 2, 3)]
    for number, part in enumerate(parts, 1):
        caption(corpus, part, url, "--shard", f"{number}/3")
        assert rows_of(part), "31 clips in 3 shards: none is empty"
    assert verify(*parts) == 0
    rows = [row for part in parts for row in rows_of(part)]
    assert len({row["key"] for row in rows}) == len(rows) == CLIPS + 1
    check_binding(rows)

    whole = tmp_path / "whole.jsonl"
    whole.write_bytes(b"".join(part.read_bytes() for part in parts))
    asked = httpx2.get(f"{url}/stats").json()["requests"]
    caption(corpus, whole, url)
    assert len(rows_of(whole)) == CLIPS + 1
    assert httpx2.get(f"{url}/stats").json()["requests"] == asked, "nothing is left to do"
    assert verify(whole) == 0


# -------------------------------------------------------------------------------------------------- transformers serve

needs_serve = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("fastapi", "uvicorn", "openai")),
    reason="`transformers serve` is not installed: pip install 'vidllm[serve]'",
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """`transformers serve` with a tiny random LLaVA on this machine's CPU; its address and the checkpoint."""
    from tests.tiny_models import llava

    folder = llava(tmp_path_factory.mktemp("llava"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", str(folder), "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", *words]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + PATIENT_SECONDS
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, "transformers serve did not start"
            assert time.monotonic() < until
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}", folder
        process.kill()


def answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=5).status_code == 200
    except httpx2.HTTPError:
        return False


@needs_serve
@pytest.mark.slow
def test_transformers_serve_captions_a_corpus(
    corpus: Path, served: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, folder = served
    output = tmp_path / "out.jsonl"
    words = ("--frames", "3", "--max-new-tokens", "6", "--retries", "0")
    caption(corpus, output, url, *words, "--limit", "7")
    rows = rows_of(output)
    assert len(rows) == 7, capsys.readouterr().err
    captioned = [row for row in rows if row["status"] != "undecodable"]
    assert {row["model"] for row in captioned} == {f"{folder}@main"}
    assert {row["finish_reason"] for row in captioned} <= {"stop", "length"}
    assert all(row["caption"] and row["usage"]["answer_tokens"] <= 6 for row in captioned)
    # 3 pictures of 64 tokens: the server has seen them all
    assert all(row["usage"]["text_tokens"] > 3 * 64 for row in captioned)

    assert caption(corpus, output, url, *words, "--limit", "7", "-m", "somebody-else") == 1
    assert f"Server is pinned to '{folder}" in capsys.readouterr().err or "pinned" in " ".join(
        row["error"] or "" for row in rows_of(output)
    )
