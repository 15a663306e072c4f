"""`vidllm feedback`: preference pairs from the model's own answers; what `vidllm dpo` learns from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from . import options
from .output import INTERRUPTED, note, write, write_json

if TYPE_CHECKING:
    from vidllm.ask import VideoModel
    from vidllm.corpus.asking import HttpOptions
    from vidllm.feedback.run import FeedbackDone, FeedbackOptions

Input = Annotated[
    Path,
    typer.Argument(
        parser=options.place, metavar="INPUT", show_default=False,
        help="Training rows or questions (JSON, JSONL), or a folder of clips.",
    ),
]  # fmt: skip
Output = Annotated[
    Path,
    typer.Option("-o", "--output", metavar="PAIRS", help="PAIRS.jsonl; candidates and a report are kept beside it."),
]
Judge = Annotated[
    str,
    typer.Option("--judge", metavar="J", help="oracle (world clips), a model (folder, Hugging Face id), or the address "
                 "of an OpenAI-compatible server."),
]  # fmt: skip
JudgeModel = Annotated[
    str | None, typer.Option("--judge-model", metavar="NAME", help="Which model of the server judges.")
]
Judging = Annotated[
    Literal["scores", "compare"],
    typer.Option("--judging", help="scores: each answer 1 to 5. compare: every two answers, in both orders."),
]
Watch = Annotated[bool, typer.Option("--watch", help="Show the judge the clip, too (a model or server that sees).")]
Candidates = Annotated[int, typer.Option("-k", "--candidates", min=2, metavar="N", help="Answers to each question.")]
Temperature = Annotated[
    float, typer.Option("--temperature", min=0.0, metavar="T", help="Of the candidates; the judge's is 0.")
]
TopP = Annotated[
    float, typer.Option("--top-p", min=1e-6, max=1.0, metavar="P", help="Sample from so much probability.")
]
Perturb = Annotated[
    str,
    typer.Option("--perturb", metavar="C,C", help="Also what the model says of a changed clip, as rejected answers: "
                 "dropped, shuffled, reversed, blank, or all."),
]  # fmt: skip
Rule = Annotated[
    Literal["best", "threshold", "corrected", "twins"],
    typer.Option("--pairs", help="best: best against worst. threshold: those that reach it against those that do not. "
                 "corrected: a description without what never happened against itself. "
                 "twins: these, and for every three a right one against itself without what did happen (both: "
                 "oracle)."),
]
Threshold = Annotated[float, typer.Option("--threshold", metavar="S", help="Of --pairs threshold, 1 to 5.")]
Margin = Annotated[float, typer.Option("--margin", metavar="S", help="Scores nearer than this are a tie: no pair.")]
LeastChosen = Annotated[
    float, typer.Option("--least-chosen", metavar="S", help="No answer that scores less is chosen; 1: any may be.")
]
Most = Annotated[int, typer.Option("--most", min=1, metavar="N", help="Pairs a question may give.")]
Rebalance = Annotated[
    float,
    typer.Option("--rebalance", metavar="R", help="Leave pairs out until chosen and rejected answers differ in mean "
                 "length by at most this share; negative: never."),
]  # fmt: skip
QuestionsFile = Annotated[
    Path | None,
    typer.Option("--questions", metavar="FILE", help="One question a line, asked of every clip of a folder."),
]
Media = Annotated[
    Path | None,
    typer.Option(
        "--media", parser=options.place, metavar="DIR", help="Where the rows' paths begin. Default: beside INPUT."
    ),
]
Captions = Annotated[
    Path | None, typer.Option("--captions", metavar="C.jsonl", help="Of `vidllm caption`: evidence for the judge.")
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="Only the first N questions.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out rows that are wrong; each is told of.")]
RetryErrors = Annotated[bool, typer.Option("--retry-errors", help="Again what could not be asked or judged before.")]
STOPPING = "vidllm: finishing the question in flight; Ctrl-C again stops at once"
LOOK = {word: kind for word, kind in options.LOOK.items() if word != "max_new_tokens"}
"""How long an answer may be is said with how it is drawn; the clip is looked at alike."""
SAMPLING: options.Group = {
    "k": (Candidates, 5), "temperature": (Temperature, 1.0), "top_p": (TopP, 1.0), "seed": (options.Seed, 0),
    "max_new_tokens": (options.MaxNewTokens, None),
}  # fmt: skip
PAIRS: options.Group = {
    "rule": (Rule, "best"), "threshold": (Threshold, 3.0), "margin": (Margin, 1.0), "least_chosen": (LeastChosen, 3.0),
    "most": (Most, 2), "rebalance": (Rebalance, 0.02),
}  # fmt: skip
PLACE = {word: kind for word, kind in options.PLACE.items() if word != "quantize"}
"""Log-probs are recorded of the model that will be taught, and that one is not quantized."""


@options.takes(sampling=SAMPLING, pairs=PAIRS, look=LOOK, place=PLACE)
def feedback(
    source: Input,
    output: Output,
    model: options.Model = None,
    judge: Judge = "oracle",
    judge_model: JudgeModel = None,
    judging: Judging = "scores",
    watch: Watch = False,
    request_timeout: options.RequestTimeout = options.REQUEST_SECONDS,
    sampling: options.Words = options.UNSAID,
    perturb: Perturb = "none",
    pairs: options.Words = options.UNSAID,
    questions: QuestionsFile = None,
    media: Media = None,
    captions: Captions = None,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    retry_errors: RetryErrors = False,
    look: options.Words = options.UNSAID,
    place: options.Words = options.UNSAID,
    json: options.Json = False,
) -> int:
    """Preference pairs: the model answers each question k times, a judge scores the answers, good stands against bad.

    \b
    Examples:
      vidllm world make -n 50 --seed 1 -o clips
      vidllm feedback clips -o pairs.jsonl                        the oracle judges: it knows the clips' scripts
      vidllm feedback clips -o pairs.jsonl                        again: goes on where it ended
      vidllm feedback clips -o pairs.jsonl --margin 2             other pairs of the same answers, at once
      vidllm feedback rows.jsonl -o pairs.jsonl -m taught/ --judge http://localhost:8000/v1 --captions captions.jsonl
      vidllm feedback rows.jsonl -o pairs.jsonl -m taught/ --judge Qwen/Qwen2.5-VL-7B-Instruct --watch --judging compare
      vidllm feedback clips -o pairs.jsonl --questions ask.txt --perturb shuffled,blank
      vidllm feedback clips -o pairs.jsonl --pairs corrected      descriptions against themselves without inventions

    The key of a server is $VIDLLM_API_KEY. Beside PAIRS.jsonl: PAIRS.candidates.jsonl holds every answer, its
    log-prob and every raw reply of the judge; PAIRS.report.json the report that is printed.

    Exit code: 0 when every question is settled and gave pairs, 1 when some could not be asked or judged, or there is no
    pair; 130 after Ctrl-C.
    """
    from vidllm.feedback.candidates import SamplingOptions
    from vidllm.feedback.pairs import PairOptions
    from vidllm.feedback.perturb import parse_changes
    from vidllm.feedback.run import FeedbackOptions
    from vidllm.planning import PlanOptions
    from vidllm.video.guard import DEFAULT_LIMITS

    rebalance = None if pairs["rebalance"] < 0 else pairs["rebalance"]
    wishes = FeedbackOptions(
        **place, model=model, judge=judge, judge_model=judge_model, judging=judging, watch=watch,
        patience=_patience(judge, request_timeout), sampling=SamplingOptions(**sampling),
        plan=PlanOptions(**look, guard=DEFAULT_LIMITS), pairs=PairOptions(**{**pairs, "rebalance": rebalance}),
        changes=parse_changes(perturb), questions=questions, media=media, captions=captions,
        limit=limit, skip_bad=skip_bad, retry_errors=retry_errors,
    )  # fmt: skip
    return _feedback(source, output, wishes, as_json=json)


def _patience(judge: str, request_seconds: float) -> HttpOptions | None:
    """With a server as judge; an HTTP client is loaded for nobody else."""
    if "://" not in judge:
        if request_seconds != options.REQUEST_SECONDS:
            from vidllm.errors import ConfigError

            raise ConfigError("--request-timeout is for a server; name its address with --judge, or leave it out")
        return None
    from vidllm.corpus.asking import HttpOptions

    return HttpOptions(request_seconds=request_seconds)


def _feedback(source: Path, output: Path, wishes: FeedbackOptions, *, as_json: bool) -> int:
    from vidllm.corpus.progress import ProgressLine
    from vidllm.feedback.report import lines
    from vidllm.feedback.run import feedback as run

    line = ProgressLine()
    try:
        done = run(
            source, output, wishes, load=lambda: _model(wishes.model, wishes),
            load_judge=lambda: _model(wishes.judge, wishes), tell=line, remark=line.say,
            on_interrupt=lambda: line.say(STOPPING),
        )  # fmt: skip
    except KeyboardInterrupt:
        line.clear()
        note(f"stopped; every answer and verdict so far is kept beside {output}, run the same command again to go on")
        raise
    line.clear()
    if as_json:
        write_json(done.report.to_dict())
    else:
        write("".join(f"{told}\n" for told in lines(done.report)))
    return _code(done)


def _code(done: FeedbackDone) -> int:
    """The exit code, and what is not well in a line each."""
    report = done.report
    if done.interrupted:
        note("stopped before the end; run the same command again to go on")
        return INTERRUPTED
    failed = sum(report.failed.values())
    if failed:
        note(f"{failed:,} of {report.questions:,} questions could not be asked; --retry-errors tries them again")
    if report.unjudged:
        note(f"{sum(report.unjudged.values()):,} answers have no verdict; --retry-errors asks the judge again")
    if not report.pairs:
        note("no pair came out: raise --temperature or -k for answers that differ, or lower --margin or --least-chosen")
    return 1 if failed or report.unjudged or not report.pairs else 0


def _model(name: str | None, wishes: FeedbackOptions) -> VideoModel:
    """A model, loaded with our own line of progress."""
    from .loading import load
    from .progress import Progress

    with Progress() as progress:
        return load(name, progress, device=wishes.device, dtype=wishes.dtype)
