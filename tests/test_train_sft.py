"""`vidllm sft` from rows to a model that is asked: through the command line, on tiny checkpoints and real clips."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from tests import tiny_models
from tests.conftest import needs_bitsandbytes
from tests.train_task import Listener, figures, same
from vidllm.config import load_config
from vidllm.errors import ConfigError, UnsupportedModel
from vidllm.model import resolve
from vidllm.train import sft
from vidllm.train.metrics import Metrics
from vidllm.train.sft import SftConfig, SftTask, read_lesson, run_sft
from vidllm.train.stage import Base
from vidllm_cli.main import main

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA that knows nothing."""
    return tiny_models.llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def rows(clips: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven rows: six with a video, three with a picture, two of text alone; one has two turns."""
    folder = tmp_path_factory.mktemp("rows")
    Image.new("RGB", (64, 48), (200, 30, 30)).save(folder / "red.png")
    lines: list[dict[str, Any]] = []
    for number in range(6):
        video = str(clips["constant" if number % 2 else "intra"])
        turns = [
            ("human", f"<video>\nwhat is frame {number}?"),
            ("gpt", "The red circle " + "moves right. " * (1 + number)),
        ]
        turns += [("human", "sure?"), ("gpt", "Yes.")] if number == 3 else []
        lines.append({"id": f"v{number}", "video": video, "conversations": said(turns)})
    for number in range(3):
        turns = [("human", "<image>\nwhat colour is it?"), ("gpt", "Red." if number else "It is red, all of it.")]
        lines.append({"id": f"i{number}", "image": "red.png", "conversations": said(turns)})
    for number in range(2):
        lines.append({"id": f"t{number}", "conversations": said([("human", "who are you?"), ("gpt", "A model.")])})
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def said(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"from": who, "value": what} for who, what in turns]


BASE: dict[str, Any] = {
    "frames": 3, "stride": 4, "policy": "uniform", "batch": 4, "tokens": 300, "steps": 5, "checkpoint_every": 2,
    "workers": 1, "parts": {"projector": 1e-3, "language_model": 1e-3}, "optim": {"warmup": 0.2},
}  # fmt: skip
QLORA: dict[str, Any] = {"lora": {"r": 4}, "quantize": "int4"}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, model: Path, rows: Path) -> Write:
    """A config file in this test's folder; what is said changes the tests' common one."""

    def make(name: str = "sft.yaml", **more: Any) -> Path:
        path = tmp_path / name
        common = {"model": str(model), "data": str(rows), "out": str(tmp_path / "out")}
        path.write_text(yaml.safe_dump({**BASE, **common, "cache_folder": str(tmp_path / "cache"), **more}))
        return path

    return make


def vidllm(*words: str | Path) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return code, out.getvalue(), err.getvalue()


def taught(folder: Path) -> dict[str, torch.Tensor]:
    [path] = folder.glob("*model.safetensors")
    return load_file(path)


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C behind this step of `sft`."""
    after = sft.SftTask.after

    def stop(self: sft.SftTask, record: Mapping[str, float]) -> str | None:
        if record["step"] == step:
            os.kill(os.getpid(), signal.SIGINT)
        return after(self, record)

    monkeypatch.setattr(sft.SftTask, "after", stop)


def dialogues(folder: Path, systems: Sequence[str], *pictures: Sequence[str]) -> Path:
    """A row for every system turn: a turn for every list of pictures, each answered; the same pictures in all."""
    shown = [name for names in pictures for name in names]
    for place, name in enumerate(shown):
        Image.new("RGB", (64, 48), (200, 30, place)).save(folder / name)
    rows = []
    for number, system in enumerate(systems):
        turns = [{"role": "system", "content": system}] if system else []
        for turn, names in enumerate(pictures):
            turns.append({"role": "user", "content": "<image>" * len(names) + f"what is it, {number} and {turn}?"})
            turns.append({"role": "assistant", "content": "Red."})
        rows.append({"images": shown, "messages": turns})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


@pytest.mark.parametrize(
    ("systems", "pictures", "shared"),
    [([""] * 4, (["a.png", "b.png"],), True), ([""] * 4, (["a.png"], ["b.png", "c.png"]), False),
     (["Be brief.", "Be kind.", "Be blunt.", "Be good."], (["a.png"],), False)],
)  # fmt: skip
def test_no_micro_batch_is_larger_than_it_may_be(
    tmp_path: Path, write: Write, systems: list[str], pictures: tuple[list[str], ...], shared: bool
) -> None:
    """What stands before the first word to learn is shared, and only what nothing else stands before."""
    data = str(dialogues(tmp_path, systems, *pictures))
    row = max(read_lesson(load_config(SftConfig, write(data=data)), print).checked.lengths)
    config = load_config(SftConfig, write(data=data, batch=16, tokens=2 * row))
    lesson = read_lesson(config, print)
    task = SftTask(config, lesson, None)  # type: ignore[arg-type]  # nothing is computed
    sizes = [task.prepare(micro).batch.length for step in task.steps(0) for micro in step]
    assert max(sizes) <= config.tokens
    assert (len(sizes) == 1) == shared


def test_rows_in_a_model_that_is_asked_out(
    write: Write, tmp_path: Path, model: Path, clips: Mapping[str, Path]
) -> None:
    code, out, err = vidllm("sft", write())
    assert (code, out) == (0, ""), err
    assert re.search(r"^video +6 ", err, re.MULTILINE)
    assert re.search(r"^image +3 ", err, re.MULTILINE)
    assert f"{tmp_path}/out: taught in 5 steps" in err
    told = figures(tmp_path / "out")
    assert told[-1]["loss"] < told[0]["loss"]
    assert {"loss/video", "rate/projector", "rate/language_model"} <= told[0].keys()
    before, after = load_file(model / "model.safetensors"), taught(tmp_path / "out")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any("vision_tower" in name for name in moved)
    assert any("multi_modal_projector" in name for name in moved)
    assert any("language_model" in name for name in moved)
    code, answer, err = vidllm(
        "ask", clips["constant"], "what is frame 1?", "-m", tmp_path / "out", "--dtype", "float32"
    )
    assert code == 0, err
    assert answer


def test_the_first_loss_is_what_asking_would_have_lost(write: Write, tmp_path: Path, model: Path) -> None:
    """Per token, against transformers' own class and its own loss, on a row of text alone."""
    from transformers import LlavaForConditionalGeneration

    config = load_config(SftConfig, write(steps=1, batch=1, data=str(text_row(tmp_path))))
    run_sft(config, Listener())
    [told] = figures(tmp_path / "out")
    lesson = read_lesson(config, print, remember=False)
    [example] = lesson.load(config, [0])
    ids = torch.tensor([example.prompt.input_ids])
    labels = torch.where(torch.tensor([example.trained]), ids, -100)
    with torch.no_grad():
        loss = LlavaForConditionalGeneration.from_pretrained(model)(input_ids=ids, labels=labels).loss
    assert told["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert told["weight"] == sum(example.trained)


def text_row(folder: Path) -> Path:
    path = folder / "text.jsonl"
    path.write_text(json.dumps({"conversations": said([("human", "who are you?"), ("gpt", "A model of few words.")])}))
    return path


@pytest.mark.parametrize("more", [{}, pytest.param(QLORA, marks=needs_bitsandbytes)], ids=["whole", "QLoRA"])
def test_an_interrupted_run_goes_on_to_the_bit(
    more: dict[str, Any], write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second half recalls looks that the first half had to take."""
    whole = write("whole.yaml", out=str(tmp_path / "whole"), cache_folder=str(tmp_path / "other"), **more)
    assert vidllm("sft", whole)[0] == 0
    stop_after(3, monkeypatch)
    code, _, err = vidllm("sft", write(**more))
    assert code == 130
    assert "stopped after step 3 of 5; run the same command again to go on" in err
    assert not (tmp_path / "out" / "config.json").exists()
    monkeypatch.undo()
    code, _, err = vidllm("sft", write(**more))
    assert code == 0
    assert "going on from" in err
    assert figures(tmp_path / "out") == figures(tmp_path / "whole")
    assert same(taught(tmp_path / "out"), taught(tmp_path / "whole"))


def test_other_settings_are_refused_in_one_line(write: Write, tmp_path: Path) -> None:
    assert vidllm("sft", write())[0] == 0
    code, _, err = vidllm("sft", write(), "frames=2", "parts.projector=2e-3", "keep=7")
    assert code == 1
    assert re.fullmatch(
        rf"vidllm: {tmp_path}/out/checkpoints/step-00000005 was made with frames 3, now 2; lengths \d+ tokens \w+, now "
        r"\d+ tokens \w+; rate of projector 0.001, now 0.002: put that back to go on, or give this run another `out`",
        err.splitlines()[-1],
    )


def test_out_says_how_it_is_taught_from_the_first_step_on(write: Write, tmp_path: Path) -> None:
    """Of a run that was stopped, too; a run that is refused leaves the other's config as it was."""
    kept = tmp_path / "out" / "sft.yaml"
    config = load_config(SftConfig, write())
    with pytest.raises(KeyboardInterrupt):
        run_sft(config, Stopped(after=3))
    assert load_config(SftConfig, kept) == config
    told = kept.read_bytes()
    code, _, err = vidllm("sft", write(), "frames=2")
    assert code == 1
    assert "was made with frames 3, now 2" in err
    assert kept.read_bytes() == told
    code, _, err = vidllm("sft", kept, "keep=7")
    assert code == 0, err
    assert "2 of 5 steps are done" in err
    assert load_config(SftConfig, kept).keep == 7


class Stopped(Listener):
    """Ends the process's work in the middle of a run."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._after = after

    def step(self, record: Mapping[str, float]) -> None:
        if record["step"] == self._after:
            raise KeyboardInterrupt


def test_another_model_or_other_rows_are_refused(write: Write, tmp_path: Path, rows: Path) -> None:
    assert vidllm("sft", write())[0] == 0
    fewer = rows.with_name("fewer.jsonl")
    fewer.write_text("".join(rows.read_text().splitlines(keepends=True)[:-1]))
    other = tiny_models.vipllava(tmp_path / "vip")
    for word, told in (
        (f"data={fewer}", r"rows 11 rows \w+, now 10 rows \w+"),
        (f"model={other}", r"model \w+, now \w+"),
    ):
        code, _, err = vidllm("sft", write(), word)
        assert code == 1
        assert re.search(told, err.splitlines()[-1]), err


def test_another_clip_or_its_subtitles_are_refused(
    write: Write, tmp_path: Path, clips: Mapping[str, Path]
) -> None:
    """Under the same name; the same bytes again, whenever they were written, are the same."""
    clip, path = tmp_path / "clip.mp4", tmp_path / "shown.jsonl"
    turns = said([("human", "<video>\nwhat happens?"), ("gpt", "The red circle moves right.")])
    path.write_text(json.dumps({"video": "clip.mp4", "conversations": turns}) + "\n")
    shutil.copyfile(clips["constant"], clip)
    words = ("sft", write(data=str(path), steps=1))
    assert vidllm(*words)[0] == 0

    def refusal() -> str:
        code, _, err = vidllm(*words)
        return err.splitlines()[-1] if code else ""

    shutil.copyfile(clips["intra"], clip)
    assert re.search(r"was made with .*media 1 files \w+, now 1 files \w+", refusal())
    shutil.copyfile(clips["constant"], clip)
    assert not refusal()
    clip.with_suffix(".srt").write_text("1\n00:00:00,000 --> 00:00:09,000\nIt is said that it moves.\n")
    assert re.search(r"lengths \d+ tokens \w+, now \d+ tokens \w+; media 1 files \w+, now 2 files \w+", refusal())


def test_files_that_were_moved_are_the_same_files(write: Write, tmp_path: Path, clips: Mapping[str, Path]) -> None:
    """A data set brought to another disk between two runs; clips that changed names with each other are others."""
    (tmp_path / "old").mkdir()
    turns = said([("human", "<video>\nwhat happens?"), ("gpt", "The red circle moves right.")])
    for name in ("constant", "intra"):
        shutil.copyfile(clips[name], tmp_path / "old" / f"{name}.mp4")
    rows = [{"video": f"{name}.mp4", "conversations": turns} for name in ("constant", "intra")]
    (tmp_path / "shown.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(folder: Path) -> tuple[int, str]:
        data = [{"path": str(tmp_path / "shown.jsonl"), "media": str(folder)}]
        code, _, err = vidllm("sft", write(data=data, steps=1))
        return code, err

    assert run(tmp_path / "old")[0] == 0
    moved = (tmp_path / "old").rename(tmp_path / "new")
    code, err = run(moved)
    assert code == 0, err
    assert "1 of 1 steps are done" in err
    (moved / "intra.mp4").rename(moved / "kept.mp4")
    (moved / "constant.mp4").rename(moved / "intra.mp4")
    (moved / "kept.mp4").rename(moved / "constant.mp4")
    assert re.search(r"was made with .*media 2 files \w+, now 2 files \w+", run(moved)[1])


def test_bad_rows_end_it_before_the_first_step(write: Write, tmp_path: Path, rows: Path) -> None:
    bad = rows.with_name("bad.jsonl")
    lines = rows.read_text().splitlines()
    lines[1] = json.dumps({"id": "lost", "video": "nowhere.mp4", "conversations": said([("human", "?"), ("gpt", "!")])})
    lines[4] = lines[4][:-3]
    bad.write_text("\n".join(lines) + "\n")
    code, _, err = vidllm("sft", write(), f"data={bad}")
    assert code == 1
    assert f"{bad}:2 (lost): no file {bad.parent}/nowhere.mp4" in err
    assert f"{bad}:5: no valid JSON" in err
    assert not (tmp_path / "out" / "metrics.jsonl").exists()
    assert not (tmp_path / "out" / "sft.yaml").exists()
    code, _, err = vidllm("sft", write(), f"data={bad}", "bad_rows=skip")
    assert code == 0, err
    assert re.search(r"^bad +2$", err, re.MULTILINE)


def test_a_model_whose_positions_turn_refuses_long_rows_before_its_weights_are_read(
    write: Write, tmp_path: Path, model: Path
) -> None:
    """The folder's weights can not be read: the rows are refused all the same. What layers see matters nothing."""
    bare = Path(shutil.copytree(model, tmp_path / "mistral"))
    (bare / "model.safetensors").write_bytes(b"no weights")
    turning = {"rope_type": "longrope", "original_max_position_embeddings": 60, "rope_theta": 1e4,
               "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}  # fmt: skip
    said = {"model_type": "mistral", "sliding_window": 50}
    tiny_models.edit(bare / "config.json", text_config={**said, "rope_parameters": turning})
    code, _, err = vidllm("sft", write(), f"model={bare}")
    assert code == 1
    told = err.splitlines()[-1]
    assert re.search(r"tokens, and 60 is the most that this model can be taught; .* and \d+ more: mend the rows", told)
    tiny_models.edit(bare / "config.json", text_config={"rope_parameters": None})
    assert vidllm("sft", write(), f"model={bare}", "--dry-run")[0] == 0


def test_dry_run_writes_nothing(write: Write, tmp_path: Path) -> None:
    code, out, _ = vidllm("sft", write(), "--dry-run")
    assert code == 0
    assert re.search(r"^an epoch: 3 steps of 4 rows, \d+ micro-batches of some \d+ tokens$", out, re.MULTILINE)
    assert "an epoch: 1 step of 11 rows," in vidllm("sft", write(), "--dry-run", "batch=99999999999")[1]
    assert not (tmp_path / "out").exists()


def test_a_long_look_at_the_rows_is_told_of(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidllm.train.stage.TOLD_SECONDS", -1.0)
    said: list[str] = []
    read_lesson(load_config(SftConfig, write()), said.append)
    assert "checking row 11 of 11" in said


def test_an_epoch_costs_what_its_own_rows_do(write: Write) -> None:
    """Not what is read of rows that the strategy leaves out."""
    out = vidllm("sft", write(), "--dry-run", "strategy=video_only", "batch=1")[1]
    video = re.search(r"^video +6 .* ([\d,]+)$", out, re.MULTILINE)
    full = re.search(r"^an epoch: 6 steps of 1 row, 6 micro-batches of some ([\d,]+) tokens$", out, re.MULTILINE)
    assert video is not None
    assert full is not None
    assert float(full[1]) == pytest.approx(float(video[1].replace(",", "")) / 6, abs=0.5)


def test_a_second_run_leaves_the_config_of_the_first(write: Write, tmp_path: Path) -> None:
    first = Metrics(tmp_path / "out", after=0)
    code, _, err = vidllm("sft", write(), "steps=1")
    first.close()
    assert code == 1
    assert "another run is writing it" in err
    assert not (tmp_path / "out" / "sft.yaml").exists()


def test_show_batch_sets_what_is_learnt_apart(write: Write, tmp_path: Path) -> None:
    code, out, err = vidllm("sft", write(), "--show-batch")
    assert code == 0, err
    assert "learnt" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("btach=8", "unknown key 'btach'; did you mean 'batch'?"),
        ("parts.projecter=1", "unknown key 'projecter'; did you mean 'projector'?"),
        ("strategy=random", "strategy is 'random'; choose one of mixed, separate, video_only"),
        ("frames=0", "frames must be at least 1, got 0"),
        ("optim.warmup=2", "warmup 2 must be a share of all steps"),
        ("cache_gib=0", "cache_gib is 0; give it room, or say feature_cache=false"),
        ("keep=0", "keep is 0; at least 1 is needed"), ("workers=257", "workers is 257; at most 256"),
        ("epochs=99999999", "epochs is 99999999; at most 1,000,000"),
        ("merge=true", "merge is true and there is no adapter to merge"),
        ("blend=0.5", "blend is 0.5; it is a share of an adapter, above 0 and at most 1: say lora={} for one"),
        ("lora={}\nblend=1.5", "blend is 1.5; it is a share of an adapter, above 0 and at most 1"),
        ("quantize=int8", "quantize is 'int8'; choose one of int4"),
        ("lora={}\nquantize=int4\nmerge=true", "weights of so few bits make no whole model"),
        ("lora={}\nsave_dtype=bfloat16", "save_dtype is bfloat16, and an adapter is kept as it was learnt"),
        ("data=[rows.jsonl]", "data[0] is 'rows.jsonl'; a mapping with keys such as path, media, sampling is needed"),
        ("data=nowhere.jsonl", "nowhere.jsonl: no such file of rows"),
        ("parts={}", "nothing learns"),
        ("model=/nowhere/at/all", "/nowhere/at/all: no such folder"),
        ("parts.newline=1e-3", "the model has no newline that could learn"),
        ("lora.targets=[q_proj,fc1]\ndata=nowhere.jsonl", "LoRA target 'fc1' is no matrix of the language model"),
    ],
)
def test_a_wrong_config_is_one_line(word: str, told: str, write: Write) -> None:
    code, _, err = vidllm("sft", write(), *word.split("\n"))
    assert code == 1
    assert told in err.splitlines()[-1]


def test_weights_are_fetched_only_of_a_model_that_can_be_taught(
    write: Write, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    running = Path(shutil.copytree(model, tmp_path / "running"))
    layers = {"layer_types": ["linear_attention", "full_attention"]}
    tiny_models.edit(running / "config.json", text_config=layers)

    def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.extend(allow_patterns)
        return str({"some/running": running, "some/llava": model}[name])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    resolve._download.cache_clear()
    with pytest.raises(UnsupportedModel, match="layers of linear_attention"):
        Base.of(load_config(SftConfig, write(model="some/running")))
    assert asked
    assert "*.safetensors" not in asked
    Base.of(load_config(SftConfig, write(model="some/llava")))
    assert asked.count("*.safetensors") == 1


def test_the_model_it_begins_from_is_not_written_over(write: Write, model: Path) -> None:
    code, _, err = vidllm("sft", write(), f"out={model}")
    assert code == 1
    assert "a stage can not write over the model it begins from" in err.splitlines()[-1]
    assert not (model / "metrics.jsonl").exists()


def test_a_folder_that_can_not_be_made_is_told_before_a_row_is_opened(write: Write, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for out, told in (("file", "file: is a file; name a folder as `out`"), ("file/out", "file/out: ")):
        code, _, err = vidllm("sft", write(), f"out={tmp_path / out}")
        assert code == 1
        assert told in err.splitlines()[-1]
        assert "; " in err.splitlines()[-1]
    assert (tmp_path / "file").read_text() == "kept"


def test_the_cache_keeps_to_its_room(write: Write, tmp_path: Path) -> None:
    """Where only one look has room older ones go, and the run ends as it would have."""

    def kept(name: str, gib: float) -> list[int]:
        """Bytes of every look that is kept."""
        cache, out = tmp_path / f"cache-{name}", tmp_path / name
        assert vidllm("sft", write(f"{name}.yaml", out=str(out), cache_folder=str(cache), cache_gib=gib))[0] == 0
        return [path.stat().st_size for path in cache.rglob("*.safetensors")]

    roomy = kept("roomy", 1.0)
    assert len(kept("tight", (max(roomy) + 1) / 2**30)) == 1 < len(roomy)
    assert same(taught(tmp_path / "tight"), taught(tmp_path / "roomy"))


def test_weights_are_kept_as_asked_for(write: Write, tmp_path: Path) -> None:
    assert vidllm("sft", write(), "steps=1", "save_dtype=bfloat16")[0] == 0
    assert {tensor.dtype for tensor in taught(tmp_path / "out").values()} == {torch.bfloat16}


def test_a_missing_config_is_one_line(tmp_path: Path) -> None:
    code, _, err = vidllm("sft", tmp_path / "none.yaml")
    assert code == 1
    assert (
        err.strip()
        == f"vidllm: {tmp_path}/none.yaml: can not be read (No such file or directory); name an existing YAML file"
    )


def test_a_weight_that_is_no_number_is_traced_to_the_row_that_met_it(
    write: Write, tmp_path: Path, model: Path, rows: Path
) -> None:
    """One word's embedding is damaged: only the row that says it can not be learnt from."""
    config = load_config(SftConfig, write())
    lesson = read_lesson(config, print, remember=False)
    said_by = [set(example.prompt.input_ids) for example in lesson.load(config, range(11))]
    word = min(said_by[6] - set().union(*said_by[:6], *said_by[7:]))
    damaged = tmp_path / "damaged"
    shutil.copytree(model, damaged)
    weights = load_file(damaged / "model.safetensors")
    [table] = [name for name in weights if "embed_tokens" in name]
    weights[table][word] = math.nan
    save_file(weights, damaged / "model.safetensors", {"format": "pt"})
    code, _, err = vidllm("sft", write(), f"model={damaged}")
    assert code == 1
    assert f"the loss is nan, because of {rows}:7 (i0); stopped before the optimizer took it" in err.splitlines()[-1]


def test_lora_leaves_an_adapter_that_is_asked(write: Write, tmp_path: Path, clips: Mapping[str, Path]) -> None:
    code, _, err = vidllm("sft", write(lora={"r": 4, "alpha": 8}, parts={"language_model": 1e-3}))
    assert code == 0, err
    assert (tmp_path / "out" / "adapter_config.json").exists()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    code, answer, err = vidllm("ask", clips["constant"], "what?", "-m", tmp_path / "out", "--dtype", "float32")
    assert (code, bool(answer)) == (0, True), err
    learnt = load_file(tmp_path / "out" / "adapter_model.safetensors")
    code, _, err = vidllm("sft", tmp_path / "sft.yaml", "blend=0.5")
    assert code == 0, err  # nothing is taught again: the same adapter is saved at half its strength
    for name, weight in load_file(tmp_path / "out" / "adapter_model.safetensors").items():
        assert torch.equal(weight, learnt[name] / 2 if "lora_B" in name else learnt[name]), name


@pytest.mark.parametrize("name", ["align", "instruct", "quick_sft", "video", "video_lora"])
def test_every_stage_that_ships_is_a_config(name: str) -> None:
    config = load_config(SftConfig, ROOT / "configs" / f"{name}.yaml")
    assert config.parts.projector > 0


def test_data_must_be_named(write: Write) -> None:
    with pytest.raises(ConfigError, match="data is empty"):
        load_config(SftConfig, write(data=[]))


def two_processes(*words: str) -> subprocess.CompletedProcess[str]:
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    return subprocess.run(
        [*launch, "-m", "vidllm_cli.main", *words], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_of_two_processes_one_tells_what_would_be_learnt(write: Write) -> None:
    config = str(write())
    code, told, _ = vidllm("sft", config, "--dry-run")
    assert code == 0
    both = two_processes("sft", config, "--dry-run")
    assert (both.returncode, both.stdout) == (0, told), both.stderr


@pytest.mark.slow
def test_two_processes_lose_what_one_loses(write: Write, tmp_path: Path) -> None:
    """Micro-batches of several kinds dealt out: one process may see texts while the other sees videos. Nothing is said
    of a device: where there is no GPU they find together all the same.
    """
    parts = {"projector": 1e-3, "language_model": 1e-3, "vision_tower": 1e-4}
    same: dict[str, Any] = {"tokens": 80, "parts": parts} | ({"device": "cpu"} if torch.cuda.is_available() else {})
    code, _, said = vidllm("sft", write("one.yaml", out=str(tmp_path / "one"), **same))
    assert code == 0, said
    done = two_processes("sft", str(write("two.yaml", out=str(tmp_path / "two"), **same)))
    assert done.returncode == 0, done.stderr
    for told in (said, done.stderr):
        assert told.count("taught in 5 steps") == 1
    one, two = figures(tmp_path / "one"), figures(tmp_path / "two")
    assert len(one) == 5
    for alone, shared in zip(one, two, strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], abs=1e-6)
        assert shared["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-4)
    assert (tmp_path / "two" / "model.safetensors").exists()


def test_a_video_is_read_once_for_all_rows_about_it(write: Write, tmp_path: Path) -> None:
    """The same eleven rows in one step: the same loss, and gradients that leave the same weights, from fewer tokens."""
    told = {}
    for sharing in (True, False):
        out = tmp_path / f"sharing-{sharing}"
        config = write(f"{sharing}.yaml", out=str(out), sharing=sharing, batch=11, tokens=4000, steps=1)
        code, _, err = vidllm("sft", config)
        assert code == 0, err
        told[sharing] = figures(out)[0], taught(out)
    (shared, weights), (alone, others) = told[True], told[False]
    assert shared["loss"] == pytest.approx(alone["loss"], abs=1e-5)
    assert shared["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-4)
    assert shared["weight"] == alone["weight"], "as many words are learnt"
    assert shared["tokens"] < 0.8 * alone["tokens"]
    assert all(torch.allclose(weights[name], others[name], atol=2e-4) for name in others)
