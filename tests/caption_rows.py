"""Rows to write in tests of caption's output; and, run as a program, a writer to be killed.

python -m tests.caption_rows OUT COUNT        prints the number of each row once it is written
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from vidllm.corpus import stores
from vidllm.corpus.item import Item, digest_of
from vidllm.corpus.output import Output
from vidllm.corpus.recipe import Recipe
from vidllm.corpus.rows import CaptionRow, RowFrame, RowUsage, Status
from vidllm.options import GenerationOptions
from vidllm.planning import PlanOptions

RECIPE = Recipe.of("model-1", "describe the video.", PlanOptions(), GenerationOptions())


def item_like(folder: Path, number: int) -> Item:
    """An item whose file need not be there."""
    path = folder / f"clip{number}.mp4"
    return Item(video=str(path), path=str(path))


def item_at(folder: Path, number: int, content: bytes | None = None) -> Item:
    """An item with a file of some bytes behind it, which nobody decodes here."""
    item = item_like(folder, number)
    Path(item.path).write_bytes(b"content %d" % number if content is None else content)
    return item


def row_of(item: Item, status: Status = "ok", caption: str = "A circle moves.", recipe: Recipe = RECIPE) -> CaptionRow:
    """A full row; its id is the digest of the file's bytes."""
    data = Path(item.path).read_bytes() if os.path.exists(item.path) else item.path.encode("utf-8", "surrogatepass")
    bare = CaptionRow.of(item, id=digest_of(data, item.start, item.end), recipe=recipe.digest, status=status)
    return replace(
        bare, caption=caption, frames=(RowFrame(time=0.5, tokens=36),), model="m", prompt=recipe.prompt, seconds=0.25,
        usage=RowUsage(video_tokens=36, text_tokens=9, answer_tokens=5, context=1024, rope_factor=1.0),
    )  # fmt: skip


def rows_of(out: Path) -> list[dict[str, Any]]:
    """What anybody reads in an output of JSON lines."""
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def main(out: Path, count: int) -> None:
    """Every fifth clip fails at first; parts are small, so that sealing is often in the middle of a kill."""
    stores.ROWS_PER_PART = 7
    with Output.open(out, RECIPE, retry_errors=True) as output:
        for number in range(count):
            item = item_like(out.parent, number)
            output.admitted(item)
            if not output.is_finished(item, RECIPE.digest):
                first = output.status_of(item, RECIPE.digest) is None
                status: Status = "error" if number % 5 == 0 and first else "ok"
                output.add(row_of(item, status, caption=f"Caption {number} " + "x" * (number % 97)))
                print(number, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
