"""What looks like a time and is none: hours of the day, ratios, scores, verses, lengths of time."""

from vidllm.video.timephrases import AMOUNT, CLOCK, SPELLED

_ANY = rf"(?:{CLOCK}|{AMOUNT})"
_DAYS = r"(?:Mon|Tues?|Wed|Thu|Thurs?|Fri|Sat|Sun)\.?"
_MONTHS = (
    "January|February|March|April|May|June|July|August|September|October|November|December"
    r"|(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\.?"
)
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_LOOSE = (
    r"(?:~\s*|(?:only|just|about|around|roughly|approximately|nearly|almost|up\s+to|the|between|from|exactly|another|a\s+full)"
    r"\s+){0,6}"
)
_BOOKS = (
    "Genesis|Exodus|Leviticus|Numbers|Deuteronomy|Joshua|Judges|Ruth|Samuel|Kings|Chronicles|Ezra|Nehemiah|Esther|Job|"
    "Psalms?|Proverbs|Ecclesiastes|Isaiah|Jeremiah|Ezekiel|Daniel|Hosea|Joel|Amos|Micah|Matthew|Mark|Luke|John|Acts|"
    "Romans|Corinthians|Galatians|Ephesians|Philippians|Colossians|Thessalonians|Timothy|Titus|Hebrews|James|Peter|Jude|"
    "Revelation|Surah|Sura|Quran|Koran"
)
_NO_PREPOSITION = r"(?:\s+(?!at\b|from\b|around\b|between\b|near\b|before\b|after\b|until\b|in\b|on\b|and\b)\w+){0,3}"

NOT_NUMBERS: tuple[str, ...] = (
    r"\d{13,}",  # no time, and a float has no place for the longest
    r"\b(?:last|first)[\s-]minute\s+(?:goal|decision|change|winner|equali[sz]er|deal|shopping|save|rush|panic|penalty)\b",
    r"\b(?:second|third|next)[\s-]to[\s-](?:the[\s-])?last\b\s*\w*|\bpenultimate\s+\w+",
    r"^\s*(?:(?:just|wait|give\s+me)\s+)?(?:an?|one)\s+(?:second|sec|minute|min|moment)\b"  # "One second, what?"
    r"(?=\s*(?:[,.!?]|$|please))",
    # from where its word begins: else a long one, such as a Chinese text, takes the square of its length
    r"(?<!\S)(?:\S+://\S+|\S+\.(?:mp4|mkv|mov|avi|webm|gif|m4v|srt|vtt)\b)",
    r"\b(?:the|early|late|mid|')[\s-]*(?:\d{2})?\d0'?s\b(?!\s*(?:mark|in\b|into\b|point|to\b|-|on\b|and\s+(?:the\s+)?\d+\s?s(?:ec\w*)?\s+marks?\b))|'\d0s\b|\b(?:19|20)\d0'?s\b",
    r"(?<!\d)\d+\s*点\s*\d+\s*分(?:钟)?(?:\d+\s*秒)?|(?<![一二两三四五六七八九十])[一二两三四五六七八九十]+点[零一二三四五六七八九十]+分",
)
"""Idioms, addresses, decades, endless numbers and hours of the day in Chinese: blanked out before numbers are read."""

