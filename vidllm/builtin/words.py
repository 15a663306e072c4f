"""The built-in model's tokenizer: byte-level BPE over the world's sentences; every clock time up to 9:59 is one token.

One token per time lets an answer copy the stamp of a frame in one step.
"""

from collections.abc import Iterator

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from vidllm.video.timecode import format_time
from vidllm.world.generate import generator, make_script
from vidllm.world.questions import clip_questions, moment_questions

IMAGE, BOS, EOS, PAD = "<image>", "<s>", "</s>", "<pad>"
SUBWORDS = 1200
"""Of the vocabulary; clock times come on top."""
SECONDS = 600
"""Clock times below this many seconds are one token each."""
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type in ('image', 'video') %}<image>\n{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "{% if message.role == 'user' %} {% else %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def corpus(clips: int) -> Iterator[str]:
    """What a small asker and answerer would write about some clips."""
    for seed in range(clips):
        script, rng = make_script("words", seed), generator("words/ask", seed)
        for asked in clip_questions(script, rng) + moment_questions(
            script, float(rng.integers(int(script.duration))), rng
        ):
            yield f"USER: {asked.text} ASSISTANT: {asked.answer}"


def train_tokenizer(clips: int) -> PreTrainedTokenizerFast:
    """The tokenizer from scratch, the same every time."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SUBWORDS,
        special_tokens=[PAD, BOS, EOS, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(corpus(clips), trainer)
    inner.post_processor = processors.ByteLevel(trim_offsets=False)
    times = [AddedToken(format_time(second), single_word=False, normalized=False) for second in range(SECONDS)]
    inner.add_tokens(times)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=inner, bos_token=BOS, eos_token=EOS, pad_token=PAD, additional_special_tokens=[IMAGE]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.padding_side = "left"
    return tokenizer
