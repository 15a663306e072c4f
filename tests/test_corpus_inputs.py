"""What may be named and what becomes of it: every form of input, in a steady order, nothing dropped in silence."""

import glob
import io
import json
import os
import sys
import tarfile
from importlib import import_module
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidllm.corpus.datarows import Rows, old_caption
from vidllm.corpus.formats import array_rows
from vidllm.corpus.inputs import InputOptions, admit, in_shard, parse_shard
from vidllm.corpus.item import Item
from vidllm.corpus.listing import matching
from vidllm.corpus.webdataset import opened_path, sample_key
from vidllm.errors import ConfigError, InputError


def touch(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of clips and of other things; the current folder is above it."""
    for name in ("b.mp4", "a.MKV", "sub/c.webm", "sub/deep/d.mp4", ".hidden.mp4", ".git/e.mp4", "a.json", "notes"):
        touch(tmp_path / "clips" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*inputs: str, **options: object) -> list[str]:
    return [item.video for item in admit(inputs, InputOptions(**options))]  # type: ignore[arg-type]


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_sparse_tar(path: Path, clips: dict[str, bytes]) -> Path:
    """A tar as `tar -S --format=pax` packs clips that end with a hole of 4000 bytes: the holes are left out."""
    with tarfile.open(path, "w") as tar:
        for name, clip in clips.items():
            size = len(clip) + 4000
            packed = f"2\n0\n{len(clip)}\n{size}\n0\n".encode().ljust(512, b"\0") + clip
            member = tarfile.TarInfo(f"GNUSparseFile.0/{name}")
            member.size = len(packed)
            told = {"major": "1", "minor": "0", "name": name, "realsize": str(size)}
            member.pax_headers = {f"GNU.sparse.{what}": value for what, value in told.items()}
            tar.addfile(member, io.BytesIO(packed))
    return path


def test_a_folder_in_order_and_what_it_also_holds_is_told(corpus: Path) -> None:
    said: list[str] = []
    items = list(admit(["clips"], InputOptions(remark=said.append)))
    assert [item.video for item in items] == ["clips/a.MKV", "clips/b.mp4", "clips/sub/c.webm", "clips/sub/deep/d.mp4"]
    assert {item.root for item in items} == {"clips"}
    assert said == ["clips: 2 files are no clips by their ending and are left out (1 .json, 1 no ending)"]


def test_files_globs_and_repeats(corpus: Path) -> None:
    said: list[str] = []
    assert names("clips/**/*.mp4", "clips/notes", "clips/b.mp4", remark=said.append) == [
        "clips/b.mp4", "clips/sub/deep/d.mp4", "clips/notes",
    ]  # fmt: skip
    assert said == ["1 clips were named more than once and are captioned once"]
    touch(corpus / "odd[1].mp4")
    assert names("odd[1].mp4") == ["odd[1].mp4"]


@pytest.mark.parametrize("by_shell", [False, True])
def test_what_lies_beside_a_video_under_its_name_is_no_clip(corpus: Path, by_shell: bool) -> None:
    rows = json.dumps([{"id": 1, "video": "clips/sub/c.webm"}])
    for name in ("b.json", "b.txt", "b.en.srt", "b.mp4.vtt", "a.b.srt"):
        touch(corpus / "clips" / name, rows.encode())
    said: list[str] = []
    matched = sorted(glob.glob("clips/*.*")) if by_shell else ["clips/*.*"]
    items = list(admit([*matched, "clips/notes"], InputOptions(videos=".", remark=said.append)))
    assert [item.video for item in items] == ["clips/a.MKV", "clips/b.mp4", "clips/notes"]
    named = "the inputs" if by_shell else "clips/*.*"
    assert said == [f"{named}: 6 files beside a video of their name are left out (2 .srt, 2 .json, 1 .vtt, 1 .txt)"]
    assert names("clips/b.json", videos=".") == ["clips/sub/c.webm"]  # alone it is what it says it is


def test_what_is_missing_has_its_row(corpus: Path) -> None:
    [item] = admit(["nowhere.mp4"])
    assert item.problem == "nowhere.mp4: no such file or folder; check the spelling"
    assert item.stamp() == "0" * 16


def test_an_address_is_told_as_one(corpus: Path) -> None:
    (corpus / "rows.jsonl").write_text('{"video": "https://host/a//b.mp4"}\n')
    (corpus / "all.txt").write_text("https://host/a.mp4\n")
    found = [(item.video, item.problem) for item in admit(["rows.jsonl", "all.txt", "http://host/c.mp4"])]
    assert [video for video, _ in found] == ["https://host/a//b.mp4", "https://host/a.mp4", "http://host/c.mp4"]
    assert {problem for _, problem in found} == {
        f"{video}: is an address, and a corpus is of files; download it first" for video, _ in found
    }


def test_a_file_address_is_a_path(corpus: Path) -> None:
    url = (corpus / "clips" / "b.mp4").as_uri()
    (corpus / "rows.jsonl").write_text(json.dumps({"video": url}))
    (corpus / "all.txt").write_text(f"{url}\n")
    for source in (url, "rows.jsonl", "all.txt"):
        assert [(item.path, item.problem) for item in admit([source])] == [(str(corpus / "clips" / "b.mp4"), None)]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none/*.mp4", "matches no file"),
        ("no.jsonl", "can not be read"),
        ("no.tar", "can not be read"),
        ("no.json", "read"),
    ],
)
def test_what_can_not_be_read_is_told_before_the_first_clip(corpus: Path, name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        next(admit(["clips", name]))


def test_a_folder_of_videos_that_is_not_there_is_told_before_the_first_clip(corpus: Path) -> None:
    (corpus / "rows.jsonl").write_text('{"video": "b.mp4"}\n')
    with pytest.raises(InputError, match="clisp: no such folder; name the one"):
        next(admit(["rows.jsonl"], InputOptions(videos="clisp")))


def test_a_list_on_stdin(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = b'clips/b.mp4\r\n\nclips/sub\n{"video": "clips/a.MKV", "start": "0:02", "end": 4}\nno \xff.mp4\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    items = list(admit(["-"]))
    assert [item.video for item in items[:3]] == ["clips/b.mp4", "clips/sub/c.webm", "clips/sub/deep/d.mp4"]
    assert (items[3].video, items[3].start, items[3].end) == ("clips/a.MKV", 2.0, 4.0)
    assert items[4].problem is not None
    assert items[4].path == os.fsdecode(b"no \xff.mp4")


@pytest.mark.parametrize("by", ["list", "glob", "folder", "names"])
def test_a_data_set_that_can_not_be_read_costs_only_itself(
    corpus: Path, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only one that was named first, before any clip, ends the run: there is none yet."""
    bad = [touch(corpus / "sets" / name, b"{no row" * 300) for name in ("no.tar", "bad.json", "cut.parquet")]
    write_tar(corpus / "sets" / "z.tar", {"k.mp4": b"k"})
    listed = "".join(f"{path}\n" for path in [*bad, "gone.jsonl", "gone.tar", "sets/z.tar"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed.encode())))
    named = {"list": ["-"], "glob": ["sets/*"], "folder": ["sets"], "names": ["sets/z.tar", *map(str, bad)]}[by]
    items = list(admit(named))
    assert [item.video for item in items if item.problem is None] == ["sets/z.tar!k.mp4"]
    problems = {Path(item.video).name: item.problem for item in items if item.problem is not None}
    absent = {"gone.jsonl", "gone.tar"} if by == "list" else set()
    assert problems.keys() == ({"no.tar"} if by == "folder" else {"no.tar", "bad.json", "cut.parquet"} | absent)
    assert all(problem is not None and "\n" not in problem for problem in problems.values())
    with pytest.raises(InputError, match="can not be read as a tar"):
        next(admit([str(bad[0]), "sets/z.tar"]))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_told_and_not_waited_for(corpus: Path) -> None:
    os.mkfifo("clips/pipe.mp4")
    problems = {item.video: item.problem for item in admit(["clips"]) if item.problem is not None}
    said = "a pipe or a device, which can be read only once; write it to a file first"
    assert problems == {"clips/pipe.mp4": f"clips/pipe.mp4: {said}"}