NOT_CLOCKS: tuple[str, ...] = (
    rf"\b(?:at|from|around|near)\s+-\s?{CLOCK}",  # before the start, or what a player says is left
    # hours of the day
    rf"(?:{CLOCK}\s*(?:-|to|until|till|and|or)\s*)?{CLOCK}\s*(?:[ap]\.?\s?m\b\.?|o'?\s?clock|uhr\b|hrs\b|hours\b|sharp\b|(?:gmt|utc|cet|est|edt|pst|pdt|cst|bst|ist)\b)",
    rf"{CLOCK}\s+(?:in\s+the\s+(?:morning|afternoon|evening)|at\s+night|tonight|today|tomorrow|yesterday|this\s+(?:morning|afternoon|evening))",
    rf"\b(?:(?:mon|tues|wednes|thurs|fri|satur|sun)days?|noon|midnight|today|tonight|tomorrow|yesterday)\b,?\s+(?:at\s+)?{CLOCK}",
    rf"\d{{1,4}}[-/.]\d{{1,2}}(?:[-/.]?(?:\d{{1,4}})?(?:T|,?\s+)|[-/.]\d{{2,4}},?\s+at\s+){CLOCK}",
    rf"\b(?-i:{_DAYS}|(?:{_MONTHS})\s+{_DAY}|{_DAY}\s+(?:of\s+)?(?:{_MONTHS}))(?:,?\s+\d{{4}})?,?\s+(?:at\s+)?{CLOCK}",
    rf"(?:{CLOCK}\s*(?:-|to|until|and)\s*)?{CLOCK}\s+(?:on|in)\s+(?:(?:a|an|the|every|most|his|her|their)\s+)?(?:(?:\w+\s+)?"
    rf"(?:mon|tues|wednes|thurs|fri|satur|sun)days?|week(?:day|end)s?|(?-i:{_DAYS}|{_MONTHS})|\d+(?:st|nd|rd|th)\s+of\s+(?-i:{_MONTHS}))\b",
    rf"{CLOCK}\s+local\s+time|\bo(?:pen|pening|ffice)\s+(?:hours\s+)?(?:(?:is|are|from|:)\s+)?{CLOCK}\s*(?:-|to|until)\s*{CLOCK}",
    rf"\b(?:flight|train|bus|ferry|appointment|alarm)s?\s+(?:at\s+)?{CLOCK}|\$\s?{CLOCK}",
    rf"\btime\s+(?:is|was)\s+it\b[^.!?\0]{{0,20}}{CLOCK}|{CLOCK}\s+on\s+(?:the|a|his|her|my|your|its|their)\s+(?:\w+\s+)?(?:clock|watch|timer|stopwatch)\b",
    rf"{AMOUNT}\s+(?:to|past|before|after)\s+(?:noon|midnight|{SPELLED}|\d+)\b(?![:\d-])",
    rf"(?:上午|下午|早上|早晨|晚上|中午|凌晨|傍晚|夜里|北京时间|今天|明天|昨天|后天|今早|今晚|明早|明晚|周[一二三四五六日末]|星期[一二三四五六日天]|月\d+[日号])\s*[的:]?{_ANY}(?:开始的?{AMOUNT})?",
    rf"(?:营业|上班|开放|办公)时间(?:是|为|:)?\s*{CLOCK}(?:\s*[到至~-]\s*{CLOCK})?|闹钟?(?:设|定|调|响)?(?:在|到|于|是)?\s*{CLOCK}",
    rf"{CLOCK}\s*(?:开会|上课|下课|上班|下班|起床|出发|起飞|发车)|{CLOCK}\s*的?(?:会议|火车|高铁|航班|班车|闹钟)",
    rf"(?:\b(?:the|an?)\s+|{CLOCK}/){CLOCK}\s+(?:train|bus|flight|ferry|show|showing|appointment|meeting|class|alarm|news|service|departure|deadline)\b",
    # what a clock, a sign or a board in the picture says
    rf"\b(?:(?<!^)show|shows|showing|shown\s+as|reads?|reading|says?|saying|displays?|displaying|set\s+(?:to|for)|strikes?|(?:time|clock|timer|watch)\s+(?:(?:is|was)(?:\s+at)?|of))\s+(?:the\s+time\s+)?(?:as\s+)?{CLOCK}",
    rf"(?:显示|写着|指向|指着)(?:的?时间)?(?:是|为|着|:)?\s*{CLOCK}",
    # ratios, scales, scores, verses, versions
    # 16:9 or 9:16
    rf"\b[1-9]\d?:[1-9]\s*(?:or|vs\.?|versus|/)\s*{CLOCK}|{CLOCK}\s*(?:or|vs\.?|versus|/)\s*[1-9]\d?:[1-9]\b",
    rf"\b(?!vs\b)(?:version|ver|v|release|revision|rev|build|firmware|model|season|episode|series|volume|issue|page|table|room|gate|bus|channel)s?"
    rf"\.?\s*(?:no\.?\s*|#\s*)?{CLOCK}",
    rf"\b(?-i:iOS|iPadOS|macOS|watchOS|tvOS|Android|Windows|Ubuntu|Debian|Python|Java)\s+{CLOCK}",
    rf"\bst(?:ands|ood)\s+at\s+{CLOCK}",
    # times of races
    rf"\b(?:(?:ran|runs?|running|swam|swims?|swimming|rowed|rows?|finish\w*|complet\w*|cover(?:s|ed))\s+(?:\w+\s+){{0,3}}"
    rf"|(?:mile|marathon|race|lap|course|met(?:er|re)s|km|k|\d+\s?m)\s+)in\s+(?:just\s+|only\s+|under\s+|about\s+)?{CLOCK}",
    rf"\b(?:personal\s+best|(?-i:PB)|(?:world\s+|course\s+|lap\s+)?record|lap\s+times?|(?:best|fastest)\s+lap|split)(?:\s+(?:(?:is|was)(?:\s+at)?|of)|\s*[:=])*\s+{CLOCK}"
    rf"|{CLOCK}\s+(?:pace|mile|marathon|lap|per|min(?=\s?/))\b|\bcount(?:s|ing)?[\s-]?down\s+(?:is\s+)?from\s+{CLOCK}",
    rf"{CLOCK}[\s-]*(?:aspect|ratio|scale|odds|dilution|mix(?:ture)?|widescreen|gear|gradient|slope|incline|model)\b",
    rf"\b(?:ratios?|scales?|odds|aspect|slope|gradient|gear(?:ing)?|dilution|dilut\w+|mix(?:ture|ed)?|proportions?)(?:\s+(?:is|was|are|of|to|at|about|in|the|a)|\s*[:=])*\s*{CLOCK}",
    rf"\b(?:scores?|scoreline|scored|result|standings?)(?:\s+(?:(?:is|was)(?:\s+at)?|of|reads|stands\s+at|stood\s+at|being)|\s*[:=])*\s*{CLOCK}",
    rf"\b(?:w[io]ns?|winning|won|beats?|beaten|beating|lead(?:s|ing)?(?!\s+(?:up\s+)?to\b)|led|los[et]s?|losing|defeat\w*|tied|trail\w*){_NO_PREPOSITION}(?:\s+by)?\s+{CLOCK}",
    rf"{CLOCK}\s+(?:win|lead|loss|defeat|victory|score|scoreline|draw|tie)\b",
    rf"(?:福音|创世记|出埃及记|诗篇|箴言|启示录|罗马书)第?\s*{CLOCK}",
    rf"(?:比分|得分|比例|比率|宽高比|长宽比|赔率|以)(?:是|为|到了?|:)?\s*{CLOCK}|{CLOCK}\s*的?(?:比分|比例|比率|宽高比|长宽比|领先|获胜|战胜|落后)",
    rf"\b(?-i:{_BOOKS})\s+{CLOCK}(?:-\d+)?|\b(?:verses?|chapters?|chap?\.?|ch\.|(?-i:Gen|Exod|Matt?|Rom|Cor|Ps|Prov|Isa|Rev)\.?|psalms?|bible|gospel|scripture|hymn)\s+(?:of\s+)?{CLOCK}(?:-\d+)?",
)
"""What looks like a clock's time and is none; blanked out before the rules read."""

