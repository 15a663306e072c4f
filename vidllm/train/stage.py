"""What every stage of teaching says about itself: which model, how clips are looked at, what learns, how long.

`sft` and `dpo` add how their rows are read, and their loss. The keys of a stage's YAML are these fields and
no others.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate.utils import parse_flag_from_env
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from transformers import AutoConfig

from vidllm.budget import Fit, Policy
from vidllm.clip import PlanOptions
from vidllm.errors import ConfigError, RowError
from vidllm.linefile import write_whole
from vidllm.model.checkpoint import check_quantize, fingerprint
from vidllm.model.decoder import branch_limit
from vidllm.model.families import load_tokenizer, read_spec
from vidllm.model.resolve import resolve_model
from vidllm.train.adapters import check_place, check_targets
from vidllm.train.cache import DISK_GIB, ClipCache
from vidllm.train.check import Checked, Progress, check
from vidllm.train.files import files_mark
from vidllm.train.learner import Learner
from vidllm.train.loop import LoopOptions, Trained, train
from vidllm.train.mixture import Mixture, Read, Source, mixture_of, read_mixture
from vidllm.train.parts import LearnerOptions
from vidllm.train.processes import is_first, on_first, processes
from vidllm.train.row import AnyRow, Media, Turn
from vidllm.train.saves import Identity
from vidllm.train.teachable import check_family, check_parts, learned_spec
from vidllm.video.decode import Reader
from vidllm.video.guard import Limits, keep_workers

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from vidllm.model.spec import ModelSpec
    from vidllm.train.task import Task, Watch

@dataclass(frozen=True, kw_only=True)
class StageConfig(LearnerOptions, LoopOptions):
    """One stage of teaching: what learns, its loop and the rest. Impossible values raise ConfigError or ValueError at
    birth."""

    model: str | None = None
    """Folder, Hugging Face id, or the name of a model that ships; null: $VIDLLM_MODEL, else the built-in one."""
    data: tuple[Source, ...] | Path
    """Files of rows (for `dpo`: of pairs) and how much is taken of each; or one such file; or a YAML with `sources`."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """What rows that can not be learnt from do, all of them told: stop the run before it begins, or stay out."""
    out: Path
    """The taught model's folder: `vidllm ask -m OUT`. Checkpoints, metrics.jsonl and loss.png lie in it too."""

    frames: int | None = None
    """Exactly so many frames of every clip; null: as many as asking would take."""
    fps: float | None = None
    """Frames a second of every clip; with `frames`, the fewer."""
    policy: Policy = "auto"
    """Which moments of a clip: as for asking."""
    stride: int | None = None
    """Pooling stride of every frame; null: the model's own."""
    rope_max: float = 2.0
    """How far positions may be scaled for a long row."""
    reader: Reader = "auto"
    fit: Fit | None = None
    snap: bool = False
    subtitles: bool = True
    time_limit: float = 120.0
    """Seconds one clip may take to be read."""

    merge: bool = False
    """Save the adapter added into the weights, as a whole model, instead of beside its base."""
    blend: float = 1.0
    """The share of what the adapter learnt that is saved. Halfway between what a model was and what preferences made of
    it, more of what it could do is left for the same gain (arXiv 2309.06256)."""
    save_dtype: Literal["float32", "bfloat16"] | None = None
    """Of a whole model's weights; null: what was learnt in float32, the rest as it came. A short run's small steps are
    rounded away by bfloat16."""

    batch: int = 32
    """Rows to an optimizer step, on all processes together."""
    tokens: int = 4096
    """Most tokens that go through the model together, frames included; a longer row goes alone."""
    feature_cache: bool = True
    """Keep what frozen vision parts make of clips on disk, so that later epochs neither decode nor encode."""
    cache_folder: Path | None = None
    """Where; null: vidllm's own cache folder."""
    cache_gib: float = DISK_GIB
    """At most so many GiB of features; the looks used longest ago make room."""

    def __post_init__(self) -> None:
        LearnerOptions.__post_init__(self)
        LoopOptions.__post_init__(self)
        if self.batch < 1 or self.tokens < 1:
            raise ConfigError(f"batch is {self.batch} and tokens {self.tokens}; each must be at least 1")
        if not self.cache_gib > 0:
            raise ConfigError(f"cache_gib is {self.cache_gib:g}; give it room, or say feature_cache=false")
        if self.merge and self.lora is None:
            raise ConfigError("merge is true and there is no adapter to merge; say lora={} for one, or leave it out")
        if self.merge and self.quantize is not None:
            raise ConfigError(f"merge is true and quantize is {self.quantize}: weights of so few bits make no whole "
                              "model; leave one of them out")  # fmt: skip
        if not 0 < self.blend <= 1 or (self.blend < 1 and self.lora is None):
            raise ConfigError(f"blend is {self.blend:g}; it is a share of an adapter, above 0 and at most 1: say "
                              "lora={} for one, or leave it out")  # fmt: skip
        if self.save_dtype is not None and self.lora is not None and not self.merge:
            raise ConfigError(f"save_dtype is {self.save_dtype}, and an adapter is kept as it was learnt; leave "
                              "it out, or say merge=true for a whole model")  # fmt: skip
        if self.data == ():
            raise ConfigError("data is empty; name at least one file of rows, for example data=rows.jsonl")
        _ = self.plan

    @property
    def mixture(self) -> Mixture:
        """`data` as a mixture. Raises ConfigError for a YAML file that is none."""
        return mixture_of(self.data) if isinstance(self.data, Path) else Mixture(sources=self.data)

    @property
    def plan(self) -> PlanOptions:
        """How clips are looked at, every file read in a process that can be killed."""
        return PlanOptions(
            frames=self.frames, fps=self.fps, policy=self.policy, stride=self.stride, rope_max=self.rope_max,
            reader=self.reader, fit=self.fit, snap=self.snap, subtitles=self.subtitles,
            guard=Limits(seconds=self.time_limit),
        )  # fmt: skip

    def settings(self) -> Identity:
        """Every setting that shapes a gradient and is not told by model, rows or loop, as flat keys."""
        return {key: value for key, value in _flat(self) if key.partition(".")[0] not in NO_MATTER}


