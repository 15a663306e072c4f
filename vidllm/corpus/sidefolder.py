"""The folder of an output's side files, and which files in it vidllm wrote: nothing else is ever replaced.

    w1.jsonl   w1/ (the clips)   ->   w1.captions/.vidllm-files
    a.jsonl                      ->   a/.vidllm-files             a line a file: ["<digest>", "b.srt", "/clips/b.mp4"]
"""

import errno
import hashlib
import json
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from vidllm.errors import OutputError
from vidllm.linefile import check_place, not_writable

RECORD = ".vidllm-files"
PART = ".vidllm-part"
"""How a file's name begins until it is whole: a name with something added to it may be too long for one."""


@dataclass
class SideFolder:
    """One folder that is vidllm's own; it is made with its first file."""

    path: Path
    _digests: dict[str, set[str]] = field(default_factory=dict)
    """Name below the folder -> digests of what was written under it. Several only where a run was killed."""
    _owners: dict[str, str] = field(default_factory=dict)
    """Name -> what the file was last made of; not of those that were written before the record told it."""
    unnamed: list[Path] = field(default_factory=list)
    """Files that could not be written: with an ending longer than the clip's own, their names are too long."""
    part: str = PART
    """What a file is called until it is whole, another name for each output: a.jsonl and a.parquet share a folder."""

    @classmethod
    def beside(cls, output: Path) -> "SideFolder":
        """The folder of the output's name, or `<name>.captions` where that is somebody else's.

        A folder that is there and has no record is somebody else's: it may hold the clips themselves, or their
        subtitles. Raises OutputError when both names are taken.
        """
        names = output.with_suffix(""), output.with_name(f"{output.stem}.captions")
        for path in names:
            if path != output and _is_free(path):
                return cls(path, *_read(path / RECORD), part=f"{PART}-{_digest(os.fsencode(output.name))[:8]}")
        raise OutputError(
            f"{names[-1]}: is there already and vidllm did not make it, so no files are written into it; move it away, "
            "or name another output"
        )

    def check(self, endings: Collection[str]) -> None:
        """Raise OutputError if none can be written here, or one with an ending of `endings` (".srt") was not written
        here, or changed since.
        """
        place = self.path if self.path.is_dir() else self.path.parent
        check_place(place / self.part, name=self.path)
        try:
            open(self.path / RECORD, "r+b").close()
        except FileNotFoundError:
            pass  # it comes with the first file
        except OSError as error:
            raise not_writable(self.path / RECORD, error) from error
        for folder, _, names in os.walk(self.path):
            for name in sorted(names):
                path = Path(folder, name)
                if path.suffix in endings and not self._is_ours(path):
                    raise OutputError(
                        f"{path}: vidllm did not write it, or it was changed since, and may not be replaced; move it "
                        "away, or name another output"
                    )

    def owner(self, name: PurePath) -> str | None:
        """What the file `name` was made of, by whichever run; None where there is none, or nobody said."""
        return self._owners.get(str(name))

    def write(self, name: PurePath, text: str, owner: str = "") -> Path | None:
        """The file `name` below the folder, whole or not there; None, and it is `unnamed`, where its name is too long.

        Raises OutputError, too for a file not written here.
        """
        path, data = self.path / name, text.encode("utf-8", "backslashreplace")
        if os.path.exists(path) and not self._is_ours(path):
            raise OutputError(f"{path}: was changed while the run went on and is kept; move it away and run again")
        part = path.with_name(self.part)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._note(str(name), _digest(data), owner)
            part.write_bytes(data)
            os.replace(part, path)
        except OSError as error:
            part.unlink(missing_ok=True)
            if error.errno == errno.ENAMETOOLONG:
                self.unnamed.append(path)
                return None
            raise not_writable(path, error) from error
        return path

    def _is_ours(self, path: Path) -> bool:
        try:
            return _digest(path.read_bytes()) in self._digests.get(str(path.relative_to(self.path)), ())
        except OSError as error:
            raise not_writable(path, error) from error

    def _note(self, name: str, digest: str, owner: str) -> None:
        """Before the file is there: a kill in between leaves one name too many, never a file nobody knows."""
        known = self._digests.setdefault(name, set())
        if digest not in known or self._owners.get(name) != owner:
            known.add(digest)
            self._owners[name] = owner
            with open(self.path / RECORD, "a", encoding="ascii") as record:
                record.write("\n" + json.dumps([digest, name, owner]))  # no line is glued to one that was cut off


def _is_free(path: Path) -> bool:
    try:
        return os.path.lexists(path / RECORD) or not any(path.iterdir())
    except FileNotFoundError:
        return not os.path.lexists(path)  # a link to nowhere is somebody's
    except OSError:
        return False


def _read(record: Path) -> tuple[dict[str, set[str]], dict[str, str]]:
    """Digests and owners, as the record tells them; a line that was cut off tells nothing, its file was not written."""
    digests: dict[str, set[str]] = {}
    owners: dict[str, str] = {}
    try:
        lines = record.read_text(encoding="ascii", errors="replace").splitlines()
    except FileNotFoundError:
        return {}, {}
    except OSError as error:
        raise not_writable(record, error) from error
    for line in lines:
        try:
            digest, name, *owner = json.loads(line)
        except (ValueError, TypeError):
            continue
        digests.setdefault(str(name), set()).add(str(digest))
        owners.update({str(name): str(owner[0])} if owner else {})
    return digests, owners


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
