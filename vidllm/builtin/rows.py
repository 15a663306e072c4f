"""Clips to training rows: frames drawn once, several layouts a clip, all of a layout's questions in one row.

A row is one video prefix followed by its questions and answers, each of which sees the prefix and itself and whose positions
restart after the prefix: one vision pass and one prefill pay for many answers, and each answer is computed exactly as if asked
alone.

    USER: 0:00 <tokens> 0:02 <tokens> ... \\n | what happens at 0:30? ASSISTANT: ... </s> | how many ...
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerFast

from vidllm.builtin.stills import GRID, IMAGE_SIDE
from vidllm.video.sampling import SamplePlan, focus, uniform
from vidllm.video.timecode import format_time
from vidllm.world.degrade import degrade, random_wear
from vidllm.world.generate import generator, make_script
from vidllm.world.questions import Question, clip_questions, moment_questions, pick_moments, span_question, steady
from vidllm.world.render import frame
from vidllm.world.script import Script

STRIDES = (1, 2, 3, 4, 6)
FINE_STRIDE, COARSE_STRIDE, COARSE_FRAMES = 3, 6, 12
UNIFORM_STRIDE, UNIFORM_FRAMES = 4, 32
IGNORE = -100
ROWS_PER_GROUP = 12
MOST_ASKED = {"describe": 1, "when": 4, "first": 2, "order": 3}
"""Questions of each family about a whole clip that one training row asks at most."""

Planes = tuple[list[int], list[int], list[int], list[int], list[int]]
"""One row before padding: ids, slots, positions, blocks, labels."""


@dataclass(frozen=True)
class Row:
    """One layout of one clip: `seen` is (frame number, stride, stamp or None) in order, then the questions about it."""

    seen: tuple[tuple[int, int, str | None], ...]
    asked: tuple[Question, ...]


@dataclass(frozen=True)
class Rows:
    """Padded rows of about one length. `ids`, `slots`, `positions`, `blocks`, `labels`: (R, T).

    `slots` says where a visual token comes from (see `slot_base`), -1 for text. `blocks`: 0 the prefix, 1.. its questions, -1 padding.
    `labels` are shifted already: the token that position predicts, or IGNORE. `scale` (R,) is each row's RoPE factor.
    """

    ids: Tensor
    slots: Tensor
    positions: Tensor
    blocks: Tensor
    labels: Tensor
    scale: Tensor
    families: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Batch:
    """The distinct pictures (F, 96, 96, 3) uint8 of some clips, and their rows in groups of similar length."""

    frames: Tensor
    groups: tuple[Rows, ...]


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


def clip_rows(split: str, seed: int, *, moments: int = 3, plain: bool = False) -> tuple[list[NDArray[np.uint8]], list[Row]]:
    """A clip's pictures and its rows: some moments under focus, sometimes a span or a still, and the whole clip."""
    script, rng = make_script(split, seed), generator(split + "/rows", seed)
    start = float(rng.integers(1, 540)) if rng.random() < 0.08 and not plain else 0.0
    script = shift(script, start)
    album = Album(script, rng)
    pts = np.arange(start, script.duration, 1 / script.canvas.fps)
    rows = []
    for moment in pick_moments(script, start, moments, rng):
        asked = moment_questions(script, moment, rng, plain=plain)
        if asked:
            count = COARSE_FRAMES if plain else int(rng.choice([COARSE_FRAMES, rng.integers(4, 17)]))
            plan = focus(pts, [(moment, moment)], start, coarse=count)
            rows.append(_row(album, plan, asked, _fine(rng, plain), _coarse(rng, plain)))
    if rng.random() < 0.25 and (asked_span := _some_span(script, start, rng)):
        assert asked_span.span is not None
        rows.append(_row(album, focus(pts, [asked_span.span], start), [asked_span], _fine(rng, plain), _coarse(rng, plain)))
    if rng.random() < 0.25 and not plain:
        rows.append(_still_row(album, start, rng))
    frames, stride = _uniform_layout(rng, plain)
    asked = clip_questions(script, rng, plain=plain)
    asked = asked if plain else _some(asked, rng)
    rows.append(_row(album, uniform(pts, frames, start), asked, stride, stride))
    return album.pictures, [row for row in rows if row.asked]


def shift(script: Script, seconds: float) -> Script:
    """The same clip on a later clock, as a part of a longer video would be."""
    events = tuple(replace(e, start=e.start + seconds, end=e.end + seconds) for e in script.events)
    return replace(script, events=events, duration=script.duration + seconds)


def _some_span(script: Script, start: float, rng: np.random.Generator) -> Question | None:
    for _ in range(5):
        a = float(rng.integers(start, script.duration - 2))
        b = float(min(script.duration, a + rng.integers(2, 16)))
        if found := span_question(script, a, b, rng):
            return found
    return None


