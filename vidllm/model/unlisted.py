"""Unlisted: a model of a family there is no adapter for, read through its own processor and its own forward.

What its forward makes of a picture, up to what it hands to its language model, is a picture's tokens here: what is
learned to stand around it, between its tiles or behind its rows included. From there on it is read as any other.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vidllm.errors import UnsupportedModel
from vidllm.model.decoder import table_width
from vidllm.model.native import NativeLMM, behind
from vidllm.model.own_processor import OwnProcessor, blank
from vidllm.model.settings import rope_of
from vidllm.model.unlisted_specs import two_frames

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from vidllm.model.families import ModelSpec
    from vidllm.visuals import Visual

OF_ALL = {"input_ids", "attention_mask"}
"""What every language model takes, and is told otherwise here."""


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
        more = float(getattr(said, "output_multiplier", 1.0)) * float(getattr(said, "logit_scale", None) or 1.0)
        return more / float(getattr(said, "logits_scaling", 1.0))

    def encode_groups(self, groups: Tensor) -> Tensor:
        """Pictures (N, 1, S, S, 3) -> (N, n, D * (1 + k)), and behind that entries in the tables of all layers."""
        given = self.processor.pictures(groups[:, 0].cpu().numpy())
        return self._between(side_by_side(handed_over(self.network, self.language, self.placed(given))))

    def _between(self, tokens: Tensor) -> Tensor:
        """Of a picture's (N, L, ..) without the text around it."""
        return tokens[:, self._before : tokens.shape[1] - self._behind]

    def filled(self, ids: Sequence[int], tokens: Sequence[Tensor]) -> tuple[Tensor, dict[str, Any]]:
        """As `TextReader.filled`; what is seen has entries of its own in the tables of the layers, if there are such.
        """
        width = table_width(self._config)
        if tokens and self._added_before:
            return self._by_layer(*super().filled(ids, tokens))
        if not width or not tokens:
            return super().filled(ids, tokens)
        embeddings, deep = super().filled(ids, [own[:, :-width] for own in tokens])
        table, entries = deep["per_layer_inputs"], torch.cat([own[:, -width:] for own in tokens])
        places = torch.isin(torch.tensor(ids), torch.tensor([*self.spec.visual_ids])).nonzero()[:, 0].to(table.device)
        known = table.index_copy(1, places, entries.to(table).view(1, -1, *table.shape[2:]))
        return embeddings, {**deep, "per_layer_inputs": known}

    def _by_layer(self, embeddings: Tensor, deep: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """What `TextReader.filled` makes, as Granite's language model wants it."""
        added = dict(zip(self._added_before, deep["deepstack_visual_embeds"], strict=True))
        return embeddings, {"vision_mask": deep["visual_pos_masks"][..., None], "deepstack_features": added}

    @cached_property
    @torch.no_grad()
    def _added_before(self) -> tuple[int, ...]:
        """The layers before which what is seen is added again, where its language model wants them by number (Granite).
        """
        if "deepstack_features" not in inspect.signature(self.language.forward).parameters:
            return ()
        given = self.processor.pictures(blank(1, self.spec.image_size, self.spec.image_size))
        return tuple(sorted(handed_over(self.network, self.language, self.placed(given))["deepstack_features"]))

    def placed(self, given: Any) -> dict[str, Any]:
        """What a processor made, where the network is and in its numbers."""
        return dict(given.to(self.device, dtype=self.dtype))

    def beside(self, ids: Tensor) -> dict[str, Any]:
        """As `TextReader.beside`: the kinds of tokens, where the language model asks for them (ERNIE's experts)."""
        return super().beside(ids) | {name: kinds.to(ids.device)[ids] for name, kinds in self._kinds.items()}

    @property
    def blank(self) -> int:
        """A visual token's own id where kinds are told by it."""
        return self.spec.image_token_id if self._kinds else super().blank

    @cached_property
    def _kinds(self) -> dict[str, Tensor]:
        """The kind (V,) of every id under the language model's own keywords, as the processor tells them of a prompt
        that holds all that may stand around a picture.
        """
        side = self.spec.image_size
        named = inspect.signature(self.language.forward).parameters.keys() & self.processor.told(side, side).keys()
        if not (named := named - OF_ALL):
            return {}
        made = self.processor.prompt(two_frames(self.spec, self.tokenizer), self.spec, blank(2, side, side))
        kinds = torch.zeros(self.tokenizer.get_vocab_size(), dtype=torch.long)
        return {name: kinds.index_copy(0, made["input_ids"][0], made[name][0]) for name in named}

    def positions_of(self, ids: Sequence[int], visuals: Sequence[Visual], factor: float = 1.0) -> tuple[Tensor, int]:
        """As `positions_at`, of visuals."""
        sizes = [self._size(visual) for visual in visuals for _ in range(self._group_count(visual))]
        return self.positions_at(ids, sizes, factor)

    def positions_at(
        self, ids: Sequence[int], sizes: Sequence[tuple[int, int]], factor: float = 1.0
    ) -> tuple[Tensor, int]:
        """As `TextReader.positions_of`, of pictures of so many pixels (height, width)."""
        if not self.axes:
            return super().positions_of(ids, (), factor)
        positions = self._places(ids, sizes) if sizes else torch.arange(len(ids)).expand(self.axes, 1, -1)
        return positions.to(self.device), behind(positions)

    @cached_property
    def axes(self) -> int:
        """How many it counts places along; 0: it counts tokens, one by one."""
        if "mrope_section" not in rope_of(self._config.to_dict()):
            return 0
        side, count = self.geometry.squares[0]
        return len(self._places([self.spec.image_token_id] * count, [(side, side)]))

    @torch.no_grad()
    def _places(self, ids: Sequence[int], sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Its own forward's (A, 1, L), which counts before it looks: it is given all that a processor makes but pixels.
        Empty where it leaves counting to its language model.
        """
        told = [self.processor.told(*size) for size in sizes]
        words = torch.tensor([ids])
        seen = torch.isin(words, torch.tensor([*self.spec.visual_ids]))
        ones, zeros = torch.ones_like(words), torch.zeros_like(words)
        of_words = {"input_ids": words, "attention_mask": ones, "mm_token_type_ids": zeros}
        given = {}
        for name in told[0].keys() - self._kinds.keys():
            own = [picture[name] for picture in told]
            if name in of_words:
                along = torch.cat([self._between(one) for one in own], dim=1).to(words)
                given[name] = of_words[name].masked_scatter(seen, along).to(self.device)
            else:
                given[name] = torch.cat(own).to(self.device)
        places = handed_over(self.network, self.language, given).get("position_ids")
        return words.new_empty(0) if places is None or places.ndim < 3 else places


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
    by_layer = said.get("deepstack_features") or {}
    added = said.get("deepstack_visual_embeds") or [by_layer[layer] for layer in sorted(by_layer)]
    places: Any = said.get("visual_pos_masks") if said.get("vision_mask") is None else said["vision_mask"][..., 0]
    deeper = [torch.zeros_like(embeddings).masked_scatter(places[..., None], seen.to(embeddings)) for seen in added]
    return torch.cat([embeddings, *deeper, *([] if table is None else [table.flatten(2)])], dim=-1)
