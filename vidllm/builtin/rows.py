"""Clips to training rows: frames drawn once, several layouts a clip, all of a layout's questions in one row.

A row is one video prefix followed by its questions and answers, each of which sees the prefix and itself and whose
positions restart after the prefix: one vision pass and one prefill pay for many answers, and each answer is computed
exactly as if asked alone.

    USER: 0:00<tokens>0:02<tokens>...\\n | what happens at 0:30? ASSISTANT: ...</s> | how many ...
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerFast

from vidllm.builtin.links import Aim, Kind, Link, Links, Motion, Spot, aims, padded_links, spots
from vidllm.builtin.stills import GRID, IMAGE_SIDE
from vidllm.builtin.words import BOS, EOS, IMAGE
from vidllm.video.sampling import SamplePlan, focus, uniform
from vidllm.video.timecode import format_time
from vidllm.world.degrade import degrade, random_wear
from vidllm.world.generate import generator, make_script, random_canvas, random_things
from vidllm.world.questions import (
    Question,
    clip_questions,
    moment_questions,
    pick_moments,
    picture_question,
    span_question,
    steady,
)
from vidllm.world.render import frame
from vidllm.world.script import Event, Script
from vidllm.world.vocabulary import ACTIONS, COLOURS, SHAPES, Colour, Shape

STRIDES = (1, 2, 3, 4, 6)
FINE_STRIDE, COARSE_STRIDE, COARSE_FRAMES = 3, 6, 12
UNIFORM_STRIDE, UNIFORM_FRAMES = 4, 32
IGNORE = -100
ROWS_PER_GROUP = 8
MOST_ASKED = {"what": 1, "where": 2, "colour": 2, "shape": 1, "describe": 1, "when": 4, "first": 2, "order": 3}
"""Questions of each family that one training row asks at most; of the others, one row in three asks one."""


@dataclass(frozen=True)
class Row:
    """One layout of one clip: `seen` is (frame number, stride, stamp or None) in order, then the questions about it."""

    seen: tuple[tuple[int, int, str | None], ...]
    asked: tuple[Question, ...]
    spots: tuple[tuple[Spot, ...], ...]
    """For every seen frame, where each object is and what it has been doing since the frame before."""
    aims: tuple[tuple[frozenset[Aim], ...], ...]
    """For every question and every sentence of its answer, what has to be looked at to say it."""


@dataclass(frozen=True)
class Rows:
    """Padded rows of about one length: planes (R, T) int64."""

    ids: Tensor
    slots: Tensor
    """Where a visual token comes from (see `slot_base`); -1 for text."""
    positions: Tensor
    blocks: Tensor
    """0 the prefix, 1.. its questions, -1 padding."""
    labels: Tensor
    """Shifted already: the token that a position predicts, or IGNORE."""
    changes: Tensor
    """At the token that holds an object's centre: `change_code` of what it has been doing, else IGNORE."""
    motions: Tensor
    """(R, T, 4) float32: there, how it has moved, grown and faded; see `Motion`."""
    stamps: Tensor
    """At the same tokens: the last token of their frame's stamp, else IGNORE."""
    links: dict[Kind, Links]
    """Which token ought to look at which."""
    scale: Tensor
    """(R,) float32: each row's RoPE factor."""
    families: tuple[tuple[str, ...], ...]
    """Of each row's questions, in order."""


@dataclass(frozen=True)
class Batch:
    """The distinct pictures (F, 96, 96, 3) uint8 of some clips, and their rows in groups of similar length."""

    frames: Tensor
    groups: tuple[Rows, ...]


