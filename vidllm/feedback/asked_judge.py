"""A judge that is a language model: it is asked in words, at temperature 0, and every raw reply is kept.

    scores    one request an answer                           score as the model gives it
    compare   every two answers of a question, in both orders   1 + 4 x share of points: a win in both orders is a
              point, anything else half a point for each; so that who stands first has no advantage

A reply that can not be read is asked for once more, with a reminder, or with more room where that ran out; then it is
nonsense, counted and never guessed.
Who is asked is a `Captioner`: a model in this process or a server, the same as captions come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import TYPE_CHECKING, Literal

from vidllm.clip import PlanOptions, open_clip
from vidllm.errors import ConfigError, VidllmError
from vidllm.feedback.judge import LEAST, MOST, Case, Judged, Verdict
from vidllm.feedback.rubric import (
    REMINDER,
    Winner,
    compare_prompt,
    explanation_of,
    read_marks,
    read_winner,
    rubric_digest,
    score_prompt,
)
from vidllm.options import GenerationOptions
from vidllm.video.guard import DEFAULT_LIMITS

if TYPE_CHECKING:
    from pathlib import Path

    from vidllm.clip import Clip
    from vidllm.corpus.asking import HttpOptions
    from vidllm.corpus.captioner import Captioner, Said

Judging = Literal["scores", "compare"]
TRIES = 2
"""Requests for one reply: at temperature 0 only other words, or more room, can bring another answer; once, no more."""
REPLY_TOKENS = 256
THOUGHT_TOKENS = 4096
"""Of a reply after one that was cut off: models that think, think longer than that."""


@dataclass
class _Request:
    """One reply that is waited for."""

    ticket: int
    place: tuple[int, ...]
    """(i,) the score of answer i; (i, j) answer i as A against j as B."""
    prompt: str
    """With a reminder the second time, unless the reply was only cut off."""
    room: int = REPLY_TOKENS
    tries: int = 0


@dataclass
class _Sheet:
    """One question under judgement."""

    cases: Sequence[Case]
    waiting: int
    clip: Clip | None = None
    replies: dict[tuple[int, ...], list[str]] = field(default_factory=dict)
    failures: dict[tuple[int, ...], str] = field(default_factory=dict)
    nonsense: int = 0
    model: str = ""


class AskedJudge:
    """A `Judge` over a `Captioner`. `watch` opens a clip for its question, beside which the judge is asked these
    prompts; None shows it words only."""

    def __init__(
        self, captioner: Captioner, *, judging: Judging = "scores",
        watch: Callable[[Path, str, Sequence[str]], Clip] | None = None, most_tokens: int = REPLY_TOKENS,
    ) -> None:  # fmt: skip
        if judging not in ("scores", "compare"):
            raise ConfigError(f"judging {judging!r} is neither scores nor compare")
        self.name = captioner.model
        self._captioner, self._judging, self._watch = captioner, judging, watch
        self.way = judging + (", watching" if watch else "")
        watched = ":watches" if watch else ""
        self.fingerprint = f"{captioner.fingerprint}:{judging}{watched}:{rubric_digest()}"
        self._most_tokens = most_tokens
        self._sheets: dict[int, _Sheet] = {}
        self._queue: list[_Request] = []
        self._asked: dict[int, _Request] = {}
        self._tickets = 0
        self._done: list[Judged] = []

    def refuses(self, case: Case) -> str | None:
        """See `Judge`."""
        if case.evidence or case.truth or (self._watch is not None and case.video is not None):
            return None
        return ("has neither a caption nor a true answer to judge by; add \"caption\" to the row, give --captions of "
                "`vidllm caption`, or let the judge --watch")  # fmt: skip

    def submit(self, ticket: int, cases: Sequence[Case]) -> None:
        """See `Judge`."""
        video = cases[0].video  # a row of several media has none to show
        asked = self._requests(ticket, cases, self._watch is not None and video is not None)
        sheet = _Sheet(cases, waiting=len(asked))
        try:
            if self._watch is not None and video is not None:
                sheet.clip = self._watch(video, cases[0].question, [request.prompt for request in asked])
        except VidllmError as error:  # the judge takes other frames than the model: it may fail where that did not
            blind = Verdict(score=None, failed=f"the judge can not be shown the clip: {error}")
            self._done.append(Judged(ticket=ticket, verdicts=(blind,) * len(cases)))
            return
        self._sheets[ticket] = sheet
        self._queue += asked
        self._send()

    def _requests(self, ticket: int, cases: Sequence[Case], watched: bool) -> list[_Request]:
        if self._judging == "scores":
            return [_Request(ticket, (i,), score_prompt(case, watched=watched)) for i, case in enumerate(cases)]
        return [
            _Request(ticket, (i, j), compare_prompt(cases[i], cases[j].answer, watched=watched))
            for i, j in permutations(range(len(cases)), 2)
        ]

    def poll(self, wait: float) -> list[Judged]:
        """See `Judge`."""
        self._send()
        for said in self._captioner.poll(0.0 if self._done else wait):
            self._hear(said)
        self._send()
        done, self._done = self._done, []
        return done

    def room(self) -> bool:
        """See `Judge`."""
        return not self._queue and self._captioner.room() > 0

    def close(self) -> None:
        """See `Judge`."""
        self._captioner.close()

    def _send(self) -> None:
        """Ask as much as the captioner has room for."""
        while self._queue and self._captioner.room() > 0:
            request = self._queue.pop(0)
            request.tries += 1
            self._tickets += 1
            self._asked[self._tickets] = request
            wish = GenerationOptions(max_new_tokens=request.room, temperature=0.0)
            self._captioner.submit(self._tickets, self._sheets[request.ticket].clip, request.prompt, wish)

    def _hear(self, said: Said) -> None:
        """Take a reply; ask once more when it can not be read."""
        request = self._asked.pop(said.ticket)
        sheet = self._sheets[request.ticket]
        sheet.model = said.model or sheet.model
        if said.error is None:
            sheet.replies.setdefault(request.place, []).append(said.text)
        if trouble := _trouble(said, len(request.place) == 1):
            sheet.nonsense += said.error is None or _is_cut(said)
            if request.tries < TRIES and self._may_help(request, said):
                self._queue.insert(0, request)
                return
            sheet.failures[request.place] = trouble
        sheet.waiting -= 1
        if not sheet.waiting:
            self._finish(request.ticket)

    def _may_help(self, request: _Request, said: Said) -> bool:
        """Whether asking again may bring a reply that can be read: with more room, or else with a reminder."""
        if _is_cut(said) and request.room < self._most_tokens:
            request.room = self._most_tokens
        elif said.error is None:
            request.prompt += REMINDER
        else:
            return False
        return True

    def _finish(self, ticket: int) -> None:
        sheet = self._sheets.pop(ticket)
        if self._judging == "scores":
            verdicts = tuple(_scored(sheet, i) for i in range(len(sheet.cases)))
            orders = (0, 0)
        else:
            verdicts, orders = _compared(sheet)
        self._done.append(
            Judged(ticket=ticket, verdicts=verdicts, nonsense=sheet.nonsense, orders=orders, model=sheet.model)
        )


def open_http_judge(
    url: str, model: str | None = None, *, judging: Judging = "scores", watch: bool = False,
    options: HttpOptions | None = None, remark: Callable[[str], None] = lambda line: None,
) -> AskedJudge:  # fmt: skip
    """The model of that name on the server at `url`, else the one it serves. `watch` sends it the clip's frames, too.

    Raises ConfigError (no address, several models to choose from) or EngineError (nobody there, key refused).
    """
    from vidllm.corpus.http import HttpCaptioner  # brings an HTTP client, which other judges do without

    captioner = HttpCaptioner.connect(url, model, options, remark=remark)

    def look(video: Path, question: str, _: Sequence[str]) -> Clip:
        """The clip as for its question: nobody knows how much room a server's model has for the prompts."""
        return open_clip(video, question, captioner.spec, None, PlanOptions(guard=DEFAULT_LIMITS))

    return AskedJudge(captioner, judging=judging, watch=look if watch else None, most_tokens=THOUGHT_TOKENS)


