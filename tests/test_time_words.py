"""How people really write times, and what only looks like one; a row is a question and what it must be read as.

Every row stands for a family: a change that breaks one breaks many. Moments are one number, ranges are two, in seconds;
the clip is 300 s long, or three hours when the question names an hour.
"""

import pytest

from vidllm.video.timecode import find_focus, find_times, outside_notes

Span = float | tuple[float, float]

READ: list[tuple[str, list[Span]]] = [
    # what the reader once got wrong or missed
    ("结束前5秒", [(295, 300)]),
    ("倒数第10秒", [290]),
    ("1时2分3秒", [3723]),
    ("开始5秒", [(0, 5)]),
    ("at one minute thirty", [90]),
    ("从头到0:30", [(0, 30)]),
    ("from start to 0:30", [(0, 30)]),
    ("at 30 and 40 seconds", [30, 40]),
    ("第3、5秒", [3, 5]),
    ("at seconds 30, 40 and 50", [30, 40, 50]),
    ("0:30/0:40", [30, 40]),
    ("0:10..0:20", [(10, 20)]),
    ("0:10-20", [(10, 20)]),
    ("第1小时", [(0, 3600)]),
    ("within 0:10-0:20", [(10, 20)]),
    ("10-20s", [(10, 20)]),
    ("30 to 40 seconds", [(30, 40)]),
    ("compare 10 s and 30 s", [10, 30]),
    ("at 1m30", [90]),
    ("1分20", [80]),
    ("1′30″", [90]),
    ("~30s", [30]),
    ("at 0:5", [5]),
    ("in the thirtieth second", [30]),
    ("the second minute", [(60, 120)]),
    ("in the first half", [(0, 150)]),
    ("前半段", [(0, 150)]),
    ("最后一帧", [300]),
    ("第一帧", [0]),
    ("30 sec.", [30]),
    ("in 30 sec. what happens", [30]),
    # amounts in words and figures
    ("at one hour twenty", [4800]),
    ("at 1 minute 30 what happens?", [90]),
    ("at two minutes fifteen, who speaks?", [135]),
    ("at 1m05 what is seen", [65]),
    ("第1分20", [80]),
    ("1分20发生了什么", [80]),
    ("第1小时30分", [5400]),
    ("一小时二十分三秒时", [4803]),
    # ordinals
    ("第二小时", [(3600, 7200)]),
    ("the second hour", [(3600, 7200)]),
    ("the third minute of the video", [(120, 180)]),
    ("what happens during the twelfth minute?", [(660, 720)]),
    ("at the twenty-fifth second", [25]),
    ("the 45th second", [45]),
    ("倒数第二分钟", [(180, 240)]),
    # from an end of the clip
    ("结束前第5秒", [295]),
    ("视频结束前10秒发生了什么", [(290, 300)]),
    ("结尾前5秒", [(295, 300)]),
    ("the tenth second from the end", [290]),
    ("视频开始5秒", [(0, 5)]),
    ("刚开始的5秒", [(0, 5)]),
    ("开始5秒后发生了什么", [5]),
    ("开始后5秒", [5]),
    # beside another time
    ("0:30前5秒", [25]),
    ("0:30之后5秒", [35]),
    # from an end, in Chinese
    ("视频前5秒", [(0, 5)]),
    ("请描述前十秒", [(0, 10)]),
    ("总结后10秒", [(290, 300)]),
    ("片头5秒", [(0, 5)]),
    # up to an end
    ("from the start to 30 seconds", [(0, 30)]),
    ("from beginning to 0:30", [(0, 30)]),
    ("start to 0:30", [(0, 30)]),
    ("from 4:30 to end", [(270, 300)]),
    ("4:30-end", [(270, 300)]),
    ("从头开始到30秒", [(0, 30)]),
    ("从4:30到最后", [(270, 300)]),
    ("4:30至片尾", [(270, 300)]),
    # lists
    ("at 10, 20 and 30 seconds", [10, 20, 30]),
    ("at thirty and forty seconds", [30, 40]),
    ("at 0:30, 0:40 and 0:50", [30, 40, 50]),
    ("at 10s/20s", [10, 20]),
    ("at seconds 30 and 40", [30, 40]),
    ("seconds 30-40", [(30, 40)]),
    ("seconds 10 and 20", [10, 20]),
    ("第3和第5秒", [3, 5]),
    ("第3秒和第5秒", [3, 5]),
    ("第10、20、30秒", [10, 20, 30]),
    ("在10和20秒", [10, 20]),
    ("3秒和5秒的时候", [3, 5]),
    ("第1、2分钟", [(0, 60), (60, 120)]),
    # ranges
    ("第10和20秒之间", [(10, 20)]),
    ("10和20秒之间", [(10, 20)]),
    ("0:10 .. 0:20", [(10, 20)]),
    ("0:10...0:20", [(10, 20)]),
    ("0:10…0:20", [(10, 20)]),
    ("1:10-20", [(70, 80)]),
    ("1:10-25 what happens", [(70, 85)]),
    ("from 0:10 to 20", [(10, 20)]),
    ("within 0:10 and 0:20 what happens", [(10, 20)]),
    ("what happens 10-20s?", [(10, 20)]),
    ("describe 10 to 20 seconds", [(10, 20)]),
    ("thirty to forty seconds", [(30, 40)]),
    ("between thirty and forty seconds", [(30, 40)]),
    ("10-20s what happens", [(10, 20)]),
    # compared
    ("compare 10 s with 30 s", [10, 30]),
    ("compare 10s vs 30s", [10, 30]),
    ("compare 10 and 30 seconds", [10, 30]),
    ("compare 10 s", [10]),
    ("compare 0:10 with 0:30", [10, 30]),
    # about, primes, units first
    ("what happens ~30s?", [30]),
    ("~ 0:30", [30]),
    ("≈30s", [30]),
    ("1′30″发生了什么", [90]),
    ("at 1′30″", [90]),
    ("at second thirty", [30]),
    ("at minute two", [120]),
    # nothing but an amount
    ("30 seconds?", [30]),
    ("30s", [30]),
    ("30s: what is he doing?", [30]),
    ("30s what happens", [30]),
    ("30秒", [30]),
    ("in 30 seconds, what happens?", [30]),
    # parts
    ("in the second half", [(150, 300)]),
    ("what happens in the second half?", [(150, 300)]),
    ("during the last half", [(150, 300)]),
    ("the latter half of the video", [(150, 300)]),
    ("the first half", [(0, 150)]),
    ("后半段", [(150, 300)]),
    ("视频的后半部分", [(150, 300)]),
    ("在前半段他做了什么", [(0, 150)]),
    ("前半部分发生了什么", [(0, 150)]),
    ("後半段", [(150, 300)]),
    ("the middle third of the clip", [(100, 200)]),
    ("what happens halfway?", [(145, 155)]),
    ("中途发生了什么", [(145, 155)]),
    ("the middle part of the video", [(145, 155)]),
    # frames
    ("what is in the last frame", [300]),
    ("the first frame", [0]),
    ("最後一幀是什麼", [300]),
    ("首帧", [0]),
    ("末帧", [300]),
    ("第1帧", [0]),
    ("describe the final image", [300]),
    ("the very last frame", [300]),
    # the first, the last
    ("第一分钟", [(0, 60)]),
    ("the first minute", [(0, 60)]),
    ("the last minute", [(240, 300)]),
    ("最后一分钟", [(240, 300)]),
    ("the first half minute", [(0, 30)]),
    # mixed
    ("10s, 20s, 30s", [10, 20, 30]),
    ("one minute in", [60]),
    ("1小时20分", [4800]),
    ("0:10-20s", [(10, 20)]),
    ("compare 0:10-0:20 with 0:30-0:40", [(10, 20), (30, 40)]),
    ("第5~10秒", [(5, 10)]),
    ("前5秒和后5秒有什么不同", [(0, 5), (295, 300)]),
    ("between the tenth and twentieth second", [(10, 20)]),
    ("0m30s", [30]),
]

