"""How a family frames its prompt, as text: the chat template, frame times, subtitles, and what it costs in tokens.

    turns ──chat template──> text, one marker per medium ──> each marker as its family writes it ──> token ids

One placeholder token stands for one run of visual tokens (a frame, an image, a native group); `prompt` repeats it.
Media become text before the tokenizer runs, so that the ids are those of the whole text and of no pieces of it.
Torch-free: `tokenizers` and jinja2 only, both loaded when first used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from vidllm.errors import IncompleteModel
from vidllm.model.media import Shown, marker, medium_text, runs_of, time_sentence
from vidllm.model.spec import ModelSpec, stop_ids
from vidllm.model.spoken import CLOSE, OPEN, mark_spoken, unmarked
from vidllm.model.templates import chat_template, render, special_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

AnyTokenizer: TypeAlias = "Tokenizer | PreTrainedTokenizerBase"
"""A tokenizer of the `tokenizers` library, or transformers' wrapping of one."""


@dataclass(frozen=True)
class Turn:
    """One message; `media` stand before the text, the last of them where `at` says."""

    role: str
    text: str
    media: tuple[Shown, ...] = ()
    at: tuple[int, ...] = ()
    """The letters of the text that the last of `media` stand before; as many as stand behind any of its words."""

    @property
    def lead(self) -> int:
        """How many of `media` stand before all words."""
        return len(self.media) - len(self.at)


@dataclass(frozen=True)
class Layout:
    """A conversation as `ids`; `slots` are the indices of its visual placeholders, one per run, in order."""

    ids: tuple[int, ...]
    slots: tuple[int, ...]
    text: str

    @property
    def text_tokens(self) -> int:
        """Tokens that are text."""
        return len(self.ids) - len(self.slots)


def lay_out(turns: Sequence[Turn], spec: ModelSpec, tokenizer: AnyTokenizer, *, reply: bool = True) -> Layout:
    """The conversation in the model's own chat template; with `reply` it ends where the assistant begins.

    Raises:
        IncompleteModel: the template can not be rendered, or loses a placeholder.
    """
    tokenizer = raw_tokenizer(tokenizer)
    rendered = _render_turns(turns, spec, tokenizer, reply)
    if spec.as_said and any(turn.role == "assistant" for turn in turns):
        rendered = unmarked(_render_spoken(turns, spec, tokenizer, reply))
    return _encode(_with_media(rendered, turns, spec), turns, spec, tokenizer)


def lay_out_spoken(
    turns: Sequence[Turn], spec: ModelSpec, tokenizer: AnyTokenizer
) -> tuple[Layout, tuple[range, ...]]:
    """A finished conversation with every answer as the model would say it, and which of the `ids` each answer is.

    What `lay_out` prints before the first answer is the beginning of it, id by id; before later answers, too, under
    `spec.as_said`. An answer's ids are its words and the token that ends it.

    Raises:
        IncompleteModel: as `lay_out`; or the model names no end token, or its tokenizer joins prompt and answer.
    """
    tokenizer = raw_tokenizer(tokenizer)
    marked = _with_media(_render_spoken(turns, spec, tokenizer, False), turns, spec)
    layout = _encode(unmarked(marked), turns, spec, tokenizer)
    ends = set(stop_ids(spec.folder, tokenizer))
    spoken = []
    for opening in re.finditer(OPEN, marked):
        prompt = unmarked(marked[: opening.start()])
        before = _ids(prompt, layout.text, spec, tokenizer)
        stop = next((i for i in range(len(before), len(layout.ids)) if layout.ids[i] in ends), None)
        if layout.ids[: len(before)] != before or stop is None:
            raise IncompleteModel(
                f"{spec.folder}: its tokenizer joins the end of the prompt with the answer "
                f"{layout.text[len(prompt) :][:20]!r}; rows like this can not be learned from, leave them out"
            )
        spoken.append(range(len(before), stop + 1))
    return layout, tuple(spoken)


def _with_media(rendered: str, turns: Sequence[Turn], spec: ModelSpec) -> str:
    """Every marker as its family writes the medium."""
    media = [shown for turn in turns for shown in turn.media]
    waiting = {printed: [m for m in media if marker(m, spec) == printed] for printed in _markers(spec)}
    pattern = "|".join(re.escape(printed) for printed in waiting)
    text = re.sub(pattern, lambda match: medium_text(waiting[match[0]].pop(0), spec), rendered)
    return text if text.startswith(spec.begins) else spec.begins + text


