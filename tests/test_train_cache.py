"""A look at a clip is taken once: recalled equals taken, to the bit, and nothing else is ever recalled for it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import vidllm.clip
from tests import tiny_models
from tests.packed import pack
from vidllm.clip import Clip, PlanOptions, open_clip
from vidllm.errors import VideoNotFound
from vidllm.prompt import Example, Message, build_example
from vidllm.train.batch import Batch
from vidllm.train.cache import ClipCache, file_digest, look_key, vision_key
from vidllm.train.learner import Learner
from vidllm.train.parts import LearnerOptions, Parts
from vidllm.visuals import Image

PLAN = PlanOptions(frames=4)
ANSWER = "The red circle moves right."


def make_learner(folder: Path, **rates: float) -> Learner:
    return Learner.load(folder, LearnerOptions(parts=Parts(**{"language_model": 1e-5, **rates})), device="cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def learner(model: Path) -> Learner:
    return make_learner(model)


@pytest.fixture
def cache(learner: Learner, tmp_path: Path) -> ClipCache:
    made = ClipCache.of(learner, tmp_path / "clips")
    assert made is not None
    return made


def look(path: Path, learner: Learner, cache: ClipCache | None, plan: PlanOptions = PLAN) -> Clip:
    return open_clip(path, "what happens?", learner.spec, learner.lmm.tokenizer, plan, known=cache)


def learn(learner: Learner, *media: Clip | Image) -> Example:
    messages = [Message("user", "what happens?", media), Message("assistant", ANSWER)]
    return build_example(messages, learner.spec, learner.lmm.tokenizer)


def logps(learner: Learner, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return learner(batch)


@pytest.mark.parametrize("stage", ["tokens", "tower"])
def test_a_look_is_neither_decoded_nor_encoded_twice(
    model: Path, clips: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    learner = make_learner(model, projector=1e-5 if stage == "tower" else 0.0)
    cache = ClipCache.of(learner, tmp_path)
    assert cache is not None
    assert cache.stage == stage
    first = learn(learner, look(clips["variable"], learner, cache))
    plain = logps(learner, pack([first]))
    cold = cache.furnish(pack([first]), learner.features)
    assert torch.equal(logps(learner, cold), plain)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("this look was taken before")

    monkeypatch.setattr(vidllm.clip, "read_planned", never)
    later = ClipCache.of(learner, tmp_path)  # as another run would have it
    assert later is not None
    clip = look(clips["variable"], learner, later)
    assert clip.frames.pixels.shape == (4, 0, 0, 3)
    second = learn(learner, clip)
    assert second.prompt.input_ids == first.prompt.input_ids  # with the times that were really decoded
    assert [v.times for v in second.prompt.visuals] == [v.times for v in first.prompt.visuals]
    warm = later.furnish(pack([second]), never)  # type: ignore[arg-type]
    assert torch.equal(logps(learner, warm), plain)


def test_a_still_is_known_by_its_pixels(learner: Learner, cache: ClipCache) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    plain = logps(learner, pack([learn(learner, Image(pixels))]))
    calls = []

    def encode(visuals):  # type: ignore[no-untyped-def]
        calls.append(len(visuals))
        return learner.features(visuals)

    for other, encoded in ((pixels, 1), (pixels, 1), (255 - pixels, 2)):
        batch = cache.furnish(pack([learn(learner, Image(other.copy()))]), encode)
        assert len(calls) == encoded
        assert torch.equal(logps(learner, batch), plain) == (encoded == 1)


def test_each_look_is_encoded_by_itself(learner: Learner, cache: ClipCache, clips: dict[str, Path]) -> None:
    """So that the last bits do not depend on which other looks were kept."""
    calls = []

    def encode(visuals):  # type: ignore[no-untyped-def]
        calls.append(len(visuals))
        return learner.features(visuals)

    examples = [learn(learner, look(clips[name], learner, cache)) for name in ("constant", "variable")]
    cache.furnish(pack(examples), encode)
    assert calls == [4, 4]


def test_what_shapes_a_look_makes_another_key(learner: Learner, clips: dict[str, Path], tmp_path: Path) -> None:
    spec, tokenizer = learner.spec, learner.lmm.tokenizer

    def key(  # type: ignore[no-untyped-def]
        path: Path | vidllm.VideoInfo = clips["constant"], plan: PlanOptions = PLAN, spec=spec, vision: str = "v"
    ) -> str:
        planned = vidllm.clip.plan_video(path, "what happens?", spec, tokenizer, plan)
        return look_key(planned, spec, plan, vision)

    copy = shutil.copy(clips["constant"], tmp_path / "copy.mp4")
    assert key(copy) == key()
    others = [
        key(clips["single_key"]), key(plan=replace(PLAN, frames=3)), key(plan=replace(PLAN, stride=4)),
        key(plan=replace(PLAN, fit="crop")), key(plan=replace(PLAN, reader="decord")), key(vision="w"),
        key(plan=replace(PLAN, end=1.0)), key(replace(vidllm.probe(clips["constant"]), transfer="hlg")),
    ]  # fmt: skip
    assert len({key(), *others}) == 1 + len(others)


def test_another_question_may_share_a_look(learner: Learner, cache: ClipCache, clips: dict[str, Path]) -> None:
    one = look(clips["constant"], learner, cache)
    other = open_clip(clips["constant"], "describe the video.", learner.spec, learner.lmm.tokenizer, PLAN, known=cache)
    assert one.key == other.key


def test_vision_is_known_by_its_weights(model: Path) -> None:
    keys = [vision_key(make_learner(model), "tokens"), vision_key(make_learner(model), "tower")]
    moved = make_learner(model)
    with torch.no_grad():
        next(moved.lmm.parts.multi_modal_projector.parameters()).add_(1e-3)
    assert vision_key(moved, "tower") == keys[1]
    assert vision_key(moved, "tokens") not in keys
    with torch.no_grad():
        next(moved.lmm.parts.vision_tower.parameters()).add_(1e-3)
    assert vision_key(moved, "tower") not in keys


def test_vision_is_known_by_how_its_weights_are_used(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another activation, or another release of the library, makes other features of the same weights; a model that
    was taught elsewhere has those of the one it began as."""
    before = make_learner(model)
    before.save(tmp_path)
    keys = {stage: vision_key(before, stage) for stage in ("tower", "tokens")}  # type: ignore[arg-type]
    assert {stage: vision_key(make_learner(tmp_path), stage) for stage in keys} == keys  # type: ignore[arg-type]
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "relu"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert vision_key(make_learner(tmp_path), "tower") != keys["tower"]
    monkeypatch.setattr("transformers.configuration_utils.__version__", "5.99.0")
    assert vision_key(before, "tower") != keys["tower"]


