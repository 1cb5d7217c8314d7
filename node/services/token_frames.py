"""Token frames: what an engine says, cut into frames that a buyer takes, each id with its contrast.

A frame has room for so many ids and so many bytes; twenty log-probabilities of each token fill it soon, and the words of
one vector are more than one frame's. The text of a cut one travels with the last of its frames: a stream that breaks
between them has lost it, so engines that give log-probabilities say one token at a time.
"""

from collections.abc import Iterator

from protocol import limits
from protocol.envelope import encode
from protocol.messages import TokenLogprob, TokensFrame
from runtime.engine import EngineError, Tokens

IDS_MAX = 512
ID_BYTES = 10  # of the largest id and the largest contrast in MessagePack
FRAME_BYTES = 72  # tag, field names, the index and the sizes of lists


def frames_of(first: int, tokens: Tokens, *, top_max: int) -> Iterator[TokensFrame]:
    """Yield frames whose first token has this index in the whole completion.

    Args:
        first: the index.
        tokens: of the engine; what it says is bounded here, since a buyer holds its seller to it.
        top_max: the likeliest tokens asked for at each place.

    Raises:
        EngineError: it gave log-probabilities or contrasts of some tokens and not of others.
    """
    for what, given in (("log-probabilities", tokens.logprobs), ("contrasts", tokens.contrasts)):
        if given and len(given) != len(tokens.ids):
            raise EngineError(f"the engine gave {len(given)} {what} of {len(tokens.ids)} tokens")
    logprobs = tuple(
        TokenLogprob(
            text=each.text[: limits.TOKEN_BYTES_MAX],
            micronats=each.micronats,
            top=tuple((text[: limits.TOKEN_BYTES_MAX], nats) for text, nats in each.top[:top_max]),
        )
        for each in tokens.logprobs
    )
    room = limits.TOKEN_FRAME_BYTES_MAX - FRAME_BYTES - len(tokens.text.encode())
    begin = 0
    while begin < len(tokens.ids):
        end = _end(begin, len(tokens.ids), logprobs, room)
        yield TokensFrame(
            first=first + begin,
            ids=tokens.ids[begin:end],
            text=tokens.text if end == len(tokens.ids) else "",
            logprobs=logprobs[begin:end],
            contrasts=tokens.contrasts[begin:end],
        )
        begin = end


def _end(begin: int, count: int, logprobs: tuple[TokenLogprob, ...], room: int) -> int:
    """How far one frame reaches; by one token at least."""
    end = begin
    while end < count and end - begin < IDS_MAX:
        room -= ID_BYTES + (len(encode(logprobs[end])) if logprobs else 0)
        if room < 0 and end > begin:
            break
        end += 1
    return end
