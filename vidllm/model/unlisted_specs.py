"""A family there is no adapter for -> its ModelSpec, by asking transformers and the checkpoint's own processor.

    blank squares of several sides -> the ids that the processor writes for each -> what a picture costs

A frame is one of these squares, behind its time; all the rest is as the chat template prints it. Asking takes seconds,
so what was said is kept on disk. Whether the language model is then read as the family reads it, `proof` finds out.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from vidllm import __version__
from vidllm.caches import cache_folder
from vidllm.config import from_mapping
from vidllm.errors import CorpusError, UnsupportedModel, VidllmError
from vidllm.geometry import NativeGeometry
from vidllm.linefile import write_whole
from vidllm.model.chat import Layout, Turn, lay_out
from vidllm.model.fingerprint import describing_files
from vidllm.model.media import Shown
from vidllm.model.own_processor import OwnProcessor, asked, blank, picture_text
from vidllm.model.settings import Files, rope_kind, rope_of
from vidllm.model.spec import Json, ModelSpec, read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_USUAL_SIDE = 448
_EIGHTHS = range(8, 1, -1)
"""Of its usual side, that a frame may be shown at."""
_MOST_TOKENS = 256
"""Of a frame, if smaller ones take fewer."""
_STRIPS = (2, 4)
"""How many times as long as wide pictures are that have to take a square's ids to be shown with their own aspect."""
QUESTION = "What do these pictures show?"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What transformers and a checkpoint's own processor say of it."""

    text_type: str
    context: int
    rope_scalable: bool
    marker: str
    """What the chat template prints for a picture."""
    image_token_id: int
    """What the processor writes most of in its place."""
    picture_text: str
    """That as `{image}`, and mere text that the processor writes around it: it may join what stands there."""
    squares: tuple[tuple[int, int], ...]
    """(side in pixels, tokens) of a frame, from the largest."""
    fits_itself: bool
    """Whether the processor fits pictures of any aspect to the one square there is."""
    line_ends: bool
    """Whether the template ends the line of every picture."""


def unlisted_spec(files: Files) -> ModelSpec:
    """The spec of a checkpoint whose family there is no adapter for.

    Raises:
        UnsupportedModel: transformers does not know the family as one that reads pictures, or its own processor can not
            be used, or writes other ids than its chat template and tokenizer make here.
    """
    kept = kept_at(files.folder, "asked")
    said = None
    with suppress(VidllmError):
        said = from_mapping(Asked, read_json(kept) or {}, where=str(kept))
    if said is None:
        said = _ask(files)
        keep(kept, json.dumps(asdict(said)))
    return _spec(files, said)


def kept_at(folder: Path, what: str) -> Path:
    """Where is kept what is known of a checkpoint with these files beside its weights, under these releases."""
    releases = f"{__version__}|{version('transformers')}"
    digest = hashlib.blake2b(releases.encode(), digest_size=20)
    for path in describing_files(folder):
        digest.update(path.name.encode() + path.read_bytes())
    return cache_folder("families") / f"{digest.hexdigest()}.{what}.json"


def keep(path: Path, text: str) -> None:
    """Put `text` there, if that is possible; what can be asked again need not be kept."""
    with suppress(OSError, CorpusError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)


def _spec(files: Files, said: Asked) -> ModelSpec:
    token, side = files.token(said.image_token_id), said.squares[0][0]
    return ModelSpec(
        folder=files.folder, model_type=files.config["model_type"], text_type=said.text_type, kind="native",
        context=said.context, rope_scalable=said.rope_scalable,
        geometry=NativeGeometry(patch=side, merge=1, squares=said.squares, fits_itself=said.fits_itself),
        image_token=token, image_token_id=said.image_token_id, image_marker=said.marker, video_token=said.marker,
        video_token_id=said.image_token_id, picture_text=said.picture_text, image_size=side, patch_size=side,
        vision_layers=(), fit="stretch", media_end_lines=said.line_ends, fine_stride=1, coarse_stride=1,
        uniform_stride=1,
    )  # fmt: skip


