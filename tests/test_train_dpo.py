"""DPO: every shortcut gives what the plain computation gives; the reference is tried first; runs go on to the bit."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

import vidllm
from tests import tiny_models
from vidllm.clip import ClipPlan, PlanOptions, read_planned
from vidllm.config import load_config
from vidllm.errors import CheckpointError, ConfigError, RowError
from vidllm.train import loading
from vidllm.train.contest import describe, read_contest
from vidllm.train.dpo import DpoConfig, PreferenceTask, make_task, run_dpo, settle_reference
from vidllm.train.learner import Learner
from vidllm.train.losses import FALLS, WINDOW, Falling, PreferenceLoss
from vidllm.train.metrics import Record
from vidllm.train.mixture import Source
from vidllm.train.pairs import PairMicro
from vidllm.train.parts import Lora, Parts
from vidllm.train.reference import References, RefLogps, reference_key
from vidllm.train.rows import read_pairs
from vidllm.train.task import Micro
from vidllm.video.decode import FrameSet
from vidllm_cli.main import main

ROWS = (
    ("a", "constant.mp4", "what happens at 0:01?", "The red circle moves right.", "Nothing happens."),
    ("b", "constant.mp4", "how many objects are there?", "Two.", "There are three objects."),
    ("c", "variable.mkv", "what happens at 0:01?", "Nothing happens.", "The red circle moves right."),
    ("d", "variable.mkv", "describe the video.", "The red circle moves right. Then it disappears.", "Two."),
    ("e", None, "how many objects are there?", "Two.", "The video lasts for 60.00 seconds."),
)


class Heard:
    """A watch that keeps what it is told; dies after `die_after` steps."""

    def __init__(self, die_after: int = 10**6) -> None:
        self.said: list[str] = []
        self.losses: list[float] = []
        self.records: list[Record] = []
        self._die_after = die_after

    def say(self, text: str) -> None:
        self.said.append(text)

    def begin(self, done: int, total: int) -> None:
        self.resumed = done

    def step(self, record: Record) -> None:
        self.losses.append(record["loss"])
        self.records.append(record)
        if len(self.losses) == self._die_after:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, clips: dict[str, Path]) -> Source:
    return Source(path=write_rows(tmp_path_factory.mktemp("rows"), ROWS), media=clips["constant"].parent)


def write_rows(folder: Path, rows: Sequence[Sequence[str | None]], **more: object) -> Path:
    path = folder / "pairs.jsonl"
    lines = []
    for name, video, prompt, chosen, rejected in rows:
        told = {"id": name, "prompt": prompt, "chosen": chosen, "rejected": rejected, **more}
        lines.append(json.dumps(told | ({"video": video} if video else {})))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def config(model: Path, data: Source, tmp_path: Path) -> DpoConfig:
    """Three epochs of steps of 3 and 2 pairs; rates at which a step shows."""
    return DpoConfig(
        model=str(model), data=(data,), out=tmp_path / "out", frames=3, batch=3, tokens=400, steps=4, device="cpu",
        workers=0, cache_folder=tmp_path / "cache", checkpoint_every=1, parts=Parts(language_model=1e-3),
    )  # fmt: skip


def silent(text: str) -> None:
    """Nobody is told."""


def task_of(config: DpoConfig, say: Callable[[str], None] = silent) -> PreferenceTask:
    contest = read_contest(config, silent)
    task = make_task(config, contest)
    settle_reference(config, contest, task, say)
    return task


def loss_and_gradients(task: PreferenceTask, *micros: Micro) -> tuple[float, dict[str, Tensor]]:
    """Of one step of these micro-batches, as the loop would have them."""
    task.learner.zero_grad()
    numbers, total = [number for micro in micros for number in micro], 0.0
    mean = sum(task.contest.sizes[number].chosen for number in numbers) / len(numbers)
    for micro in micros:
        part = task.loss(task.learner, task.prepare(PairMicro.of(micro, mean)))
        (part.loss / len(numbers)).backward()  # type: ignore[no-untyped-call]
        total += part.loss.item() / len(numbers)
    return total, {n: p.grad.clone() for n, p in task.learner.named_parameters() if p.grad is not None}


def nudge(task: PreferenceTask) -> None:
    """Policy and reference apart, so that a loss says something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in task.learner.parameters():
            if weight.requires_grad:
                # an adapter's second matrix begins at zero
                weight.add_(0.05 * torch.randn(weight.shape, generator=generator) * (weight.std() or 1.0))