NOT_READ = [
    "version 2:30",
    "v 2:30",
    "release 10:30",
    "season 2:30",
    "episode 2:30",
    "model 1m30",
    "a table of 1m30",
    "1/2",
    "on 1/2",
    "10-20 people",
    "compare 10-20 people",
    "compare 10 people and 30 cars",
    "at 10-20 people",
    "0:5",
    "the score is at 0:5",
    "lost 0:5",
    "it stands at 0:5",
    "at 4:3",
    "at 16:9",
    "at 3:2",
    "shot in 4:3",
    "John 3:16",
    "John 3:16-18",
    "aspect 4:3",
    "at 15h30",
    "at 1h30",
    "下午1时2分3秒",
    "1时2分",
    "下午1时2分",
    "进球前5秒",
    "爆炸后10秒",
    "镜头5秒",
    "他离开前5秒",
    "比赛开始5秒",
    "30秒前",
    "30秒前发生了什么",
    "持续10、20秒",
    "每3、5秒",
    "1分20元",
    "得1分20个",
    "10、20个人",
    "第3、5个人",
    "第一帧率",
    "第120帧",
    "one second, what is that?",
    "a minute, please",
    "one moment",
    "takes ~30s",
    "a ~30s clip",
    "lasts ~30s",
    "for ~30s",
    "~30 people",
    "about 30 people",
    "within 10-20 s",
    "within 10 to 20 seconds",
    "within 0:30",
    "it takes 30 to 40 seconds",
    "30 to 40 seconds long",
    "10-20s long",
    "10 to 20 seconds of silence? ",
    "thirty to forty people",
    "in 30 seconds tell me everything",
    "describe the clip in 30 seconds",
    "summarise what happens in 30 sec.",
    "for 30 sec. what happens",
    "the second minute hand",
    "the second hour hand",
    "every second minute",
    "the second-to-last minute",
    "the next to last minute",
    "the penultimate second",
    "the 90th minute goal",
    "the second minute of the match",
    "the thirtieth person",
    "the second half of the match",
    "the first half time",
    "first half-time",
    "half",
    "上半身",
    "下半场",
    "前半段路",
    "歌曲的前半段",
    "比赛的后半段",
    "the first frame of mind",
    "the last frame of the second scene",
    "the picture frame",
    "最后一个",
    "首先",
    "the last picture he painted",
    "at thirty",
    "at thirty people",
    "at one of the tables",
    "pace 4:30/km",
    "10:30/11:45 train",
    "5'10\" tall",
    "1'30",
    "he is 1m80",
    "at 1m80",
    "1m30 tall",
    "a 10-20s clip",
    "a 10 to 20 second clip",
    "0.10-20",
    "3..5",
    "10..20",
    "the 30 second ad",
    "the 30 and 40 second ads",
    "at 30 and 40 people",
    "第一小时工",
    "last week",
    "two to three minutes of rest",
    "1:100",
    "which frame is first",
    "I have 30 seconds",
    "give me a summary in 30 seconds",
    "the three second rule",
    "second one on the left?",
    "10 seconds after he falls",
    "5 seconds before the goal",
    "page 2:10",
    "first 10-20 seconds",
]


