"""A checkpoint's own processor, through transformers: words and pictures in, ids and pixels out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vidllm.errors import UnsupportedModel
from vidllm.model.chat import begins_with_bos
from vidllm.model.quiet import one_line, quiet

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from vidllm.model.chat import Layout
    from vidllm.model.spec import ModelSpec

_SOME_SIDE = 448


def blank(count: int, height: int, width: int) -> NDArray[np.uint8]:
    """Black pictures (count, height, width, 3)."""
    return np.zeros((count, height, width, 3), np.uint8)


def asked(whom: str, call: Callable[..., Any], *given: object, **options: object) -> Any:
    """What `call` returns. It is transformers' code for any family: whatever it raises is told as UnsupportedModel."""
    try:
        with quiet():
            return call(*given, **options)
    except Exception as error:
        raise UnsupportedModel(f"{whom} fails ({one_line(error)})") from error


def picture_text(spec: ModelSpec) -> str:
    """What stands in a layout's text for a picture."""
    return spec.picture_text.replace("{image}", spec.image_token)


_OF_FRAMES = {"use_image_id": False, "vision_input_type": "vanilla"}
"""By which processors write pictures as frames: MiniCPM-V numbers no frames, Perception LM shows them in one piece."""


def of_frames(processor: Any) -> None:
    """Let a processor treat pictures as the frames of its videos, where that is a setting."""
    for part in (processor, getattr(processor, "image_processor", None)):
        for name in _OF_FRAMES.keys() & set(dir(part)):
            setattr(part, name, _OF_FRAMES[name])


class OwnProcessor:
    """What a family without an adapter is read with.

    Raises:
        UnsupportedModel: transformers has none for this checkpoint, or it takes no pictures; later, that it fails.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoProcessor

        self.folder = folder
        self._whom = f"{folder}: its own processor"
        load: Callable[..., Any] = AutoProcessor.from_pretrained
        self._processor = asked(self._whom, load, folder, local_files_only=True, trust_remote_code=False)
        of_frames(self._processor)
        self._told: dict[tuple[int, int], dict[str, Tensor]] = {}
        self.marker = self._marker()
        """What is written where a picture is to stand."""

    def _marker(self) -> str:
        named = (getattr(self._processor, name, None) for name in ("image_placeholder_token", "image_token"))
        marker = next(filter(None, named), None)
        if not isinstance(marker, str) or not hasattr(self._processor, "image_processor"):
            raise UnsupportedModel(f"{self.folder}: its processor has no word for a picture")
        ends = [getattr(self._processor, f"image_{end}_token", None) for end in ("start", "end")]
        wanted = all(isinstance(end, str) for end in ends) and not self._takes(marker)
        return marker.join(ends) if wanted else marker  # type: ignore[arg-type]

    def _takes(self, marker: str) -> bool:
        """Whether a picture may stand there, or not without words of its own around it."""
        with suppress(UnsupportedModel):
            self._read([marker], [list(blank(1, _SOME_SIDE, _SOME_SIDE))], begins=False)
            return True
        return False

    @property
    def name(self) -> str:
        """The class that makes pixels of pictures: another one may round otherwise."""
        return type(self._processor.image_processor).__name__

    @property
    def side(self) -> int | None:
        """Of the square it makes of a picture, in pixels, where its settings name one."""
        for settings in (getattr(self._processor.image_processor, name, None) for name in ("crop_size", "size")):
            if isinstance(side := (settings or {}).get("height"), int):
                return side
        return None

    def pictures(self, pixels: NDArray[np.uint8]) -> Any:
        """What a network takes of uint8 pictures (N, h, w, 3), each a row of its own with nothing else in it."""
        return self._read([self.marker] * len(pixels), [[one] for one in pixels], begins=False)

    def prompt(self, layout: Layout, spec: ModelSpec, pixels: NDArray[np.uint8]) -> Any:
        """What it takes of a conversation with these pictures in its slots."""
        text = layout.text.replace(picture_text(spec), self.marker)
        return self._read([text], [list(pixels)], begins=not begins_with_bos(text, self.folder))

    def _read(self, texts: list[str], rows: list[list[NDArray[np.uint8]]], *, begins: bool) -> Any:
        """With `begins` the tokenizer puts before each what a text begins with."""
        from PIL import Image

        images = [[Image.fromarray(one) for one in row] for row in rows]
        kinds = {"return_mm_token_type_ids": True} if "mm_token_type_ids" in self._processor.model_input_names else {}
        return asked(
            self._whom, self._processor, text=texts, images=images, add_special_tokens=begins, return_tensors="pt",
            **kinds,
        )  # fmt: skip

    def picture_ids(self, height: int, width: int) -> list[int]:
        """The ids of a picture of so many pixels, with nothing around it."""
        ids: list[int] = self.told(height, width)["input_ids"][0].tolist()
        return ids

    def told(self, height: int, width: int) -> dict[str, Tensor]:
        """What it makes of such a picture beside pixels: ids and other whole numbers."""
        size = height, width
        if size not in self._told:
            made = self.pictures(blank(1, height, width))
            self._told[size] = {name: value for name, value in made.items() if not value.is_floating_point()}
        return self._told[size]

    def question_ids(self, side: int, question: str) -> list[int]:
        """The ids of its chat template's turn that shows a square and asks, up to where the reply begins."""
        from PIL import Image

        picture = {"type": "image", "image": Image.fromarray(blank(1, side, side)[0])}
        turn = {"role": "user", "content": [picture, {"type": "text", "text": question}]}
        made = asked(
            self._whom, self._processor.apply_chat_template, [turn], add_generation_prompt=True, tokenize=True,
            return_dict=True, return_tensors="pt", enable_thinking=False,
        )  # fmt: skip
        ids: list[int] = made["input_ids"][0].tolist()
        return ids
