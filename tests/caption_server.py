"""A chat-completions server that sees, and that misbehaves when it is asked to. Only the standard library and Pillow.

    python -m tests.caption_server [--slots N] [--seconds S] [--key K] [--port P] [--model NAME] [--no-list]
                                   [--query Q]     what has to stand behind every address

Prints its port. It reads the bar codes of `conftest.bar_code` in the pictures it is sent, and answers with a JSON text:
the numbers, the times it was told, the prompt. So a caption says which clip it belongs to. The prompt may hold orders:

    do=hang  do=close  do=nonsense  do=empty  do=html  do=huge  do=500  do=400  do=think  do=filter  do=other
    do=newer  do=plain  do=seedless          refuse a field it does not know;  do=range: a value
    do=aloud                                 think in the answer itself
    do=blab  do=blab-page  do=blab-away      repeat the key they were sent: in a 400, in a page, in a redirection
    do=blab-query                            repeat the address
    do=429:3     so many times, then an answer; likewise with any other order

`GET /stats` tells how many requests came and how many there were at once. Slots are a semaphore: what comes while all
are taken waits, and more than `--crowd` waiting ones are refused with 429.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import re
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from tests.conftest import read_code


class State:
    """What all requests share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.slots = threading.Semaphore(options.slots)
        self.lock = threading.Lock()
        self.obeyed: Counter[str] = Counter()
        self.requests = self.now = self.most = 0

    def shall(self, order: str, prompt: str) -> bool:
        """Whether `do=order` stands in the prompt and has not been obeyed as often as it says."""
        found = re.search(rf"do={order}(?::(\d+))?(?![\w-])", prompt)
        with self.lock:
            if found is None or (found[1] and self.obeyed[prompt] >= int(found[1])):
                return False
            self.obeyed[prompt] += 1
            return True


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    state: State

    def do_GET(self) -> None:
        if self.path == "/stats":
            self.answer(200, {"requests": self.state.requests, "most": self.state.most})
        elif self.is_at("/v1/models") and not self.state.options.no_list:
            if self.allowed():
                names = self.state.options.model.split(",")
                self.answer(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in names]})
        else:
            self.answer(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.is_at("/v1/chat/completions"):
            return self.answer(404, {"detail": "Not Found"})
        if not self.allowed():
            return None
        with self.state.lock:
            self.state.requests += 1
            self.state.now += 1
            self.state.most = max(self.state.most, self.state.now)
        try:
            if self.state.now > self.state.options.slots + self.state.options.crowd:
                return self.answer(429, {"error": {"message": "too many requests"}}, {"Retry-After": "0.05"})
            self.reply(body, str(seen(body)["prompt"]))
        finally:
            with self.state.lock:
                self.state.now -= 1

    def is_at(self, path: str) -> bool:
        query = self.state.options.query
        return self.path == path + (f"?{query}" if query else "")

    def allowed(self) -> bool:
        key = self.state.options.key
        if key is None or self.headers.get("Authorization") == f"Bearer {key}":
            return True
        told = self.headers.get("Authorization", "")
        self.answer(401, {"error": {"message": f"Invalid API key {told}".strip(), "code": "invalid_api_key"}})
        return False

    def reply(self, body: dict[str, Any], prompt: str) -> None:
        shall = self.state.shall
        if shall("hang", prompt):
            time.sleep(600)
        elif shall("drip", prompt):
            self.drip()
        elif shall("close", prompt):
            self.close_connection = True
        elif shall("html", prompt):
            self.send(200, b"<html><body>It works!</body></html>", "text/html")
        elif shall("nonsense", prompt):
            self.answer(200, {"id": 7, "choices": [{"text": ["not", "a", "chat"]}]})
        elif shall("huge", prompt):
            self.send(200, b"x" * (20 << 20), "application/json")
        elif shall("429", prompt):
            self.answer(429, {"error": {"message": "slow down"}}, {"Retry-After": "0.2"})
        elif shall("500", prompt):
            self.send(500, b"Internal Server Error: \x1b[31mCUDA error\n" * 50, "text/plain")
        elif shall("400", prompt):
            self.answer(400, {"object": "error", "message": "At most 1 image(s) may be provided in one prompt."})
        elif shall("blab", prompt):
            told = f"{'x' * 150} bad header Authorization: {self.headers['Authorization']}"
            self.answer(400, {"error": {"message": told}})
        elif shall("blab-query", prompt):
            self.answer(400, {"error": {"message": f"nothing at {self.path}"}})
        elif shall("blab-page", prompt):
            self.send(200, f"<html>you sent {self.headers['Authorization']}</html>".encode(), "text/html")
        elif shall("blab-away", prompt):
            self.answer(307, {}, {"Location": f"/login?key={quote(self.headers['Authorization'].split()[1], safe='')}"})
        elif "max_tokens" in body and shall("newer", prompt):
            self.answer(400, {"error": {"message": "Unsupported parameter: use 'max_completion_tokens' instead."}})
        elif "temperature" in body and shall("plain", prompt):
            told = "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) value"
            self.answer(400, {"error": {"message": f"{told} is supported.", "param": "temperature"}})
        elif "seed" in body and shall("seedless", prompt):
            told = {"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}
            self.answer(422, {"object": "error", "message": {"detail": [told]}})
        elif "temperature" in body and shall("range", prompt):
            self.answer(400, {"error": {"message": "temperature must be at most 1"}})
        else:
            self.complete(body, prompt)

    def complete(self, body: dict[str, Any], prompt: str) -> None:
        with self.state.slots:
            time.sleep(self.state.options.seconds)
        message: dict[str, Any] = {"role": "assistant", "content": json.dumps(seen(body))}
        reason = "stop"
        if self.state.shall("empty", prompt):
            message["content"] = ""
        elif self.state.shall("aloud", prompt):
            message["content"] = f"<think>\nA bar code?\n</think>\n\n{message['content']}"
        elif self.state.shall("think", prompt):
            message, reason = {"role": "assistant", "content": None, "reasoning_content": "Hmm, let me"}, "length"
        elif self.state.shall("filter", prompt):
            reason = "content_filter"
        answer = {
            "id": "chatcmpl-1", "object": "chat.completion", "model": f"{body.get('model') or 'seer'}@served",
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": {"prompt_tokens": 321, "completion_tokens": 12, "total_tokens": 333},
        }  # fmt: skip
        told = "vidllm-somebody-else" if self.state.shall("other", prompt) else self.headers["X-Request-ID"]
        self.answer(200, answer, {"X-Request-ID": told})

    def drip(self) -> None:
        """Headers at once, then a space a moment: no single read ever waits long."""
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        for _ in range(600):
            self.wfile.write(b" ")
            time.sleep(0.1)

    def answer(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        self.send(status, json.dumps(value).encode(), "application/json", headers)

    def send(self, status: int, content: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing: stderr is the test's."""


def seen(body: dict[str, Any]) -> dict[str, Any]:
    """What is in a request: the numbers the pictures show, the texts before them, the last text, the options."""
    content = body["messages"][0]["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    pictures: list[str] = []
    for part in parts:
        if part["type"] == "image_url":
            pictures.append(part["image_url"]["url"].partition("base64,")[2])
        elif part["type"] == "video_url":
            pictures += part["video_url"]["url"].partition("base64,")[2].split(",")
    texts = [part["text"] for part in parts if part["type"] == "text"]
    rest = {name: value for name, value in body.items() if name != "messages"}
    return {"codes": [code_of(picture) for picture in pictures], "texts": texts, "prompt": texts[-1], "options": rest}


def code_of(picture: str) -> int:
    return read_code(np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")))


class Server(ThreadingHTTPServer):
    """Threads end with the process; a broken connection is the client's business."""

    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, *_: object) -> None:
        """Nothing: clients that go away are what is being tested."""


def serve(handler: type[Handler]) -> None:
    """Serve until killed, with the options of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--crowd", type=int, default=10**9)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model", default="seer")
    parser.add_argument("--key")
    parser.add_argument("--no-list", action="store_true")
    parser.add_argument("--query", default="")
    handler.state = State(parser.parse_args())
    server = Server(("127.0.0.1", handler.state.options.port), handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    sys.exit(serve(Handler))