def test_a_tower_that_learns_has_no_cache(model: Path, tmp_path: Path) -> None:
    assert ClipCache.of(make_learner(model, vision_tower=1e-6), tmp_path) is None


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "times"])
def test_a_damaged_entry_is_made_again(learner: Learner, cache: ClipCache, clips: dict[str, Path], damage: str) -> None:
    plain = cache.furnish(pack([learn(learner, look(clips["constant"], learner, cache))]), learner.features)
    expected = logps(learner, plain)
    entry = next(cache.files.folder.glob("*/*.safetensors"))
    content = bytearray(entry.read_bytes())
    content[-5] ^= 1
    entry.write_bytes({"flip": content, "cut": content[:-9], "empty": b"", "times": content}[damage])
    if damage == "times":  # a whole entry, of another number of frames
        entry.unlink()
        cache.files.put(entry.stem, {"features": torch.zeros(3, 4), "times": torch.zeros(2, dtype=torch.float64)})
    clip = look(clips["constant"], learner, cache)
    assert clip.features is None
    again = cache.furnish(pack([learn(learner, clip)]), learner.features)
    assert torch.equal(logps(learner, again), expected)
    assert look(clips["constant"], learner, cache).features is not None


def test_a_file_that_is_gone_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(VideoNotFound, match=r"gone.mp4: No such file.*rows were checked") as caught:
        file_digest(str(tmp_path / "gone.mp4"))
    assert "\n" not in str(caught.value)


def test_changed_bytes_are_another_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    first = file_digest(str(path))
    path.write_bytes(b"two!")
    assert file_digest(str(path)) != first
