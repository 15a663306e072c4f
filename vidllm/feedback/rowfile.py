"""Pairs as rows that `vidllm dpo` reads, written whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from vidllm.feedback.items import Asked
from vidllm.feedback.pairs import Pair
from vidllm.linefile import json_line, write_whole
from vidllm.train.row import Media, Turn

Row = dict[str, Any]


def pair_row(
    asked: Asked, pair: Pair, id: str, *, model: str, judge: Row, output: Path, look: str | None = None
) -> Row:
    """The row of one pair: what is asked, the two answers, and where they and their scores come from.

    `reference` is left out when the two answers were measured under different RoPE factors: a trainer gives both the
    larger one, and must measure them itself.
    """
    row: Row = {"id": id, **_asking(asked, output), "chosen": pair.chosen.text, "rejected": pair.rejected.text}
    if pair.chosen.rope_factor == pair.rejected.rope_factor:
        logps = {"chosen_logp": pair.chosen.logp, "rejected_logp": pair.rejected.logp}
        weights, _, dtype = model.partition("|")
        row["reference"] = {"model": weights, "dtype": dtype, **logps, "look": look}
    scores = {"chosen": pair.chosen_score, "rejected": pair.rejected_score}
    return row | {"scores": scores, "judge": judge, "source": pair.rejected.source}


def _asking(asked: Asked, output: Path) -> Row:
    """The media and the prompt. One turn about one clip is a plain text, all else chat messages with placeholders."""
    media: Row = {}
    if len(asked.media) == 1:
        media[asked.media[0].kind] = _place(asked.media[0], output)
    else:
        for medium in asked.media:
            media.setdefault(medium.kind + "s", []).append(_place(medium, output))
    if len(asked.turns) == 1 and len(asked.media) <= 1 and not asked.turns[0].at:
        return {**media, "prompt": asked.question}
    return {**media, "prompt": [{"role": turn.role, "content": _said(turn)} for turn in asked.turns]}


def _said(turn: Turn) -> str | list[Row]:
    if not turn.at:
        return "".join(f"<{medium.kind}>\n" for medium in turn.media) + turn.text
    shown = [{"type": medium.kind} for medium in turn.media]
    lead = len(shown) - len(turn.at)
    words = [{"type": "text", "text": turn.text[a:b]} for a, b in pairwise((0, *turn.at, len(turn.text)))]
    return [*shown[:lead], words[0], *(part for pair in zip(shown[lead:], words[1:], strict=True) for part in pair)]


def _place(medium: Media, output: Path) -> str:
    """Relative to the output's folder where the file lies below it, else absolute: either is found again.

    A link stays one: its subtitles lie beside it under its own name, and not beside what it leads to.
    """
    path, folder = Path(medium.path), output.parent.resolve()
    path = path.parent.resolve() / path.name
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Put the rows in `path`'s place in one step. Raises OutputError."""
    write_whole(path, (json_line(row).decode() for row in rows))
