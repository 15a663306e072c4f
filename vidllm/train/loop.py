"""The loop: micro-batches -> gradients -> one optimizer step, and after any end the same run goes on to the bit.

    step      every micro-batch's summed loss -> backward ... -> / the whole step's weight -> clip -> AdamW
    processes the micro-batches of a step are dealt out in turn; a step's loss is the same however many share it
    an end    Ctrl-C finishes the step and saves; kill -9 costs the steps since the last checkpoint; a loss or gradient
              that is no number ends the run before the optimizer has seen it

What is learnt is a `Task`'s business (sft, dpo); how it is learnt stands here once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from torch import Tensor, nn

from vidllm.ahead import made_ahead
from vidllm.errors import CheckpointError, ConfigError, NotFinite, TrainError
from vidllm.interrupts import Interrupts
from vidllm.model.memory import peak_bytes
from vidllm.train.metrics import Metrics, board_writer
from vidllm.train.optim import OptimOptions, make_optimizer, rate_share, set_rates
from vidllm.train.processes import accelerator, check_launcher
from vidllm.train.saves import Saved, Saves, differences
from vidllm.train.state import learnt, memory, random_state, restore, seed_all, set_random_state
from vidllm.train.task import Micro, Part, Step, Task, Watch

KEPT_BYTES = 12
"""Bytes of a checkpoint for each number that learns: itself and AdamW's two means, in float32."""