LENGTHS: tuple[str, ...] = (
    rf"{AMOUNT}(?=\s+(?:from|between)\s+{_ANY}\s*(?:-|~|to\b|and\b|until\b))",  # the 5 s from 0:30 to 0:35
    rf"\b(?!within\s+{_LOOSE}{CLOCK}\s*(?:-|~|to|and)\s*{CLOCK})"
    rf"(?:lasts|lasting|lasted|(?:will|would|can|should|to|do|does|did)\s+last|takes?|taking|took|every|each|within|under|spend\w*|spent|wait\w*|hold(?:s|ing)?|held|less\s+than|more\s+than|at\s+least|at\s+most|longer\s+than|shorter\s+than|duration|length|runtime|running\s+time)(?:\s+(?:of|is|was|for)|\s*[:=])*\s+{_LOOSE}{_ANY}(?:\s*(?:-|to|and|or)\s*{_ANY})?",
    rf"\b(?:for|per|of|over|next|another|additional|extra|previous|past|following|by|delay\w*|paus\w+)\s+{_LOOSE}{AMOUNT}(?!\s*(?:mark|point|in\b|into\b|from\b|-|to\b|~|until|and\s+(?:\d|the))|\s*-?(?:mark|point))",
    rf"\b(?!^in\s+{AMOUNT}[.,]?\s+(?:what|who|where|which|is|are|does|do)\b)"  # "in 30 s what happens", a moment
    rf"in\s+{_LOOSE}{AMOUNT}(?!\s*(?:mark|point|in\b|into\b|from\b|-|to\b|~|until|and\s+(?:\d|the))|\s*-?(?:mark|point))",
    rf"\b(?:lasts|takes?|took|every|within|for)\s+{_LOOSE}(?:\d+(?:\.\d+)?|{SPELLED})\s*(?:-|to|and)\s*{AMOUNT}",
    rf"{CLOCK}\s+(?:long|in\s+(?:length|total|duration|all)|minutes?\s+long|runtime|remaining|to\s+go)\b",
    rf"{CLOCK}\s+left(?=\s*(?:[?.!,]|$|(?:on|in|to|until)\b))",
    rf"{AMOUNT}[\s-]+(?:long|later|earlier|ago|apart|each|per|old|of\s+age|tall|left|remaining|faster|slower|in\s+(?:length|total|duration|all|a\s+row)|intervals?)\b",
    rf"\b(?:an?|the|this|every|each|one|two|three)\s+{AMOUNT}[\s-]+(?:video|clip|movie|film|timer|countdown|delay|break|pause|ad|advert|commercial|penalty|limit|summary|version|recording|interval|window|intro|outro|loop|gif|shot|sequence|span|period)s?\b",
    rf"\b(?:an?|this|our)\s+{CLOCK}[\s-]+(?:long\s+)?(?:video|clip|movie|film|recording|gif|animation|ad|advert|commercial|song|track)s?\b",
    rf"(?<![束尾\ue002])(?:还?剩(?:下|余)?|还有|只有)的?(?:约|大约|大概)?{AMOUNT}",  # 离结束还有10秒 is a moment
    rf"(?:持续了?|长达|时长|总长|全长|片长|频长|花了?|用[了时]?|耗时|每隔?|需要|等了?|超过|不到|至少|过了|共|内容长)(?:约|大约|大概|为|是|:)?\s*"
    rf"(?:\d+\s*[,和或到至~-]\s*)*{_ANY}(?:左右)?",
    rf"(?<![到放])了(?:大约|约|大概|将近|近|差不多|整整)?{AMOUNT}(?!的?(?:时候|时刻)|时|处)",  # 跑了30秒
    rf"{AMOUNT}(?:钟?的(?:视频|短片|片段|时间|电影|倒计时|长)|长|一次|左右的(?:视频|短片|片段))",
)
"""How long something lasts; blanked out when the lengths that stand beside a clock's time are read."""
