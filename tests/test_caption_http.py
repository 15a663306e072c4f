"""Captions from a server, against a real one in its own process that reads bar codes and misbehaves when told to."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from tests.conftest import Servers, bar_code
from vidllm.budget import TokenPlan
from vidllm.clip import Clip, open_clip
from vidllm.corpus.asking import HttpOptions, list_models, open_client
from vidllm.corpus.captioner import Said
from vidllm.corpus.endpoint import (
    Endpoint,
    Nonsense,
    chat_body,
    complaint,
    read_models,
    read_reply,
    retry_after_seconds,
)
from vidllm.corpus.http import HttpCaptioner, server_spec
from vidllm.errors import ConfigError, EngineError
from vidllm.options import GenerationOptions
from vidllm.planning import PlanOptions
from vidllm.video.decode import FrameSet

PATIENT_SECONDS = 120.0  # longer than any machine needs: a test that waits so long has failed
GREEDY = GenerationOptions(max_new_tokens=99)


@pytest.fixture
def connect() -> Iterator[Callable[..., HttpCaptioner]]:
    """Connect, quickly disappointed; closed at the end."""
    opened: list[HttpCaptioner] = []

    def to(
        url: str, model: str | None = None, remark: Callable[[str], None] = lambda line: None, **options: Any
    ) -> HttpCaptioner:
        patience = {"request_seconds": 30.0, "absent_seconds": 3.0, **options}
        opened.append(HttpCaptioner.connect(url, model, HttpOptions(**patience), remark=remark))
        return opened[-1]

    yield to
    for captioner in opened:
        captioner.close()


def a_clip(number: int, frames: int = 3) -> Clip:
    """A clip whose every frame shows `number`, at 0, 0.5, 1.0 s ..., without a file."""
    return replace(BLANK, frames=FrameSet(
        pixels=np.stack([bar_code(number)] * frames), pts_seconds=np.arange(frames) / 2,
        requested_seconds=np.arange(frames) / 2, reader="test",
    ))  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def blank(clips: dict[str, Path]) -> None:
    """Everything of a clip but its frames."""
    global BLANK
    BLANK = open_clip(clips["constant"], "", server_spec(), None, PlanOptions(frames=3))


BLANK: Clip


def say_all(captioner: HttpCaptioner, asked: dict[int, tuple[Clip | None, str]]) -> dict[int, Said]:
    """Ask everything as there is room; every answer by its ticket."""
    waiting, said = list(asked.items()), {}
    until = time.monotonic() + PATIENT_SECONDS
    while len(said) < len(asked):
        assert time.monotonic() < until, f"{len(said)} of {len(asked)} answered"
        while waiting and captioner.room():
            ticket, (clip, prompt) = waiting.pop(0)
            captioner.submit(ticket, clip, prompt, GREEDY)
        for one in captioner.poll(0.1):
            assert one.ticket not in said, "answered twice"
            said[one.ticket] = one
    return said


def say(captioner: HttpCaptioner, prompt: str) -> Said:
    return say_all(captioner, {0: (a_clip(5), prompt)})[0]


def heard(said: Said) -> dict[str, Any]:
    """What the server saw, as it says."""
    assert said.error is None, said.error
    return dict(json.loads(said.text))


def stats(url: str) -> dict[str, int]:
    return dict(httpx2.get(f"{url}/stats").json())


# ------------------------------------------------------------------------------------------------------ what is sent


def test_frames_go_with_their_times_and_come_back_with_model_reason_and_usage(
    serve: Servers, connect: Callable[..., HttpCaptioner]
) -> None:
    captioner = connect(serve())
    said = say_all(captioner, {7: (a_clip(42), "What happens?")})[7]
    got = heard(said)
    assert got["codes"] == [42, 42, 42]
    assert got["texts"][1:] == ["Frame 1 at 0:00.00", "Frame 2 at 0:00.50", "Frame 3 at 0:01.00", "What happens?"]
    assert got["options"] == {"model": "seer", "max_tokens": 99, "temperature": 0.0, "seed": 0}
    assert (said.model, said.finish_reason) == ("seer@served", "stop")
    assert said.usage is not None
    # the server says how long the whole prompt was: none of it is told to be the frames'
    assert (said.usage.video_tokens, said.usage.text_tokens, said.usage.answer_tokens) == (None, 321, 12)
    assert captioner.fingerprint.startswith("server:seer:")


def test_frames_seconds_apart_go_with_their_times_to_the_hundredth(
    serve: Servers, connect: Callable[..., HttpCaptioner]
) -> None:
    clip = a_clip(9)
    far = replace(clip, frames=replace(clip.frames, pts_seconds=np.array([0.0, 15.96, 31.999])))
    got = heard(say_all(connect(serve()), {0: (far, "What?")})[0])
    assert got["texts"][1:4] == ["Frame 1 at 0:00.00", "Frame 2 at 0:15.96", "Frame 3 at 0:31.99"]


def test_a_question_without_a_clip(serve: Servers, connect: Callable[..., HttpCaptioner]) -> None:
    got = heard(say_all(connect(serve()), {1: (None, "Sum it up.")})[1])
    assert (got["codes"], got["prompt"]) == ([], "Sum it up.")


def test_a_jpeg_sequence_tells_its_times_in_milliseconds(serve: Servers, connect: Callable[..., HttpCaptioner]) -> None:
    url = serve()
    captioner = connect(url, form="video")
    got = heard(say(captioner, "What?"))
    assert got["codes"] == [5, 5, 5]
    video = got["options"]["media_io_kwargs"]["video"]
    assert [number / video["fps"] for number in video["frames_indices"]] == [0.0, 0.5, 1.0]
    assert (video["num_frames"], video["do_sample_frames"]) == (3, False)
    assert video["total_num_frames"] / video["fps"] == pytest.approx(BLANK.info.duration, abs=0.002)
    assert captioner.fingerprint != connect(url).fingerprint, "another way to show the frames is another recipe"


def test_sampling_is_sent_when_it_was_asked_for() -> None:
    bold = GenerationOptions(temperature=0.7, top_p=0.9, top_k=40, seed=3, stop=("END",))
    body = chat_body(None, None, "Hi", bold)
    assert "model" not in body
    assert {name: body[name] for name in ("temperature", "top_p", "top_k", "seed", "stop")} == {
        "temperature": 0.7, "top_p": 0.9, "top_k": 40, "seed": 3, "stop": ["END"],
    }  # fmt: skip


def test_a_wide_clip_is_planned_smaller_and_keeps_its_shape(clips: dict[str, Path]) -> None:
    plan: TokenPlan = open_clip(clips["constant"], "", server_spec(pixels=64 * 64), None).plan
    assert plan.frame_size is not None
    height, width = plan.frame_size
    assert height * width <= 64 * 64
    assert width > height


# ------------------------------------------------------------------------------- every clip its own answer, at any pace


def test_a_hundred_clips_each_get_their_own_caption_from_a_crowded_flaky_server(
    serve: Servers, connect: Callable[..., HttpCaptioner]
) -> None:
    url = serve("--slots", "8", "--crowd", "6", "--seconds", "0.02")
    captioner = connect(url)
    orders = ["", "do=500:1", "do=429:2", "do=close:1", "do=nonsense:1", "do=other:1"]
    asked = {n: (a_clip(n % 256), f"clip {n} {orders[n % 7] if n % 7 < 6 else ''}") for n in range(100)}
    said = say_all(captioner, asked)
    for ticket, one in said.items():
        got = heard(one)
        assert set(got["codes"]) == {ticket % 256}
        assert got["prompt"].startswith(f"clip {ticket} ")
    assert stats(url)["most"] > 1, "requests overlap"


def test_more_are_asked_at_once_than_at_first(serve: Servers, connect: Callable[..., HttpCaptioner]) -> None:
    """How many more depends on the machine's mood as well; what is right for which server `test_pacing` computes."""
    url = serve("--slots", "16", "--seconds", "0.2")
    say_all(connect(url), {n: (None, f"clip {n}") for n in range(100)})
    assert stats(url)["most"] >= 8


