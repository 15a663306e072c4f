"""Mixtures: what is drawn of each source, how often, and always the same for one seed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from vidllm.errors import ConfigError
from vidllm.train.mixture import Mixture, Source, draw, load_mixture, mixture_of, read_mixture
from vidllm.train.row import Problem, TrainRow
from vidllm.train.rows import read_rows


def write(path: Path, count: int, *, bad: int = 0) -> Path:
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "Yes."}]
    rows = [{"id": f"{path.stem}{i}", "conversations": turns} for i in range(count)] + [{"id": "bad"}] * bad
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ids(rows: tuple[TrainRow, ...]) -> list[str]:
    return [row.origin.id for row in rows]


@pytest.mark.parametrize(
    ("sampling", "weight", "count"),
    [
        ("all", 1, 40), ("first:7", 1, 7), ("first:10%", 1, 4), ("random:7", 1, 7), ("random:25%", 1, 10),
        ("random:2.5%", 1, 1), ("random:4%", 1, 2), ("first:100", 1, 40), ("all", 2, 80), ("all", 0.5, 20),
        ("first:10", 1.5, 15),
    ],
)  # fmt: skip
def test_how_many_rows_are_drawn(tmp_path: Path, sampling: str, weight: float, count: int) -> None:
    path = write(tmp_path / "a.jsonl", 40)
    source = Source(path=path, sampling=sampling, weight=weight)
    drawn = draw(read_rows(path).rows, source, 0)
    assert len(drawn) == count
    times = Counter(ids(drawn)).values()
    assert max(times) - min(times) <= 1
    assert [int(name[1:]) for name in ids(drawn)] == sorted(int(name[1:]) for name in ids(drawn))


def test_random_is_a_function_of_the_seed(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "a.jsonl", 1000)).rows
    source = Source(path=tmp_path / "a.jsonl", sampling="random:100")
    assert draw(rows, source, 3) == draw(rows, source, 3)
    both = set(ids(draw(rows, source, 3))) & set(ids(draw(rows, source, 4)))
    assert 0 < len(both) < 40, "two draws of a tenth share about a hundredth"
    few = Source(path=Path("a.jsonl"), sampling="random:5")
    assert draw(range(40), few, 3) == (4, 8, 17, 30, 35), "the same for ever: a resumed run must find its rows"


def test_what_is_drawn_of_a_file_does_not_depend_on_the_others(tmp_path: Path) -> None:
    """Where a source stands, what stands beside it, and the folder it lies in: none of them changes its rows."""
    half: dict[str, Any] = {"sampling": "random:50%"}
    (tmp_path / "elsewhere").mkdir()
    a, b, moved = (write(tmp_path / name, 60) for name in ("a.jsonl", "b.jsonl", "elsewhere/a.jsonl"))

    def drawn(*sources: Source, of: str = "a") -> list[str]:
        return [name for name in ids(read_mixture(Mixture(sources=sources), 5, read_rows).rows) if name.startswith(of)]

    first, second = Source(path=a, **half), Source(path=b, weight=0.3)
    alone = drawn(first)
    assert len(alone) == 30
    assert drawn(first, second) == drawn(second, first) == drawn(Source(path=moved, **half)) == alone
    assert drawn(first, second, of="b") == drawn(second, first, of="b") == drawn(second, of="b")


def test_sources_of_one_file_take_each_row_once_as_long_as_there_are_others(tmp_path: Path) -> None:
    """A file in two halves, or the rest of one whose first rows are taken, has no row twice in an epoch."""
    path = write(tmp_path / "a.jsonl", 60)
    (tmp_path / "link.jsonl").symlink_to(path)

    def times(*sources: dict[str, Any]) -> list[int]:
        named = [Source(path=path.parent / source.pop("name", "a.jsonl"), **source) for source in sources]
        drawn = Counter(ids(read_mixture(Mixture(sources=tuple(named)), 5, read_rows).rows))
        return sorted(drawn.values())

    half: dict[str, Any] = {"sampling": "random:50%"}
    assert times({**half}, {**half}) == [1] * 60
    assert times({**half}, {**half, "name": "link.jsonl"}) == [1] * 60
    assert times({"sampling": "first:20"}, {"sampling": "random:40"}) == [1] * 60
    assert times({"weight": 0.5}, {"weight": 0.5}) == [1] * 60
    assert times({"sampling": "random:40"}, {"sampling": "random:40"}) == [1] * 40 + [2] * 20
    assert times({}, {**half}) == [1] * 30 + [2] * 30


@pytest.mark.parametrize("much", [{"sampling": "first:0"}, {"sampling": "random:10%"}, {"weight": 0.1}])
def test_a_source_of_which_nothing_is_taken_is_told(tmp_path: Path, much: dict[str, Any]) -> None:
    sources = (Source(path=write(tmp_path / "a.jsonl", 4)), Source(path=write(tmp_path / "few.jsonl", 4), **much))
    with pytest.raises(ConfigError, match=r"few\.jsonl: sampling .* take none of its 4 rows"):
        read_mixture(Mixture(sources=sources), 0, read_rows)


@pytest.mark.parametrize(("taken", "told"), [("first:1", []), ("first:5", [5]), ("all", [5, 6])])
def test_a_mixture_reads_all_sources_and_the_problems_of_what_it_takes(
    tmp_path: Path, taken: str, told: list[int]
) -> None:
    write(tmp_path / "a.jsonl", 4)
    write(tmp_path / "b.jsonl", 4, bad=2)
    sources = f"sources:\n- {{path: a.jsonl, weight: 2}}\n- {{path: b.jsonl, sampling: '{taken}'}}\n"
    (tmp_path / "mix.yaml").write_text(sources)
    read = read_mixture(load_mixture(tmp_path / "mix.yaml"), 0, read_rows)
    assert ids(read.rows)[:9] == ["a0", "a0", "a1", "a1", "a2", "a2", "a3", "a3", "b0"]
    assert [problem.origin.line for problem in read.problems] == told


def test_bad_rows_are_told_once_and_not_compared_with_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong `media` folder makes every row of a corpus bad: all pairs of a hundred thousand would take hours."""
    path, compared, equal = write(tmp_path / "a.jsonl", 1, bad=200), Counter[str](), Problem.__eq__

    def counted(one: Problem, other: object) -> bool:
        compared["times"] += 1
        return equal(one, other)

    monkeypatch.setattr(Problem, "__eq__", counted)
    read = read_mixture(Mixture(sources=(Source(path=path, weight=2),)), 0, read_rows)
    assert [problem.origin.line for problem in read.problems] == [*range(2, 202)]
    assert compared["times"] <= 2 * 200


