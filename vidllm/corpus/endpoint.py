"""An OpenAI-compatible chat endpoint in bytes: its address, the key, what it is asked and what its answers say.

We sample once and send pictures with their true times. Nothing a server offers for sampling is used: `fps` and
`num_frames` mean something else on each, and a server that samples again shows other moments than we say.

    images   text "Frame 1 at 0:00.00", image_url data:..., text "Frame 2 at 0:02.04", ...       any server
    video    one video_url data:video/jpeg;base64,<1>,<2>,... and the times in media_io_kwargs           vLLM, LMDeploy

What was learnt of the servers:
- A server may hoist all pictures before all text (vLLM for templates that take plain strings), so a time says by
  number which frame it belongs to.
- vLLM cuts a JPEG sequence after 32 frames unless `num_frames` says otherwise, takes frame numbers only as integers and
  tells time as number / fps: so the numbers are milliseconds at 1000 fps, which also keeps the mean rate right.
- `transformers serve` refuses fields it does not know (422), so nothing is sent that was not asked for; it answers
  400 to another model name than the one it is pinned to, and lists the Hub cache, not that one, under /v1/models (500
  where there is no cache): then its name is learnt from a one-token answer. Its video_url takes no data:, its image_url
  does. Temperature has no effect where the checkpoint's generation_config does not sample. It answers one request at
  a time to models that see, so the pace settles low.
- Newer OpenAI models want `max_completion_tokens`, others know only `max_tokens`; and they take no temperature, Gemini
  no `top_k`, Mistral no `seed`: a 400 or a 422 says so.
- A server that thinks leaves `content` empty and fills `reasoning_content` (or `reasoning`) when its room runs out.
"""

from __future__ import annotations

import base64
import email.utils
import io
import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit, urlunsplit

from vidllm.errors import ConfigError
from vidllm.video.timecode import format_time

if TYPE_CHECKING:
    from numpy import uint8
    from numpy.typing import NDArray

    from vidllm.clip import Clip
    from vidllm.options import GenerationOptions

Form = Literal["images", "video"]
SENT: Mapping[Form, str] = {"images": "images, 0.01 s", "video": "video"}
"""How frames are sent, for the recipe; another word when the same form comes to show them otherwise."""
Body = dict[str, Any]

KEY_VARIABLES = ("VIDLLM_API_KEY", "OPENAI_API_KEY")
REQUEST_SECONDS = 120.0
"""How long a server may take for one answer, by default."""
JPEG_QUALITY = 92
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
STAMP_DECIMALS = 2
"""Of a frame's time in words: no two frames of a video are nearer to each other."""
MOST_SHOWN = 200
"""Letters of a server's own words in a message."""
MASK = b"***"
BROKEN_OFF = ("abort", "cancelled", "error")
"""Reasons to finish that leave half an answer; SGLang and vLLM give them with a status of 200."""
LEAST_SECRET = 8
"""Letters of a secret that is one wherever it stands."""
_SECRET_FIELD = re.compile("key|token|secret|sig|code|pass", re.IGNORECASE)
"""In an address's query the names of what nobody else may know; a version or a deployment is none."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where to ask. `base` ends before /chat/completions and /models; `query` is said behind both (Azure wants an
    `api-version` there).
    """

    base: str
    query: str = ""

    @classmethod
    def of(cls, url: str) -> Endpoint:
        """From what a person types: the host alone, with /v1, or the whole address. Raises ConfigError."""
        try:
            parts = urlsplit(url.strip())
            known = parts.scheme.lower() in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:  # a port or an IPv6 address that is none
            known = False
        if not known:
            raise ConfigError(f"{url!r} is no address of a server; give one like http://localhost:8000/v1")
        path = parts.path.rstrip("/").removesuffix("/chat/completions").rstrip("/") or "/v1"
        return cls(base=urlunsplit((parts.scheme.lower(), parts.netloc, path, "", "")), query=parts.query)

    def __str__(self) -> str:
        """Without name, password and query, for messages."""
        parts = urlsplit(self.base)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    @property
    def chat(self) -> str:
        """Where captions are asked for."""
        return self._at("/chat/completions")

    @property
    def models(self) -> str:
        """Where the server lists its models."""
        return self._at("/models")

    def _at(self, path: str) -> str:
        return self.base + path + (f"?{self.query}" if self.query else "")

    def key(self, environment: Mapping[str, str] = os.environ) -> str | None:
        """$VIDLLM_API_KEY; else $OPENAI_API_KEY, but never in clear text over a network. Raises ConfigError."""
        parts = urlsplit(self.base)
        fits = (True, parts.scheme == "https" or parts.hostname in LOOPBACK)
        for name, may_go in zip(KEY_VARIABLES, fits, strict=True):
            if may_go and (key := environment.get(name, "").strip()):
                if not (key.isascii() and key.isprintable()):
                    raise ConfigError(f"${name} holds a letter that no key has; set it to the server's key again")
                return key
        return None

    def masked(self, said: bytes) -> bytes:
        """What the server said, without the secrets it was sent: servers repeat headers, and words of theirs are kept.

        Everything a server says goes through here before anybody reads it.
        """
        parts = urlsplit(self.base)
        pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        asked = (value for name, value in parse_qsl(self.query) if _SECRET_FIELD.search(name))
        secrets = (self.key(), unquote(parts.password or ""), base64.b64encode(pair.encode()).decode(), *asked)
        for pattern in filter(None, map(_secret, secrets)):
            said = pattern.sub(MASK, said)
        return said