# ------------------------------------------------------------------------------------------------ a server that fails


@pytest.mark.parametrize(
    ("order", "cause"),
    [
        ("do=hang", "no answer within 1 s, 2 times"),
        ("do=drip", "no answer within 1 s, 2 times"),
        ("do=close", "broke the connection off"),
        ("do=nonsense", 'no chat completion: {"id": 7'),
        ("do=html", "no chat completion: <html><body>It works!"),
        ("do=huge", "larger than 8 MB"),
        ("do=other", "the answer of another request"),
        ("do=500", "answered 500: Internal Server Error: [31mCUDA error"),
        ("do=400", "answered 400: At most 1 image(s) may be provided in one prompt."),
        ("do=think", "only thought; raise --max-new-tokens"),
        ("do=filter", "content filter"),
    ],
)
def test_a_misbehaving_server_is_the_clips_error_with_its_cause(
    serve: Servers, connect: Callable[..., HttpCaptioner], order: str, cause: str
) -> None:
    captioner = connect(serve(), request_seconds=1.0, attempts=2)
    said = say(captioner, f"A {order}")
    assert said.error is not None
    assert cause in said.error
    assert "\n" not in said.error
    assert len(said.error) < 300
    assert heard(say(captioner, "B"))["prompt"] == "B", "and the next one is answered"


