"""The output: one row a clip whatever happens to the writer, the disk, or the file; checked byte by byte."""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.caption_resume import make, measure
from tests.caption_rows import RECIPE, item_at, item_like, row_of
from vidllm.corpus.caption import CaptionOptions, caption, dry_run
from vidllm.corpus.dryrun import Done
from vidllm.corpus.extras import Extras, check_extras
from vidllm.corpus.http import server_spec
from vidllm.corpus.index import DigestMap, RowIndex
from vidllm.corpus.item import Item, digest_of
from vidllm.corpus.ledger import Ledger
from vidllm.corpus.looking import Look, Seen
from vidllm.corpus.output import Output
from vidllm.corpus.reading import standing_rows, written_rows
from vidllm.corpus.recipe import Recipe
from vidllm.corpus.rows import CaptionRow, Status
from vidllm.corpus.scenes import Cut
from vidllm.corpus.stores import head_of, manifest_of
from vidllm.errors import OutputError
from vidllm.linefile import LineFile
from vidllm.options import GenerationOptions
from vidllm.planning import PlanOptions
from vidllm.video.subtitles import find_sidecar

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = [".jsonl", ".parquet"]


@pytest.fixture(params=SUFFIXES)
def out(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """An output that is not there yet."""
    if request.param == ".parquet":
        pytest.importorskip("pyarrow")
    return tmp_path / f"out{request.param}"


def rows_in(out: Path) -> list[CaptionRow]:
    rows = list(written_rows(out))
    assert all(isinstance(row, CaptionRow) for row in rows)
    return [row for row in rows if isinstance(row, CaptionRow)]


def test_a_dry_run_knows_what_is_done_and_changes_nothing_while_a_run_writes(out: Path, tmp_path: Path) -> None:
    items = [item_at(tmp_path, number) for number in range(4)]
    copy = Item(video="copy.mp4", path=items[0].path)
    with Output.open(out, RECIPE) as output:
        for item, status in zip(items, ("ok", "error", "ok", "ok"), strict=True):
            output.add(row_of(item, status))  # type: ignore[arg-type]
        output.add(row_of(items[3], caption="Anew."))
        rows = next(iter(tmp_path.rglob("_part*.jsonl")), out)
        with open(rows, "ab") as half:
            half.write(b'{"id": "half a row')
        os.utime(items[2].path, (1, 1))
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        for retry, finished in ((False, [True, True, False, True]), (True, [True, False, False, True])):
            done = Done(out, RECIPE, retry_errors=retry)
            assert [done.is_finished(item) for item in items] == finished
        seen = [Seen(id=row_of(item).id) for item in items]
        assert [done.has_caption(copy, one) for one in seen] == [True, False, True, True]
        assert not done.has_caption(copy, replace(seen[0], subtitles="1" * 16))
        assert not Done(out, RECIPE.asking("Other?"), retry_errors=False).is_finished(items[0])
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_dry_run_refuses_the_output_that_a_run_would(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_bytes(row_of(item_at(tmp_path, 0)).to_line() + b"no row\n")
    with pytest.raises(OutputError, match="line 2 is no caption row"):
        Done(out, RECIPE, retry_errors=False)


def test_what_was_written_is_there_and_is_not_done_again(out: Path, tmp_path: Path) -> None:
    items = [item_at(tmp_path, number) for number in range(5)]
    with Output.open(out, RECIPE) as output:
        for item in items[:3]:
            output.admitted(item)
            assert not output.is_finished(item, RECIPE.digest)
            output.add(row_of(item))
            assert output.is_finished(item, RECIPE.digest)
    with Output.open(out, RECIPE) as output:
        assert [output.is_finished(item, RECIPE.digest) for item in items] == [True, True, True, False, False]
        assert output.row_of(items[1], RECIPE.digest) == row_of(items[1])
        assert output.caption_of(row_of(items[2]).id, RECIPE.digest, key=items[4].key) == row_of(items[2])
        assert output.caption_of(row_of(items[3]).id, RECIPE.digest, key=items[4].key) is None
        assert rows_in(out) == [row_of(item) for item in items[:3]]


def test_another_recipe_is_new_work_and_its_rows_stand_beside(out: Path, tmp_path: Path) -> None:
    item = item_at(tmp_path, 1)
    other = Recipe.of("model-1", "what happens?", PlanOptions(), GenerationOptions())
    with Output.open(out, RECIPE) as output:
        output.add(row_of(item))
    with Output.open(out, other) as output:
        assert not output.is_finished(item, other.digest)
        output.add(row_of(item, caption="Other.", recipe=other))
    assert [row.caption for row in rows_in(out)] == ["A circle moves.", "Other."]


@pytest.mark.parametrize(
    "other",
    [
        Recipe.of("model-2", RECIPE.prompt, PlanOptions(), GenerationOptions()),
        Recipe.of("model-1", RECIPE.prompt, PlanOptions(frames=8), GenerationOptions()),
        Recipe.of("model-1", RECIPE.prompt, PlanOptions(), GenerationOptions(temperature=0.5)),
        Recipe.of("model-1", RECIPE.prompt, PlanOptions(), GenerationOptions(max_new_tokens=9)),
        RECIPE.asking("more?"),
    ],
)
def test_everything_that_shapes_a_caption_is_in_the_recipe(other: Recipe) -> None:
    assert other.digest != RECIPE.digest


def test_clips_own_prompts_have_recipes_of_their_own_whatever_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidllm.corpus.recipe.MOST_OWN_RECIPES", 1)
    with Output.open(tmp_path / "out.jsonl", RECIPE) as output:
        found = {output.digest_of(replace(item_like(tmp_path, 1), prompt=f"{n}?")) for n in range(9)}
        assert len(found) == 9
        assert output.digest_of(item_like(tmp_path, 1)) == RECIPE.digest


def test_the_range_and_the_guard_shape_no_recipe() -> None:
    from vidllm.video.guard import Limits

    look = PlanOptions(start=3.0, end=4.0, guard=Limits(seconds=3))
    assert Recipe.of("model-1", RECIPE.prompt, look, GenerationOptions()).digest == RECIPE.digest


def test_failures_stay_until_they_are_asked_for_again(out: Path, tmp_path: Path) -> None:
    item, good = item_at(tmp_path, 1), item_at(tmp_path, 2)
    with Output.open(out, RECIPE) as output:
        output.add(row_of(item, "error", caption=""))
        output.add(row_of(good))
        assert output.caption_of(row_of(item).id, RECIPE.digest, key=good.key) is None
    with Output.open(out, RECIPE) as output:
        assert output.is_finished(item, RECIPE.digest)
    with Output.open(out, RECIPE, retry_errors=True) as output:
        assert not output.is_finished(item, RECIPE.digest)
        assert output.is_finished(good, RECIPE.digest)
        output.add(row_of(item))
        assert output.status_of(item, RECIPE.digest) == "ok"
        assert len(list(standing_rows(out))) == 2
    assert sorted(row.status for row in rows_in(out)) == ["ok", "ok"]


def test_a_changed_file_is_captioned_again_and_has_one_row(out: Path, tmp_path: Path) -> None:
    item = item_at(tmp_path, 1)
    with Output.open(out, RECIPE) as output:
        output.add(row_of(item))
    changed = item_at(tmp_path, 1, b"other pictures, longer")
    with Output.open(out, RECIPE) as output:
        assert not output.is_finished(changed, RECIPE.digest)
        output.add(row_of(changed, caption="New."))
    [row] = rows_in(out)
    assert (row.caption, row.id) == ("New.", row_of(changed).id)


def test_a_touched_file_keeps_its_row(out: Path, tmp_path: Path) -> None:
    item = item_at(tmp_path, 1)
    with Output.open(out, RECIPE) as output:
        output.add(row_of(item))
    os.utime(item.path, ns=(1, 1))
    with Output.open(out, RECIPE) as output:
        assert not output.is_finished(item, RECIPE.digest)  # its content has to be looked at
        copy = replace(row_of(item, "duplicate"), duplicate_of=item.video)  # and turns out to be known
        output.add(copy)
        assert output.is_finished(item, RECIPE.digest)
    assert rows_in(out) == [row_of(item)]


def test_two_runs_on_one_output_give_one_clear_line(out: Path, tmp_path: Path) -> None:
    with Output.open(out, RECIPE) as output:
        output.add(row_of(item_at(tmp_path, 1)))
        with pytest.raises(OutputError, match=r"out\.\w+: another run is writing it"):
            Output.open(out, RECIPE)
        output.add(row_of(item_at(tmp_path, 2)))
    assert len(rows_in(out)) == 2
    Output.open(out, RECIPE).close()


def test_every_place_to_cut_the_last_line(tmp_path: Path) -> None:
    items = [item_at(tmp_path, number) for number in range(3)]
    out = tmp_path / "out.jsonl"
    with Output.open(out, RECIPE) as output:
        for item in items:
            output.add(row_of(item, caption="Größe, 大きさ"))
    whole = out.read_bytes()
    third = whole[:-1].rfind(b"\n") + 1
    for end in (*range(third, len(whole) - 3, 9), *range(len(whole) - 3, len(whole) + 1)):
        out.write_bytes(whole[:end])
        with Output.open(out, RECIPE) as output:
            done = [output.is_finished(item, RECIPE.digest) for item in items]
            assert done == [True, True, end >= len(whole) - 1]
            if not done[2]:
                output.add(row_of(items[2], caption="Größe, 大きさ"))
        assert out.read_bytes() == whole


@pytest.mark.parametrize("garbage", [b"\0" * 5000, b'{"id": "12', b'{"id": "\xc3', b"\xff\xfe"])
def test_a_torn_end_is_cut_off_and_told_from_rows(tmp_path: Path, garbage: bytes) -> None:
    out, item = tmp_path / "out.jsonl", item_at(tmp_path, 1)
    with Output.open(out, RECIPE) as output:
        output.add(row_of(item))
    whole = out.read_bytes()
    for file in (out, manifest_of(out)):
        file.write_bytes(file.read_bytes() + garbage)
    with Output.open(out, RECIPE) as output:
        assert output.is_finished(item, RECIPE.digest)
    assert out.read_bytes() == whole


@pytest.mark.parametrize(
    "content",
    [
        b"not captions\n", b'{"id": 3}\n', b"\0\0\0 ftypisom", b'{"video": "a.mp4"}', b"[1]", b'{"id": "7"}',
        b'{"id": "7", "video": "a.mp4"}\n{"id": "8", "video": "b.mp4"}', b'{"id": "7",\n "video": "a.mp4"',
    ],
)  # fmt: skip
def test_a_file_of_something_else_is_refused_and_untouched(tmp_path: Path, content: bytes) -> None:
    out = tmp_path / "out.jsonl"
    out.write_bytes(content)
    with pytest.raises(OutputError, match="holds no captions"):
        Output.open(out, RECIPE)
    assert out.read_bytes() == content
    assert not manifest_of(out).exists()


@pytest.mark.parametrize(
    ("place", "bytes_there"),
    [(0, b"garbage\n"), (20, b"x"), (60, b"\0"), (100, b"-"), (156, b"so"), (0, b"[" * 99_999)],
)
def test_a_broken_line_inside_names_its_place(tmp_path: Path, place: int, bytes_there: bytes) -> None:
    out = tmp_path / "out.jsonl"
    with Output.open(out, RECIPE) as output:
        output.add(row_of(item_at(tmp_path, 1)))
    good = out.read_bytes()
    harmed = good + good[:place] + bytes_there + good[place + len(bytes_there) :].lstrip(b"\n") + good
    out.write_bytes(harmed)
    with pytest.raises(OutputError, match="line 2 is no caption row"):
        Output.open(out, RECIPE)
    assert out.read_bytes() == harmed
    out.write_bytes(good)
    Output.open(out, RECIPE).close()  # the failed opening let go of its lock


def test_a_row_damaged_behind_its_head_is_met_when_it_is_needed(tmp_path: Path) -> None:
    out, item = tmp_path / "out.jsonl", item_at(tmp_path, 1)
    with Output.open(out, RECIPE) as output:
        output.add(row_of(item))
    out.write_bytes(out.read_bytes().replace(b'"caption": "', b'"caption": "\xff'))
    with Output.open(out, RECIPE) as output:
        assert output.is_finished(item, RECIPE.digest)
        with pytest.raises(OutputError, match=r"one of its rows is damaged .*caption-verify .*says which: remove it"):
            output.row_of(item, RECIPE.digest)


@pytest.mark.parametrize(
    "line",
    [
        f'{{"key": "{31 * "f"}g", "recipe": "{16 * "0"}"}}', '{"key": 7, "recipe": "0"}', '{"recipe": null}', "[]", "7",
        f'{{"cut": ["a"], "recipe": "{16 * "0"}", "parts": []}}', "[" * 99_999,
    ],
)  # fmt: skip
def test_a_line_in_the_manifest_that_is_not_ours_is_named(tmp_path: Path, line: str) -> None:
    out = tmp_path / "out.jsonl"
    with Output.open(out, RECIPE) as output:
        output.admitted(item_at(tmp_path, 1))
    with manifest_of(out).open("a") as manifest:
        manifest.write(f"{line}\n")
    with pytest.raises(OutputError, match=r"out.jsonl.admitted: line 3 is not ours; remove it"):
        Output.open(out, RECIPE)


def test_rows_another_tool_wrote_are_read(tmp_path: Path) -> None:
    out, item = tmp_path / "out.jsonl", item_at(tmp_path, 1)
    fields = json.loads(row_of(item).to_line())
    shuffled = dict(sorted({**fields, "mine": [1, 2]}.items()))
    out.write_text(json.dumps(shuffled, separators=(",", ":")) + "\n")
    with Output.open(out, RECIPE) as output:
        assert output.is_finished(item, RECIPE.digest)
        assert output.row_of(item, RECIPE.digest) == row_of(item)


def leave_out(out: Path, *fields: str) -> None:
    """Make the rows at `out` such as another tool writes, which does not know these fields."""
    if out.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        for part in out.glob("part-*.parquet"):
            parquet.write_table(parquet.read_table(part).drop(list(fields)), part)
        return
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    out.write_text("".join(json.dumps({k: row[k] for k in row if k not in fields}) + "\n" for row in rows))


def beside(item: Item, text: str, suffix: str = ".srt") -> None:
    Path(item.path).with_suffix(suffix).write_text(f"1\n00:00:00,000 --> 00:00:09,000\n{text}\n")


def seen_again(item: Item, subtitles: str) -> CaptionRow:
    """What a run writes of a clip that turned out to be known."""
    stamp = item.stamp(find_sidecar)
    return replace(row_of(item, "duplicate"), duplicate_of=item.video, subtitles=subtitles, stamp=stamp)


def test_other_subtitles_are_new_work_and_the_content_stays_what_it_is(out: Path, tmp_path: Path) -> None:
    item = item_at(tmp_path, 1)
    bare = row_of(item)
    with Output.open(out, RECIPE) as output:
        output.add(bare)
        beside(item, "Hello.")
        assert not output.is_finished(item, RECIPE.digest), "there were none before"
        assert output.caption_of(bare.id, RECIPE.digest, subtitles="a" * 16, key=item.key) is None
        hello = replace(bare, caption="They greet.", subtitles="a" * 16, stamp=item.stamp(find_sidecar))
        output.add(hello)
        assert output.is_finished(item, RECIPE.digest)
        beside(item, "Goodbye.")
        assert not output.is_finished(item, RECIPE.digest)
        assert output.caption_of(bare.id, RECIPE.digest, subtitles="b" * 16, key=item.key) is None
        beside(item, "Hello.", ".en.srt")  # another file with the words of before, and the one of .srt gone
        Path(item.path).with_suffix(".srt").unlink()
        assert not output.is_finished(item, RECIPE.digest)
        assert output.caption_of(bare.id, RECIPE.digest, subtitles="a" * 16, key=item.key) == hello
        output.add(seen_again(item, "a" * 16))
        assert output.is_finished(item, RECIPE.digest)
    assert rows_in(out) == [replace(hello, stamp=item.stamp(find_sidecar))]


def test_where_no_subtitles_are_shown_none_are_looked_for(out: Path, tmp_path: Path) -> None:
    item, silent = item_at(tmp_path, 1), Recipe.of("m", "p", PlanOptions(subtitles=False), GenerationOptions())
    with Output.open(out, silent) as output:
        output.add(row_of(item, recipe=silent))
        beside(item, "Hello.")
        assert output.is_finished(item, silent.digest)


def test_rows_without_fields_of_ours_are_read_and_not_done_again(out: Path, tmp_path: Path) -> None:
    item, other = item_at(tmp_path, 1), item_at(tmp_path, 2)
    with Output.open(out, RECIPE) as output:
        output.add(row_of(item))
    leave_out(out, "reader", "notes", "subtitles")
    noted = replace(row_of(other), reader="pyav", notes=("1 pictures are damaged (at 0.50 s)",))
    with Output.open(out, RECIPE) as output:
        assert output.is_finished(item, RECIPE.digest)
        output.add(noted)
        assert rows_in(out) == [row_of(item), noted]
    with Output.open(out, RECIPE) as output:
        output.add(replace(noted, caption="New."))  # the part is written again without the one before
    assert rows_in(out) == [row_of(item), replace(noted, caption="New.")]


@pytest.mark.parametrize("name", ["part-00000-1f2e.snappy.parquet", "part-0.parquet", "data.parquet"])
def test_a_folder_of_somebody_elses_parts_is_refused_and_untouched(tmp_path: Path, name: str) -> None:
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    out = tmp_path / "train.parquet"
    out.mkdir()
    parquet.write_table(arrow.table({"video": ["a.mp4"]}), out / name)
    with pytest.raises(OutputError, match=r"train\.parquet: is there already and holds no captions"):
        Output.open(out, RECIPE)
    assert [path.name for path in out.iterdir()] == [name]


def test_parts_without_their_manifest_are_gone_on_with(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    out, item = tmp_path / "out.PARQUET", item_at(tmp_path, 1)
    with Output.open(out, RECIPE) as output:
        output.add(row_of(item))
    manifest_of(out).unlink()
    with Output.open(out, RECIPE) as output:
        assert output.is_finished(item, RECIPE.digest)


@pytest.mark.parametrize("target", ["parts.parquet", "parts"])
def test_a_link_to_a_folder_of_parts_may_come_before_it(tmp_path: Path, target: str) -> None:
    pytest.importorskip("pyarrow")
    link, item = tmp_path / "link.parquet", item_at(tmp_path, 1)
    link.symlink_to(tmp_path / target)
    with Output.open(link, RECIPE) as output:
        output.add(row_of(item))
    assert rows_in(link) == [row_of(item)]
    names = {path.name for path in (tmp_path / target).iterdir()}
    assert names == {"_admitted.jsonl", "part-000001.parquet"}  # all of it in one place, whatever that is called


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (".", "is a folder"), ("", "is a folder"), ("/", "is a folder"), ("-", "not to a pipe"),
        ("/dev/null", "not to a pipe or a device"), ("out.CSV", "is JSON lines or Parquet; name it out.jsonl"),
        ("none/out.jsonl", "its folder is not there"), ("none/out.parquet", "its folder is not there"),
        ("out.htm", "name it out.jsonl"), ("out.diff", "name it out.jsonl"),  # a report would take their place
    ],
)  # fmt: skip
def test_a_name_that_can_be_no_output_is_told_before_anything_else(
    tmp_path: Path, name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(b"x")
    for begin in (caption, dry_run, lambda clip, out: list(check_extras(Path(out), Extras(formats="srt")))):
        with pytest.raises(OutputError, match=said):
            begin("clip.mp4", name)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


@pytest.mark.parametrize("name", ["notes.txt", "clip.mp4", "rows.parquet"])
def test_what_holds_no_captions_is_told_before_a_model_is_looked_for(tmp_path: Path, name: str) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "rows.parquet").mkdir()
    for file in ("notes.txt", "clip.mp4", "rows.parquet/data.parquet"):
        (tmp_path / file).write_bytes(b"mine")
    options = CaptionOptions(model=tmp_path / "none")
    for begin in (caption, dry_run):
        with pytest.raises(OutputError, match=f"{name}: is there already and holds no captions"):
            begin(str(tmp_path / "*.mp4"), tmp_path / name, options)


def test_a_file_in_the_place_of_parts_is_told(tmp_path: Path) -> None:
    (tmp_path / "file.parquet").write_text("x")
    with pytest.raises(OutputError, match="is one file; Parquet output is a folder"):
        Output.open(tmp_path / "file.parquet", RECIPE)


def test_read_only_is_one_line(tmp_path: Path) -> None:
    """A folder, then a file, that a plain user may not write; root gives its rights away first."""
    (tmp_path / "sealed").mkdir()
    (tmp_path / "sealed" / "old.jsonl").write_text("")
    (tmp_path / "sealed").chmod(0o555)
    for folder in (tmp_path, *tmp_path.parents):
        if Path(tempfile.gettempdir()) in folder.parents:
            folder.chmod(0o755)  # so that nobody may come as far as the folder
    code = (
        "import os, sys; from pathlib import Path; from tests.caption_rows import RECIPE, Output\n"
        "os.geteuid() or os.setuid(65534)\n"
        "for name in ('new.jsonl', 'old.jsonl', 'new.parquet'):\n"
        "    try: Output.open(Path(sys.argv[1]) / name, RECIPE)\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "sealed")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=True)
    (tmp_path / "sealed").chmod(0o700)
    said = [line for line in done.stdout.splitlines() if "pip install" not in line]
    assert len(said) >= 2
    assert all(line.startswith("OutputError") and "may not be written" in line for line in said)


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    """A limit on the size of files is a disk that fills in the middle of a row."""
    out = tmp_path / "out.jsonl"
    code = (
        "import resource, signal, sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path; from tests.caption_rows import *\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "out = Path(sys.argv[1]); n = 0\n"
        "with Output.open(out, RECIPE) as output:\n"
        "    while True:\n"
        "        output.add(row_of(item_at(out.parent, n))); n += 1; print(n, flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(out), str(ROOT)], capture_output=True, text=True, timeout=120
    )
    assert "OutputError" in done.stderr.strip().splitlines()[-1]
    assert "every row before this is safe" in done.stderr.strip().splitlines()[-1]
    written = int(done.stdout.split()[-1])
    assert 3 < written < 20
    assert out.read_bytes().endswith(b"}\n")
    with Output.open(out, RECIPE) as output:
        assert len(output) == written
        output.add(row_of(item_at(tmp_path, written)))
    assert len(rows_in(out)) == written + 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_moment_nothing_is_lost_and_nothing_twice(out: Path, tmp_path: Path, seed: int) -> None:
    """kill -9 a writer, again and again; what it said was written stays written, and the end has every row once."""
    count, rng = 60, random.Random(seed)
    command = [sys.executable, "-m", "tests.caption_rows", str(out), str(count)]
    told: set[int] = set()
    for _ in range(4):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as writer:
            assert writer.stdout is not None
            for _ in range(rng.randrange(1, 20)):
                line = writer.stdout.readline()
                told |= {int(line)} if line else set()
            time.sleep(rng.random() * 0.01)
            writer.kill()
            told |= {int(line) for line in writer.stdout.read().split("\n")[:-1]}
        with Output.open(out, RECIPE) as output:
            known = {n for n in range(count) if output.status_of(item_like(tmp_path, n), RECIPE.digest)}
        assert told <= known
    for _ in range(2):  # failures are tried again once, then all is well
        subprocess.run(command, check=True, capture_output=True, timeout=300, cwd=ROOT)
    rows = rows_in(out)
    assert sorted(row.video for row in rows) == sorted(item_like(tmp_path, number).video for number in range(count))
    assert all(row.status == "ok" for row in rows)
    assert all(row.caption.startswith(f"Caption {Path(row.video).stem[4:]} ") for row in rows)


def test_a_part_is_sealed_once_whenever_the_kill_came(tmp_path: Path) -> None:
    """Both the journal and its sealed part on disk: killed between the two steps."""
    pytest.importorskip("pyarrow")
    out = tmp_path / "out.parquet"
    with Output.open(out, RECIPE) as output:
        for number in range(3):
            output.add(row_of(item_at(tmp_path, number)))
        journal = (out / "_part-000001.jsonl").read_bytes()
        assert journal.count(b"\n") == 3
    (out / "_part-000001.jsonl").write_bytes(journal)
    (out / "_part-000001.parquet.part").write_bytes(b"half")
    with Output.open(out, RECIPE) as output:
        assert len(output) == 3
    assert len(rows_in(out)) == 3
    assert not list(out.glob("*.part"))
    (out / "part-000001.parquet").unlink()
    (out / "_part-000001.jsonl").write_bytes(journal[:-20])
    with Output.open(out, RECIPE) as output:
        assert len(output) == 2


def test_pandas_people_read_the_folder(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "out.parquet"
    with Output.open(out, RECIPE) as output:
        for number in range(3):
            output.add(row_of(item_at(tmp_path, number)))
    table = parquet.read_table(out).to_pylist()
    assert [row["caption"] for row in table] == ["A circle moves."] * 3
    assert table[0]["frames"] == [{"time": 0.5, "tokens": 36}]
    assert table[0]["usage"]["video_tokens"] == 36


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_what_the_benchmark_of_large_outputs_asks(tmp_path: Path, name: str) -> None:
    make(tmp_path / name, 300)
    assert measure(tmp_path / name, 300).keys() >= {"open_seconds", "ask_microseconds", "peak_megabytes"}


def test_one_promise_a_clip_in_the_manifest(tmp_path: Path) -> None:
    out, item = tmp_path / "out.jsonl", item_at(tmp_path, 1)
    cut = Cut("fixed:2s", item.stamp(), ((0.0, 2.0), (2.0, 4.0)))
    for number in range(3):
        with Output.open(out, RECIPE) as output:
            if number == 0:
                output.admitted(item)
                output.admitted(item)
            output.cut(item, cut)
    lines = [json.loads(line) for line in manifest_of(out).read_text().splitlines()]
    assert len(lines) == 5  # the recipe, three clips, one cut
    assert lines[0] == {"recipe": RECIPE.digest, "is": json.loads(json.dumps(lines[0]["is"]))}
    assert lines[0]["is"]["prompt"] == "describe the video."


@given(
    caption=st.text(),
    video=st.text(min_size=1),
    start=st.one_of(st.none(), st.floats(0, 1e6)),
    status=st.sampled_from(["ok", "truncated", "repetitive", "duplicate", "undecodable", "error"]),
)
def test_any_row_survives_its_line(caption: str, video: str, start: float | None, status: Status) -> None:
    item = Item(video=video, path="nowhere", start=start)
    row = replace(row_of(item, status), caption=caption, error=caption or None)
    line = row.to_line()
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert CaptionRow.from_dict(json.loads(line)) == row
    assert head_of(line) == (row.id, row.key, row.recipe, row.stamp, row.status)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), max_size=60), st.integers(0, 60))