def test_a_picture_is_no_clip(corpus: Path) -> None:
    """`ask` looks at one in another way, so that a caption of it would be none of what `ask` says."""
    touch(corpus / "clips" / "sheet.png")
    (corpus / "rows.jsonl").write_text('{"video": "clips/sheet.png"}\n')
    said: list[str] = []
    assert names("clips/*.*", remark=said.append) == ["clips/a.MKV", "clips/b.mp4"]
    assert "clips/*.*: 1 files that are still pictures are left out (1 .png)" in said
    for named in ("clips/sheet.png", "rows.jsonl"):
        [item] = admit([named])
        assert item.problem == (
            "clips/sheet.png: is a still picture, and captions are of videos; `vidllm ask` takes pictures"
        )


@pytest.mark.parametrize("by", ["list", "glob", "names"])
def test_what_vidllm_wrote_among_clips_is_no_clip(corpus: Path, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report, side files and an output of another recipe lie where `clips/**` finds them, too."""
    ours = {
        "report.html": b"<!doctype html><html lang=en><meta charset=utf-8>", "old.diff": b"a: caption_v1, 3",
        "old.jsonl": b"{}\n", "old.jsonl.admitted": b'{"recipe": "0123456789abcdef"}\n', "old/.vidllm-files": b"\n",
        "old/sub/a.txt": b"A caption.\n", "old/sub/a.json": b"{}\n",
    }  # fmt: skip
    for name, data in ours.items():
        touch(corpus / "clips" / name, data)
    for name in ("page.html", "more.jsonl"):  # somebody else's
        touch(corpus / "clips" / name, b'{"video": "b.mp4"}\n')
    files = sorted(glob.glob("clips/**", recursive=True))
    files = [name for name in files if Path(name).is_file()]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(files).encode())))
    said: list[str] = []
    found = names(*{"list": ["-"], "glob": ["clips/**"], "names": files}[by], remark=said.append)
    clips = {"clips/a.MKV", "clips/b.mp4", "clips/notes", "clips/page.html", "clips/sub/c.webm", "clips/sub/deep/d.mp4"}
    assert set(found) == clips
    assert any("6 files that vidllm wrote are left out" in line for line in said)
    assert len(names("clips/old.jsonl")) == 1  # alone it is a data set


def test_a_list_from_find_leaves_out_what_lies_beside_clips(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.json", "b.en.srt", "a.txt"):
        touch(corpus / "clips" / name)
    (corpus / "rows.json").write_text('[{"video": "clips/a.MKV", "id": 1}]')
    text = "\ufeff./clips/b.json\n./clips/b.mp4\nclips/b.en.srt\nclips/a.txt\nrows.json\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    said: list[str] = []
    assert names("-", remark=said.append) == ["./clips/b.mp4", "clips/a.MKV"]
    assert said == ["-: 3 files beside a video of their name are left out (1 .json, 1 .srt, 1 .txt)"]


def test_a_list_ended_by_nul(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(corpus / "clips" / "two\nlines.mp4")
    for end in (b"\0", b""):
        text = io.BytesIO(b"clips/b.mp4\0clips/two\nlines.mp4\0clips/a.MKV" + end)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(text))
        assert names("-") == ["clips/b.mp4", "clips/two\nlines.mp4", "clips/a.MKV"]


def test_a_list_as_powershell_saves_it_is_told_as_what_it_is(corpus: Path) -> None:
    (corpus / "all.txt").write_text("clips/b.mp4\nclips/a.MKV\n", encoding="utf-16")
    with pytest.raises(InputError, match=r"^all.txt: is a list in UTF-16; save it as UTF-8"):
        names("all.txt")


@pytest.mark.parametrize("document", ['[{"video": "b.mp4"}]', '{\n "video": "b.mp4"\n}\n', "[\n 1\n]"])
def test_a_whole_document_among_lists_is_one_line(corpus: Path, document: str) -> None:
    (corpus / "all.txt").write_text(document)
    with pytest.raises(InputError, match=r"^all.txt: is one JSON document"):
        names("all.txt")


def test_a_list_that_names_itself(corpus: Path) -> None:
    (corpus / "all.txt").write_text("./all.txt\nclips/b.mp4\nmore.txt\n")
    (corpus / "more.txt").write_text("all.txt\nclips/a.MKV\n")
    said: list[str] = []
    assert names("all.txt", remark=said.append) == ["clips/b.mp4", "clips/a.MKV"]
    assert said == [f"{name}: is a list that names itself, and left out of it" for name in ("all.txt", "all.txt")]


def test_a_mark_of_byte_order_is_no_part_of_a_name(corpus: Path) -> None:
    (corpus / "one.lst").write_text("clips/b.mp4\r\n", encoding="utf-8-sig")
    (corpus / "two.jsonl").write_text('{"video": "clips/b.mp4"}\n\n', encoding="utf-8-sig")
    assert names("one.lst", "two.jsonl") == ["clips/b.mp4", "clips/b.mp4"]


@pytest.mark.parametrize("out", ["clips/out.jsonl", "clips/out.parquet"])
def test_what_a_run_writes_is_none_of_its_inputs(
    corpus: Path, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`videos/*` names the output from the second run on: its rows would be captioned, and theirs, and theirs."""
    if out.endswith(".parquet"):
        touch(corpus / out / "_admitted.jsonl")
        touch(corpus / out / "part-000001.parquet")
    else:
        for name in (out, f"{out}.admitted", "clips/out.diff"):
            touch(corpus / name, b'{"video": "b.mp4"}\n')
    (corpus / "other.jsonl").write_text('{"video": "clips/b.mp4"}\n')
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"./{out}\nclips/b.mp4\n".encode())))
    said: list[str] = []
    matched = sorted(glob.glob("clips/[bo]*"))
    found = names(*matched, "clips/*ou*", "other.jsonl", "-", output=Path(out), remark=said.append)
    assert found == ["clips/b.mp4", "clips/b.mp4"]
    assert f"{out}: is written by this run and left out" in said
    assert names("other.jsonl", output=corpus / "x.jsonl") == ["clips/b.mp4"]