def test_a_server_that_hangs_is_asked_twice_and_told_of_once(
    serve: Servers, connect: Callable[..., HttpCaptioner]
) -> None:
    url, told = serve(), list[str]()
    captioner = connect(url, remark=told.append, request_seconds=0.5)
    said = say_all(captioner, {n: (None, f"clip {n} do=hang") for n in range(3)})
    assert {one.error for one in said.values()} == {"the server gave no answer within 0.5 s, 2 times"}
    assert stats(url)["requests"] == 2 * 3
    assert len(told) == 1
    assert told[0].startswith(f"{url}/v1: the server gave no answer within 0.5 s; --request-timeout says")


def test_an_empty_answer_is_told_as_it_is(serve: Servers, connect: Callable[..., HttpCaptioner]) -> None:
    said = say(connect(serve()), "A do=empty")
    assert (said.text, said.error, said.finish_reason) == ("", None, "stop")


@pytest.mark.parametrize("order", ["do=500:2", "do=close:2", "do=nonsense:3", "do=429:6", "do=newer:1"])
def test_what_passes_is_waited_for(serve: Servers, connect: Callable[..., HttpCaptioner], order: str) -> None:
    assert heard(say(connect(serve()), f"A {order}"))["codes"] == [5, 5, 5]


def test_fields_that_a_model_does_not_take_are_left_out_from_then_on(
    serve: Servers, connect: Callable[..., HttpCaptioner]
) -> None:
    """As GPT-5 takes no temperature and Mistral no seed; other requests may be under way meanwhile."""
    url, told = serve(), list[str]()
    captioner = connect(url, remark=told.append)
    prompts = [f"{n} do=newer do=plain do=seedless" for n in range(6)]
    said = say_all(captioner, {n: (None, prompt) for n, prompt in enumerate(prompts)})
    assert [heard(said[n])["prompt"] for n in range(6)] == prompts
    assert heard(said[5])["options"] == {"model": "seer", "max_completion_tokens": 99}
    assert sorted(line.partition(": ")[2] for line in told) == [
        "the model takes no seed; it is asked without", "the model takes no temperature; it is asked without",
    ]  # fmt: skip
    before = stats(url)["requests"]
    heard(say(captioner, "A do=newer do=plain do=seedless"))
    assert stats(url)["requests"] == before + 1


def test_a_value_out_of_range_is_the_clips_error(serve: Servers, connect: Callable[..., HttpCaptioner]) -> None:
    captioner = connect(serve())
    assert heard(say(captioner, "A"))["options"]["temperature"] == 0.0
    assert "at most 1" in (say(captioner, "A do=range").error or "")
    assert heard(say(captioner, "A"))["options"]["temperature"] == 0.0


def test_an_answer_cut_off_in_the_middle_is_asked_for_again(
    serve: Servers, connect: Callable[..., HttpCaptioner]
) -> None:
    url = serve()
    assert heard(say(connect(url, request_seconds=1.0), "A do=drip:1"))["codes"] == [5, 5, 5]
    assert stats(url)["requests"] == 2


def test_a_server_that_always_says_later_is_the_clips_error_in_the_end(
    serve: Servers, connect: Callable[..., HttpCaptioner]
) -> None:
    said = say(connect(serve(), busy_seconds=1.0), "A do=429")
    assert said.error is not None
    assert "answered 429: slow down" in said.error


def test_waiting_for_its_turn_is_no_being_put_off(serve: Servers, connect: Callable[..., HttpCaptioner]) -> None:
    captioner = connect(serve("--seconds", "0.5"), most_at_once=1, busy_seconds=0.2)
    said = say_all(captioner, {0: (None, "first"), 1: (None, "second do=500:1"), 2: (None, "third do=500:1")})
    assert [one.error for one in said.values()] == [None] * 3


def test_retry_after_is_kept(serve: Servers, connect: Callable[..., HttpCaptioner]) -> None:
    began = time.monotonic()
    say(connect(serve()), "A do=429:3")
    assert time.monotonic() - began > 0.6