@settings(deadline=None)
def test_the_map_finds_the_last_as_a_dict_does(entries: Sequence[tuple[int, int]], settled: int) -> None:
    known, plain = DigestMap(), dict[tuple[str, int], int]()
    replaced = []
    for row, (number, code) in enumerate(entries):
        digest = digest_of(number)
        known.add(digest, code, row)
        if (digest, code) in plain:
            replaced.append(plain[digest, code])
        plain[digest, code] = row
        if row == settled:
            known.settle()
    for number in range(13):
        for code in range(3):
            assert known.find(digest_of(number), code) == plain.get((digest_of(number), code))
    known.settle()
    assert known.repeated() == sorted(replaced)


def test_a_collision_of_the_mix_is_no_hit() -> None:
    """Two digests whose sorted halves agree are still told apart by the other half."""
    known = DigestMap()
    known.add("0" * 32, 0, 7)
    known.settle()
    assert known.find("0" * 31 + "1", 0) is None
    assert known.find("0" * 32, 1) is None
    assert RowIndex.of(iter(())).by_key("0" * 32, "0" * 16) is None


@pytest.mark.parametrize(
    ("field", "value"), [("id", "x"), ("key", "A" * 32), ("recipe", "0" * 15), ("stamp", ""), ("status", "done")]
)
def test_a_row_is_checked_at_birth(tmp_path: Path, field: str, value: str) -> None:
    with pytest.raises(ValueError, match=field):
        replace(row_of(item_at(tmp_path, 1)), **{field: value})