def test_a_bad_row_is_counted_where_it_stands(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", 4)
    path.write_text('{"id": "bad"}\n' + path.read_text())
    read = read_mixture(Mixture(sources=(Source(path=path, sampling="first:2"),)), 0, read_rows)
    assert ids(read.rows) == ["a0"]
    assert [problem.origin.line for problem in read.problems] == [1]


def test_paths_of_a_mixture_are_relative_to_its_folder(tmp_path: Path) -> None:
    (tmp_path / "mix.yaml").write_text("sources: [{path: a.jsonl, media: clips}, {path: b.jsonl}]")
    sources = load_mixture(tmp_path / "mix.yaml").sources
    assert [(source.path, source.media) for source in sources] == [
        (tmp_path / "a.jsonl", tmp_path / "clips"), (tmp_path / "b.jsonl", None)
    ]  # fmt: skip


def test_one_file_is_a_mixture_too(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", 2)
    assert mixture_of(path) == Mixture(sources=(Source(path=path),))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sources: []", "sources is empty"),
        ("sources:\n- {path: a.jsonl, sampling: last:3}", "sampling 'last:3' is none of"),
        ("sources:\n- {path: a.jsonl, sampling: 'random:101%'}", "is none of all"),
        ("sources:\n- {path: a.jsonl, sampling: first:3rd}", "is none of all"),
        ("sources:\n- {path: a.jsonl, sampling: 'random:0.2'}", "is none of all"),
        ("sources:\n- {path: a.jsonl, weight: 0}", "weight is 0"),
        ("sources:\n- {path: a.jsonl, wieght: 2}", "did you mean 'weight'"),
        ("sources:\n- {media: x}", "'path' is missing"),
    ],
)
def test_a_bad_mixture_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mix.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_mixture(tmp_path / "mix.yaml")