NO_MATTER = frozenset({
    "model", "data", "out", "merge", "blend", "save_dtype", "bad_rows", "epochs", "steps", "optim", "seed", "parts",
    "checkpoint_every", "keep", "workers", "ahead", "cache_folder", "cache_gib", "device", "tensorboard", "time_limit",
})  # fmt: skip
"""Settings that a resume may change, or that something else in a run's identity stands for."""


def _flat(value: Any, name: str = "") -> Iterable[tuple[str, str | int | float | bool | None]]:
    for f in dataclasses.fields(value):
        inner, path = getattr(value, f.name), f"{name}{f.name}"
        if dataclasses.is_dataclass(inner):
            yield from _flat(inner, f"{path}.")
        else:
            yield path, inner if isinstance(inner, str | int | float | bool | None) else repr(inner)


@dataclass(frozen=True, eq=False)
class Base:
    """The model a stage begins from, before its weights are read."""

    folder: Path
    spec: ModelSpec
    """As rows must be planned for it."""
    tokenizer: Tokenizer
    fingerprint: str
    window: int | None = None
    """Tokens that a row may have, where that is not the context: see `branch_limit`."""

    @classmethod
    def of(cls, config: StageConfig) -> Base:
        """Raises ModelError or ConfigError: one line that names the folder and what is wrong with it."""
        check_family(read_spec(on_first(config, lambda: resolve_model(config.model, weights=False))))
        folder = on_first(config, lambda: resolve_model(config.model))  # gigabytes only of what can be taught
        check_place(config.out, folder, adapter=True)
        spec = learned_spec(read_spec(folder), config.extra)
        check_parts(spec, config)
        text = AutoConfig.from_pretrained(folder).get_text_config()
        if config.lora is not None:
            check_targets(config.lora, text)
        if config.quantize is not None:
            check_quantize(config.quantize)
        marked = on_first(config, lambda: fingerprint(folder))
        return cls(folder, spec, load_tokenizer(folder), marked, branch_limit(text))


def voice(config: StageConfig, watch: Watch) -> Callable[[str], None]:
    """What tells a person: the first process's; the others have the same to say, and keep silent."""
    return watch.say if is_first(config) else lambda text: None


