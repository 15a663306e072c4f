"""A chat server that judges, honestly or not; otherwise as `caption_server`: busy, broken and strict on demand.

    python -m tests.judge_server [--biased] [--short] [all options of caption_server]

The quality of an answer is the number behind "quality" in it, 3 where there is none; scores are that number, and of two
answers the better one wins. `--biased`: the one that stands first always wins. `--short`: the quality is 5 for up to
five words and 1 for more. Orders in an answer as in
`caption_server`, and besides: `do=mumble` replies in free words without a score, `do=mumble:1` only the first time;
`do=cut` says that it was cut off by its length; `do=ponder` thinks so long that less than 1000 tokens are too few.
"""

from __future__ import annotations

import re
import sys
import time
from typing import Any

from tests.caption_server import Handler, seen, serve

CRITERIA = ("Relevance", "Accuracy", "Clarity", "Completeness")
BETWEEN = re.compile(r"^={10}\n(.*?)\n={10}$", re.M | re.S)


class Judge(Handler):
    """One connection."""

    biased = False
    short = False

    def complete(self, body: dict[str, Any], prompt: str) -> None:
        with self.state.slots:
            time.sleep(self.state.options.seconds)
        qualities = [self.quality(answer) for answer in BETWEEN.findall(seen(body)["prompt"])]
        bare = prompt.partition("\n\nYour last reply")[0]
        if self.state.shall("mumble", bare):
            content = "Well, it depends: I would give it something between 3 and 4 out of 5."
        elif len(qualities) == 2:
            content = f"Explanation: one is nearer.\nBetter: {self.winner(*qualities)}"
        else:
            marks = "".join(f"{name}: {qualities[0]}\n" for name in CRITERIA)
            content = f"Explanation: held against the caption.\n{marks}Score: {qualities[0]}"
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if "do=ponder" in bare and body["max_tokens"] < 1000:
            message = {"role": "assistant", "content": None, "reasoning_content": "Hmm, let me"}
        reason = "length" if not message["content"] or self.state.shall("cut", bare) else "stop"
        self.answer(200, {"object": "chat.completion", "model": f"{body['model']}-0613", "choices": [
            {"index": 0, "message": message, "finish_reason": reason}
        ]})  # fmt: skip

    def quality(self, answer: str) -> int:
        if self.short:
            return 5 if len(answer.split()) <= 5 else 1
        found = re.search(r"quality (\d)", answer)
        return int(found[1]) if found else 3

    def winner(self, one: int, other: int) -> str:
        if self.biased:
            return "A"
        return "tie" if one == other else "A" if one > other else "B"


def main() -> None:
    """Serve until killed."""
    Judge.biased, Judge.short = "--biased" in sys.argv, "--short" in sys.argv
    sys.argv = [word for word in sys.argv if word not in ("--biased", "--short")]
    serve(Judge)


if __name__ == "__main__":
    sys.exit(main())
