"""The model in this process as a Captioner: prompts into the batcher, finished answers out of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vidllm.answer import Usage
from vidllm.corpus.captioner import Said
from vidllm.errors import BudgetError, ConfigError, VidllmError
from vidllm.prompt import Message, Prompt, build_prompt

if TYPE_CHECKING:
    from vidllm.ask import Progress, VideoModel
    from vidllm.batching import Finished
    from vidllm.clip import Clip
    from vidllm.corpus.caption import CaptionOptions
    from vidllm.options import GenerationOptions


class LocalCaptioner:
    """A Captioner over `batching.Batcher`. `slots`: answers written side by side; None: what memory has room for."""

    name = "local"

    def __init__(
        self, model: VideoModel, *, slots: int | None = None, quantize: str | None = None, same_within: int = 0
    ) -> None:
        from vidllm.batching import Batcher
        from vidllm.model.lmm import ComposableLMM

        self.model = model.name
        precision = quantize or str(model.lmm.dtype).removeprefix("torch.")
        self.fingerprint = f"{model.lmm.fingerprint}|{precision}" + (f"|same {same_within}" if same_within else "")
        if isinstance(model.lmm, ComposableLMM):
            model.lmm.same_within = same_within
        elif same_within:
            raise ConfigError(f"{model.name}: its family encodes frames by itself; leave --same-within out")
        self.spec = model.spec
        self._tokenizer = model.lmm.tokenizer
        self._batcher = Batcher(model.lmm, slots=slots)
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

    def room(self) -> int:
        """Slots that are free, and half as many again waiting: a slot that becomes free is filled in the same step."""
        batcher = self._batcher
        return batcher.slots + batcher.slots // 2 + 1 - batcher.running - batcher.waiting

    def close(self) -> None:
        """Nothing runs by itself here."""

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
        usage = Usage(
            video_tokens=prompt.video_tokens, text_tokens=prompt.text_tokens, answer_tokens=len(answer.token_ids),
            context=self.spec.context, rope_factor=prompt.rope_factor,
        )  # fmt: skip
        return Said(
            ticket=finished.ticket, text=answer.text, finish_reason=answer.finish_reason, usage=usage,
            seconds=finished.prefill_seconds + answer.seconds, model=self.model,
        )  # fmt: skip


def open_local(
    options: CaptionOptions, model: VideoModel | None = None, progress: Progress | None = None
) -> LocalCaptioner:
    """The options' model (or `model`, loaded already) in this process. Raises ModelError or ConfigError."""
    from vidllm.ask import load

    spread = options.device == "auto"
    model = model or load(
        options.model, device=None if spread else options.device, device_map="auto" if spread else None,
        dtype=options.dtype, quantize=options.quantize, cache=None, progress=progress,
    )  # fmt: skip
    return LocalCaptioner(model, slots=options.batch, quantize=options.quantize, same_within=options.same_within)
