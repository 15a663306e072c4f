"""`feedback`: questions in, preference pairs out; everything settled that can be before a model is loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vidllm.corpus.recipe import NOT_SHAPING
from vidllm.errors import ConfigError, OutputError, RowError
from vidllm.feedback.asked_judge import Judging, open_http_judge
from vidllm.feedback.candidates import Sampled, SamplingOptions
from vidllm.feedback.items import Asked, Questions, read_questions
from vidllm.feedback.journal import Journal, Opinion, Slot, journal_of
from vidllm.feedback.judge import Judge
from vidllm.feedback.loop import Run, Tally, Work
from vidllm.feedback.oracle import Oracle, judge_case
from vidllm.feedback.pairs import Pair, PairOptions, Scored, make_pairs
from vidllm.feedback.perturb import Change
from vidllm.feedback.report import Agreement, Figures, Report, agree, make_report
from vidllm.feedback.rowfile import Row, pair_row, write_rows
from vidllm.feedback.twins import twin
from vidllm.interrupts import Interrupts
from vidllm.linefile import check_regular, write_whole
from vidllm.model.families import load_tokenizer, read_spec, resolve_model
from vidllm.model.fingerprint import fingerprint
from vidllm.model.resolve import ENVIRONMENT
from vidllm.planning import PlanOptions
from vidllm.train.loading import Shelf, open_turns
from vidllm.train.row import Media, Origin
from vidllm.video.guard import DEFAULT_LIMITS

if TYPE_CHECKING:
    from vidllm.ask import VideoModel
    from vidllm.corpus.asking import HttpOptions
    from vidllm.feedback.sampler import Sampler
    from vidllm.prompt import Message

VERSION = 1
"""Counted up when the same options come to mean other candidates."""
NATIVE_VERSION = 2
"""The same for families that lay out their own frames; before it their questions stood at wrong positions."""


@dataclass(frozen=True, kw_only=True)
class FeedbackOptions:
    """What a person may say about a feedback run."""

    model: str | None = None
    """Who is asked: the model being taught. A folder, a Hugging Face id, None for the default one."""
    dtype: str | None = None
    device: str | None = None
    judge: str = "oracle"
    """oracle, a model (folder or id), or the address of a server."""
    judge_model: str | None = None
    """The server's model, where it offers several."""
    judging: Judging = "scores"
    watch: bool = False
    """A model as judge is shown the clip, too."""
    patience: HttpOptions | None = None
    """With a server as judge; None: as captions have it."""
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    plan: PlanOptions = field(default_factory=lambda: PlanOptions(guard=DEFAULT_LIMITS))
    pairs: PairOptions = field(default_factory=PairOptions)
    changes: tuple[Change, ...] = ()
    """Changed clips that a rejected answer may come from."""
    questions: Path | None = None
    media: Path | None = None
    captions: Path | None = None
    limit: int | None = None
    skip_bad: bool = False
    """Go on without the rows that are wrong."""
    retry_errors: bool = False


@dataclass(frozen=True, kw_only=True)
class FeedbackDone:
    """What a run came to. `report` is of the whole output, `tally` of this run."""

    output: Path
    report: Report
    tally: Tally
    interrupted: bool
    seconds: float


Load = Callable[[], "VideoModel"]


def feedback(
    source: Path, output: Path, options: FeedbackOptions | None = None, *, load: Load | None = None,
    load_judge: Load | None = None, tell: Callable[[Tally], None] = lambda tally: None,
    remark: Callable[[str], None] = lambda line: None, on_interrupt: Callable[[], None] = lambda: None,
) -> FeedbackDone:  # fmt: skip
    """Ask every question of `source`, judge the answers, and write `output` with its journal and report beside it.

    `load` gives the model being taught, `load_judge` a local judge; `remark` hears of bad rows, one line each, and of a
    server that is late. Raises RowError, ConfigError, ModelError, OutputError or EngineError before or while asking;
    what is done stays.
    """
    began = time.monotonic()
    options = options or FeedbackOptions()
    _check_judge(options)
    _check_output(source, output)
    spec = read_spec(resolve_model(options.model, weights=False))
    questions = read_questions(
        source, questions=options.questions, media=options.media, captions=options.captions, dialogue=spec.dialogue,
        limit=options.limit,
    )  # fmt: skip
    judge = open_judge(options, load_judge, remark)
    try:
        questions = _judgeable(questions, judge, options, remark)
        folder = resolve_model(options.model)  # gigabytes are fetched only for questions that can be asked and judged
        with Journal(output) as journal:
            work = _work(questions.asked, judge, options, folder, load)
            run = Run(work, journal, tell)
            with Interrupts(on_interrupt, patience_seconds=_patience_seconds(options.judge)) as interrupts:
                tally = run.go(interrupts)
            report = _write_pairs(output, work, journal, questions, options)
        return FeedbackDone(
            output=output, report=report, tally=tally, interrupted=interrupts.asked, seconds=time.monotonic() - began
        )
    finally:
        judge.close()