PLAIN = {"sharing": False, "head_only": False, "feature_cache": False, "reference_cache": False}
ALL = tuple(range(len(ROWS)))


@pytest.fixture
def plain(config: DpoConfig) -> tuple[float, dict[str, Tensor]]:
    task = task_of(replace(config, **PLAIN))
    assert task.cache is None
    assert task.references is None
    assert task.live is not None
    nudge(task)
    return loss_and_gradients(task, ALL)


@pytest.mark.parametrize("on", [(), *((name,) for name in PLAIN), tuple(PLAIN)])
def test_every_shortcut_gives_the_plain_loss_and_gradients(
    config: DpoConfig, plain: tuple[float, dict[str, Tensor]], on: tuple[str, ...]
) -> None:
    task = task_of(replace(config, **{**PLAIN, **dict.fromkeys(on, True)}))
    nudge(task)
    for _ in range(2):  # with caches cold and warm
        loss, gradients = loss_and_gradients(task, ALL)
        assert loss == pytest.approx(plain[0], abs=1e-5)
        assert gradients.keys() == plain[1].keys()
        longest = max(float(g.abs().max()) for g in plain[1].values())
        assert max(float((gradients[n] - g).abs().max()) for n, g in plain[1].items()) <= 1e-5 * max(1, longest)


def test_plain_is_what_transformers_computes(config: DpoConfig, plain: tuple[float, dict[str, Tensor]]) -> None:
    """The same loss from Hugging Face's own forward over every whole row, with logits of all positions."""
    task = task_of(replace(config, **PLAIN))
    reference = _by_transformers(task)
    nudge(task)
    policy = _by_transformers(task)
    z = 0.1 * ((policy[:, 0] - reference[:, 0]) - (policy[:, 1] - reference[:, 1]))
    assert plain[0] == pytest.approx(-torch.nn.functional.logsigmoid(z).mean().item(), abs=1e-4)


@torch.no_grad()
def _by_transformers(task: PreferenceTask) -> Tensor:
    """(N, 2): summed log-probs of chosen and rejected."""
    rows = []
    for pair in task.contest.load(task.config, ALL):
        for example, end in zip((pair.chosen, pair.rejected), pair.ends, strict=True):
            features, _ = task.learner.lmm.encode(example.prompt.visuals)
            embeds, _ = task.learner.lmm.embedded(example.prompt.input_ids, example.prompt.visuals, features)
            logits = task.learner.network(inputs_embeds=embeds).logits[0].log_softmax(dim=-1)
            ids = torch.tensor(example.prompt.input_ids)
            rows.append(logits[torch.arange(pair.start - 1, end - 1), ids[pair.start : end]].sum())
    return torch.stack(rows).view(-1, 2)


@pytest.mark.parametrize("loss", ["dpo", "mpo", {"ipo": 1.0}, {"hinge": 0.5, "sft": 0.5}])
def test_a_step_is_one_however_it_is_cut(config: DpoConfig, loss: str | dict[str, float]) -> None:
    task = task_of(replace(config, loss=loss, anchor=0.25))  # type: ignore[arg-type]
    assert task.config.preference.terms["anchor"] == 0.25
    nudge(task)
    task.shift.add(0.3, 10)
    whole, gradients = loss_and_gradients(task, ALL)
    cut, others = loss_and_gradients(task, (0, 3), (1,), (2, 4))
    assert cut == pytest.approx(whole, abs=1e-5)
    longest = max(float(g.abs().max()) for g in gradients.values())
    assert max(float((others[n] - g).abs().max()) for n, g in gradients.items()) <= 1e-5 * max(1, longest)


def test_equal_losses_are_one_config(config: DpoConfig) -> None:
    one, other = (replace(config, loss=loss) for loss in ({"sft": 1.0, "sigmoid": 0.8}, {"sigmoid": 0.8, "sft": 1.0}))
    assert one.settings() == other.settings()
    assert list(one.preference.terms) == list(other.preference.terms)


def test_lora_is_its_own_reference(config: DpoConfig) -> None:
    live = task_of(replace(config, lora=Lora(r=4), reference_cache=False))
    assert live.live is None
    known = task_of(replace(config, lora=Lora(r=4)))
    nudge(known)
    live.learner.load_state_dict(known.learner.state_dict())
    expected, gradients = loss_and_gradients(known, ALL)
    assert expected != pytest.approx(math.log(2), abs=1e-4)
    loss, others = loss_and_gradients(live, ALL)
    assert loss == pytest.approx(expected, abs=1e-5)
    assert max(float((others[n] - g).abs().max()) for n, g in gradients.items()) <= 1e-5


