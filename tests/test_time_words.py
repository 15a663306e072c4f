"""How people really write times, and what only looks like one; a row is a question and what it must be read as.

Every row stands for a family: a change that breaks one breaks many. Moments are one number, ranges are two, in seconds;
the clip is 300 s long, or three hours when the question names an hour.
"""

import pytest

from vidllm.video import timewords
from vidllm.video.timecode import find_focus, find_times, focus_notes
from vidllm.video.timephrases import marked
from vidllm.video.timerules import RULES, STRETCHES
from vidllm.video.timewords import fold, matches

Span = float | tuple[float, float]

READ: list[tuple[str, list[Span]]] = [
    # a bare "m" is minutes where a time stands at the other end
    ("from 1m30s to 2m", [(90, 120)]),
    ("what happens from 30s to 1m?", [(30, 60)]),
    ("from 0:30 to 2m the car", [(30, 120)]),
    ("from 1m to 2m30s", [(60, 150)]),
    ("1m30s-2m", [(90, 120)]),
    ("between 1m and 1m30s", [(60, 90)]),
    ("between 1m30 and 2m, who speaks?", [(90, 120)]),
    ("从1分30秒到2分", [(90, 120)]),
    ("the last 10 seconds before 1:00", [(50, 60)]),
    ("the first 10 seconds after 1:00", [(60, 70)]),
    ("10 seconds after 1:00", [70]),
    ("what happens from 1:00 for 10 seconds?", [(60, 70)]),
    ("what happens at 1:00 for about the next 10 seconds?", [(60, 70)]),
    ("what happens in the 10 seconds starting at 1:00?", [(60, 70)]),
    ("what happens 10 seconds starting from 1:00?", [(60, 70)]),
    ("what happens for the 10 s after 1:00?", [(60, 70)]),
    ("what happens within 10 seconds after 1:00?", [(60, 70)]),
    ("at 1:00, what happens in the next 10 seconds?", [(60, 70)]),
    ("At 0:30 and 1:00, what happens in the next 10 seconds?", [30, 60]),
    ("what happens in the 10 seconds before 1:00?", [(50, 60)]),
    ("the 5 seconds from 0:30 to 0:35", [(30, 35)]),
    ("for 10 seconds from 0:30 to 0:40", [(30, 40)]),
    ("从1:00开始的10秒发生了什么?", [(60, 70)]),
    ("从0:30开始播放10秒", [(30, 40)]),
    ("1:00之后的10秒发生了什么?", [(60, 70)]),
    ("1:00后10秒内发生了什么?", [(60, 70)]),
    ("0:30前的5秒", [(25, 30)]),
    ("0:30后5秒", [35]),
    ("what happens in the last third?", [(200, 300)]),
    ("what happens in the middle third?", [(100, 200)]),
    ("what happens at the midway point?", [(145, 155)]),
    ("what happens just before it ends?", [(290, 300)]),
    ("what happens right after it starts?", [(0, 10)]),
    ("视频的最后三分之一发生了什么?", [(200, 300)]),
    ("视频的50%处", [150]),
    ("视频过半时发生了什么?", [(145, 155)]),
    ("what happens at the 50% mark?", [150]),
    ("00:30 --> 00:40", [(30, 40)]),
    ("0:30→0:40", [(30, 40)]),
    ("Show 0:10 to 0:20", [(10, 20)]),
    ("0:30的飞机是什么颜色", [30]),
    ("0:30的课程内容是什么", [30]),
    ("between the 30s and 45s marks", [(30, 45)]),
    ("an hour and a half in", [5400]),
    ("0:30 - 5m jump", [30]),
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
    ("第3分钟内发生了什么", [(120, 180)]),
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
    ("in the first second", [(0, 1)]),
    ("in the final second", [(299, 300)]),
    ("the twenty-first second", [21]),
    ("between the second and fifth second", [(2, 5)]),
    ("20-30 seconds in", [(20, 30)]),
    ("what happens 30 to 40 seconds into the video", [(30, 40)]),
    ("what did she do 30 sec. in?", [30]),
    ("at the 3rd minute mark", [180]),
    ("compare the first and last frames", [0, 300]),
    ("first vs last frame", [0, 300]),
    ("一分三十的时候", [90]),
    ("整个前半段发生了什么", [(0, 150)]),
    ("what happens after the first minute?", [60]),
    ("what happens between 2:00 and 1:00?", [(60, 120)]),
    ("what happens before the last half minute?", [270]),
    ("从第10秒开始到第20秒", [(10, 20)]),
    ("从0:10开始一直到0:20", [(10, 20)]),
    ("30秒起到40秒", [(30, 40)]),
    ("视频播放了30秒后发生了什么", [30]),
    # both ends
    ("what is at the start and the end?", [(0, 10), (290, 300)]),
    ("compare the start with the end of the video", [(0, 10), (290, 300)]),
    ("compare the first and last 10 seconds", [(0, 10), (290, 300)]),
    ("the first 5 and the last 10 seconds", [(0, 5), (290, 300)]),
    ("the first and last minute", [(0, 60), (240, 300)]),
    ("compare the first frame with the last frame", [0, 300]),
    # an end of the clip, told by a clock
    ("in the last 0:30", [(270, 300)]),
    ("the first 1:30", [(0, 90)]),
    ("0:30 before the end", [270]),
    ("which is the first, 0:10 or 0:30?", [10, 30]),
    ("between the start and 0:30", [(0, 30)]),
    ("30 seconds after the video begins", [30]),
    ("离视频结束还有10秒的时候", [290]),
    ("前10秒内发生了什么", [(0, 10)]),
    ("最后的10秒之内", [(290, 300)]),
    ("视频最后几秒", [(290, 300)]),
    ("前几秒发生了什么", [(0, 10)]),
    ("the first couple seconds", [(0, 10)]),
    ("what happens in the final seconds of the video?", [(290, 300)]),
    ("the opening seconds", [(0, 10)]),
    ("at the video's end", [(290, 300)]),
    ("影片的中間發生了什麼", [(145, 155)]),
    ("the middle ten seconds of the video", [(145, 155)]),
    ("视频的前三分之一", [(0, 100)]),
    ("3/4 of the way through", [225]),
    # an end of a part of the clip is none of its own
    ("the last 10 seconds of the first minute", [(0, 60)]),
    ("the first 10 seconds of the last minute", [(240, 300)]),
    ("第一分钟的最后10秒", [(0, 60)]),
    # beside an amount
    ("what happens 5 seconds after the 30 second mark?", [35]),
    ("the 5 seconds before the 30 second mark", [(25, 30)]),
    ("what happens in the seconds leading up to 0:30?", [30]),
    ("from 1 minute 10 to 1 minute 20", [(70, 80)]),
    ("between 1 minute and 90 seconds", [(60, 90)]),
    ("0:30 thru 0:40", [(30, 40)]),
    ("从30秒开始发生了什么", [30]),
    ("从30秒开始到结束", [(30, 300)]),
    ("直到第10秒为止发生了什么", [(0, 10)]),
    ("到0:20為止", [(0, 20)]),
    ("10-20s之间", [(10, 20)]),
    ("1:10到20", [(70, 80)]),
    ("在10和20秒他做了什么", [10, 20]),
    ("中间10秒", [(145, 155)]),
    ("动画前半截", [(0, 150)]),
    ("between 0:40 and the end", [(40, 300)]),
    ("from five to ten seconds", [(5, 10)]),
    ("what happens since 0:30?", [(30, 300)]),
    ("0:30 onwards", [(30, 300)]),
    # in brackets and quotes, by name
    ("from [0:10] to [0:20]", [(10, 20)]),
    ("between “0:10” and “0:20”", [(10, 20)]),
    ("what happens at '0:30'?", [30]),
    ("【0:10】到【0:20】", [(10, 20)]),
    ("in the range 10s to 20s", [(10, 20)]),
    ("in the interval 10-20 s", [(10, 20)]),
    ("between t=10 and t=20", [(10, 20)]),
    ("at timestamp 14.5 the man falls", [14.5]),
    ("at two-and-a-half minutes", [150]),
    ("at 2 min. 30 sec.", [150]),
    # lists and ranges whose unit stands apart
    ("what happens at minutes 1 and 2?", [60, 120]),
    ("at the 5th and 10th seconds", [5, 10]),
    ("the first and the third second", [1, 3]),
    ("around the 2-3 minute mark", [(120, 180)]),
    ("the last 20% of the video", [(240, 300)]),
    ("视频前20%的内容", [(0, 60)]),
    # one side of a time
    ("describe everything after 0:30", [(30, 300)]),
    ("what is the rest of the video after 30 seconds?", [(30, 300)]),
    ("all that happened before 0:30", [(0, 30)]),
    # side by side
    ("what's different at 0:15 vs 0:45?", [15, 45]),
    ("at 15s compared to 45s", [15, 45]),
    ("30秒和1分钟分别发生了什么", [30, 60]),
    ("from 10sec-20sec", [(10, 20)]),
    ("10s-25s please", [(10, 25)]),
    # an end that leaves out the minutes, and one with its own unit
    ("1分10秒到20秒", [(70, 80)]),
    ("1分10秒-20秒", [(70, 80)]),
    ("from the tenth second to the twentieth second", [(10, 20)]),
    ("between 10th second and 20th second", [(10, 20)]),
    ("in the first minute and a half", [(0, 90)]),
    ("视频开始的前三秒发生了什么", [(0, 3)]),
    # who does something then
    ("two minutes in he drops something, what is it?", [120]),
    ("1分20秒他在做什么", [80]),
    ("1分05秒是谁", [65]),
    ("快进到1分20秒看看有什么", [80]),
    ("视频大概30秒左右是谁", [30]),
    ("最后谁赢了", [(290, 300)]),
    # right behind a comma or a colon
    ("请问，1min30s的时候发生了什么", [90]),
    ("hey,10 seconds after 1:00 what's he doing", [70]),
    ("时间点：1:20，他在做什么", [80]),
    ("时间：30秒处", [30]),
    ("比较30秒和60秒，谢谢", [30, 60]),
    # how long the clip is
    ("in this 1:30 video, what happens at 0:30?", [30]),
]

