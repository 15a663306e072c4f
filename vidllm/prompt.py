"""Messages and clips -> Prompt: every token id is born here, once, together with the visuals it stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from vidllm.budget import Newline

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vidllm.clip import Clip
    from vidllm.model.families import ModelSpec

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, eq=False)
class Image:
    """A still picture: uint8 (H, W, 3), and where it came from (for messages)."""

    pixels: NDArray[np.uint8]
    source: str = "image"


@dataclass(frozen=True)
class Message:
    """One turn. `media` stand before the text, in order."""

    role: Role
    text: str
    media: tuple[Clip | Image, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Visual:
    """One run of visual tokens in the prompt, and the pixels that fill it.

    A video frame: `pixels` (1, S, S, 3), `stride` its pooling, `newline` "none", "frame" (one learned newline at its
    end; also what the last frame of newline-`one` carries) or "grid" (one after each pooled row).
    A still image: the same with stride 1, or with AnyRes `pixels` (1 + gh * gw, S, S, 3): the thumbnail, then the
    tiles row by row; `grid` = (gh, gw), `source_size` = (height, width) in pixels before any resizing.
    Token order of an AnyRes image: thumbnail, then the unpadded tile rows, each row followed by a newline.
    Native families: a whole clip is one "video" of `pixels` (N, h, w, 3) at the planned size, an image keeps its own
    size; their tokens need not be contiguous.
    """

    pixels: NDArray[np.uint8]
    kind: Literal["frame", "image", "video"]
    stride: int
    tokens: int
    position: int
    """Index in `input_ids` of its first token; its tokens are contiguous."""
    newline: Newline
    times: tuple[float, ...] = ()
    """True seconds: one for a frame, all of a native video's, none for an image."""
    grid: tuple[int, int] | None = None
    source_size: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """What a model is fed. `input_ids` holds `spec.image_token_id` once for every visual token.

    Native families: the ids their own processor would make (`spec.video_token_id` for video where they have one).
    """

    input_ids: tuple[int, ...]
    visuals: tuple[Visual, ...]
    rope_factor: float
    spec: ModelSpec
    text: str
    """Readable: one placeholder per frame or image, not one per token."""
    messages: tuple[Message, ...]
    text_tokens: int
    video_tokens: int
    """Visual tokens, still images included."""

    @property
    def length(self) -> int:
        """Tokens, visual ones included."""
        return len(self.input_ids)