def test_a_run_learns_and_its_folder_answers(config: DpoConfig, clips: dict[str, Path]) -> None:
    heard = Heard()
    done = run_dpo(replace(config, steps=6, optim=replace(config.optim, warmup=0.0)), heard)
    assert done.step == done.total == 6
    assert heard.losses[0] == pytest.approx(math.log(2), abs=1e-4)  # policy and reference agree
    assert heard.losses[-1] < heard.losses[0] - 0.01
    names = {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen"}
    assert names <= heard.records[0].keys()
    assert heard.records[-1]["rewards/margins"] > 0
    assert any("reference" in line and "5 computed" in line for line in heard.said)
    model = vidllm.load(str(config.out), device="cpu", cache=None)
    assert model.ask(clips["constant"], "what happens?", frames=3, max_new_tokens=3).usage.answer_tokens


def test_a_run_that_was_stopped_goes_on_to_the_bit(config: DpoConfig) -> None:
    whole = Heard()
    run_dpo(config, whole)
    stopped, rest = Heard(die_after=2), Heard()
    again = replace(config, out=config.out.with_name("again"))
    with pytest.raises(KeyboardInterrupt):
        run_dpo(again, stopped)
    assert load_config(DpoConfig, again.out / "dpo.yaml") == again
    with pytest.raises(CheckpointError, match="frames 3, now 2"):
        run_dpo(replace(again, frames=2), Heard())
    assert load_config(DpoConfig, again.out / "dpo.yaml") == again, "a run that is refused leaves it"
    run_dpo(again, rest)
    assert rest.resumed >= 1
    assert stopped.losses[: rest.resumed] + rest.losses == whole.losses


def test_a_run_goes_on_against_the_reference_it_began_with(
    config: DpoConfig, clips: dict[str, Path], tmp_path: Path
) -> None:
    """Rows that bring it (a little off, as one found in other sums is) lose it between the halves of a run."""
    known, base = task_of(config).references, read_contest(config, silent).base
    assert known is not None
    path = write_rows(tmp_path, ROWS)
    bare = path.read_text()
    told = [json.loads(line) for line in bare.splitlines()]
    for n, line in enumerate(told):
        line["reference"] = {"model": base.fingerprint, "chosen_logp": known[n].chosen + 0.02,
                             "rejected_logp": known[n].rejected}  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in told))
    rows = replace(config, data=(Source(path=path, media=clips["constant"].parent),), cache_folder=tmp_path / "fresh")
    whole, stopped, rest = Heard(), Heard(die_after=2), Heard()
    run_dpo(replace(rows, out=tmp_path / "whole"), whole)
    assert "reference 5 from the rows, 0 from the cache, 0 computed" in whole.said
    with pytest.raises(KeyboardInterrupt):
        run_dpo(rows, stopped)
    path.write_text(bare)
    run_dpo(rows, rest)
    assert "reference 0 from the rows, 0 from the cache, 5 computed" in rest.said
    assert stopped.losses[: rest.resumed] + rest.losses == whole.losses


