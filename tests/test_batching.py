"""Many prompts at once: every row says what it would say alone, whatever runs, ends or fails beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vidllm
import vidllm.model.resolve
from tests import test_lmm, test_native, tiny_models
from tests.conftest import write_stories
from tests.test_lmm import pictures
from vidllm.batching import Batcher, Finished
from vidllm.engine import generate, read
from vidllm.model.checkpoint import load_model
from vidllm.model.features import FeatureCache
from vidllm.model.kv import Layer
from vidllm.model.lmm import ComposableLMM
from vidllm.model.native import NativeLMM
from vidllm.model.slots import Slots
from vidllm.options import GenerationOptions
from vidllm.prompt import Message, Prompt, build_prompt

Tiny = Callable[[str], Path]
Work = Sequence[tuple[Prompt, GenerationOptions]]


def load(folder: Path) -> Any:
    return load_model(folder, device="cpu", dtype="float32")


def video_prompt(model: Any, frames: int, seed: int, factor: float = 1.0) -> Prompt:
    """A prompt about `frames` frames that no other seed shows."""
    if isinstance(model, NativeLMM):
        pixels = pictures(frames, *test_native.SIZES[model.spec.model_type], seed=seed)
        prompt = test_native.video_prompt(model, pixels, [4.0 * i for i in range(frames)])
        return replace(prompt, rope_factor=factor)
    side = model.spec.image_size
    strides = [2 + (seed + i) % 2 for i in range(frames)]
    return test_lmm.video_prompt(model, pictures(frames, side, side, seed=seed), strides, factor)


def mixed_work(model: Any, count: int = 9) -> list[tuple[Prompt, GenerationOptions]]:
    """Prompts of one to five frames, several RoPE factors, replies of 1 to 40 tokens, one of text alone."""
    lengths = [7, 40, 1, 23, 12, 33, 5, 18, 28]
    work = []
    for number in range(count):
        factor = (1.0, 1.37, 2.0)[number % 3] if model.spec.rope_scalable else 1.0
        prompt = video_prompt(model, 1 + number * 2 % 5, number, factor)
        work.append((prompt, GenerationOptions(max_new_tokens=lengths[number % 9])))
    words = model.tokenizer.encode("USER: what is a circle? ASSISTANT:", add_special_tokens=False).ids
    return [*work, (test_lmm.prompt_for(model, words, []), GenerationOptions(max_new_tokens=20))]


def one_by_one(model: Any, work: Work) -> list[tuple[tuple[int, ...], str, str]]:
    """What `read` and `generate` make of each."""
    said = []
    for prompt, options in work:
        told = generate(model, read(model, prompt).state, options).result
        said.append((told.token_ids, told.text, told.finish_reason))
    return said


def run(batcher: Batcher, work: Work) -> dict[int, Finished]:
    """Everything through one batcher, by ticket; no ticket may come twice."""
    for ticket, (prompt, options) in enumerate(work):
        batcher.submit(ticket, prompt, options)
    done: dict[int, Finished] = {}
    while batcher.waiting or batcher.running:
        for finished in batcher.step():
            assert finished.ticket not in done
            done[finished.ticket] = finished
        assert batcher.running <= batcher.slots
    return done


def said(done: dict[int, Finished]) -> list[tuple[tuple[int, ...], str, str]]:
    told = [done[ticket].generated for ticket in range(len(done))]
    return [(one.token_ids, one.text, one.finish_reason) for one in told if one is not None]


@pytest.mark.parametrize("name", list(tiny_models.FAMILIES))
def test_batched_equals_one_by_one(name: str, tiny: Tiny) -> None:
    """Every family, prompts of unlike lengths, frame counts and factors together: in turns, and all at once."""
    model = load(tiny(name))
    work = mixed_work(model)
    expected = one_by_one(model, work)
    assert len({ids for ids, *_ in expected}) == len(expected)  # they say different things: a swap would show
    for slots in (3, 16):
        done = run(Batcher(model, slots=slots), work)
        assert said(done) == expected, f"{slots} slots"
        assert not any(finished.alone for finished in done.values())


def test_sampling_stop_texts_and_loops_belong_to_their_row(tiny: Tiny) -> None:
    model = load(tiny("llava"))
    prompts = [video_prompt(model, 2, seed) for seed in range(4)]
    plain = one_by_one(model, [(prompt, GenerationOptions(max_new_tokens=30)) for prompt in prompts])
    stop = plain[1][1][4:8]
    options = [
        GenerationOptions(max_new_tokens=30, temperature=0.8, seed=3),
        GenerationOptions(max_new_tokens=30, stop=(stop,)),
        GenerationOptions(max_new_tokens=30, temperature=1.3, top_p=0.9, seed=3),
        GenerationOptions(max_new_tokens=30, temperature=1.0, top_k=5, seed=8),
    ]
    work = [*zip(prompts, options, strict=True), (prompts[0], GenerationOptions(max_new_tokens=90))]
    expected = one_by_one(model, work)
    assert expected[1][2] == "stop"
    assert said(run(Batcher(model, slots=4), work)) == expected


def test_a_loop_ends_its_row_and_no_other(tiny: Tiny) -> None:
    """A model whose layers add nothing says one token for ever, but for a prompt's own token ids."""
    model = load(tiny("llava"))
    for name, weight in model.network.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.zero_()
    model.network.lm_head.weight.copy_(model.embed.weight)  # says again what it read last
    work = [(test_lmm.prompt_for(model, [60 + n], []), GenerationOptions(max_new_tokens=60 - n)) for n in range(3)]
    work[1] = (work[1][0], replace(work[1][1], stop_on_loop=False))
    told = said(run(Batcher(model, slots=3), work))
    assert [reason for *_, reason in told] == ["repetition", "length", "repetition"]
    assert [len(ids) for ids, *_ in told] == [32, 59, 32]