MOST = {"epochs": 1_000_000, "workers": 256, "ahead": 4096}
"""A slip of the pen beyond them: epochs are counted before the first step, each worker has a child that decodes."""


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How long, how exact, how often saved. Raises ConfigError at birth."""

    epochs: int = 1
    steps: int | None = None
    """Exactly so many optimizer steps, in as many epochs as that takes; null: all steps of `epochs`."""
    seed: int = 0
    optim: OptimOptions = field(default_factory=OptimOptions)
    device: str | None = None
    """"cpu" where a GPU is there but not wanted, "cuda" where nothing else will do; null: what accelerate finds."""
    checkpoint_every: int = 200
    """Optimizer steps between two checkpoints; there is one at the end and at Ctrl-C in any case."""
    keep: int = 2
    """Checkpoints that stay."""
    workers: int = 2
    """Threads that read the next micro-batches; 0: each is read when it is due."""
    ahead: int = 4
    """Micro-batches held ready."""
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "checkpoint_every", "keep", "workers", "ahead"):
            value, least = getattr(self, name), 0 if name in ("workers", "ahead") else 1
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}; at least {least} is needed")
            if name in MOST and value > MOST[name]:
                raise ConfigError(f"{name} is {value}; at most {MOST[name]:,} make sense")
        if self.device not in (None, "cpu", "cuda"):
            raise ConfigError(f"device {self.device!r} is none of cpu, cuda; leave it out to take what is there")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device is cuda, and torch finds no CUDA here; install a driver and "
                              "a CUDA build of torch, or leave device out")  # fmt: skip
        if self.tensorboard:
            board_writer()
        check_launcher()


@dataclass(frozen=True, kw_only=True)
class Trained:
    """How a run ended."""

    step: int
    """Optimizer steps done, by this run and those before it."""
    total: int
    resumed: int
    """Steps that were done before this run."""
    interrupted: bool
    checkpoint: Path | None
    """The newest; None when nothing was learnt yet."""


def train(
    task: Task,
    learner: nn.Module,
    groups: Iterable[Mapping[str, Any]],
    options: LoopOptions,
    folder: Path,
    watch: Watch,
    *,
    begun: Callable[[], None] = lambda: None,
) -> Trained:
    """Teach `learner` until the last step, from the newest whole checkpoint under `folder` if there is one.

    `groups`: {"name", "params", "lr"} for each part that learns. Writes `folder`/checkpoints, metrics.jsonl, loss.png.
    `begun` is called on every process once nothing refuses the run any more, before the first step.

    Raises:
        CheckpointError: a checkpoint can not be written, or is of another run; the line says what differs.
        NotFinite: a loss or gradient is no number; the line names the rows, and weights are as before the step.
        TrainError: nothing to learn from.
    """
    with _deterministic():
        return _Run(task, learner, groups, options, folder, watch).go(begun)


@dataclass(frozen=True)
class _At:
    """One optimizer step and its place."""

    number: int
    """From 0, over the whole run."""
    epoch: int
    done: float
    """Epochs done after it."""
    step: Step


class _Course:
    """All optimizer steps of a run, in order."""

    def __init__(self, task: Task, options: LoopOptions) -> None:
        self._task, self._epoch, self._steps = task, 0, task.steps(0)
        if not self._steps:
            raise TrainError("no rows to learn from; name a data file with at least one good row")
        self.total = options.steps or sum(len(self._of(epoch)) for epoch in range(options.epochs))

    def after(self, done: int) -> Iterator[_At]:
        """The steps that are left after `done`."""
        first, epoch = 0, 0
        while first < self.total:
            steps = self._of(epoch)
            for index in range(max(0, done - first), min(len(steps), self.total - first)):
                yield _At(first + index, epoch, epoch + (index + 1) / len(steps), steps[index])
            first, epoch = first + len(steps), epoch + 1

    def _of(self, epoch: int) -> Sequence[Step]:
        if epoch != self._epoch:
            self._epoch, self._steps = epoch, self._task.steps(epoch)
        return self._steps


class _Run:
    """One process's share of a run."""

    def __init__(
        self,
        task: Task,
        learner: nn.Module,
        groups: Iterable[Mapping[str, Any]],
        options: LoopOptions,
        folder: Path,
        watch: Watch,
    ) -> None:
        self._task, self._options, self._folder, self._watch = task, options, folder, watch
        self._accelerator = accelerator(options.device)
        self._world, self._rank = self._accelerator.num_processes, self._accelerator.process_index
        self._main = self._accelerator.is_main_process
        seed_all(options.seed, self._rank)
        self._course = _Course(task, options)
        optimizer = make_optimizer(groups, options.optim)
        self._identity = {**task.identity(), **_shape(options, self._course.total, optimizer)}
        self._model, self._optimizer = self._accelerator.prepare(learner, optimizer)
        self._params = [p for group in self._optimizer.param_groups for p in group["params"]]
        self._saves = Saves(folder / "checkpoints", keep=options.keep, say=self._say)

    def go(self, begun: Callable[[], None]) -> Trained:
        """From the newest checkpoint to the end, or to Ctrl-C."""
        start = self._resume()
        if self._main:
            coming = -(-(self._course.total - start) // self._options.checkpoint_every)
            self._saves.check_room(KEPT_BYTES * sum(parameter.numel() for parameter in self._params), coming)
        metrics = Metrics(self._folder, after=start, tensorboard=self._options.tensorboard) if self._main else None
        try:
            begun()  # after Metrics has locked the folder: a second run must not leave its config there
            with Interrupts(self._stopping) as interrupts:
                return self._learn(start, metrics, interrupts)
        finally:
            if metrics is not None:
                metrics.close()
            self._accelerator.unwrap_model(self._model, keep_fp32_wrapper=False)  # the learner as it came

    def _learn(self, start: int, metrics: Metrics | None, interrupts: Interrupts) -> Trained:
        done = saved = start
        interrupted, latest = False, None
        if self._main:
            self._watch.begin(start, self._course.total)
        micros = (micro for at in self._course.after(start) for micro, _ in self._share(at.step))
        options = self._options
        with made_ahead(micros, self._task.prepare, workers=options.workers, ahead=options.ahead) as materials:
            for at in self._course.after(start):
                if interrupted := self._asked(interrupts):
                    break
                self._tell(self._step(at, materials), metrics)
                latest, done = at, at.number + 1
                if done % options.checkpoint_every == 0 or done == self._course.total:
                    saved = self._save(at, metrics)
            if latest is not None and done > saved:
                self._save(latest, metrics)
        self._accelerator.wait_for_everyone()
        kept = self._folder / "checkpoints" / f"step-{done:08d}" if done else None
        return Trained(step=done, total=self._course.total, resumed=start, interrupted=interrupted, checkpoint=kept)

    def _step(self, at: _At, materials: Iterator[Any]) -> dict[str, float]:
        """One optimizer step; its figures, the same on every process."""
        began = time.perf_counter()
        mine = self._share(at.step)
        parts = [self._backward(next(materials), counts, i == len(mine) - 1) for i, (_, counts) in enumerate(mine)]
        sums = self._added_up([part for part, (_, counts) in zip(parts, mine, strict=True) if counts])
        total, weight = sums.pop("loss")
        loss, norm = total / weight, self._scale(weight)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._refuse(at, loss, norm)
        rates = set_rates(self._optimizer, rate_share(at.number, self._course.total, self._options.optim))
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        tokens, seconds = sums.pop("tokens")[0], time.perf_counter() - began
        return {
            "step": at.number + 1, "epoch": round(at.done, 6), "loss": loss, "grad_norm": norm,
            **{f"rate/{part}": rate for part, rate in rates.items()},
            **{name: total / count for name, (total, count) in sums.items() if count},
            "rows": sum(map(len, at.step)), "weight": weight, "tokens": tokens, "seconds": round(seconds, 4),
            "tokens_per_second": round(tokens / seconds, 1), "peak_memory_gib": round(peak_bytes() / 2**30, 3),
        }  # fmt: skip

    def _backward(self, material: Any, counts: bool, last: bool) -> Part:
        """Gradients of one micro-batch; of one that only keeps other processes company, none."""
        quiet: AbstractContextManager[Any] = nullcontext() if last else self._accelerator.no_sync(self._model)
        with quiet:
            part = self._task.loss(self._model, material)
            self._accelerator.backward(part.loss if counts else part.loss * 0.0)
        return part

    def _scale(self, weight: float) -> float:
        """Gradients of a sum become those of the mean over the whole step, and no longer than they may; their norm."""
        clip = self._options.optim.clip
        for parameter in self._params:
            if parameter.grad is not None:
                parameter.grad.mul_(self._world / weight)  # processes' gradients were averaged
        # Not accelerate's, which compares lists of weights by == and fails under FSDP where every weight learns.
        return float(nn.utils.clip_grad_norm_(self._params, math.inf if clip is None else clip))

    def _added_up(self, parts: Sequence[Part]) -> dict[str, tuple[float, float]]:
        """name -> (sum, count) over all processes, added in the order of processes; with `loss` and `tokens`."""
        told: list[tuple[str, float, float]] = []
        for part in parts:
            told += [("loss", part.loss.item(), part.weight), ("tokens", part.tokens, 1)]
            told += [(name, float(total), count) for name, (total, count) in part.metrics.items()]
        sums: dict[str, tuple[float, float]] = {"loss": (0.0, 0.0), "tokens": (0.0, 0.0)}
        for name, total, count in gather_object(told):
            before = sums.get(name, (0.0, 0.0))
            sums[name] = (before[0] + total, before[1] + count)
        return sums

    def _share(self, step: Step) -> list[tuple[Micro, bool]]:
        """This process's micro-batches, and whether they count: all processes must call the model equally often."""
        rounds = -(-len(step) // self._world)
        mine = [i * self._world + self._rank for i in range(rounds)]
        return [(step[i], True) if i < len(step) else (step[0], False) for i in mine]

    def _refuse(self, at: _At, loss: float, norm: float) -> None:
        """End the run before the optimizer has seen this step. Raises NotFinite, with the rows named."""
        bad = self._culprits(at.step) if self._accelerator.distributed_type != DistributedType.FSDP else []
        bad = sorted(set(gather_object(bad)))
        numbers = bad or [number for micro in at.step for number in micro]
        names = ", ".join(map(self._task.name, numbers[:5])) + (f" and {len(numbers) - 5} more" * (len(numbers) > 5))
        what = f"loss is {loss:g}" if not math.isfinite(loss) else f"gradient's norm is {norm:g}"
        raise NotFinite(
            f"step {at.number + 1}: the {what}, because of {names}; stopped before the optimizer took it, checkpoints "
            "are of finite weights; take these rows out or lower the rates, and begin in another `out`"
        )

    def _culprits(self, step: Step) -> list[int]:
        """Rows of this process whose own loss or gradient is no number, each looked at alone."""
        alone = self._accelerator.unwrap_model(self._model)
        return [number for micro, counts in self._share(step) if counts for number in micro
                if not _finite(self._task.loss(alone, self._task.prepare((number,))).loss, self._params)]  # fmt: skip

    def _tell(self, record: dict[str, float], metrics: Metrics | None) -> None:
        remark = self._task.after(record)
        if metrics is not None:
            metrics.add(record)
            self._watch.step(record)
        if remark:
            self._say(remark)

    def _save(self, at: _At, metrics: Metrics | None) -> int:
        """Keep everything after `at`; the steps done by then."""
        done = at.number + 1
        contents = {
            "weights.pt": learnt(self._model),
            "optimizer.pt": memory(self._model, self._optimizer.optimizer),
            "random.pt": gather_object([random_state()]),
            "run.pt": {"epoch": at.epoch, "epochs": at.done, "made": self._made(), "task": dict(self._task.state())},
        }
        if metrics is not None:
            metrics.sync()
            self._saves.write(done, self._identity, contents)
        self._accelerator.wait_for_everyone()
        return done

    def _resume(self) -> int:
        """Go on from the newest whole checkpoint; the steps that are done."""
        saved: Saved | None
        [saved] = broadcast_object_list([self._saves.newest() if self._main else None])
        if saved is None:
            return 0
        if differ := differences(saved.identity, self._identity):
            raise CheckpointError(f"{saved.folder} was made with {'; '.join(differ)}: put that back to go on, or give "
                                  "this run another `out`")  # fmt: skip
        restore(self._model, self._optimizer.optimizer, saved)
        run, states = saved.load("run.pt"), saved.load("random.pt")
        self._task.restore(run["task"])
        if self._rank < len(states):
            set_random_state(states[self._rank])
        self._say(f"going on from {saved.folder}: {saved.step:,} of {self._course.total:,} steps are done")
        if differ := differences(run["made"], self._made()):
            self._say(f"made with {'; '.join(differ)}: losses agree to rounding with a run that was never "
                      "interrupted, not to the bit")  # fmt: skip
        return saved.step

    def _made(self) -> dict[str, str | int]:
        """What the last bit of a sum depends on besides the identity."""
        return {"processes": self._world, "threads": torch.get_num_threads(), "torch": str(torch.__version__),
                "device": self._accelerator.device.type}  # fmt: skip

    def _asked(self, interrupts: Interrupts) -> bool:
        """Whether any process was asked to stop."""
        return any(gather_object([interrupts.asked]))

    def _stopping(self) -> None:
        self._say("finishing this step and saving; Ctrl-C again stops at once")

    def _say(self, text: str) -> None:
        if self._main:
            self._watch.say(text)


@contextmanager
def _deterministic() -> Iterator[None]:
    """The same sums in the same order every time, where torch knows how; as it was afterwards."""
    before, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn)


def _shape(options: LoopOptions, total: int, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What of the loop shapes a gradient."""
    rates = {f"rate of {group['name'].removesuffix('/vectors')}": group["rate"] for group in optimizer.param_groups}
    plain = {"steps in all": total, "seed": options.seed}
    return {**plain, **asdict(options.optim), **rates}


def _finite(loss: Tensor, params: Sequence[Tensor]) -> bool:
    if not bool(torch.isfinite(loss)):
        return False
    gradients = torch.autograd.grad(loss, params, allow_unused=True)
    return all(bool(torch.isfinite(g).all()) for g in gradients if g is not None)
