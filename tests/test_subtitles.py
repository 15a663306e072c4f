"""Subtitles beside and inside a clip. Times are the viewer's clock; the clips are made here."""

import os
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.conftest import write_clip
from vidllm.errors import VideoError
from vidllm.video import subtitles
from vidllm.video.info import probe
from vidllm.video.subtitles import Line, find_sidecar, find_sidecar_of_many, read_subtitles

SRT = """1
00:00:01,000 --> 00:00:02,500
Hello <i>there</i>.
How are you?

2
00:00:03,000 --> 00:00:04,000
{\\an8}Fine &amp; well.
"""
THREE = """1
00:00:01,000 --> 00:00:03,000
One.

2
00:00:20,000 --> 00:00:21,000
Twenty.

3
00:00:50,000 --> 00:00:55,000
Fifty
and more.
"""
VTT = """WEBVTT

00:01.000 --> 00:02.500
<v Ann>Hello there.

00:03.000 --> 00:04.000
Fine.
"""


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """5 s at 10 fps."""
    return write_clip(tmp_path / "my talk [1].mp4", [i / 10 for i in range(50)])


def texts(clip: Path, start: float = 0.0, end: float = float("inf")) -> list[str]:
    return [line.text for line in read_subtitles(probe(clip), start, end)]


def with_track(path: Path, text: str, first: float = 0.0, *, kind: str = "srt") -> Path:
    """An mkv of 60 s whose first frame is presented at `first` s, and a track of `text` moved by as much."""
    path.with_suffix(".source").write_text(text)
    with av.open(str(path), "w") as container, av.open(str(path.with_suffix(".source")), format=kind) as source:
        video = container.add_stream("mpeg4", rate=2)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        track = container.add_stream_from_template(source.streams.subtitles[0])
        packets = []
        for i in range(120):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round((first + i / 2) * 1000), Fraction(1, 1000)
            packets += [(first + i / 2, packet) for packet in video.encode(frame)]
        packets += [(first + 60, packet) for packet in video.encode(None)]
        for packet in source.demux(source.streams.subtitles[0]):
            if packet.pts is not None:
                start = first + float(packet.pts * packet.time_base)
                packet.pts = packet.dts = round(start / float(packet.time_base))
                packet.stream = track
                packets.append((start, packet))
        for _, packet in sorted(packets, key=lambda item: item[0]):
            container.mux(packet)
    return path


def test_a_clip_without_subtitles_has_none(clip: Path) -> None:
    assert read_subtitles(probe(clip)) == ()


@pytest.mark.parametrize("ending", ["srt", "vtt", "en.srt", "zh-CN.srt", "eng.vtt", "SRT", "VTT"])
def test_a_sidecar_is_found_by_name(clip: Path, ending: str) -> None:
    sidecar = clip.with_name(f"{clip.stem}.{ending}")
    sidecar.write_text(VTT if ending.lower().endswith("vtt") else SRT, encoding="utf-8")
    assert find_sidecar(clip) == find_sidecar_of_many(clip) == sidecar
    assert texts(clip)[0].startswith("Hello there.")


def test_of_many_clips_the_same_are_found_as_files_come_and_go(clip: Path) -> None:
    assert find_sidecar_of_many(clip) is None
    for number, ending in enumerate(("zh-CN.srt", "eng.vtt", "vtt", "srt")):  # each goes before those that were there
        os.utime(clip.parent, ns=(number, number))  # as if it had been changed long ago
        assert find_sidecar_of_many(clip) == find_sidecar(clip)
        sidecar = clip.with_name(f"{clip.stem}.{ending}")
        sidecar.write_text(SRT, encoding="utf-8")
        assert find_sidecar_of_many(clip) == find_sidecar(clip) == sidecar
    sidecar.unlink()
    assert find_sidecar_of_many(clip) == find_sidecar(clip) == clip.with_name(f"{clip.stem}.vtt")
    assert find_sidecar_of_many(clip.parent / "nowhere" / "a.mp4") is None


def test_other_clips_subtitles_are_not_taken(clip: Path) -> None:
    clip.with_name(f"{clip.stem}2.srt").write_text(SRT)
    clip.with_name("my talk 1.srt").write_text(SRT)
    assert find_sidecar(clip) is None


def test_a_clip_with_the_longest_of_names_has_none(clip: Path) -> None:
    longest = clip.rename(clip.with_name("x" * 251 + ".mp4"))
    assert find_sidecar(longest) is None
    assert read_subtitles(probe(longest)) == ()


