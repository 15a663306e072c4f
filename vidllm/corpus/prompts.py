"""What a clip is asked: presets by name, a file (`@prompt.txt`), or the words themselves. All prompts stand here."""

from __future__ import annotations

import difflib
from pathlib import Path

from vidllm.errors import ConfigError

DEFAULT = "describe the video."
"""Also the one description the built-in model was taught."""

PRESETS = {
    "short": "Describe this video in one sentence: who or what is in it, and what happens.",
    "detailed": (
        "Describe this video in detail, in the order in which things happen. Say who and what is in it, what they look "
        "like and where they are, what they do and how that changes, and how the camera moves. Name only what can be "
        "seen, and do not guess at what can not."
    ),
    "structured": (
        "Describe this video as one JSON object and nothing else, with these keys: "
        '"summary" (one sentence), "subjects" (a list of who and what is in it), "actions" (a list, in the order in '
        'which they happen), "setting" (where and when), "camera" (how it moves), "text" (writing that can be read, '
        "or null). Leave a list empty where nothing of the kind can be seen."
    ),
}

SUMMARY = (
    "These are descriptions of the consecutive parts of one video, each with its time.\n\n{captions}\n\n"
    "Describe the whole video in one paragraph, in the order in which things happen, from these descriptions alone."
)
"""Asked about a split video without its frames."""


def is_summary(prompt: str) -> bool:
    """Whether this is `SUMMARY` with the parts' captions in it: its answer rests on no frames of its own."""
    return prompt.startswith(SUMMARY.partition("{captions}")[0])


def read_prompt(words: str | None) -> str:
    """The prompt that `words` stand for: None the default, a preset's name, `@file`, else the words as they are.

    Raises ConfigError: a file that is missing, empty or no text; nothing but blanks; one word that is no preset.
    """
    if words is None:
        return DEFAULT
    if words.startswith("@"):
        return _read_file(Path(words[1:]).expanduser())
    text = PRESETS.get(words, words).strip()
    if not text:
        raise ConfigError(f'the prompt is empty; write one, or a preset ({", ".join(PRESETS)}), or @FILE')
    if text.isidentifier() and text.isascii():
        near = difflib.get_close_matches(text, PRESETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"presets are {', '.join(PRESETS)}; a prompt has several words"
        raise ConfigError(f"prompt {text!r} is no preset; {hint}")
    return text


def _read_file(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: the prompt is no UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path}: the prompt can not be read ({reason}); give --prompt @FILE a text file") from error
    if not text:
        raise ConfigError(f"{path}: the prompt file is empty; write the prompt into it")
    return text