def _check_judge(options: FeedbackOptions) -> None:
    """Raise ConfigError for what the judge could not do, or would not hear."""
    oracle, server = options.judge == "oracle", "://" in options.judge
    if options.pairs.of_twins and not oracle:
        raise ConfigError("only the oracle can say which part of an answer never happened; use another rule of pairs "
                          "with another judge")  # fmt: skip
    if oracle and (options.watch or options.judging != "scores"):
        raise ConfigError("the oracle reads the script: how a judge is asked (judging, watch) is for a model or a "
                          "server; name it as the judge, or leave that out")  # fmt: skip
    if options.judge_model is not None and not server:
        raise ConfigError("judge_model is a server's; name its address as the judge, or leave that out")


def _check_output(source: Path, output: Path) -> None:
    if output.resolve() == source.resolve():
        raise ConfigError(f"{output} is the input; give the pairs another name")
    check_regular(output)
    if output.is_file() and output.stat().st_size and not (journal_of(output).exists() and _holds_pairs(output)):
        raise OutputError(f"{output}: is there already, and not as a feedback run leaves it; choose another name or "
                          "move it")  # fmt: skip


def _holds_pairs(output: Path) -> bool:
    """Whether every line is as `pair_row` makes them: outputs of several endings share a journal."""
    with output.open(encoding="utf-8", errors="replace") as file:
        return all('"judge": ' in line for line in file)


def open_judge(options: FeedbackOptions, load: Load | None, remark: Callable[[str], None]) -> Judge:
    """The judge that the options name; `remark` hears what a server makes wait. Raises ConfigError, EngineError or
    ModelError."""
    if options.judge == "oracle":
        return Oracle()
    if "://" in options.judge:
        return open_http_judge(
            options.judge, options.judge_model, judging=options.judging, watch=options.watch, options=options.patience,
            remark=remark,
        )  # fmt: skip
    from vidllm.feedback.local_judge import open_local_judge

    return open_local_judge(
        options.judge, load or (lambda: _load(options.judge, options)), judging=options.judging, watch=options.watch,
        device=options.device, dtype=options.dtype,
    )  # fmt: skip


def _load(name: str | None, options: FeedbackOptions) -> VideoModel:
    from vidllm.ask import load

    return load(name, device=options.device, dtype=options.dtype)


def _patience_seconds(judge: str) -> float:
    """How long verdicts under way may take when the run is to stop: a server may hang."""
    if "://" not in judge:
        return math.inf
    from vidllm.corpus.http import STOP_SECONDS

    return STOP_SECONDS


def _judgeable(
    questions: Questions, judge: Judge, options: FeedbackOptions, remark: Callable[[str], None]
) -> Questions:
    """The questions that can be asked and judged. Raises RowError when some can not, unless they may be skipped."""
    refused = {one.key: why for one in questions.asked if (why := judge.refuses(one.case("")))}
    asked = tuple(one for one in questions.asked if one.key not in refused)
    told = [*map(str, questions.problems), *_refusals(questions.asked, refused, options.questions is not None)]
    for line in told[:MOST_TOLD]:
        remark(line)
    if len(told) > MOST_TOLD:
        remark(f"... and {len(told) - MOST_TOLD:,} more")
    bad = len(questions.problems) + len(refused)
    if bad and not options.skip_bad:
        raise RowError(f"{bad:,} of {bad + len(asked):,} questions can not be asked or judged (above); mend "
                       "them, or leave them out with --skip-bad")  # fmt: skip
    if not asked:
        raise RowError("no question is left to ask; see the lines above")
    return dataclasses.replace(questions, asked=asked)


MOST_TOLD = 20
"""Bad rows told of one by one."""


