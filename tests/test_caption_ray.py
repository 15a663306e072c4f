"""Captions on a Ray cluster: two nodes on this machine, one of them killed while it works.

Needs Ray (pip install 'vidllm[ray]'); without it only the arithmetic is tested.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.caption_rows import rows_of
from tests.conftest import write_stories
from vidllm.corpus.caption import CaptionOptions
from vidllm.corpus.item import Item
from vidllm.corpus.looking import Look, Seen
from vidllm.corpus.ray import RayCaptioner, Shares, _Job, with_model
from vidllm.corpus.ray_crew import Crew, FarDecoder
from vidllm.corpus.ray_nodes import DecodeActor, Told
from vidllm.corpus.workers import DecodePool
from vidllm.errors import VideoError
from vidllm.model.families import bare_spec
from vidllm.options import GenerationOptions

ROOT = Path(__file__).resolve().parents[1]
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'vidllm[ray]'")
CLIPS = 24
PATIENT_SECONDS = 900


# -------------------------------------------------------------------------------------------- how a cluster is shared


def test_gpus_carry_a_model_each_and_the_other_cpus_decode() -> None:
    shares = Shares.of([{"CPU": 64, "GPU": 8}, {"CPU": 64, "GPU": 8}], None, whole_nodes=False)
    assert (shares.models, shares.model_gpus, shares.decoders) == (16, 1, 112)


def test_a_model_too_large_for_one_gpu_takes_a_node() -> None:
    shares = Shares.of([{"CPU": 64, "GPU": 8}, {"CPU": 64, "GPU": 8}], None, whole_nodes=True)
    assert (shares.models, shares.model_gpus) == (2, 8)


@pytest.mark.parametrize(
    ("cpus", "models", "model_cpus", "decoders", "decoder_cpus"),
    [
        ((16, 16), 2, 8, 16, 1),
        ((2, 2), 2, 1, 2, 1),
        ((1,), 1, 1, 1, 0),  # too little for both: they share it
        ((1, 1), 2, 1, 2, 0),
        ((0, 4), 1, 2, 2, 1),  # the head often lends no CPU
    ],
)
def test_without_gpus_half_of_every_node_is_a_model(
    cpus: tuple[int, ...], models: int, model_cpus: float, decoders: int, decoder_cpus: float
) -> None:
    shares = Shares.of([{"CPU": float(n)} for n in cpus], None, whole_nodes=False)
    got = (shares.models, shares.model_cpus, shares.decoders, shares.decoder_cpus)
    assert got == (models, model_cpus, decoders, decoder_cpus)
    claimed = shares.models * shares.model_cpus + shares.decoders * shares.decoder_cpus
    assert claimed <= sum(cpus)


def test_workers_are_no_more_than_asked_for() -> None:
    assert Shares.of([{"CPU": 16.0}], 3, whole_nodes=False).decoders == 3


def test_without_ray_the_engine_says_how_to_get_it(clips: dict[str, Path]) -> None:
    code = "import sys; sys.modules['ray'] = None; from vidllm_cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "caption", str(clips["constant"]), "-o", "never.jsonl", "--engine", "ray"],
        capture_output=True, text=True, timeout=PATIENT_SECONDS, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "vidllm: --engine ray needs Ray; pip install 'vidllm[ray]'"
    assert not (ROOT / "never.jsonl").exists()


def test_a_node_has_the_folder_and_the_model_of_the_run(
    clips: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's workers stand where `ray start` was called, with the environment of then."""
    monkeypatch.setenv("VIDLLM_MODEL", "models/mine")
    options = with_model(CaptionOptions(engine="ray"))
    monkeypatch.delenv("VIDLLM_MODEL")
    assert with_model(options).model == "models/mine"
    monkeypatch.chdir(tmp_path)
    clip = clips["constant"]
    actor = DecodeActor(Look(spec=bare_spec(4, 4, 4096), prompt=""), str(clip.parent))
    try:
        seen = actor.look_at(Item(video=clip.name, path=clip.name))
    finally:
        actor._decoder.close()
    assert seen.status is None, seen.error


class Doomed(FarDecoder):
    """Every decode worker of the cluster dies with the clip."""

    def _call(self, item: Item, begin: Callable[[Any], Any]) -> Any:
        raise VideoError(f"{item.video}: 5 decode workers of the cluster died with it; convert the clip")