@cache
def _secret(secret: str | None) -> re.Pattern[bytes] | None:
    """Finds a secret as it is, as JSON writes it and as an address does. One of few letters ("none", "EMPTY") is found
    where it stands as a key, not in every word: no secret, and a caption may have it.
    """
    if not secret:
        return None
    quoted = json.dumps(secret)[1:-1]
    forms = {secret, quoted, quoted.replace("/", "\\/"), quote(secret, safe=""), quote_plus(secret)}
    any_form = b"|".join(re.escape(form.encode()) for form in sorted(forms, key=len, reverse=True))
    anywhere = b"" if len(secret) >= LEAST_SECRET else rb"(?<=Bearer )|(?<=Basic )|(?<=[Kk][Ee][Yy][=: ])"
    return re.compile(b"(?:%s)(?:%s)" % (anywhere, any_form))


# ------------------------------------------------------------------------------------------------------- what is asked


def chat_body(
    model: str | None, clip: Clip | None, prompt: str, options: GenerationOptions, *, form: Form = "images"
) -> Body:
    """The request's JSON: one user message with the clip's frames, their times and the prompt, then the prompt alone.

    Only what was asked for is sent: servers refuse fields they do not know.
    """
    body: Body = {} if model is None else {"model": model}
    content = [] if clip is None else list(_video_parts(clip) if form == "video" else _image_parts(clip))
    body["messages"] = [{"role": "user", "content": [*content, _text(prompt)] if content else prompt}]
    body |= {"max_tokens": options.max_new_tokens, "temperature": options.temperature, "seed": options.seed}
    if options.top_p < 1:
        body["top_p"] = options.top_p
    if options.top_k:
        body["top_k"] = options.top_k
    if options.stop:
        body["stop"] = list(options.stop)
    if clip is not None and form == "video":
        body |= _true_times(clip)
    return body