@dataclass
class _Planes:
    """One row being laid out: the planes of `Rows`, not yet padded."""

    ids: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    changes: dict[int, int] = field(default_factory=dict)
    """Position -> `change_code`."""
    stamps: dict[int, int] = field(default_factory=dict)
    """Position -> the last token of its frame's stamp."""
    motions: dict[int, Motion] = field(default_factory=dict)
    links: list[Link] = field(default_factory=list)

    def add(
        self,
        ids: Sequence[int],
        *,
        start: int | None = None,
        block: int = 0,
        slots: Sequence[int] = (),
        labels: Sequence[int] = (),
    ) -> None:
        """Some tokens of one block; `start` is the position of the first, by default where the row ends."""
        start = len(self.ids) if start is None else start
        self.ids += ids
        self.slots += slots or [-1] * len(ids)
        self.positions += range(start, start + len(ids))
        self.blocks += [block] * len(ids)
        self.labels += labels or [IGNORE] * len(ids)


class Album:
    """The distinct pictures of one clip: moments between which nothing changes share one."""

    def __init__(self, script: Script, rng: np.random.Generator) -> None:
        self.script, self.rng, self.wear = script, rng, random_wear(rng)
        self.pictures: list[NDArray[np.uint8]] = []
        self._known: dict[object, int] = {}

    def number(self, seconds: float) -> int:
        """The number of the picture on screen at a moment."""
        key = (self.script.at(seconds), tuple(round(o, 3) for o in self.script.opacity(seconds)))
        if key not in self._known:
            self._known[key] = len(self.pictures)
            clean = frame(self.script, seconds, height=IMAGE_SIDE, width=IMAGE_SIDE)
            self.pictures.append(degrade(clean, self.wear, self.rng))
        return self._known[key]


def clip_rows(
    split: str, seed: int, *, moments: int = 2, whole: int = 3, plain: bool = False
) -> tuple[list[NDArray[np.uint8]], list[Row]]:
    """A clip's pictures, (96, 96, 3) uint8, and its rows: moments in focus, perhaps a span or a still, the whole clip
    `whole` times, once with `plain`.

    Strides, numbers of frames, words and the clock's start vary; `plain` keeps to asking's layout and the contract's
    words.
    """
    script, rng = make_script(split, seed), generator(split + "/rows", seed)
    start = float(rng.integers(1, 540)) if rng.random() < 0.08 and not plain else 0.0
    script = shift(script, start)
    album = Album(script, rng)
    pts = np.arange(start, script.duration, 1 / script.canvas.fps)
    rows = []
    for moment in pick_moments(script, start, moments, rng):
        asked = moment_questions(script, moment, rng, plain=plain)
        if asked:
            count = COARSE_FRAMES if plain else int(rng.choice([COARSE_FRAMES, int(rng.integers(4, 17))]))
            plan = focus(pts, [(moment, moment)], start, coarse=count)
            asked = asked if plain else _some(asked, rng)
            rows.append(_row(album, plan, asked, _fine(rng, plain), _coarse(rng, plain)))
    if rng.random() < 0.25 and (asked_span := _some_span(script, start, rng)):
        assert asked_span.span is not None
        rows.append(
            _row(album, focus(pts, [asked_span.span], start), [asked_span], _fine(rng, plain), _coarse(rng, plain))
        )
    if rng.random() < 0.25 and not plain:
        rows.append(_still_row(album, start, rng))
    for _ in range(1 if plain else whole):
        frames, stride = _uniform_layout(rng, plain)
        asked = clip_questions(script, rng, plain=plain)
        asked = asked if plain else _some(asked, rng)
        rows.append(_row(album, uniform(pts, frames, start), asked, stride, stride))
    return album.pictures, [row for row in rows if row.asked]


def shift(script: Script, seconds: float) -> Script:
    """The same clip `seconds` later on the clock, as a part of a longer video would be."""
    events = tuple(replace(e, start=e.start + seconds, end=e.end + seconds) for e in script.events)
    return replace(script, events=events, duration=script.duration + seconds)


def _some_span(script: Script, start: float, rng: np.random.Generator) -> Question | None:
    """A question about 2 to 15 seconds, when five tries find a span that cuts no event."""
    for _ in range(5):
        a = float(rng.integers(int(start), int(script.duration - 2)))
        b = float(min(script.duration, a + rng.integers(2, 16)))
        if found := span_question(script, a, b, rng):
            return found
    return None