def test_a_free_place_is_taken_at_once(tiny: Tiny) -> None:
    """Nine short answers beside one long one need the steps of the long one, not one batch after another."""
    model = load(tiny("llava"))
    lengths = [40, *[8] * 9]
    work = [(video_prompt(model, 1, n), GenerationOptions(max_new_tokens=m, stop_on_loop=False))
            for n, m in enumerate(lengths)]  # fmt: skip
    expected = [len(ids) for ids, *_ in one_by_one(model, work)]
    batcher = Batcher(model, slots=3)
    for ticket, (prompt, options) in enumerate(work):
        batcher.submit(ticket, prompt, options)
    steps = 0
    while batcher.waiting or batcher.running:
        ended = len(batcher.step())
        steps += 1
        assert not batcher.waiting or batcher.running + ended >= batcher.slots
    assert steps <= max(expected[0], -(-sum(expected) // 3) + max(expected[1:]))


def test_prompts_may_come_while_others_run(tiny: Tiny) -> None:
    """Clips that each spell a code in black and white frames, in and out at random: no caption changes clips."""
    model = load(tiny("llava"))
    side = model.spec.image_size
    codes = torch.randperm(64, generator=torch.Generator().manual_seed(1))[:40].tolist()
    work = []
    for code in codes:
        frames = pictures(6, side, side, seed=code)
        for bit in range(6):
            frames[bit, :, : side // 2] = 255 if code >> bit & 1 else 0
        prompt = test_lmm.video_prompt(model, frames, [2] * 6)
        work.append((prompt, GenerationOptions(max_new_tokens=10 + code % 7)))
    told = {ids[:10]: (mine, (ids, *rest)) for mine, (ids, *rest) in zip(work, one_by_one(model, work), strict=True)}
    work, expected = [mine for mine, _ in told.values()], [alone for _, alone in told.values()]
    assert len(work) > 25, "so many clips must be told from every other for a swap to show"
    batcher, done, coming = Batcher(model, slots=5), {}, list(enumerate(work))
    while coming or batcher.waiting or batcher.running:
        for _ in range(len(coming) % 3 + 1):
            if coming:
                ticket, (prompt, options) = coming.pop()
                batcher.submit(ticket, prompt, options)
        done |= {finished.ticket: finished for finished in batcher.step()}
    assert said(done) == expected


def test_near_duplicates_are_shared_within_a_clip_only(tiny: Tiny) -> None:
    """A clip that begins almost as another ended keeps its own first frame; equal frames are encoded once for all."""
    model = load(tiny("llava"))
    model.same_within = 3
    side = model.spec.image_size
    base = pictures(1, side, side)[0] // 2
    one = [base + 40, base, base + 1, base + 2]
    other = [base + 3, base + 60, base + 61]
    options = GenerationOptions(max_new_tokens=12)
    work = [(test_lmm.video_prompt(model, np.stack(clip), [2] * len(clip)), options)
            for clip in (one, other, one)]  # fmt: skip
    alone = one_by_one(model, work)
    done = run(Batcher(model, slots=3), work)
    assert said(done) == alone
    assert [done[ticket].frames_encoded for ticket in range(3)] == [2, 2, 0]


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_the_feature_cache_is_honoured(name: str, tiny: Tiny, tmp_path: Path) -> None:
    model = load(tiny(name))
    work = mixed_work(model, 4)
    cold = run(Batcher(model, slots=2, cache=FeatureCache(tmp_path)), work)
    warm = run(Batcher(model, slots=4, cache=FeatureCache(tmp_path)), work)
    assert said(cold) == said(warm) == one_by_one(model, work)
    assert sum(finished.frames_encoded for finished in cold.values()) > 0
    assert sum(finished.frames_encoded for finished in warm.values()) == 0


def test_a_text_that_prompts_begin_with_is_read_once(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it is Qwen's and the clips behind it differ; another RoPE factor shares nothing."""
    for name in ("llava", "qwen2_5_vl", "qwen3_vl"):
        model = load(tiny(name))
        system = Message("system", "You are a careful observer. " * 8)
        start = model.tokenizer.encode(system.text, add_special_tokens=False).ids
        work = []
        for seed in range(4):
            prompt = video_prompt(model, 2, seed)
            visuals = tuple(replace(visual, position=visual.position + len(start)) for visual in prompt.visuals)
            prompt = replace(prompt, input_ids=(*start, *prompt.input_ids), visuals=visuals)
            work.append((prompt, GenerationOptions(max_new_tokens=10)))
        if name == "llava":
            work.append((replace(work[0][0], rope_factor=1.5), work[0][1]))
        expected = one_by_one(model, work)
        lengths = []
        plain = model.read
        with monkeypatch.context() as patched:
            patched.setattr(model, "read", lambda *a, p=plain, n=lengths, **k: (n.append(a[0].shape[1]), p(*a, **k))[1])
            assert said(run(Batcher(model, slots=2), work)) == expected
        whole = [prompt.length for prompt, _ in work]
        assert lengths[0] == whole[0]
        assert all(read <= length - len(start) for read, length in zip(lengths[1:4], whole[1:4], strict=True)), name
        assert lengths[4:] == whole[4:]


# --------------------------------------------------------------------------------------------------------- failing


def test_an_error_costs_its_own_row_only(tiny: Tiny) -> None:
    """A miscounted plan, a video without a token, and a row whose numbers overflow, between good ones."""
    model = load(tiny("llava"))
    model.embed.weight[77] = torch.nan
    good = [(video_prompt(model, 2, seed), GenerationOptions(max_new_tokens=9)) for seed in range(5)]
    assert not any(77 in ids for ids, *_ in one_by_one(model, good))
    miscounted = video_prompt(model, 2, 9)
    miscounted = replace(miscounted, visuals=(replace(miscounted.visuals[0], tokens=13), *miscounted.visuals[1:]))
    unseen = build_prompt([Message("user", "what?", ())], model.spec, model.tokenizer)
    unseen = replace(unseen, messages=(Message("user", "what?", (vidllm.Image(pictures(1, 9, 9)[0]),)),))
    poisoned = test_lmm.prompt_for(model, [5, 77, 6], [])
    bad = [(prompt, GenerationOptions(max_new_tokens=9)) for prompt in (miscounted, unseen, poisoned)]
    work = [good[0], bad[0], good[1], bad[1], good[2], bad[2], good[3], good[4]]
    done = run(Batcher(model, slots=3), work)
    errors = {ticket: finished.error for ticket, finished in done.items() if finished.error}
    assert set(errors) == {1, 3, 5}
    assert "13 visual tokens" in str(errors[1])
    assert "no visual token" in str(errors[3])
    assert "not a number" in str(errors[5])
    assert all("\n" not in str(error) for error in errors.values())
    assert said({n: done[t] for n, t in enumerate((0, 2, 4, 6, 7))}) == one_by_one(model, good)


def starved(monkeypatch: pytest.MonkeyPatch, model: Any, method: str, too_much: Callable[..., bool]) -> list[int]:
    """Let `method` fail as a device without memory does, when it is asked for too much; how often it did."""
    plain, failures = getattr(model, method), []

    def call(*args: Any, **more: Any) -> Any:
        if too_much(*args):
            failures.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return plain(*args, **more)

    monkeypatch.setattr(model, method, call)
    return failures


@pytest.mark.parametrize(
    ("method", "too_much", "slots"),
    [
        ("step", lambda slots, tokens, *_: len(tokens) > 2, 1),  # 6, 3, 1: halves
        ("prepare", lambda prompts, *_: len(prompts) > 1, 6),
        ("read", lambda embeddings, kv, *_: kv.index > 2, 3),
    ],
)
def test_without_memory_fewer_rows_run(
    method: str, too_much: Callable[..., bool], slots: int, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tiny("llava"))
    work = mixed_work(model)
    expected = one_by_one(model, work)
    failures = starved(monkeypatch, model, method, too_much)
    batcher = Batcher(model, slots=6)
    assert said(run(batcher, work)) == expected
    assert failures
    assert batcher.slots == slots


@pytest.mark.parametrize("method", ["step", "prepare", "read"])
def test_a_prompt_that_never_fits_is_given_up_in_one_line(
    method: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others have their answers all the same."""
    model = load(tiny("llava"))
    work = [(video_prompt(model, 1 + 4 * (n == 1), n), GenerationOptions(max_new_tokens=8)) for n in range(4)]
    expected = one_by_one(model, work)
    large = work[1][0].length
    starved(monkeypatch, model, method, {
        "step": lambda slots, tokens, *_: max(slots.lengths[: len(tokens)]) >= large,
        "prepare": lambda prompts, *_: any(prompt.length == large for prompt in prompts),
        "read": lambda embeddings, *_: embeddings.shape[1] == large,
    }[method])  # fmt: skip
    done = run(Batcher(model, slots=3), work)
    assert "out of memory" in str(done[1].error)
    assert [done[t].generated.token_ids for t in (0, 2, 3)] == [expected[t][0] for t in (0, 2, 3)]  # type: ignore[union-attr]


def begun_alike(model: Any) -> list[tuple[Prompt, GenerationOptions]]:
    """Three prompts that begin with the same 40 tokens of text."""
    work = []
    for seed in range(3):
        prompt, start = video_prompt(model, 2, seed), tuple(range(5, 45))
        visuals = tuple(replace(visual, position=visual.position + len(start)) for visual in prompt.visuals)
        prompt = replace(prompt, input_ids=(*start, *prompt.input_ids), visuals=visuals)
        work.append((prompt, GenerationOptions(max_new_tokens=6)))
    return work


def test_memory_that_ends_with_the_copy_of_a_start_begins_no_row_twice(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tiny("llava"))
    work = begun_alike(model)
    expected = one_by_one(model, work)
    failures = starved(monkeypatch, Slots, "start", lambda slots, index, length: not failures)
    batcher, told = Batcher(model, slots=3), []
    for ticket, (prompt, options) in enumerate(work):
        batcher.submit(ticket, prompt, options)
    while batcher.waiting or batcher.running:
        told += batcher.step()
    assert failures
    assert sorted(finished.ticket for finished in told) == [0, 1, 2]
    assert said({finished.ticket: finished for finished in told}) == expected


def test_rows_that_begin_again_without_memory_read_their_common_start_again(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tiny("llava"))
    work = begun_alike(model)
    expected = one_by_one(model, work)
    failures = starved(monkeypatch, model, "step", lambda slots, tokens, *_: len(tokens) > 1)
    assert said(run(Batcher(model, slots=3), work)) == expected
    assert failures


@pytest.mark.parametrize("method", ["prepare", "read"])
def test_a_prompt_that_fits_without_the_buffers_of_others_is_answered(
    method: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tiny("llava"))
    work = [(video_prompt(model, 1 + 4 * (n == 1), n), GenerationOptions(max_new_tokens=8)) for n in range(4)]
    expected = one_by_one(model, work)
    large, batcher = work[1][0].length, Batcher(model, slots=3)
    failures = starved(monkeypatch, model, method, {
        "prepare": lambda prompts, *_: any(prompt.length == large for prompt in prompts) and batcher._buffers,
        "read": lambda embeddings, kv, *_: embeddings.shape[1] == large and kv.slots.rows > 1,
    }[method])  # fmt: skip
    assert said(run(batcher, work[:1])) + said(run(batcher, work[1:])) == expected
    assert failures
    assert batcher.slots > 1


@pytest.mark.parametrize(("asked", "fit"), [(None, 3), (10**14, 6)])
def test_free_memory_decides_how_many_run(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, asked: int | None, fit: int
) -> None:
    """Room for seven rows of the first prompt's size, half of it or nearly all; one ten times as long has buffers of
    its own."""
    model = load(tiny("llava"))
    work = [(video_prompt(model, 1, n), GenerationOptions(max_new_tokens=20)) for n in range(6)]
    words = [40 + n % 60 for n in range(900)]
    work.insert(3, (test_lmm.prompt_for(model, words, []), GenerationOptions(max_new_tokens=20)))
    token = 2 * 2 * 32 * 4  # keys and values, layers, width, bytes
    monkeypatch.setattr("vidllm.batching.free_bytes", lambda device: 2 * 3.5 * 64 * token)
    batcher = Batcher(model, slots=asked)
    done = run(batcher, work)
    assert batcher.slots == fit
    assert said(done) == one_by_one(model, work)
    assert [ticket for ticket in range(7) if done[ticket].alone] == [3]


def test_buffers_that_do_not_fit_are_halved(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Free memory was said to be there and was not."""
    model = load(tiny("llava"))
    work = mixed_work(model)
    failures = starved(monkeypatch, Layer, "resized", lambda layer, rows, _: rows > 3)
    batcher = Batcher(model, slots=13)
    assert said(run(batcher, work)) == one_by_one(model, work)
    assert len(failures) == 2
    assert batcher.slots == 3


def test_what_the_machine_says_of_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vidllm import machine
    from vidllm.model import memory

    free = memory.free_bytes(torch.device("cpu"))
    assert 0 < free < 2**50
    monkeypatch.setattr(machine, "CONTAINER", tmp_path)
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert memory.free_bytes(torch.device("cpu")) == 2000
    (tmp_path / "memory.stat").write_text("anon 400\ninactive_anon 7\ninactive_file 500\nactive_file 100\n")
    assert memory.free_bytes(torch.device("cpu")) == 2500, "what only caches files is free"
    assert not memory.is_out_of_memory(RuntimeError("size mismatch"))
    with pytest.raises(RuntimeError) as failed:
        torch.empty(2**50)
    assert memory.is_out_of_memory(failed.value)
    with pytest.raises(MemoryError) as failed_too:
        np.empty(2**55, np.uint8)
    assert memory.is_out_of_memory(failed_too.value)


@pytest.mark.parametrize(
    ("told", "cores"),
    [("max 100000", 64), ("200000 100000", 2), ("250000 100000", 3), ("20000 100000", 1), ("9900000 100000", 64)],
)
def test_a_container_has_the_cores_of_its_quota(
    told: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vidllm import machine

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(64), raising=False)
    monkeypatch.setattr(machine, "CONTAINER", tmp_path)
    assert machine.cores() == 64
    (tmp_path / "cpu.max").write_text(told + "\n")
    assert machine.cores() == cores


def test_a_process_with_a_share_of_the_cores_decodes_with_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    from vidllm import machine
    from vidllm.video.read_pyav import frame_threads

    monkeypatch.setattr(machine, "_share", None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(64), raising=False)
    assert frame_threads() > 1
    machine.take_share(1)
    assert machine.cores() == frame_threads() == 1


def test_an_interrupt_leaves_every_row_as_it_was(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first comes in the step in which a reply of one token ended: it was never told."""
    model = load(tiny("llava"))
    work = mixed_work(model)
    expected = one_by_one(model, work)
    plain, calls = model.step, []

    def step(*args: Any) -> Any:
        calls.append(1)
        if len(calls) % 5 == 1:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(model, "step", step)
    batcher, done, interrupts = Batcher(model, slots=3), {}, 0
    for ticket, (prompt, options) in enumerate(work):
        batcher.submit(ticket, prompt, options)
    while batcher.waiting or batcher.running:
        try:
            done |= {finished.ticket: finished for finished in batcher.step()}
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts > 1
    assert said(done) == expected


def test_what_ended_before_an_interrupt_of_the_same_step_is_not_stepped_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one beside the others is interrupted behind the step in which their replies ended."""
    model = load(tiny_models.with_text(tmp_path, "mistral", num_key_value_heads=2, sliding_window=60))
    work = [(video_prompt(model, 1 + 5 * n, n), GenerationOptions(max_new_tokens=2 + 9 * n)) for n in range(2)]
    expected = one_by_one(model, work)
    plain, calls = model.extend, []

    def extend(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(model, "extend", extend)
    batcher = Batcher(model, slots=2)
    for ticket, (prompt, options) in enumerate(work):
        batcher.submit(ticket, prompt, options)
    with pytest.raises(KeyboardInterrupt):
        batcher.step()
    assert said(run(batcher, ())) == expected


# ------------------------------------------------------------------------------------------------------- by itself


DEEPSEEK = {"n_routed_experts": 4, "first_k_dense_replace": 2, "kv_lora_rank": 8, "q_lora_rank": 8,
            "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "said_of_it", "alone"),
    [
        ("mistral", {"num_key_value_heads": 2, "sliding_window": 60}, [False, True, False]),
        (
            "llama4_text",
            {"head_dim": 8, "num_key_value_heads": 2, "num_local_experts": 2, "attention_chunk_size": 60,
             "pad_token_id": 0},
            [False, True, False],
        ),
        ("deepseek_v3", DEEPSEEK, [False, False, False]),
    ],
    ids=["window", "chunks", "values of another width"],
)  # fmt: skip
def test_unlike_attention_batches_as_it_can(
    kind: str, said_of_it: dict[str, object], alone: list[bool], tmp_path: Path
) -> None:
    """Mistral sees a window and Llama 4 its own chunk only: shorter rows share steps, the longer one runs beside them;
    DeepSeek's values are wider than its compressed keys."""
    model = load(tiny_models.with_text(tmp_path, kind, **said_of_it))
    options = GenerationOptions(max_new_tokens=12)
    work = [(video_prompt(model, frames, n), options) for n, frames in enumerate((1, 6, 1))]
    done = run(Batcher(model, slots=3), work)
    assert said(done) == one_by_one(model, work)
    assert [done[ticket].alone for ticket in range(3)] == alone


@pytest.mark.parametrize(
    ("kind", "said_of_it"),
    [
        ("gemma2", {"head_dim": 8, "num_key_value_heads": 2, "query_pre_attn_scalar": 8, "pad_token_id": 0}),
        ("deepseek_v3", DEEPSEEK),
    ],
)
def test_keys_are_widened_only_for_attention_that_takes_them(
    kind: str, said_of_it: dict[str, object], tmp_path: Path
) -> None:
    """In bf16 on a CPU; Gemma 2 attends by plain matrix products, DeepSeek keeps what its keys are made from."""
    model = load_model(tiny_models.with_text(tmp_path, kind, **said_of_it), device="cpu", dtype="bfloat16")
    work = [(video_prompt(model, 1, n), GenerationOptions(max_new_tokens=4)) for n in range(2)]
    assert one_by_one(model, work)
    assert all(finished.error is None for finished in run(Batcher(model, slots=2), work).values())


def test_attention_without_a_mask_per_row_runs_alone(tiny: Tiny) -> None:
    model = load(tiny("qwen2_5_vl"))
    model.language.config._attn_implementation = "eager"
    work = mixed_work(model, 4)
    done = run(Batcher(model, slots=3), work)
    assert said(done) == one_by_one(model, work)
    assert all(finished.alone for finished in done.values())


# ------------------------------------------------------------------------------------------------------ real models


def test_the_built_in_model_says_the_same_of_many_clips(tmp_path: Path) -> None:
    """World clips through the one road, several questions each, by the model that ships."""
    from vidllm.clip import open_clip

    model = vidllm.load(device="cpu", dtype="float32", cache=None).lmm
    assert isinstance(model, ComposableLMM)
    assert type(model.network).__name__ == "LightLlava"
    work = []
    for path in write_stories(2, tmp_path, seed=300):
        for question in ("describe the video.", "how many objects are there at 0:05?", "what happens at 0:08?"):
            clip = open_clip(path, question, model.spec, model.tokenizer)
            prompt = build_prompt([Message("user", question, (clip,))], model.spec, model.tokenizer)
            work.append((prompt, GenerationOptions(max_new_tokens=48)))
    expected = one_by_one(model, work)
    assert len({text for _, text, _ in expected}) > 3
    for slots in (2, 16):
        assert said(run(Batcher(model, slots=slots), work)) == expected


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_numbers_batch_too(dtype: str, tiny: Tiny) -> None:
    """Rounding may choose another word, so only most first tokens must agree; and no row may fail."""
    model = load_model(tiny("llava"), device="cpu", dtype=dtype)
    work = mixed_work(model)
    done = run(Batcher(model, slots=4), work)
    assert not any(finished.error for finished in done.values())
    pairs = zip(said(done), one_by_one(model, work), strict=True)
    assert sum(a[0][:1] == b[0][:1] for a, b in pairs) >= len(work) - 2


def test_no_slots_is_a_mistake(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match="at least one"):
        Batcher(load(tiny("llava")), slots=0)