def test_markup_goes_and_lines_become_one(clip: Path) -> None:
    clip.with_suffix(".srt").write_text(SRT, encoding="utf-8")
    assert read_subtitles(probe(clip)) == (
        Line(1.0, 2.5, "Hello there. How are you?"),
        Line(3.0, 4.0, "Fine & well."),
    )
    assert str(read_subtitles(probe(clip))[0]) == "[0:01] Hello there. How are you?"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("<c.yellow>Hi</c> <v Ann Lee>you", "Hi you"),
        ("So<00:00:01.500><c> it</c><00:02.000> is", "So it is"),
        (f'<font face="{"x" * 80}" color=red>Hi</font>', "Hi"),
        ("3 < 5 and 7 > 6", "3 < 5 and 7 > 6"),
        ("where a < b and c > d,", "where a < b and c > d,"),
        ("I <3 you -> me", "I <3 you -> me"),
        ("f'{name}' in C:\\new", "f'{name}' in C:\\new"),
        (r"{\an8}one\Ntwo\hthree", "one two three"),
        ("from 00:00:01,000 to 00:00:02,000", "from 00:00:01,000 to 00:00:02,000"),
    ],
)
def test_only_markup_is_not_said(clip: Path, written: str, said: str) -> None:
    clip.with_suffix(".srt").write_text(f"1\n00:00:01,000 --> 00:00:02,000\n{written}\n", encoding="utf-8")
    assert texts(clip) == [said]


@pytest.mark.parametrize(
    ("start", "end", "count"), [(0, 1, 0), (0, 1.01, 1), (2, 3, 1), (2.5, 3, 0), (2.5, 3.01, 1), (0, 60, 2), (4, 60, 0)]
)
def test_lines_on_screen_in_a_half_open_range(clip: Path, start: float, end: float, count: int) -> None:
    clip.with_suffix(".srt").write_text(SRT, encoding="utf-8")
    assert len(texts(clip, start, end)) == count


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-8", "你好,世界。"),
        ("utf-8-sig", "你好,世界。"),
        ("utf-16", "你好,世界。"),
        ("utf-16-le", "你好,世界。"),
        ("utf-16-be", "hello"),
        ("utf-32", "你好,世界。"),
        ("gb18030", "你好世界,这是一个测试。"),
        ("gb18030", "谢谢大家"),
        ("cp1252", "Déjà vu à l'été"),
        ("cp1252", "Là-bas ! « allé…»"),
        ("cp1252", "Große Übung"),
        ("cp1252", "Não são ações"),
        ("cp1252", "Ég veit það ekki, því miður."),
        ("cp1250", "Dziękuję, proszę pomóż mi znaleźć żonę."),
        ("cp1250", "Děkuji, už víš, co říct, příteli?"),
        ("cp1250", "Minden rendben lesz, győzünk."),
        ("cp1250", "Unde eşti? Mulţumesc."),
        ("cp1250", "Već znaš, žurim kući."),
        ("cp1254", "Şimdi değil, teşekkürler arkadaşım."),
        ("cp1257", "Ačiū, aš žinau, jau vėlu."),
        ("cp1251", "Я не знаю, что тебе сказать."),
        ("cp1251", "Да."),
        ("koi8-r", "Пойдём отсюда, быстро!"),
        ("cp1251", "Не знам шта да кажем, пријатељу."),
        ("cp1253", "Δεν ξέρω τι να πω, φίλε μου."),
        ("cp1255", "אני לא יודע מה להגיד."),
        ("cp1256", "لا أعرف ماذا أقول يا صديقي."),
        ("cp874", "ขอบคุณมาก ผมไม่รู้จะพูดอะไร"),
        ("big5", "我不知道你在說什麼。"),
        ("cp932", "彼は昨日の夜どこにいた?"),
        ("euc_jp", "私は何も知らない。"),
        ("cp949", "나는 아무것도 모른다."),
    ],
)
def test_text_is_read_in_the_encoding_it_has(clip: Path, encoding: str, said: str) -> None:
    text = f"1\n00:00:01,000 --> 00:00:02,000\n{said}\n"
    clip.with_suffix(".srt").write_bytes(text.encode(encoding))
    assert texts(clip) == [said]


