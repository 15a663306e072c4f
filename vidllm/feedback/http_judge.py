"""Any OpenAI-compatible server as a judge: key from the environment, retries with backoff, as fast as it answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidllm.clip import PlanOptions, open_clip
from vidllm.feedback.asked_judge import THOUGHT_TOKENS, AskedJudge, Judging
from vidllm.video.guard import DEFAULT_LIMITS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from vidllm.clip import Clip
    from vidllm.corpus.asking import HttpOptions


def open_http_judge(
    url: str, model: str | None = None, *, judging: Judging = "scores", watch: bool = False,
    options: HttpOptions | None = None, remark: Callable[[str], None] = lambda line: None,
) -> AskedJudge:  # fmt: skip
    """The model of that name on the server at `url`, else the one it serves. `watch` sends it the clip's frames, too.

    Raises ConfigError (no address, several models to choose from) or EngineError (nobody there, key refused).
    """
    from vidllm.corpus.http import HttpCaptioner  # brings an HTTP client, which other judges do without

    captioner = HttpCaptioner.connect(url, model, options, remark=remark)

    def look(video: Path, question: str, _: Sequence[str]) -> Clip:
        """The clip as for its question: nobody knows how much room a server's model has for the prompts."""
        return open_clip(video, question, captioner.spec, None, PlanOptions(guard=DEFAULT_LIMITS))

    return AskedJudge(captioner, judging=judging, watch=look if watch else None, most_tokens=THOUGHT_TOKENS)