def _some(asked: list[Question], rng: np.random.Generator) -> list[Question]:
    """At most so many of each family, by chance."""
    mixed = [asked[i] for i in rng.permutation(len(asked))]
    return [q for n, q in enumerate(mixed) if sum(other.family == q.family for other in mixed[:n]) < MOST_ASKED[q.family]]


def _still_row(album: Album, start: float, rng: np.random.Generator) -> Row:
    """A single picture without a stamp, asked about without a time."""
    moment = float(rng.uniform(start, album.script.duration))
    asked = moment_questions(album.script, moment, rng) if steady(album.script, moment) else []
    cut = [replace(q, text=_timeless(q.text), family="still " + q.family) for q in asked if q.family != "what"]
    return Row(((album.number(moment), int(rng.choice([1, 2, 2, 3])), None),), tuple(q for q in cut if q.text))


def _timeless(text: str) -> str:
    """ "how many objects are there at 0:30?" -> "how many objects are there?"; "" when the time stands in front."""
    head, _, _ = text.rpartition(" at ")
    return head + "?" if head and not text.startswith("at ") else ""


def _fine(rng: np.random.Generator, plain: bool) -> int:
    return FINE_STRIDE if plain else int(rng.choice([3, 2, 4], p=[0.75, 0.15, 0.1]))


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
        (album.number(t), fine if is_fine else coarse, format_time(t)) for t, is_fine in zip(plan.times, plan.fine, strict=True)
    )
    return Row(seen, tuple(asked))


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
        self.image, self.bos, self.eos = tokenizer.convert_tokens_to_ids(["<image>", "<s>", "</s>"])
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
        total = sum(len(pictures) for pictures, _ in albums)
        base, first, laid = slot_base(total), 0, []
        for pictures, rows in albums:
            laid += [(self._lay(row, base, first), tuple(q.family for q in row.asked)) for row in rows]
            first += len(pictures)
        order = sorted(range(len(laid)), key=lambda i: len(laid[i][0][0]))
        cuts = [order[i : i + ROWS_PER_GROUP] for i in range(0, len(order), ROWS_PER_GROUP)]
        frames = np.stack([picture for pictures, _ in albums for picture in pictures])
        groups = tuple(_pad([laid[i] for i in cut], [scales[i] for i in cut]) for cut in cuts)
        return Batch(torch.from_numpy(frames), groups)

    def _lay(self, row: Row, base: dict[int, int], offset: int) -> Planes:
        ids, slots = [self.bos, *self.ids("USER: ")], [-1] * (1 + len(self.ids("USER: ")))
        for number, stride, stamp in row.seen:
            tokens = (GRID // stride) ** 2
            first = base[stride] + (offset + number) * tokens
            text = self.ids(stamp) if stamp else []
            ids += text + [self.image] * tokens
            slots += [-1] * len(text) + list(range(first, first + tokens))
        ids += self.ids("\n")
        slots += [-1] * len(self.ids("\n"))
        prefix = len(ids)
        positions, blocks, labels = list(range(prefix)), [0] * prefix, [IGNORE] * prefix
        for number, asked in enumerate(row.asked, 1):
            question, answer = self.ids(asked.text + " ASSISTANT:"), [*self.ids(" " + asked.answer), self.eos]
            both = question + answer
            ids += both
            slots += [-1] * len(both)
            positions += range(prefix, prefix + len(both))
            blocks += [number] * len(both)
            labels += [IGNORE] * (len(question) - 1) + answer + [IGNORE]
        return ids, slots, positions, blocks, labels


def _pad(laid: list[tuple[Planes, tuple[str, ...]]], scales: list[float]) -> Rows:
    length = max(len(planes[0]) for planes, _ in laid)
    padded = [torch.full((len(laid), length), pad) for pad in (0, -1, 0, -1, IGNORE)]
    for r, (planes, _) in enumerate(laid):
        for target, values in zip(padded, planes, strict=True):
            target[r, : len(values)] = torch.tensor(values)
    return Rows(*padded, torch.tensor(scales), tuple(families for _, families in laid))


class TrainingRows(IterableDataset[Batch]):
    """Endless batches of clips from `first_seed` on; one row in twenty under a RoPE factor of 1-2."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, clips: int, first_seed: int) -> None:
        self.collate, self.clips, self.first_seed = Collator(tokenizer), clips, first_seed

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        for seed in itertools.count(self.first_seed, self.clips):
            albums = [clip_rows("train", s) for s in range(seed, seed + self.clips)]
            rng = generator("train/scale", seed)
            count = sum(len(rows) for _, rows in albums)
            yield self.collate(albums, [float(rng.uniform(1, 2)) if rng.random() < 0.05 else 1.0 for _ in range(count)])
