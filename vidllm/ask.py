"""The front door: a path and a question in, an Answer out.

    model = vidllm.load()                                    # $VIDLLM_MODEL, else the built-in model
    model.ask("clip.mp4", "what happens at 0:30?").text
    for piece in model.stream("clip.mp4", "describe the video."): print(piece, end="")
    chat = model.chat("clip.mp4"); chat.ask("what happens at 0:30?"); chat.ask("and then?")

    for answer in model.ask_all([("a.mp4", "what happens?"), ("b.mp4", "how many?")]): print(answer)

`ask` begins anew every time. A chat remembers: what was read of the video and of earlier turns is not read again.
`ask_all` answers many questions side by side, each as `ask` would.
Torch is imported when a model is loaded, not with this file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

from vidllm.checks import check_whole
from vidllm.errors import ConfigError
from vidllm.model.families import ModelSpec, fetch_model, load_tokenizer, read_spec, resolve_model
from vidllm.model.resolve import ABOUT_BUILTIN, builtin_name, model_name
from vidllm.options import AskOptions, split_options
from vidllm.planned import Plan, plan_source
from vidllm.session import AnswerStream, ChatSession
from vidllm.sources import Progress, Source, sources_of, tell

if TYPE_CHECKING:
    import torch

    from vidllm.answer import Answer
    from vidllm.errors import VidllmError
    from vidllm.model.checkpoint import Quantize
    from vidllm.model.features import FeatureCache
    from vidllm.model.lmm import VideoLMM


def load(
    model: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: str | dict[str, str | int] | None = None,
    quantize: Quantize | None = None,
    cache: FeatureCache | Literal["auto"] | None = "auto",
    progress: Progress | None = None,
) -> VideoModel:
    """A model ready to be asked: a folder, a Hugging Face id, or None for $VIDLLM_MODEL and else the built-in one.

    `cache` keeps encoded frames between asks: "auto" in memory and in vidllm's cache folder, None not at all.
    Device, dtype, device_map and quantize as in `load_model`. Raises ModelError or ConfigError, one line.
    """
    tell(progress, "load")
    folder = fetch_model(None if model is None else str(model))
    from vidllm.model.checkpoint import load_model
    from vidllm.model.features import FeatureCache

    if not (cache is None or cache == "auto" or isinstance(cache, FeatureCache)):
        raise ConfigError(f'cache must be "auto", None or a FeatureCache, not {cache!r}; VIDLLM_CACHE names its folder')
    lmm = load_model(folder, device, dtype, device_map, quantize)
    return VideoModel(lmm, model_name(model), FeatureCache() if cache == "auto" else cache)


def plan(
    video: Source, question: str = "", *, model: str | Path | None = None, **options: Unpack[AskOptions]
) -> Plan:
    """What `ask` would show the model and what it would cost. No weight is loaded, and no frame is decoded but for the
    glances of the policy `change`. Raises VidllmError, one line.
    """
    look, _ = split_options(options)
    [source] = sources_of((video,))
    spec = read_spec(resolve_model(None if model is None else str(model), weights=False))
    return plan_source(source, question, spec, load_tokenizer(spec.folder), look)


class VideoModel:
    """A loaded model. `ask` and `stream` may be called from several threads; a ChatSession belongs to one."""

    def __init__(self, lmm: VideoLMM, name: str, cache: FeatureCache | None = None) -> None:
        self.lmm = lmm
        self.name = name
        self.cache = cache

    @property
    def spec(self) -> ModelSpec:
        """What the planning rooms know of the model."""
        return self.lmm.spec

    @property
    def about(self) -> str:
        """One line for its user: what it is, where it runs, and of a small model that ships what it knows."""
        from vidllm.model.checkpoint import describe

        what = f"{self.name}: {describe(self.lmm)}"
        return f"{what}; {ABOUT_BUILTIN}" if builtin_name(self.spec.folder) else what

    def ask(
        self, video: Source | Sequence[Source], question: str, *, progress: Progress | None = None,
        **options: Unpack[AskOptions],
    ) -> Answer:  # fmt: skip
        """Answer `question` about a video, a picture, or several of them in order. Raises VidllmError, one line."""
        return self.stream(video, question, progress=progress, **options).answer

    def stream(
        self, video: Source | Sequence[Source], question: str, *, progress: Progress | None = None,
        **options: Unpack[AskOptions],
    ) -> AnswerStream:  # fmt: skip
        """As `ask`, but text comes as it is written: the video is read now, the answer while you iterate."""
        return ChatSession(self, sources_of(video), options, progress, single=True).stream(question)

    def chat(
        self, video: Source | Sequence[Source], *, progress: Progress | None = None, **options: Unpack[AskOptions]
    ) -> ChatSession:
        """Several questions about the same video, each knowing the earlier ones. Nothing is opened before the first."""
        split_options(options)  # what was misspelt is told now, not with the first question
        return ChatSession(self, sources_of(video), options, progress)

    def ask_all(
        self, asked: Iterable[tuple[Source | Sequence[Source], str]], *, batch: int | None = None,
        **options: Unpack[AskOptions],
    ) -> Iterator[Answer | VidllmError]:  # fmt: skip
        """Answers to many (video, question), in their order and side by side: in float32 each is what `ask` says.

        `batch` answers are written at a time; None: as many as memory has room for. `asked` is read as answers are
        taken, and clips are opened ahead of them. What can not be answered is a VidllmError in its place: nothing is
        raised for one question. Raises ConfigError for options that no question could be asked with.
        """
        from vidllm.asks import side_by_side

        split_options(options)
        given: object = asked
        if isinstance(given, str | bytes) or not isinstance(given, Iterable):
            raise ConfigError(f"asked must be pairs of (video, question), got {type(asked).__name__}")
        if batch is not None:
            check_whole("batch", batch, 1)
        return side_by_side(self, asked, batch, options)