def _some(asked: list[Question], rng: np.random.Generator) -> list[Question]:
    """At most so many of each family, by chance."""
    mixed = [asked[i] for i in rng.permutation(len(asked))]
    most = {q.family: MOST_ASKED.get(q.family, int(rng.random() < 1 / 3)) for q in asked}
    return [q for n, q in enumerate(mixed) if sum(o.family == q.family for o in mixed[:n]) < most[q.family]]


def still_rows(split: str, seed: int) -> tuple[list[NDArray[np.uint8]], list[Row]]:
    """One picture, crowded more often than not: telling objects apart is what the image stage teaches."""
    rng = generator(split + "/stills", seed)
    canvas = random_canvas(rng)
    things = random_things(rng, canvas, int(rng.choice([1, 2, 3, 3, 4, 4])))
    album = Album(Script(seed=f"{split}/{seed}", duration=1.0, canvas=canvas, things=things), rng)
    return album.pictures, [_still_row(album, 0.0, rng)]


def _still_row(album: Album, start: float, rng: np.random.Generator) -> Row:
    """A single picture without a stamp, asked about without a time."""
    moment = float(rng.uniform(start, album.script.duration))
    asked = moment_questions(album.script, moment, rng) if steady(album.script, moment) else []
    cut = [replace(q, text=_timeless(q.text), family="still " + q.family) for q in asked if q.family != "what"]
    if asked:
        cut.append(picture_question(album.script, moment, rng))
    stride = int(rng.choice([1, 2, 3, 4], p=[0.05, 0.2, 0.4, 0.35]))
    cut = [q for q in cut if q.text]
    times = np.asarray([moment])
    return Row(
        ((album.number(moment), stride, None),),
        tuple(cut),
        spots(album.script, times),
        tuple(aims(album.script, q, times) for q in cut),
    )


def _timeless(text: str) -> str:
    """ "how many objects are there at 0:30?" -> "how many objects are there?"; "" when the time stands in front."""
    head, _, _ = text.rpartition(" at ")
    return head + "?" if head and not text.startswith("at ") else ""


def _fine(rng: np.random.Generator, plain: bool) -> int:
    return FINE_STRIDE if plain else int(rng.choice([3, 2, 4], p=[0.7, 0.1, 0.2]))


def _coarse(rng: np.random.Generator, plain: bool) -> int:
    return COARSE_STRIDE if plain else int(rng.choice([6, 4, 3], p=[0.8, 0.15, 0.05]))


def _uniform_layout(rng: np.random.Generator, plain: bool) -> tuple[int, int]:
    """(frames, stride)."""
    if plain or rng.random() < 0.6:
        return UNIFORM_FRAMES, UNIFORM_STRIDE
    stride = int(rng.choice([4, 3, 2, 6], p=[0.5, 0.2, 0.2, 0.1]))
    return int(rng.integers(6, {2: 17, 3: 29, 4: 41, 6: 57}[stride])), stride


def _row(album: Album, plan: SamplePlan, asked: Sequence[Question], fine: int, coarse: int) -> Row:
    seen = tuple(
        (album.number(t), fine if is_fine else coarse, format_time(t))
        for t, is_fine in zip(plan.times, plan.fine, strict=True)
    )
    times = np.asarray(plan.times)
    found = tuple(aims(album.script, q, times) for q in asked)
    told = tuple(_as_seen(q, aimed, plan.times) for q, aimed in zip(asked, found, strict=True))
    return Row(seen, told, spots(album.script, times), found)