def _refusals(asked: Sequence[Asked], refused: Mapping[str, str], of_every_clip: bool) -> list[str]:
    """A line for each question that the judge refuses, or for all clips that are asked the same."""
    alike: dict[tuple[str, str], list[Origin]] = {}
    for one in asked:
        if one.key in refused:
            alike.setdefault((one.question if of_every_clip else one.key, refused[one.key]), []).append(one.origin)
    return [f"{first}{f' and {len(others):,} more' if others else ''}: {why}"
            for (_, why), (first, *others) in alike.items()]  # fmt: skip


def _work(asked: Sequence[Asked], judge: Judge, options: FeedbackOptions, folder: Path, load: Load | None) -> Work:
    recipe = recipe_digest(fingerprint(folder), options, native=read_spec(folder).kind == "native")

    def sampler() -> Sampler:
        from vidllm.feedback.sampler import Sampler

        model = load() if load is not None else _load(options.model, options)
        return Sampler(model, options.sampling, rope_max=options.plan.rope_max)

    return Work(
        questions=asked, slots=[Slot(one.key, one.stamp(), recipe) for one in asked],
        opinions=[_opinion_key(judge, one) for one in asked], judge=judge, look=_Opener(folder, options.plan),
        sampler=sampler, changes=options.changes, retry_errors=options.retry_errors,
        twin=twin if options.pairs.of_twins else None,
    )  # fmt: skip


class _Opener:
    """Opens the clips of questions that come sorted by clip: one that several look at alike is decoded once."""

    def __init__(self, folder: Path, plan: PlanOptions) -> None:
        self._spec, self._tokenizer, self._plan = read_spec(folder), load_tokenizer(folder), plan
        self._media: tuple[Media, ...] = ()
        self._shelf, self._left = Shelf(), 0

    def __call__(self, one: Asked) -> Sequence[Message]:
        """The question as messages. Raises VideoError or BudgetError."""
        if one.media != self._media or not self._left:
            self._media, self._shelf, self._left = one.media, Shelf(), MOST_SHELVED
        self._left -= 1
        return open_turns(one.turns, self._spec, self._tokenizer, self._plan, known=self._shelf)


MOST_SHELVED = 16
"""Questions that share what was decoded for them: looks at many moments must not pile up."""


def recipe_digest(fingerprint: str, options: FeedbackOptions, *, native: bool) -> str:
    """16 hex digits over everything that shapes candidates but the question: other options, other candidates."""
    look = {name: value for name, value in dataclasses.asdict(options.plan).items() if name not in NOT_SHAPING}
    shaping = [VERSION, fingerprint, options.dtype, dataclasses.asdict(options.sampling), look, options.changes]
    shaping += ["twins"] if options.pairs.of_twins else []
    shaping += [NATIVE_VERSION] if native else []
    return hashlib.blake2b(json.dumps(shaping, sort_keys=True).encode(), digest_size=8).hexdigest()


def _opinion_key(judge: Judge, asked: Asked) -> str:
    """What a verdict goes under: the judge and the evidence it has; with another caption it is asked again, and so it
    is about a talk of which it was once told the end alone."""
    evidence = json.dumps([judge.fingerprint, asked.truth, asked.evidence, *([asked.before] if asked.before else [])])
    return hashlib.blake2b(evidence.encode(), digest_size=8).hexdigest()


# ------------------------------------------------------------------------------------------------ pairs and report


def _write_pairs(output: Path, work: Work, journal: Journal, questions: Questions, options: FeedbackOptions) -> Report:
    """Make the pairs of everything that is judged, write them and their report."""
    judged = _Judged.of(work, journal)
    paired = make_pairs(judged.scored, options.pairs)
    write_rows(output, list(_rows(paired.pairs, judged, work, journal, output, options.plan.look)))
    report = make_report(
        model=str(options.model or os.environ.get(ENVIRONMENT) or "built-in"), judge=work.judge.name,
        questions=len(work.questions), repeated=questions.repeated, figures=judged.figures, scored=judged.scored,
        paired=paired, agreements=judged.agreements(options.pairs.margin),
    )  # fmt: skip
    write_whole(output.with_name(output.stem + ".report.json"), json.dumps(report.to_dict(), indent=1) + "\n")
    return report


