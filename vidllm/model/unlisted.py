"""Unlisted: a model of a family there is no adapter for, read through its own processor and its own forward.

What its forward makes of a picture, up to what it hands to its language model, is a picture's tokens here: what is
learned to stand around it, between its tiles or behind its rows included. From there on it is read as any other.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from vidllm.errors import UnsupportedModel
from vidllm.model.native import NativeLMM
from vidllm.model.own_processor import OwnProcessor

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from vidllm.model.families import ModelSpec


class Unlisted(NativeLMM):
    """Frames and pictures are squares of the sides its spec names. See `proof` for whom it is right."""

    def __init__(
        self, spec: ModelSpec, tokenizer: Tokenizer, network: nn.Module, fingerprint: str, *, chunk: int = 4
    ) -> None:
        super().__init__(spec, tokenizer, network, fingerprint, chunk=chunk)
        self.processor = OwnProcessor(spec.folder)
        self._vision_key += f"|{self.processor.name}"

    def encode_groups(self, groups: Tensor) -> Tensor:
        """Pictures (N, 1, S, S, 3) -> (N, n, D)."""
        given = self.processor.pictures(groups[:, 0].cpu().numpy())
        return handed_over(self.network, self.language, self.placed(given))

    def placed(self, given: Any) -> dict[str, Any]:
        """What a processor made, where the network is and in its numbers."""
        return dict(given.to(self.device, dtype=self.dtype))


class _Heard(Exception):
    """Ends a forward where its language model would begin."""

    def __init__(self, embeddings: Tensor | None) -> None:
        self.embeddings = embeddings


def handed_over(network: nn.Module, language: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """The embeddings (B, L, D) that the network's forward gives to its language model for these inputs.

    Raises:
        UnsupportedModel: it gives none.
    """
    mine = threading.get_ident()  # another thread may be answering meanwhile

    def listen(_: nn.Module, args: tuple[object, ...], said: dict[str, Any]) -> None:
        if threading.get_ident() == mine:
            raise _Heard(said.get("inputs_embeds"))

    handle = language.register_forward_pre_hook(listen, with_kwargs=True)
    try:
        network(**inputs)
    except _Heard as heard:
        if heard.embeddings is not None:
            return heard.embeddings
    finally:
        handle.remove()
    raise UnsupportedModel(f"{type(network).__name__} does not put pictures among the words its language model reads")
