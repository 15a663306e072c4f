"""A look at a clip is taken once: its true times and what the frozen vision parts made of its frames stay on disk.

    first time   plan -> decode -> encode -> keep          for every later epoch, run, task and answer of the same look
    afterwards   plan -> recall                            nothing is decoded, nothing goes through the tower

A look's key covers the file's bytes, the plan, the preprocessing and the weights that made the features, so a hit can
not be wrong. Still pictures are cheap to open and are known by their pixels instead. Entries are checksummed; a damaged
or half-written one counts as absent and is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vidllm.caches import cache_folder
from vidllm.clip import ClipPlan, PlanOptions, Recalled
from vidllm.errors import VideoNotFound
from vidllm.model.features import MEBIBYTE, TensorFiles, digest_tensors, pixel_digest
from vidllm.train.batch import Batch, Piece, Stage
from vidllm.train.parts import part_of
from vidllm.video.decode import FrameSet

if TYPE_CHECKING:
    from vidllm.model.spec import ModelSpec
    from vidllm.train.learner import Learner
    from vidllm.visuals import Visual

Encode = Callable[[Sequence["Visual"]], Sequence[Tensor]]
"""What makes features of visuals, without gradients: `Learner.features`."""

READER = "cache"
"""Who read the frames of a look that was recalled."""
GIBIBYTE = 1024 * MEBIBYTE
DISK_GIB = 20.0
"""Of features; those used longest ago go first."""
KNOWN_FILES = 65_536
"""Files whose digest a process remembers."""


@dataclass(frozen=True, eq=False)
class ClipCache:
    """Looks that were taken, by key. `vision` names all that made their features; see `vision_key`. Thread-safe."""

    stage: Stage
    """What is kept: features as they leave the tower, or a frame's finished tokens."""
    vision: str
    files: TensorFiles

    @classmethod
    def of(cls, learner: Learner, folder: Path | None = None, disk_gib: float = DISK_GIB) -> ClipCache | None:
        """The cache of what this learner sees, in `folder` (None: vidllm's own), at most `disk_gib` GiB of it.

        None where the vision tower learns: nothing of what it makes stays true.
        """
        if learner.stage is None:
            return None
        files = TensorFiles(folder or cache_folder("clips"), int(disk_gib * GIBIBYTE))
        return cls(learner.stage, vision_key(learner, learner.stage), files)

    def recall(self, planned: ClipPlan, spec: ModelSpec, options: PlanOptions) -> Recalled:
        """The look's key, and its frames without pixels where it was taken before (`clip.Known`)."""
        key, plan = look_key(planned, spec, options, self.vision), planned.plan
        kept = self.files.get(key)
        counts, size = [frame.tokens if self.stage == "tokens" else 1 for frame in plan.frames], (0, 0)
        if spec.kind == "native":  # a clip is one visual, and its positions follow its size
            counts, size = [sum(counts)], plan.frame_size or size
        whole = {"features", "times"} <= set(kept) and len(kept["features"]) == sum(counts)
        if not whole or len(kept["times"]) != len(plan.frames):
            if kept:
                self.files.drop(key)
            return Recalled(key=key)
        times = kept["times"].numpy()
        blank = np.broadcast_to(np.uint8(0), (len(times), *size, 3))
        frames = FrameSet(blank, times, np.asarray(plan.times, np.float64), READER)
        return Recalled(key=key, frames=frames, features=torch.split(kept["features"], counts))

    def furnish(self, batch: Batch, encode: Encode) -> Batch:
        """The batch with the features of all its visuals: recalled, found by their pixels, or encoded now and kept.

        To be called by one thread, right before the forward pass: what is not known goes through the tower here.
        """
        visuals = {id(visual): visual for piece in batch.pieces for visual in piece.visuals}
        known = {name: visual.features for name, visual in visuals.items() if visual.features is not None}
        for name, visual in visuals.items():
            if name not in known and not visual.key and "features" in (kept := self.files.get(self._key(visual))):
                known[name] = kept["features"]
        for look in _looks([visual for name, visual in visuals.items() if name not in known]):
            known |= self._taken(look, encode)
        return Batch(pieces=tuple(_furnished(piece, known) for piece in batch.pieces))

    def _taken(self, look: Sequence[Visual], encode: Encode) -> dict[int, Tensor]:
        """One look or still, encoded by itself: how many pictures share a matrix product shows in the last bits, and a
        run that goes on with half of its looks kept must see what it would have seen."""
        frames = {_number(visual): visual for visual in look}  # in the plain layout a frame stands there twice
        tensors = [tensor.detach().cpu() for tensor in encode(list(frames.values()))]
        made = dict(zip(frames, tensors, strict=True))
        if not look[0].key:
            self.files.put(self._key(look[0]), {"features": made[0]})
        elif len(made) == int(look[0].key.split("/")[2]):  # a look is kept whole
            times = torch.tensor([time for one in frames.values() for time in one.times], dtype=torch.float64)
            self.files.put(look[0].key.split("/")[0], {"features": torch.cat(tensors), "times": times})
        return {id(visual): made[_number(visual)] for visual in look}

    def _key(self, visual: Visual) -> str:
        """What a still picture is kept under, known by its pixels."""
        return visual_digest(visual, self.vision)