def _ids(text: str, whole: str, spec: ModelSpec, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids of `text`, a beginning of `whole`."""
    return tuple(tokenizer.encode(text, add_special_tokens=not begins_with_bos(whole, spec.folder)).ids)


def _encode(text: str, turns: Sequence[Turn], spec: ModelSpec, tokenizer: Tokenizer) -> Layout:
    ids = _ids(text, text, spec, tokenizer)
    visual = {spec.image_token_id, spec.video_token_id}
    slots = tuple(i for i, token in enumerate(ids) if token in visual)
    expected = sum(runs_of(m, spec) for turn in turns for m in turn.media)
    if len(slots) != expected:
        raise IncompleteModel(
            f"{spec.folder}: {expected} visual runs became {len(slots)} placeholders; "
            f"its tokenizer.json does not keep {spec.image_token!r} whole"
        )
    return Layout(ids, slots, text)


def count_text_tokens(question: str, spec: ModelSpec, tokenizer: AnyTokenizer | None, *media: Shown) -> int:
    """Text tokens of a prompt that asks `question` about `media`: template, times, subtitles, question; no visual ones.

    Without a tokenizer the words are counted roughly.
    """
    turn = Turn("user", question, tuple(media))
    if tokenizer is None:
        return count_tokens("".join(_pieces(turn, spec)), None)
    return lay_out([turn], spec, tokenizer).text_tokens


def count_tokens(text: str, tokenizer: AnyTokenizer | None) -> int:
    """Tokens of a piece of text by itself; without a tokenizer roughly, one for every three bytes."""
    if tokenizer is None:
        return -(-len(text.encode()) // 3)
    return len(raw_tokenizer(tokenizer).encode(text, add_special_tokens=False))


def raw_tokenizer(tokenizer: AnyTokenizer) -> Tokenizer:
    """The `tokenizers` object itself. Padding or truncation an earlier call left in a wrapped one are switched off."""
    from tokenizers import Tokenizer

    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    backend: Tokenizer = tokenizer.backend_tokenizer
    if backend.padding is not None:
        backend.no_padding()
    if backend.truncation is not None:
        backend.no_truncation()
    return backend


def _markers(spec: ModelSpec) -> tuple[str, ...]:
    """What the template prints for a picture and for a video."""
    return tuple(dict.fromkeys((marker(Shown(kind="image"), spec), marker(Shown(kind="video"), spec))))


def _pieces(turn: Turn, spec: ModelSpec) -> list[str]:
    """The text, cut where media stand among its words; what is told of any of them stands before the first word."""
    lines = []
    for shown in turn.media:
        if shown.kind == "video" and spec.stamp == "sentence":
            lines.append(time_sentence(shown))
        if shown.subtitles:
            lines += ["Subtitles:", *shown.subtitles]
    cuts = pairwise((0, *turn.at, len(turn.text)))
    first, *rest = [turn.text[begin:end] for begin, end in cuts]
    return ["\n".join([*lines, first] if turn.text else lines), *rest]


def _render_turns(turns: Sequence[Turn], spec: ModelSpec, tokenizer: Tokenizer, reply: bool) -> str:
    """The rendered template, markers counted. Templates of text-only models get the markers inside the text."""
    quiet = _quietener(spec, tokenizer)
    texts = [[quiet(piece) for piece in _pieces(turn, spec)] for turn in turns]
    wanted = sum(len(turn.media) for turn in turns)
    template = chat_template(spec, video=any(m.kind == "video" for turn in turns for m in turn.media))
    names = {**special_tokens(spec.folder), "image_token": _markers(spec)[0]}
    reason = "it prints no placeholder for a picture"
    for parts in _forms_read(template, tuple(names.items()), spec):
        messages = [{"role": t.role, "content": parts(t, text, spec)} for t, text in zip(turns, texts, strict=True)]
        try:
            rendered = render(template, messages, names, reply)
        except ValueError as error:
            reason = str(error)
            continue
        if sum(rendered.count(marker) for marker in _markers(spec)) == wanted:
            return rendered
    raise IncompleteModel(
        f"{spec.folder}: its chat template can not be used ({reason}); save the model's processor again"
    )


@lru_cache(maxsize=8)
def _forms_read(template: str, names: tuple[tuple[str, str], ...], spec: ModelSpec) -> tuple[_Form, ...]:
    """The forms of content that a template understands, told by a question with a picture and an answer: one that wants
    texts (`content | trim`, as Llama 3's; GLM-4.1V's of answers; Gemma 4's of a system) prints a list of parts as
    Python writes it, and nobody would know.

    A template that prints all media before the words (LLaVA's) gets those among them within the text, where LLaVA has
    them, too; unless it writes more than the marker for one (PaddleOCR-VL's): there its media stand before the words.
    """
    probe = (Turn("user", "x", (Shown(kind="image"),)), Turn("assistant", "x"))

    def told(form: _Form, *turns: Turn) -> str | None:
        """What it prints, None where it refuses to, empty where it prints a list."""
        contents = [form(turn, _pieces(turn, spec), spec) for turn in turns]
        messages = [{"role": turn.role, "content": said} for turn, said in zip(turns, contents, strict=True)]
        try:
            text = render(template, messages, dict(names), False)
        except ValueError:
            return None
        return "" if any(str(said) in text for said in contents if isinstance(said, list)) else text

    def is_read(form: _Form) -> bool:
        asked = told(form, *probe) or ""
        return asked.count(_markers(spec)[0]) == 1 and told(form, Turn("system", "x"), *probe) != ""

    def is_bare(form: _Form) -> bool:
        """Whether a picture among words is printed before them, and nothing but white space with it."""
        picture, words = _markers(spec)[0], Turn("user", OPEN + CLOSE)
        shown = told(form, replace(words, media=(Shown(kind="image"),), at=(1,))) or ""
        others = {"".join(text.split()) for text in (shown.replace(picture, "", 1), told(form, words) or "")}
        return picture in shown.partition(OPEN)[0] and len(others) == 1

    forms = tuple(form for form in _FORMS if is_read(form)) or _FORMS
    return tuple(partial(_within_text, form) if is_bare(form) else form for form in forms)


def _render_spoken(turns: Sequence[Turn], spec: ModelSpec, tokenizer: Tokenizer, reply: bool) -> str:
    """The rendered template with every answer as the model says it, between OPEN and CLOSE."""
    ends = [token for end in stop_ids(spec.folder, tokenizer) if (token := tokenizer.id_to_token(end))]
    if not ends:
        raise IncompleteModel(
            f"{spec.folder}: no token ends an answer; name its eos_token_id in generation_config.json"
        )
    special = _special_pattern(tokenizer, tokenizer.get_vocab_size(), ())
    try:
        return mark_spoken(
            turns, lambda some, asks: _render_turns(some, spec, tokenizer, asks), ends, special, reply=reply
        )
    except ValueError as error:
        raise IncompleteModel(f"{spec.folder}: its chat template can not be taught ({error})") from error


def _content_parts(turn: Turn, pieces: Sequence[str], spec: ModelSpec) -> list[dict[str, str]]:
    media = [{"type": "image" if marker(m, spec) == _markers(spec)[0] else "video"} for m in turn.media]
    # Pixtral's first templates read `content` of a text, and print nothing, without a word, where there is none.
    first, *rest = ({"type": "text", "text": piece, "content": piece} for piece in pieces)
    among = [part for pair in zip(media[turn.lead :], rest, strict=True) for part in pair if part.get("text") != ""]
    return [*media[: turn.lead], first, *among]


def _question_parts(turn: Turn, pieces: Sequence[str], spec: ModelSpec) -> list[dict[str, str]] | str:
    return _content_parts(turn, pieces, spec) if turn.role == "user" else "".join(pieces)


def _content_string(turn: Turn, pieces: Sequence[str], spec: ModelSpec) -> str:
    return "".join(f"{marker(m, spec)}\n" for m in turn.media[: turn.lead]) + _joined(turn, pieces, spec)


def _within_text(form: _Form, turn: Turn, pieces: Sequence[str], spec: ModelSpec) -> list[dict[str, str]] | str:
    return form(replace(turn, media=turn.media[: turn.lead], at=()), [_joined(turn, pieces, spec)], spec)


def _joined(turn: Turn, pieces: Sequence[str], spec: ModelSpec) -> str:
    among = [marker(m, spec) for m in turn.media[turn.lead :]]
    return "".join(said for pair in zip(["", *among], pieces, strict=True) for said in pair)


_Form: TypeAlias = Callable[[Turn, Sequence[str], ModelSpec], "list[dict[str, str]] | str"]
_FORMS: tuple[_Form, ...] = (_content_parts, _question_parts, _content_string)


def _quietener(spec: ModelSpec, tokenizer: Tokenizer) -> Callable[[str], str]:
    """A special token written in someone's text is text: broken by a space, or it would act as what it names."""
    ends = [tokenizer.id_to_token(end) for end in spec.row_ends]
    # These stand for pixels, special or not.
    named = (*_markers(spec), spec.image_token, *filter(None, [spec.video_token, *ends]))
    pattern = _special_pattern(tokenizer, tokenizer.get_vocab_size(), named)
    return lambda text: pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)


@lru_cache(maxsize=4)  # listing the added tokens takes a millisecond, and every turn of every row needs them
def _special_pattern(tokenizer: Tokenizer, size: int, markers: tuple[str, ...]) -> re.Pattern[str]:
    """`size` is that of the vocabulary: a tokenizer that was given more tokens is looked at again."""
    special = {t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special} | set(markers)
    return re.compile("|".join(re.escape(t) for t in sorted(special, key=len, reverse=True) if len(t) > 1))


def begins_with_bos(text: str, folder: Path) -> bool:
    """Whether what the tokenizer would put before a text stands there already."""
    bos = special_tokens(folder).get("bos_token")
    return bool(bos) and text.startswith(str(bos))