def test_an_open_output_is_small(tmp_path: Path) -> None:
    """Fifty thousand rows opened within 50 MB; `benchmarks/caption_resume.py` asks the million."""
    out = tmp_path / "out.jsonl"
    line = row_of(item_at(tmp_path, 1)).to_line()
    with open(out, "wb") as file:
        for number in range(50_000):
            file.write(line[:8] + b"%032x" % number + line[40:51] + b"%032x" % number + line[83:])
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from vidllm.corpus.output import Output; from vidllm.corpus.recipe import Recipe\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "recipe = Recipe(model='m', prompt='p', plan={}, decoding={})\n"
        "with Output.open(Path(sys.argv[1]), recipe) as output:\n"
        "    print(len(output), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(out)], capture_output=True, text=True, check=True, timeout=300
    )
    rows, kilobytes = map(int, done.stdout.split())
    assert rows == 50_000
    assert kilobytes < 50_000


def test_a_name_of_any_bytes_and_half_a_character_are_kept(out: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"no \xff text \\udcff.mp4")
    items = [item_at(tmp_path, 1), Item(video=name, path=name), item_at(tmp_path, 2)]
    rows = [row_of(item, caption=f"half \ud83d {n}") for n, item in enumerate(items)]
    with Output.open(out, RECIPE) as output:
        for row in rows:
            output.add(row)
    with Output.open(out, RECIPE) as output:
        assert [output.row_of(item, RECIPE.digest) for item in items] == rows
        output.add(replace(rows[0], stamp="0" * 16))  # another stands for it: the part is written again
    assert list(standing_rows(out)) == [*rows[1:], replace(rows[0], stamp="0" * 16)]
    assert all(row.check == row.checksum() for row in standing_rows(out))


