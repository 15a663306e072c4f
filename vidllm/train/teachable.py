"""What a model can be taught, told by its small files: before gigabytes are fetched, or a weight is read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from transformers import AutoConfig

from vidllm.errors import ConfigError, UnsupportedModel
from vidllm.geometry import Geometry
from vidllm.model.checkpoint import unknown_layers
from vidllm.model.extras import has_extra
from vidllm.train.parts import Extra, LearnerOptions, Part

if TYPE_CHECKING:
    from vidllm.model.spec import ModelSpec


def learned_spec(spec: ModelSpec, extra: Extra) -> ModelSpec:
    """`spec` as rows must be planned for it: with the newlines that are to be learned."""
    if extra.newline is None or not isinstance(spec.geometry, Geometry):
        return spec
    return replace(spec, geometry=replace(spec.geometry, newline=extra.newline))


def check_family(spec: ModelSpec) -> None:
    """Raise UnsupportedModel for a model that can not be taught; told by its small files alone."""
    text = AutoConfig.from_pretrained(spec.folder).get_text_config()
    if others := unknown_layers(spec, text):
        raise UnsupportedModel(f"{spec.folder}: layers of {others[0]} in its language model carry a state from one "
                               "sample into the next; teach a model with attention in all layers")  # fmt: skip


def check_parts(spec: ModelSpec, options: LearnerOptions) -> None:
    """Whether the model of `spec` (as `learned_spec` gives it) can be taught so, told before its weights are read.

    Raises:
        UnsupportedModel: it can not be taught at all.
        ConfigError: a part is to learn that it does not have.
    """
    check_family(spec)
    wanted = {part for part in ("newline", "temporal") if getattr(options.parts, part)}
    if spec.kind == "native" and (wanted or options.extra != Extra()):
        raise ConfigError(f"{spec.folder}: {spec.model_type} lays out its own frames and has no newline or temporal "
                          "part; leave these and `extra` out")  # fmt: skip
    own_newline = spec.tiles_have_newlines or spec.newline != "none"
    if options.parts.newline and not own_newline and not has_extra(spec.folder, "newline"):
        raise ConfigError(no_part(spec, "newline"))
    if options.parts.temporal and not options.extra.temporal_buckets and not has_extra(spec.folder, "temporal"):
        raise ConfigError(no_part(spec, "temporal"))


def no_part(spec: ModelSpec, part: Part) -> str:
    """Says that the model lacks a part that is to learn, and how it could be given one."""
    more = {"newline": "; extra.newline=frame makes one", "temporal": "; extra.temporal_buckets=64 makes one"}
    return f"{spec.folder}: the model has no {part} that could learn{more.get(part, '')}"