def test_links_to_folders_are_followed_once(corpus: Path) -> None:
    for name in ("far/f.mp4", "far/g/h.mp4", "clips/.kept/k.mp4"):
        touch(corpus / name)
    links = {"clips/far": "far", "clips/far2": "far", "clips/kept": "clips/.kept", "clips/sub/loop": "clips",
             "clips/sub/c2": "clips/sub", "clips/up": ".", "far/g/back": "far"}  # fmt: skip
    for name, target in links.items():
        (corpus / name).symlink_to(corpus / target)
    said: list[str] = []
    assert names("clips", remark=said.append) == [
        "clips/a.MKV", "clips/b.mp4", "clips/far/f.mp4", "clips/far/g/h.mp4", "clips/kept/k.mp4", "clips/sub/c.webm",
        "clips/sub/deep/d.mp4",
    ]  # fmt: skip
    assert any(line.startswith("clips/up: can not be entered") for line in said)
    (corpus / "clips" / "up").unlink()
    found = names("clips/**/*.mp4")
    assert len(found) == len(set(found))
    assert {os.path.realpath(name) for name in found} == {
        str(corpus.resolve() / name)
        for name in ("clips/b.mp4", "clips/sub/deep/d.mp4", "far/f.mp4", "far/g/h.mp4", "clips/.kept/k.mp4")
    }
    assert not any("loop" in name or "back" in name for name in found)


