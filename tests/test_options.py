"""One vocabulary: what `ask` takes is what the two dataclasses hold, and a misspelt word is told."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vidllm.errors import ConfigError
from vidllm.options import GENERATION_FIELDS, PLAN_FIELDS, AskOptions, GenerationOptions, split_options
from vidllm.planning import PlanOptions


def test_the_typed_keywords_are_the_fields_of_the_dataclasses() -> None:
    assert set(AskOptions.__annotations__) == {*PLAN_FIELDS, *GENERATION_FIELDS}
    assert set(PLAN_FIELDS) & set(GENERATION_FIELDS) == {"max_new_tokens"}


def test_each_half_gets_its_words() -> None:
    look, generation = split_options({"start": "0:10", "end": 20, "frames": 4, "temperature": 0.5, "stop": "\n"})
    assert (look.start, look.end, look.frames) == (10.0, 20, 4)
    assert (generation.temperature, generation.stop) == (0.5, ("\n",))


def test_max_new_tokens_unsaid_is_left_to_the_plan() -> None:
    assert split_options({})[0].max_new_tokens is None
    look, generation = split_options({"max_new_tokens": 9})
    assert (look.max_new_tokens, generation.max_new_tokens) == (9, 9)
    assert split_options({"max_new_tokens": None})[1].max_new_tokens == 256


def test_a_misspelt_word_is_told_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"tempreature .* did you mean temperature\?"):
        split_options({"tempreature": 1})
    with pytest.raises(ConfigError, match="there are start, end"):
        split_options({"xyzzy": 1})


def test_what_is_no_time_is_told() -> None:
    with pytest.raises(ConfigError, match="noon"):
        split_options({"start": "noon"})


@pytest.mark.parametrize(
    "said",
    [
        {"policy": "foo"}, {"reader": "imageio"}, {"fit": "fill"}, {"start": -5}, {"start": "-0:05"},
        {"start": math.nan}, {"start": math.inf}, {"start": [1]}, {"end": math.nan}, {"end": -1},
        {"frames": 1.5}, {"frames": "8"}, {"frames": True}, {"frames": 0}, {"fps": math.nan}, {"fps": math.inf},
        {"fps": 0}, {"stride": 2.0}, {"stride": 0}, {"rope_max": math.nan}, {"rope_max": "2"}, {"rope_max": 0.5},
        {"max_new_tokens": 0.5}, {"max_new_tokens": 0}, {"reserve": -1},
        {"subtitles": "no"}, {"snap": 1}, {"guard": True}, {"temperature": math.nan}, {"temperature": "hot"},
        {"top_p": 0}, {"top_p": 1.5}, {"top_k": -1}, {"seed": 0.5}, {"stop": 5}, {"stop": (5,)}, {"stop": ""},
        {"stop_on_loop": "no"},
    ],
    ids=str,
)  # fmt: skip
def test_what_an_option_can_not_mean_is_one_line_that_names_it(said: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        split_options(said)
    assert "\n" not in str(caught.value)
    [name] = said
    assert name in str(caught.value) or "is not a time" in str(caught.value) or "stop text" in str(caught.value)


def test_none_is_unsaid() -> None:
    unsaid = dict.fromkeys(AskOptions.__annotations__)
    assert split_options(unsaid) == (PlanOptions(), GenerationOptions())
    for kind, name in ((PlanOptions, "rope_max"), (PlanOptions, "reserve"), (GenerationOptions, "top_p")):
        with pytest.raises(ConfigError, match=f"{name} must be a .*number, got None"):
            kind(**{name: None})  # type: ignore[arg-type]


def test_what_numpy_counts_is_a_number_too() -> None:
    look, _ = split_options({"frames": np.int64(4), "start": np.float32(1.5), "end": math.inf})
    assert (look.frames, look.start, look.end) == (4, 1.5, math.inf)
