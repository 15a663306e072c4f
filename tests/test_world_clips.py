"""World clips as files: truth beside real mp4s, a witness who follows them, and how answers about them are marked.

The tracker knows colours and pixels only, nothing of scripts: it watches the decoded mp4s and must see what the scripts
say.
"""

import importlib
import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import full_disk
from tests.test_world import CANVAS, STORY, centre, moments, one
from vidllm.errors import ConfigError
from vidllm.feedback.oracle import script_of
from vidllm.video.decode import read_frames
from vidllm.video.info import probe
from vidllm.world.generate import generator, make_script
from vidllm.world.make import make_clips, write_video
from vidllm.world.questions import clip_questions, moment_questions, pick_moments
from vidllm.world.render import frame
from vidllm.world.script import Script

# ------------------------------------------------------------------------------------------------ what is written


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two clips as `vidllm world make` writes them."""
    return make_clips(2, 222, tmp_path_factory.mktemp("world"), split="tests/made")


def test_a_clip_lies_beside_its_truth_and_nothing_else_is_left(made: list[Path]) -> None:
    folder = made[0].parent
    assert sorted(p.name for p in folder.iterdir()) == ["000222.json", "000222.mp4", "000223.json", "000223.mp4"]


def test_what_was_drawn_is_not_drawn_again_and_what_was_not_is_kept(tmp_path: Path) -> None:
    """Interrupted after the first of two clips; then a video of somebody else's in the place of the third."""
    first = make_clips(1, 5, tmp_path, split="tests/made")[0]
    written = first.stat().st_mtime_ns
    assert make_clips(2, 5, tmp_path, split="tests/made")[0].stat().st_mtime_ns == written
    first.with_suffix(".json").write_text("{}")
    make_clips(1, 5, tmp_path, split="tests/made")
    assert first.stat().st_mtime_ns != written, "of another script"
    (tmp_path / "000007.mp4").write_bytes(b"holidays")
    with pytest.raises(ConfigError, match=r"000007\.mp4 is there and was not drawn here"):
        make_clips(3, 5, tmp_path, split="tests/made")
    assert (tmp_path / "000007.mp4").read_bytes() == b"holidays"


def test_an_interrupted_run_leaves_whole_clips_only(tmp_path: Path) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_clips(200, 5, tmp_path, split="tests/made", progress=interrupt)
    left = {path.suffix for path in tmp_path.iterdir()}
    assert left == {".mp4", ".json"}
    assert len(list(tmp_path.glob("*.mp4"))) < 200


