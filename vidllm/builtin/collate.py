"""Rows of clips to padded batches, with what each token is to say, to look at and to know of its object.

    Row -> token ids, positions, blocks, labels -> groups of about one length -> planes (R, T)
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerFast

from vidllm.builtin.links import MOTIONS, Aim, Kind, Link, Links, Motion, padded_links
from vidllm.builtin.rows import Row
from vidllm.builtin.stills import GRID
from vidllm.builtin.words import BOS, EOS, IMAGE
from vidllm.world.generate import generator
from vidllm.world.script import Event
from vidllm.world.vocabulary import ACTIONS, COLOURS, SHAPES, Colour, Shape

STRIDES = (1, 2, 3, 4, 6)
IGNORE = -100
ROWS_PER_GROUP = 8
Drawn = tuple[list[NDArray[np.uint8]], list[Row]]
"""A clip's pictures, (96, 96, 3) uint8, and its rows."""


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
    """(R, T, 8) float32: there, how it has moved, grown and faded; see `Motion`."""
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

    def __call__(self, albums: Sequence[Drawn], scales: Sequence[float]) -> Batch:
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
                    looks: tuple[tuple[Kind, int], ...] = (("before", n - 1), ("earlier", row.earlier[n]))
                    planes.links += [
                        Link(kind, position, tuple(shown[old][spot.thing]))
                        for kind, old in looks
                        if spot.thing in shown[old]
                    ]
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
    motions = torch.zeros(len(laid), length, MOTIONS)
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

    `draw` makes the rows of a split's clip (`clip_rows`, `still_rows`). Of `parts` such sets, this one draws every
    `parts`th batch, from number `part` on.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, draw: Callable[[str, int], Drawn], clips: int, first_seed: int,
        *, part: int = 0, parts: int = 1,
    ) -> None:  # fmt: skip
        self.collate, self.draw = Collator(tokenizer), draw
        self.seeds = itertools.count(first_seed + part * clips, parts * clips)
        self.clips = clips

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        for seed in self.seeds:
            albums = [self.draw("train", s) for s in range(seed, seed + self.clips)]
            rng = generator("train/scale", seed)
            count = sum(len(rows) for _, rows in albums)
            yield self.collate(albums, [float(rng.uniform(1, 2)) if rng.random() < 0.05 else 1.0 for _ in range(count)])
