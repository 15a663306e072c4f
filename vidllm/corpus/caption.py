"""The front door of a corpus: inputs and options in, one row for every clip out. The command line calls this too.

    report = vidllm.caption("videos/", "captions.jsonl", vidllm.CaptionOptions(prompt="detailed"))
    print(report.counts, report.failed)

Calling it again goes on where it ended: what is finished under the same recipe is not done again.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vidllm.checks import check_whole
from vidllm.corpus.beforehand import check_reader, check_room
from vidllm.corpus.captioner import Engine
from vidllm.corpus.dryrun import Done, Estimate, estimate
from vidllm.corpus.endpoint import REQUEST_SECONDS
from vidllm.corpus.index import Promises
from vidllm.corpus.inputs import InputOptions, admit, parse_shard
from vidllm.corpus.ledger import Ledger
from vidllm.corpus.looking import Look
from vidllm.corpus.output import Output
from vidllm.corpus.prompts import is_summary, read_prompt
from vidllm.corpus.recipe import NOT_SHAPING, Recipe
from vidllm.corpus.run import Run
from vidllm.corpus.scenes import check_split
from vidllm.corpus.stores import check_output
from vidllm.corpus.workers import AHEAD_BYTES
from vidllm.errors import ConfigError, InputError, OutputError, VidllmError
from vidllm.interrupts import Interrupts
from vidllm.machine import cores, free_memory_bytes
from vidllm.options import GenerationOptions
from vidllm.planning import PlanOptions
from vidllm.video.guard import Limits

if TYPE_CHECKING:
    from vidllm.ask import VideoModel
    from vidllm.corpus.captioner import Captioner
    from vidllm.corpus.endpoint import Form
    from vidllm.corpus.item import Item
    from vidllm.corpus.progress import Tally
    from vidllm.corpus.rows import CaptionRow, Status

MOST_WORKERS = 32
"""Decode processes by default: four for each of eight GPUs."""
MOST_PROCESSES = 1024
"""Of one kind, as many as may be wished for: a slip of the finger filled the memory before the first clip."""
MOST_AHEAD_BYTES = 4 << 30
TIME_LIMIT_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class CaptionOptions:
    """Everything a user may say of a run. Impossible values raise ConfigError."""

    prompt: str | None = None
    """A preset (`short`, `detailed`, `structured`), `@FILE`, or the words; None: "describe the video."."""
    model: str | Path | None = None
    """A folder or Hub id as for `vidllm.load`; for a server the name it knows the model by."""
    engine: str = "local"
    """local, ray, or the http(s) address of an OpenAI-compatible server."""
    address: str | None = None
    """Of the Ray cluster; None: one on this machine."""
    send: Form = "images"
    """How a server is shown the frames: `images`, or `video` as one JPEG sequence (vLLM)."""
    request_timeout: float = REQUEST_SECONDS
    """Seconds a server may take for one answer; a clip that took longer is asked about once more."""
    batch: int | None = None
    """Answers written side by side by each replica; None: what memory has room for."""
    replicas: int | None = None
    """Model processes of the local engine; None: one a GPU, on a CPU one a core as far as memory and 16 go."""
    device: str | None = None
    dtype: str | None = None
    quantize: Literal["int8", "int4"] | None = None
    same_within: int = 0
    """Frames of a clip that differ by at most so many of 255 grey levels in every pixel are encoded once (the local and
    the Ray engine, families that vidllm encodes itself); 0: only equal ones, which changes no caption."""
    plan: PlanOptions = field(default_factory=PlanOptions)
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    split: str = "none"
    """How long videos are cut into ranges: scenes, fixed:12s, none."""
    summarise: bool = False
    """Also a row for every split video, made from the captions of its parts."""
    limit: int | None = None
    shard: str | None = None
    """`i/n`, i from 1: this run's share of the clips; give every shard its own output."""
    videos: str | None = None
    """The folder that paths inside lists and data sets are relative to; None: the data set's own."""
    column: str | None = None
    """The data sets' column that names the clip; None: the usual names."""
    prompt_column: str | None = None
    """The data sets' column with a clip's own prompt; None: every clip gets the run's."""
    retry_errors: bool = False
    retries: int = 2
    """Tries after the first of a caption that is truncated, repetitive, empty or a refusal."""
    workers: int | None = None
    """Decode processes; None: one a core, at most 32."""
    time_limit: float = TIME_LIMIT_SECONDS
    """Seconds one clip may take to be read, then it is given up as undecodable."""

    def __post_init__(self) -> None:
        if self.engine not in ("local", "ray") and "://" not in self.engine:
            raise ConfigError(f"engine {self.engine!r} is unknown; use local, ray or the http address of a server")
        least_of = {"batch": 1, "replicas": 1, "workers": 1, "retries": 0, "limit": 1, "same_within": 0}
        for name, least in least_of.items():
            check_whole(name, getattr(self, name), least, optional=getattr(CaptionOptions, name) is None)
        for name in ("replicas", "workers"):
            if (getattr(self, name) or 0) > MOST_PROCESSES:
                raise ConfigError(f"{name} are processes, at most {MOST_PROCESSES:,}; got {getattr(self, name)}")
        self._check_engine()
        for name in ("time_limit", "request_timeout"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name):g} s")
        for name in sorted(NOT_SHAPING):
            if getattr(self.plan, name) is not None:
                raise ConfigError(f"{name} is no option of a corpus: clips have ranges and a time_limit; leave it out")
        if self.summarise and self.split == "none":
            raise ConfigError("summarise makes one caption of a split video's many; say how to split, e.g. scenes")
        object.__setattr__(self, "split", check_split(self.split))
        if self.shard is not None:
            parse_shard(self.shard)

    def _check_engine(self) -> None:
        """Raise ConfigError for what the engine would not hear."""
        told = "a server" if "://" in self.engine else self.engine
        if self.replicas is not None and told != "local":
            raise ConfigError(f"replicas are the local engine's; {told} has its own, leave them out")
        if self.address is not None and told != "ray":
            raise ConfigError(f"address is a Ray cluster's, and the engine is {told}; leave it out or use ray")
        for name in ("send", "request_timeout") if told != "a server" else ():
            if getattr(self, name) != getattr(CaptionOptions, name):
                raise ConfigError(f"{name} is for a server; name its address as the engine, or leave it out")
        for name in ("batch", "device", "dtype", "quantize", "same_within", "stride", "rope_max", "fit"):
            said_of = self if hasattr(self, name) else self.plan
            if told == "a server" and getattr(said_of, name) != getattr(type(said_of), name):
                raise ConfigError(f"{name} is for a model that runs here; a server was told its own, leave it out")

    def inputs(self, output: Path, remark: Callable[[str], None]) -> InputOptions:
        """The part that says which clips."""
        return InputOptions(
            limit=self.limit, shard=parse_shard(self.shard) if self.shard else None, videos=self.videos,
            column=self.column, prompt_column=self.prompt_column, output=output, remark=remark,
        )  # fmt: skip

    @cached_property
    def words(self) -> str:
        """What is asked, read once: a pipe (`--prompt @<(...)`) gives its words one time only. Raises ConfigError."""
        return read_prompt(self.prompt)

    @property
    def workers_now(self) -> int:
        """Decode processes here."""
        return self.workers or min(cores(), MOST_WORKERS)

    @property
    def limits(self) -> Limits:
        """What one clip may take."""
        return Limits(seconds=self.time_limit)

    def look(self, captioner: Captioner) -> Look:
        """How this run looks at a clip."""
        return Look(spec=captioner.spec, prompt=self.words, options=self.plan, limits=self.limits)

    def recipe(self, captioner: Captioner) -> Recipe:
        """What shapes this run's captions."""
        return Recipe.of(captioner.fingerprint, self.words, self.plan, self.generation)

    @property
    def ahead_bytes(self) -> int:
        """Of frames decoded before the model has read them."""
        return min(max(free_memory_bytes() // 8, AHEAD_BYTES), MOST_AHEAD_BYTES)


@dataclass(frozen=True, kw_only=True)
class CaptionReport:
    """What a run did, and how the whole output stands."""

    output: Path
    counts: Counter[str]
    """Rows written now, by status."""
    standing: Counter[Status]
    """Rows of all clips admitted now, those of earlier runs included, by status."""
    causes: Counter[str]
    """Why rows written now have no good caption."""
    notes: Counter[str]
    """What is not as it should be with the frames of rows written now, by kind; their `notes` say where."""
    skipped: int
    """Clips that were done before."""
    seconds: float
    interrupted: bool
    recipe: Recipe
    split: str = "none"
    prompt_column: str | None = None
    promises: Promises = field(default_factory=Promises)
    """Who was admitted now, among all who were ever."""

    @property
    def tag(self) -> str:
        """What these captions go by in a data set: the recipe's digest, and beside it how videos were split and which
        column asked, if they were and one did.
        """
        split = "" if self.split == "none" else f" {self.split}"
        return self.recipe.digest + split + (f" prompts:{self.prompt_column}" if self.prompt_column else "")

    def made(self, row: CaptionRow) -> bool:
        """Whether the row is of a clip admitted now, by this recipe; ranges of another split are not."""
        return row in self.promises

    def saw(self, row: CaptionRow) -> bool:
        """Whether its caption is also of frames: the summary of a split video is of its ranges' captions."""
        return self.made(row) and not is_summary(row.prompt)

    @property
    def failed(self) -> int:
        """Clips admitted now whose row is neither ok nor a duplicate."""
        return sum(count for status, count in self.standing.items() if status not in ("ok", "duplicate"))


def caption(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    options: CaptionOptions | None = None,
    *,
    model: VideoModel | None = None,
    tell: Callable[[Tally], None] = lambda tally: None,
    on_interrupt: Callable[[], None] = lambda: None,
    remark: Callable[[str], None] = lambda line: None,
    elsewhere: Callable[[Item], None] = lambda item: None,
) -> CaptionReport:
    """Caption every clip of `inputs` (files, folders, globs, data sets, `-` for stdin) into `output`.

    `model` is one that is loaded already, and answers in this process; without it model processes of their own are
    started when there is a clip to caption. `tell` hears how far it is, many times a second, `remark` a line now and
    then (about the model, what is odd in the inputs), `elsewhere` of the clips of other shards. Ctrl-C finishes the
    clips in flight (`on_interrupt` is called at once), a second one raises KeyboardInterrupt, and so does a server that
    does not finish in time; either way the output is whole and the next call goes on from there.

    A clip's own failure is a row. Raises ConfigError, CorpusError or EngineError, before the first row
    ReaderUnavailable (it does not load) and BudgetError (prompt and answer leave no clip room), and ModelError: then,
    where the model's files tell it, else when it is loaded, for the first clip with frames; rows written stay.
    """
    named, output, options = _named(inputs, output, options)
    items = _items(named, output, options, remark, elsewhere)
    engine = open_engine(options, model, remark)
    try:
        return _run(items, _Count(named, output, options), output, options, engine, tell, on_interrupt)
    finally:
        engine.captioner.close()


def dry_run(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    options: CaptionOptions | None = None,
    *,
    model: VideoModel | None = None,
    tell: Callable[[Tally], None] = lambda tally: None,
    remark: Callable[[str], None] = lambda line: None,
) -> Estimate:
    """What `caption` would do, and about how long that would take; nothing is written, nor is the output locked.

    Raises as `caption`.
    """
    named, output, options = _named(inputs, output, options)
    items = _items(named, output, options, remark)
    engine = open_engine(options, model, remark)
    try:
        look = _look(options, engine)
        done = Done(output, options.recipe(engine.captioner), retry_errors=options.retry_errors)
        return estimate(items, engine, look, options, done, tell)
    finally:
        engine.captioner.close()


def _items(
    named: Sequence[str], output: Path, options: CaptionOptions, remark: Callable[[str], None],
    elsewhere: Callable[[Item], None] = lambda item: None,
) -> Iterator[Item]:  # fmt: skip
    """The clips, the first found now: what is wrong with names, prompt or reader is told before a model is loaded."""
    check_output(output)
    options.words  # noqa: B018  (what is wrong with it)
    if options.engine != "ray":  # whose nodes read
        check_reader(options.plan.reader, options.limits)
    items = admit(named, replace(options.inputs(output, remark), elsewhere=elsewhere))
    first = next(items, None)
    if first is not None:
        return chain([first], items)
    if options.shard is None or not _hold_any(named, replace(options, shard=None).inputs(output, lambda line: None)):
        raise InputError(f"{', '.join(named)}: no video in it; name video files, folders, globs or data sets of them")
    remark(f"{', '.join(named)}: no clip falls to shard {options.shard}; its output is empty")
    return items


def _look(options: CaptionOptions, engine: Engine) -> Look:
    """How clips are looked at. Raises BudgetError where none could ever fit."""
    look = options.look(engine.captioner)
    check_room(look, "" if options.prompt_column else look.prompt)
    return look


def _hold_any(named: Sequence[str], options: InputOptions) -> bool:
    """Whether there is a clip, for all that is known: a list on stdin is read once."""
    return "-" in named or next(admit(named, options), None) is not None


def _named(
    inputs: str | Path | Sequence[str | Path], output: str | Path, options: CaptionOptions | None
) -> tuple[list[str], Path, CaptionOptions]:
    """The arguments as they are worked with. Raises InputError, OutputError or ConfigError for what is none of them."""
    names: object = [inputs] if isinstance(inputs, str | Path) else inputs
    names = list(names) if isinstance(names, Iterable) and not isinstance(names, bytes) else [names]
    for name in names:
        if not isinstance(name, str | Path):
            raise InputError(f"clips are named by paths, not by a value of type {type(name).__name__}")
    if not isinstance(output, str | Path):
        raise OutputError(f"the output is named by a path, not by a value of type {type(output).__name__}")
    asked = CaptionOptions() if options is None else options
    if not isinstance(asked, CaptionOptions):
        raise ConfigError(f"options must be a vidllm.CaptionOptions, not of type {type(asked).__name__}")
    return [str(name) for name in names], Path(output), replace(asked)  # another call reads its prompt anew


class _Count:
    """How many clips the inputs name, counted beside the run; None until that is known, and for a list on stdin."""

    def __init__(self, names: Sequence[str], output: Path, options: CaptionOptions) -> None:
        self.clips: int | None = None
        self._names, self._options = names, options.inputs(output, lambda line: None)
        if "-" not in names:
            threading.Thread(target=self._count, daemon=True, name="vidllm-count").start()

    def _count(self) -> None:
        with contextlib.suppress(VidllmError):  # the run itself meets it, and tells
            self.clips = sum(1 for _ in admit(self._names, self._options))


def _run(
    items: Iterator[Item], count: _Count, output: Path, options: CaptionOptions, engine: Engine,
    tell: Callable[[Tally], None], on_interrupt: Callable[[], None],
) -> CaptionReport:  # fmt: skip
    look, recipe = _look(options, engine), options.recipe(engine.captioner)
    waits = Interrupts(on_interrupt, patience_seconds=engine.patience_seconds)
    with Output.open(output, recipe, retry_errors=options.retry_errors) as rows, waits as interrupts:
        ledger = Ledger(rows, look)

        def told(tally: Tally) -> None:
            tally.listed = count.clips
            tell(tally)

        tally = Run(items, engine, ledger, look, options, tell=told).go(interrupts)
        return CaptionReport(
            output=output, counts=tally.counts, causes=tally.causes, notes=tally.notes, standing=ledger.standing,
            skipped=ledger.skipped, seconds=tally.seconds, interrupted=interrupts.asked, recipe=recipe,
            split=options.split, prompt_column=options.prompt_column, promises=rows.promises,
        )  # fmt: skip


def open_engine(
    options: CaptionOptions, model: VideoModel | None = None, remark: Callable[[str], None] = lambda line: None
) -> Engine:
    """Find the model, or reach the server or cluster. Raises ModelError, EngineError or ConfigError."""
    if model is not None:
        from vidllm.corpus.local import open_local

        for said in ("engine", "replicas", "quantize"):
            if getattr(options, said) != getattr(CaptionOptions, said):
                raise ConfigError(f"{said} is not for a model that is loaded already, which answers here; leave it out")
        return Engine(open_local(options, model))
    if "://" in options.engine:
        from vidllm.corpus.asking import HttpOptions
        from vidllm.corpus.http import STOP_SECONDS, HttpCaptioner

        name = None if options.model is None else str(options.model)
        patience = HttpOptions(form=options.send, request_seconds=options.request_timeout)
        captioner = HttpCaptioner.connect(options.engine, name, patience, remark=remark)
        return Engine(captioner, patience_seconds=STOP_SECONDS)
    if options.engine == "ray":
        from vidllm.corpus.ray import open_ray

        return open_ray(options, remark)
    from vidllm.corpus.places import open_replicas

    return Engine(open_replicas(options, remark))