def _rows(
    pairs: Sequence[Pair], judged: _Judged, work: Work, journal: Journal, output: Path, look: str
) -> list[Row]:
    """The rows; a question with several pairs numbers them."""
    count: dict[int, int] = {}
    rows = []
    for pair in pairs:
        number = judged.numbers[pair.question]
        count[number] = count.get(number, 0) + 1
        slot, asked = work.slots[number], work.questions[number]
        model, opinion = journal.sampled[slot].model, judged.opinions[pair.question]
        name = asked.id + (f"#{count[number]}" if count[number] > 1 else "")
        judge = {"name": opinion.judge, "version": opinion.model or work.judge.fingerprint, "digest":
                 work.opinions[number]}  # fmt: skip
        rows.append(pair_row(asked, pair, name, model=model, judge=judge, output=output, look=look))
    return rows


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """The questions with candidates and this judge's verdicts, and what became of the others."""

    numbers: list[int]
    """Of the questions in `work`."""
    scored: list[list[Scored]]
    opinions: list[Opinion]
    others: dict[tuple[str, str], dict[int, Opinion]]
    """Opinions of other judges, by name and way: place in `scored` -> opinion, the last where evidence has changed."""
    figures: Figures
    work: Work

    @classmethod
    def of(cls, work: Work, journal: Journal) -> _Judged:
        """Gather what the journal holds of these questions."""
        judged = cls(numbers=[], scored=[], opinions=[], others={}, figures=Figures(), work=work)
        for number, slot in enumerate(work.slots):
            if slot in journal.sampled:
                judged._add(number, journal.sampled[slot], journal)
            elif slot in journal.failed:
                judged.figures.failed[_cause(journal.failed[slot])] += 1
            else:
                judged.figures.remaining += 1
        return judged

    def _add(self, number: int, sampled: Sampled, journal: Journal) -> None:
        """A question that was asked; it counts as judged when it was, or when there was nothing to tell apart."""
        figures, slot, key = self.figures, self.work.slots[number], self.work.opinions[number]
        figures.asked += 1
        figures.candidates += len(sampled.candidates)
        figures.dropped.update(sampled.dropped)
        opinion = journal.opinions[slot].get(key)
        if opinion is None and len(sampled.candidates) >= 2:
            figures.remaining += 1
            return
        opinion = opinion or Opinion(verdicts=(), judge=self.work.judge.name, model="")
        figures.judged += 1
        figures.nonsense += opinion.nonsense
        figures.orders = (figures.orders[0] + opinion.orders[0], figures.orders[1] + opinion.orders[1])
        for other in (other for mark, other in journal.opinions[slot].items() if mark != key):
            self.others.setdefault((other.judge, other.way), {})[len(self.scored)] = other
        self.numbers.append(number)
        self.opinions.append(opinion)
        told = zip(sampled.candidates, opinion.verdicts, strict=False)  # a single candidate has no verdict
        self.scored.append([Scored(candidate=candidate, verdict=verdict) for candidate, verdict in told])

    def agreements(self, margin: float) -> list[Agreement]:
        """With every other judge that was asked before, and with the oracle wherever it knows."""
        mine = [[one.verdict.score for one in several] for several in self.scored]
        judge = self.work.judge.name
        found = []
        for (name, way), told in self.others.items():
            if name != Oracle.name:
                theirs = [[verdict.score for verdict in opinion.verdicts] for opinion in told.values()]
                found.append(agree(judge, [mine[at] for at in told], self._label(name, way), theirs, margin))
        if judge != Oracle.name:
            found.append(agree(judge, mine, Oracle.name, self._true(), margin))
        return [one for one in found if one is not None]

    def _label(self, name: str, way: str) -> str:
        """ "seer (compare)"; "seer (scores, before)" of the judge itself, with other evidence or words."""
        before = (name, way) == (self.work.judge.name, self.work.judge.way)
        words = ", ".join(filter(None, (way, "before" if before else "")))
        return f"{name} ({words})" if words else name

    def _true(self) -> list[list[float | None]]:
        """The oracle's scores of all candidates; None where it does not know."""
        return [
            [judge_case(self.work.questions[number].case(one.candidate.text)).score for one in several]
            for number, several in zip(self.numbers, self.scored, strict=True)
        ]


def _cause(error: str) -> str:
    """An error without the clip's own name, so that equal ones are counted together."""
    head, found, rest = error.partition(": ")
    return rest if found and ("/" in head or "." in head) else error
