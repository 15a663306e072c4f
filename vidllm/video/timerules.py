"""The words that make a time of a clock or an amount, in English and Chinese.

Patterns read text that `timephrases.marked` went over; the rules run in the order they stand, most specific first.
"""

from vidllm.video import timemeanings as means
from vidllm.video.timemeanings import Rule
from vidllm.video.timephrases import AMOUNT, AMOUNTS, BLANK, CLOCK, ENGLISH, HAN, ORDINAL, SPELLED

_T = rf"(?:{CLOCK}|{AMOUNT})"
_NUM = r"\d+(?:\.\d+)?"
_N = rf"(?:{_NUM}|{SPELLED})"
_UNIT = r"(?:seconds?|secs?|minutes?|mins?)"
_SECONDS = rf"(?P<unit>{_UNIT})"
_STRETCH = r"(?:range|interval|window|segment|section|period)"
_MARK = r"(?:[\s-]*(?:mark|point|timestamp)s?)?"
_TO = r"\s*(?:-{1,2}>|→|-|~|\.{2,3}|…|to|until|till|thr(?:ough|u)(?:\s+to)?|up\s+to)\s*"
_LEADING_TO = "- ~ → .. … to until till thr"
_THE = (
    r"(?:(?:the|around|about|roughly|approximately|approx\.?|exactly|precisely|say|time|second|timestamp|time\s*code"
    r"|ca\.?|circa)\s+|~\s*|t\s*=\s*){0,6}"  # without a bound, an answer that only says "the the" takes minutes
)
_NOUN = r"(?:video|clip|movie|film|footage|recording|sequence|animation|gif|vid|tape)s?\b"
_THIS_CLIP = rf"(?:the|this|that|our)\s+(?:whole\s+)?{_NOUN}"
_CLIP = rf"(?:(?:the|this|that|our)\s+)?(?:whole\s+)?{_NOUN}"
_NOT_OF = rf"(?!\s+of\s+(?!{_CLIP}))"
_THE_END = rf"(?:the\s+)?(?:very\s+)?(?:end|finish)\b{_NOT_OF}(?!\s+(?:zone|line|table|user|product|cap)\b)"
_ASKS = r"(?:what|who|where|which|how|when|why|does|do|did|is|are|was|were|can|tell|describe|there|please|pls)\b"
_STOPS = rf"(?=\s*(?:[?.!,;:)\]\0]|$|\s{_ASKS}|(?:of|in|from)\s+{_CLIP}))"
_LONG = r"(?!\s*(?:per|each|long|apart|intervals?|old|of\s+age|later|earlier|ago|tall|left|remaining|faster|slower)\b)"
_INTO = (
    rf"\.?\s+(?:in(?:to)?(?=\s+{_THIS_CLIP}|\s+(?:it|he|she|they|we|i)\b|{_STOPS}|\s+(?:and|or)\s+(?:at\s+)?{_T})"
    rf"|(?:through|of)\s+{_THIS_CLIP})"
)
_NO_NOUN = rf"(?![\d:.,]*\d|\s*[%/]|[\s-]*(?!{_ASKS}|(?:of|in|on|the|he|she|it|they|we)\b)[A-Za-z])"
_OF_ANOTHER = (  # the last 10 seconds of the first minute, or before he falls, are none of the clip's last
    rf"(?!\s+of\s+(?:the\s+)?(?:very\s+)?(?:opening|initial|last|final|closing|middle|latter|former|{ORDINAL}|{BLANK})"
    rf"|\s+of\s+{_UNIT}\s+\d|\s+(?:before|after|following|leading|until|till|up\s+to|prior)\b)"
)
_LENGTH = rf"(?:{AMOUNT}|(?:half\s+)?(?:second|minute|hour)\b(?:\s+and\s+a\s+half)?|half[\s-](?:minute|hour)\b)"
_WHOLE = rf"{_LENGTH}{_OF_ANOTHER}"
_ALL_OF = r"\b(?:(?:first|next|following|last|final|previous)\s+|the\s+(?!second\b))"  # "the second after" is a person
_ENDS = rf"(?:{_THE_END}|(?:it|{_CLIP})\s+(?:ends|finishes))"
_BEGINS = rf"(?:(?:the\s+)?(?:very\s+)?(?:start|beginning)\b{_NOT_OF}|(?:it|{_CLIP})\s+(?:starts|begins))"
_NOT_THAT = r"(?!\s+(?:with|that|where|when|in\s+which|before|after|until)\b)"
_FRAME = rf"(?:frame\b{_NOT_OF}{_NOT_THAT}|(?:image|picture)\b{_NOT_OF}{_STOPS})"
_PICTURES = (
    rf"(?:(?:few|couple(?:\s+of)?|several)\s+)?(?:frames|scenes?|moments?|images|pictures|seconds)\b{_NOT_OF}{_NOT_THAT}"
)
_AND = r"\s*(?:,\s*and|,\s*or|,|and|or|&|/|vs\.?|versus|compared\s+(?:to|with))\s*(?:at\s+)?"
_ITEMS = rf"(?:{_T}|{_N})(?:{_AND}(?:{_T}|{_N}))*"
_NTHS = rf"{ORDINAL}(?:{_AND}(?:the\s+)?{ORDINAL})+"
_JOINING = ", & / and or vs versus compared"
_VERSUS = r"\s*(?:,\s*and|,|and|or|&|/|with|to|vs\.?|versus|against)\s*(?:at\s+)?"
_ALONE = r"(?:^\s*|(?<=happens )|(?<=happening )|(?<=happened ))"
_LOOK = r"(?:(?<=describe )|(?<=explain )|(?<=summarize )|(?<=summarise )|(?<=watch ))"
_ZH_AT = r"(?:处|时(?!长|间)|的时候|的地方|附近|那一刻|那一秒|这一刻|那里|的?画面|的?位置|发生|出现|看到|能看)"
_ZH_MAYBE_AT = r"(?:左右|前后|[之以]?后|[之以]前|[他她它]们?正?在|有什么|是什么|是谁|分别|相比)"
_ZH_NUM = rf"(?:(?<!\d){_NUM}|[一二三四五六七八九十]{{1,6}})"
_ZH_AND = r"\s*(?:,|和|与|跟|及|以及|或|还是)\s*第?"
_ZH_ITEMS = rf"(?:{_T}|{_ZH_NUM})(?:{_ZH_AND}(?:{_T}|{_ZH_NUM}))*"
_ZH_LIST = rf"(?P<many>{_ZH_ITEMS}{_ZH_AND}{HAN})"
_ZH_HERE = (  # where 前5秒 is the clip's: 进球前5秒 hangs on a goal, 镜头5秒 is no 头5秒
    r"(?:^|(?<=[\s,.;:?!()\0A-Za-z在频片像画影和与及看])|(?<=频的|片的|像的|画的|描述|总结|介绍|分析|解释|概括|一下|整个|请问|说说|说明|比较|对比))"
)
_ZH_WHEN = rf"(?:{_ZH_HERE}|(?<=[他她它们到]))"  # 比赛开始时 hangs on a match
# with no verb before it: 煮3分钟左右 is a length, and so is 煮8到10分钟
_ZH_FREE = rf"(?<![一-龥]\s)(?:{_ZH_HERE}|(?<=播放|放了|大约|大概|频里|频中))"
_ZH_FROM = rf"(?:[从由在]第?|第|{_ZH_FREE}|(?={CLOCK})|(?=[^,?]{{2,20}}(?:之间|期间|这段|的内容|发生|出现)))"
_ZH_CLIP = r"(?:视频|影片|短片|录像|片子|片段|动画)"
_ZH_BEGIN, _ZH_END = r"(?:一|刚|最)?开始", r"(?:结束|结尾|片尾|末尾)"

