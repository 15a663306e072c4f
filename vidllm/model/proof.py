"""The proof that a model without an adapter is read as its family reads it: logits beside those of its own `generate`.

It costs a prompt with two pictures, once for every checkpoint, release of transformers and kind of numbers.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidllm.errors import UnsupportedModel, VidllmError
from vidllm.model.quiet import one_line, quiet
from vidllm.model.rope import scaled_positions
from vidllm.model.unlisted import Unlisted
from vidllm.model.unlisted_specs import keep, kept_at, two_frames

log = logging.getLogger("vidllm")

STEPS = 3
"""Tokens of the reply that are compared."""
TOLERANCE = {torch.float32: 1e-3}
"""Of what the logits of a step differ by, over how far they spread; see `ROUNDED` for other numbers."""
ROUNDED = 0.1


def prove(model: Unlisted) -> None:
    """Raise UnsupportedModel unless the logits of a first few tokens are those of the family's own `generate`."""
    kept = kept_at(model.spec.folder, f"proven-{str(model.dtype)[6:]}-{model.device.type}")
    if kept.is_file():
        return
    try:
        apart = _apart(model)
    except VidllmError:
        raise
    except Exception as error:  # of code of any family: whatever it raises, it is not to be read like this
        raise _refused(model, f"which fails ({one_line(error)})") from error
    if not apart <= TOLERANCE.get(model.dtype, ROUNDED):
        raise _refused(model, f"and its logits are not those of its own generate ({apart:.1g} of their spread apart)")
    log.warning("%s: no adapter for %s; its own processor and forward are used, and its logits are those of its own "
                "generate (tried once)", model.spec.folder, model.spec.model_type)  # fmt: skip
    keep(kept, json.dumps({"apart": apart}))


def _refused(model: Unlisted, why: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{model.spec.folder}: no adapter for {model.spec.model_type}; it was read as most families are, {why}; "
        "name a model of another family"
    )


@torch.inference_mode()
def _apart(model: Unlisted) -> float:
    """The most by which a logit differs, over how far the logits of its step spread."""
    side = model.spec.image_size
    pictures = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    theirs, reply = _generated(model, pictures)
    ours = _read(model, pictures, reply)
    return max(float((a - b).abs().max() / b.std()) for a, b in zip(ours, theirs, strict=True))


def _generated(model: Unlisted, pictures: np.ndarray) -> tuple[list[Tensor], list[int]]:
    """Logits (V,) of every step of its own `generate`, and the tokens it chose."""
    from transformers import GenerationConfig

    inputs = model.placed(model.processor.prompt(two_frames(model.spec, model.tokenizer), model.spec, pictures))
    config: Any = GenerationConfig
    greedy = config(max_new_tokens=STEPS, do_sample=False, output_logits=True, return_dict_in_generate=True)
    with quiet():
        made = model.network.generate(**inputs, generation_config=greedy)  # type: ignore[operator]
    return [step[0].float() for step in made.logits], made.sequences[0, -STEPS:].tolist()


def _read(model: Unlisted, pictures: np.ndarray, reply: list[int]) -> list[Tensor]:
    """The same by way of keys and values kept here."""
    layout = two_frames(model.spec, model.tokenizer)
    features = model.encode_groups(torch.from_numpy(pictures)[:, None])
    ids = [token for i, token in enumerate(layout.ids) for _ in range(features.shape[1] if i in layout.slots else 1)]
    embeddings, deep = model.filled(ids, list(features))
    positions, offset = model.positions_at(ids, [pictures.shape[1:3]] * len(pictures))
    kv = model.room(len(ids))
    logits = [model.read(embeddings, kv, positions, **deep)]
    for token in reply[:-1]:
        place = scaled_positions(kv.length + offset, 1, 1.0, model.device)
        said = torch.tensor([[token]], device=model.device)
        logits.append(model.read(model.embed(said), kv, place, **model.beside(said)))
    return logits
