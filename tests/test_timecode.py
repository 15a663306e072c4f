"""Times as people write them. The clip is 300 s long unless a test says otherwise; a moment is shown as one number."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidllm.errors import ConfigError
from vidllm.video.timecode import (
    Focus,
    find_focus,
    find_times,
    focus_notes,
    format_time,
    parse_time,
)

settings.register_profile("steady", deadline=None, max_examples=60)  # a busy machine is no failure
settings.load_profile("steady")

DURATION = 300.0
Span = float | tuple[float, float]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (90, 90.0),
        (1.5, 1.5),
        ("90", 90.0),
        (" 90 ", 90.0),
        ("90s", 90.0),
        ("0:30", 30.0),
        ("1:30", 90.0),
        ("0:01:30.5", 90.5),
        ("1:02:03", 3723.0),
        ("75:00", 4500.0),
        (".5", 0.5),
        ("00:01:30.5", 90.5),
        ("00:00:20,5", 20.5),
        ("00:00:20,500", 20.5),
        ("1m30s", 90.0),
        ("1m 30s", 90.0),
        ("1M30S", 90.0),
        ("1m30", 90.0),
        ("2m", 120.0),
        ("1h2m3s", 3723.0),
        ("1h2m3.5s", 3723.5),
        ("1h30m", 5400.0),
        ("90m", 5400.0),
        ("90 s", 90.0),
    ],
)
def test_a_time_is_read(text: str | float, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abc",
        "0:90",
        "1:75:00",
        "1:2:3:4",
        "-3",
        "1,5",
        "nan",
        "inf",
        "30:",
        "1:-2",
        "٣",
        "1m90s",
        "1h60m",
        "1h2m60s",
        "1h90s",
        "30s1m",
        "m",
        "s",
        "h m",
        "1m2m",
        "1:30s",
        "1,5s",
        "0:20,5,5",
        "20 minutes ago",
        "1h:30",
    ],
)
def test_what_is_no_time_gets_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_time(text)
    assert "\n" not in str(caught.value)
    assert "m:ss" in str(caught.value)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_a_number_that_is_no_time_is_refused_too(seconds: float) -> None:
    with pytest.raises(ConfigError, match="is not a time"):
        parse_time(seconds)


@pytest.mark.parametrize(
    ("seconds", "decimals", "shown"),
    [
        (0, 0, "0:00"),
        (30, 0, "0:30"),
        (59.999, 0, "0:59"),
        (29.9999999999, 0, "0:30"),
        (62.29, 2, "1:02.29"),
        (3599.96, 1, "59:59.9"),
        (3723.4, 0, "1:02:03"),
        (-30, 0, "-0:30"),
    ],
)
def test_a_time_is_shown_cut_not_rounded(seconds: float, decimals: int, shown: str) -> None:
    assert format_time(seconds, decimals=decimals) == shown


@given(st.integers(0, 359_999_999))
def test_what_is_shown_reads_back(milliseconds: int) -> None:
    assert parse_time(format_time(milliseconds / 1000, decimals=3)) == pytest.approx(milliseconds / 1000, abs=1e-9)


NAMED: list[tuple[str, list[Span]]] = [
    # clocks
    ("what happens at 0:30?", [30]),
    ("0:30?", [30]),
    ("0:30 what is the man doing", [30]),
    ("What is in the frame at 00:00:30.500", [30.5]),
    ("At 1:02, who speaks?", [62]),
    ("what is the score at 2:12?", [132]),
    ("what is the caption for 0:30?", [30]),
    ("@0:30", [30]),
    ("(0:30) why does he laugh?", [30]),
    ("timestamp 0:30", [30]),
    ("what does the sign say at 0:30", [30]),
    ("Compare 0:10 and 0:30.", [10, 30]),
    ("which is brighter, 0:10 or 0:20?", [10, 20]),
    # amounts
    ("what happens at 90 s?", [90]),
    ("what happens at 90s?", [90]),
    ("at 30 seconds", [30]),
    ("at 30 secs, what", [30]),
    ("At thirty-two seconds what happens?", [32]),
    ("at about 30 seconds", [30]),
    ("at exactly 12.5 seconds", [12.5]),
    ("around 30 seconds, what is he holding", [30]),
    ("what happens after 30 seconds", [30]),
    ("before 30 seconds?", [30]),
    ("at second 30", [30]),
    ("count the objects at second 30.", [30]),
    ("describe what happens at second 0.", [0]),
    ("at minute 2", [120]),
    ("at 2 minutes", [120]),
    ("AT TWO MINUTES?", [120]),
    ("at 2.5 minutes", [150]),
    ("at one and a half minutes", [90]),
    ("at a minute and a half", [90]),
    ("at half a minute", [30]),
    ("at 1/2 minute", [30]),
    ("half of a minute in, what happens?", [30]),
    ("where is the ball half a minute in and a minute in?", [30, 60]),
    ("what happens 1½ minutes in?", [90]),
    ("at 1 1/2 minutes", [90]),
    ("at 10/20 seconds", [10, 20]),
    ("at 1m20s", [80]),
    ("at 1 minute 20", [80]),
    ("at the 1-minute-20-second mark", [80]),
    ("what happens 5 seconds after 0:30?", [35]),
    ("what happens 5 seconds before 0:30?", [25]),
    ("at 1 min 20 sec", [80]),
    ("at 1 minute, 20 seconds", [80]),
    ("at one minute and twenty seconds", [80]),
    ("at 1'20\" what is seen?", [80]),
    ("at t=12.5s", [12.5]),
    ("t = 30", [30]),
    ("what happens at the 30 second mark?", [30]),
    ("around the 2-minute mark", [120]),
    ("the one minute mark", [60]),
    ("What happens half a minute in?", [30]),
    ("half a minute in, what happens", [30]),
    ("30 seconds into the video he turns", [30]),
    ("what do we see 30 seconds into it", [30]),
    ("at the 30th second", [30]),
    ("in the 2nd minute", [(60, 120)]),
    ("at 10 seconds and 30 seconds", [10, 30]),
    # ranges
    ("What happens between 0:10 and 0:20?", [(10, 20)]),
    ("from 1:10 to 1:20 what", [(70, 80)]),
    ("0:10-0:20", [(10, 20)]),
    ("[00:10 – 00:20]", [(10, 20)]),
    ("0:10 to 0:20", [(10, 20)]),
    ("between 10 and 20 seconds", [(10, 20)]),
    ("from 10 to 20 seconds", [(10, 20)]),
    ("from 10-20 s", [(10, 20)]),
    ("10s to 20s, what happens", [(10, 20)]),
    ("10s-20s", [(10, 20)]),
    ("in the interval [10s, 20s]", [(10, 20)]),
    ("from 10s until 20s", [(10, 20)]),
    ("between the 10th and 20th second", [(10, 20)]),
    ("seconds 10 to 20", [(10, 20)]),
    ("minutes 2-3", [(120, 180)]),
    ("between minute 1 and minute 2", [(60, 120)]),
    ("from 1 to 2 minutes", [(60, 120)]),
    ("from the 10 second mark to the 20 second mark", [(10, 20)]),
    ("from the start to 0:20", [(0, 20)]),
    ("from 4:40 to the end", [(280, 300)]),
    ("from 4:30 onwards", [(270, 300)]),
    ("until 0:30", [(0, 30)]),
    ("up to 30 seconds", [(0, 30)]),
    # from an end of the clip
    ("in the first ten seconds", [(0, 10)]),
    ("what happens in the first 10s", [(0, 10)]),
    ("during the opening five seconds", [(0, 5)]),
    ("Describe the last 5 seconds.", [(295, 300)]),
    ("in the final half minute", [(270, 300)]),
    ("10 seconds before the end", [290]),
    ("20 seconds from the start", [20]),
    ("after the first 10 seconds", [10]),
    ("before the last 10 seconds", [290]),
    # places
    ("what happens at the end?", [(290, 300)]),
    ("what is seen at the very end of the video", [(290, 300)]),
    ("what happens in the end?", [(290, 300)]),
    ("how does the video end?", [(290, 300)]),
    ("what is in the last scene", [(290, 300)]),
    ("the final few seconds", [(290, 300)]),
    ("what is at the beginning?", [(0, 10)]),
    ("just before the end", [(290, 300)]),
    ("right after the start", [(0, 10)]),
    ("at the start of this clip", [(0, 10)]),
    ("how does the movie begin", [(0, 10)]),
    ("what happens in the middle?", [(145, 155)]),
    ("the middle of the video", [(145, 155)]),
    ("halfway through, who enters?", [(145, 155)]),
    ("in the second half of the video", [(150, 300)]),
    ("the first third of the clip", [(0, 100)]),
    ("80% into the video", [240]),
    ("a third of the way through", [100]),
    ("the former half of the video", [(0, 150)]),
    ("two thirds of the way through", [200]),
    ("three quarters of the way through the clip", [225]),
    # Chinese
    ("第30秒发生了什么", [30]),
    ("第三十秒的时候有什么", [30]),
    ("在30秒的时候", [30]),
    ("30秒处是什么", [30]),
    ("视频在30秒发生了什么", [30]),
    ("1分20秒发生了什么？", [80]),
    ("第1分20秒", [80]),
    ("一分二十秒时他在做什么", [80]),
    ("第二分钟", [(60, 120)]),
    ("一分半的时候", [90]),
    ("1分半钟的时候", [90]),
    ("1分钟半的时候", [90]),
    ("半分钟处", [30]),
    ("０：３０发生了什么", [30]),
    ("30秒左右", [30]),
    ("0:10到0:20", [(10, 20)]),
    ("从0:10到0:20之间发生了什么", [(10, 20)]),
    ("10秒到20秒发生了什么", [(10, 20)]),
    ("第10到20秒", [(10, 20)]),
    ("第十秒至第二十秒", [(10, 20)]),
    ("从开头到20秒", [(0, 20)]),
    ("从4:40到结尾", [(280, 300)]),
    ("前十秒发生了什么", [(0, 10)]),
    ("开头5秒", [(0, 5)]),
    ("30s发生了什么", [30]),
    ("0 s发生了什么？", [0]),
    ("30 seconds发生了什么？", [30]),
    ("the 30-second mark发生了什么？", [30]),
    ("在30s", [30]),
    ("0:30 时红色圆形在哪里", [30]),
    ("5s到10s", [(5, 10)]),
    ("最后5秒", [(295, 300)]),
    ("最後五秒鐘", [(295, 300)]),
    ("开头是什么", [(0, 10)]),
    ("一开始他在做什么", [(0, 10)]),
    ("结尾发生了什么", [(290, 300)]),
    ("視頻結尾發生了什麼", [(290, 300)]),
    ("最后发生了什么", [(290, 300)]),
    ("视频中间发生了什么", [(145, 155)]),
    ("视频的前半段", [(0, 150)]),
]


@pytest.mark.parametrize(("question", "spans"), NAMED)
def test_a_named_time_is_found(question: str, spans: list[Span]) -> None:
    focus = find_focus(question, DURATION)
    assert focus is not None
    shown = [span[0] if span[0] == span[1] else span for span in focus.spans]
    assert shown == pytest.approx(spans) if not any(isinstance(s, tuple) for s in spans) else shown == spans


NOT_NAMED = [
    "what happens?",
    "describe the video",
    # ratios, scales, sizes
    "is this a 3:2 aspect video?",
    "is it 16:9?",
    "is this 16:10 aspect ratio",
    "an aspect ratio of 16:10",
    "a scale of 1:50",
    "is it a 1:50 scale model?",
    "mixed 1:10 with water",
    "a slope of 1:12",
    # hours of the day
    "what does he do at 5 pm?",
    "at 5:30 pm",
    "at 5:30 a.m.",
    "at 17:30 o'clock",
    "10:30 in the morning",
    "Monday at 10:30",
    "2024-05-01 12:30",
    "at 12:30 UTC",
    "10 minutes past five",
    "5 minutes to midnight",
    "catch the 8:15 train",
    # what a clock or a board in the picture says
    "does the clock show 10:15?",
    "the watch reads 10:10",
    "the time is 12:30",
    "is the timer set to 10:00?",
    # scores and verses
    "the score is 21:15",
    "who won 21:15?",
    "the home team leads by 21:15",
    "a 21:15 win",
    "what does John 3:16 say?",
    "Psalm 23:01",
    "verse 12:30",
    # years, decades, numbers
    "in 1998, at 2020",
    "the 90s music",
    "at 30",
    "at 30 fps",
    "at 60 Hz",
    "at 30 m/s",
    "at 5 m",
    "the man at 30 years",
    "frame 120",
    "30 people",
    # lengths of time
    "a 30-second clip",
    "for 30 seconds",
    "every 5 seconds",
    "it takes 10 seconds",
    "does it take between 10 and 20 seconds?",
    "lasts 1:30",
    "how long does it last",
    "how many seconds does it last",
    "30 seconds later",
    "30 seconds long",
    "within 10 seconds",
    "summarise in 30 seconds",
    "in the next 10 seconds",
    "at 30-second intervals",
    "at 2 minutes per lap",
    "1 minute 30 people",
    "after the end of the road",
    "cook 30 seconds in the oven",
    "wait a second",
    "just a minute",
    # words that look like places in time
    "the second time",
    "the second man",
    "the first person",
    "the last person",
    "what is the first thing",
    "which happens first",
    "a last minute goal",
    "a last-second shot",
    "at the end of the road",
    "who is in the first row at the end of the table",
    "at the start line",
    "the end zone",
    "what is in the middle?",
    "in the middle of the table",
    "halfway through the door",
    "the first half of the match",
    "is he 5'10\" tall",
    # addresses and odd clocks
    "http://example.com/12:30",
    "see clip_0:30.mp4",
    "00:00:30:12",
    "12:3",
    "0:75",
    # Chinese
    "他开始跑步",
    "最后一个人是谁",
    "中间的人是谁",
    "持续30秒",
    "每5秒",
    "30秒的视频",
    "下午5:30",
    "5点30分",
    "得30分",
    "比分是21:15",
    "30秒内",
    "三个人",
]


@pytest.mark.parametrize("question", NOT_NAMED)
def test_nothing_is_guessed(question: str) -> None:
    assert find_focus(question, 7200.0) is None
    assert focus_notes(question, 7200.0) == ()


def test_a_time_outside_the_clip_is_no_focus_and_said() -> None:
    assert find_focus("what happens at 0:45?", 30.0) is None
    (note,) = focus_notes("what happens at 0:45?", 30.0)
    assert "0:45" in note
    assert "0:00-0:30" in note
    assert find_focus("at 0:10 and 0:45", 30.0) == Focus(((10.0, 10.0),))
    assert find_focus("倒数第二分钟", 60.0) is None, "the last minute but one of a clip of one"


def test_the_end_as_a_player_shows_it_is_the_end() -> None:
    assert find_focus("at 0:30", 29.97) == Focus(((29.97, 29.97),))


@pytest.mark.parametrize(("duration", "edge"), [(10.0, 2.0), (50.0, 5.0), (300.0, 10.0)])
def test_an_end_of_the_clip_is_a_tenth_of_it_two_to_ten_seconds(duration: float, edge: float) -> None:
    assert find_focus("what happens at the end?", duration) == Focus(((duration - edge, duration),))
    assert find_focus("what happens at the start?", duration) == Focus(((0.0, edge),))


def test_hours_and_a_half() -> None:
    for question in ("at two and a half hours", "两个半小时的时候", "两小时半的时候", "两个小时半的时候"):
        focus = find_focus(question, 10_800.0)
        assert focus is not None
        assert focus.spans == ((9000.0, 9000.0),)


def test_a_range_over_the_end_is_cut() -> None:
    focus = find_focus("between 0:20 and 0:50", 30.0)
    assert focus is not None
    assert focus.spans == ((20.0, 30.0),)


def test_relative_words_belong_to_the_watched_range_and_clocks_to_the_source() -> None:
    assert find_focus("the first ten seconds", 120.0, start=60.0) == Focus(((60.0, 70.0),))
    assert find_focus("the last ten seconds", 120.0, start=60.0) == Focus(((110.0, 120.0),))
    assert find_focus("at 1:10", 120.0, start=60.0) == Focus(((70.0, 70.0),))
    assert find_focus("at 0:30", 120.0, start=60.0) is None
    assert find_focus("between 0:30 and 1:00", 120.0, start=60.0) is None


@pytest.mark.parametrize("duration", [0.04, 1.0, 3.0, 12.0, 7200.0])
def test_words_for_the_ends_stay_inside_any_clip(duration: float) -> None:
    for question in ("at the end", "at the beginning", "the middle of the video", "the first 10 seconds", "最后5秒"):
        focus = find_focus(question, duration)
        assert focus is not None
        assert all(0 <= low <= high <= duration for low, high in focus.spans)


def test_times_of_an_answer_are_tied_to_their_place() -> None:
    answer = "At 0:14 it moves; from 20 to 30 seconds nothing happens. It lasts 5 seconds. 第40秒消失。"
    mentions = find_times(answer)
    assert [mention.seconds for mention in mentions] == [14, 20, 30, 40]
    assert all(answer[mention.start : mention.end] == mention.text for mention in mentions)
    assert find_times("It stays for 10 seconds, at the end.") == ()
    assert [mention.seconds for mention in find_times("In the 30th second, and at the 40th second.")] == [30, 40]


@given(st.text(max_size=60))
def test_any_text_is_read_without_complaint(text: str) -> None:
    focus = find_focus(text, DURATION)
    assert focus is None or all(0 <= low <= high <= DURATION for low, high in focus.spans)
    for mention in find_times(text):
        assert text[mention.start : mention.end] == mention.text


WORDS = (
    *("at", "from", "to", "between", "and", "the", "first", "last", "end", "start", "0:30", "1:02:03", "30", "seconds"),
    *("s", "minute", "half", "a", "an", "of", "video", "in", "第", "秒", "分", "到", "前", "最后", "10", "20th",),
    *("mark", "-", ",", "?", "t=", "%", "into", "middle", "through"),
)
FRAGMENTS = st.lists(st.sampled_from(WORDS), max_size=14)


@given(FRAGMENTS)
def test_any_words_about_time_are_read_without_complaint(words: list[str]) -> None:
    text = " ".join(words)
    focus = find_focus(text, DURATION)
    assert focus is None or all(0 <= low <= high <= DURATION for low, high in focus.spans)
    assert all(text[mention.start : mention.end] == mention.text for mention in find_times(text))


def test_importing_it_costs_no_numpy() -> None:
    code = "import sys, vidllm.video.timecode as t; t.find_focus('at 0:30', 60.0); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "av", "torch"} & set(loaded)
