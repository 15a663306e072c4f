"""What `plan` gives back: its JSON key by key as attributes, and of a picture the very numbers that asking has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pytest
from PIL import Image as PIL

import vidllm
from tests.conftest import write_clip
from tests.planned import FAMILIES, noise, picture, prompt_of, spec_of, tiny_folder
from vidllm.budget import Policy
from vidllm.errors import BudgetError, NotAVideo
from vidllm.model.families import bare_spec, load_tokenizer
from vidllm.planned import Plan, plan_source
from vidllm.planning import PlanOptions
from vidllm.prompt import Message
from vidllm.sources import Source
from vidllm.visuals import Image


def planned(source: Source, family: str = "llava", question: str = "what?", **options: object) -> Plan:
    spec = spec_of(family)
    return plan_source(source, question, spec, load_tokenizer(spec.folder), PlanOptions(**options))


def as_json(value: object) -> object:
    """An attribute's value as JSON would hold it."""
    plain = [asdict(part) if is_dataclass(part) else part for part in value] if isinstance(value, tuple) else value
    return json.loads(json.dumps(asdict(plain) if is_dataclass(plain) else plain))  # type: ignore[call-overload]


def same_by_attribute(thing: object, told: Mapping[str, object]) -> None:
    for key, value in told.items():
        assert as_json(getattr(thing, key)) == value, key


def test_every_key_of_the_json_is_an_attribute(clips: dict[str, Path]) -> None:
    for plan in (planned(clips["constant"], frames=4, fit="crop"), planned(picture(30, 40), frames=4)):
        same_by_attribute(plan, json.loads(json.dumps(plan.to_dict())))


def test_the_json_says_video_and_budget(clips: dict[str, Path]) -> None:
    plan = plan_source(clips["constant"], "", bare_spec(24, 24, 4096), None, PlanOptions(stride=2, frames=2))
    said = plan.to_dict()
    assert said["video"] == {
        "path": str(clips["constant"]), "duration": 2.4, "width": 160, "height": 96, "fps": 25.0, "frames": 60
    }  # fmt: skip
    assert list(said)[:2] == ["video", "frames"]
    assert said["frames"] == [{"time": 0.0, "stride": 2, "tokens": 144}, {"time": 2.36, "stride": 2, "tokens": 144}]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(30, 40), (333, 100), (224, 224)])
def test_a_picture_is_planned_as_it_is_asked(family: str, size: tuple[int, int]) -> None:
    still = picture(*size)
    plan = planned(still, family, "what colour is it?", rope_max=8)
    asked = prompt_of(spec_of(family), [Message("user", "what colour is it?", (still,))], rope_max=8)
    mine = (plan.video_tokens, plan.text_tokens, plan.max_new_tokens, plan.rope_factor)
    assert mine == (asked.video_tokens, asked.text_tokens, asked.max_new_tokens, asked.rope_factor)
    assert [frame.time for frame in plan.frames] == [None]
    assert (plan.video.width, plan.video.height, plan.video.frames) == (size[1], size[0], 1)


def test_a_picture_beside_which_the_reply_has_less_room_says_so() -> None:
    spec = replace(spec_of("llava"), context=200)
    plan = plan_source(picture(30, 40), "what?", spec, load_tokenizer(spec.folder), PlanOptions(rope_max=1.0))
    assert (plan.total, plan.rope_factor) == (200, 1.0)
    assert plan.notes == (f"the reply's room shrank from 256 to {plan.max_new_tokens} tokens",)


def test_a_picture_that_does_not_fit_is_the_same_line_as_in_asking() -> None:
    still, spec = picture(30, 40), replace(spec_of("llava"), context=70)
    with pytest.raises(BudgetError) as asked:
        prompt_of(spec, [Message("user", "what?", (still,))], rope_max=1.0)
    with pytest.raises(BudgetError) as told:
        plan_source(still, "what?", spec, load_tokenizer(spec.folder), PlanOptions(rope_max=1.0))
    assert str(told.value) == str(asked.value)
    assert "frames" not in str(told.value)


def test_a_video_under_a_pictures_name_is_refused_as_in_asking(clips: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "vid.png").write_bytes(clips["constant"].read_bytes())
    with pytest.raises(NotAVideo, match=r"vid\.png"):
        planned(tmp_path / "vid.png")


def test_what_a_picture_can_not_follow_is_said() -> None:
    [note] = planned(picture(30, 40), frames=4, start=2.0).notes
    assert "--from, --frames" in note
    assert planned(Image(picture(9, 9).pixels, "shot"), max_new_tokens=9).notes == ()


@pytest.mark.parametrize("family", ["pixtral", "mistral3", "video_llama_3", "lfm2_vl"])
def test_what_is_asked_is_planned_to_the_token(family: str, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", [0.1 * n for n in range(30)])
    PIL.fromarray(noise(300, 421)).save(tmp_path / "large.png")
    model = vidllm.load(tiny_folder(family), device="cpu", dtype="float32", cache=None)
    looks: list[tuple[str, Any]] = [("clip.mp4", {"frames": 7, "policy": policy}) for policy in get_args(Policy)]
    for source, more in [*looks, ("large.png", {})]:
        answer = model.ask(tmp_path / source, "what at 0:01?", max_new_tokens=3, **more)
        plan = vidllm.plan(tmp_path / source, "what at 0:01?", model=tiny_folder(family), max_new_tokens=3, **more)
        assert (answer.usage.video_tokens, answer.usage.text_tokens) == (plan.video_tokens, plan.text_tokens)
    assert plan.tiles == ((2, 2) if family == "lfm2_vl" else None)