# Before the ranges: "at 30 and 40 seconds" and "compare 0:10 to 0:30" are two moments each. What only looks like a list
# matches without `many` and is passed over as a whole: tried at each of its items it took the square of its length.
_LISTS = (
    # what stands after "at" is when, never for how long, so bare numbers before the unit count too
    Rule(rf"\bat\s+{_THE}(?:(?P<many>{_ITEMS}{_AND}{_T}){_MARK}{_LONG}|(?>{_ITEMS}))", means.moments, _JOINING),
    # "to" and "with" join what is compared; one amount alone only where the sentence stops
    Rule(
        rf"\b(?:compar\w+|contrast\w*)\s+{_THE}(?P<many>(?:{_T}|{_N})(?:{_VERSUS}(?:{_T}|{_N}))*{_VERSUS}{_T}"
        rf"|{AMOUNT}(?={_STOPS})){_MARK}{_LONG}",
        means.moments, "compar contrast",
    ),
    # a question that is but a list, and one that asks what happens at it
    Rule(rf"{_ALONE}(?P<many>{_T}(?:{_AND}(?:{_T}|{_NUM}))*{_AND}{_T}){_STOPS}", means.moments, _JOINING),
    Rule(rf"(?<!between )(?<![A-Za-z]){_SECONDS}\s+(?P<many>{_NUM}(?:{_AND}{_NUM})+){_NO_NOUN}",
         means.moments, "sec min"),
    Rule(rf"(?<!between )(?<!from )\bthe\s+(?:(?P<many>{_NTHS})\s+(?P<unit>seconds?)\b|(?>{_NTHS}))",
         means.moments, "second"),
    Rule(rf"[从由在]?第?(?P<a>{_T}|{_ZH_NUM})\s*[和与跟]\s*第?(?P<b>{_T})之间", means.span),
    # 第1、2分钟: each minute lasts
    Rule(rf"第(?:{_ZH_LIST}|(?>{_ZH_ITEMS}))", means.each_ordinal_han),
    Rule(rf"在{_ZH_LIST}", means.moments),
    Rule(rf"{_ZH_LIST}(?=\s*{_ZH_AT})|(?>{_ZH_ITEMS})", means.moments),
    Rule(rf"{_ZH_FREE}(?:{_ZH_LIST}(?=\s*(?:{_ZH_MAYBE_AT}|,|\?|$))|(?>{_ZH_ITEMS}))", means.moments),
)
_RANGES = (
    Rule(  # all of it
        rf"\b(?:from|between)\s+(?:the\s+)?(?:very\s+)?(?:start|beginning)(?:\s+of\s+{_CLIP})?(?:{_TO}|\s+and\s+)"
        rf"(?:the\s+)?(?:very\s+)?(?:end|finish)\b(?:\s+of\s+{_CLIP})?",
        means.nothing, "start beginning",
    ),
    Rule(
        rf"\bbetween\s+(?:the\s+)?(?:very\s+)?(?:start|beginning)(?:\s+of\s+{_CLIP})?\s+and\s+{_THE}(?P<a>{_T}){_MARK}",
        means.from_clip_begin, "start beginning",
    ),
    Rule(
        rf"(?:\bfrom\s+|^\s*)(?:the\s+)?(?:very\s+)?(?:start|beginning)(?:\s+of\s+{_CLIP})?{_TO}{_THE}(?P<a>{_T}){_MARK}",
        means.from_clip_begin, "start beginning",
    ),
    Rule(rf"\bbetween\s+{_THE}(?P<a>{_T}){_MARK}\s*(?:and|to|-)\s*{_THE_END}", means.to_clip_end, "end finish"),
    Rule(rf"(?:\b(?:from|after|at)\s+)?{_THE}(?P<a>{_T}){_MARK}{_TO}{_THE_END}", means.to_clip_end, "end finish"),
    Rule(rf"从?第?(?P<a>{_T})(?:开始|起)(?:一直)?\s*[到至~-]\s*第?(?P<b>{_T})", means.span),
    Rule(rf"(?:从头(?:开始)?|从?(?:视频)?的?(?:开头|一开始|最开始|开始|起点))\s*[到至~-]\s*第?(?P<a>{_T})",
         means.from_clip_begin),
    Rule(rf"从?第?(?P<a>{_T})(?:开始)?(?:一直)?\s*[到至~-]\s*{_ZH_CLIP}?的?(?:结尾|结束|最后|末尾|片尾|最末)",
         means.to_clip_end),
    Rule(rf"从?{_ZH_CLIP}?的?(?:头|开头|一开始|最开始|开始)(?:一直)?[到至]{_ZH_CLIP}?的?(?:尾|结尾|结束|最后|末尾)",
         means.nothing),
    Rule(rf"\b(?:between|within)\s+{_THE}(?P<a>{_T}){_MARK}\s*(?:and|to|&|-)\s*{_THE}(?P<b>{_T}){_MARK}",
         means.span, "between within"),
    Rule(
        rf"\b(?:from|during|over|in|at|between|within|{_STRETCH})\s+{_THE}(?P<a>{_T}){_MARK}{_TO}{_THE}(?P<b>{_T}){_MARK}{_LONG}",
        means.span, _LEADING_TO,
    ),
    Rule(rf"(?P<a>{CLOCK}){_TO}(?P<b>{CLOCK})", means.span, _LEADING_TO),
    # 1:10-20 leaves the minutes of its end out; no noun may follow: "0:10-20 people"
    Rule(rf"(?P<a>{CLOCK})\s*(?:[-~]|\bto\b)\s*(?P<tail>[0-5]\d(?!\d){_NO_NOUN}|{AMOUNT}){_LONG}",
         means.span_to_tail, _LEADING_TO),
    Rule(rf"(?P<a>{CLOCK})\s*[到至]\s*(?P<tail>[0-5]\d(?!\d)(?!\s*[%/个人])|{AMOUNT})", means.span_to_tail),
    Rule(rf"^\s*(?P<a>{_T}){_TO}(?P<tail>{_T}){_LONG}", means.span_to_tail, _LEADING_TO),
    # bare numbers only where a range of time is all that is asked about
    Rule(rf"(?:{_ALONE}|{_LOOK})(?P<a>{_N}|{_T}){_TO}(?P<b>{ENGLISH}){_LONG}{_STOPS}(?P<relative>)",
         means.span, AMOUNTS),
    # "20-30 seconds in"
    Rule(rf"(?<![\d.:])(?P<a>{_N}|{_T}){_TO}(?P<b>{ENGLISH}){_INTO}", means.span, AMOUNTS),
    Rule(
        rf"\b(?:from|between)\s+t\s*=\s*(?P<a>{_NUM})(?:{_TO}|\s+and\s+)(?:t\s*=\s*)?(?P<b>{_NUM}|{ENGLISH})"
        r"(?![\d:.]*\d|[A-Za-z])",
        means.span, "=",
    ),
    Rule(
        rf"\b(?:everything|anything|all|(?:the\s+)?(?:rest|remainder)(?:\s+of\s+{_CLIP})?)\s+(?:that\s+happen(?:s|ed)\s+)?"
        rf"(?P<side>after|from|past|before|prior\s+to)\s+{_THE}(?P<a>{_T}){_MARK}",
        means.one_side, "after from past before prior",
    ),
    Rule(rf"[\[(]\s*(?P<a>{_T})\s*,\s*(?P<b>{_T})\s*[\])]", means.span, "[ ("),
    Rule(rf"\bbetween\s+(?:the\s+)?(?P<a>{_N})\s*(?:and|to|&|-)\s*(?P<b>{ENGLISH}){_MARK}{_LONG}",
         means.span, "between"),
    Rule(rf"\b(?:from|during|in|at|{_STRETCH})\s+(?:the\s+)?(?P<a>{_NUM}){_TO}(?P<b>{ENGLISH}){_MARK}{_LONG}",
         means.span, AMOUNTS),
    Rule(rf"(?<![\w.:-])(?P<a>{_N}){_TO}(?P<b>{ENGLISH})[\s-]*(?:mark|point)s?\b", means.span, "mark point"),
    Rule(rf"\bfrom\s+(?P<a>{SPELLED}){_TO}(?P<b>{ENGLISH}){_LONG}", means.span, "from"),
    Rule(
        rf"\b(?:(?P<two>between)|from|during|in)\s+(?:the\s+)?(?P<a>{ORDINAL})(?:\s+{_UNIT})?"
        rf"\s*(?(two)(?:and|&|to|-)|(?:to|-|until|till))\s*(?:the\s+)?(?P<b>{ORDINAL})\s+{_SECONDS}",
        means.ordinal_span, "sec min",
    ),
    Rule(
        rf"\bbetween\s+{_SECONDS}\s+(?P<a>{_NUM}|{CLOCK})\s*(?:and|&)\s*(?:{_UNIT}\s+)?"
        rf"(?P<b>{_NUM}|{CLOCK})(?![\d:A-Za-z])",
        means.span, "between",
    ),
    Rule(
        rf"(?<![A-Za-z]){_SECONDS}\s+(?P<a>{_NUM}|{CLOCK}){_TO}(?:{_UNIT}\s+)?"
        rf"(?P<b>{_NUM}|{CLOCK})(?![\d:A-Za-z])",
        means.span, "sec min",
    ),
    Rule(rf"{_ZH_FROM}(?P<a>{_T})\s*[到至~-]\s*第?(?P<tail>{_T})(?:之间|期间)?", means.span_to_tail),
    Rule(
        rf"{_ZH_FROM}(?P<a>{_ZH_NUM})\s*[到至~-]\s*第?(?P<b>{HAN}|{ENGLISH}(?=\s*(?:{_ZH_AT}|{_ZH_MAYBE_AT}|之间|期间)))(?:之间|期间)?",
        means.span,
    ),
    Rule(rf"\b(?:from|since|starting\s+(?:at|from))\s+{_THE}(?P<a>{_T}){_MARK}\s+(?:on(?:wards?)?|forward)\b",
         means.to_clip_end, "from since starting"),
    Rule(rf"\b(?:since|starting\s+from)\s+{_THE}(?P<a>{CLOCK})", means.to_clip_end, "since starting"),
    Rule(rf"(?P<a>{_T}){_MARK}\s+onwards?\b", means.to_clip_end, "onward"),
    Rule(rf"\b(?:until|till|(?<!leading )up\s+to|up\s+until)\s+{_THE}(?P<a>{_T}){_MARK}{_LONG}",
         means.from_clip_begin, "until till up"),
    Rule(rf"[到至]第?(?P<a>{_T})为止", means.from_clip_begin),
)
_FROM_AN_END = (
    Rule(  # what is not to be looked at
        rf"\b(?:skip\w*|ignor\w+|except(?:ing)?(?:\s+for)?|exclud\w+|apart\s+from|aside\s+from|other\s+than|without)\s+"
        rf"(?:the\s+)?(?:very\s+)?(?:first|opening|initial|last|final|closing)\s+(?:{_WHOLE})",
        means.nothing, "skip ignor except exclud apart aside other without",
    ),
    Rule(rf"(?:跳过|忽略|除了?|除去|去掉|不看|不算)(?:前|开头|最后|结尾)的?{AMOUNT}", means.nothing),
    Rule(rf"\bafter\s+(?:the\s+)?first\s+(?P<a>{_WHOLE})(?P<relative>)", means.after_begin, "first"),
    Rule(rf"\bbefore\s+(?:the\s+)?(?:last|final)\s+(?P<a>{_WHOLE})(?P<relative>)", means.before_end, "before"),
    Rule(rf"\b(?P<nth>{ORDINAL})\s+second\s+(?:from|before)\s+{_THE_END}", means.nth_before_end, "second"),
    Rule(rf"{_ALL_OF}(?P<a>{_LENGTH})\s+(?:before|until)\s+{_ENDS}(?P<relative>)", means.last, "end finish"),
    Rule(rf"{_ALL_OF}(?P<a>{_LENGTH})\s+(?:after|following)\s+{_BEGINS}(?P<relative>)", means.first, "start begin"),
    Rule(rf"(?P<a>{_T})\s+(?:from|before|to|until)\s+{_ENDS}(?P<relative>)", means.before_end, "end finish"),
    Rule(rf"(?P<a>{_T})\s+(?:from|after|past)\s+{_BEGINS}(?P<relative>)", means.after_begin, "start begin"),
    Rule(
        rf"\b(?:first|opening)\s+(?:(?P<n>{_N})\s+)?(?:and|with|to|vs\.?|versus|or)\s+(?:the\s+)?(?:last|final|closing)\s+"
        rf"(?P<a>{_WHOLE})(?P<relative>)",
        means.both_ends, "first opening",
    ),
    Rule(rf"(?<!ty[\s-])\b(?:first|opening|initial)\s+(?P<a>{_WHOLE})(?P<relative>)",
         means.first, "first opening initial"),
    Rule(rf"\b(?:last|final|closing|ending)\s+(?P<a>{_WHOLE})(?P<relative>)", means.last, "last final closing ending"),
    # "the last 1:30", but not "which comes first, 0:30 or 0:40"
    Rule(rf"\bthe\s+(?:first|opening|initial)\s+(?P<a>{CLOCK})(?!{_AND}{CLOCK})(?P<relative>)",
         means.first, "first opening initial"),
    Rule(rf"\bthe\s+(?:last|final|closing)\s+(?P<a>{CLOCK})(?!{_AND}{CLOCK})(?P<relative>)",
         means.last, "last final closing"),
    Rule(rf"\bmiddle\s+{AMOUNT}", means.middle, "middle"),
    Rule(rf"中间的?{AMOUNT}", means.middle),
    Rule(rf"(?:{_ZH_HERE}[前头]面?|开头|最初|开场|片头)的?几秒钟?", means.begin),
    Rule(r"(?:最后|最末|结尾|末尾|片尾)的?几秒钟?", means.end),
    # 倒数第10秒 is a moment, 倒数10秒 the last ten
    Rule(rf"(?:倒数|{_ZH_END}之?前)第(?P<a>{AMOUNT})(?P<relative>)", means.ordinal_from_end),
    Rule(rf"(?:距离?|离){_ZH_CLIP}?的?{_ZH_END}(?:还有|还剩|只剩)?(?P<a>{AMOUNT})(?P<relative>)", means.before_end),
    # 第一分钟的最后10秒 are not the clip's, nor are 上半场最后5分钟 and 爆炸前的最后5秒
    Rule(
        rf"(?:(?<={HAN[0]})|(?<=半场)|(?<=[节局])|(?<!结束)(?<!结尾)(?:前|(?<!最)后))"
        rf"的?(?:最后|最初|开场|开头|结束前|前)的?{AMOUNT}",
        means.nothing,
    ),
    Rule(rf"{_ZH_HERE}{_ZH_BEGIN}(?:之|以)?后的?第?(?P<a>{AMOUNT})(?P<relative>)", means.after_begin),
    Rule(rf"(?:{_ZH_HERE}(?:{_ZH_BEGIN}|头|前)|开头|开场|片头)的?(?P<a>{AMOUNT})(?:之|以)?后(?P<relative>)",
         means.after_begin),
    Rule(rf"(?P<a>{CLOCK}|{HAN})(?:之|以)?前的?(?P<shift>{AMOUNT})", means.earlier),
    Rule(rf"(?P<a>{CLOCK}|{HAN})(?:之|以)?后的?(?P<shift>{AMOUNT})", means.later),
    Rule(rf"(?:{_ZH_HERE}(?:{_ZH_BEGIN}|头|前)|开头|最初|起初|开场|片头)的?前?(?P<a>{AMOUNT})(?P<relative>)",
         means.first),
    Rule(rf"(?:最后|最末|倒数|{_ZH_END}(?:之?前)?|{_ZH_HERE}后)的?(?P<a>{AMOUNT})(?P<relative>)", means.last),
    Rule(  # 进球前5秒: 5 s before a goal, which only the picture tells
        rf"(?:[前后]|(?:头|开始)(?!\s*{AMOUNT}(?:{_ZH_AT}|{_ZH_MAYBE_AT})))的?{AMOUNT}", means.nothing
    ),
)
_MOMENTS = (
    Rule(rf"(?:\bat\s+)?(?P<shift>{AMOUNT})\s+(?:after|past)\s+{_THE}(?P<a>{_T}){_MARK}", means.later, "after past"),
    Rule(rf"(?:\bat\s+)?(?P<shift>{AMOUNT})\s+(?:before|prior\s+to)\s+{_THE}(?P<a>{_T}){_MARK}",
         means.earlier, "before prior"),
    Rule(rf"\bleading\s+(?:up\s+)?to\s+{_THE}(?P<a>{_T}){_MARK}", means.moment, "leading"),
    Rule(  # the 2nd minute lasts; the minute hand and the 90th-minute goal are none
        rf"(?:\b(?:in|during|at)\s+)?\bthe\s+(?P<nth>{ORDINAL})\s+(?P<unit>minute|hour)\b"
        rf"(?![\s-]*(?:hand|mark|goal|winner|penalty|break|video|clip|ad)\b){_NOT_OF}",
        means.ordinal_minute, "minute hour",
    ),
    # the minute lasts, its mark does not
    Rule(rf"\bthe\s+(?P<nth>{ORDINAL})\s+(?P<unit>minute|hour)\s+mark\b", means.ordinal_mark, "mark"),
    Rule(
        rf"(?:\bthe\s+|(?<![\w.:])(?=\d))(?P<nth_second>{ORDINAL})\s+second\b"
        rf"(?![\s-]+(?:time|hand|chance|half|place|try|attempt|prize|row|team|one|man|person)\b){_NOT_OF}(?:\s+mark\b)?",
        means.ordinal_second, "second",
    ),
    Rule(rf"第(?P<a>{AMOUNT})(?!工)", means.ordinal_han),
    Rule(
        rf"(?:\b(?:at|around|near|after|before|by|the)\s+|@\s*)?{_THE}(?P<a>{AMOUNT})[\s-]*(?:mark|point|timestamp)(?![A-Za-z])",
        means.moment, "mark point timestamp",
    ),
    Rule(rf"(?:\b(?:at|around|near|after|before)\s+|@\s*){_THE}(?P<a>{AMOUNT}){_LONG}", means.moment, AMOUNTS),
    Rule(rf"(?P<a>{AMOUNT}){_INTO}", means.moment, AMOUNTS),
    Rule(  # a question that is but an amount names a moment; an answer that is one may be a length: no mention
        rf"{_ALONE}{_THE}(?P<a>{ENGLISH}){_LONG}{_STOPS}(?P<relative>)", means.moment, AMOUNTS
    ),
    # "in 30 s" is a length wherever else it stands, and before "tell me"
    Rule(rf"^\s*in\s+(?P<a>{AMOUNT})(?=[.,]?\s+(?:what|who|where|which|is|are|does|do)\b)(?P<relative>)",
         means.moment, AMOUNTS),
    Rule(
        rf"(?:\b(?:at|around|near|in|after|before|by)\s+|@\s*|^\s*){_SECONDS}\s+(?P<a>{_NUM})(?![\d:A-Za-z%-]|\.\d|\s*%)",
        means.moment, "sec min",
    ),
    Rule(rf"\bat\s+{_SECONDS}\s+(?P<a>{SPELLED})(?![\w-]){_NO_NOUN}", means.moment, "sec min"),
    Rule(rf"(?<![A-Za-z0-9_])t\s*=\s*(?P<a>{AMOUNT}|{CLOCK}|{_NUM})(?![\d:.]*\d|[A-Za-z])", means.moment, "="),
    Rule(rf"\b(?:timestamp|at\s+(?:the\s+)?time)(?:\s*[:=]|\s)\s*(?P<a>{AMOUNT}|{_NUM}){_NO_NOUN}(?!\s*[,-]\s*\d)",
         means.moment, "time"),
    Rule(rf"(?P<a>{AMOUNT})(?=\s*{_ZH_AT})[时处]?", means.moment),
    Rule(rf"{_ZH_FREE}(?P<a>{HAN}(?=\s*(?:{_ZH_MAYBE_AT}|,|\?|$))|{ENGLISH}(?=\s*{_ZH_MAYBE_AT}))(?:左右)?",
         means.moment),
    Rule(rf"从第?(?P<a>{HAN})(?:开始|起)", means.moment),
    Rule(rf"(?:在|[跳播放进拉退]到){_ZH_CLIP}?的?\s*(?P<a>{AMOUNT})(?!\s*(?:内|之内|以内|里))", means.moment),
    Rule(rf"(?P<a>{CLOCK})", means.moment),
)
_PLACES = (
    # all of it
    Rule(r"\bfirst\s+(?:and|with|to|vs\.?|versus|or)\s+(?:the\s+)?(?:second|last|latter)\s+half\b",
         means.nothing, "half"),
    Rule(
        rf"\b(?P<nth>first|second|third|fourth|last|final|middle|latter|former)\s+(?P<part>half|third|quarter)\s+of\s+{_CLIP}",
        means.part, "half third quarter",
    ),
    # without "of the video" only where the sentence stops: halves of matches and songs have names after them
    Rule(
        rf"(?:\b(?:in|during|throughout|over)\s+the\s+|^\s*(?:the\s+)?)(?P<nth>first|second|middle|last|final|latter|former)\s+"
        rf"(?P<part>half|third){_STOPS}",
        means.part, "half third",
    ),
    Rule(rf"{_ZH_CLIP}的?(?P<nth>[前后]|最后|中间)的?(?P<part>[三四])分之一", means.part),
    Rule(
        rf"\b(?P<nth>first|opening|initial|last|final)\s+(?P<share>{_NUM})\s*(?:%|percent)(?:\s+of\s+{_CLIP}|{_STOPS})",
        means.share_of_end, "% percent",
    ),
    Rule(rf"{_ZH_CLIP}的?(?P<share>{_NUM})\s*%(?:处|时|的?(?:时候|位置|地方))", means.way_through),
    Rule(rf"{_ZH_CLIP}的?(?P<nth>前|最后|后)的?(?P<share>{_NUM})\s*%", means.share_of_end),
    Rule(rf"{_ZH_HERE}(?P<nth>[前上后下])(?P<part>半)(?:段|程|截|(?<=前半)部分|(?<=后半)部分)(?!的?(?:路|比赛|人生|歌|音乐|文章))",
         means.part),
    Rule(
        rf"\b(?P<share>(?:a\s+|one[\s-])?(?:third|quarter)|two[\s-]thirds|three[\s-]quarters|(?<![\d/])[1-9]/[2-9](?![\d/])"
        rf"|{_NUM}(?=\s*(?:%|percent)))(?:\s*(?:%|percent))?\s+(?:of\s+the\s+way\s+)?(?:through|into|in)\b(?:\s+{_CLIP}|{_STOPS})",
        means.way_through, "third quarter / % percent",
    ),
    Rule(rf"\bat\s+{_THE}(?P<share>{_NUM})\s*(?:%|percent)\s+(?:mark|point)\b{_NOT_OF}",
         means.way_through, "% percent"),
    Rule(
        rf"\b(?:half|mid)[\s-]?way\s+(?:through|in(?:to)?)(?:\s+{_THIS_CLIP}|{_STOPS})"
        rf"|\bat\s+the\s+(?:(?:half|mid)[\s-]?way\s+(?:point|mark)|mid-?point)\b{_NOT_OF}"
        rf"|(?<=happens )half[\s-]?way\b{_STOPS}"
        rf"|\b(?:middle|midpoint)(?:\s+(?:part|section|portion))?\s+of\s+{_CLIP}|\bmid-(?:video|clip)\b",
        means.middle, "half mid",
    ),
    Rule(  # "what is in the middle?" asks for a place in the picture, "what happens in the middle?" for a time
        r"(?:(?<=happens )|(?<=happening )|(?<=going on ))(?:in|at|around)\s+the\s+(?:very\s+)?middle\b(?!\s+of)"
        r"|^\s*in\s+the\s+middle,",
        means.middle, "middle",
    ),
    Rule(
        rf"\bfirst\s+(?:frames?\s+)?(?:and|with|to|vs\.?|versus|or)\s+(?:the\s+)?(?:very\s+)?last\s+frames?\b{_NOT_OF}",
        means.end_frames, "frame",
    ),
    Rule(
        rf"\b(?:at|the|very)\s+(?:start|beginning)(?:\s+of\s+{_CLIP})?\s+(?:and|with|vs\.?|versus|or)\s+(?:at\s+)?"
        rf"{_THE_END}{_STOPS}",
        means.begin_and_end, "start beginning",
    ),
    Rule(rf"\b(?:first|opening)\s+{_FRAME}", means.first_frame, "frame image picture"),
    Rule(rf"\b(?:last|final|closing)\s+{_FRAME}", means.last_frame, "frame image picture"),
    Rule(r"第\s*[一1]帧(?!率)|首帧|起始帧", means.first_frame),
    Rule(r"最[后末]的?一?帧|[末尾]帧|倒数第[一1]帧", means.last_frame),
    Rule(
        rf"\b(?:at|in|near|around|by|from|after)\s+the\s+(?:very\s+)?(?:start|beginning|outset)\b{_NOT_OF}"
        r"(?!\s+(?:line|button|gate|grid|position|menu)\b)"
        rf"|\b(?:start|beginning|opening|outset)\s+of\s+{_CLIP}|\b{_CLIP}'s\s+(?:very\s+)?(?:start|beginning|opening)\b|\b{_CLIP}\s+(?:starts?|begins?|opens?)\b"
        rf"|\b(?:first|opening|initial)\s+{_PICTURES}"
        rf"|(?<=happens )(?:just|right|shortly|immediately)\s+after\s+it\s+(?:starts|begins)\b{_STOPS}",
        means.begin, "start begin outset open first initial",
    ),
    Rule(
        rf"\b(?:at|in|near|by|towards?|until|before)\s+the\s+(?:very\s+)?(?:end|ending|finish)\b{_NOT_OF}"
        r"(?!\s+(?:zone|line|table|user|product|cap)\b)"
        rf"|\b(?:end|ending|conclusion|close|finish)\s+of\s+{_CLIP}|\b{_CLIP}'s\s+(?:very\s+)?(?:end|ending|finish)\b"
        rf"|\b{_CLIP}\s+(?:ends?|finish(?:es)?|stops?|closes?|is\s+over)\b"
        rf"|\b(?:last|final|closing)\s+{_PICTURES}"
        r"|(?<=happens )(?:just|right|shortly|immediately)\s+before\s+it\s+(?:ends|stops|is\s+over)\b" + _STOPS,
        means.end, "end finish conclusion clos stop over last final",
    ),
    Rule(rf"一开始|最开始|刚开始|开头|开场|{_ZH_WHEN}开始(?:时|的时候)|开始部分|片头|{_ZH_CLIP}开始|第一[个幅]?画面",
         means.begin),
    Rule(
        rf"结尾|末尾|片尾|{_ZH_WHEN}(?:[快临]结束|结束(?:时|的时候))|{_ZH_CLIP}的?(?:最后|结束)"
        r"|最后(?=发生|出现|是?谁|怎么|怎样|如何|,|\?|$|的?时候|时刻|一幕|画面|的画面|阶段|部分)",
        means.end,
    ),
    Rule(
        rf"{_ZH_CLIP}的?(?:中间|中段|中部|中途)|中间(?:部分|阶段|的时候|时段)|中[间途](?=发生)|(?:播放|进行)到?一半|{_ZH_CLIP}(?:播放)?过半|一半(?:处|的时候|时)",
        means.middle,
    ),
)
STRETCHES: tuple[Rule, ...] = (
    Rule(
        rf"{_ALL_OF}(?P<shift>{_LENGTH})(?:\s+{_STRETCH})?\s+(?:before|(?:leading\s+)?up\s+to|until)\s+{_THE}(?P<a>{_T}){_MARK}"
        rf"(?!{_TO}{_T})",
        means.up_to, "before up until",
    ),
    Rule(
        rf"(?:{_ALL_OF}|\b(?:for|within)\s+)(?P<shift>{_LENGTH})(?:\s+{_STRETCH})?\s+(?:after|following|from|past)\s+"
        rf"{_THE}(?P<a>{_T}){_MARK}(?!{_TO}(?:{_T}|{_THE_END}))",
        means.on_from, "after following from past",
    ),
    Rule(
        rf"(?P<shift>{AMOUNT})\s+(?:that\s+)?(?:start|begin)(?:s|n?ing)?\s+(?:at|from|with)\s+{_THE}(?P<a>{_T}){_MARK}",
        means.on_from, "start begin",
    ),
    Rule(  # not "10 seconds after 1:00 for 5 seconds"
        rf"(?<!{ENGLISH[0]} )\b(?:from|at|after|starting)\s+{_THE}(?P<a>{_T}){_MARK}\s*,?\s+(?:on(?:wards?)?\s+)?for\s+"
        rf"(?:(?:about|around|roughly|the|next|following)\s+){{0,3}}(?P<shift>{AMOUNT})",
        means.on_from, "for",
    ),
    Rule(  # "at 1:00, what happens in the next 10 seconds?"
        rf"\b(?:from|at|after|starting)\s+{_THE}(?P<a>{CLOCK})[^.!?\0\ue000-\ue002]{{0,60}}\sthe\s+(?:next|following)\s+(?P<shift>{AMOUNT})",
        means.on_from, "next following",
    ),
    Rule(rf"从?第?(?P<a>{_T})(?:(?:开始|起)的?(?:播放|看|(?:之|以)?后的?)?|[往向]后的?|播放|看)(?P<shift>{AMOUNT})",
         means.on_from),
    # 1:00后10秒 is a moment
    Rule(rf"(?P<a>{CLOCK}|{HAN})(?:之|以)?后(?:的|(?={AMOUNT}(?:之内|以内|内|里)))(?P<shift>{AMOUNT})", means.on_from),
    Rule(rf"(?P<a>{CLOCK}|{HAN})(?:(?:之|以)?前(?:的|(?={AMOUNT}(?:之内|以内|内|里)))|[往向]前的?)(?P<shift>{AMOUNT})",
         means.up_to),
)
"""What makes ranges of lengths of time, by the moment beside them."""
RULES: tuple[Rule, ...] = _LISTS + _RANGES + _FROM_AN_END + _MOMENTS + _PLACES