def _furnished(piece: Piece, known: Mapping[int, Tensor]) -> Piece:
    if not piece.visuals or piece.features is not None:
        return piece
    return replace(piece, features=tuple(known[id(visual)] for visual in piece.visuals))


def _looks(visuals: Sequence[Visual]) -> list[list[Visual]]:
    """Frames of one look together, in their order; stills one by one."""
    looks: dict[str, list[Visual]] = {}
    for place, visual in enumerate(visuals):
        looks.setdefault(visual.key.split("/")[0] or str(place), []).append(visual)
    return [sorted(look, key=_number) for look in looks.values()]


def _number(visual: Visual) -> int:
    return int(visual.key.split("/")[1]) if visual.key else 0


def look_key(planned: ClipPlan, spec: ModelSpec, options: PlanOptions, vision: str) -> str:
    """Hex digest of everything that shapes a look's times and features.

    Raises:
        VideoNotFound: the file is gone.
    """
    plan = planned.plan
    strides = tuple(frame.stride for frame in plan.frames)
    shaping = (
        file_digest(planned.info.path), planned.info.transfer, plan.times, strides, plan.frame_size, plan.tolerance,
        options.reader, plan.fit or spec.fit, spec.image_size, spec.newline, vision,
    )  # fmt: skip
    return _hex(repr(shaping))


def visual_digest(visual: Visual, context: str = "") -> str:
    """Hex digest that two visuals share only if a model makes the same tokens of them; `key` and pixels decide."""
    shape = (visual.kind, visual.stride, visual.newline, visual.grid, visual.source_size, visual.times, context)
    return _hex(visual.key + repr(shape)) if visual.key else pixel_digest(visual.pixels, repr(shape))


def vision_key(learner: Learner, stage: Stage) -> str:
    """Hex digest of the parts that make features up to `stage`, by their weights, and of how they are put to work; the
    same for a model whose other parts were taught."""
    lmm, spec = learner.lmm, learner.spec
    numbers = (learner.options.dtype, learner.device.type)
    shaping = (stage, spec.vision_layers, spec.cls, spec.image_mean, spec.image_std, numbers, _built(lmm.network))
    digest = hashlib.blake2b(repr(shaping).encode(), digest_size=20)
    parts = {"vision_tower"}
    if stage == "tokens":
        parts |= {"projector", "newline", "temporal"}
        seconds = lmm.extras.bucket_seconds if lmm.extras is not None else None
        told = (astuple(spec.geometry), spec.pool_before_projector, spec.image_max_tiles, seconds)
        digest.update(repr(told).encode())
    weights = learner.state_dict().items()
    digest_tensors(digest, ((name, weight) for name, weight in weights if part_of(name) in parts))
    return digest.hexdigest()


def _built(network: Any) -> str:
    """What weights do not tell of how they are put to work: heads, activations, the release whose sums they are."""
    told = network.config.to_dict()
    tower = {name: value for name, value in told["vision_config"].items() if name not in ("_name_or_path", "dtype")}
    return json.dumps([told.get("projector_hidden_act"), told["transformers_version"], tower], sort_keys=True)


def file_digest(path: str) -> str:
    """Hex digest of a file's bytes; read once per process while size and time of change stay as they are.

    Raises:
        VideoNotFound: there is no such file.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise VideoNotFound(f"{path}: {error.strerror or error}; it was there when the rows were checked") from error
    return _file_digest(path, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(KNOWN_FILES)
def _file_digest(path: str, inode: int, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=20)).hexdigest()


def _hex(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()
