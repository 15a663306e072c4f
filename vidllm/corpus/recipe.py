"""What shapes a caption, as sixteen hex digits: a changed prompt, model, plan or decoding parameter is new work."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from vidllm.options import GenerationOptions
from vidllm.planning import PlanOptions

VERSION = 1
"""Counted up when the same options come to mean another caption."""

MOST_OWN_RECIPES = 1000
"""Clips' own prompts whose recipes are remembered."""

NOT_SHAPING = frozenset({"start", "end", "guard"})
"""Plan options that are no part of a recipe: the range is part of a clip's id, limits only say when to give up."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that shapes a caption but the clip itself."""

    model: str
    """The checkpoint's fingerprint; the name a server goes by."""
    prompt: str
    plan: Mapping[str, Any]
    decoding: Mapping[str, Any]
    version: int = VERSION

    @classmethod
    def of(cls, model: str, prompt: str, plan: PlanOptions, decoding: GenerationOptions) -> "Recipe":
        """The recipe of these options."""
        look = {name: value for name, value in dataclasses.asdict(plan).items() if name not in NOT_SHAPING}
        return cls(model=model, prompt=prompt, plan=look, decoding=dataclasses.asdict(decoding))

    def asking(self, prompt: str | None) -> "Recipe":
        """The same with a clip's own prompt; None leaves the run's."""
        return self if prompt is None or prompt == self.prompt else dataclasses.replace(self, prompt=prompt)

    def digests(self) -> Callable[[str | None], str]:
        """The digest under a clip's own prompt (None: the run's); a thousand are remembered. Threads may share it."""
        return lru_cache(MOST_OWN_RECIPES)(lambda prompt: self.asking(prompt).digest)

    @property
    def digest(self) -> str:
        """16 hex digits, the same on every machine."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