def test_a_server_that_only_fails_ends_the_run_before_all_are_errors(
    serve: Servers, connect: Callable[..., HttpCaptioner]
) -> None:
    captioner = connect(serve(), attempts=1, in_a_row=3)
    with pytest.raises(EngineError, match=r"3 requests in a row got no answer.*--retry-errors"):
        say_all(captioner, {n: (None, f"clip {n} do=500") for n in range(50)})


def test_refusals_do_not_end_a_run_in_which_others_are_answered(
    serve: Servers, connect: Callable[..., HttpCaptioner]
) -> None:
    captioner = connect(serve(), in_a_row=3)
    heard(say(captioner, "fine"))
    said = say_all(captioner, {n: (None, f"clip {n} do=400") for n in range(20)})
    assert all(one.error and "At most 1 image" in one.error for one in said.values())


def test_a_server_that_dies_ends_the_run_with_one_line(serve: Servers, connect: Callable[..., HttpCaptioner]) -> None:
    captioner = connect(serve("--seconds", "0.2"))
    heard(say(captioner, "alive"))
    serve.processes[0].kill()
    with pytest.raises(
        EngineError, match=r"nothing answers at http://127\.0\.0\.1.*start the server and run"
    ) as caught:
        say_all(captioner, {n: (None, f"clip {n}") for n in range(50)})
    assert "\n" not in str(caught.value)


def test_a_server_that_restarts_costs_a_pause(serve: Servers, connect: Callable[..., HttpCaptioner]) -> None:
    url = serve("--seconds", "0.05")
    captioner = connect(url, absent_seconds=PATIENT_SECONDS)
    heard(say(captioner, "alive"))
    for ticket in range(4):
        captioner.submit(ticket, a_clip(ticket), f"clip {ticket}", GREEDY)
    process = serve.processes[0]
    process.kill()
    process.wait()
    time.sleep(1)
    serve("--port", url.rpartition(":")[2])
    said: list[Said] = []
    until = time.monotonic() + PATIENT_SECONDS
    while len(said) < 4 and time.monotonic() < until:
        said += captioner.poll(0.1)
    assert {one.ticket: set(heard(one)["codes"]) for one in said} == {n: {n} for n in range(4)}


def test_closing_gives_up_what_hangs_at_once(serve: Servers) -> None:
    captioner = HttpCaptioner.connect(serve())
    captioner.submit(0, None, "A do=hang", GREEDY)
    assert captioner.poll(0.2) == []
    began = time.monotonic()
    captioner.close()
    assert time.monotonic() - began < 300  # the server sleeps for 600
    captioner.close()


# --------------------------------------------------------------------------------------------------------- connecting


def test_nobody_there_is_one_line_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(EngineError, match=rf"nothing answers at http://127.0.0.1:{port}/v1 .*start the server"):
        HttpCaptioner.connect(f"http://127.0.0.1:{port}")


