"""Qwen3.5: its prompt is its processor's, and layers whose past runs along keep what a State promises."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.video_utils import VideoMetadata

from tests.planned import MINUTE, clip_of, prompt_of, spec_of, tiny_folder
from tests.test_batching import mixed_work, one_by_one, run, said
from tests.test_lmm import pictures, prompt_for
from tests.test_native import load, video_prompt
from tests.tiny_models import edit, with_text
from vidllm.batching import STEP_TOKENS, Batcher
from vidllm.engine import read
from vidllm.errors import NotAVisionModel, UnsupportedModel
from vidllm.model import running
from vidllm.model.checkpoint import load_model
from vidllm.model.families import read_spec
from vidllm.model.native import NativeLMM
from vidllm.model.slots import RUNNING_COPIES
from vidllm.options import GenerationOptions
from vidllm.prompt import Message, Prompt
from vidllm.visuals import Image

TIMES = [0.0, 5.0, 10.0, 15.0]
CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 0}


class Processor:
    """What the family's own does around its tokenizer; the class itself wants torchvision, for its videos."""

    merge_size = temporal_patch_size = 2
    image_token, video_token = "<|image_pad|>", "<|video_pad|>"
    vision_start_token, vision_end_token = "<|vision_start|>", "<|vision_end|>"
    _calculate_timestamps = Qwen3VLProcessor._calculate_timestamps

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.image_processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self.video_processor = self

    def ids(self, messages: list[dict[str, Any]], marker: str, shown: list[str]) -> list[int]:
        """Of the template's text, a placeholder for each of `shown` in it."""
        text = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, enable_thinking=False
        )
        first, *others = str(text).split(marker)
        whole = first + "".join(one + other for one, other in zip(shown, others, strict=True))
        return list(self.tokenizer.encode(whole, add_special_tokens=False))


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor(tiny_folder("qwen3_5"))


@pytest.fixture(params=["qwen3_5", "lfm2_vl"])
def model(request: pytest.FixtureRequest, tiny: Callable[[str], Path]) -> NativeLMM:
    """It, and LFM2-VL, which keeps its convolutions' states alone."""
    return load(tiny(request.param))


@pytest.fixture
def prompt(model: NativeLMM) -> Prompt:
    count = 2 * model.geometry.temporal_patch
    return video_prompt(model, pictures(count, 64, 96), TIMES[:count])


def turn(kind: str, count: int = 1) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*[{"type": kind}] * count, {"type": "text", "text": "what?"}]}]


@pytest.mark.parametrize("size", [(64, 64), (300, 421), (33, 700)])
def test_pictures_are_laid_out_as_the_processor_does(size: tuple[int, int], processor: Processor) -> None:
    media = tuple(Image(pixels) for pixels in (pictures(1, *size)[0], pictures(1, 128, 96)[0]))
    seen = processor.image_processor([image.pixels for image in media], return_tensors="pt")
    shown = [Qwen3VLProcessor.replace_image_token(processor, seen, i) for i in range(2)]  # type: ignore[arg-type]
    expected = processor.ids(turn("image", 2), processor.image_token, shown)
    assert list(prompt_of(spec_of("qwen3_5"), [Message("user", "what?", media)]).input_ids) == expected


