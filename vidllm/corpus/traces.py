"""What vidllm itself leaves beside clips, where `videos/*` finds it too: no clip, and no list of clips either.

    report.html   old.diff   old.jsonl.admitted       told by how they begin
    captions/a.srt                                    by the record beside it
    old.jsonl   old.parquet/                          by their manifest
"""

import os
import re
from pathlib import Path

from vidllm.corpus.listing import SIDE_SUFFIXES
from vidllm.corpus.sidefolder import RECORD
from vidllm.corpus.stores import PARQUET_SUFFIX, manifest_of

MOST_HEAD_BYTES = 4096
PAGE = re.compile(rb"<!doctype html><html lang=en>")
DIFF = re.compile(rb"[^\n]*: caption_v\d+, ")
_MANIFEST = re.compile(rb'\{"(?:key|recipe|cut)": "')
_BEGINS = {".html": PAGE, ".htm": PAGE, ".diff": DIFF, ".admitted": _MANIFEST}
"""How our pages, our reports of changes and our manifests begin."""


def head_of(path: str | os.PathLike[str]) -> bytes:
    """How the file begins. Raises OSError."""
    with open(path, "rb") as file:
        return file.read(MOST_HEAD_BYTES)


def is_trace(path: str) -> bool:
    """Whether vidllm wrote the file: a page, a report of changes, a manifest, or what `-f` asked for."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in SIDE_SUFFIXES:
        return _is_side_file(path)
    try:
        return suffix in _BEGINS and _BEGINS[suffix].match(head_of(path)) is not None
    except OSError:
        return False


def is_output(path: str) -> bool:
    """Whether captions are kept there: among clips they are theirs, named by itself it is a data set like others."""
    return path.lower().endswith((".jsonl", PARQUET_SUFFIX)) and manifest_of(Path(path)).exists()


def _is_side_file(path: str) -> bool:
    """The folder that `-f` made may have folders in it."""
    folder, above = os.path.dirname(path), None
    while folder and folder != above:
        if os.path.exists(os.path.join(folder, RECORD)):
            return True
        folder, above = os.path.dirname(folder), folder
    return False