def test_the_key_comes_from_the_environment(
    serve: Servers, connect: Callable[..., HttpCaptioner], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = serve("--key", "sesame")
    for name in ("VIDLLM_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(EngineError, match="Invalid API key; set VIDLLM_API_KEY"):
        connect(url)
    monkeypatch.setenv("VIDLLM_API_KEY", "sesame")
    heard(say(connect(url), "open"))


@pytest.mark.parametrize("key", ["sk-a/b+c=0123456789", 'sk-"quoted\\\\"', "short"])
@pytest.mark.parametrize("order", ["blab", "blab-page", "blab-away"])
def test_a_server_that_repeats_the_key_does_not_get_it_into_a_message(
    serve: Servers, connect: Callable[..., HttpCaptioner], monkeypatch: pytest.MonkeyPatch, key: str, order: str
) -> None:
    monkeypatch.setenv("VIDLLM_API_KEY", key)
    captioner = connect(serve(), attempts=1)
    heard(say(captioner, "fine"))
    said = say(captioner, f"A do={order}").error
    assert said is not None
    assert said.count("***") == 1
    assert not any(part in said for part in (key, key[:5], key[-5:], "Bearer s"))


def test_a_refused_key_is_not_in_the_message(
    serve: Servers, connect: Callable[..., HttpCaptioner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDLLM_API_KEY", "sk-wrong-0123456789")
    with pytest.raises(EngineError, match=r"Invalid API key Bearer \*\*\*; set VIDLLM_API_KEY"):
        connect(serve("--key", "sesame"))


def test_a_name_and_password_in_the_address_are_not_in_a_message(
    serve: Servers, connect: Callable[..., HttpCaptioner], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VIDLLM_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    captioner = connect(serve().replace("://", "://me:swordfish@"), attempts=1)
    heard(say(captioner, "fine"))
    said = say(captioner, "A do=blab").error
    assert said is not None
    assert said.endswith("Basic ***")


@pytest.mark.parametrize("key", ["sk-0123456789\r\n", " sk-0123456789 "])
def test_blanks_around_a_key_are_no_part_of_it(
    serve: Servers, connect: Callable[..., HttpCaptioner], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("VIDLLM_API_KEY", key)
    heard(say(connect(serve("--key", "sk-0123456789")), "open"))


@pytest.mark.parametrize("key", ["sk-01234\n56789", "sk-0123456789-\u20ac", "clé-secrète-0123"])
def test_what_can_be_no_key_is_one_line_without_it(
    serve: Servers, connect: Callable[..., HttpCaptioner], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("VIDLLM_API_KEY", key)
    with pytest.raises(ConfigError, match=r"^\$VIDLLM_API_KEY holds a letter that no key has") as caught:
        connect(serve())
    assert key not in str(caught.value)


def test_an_openai_key_never_goes_over_a_network_in_clear() -> None:
    env = {"OPENAI_API_KEY": "secret"}
    assert Endpoint.of("http://cluster:8000").key(env) is None
    assert Endpoint.of("http://localhost:8000").key(env) == "secret"
    assert Endpoint.of("https://api.openai.com/v1").key(env) == "secret"
    assert Endpoint.of("http://cluster:8000").key({**env, "VIDLLM_API_KEY": "own"}) == "own"


def test_several_models_want_a_choice(serve: Servers, connect: Callable[..., HttpCaptioner]) -> None:
    url = serve("--model", "big,small")
    with pytest.raises(ConfigError, match=r"several models \(big, small\); name one with --model"):
        connect(url)
    assert heard(say(connect(url, "small"), "A"))["options"]["model"] == "small"


def test_a_server_without_a_list_says_its_name_in_an_answer(
    serve: Servers, connect: Callable[..., HttpCaptioner]
) -> None:
    captioner = connect(serve("--no-list"))
    assert captioner.model == "seer@served"
    assert captioner.fingerprint.startswith("server:seer@served:")
    assert "model" not in heard(say(captioner, "A"))["options"]


def test_a_wrong_address_ends_the_run(serve: Servers, connect: Callable[..., HttpCaptioner]) -> None:
    captioner = connect(f"{serve()}/api", "seer")
    with pytest.raises(EngineError, match="answered 404: Not Found; check the address and --model"):
        say(captioner, "A")


@pytest.mark.parametrize(
    ("typed", "chat"),
    [
        ("http://host:8000", "http://host:8000/v1/chat/completions"),
        ("http://host:8000/", "http://host:8000/v1/chat/completions"),
        ("HTTPS://host/v1/", "https://host/v1/chat/completions"),
        ("https://host/openai/v1", "https://host/openai/v1/chat/completions"),
        ("http://host/v1/chat/completions", "http://host/v1/chat/completions"),
        ("http://[::1]:8000/v1?x=1#y", "http://[::1]:8000/v1/chat/completions?x=1"),
    ],
)
def test_an_address_is_what_a_person_types(typed: str, chat: str) -> None:
    assert Endpoint.of(typed).chat == chat


@pytest.mark.parametrize(
    "typed", ["ftp://host", "http://", "host:8000", "http://host:port", "http://host:99999", "http://[::1:8000"]
)
def test_what_is_no_address(typed: str) -> None:
    with pytest.raises(ConfigError, match="no address of a server"):
        Endpoint.of(typed)


@pytest.mark.parametrize("typed", ["http://a..b/v1", "http://ex\u0430mple_.:1/v1"])
def test_a_name_that_no_host_has_is_told_in_one_line(typed: str) -> None:
    with pytest.raises(ConfigError, match="no address of a server"):
        list_models(Endpoint.of(typed))


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "foo://x"])
def test_a_proxy_that_can_not_be_used_is_told_in_one_line(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(ConfigError, match=r"the proxy in .*unset it"):
        list_models(Endpoint.of("http://127.0.0.1:9"))


def test_what_stands_behind_the_address_stays_there(serve: Servers, connect: Callable[..., HttpCaptioner]) -> None:
    query = "api-version=2024-10-21&code=abc%2Fdef12"
    captioner = connect(f"{serve('--query', query)}/v1/chat/completions?{query}")
    assert captioner.model == "seer"
    assert heard(say(captioner, "A"))["codes"] == [5, 5, 5]
    told = say(captioner, "do=blab-query").error
    assert told is not None
    assert "/v1/chat/completions?api-version=2024-10-21&code=***" in told
    assert str(Endpoint.of(f"http://host/v1?{query}")) == "http://host/v1"


def test_azure_gets_the_key_under_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDLLM_API_KEY", "secret-key")
    azure = "https://a.openai.azure.com/openai/deployments/d?api-version=1"
    for typed, key in ((azure, "secret-key"), ("https://host/v1", None)):
        headers = open_client(Endpoint.of(typed), HttpOptions()).headers
        assert (headers["Authorization"], headers.get("api-key")) == ("Bearer secret-key", key)


def test_a_password_is_never_shown() -> None:
    assert str(Endpoint.of("http://me:secret@host:1/v1")) == "http://host:1/v1"


def test_impossible_patience() -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        HttpOptions(attempts=0)


# -------------------------------------------------------------------------------------------------- what is understood


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (b'{"error": {"message": "no\\nroom", "type": "x"}}', "no room"),
        (b'{"error": "down"}', "down"),
        (b'{"error": null, "message": "down"}', "down"),
        (b'{"error": {"message": null, "code": 7}}', '{"message": null, "code": 7}'),
        (b'{"object": "error", "message": "too long", "code": 400}', "too long"),
        (b'{"detail": [{"loc": ["body"], "msg": "field required"}]}', '[{"loc": ["body"], "msg": "field required"}]'),
        (b"<html>Bad   Gateway</html>", "<html>Bad Gateway</html>"),
        (b"", "nothing"),
        (b"\xff\xfe\x00", "\ufffd\ufffd"),
        (b"[1]", "[1]"),
        (b"[" * 100_000, "[" * 197 + "..."),
    ],
)
def test_where_a_server_says_what_is_wrong(body: bytes, line: str) -> None:
    assert complaint(body) == line


def test_a_list_of_models_that_is_none() -> None:
    for body in (b"", b"[1]", b'{"data": [7]}', b"[" * 100_000):
        assert read_models(body) == []


@pytest.mark.parametrize("tokens", [True, 2**70, -1, 1.5, "7", None])
def test_a_number_of_tokens_that_is_none(tokens: object) -> None:
    choice = {"message": {"content": "A red ball."}, "finish_reason": "stop"}
    reply = read_reply(json.dumps({"choices": [choice], "usage": {"prompt_tokens": tokens}}).encode())
    assert (type(reply.prompt_tokens), reply.prompt_tokens) == (int, 0), "Parquet has a column of whole numbers"


@pytest.mark.parametrize("reason", [0, False, {}, [], 7])
def test_a_reason_to_finish_is_a_word_in_the_row(reason: object) -> None:
    """Else `caption-verify` would not know its row for one."""
    choice = {"message": {"content": "A red ball."}, "finish_reason": reason}
    assert read_reply(json.dumps({"choices": [choice]}).encode()).finish_reason == str(reason)


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_half_an_answer_is_none(reason: str) -> None:
    choice = {"message": {"content": "A red"}, "finish_reason": reason}
    with pytest.raises(Nonsense, match=rf"broke its answer off \({reason}\): A red"):
        read_reply(json.dumps({"choices": [choice]}).encode())


def test_content_may_come_in_parts() -> None:
    parts = [{"type": "text", "text": " A red"}, {"type": "text", "text": " ball. "}]
    answer = {"choices": [{"message": {"content": parts}, "finish_reason": None}], "usage": None, "model": None}
    reply = read_reply(json.dumps(answer).encode())
    assert (reply.text, reply.finish_reason, reply.model, reply.prompt_tokens) == ("A red ball.", None, "", 0)


@pytest.mark.parametrize(
    ("value", "seconds"), [("3", 3.0), ("0.5", 0.5), ("-1", 0.0), ("soon", None), ("nan", None), (None, None)]
)
def test_retry_after_in_seconds(value: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value) == seconds


def test_retry_after_as_a_date() -> None:
    import email.utils

    soon = retry_after_seconds(email.utils.formatdate(time.time() + 30, usegmt=True))
    assert soon is not None
    assert 25 < soon <= 31
    assert retry_after_seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert retry_after_seconds(f"Wed, 21 Oct {10**20} 07:28:00 GMT") is None