@pytest.mark.parametrize("frames", [1, 4, 7])
def test_videos_are_laid_out_as_the_processor_does(frames: int, processor: Processor) -> None:
    spec = spec_of("qwen3_5")
    clip = clip_of(spec, frames=frames)
    height, width = clip.frames.pixels.shape[1:3]
    meta = VideoMetadata(total_num_frames=frames, fps=1000.0, duration=MINUTE.duration,
                         frames_indices=[round(t * 1000) for t in clip.frames.pts_seconds])  # fmt: skip
    seen = {"video_grid_thw": np.array([[-(-frames // 2), height // 16, width // 16]]), "video_metadata": [meta]}
    shown = Qwen3VLProcessor.replace_video_token(processor, seen, 0)  # type: ignore[arg-type]
    expected = processor.ids(turn("video"), processor.video_token, [shown])
    assert list(prompt_of(spec, [Message("user", "what?", (clip,))]).input_ids) == expected


def test_it_is_asked_to_answer_without_thinking_first() -> None:
    text = prompt_of(spec_of("qwen3_5"), [Message("user", "what?")]).text
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


# ------------------------------------------------------------------------------------------------- states that run


def test_a_state_can_be_continued_in_several_ways(model: NativeLMM, prompt: Prompt) -> None:
    """A single token moves a convolution's state on in place: not that of the state it was read behind."""
    start = model.prefill(prompt)
    before = {part: states.clone() for part, states in start.running.parts.items()}
    first = model.extend(model.extend(start, [5]), [6, 7])
    other = model.extend(start, [9])
    again = model.extend(model.extend(start, [5]), [6, 7])
    torch.testing.assert_close(again.logits, first.logits, **CLOSE)
    back = model.rewind(start)
    assert not first.alive
    torch.testing.assert_close(model.extend(back, [9]).logits, other.logits, **CLOSE)
    kinds = {"conv"} if model.spec.model_type == "lfm2_vl" else {"conv", "recurrent"}
    assert {part for part, _ in before} == kinds
    assert all(torch.equal(states, before[part]) for part, states in start.running.parts.items())


def test_going_back_into_a_state_leads_behind_its_visuals(model: NativeLMM, prompt: Prompt) -> None:
    """From there the rest is read again, also in a copy of the buffers; before it there is nothing to stand on."""
    start, more = model.prefill(prompt), [5, 6, 7, 8]
    expected = model.extend(start, [*more[:2], 9])
    told = model.extend(start, more)  # `expected` is the tip: this one has keys and values of its own
    for wish in (start.length + 2, start.length - 3, prompt.end_of_visuals):
        back = model.rewind(told, wish)
        assert back.length == prompt.end_of_visuals < start.length
        assert back.logits.numel() == 0
        whole = model.extend(back, [*prompt.input_ids[back.length :], *more[:2], 9])
        torch.testing.assert_close(whole.logits, expected.logits, **CLOSE)
        told = model.extend(model.rewind(whole, wish), prompt.input_ids[back.length :])
        torch.testing.assert_close(told.logits, start.logits, **CLOSE)
    assert expected.alive
    with pytest.raises(ValueError, match="can not rewind"):
        model.rewind(told, prompt.end_of_visuals - 1)


def test_a_follow_up_reads_what_was_shown_once(model: NativeLMM, prompt: Prompt) -> None:
    ids = (*prompt.input_ids[:-2], *range(40, 60))  # its end is another than that of the prompt that was asked
    past = read(model, replace(prompt, messages=(Message("user", "?"),)))
    told = read(model, replace(prompt, messages=(Message("user", "?"),), input_ids=ids), past=past)
    assert told.reused == prompt.end_of_visuals
    torch.testing.assert_close(told.state.logits, model.prefill(replace(prompt, input_ids=ids)).logits, **CLOSE)


def test_a_follow_up_to_text_alone_is_read_anew(model: NativeLMM) -> None:
    asked, more = (prompt_for(model, ids, []) for ids in (range(40, 60), (*range(40, 55), 7, 8)))  # type: ignore[arg-type]
    told = read(model, more, past=read(model, asked))
    assert told.reused == 0
    torch.testing.assert_close(told.state.logits, model.prefill(more).logits, **CLOSE)


def test_what_was_interrupted_can_be_read_again(model: NativeLMM, prompt: Prompt) -> None:
    """Some layers had read the token by then, and some had not."""
    state = model.extend(model.prefill(prompt), [5])
    expected = model.extend(state, [6]).logits
    state = model.rewind(state)
    for layer in model.language.layers:  # type: ignore[union-attr]
        with interrupted(layer), pytest.raises(KeyboardInterrupt):
            model.extend(state, [6])
        torch.testing.assert_close(model.extend(state, [6]).logits, expected, **CLOSE)


def test_a_step_that_failed_can_be_made_again(model: NativeLMM) -> None:
    work = mixed_work(model)
    expected = one_by_one(model, work)
    batcher, done = Batcher(model, slots=3), {}
    for ticket, (prompt, options) in enumerate(work):
        batcher.submit(ticket, prompt, options)
    while batcher.waiting or batcher.running:
        done |= {finished.ticket: finished for finished in batcher.step()}
        with suppress(KeyboardInterrupt), interrupted(model.language.layers[2]):  # type: ignore[union-attr,index]
            assert batcher.step() == []
    assert said(done) == expected


def interrupted(layer: Any) -> Any:
    """Ctrl-C in it, as long as the context lasts."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    return layer.register_forward_pre_hook(stop)


def test_what_runs_beside_a_row_counts_as_its_memory(
    model: NativeLMM, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = model.prefill(prompt)
    assert state.length + 2 <= STEP_TOKENS
    tokens = sum(part.nbytes for layer in state.kv.layers.values() for part in layer.first(1))
    row = STEP_TOKENS * tokens + RUNNING_COPIES * state.running.nbytes
    monkeypatch.setattr("vidllm.batching.free_bytes", lambda device: 2 * 12 * row)  # half of it is used
    batcher = Batcher(model)
    assert len(run(batcher, [(prompt, GenerationOptions(max_new_tokens=2))] * 9)) == 9
    assert batcher.slots == 12


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_it_is_said_where_a_gpu_lacks_its_kernels(
    device: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "KERNELS", {"no_such_module": "no-such-package", "torch": "torch"})
    with caplog.at_level("WARNING", logger="vidllm"):
        running.note_slow_layers("qwen3_5", torch.device(device))
    told = ["qwen3_5: its linear attention is computed in plain torch, slow on a GPU; in bfloat16 it is faster after "
            "pip install no-such-package"]  # fmt: skip
    assert caplog.messages == (told if device == "cuda" else [])


# -------------------------------------------------------------------------------------------------------- refusals


def test_a_model_whose_frames_are_pooled_must_not_run(tmp_path: Path) -> None:
    layers = {"layer_types": ["linear_attention", "full_attention"]}
    with pytest.raises(UnsupportedModel, match=r"'qwen3_5_text' keeps more of the past .* \(linear_attention\)"):
        load_model(with_text(tmp_path, "qwen3_5_text", **layers), device="cpu", dtype="float32")


def test_the_text_model_alone_does_not_see(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    edit(tmp_path / "config.json", model_type="qwen3_5_text", hidden_size=32)
    with pytest.raises(NotAVisionModel, match="'qwen3_5_text' is a text-only model"):
        read_spec(tmp_path)
