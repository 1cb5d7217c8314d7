"""Answers to requests for embeddings, always whole.

One job carries so many texts as its result and its prompt have room for; what is more than that becomes several jobs, one
after another, since each has to be bought and the second may find the seller's model warm.
"""

from collections.abc import Iterator, Sequence
from contextlib import aclosing
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from node.chat import ChatDelta, ChatFinished, ChatRequest, ChatStarted
from node.gateway import bounds
from node.gateway.errors import Fields, told
from node.gateway.guards import Send
from node.gateway.live import Live, Places
from node.gateway.openai.embedding_answer import EmbeddingAnswer
from node.gateway.openai.embedding_body import EmbeddingCall, parse_embedding
from node.gateway.openai.model_fit import embedder
from node.gateway.openai.writing import send_json
from node.gateway.ports import NodePort
from node.views import ModelView
from protocol import limits
from protocol.errors import LocalProtocolError


class Embedding:
    """Answers requests for embeddings.

    Args:
        places: shared by all that is answered at once.
    """

    def __init__(self, node: NodePort, places: Places) -> None:
        self._node = node
        self._places = places

    async def respond(self, request: Request) -> Response:
        """Return the response to a checked request; nothing has been asked of the node yet.

        Raises:
            HttpError: 400.
            UnknownModelName: there is no such model.
        """
        call = parse_embedding(await request.body(), request.headers)
        model = embedder(self._node, call.model, call.dimensions)
        return Live(partial(self._answer, call, model))

    async def _answer(self, call: EmbeddingCall, model: ModelView, send: Send) -> None:
        answer = EmbeddingAnswer(model.dimensions, is_base64=call.is_base64)
        job_ids: list[str] = []
        prompt_tokens = 0
        name = ""
        with self._places.take():
            for inputs in _jobs(call.inputs, model.dimensions):
                words: list[int] = []
                started, finished = await self._read(call, model, inputs, words)
                answer.add(words, len(inputs))
                job_ids.append(started.job_id)
                prompt_tokens += finished.prompt_tokens
                name = started.model
        await send_json(send, answer.whole(model=name, prompt_tokens=prompt_tokens), ", ".join(job_ids))

    async def _read(
        self, call: EmbeddingCall, model: ModelView, inputs: tuple[str, ...], words: list[int]
    ) -> tuple[ChatStarted, ChatFinished]:
        """Have one job done, and add its words to those that are there."""
        request = ChatRequest(
            task="embedding",
            model=model.id if call.model == "auto" else call.model,
            messages=(),
            inputs=inputs,
            tokens_max=len(inputs) * model.dimensions,
            privacy=call.privacy,
        )
        started: ChatStarted | None = None
        finished: ChatFinished | None = None
        try:
            async with aclosing(self._node.chat(request)) as events:
                async for event in events:
                    match event:
                        case ChatStarted():
                            started = event
                        case ChatDelta():
                            words += event.words
                        case ChatFinished():
                            finished = event
        except Exception as error:
            raise told(error, Fields("input")) from error
        if started is None or finished is None:
            raise LocalProtocolError("the node left a job without its start or its end")
        return started, finished


def _jobs(texts: Sequence[str], dimensions: int) -> Iterator[tuple[str, ...]]:
    """Divide the texts, in order, into what one job carries; a single text always has its job."""
    most = max(1, min(limits.INPUTS_MAX, limits.TOKENS_PER_REQUEST_MAX // dimensions))
    batch: list[str] = []
    size_bytes = 0
    for text in texts:
        text_bytes = len(text.encode()) + bounds.TURN_BYTES
        if batch and (len(batch) == most or size_bytes + text_bytes > bounds.PROMPT_BYTES_MAX):
            yield tuple(batch)
            batch, size_bytes = [], 0
        batch.append(text)
        size_bytes += text_bytes
    yield tuple(batch)