def test_a_clip_that_kills_every_worker_costs_its_own_row(tmp_path: Path) -> None:
    """With the stamp of its subtitles, too: it would be tried again by every run."""
    items = [Item(video=name, path=str(tmp_path / name)) for name in ("a.mp4", "b.mp4")]
    for name in ("a.mp4", "b.mp4", "b.srt"):
        (tmp_path / name).write_bytes(b"1")
    look = Look(spec=bare_spec(4, 4, 512), prompt="")
    pool = DecodePool(iter(items), look, decoders=[Doomed(Crew("worker", 0, lambda _: None))])
    try:
        for item in items:
            opened = pool.take(PATIENT_SECONDS)
            assert opened is not None
            assert (opened.item, opened.seen.status, opened.seen.stamp) == (item, "error", look.stamp_of(item))
            assert "workers of the cluster died" in str(opened.seen.error)
    finally:
        pool.close()


def test_what_a_decoder_said_and_its_node_lost_is_asked_for_again(
    clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself is not needed to be told that: a stand-in with the errors that it has."""
    names = ("RayActorError", "ObjectLostError", "GetTimeoutError")
    errors = SimpleNamespace(**{name: type(name, (Exception,), {}) for name in names})
    said: list[Any] = [errors.ObjectLostError(), errors.GetTimeoutError(), "what it saw"]

    def get(ref: object, timeout: float) -> object:
        if isinstance(one := said.pop(0), Exception):
            raise one
        return one

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=get, exceptions=errors))
    crew = Crew("decode worker", 0, lambda rescue: None)
    actor = SimpleNamespace(look_at=SimpleNamespace(remote=lambda item: "a reference"))
    crew.give_back((actor, None))
    assert FarDecoder(crew).look_at(Item(video="a.mp4", path=str(clips["constant"]))) == "what it saw"
    assert crew.borrow(0.0) == (actor, None)


def test_a_crew_is_closed_when_nobody_asks_its_actors_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray ends the process of whoever asks it something after it has shut down, which is what follows."""
    late = type("GetTimeoutError", (Exception,), {})
    errors = SimpleNamespace(GetTimeoutError=late, RayActorError=OSError, ObjectLostError=OSError)
    asked = threading.Event()

    def get(ref: object, timeout: float) -> None:
        asked.set()
        raise late

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=get, exceptions=errors))
    crew, said = Crew("decode worker", 0, lambda rescue: None), list[Seen]()
    actor = SimpleNamespace(look_at=SimpleNamespace(remote=lambda item: "a reference"))
    crew.give_back((actor, None))
    decoder, item = FarDecoder(crew), Item(video="a.mp4", path="a.mp4")
    thread = threading.Thread(target=lambda: said.append(decoder.look_at(item)), daemon=True)
    thread.start()
    assert asked.wait(PATIENT_SECONDS)
    crew.close()
    asked.clear()
    thread.join(PATIENT_SECONDS)
    assert not asked.is_set()
    assert [seen.error for seen in said] == ["a.mp4: the run was stopped"]
    assert crew.borrow(0.0) == (actor, None), "who was stopped keeps none from those who are not"


def test_a_defect_while_an_actor_is_raised_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of an option that an old Ray does not know; else the run would wait for the cluster to find a place."""
    errors = SimpleNamespace(RayTaskError=OSError, RayActorError=OSError, RayError=OSError)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(exceptions=errors))

    def start(rescue: bool) -> None:
        raise ValueError("Invalid option keyword")

    crew = Crew("model", 1, start)
    with pytest.raises(ValueError, match="Invalid option keyword"):
        crew.borrow(PATIENT_SECONDS)
    crew.close()


def test_a_defect_while_pictures_are_made_anew_is_heard(
    clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clip it was about would be waited for without end."""
    lost = type("ObjectLostError", (Exception,), {})
    names = ("RayActorError", "RayTaskError")
    errors = SimpleNamespace(RayError=Exception, **{name: type(name, (Exception,), {}) for name in names})

    def get(ref: object, timeout: float = 0.0) -> object:
        if ref == "a submit":
            raise lost
        return [], 1

    ray = SimpleNamespace(get=get, wait=lambda refs, **_: (refs, []), exceptions=errors)
    monkeypatch.setitem(sys.modules, "ray", ray)
    actor = SimpleNamespace(
        submit=SimpleNamespace(remote=lambda *_: "a submit"), poll=SimpleNamespace(remote=lambda _: "a poll")
    )
    told = Told(model="m", fingerprint="f", spec=bare_spec(4, 4, 512), room=1)
    models: Any = SimpleNamespace(borrow=lambda wait: None, close=lambda: None)
    captioner = RayCaptioner(models, (actor, told), lambda: None)

    def borrow(wait: float) -> None:
        raise ZeroDivisionError("a defect")

    captioner.decoders = Crew("decode worker", 0, lambda rescue: None)
    monkeypatch.setattr(captioner.decoders, "borrow", borrow)
    item = Item(video="a.mp4", path=str(clips["constant"]))
    clip: Any = SimpleNamespace(blind=None, pictures=None, item=item, seen=Seen(id="0" * 32))
    captioner._homeless.append(_Job(ticket=1, clip=clip, prompt="what?", options=GenerationOptions()))
    try:
        with pytest.raises(ZeroDivisionError, match="a defect"):
            next(filter(None, (captioner.poll(0.01) for _ in range(1000))))
    finally:
        captioner.close()


