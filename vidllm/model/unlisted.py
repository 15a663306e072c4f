"""Unlisted: a model of a family there is no adapter for, read through its own processor and its own forward.

What its forward makes of a picture, up to what it hands to its language model, is a picture's tokens here: what is
learned to stand around it, between its tiles or behind its rows included. From there on it is read as any other.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vidllm.errors import UnsupportedModel
from vidllm.model.native import NativeLMM
from vidllm.model.own_processor import OwnProcessor
from vidllm.model.reader import table_width

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from vidllm.model.families import ModelSpec


class Unlisted(NativeLMM):
    """Frames and pictures are squares of the sides its spec names. See `proof` for whom it is right."""

    words_in_features = True

    def __init__(
        self, spec: ModelSpec, tokenizer: Tokenizer, network: nn.Module, fingerprint: str, *, chunk: int = 4
    ) -> None:
        super().__init__(spec, tokenizer, network, fingerprint, chunk=chunk)
        self.processor = OwnProcessor(spec.folder)
        self._vision_key += f"|{self.processor.name}"
        texts = spec.picture_text.split("{image}")
        self._before, self._behind = (len(tokenizer.encode(text, add_special_tokens=False)) for text in texts)
        """Ids of the text around a picture."""

    @property
    def cap(self) -> float | None:
        """What no logit exceeds, where its language model's config names that."""
        most: float | None = getattr(self._config, "final_logit_softcapping", None)
        return most

    @property
    def scale(self) -> float:
        """What logits are multiplied by before that, likewise."""
        said = self._config
        return float(getattr(said, "output_multiplier", 1.0)) / float(getattr(said, "logits_scaling", 1.0))

    def encode_groups(self, groups: Tensor) -> Tensor:
        """Pictures (N, 1, S, S, 3) -> (N, n, D * (1 + k)), and behind that entries in the tables of all layers."""
        given = self.processor.pictures(groups[:, 0].cpu().numpy())
        whole = side_by_side(handed_over(self.network, self.language, self.placed(given)))
        return whole[:, self._before : whole.shape[1] - self._behind]

    def filled(self, ids: Sequence[int], tokens: Sequence[Tensor]) -> tuple[Tensor, dict[str, Any]]:
        """As `TextReader.filled`; what is seen has entries of its own in the tables of the layers, if there are such.
        """
        width = table_width(self._config)
        if not width or not tokens:
            return super().filled(ids, tokens)
        embeddings, deep = super().filled(ids, [own[:, :-width] for own in tokens])
        table, entries = deep["per_layer_inputs"], torch.cat([own[:, -width:] for own in tokens])
        places = torch.isin(torch.tensor(ids), torch.tensor([*self.spec.visual_ids])).nonzero()[:, 0].to(table.device)
        known = table.index_copy(1, places, entries.to(table).view(1, -1, *table.shape[2:]))
        return embeddings, {**deep, "per_layer_inputs": known}

    def placed(self, given: Any) -> dict[str, Any]:
        """What a processor made, where the network is and in its numbers."""
        return dict(given.to(self.device, dtype=self.dtype))


class _Heard(Exception):
    """Ends a forward where its language model would begin."""

    def __init__(self, said: dict[str, Any]) -> None:
        self.said = said


def handed_over(network: nn.Module, language: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """What the network's forward gives to its language model for these inputs, embeddings (B, L, D) in any case.

    Raises:
        UnsupportedModel: it gives none.
    """
    mine = threading.get_ident()  # another thread may be answering meanwhile

    def listen(_: nn.Module, args: tuple[object, ...], said: dict[str, Any]) -> None:
        if threading.get_ident() == mine:
            raise _Heard(said)

    handle = language.register_forward_pre_hook(listen, with_kwargs=True)
    try:
        network(**inputs)
    except _Heard as heard:
        if heard.said.get("inputs_embeds") is not None:
            return heard.said
    finally:
        handle.remove()
    raise UnsupportedModel(f"{type(network).__name__} does not put pictures among the words its language model reads")


def side_by_side(said: dict[str, Any]) -> Tensor:
    """Of all that is handed over what each token has of its own: (B, L, D * (1 + k)), then its entries in tables."""
    embeddings, table = said["inputs_embeds"], said.get("per_layer_inputs")
    deeper = [
        torch.zeros_like(embeddings).masked_scatter(said["visual_pos_masks"][..., None], seen.to(embeddings))
        for seen in said.get("deepstack_visual_embeds") or ()
    ]
    return torch.cat([embeddings, *deeper, *([] if table is None else [table.flatten(2)])], dim=-1)