def test_an_output_of_two_names_lets_one_run_in_and_its_link_stays(tmp_path: Path) -> None:
    real, link = tmp_path / "real" / "out.jsonl", tmp_path / "out.jsonl"
    real.parent.mkdir()
    link.symlink_to(real)
    item = item_at(tmp_path, 1)
    with Output.open(link, RECIPE, retry_errors=True) as output:
        output.add(row_of(item, "error"))
        with pytest.raises(OutputError, match="another run is writing it"):
            Output.open(real, RECIPE)
        output.add(row_of(item))
    assert link.is_symlink()
    assert rows_in(real) == rows_in(link) == [row_of(item)]
    assert manifest_of(link) == manifest_of(real)


def test_rows_that_replace_others_are_whose_they_were(tmp_path: Path) -> None:
    out, item = tmp_path / "out.jsonl", item_at(tmp_path, 1)
    for status in ("error", "ok"):
        with Output.open(out, RECIPE, retry_errors=True) as output:
            output.add(row_of(item, status))  # type: ignore[arg-type]
            out.chmod(0o640)
    assert rows_in(out) == [row_of(item)]
    assert out.stat().st_mode & 0o777 == 0o640


def test_a_part_that_is_sealed_while_it_is_read_is_read(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    out, items = tmp_path / "out.parquet", [item_at(tmp_path, number) for number in range(2)]
    with Output.open(out, RECIPE) as output:
        output.add(row_of(items[0]))
    with Output.open(out, RECIPE) as output:
        output.add(row_of(items[1]))
        rows = written_rows(out)
        first = next(rows)
    assert [first, *rows] == [row_of(item) for item in items]


def test_ctrl_c_while_a_part_is_sealed_stays_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    out, item = tmp_path / "out.parquet", item_at(tmp_path, 1)
    close = LineFile.close

    def interrupted(file: LineFile) -> None:
        close(file)
        if file.path.name == "_part-000001.jsonl":
            raise KeyboardInterrupt

    monkeypatch.setattr(LineFile, "close", interrupted)
    monkeypatch.setattr("vidllm.corpus.stores.ROWS_PER_PART", 1)
    with pytest.raises(KeyboardInterrupt), Output.open(out, RECIPE) as output:
        output.add(row_of(item))
    assert list(standing_rows(out)) == [row_of(item)]


def test_a_failure_is_told_of_a_copy_by_its_own_name(out: Path, tmp_path: Path) -> None:
    one, other = item_at(tmp_path, 1), item_at(tmp_path, 2)
    with Output.open(out, RECIPE) as output:
        ledger = Ledger(output, Look(spec=server_spec(), prompt=RECIPE.prompt))
        assert ledger.wanted(one, Seen(id="0" * 32))
        assert not ledger.wanted(other, Seen(id="0" * 32))
        row = CaptionRow.of(one, id="0" * 32, recipe=RECIPE.digest, status="error", error=f"{one.video}: is too long")
        _, copy = ledger.settle(row)
    assert (copy.video, copy.status, copy.duplicate_of) == (other.video, "error", one.video)
    assert copy.error == f"{other.video}: is too long"


def captioned(out: Path, *clips: tuple[Item, str]) -> list[tuple[str, str | None]]:
    """A run over (clip, content)s: the rows that stand then, (number, of which clip it is a copy)."""
    with Output.open(out, RECIPE) as output:
        ledger = Ledger(output, Look(spec=server_spec(), prompt=RECIPE.prompt))
        for item, content in clips:
            if ledger.wanted(item, Seen(id=content * 32)):
                ledger.settle(CaptionRow.of(item, id=content * 32, recipe=RECIPE.digest, status="ok"))
    rows = [(row.video, row.duplicate_of) for row in rows_in(out)]
    return [(Path(video).stem[-1], original and Path(original).stem[-1]) for video, original in rows]


def test_a_copy_is_of_a_clip_that_has_its_content(out: Path, tmp_path: Path) -> None:
    """Another video may have taken its original's place, in an earlier run or in this one."""
    one, two, three = (item_at(tmp_path, number) for number in (1, 2, 3))
    assert captioned(out, (one, "a"), (two, "a")) == [("1", None), ("2", "1")]
    assert captioned(out, (one, "b"), (three, "a")) == [("2", "1"), ("1", None), ("3", "2")]
    assert captioned(out, (two, "b"), (three, "b"), (one, "a")) == [("2", "1"), ("3", "1"), ("1", None)]


def test_a_copy_that_was_touched_is_looked_for_among_others(out: Path, tmp_path: Path) -> None:
    one, two = item_at(tmp_path, 1), item_at(tmp_path, 2)
    captioned(out, (one, "a"), (two, "a"))
    assert captioned(out, (two, "a")) == [("1", None), ("2", "1")]
    assert captioned(out, (one, "b"), (two, "a")) == [("1", None), ("2", None)]


def test_a_thread_that_wakes_after_the_end_writes_nothing(out: Path, tmp_path: Path) -> None:
    """It waited for a line on stdin, say; by now the output's handle may be another file's."""
    early, late = item_at(tmp_path, 1), item_at(tmp_path, 2)
    with Output.open(out, RECIPE) as output:
        ledger = Ledger(output, Look(spec=server_spec(), prompt=RECIPE.prompt))
        assert not ledger.skip(early)
        ledger.close()
        before = manifest_of(out).read_bytes()
        assert ledger.skip(late)
        cut = Cut("fixed:1s", late.stamp(), ((0.0, 1.0),))
        ledger.cut(late, cut)
        assert ledger.known_cut(late, cut.split, cut.stamp) is None
        assert not ledger.wanted(late, Seen(id="0" * 32))
        assert manifest_of(out).read_bytes() == before
