"""No caption on a wrong clip: many clips that each say who they are, at every batch size.

    python benchmarks/caption_binding.py                    500 clips; batches of 1, 2, 3, 5, 8, 16 and 32
    python benchmarks/caption_binding.py -n 24 --batches 1 4
    python benchmarks/caption_binding.py --engine ray       or the address of a server

A clip's identity is its own caption: what the model says of it when it is asked about it alone, by `ask`, at
temperature 1 with one seed for all. Sampling makes nearly every caption another (the table counts those that are
nobody else's), and the same logits and the same seed give the same words. A caption that is another clip's and not its
own is a swap; one that is nobody's would be an answer that depends on its company. World clips also have a truth: the
share of captions that name the clip's first object falls to chance when captions are swapped.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SEED = 80_000
"""Of the first world clip."""
PROMPT = "describe the video."


def told_apart(captions: dict[str, str]) -> int:
    """Clips whose caption is nobody else's: a swap with one of these is seen for certain."""
    times = Counter(captions.values())
    return sum(times[caption] == 1 for caption in captions.values())


def truths(clips: list[Path]) -> dict[str, str]:
    """The colour and shape of the first object of each clip's script, as a caption would name it."""
    found = {}
    for clip in clips:
        thing = json.loads(clip.with_suffix(".json").read_text())["things"][0]
        found[str(clip)] = f"{thing['colour']} {thing['shape']}"
    return found


def main() -> None:
    """Ask every clip alone, then caption them all at every batch size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-n", type=int, default=500, help="clips")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 3, 5, 8, 16, 32])
    parser.add_argument("--engine", default="local")
    parser.add_argument("--clips", type=Path, default=ROOT / "runs" / "binding_clips", help="kept for the next time")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    import report

    import vidllm
    from vidllm.corpus.caption import CaptionOptions, caption
    from vidllm.world.make import make_clips

    if len(list(options.clips.glob("*.mp4"))) < options.n:
        make_clips(options.n, SEED, options.clips)
    clips = sorted(options.clips.glob("*.mp4"))[: options.n]
    model = vidllm.load(dtype="float32", cache=None)
    alone = {str(clip): model.ask(clip, PROMPT, temperature=1.0, seed=7).text for clip in clips}
    truth = truths(clips)
    rows: list[report.Row] = []
    for batch in options.batches:
        with tempfile.TemporaryDirectory() as scratch:
            output, began = Path(scratch) / "out.jsonl", time.monotonic()
            wishes = CaptionOptions(
                batch=batch, retries=0, engine=options.engine, dtype="float32",
                generation=vidllm.GenerationOptions(temperature=1.0, seed=7),
            )  # fmt: skip
            caption(clips, output, wishes)
            said = {row["video"]: row["caption"] for row in map(json.loads, output.read_text().splitlines())}
        unlike = [clip for clip, text in alone.items() if said.get(clip) != text]
        swapped = [clip for clip in unlike if said.get(clip) in alone.values()]
        named = sum(truth[clip] in text.lower() for clip, text in said.items())
        rows.append({
            "engine": options.engine, "batch": batch, "clips": len(said), "told apart for certain": told_apart(alone),
            "another clip's caption": len(swapped), "unlike its own": len(unlike),
            "name their first object, %": 100 * named / len(said), "seconds": time.monotonic() - began,
        })  # fmt: skip
    report.write("caption_binding", "No caption on a wrong clip", rows)
    if any(row["unlike its own"] for row in rows):
        sys.exit("a caption stands on a wrong clip")


if __name__ == "__main__":
    main()
