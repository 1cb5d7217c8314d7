"""The tokenizer and the chat template: 256 bytes, four roles and marks, and the merges that the data asks for.

A conversation is one line without blanks: `<|user|>question<|end|><|assistant|>answer<|end|>`, any number of turns,
a `<|system|>` message before them or not. `<|end|>` closes every message, so it is the end-of-sequence token; there
is no other beginning-of-sequence token either, and none is put in front (`add_bos` is false).
"""

from collections.abc import Iterable
from typing import Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY_SIZE: Final = 556
END, SYSTEM, USER, ASSISTANT = MARKS = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")  # ids 0 to 3

# An unknown role speaks as the user; a content in parts, as the OpenAI API allows, is their texts one after another.
CHAT_TEMPLATE: Final = """\
{%- for message in messages -%}
{%- set roles = {'system': 'system', 'developer': 'system', 'assistant': 'assistant'} -%}
{{- '<|' + roles.get(message['role'], 'user') + '|>' -}}
{%- if message['content'] is string -%}
{{- message['content'] | trim -}}
{%- else -%}
{%- for part in message['content'] or [] -%}{{- part['text'] -}}{%- endfor -%}
{%- endif -%}
{{- '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Return a byte-level BPE tokenizer of `VOCABULARY_SIZE` tokens.

    Each digit is a token of its own, so that numbers can be calculated with, and the rest is cut as GPT-2 does.
    llama.cpp knows this pre-tokenizer as `smollm`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(MARKS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
