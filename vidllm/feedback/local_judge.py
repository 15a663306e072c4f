"""A model in this process as a judge: any that vidllm loads; with `watch` it sees the clip itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidllm.clip import PlanOptions, open_clip
from vidllm.feedback.asked_judge import REPLY_TOKENS, AskedJudge, Judging

if TYPE_CHECKING:
    from collections.abc import Callable

    from vidllm.ask import VideoModel
    from vidllm.clip import Clip
    from vidllm.feedback.judge import Case


def open_local_judge(
    load: Callable[[], VideoModel], *, judging: Judging = "scores", watch: bool = False, plan: PlanOptions | None = None
) -> AskedJudge:
    """The model that `load` gives. Raises what loading raises."""
    from vidllm.corpus.local import LocalCaptioner  # brings torch

    model = load()

    def look(case: Case) -> Clip | None:
        if case.video is None:
            return None
        wish = plan or PlanOptions(max_new_tokens=REPLY_TOKENS)
        return open_clip(case.video, case.question, model.spec, model.lmm.tokenizer, wish)

    return AskedJudge(LocalCaptioner(model), judging=judging, watch=look if watch else None)
