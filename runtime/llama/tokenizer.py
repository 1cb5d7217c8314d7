"""Text to tokens, by a model's own tokeniser. Only for the child."""

from typing import Any

from runtime.llama.lowlevel import ModelError, llama

PROMPT_TOKENS_MAX = 1_000_000  # more is refused before a buffer for it is made


def tokenize(vocabulary: Any, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
    """Return a text's tokens.

    Args:
        vocabulary: llama.cpp's, of the model.
        text: any.
        add_special: put what the model wants at the beginning and the end of a text.
        parse_special: what looks like a control token is one.

    Raises:
        ModelError: there are too many.
    """
    data = text.encode()
    size = len(data) + 8
    for _ in range(2):
        if size > PROMPT_TOKENS_MAX:
            raise ModelError(f"a prompt of {size} tokens, expected at most {PROMPT_TOKENS_MAX}")
        tokens = (llama.llama_token * size)()
        count = int(
            llama.llama_tokenize(vocabulary, data, len(data), tokens, size, add_special, parse_special)
        )
        if count >= 0:
            return tokens[:count]  # type: ignore[no-any-return]  # a slice of a ctypes array is a list
        size = -count
    raise ModelError("the model's tokeniser contradicts itself")
