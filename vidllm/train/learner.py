"""A model that learns: the same road as asking, from pixels to hidden states, with gradients where parts may move.

    Batch -> visuals (tower, frozen or not; equal pictures once) -> tokens -> language model over the forest
          -> head on the positions that predict a target, and nowhere else -> log-probs (N,)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vidllm.errors import ConfigError, UnsupportedModel
from vidllm.model.checkpoint import choose_device, load_model
from vidllm.model.classes import is_listed
from vidllm.model.extras import Extras, load_extras
from vidllm.model.families import read_spec
from vidllm.model.lmm import ComposableLMM
from vidllm.model.reader import TextReader
from vidllm.model.running import note_slow_layers
from vidllm.train.adapters import EXTRAS, add_lora, base_name, save_adapter, save_whole, stored_dtype, without_lora
from vidllm.train.batch import Batch, Piece, Stage
from vidllm.train.losses import answer_logps
from vidllm.train.parts import PARTS, Extra, LearnerOptions, Part, part_of
from vidllm.train.proof import prove
from vidllm.train.running import run_along_trees
from vidllm.train.teachable import check_parts, learned_spec, no_part
from vidllm.train.tree import TREE, TreeAttention
from vidllm.visuals import Visual

if TYPE_CHECKING:
    from vidllm.model.spec import ModelSpec

NO_MASK = (1, 1, 1, 1)
"""Shape of the mask handed over in place of one: four dimensions tell transformers to build none of its own."""
BLANK = 112
"""Side, in pixels, of a picture of nothing for a tower that takes any size."""


class Learner(nn.Module):
    """A model, some of its parts learning. Dropout is off; `lmm` can be asked between steps after `eval()`.

    Whatever wraps it for several processes must call `forward`: all gradients flow from there.
    """

    def __init__(self, lmm: TextReader, options: LearnerOptions) -> None:
        super().__init__()
        self.lmm = lmm
        self.options = options
        self.network = lmm.network
        if lmm.extras is not None:
            self.extras = lmm.extras
        self.rates = options.parts.rates(lora=options.lora is not None)
        _silence_dropout(self.network)
        run_along_trees(lmm.language)
        if options.lora is not None:
            add_lora(self.network, options.lora, base_name(lmm.spec.folder))
        self._choose_what_learns()
        if options.gradient_checkpointing:
            _keep_only_between_layers(self.network)
        self.train()

    def train(self, mode: bool = True) -> Learner:
        """As `nn.Module.train`, but batch norms (FastVLM's tower) keep using the statistics they were trained with: a
        picture's features must not depend on the others in its batch."""
        super().train(mode)
        for module in self.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    @classmethod
    def load(cls, folder: Path | str, options: LearnerOptions, device: str | None = None) -> Learner:
        """A checkpoint folder, on transformers' own class, ready to learn.

        Raises:
            ModelError: as `load_model`; UnsupportedModel for one that can not be taught.
            ConfigError: a part is to learn that the model does not have.
        """
        folder = Path(folder)
        spec = learned_spec(read_spec(folder), options.extra)
        check_parts(spec, options)
        place = choose_device(device)
        # Read as it is stored, what learns loses none of its bits; the rest is read in the dtype it will stay in.
        number = stored_dtype(folder) if options.whole else options.dtype
        # weights in 4 bits can not be moved afterwards: they are loaded where they will compute
        lmm = load_model(folder, place if options.quantize else "cpu", number, quantize=options.quantize, light=False)
        assert isinstance(lmm, TextReader)
        if lmm.sums and not options.quantize:  # loading on the device itself has said so already
            note_slow_layers(spec.model_type, place)
        if isinstance(lmm, ComposableLMM):
            lmm.spec = replace(spec, folder=lmm.spec.folder)
            lmm.extras = _with_extra(lmm, options.extra)
        learner = cls(lmm, options).to(place)
        if not is_listed(spec.model_type):
            prove(learner)
        return learner

    @property
    def spec(self) -> ModelSpec:
        """What rows are planned and laid out for: with the newlines that are to be learned."""
        return self.lmm.spec

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.lmm.device

    def forward(self, batch: Batch) -> Tensor:
        """Log-probs (N,) float32 of all targets, in the order of `batch.targets`."""
        with self.numbers():
            hidden = self._read(batch, self._tokens(batch.pieces))
            targets = batch.targets
            places, ids = targets.predictors.to(self.device), targets.ids.to(self.device)
            if not self.options.head_only:
                return self.lmm.logits(hidden).log_softmax(dim=-1)[places, ids]
            weight: Tensor = self.lmm.head.weight  # type: ignore[assignment]
            return answer_logps(hidden[places] * self.lmm.scale, weight, ids, cap=self.lmm.cap)

    def _read(self, batch: Batch, tokens: Sequence[Sequence[Tensor]]) -> Tensor:
        """Hidden states (T, D) of the whole forest, read once."""
        spec = self.spec
        along = TreeAttention(batch.forest, self.device, two_way=spec.two_way, far=spec.far_two_way,
                              together=spec.all_two_way)  # fmt: skip
        embeddings, deep = self._embed(batch.pieces, tokens)
        hidden: Tensor = self.lmm.language(
            inputs_embeds=embeddings, position_ids=self._positions(batch.pieces), use_cache=False,
            attention_mask=torch.zeros(NO_MASK, device=self.device), **deep, **{TREE: along},
        ).last_hidden_state  # fmt: skip
        self._check_layers(along, batch.forest.depth)
        return hidden[0]

    def _check_layers(self, along: TreeAttention, longest: int) -> None:
        """Stop where transformers' class did not ask `along` what its layers see."""
        layers: Any = self.lmm.language.layers
        if other := len(layers) - along.calls:
            raise UnsupportedModel(f"{self.spec.folder}: {other} of its layers do not attend by SDPA and would mix "
                                   "samples; teach a model whose config does not forbid it")  # fmt: skip
        config: Any = self.lmm.language.config
        window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
        windowed = along.calls if kinds is None else kinds.count("sliding_attention")
        if window and longest > window and along.windowed != windowed:
            raise UnsupportedModel(f"{self.spec.folder}: its layers do not tell that they see {window} tokens, and "
                                   f"a row has {longest}; shorten the rows")  # fmt: skip

    def _embed(self, pieces: Sequence[Piece], tokens: Sequence[Sequence[Tensor]]) -> tuple[Tensor, dict[str, Any]]:
        """As `TextReader.embedded`, of all pieces."""
        ids = [token for piece in pieces for token in piece.ids]
        visuals = [visual for piece in pieces for visual in piece.visuals]
        embeddings, deep = self.lmm.embedded(ids, visuals, [visual for piece in tokens for visual in piece])
        return embeddings + self._idle(pieces).to(embeddings), deep

    def _positions(self, pieces: Sequence[Piece]) -> Tensor:
        """Rotary positions (1, T) or (3, 1, T): each piece's are those that it has behind all that stands above it."""
        paths: list[tuple[tuple[int, ...], tuple[Visual, ...]]] = []
        positions = []
        for piece in pieces:
            ids, visuals = paths[piece.parent] if piece.parent >= 0 else ((), ())
            paths.append((ids + piece.ids, visuals + piece.visuals))
            whole, _ = self.lmm.positions_of(*paths[-1], piece.rope_factor)
            positions.append(whole[..., len(ids) :])
        return torch.cat(positions, dim=-1)

    # ------------------------------------------------------------------------------------------------- what it sees

    @property
    def stage(self) -> Stage | None:
        """How far a visual's features can be computed once for all: None while what makes them learns."""
        if self._learns("vision_tower") or (self._learns("projector") and not self.lmm.projects):
            return None
        if self._learns("embeddings") and self.lmm.words_in_features:
            return None
        return "tower" if any(self._learns(part) for part in ("projector", "newline", "temporal")) else "tokens"

    @torch.no_grad()
    def features(self, visuals: Sequence[Visual]) -> tuple[Tensor, ...]:
        """The features of a piece's visuals up to `stage`, where there is one, to be kept for later epochs."""
        with self.numbers():
            grids, _ = self.lmm.see([visuals])[0]
            return tuple(grids if self.stage == "tower" else self.lmm.tokens_of(visuals, grids))

    def _tokens(self, pieces: Sequence[Piece]) -> list[list[Tensor]]:
        """The tokens (n, D) of every piece's visuals; what is not ready goes through the tower together."""
        fresh = [piece.visuals for piece in pieces if piece.features is None]
        with nullcontext() if self.stage is None else torch.no_grad():
            seen = iter(self.lmm.see(fresh) if any(fresh) else [([], 0)] * len(fresh))
        return [self._piece_tokens(piece, next(seen)[0] if piece.features is None else ()) for piece in pieces]

    def _piece_tokens(self, piece: Piece, grids: Sequence[Tensor]) -> list[Tensor]:
        if piece.features is not None:
            grids = [feature.to(self.device) for feature in piece.features]
            if self.stage == "tokens":
                return list(grids)
        return self.lmm.tokens_of(piece.visuals, grids)

    # ------------------------------------------------------------------------------------------------ what it learns

    def _choose_what_learns(self) -> None:
        frozen, low_rank = getattr(torch, self.options.dtype), self.options.lora is not None
        idle = self._beyond_the_features()
        for name, weight in self.named_parameters():
            part = part_of(name)
            adapted = low_rank and part == "language_model" and ".lora_" not in name
            weight.requires_grad_(self._learns(part) and weight not in idle and not adapted)
            # Extras are saved whole, so they keep their bits. What stands behind a tower that learns is float32 as the
            # tower is: on a CPU no norm in bf16 takes its output.
            behind = self._learns("vision_tower") and part in ("vision_tower", "projector")
            wide = weight.requires_grad or behind or name.startswith(EXTRAS)
            if weight.is_floating_point():  # not packed into fewer bits
                weight.data = weight.data.to(torch.float32 if wide else frozen)

    def _beyond_the_features(self) -> set[nn.Parameter]:
        """Of what is to learn and makes the features, the weights that these do not come from, such as a tower's behind
        the layer they are taken of: nothing would ever teach them. ConfigError where a part has no others.
        """
        makers: list[Part] = ["vision_tower"] if self.lmm.projects else ["vision_tower", "projector"]
        makers = [part for part in makers if self._learns(part)]
        if not makers:
            return set()
        parts = {weight: part for name, weight in self.named_parameters() if (part := part_of(name)) in makers}
        for weight in parts:
            weight.requires_grad_(True)
        side = self.spec.image_size or BLANK
        blank = Visual(pixels=np.zeros((1, side, side, 3), np.uint8), kind="image", stride=1, tokens=0, position=0,
                       newline="none")  # fmt: skip
        with torch.enable_grad():
            [([features], _)] = self.lmm.see([[blank]])
            reached = torch.autograd.grad(features.sum(), [*parts], allow_unused=True) if features.requires_grad else ()
        taught = {weight for weight, gradient in zip(parts, reached, strict=False) if gradient is not None}
        for part in makers:
            if part not in {parts[weight] for weight in taught}:
                raise ConfigError(no_part(self.spec, part))
        return parts.keys() - taught

    def _learns(self, part: Part) -> bool:
        return self.rates[part] > 0

    def _idle(self, pieces: Sequence[Piece]) -> Tensor:
        """0, as a sum over what learns and this batch does not use: every weight has a gradient on every process.

        It joins before the first layer, so that all processes send gradients in one order, and wait for the same ones.
        """
        visuals = [visual for piece in pieces for visual in piece.visuals]
        used = {"language_model", "embeddings"} | ({"vision_tower", "projector"} if visuals else set())
        used |= {"newline"} if any(visual.newline != "none" for visual in visuals) else set()
        weights = [p for n, p in self.named_parameters() if p.requires_grad and part_of(n) not in used]
        return torch.stack([0.0 * weight.sum() for weight in weights]).sum() if weights else torch.zeros(())

    def numbers(self) -> Any:
        """Sums in bf16 where that was asked for; weights that learn stay in float32 beneath them."""
        if self.options.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def groups(self) -> list[dict[str, Any]]:
        """What learns, as optimizer parameter groups: {"name", "params", "lr"} for each part."""
        groups: dict[Part, list[nn.Parameter]] = {}
        for name, weight in self.named_parameters():
            if weight.requires_grad:
                groups.setdefault(part_of(name), []).append(weight)
        return [{"name": part, "params": groups[part], "lr": self.rates[part]} for part in PARTS if part in groups]

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside it the model is what it was before it learned: its adapter, which alone learns, is left out."""
        with without_lora(self.network):
            yield

    # ----------------------------------------------------------------------------------------------- what is kept of it

    def save(
        self, folder: Path | str, *, merge: bool = False, blend: float = 1.0, dtype: torch.dtype | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        """Write a folder that `vidllm ask -m` loads: under LoRA the adapter and where its base lies, else all of it.

        `merge` adds the adapter into the weights and writes all. `blend` is the share of the adapter that is kept.
        `dtype` is that of whole weights; None keeps what learned in float32 and the rest as it came.
        `weights` is the whole `state_dict` where it had to be gathered from several processes. Other files in the
        folder stay; an older model there is replaced, and never half of it.

        Raises:
            CheckpointError: the folder can not be written.
        """
        own = dict(self.state_dict()) if weights is None else weights
        own = {name: blend * weight if ".lora_B." in name else weight for name, weight in own.items()}
        learned = {name for name, weight in self.named_parameters() if weight.requires_grad}
        if self.options.lora is not None and not merge:
            kept = {name: weight for name, weight in own.items() if name in learned or name.startswith(EXTRAS)}
            return save_adapter(self.lmm, Path(folder), kept)
        save_whole(self.lmm, Path(folder), own, learned, dtype)


def _with_extra(lmm: ComposableLMM, extra: Extra) -> Extras | None:
    """The model's extras and those asked for: vectors of time begin at 0 (nothing changes), a newline as the mean word.

    Raises:
        ConfigError: it has vectors of time already, and others are asked for.
    """
    table: Tensor = lmm.embed.weight  # type: ignore[assignment]
    had = load_extras(lmm.spec.folder, table.shape[1], table.device, torch.float32) or Extras()
    newline, temporal, seconds = had.newline, had.temporal, had.bucket_seconds
    if lmm.spec.newline != "none" and lmm.newline is None:
        newline = nn.Parameter(table.detach().float().mean(dim=0))
    if extra.temporal_buckets and temporal is None:
        temporal = nn.Parameter(torch.zeros(extra.temporal_buckets, table.shape[1]))
        seconds = extra.bucket_seconds
    elif extra.temporal_buckets and (len(had.temporal), seconds) != (extra.temporal_buckets, extra.bucket_seconds):  # type: ignore[arg-type]
        raise ConfigError(f"{lmm.spec.folder}: was taught {len(had.temporal)} time buckets of {seconds:g} s; "  # type: ignore[arg-type]
                          "name the same, or leave them out")  # fmt: skip
    if newline is None and temporal is None:
        return None
    return Extras(newline=newline, temporal=temporal, bucket_seconds=seconds)


def _keep_only_between_layers(network: nn.Module) -> None:
    """Activations inside a layer are computed again on the way back. What transformers calls this method changed its
    name within one major version; what it sets did not."""
    again = partial(checkpoint, use_reentrant=False)
    for module in network.modules():
        if hasattr(module, "gradient_checkpointing"):
            vars(module).update(gradient_checkpointing=True, _gradient_checkpointing_func=again)


def _silence_dropout(network: nn.Module) -> None:
    """No dropout while training: log-probs must not depend on chance, and cached ones must hold."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        own = vars(module)  # attention keeps its rate as a number, under one name or another
        own.update({name: 0.0 for name, value in own.items() if "drop" in name and isinstance(value, float)})