def shown(question: str, duration: float) -> list[Span]:
    focus = find_focus(question, duration)
    return [a if a == b else (a, b) for a, b in focus.spans] if focus else []


@pytest.mark.parametrize(("question", "spans"), READ)
def test_a_time_is_read_as_people_write_it(question: str, spans: list[Span]) -> None:
    last = max(span[1] if isinstance(span, tuple) else span for span in spans)
    assert shown(question, 10_800.0 if last > 300 else 300.0) == spans


@pytest.mark.parametrize("question", NOT_READ)
def test_what_only_looks_like_a_time_is_none(question: str) -> None:
    assert shown(question, 10_800.0) == []
    assert outside_notes(question, 10_800.0) == ()


def test_both_ends_of_a_short_range_and_all_of_a_list_are_mentions() -> None:
    assert [mention.seconds for mention in find_times("From 1:10-20, it turns")] == [70, 80]
    assert [mention.seconds for mention in find_times("第3、5秒")] == [3, 5]
    assert [mention.seconds for mention in find_times("At seconds 30, 40 and 50 it blinks.")] == [30, 40, 50]


def test_an_answer_that_is_but_an_amount_may_be_a_length() -> None:
    assert shown("30 seconds", 300.0) == [30]
    assert find_times("30 seconds.") == ()


@pytest.mark.parametrize("question", ["the last frame", "最后一帧"])
def test_the_last_frame_is_that_of_the_range_watched(question: str) -> None:
    focus = find_focus(question, 40.0, start=20.0)
    assert focus is not None
    assert focus.spans == ((40.0, 40.0),)