NOT_READ = [
    # hours of the day and dates, also in a clip that is long enough for them
    "iOS 16:30",
    "what runs on Android 13:20 here?",
    "at 16:30 on Monday",
    "what happens at 3:15 on a Sunday?",
    "from 9:00 to 17:00 on weekdays",
    "at 4:45 on July 4",
    "at 4:45 in July",
    "Dec 24 18:00",
    "24.12. 18:00",
    "22:45 local time",
    "open 9:00-17:00",
    "flight 12:30",
    "what time is it, 2:45?",
    "is it 2:45 on the clock?",
    "今天10:30",
    "明天10:30开会",
    "10:30的火车",
    "闹钟设在6:30",
    "营业时间9:00-17:00",
    # times of races, prices, verses, lengths
    "he ran it in 3:59",
    "a mile in 3:59",
    "personal best of 2:05",
    "the record is 9:58",
    "a 5:00 mile",
    "$2:30",
    "约翰福音3:16",
    "用时1:30",
    # metres and scores beside no time
    "from 1m to 2m away",
    "he stands at 2m",
    "打了8分",
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
    "the first few seconds of the fight",
    "时钟显示0:30",
    "视频的上半部分是什么颜色",
    "in the last seconds before the explosion",
    "the final moments after she falls",
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
    "with 1:30 left on the clock",
    "1:30 remaining",
    "4:30 to go",
    "Gen 1:12",
    "ch. 3:16",
    "first 10-20 seconds",
    "skip the first 10 seconds, what happens then?",
    "ignoring the opening minute, describe the video",
    "describe everything except for the last 5 seconds",
    "除了最后5秒",
    "他为什么跑了30秒?",
    "他跑了大约30秒就停了",
    # all of the clip
    "describe it from the start to the end",
    "from the beginning of the video to the end of the video",
    "compare the first and second half of the video",
    "视频从开头到结尾发生了什么",
    # lengths and parts
    "a 2:30 clip",
    "视频总长30秒",
    "红灯还剩30秒",
    "还有10秒",
    "the last second of the first half",
    "with 1 minute 30 to go",
    "where does the line start and end?",
    "describe the start and end positions",
    "在进球前10秒内",
    # how long something is done
    "煮3分钟",
    "煮 3 分钟左右",
    "要煮3分钟还是5分钟？",
    "煮8到10分钟",
    "静置10分钟至15分钟",
    "加热30秒后取出",
    "每天走30分钟有什么好处",
    "他跑了30秒后摔倒了吗",
    "等我一分钟",
    "过三五分钟的时候",
    "比分：21:15",
    "得分21:15",
    "北京时间：14:30",
    "视频时长：1:30",
    "时长：30秒",
    "时钟显示：10:10",
    "00:00:30:12s",
    "大概二三十秒左右",
    "it takes 1:20 or 1:30",
    "after the 30 second intro",
    # hours of the day, paces, an upright picture, dates
    "from 8:00 to 10:00 pm",
    "8:00–10:00 am",
    "tonight at 8:00",
    "5:30 per mile",
    "5:30 min/km",
    "is it 16:9 or 9:16?",
    "9:16 vs 16:9",
    "dashcam 12/05/2023 at 14:30",
    "on 12th May 2023 at 14:30",
    "May 12, 2023 14:30",
    "5月12日 14:30",
    "the timestamp 2024-01-01",
    "at the time 10 people",
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
    assert focus_notes(question, 10_800.0) == ()


@pytest.mark.parametrize(
    ("question", "words"), [("who is there at 1:60?", "1:60"), ("what happens at 30?", "30"), ("at -0:20?", "-0:20")]
)
def test_what_stands_where_a_moment_does_and_is_none_is_told(question: str, words: str) -> None:
    assert shown(question, 300.0) == []
    (note,) = focus_notes(question, 300.0)
    assert note.startswith(f'"{words}" was not read as a time')


@pytest.mark.parametrize("question", ["is it built at 1:64 scale?", "is the film at 16:9?", "who is 40 at 0:30?"])
def test_what_is_no_moment_is_not_told_as_one(question: str) -> None:
    assert focus_notes(question, 300.0) == ()


def test_both_ends_of_a_short_range_and_all_of_a_list_are_mentions() -> None:
    assert [mention.seconds for mention in find_times("From 1:10-20, it turns")] == [70, 80]
    assert [mention.seconds for mention in find_times("第3、5秒")] == [3, 5]
    assert [mention.seconds for mention in find_times("At seconds 30, 40 and 50 it blinks.")] == [30, 40, 50]


def test_an_answer_that_is_but_an_amount_may_be_a_length() -> None:
    assert shown("30 seconds", 300.0) == [30]
    assert find_times("30 seconds.") == ()


@pytest.mark.parametrize("words", ["30秒和", "第1、", "1", "半", "五", "at 30 s and ", "the first and the "])
def test_the_cost_of_a_text_grows_with_its_length(words: str) -> None:
    """Such texts took the square of their length, minutes for each; and what stands behind them is read as ever."""
    text = words * (20_000 // len(words)) + "x. What happens between 0:30 and 0:40?"
    assert [mention.seconds for mention in find_times(text)][-2:] == [30, 40]


def test_a_number_without_end_is_no_time() -> None:
    assert find_times(f"at {'1' * 400} seconds and at 0:30") == find_times(f"{' ' * 416}at 0:30")


@pytest.mark.parametrize("question", ["the last frame", "最后一帧"])
def test_the_last_frame_is_that_of_the_range_watched(question: str) -> None:
    focus = find_focus(question, 40.0, start=20.0)
    assert focus is not None
    assert focus.spans == ((40.0, 40.0),)


def test_a_question_is_read_once_however_many_plans_are_tried() -> None:
    """A pasted transcript of a megabyte was read anew for every way out of a plan that did not fit: minutes."""
    timewords.find_hits.cache_clear()
    question = "what happens at 0:30?"
    assert find_focus(question, 60.0) is not None
    assert focus_notes(question, 60.0) == ()
    assert len(find_times(question)) == 1
    assert timewords.find_hits.cache_info().misses == 1


def test_a_rule_is_passed_over_only_where_it_could_not_match() -> None:
    texts = [marked(fold(question)) for question in (*dict(READ), *NOT_READ)]
    for rule in (*STRETCHES, *RULES):
        passed = [text for text in texts if not rule.has_its_words(text.casefold())]
        assert not [text for text in passed if any(matches(rule, text))], rule.needs