def _trouble(said: Said, alone: bool) -> str:
    """Why a reply about one answer, or about two, is no verdict; "" for one that is."""
    if _is_cut(said):
        return "the judge's reply was cut off"
    if said.error is not None:
        return said.error
    read = read_marks(said.text) if alone else read_winner(said.text)
    return "" if read is not None else "the judge's reply can not be read"


def _is_cut(said: Said) -> bool:
    """Whether its room ran out, be it in its thoughts, which a server calls an error."""
    return said.finish_reason == "length"


def _scored(sheet: _Sheet, number: int) -> Verdict:
    place = (number,)
    replies = tuple(sheet.replies.get(place, ()))
    if place in sheet.failures:
        return Verdict(score=None, replies=replies, failed=sheet.failures[place])
    marks = read_marks(replies[-1])
    assert marks is not None
    return Verdict(score=marks.score, criteria=marks.criteria, explanation=marks.explanation, replies=replies)


def _compared(sheet: _Sheet) -> tuple[tuple[Verdict, ...], tuple[int, int]]:
    """Each answer's share of points against the others, and how many pairs came out alike in both orders."""
    count = len(sheet.cases)
    points: dict[int, list[float]] = {i: [] for i in range(count)}
    alike = pairs = 0
    for i in range(count):
        for j in range(i + 1, count):
            there, back = _winner(sheet, (i, j)), _winner(sheet, (j, i))
            if there is None or back is None:
                continue
            pairs += 1
            first, second = {"A": 1.0, "B": 0.0, "tie": 0.5}[there], {"A": 0.0, "B": 1.0, "tie": 0.5}[back]
            alike += first == second
            won = first if first == second else 0.5
            points[i].append(won)
            points[j].append(1.0 - won)
    return tuple(_placed(sheet, i, points[i]) for i in range(count)), (alike, pairs)


def _winner(sheet: _Sheet, place: tuple[int, int]) -> Winner | None:
    return None if place in sheet.failures else read_winner(sheet.replies[place][-1])


def _placed(sheet: _Sheet, number: int, points: Sequence[float]) -> Verdict:
    places = [place for place in sheet.replies if number in place]
    replies = tuple(reply for place in sorted(places) for reply in sheet.replies[place])
    if not points:
        cause = next(sheet.failures[place] for place in sorted(sheet.failures) if number in place)
        return Verdict(score=None, replies=replies, failed=cause)
    score = LEAST + (MOST - LEAST) * sum(points) / len(points)
    why = next((explanation_of(reply) for reply in replies if explanation_of(reply)), "")
    return Verdict(score=score, explanation=why, replies=replies)