def _ask(files: Files) -> Asked:
    from transformers import AutoConfig

    folder, tokenizer, load = files.folder, files.tokenizer, AutoConfig.from_pretrained
    check_known(folder, str(files.config["model_type"]))
    whole = asked(f"{folder}: its config.json", load, folder, local_files_only=True, trust_remote_code=False)
    text, processor = whole.get_text_config().to_dict(), OwnProcessor(folder)
    vision = getattr(whole, "vision_config", None)
    squares = _squares(processor, getattr(vision, "image_size", None))
    side = squares[0][0]
    ids = processor.picture_ids(side, side)
    image_token_id = max(ids, key=ids.count)
    before, picture, after = _apart(ids, image_token_id, tokenizer)
    said = Asked(
        text_type=str(text["model_type"]), context=files.context(text), rope_scalable=_turns_evenly(text),
        marker=processor.marker, image_token_id=image_token_id, picture_text=f"{before}{{image}}{after}",
        squares=tuple((side, tokens - len(ids) + len(picture)) for side, tokens in squares),
        fits_itself=len(squares) == 1 and _fits_itself(processor, side, ids), line_ends=False,
    )  # fmt: skip
    return _as_written(said, _spec(files, said), tokenizer, processor, picture)


def _apart(ids: list[int], image_token_id: int, tokenizer: Tokenizer) -> tuple[str, list[int], str]:
    """The text before a picture's first special token, the ids from there to its last one, the text behind it."""
    special = {token for token, word in tokenizer.get_added_tokens_decoder().items() if word.special} | {image_token_id}
    places = [place for place, token in enumerate(ids) if token in special]
    start, end = places[0], places[-1] + 1
    around = [tokenizer.decode(part, skip_special_tokens=False) for part in (ids[:start], ids[end:])]
    again = [tokenizer.encode(text, add_special_tokens=False).ids for text in around]
    if again != [ids[:start], ids[end:]]:
        return "", ids, ""
    return around[0], ids[start:end], around[1]


def check_known(folder: Path, model_type: str) -> None:
    """Refuse a family that transformers can not load as one that reads pictures and words."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN

    if model_type not in KNOWN:
        raise UnsupportedModel(
            f"{folder}: no adapter for family {model_type!r}, and none in transformers {version('transformers')} either"
        )


def _turns_evenly(text: Json) -> bool:
    """Whether all layers count tokens one by one as far as they see, so that positions can be stretched."""
    kinds = set(text.get("layer_types") or ())
    plain = rope_kind(text) in ("default", "linear", "llama3") and "mrope_section" not in rope_of(text)
    return plain and kinds <= {"full_attention"}


def _squares(processor: OwnProcessor, tower: object) -> tuple[tuple[int, int], ...]:
    """(side, tokens) of the squares that frames may be: smaller ones as long as they take fewer tokens."""
    usual = tower if isinstance(tower, int) and tower > 1 else processor.side or _USUAL_SIDE
    found: list[tuple[int, int]] = []
    for side in (usual * part // 8 for part in _EIGHTHS):
        tokens = len(processor.picture_ids(side, side))
        if not found or tokens < found[-1][1]:
            found.append((side, tokens))
    return tuple(square for square in found if square[1] <= _MOST_TOKENS) or (found[-1],)


def _fits_itself(processor: OwnProcessor, side: int, ids: list[int]) -> bool:
    """Whether it makes these ids of a square of pictures of any aspect too."""
    strips = [size for part in _STRIPS for size in ((side, side // part), (side // part, side))]
    return all(processor.picture_ids(*size) == ids for size in strips)


def _as_written(said: Asked, spec: ModelSpec, tokenizer: Tokenizer, processor: OwnProcessor, ids: list[int]) -> Asked:
    """`said` with what only its chat template tells, once that and the tokenizer make the processor's ids here."""
    picture = lay_out([Turn("user", QUESTION, (Shown(kind="image"),))], spec, tokenizer)
    _check_ids(spec, picture, ids, processor.question_ids(spec.image_size, QUESTION), "a picture and a question")
    said = replace(said, line_ends=f"{picture_text(spec)}\n" in picture.text)
    frames = two_frames(replace(spec, media_end_lines=said.line_ends), tokenizer)
    made = processor.prompt(frames, spec, blank(2, spec.image_size, spec.image_size))["input_ids"][0].tolist()
    _check_ids(spec, frames, ids, made, "two frames and a question")
    return said


def two_frames(spec: ModelSpec, tokenizer: Tokenizer) -> Layout:
    """A question about a clip of two frames."""
    return lay_out([Turn("user", QUESTION, (Shown(kind="video", times=(0.0, 2.0), duration=4.0),))], spec, tokenizer)


def _check_ids(spec: ModelSpec, layout: Layout, picture: list[int], theirs: list[int], what: str) -> None:
    ours = [part for i, token in enumerate(layout.ids) for part in (picture if i in layout.slots else [token])]
    if ours != theirs:
        place = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(theirs))
        raise UnsupportedModel(
            f"{spec.folder}: of {what} its processor makes {len(theirs)} ids, its chat template and tokenizer "
            f"{len(ours)}, which part at {place}"
        )
