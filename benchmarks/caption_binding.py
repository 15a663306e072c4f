"""No caption on a wrong clip: many clips that each say who they are, at every batch size.

    python benchmarks/caption_binding.py                    500 clips; batches of 1, 2, 3, 5, 8, 16 and 32
    python benchmarks/caption_binding.py -n 24 --batches 1 4
    python benchmarks/caption_binding.py --engine ray --batches 1 8 32
    python benchmarks/caption_binding.py --engine http

A clip's identity is its own caption: what the model says of it when it is asked about it alone, by `ask`, at
temperature 1 with one seed for all. Sampling makes nearly every caption another (the table counts those that are
nobody else's), and the same logits and the same seed give the same words. A caption that is another clip's and not its
own is a swap; one that is nobody's would be an answer that depends on its company. World clips also have a truth: the
share of captions that name the clip's first object falls to chance when captions are swapped.

For --engine http the model is a witness, a server on this machine that answers every request with a digest of what it
was shown, some late, so that others overtake them. What it should be shown of a clip is worked out outside of a run.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import report

import vidllm
from vidllm.clip import open_clip
from vidllm.corpus.caption import CaptionOptions, caption
from vidllm.corpus.endpoint import chat_body
from vidllm.corpus.http import server_spec
from vidllm.world.make import make_clips

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


class Witness(BaseHTTPRequestHandler):
    """Says what it was shown, as a digest, after 0 to 255 ms."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """The list of models."""
        self._reply({"data": [{"id": "witness"}]})

    def do_POST(self) -> None:
        """One caption."""
        seen = digest(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"])
        time.sleep(int(seen[:2], 16) / 1000)
        self._reply({"choices": [{"message": {"content": seen}, "finish_reason": "stop"}]})

    def _reply(self, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def digest(messages: Any) -> str:
    """24 hex digits over pictures, times and words."""
    return hashlib.blake2b(json.dumps(messages).encode(), digest_size=12).hexdigest()


@contextmanager
def address(engine: str) -> Iterator[str]:
    """What `--engine` is called in a command; a witness listens as long as it is one."""
    if engine != "http":
        yield engine
        return
    server = ThreadingHTTPServer(("127.0.0.1", 0), Witness)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def own_words(engine: str, clips: list[Path]) -> dict[str, str]:
    """What each clip's caption has to be."""
    if engine != "http":
        model = vidllm.load(dtype="float32", cache=None)
        return {str(clip): model.ask(clip, PROMPT, temperature=1.0, seed=7).text for clip in clips}
    options = vidllm.GenerationOptions()
    opened = ((clip, open_clip(clip, PROMPT, server_spec(), None)) for clip in clips)
    return {str(clip): digest(chat_body(None, shown, PROMPT, options)["messages"]) for clip, shown in opened}


def main() -> None:
    """Ask every clip alone, then caption them all at every batch size."""
    parser = report.parser(__doc__)
    parser.add_argument("-n", type=int, default=500, help="clips")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 3, 5, 8, 16, 32])
    parser.add_argument("--engine", choices=("local", "ray", "http"), default="local")
    parser.add_argument("--clips", type=Path, default=report.RUNS / "binding_clips", help="kept for the next time")
    options = parser.parse_args()
    clips = make_clips(options.n, SEED, options.clips)
    alone = own_words(options.engine, clips)
    truth = truths(clips)
    rows: list[report.Row] = []
    for batch in options.batches if options.engine != "http" else [None]:
        with tempfile.TemporaryDirectory() as scratch, address(options.engine) as engine:
            output, began = Path(scratch) / "out.jsonl", time.monotonic()
            wishes = CaptionOptions(
                batch=batch, retries=0, engine=engine, dtype="float32" if batch else None,
                generation=vidllm.GenerationOptions(temperature=1.0, seed=7),
            )  # fmt: skip
            caption(clips, output, wishes)
            said = {row["video"]: row["caption"] for row in map(json.loads, output.read_text().splitlines())}
        unlike = [clip for clip, text in alone.items() if said.get(clip) != text]
        swapped = [clip for clip in unlike if said.get(clip) in alone.values()]
        named = 100 * sum(truth[clip] in text.lower() for clip, text in said.items()) / len(said)
        rows.append({
            "engine": options.engine, "batch": batch, "clips": len(said), "told apart for certain": told_apart(alone),
            "another clip's caption": len(swapped), "unlike its own": len(unlike),
            "name their first object, %": named if batch else None, "seconds": time.monotonic() - began,
        })  # fmt: skip
    name = "caption_binding" if options.engine == "local" else f"caption_binding_{options.engine}"
    report.write(name, "No caption on a wrong clip", rows)
    if any(row["unlike its own"] for row in rows):
        sys.exit("a caption stands on a wrong clip")


if __name__ == "__main__":
    main()