@pytest.mark.parametrize(
    "pattern",
    ["clips/**/*.mp4", "**/*.mp4", "**", "clips/**/deep/*", "*/**/d.mp4", "c*/**/[cd].*", "clips/**/",
     "./**/sub/**/d.mp4", "{}/clips/**/*", "clips/sub/*", "**/**/c.webm", "no/**/*.mp4"],
)  # fmt: skip
def test_a_pattern_matches_what_it_matches_everywhere(corpus: Path, pattern: str) -> None:
    pattern = pattern.format(corpus)
    usual = {os.path.normpath(path) for path in glob.glob(pattern, recursive=True)}
    usual -= {os.path.normpath(pattern.partition("**")[0])}  # `a/**` is a itself, too
    found = list(matching(pattern))
    assert {os.path.normpath(path) for path in found} - {"."} >= usual - {"."}
    assert len(found) == len(set(found))
    assert {os.path.normpath(path) for path in found if not pattern.endswith("/")} <= usual


def test_json_lines_of_all_sorts(corpus: Path) -> None:
    rows = [
        '{"id": 7, "video": "b.mp4", "caption": "old"}',
        '{"path": "sub/c.webm", "start": 1.5, "end": "0:03", "question": " "}',
        "not json",
        '{"title": "no path"}',
        '{"video": "gone.mp4"}',
        '{"video": "b.mp4", "start": 5, "end": 2}',
        '{"video": "b.mp4", "start": "soon"}',
        '{"video": "b.mp4", "start": 1%s}' % ("0" * 400),
        "",
        '["a"]',
        '{"video": "b.mp4", "end": 0}',
        "[" * 99_999,
        '{"id": NaN, "video": "sub/deep/d.mp4", "start": NaN, "end": 2, "caption": NaN, "question": NaN}',
        '{"video": {"path": "a.MKV", "bytes": null}, "question": "who?"}',
    ]
    (corpus / "clips" / "rows.jsonl").write_text("\n".join(rows))
    said: list[str] = []
    items = list(admit(["clips/rows.jsonl"], InputOptions(prompt_column="question", remark=said.append)))
    assert said == ["clips/rows.jsonl#1: has no question; such rows get the run's prompt"]
    assert [item.video for item in items if item.problem is None] == [
        "clips/b.mp4", "clips/sub/c.webm", "clips/sub/deep/d.mp4", "clips/a.MKV",
    ]  # fmt: skip
    first, empty = items[0].source, items[-2].source
    assert first is not None
    assert empty is not None
    assert (empty.id, empty.caption, items[-2].start, items[-2].end, items[-2].prompt) == (None, None, None, 2, None)
    assert (first.kind, first.index, first.id, first.caption) == ("jsonl", 0, "7", "old")
    assert (items[1].start, items[1].end, items[1].prompt) == (1.5, 3.0, None)
    assert items[-1].prompt == "who?"
    problems = [item.problem for item in items if item.problem]
    assert len(problems) == 9
    assert all("rows.jsonl#" in problem and "\n" not in problem for problem in problems)


