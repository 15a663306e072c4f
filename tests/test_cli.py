"""The command line as its users meet it: stdout is the answer, stderr one line a thing, the exit code the truth."""

import gc
import http.server
import importlib.metadata
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import tomllib
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vidllm
from tests import tiny_models
from tests.conftest import ROOT
from tests.planned import tiny_folder
from vidllm.errors import ReaderUnavailable
from vidllm.shots import save_pictures
from vidllm.video.decode import FrameSet
from vidllm_cli import main as command_line
from vidllm_cli.output import note, write_json
from vidllm_cli.progress import Progress

Result = tuple[int, str, str]
Run = Callable[..., Result]

COMMANDS = ("ask", "chat", "plan", "frames", "doctor", "world", "world make")
GRID = ("--grid", "24x24", "--context", "4096")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`vidllm ...` in this process, in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIDLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VIDLLM_DEBUG", raising=False)

    def run(*words: object) -> Result:
        code = command_line.main([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture(scope="session")
def tiny() -> Path:
    """A LLaVA of random weights."""
    return tiny_folder("llava")


def start(*words: object, **options: object) -> subprocess.Popen[str]:
    """`vidllm ...` as a process of its own."""
    command = [sys.executable, "-m", "vidllm_cli.main", *map(str, words)]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(command, **{"text": True, **pipes})  # type: ignore[call-overload,no-any-return]


def one_line(err: str) -> str:
    """What stderr says, when it is a single line for a person."""
    assert err.startswith("vidllm: "), err
    assert err.count("\n") == 1, err
    assert err.endswith("\n"), err
    assert "Traceback" not in err
    return err[len("vidllm: ") :].strip()


def size_of(picture: str | Path) -> tuple[int, int]:
    """(width, height) in pixels."""
    with Image.open(picture) as opened:
        return opened.size


# ------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples_that_are_real_commands(run: Run, command: str) -> None:
    code, out, err = run(*command.split(), "--help")
    assert (code, err) == (0, "")
    assert "Usage: vidllm" in out
    if command != "world":
        examples = re.findall(r"^ +(vidllm .*)$", out, re.MULTILINE)
        assert examples
        assert all(line.split()[1] in {name.split()[0] for name in COMMANDS} for line in examples)


@pytest.mark.parametrize(
    ("words", "slow"),
    [
        (["--help"], {"numpy", "av", "pydantic", "psutil", "jinja2", "tokenizers"}),
        (["plan", "CLIP", *GRID], {"tokenizers", "jinja2"}),
        (["plan", "CLIP", "what happens at 0:01?", *GRID], set()),
    ],
)
def test_help_and_plan_load_nothing_slow(clips: dict[str, Path], words: list[str], slow: set[str]) -> None:
    """Importing is nearly all the time they take: benchmarks/startup.py measures it."""
    process = start(
        *(clips["constant"] if word == "CLIP" else word for word in words),
        env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"},
    )
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0
    loaded = set(re.findall(r"\| +(\w+)", err))
    assert "typer" in loaded
    assert not loaded & (slow | {"torch", "transformers", "PIL", "rich", "scipy", "huggingface_hub", "decord"})


def test_no_command_shows_the_help_and_is_a_usage_error(run: Run) -> None:
    code, out, err = run()
    assert (code, out) == (2, "")
    assert "Commands:" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["aks"], "No such command 'aks'"),
        (["ask"], "Missing argument"),
        (["ask", "clip.mp4", "what?", "--frmes", "8"], "--frames"),
        (["plan", "clip.mp4", "--policy", "clever"], "'slowfast'"),
        (["plan", "clip.mp4", "--frames", "0"], "--frames"),
        (["plan", "clip.mp4", "--from", "soon"], "m:ss (1:30)"),
        (["plan", "clip.mp4", "--grid", "24"], "24x24"),
        (["frames", "clip.mp4"], "--output"),
        (["world", "make", "-n", "0", "-o", "x"], "--count"),
        (["caption", "clips", "-o"], "`vidllm caption --help`"),
        (["world", "mkae", "-o", "x"], "`vidllm world --help`"),
        (["world", "make"], "`vidllm world make --help`"),
        (["ask", "clip.mp4", "what", "happens", "at", "0:30?"], "in quotes"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_2(run: Run, words: list[str], says: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert says in one_line(err)
    assert re.search(r"[^.]\. See `vidllm[ a-z]* --help`\.$", one_line(err))


def test_the_assignment_that_is_advised_is_one(run: Run) -> None:
    Path("stage.yaml").write_text("{data: rows.jsonl, out: out}")
    advised = re.findall("`(.*?)`", one_line(run("sft", "stage.yaml", "batch")[2]))[-1]
    assert "nothing learns" in one_line(run("sft", "stage.yaml", advised, "--dry-run")[2])


def test_version(run: Run) -> None:
    code, out, err = run("--version")
    assert (code, err) == (0, "")
    assert re.fullmatch(r"vidllm \d+\.\d+\.\d+\n", out)


# ------------------------------------------------------------------------------------------------------ wrong input


def bad_files(folder: Path) -> dict[str, Path]:
    """Files that are no videos, by what they are."""
    (folder / "folder.mp4").mkdir()
    (folder / "zero.mp4").touch()
    (folder / "text.mp4").write_text("I am a text.\n" * 100)
    (folder / "noise.mp4").write_bytes(bytes(range(256)) * 64)
    names = ("missing", "folder", "zero", "text", "noise")
    return {name: folder / f"{name}.mp4" for name in names}


def test_a_name_that_a_terminal_would_obey_is_spelled_out(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a\x1b[31m.png")
    assert r"a\x1b[31m.png: a picture" in run("plan", "a\x1b[31m.png", *GRID)[1]
    note("note: a\x1b[31m.srt\tlies beside\nit")
    assert capsys.readouterr().err == "note: a\\x1b[31m.srt\tlies beside\nit\n"


@pytest.mark.parametrize("kind", ["missing", "folder", "zero", "text", "noise"])
@pytest.mark.parametrize("command", ["ask", "chat", "plan", "frames"])
def test_no_video_is_one_line_and_1_before_a_model_is_loaded(
    run: Run, tmp_path: Path, tiny: Path, command: str, kind: str
) -> None:
    path = bad_files(tmp_path)[kind]
    more = {"ask": ["what?", "-m", tiny], "chat": ["-m", tiny], "plan": GRID, "frames": ["-o", "sheet.png"]}[command]
    code, out, err = run(command, path, *more)
    assert (code, out) == (1, "")
    assert path.name in one_line(err)
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["ask", " "], "the question is empty"),
        (["ask", "what?", "--from", "9:00"], "no frame at 9:00 or later"),
        (["chat", "--from", "2", "--to", "1"], "the range 0:02.00-0:01.00 is empty"),
        (["ask", "what?", "--fps", "inf"], "fps must be finite"),
    ],
)
def test_what_can_not_be_asked_is_told_before_a_model_is_looked_for(
    run: Run, clips: dict[str, Path], words: list[str], says: str
) -> None:
    command, *more = words
    code, out, err = run(command, clips["constant"], *more, "-m", "nowhere")
    assert (code, out) == (1, "")
    assert says in one_line(err)


@pytest.mark.parametrize(
    "words", [["--send", "video"], ["--request-timeout", "5"], ["--send", "video", "--engine", "ray"]]
)
def test_what_only_a_server_would_hear_is_not_ignored(run: Run, clips: dict[str, Path], words: list[str]) -> None:
    code, out, err = run("caption", clips["constant"], "-o", "captions.jsonl", *words)
    assert (code, out) == (1, "")
    assert f"{words[0][2:].replace('-', '_')} is for a server; name its address as the engine" in one_line(err)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--from", "1:00"], "0:0"),
        (["--from", "1", "--to", "1"], "range"),
        (["--frames", "600", *GRID], "--frames"),
        (["--grid", "24x24", "--context", "64"], "tokens"),
        (["-m", "nowhere"], "nowhere: no such folder"),
        (["-m", "no body/at all"], "no such folder"),
        ([*GRID, "-m", "llava"], "leave one of them out"),
    ],
)
def test_what_can_not_be_planned_is_one_line_and_1(
    run: Run, clips: dict[str, Path], tiny: Path, words: list[str], says: str
) -> None:
    model = [] if {"-m", "--grid"} & set(words) else ["-m", tiny]
    frames = [] if "--frames" in words else ["--frames", "8"]
    long = clips["constant"]
    code, out, err = run("plan", long, *words, *model, *frames)
    if "600" in words:  # the clip holds 60 frames, which fit: ask more of it
        code, out, err = run("plan", long, *words, "--stride", "1")
    assert (code, out) == (1, "")
    assert says in one_line(err)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (None, "config.json"),
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "text-only"),
        ({"model_type": "other_vl", "vision_config": {}}, "no adapter"),
    ],
)
def test_a_folder_that_is_no_image_model_is_one_line(
    run: Run, clips: dict[str, Path], tmp_path: Path, config: dict[str, object] | None, says: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    code, out, err = run("ask", clips["constant"], "what?", "-m", folder)
    assert (code, out) == (1, "")
    assert says in one_line(err)


@pytest.mark.parametrize("missing", ["tokenizer.json", "processor_config.json", "model.safetensors"])
def test_an_incomplete_model_names_what_is_missing(
    run: Run, clips: dict[str, Path], tmp_path: Path, tiny: Path, missing: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny.iterdir():
        if file.name != missing:
            (folder / file.name).symlink_to(file)
    code, out, err = run("ask", clips["constant"], "what?", "-m", folder)
    assert (code, out) == (1, "")
    assert str(folder) in one_line(err)


def test_a_url_that_can_not_be_reached_is_one_line(run: Run) -> None:
    code, out, err = run("plan", "http://127.0.0.1:9/clip.mp4", *GRID)
    assert (code, out) == (1, "")
    assert "http://127.0.0.1:9/clip.mp4" in one_line(err)


def test_debug_shows_the_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDLLM_DEBUG", "1")
    code, _, err = run("plan", "missing.mp4", *GRID)
    assert code == 1
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("vidllm: missing.mp4")


def test_a_name_with_line_breaks_and_escapes_stays_one_harmless_line(run: Run) -> None:
    _, _, err = run("plan", "a\nb\x1b[31m.mp4", *GRID)
    assert "\\x1b[31m" in one_line(err)


# ------------------------------------------------------------------------------------------------------------- plan


def test_plan_prints_the_contract(run: Run, clips: dict[str, Path]) -> None:
    """56 frames of 12 x 12 tokens are 8064: a context of 4096 stretched by 2 holds them, and 128 for the answer."""
    code, out, _ = run("plan", clips["constant"], *GRID, "--stride", "2", "--frames", "56", "--json")
    plan = json.loads(out)
    assert code == 0
    assert len(plan["frames"]) == 56
    assert {frame["tokens"] for frame in plan["frames"]} == {144}
    assert plan["video_tokens"] == 8064
    assert plan["total"] <= 8192
    assert plan["rope_factor"] == 2.0
    assert plan["video"] == {
        "path": str(clips["constant"]), "duration": 2.4, "width": 160, "height": 96, "fps": 25.0, "frames": 60,
    }  # fmt: skip
    assert plan.keys() >= {"text_tokens", "max_new_tokens", "context", "policy", "reader"}


def test_plan_for_people_adds_up(run: Run, clips: dict[str, Path]) -> None:
    code, out, _ = run("plan", clips["constant"], *GRID, "--stride", "2", "--frames", "16")
    assert code == 0
    video, text, answer, total = (
        int(re.search(rf"^{word} +(\d+)", out, re.MULTILINE)[1])  # type: ignore[index]
        for word in ("video", "text", "answer", "total")
    )
    assert video == 16 * 144
    assert video + text + answer == total


def test_plan_says_how_a_frame_is_met_and_which_stand_in(run: Run, clips: dict[str, Path], tiny: Path) -> None:
    """A key frame every 0.4 s; what is listed is what asking shows."""
    code, out, err = run("plan", clips["constant"], "-m", tiny, "--frames", "4", "--snap", "--fit", "crop")
    assert code == 0
    [look] = re.findall(r"^look +(.*)$", out, re.MULTILINE)
    assert "fit crop" in look
    assert "key frames within 0.37" in look
    assert "answered by the nearest key frame" in err
    words = (clips["constant"], "what?", "-m", tiny, "--frames", "4", "--snap", "--json")
    planned, asked = json.loads(run("plan", *words)[1]), json.loads(run("ask", *words, "--max-new-tokens", "2")[1])
    assert [frame["time"] for frame in planned["frames"]] == [frame["time"] for frame in asked["frames"]]
    assert planned["notes"] == asked["notes"] != []


def test_plan_says_which_frames_share_their_tokens(run: Run, clips: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "qwen"
    folder.mkdir()
    out = run("plan", clips["constant"], "-m", tiny_models.qwen2_5_vl(folder), "--frames", "5")[1]
    assert re.search(r"^frames  5 at ", out, re.MULTILINE)
    [(total, groups, each)] = re.findall(r"^video +(\d+) tokens: (\d) groups x (\d+) \(stride 1\)$", out, re.MULTILINE)
    assert (groups, int(total)) == ("3", 3 * int(each))


def test_plan_of_a_picture_is_that_of_a_picture(run: Run, tiny: Path) -> None:
    Image.new("RGB", (40, 30), "red").save("red.png")
    code, out, _ = run("plan", "red.png", "what colour is it?", "-m", tiny)
    assert code == 0
    assert out.startswith("red.png: a picture, 40x30\n")
    words = ("red.png", "what colour is it?", "-m", tiny, "--json")
    planned, asked = json.loads(run("plan", *words)[1]), json.loads(run("ask", *words, "--max-new-tokens", "2")[1])
    assert planned["video"] == asked["video"]
    assert {key: planned[key] for key in ("video_tokens", "text_tokens")}.items() <= asked["usage"].items()


@pytest.mark.parametrize("family", ["llava_next", "internvl", "cohere2_vision"])
def test_plan_says_into_how_many_tiles_a_picture_is_cut(family: str, run: Run, tmp_path: Path) -> None:
    """Three times as wide as high: two tiles and more side by side."""
    Image.new("RGB", (330, 110), "red").save("wide.png")
    (tmp_path / family).mkdir()
    model = tiny_models.FAMILIES[family](tmp_path / family)
    [look] = re.findall(r"^look +(.*)$", run("plan", "wide.png", "-m", model)[1], re.MULTILINE)
    assert re.fullmatch(r"cut into 1 x [23] tiles", look)
    assert json.loads(run("plan", "wide.png", "-m", model, "--json")[1])["fit"] is None


def test_the_total_of_a_plan_is_within_the_room_it_names(run: Run, clips: dict[str, Path]) -> None:
    look = ("--grid", "24x24", "--context", "1000", "--stride", "24", "--frames", "60", "--max-new-tokens", "941")
    assert run("plan", clips["constant"], *look)[1].endswith("total     1001 of 1001 = 1000 x RoPE 1.001\n")


# ----------------------------------------------------------------------------------------------------------- frames


def test_frames_writes_every_picture_and_names_its_time(run: Run, clips: dict[str, Path]) -> None:
    code, out, err = run("frames", clips["constant"], "-o", "shots", "--frames", "5", "--from", "1", "--to", "2")
    assert (code, err) == (0, "")
    paths = [Path(line) for line in out.splitlines()]
    assert [path.name.split("_")[1] for path in paths] == [
        "0-01.000.png", "0-01.240.png", "0-01.480.png", "0-01.720.png", "0-01.960.png",
    ]  # fmt: skip
    assert {size_of(path) for path in paths} == {(160, 96)}
    assert sorted(Path("shots").iterdir()) == sorted(paths), "nothing else is left there"
    code, out, err = run("frames", clips["one_frame"], "-o", "shots")
    assert (code, out) == (0, "shots/000_0-00.000.png\n")
    assert "shots also holds 5 pictures of before" in err, "they are somebody's, and stay"


def test_what_there_is_one_of_is_told_as_one(run: Run, clips: dict[str, Path]) -> None:
    assert ", 1 frame\n" in run("plan", clips["one_frame"], *GRID)[1]


def test_more_than_a_thousand_frames_stand_in_order_by_name(tmp_path: Path) -> None:
    def read(times: Sequence[float]) -> FrameSet:
        seconds = np.asarray(times)
        return FrameSet(np.zeros((len(times), 1, 1, 3), np.uint8), seconds, seconds, "pyav")

    shots = save_pictures([second / 10 for second in range(1001)], tmp_path / "shots", read)
    assert sorted(shot.path for shot in shots) == [shot.path for shot in shots]
    assert shots[-1].path.name == "1000_1-40.000.png"


def test_decord_reads_frames_in_a_child(run: Run, clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """It can spin for ever: it never runs where it could not be killed."""
    asked: list[str] = []

    def guarded(info: object, times: object, limits: object, *, reader: str, **_: object) -> FrameSet:
        asked.append(reader)
        raise ReaderUnavailable("not here")

    monkeypatch.setattr("vidllm.video.guard.read_frames_guarded", guarded)
    assert run("frames", clips["constant"], "-o", "sheet.png", "--reader", "decord")[0] == 1
    with pytest.raises(ReaderUnavailable):
        vidllm.read_frames(clips["constant"], [0.0], reader="decord")
    assert asked == ["decord", "decord"]


def test_frames_draws_one_sheet(run: Run, clips: dict[str, Path]) -> None:
    code, out, err = run("frames", clips["constant"], "-o", "sheet.png")
    assert (code, out, err) == (0, "sheet.png\n", "")
    assert size_of("sheet.png")[0] > 160


def test_frames_are_dense_where_the_question_looks(run: Run, clips: dict[str, Path]) -> None:
    code, out, _ = run("frames", clips["constant"], "what happens at 0:01?", "-o", "shots", "--json")
    times = [frame["time"] for frame in json.loads(out)["frames"]]
    assert code == 0
    assert {0.0, 0.48, 1.0, 1.48, 2.0} <= set(times)


def test_frames_says_that_a_time_lies_outside_the_clip(run: Run, clips: dict[str, Path]) -> None:
    code, _, err = run("frames", clips["constant"], "what happens at 5:00?", "-o", "sheet.png")
    assert (code, err.strip()) == (0, 'note: "5:00" lies outside the clip (0:00-0:02); no focus on it')


@pytest.mark.parametrize("output", ["sheet.gif", "clip.mp4", "nowhere/sheet.png"])
def test_frames_refuses_what_it_can_not_write(run: Run, clips: dict[str, Path], output: str) -> None:
    code, out, err = run("frames", clips["constant"], "-o", output)
    assert (code, out) == (1, "")
    assert output in one_line(err)


def test_a_name_that_is_empty_is_neither_the_folder_we_are_in_nor_the_default(run: Run, clips: dict[str, Path]) -> None:
    for words in (
        ("frames", clips["constant"], "-o", ""), ("world", "make", "-n", "1", "-o", ""),
        ("instruct", "", "-o", "r.jsonl"), ("feedback", "", "-o", "p.jsonl"),
        ("feedback", "rows.jsonl", "-o", "p.jsonl", "--media", ""), ("plan", clips["constant"], "-m", ""),
    ):  # fmt: skip
        code, out, err = run(*words)
        assert (code, out) == (2, "")
        assert "the name is empty" in one_line(err)


def test_frames_that_can_not_be_written_leave_nothing(
    run: Run, clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0

    def full_disk(self: Image.Image, path: Path, **options: object) -> None:
        nonlocal written
        written += 1
        if written > 3:
            raise OSError(28, "No space left on device")
        path.write_bytes(b"some")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    code, out, err = run("frames", clips["constant"], "-o", "new/shots")
    assert (code, out) == (1, "")
    assert "No space left on device" in one_line(err)
    assert not Path("new").exists()


# ------------------------------------------------------------------------------------------- names, URLs, pipes


@pytest.mark.parametrize("before", ["", "./", "--"])
def test_names_with_dashes_spaces_and_chinese(run: Run, clips: dict[str, Path], before: str) -> None:
    name = clips["name"].name
    assert name.startswith("-")
    os.symlink(clips["name"], name)
    code, out, err = run("plan", *GRID, "--json", *(["--", name] if before == "--" else [before + name]))
    assert (code, err) == (0, "") or "note:" in err
    assert name in json.loads(out)["video"]["path"]


@pytest.fixture
def server(clips: dict[str, Path]) -> Iterator[str]:
    """An http server of the clips' folder."""
    folder = str(clips["constant"].parent)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, directory=folder, **options)  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as served:
        thread = threading.Thread(target=served.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()
        thread.join()


def test_a_url_is_a_video(run: Run, server: str) -> None:
    code, out, _ = run("plan", f"{server}/constant.mp4", *GRID, "--json")
    assert code == 0
    video = json.loads(out)["video"]
    assert (video["path"], video["frames"]) == (f"{server}/constant.mp4", 60)
    assert run("frames", f"{server}/constant.mp4", "-o", "sheet.png")[:2] == (0, "sheet.png\n")
    assert len(vidllm.read_frames(f"{server}/constant.mp4", [0.0, 1.0])) == 2
    assert vidllm.probe(f"{server}/constant.mp4").num_frames == 60
    code, out, err = run("plan", f"{server}/nothing.mp4", *GRID, "--json")
    assert (code, out) == (1, "")
    assert "404" in one_line(err)


def test_a_url_of_a_picture_has_no_sheet(run: Run, server: str, clips: dict[str, Path], tiny: Path) -> None:
    """What it is can not be told by an address that goes on behind the name."""
    picture = clips["constant"].parent / "served.png"
    Image.new("RGB", (8, 8)).save(picture)
    words = ("ask", f"{server}/{picture.name}?size=8", "what?", "-m", tiny, "--max-new-tokens", "2")
    code, out, err = run(*words, "--sheet", "seen.png")
    assert (code, out) == (1, "")
    assert "a still picture has no contact sheet" in err
    assert run(*words)[0] == 0


def test_a_url_of_a_picture_that_moves_has_a_sheet(run: Run, server: str, clips: dict[str, Path], tiny: Path) -> None:
    one, *others = (Image.new("RGB", (8, 8), (0, 0, shade)) for shade in (0, 100, 200))
    one.save(clips["constant"].parent / "moving.png", save_all=True, append_images=others, duration=500)
    words = ("ask", f"{server}/moving.png", "what?", "-m", tiny, "--max-new-tokens", "2", "--sheet", "seen.png")
    assert run(*words)[0] == 0
    assert Path("seen.png").is_file()


@pytest.mark.skipif(not Path("/dev/stdin").exists(), reason="no /dev/stdin here")
@pytest.mark.parametrize("words", [("plan", *GRID), ("frames", "-o", "sheet.png"), ("ask", "what?")])
def test_a_pipe_as_video_is_refused_by_name(clips: dict[str, Path], tmp_path: Path, words: tuple[str, ...]) -> None:
    command, *more = words
    process = start(command, "/dev/stdin", *more, stdin=subprocess.PIPE, cwd=tmp_path, text=None)
    out, err = process.communicate(clips["constant"].read_bytes(), timeout=60)  # type: ignore[arg-type,call-overload]
    assert (process.returncode, out) == (1, b"")
    assert "/dev/stdin: a pipe" in one_line(err.decode())
    with clips["constant"].open("rb") as file:
        process = start("plan", "/dev/stdin", *GRID, stdin=file)
        assert process.communicate(timeout=60)[1] == "", "a file is not a pipe"


def test_a_question_that_is_no_text_is_one_line(run: Run, clips: dict[str, Path], tiny: Path) -> None:
    """What a terminal of another encoding hands over: the byte E9 alone is no UTF-8."""
    for words in (("ask", "-m", tiny), ("plan", "-m", tiny), ("plan", *GRID)):
        code, out, err = run(words[0], clips["constant"], "caf\udce9?", *words[1:])
        assert (code, out) == (1, "")
        assert r"no valid text, it breaks at 'caf\udce9'" in one_line(err)


def test_a_reader_that_leaves_ends_it_quietly(clips: dict[str, Path]) -> None:
    process = start("plan", clips["constant"], *GRID, "--json")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 141
    assert "Traceback" not in said
    assert "Broken" not in said


@pytest.mark.skipif(os.name == "nt", reason="pipes as POSIX has them")
@pytest.mark.parametrize(("name", "code"), [("constant", 0), ("no such clip", 1)])
def test_notes_that_nobody_reads_cost_no_answer(name: str, code: int, clips: dict[str, Path], tiny: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    clip = clips.get(name, name)
    process = start("ask", clip, "what at 0:01?", "-m", tiny, "--max-new-tokens", "4", stderr=writer)
    os.close(writer)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, bool(out.strip())) == (code, code == 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_under_stderr_costs_no_answer(
    run: Run, clips: dict[str, Path], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        code, out, _ = run("ask", clips["constant"], "what?", "-m", tiny, "--max-new-tokens", "4")
    assert (code, bool(out.strip())) == (0, True)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii", "cp1252"])
def test_json_is_json_in_every_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It held é as a byte of its own, and 🎬 as \\U0001f3ac, which JSON knows nothing of."""
    said = {"answer": "é 第 🎬 \x81", "path": "caf\udce9.mp4"}
    stream = io.TextIOWrapper(written := io.BytesIO(), encoding=encoding, errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", stream)
    write_json(said)
    assert json.loads(written.getvalue().decode()) == said


class Terminal(io.StringIO):
    """Where a person would watch."""

    def isatty(self) -> bool:
        return True


def test_what_goes_on_is_shown_as_it_is_spelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may be named as rich writes its markup, whose end without a beginning was an error."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress() as progress:
        progress("reading [bold] and [/dim].jsonl")
        progress.clear()
        assert "[bold] and [/dim].jsonl" in sys.stderr.getvalue()  # type: ignore[attr-defined]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_under_stdout_is_an_error(clips: dict[str, Path]) -> None:
    with open("/dev/full", "w") as full:
        process = start("plan", clips["constant"], *GRID, stdout=full)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "No space left" in err
    assert "Traceback" not in err


@pytest.mark.skipif(os.name == "nt", reason="descriptors as POSIX has them")
@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_stream_that_was_closed_before_is_an_empty_one(closed: int, clips: dict[str, Path], tiny: Path) -> None:
    words = [sys.executable, "-m", "vidllm_cli.main", "chat", str(clips["constant"]), "-m", str(tiny)]
    shell = f"exec {shlex.join(words)} {closed}{'<' if closed == 0 else '>'}&-"
    done = subprocess.run(["sh", "-c", shell], input="what?\n", capture_output=True, text=True, timeout=60)
    assert (done.returncode, "unexpected" in done.stderr) == (0, False)
    assert bool(done.stdout) == (closed == 2)


@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
def test_ctrl_c_ends_with_130(clips: dict[str, Path], tiny: Path) -> None:
    process = start("chat", clips["constant"], "-m", tiny, "--max-new-tokens", "4", stdin=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    process.stdin.write("what happens?\n")
    process.stdin.flush()
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_ctrl_c_amid_the_first_imports_ends_with_130() -> None:
    """As the installed script begins, with a person who presses it when typer is about to be imported."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]["vidllm"]
    module, _, function = declared.partition(":")
    program = f"""
import signal, sys
class Finger:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            signal.raise_signal(signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finger())
from {module} import {function}
sys.exit({function}())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


# ------------------------------------------------------------------------------------------------------ ask and chat


def test_ask_puts_the_answer_and_nothing_else_on_stdout(run: Run, clips: dict[str, Path], tiny: Path) -> None:
    words = ("ask", clips["constant"], "what happens at 0:01?", "-m", tiny, "--max-new-tokens", "6")
    code, out, err = run(*words)
    assert code == 0
    assert out.endswith("\n")
    assert "saw" in err
    code, as_json, _ = run(*words, "--json")
    answer = json.loads(as_json)
    assert code == 0
    assert answer["answer"] + "\n" == out
    assert answer["finish_reason"] == "length"
    assert answer.keys() == {
        "answer", "finish_reason", "model", "reader", "video", "frames", "cited", "usage", "timing", "notes",
    }  # fmt: skip
    assert answer["usage"]["answer_tokens"] == 6


OUT_OF_MEMORY = "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to get 9 TB."


@pytest.mark.parametrize("place", ["load_light", "network_class"])
def test_a_model_too_large_for_the_memory_is_not_to_be_downloaded_again(
    run: Run, clips: dict[str, Path], tiny: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vidllm.model import checkpoint

    class Network:
        from_pretrained = staticmethod(lambda *_, **__: starve())

    def starve() -> None:
        raise RuntimeError(OUT_OF_MEMORY)

    monkeypatch.setattr(checkpoint, "fits", lambda *_: place == "load_light")
    monkeypatch.setattr(checkpoint, place, lambda *_: starve() if place == "load_light" else Network)
    code, out, err = run("ask", clips["constant"], "what?", "-m", tiny)
    assert (code, out) == (1, "")
    assert one_line(err).startswith(f"{tiny}: out of memory while it was loaded; take a smaller model")


@pytest.mark.parametrize(
    ("method", "raised", "code", "says"),
    [
        ("prefill", RuntimeError(OUT_OF_MEMORY), 1, "vidllm: out of memory; use fewer --frames"),
        ("extend", RuntimeError(OUT_OF_MEMORY), 1, "vidllm: out of memory; use fewer --frames"),
        ("prefill", KeyboardInterrupt(), 0, "\nstopped"),  # by the person who asked: nothing has failed
    ],
)
def test_a_question_that_gets_no_answer_costs_its_turn_only(
    method: str, raised: BaseException, code: int, says: str, clips: dict[str, Path], tiny: Path, run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What was said before is a line of its own: the next answer was put behind it."""
    from vidllm.model.reader import TextReader

    plain, turns = getattr(TextReader, method), []

    def failing(self: TextReader, *words: Any) -> Any:
        turns.append(1)
        if len(turns) == 1:
            raise raised
        return plain(self, *words)

    monkeypatch.setattr(TextReader, method, failing)
    monkeypatch.setattr(sys, "stdin", Terminal("what?\nand what then?\n"))
    ended, out, err = run("chat", clips["constant"], "-m", tiny, "--max-new-tokens", "2", "--frames", "2")
    assert (ended, out.count("\n")) == (code, 1 + (method == "extend"))
    assert says in err


def test_a_long_talk_keeps_no_frames_of_earlier_answers(
    clips: dict[str, Path], tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every question that names a time is shown frames of its own, some megabytes of them."""
    alive: list[int] = []
    answers: list[weakref.ref[vidllm.Answer]] = []

    def heard(answer: vidllm.Answer, before: object) -> None:
        gc.collect()
        answers.append(weakref.ref(answer))
        alive.append(sum(one() is not None for one in answers))

    monkeypatch.setattr("vidllm_cli.chat.remark", heard)
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"what happens at 0:0{n}?\n" for n in range(1, 6))))
    code, _, _ = run("chat", clips["constant"], "-m", tiny, "--max-new-tokens", "2", "--frames", "2")
    assert code == 0
    assert len(alive) == 5
    assert max(alive) <= 2, "the answer, and the one before it"


def test_ask_draws_the_sheet_of_what_was_seen(run: Run, clips: dict[str, Path], tiny: Path) -> None:
    words = ("ask", clips["constant"], "what?", "-m", tiny, "--max-new-tokens", "2", "--frames", "4")
    code, _, err = run(*words, "--sheet", "seen.png")
    assert code == 0
    assert "4 frames on seen.png" in err
    assert size_of("seen.png")[0] > 0


@pytest.mark.parametrize("command", ["ask", "frames"])
def test_no_sheet_replaces_the_video_it_shows(command: str, run: Run, tiny: Path) -> None:
    """Pictures that move are videos, too, and end as sheets do."""
    red, blue = (Image.new("RGB", (40, 30), colour) for colour in ("red", "blue"))
    red.save("moves.webp", save_all=True, append_images=[blue], duration=500)
    before = Path("moves.webp").read_bytes()
    words = {"ask": ["what?", "-m", tiny, "--sheet"], "frames": ["-o"]}[command]
    code, out, err = run(command, "moves.webp", *words, "./moves.webp")
    assert (code, out) == (1, "")
    assert "is the video itself" in one_line(err)
    assert Path("moves.webp").read_bytes() == before


def test_ask_samples_alike_under_one_seed(run: Run, clips: dict[str, Path], tiny: Path) -> None:
    words = ("ask", clips["constant"], "what?", "-m", tiny, "--max-new-tokens", "12", "--temperature", "2")
    first, again, other = (run(*words, "--seed", seed)[1] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_default_model_is_the_one_the_environment_names(
    run: Run, clips: dict[str, Path], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDLLM_MODEL", str(tiny))
    code, out, err = run("ask", clips["constant"], "what?", "--max-new-tokens", "2", "--json")
    assert code == 0
    assert json.loads(out)["model"] == str(tiny)
    assert "built-in" not in err


def test_a_cache_that_can_not_be_written_costs_a_line_and_not_the_answer(
    run: Run, clips: dict[str, Path], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("VIDLLM_CACHE", str(tmp_path / "file"))
    code, out, err = run("ask", clips["constant"], "what?", "-m", tiny, "--max-new-tokens", "2")
    assert code == 0
    assert out.strip()
    assert "VIDLLM_CACHE" in err
    code, out, err = run("plan", "http://127.0.0.1:9/clip.mp4", *GRID)
    assert (code, out) == (1, "")
    assert "VIDLLM_CACHE" in one_line(err)


def test_a_cache_in_the_home_of_nobody_costs_a_line_and_not_the_answer(
    run: Run, clips: dict[str, Path], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDLLM_CACHE", "~no-such-user/cache")
    code, out, err = run("ask", clips["constant"], "what?", "-m", tiny, "--max-new-tokens", "2")
    assert (code, bool(out.strip())) == (0, True)
    assert "there is no such home; set VIDLLM_CACHE" in err


def test_chat_answers_line_by_line_and_goes_on_after_a_failure(clips: dict[str, Path], tiny: Path) -> None:
    process = start("chat", clips["constant"], "-m", tiny, "--max-new-tokens", "4", "--json", stdin=subprocess.PIPE)
    said = "what?\n\n" + "why? " * 4000 + "\n/help\nand then?\nquit\nunheard\n"
    out, err = process.communicate(said, timeout=120)
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["finish_reason"] for answer in answers] == ["length", "length"]
    assert answers[1]["timing"]["decode"] == 0.0, "the video is read once"
    assert sum(line.startswith("vidllm: ") for line in err.splitlines()) == 1
    assert "/help is no command; /bye ends the talk" in err
    assert process.returncode == 1, "one question was not answered"


def test_debug_shows_why_a_question_of_a_chat_was_not_answered(clips: dict[str, Path], tiny: Path) -> None:
    words = ("chat", clips["constant"], "-m", tiny, "--max-new-tokens", "4")
    process = start(*words, stdin=subprocess.PIPE, env={**os.environ, "VIDLLM_DEBUG": "1"})
    _, err = process.communicate("why? " * 4000, timeout=60)
    assert process.returncode == 1
    assert err.index("Traceback") < err.index("\nvidllm: ")


def test_chat_goes_on_after_a_line_that_is_no_text(clips: dict[str, Path], tiny: Path) -> None:
    words = ("chat", clips["constant"], "-m", tiny, "--max-new-tokens", "4", "--json")
    process = start(*words, stdin=subprocess.PIPE, text=None, env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"})
    out, err = process.communicate(b"caf\xe9?\nwhat?\n", timeout=120)  # type: ignore[arg-type]
    assert [json.loads(line)["finish_reason"] for line in out.splitlines()] == ["length"]
    assert b"no valid text" in err  # type: ignore[operator]
    assert b"unexpected" not in err  # type: ignore[operator]
    assert process.returncode == 1


# ----------------------------------------------------------------------------------------------------- doctor, world


def test_doctor_says_what_loads(run: Run) -> None:
    code, out, err = run("doctor", "--json")
    report = json.loads(out)
    assert err == ""
    assert code == (0 if report["healthy"] else 1)
    readers = {reader["name"]: reader for reader in report["readers"]}
    assert readers["pyav"]["status"] == "ok"
    assert all(reader["cure"] for reader in readers.values() if reader["status"] != "ok")
    assert report["devices"][0]["name"] == "cpu"
    assert {cache["kind"] for cache in report["caches"]} == {"features", "videos", "clips", "references", "families"}
    assert report["versions"]["torch"]


@pytest.mark.parametrize(
    ("named", "status", "says"),
    [
        ("built-in-images", "ok", "builtin"),
        ("built-in-dpo", "ok", "builtin"),
        ("somebody/their-model", "ok", "Hugging Face id"),
        ("nothing-of-that-name", "broken", "no such folder"),
        (".", "broken", "no config.json"),
    ],
)
def test_doctor_finds_the_default_model_as_ask_does(
    named: str, status: str, says: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDLLM_MODEL", named)
    code, out, _ = run("doctor", "--json")
    found = json.loads(out)["models"][0]
    assert (found["status"], says in found["detail"]) == (status, True)
    assert code == (0 if status == "ok" else 1)


def test_doctor_names_libraries_of_other_versions(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    wishes = ["numpy>=999", "no-such-library>=1", "pillow>=1", "torchcodec>=999; extra == 'torchcodec'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: wishes)
    found = {finding["name"]: finding for finding in json.loads(run("doctor", "--json")[1])["unmet"]}
    assert {name: finding["status"] for name, finding in found.items()} == {
        "numpy": "broken", "no-such-library": "missing"
    }  # fmt: skip
    assert found["numpy"]["cure"] == "pip install 'numpy>=999'"
    assert "wrong versions\n! numpy" in run("doctor")[1]


def test_doctor_tells_of_a_torch_that_does_not_load(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # Python's own way to say that an import fails
    code, out, err = run("doctor", "--json")
    assert (code, err) == (1, "")
    [found] = json.loads(out)["devices"]
    assert (found["name"], found["status"]) == ("torch", "broken")
    assert "! torch" in run("doctor")[1]


def test_doctor_is_not_content_without_a_library_that_answers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.metadata.version

    def version(name: str) -> str:
        if name == "transformers":
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr("importlib.metadata.version", version)
    code, out, _ = run("doctor", "--json")
    assert [finding["name"] for finding in json.loads(out)["unmet"]] == ["transformers"]
    assert code == 1


@pytest.mark.parametrize(("module", "mark"), [("torch", "+"), ("no_such_module", "-")])
def test_doctor_looks_for_what_linear_attention_is_fast_by(
    module: str, mark: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU; here one of which there are none."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("vidllm.model.running.KERNELS", {module: "torch"})
    code, out, _ = run("doctor")
    assert f"\n{mark} linear layers torch " in out
    assert ("pip install torch makes Qwen3.5 faster" in out) == (mark == "-")
    assert code == 0


def test_doctor_counts_the_caches(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "videos"
    folder.mkdir(parents=True)
    (folder / "clip.mp4").write_bytes(bytes(1_500_000))
    _, out, _ = run("doctor")
    assert "1.5 MB in 1 files" in out


@pytest.mark.parametrize(("cache", "words"), [("taken", "can not be written"), ("~nobody-here", "no such home")])
def test_doctor_tells_of_a_cache_that_can_not_be_used(
    run: Run, monkeypatch: pytest.MonkeyPatch, cache: str, words: str
) -> None:
    """Questions are answered all the same."""
    Path("taken").write_text("a file")
    monkeypatch.setenv("VIDLLM_CACHE", cache)
    code, out, err = run("doctor")
    assert (code, err) == (0, "")
    assert out.count(f"{words}; set VIDLLM_CACHE to a folder that can") == 5


def test_doctor_goes_on_where_the_system_will_not_look(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here for a name that is too long; a folder one may not enter gives an error of the same kind."""
    monkeypatch.setenv("VIDLLM_CACHE", "x" * 300)
    code, out, _ = run("doctor")
    assert (code, out.count("0.0 MB in 0 files")) == (0, 5)


def test_world_make_draws_clips_with_their_truth(run: Run) -> None:
    code, out, err = run("world", "make", "-n", "1", "--seed", "5", "-o", "drawn")
    assert (code, out, err) == (0, "drawn/000005.mp4\n", "")
    truth = json.loads(Path("drawn/000005.json").read_text())
    assert truth["questions"][0]["text"] == "describe the video."
    code, out, _ = run("plan", "drawn/000005.mp4", *GRID, "--json")
    assert json.loads(out)["video"]["duration"] == pytest.approx(truth["duration"], abs=0.2)
    assert sorted(path.name for path in Path("drawn").iterdir()) == ["000005.json", "000005.mp4"]


def test_world_make_says_where_it_can_not_draw(run: Run) -> None:
    Path("taken").write_text("a file")
    code, out, err = run("world", "make", "-n", "1", "-o", "taken")
    assert (code, out) == (1, "")
    assert one_line(err) == "taken: File exists; choose another name or place"