def check_rows(
    config: StageConfig, base: Base, read: Read[AnyRow], say: Callable[[str], None], *,
    remember: bool = True, progress: Progress | None = None,
) -> Checked[AnyRow]:  # fmt: skip
    """Every row, read (by `read`, file by file) and checked before a weight is loaded.

    What is wrong is said row by row, and ends the run unless `bad_rows` is skip. With `remember` what was found is kept
    in `config.out`, so that a resume need not look again. How far it is hears `progress`, else `say`, now and then.

    Raises:
        RowError: a row can not be learnt from, or none is left.
    """
    keep_workers(max(1, config.workers))  # of every process: the rows are read by as many threads, now and later

    def look() -> Checked[AnyRow]:
        found = read_mixture(config.mixture, config.seed, read)
        return check(
            found.rows, base.spec, base.tokenizer, config.plan, window=base.window, problems=found.problems,
            cache=config.out / "checked.jsonl" if remember else None, threads=max(1, config.workers),
            progress=progress or NowAndThen(say, "checking row"),
        )  # fmt: skip

    checked = on_first(config, look)
    for problem in checked.problems:
        say(str(problem))
    if config.bad_rows == "stop":
        checked.refuse_problems()
    if not checked.rows:
        raise RowError("no row is left to learn from; name files with good ones")
    return checked


TOLD_SECONDS = 30.0


class NowAndThen:
    """Tells how far something is that takes minutes or hours before the first step."""

    def __init__(self, say: Callable[[str], None], what: str) -> None:
        self._say, self._what, self._next = say, what, time.monotonic() + TOLD_SECONDS

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() > self._next:
            self._next = time.monotonic() + TOLD_SECONDS
            self._say(f"{self._what} {done:,} of {total:,}")


def keep_config(config: StageConfig, name: str) -> None:
    """Write the config as it was understood into `config.out`, from the first process: it can be run again from there.

    Raises:
        OutputError: it can not be written.
    """
    import yaml

    if is_first(config):
        config.out.mkdir(parents=True, exist_ok=True)
        plain = json.loads(json.dumps(dataclasses.asdict(config), default=str))  # paths as texts, tuples as lists
        write_whole(config.out / name, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))


def load_learner(config: StageConfig, base: Base) -> Learner:
    """The model with what is to be learnt, on this process's device."""
    return Learner.load(base.folder, config, str(processes(config).device))


def open_cache(config: StageConfig, learner: Learner) -> ClipCache | None:
    """The disk cache of looks at clips; None where it is off, where what it would keep changes, and under FSDP, which
    lets no process encode by itself.
    """
    if not config.feature_cache or parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return None
    return ClipCache.of(learner, config.cache_folder, config.cache_gib)


def identity(config: StageConfig, base: Base, noun: str, checked: Checked[AnyRow]) -> Identity:
    """What a checkpoint must have been made with: the model, the rows (by the `noun` they go by) and every setting.

    Rows are told by what they say, and by number which file each shows; wherever those lie, they count by their content
    and not by their time, so that a folder restored from elsewhere is no other one.

    Raises:
        VideoNotFound: a file is gone.
    """
    numbers: dict[Media, int] = {}

    def plain(turn: Turn) -> tuple[object, ...]:
        return turn.role, turn.text, [(m.kind, numbers.setdefault(m, len(numbers))) for m in turn.media], *turn.at

    said = (([plain(turn) for turn in row.turns], row.answers) for row in checked.rows)
    media = [medium for row in checked.rows for medium in row.media]
    return {
        "model": base.fingerprint[:12], noun: _mark(len(checked.rows), noun, said), **config.settings(),
        "lengths": _mark(sum(checked.lengths), "tokens", checked.lengths),
        "media": on_first(config, lambda: files_mark(media, subtitles=config.subtitles)),
    }  # fmt: skip


def _mark(count: int, noun: str, contents: Iterable[object]) -> str:
    """These by number and content, so that a checkpoint is not gone on with from others."""
    digest = hashlib.blake2b(digest_size=6)
    for content in contents:
        digest.update(repr(content).encode() + b"\n")
    return f"{count} {noun} {digest.hexdigest()}"


def teach(config: StageConfig, task: Task, learner: Learner, watch: Watch, name: str) -> Trained:
    """Teach until the last step, then put the model into `config.out`, where the config is kept as `name`. Raises as
    `train` and `deliver`.
    """
    done = train(task, learner, learner.groups(), config, config.out, watch, begun=lambda: keep_config(config, name))
    if done.step == done.total:
        deliver(config, learner)
    return done


def deliver(config: StageConfig, learner: Learner) -> None:
    """Put the taught model into `config.out`, from the first process; every process calls it.

    Raises:
        CheckpointError: it can not be written.
    """
    more: dict[str, Any] = {}
    if any(isinstance(weight, DTensor) for weight in learner.parameters()):  # FSDP: every process holds a share
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        more["weights"] = get_model_state_dict(learner, options=whole)
    if is_first(config):
        kept = None if config.save_dtype is None else getattr(torch, config.save_dtype)
        learner.save(config.out, merge=config.merge, blend=config.blend, dtype=kept, **more)
