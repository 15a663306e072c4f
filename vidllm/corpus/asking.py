"""One request to a chat endpoint: sent, read within its time and size, and its failure named.

Nothing is tried twice here; what a failure means for the clip and for the run is decided by who asks.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from dataclasses import dataclass

import httpx2

from vidllm.corpus.endpoint import (
    KEY_VARIABLES,
    REQUEST_SECONDS,
    Body,
    Endpoint,
    Form,
    Nonsense,
    Reply,
    complaint,
    read_models,
    read_reply,
    retry_after_seconds,
)
from vidllm.errors import ConfigError, EngineError

BUSY = frozenset({425, 429, 503, 529})
"""Statuses that say "later": they are no failure of a clip's."""
AGAIN = frozenset({408, 409})
"""Statuses below 500 that may pass, as those above do."""
MISPLACED = frozenset({301, 302, 303, 307, 308, 401, 403, 404, 405, 501})
"""Statuses that mean every clip, when they come before anything was answered."""
MOST_ANSWER_BYTES = 8 << 20
CONNECT_SECONDS = 10.0
LATE_TRIES = 2
"""Of a clip whose requests took longer than `request_seconds`."""


@dataclass(frozen=True, kw_only=True)
class HttpOptions:
    """How patient to be with a server, in seconds and tries."""

    form: Form = "images"
    request_seconds: float = REQUEST_SECONDS
    """Longest whole request, its answer included."""
    attempts: int = 4
    """Tries of one clip that the server failed; being told to wait is no try."""
    busy_seconds: float = 900.0
    """How long one clip is put off by 429 and 503 before that is its error."""
    absent_seconds: float = 60.0
    """How long a server that was there may be gone, as in a restart, before the run ends."""
    in_a_row: int = 8
    """So many clips in a row without a caption, through the server's fault, and the run ends."""
    most_at_once: int = 256

    def __post_init__(self) -> None:
        positive = (self.request_seconds, self.attempts, self.in_a_row, self.most_at_once)
        if min(positive) <= 0 or min(self.busy_seconds, self.absent_seconds) < 0:
            raise ConfigError(f"every time and number for a server must be positive, got {self}")


class Unable(Exception):
    """A request that got no caption: why, and what that says about another try."""

    def __init__(self, cause: str, *, retry_after: float | None = None, status: int | None = None) -> None:
        super().__init__(cause)
        self.cause, self.retry_after, self.status = cause, retry_after, status

    @property
    def is_busy(self) -> bool:
        """The server wants it later."""
        return self.status in BUSY

    @property
    def is_nonsense(self) -> bool:
        """It did its work, and what it said is no answer."""
        return self.status == 200

    @property
    def is_refusal(self) -> bool:
        """It understood and will not: asking again is no use."""
        return self.status is not None and 300 <= self.status < 500 and self.status not in BUSY | AGAIN


class Late(Unable):
    """No answer in time."""


class Absent(Unable):
    """Nobody takes the connection."""


def open_client(endpoint: Endpoint, options: HttpOptions) -> httpx2.AsyncClient:
    """Connections to the server, kept open between requests; for the loop that uses it."""
    return httpx2.AsyncClient(
        headers={"User-Agent": "vidllm", **_authorization(endpoint)},
        timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS),  # the whole of a request is timed in `post`
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=options.most_at_once),
    )


async def post(client: httpx2.AsyncClient, endpoint: Endpoint, body: Body, seconds: float) -> Reply:
    """Ask and read the answer, all of it within `seconds`. Raises Unable for everything that is no reply."""
    mine = f"vidllm-{uuid.uuid4().hex}"
    content = await asyncio.to_thread(lambda: json.dumps(body).encode())
    try:
        async with asyncio.timeout(seconds):
            status, headers, answer = await _exchange(client, endpoint, content, mine)
    except TimeoutError:
        raise Late(f"the server gave no answer within {seconds:g} s") from None
    except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
        raise Absent(f"nothing answers at {endpoint} ({_reason(error)})") from error
    except httpx2.HTTPError as error:
        raise Unable(f"the server broke the connection off ({_reason(error)})") from error
    if status != 200:
        cause = f"the server answered {status}: {_complaint(status, headers, answer)}"
        raise Unable(cause, status=status, retry_after=retry_after_seconds(headers.get("retry-after")))
    try:
        return _own(read_reply(answer), headers, mine)
    except Nonsense as error:
        raise Unable(str(error), status=200) from error


async def _exchange(
    client: httpx2.AsyncClient, endpoint: Endpoint, content: bytes, mine: str
) -> tuple[int, httpx2.Headers, bytes]:
    headers = {"Content-Type": "application/json", "X-Request-ID": mine}
    async with client.stream("POST", endpoint.chat, content=content, headers=headers) as response:
        answer = bytearray()
        async for chunk in response.aiter_bytes():
            answer += chunk
            if len(answer) > MOST_ANSWER_BYTES:
                raise Unable(f"the server's answer is larger than {MOST_ANSWER_BYTES >> 20} MB", status=200)
        kept = [(name, endpoint.masked(value)) for name, value in response.headers.raw]
        return response.status_code, httpx2.Headers(kept), endpoint.masked(bytes(answer))


def _complaint(status: int, headers: httpx2.Headers, answer: bytes) -> str:
    if 300 <= status < 400:
        return f"it lives at {headers.get('location', 'another address')}"
    return complaint(answer)


def _own(reply: Reply, headers: httpx2.Headers, mine: str) -> Reply:
    """`reply`, unless the server says that it is the answer to another request of ours."""
    told = headers.get("x-request-id", "")
    if told.startswith("vidllm-") and told != mine:
        raise Nonsense("the server gave the answer of another request")
    return reply


def list_models(endpoint: Endpoint) -> list[str]:
    """The models a server lists; none when it has no list.

    Raises EngineError when nobody is there, ConfigError where the way there is none: a host's name, or a proxy.
    """
    try:
        client = httpx2.Client(timeout=CONNECT_SECONDS)
    except (ImportError, ValueError) as error:
        said = f"the proxy in $ALL_PROXY, $HTTP_PROXY or $HTTPS_PROXY can not be used ({_reason(error)})"
        raise ConfigError(f"{said}; unset it for {endpoint}, or for SOCKS `pip install socksio`") from error
    try:
        with client:
            response = client.get(endpoint.models, headers=_authorization(endpoint))
    except httpx2.HTTPError as error:
        said = f"nothing answers at {endpoint} ({_reason(error)}); start the server, or check the address"
        raise EngineError(said) from error
    except (httpx2.InvalidURL, UnicodeError) as error:
        raise ConfigError(f"{endpoint} is no address of a server ({_reason(error)}); check its name") from error
    content = endpoint.masked(response.content)
    if response.status_code in (401, 403):
        raise wants_key(endpoint, f"the server answered {response.status_code}: {complaint(content)}")
    return read_models(content) if response.status_code == 200 else []


def wants_key(endpoint: Endpoint, cause: str) -> EngineError:
    """What to say of a 401 or 403."""
    return EngineError(f"{endpoint}: {cause}; set {KEY_VARIABLES[0]} to the server's key")


def _authorization(endpoint: Endpoint) -> dict[str, str]:
    if not (key := endpoint.key()):
        return {}
    azures = {"api-key": key} if "api-version=" in endpoint.query else {}  # Azure's deployments know no Bearer
    return {"Authorization": f"Bearer {key}", **azures}


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
