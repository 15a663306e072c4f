"""What a run says of itself while it goes on, what it asks, and how a long video's captions become one."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.caption_rows import RECIPE, item_at
from vidllm.corpus.item import Item
from vidllm.corpus.ledger import Ledger
from vidllm.corpus.looking import Look, Seen
from vidllm.corpus.output import Output
from vidllm.corpus.progress import PLAIN_SECONDS, ProgressLine, Tally, duration
from vidllm.corpus.prompts import DEFAULT, PRESETS, read_prompt
from vidllm.corpus.rows import CaptionRow, Status
from vidllm.corpus.scenes import Cut
from vidllm.corpus.summary import Summaries, Wish
from vidllm.errors import ConfigError
from vidllm.model.families import bare_spec

ITEM = Item(video="film.mp4", path="film.mp4")


def row(status: str = "ok", **more: object) -> CaptionRow:
    made = CaptionRow.of(ITEM, id="0" * 32, recipe="0" * 16, status=status)  # type: ignore[arg-type]
    return replace(made, **more)  # type: ignore[arg-type]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_rates_and_the_end_follow_from_what_was_written() -> None:
    tally = Tally(listed=100, parts=20, skipped=20)
    tally.began -= 10
    for _ in range(50):
        tally.add(row(), 12.0)
    assert tally.total == 120
    assert tally.clips_a_second == pytest.approx(5, rel=0.1)
    assert tally.times_real_time == pytest.approx(60, rel=0.1)
    assert tally.eta_seconds == pytest.approx(10, rel=0.1)
    assert tally.line().startswith("70 of 120 clips · ")
    assert "ok 50 · 20 done before" in tally.line()


def test_one_cause_is_one_whatever_row_of_a_data_set_it_met() -> None:
    tally = Tally()
    for number in (8, 123):
        tally.add(row("error", error=f"film.mp4: no such file (rows.jsonl#{number}); name the folder"), 0.0)
    assert tally.causes == {"error: no such file (rows.jsonl); name the folder": 2}


def test_nothing_is_invented_before_the_first_row() -> None:
    assert Tally(listed=5).line() == "0 of 5 clips"
    assert Tally().eta_seconds is None


def test_the_clock_stands_while_the_model_is_loaded() -> None:
    tally = Tally(listed=5)
    tally.began -= 60
    tally.set_loading(True)
    assert tally.line() == "0 of 5 clips · loading the model"
    assert tally.seconds < 30
    tally.began -= 60
    tally.set_loading(False)
    tally.add(row(), 1.0)
    assert tally.seconds < 30, "the first caption came with the model"
    assert "loading" not in tally.line()


def test_rows_that_needed_no_model_make_no_pace() -> None:
    """What can not be read has its row while the model is loaded: 28,937.70 clips/s, 0 s left."""
    tally = Tally(listed=10)
    tally.set_loading(True)
    tally.add(row("undecodable", error="film.mp4: no video"), 0.0)
    tally.set_loading(True)
    assert tally.line() == "1 of 10 clips · undecodable 1 · loading the model"
    tally.set_loading(False)
    tally.began -= 4
    tally.add(row(), 8.0)
    assert tally.clips_a_second == pytest.approx(1 / 4, rel=0.1)
    assert tally.times_real_time == pytest.approx(2, rel=0.1)
    assert tally.eta_seconds == pytest.approx(32, rel=0.1)


def test_causes_are_counted_without_the_clips_names() -> None:
    tally = Tally()
    for name in ("a.mp4", "b.mp4"):
        tally.add(row("undecodable", video=name, error=f"{name}: the file is empty"), 0)
    assert tally.causes == {"undecodable: the file is empty": 2}


def test_notes_are_counted_by_clip_without_numbers_and_times() -> None:
    tally = Tally()
    damaged = "6 pictures are damaged (at 1.46, ... s)"
    lost = "2 frames could not be decoded (at 3.00 s); others stand in"
    tally.add(row(notes=(damaged,)), 1.0)
    tally.add(row(notes=(damaged.replace("6", "1"), lost)), 1.0)
    tally.add(row(), 1.0)
    assert tally.notes == {"pictures are damaged": 2, "frames could not be decoded; others stand in": 1}
    for held in (3, 5):
        tally.add(row(notes=(f"8 frames were asked for and the range holds {held}; all of them are shown",)), 1.0)
    assert tally.notes["frames were asked for and the range holds; all of them are shown"] == 2


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.4, "0 s"), (59, "59 s"), (187, "3:07"), (7387, "2:03:07"), (273600, "3 d 04 h")]
)
def test_a_duration_is_told_as_people_tell_it(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_a_terminal_has_one_line_in_its_place_and_a_log_one_now_and_then() -> None:
    now = [0.0]
    terminal, log = Terminal(), io.StringIO()
    lines = [ProgressLine(stream, clock=lambda: now[0]) for stream in (terminal, log)]
    for _ in range(100):
        now[0] += 1.0
        for line in lines:
            line(Tally(listed=5))
    lines[0].clear()
    assert "\n" not in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[2K")
    assert log.getvalue().count("\n") == 100 // PLAIN_SECONDS


def test_a_run_goes_on_when_nobody_reads_its_progress_any_more() -> None:
    class Unread(Terminal):
        def flush(self) -> None:
            raise BrokenPipeError

    line = ProgressLine(Unread())
    line(Tally(listed=5))
    line.say("note: one")
    line.clear()


def test_a_prompt_is_a_preset_a_file_or_words(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("What is here?\n", encoding="utf-8")
    assert read_prompt(None) == DEFAULT
    assert read_prompt("short") == PRESETS["short"]
    assert read_prompt(f"@{tmp_path / 'p.txt'}") == "What is here?"
    (tmp_path / "p.txt").write_text("What is here?\r\n", encoding="utf-8-sig")
    assert read_prompt(f"@{tmp_path / 'p.txt'}") == "What is here?"
    assert read_prompt("Say what you see.") == "Say what you see."
    (tmp_path / "empty.txt").write_bytes(b" \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for wrong in ("  ", "shrot", f"@{tmp_path}", f"@{tmp_path / 'empty.txt'}", f"@{tmp_path / 'latin.txt'}"):
        with pytest.raises(ConfigError) as caught:
            read_prompt(wrong)
        assert "\n" not in str(caught.value)


class Rows:
    """Rows as a ledger gives them: the part that begins at second n says captions[n]; the film has no row yet."""

    def __init__(self, captions: Sequence[str]) -> None:
        self.captions = captions

    def skip(self, item: Item) -> bool:
        return False

    def wanted(self, item: Item, seen: Seen) -> bool:
        return True

    def rows_of(self, items: Sequence[Item]) -> list[CaptionRow | None]:
        return [
            None if item.start is None
            else row(caption=self.captions[int(item.start)], start=int(item.start), end=int(item.start) + 1)
            for item in items
        ]  # fmt: skip


def summarise(captions: Sequence[str], context: int) -> tuple[list[str], int]:
    """All prompts that are asked until the film has its row, each answered by "sum k", and in how many rounds."""
    summaries = Summaries(Rows(captions), Look(spec=bare_spec(4, 4, context), prompt=""))
    summaries.expect(ITEM, [replace(ITEM, start=float(n), end=n + 1.0) for n in range(len(captions))])
    prompts: list[str] = []
    for rounds in range(1, 20):
        wishes = summaries.take_wishes()
        prompts += [wish.prompt for wish in wishes]
        for number, wish in enumerate(wishes):
            if wish.then is not None:
                wish.then(f"sum {number}")
            else:
                return prompts, rounds
    raise AssertionError("the summaries do not end")


def test_captions_that_fit_are_summed_up_at_once() -> None:
    prompts, rounds = summarise(["a dog runs", "a dog sleeps"], 4096)
    assert (len(prompts), rounds) == (1, 1)
    assert prompts[0].index("0:00-0:01: a dog runs") < prompts[0].index("0:01-0:02: a dog sleeps")


def test_a_film_too_long_for_one_prompt_is_summed_up_coarse_to_fine() -> None:
    captions = [f"in part {n} of the film the dog and the cat run across the yard" for n in range(40)]
    prompts, rounds = summarise(captions, 256)
    assert rounds == 2
    assert summarise(captions, 32)[1] > 2
    assert all(sum(caption in prompt for prompt in prompts) == 1 for caption in [f"{c}\n" for c in captions[:3]])
    assert "sum 0" in prompts[-1]


def test_a_film_whose_parts_have_no_captions_has_a_cause() -> None:
    summaries = Summaries(Rows(["", ""]), Look(spec=bare_spec(4, 4, 512), prompt=""))
    summaries.expect(ITEM, [ITEM, ITEM])
    [wish] = summaries.take_wishes()
    assert (wish.opened.seen.status, wish.prompt) == ("error", "")


def test_a_summary_is_of_the_captions_as_they_are(tmp_path: Path) -> None:
    """Another prompt has its own, a part that failed and was tried again is in it, and what was refused is not."""
    film, out = item_at(tmp_path, 1), tmp_path / "out.jsonl"
    parts = [replace(film, start=float(n), end=n + 1.0) for n in range(2)]

    def asked(prompt: str, second: Status, said: str) -> list[Wish]:
        """What is asked of the film in a run where its second part ends so; it is answered."""
        look = Look(spec=bare_spec(4, 4, 512), prompt=prompt)
        with Output.open(out, RECIPE.asking(prompt), retry_errors=True) as output:
            ledger = Ledger(output, look)

            def settle(item: Item, id: str, status: Status, caption: str) -> None:
                made = CaptionRow.of(item, id=id, recipe=ledger.digest(item), status=status)
                ledger.settle(replace(made, caption=caption, prompt=look.prompt_of(item)))

            ledger.cut(film, Cut("fixed:1s", film.stamp(), ((0.0, 1.0), (1.0, 2.0))))
            settle(parts[0], "1" * 32, "ok", f"{prompt} a dog runs")
            settle(parts[1], "2" * 32, second, said)
            summaries = Summaries(ledger, look)
            summaries.expect(film, parts)
            wishes = summaries.take_wishes()
            for wish in wishes:
                settle(wish.opened.item, wish.opened.seen.id, "ok", "A film.")
            return wishes

    [refused] = asked("What is here?", "error", "I can not see it.")
    assert "a dog runs" in refused.prompt
    assert "I can not see it." not in refused.prompt
    assert refused.opened.notes == ("1 of 2 parts are missing in it",)
    [again] = asked("What is here?", "ok", "a dog sleeps")
    assert "a dog sleeps" in again.prompt
    assert again.opened.notes == ()
    assert not asked("What is here?", "ok", "a dog sleeps")
    [other] = asked("Who is here?", "ok", "a dog sleeps")
    assert "Who is here? a dog runs" in other.prompt
    assert not asked("What is here?", "ok", "a dog sleeps"), "both stand"