@pytest.mark.parametrize("asked", [[{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "A."}], {}, 7, b"?"])
def test_a_prompt_that_is_no_text_is_told_and_not_spelled_out(corpus: Path, asked: object) -> None:
    """A conversation spelled out has the answer in it."""
    [item] = Rows("clips/rows.json", "llava", InputOptions(prompt_column="asked")).items(
        4, {"video": "b.mp4", "asked": asked}
    )
    told = f"asked holds no prompt but a value of type {type(asked).__name__}; name a column of text"
    assert item.problem == f"clips/rows.json#5: {told}"


@pytest.mark.parametrize("turn", [{"from": "gpt"}, {"from": "gpt", "value": None}, {"from": "gpt", "value": 7}])
def test_a_turn_without_words_is_no_old_caption(turn: dict[str, object]) -> None:
    assert old_caption({"conversations": [{"from": "gpt", "value": "old"}, turn]}) is None


@pytest.mark.parametrize("option", ["videos", "column", "prompt_column"])
def test_options_about_rows_are_refused_where_there_can_be_none(corpus: Path, option: str) -> None:
    (corpus / "all.txt").write_text("clips/b.mp4\n")
    for inputs in (["clips/b.mp4"], ["clips"], ["clips/*.mp4", "clips"]):
        with pytest.raises(ConfigError, match=f"{option} is for lists and data sets"):
            names(*inputs, **{option: "clips"})
    for inputs in (["all.txt", "clips"], ["*.txt"], ["clips/*"]):
        assert names(*inputs, **{option: "."})


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet", "-"])
def test_a_llava_data_set(corpus: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = [{"from": "human", "value": "<image>\nDescribe."}, {"from": "gpt", "value": "A circle."}]
    rows = [
        {"id": "x", "video": "b.mp4", "conversations": talk},
        {"id": "y", "image": "a.png", "conversations": talk},
        {"id": "z", "conversations": talk},
        {"id": "w", "video": "gone.mp4", "conversations": talk},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    name = "-" if kind == "-" else f"train.{kind}"
    if kind == "parquet":
        pytest.importorskip("pyarrow")
        import_module("pyarrow.parquet").write_table(import_module("pyarrow").Table.from_pylist(rows), name)
    elif kind == "-":
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    else:
        (corpus / name).write_text(lines if kind == "jsonl" else json.dumps(rows, indent=2))
    said: list[str] = []
    items = list(admit([name], InputOptions(videos="clips", remark=said.append)))
    assert [item.video for item in items] == ["clips/b.mp4", "clips/gone.mp4"]
    assert items[0].source is not None
    made = {"json": "llava", "parquet": "parquet"}.get(kind, "jsonl")
    assert (items[0].source.kind, items[0].source.id, items[0].source.caption) == (made, "x", "A circle.")
    assert items[1].problem is not None
    assert said == [f"{name}: 2 rows name no video and are left out"]


def test_that_parquet_can_not_be_read_here_is_told_before_the_first_clip(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    touch(corpus / "rows.parquet")
    with pytest.raises(ConfigError, match="pip install"):
        next(admit(["clips", "rows.parquet"]))


def test_above_a_linked_folder_is_above_where_the_link_leads(corpus: Path) -> None:
    (corpus / "disk" / "sets").mkdir(parents=True)
    (corpus / "sets").symlink_to("disk/sets")
    for name in ("disk/more/b.mp4", "more/b.mp4", "disk/sets/a.mp4"):
        touch(corpus / name)
    (corpus / "sets" / "all.txt").write_text("../more/b.mp4\n../sets/./a.mp4\n")
    first, second = (item.path for item in admit(["sets/all.txt"]))
    assert os.path.realpath(first) == str(corpus / "disk" / "more" / "b.mp4")
    assert second == "sets/a.mp4"


def test_the_same_clip_in_two_rows_is_two_places(corpus: Path) -> None:
    (corpus / "rows.jsonl").write_text('{"id": 1, "video": "clips/b.mp4"}\n{"id": 2, "video": "clips/b.mp4"}\n')
    assert len({item.key for item in admit(["rows.jsonl"])}) == 2


def test_videos_inside_a_data_set_are_told_as_that(corpus: Path) -> None:
    """As Hugging Face's data sets hold them; a file that is there is taken all the same."""
    held = {"bytes": b"mp4"}
    inside = [{**held, "path": "clips/b.mp4"}, {**held, "path": "gone.mp4"}, held, b"mp4"]
    items = list(Rows("rows.parquet", "parquet", InputOptions()).all(enumerate({"video": video} for video in inside)))
    said = "its video is inside the data set, and a corpus is of files; write its bytes to a file and name that"
    assert [item.problem for item in items] == [
        None, f"gone.mp4: {said}", f"rows.parquet#3: {said}", f"rows.parquet#4: {said}",
    ]  # fmt: skip


def test_parquet_rows(corpus: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"clip": ["clips/b.mp4", "clips/a.MKV", None], "start": [0.0, 1.0, 2.0], "id": [1, 2, 3]})
    parquet.write_table(table, corpus / "rows.parquet")
    items = list(admit(["rows.parquet"], InputOptions(column="clip")))
    assert [item.video for item in items[:2]] == ["clips/b.mp4", "clips/a.MKV"]
    assert items[1].start == 1.0
    assert items[2].problem is not None
    odd = arrow.array([1_700_000_000_123_456_789] * 3, arrow.timestamp("ns"))  # as pandas writes times
    ends = arrow.array([0, 2, 4, 6], arrow.int32()).buffers()[1]
    text = arrow.Array.from_buffers(arrow.string(), 3, [None, ends, arrow.py_buffer(b"abc\xffef")])
    parquet.write_table(table.append_column("at", odd).append_column("note", text), corpus / "odd.parquet")
    again = list(admit(["odd.parquet"], InputOptions(column="clip")))
    assert [(item.video, item.start) for item in again[:2]] == [(item.video, item.start) for item in items[:2]]
    far = {"at": arrow.array([1 << 40] * 3, arrow.timestamp("s"))}  # some 35,000 years from here
    exact = table.column("start").cast(arrow.decimal128(6, 2))
    parquet.write_table(arrow.table({"clip": table.column("clip"), "start": exact, **far}), corpus / "far.parquet")
    other = list(admit(["far.parquet"], InputOptions(column="clip")))
    assert [(item.video, item.start) for item in other[:2]] == [(item.video, item.start) for item in items[:2]]
    (corpus / "many.parquet").mkdir()
    for name in ("2.parquet", "1.parquet", "_3.parquet", "lang=en/1.parquet", "_temporary/4.parquet"):
        touch(corpus / "many.parquet" / name)
        parquet.write_table(arrow.table({"video": [f"{Path(name).name}.mp4"]}), corpus / "many.parquet" / name)
    parts = ["1.parquet", "2.parquet", "lang=en/1.parquet"]
    (corpus / "sets.txt").write_text("many.parquet\n")
    for name in ("many.parquet", "many.parquet/", "sets.txt"):
        assert names(name) == [f"many.parquet/{part}.mp4" for part in parts]
    touch(corpus / "bad.parquet", b"PAR1 no")
    with pytest.raises(InputError, match="can not be read as Parquet"):
        list(admit(["bad.parquet"]))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_gives_its_members_one_by_one(corpus: Path, mode: str) -> None:
    members = {
        "x/000.mp4": b"first clip", "x/000.txt": b"old words", "x/000.json": b'{"caption": "older"}',
        "x/001.json": b'{"caption": "in json"}', "x/001.webm": b"second", "readme.md": b"#", "x/002.mp4": b"third",
        "x/002.side.mp4": b"fourth",
    }  # fmt: skip
    path = write_tar(corpus / ("s.tar.gz" if mode == "w:gz" else "s.tar"), members, mode)
    items = list(admit([path.name]))
    assert [item.member for item in items] == ["x/000.mp4", "x/001.webm", "x/002.mp4", "x/002.side.mp4"]
    assert [item.source.caption for item in items if item.source] == ["old words", "in json", None, None]
    assert items[0].video == f"{path.name}!x/000.mp4"
    for item in items:
        with opened_path(item) as extracted:
            assert extracted.read_bytes() == members[item.member or ""]
            assert extracted.suffix == Path(item.member or "").suffix
        assert not extracted.exists()


def test_holes_that_a_tar_leaves_out_are_in_the_clip_again(corpus: Path) -> None:
    """Else its bytes would be those of what comes behind it."""
    write_sparse_tar(corpus / "s.tar", {"a.mp4": b"first", "b.mp4": b"second" * 99})
    for item, data in zip(admit(["s.tar"]), (b"first", b"second" * 99), strict=True):
        with opened_path(item) as extracted:
            assert extracted.read_bytes() == data + bytes(4000)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_behind_a_tar_is_told(corpus: Path, mode: str) -> None:
    whole = write_tar(corpus / "s.tar", {"a.mp4": b"first"}, mode).read_bytes()
    (corpus / "s.tar").write_bytes(whole + write_tar(corpus / "t.tar", {"b.mp4": b"second"}, mode).read_bytes())
    clip, problem = admit(["s.tar"])
    assert (clip.member, clip.problem) == ("a.mp4", None)
    assert "another tar or damage follows; unpack it all" in str(problem.problem)
    if mode == "w":
        (corpus / "s.tar").write_bytes(whole + b"signed" * 99)
        assert len(list(admit(["s.tar"]))) == 1


@pytest.mark.parametrize(("begin", "end"), [(1024, 1025), (1024, 2048), (3072, 3073)])
def test_what_follows_damage_in_a_tar_is_not_left_out_in_silence(corpus: Path, begin: int, end: int) -> None:
    """`tarfile` takes a header that it can not read, and zeros in the place of one, for the tar's end."""
    path = write_tar(corpus / "s.tar", {f"{n}.mp4": bytes([n + 1]) * 9 for n in range(4)})
    whole = path.read_bytes()
    path.write_bytes(whole[:begin] + bytes(end - begin) + whole[end:])
    *clips, problem = admit(["s.tar"])
    assert [clip.member for clip in clips] == [f"{n}.mp4" for n in range(begin // 1024)]
    assert str(problem.problem).startswith(f"s.tar: the tar breaks off after {begin // 1024} samples (another tar or")


def test_a_tar_that_was_cut_between_two_members_is_told(corpus: Path) -> None:
    path = write_tar(corpus / "s.tar", {f"{n}.mp4": bytes([n + 1]) * 9 for n in range(4)})
    path.write_bytes(path.read_bytes()[:2048])
    *clips, problem = admit(["s.tar"])
    assert [clip.member for clip in clips] == ["0.mp4", "1.mp4"]
    assert str(problem.problem).startswith("s.tar: the tar breaks off after 2 samples (its end is missing")


def test_a_tar_that_breaks_off_gives_what_it_has(corpus: Path) -> None:
    path = write_tar(corpus / "s.tar", {f"{n}.mp4": bytes(3000) for n in range(5)})
    path.write_bytes(path.read_bytes()[:8000])
    items = list(admit(["s.tar"]))
    assert [item.member for item in items[:2]] == ["0.mp4", "1.mp4"]
    assert len(items) == 4
    *_, broken, tar = items
    assert (broken.member, broken.problem, tar.video) == ("2.mp4", None, "s.tar")
    with pytest.raises(InputError, match="can not be extracted"), opened_path(broken):
        pass
    holes = write_sparse_tar(corpus / "holes.tar", {"a.mp4": b"first", "b.mp4": b"other one"})
    holes.write_bytes(holes.read_bytes().replace(b"\n9\n4009\n", b"\nx\n4009\n"))
    assert [item.problem is None for item in admit(["holes.tar"])] == [True, False]
    touch(corpus / "no.tar", b"no tar at all" * 100)
    with pytest.raises(InputError, match="can not be read as a tar"):
        list(admit(["no.tar"]))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("s.TAR", ""), ("s.tgz", "gz"), ("s.Tar.XZ", "xz"), ("s.txz", "xz"), ("s.tar.bz2", "bz2"), ("s.tbz2", "bz2")],
)
def test_a_tar_is_one_by_each_of_its_names(corpus: Path, name: str, kind: str) -> None:
    (corpus / "tars").mkdir()
    write_tar(corpus / "tars" / name, {"a.mp4": b"first"}, f"w:{kind}")
    for named in ("tars", f"tars/{name}"):
        [item] = admit([named])
        assert item.video == f"tars/{name}!a.mp4"
        with opened_path(item) as extracted:
            assert extracted.read_bytes() == b"first"


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_members_of_one_name_are_each_their_own(corpus: Path, mode: str) -> None:
    """xz under the name of a plain tar: what it is, the bytes say."""
    path = corpus / ("s.tar.gz" if mode == "w:gz" else "s.tar")
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in (("a.mp4", b"first"), ("b.mp4", b"other"), ("a.mp4", b"again"), ("a.mp4", b"thrice")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    items = list(admit([path.name]))
    assert len({item.key for item in items}) == 4
    for item, data in zip(items, (b"first", b"other", b"again", b"thrice"), strict=True):
        with opened_path(item) as extracted:
            assert extracted.read_bytes() == data


def test_a_tar_that_got_captions_since_it_was_listed_still_gives_the_right_member(corpus: Path) -> None:
    name = "long/" * 30 + "b.mp4"
    path = write_tar(corpus / "s.tar", {"a.mp4": b"first", name: b"second"})
    items = list(admit(["s.tar"]))
    write_tar(path, {"a.mp4": b"first", "a.caption_v1.txt": b"c" * 2000, name: b"second"})
    for item, data in zip(items, (b"first", b"second"), strict=True):
        with opened_path(item) as extracted:
            assert extracted.read_bytes() == data
    write_tar(path, {"a.mp4": b"first"})
    with pytest.raises(InputError, match="no longer in it"), opened_path(items[1]):
        pass


def test_a_clip_before_the_break_is_there_though_its_caption_is_not(corpus: Path) -> None:
    path = write_tar(corpus / "s.tar", {"a.mp4": bytes(3000), "a.txt": bytes(3000)})
    path.write_bytes(path.read_bytes()[: 512 + 3072 + 512 + 100])
    clip, tar = admit(["s.tar"])
    assert "breaks off after 1 samples" in str(tar.problem)
    with opened_path(clip) as extracted:
        assert extracted.read_bytes() == bytes(3000)


def test_a_link_inside_a_tar_is_told(corpus: Path) -> None:
    """The others keep the places that they have without it."""
    with tarfile.open(corpus / "s.tar", "w") as tar:
        for name in ("a.mp4", "b.mp4", "c.txt", "d.mp4"):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = (tarfile.LNKTYPE, "a.mp4") if name in ("b.mp4", "c.txt") else (b"0", "")
            tar.addfile(member)
    link, first, last = admit(["s.tar"])
    assert (link.video, "is a link to a.mp4" in str(link.problem)) == ("s.tar!b.mp4", True)
    assert [item.source.index for item in (first, last) if item.source] == [0, 1]


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_member_with_a_long_name_is_found_where_it_lies(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, kind: int
) -> None:
    """Not by reading the tar from its beginning, for each of its members again."""
    clips = {"long/" * 30 + "a.mp4": b"first", "咖啡.mp4": b"second", "b.mp4": b"third"}
    with tarfile.open(corpus / "s.tar", "w", format=kind) as tar:
        for name, data in clips.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    items = list(admit(["s.tar"]))
    monkeypatch.setattr("vidllm.corpus.webdataset.walk", lambda tar: pytest.fail("the tar is read again"))
    for item in items:
        with opened_path(item) as extracted:
            assert extracted.read_bytes() == clips[item.member or ""]


def test_tars_inside_a_folder(corpus: Path) -> None:
    write_tar(corpus / "clips" / "z.tar", {"k.mp4": b"k"})
    assert names("clips")[2:] == ["clips/z.tar!k.mp4", "clips/sub/c.webm", "clips/sub/deep/d.mp4"]


@given(st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=30), st.integers(1, 7))
def test_shards_are_a_partition(videos: list[str], count: int) -> None:
    for video in videos:
        assert [in_shard(video, number, count) for number in range(1, count + 1)].count(True) == 1


def test_shards_of_a_corpus_share_it_and_limits_count_after(corpus: Path) -> None:
    for number in range(40):
        touch(corpus / "many" / f"{number}.mp4")
    shares = [names("many", shard=(number, 3)) for number in (1, 2, 3)]
    assert sorted(chain.from_iterable(shares)) == sorted(names("many"))
    assert min(map(len, shares)) > 4
    assert names("many", shard=(2, 3), limit=2) == shares[1][:2]


@pytest.mark.parametrize("words", ["0/3", "4/3", "1", "1/", "/3", "a/b", "1/0", "-1/3"])
def test_shards_that_are_none(words: str) -> None:
    with pytest.raises(ConfigError, match="is no shard"):
        parse_shard(words)


def test_a_range_that_can_not_be() -> None:
    with pytest.raises(ConfigError, match="empty"):
        Item(video="a", path="a", start=3.0, end=3.0)


@given(st.lists(st.dictionaries(st.text(max_size=5), st.one_of(st.text(), st.integers(), st.none())), max_size=20))
@settings(deadline=None)
def test_an_array_is_read_bit_by_bit_as_json_reads_it(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]
) -> None:
    from vidllm.corpus import formats

    path = tmp_path_factory.mktemp("array") / "rows.json"
    before, formats.READ_CHARS = formats.READ_CHARS, 7
    try:
        for indent in (None, 2):
            path.write_text(json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8")
            assert list(array_rows(path)) == rows
    finally:
        formats.READ_CHARS = before


@pytest.mark.parametrize("text", ["", "hello", '[{"a": 1}, {"b"', '[{"a": 1} x]', "[{}", "[" * 99_999])
def test_an_array_that_is_none_says_where(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(InputError, match=r"bad\.json"):
        list(array_rows(tmp_path / "bad.json"))


def test_keys_of_samples() -> None:
    assert [sample_key(n) for n in ("a.mp4", "x.y/a.b.mp4", "./a.mp4")] == ["a", "x.y/a", "./a"]


def test_a_stamp_tells_a_change(tmp_path: Path) -> None:
    path = touch(tmp_path / "a.mp4")
    item = Item(video="a.mp4", path=str(path))
    before = item.stamp()
    assert before == item.stamp() != Item(video="a.mp4", path=str(path), member="m", offset=512).stamp()
    touch(path, b"other")
    assert item.stamp() != before
