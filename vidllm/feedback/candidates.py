"""What the model being taught says itself: k answers to one question, and how likely it finds each. Values, no torch.

`Candidate.logp` is the sum of raw log-probs, temperature 1 and nothing cut off, of the answer's own ids and the token
that ends its turn, laid out as training lays them out: what a preference loss calls the reference's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vidllm.errors import ConfigError
from vidllm.options import GenerationOptions

SAMPLED = "sample"
"""The source of a candidate the model wrote about the clip as it is; others are named by what was done to the clip."""
CORRECTED = "corrected"
"""The source of one that is an answer of the model without what never happened."""
SHORTENED = "shortened"
"""The source of one that is a right answer of the model with an event left out."""
TWINS = (CORRECTED, SHORTENED)
MOST_CANDIDATES = 1024
"""All of a question stand in memory at once."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How candidates are drawn. The defaults are LLaVA-Hound's temperature, and five of them."""

    k: int = 5
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    max_new_tokens: int | None = None
    """None: as many as the plan keeps room for."""

    def __post_init__(self) -> None:
        if self.k < 2:
            raise ConfigError(f"k is {self.k}; a pair needs at least 2 candidates")
        if self.k > MOST_CANDIDATES:
            raise ConfigError(f"k is {self.k}; at most {MOST_CANDIDATES:,} candidates are written side by side")
        if self.temperature == 0:
            raise ConfigError("temperature 0 gives the same answer k times; use 0.7 to 1.2")
        self.generation(0, 1)

    def generation(self, seed: int, room: int) -> GenerationOptions:
        """The options of one answer that has room for so many tokens."""
        most = room if self.max_new_tokens is None else min(room, self.max_new_tokens)
        return GenerationOptions(
            max_new_tokens=most, temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, seed=seed
        )


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One answer. `logp` is the sum over its `tokens`, the one that ends the turn among them."""

    text: str
    logp: float
    tokens: int
    source: str = SAMPLED
    rope_factor: float = 1.0
    """Positions were stretched by so much when `logp` was measured: the least under which prompt and answer fit."""
    twin_of: str = ""
    """The answer that this one was made of."""

    def to_dict(self) -> dict[str, Any]:
        """For a line of JSON."""
        told = {"text": self.text, "logp": self.logp, "tokens": self.tokens, "source": self.source}
        told |= {"rope_factor": self.rope_factor} if self.rope_factor != 1.0 else {}
        return told | ({"twin_of": self.twin_of} if self.twin_of else {})


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """The distinct candidates of one question, and how many others were dropped, by reason."""

    candidates: tuple[Candidate, ...]
    dropped: dict[str, int]
    model: str
    """Whose log-probs these are; see `Sampler.fingerprint`."""