def test_a_disk_without_room_names_the_clip_and_keeps_nothing_half_written(tmp_path: Path) -> None:
    with full_disk(1000), pytest.raises(OSError, match="000003"):
        make_clips(1, 3, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_script_survives_json(made: list[Path]) -> None:
    for number, path in zip((222, 223), made, strict=True):
        assert Script.load(path.with_suffix(".json")) == make_script("tests/made", number)


def test_a_turning_object_survives_json(tmp_path: Path) -> None:
    target = tmp_path / "story.json"
    target.write_text(json.dumps(asdict(STORY)), encoding="utf-8")
    assert Script.load(target) == STORY


@pytest.mark.parametrize(
    "wrong",
    [
        {"duration": "a"}, {"duration": float("nan")}, {"things": []}, {"events[0]": {"thing": 99}},
        {"events[0]": {"thing": -9}}, {"events[0]": {"start": None}}, {"events[0]": {"action": "explodes"}},
        {"events[0]": {"name": "ring"}}, {"events[0]": {"name": None}}, {"events[0]": {"end": 1e9}},
        {"events[0]": {"action": "turns"}}, {"things[0]": {"rgb": [1]}}, {"things[0]": {"rgb": [[1], 2, 3]}},
        {"things[0]": {"x": "a"}}, {"things[0]": {"colour": "pink"}}, {"colour": "red"},
        {"duration": 0.5, "events": []}, {"duration": 1e300}, {"things": [asdict(STORY)["things"][0]] * 6},
        {"canvas": asdict(STORY)["canvas"] | {"crf": [[1]]}}, {"events[0]": {"thing": 0.0}},
        {"events[0]": {"action": "turns", "colour": "red", "rgb": ["a", 2, 3]}},
    ],
)  # fmt: skip
def test_what_no_clip_can_be_drawn_of_is_no_script(tmp_path: Path, wrong: dict[str, Any]) -> None:
    raw = json.loads(json.dumps(asdict(STORY)))
    assert raw["events"][0]["action"] != "turns"
    for place, value in wrong.items():
        listed = re.fullmatch(r"(\w+)\[0\]", place)
        raw.update({place: value}) if listed is None else raw[listed[1]][0].update(value)
    (tmp_path / "a.json").write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises((ValueError, TypeError, LookupError, AttributeError)):
        Script.load(tmp_path / "a.json")
    assert script_of(tmp_path / "a.mp4") is None


def test_a_clip_in_which_nothing_happens_has_questions() -> None:
    still = replace(STORY, events=())
    rng = generator("truth", 1)
    asked = [*clip_questions(still, rng), *(q for m in pick_moments(still, 0.0, 4, rng)
                                            for q in moment_questions(still, m, rng, plain=True))]  # fmt: skip
    assert {q.answer for q in asked if q.family in ("describe", "what")} == {"Nothing happens."}
    assert {"describe", "what", "count"} <= {q.family for q in asked}


def test_the_truth_holds_questions_in_the_contracts_words(made: list[Path]) -> None:
    record = json.loads(made[0].with_suffix(".json").read_text(encoding="utf-8"))
    families = {asked["family"] for asked in record["questions"]}
    assert families >= {"describe", "when", "order", "what", "count", "where"}
    assert {asked["text"] for asked in record["questions"]} >= {"describe the video.", "what happens first?"}


def test_a_clip_is_a_real_mp4_of_its_scripts_length_and_pixels(made: list[Path]) -> None:
    for path in made:
        script, info = Script.load(path.with_suffix(".json")), probe(path)
        assert info.codec == "h264"
        assert info.duration == pytest.approx(script.duration, abs=1 / script.canvas.fps)
        assert info.fps == pytest.approx(script.canvas.fps)
        assert (info.width, info.height) == (script.canvas.width, script.canvas.height)
        times = np.linspace(0, script.duration - 1, 5)
        shown = read_frames(info, times.tolist())
        for picture, seconds in zip(shown.pixels, shown.pts_seconds, strict=True):
            drawn = frame(script, float(seconds)).astype(int)
            assert np.abs(picture - drawn).mean() < 6, (path, seconds)


def test_a_clip_is_the_same_on_any_number_of_cores(made: list[Path]) -> None:
    """x264 notes in the file with how many threads it ran, and writes other pixels with another number."""
    assert re.findall(rb" threads=(\d+)", made[0].read_bytes()) == [b"1"]


def test_an_odd_size_is_made_even(tmp_path: Path) -> None:
    odd = replace(one(), duration=0.5, canvas=replace(CANVAS, width=101, height=51))
    write_video(odd, tmp_path / "odd.mp4")
    info = probe(tmp_path / "odd.mp4")
    assert (info.width, info.height, info.num_frames) == (100, 50, 5)


def test_two_who_draw_the_same_clip_at_once_leave_it_whole(tmp_path: Path) -> None:
    target = tmp_path / "clip.mp4"
    with ThreadPoolExecutor(2) as both:
        list(both.map(lambda _: write_video(STORY, target), range(2)))
    assert list(tmp_path.iterdir()) == [target]
    assert probe(target).num_frames == STORY.duration * STORY.canvas.fps


# ----------------------------------------------------------------------------------------- an independent witness


HUES = {"red": (325, 375), "orange": (15, 44), "yellow": (44, 85), "green": (85, 160), "cyan": (160, 205),
        "blue": (205, 258), "purple": (258, 325)}  # fmt: skip
"""Degrees of hue that people call by each name; white has none."""
SMALLEST = 6e-4
"""Share of the picture below which a patch of colour is a codec's invention."""
Sighting = dict[str, tuple[float, float, float]]
"""Colour -> centre x, y and area, all in fractions of the picture."""


def watch(picture: NDArray[np.uint8]) -> Sighting:
    """The coloured objects in a picture (H, W, 3), by nothing but hue, saturation and brightness."""
    rgb = picture.astype(float)
    value, low = rgb.max(-1), rgb.min(-1)
    chroma = value - low
    r, g, b = np.moveaxis(rgb, -1, 0)
    safe = np.maximum(chroma, 1e-9)
    hue = 60 * np.select([value == r, value == g], [((g - b) / safe) % 6, (b - r) / safe + 2], (r - g) / safe + 4)
    vivid = (chroma > 0.45 * value) & (value > 98)
    masks = {name: vivid & ((hue - a) % 360 < b - a) for name, (a, b) in HUES.items()}
    masks["white"] = (chroma < 0.25 * value) & (value > 150)
    return {
        name: (*centre(mask.astype(float)), float(mask.mean()))
        for name, mask in masks.items()
        if mask.mean() > SMALLEST
    }


def tracked_scripts(count: int) -> list[Script]:
    """Short clips in which no two objects ever have the same colour, so that colour alone tells them apart."""
    found: list[Script] = []
    for seed in range(200):
        script = make_script("tests/track", seed, shortest=10, longest=14)
        used = Counter(name.split()[0] for name in {t.name for s in moments(script, 0.5) for t in script.at(s)})
        if len(script.things) > 1 and max(used.values()) == 1:
            found.append(script)
        if len(found) == count:
            return found
    raise AssertionError("too few clips with one object per colour")


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Script, list[tuple[float, Sighting]]]]:
    """Four clips as mp4s, and what a witness saw in them four times a second."""
    folder, found = tmp_path_factory.mktemp("tracked"), []
    for number, script in enumerate(tracked_scripts(4)):
        path = folder / f"{number}.mp4"
        write_video(script, path)
        shown = read_frames(path, list(moments(script, 0.25)))
        seen = [(float(t), watch(p[::2, ::2])) for p, t in zip(shown.pixels, shown.pts_seconds, strict=True)]
        found.append((script, seen))
    return found


