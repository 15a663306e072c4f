"""After the run: the proof, side files, captions back in their data sets, and the page; each can say no."""

import html.parser
import io
import json
import os
import re
import sys
import tarfile
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.caption_rows import RECIPE
from tests.conftest import write_clip
from tests.test_corpus_identity import remux
from tests.test_corpus_inputs import write_sparse_tar, write_tar
from vidllm.answer import Usage
from vidllm.corpus.caption import CaptionReport
from vidllm.corpus.diff import NewCaptions, Recaptioned, write_diff
from vidllm.corpus.extras import Extras, check_extras, write_extras
from vidllm.corpus.identity import content_id
from vidllm.corpus.inputs import InputOptions, admit
from vidllm.corpus.item import Item
from vidllm.corpus.output import Output
from vidllm.corpus.reading import standing_rows
from vidllm.corpus.report import Report, cause_of
from vidllm.corpus.rows import CaptionRow, RowFrame
from vidllm.corpus.scenes import Cut
from vidllm.corpus.sidefiles import Format, SideFiles, parse_formats
from vidllm.corpus.sidefolder import RECORD, SideFolder
from vidllm.corpus.stores import manifest_of
from vidllm.corpus.verify import opened_row, verify
from vidllm.corpus.webdataset import opened_path
from vidllm.errors import ConfigError, InputError, OutputError
from vidllm.video.info import probe


def seen_row(item: Item, caption: str = "Stripes change.", times: tuple[int, ...] = (0, 10, 20)) -> CaptionRow:
    """The row a run would write, its frames really in the file."""
    with opened_path(item) as path:
        info, id = probe(path), content_id(path, item.start, item.end)
    first = int(info.index_at([item.start or 0.0])[0])
    frames = tuple(RowFrame(time=float(info.pts_seconds[first + n]), tokens=36) for n in times)
    return replace(
        CaptionRow.of(item, id=id, recipe=RECIPE.digest, status="ok"), caption=caption, frames=frames, model="m",
        prompt=RECIPE.prompt, seconds=0.5, finish_reason="stop",
        usage=Usage(video_tokens=108, text_tokens=9, answer_tokens=5, context=1024, rope_factor=1.0),
    )  # fmt: skip


def item_of(path: Path, **rest: float) -> Item:
    return Item(video=str(path), path=str(path), **rest)  # type: ignore[arg-type]


@pytest.fixture
def written(clips: dict[str, Path], tmp_path: Path) -> Path:
    """An output of four rows about three clips, one of them undecodable, one a range."""
    out = tmp_path / "out.jsonl"
    (tmp_path / "bad.mp4").write_text("no video")
    good = [item_of(clips["constant"]), item_of(clips["intra"]), item_of(clips["intra"], start=1.0, end=2.0)]
    bad = item_of(tmp_path / "bad.mp4")
    with Output.open(out, RECIPE) as output:
        for item in (*good, bad):
            output.admitted(item)
        for item in good:
            output.add(seen_row(item))
        output.add(
            CaptionRow.of(bad, id="0" * 32, recipe=RECIPE.digest, status="undecodable", error="bad.mp4: no video")
        )
    return out


def lines_of(out: Path) -> list[str]:
    return out.read_text().splitlines()


def test_a_whole_output_is_proven(written: Path) -> None:
    report = verify(written)
    assert report.ok, report.problems
    assert (report.admitted, report.frames_checked) == (4, 9)
    assert report.statuses == {"ok": 3, "undecodable": 1}


def changed(field: str, value: object, line: int = 0) -> Callable[[Path], None]:
    def change(out: Path) -> None:
        rows = [json.loads(text) for text in lines_of(out)]
        rows[line][field] = value
        out.write_text("".join(json.dumps(row) + "\n" for row in rows))

    return change


def without(line: int) -> Callable[[Path], None]:
    return lambda out: (
        out.write_text("".join(f"{text}\n" for n, text in enumerate(lines_of(out)) if n != line)) and None
    )


def swapped(out: Path) -> None:
    """The fault that shipped for five releases elsewhere: what belongs to one clip stands in another's row."""
    rows = [json.loads(text) for text in lines_of(out)]
    rows[0]["id"], rows[1]["id"] = rows[1]["id"], rows[0]["id"]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))


def captions_swapped(out: Path) -> None:
    """Everything is of the right clip but what is said of it."""
    rows = [json.loads(text) for text in lines_of(out)]
    rows[0]["caption"], rows[1]["caption"] = "Nothing happens.", rows[0]["caption"]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))


def keys_swapped_before_rows_had_checks(out: Path) -> None:
    """Every row is whole, and the wrong clip would count as done."""
    rows = [{**json.loads(text), "check": None} for text in lines_of(out)]
    rows[0]["key"], rows[1]["key"] = rows[1]["key"], rows[0]["key"]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))


def frames_gone_before_rows_had_checks(out: Path) -> None:
    rows = [{**json.loads(text), "frames": []} for text in lines_of(out)]
    out.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "check"}) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (without(1), "was admitted under recipe .* and has no row"),
        (lambda out: out.write_text(out.read_text() + lines_of(out)[0] + "\n"), "has two rows, ok and ok"),
        (lambda out: out.write_text(out.read_text() + "hello\n"), r"out.jsonl:5: is no caption row"),
        (changed("frames", [{"time": "0:01", "tokens": 3}]), r"is no caption row \(a frame's time is '0:01'"),
        (changed("start", float("nan")), r"out.jsonl:1: is no caption row \(start is 'nan'\)"),
        (changed("usage", {"text_tokens": 3}), r"out.jsonl:1: is no caption row \(video_tokens is missing\)"),
        (changed("source", {"file": 3}), r"out.jsonl:1: is no caption row \(file is '3'\)"),
        (changed("caption", None), r"out.jsonl:1: is no caption row \(caption is 'None'\)"),
        (changed("caption", "["), "was changed since it was written"),
        (lambda out: out.write_text(f"{'[' * 99_999}\n{out.read_text()}"), "out.jsonl:1: is no caption row .*nested"),
        (changed("key", "f" * 32), "never admitted"),
        (changed("caption", " "), "is ok and has no caption"),
        (changed("error", None, 3), "is undecodable without a cause"),
        (changed("frames", [{"time": 0.0123, "tokens": 3}]), "has no frame at 0:00.012"),
        (changed("frames", [{"time": 0.52, "tokens": 3}], 2), "at 0:00.520, outside its range"),
        (changed("frames", [{"time": 2.0, "tokens": 3}], 2), "at 0:02.000, outside its range"),
        (swapped, "is another video now"),
        (keys_swapped_before_rows_had_checks, "has the key of another clip"),
        (changed("status", "duplicate", 1), "does not say of what"),
        (changed("frames", []), "is ok and names no frame that was seen"),
        (frames_gone_before_rows_had_checks, "is ok and names no frame that was seen"),
        (changed("prompt", "what happens?"), "was changed since it was written"),
        (captions_swapped, "was changed since it was written"),
    ],
)
def test_what_is_wrong_is_named(written: Path, harm: Callable[[Path], None], says: str) -> None:
    harm(written)
    report = verify(written)
    assert not report.ok
    assert [problem for problem in map(str, report.problems) if re.search(says, problem)], report.problems


