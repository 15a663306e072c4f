"""A chat-completions server that writes what `vidllm instruct --from` asks for, well or badly as the caption orders.

    python -m tests.tutor_server

Prints its port. The caption (and with it the prompt) may hold: do=prose (no JSON), do=notes (speaks of the caption),
do=sign (speaks of a text), do=short (one question of a conversation), do=once (prose first, good the second time),
do=cut (its room runs out), do=late (after a minute), do=think (its thoughts first), do=half (half a character in it),
do=deep (JSON of many brackets), do=lines (line breaks in JSON as they stand, and another bracket behind it).
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ASKED: Counter[str] = Counter()
LOCK = threading.Lock()


def written(prompt: str) -> str:
    """What a language model might write."""
    with LOCK:
        ASKED[prompt.split("\n\nYour last reply")[0]] += 1
        first = ASKED[prompt.split("\n\nYour last reply")[0]] == 1
    turn = {"question": "What moves?", "answer": "The caption says a ball." if "do=notes" in prompt else "A ball."}
    if "do=sign" in prompt:
        turn["answer"] = "The text on it says SALE."
    if "do=prose" in prompt or ("do=once" in prompt and first):
        return "Sure! What moves? A ball."
    if "do=deep" in prompt:
        return "[" * 100_000 + "{" * 100_000 + "}]"
    if "do=half" in prompt:
        turn["answer"] = "A ball \ud83d."
    if "do=lines" in prompt:
        return in_form(prompt, {**turn, "answer": "A ball:\n- red"}).replace("\\n", "\n") + " [End] {of it}"
    thoughts = "<think>Two [turns], {maybe}, of the notes?</think>\n" if "do=think" in prompt else ""
    return thoughts + in_form(prompt, turn)


def in_form(prompt: str, turn: dict[str, str]) -> str:
    """As the prompt asks for it."""
    if "JSON list" in prompt:
        turns = [turn] if "do=short" in prompt else [turn, {"question": "How many?", "answer": "One."}]
        return f"Here you are:\n```json\n{json.dumps(turns)}\n```"
    if "JSON object" in prompt:
        return json.dumps(turn)
    return "A red ball rolls over the floor. " + ("The notes say so." if "do=notes" in prompt else "Then it stops.")


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/asked":
            return self.answer({"requests": sum(ASKED.values())})
        self.answer({"object": "list", "data": [{"id": "writer", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        if "do=late" in prompt:
            time.sleep(60)
        self.answer({
            "id": "1", "object": "chat.completion", "model": "writer-1",
            "choices": [{
                "index": 0, "finish_reason": "length" if "do=cut" in prompt else "stop",
                "message": {"role": "assistant", "content": written(prompt)},
            }],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2},
        }, {"X-Request-ID": self.headers["X-Request-ID"]})  # fmt: skip

    def answer(self, value: Any, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