# ------------------------------------------------------------------------------------------------------- two nodes


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips with a story each; among them one that is no video, and one twice."""
    folder = tmp_path_factory.mktemp("corpus")
    made = write_stories(CLIPS - 2, folder, seed=200)
    (folder / "broken.mp4").write_bytes(b"no video at all")
    (folder / "twin.mp4").write_bytes(made[3].read_bytes())
    return folder


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes of two CPUs each, in processes of this machine; a run joins by the first, which is not killed."""
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", str(PATIENT_SECONDS))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 2, "object_store_memory": 100 << 20}
    made = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    made.second = made.add_node(**small, node_ip_address="127.0.0.1")
    yield made
    made.shutdown()


def caption_corpus(corpus: Path, output: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`vidllm caption` in its own process, as a user runs it."""
    command = [sys.executable, "-m", "vidllm_cli.main", "caption", str(corpus), "-o", str(output)]
    fixed = ["--dtype", "float32", "--max-new-tokens", "24", "--frames", "8", "--retries", "0"]
    return subprocess.run([*command, *fixed, *words], capture_output=True, text=True, timeout=PATIENT_SECONDS, cwd=ROOT)


def kill_when_at_work(cluster: Any, output: Path) -> None:
    """Kill the second node, uncleanly, when some captions are there and most are not."""
    until = time.monotonic() + PATIENT_SECONDS
    while time.monotonic() < until and not (output.exists() and output.read_bytes().count(b"\n") >= 3):
        time.sleep(0.05)
    cluster.remove_node(cluster.second, allow_graceful=False)


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_node_that_dies_loses_nothing_and_nothing_is_done_twice(corpus: Path, cluster: Any, tmp_path: Path) -> None:
    output, alone = tmp_path / "ray.jsonl", tmp_path / "alone.jsonl"
    killer = threading.Thread(target=kill_when_at_work, args=(cluster, output))
    killer.start()
    done = caption_corpus(corpus, output, "--engine", "ray", "--address", cluster.address, "--batch", "2")
    killer.join()
    assert done.returncode == 1, done.stderr  # one clip is no video
    rows = rows_of(output)
    assert len(rows) == CLIPS, done.stderr
    assert Counter(row["video"] for row in rows).most_common(1)[0][1] == 1
    assert {row["engine"] for row in rows} == {"ray"}
    statuses = {Path(row["video"]).name: row["status"] for row in rows}
    assert statuses["broken.mp4"] == "undecodable"
    assert "error" not in statuses.values(), [row["error"] for row in rows]

    again = caption_corpus(corpus, alone)
    assert again.returncode == 1, again.stderr
    captions = {row["video"]: row["caption"] for row in rows}
    assert captions == {row["video"]: row["caption"] for row in rows_of(alone)}, "as one machine says it, clip by clip"
    assert {row["recipe"] for row in rows} == {row["recipe"] for row in rows_of(alone)}, "so one goes on for the other"

    from vidllm.corpus.verify import verify

    assert verify(output).ok


@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_no_cluster_at_an_address_is_one_line(corpus: Path, tmp_path: Path) -> None:
    done = caption_corpus(corpus, tmp_path / "out.jsonl", "--engine", "ray", "--address", "127.0.0.1:1")
    assert done.returncode == 1
    assert "no Ray cluster at 127.0.0.1:1" in done.stderr.strip().splitlines()[-1]


@needs_ray
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_stopped_while_it_joins_a_cluster_it_says_so_in_one_line(corpus: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vidllm_cli.main", "caption", str(corpus), "-o", str(tmp_path / "out.jsonl")]
    with subprocess.Popen([*command, "--engine", "ray"], stderr=subprocess.PIPE, text=True, cwd=ROOT) as run:
        while run.poll() is None and not Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text():
            time.sleep(0.05)  # until Ray starts the cluster's processes
        run.terminate()
        _, said = run.communicate(timeout=PATIENT_SECONDS)
    assert run.returncode == 130, said
    assert said.startswith("stopped; every finished caption is in ")
    assert said.count("\n") == 1


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_model_that_can_not_be_loaded_is_one_line(corpus: Path, cluster: Any, tmp_path: Path) -> None:
    words = ("--engine", "ray", "--address", cluster.address, "-m", str(tmp_path))
    done = caption_corpus(corpus, tmp_path / "out.jsonl", *words)
    assert done.returncode == 1
    assert "a model can not be started on the cluster" in done.stderr  # Ray may have the last word
