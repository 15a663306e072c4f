"""The model in this process as a Captioner: prompts into the batcher, finished answers out of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vidllm.corpus.captioner import Said
from vidllm.corpus.rows import RowUsage
from vidllm.errors import BudgetError, ConfigError, VidllmError
from vidllm.prompt import Message, Prompt, build_prompt

if TYPE_CHECKING:
    from vidllm.ask import VideoModel
    from vidllm.batching import Finished
    from vidllm.clip import Clip
    from vidllm.corpus.caption import CaptionOptions
    from vidllm.model.spec import ModelSpec
    from vidllm.options import GenerationOptions


def identity(fingerprint: str, spec: ModelSpec, dtype: str, quantize: str | None, same_within: int) -> str:
    """A `Captioner.fingerprint`: everything of a model here that shapes its captions.

    Raises ConfigError when frames that are nearly alike can not share features in this family.
    """
    if same_within and spec.kind == "native":
        raise ConfigError(f"{spec.folder}: its family encodes frames by itself; leave --same-within out")
    alike = f"same {same_within}" if same_within else None
    return "|".join(filter(None, (fingerprint, dtype, quantize, alike)))


class LocalCaptioner:
    """A Captioner over `batching.Batcher`. `slots`: answers written side by side; None: what memory has room for.

    `share`: see `Batcher`.
    """

    name = "local"
    loading = False

    def __init__(
        self, model: VideoModel, *, slots: int | None = None, quantize: str | None = None, same_within: int = 0,
        share: float = 1.0,
    ) -> None:  # fmt: skip
        from vidllm.batching import Batcher
        from vidllm.model.lmm import ComposableLMM

        self.model = model.name
        dtype = str(model.lmm.dtype).removeprefix("torch.")
        self.fingerprint = identity(model.lmm.fingerprint, model.spec, dtype, quantize, same_within)
        self._encoder = model.lmm if isinstance(model.lmm, ComposableLMM) else None
        if self._encoder is not None:
            self._before, self._encoder.same_within = self._encoder.same_within, same_within
        self.spec = model.spec
        self._tokenizer = model.lmm.tokenizer
        self._batcher = Batcher(model.lmm, slots=slots, share=share)
        self._prompts: dict[int, Prompt] = {}
        self._refused: list[Said] = []

    def submit(self, ticket: int, clip: Clip | None, prompt: str, options: GenerationOptions) -> None:
        """See `Captioner`."""
        try:
            built = self._build(clip, prompt, options)
        except VidllmError as error:
            self._refused.append(Said(ticket=ticket, error=str(error), model=self.model))
            return
        self._prompts[ticket] = built
        room = min(options.max_new_tokens, built.max_new_tokens)
        self._batcher.submit(ticket, built, replace(options, max_new_tokens=room))

    def poll(self, wait: float) -> list[Said]:
        """One step of everything that runs; see `Captioner`."""
        said, self._refused = self._refused, []
        if self._batcher.running or self._batcher.waiting:
            said += [self._said(finished) for finished in self._batcher.step()]
        return said

    @property
    def capacity(self) -> int:
        """Clips it takes at a time."""
        return self._batcher.capacity

    def room(self) -> int:
        """See `Captioner`."""
        return self.capacity - self._batcher.running - self._batcher.waiting

    def close(self) -> None:
        """Nothing runs by itself here; the model encodes frames as before."""
        if self._encoder is not None:
            self._encoder.same_within = self._before

    def _build(self, clip: Clip | None, prompt: str, options: GenerationOptions) -> Prompt:
        """The prompt, with the room the plan kept for its answer, or with more where `options` ask and it is there."""
        message = Message("user", prompt, () if clip is None else (clip,))
        wanted = options.max_new_tokens
        if clip is None or wanted > clip.plan.max_new_tokens:
            try:
                return build_prompt([message], self.spec, self._tokenizer, max_new_tokens=wanted)
            except BudgetError:
                if clip is None:
                    raise
        return build_prompt([message], self.spec, self._tokenizer)

    def _said(self, finished: Finished) -> Said:
        prompt = self._prompts.pop(finished.ticket)
        answer = finished.generated
        if answer is None:
            return Said(ticket=finished.ticket, error=finished.error or "no answer", model=self.model)
        usage = RowUsage(
            video_tokens=prompt.video_tokens, text_tokens=prompt.text_tokens, answer_tokens=len(answer.token_ids),
            context=self.spec.context, rope_factor=prompt.rope_factor,
        )  # fmt: skip
        return Said(
            ticket=finished.ticket, text=answer.text, finish_reason=answer.finish_reason, usage=usage,
            seconds=finished.encode_seconds + finished.prefill_seconds + answer.seconds, model=self.model,
        )  # fmt: skip


def load_wanted(options: CaptionOptions) -> VideoModel:
    """The options' model in this process. Raises ModelError or ConfigError."""
    from vidllm.ask import load

    spread = options.device == "auto"
    return load(
        options.model, device=None if spread else options.device, device_map="auto" if spread else None,
        dtype=options.dtype, quantize=options.quantize, cache=None,
    )  # fmt: skip


def open_local(options: CaptionOptions, model: VideoModel | None = None, *, share: float = 1.0) -> LocalCaptioner:
    """The options' model (or `model`, loaded already) as a Captioner. Raises ModelError or ConfigError."""
    return LocalCaptioner(
        model or load_wanted(options), slots=options.batch, quantize=options.quantize,
        same_within=options.same_within, share=share,
    )  # fmt: skip