def test_a_broken_byte_does_not_garble_the_rest(clip: Path) -> None:
    text = "1\n00:00:01,000 --> 00:00:02,000\nDéjà vu à l'été, çà et là, Noël, où\n".encode()
    clip.with_suffix(".srt").write_bytes(text.replace(b"No\xc3", b"No"))
    [said] = texts(clip)
    assert said.startswith("Déjà vu à l'été, çà et là, No")


@pytest.mark.parametrize("zeros", [b"\0", b"\0\0", b"\0" * 4096])
def test_zeros_that_damage_left_do_not_silence_the_rest(clip: Path, zeros: bytes) -> None:
    """A byte that got lost, and the end of a file whose room was made and never filled."""
    text = "1\n00:00:01,000 --> 00:00:02,000\nDéjà vu\n".encode()
    clip.with_suffix(".srt").write_bytes(text + zeros)
    assert texts(clip) == ["Déjà vu"]


def test_rolling_captions_are_said_once(clip: Path) -> None:
    cues = [("0", "1", "one"), ("1", "2", "one\ntwo"), ("2", "3", "two\nthree")]
    text = "\n".join(f"{i}\n00:00:0{a},000 --> 00:00:0{b},000\n{said}\n" for i, (a, b, said) in enumerate(cues))
    clip.with_suffix(".srt").write_text(text)
    assert texts(clip) == ["one", "two", "three"]


def test_what_is_said_still_when_the_range_begins_is_said_in_it(clip: Path) -> None:
    cues = [("0", "1", "No."), ("1", "2", "No.\nYes."), ("2", "3", "Yes.")]
    text = "\n".join(f"{i}\n00:00:0{a},000 --> 00:00:0{b},000\n{said}\n" for i, (a, b, said) in enumerate(cues))
    clip.with_suffix(".srt").write_text(text)
    assert texts(clip) == ["No.", "Yes."]
    assert texts(clip, 1.0, 2.0) == ["No. Yes."]
    assert texts(clip, 2.0, 3.0) == ["Yes."]


def test_what_is_said_again_after_a_while_is_said_twice(clip: Path) -> None:
    clip.with_suffix(".srt").write_text("00:00 --> 00:01\nNo.\n\n00:01,2 --> 00:02\nNo.\n")
    assert texts(clip) == ["No.", "No."]


def test_lines_come_by_their_times_and_one_that_takes_none_is_left_out(clip: Path) -> None:
    cues = [("3", "4", "Two."), ("1", "2", "One."), ("2", "2", "Never.")]
    clip.with_suffix(".srt").write_text("".join(f"00:0{a} --> 00:0{b}\n{said}\n\n" for a, b, said in cues))
    assert texts(clip) == ["One.", "Two."]


@pytest.mark.parametrize(
    ("ending", "text"),
    [(".srt", "WEBVTT\n\n00:01.000 --> 00:02.000\nhello\n"), (".vtt", "1\n00:00:01,000 --> 00:00:02,000\nhello\n")],
)
def test_one_kind_under_the_others_ending_is_read(clip: Path, ending: str, text: str) -> None:
    clip.with_suffix(ending).write_text(text)
    assert texts(clip) == ["hello"]


def test_names_of_cues_notes_and_styles_are_not_said(clip: Path) -> None:
    cues = "d8e4-0\n00:01.000 --> 00:02.000\nHello.\n\nNOTE\nask Ann\n\nSTYLE\n::cue { color: red }\n\nthe end\n"
    clip.with_suffix(".vtt").write_text(f"WEBVTT\n\n{cues}00:03.000 --> 00:04.000\nFine.\n")
    assert texts(clip) == ["Hello.", "Fine."]


def test_webvtt_under_the_other_ending_keeps_its_first_hour(clip: Path) -> None:
    cues = "00:01.000 --> 00:02.000\nHello.\n\n01:00:03.000 --> 01:00:04.000\nFine.\n"
    clip.with_suffix(".srt").write_text(f"WEBVTT\n\n{cues}")
    assert texts(clip) == ["Hello.", "Fine."]


