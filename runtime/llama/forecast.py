"""How long things will take, from what was measured: loading a model, and waiting for a slot.

Where nothing was measured yet, the guess is on the slow side: who is told to wait longer than it takes loses little.
An answer's length is not known before its end, only its cap; most end sooner. So what is still to come of one is taken
for the mean length of this model's answers, however much it has said already, or for what its cap leaves.
"""

from collections.abc import Iterable, Mapping

from runtime.engine import Digest, Generation
from runtime.llama.call import Call
from runtime.llama.records import ModelRecord
from runtime.llama.speed import NEW_WEIGHT, wait_s

LOAD_BYTES_PER_S = 200e6  # before the first measurement: a slow SSD
LOAD_S_LEAST = 0.3  # the context, the template, the first step
MEASURED_LOAD_BYTES_MIN = 32 << 20  # the loading of a smaller file says little about the disk
SECONDS_PER_TOKEN = 0.1  # before the first measurement
SECONDS_PER_PROMPT_TOKEN = 0.02
CHARACTERS_PER_TOKEN = 4  # of English text, roughly; only the child can count


class Forecast:
    """Estimates of one engine."""

    def __init__(self) -> None:
        self._load_bytes_per_s = 0.0

    def load_s(self, record: ModelRecord, size_bytes: int) -> float:
        """Return what loading a model will take: as it took before, or as others of its size would."""
        return record.load_s or LOAD_S_LEAST + size_bytes / (self._load_bytes_per_s or LOAD_BYTES_PER_S)

    def learn_load(self, record: ModelRecord, size_bytes: int, took_s: float) -> None:
        """A model was loaded."""
        record.load_s = (1 - NEW_WEIGHT) * (record.load_s or took_s) + NEW_WEIGHT * took_s
        if size_bytes >= MEASURED_LOAD_BYTES_MIN and took_s > 0:
            rate = size_bytes / took_s
            self._load_bytes_per_s = (1 - NEW_WEIGHT) * (self._load_bytes_per_s or rate) + NEW_WEIGHT * rate

    def wait_s(
        self,
        slots: int,
        running: Iterable[Call],
        waiting: Iterable[Call],
        records: Mapping[Digest, ModelRecord],
    ) -> float:
        """Return how long one more request would wait for a slot, behind all who wait."""
        return wait_s(
            slots,
            [_left_s(call, records[call.model], slots) for call in running],
            [_whole_s(call.request, records[call.model], slots) for call in waiting],
        )


def _left_s(call: Call, record: ModelRecord, streams: int) -> float:
    """What a running call will still take."""
    tokens = _tokens_left(call.request, record, call.completion_tokens)
    return call.prompt_tokens_left * _prompt_s(record, streams) + tokens * _token_s(record, streams)


def _whole_s(request: Generation, record: ModelRecord, streams: int) -> float:
    characters = sum(len(message.content) for message in request.messages) + sum(map(len, request.inputs))
    prompt_tokens = characters / CHARACTERS_PER_TOKEN + len(request.claimed) + len(request.received)
    tokens = _tokens_left(request, record, len(request.received))
    return prompt_tokens * _prompt_s(record, streams) + tokens * _token_s(record, streams)


def _tokens_left(request: Generation, record: ModelRecord, said: int) -> float:
    if request.task in ("embedding", "check"):
        return 0.0  # words come with the prompt
    left = max(0, request.tokens_max - said)
    return min(left, record.completion_tokens) if record.completion_tokens else left


def _token_s(record: ModelRecord, streams: int) -> float:
    return record.decode.seconds_per_token(streams) or SECONDS_PER_TOKEN


def _prompt_s(record: ModelRecord, streams: int) -> float:
    return record.prompt.seconds_per_token(streams) or SECONDS_PER_PROMPT_TOKEN