def _image_parts(clip: Clip) -> Iterator[Body]:
    times = [float(t) for t in clip.frames.pts_seconds]
    yield _text(f"{len(times)} frames of a video, in order, each with its time.")
    for number, (time_, picture) in enumerate(zip(times, clip.frames.pixels, strict=True), 1):
        yield _text(f"Frame {number} at {format_time(time_, decimals=STAMP_DECIMALS)}")
        yield {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{_jpeg(picture)}"}}
    yield from _subtitles(clip)


def _video_parts(clip: Clip) -> Iterator[Body]:
    pictures = ",".join(_jpeg(picture) for picture in clip.frames.pixels)
    yield {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{pictures}"}}
    yield from _subtitles(clip)


def _true_times(clip: Clip) -> Body:
    """The times of a JPEG sequence, as vLLM reads them: whole milliseconds are frame numbers of 1000 fps."""
    numbers = [max(round(float(t) * 1000), 0) for t in clip.frames.pts_seconds]
    total = max(math.ceil(clip.info.duration * 1000), numbers[-1] + 1, len(numbers))
    video = {
        "num_frames": len(numbers), "fps": 1000.0, "frames_indices": numbers, "total_num_frames": total,
        "duration": total / 1000, "do_sample_frames": False,
    }  # fmt: skip
    return {"media_io_kwargs": {"video": video}, "mm_processor_kwargs": {"do_sample_frames": False}}


def _subtitles(clip: Clip) -> Iterator[Body]:
    if clip.subtitles:
        yield _text("\n".join(["Subtitles:", *clip.subtitles]))


def _text(text: str) -> Body:
    return {"type": "text", "text": text}


def _jpeg(picture: NDArray[uint8]) -> str:
    """A frame (H, W, 3) as JPEG in base64, colour as fine as brightness (thin coloured lines survive)."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return base64.b64encode(out.getvalue()).decode()


# ------------------------------------------------------------------------------------------------- what is answered


class Nonsense(Exception):
    """The server answered 200, and it is no chat completion; one line says what it is instead."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a chat completion says. `text` may be empty; `thought` says that only reasoning came."""

    text: str
    finish_reason: str | None
    model: str
    prompt_tokens: int = 0
    answer_tokens: int = 0
    thought: bool = False


def read_reply(content: bytes) -> Reply:
    """The first choice of a chat completion. Raises Nonsense."""
    try:
        whole = json.loads(content)
        choice = whole["choices"][0]
        message = choice["message"]
        text = _flat(message.get("content"))
        usage = whole.get("usage") or {}
        reason = choice.get("finish_reason")
        if reason in BROKEN_OFF:
            raise Nonsense(f"the server broke its answer off ({reason}): {_short(text) or 'nothing'}")
        return Reply(
            text=text.strip(), finish_reason=None if reason is None else str(reason),
            model=str(whole.get("model") or ""), prompt_tokens=_count(usage.get("prompt_tokens")),
            answer_tokens=_count(usage.get("completion_tokens")),
            thought=not text.strip() and bool(message.get("reasoning_content") or message.get("reasoning")),
        )  # fmt: skip
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise Nonsense(f"the server's answer is no chat completion: {_snippet(content)}") from error


def _flat(content: object) -> str:
    """The text of a message: a string, nothing, or a list of parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part.get("type") == "text")
    raise TypeError(type(content).__name__)


def _count(value: object) -> int:
    """A number of tokens; 0 for what is none, or fits no column."""
    return value if type(value) is int and 0 <= value < 1 << 31 else 0


def read_models(content: bytes) -> list[str]:
    """Names of the models a server lists; none when it lists nothing that can be read."""
    try:
        return [str(entry["id"]) for entry in json.loads(content)["data"]]
    except (ValueError, TypeError, LookupError, RecursionError):
        return []


def complaint(content: bytes) -> str:
    """What a server says of its error, one short line, wherever it says it."""
    try:
        said: Any = json.loads(content)
    except (ValueError, RecursionError):
        return _snippet(content)
    for name in ("error", "message", "detail"):
        if isinstance(said, Mapping) and said.get(name):
            inner = said[name]
            said = (inner.get("message") or inner) if isinstance(inner, Mapping) else inner
            break
    return _short(said if isinstance(said, str) else json.dumps(said, ensure_ascii=False))


def _snippet(content: bytes) -> str:
    return _short(content[: 4 * MOST_SHOWN].decode("utf-8", "replace")) or "nothing"


def _short(text: str) -> str:
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= MOST_SHOWN else f"{line[: MOST_SHOWN - 3]}..."


def retry_after_seconds(value: str | None) -> float | None:
    """The header's wish in seconds: a number, or a date of this clock; None when it is neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None