@pytest.mark.parametrize(
    ("written", "start", "end"),
    [
        ("00:00:03 --> 00:00:04", 3.0, 4.0), ("00:03 --> 00:04,5", 3.0, 4.5), ("0:03.25 --> 0:04.123456", 3.25, 4.123),
        ("00:00:03,000-->00:00:04,000", 3.0, 4.0), ("00:00:03,000 -> 00:00:04,000", 3.0, 4.0),
        ("00:00:03.000 --> 00:00:04.000 X1:0 X2:9 Y1:0 Y2:9", 3.0, 4.0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("number", ["2\n", ""])
def test_a_cue_whose_times_are_written_shorter_is_one_of_its_own(
    clip: Path, written: str, start: float, end: float, number: str
) -> None:
    clip.with_suffix(".srt").write_text(f"1\n00:00:01,000 --> 00:00:02,000\nOne.\n\n{number}{written}\nTwo.\n")
    assert read_subtitles(probe(clip)) == (Line(1.0, 2.0, "One."), Line(start, end, "Two."))
    clip.with_suffix(".srt").unlink()
    clip.with_suffix(".vtt").write_text(f"WEBVTT\n\n00:01.000 --> 00:02.000\nOne.\n\n{number}{written}\nTwo.\n")
    assert read_subtitles(probe(clip)) == (Line(1.0, 2.0, "One."), Line(start, end, "Two."))


def test_blank_lines_are_nothing_however_many(clip: Path) -> None:
    blank = "\n" * 1_000_000
    clip.with_suffix(".srt").write_text(f"1\n00:00:01,000 --> 00:00:02,000{blank}One.{blank}And two.{blank}")
    assert texts(clip) == ["One. And two."]


def test_a_line_of_blanks_ends_no_cue(clip: Path) -> None:
    """Automatic captions begin with one."""
    clip.with_suffix(".vtt").write_text("WEBVTT\n\n00:01.000 --> 00:02.000 align:start\n \nhello\n\n")
    assert texts(clip) == ["hello"]


def test_a_number_at_the_end_of_what_is_said_is_no_cues(clip: Path) -> None:
    cues = "00:00:01.000 --> 00:00:02.000\nIt was\n1984\n\n{}00:00:03.000 --> 00:00:04.000\n42\n\n{}"
    last = "00:00:04.000 --> 00:00:05.000\nThat was\n1985"
    for ending, text in ((".srt", "1\n" + cues.format("2\n", "3\n") + last), (".vtt", f"WEBVTT\n\n{cues}{last}")):
        clip.with_suffix(ending).write_text(text.replace("{}", ""))
        assert texts(clip) == ["It was 1984", "42", "That was 1985"]
        clip.with_suffix(ending).unlink()
    clip.with_suffix(".srt").write_text(cues.replace("{}", "") + last)
    assert texts(clip) == ["It was 1984", "42", "That was 1985"], "none has a number of its own"
    double = "1\n00:00:01,000 --> 00:00:02,000\nOne.\n\n2\n00:00:03,000 --> 00:00:04,000\nTwo.\n".replace("\n", "\n\n")
    clip.with_suffix(".srt").write_text(double)
    assert texts(clip) == ["One.", "Two."], "every line end is written twice"


@pytest.mark.parametrize("between", ["\n\n", "\n"])
def test_a_cue_that_says_nothing_is_none(clip: Path, between: str) -> None:
    cues = [
        "1\n00:00:01,000 --> 00:00:02,000",
        "2\n00:00:02,000 --> 00:00:03,000\nTwo.",
        "3\n00:00:03,000 --> 00:00:04,000",
    ]
    clip.with_suffix(".srt").write_text(between.join(cues))
    assert texts(clip) == ["Two."]


def test_files_that_were_joined_are_read_as_one(clip: Path) -> None:
    cue = "\ufeff1\n00:00:0{0},000 --> 00:00:0{1},000\nIn part {0}.\n\n"
    clip.with_suffix(".srt").write_text("".join(cue.format(start, start + 1) for start in (1, 3)), encoding="utf-8")
    assert texts(clip) == ["In part 1.", "In part 3."]


def test_line_ends_of_an_old_mac_are_line_ends(clip: Path) -> None:
    clip.with_suffix(".srt").write_bytes(SRT.replace("\n", "\r").encode())
    assert texts(clip) == ["Hello there. How are you?", "Fine & well."]
    clip.with_suffix(".srt").write_bytes(b"WEBVTT\r\r00:01.000 --> 00:02.000\rOne.\r\rSTYLE\r::cue { color: red }\r")
    assert texts(clip) == ["One."], "what ends a cue is a line that is empty"


def test_times_that_can_not_be_read_are_not_taken_for_silence(clip: Path) -> None:
    clip.with_suffix(".srt").write_text("1\n1.0s --> 2.0s\nhello\n")
    with pytest.raises(VideoError, match=r"no time in it is written as .* mend it or leave subtitles out"):
        texts(clip)
    clip.with_suffix(".srt").write_text("WEBVTT\nKind: captions\n")
    assert texts(clip) == []


def test_an_empty_sidecar_is_as_none(clip: Path) -> None:
    clip.with_suffix(".srt").write_text("")
    assert texts(clip) == []


def test_bytes_that_are_no_subtitles_are_one_line(clip: Path) -> None:
    clip.with_suffix(".vtt").write_bytes(b"00:00:99.000 --> 99:99:99.999\n" * 3 + bytes(range(256)))
    assert all("\n" not in text for text in texts(clip))


def test_a_sidecar_too_large_for_subtitles_is_said(clip: Path) -> None:
    clip.with_suffix(".srt").write_bytes(b" " * (17 << 20))
    with pytest.raises(VideoError, match="too large"):
        texts(clip)


@pytest.mark.parametrize("first", [0.0, 10.0])
def test_an_embedded_track_is_on_the_viewers_clock(tmp_path: Path, first: float) -> None:
    info = probe(with_track(tmp_path / "clip.mkv", THREE, first))
    assert info.subtitle_streams
    assert [(line.start, line.end, line.text) for line in read_subtitles(info)] == [
        (1.0, 3.0, "One."),
        (20.0, 21.0, "Twenty."),
        (50.0, 55.0, "Fifty and more."),
    ]
    assert [line.text for line in read_subtitles(info, 54.0, 60.0)] == ["Fifty and more."]
    assert [line.text for line in read_subtitles(info, 2.0, 20.0)] == ["One."]
    assert read_subtitles(info, 0.0, 1.0) == ()


def test_an_embedded_line_without_a_length_stays_four_seconds_or_until_the_next(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = [(20.0, 0.0, "c"), (3.0, 0.0, "b"), (1.0, 0.0, "a"), (21.0, 9.0, "d"), (-1.0, 1.5, "before the first frame")]
    monkeypatch.setattr(subtitles, "_packets", lambda *_: told)
    lines = read_subtitles(replace(probe(clip), subtitle_streams=(1,)))
    assert [(line.start, line.end) for line in lines] == [
        (0.0, 0.5), (1.0, 3.0), (3.0, 7.0), (20.0, 21.0), (21.0, 30.0)
    ]  # fmt: skip


def test_shapes_and_remarks_are_not_said(tmp_path: Path) -> None:
    shape = r"{\p1}m 0 0 l 100 0 100 100{\p0}"
    texts = (r"Hello, {\i1}there{\i0}", shape, "", "{who says this?}", r"{\pos(1,2)}Sign{by the door}")
    lines = [f"Dialogue: 0,0:00:0{i}.00,0:00:0{i + 1}.00,Default,,0,0,0,,{text}\n" for i, text in enumerate(texts)]
    heads = "Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text"
    ass = f"[Script Info]\nScriptType: v4.00+\n\n[Events]\nFormat: {heads}\n{''.join(lines)}"
    info = probe(with_track(tmp_path / "clip.mkv", ass, kind="ass"))
    assert [line.text for line in read_subtitles(info)] == ["Hello, there", "Sign"]


@pytest.mark.parametrize("codec", [b"S_HDMV/TXST", b"S_DVBSUB\0\0\0"])
def test_a_track_that_can_not_be_decoded_is_passed_over(tmp_path: Path, codec: bytes) -> None:
    """FFmpeg has no decoder for the first, and finds every packet of the second broken."""
    clip = with_track(tmp_path / "clip.mkv", THREE)
    clip.write_bytes(clip.read_bytes().replace(b"S_TEXT/UTF8", codec))
    info = probe(clip)
    assert info.subtitle_streams
    assert read_subtitles(info) == ()


def test_a_sidecar_goes_before_an_embedded_track(tmp_path: Path) -> None:
    clip = with_track(tmp_path / "clip.mkv", THREE)
    clip.with_suffix(".srt").write_text(SRT)
    assert "Twenty." not in texts(clip)
    clip.with_suffix(".srt").write_text("")
    assert texts(clip) == ["One.", "Twenty.", "Fifty and more."]


def test_the_track_of_a_real_clip(real_clip: Callable[[str], Path]) -> None:
    info = probe(real_clip("odd/subs_srt.mkv"))
    assert [line.text for line in read_subtitles(info)] == ["This is the first subtitle."]


def test_every_real_clip_says_something_or_nothing(real_clips: Path) -> None:
    for path in sorted(real_clips.glob("natural/*.m*")):
        assert all(line.text and line.end > line.start for line in read_subtitles(probe(path)))