def test_a_witness_sees_the_objects_where_the_script_has_them(
    watched: list[tuple[Script, list[tuple[float, Sighting]]]],
) -> None:
    compared = 0
    for script, seen in watched:
        for seconds, sighting in seen:
            event = script.event_at(seconds)
            if event is not None and event.action in ("appears", "disappears", "turns"):
                continue
            shown = [t for t, o in zip(script.at(seconds), script.opacity(seconds), strict=True) if o == 1]
            assert set(sighting) == {thing.colour for thing in shown}, (script.seed, seconds)
            for thing in shown:
                x, y, _ = sighting[thing.colour]
                assert (x, y) == pytest.approx((thing.x, thing.y), abs=0.02), (script.seed, seconds, thing)
                compared += 1
    assert compared > 200


def changed(one: Sighting, other: Sighting) -> bool:
    """Whether a witness would say that something happened between two pictures."""
    if set(one) != set(other):
        return True
    moved = any(max(abs(one[c][0] - other[c][0]), abs(one[c][1] - other[c][1])) > 0.012 for c in one)
    return moved or any(abs(np.log(one[c][2] / other[c][2])) > 0.07 for c in one)


def test_a_witness_dates_every_event_and_sees_no_others(
    watched: list[tuple[Script, list[tuple[float, Sighting]]]],
) -> None:
    for script, seen in watched:
        happened = [seconds for (_, a), (seconds, b) in pairwise(seen) if changed(a, b)]
        for event in script.events:
            during = [s for s in happened if event.start <= s <= event.end + 0.3]
            assert during, (script.seed, event.phrase)
            if event.action not in ("appears", "disappears", "turns"):  # a slow fade is seen when it is half done
                assert during[0] - event.start < 0.8, (script.seed, event.phrase, during)
        for seconds in happened:
            near = [e for e in script.events if e.start <= seconds <= e.end + 0.3]
            assert near, (script.seed, seconds, "nothing should happen here")


# ----------------------------------------------------------------------------------------- how answers are marked


@pytest.fixture
def marking(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/world.py, which marks a model's answers."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    return importlib.import_module("world")


def test_a_witness_who_knows_all_gets_full_marks(marking: ModuleType, made: list[Path]) -> None:
    tally = marking.Tally()
    for path in made:
        asked = marking.chosen(path, moments=2)
        assert asked == marking.chosen(path, moments=2)
        assert {question.family for question in asked} >= {"describe", "when", "order"}
        assert len({question.moment for question in asked}) == 3, "the whole clip and two moments"
        for question in asked:
            tally.add(question, question.answer.lower().removesuffix("."), [0.0, 5.0])
    assert all(all(marks) for marks in tally.marks.values())
    assert tally.f1 == [1.0, 1.0]


@pytest.mark.parametrize(
    ("said", "exact", "within"),
    [
        ("At 0:04.", True, True),  # the second that 4.9 s lies in
        ("At 0:05.", False, True),  # the first frame that shows it is at 6 s, the last that does not at 4 s
        ("At 0:06.", False, True),
        ("At 0:07.", False, False),
        ("At 0:02.", False, False),
        ("Nothing happens.", False, False),
        ("At 0:04 or at 0:05.", False, False),
    ],
)
def test_when_is_right_within_one_sampling_interval(marking: ModuleType, said: str, exact: bool, within: bool) -> None:
    tally = marking.Tally()
    asked = marking.Asked("when", "when does the red circle move right?", "At 0:04.", start=4.9)
    tally.add(asked, said, [0.0, 2.0, 4.0, 6.0, 8.0])
    assert dict(tally.marks) == {"when, exact second": [exact], "when": [within]}


def test_a_description_is_marked_event_by_event(marking: ModuleType) -> None:
    truth = "The red circle moves right. Then the blue square disappears."
    assert marking.event_f1(truth, truth) == 1.0
    assert marking.event_f1("The red circle moves right.", truth) == pytest.approx(2 / 3)
    assert marking.event_f1("The blue square disappears. Then the red circle moves left.", truth) == 0.5
    assert marking.event_f1("Nothing happens.", truth) == 0.0


def test_wilsons_interval(marking: ModuleType) -> None:
    """His own kind of example: 7 of 10 lies between 39.7 and 89.2 %; none of ten is not zero."""
    assert marking.wilson(7, 10) == pytest.approx((39.7, 89.2), abs=0.1)
    assert marking.wilson(0, 10) == pytest.approx((0.0, 27.8), abs=0.1)