def _as_seen(asked: Question, aimed: Sequence[frozenset[Aim]], times: Sequence[float]) -> Question:
    """When an event starts, as the frames tell it: by the first that shows it. The true second lies up to one interval
    before that, and nobody could say where.
    """
    if asked.family != "when" or not aimed or not aimed[0]:
        return asked
    return replace(asked, answer=f"At {format_time(times[min(n for n, _ in aimed[0])])}.")


def change_code(event: Event | None, began: bool = False) -> int:
    """0: nothing; else 1 + (begun since the frame before, action, colour, shape as it was called) as one number."""
    if event is None:
        return 0
    colour, shape = event.name.split()
    numbers = ACTIONS.index(event.action), COLOURS.index(cast(Colour, colour)), SHAPES.index(cast(Shape, shape))
    action = began * len(ACTIONS) + numbers[0]
    return 1 + (action * len(COLOURS) + numbers[1]) * len(SHAPES) + numbers[2]


def slot_base(frames: int) -> dict[int, int]:
    """Where each stride's tokens begin in the table of all visual tokens: stride by stride, frame by frame."""
    base, total = {}, 0
    for stride in STRIDES:
        base[stride], total = total, total + frames * (GRID // stride) ** 2
    return base


class Collator:
    """Rows of several clips to one padded batch."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        self.image, self.bos, self.eos = vocabulary[IMAGE], vocabulary[BOS], vocabulary[EOS]
        self.period = tokenizer.encode(".", add_special_tokens=False)[-1]
        self._ids: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, remembered."""
        if text not in self._ids:
            if len(self._ids) > 50_000:
                self._ids.clear()
            self._ids[text] = self.tokenizer.encode(text, add_special_tokens=False)
        return self._ids[text]

    def __call__(self, albums: Sequence[tuple[list[NDArray[np.uint8]], list[Row]]], scales: Sequence[float]) -> Batch:
        """Clips (pictures, rows) to one batch; `scales`: a RoPE factor for every row in order."""
        base = slot_base(sum(len(pictures) for pictures, _ in albums))
        first = 0
        laid: list[tuple[_Planes, tuple[str, ...]]] = []
        for pictures, rows in albums:
            laid += [(self._lay(row, base, first), tuple(q.family for q in row.asked)) for row in rows]
            first += len(pictures)
        order = sorted(range(len(laid)), key=lambda i: len(laid[i][0].ids))
        cuts = [order[i : i + ROWS_PER_GROUP] for i in range(0, len(order), ROWS_PER_GROUP)]
        frames = np.stack([picture for pictures, _ in albums for picture in pictures])
        groups = tuple(_pad([laid[i] for i in cut], [scales[i] for i in cut]) for cut in cuts)
        return Batch(torch.from_numpy(frames), groups)

    def _lay(self, row: Row, base: dict[int, int], offset: int) -> _Planes:
        """One row; `offset` is the number of the clip's first picture among all of the batch."""
        planes = _Planes()
        planes.add([self.bos, *self.ids("USER: ")])
        shown, stamps = self._show(planes, row, base, offset)
        planes.add(self.ids("\n"))
        prefix = len(planes.ids)
        for number, asked in enumerate(row.asked, 1):
            question, answer = self.ids(asked.text + " ASSISTANT:"), [*self.ids(" " + asked.answer), self.eos]
            labels = [IGNORE] * (len(question) - 1) + answer + [IGNORE]
            self._aim(planes, row.aims[number - 1], shown, stamps, len(planes.ids) + len(question) - 1, answer)
            planes.add(question + answer, start=prefix, block=number, labels=labels)
        return planes

    def _show(
        self, planes: _Planes, row: Row, base: dict[int, int], offset: int
    ) -> tuple[list[dict[int, list[int]]], list[range]]:
        """Lay the frames, with what is told of their objects; per frame, where each object's tokens and its stamp are.
        """
        shown: list[dict[int, list[int]]] = []
        stamps: list[range] = []
        for n, (number, stride, stamp) in enumerate(row.seen):
            tokens = (GRID // stride) ** 2
            first = base[stride] + (offset + number) * tokens
            stamped = len(planes.ids)
            planes.add(self.ids(stamp) if stamp else [])
            start = len(planes.ids)
            stamps.append(range(stamped, start))
            planes.add([self.image] * tokens, slots=range(first, first + tokens))
            cells = GRID // stride
            shown.append({s.thing: [start + cell for cell in s.cells(cells)] for s in row.spots[n]})
            for spot in row.spots[n]:
                position = start + spot.cell(cells)
                if n:
                    planes.changes[position] = change_code(spot.event, spot.began)
                    planes.motions[position] = spot.motion
                    if spot.thing in shown[n - 1]:
                        planes.links.append(Link("before", position, tuple(shown[n - 1][spot.thing])))
                if start > stamped:
                    planes.stamps[position] = planes.ids[start - 1]
                    planes.links.append(Link("stamp", position, tuple(range(stamped, start))))
        return shown, stamps

    def _aim(
        self,
        planes: _Planes,
        aimed: Sequence[frozenset[Aim]],
        shown: Sequence[dict[int, list[int]]],
        stamps: Sequence[range],
        first: int,
        answer: Sequence[int],
    ) -> None:
        """Link what says each word of an answer, from position `first` on, to what its sentence is about."""
        sentence = 0
        for position, token in enumerate(answer[:-2], first):  # without the last period and </s>
            if sentence >= len(aimed):
                return
            keys = [key for n, thing in sorted(aimed[sentence]) for key in shown[n].get(thing, ())]
            if keys:
                planes.links.append(Link("answer", position, tuple(keys)))
            said = [key for n, _ in aimed[sentence] for key in stamps[n] if planes.ids[key] == token]
            if said:
                planes.links.append(Link("clock", position, tuple(sorted(said))))
            sentence += token == self.period


def _pad(laid: Sequence[tuple[_Planes, tuple[str, ...]]], scales: Sequence[float]) -> Rows:
    """Rows padded on the right to the longest."""
    length = max(len(planes.ids) for planes, _ in laid)

    def plane(name: str, pad: int) -> Tensor:
        padded = torch.full((len(laid), length), pad)
        for r, (planes, _) in enumerate(laid):
            values = getattr(planes, name)
            padded[r, : len(values)] = torch.tensor(values)
        return padded

    changes, stamps = (torch.full((len(laid), length), IGNORE) for _ in range(2))
    motions = torch.zeros(len(laid), length, 4)
    for r, (planes, _) in enumerate(laid):
        for position, code in planes.changes.items():
            changes[r, position], motions[r, position] = code, torch.tensor(planes.motions[position])
        for position, token in planes.stamps.items():
            stamps[r, position] = token
    return Rows(
        ids=plane("ids", 0),
        slots=plane("slots", -1),
        positions=plane("positions", 0),
        blocks=plane("blocks", -1),
        labels=plane("labels", IGNORE),
        changes=changes,
        motions=motions,
        stamps=stamps,
        links=padded_links([planes.links for planes, _ in laid]),
        scale=torch.tensor(scales),
        families=tuple(families for _, families in laid),
    )


class TrainingRows(IterableDataset[Batch]):
    """Endless batches of `clips` clips each from `first_seed` on; one row in twenty under a RoPE factor of 1-2.

    With `stills` the rows are single pictures, else videos with some pictures among them.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, clips: int, first_seed: int, *, stills: bool = False
    ) -> None:
        self.collate, self.clips, self.first_seed = Collator(tokenizer), clips, first_seed
        self.rows = still_rows if stills else clip_rows

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        for seed in itertools.count(self.first_seed, self.clips):
            albums = [self.rows("train", s) for s in range(seed, seed + self.clips)]
            rng = generator("train/scale", seed)
            count = sum(len(rows) for _, rows in albums)
            yield self.collate(albums, [float(rng.uniform(1, 2)) if rng.random() < 0.05 else 1.0 for _ in range(count)])