def test_rows_of_before_there_were_checks_are_proven_without(written: Path) -> None:
    rows = [json.loads(text) for text in lines_of(written)]
    assert all(re.fullmatch("[0-9a-f]{16}", row.pop("check")) for row in rows)
    written.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert verify(written).ok


def test_a_check_is_the_same_by_every_road(clips: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    row = replace(seen_row(item_of(clips["intra"], start=1, end=2), caption='"Ü" \U0001f600\n\t'), seconds=0.1234567)
    for out in (tmp_path / "out.jsonl", tmp_path / "out.parquet"):
        with Output.open(out, RECIPE) as output:
            output.add(row)
        [back] = standing_rows(out)
        assert back.check == back.checksum() == row.checksum()
        assert verify(out).ok, verify(out).problems


def test_a_video_that_is_gone_or_replaced_is_named(clips: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(clips["constant"].read_bytes())
    with Output.open(tmp_path / "out.jsonl", RECIPE) as output:
        output.add(seen_row(item_of(path)))
    assert verify(tmp_path / "out.jsonl").ok
    path.write_bytes(clips["single_key"].read_bytes())
    [problem] = verify(tmp_path / "out.jsonl").problems
    assert "is another video now" in problem.why
    path.unlink()
    [problem] = verify(tmp_path / "out.jsonl").problems
    assert "no such file" in problem.why
    assert verify(tmp_path / "out.jsonl", frames=False).ok


def cut_into(parts: list[Item]) -> Cut:
    return Cut("scenes", parts[0].stamp(), tuple((part.start, part.end) for part in parts))


def test_cuts_made_anew_wait_for_the_new_parts_only(clips: dict[str, Path], tmp_path: Path) -> None:
    whole, out = item_of(clips["constant"]), tmp_path / "out.jsonl"
    old = [replace(whole, start=0.0, end=1.0), replace(whole, start=1.0, end=2.4)]
    new = [replace(whole, start=0.0, end=1.2), replace(whole, start=1.2, end=2.4)]
    with Output.open(out, RECIPE) as output:
        output.admitted(whole)
        output.cut(whole, cut_into(old))
        output.add(seen_row(old[0]))
    [problem] = verify(out).problems
    assert problem.where == f"{whole.video} [0:01.00-0:02.40)"
    with Output.open(out, RECIPE) as output:
        output.cut(whole, cut_into(new))
        for part in new:
            output.add(seen_row(part))
    assert verify(out).ok, verify(out).problems
    assert verify(out).admitted == 3  # the first part of the old cut had its row already


def test_a_cut_that_a_kill_broke_off_leaves_nothing_to_wait_for(clips: dict[str, Path], tmp_path: Path) -> None:
    whole, out = item_of(clips["constant"]), tmp_path / "out.jsonl"
    halves = [replace(whole, start=0.0, end=1.0), replace(whole, start=1.0, end=2.4)]
    with Output.open(out, RECIPE) as output:
        output.cut(whole, cut_into(halves))
    lines = manifest_of(out).read_bytes().splitlines(keepends=True)
    for number in range(len(lines)):
        out.unlink()
        manifest_of(out).write_bytes(b"".join(lines[:number]))
        with Output.open(out, RECIPE) as output:
            output.cut(whole, cut_into([whole]))
            output.add(seen_row(whole))
        assert verify(out, frames=False).ok, number


def test_a_clip_that_stayed_whole_is_waited_for(clips: dict[str, Path], tmp_path: Path) -> None:
    """Too short to be cut; or cut once, and not any more: then its parts are no longer waited for."""
    whole, out = item_of(clips["constant"]), tmp_path / "out.jsonl"
    parts = [replace(whole, start=0.0, end=1.0), replace(whole, start=1.0, end=2.4)]
    for cut, waited in (([whole], {whole.video[-17:]}), (parts, {"[0:00.00-0:01.00)", "[0:01.00-0:02.40)"})):
        with Output.open(out, RECIPE) as output:
            output.cut(whole, cut_into(cut))
        assert {problem.where[-17:] for problem in verify(out).problems} == waited
    for _ in range(2):
        with Output.open(out, RECIPE) as output:
            output.admitted(whole)
        [problem] = verify(out).problems
        assert problem.where == whole.video
    assert len(lines_of(manifest_of(out))) == 7  # the recipe, three clips, and how it was cut three times
    with Output.open(out, RECIPE) as output:
        output.add(seen_row(whole))
    assert verify(out).ok, verify(out).problems


def test_the_frame_on_screen_when_a_range_begins_is_the_ranges_own(clips: dict[str, Path], tmp_path: Path) -> None:
    """25 frames a second: at 1.03 s the frame of 1.0 s is on screen, and at 1.05 s that of 1.04 s."""
    for start, ok in ((1.03, True), (1.05, False)):
        row = seen_row(item_of(clips["constant"], start=start, end=2.0))
        with Output.open(tmp_path / f"{ok}.jsonl", RECIPE) as output:
            output.add(replace(row, frames=(RowFrame(time=1.0, tokens=1),)))
        assert verify(tmp_path / f"{ok}.jsonl").ok is ok


def test_copies_of_a_caption_must_be_copies(clips: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(clips["constant"].read_bytes())
    original = seen_row(item_of(clips["constant"]))
    twin = replace(seen_row(item_of(copy)), status="duplicate", duplicate_of=original.video)
    for row, ok in ((twin, True), (replace(twin, caption="Something else."), False)):
        out = tmp_path / f"{ok}.jsonl"
        with Output.open(out, RECIPE) as output:
            output.add(original)
            output.add(row)
        assert verify(out).ok is ok


def test_a_copy_names_a_clip_of_the_same_content(clips: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(clips["constant"].read_bytes())
    original, other = seen_row(item_of(clips["constant"])), seen_row(item_of(clips["single_key"]))
    for name, ok in ((original.video, True), (other.video, False), ("gone.mp4", False), (str(copy), False)):
        out = tmp_path / "out.jsonl"
        with Output.open(out, RECIPE) as output:
            for row in (original, other, replace(seen_row(item_of(copy)), status="duplicate", duplicate_of=name)):
                output.add(row)
        report = verify(out)
        said = f"is a duplicate of {name}, which has no row of the same content; remove the row and run again"
        assert [(problem.where, problem.why) for problem in report.problems] == ([] if ok else [(str(copy), said)])
        out.unlink()
        manifest_of(out).unlink()


@pytest.mark.parametrize("becomes", ["ok", "undecodable"])
def test_a_copy_stays_one_when_another_video_takes_the_place_of_its_original(
    clips: dict[str, Path], tmp_path: Path, becomes: str
) -> None:
    path, copy, out = tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "out.jsonl"
    for each in (path, copy):
        each.write_bytes(clips["constant"].read_bytes())
    with Output.open(out, RECIPE) as output:
        output.add(seen_row(item_of(path)))
        output.add(replace(seen_row(item_of(copy)), status="duplicate", duplicate_of=str(path)))
    path.write_bytes(clips["single_key"].read_bytes())
    with Output.open(out, RECIPE) as output:
        row = seen_row(item_of(path), caption="Another video.")
        output.add(row if becomes == "ok" else replace(row, status="undecodable", error="no video", frames=()))
    assert verify(out).problems == ()


def test_a_copy_in_another_container_of_what_was_refused_is_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its frames are those of the first, whose times its container has rounded; so are a duplicate's."""
    monkeypatch.setattr("tests.conftest.TICKS", 90_000)
    clip = write_clip(tmp_path / "clip.mp4", [number / 30 for number in range(30)])
    copy = remux(clip, tmp_path / "copy.mkv")
    first = replace(seen_row(item_of(clip), times=(0, 1, 2)), status="error", caption="I can not.", error="no")
    row = CaptionRow.of(item_of(copy), id=first.id, recipe=RECIPE.digest, status="error")
    with Output.open(tmp_path / "out.jsonl", RECIPE) as output:
        output.add(first)
        output.add(replace(row, error="no", frames=first.frames, duplicate_of=first.video))
    assert verify(tmp_path / "out.jsonl").problems == ()


def test_without_a_manifest_nothing_is_proven(written: Path) -> None:
    manifest_of(written).unlink()
    with pytest.raises(InputError, match=r"out\.jsonl\.admitted is missing"):
        verify(written)
    for look in (verify, lambda path: list(standing_rows(path))):
        with pytest.raises(InputError, match="no such output"):
            look(written.with_name("other.jsonl"))
        with pytest.raises(InputError, match="is a folder; name the output"):
            look(written.parent)


def test_the_command_prints_and_its_exit_code_is_the_truth(written: Path) -> None:
    import typer

    from vidllm_cli.caption_verify import caption_verify

    app = typer.Typer()
    app.command()(caption_verify)
    done = CliRunner().invoke(app, [str(written), "--no-frames"], standalone_mode=False)
    assert done.return_value == 0
    assert done.output.endswith("4 clips admitted, ok 3, undecodable 1: every clip has one status\n")
    gone = written.with_name("gone.jsonl")
    done = CliRunner().invoke(app, [str(gone), str(written), "--no-frames"], standalone_mode=False)
    assert done.return_value == 1
    assert done.output.startswith(f"{gone}: no such output")
    assert done.output.endswith("4 clips admitted, ok 3, undecodable 1: every clip has one status\n")  # nevertheless
    without(0)(written)
    done = CliRunner().invoke(app, [str(written), "--json"], standalone_mode=False)
    assert done.return_value == 1
    [told] = json.loads(done.stdout)["outputs"]
    assert told["ok"] is False
    assert len(told["problems"]) == 1


def test_a_problem_is_one_line_whatever_its_clip_is_called(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vidllm_cli.main import main

    item = item_of(tmp_path / "a\n\x1b[31mb\udcff.mp4")
    with Output.open(tmp_path / "out.jsonl", RECIPE) as output:
        output.add(CaptionRow.of(item, id="0" * 32, recipe=RECIPE.digest, status="error"))
    assert main(["caption-verify", str(tmp_path / "out.jsonl")]) == 1
    problem, _ = capsys.readouterr().out.splitlines()
    assert problem == f"{tmp_path}/a \\x1b[31mb\\udcff.mp4: is error without a cause"


def test_parquet_is_proven_too(clips: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    out = tmp_path / "out.parquet"
    with Output.open(out, RECIPE) as output:
        output.add(seen_row(item_of(clips["constant"])))
        output.admitted(item_of(clips["intra"]))
        assert len(list(standing_rows(out))) == 1  # while the run goes on
    assert [problem.where for problem in verify(out).problems] == [str(clips["intra"])]


# Side files ----------------------------------------------------------------------------------------------------------


def ranged(folder: Path, name: str, ranges: list[tuple[float | None, float | None, str]]) -> list[CaptionRow]:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(name.encode())
    rows = []
    for start, end, caption in ranges:
        item = Item(video=str(path), path=str(path), start=start, end=end, root=str(folder))
        row = CaptionRow.of(item, id=item.key, recipe=RECIPE.digest, status="ok")
        rows.append(replace(row, caption=caption, frames=(RowFrame(time=end or 7.25, tokens=1),)))
    return rows


def test_side_files_mirror_the_tree(tmp_path: Path) -> None:
    rows = ranged(tmp_path / "in", "sub/film.mkv", [(12.0, 3700.5, "B & <b> ---> c"), (0.0, 12.0, "First\nline.")])
    rows += ranged(tmp_path / "in", "a.mp4", [(None, None, "One.")])
    rows += ranged(tmp_path / "in", "a.webm", [(None, None, "Two.")])
    with Output.open(tmp_path / "out.jsonl", RECIPE) as output:
        for row in rows:
            output.add(row)
    target = tmp_path / "side"
    written = write_side_files(standing_rows(tmp_path / "out.jsonl"), parse_formats("all"), SideFolder(target))
    names = sorted(str(path.relative_to(target)) for path in written)
    assert names == sorted(
        f"{stem}.{kind}" for stem in ("sub/film", "a.mp4", "a.webm") for kind in ("srt", "vtt", "txt", "tsv", "json")
    )
    assert (target / "sub/film.srt").read_text() == (
        "1\n00:00:00,000 --> 00:00:12,000\nFirst line.\n\n2\n00:00:12,000 --> 01:01:40,500\nB & <b> -> c\n"
    )
    assert (target / "sub/film.vtt").read_text() == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:12.000\nFirst line.\n\n00:00:12.000 --> 01:01:40.500\nB &amp; &lt;b> -> c\n"
    )
    assert (target / "sub/film.tsv").read_text() == (
        "start\tend\ttext\n0\t12000\tFirst line.\n12000\t3700500\tB & <b> ---> c\n"
    )
    assert (target / "a.mp4.txt").read_text() == "One.\n"
    segments = json.loads((target / "a.webm.json").read_text())["segments"]
    assert segments == [{"id": 0, "start": 0.0, "end": 7.25, "text": "Two."}]


def test_clips_of_one_name_in_several_folders_have_files_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = [
        ("cat/1.mp4", None), ("dog/1.mp4", None), ("dog/2.mp4", None), ("wow!.mp4", None),  # out of a list
        ("one/x/a.mp4", "one"), ("two/x/a.mp4", "two"), ("all/one/x/a.mp4", "all"),  # three folders were given
        ("s/0.tar!k/m.mp4", None), ("t/0.tar!k/m.mp4", None),
    ]  # fmt: skip
    with Output.open(tmp_path / "out.jsonl", RECIPE) as output:
        for video, root in named:
            item = Item(video=video, path=video, root=root)
            row = CaptionRow.of(item, id=item.key, recipe=RECIPE.digest, status="ok")
            output.add(replace(row, caption=f"Of {video}."))
    written = write_side_files(standing_rows(tmp_path / "out.jsonl"), ("txt",), SideFolder(tmp_path / "side"))
    said = {str(path.relative_to(tmp_path / "side")): path.read_text() for path in written}
    here = str(tmp_path.relative_to("/"))
    assert said == {
        "cat/1.txt": "Of cat/1.mp4.\n", "dog/1.txt": "Of dog/1.mp4.\n", "2.txt": "Of dog/2.mp4.\n",
        "wow!.txt": "Of wow!.mp4.\n", f"{here}/one/x/a.txt": "Of one/x/a.mp4.\n",
        "two/x/a.txt": "Of two/x/a.mp4.\n", f"{here}/all/one/x/a.txt": "Of all/one/x/a.mp4.\n",
        "s/0.tar/k/m.txt": "Of s/0.tar!k/m.mp4.\n", "t/0.tar/k/m.txt": "Of t/0.tar!k/m.mp4.\n",
    }  # fmt: skip


def test_a_clip_called_as_another_one_with_its_ending_has_files_of_its_own(tmp_path: Path) -> None:
    videos = ["a.mp4", "a.mkv", "a.mp4.mkv"]
    with Output.open(tmp_path / "out.jsonl", RECIPE) as output:
        for video in videos:
            [row] = ranged(tmp_path, video, [(None, None, f"Of {video}.")])
            output.add(row)
    written = write_side_files(standing_rows(tmp_path / "out.jsonl"), ("txt",), SideFolder(tmp_path / "side"))
    assert sorted(path.read_text() for path in written) == sorted(f"Of {video}.\n" for video in videos)


def test_a_file_of_another_video_keeps_its_name(tmp_path: Path) -> None:
    """Whatever run made it, from wherever it named the video; a video that was moved keeps its name."""
    rows = {}
    for name in ("a.mp4", "a.webm", "other/a.mp4"):
        [rows[name]] = ranged(tmp_path / "in", name, [(None, None, f"Of {name}.")])

    def names_of(row: CaptionRow) -> list[str]:
        written = write_side_files([row], ("txt",), SideFolder.beside(tmp_path / "out.jsonl"))
        return [str(path.relative_to(tmp_path / "out")) for path in written]

    for _ in range(2):
        assert names_of(rows["a.mp4"]) == ["a.txt"]
        assert names_of(rows["a.webm"]) == ["a.webm.txt"]
    assert names_of(replace(rows["a.mp4"], video=os.path.relpath(rows["a.mp4"].video), root=None)) == ["a.txt"]
    other = rows["other/a.mp4"]
    assert names_of(replace(other, root=None)) == ["a.mp4.txt"]
    Path(rows["a.mp4"].video).unlink()
    assert names_of(replace(other, root=str(tmp_path / "in/other"))) == ["a.txt"]


def test_two_outputs_that_share_a_folder_write_its_files_under_names_of_their_own(tmp_path: Path) -> None:
    jsonl, parquet = (SideFolder.beside(tmp_path / f"out.{ending}") for ending in ("jsonl", "parquet"))
    assert jsonl.path == parquet.path
    assert jsonl.part != parquet.part


def test_players_read_what_is_written(tmp_path: Path) -> None:
    import pysubs2

    with Output.open(tmp_path / "out.jsonl", RECIPE) as output:
        for row in ranged(tmp_path / "in", "a.mp4", [(1.0, 2.5, "Eins, zwei"), (2.5, 4.0, "大きい")]):
            output.add(row)
    for path in write_side_files(standing_rows(tmp_path / "out.jsonl"), ("srt", "vtt"), SideFolder(tmp_path)):
        events = pysubs2.load(str(path))
        assert [(event.start, event.end, event.plaintext) for event in events] == [
            (1000, 2500, "Eins, zwei"), (2500, 4000, "大きい"),
        ]  # fmt: skip


def test_a_long_name_gets_its_side_file(tmp_path: Path) -> None:
    with Output.open(tmp_path / "out.jsonl", RECIPE) as output:
        for row in ranged(tmp_path / "in", f"{'x' * 251}.mp4", [(None, None, "One.")]):
            output.add(row)
        done = replace(done_with(tmp_path / "out.jsonl"), promises=output.promises)
    with pytest.raises(OutputError, match=r"out/x+\.json: is not written, its name is too long"):  # by one letter
        list(write_extras(done, Extras(formats="srt,json")))
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [RECORD, f"{'x' * 251}.srt"]


def test_no_side_file_leaves_the_folder(tmp_path: Path) -> None:
    row = ranged(tmp_path / "in", "a.mp4", [(None, None, "One.")])[0]
    with Output.open(tmp_path / "out.jsonl", RECIPE) as output:
        output.add(replace(row, video="../../../etc/a.mp4", root="in"))
    [path] = write_side_files(standing_rows(tmp_path / "out.jsonl"), ("txt",), SideFolder(tmp_path / "side"))
    assert path.resolve().is_relative_to(tmp_path / "side")


@pytest.mark.parametrize("words", ["", "doc", "srt,doc", "srt;vtt"])
def test_formats_that_are_none(words: str) -> None:
    with pytest.raises(ConfigError, match="is no format"):
        parse_formats(words)


def test_a_folder_that_somebody_else_made_is_left_alone(tmp_path: Path) -> None:
    out, mine = tmp_path / "clips.jsonl", tmp_path / "clips"
    assert SideFolder.beside(out).path == mine  # not there yet
    mine.mkdir()
    assert SideFolder.beside(out).path == mine  # empty
    (mine / "000.json").write_text("truth")
    assert SideFolder.beside(out).path == tmp_path / "clips.captions"
    assert list(check_extras(out, Extras(formats="srt"))) == [
        f"{mine}: is there already; srt go to {tmp_path / 'clips.captions'}"
    ]
    SideFolder.beside(out).write(PurePath("a/b.srt"), "one")
    SideFolder.beside(out).write(PurePath("a/b.srt"), "two")  # its own file, by the record
    assert (tmp_path / "clips.captions" / "a" / "b.srt").read_text() == "two"
    (tmp_path / "clips.captions" / RECORD).unlink()
    with pytest.raises(OutputError, match=r"clips\.captions: is there already and vidllm did not make it"):
        SideFolder.beside(out)
    assert SideFolder.beside(tmp_path / "captions").path == tmp_path / "captions.captions"  # OUT has no ending itself


def test_a_side_file_that_was_changed_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    path = SideFolder.beside(out).write(PurePath("a.srt"), "machine")
    record = tmp_path / "out" / RECORD
    record.write_bytes(record.read_bytes() + b'\n["12ab')  # a run killed while it wrote a line
    SideFolder.beside(out).write(PurePath("b.srt"), "machine")
    SideFolder.beside(out).check([".srt"])
    path.write_text("corrected by hand")
    SideFolder.beside(out).check([".vtt"])
    with pytest.raises(OutputError, match=r"a\.srt: vidllm did not write it, or it was changed"):
        list(check_extras(out, Extras(formats="srt")))
    with pytest.raises(OutputError, match="was changed while the run went on"):
        SideFolder.beside(out).write(PurePath("a.srt"), "again")
    assert path.read_text() == "corrected by hand"


@pytest.mark.parametrize("extras", [Extras(in_place=True), Extras(report=Path("out.html"))])
def test_reports_replace_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extras: Extras) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("out.diff", "out.html"):
        Path(name).write_text("a patch of mine\n")
    with pytest.raises(OutputError, match="vidllm did not write it"):
        list(check_extras(Path("out.jsonl"), extras))
    Path("out.diff").write_text("rows.jsonl: caption_v1, 2 captions, 0 as before\n")
    write_report("out.jsonl", standing_rows(empty_output(tmp_path / "out.jsonl")), Path("out.html"))
    assert list(check_extras(Path("out.jsonl"), extras)) == []


def test_a_name_of_megabytes_makes_no_page_of_megabytes(tmp_path: Path) -> None:
    item = Item(video="x" * 1_000_000, path="x", problem="no such file")
    row = CaptionRow.of(item, id="0" * 32, recipe=RECIPE.digest, status="error", error=f"{item.video}: no such file")
    page = write_report("out.jsonl", [row], tmp_path / "r.html")
    assert page.stat().st_size < 100_000


def test_a_report_in_the_place_of_a_pipe_is_told_before_the_run(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "r.html")
    with pytest.raises(OutputError, match=r"r.html: is a device or a pipe, no file"):
        list(check_extras(tmp_path / "out.jsonl", Extras(report=tmp_path / "r.html")))
    with pytest.raises(OutputError, match=r"r.html: is a device or a pipe, no file"):
        write_report("out.jsonl", standing_rows(empty_output(tmp_path / "out.jsonl")), tmp_path / "r.html")
    assert (tmp_path / "r.html").is_fifo()


def test_a_report_under_a_link_stands_where_that_leads(tmp_path: Path) -> None:
    (tmp_path / "r.html").symlink_to("real.html")
    write_report("out.jsonl", standing_rows(empty_output(tmp_path / "out.jsonl")), tmp_path / "r.html")
    assert (tmp_path / "r.html").is_symlink()
    assert "0 clips" in (tmp_path / "real.html").read_text()


@pytest.mark.parametrize("name", ["r.html", "out.diff"])
def test_a_folder_in_the_place_of_a_report_is_told_before_the_run(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(OutputError, match=rf"{name}: is a folder, where a file is to be written; move it away"):
        list(check_extras(tmp_path / "out.jsonl", Extras(report=tmp_path / "r.html", in_place=True)))


def test_a_report_that_has_no_folder_is_told_before_the_run(tmp_path: Path) -> None:
    extras = Extras(report=tmp_path / "none" / "r.html")
    with pytest.raises(OutputError, match=r"r.html: its folder is not there; make it first"):
        list(check_extras(tmp_path / "out.jsonl", extras))


def test_a_report_whose_name_leaves_no_letter_is_told_before_the_run(tmp_path: Path) -> None:
    extras = Extras(report=tmp_path / f"{'r' * 249}.html")
    with pytest.raises(OutputError, match=r"r.html: can not be written \(File name too long"):
        list(check_extras(tmp_path / "out.jsonl", extras))


@pytest.mark.skipif(sys.platform == "win32", reason="rights are POSIX")
@pytest.mark.parametrize(
    ("shut", "told"),
    [(".", "out.diff"), ("report", "report/r.html"), ("out", "out"), ("out/.vidllm-files", "out/.vidllm-files")],
)
def test_a_place_that_may_not_be_written_is_told_before_the_run(
    shut: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    extras = Extras(report=Path("report/r.html"), in_place=True, formats="srt")
    me = os.geteuid()
    with TemporaryDirectory() as folder, monkeypatch.context() as patch:
        patch.chdir(folder)
        Path("report").mkdir()
        SideFolder.beside(Path("out.jsonl")).write(PurePath("a.srt"), "one")
        for path in (Path(), *Path().rglob("*")):
            path.chmod(0o777)
        before = sorted(Path().rglob("*"))
        os.seteuid(me or 65534)  # root may write anywhere
        try:
            assert list(check_extras(Path("out.jsonl"), extras)) == []
            os.seteuid(me)
            Path(shut).chmod(0o555)
            os.seteuid(me or 65534)
            with pytest.raises(OutputError, match=f"^{told}: may not be written"):
                list(check_extras(Path("out.jsonl"), extras))
        finally:
            os.seteuid(me)
        assert sorted(Path().rglob("*")) == before


def write_side_files(rows: Iterable[CaptionRow], formats: Sequence[Format], folder: SideFolder) -> list[Path]:
    files = SideFiles()
    for row in rows:
        files.add(row)
    return files.write(formats, folder)


def recaption(rows: Iterable[CaptionRow], tag: str) -> tuple[Recaptioned, ...]:
    captions = NewCaptions()
    for row in rows:
        captions.add(row)
    return captions.put(tag)


def write_report(title: str, rows: Iterable[CaptionRow], target: Path) -> Path:
    report = Report()
    for row in rows:
        report.add(row)
    return report.write(title, target)


def empty_output(out: Path) -> Path:
    Output.open(out, RECIPE).close()
    return out


# Captions back in their data sets ------------------------------------------------------------------------------------


def caption_all(source: Path, out: Path, text: str = "New", options: InputOptions | None = None) -> list[Item]:
    """A run's output about a data set, by the rows alone."""
    items = [item for item in admit([str(source)], options) if item.problem is None]
    with Output.open(out, RECIPE) as output:
        for number, item in enumerate(items):
            row = CaptionRow.of(item, id=item.key, recipe=RECIPE.digest, status="ok")
            output.add(replace(row, caption=f"{text} {number}."))
    return items


def test_llava_rows_keep_their_ids_and_get_a_column(clips: dict[str, Path], tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Old words."}]
    rows = [
        {"id": 7, "video": str(clips["constant"]), "conversations": talk, "extra": {"a": [1, "ü"]}},
        {"id": "img", "image": "a.png", "conversations": talk},
        {"id": 9, "video": str(clips["intra"]), "conversations": talk},
    ]
    source = tmp_path / "train.json"
    source.write_text(json.dumps(rows))
    caption_all(source, tmp_path / "out.jsonl")
    for _ in range(2):  # the same recipe renews its own column
        [renewed] = recaption(standing_rows(tmp_path / "out.jsonl"), RECIPE.digest)
    assert renewed.column == "caption_v1"
    after = json.loads(source.read_text())
    assert [row["id"] for row in after] == [7, "img", 9]
    assert after[0] == {**rows[0], "caption_v1": "New 0.", "caption_v1_recipe": RECIPE.digest}
    assert after[1] == rows[1]
    write_diff([renewed], tmp_path / "diff.txt")
    assert (tmp_path / "diff.txt").read_text() == (
        f"{source}: caption_v1, 2 captions, 0 as before\n\n"
        "@ 7\n- Old words.\n+ New 0.\n\n@ 9\n- Old words.\n+ New 1.\n\n"
    )


def test_captions_alone_are_kept_of_the_rows_that_a_data_set_gets(clips: dict[str, Path], tmp_path: Path) -> None:
    """A million rows with their frames are gigabytes."""
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps({"id": n, "video": str(clips["constant"])}) + "\n" for n in range(3)))
    caption_all(source, tmp_path / "out.jsonl")
    met: list[weakref.ref[CaptionRow]] = []

    def rows() -> Iterator[CaptionRow]:
        for row in standing_rows(tmp_path / "out.jsonl"):
            met.append(weakref.ref(row))
            yield row
        assert sum(row() is not None for row in met) <= 1  # the last, which the loops above still name

    [renewed] = recaption(rows(), RECIPE.digest)
    assert (len(met), len(renewed.changes)) == (3, 3)


def test_of_a_tar_that_gets_its_captions_no_headers_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tarfile` keeps those of all members that it reads, and of all that it writes: some kilobyte each."""
    source = write_tar(tmp_path / "0.tar", {"a.mp4": b"a", **{f"{n}.txt": b"" for n in range(20)}})
    caption_all(source, tmp_path / "out.jsonl")
    kept: dict[str, list[int]] = {}
    for name in ("next", "addfile"):
        monkeypatch.setattr(tarfile.TarFile, name, counting(kept.setdefault(name, []), getattr(tarfile.TarFile, name)))
    [renewed] = recaption(standing_rows(tmp_path / "out.jsonl"), RECIPE.digest)
    assert len(renewed.changes) == 1
    assert {name: (len(counts) > 20, max(counts) <= 1) for name, counts in kept.items()} == {
        "next": (True, True), "addfile": (True, True),
    }  # fmt: skip


def counting(counts: list[int], method: Callable[..., Any]) -> Callable[..., Any]:
    """`method` of a tar, which notes how many headers the tar holds when it is called."""

    def counted(tar: tarfile.TarFile, *args: Any) -> Any:
        counts.append(len(tar.__dict__["members"]))
        return method(tar, *args)

    return counted


def test_a_data_set_that_has_its_captions_is_not_touched(clips: dict[str, Path], tmp_path: Path) -> None:
    """Or the clips of a tar would be looked at again by the next run, and by every one after it."""
    source = write_tar(tmp_path / "0.tar", {"a.mp4": clips["constant"].read_bytes(), "a.txt": b"old"})
    caption_all(source, tmp_path / "out.jsonl")
    [first] = recaption(standing_rows(tmp_path / "out.jsonl"), RECIPE.digest)
    os.utime(source, (1, 1))
    assert recaption(standing_rows(tmp_path / "out.jsonl"), RECIPE.digest) == (first,)
    assert source.stat().st_mtime == 1
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_tar_with_holes_is_whole_with_its_captions(tmp_path: Path) -> None:
    clips = {"a.mp4": b"first", "b.mp4": b"second" * 99}
    source = write_sparse_tar(tmp_path / "0.tar", clips)
    caption_all(source, tmp_path / "out.jsonl")
    recaption(standing_rows(tmp_path / "out.jsonl"), RECIPE.digest)
    for item, data in zip(admit([str(source)]), clips.values(), strict=True):
        with opened_path(item) as extracted:
            assert extracted.read_bytes() == data + bytes(4000)
    with tarfile.open(source) as tar:
        assert [name for name in tar.getnames() if name.endswith("v1.txt")] == ["a.caption_v1.txt", "b.caption_v1.txt"]


@pytest.mark.parametrize(("name", "mode"), [("0.tar.gz", "w:gz"), ("0.tar.xz", "w:xz"), ("0.tar", "w:bz2")])
def test_a_packed_tar_stays_packed_and_of_the_same_captions_the_same(
    clips: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, mode: str
) -> None:
    source = write_tar(tmp_path / name, {"a.mp4": clips["constant"].read_bytes()}, mode)
    caption_all(source, tmp_path / "out.jsonl")
    magic = source.read_bytes()[:3]
    recaption(standing_rows(tmp_path / "out.jsonl"), RECIPE.digest)
    packed = source.read_bytes()
    assert packed[:3] == magic
    with tarfile.open(source) as tar:
        assert "a.caption_v1.txt" in tar.getnames()
    os.utime(source, (1, 1))
    monkeypatch.setattr("time.time", lambda: 1e9)  # gzip writes when it was packed
    recaption(standing_rows(tmp_path / "out.jsonl"), RECIPE.digest)
    assert (source.read_bytes(), source.stat().st_mtime) == (packed, 1)


def test_a_link_called_as_a_recipe_is_none(clips: dict[str, Path], tmp_path: Path) -> None:
    source = write_tar(tmp_path / "0.tar", {"a.mp4": clips["constant"].read_bytes()})
    with tarfile.open(source, "a") as tar:
        link = tarfile.TarInfo("a.caption_v1_recipe.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "nowhere.txt"
        tar.addfile(link)
    caption_all(source, tmp_path / "out.jsonl")
    [renewed] = recaption(standing_rows(tmp_path / "out.jsonl"), RECIPE.digest)
    assert (renewed.column, renewed.problem) == ("caption_v2", None)


def test_another_recipe_is_the_next_version(clips: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    first = {"video": str(clips["constant"]), "caption": "o", "caption_v3": "p", "caption_v3_recipe": "q"}
    source.write_text(json.dumps(first) + '\n  {"title":   "untouched"}\n')
    caption_all(source, tmp_path / "out.jsonl")
    [renewed] = recaption(standing_rows(tmp_path / "out.jsonl"), RECIPE.digest)
    assert renewed.column == "caption_v4"
    one, two = source.read_text().splitlines()
    assert json.loads(one) == {**first, "caption_v4": "New 0.", "caption_v4_recipe": RECIPE.digest}
    assert two == '  {"title":   "untouched"}'


@pytest.mark.parametrize("packed", ["zstd", "none", "lz4"])
def test_parquet_keeps_its_columns(clips: dict[str, Path], tmp_path: Path, packed: str) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    source = tmp_path / "rows.parquet"
    table = arrow.table(
        {
            "video": [str(clips["constant"]), str(clips["intra"])], "n": arrow.array([1, 2], arrow.int8()),
            "at": arrow.array([1, 2], arrow.timestamp("ns")),
        }
    )  # fmt: skip
    parquet.write_table(table, source, row_group_size=1, compression=packed)
    before = parquet.read_metadata(source).row_group(0).column(0).compression
    caption_all(source, tmp_path / "out.jsonl")
    for _ in range(2):
        recaption(standing_rows(tmp_path / "out.jsonl"), RECIPE.digest)
    groups = [parquet.read_metadata(source).row_group(number) for number in range(2)]
    assert {group.column(n).compression for group in groups for n in range(5)} == {before}
    after = parquet.read_table(source)
    assert after.column_names == ["video", "n", "at", "caption_v1", "caption_v1_recipe"]
    assert after.schema.field("n").type == arrow.int8()
    assert after.column("at").equals(table.column("at"))
    assert after.column("caption_v1").to_pylist() == ["New 0.", "New 1."]


def test_another_split_is_another_column_and_the_same_renews_only_its_rows(
    clips: dict[str, Path], tmp_path: Path
) -> None:
    members = {f"{key}.mp4": clips["constant"].read_bytes() for key in ("a", "b")}
    tar, rows = write_tar(tmp_path / "0.tar", members), tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"video": str(clips[name])}) + "\n" for name in ("constant", "intra")))
    for source in (tar, rows):
        out = tmp_path / f"{source.name}.out.jsonl"
        first, second = caption_all(source, out)
        for item in (first, second):  # as two shards, one after the other
            mine = [row for row in standing_rows(out) if row.key == item.key]
            [renewed] = recaption(mine, f"{RECIPE.digest} fixed:12s")
            assert (renewed.column, len(renewed.changes)) == ("caption_v1", 1)
        [renewed] = recaption(standing_rows(out), RECIPE.digest)
        assert renewed.column == "caption_v2"
    assert all({"caption_v1", "caption_v2"} <= json.loads(line).keys() for line in rows.read_text().splitlines())
    with tarfile.open(tar) as file:
        names = file.getnames()
    assert len(names) == len(set(names)) == 2 * (1 + 2 * 2)


def test_a_tar_gets_members_and_keeps_the_others(clips: dict[str, Path], tmp_path: Path) -> None:
    members = {
        "000.mp4": clips["constant"].read_bytes(), "000.txt": b"old", "000.json": b"{}", "note.md": b"#",
        "001.mp4": clips["intra"].read_bytes(), "002.txt": b"no clip",
    }  # fmt: skip
    source = write_tar(tmp_path / "s.tar", members)
    keys = [item.key for item in caption_all(source, tmp_path / "out.jsonl")]
    for _ in range(2):
        [renewed] = recaption(standing_rows(tmp_path / "out.jsonl"), RECIPE.digest)
    assert [(change.id, change.old, change.new) for change in renewed.changes] == [
        ("000", "old", "New 0."),
        ("001", None, "New 1."),
    ]
    with tarfile.open(source) as tar:
        found = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert {name: data for name, data in found.items() if "caption_v" not in name} == members
    assert found["000.caption_v1.txt"] == b"New 0."
    assert found["001.caption_v1_recipe.txt"].decode() == RECIPE.digest
    assert len(found) == len(members) + 4
    again = list(admit([str(source)]))
    assert [item.key for item in again] == keys
    with opened_path(again[1]) as path:
        assert path.read_bytes() == members["001.mp4"]


def test_every_clip_of_a_tar_gets_its_own_caption_once(clips: dict[str, Path], tmp_path: Path) -> None:
    """Names that come again, several clips in a sample, hidden files and folders among its members."""
    clip = clips["constant"].read_bytes()
    told = ["a.mp4", "a.txt", "b.mp4", "a.mp4", "c.mp4", "._c.mp4", "c.left.mp4", "d/", "c.txt", "d/e.mp4"]
    source = tmp_path / "s.tar"
    with tarfile.open(source, "w") as tar:
        for name in told:
            member = tarfile.TarInfo(name.rstrip("/"))
            member.type, member.size = (tarfile.DIRTYPE, 0) if name.endswith("/") else (tarfile.REGTYPE, len(clip))
            tar.addfile(member, io.BytesIO(clip))
    caption_all(source, tmp_path / "out.jsonl")
    for _ in range(2):
        recaption(standing_rows(tmp_path / "out.jsonl"), RECIPE.digest)
    with tarfile.open(source) as tar:
        found = [(m.name, tar.extractfile(m).read() if "v1." in m.name else b"") for m in tar if "recipe" not in m.name]  # type: ignore[union-attr]
    said = [("a", 0), ("b", 1), ("a", 2), ("c", 3), ("c.left", 4), ("d/e", 5)]
    assert [one for one in found if one[1]] == [(f"{k}.caption_v1.txt", b"New %d." % n) for k, n in said]
    assert [name for name, text in found if not text] == [name.rstrip("/") for name in told]
    assert found[2][0] == "a.caption_v1.txt"  # behind its own sample, not behind the next of that name


def test_two_shards_that_end_together_lose_no_caption(clips: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "rows.json"
    rows = [{"id": n, "video": str(clips["constant"]), "pad": "x" * 2000} for n in range(600)]
    source.write_text(json.dumps(rows))
    outs = [tmp_path / "0.jsonl", tmp_path / "1.jsonl"]
    shards = [caption_all(source, out)[number::2] for number, out in enumerate(outs)]

    def put(number: int) -> None:
        keys = {item.key for item in shards[number]}
        recaption([row for row in standing_rows(outs[number]) if row.key in keys], RECIPE.digest)

    threads = [threading.Thread(target=put, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = json.loads(source.read_text())
    assert [row["caption_v1"] for row in after] == [f"New {n}." for n in range(600)]


def test_a_data_set_stays_what_it_was(clips: dict[str, Path], tmp_path: Path) -> None:
    """A link, its owner's alone, rows in lines under an array's name, half a character in it."""
    real, name = tmp_path / "real" / "rows.json", tmp_path / "rows.json"
    real.parent.mkdir()
    rows = [{"video": str(clips["constant"]), "caption": "half \ud83d"}, {"video": str(clips["intra"])}]
    real.write_text("".join(json.dumps(row) + "\n" for row in rows))
    real.chmod(0o600)
    name.symlink_to(real)
    caption_all(name, tmp_path / "out.jsonl", text="half \ud83d")
    [renewed] = recaption(standing_rows(tmp_path / "out.jsonl"), RECIPE.digest)
    assert name.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o600
    after = [json.loads(line) for line in real.read_text().splitlines()]
    assert [row["caption_v1"] for row in after] == ["half \ud83d 0.", "half \ud83d 1."]
    assert after[0]["caption"] == rows[0]["caption"]
    write_diff([renewed], tmp_path / "diff.txt")


def test_half_a_character_goes_into_a_parquet_column(clips: dict[str, Path], tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"video": [str(clips["constant"]), None]}), tmp_path / "rows.parquet")
    caption_all(tmp_path / "rows.parquet", tmp_path / "out.jsonl", text="half \ud83d")
    recaption(standing_rows(tmp_path / "out.jsonl"), RECIPE.digest)
    after = parquet.read_table(tmp_path / "rows.parquet")
    assert after.column("caption_v1").to_pylist() == ["half \\ud83d 0.", None]


def test_a_damaged_data_set_is_told_and_the_others_get_their_captions(clips: dict[str, Path], tmp_path: Path) -> None:
    members = {f"{n}.mp4": clips["constant"].read_bytes() for n in range(3)}
    tar = write_tar(tmp_path / "0.tar", members)
    whole = write_tar(tmp_path / "1.tar", members)
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    before, out = tar.read_bytes(), tmp_path / "out.jsonl"
    with Output.open(out, RECIPE) as output:
        for item in admit([str(tar), str(whole)]):
            output.add(replace(CaptionRow.of(item, id=item.key, recipe=RECIPE.digest, status="ok"), caption="New."))
    broken, good = recaption(standing_rows(out), RECIPE.digest)
    assert (broken.file, broken.changes) == (str(tar), ())
    assert "gets no captions (unexpected end of data)" in str(broken.problem)
    assert tar.read_bytes() == before
    assert (good.problem, len(good.changes)) == (None, 3)
    assert not list(tmp_path.glob(".*.part"))


def done_with(output: Path) -> CaptionReport:
    none: Counter[Any] = Counter()
    return CaptionReport(
        output=output, counts=none, standing=none, causes=none, notes=none, skipped=0, seconds=0.0, interrupted=False,
        recipe=RECIPE,
    )  # fmt: skip


def test_where_no_clip_is_of_a_data_set_nothing_in_place_is_told(written: Path) -> None:
    [said] = write_extras(done_with(written), Extras(in_place=True))
    assert "no caption is of a data set's row" in said


def test_a_data_set_without_its_captions_is_an_error_when_all_else_is_written(
    clips: dict[str, Path], tmp_path: Path
) -> None:
    rows = [tmp_path / name for name in ("a.json", "b.json", "c.json")]
    for number, path in enumerate(rows):
        path.write_text(json.dumps([{"id": number, "video": str(clips["constant"])}]))
    out, page = tmp_path / "out.jsonl", tmp_path / "page.html"
    with Output.open(out, RECIPE) as output:
        for item in admit([str(path) for path in rows]):
            output.admitted(item)
            output.add(replace(CaptionRow.of(item, id=item.key, recipe=RECIPE.digest, status="ok"), caption="New."))
        done = replace(done_with(out), promises=output.promises)
    for damaged in rows[::2]:
        damaged.write_text("[{")
    told: list[str] = []
    with pytest.raises(OutputError, match=r"c\.json: .*it gets no captions"):
        told.extend(write_extras(done, Extras(in_place=True, report=page)))
    assert "1 captions in column 'caption_v1'" in told[0]
    assert told[-2].endswith("the report")
    assert "a.json: " in told[-1]
    assert page.exists()


def test_rows_are_read_once_for_all_that_is_made_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = empty_output(tmp_path / "out.jsonl")
    read: list[Path] = []
    monkeypatch.setattr("vidllm.corpus.extras.standing_rows", lambda path: read.append(path) or standing_rows(path))
    list(write_extras(done_with(out), Extras(formats="all", in_place=True, report=tmp_path / "page.html")))
    assert read == [out]


def test_frames_of_a_tars_member_are_proven(clips: dict[str, Path], tmp_path: Path) -> None:
    source = write_tar(tmp_path / "s.tar", {"a.mp4": clips["constant"].read_bytes()})
    [item] = admit([str(source)])
    with Output.open(tmp_path / "out.jsonl", RECIPE) as output:
        output.add(seen_row(item))
    assert verify(tmp_path / "out.jsonl").ok
    write_tar(source, {"b.mp4": b""})
    [problem] = verify(tmp_path / "out.jsonl").problems
    assert "is no longer in its tar" in problem.why
    with pytest.raises(InputError), opened_row(next(standing_rows(tmp_path / "out.jsonl"))):
        pass


# The page ------------------------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """Tags and attributes of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_and_shows_everything(clips: dict[str, Path], tmp_path: Path) -> None:
    out, hostile = tmp_path / "out.jsonl", '<script>alert(1)</script> & "quotes" \''
    with Output.open(out, RECIPE) as output:
        output.add(seen_row(item_of(clips["constant"]), caption=hostile))
        output.add(slow := replace(seen_row(item_of(clips["intra"])), seconds=99.0))
        copy = CaptionRow.of(item_of(tmp_path / "copy.mp4"), id=slow.id, recipe=slow.recipe, status="duplicate")
        output.add(replace(copy, caption=slow.caption, usage=slow.usage, duplicate_of=slow.video))
        for number in range(3):
            bad = item_of(tmp_path / f"{hostile.replace('/', '')}{number}.mp4")
            error = f"{bad.video}: ends after {number} s"
            output.add(CaptionRow.of(bad, id="0" * 32, recipe=RECIPE.digest, status="undecodable", error=error))
    page = Page(write_report("out.jsonl", standing_rows(out), tmp_path / "report.html").read_text())
    assert not any(tag in ("script", "link", "iframe", "object") for tag, _ in page.tags)
    pictures = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 2
    assert all(source.startswith("data:image/jpeg;base64,") for source in pictures)
    assert not any((attributes.get("href") or "").startswith("http") for _, attributes in page.tags)
    assert hostile in page.text
    assert "ends after N s" in page.text  # one cause for three clips
    assert "6 clips, 3 of them with a good caption" in page.text
    assert "10 tokens written" in page.text  # those of the copy are its original's
    bars = [attributes for tag, attributes in page.tags if tag == "div"]
    assert [bar["class"] for bar in bars] == ["bar ok", "bar duplicate", "bar undecodable"]  # none where there are none
    assert page.text.index("99.00 s") < page.text.index("0.50 s")


def test_a_cause_is_without_numbers_but_with_the_servers_own() -> None:
    row = CaptionRow.of(item_of(Path("a.mp4")), id="0" * 32, recipe=RECIPE.digest, status="error")
    said = {"a.mp4: ends after 12.5 s": "ends after N s", "server answered 413: 20 of 3": "server answered 413: N of N"}
    assert [cause_of(replace(row, error=error)) for error in said] == list(said.values())


def test_a_clip_that_is_gone_is_told_on_the_page(clips: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(clips["constant"].read_bytes())
    with Output.open(tmp_path / "out.jsonl", RECIPE) as output:
        output.add(seen_row(item_of(path)))
    path.unlink()
    page = write_report("out.jsonl", standing_rows(tmp_path / "out.jsonl"), tmp_path / "r.html")
    assert "no such file" in page.read_text()