def test_subtitles_beside_a_clip_are_another_reference(
    config: DpoConfig, clips: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copy(clips["constant"], tmp_path / "a.mp4")
    path = write_rows(tmp_path, [("a", "a.mp4", *ROWS[0][2:])])
    row = read_pairs(path).rows[0]
    plain = replace(config.plan, subtitles=False)
    before, hidden = reference_key(row, config.plan), reference_key(row, plain)
    (tmp_path / "a.srt").write_text("1\n00:00:00,000 --> 00:00:02,000\nHello.\n")
    assert reference_key(row, config.plan) != before
    assert reference_key(row, plain) == hidden


def test_what_was_learnt_once_is_not_computed_again(config: DpoConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("this was done before")

    heard = Heard()
    task_of(config)
    monkeypatch.setattr(loading, "read_planned", never)
    monkeypatch.setattr(Learner, "features", never)
    task_of(config, heard.say)
    assert heard.said == ["reference 0 from the rows, 5 from the cache, 0 computed"]


def test_a_clip_is_read_once_for_the_pairs_about_it(config: DpoConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every cache off, in every micro-batch again, but not for each of its pairs."""
    read: list[str] = []

    def reading(planned: ClipPlan, options: PlanOptions) -> FrameSet:
        read.append(Path(planned.info.path).name)
        return read_planned(planned, options)

    monkeypatch.setattr(loading, "read_planned", reading)
    task = task_of(replace(config, policy="uniform", feature_cache=False, reference_cache=False))
    assert len(task.prepare(ALL).pairs) == 5
    assert read == ["constant.mp4", "variable.mkv"]


def test_kept_references_of_another_model_are_computed_again(config: DpoConfig) -> None:
    task = task_of(config)
    assert task.references is not None
    file = next(Path(str(config.cache_folder)).glob("*.jsonl"))
    keys = [json.loads(line.partition("\t")[0])[0] for line in file.read_text().split("\n") if line]
    file.unlink()
    References(file).add(dict.fromkeys(keys, RefLogps(-1.0, -2.0)))
    heard = Heard()
    again = task_of(config, heard.say)
    assert "kept on disk are not this model's" in heard.said[0]
    assert heard.said[-1] == "reference 0 from the rows, 0 from the cache, 5 computed"
    assert again.references == task.references
    heard = Heard()
    task_of(config, heard.say)
    assert "5 from the cache" in heard.said[-1]


@pytest.mark.parametrize("off", [0.0, 5.0])
def test_recorded_references_are_tried(config: DpoConfig, clips: dict[str, Path], tmp_path: Path, off: float) -> None:
    task = task_of(config)
    assert task.references is not None
    fingerprint = read_contest(config, silent).base.fingerprint
    rows = [
        {"id": row[0], "prompt": row[2], "chosen": row[3], "rejected": row[4], **({"video": row[1]} if row[1] else {}),
         "reference": {"model": fingerprint, "chosen_logp": task.references[n].chosen + off,
                       "rejected_logp": task.references[n].rejected}}
        for n, row in enumerate(ROWS)
    ]  # fmt: skip
    path = tmp_path / "recorded.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Source(path=path, media=clips["constant"].parent)
    heard = Heard()
    fresh = replace(config, data=(source,), cache_folder=tmp_path / "fresh")
    made = task_of(fresh, heard.say)
    if off:
        assert "recorded in the rows are not this model's" in heard.said[0]
        assert heard.said[-1] == "reference 0 from the rows, 0 from the cache, 5 computed"
    else:
        assert heard.said == ["reference 5 from the rows, 0 from the cache, 0 computed"]
    assert made.references == task.references


def test_records_in_other_numbers_are_told_and_not_taken(
    config: DpoConfig, clips: dict[str, Path], tmp_path: Path
) -> None:
    told = {"model": read_contest(config, silent).base.fingerprint, "chosen_logp": -1.0, "rejected_logp": -2.0}
    path = write_rows(tmp_path, ROWS, reference={**told, "dtype": "bfloat16"})
    source = Source(path=path, media=clips["constant"].parent)
    heard = Heard()
    task_of(replace(config, data=(source,), cache_folder=tmp_path / "fresh"), heard.say)
    assert heard.said == [
        "5 rows hold log-probs of this model in bfloat16; dtype=bfloat16 takes them as they are",
        "reference 0 from the rows, 0 from the cache, 5 computed",
    ]


def test_records_of_clips_that_were_shown_otherwise_are_told(
    config: DpoConfig, clips: dict[str, Path], tmp_path: Path
) -> None:
    model = read_contest(config, silent).base.fingerprint
    noted = {"model": model, "chosen_logp": -1.0, "rejected_logp": -2.0, "dtype": config.dtype}
    look = replace(config.plan, frames=7).look
    source = Source(path=write_rows(tmp_path, ROWS, reference={**noted, "look": look}), media=clips["constant"].parent)
    heard = Heard()
    task_of(replace(config, data=(source,), cache_folder=tmp_path / "fresh"), heard.say)
    assert len(heard.said) == 2
    assert re.match(r"5 rows hold .* under another look .* frames", heard.said[0])


@pytest.mark.parametrize(("systems", "looks"), [(("Be brief.", "Be kind."), 2), (("Be brief.",) * 2, 1)])
def test_a_clip_is_shared_only_behind_the_same_words(
    config: DpoConfig, clips: dict[str, Path], tmp_path: Path, systems: Sequence[str], looks: int
) -> None:
    rows = [{"video": "constant.mp4", "chosen": "Two.", "rejected": "One.", "prompt": [
             {"role": "system", "content": system}, {"role": "user", "content": f"<video>how many, {number}?"}]}
            for number, system in enumerate(systems)]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Source(path=tmp_path / "pairs.jsonl", media=clips["constant"].parent)
    contest = read_contest(replace(config, data=(source,)), silent)
    assert len({size.group for size in contest.sizes}) == looks


def test_answers_of_another_model_are_told_before_the_first_step(
    config: DpoConfig, clips: dict[str, Path], tmp_path: Path
) -> None:
    told = {"model": "another", "chosen_logp": -1.0, "rejected_logp": -2.0}
    source = Source(path=write_rows(tmp_path, ROWS, reference=told), media=clips["constant"].parent)
    strange = replace(config, data=(source,))
    assert any("5 pairs hold answers of another model" in line
               for line in describe(strange, read_contest(strange, silent)))  # fmt: skip
    assert not any("another model" in line for line in describe(config, read_contest(config, silent)))


def test_damaged_lines_of_the_reference_file_count_as_absent(tmp_path: Path) -> None:
    path = tmp_path / "references.jsonl"
    file = References(path)
    file.add({"one": RefLogps(-1.5, -2.5)})
    file.add({"two": RefLogps(-0.1, -7.0)})
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"-2.5", b"-3.5") + b'["three", -1')
    References(path).add({"four": RefLogps(-4.0, -4.0)})
    known = References(path)
    assert [known.get(key) for key in ("one", "three")] == [None, None]
    assert known.get("two") == RefLogps(-0.1, -7.0)
    assert known.get("four") == RefLogps(-4.0, -4.0)


def test_a_reference_folder_that_takes_nothing_costs_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")
    file = References(tmp_path / "file" / "references.jsonl")
    for key in "ab":
        file.add({key: RefLogps(-1.0, -1.0)})
    assert file.get("b") == RefLogps(-1.0, -1.0)
    assert len(caplog.records) == 1
    assert "VIDLLM_CACHE" in caplog.text


@pytest.mark.parametrize(
    ("ratios", "warned"),
    [
        ([-0.1 * i for i in range(60)], True),
        ([0.1 * i for i in range(60)], False),
        ([-0.001 * i for i in range(60)], False),  # too little to speak of
        ([-3.0] * 60, False),  # low, but it does not fall
        ([-0.1 * i if i < 25 else -2.5 + 0.1 * i for i in range(60)], False),
    ],
)
def test_chosen_answers_that_fall_are_told_of_once(ratios: list[float], warned: bool) -> None:
    falling, said = Falling(), []
    for ratio in ratios:
        falling = Falling(**json.loads(json.dumps(asdict(falling))))  # as a checkpoint would keep it
        if text := falling.hear(ratio):
            said.append(text)
    assert len(said) == warned
    if warned:
        assert f"falling for {FALLS * WINDOW} steps" in said[0]
        assert "likelihood displacement" in said[0]


@pytest.mark.parametrize(("steps", "window"), [(3, 1), (17, 2), (60, 7), (80, 10), (5000, 10)])
def test_in_a_short_run_too_a_fall_is_told_of_while_there_is_time(steps: int, window: int) -> None:
    falling = Falling.over(steps)
    told = [step for step in range(steps) if falling.hear(-1.5 * step)]
    assert told == ([window * (FALLS + 1) - 1] if steps > FALLS else [])


def test_bad_pairs_are_told_before_the_first_step(config: DpoConfig, clips: dict[str, Path], tmp_path: Path) -> None:
    bad = (
        ("gone", "nowhere.mp4", "what?", "Two.", "One."),
        ("same", "constant.mp4", "what?", "Two.", "Two."),
        ("empty", "constant.mp4", "what?", "Two.", "  "),
    )
    source = Source(path=write_rows(tmp_path, [ROWS[0], *bad]), media=clips["constant"].parent)
    heard = Heard()
    with pytest.raises(RowError, match="2 more"):
        run_dpo(replace(config, data=(source,)), heard)
    for line, (name, *_) in enumerate(bad, start=2):
        assert any(f"pairs.jsonl:{line} ({name})" in text for text in heard.said)
    assert not (config.out / "checkpoints").exists()
    contest = read_contest(replace(config, data=(source,), bad_rows="skip"), silent)
    assert len(contest.rows) == 1


def test_a_config_says_what_it_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "dpo.yaml"
    path.write_text("out: x\ndata: [{path: y.jsonl}]\nlabel_smothing: 0.1\n")
    with pytest.raises(ConfigError, match="label_smoothing"):
        load_config(DpoConfig, path)
    path.write_text("out: x\ndata: [{path: y.jsonl}]\nloss: {sigmoid: 1.0, bko: 0.2}\n")
    with pytest.raises(ConfigError, match="no loss is called bko"):
        load_config(DpoConfig, path)
    path.write_text("out: x\ndata: [{path: y.jsonl}]\nloss: {sigmoid: 1.0, anchor: 1.0}\nanchor: 0.5\n")
    with pytest.raises(ConfigError, match="and loss gives it 1; say it once"):
        load_config(DpoConfig, path)


@pytest.mark.parametrize("name", ["dpo.yaml", "dpo_mpo.yaml", "quick_dpo.yaml", "builtin_dpo.yaml"])
def test_shipped_configs_are_whole(name: str) -> None:
    config = load_config(DpoConfig, Path(__file__).resolve().parents[1] / "configs" / name)
    assert isinstance(config.preference, PreferenceLoss)
    assert config.beta == 0.1
    assert config.parts.vision_tower == config.parts.projector == 0


def as_yaml(config: DpoConfig, path: Path, **more: object) -> Path:
    """The config as a file that says the same."""
    data = config.data
    assert isinstance(data, tuple)
    told = {
        "model": config.model, "data": [{"path": str(source.path), "media": str(source.media)} for source in data],
        "out": str(config.out), "frames": 3, "batch": config.batch, "tokens": config.tokens, "steps": config.steps,
        "workers": 0, "device": "cpu", "cache_folder": str(config.cache_folder), "parts": {"language_model": 1e-3},
        **more,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(told))
    return path


def test_two_processes_learn_what_one_learns(
    config: DpoConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also the terms that look at a whole step: BCO's shift and the mean over the chosen answers' tokens."""
    told: dict[str, list[Record]] = {}
    root = Path(__file__).resolve().parents[1]
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    for name in ("one", "two"):
        path = as_yaml(
            config, tmp_path / f"{name}.yaml", out=str(tmp_path / name), loss="mpo", tokens=60,
            cache_folder=str(tmp_path / f"cache-{name}"),
        )  # fmt: skip
        if name == "one":
            assert main(["dpo", str(path)]) == 0
            said = capsys.readouterr().err
        else:
            done = subprocess.run(
                [*launch, "-m", "vidllm_cli.main", "dpo", str(path)], cwd=root, capture_output=True, text=True,
                timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            said = done.stderr
        assert said.count("taught in 4 steps") == 1
        assert said.count("5 computed") == 1
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        told[name] = [json.loads(line) for line in lines]
    for alone, shared in zip(told["one"], told["two"], strict=True):
        for figure in ("loss", "rewards/chosen", "logps/rejected"):
            assert shared[figure] == pytest.approx(alone[figure], abs=1e-5)


def test_the_command_says_what_an_epoch_costs(
    config: DpoConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = as_yaml(config, tmp_path / "dpo.yaml")
    assert main(["dpo", str(path), "--dry-run", "batch=99999999999"]) == 0
    assert "an epoch: 1 step of 5 pairs" in capsys.readouterr().out
    assert main(["dpo", str(path), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "an epoch: 2 steps of 3 pairs" in told
    assert "tokens (" in told
    assert main(["dpo", str(path), "--show-batch"]) == 0
    assert "The red circle moves right." in capsys.readouterr().out


def test_a_reference_pass_that_was_killed_goes_on(config: DpoConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit: what a pair is given does not depend on which others were left."""
    config = replace(config, tokens=60)
    whole = task_of(replace(config, cache_folder=Path(str(config.cache_folder)) / "whole")).references
    kept: list[int] = []
    add = References.add

    def killed(file: References, found: Mapping[str, RefLogps]) -> None:
        add(file, found)
        kept.append(len(found))
        if sum(kept) > 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(References, "add", killed)
        with pytest.raises(KeyboardInterrupt):
            task_of(config)
    heard = Heard()
    assert task_of(config, heard.say).references == whole
    assert heard.said[-1] == f"reference 0 from the rows, {sum(kept)} from the cache, {len(ROWS) - sum(kept)} computed"
