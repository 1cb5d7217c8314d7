"""Answers that a model writes, chats and completions alike, streamed or whole.

The status line of an answer waits for its first token (or for the first sign of life), so that a request which fails before
then gets its proper status. What fails later is told as a last event with the error in it.
"""

import random
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response

from node.chat import ChatDelta, ChatFinished, ChatStarted
from node.gateway.bounds import Bounds
from node.gateway.errors import HttpError, internal_error, told
from node.gateway.guards import Send, record_bug
from node.gateway.headers import session_name_of
from node.gateway.live import SSE_HEADERS, SSE_WAITING, Live, Places, Writer
from node.gateway.openai.answer import Chunks, Shape, whole
from node.gateway.openai.model_fit import check_writer
from node.gateway.openai.writing_body import Call
from node.gateway.ports import NodePort
from node.gateway.sessions import Sessions
from protocol.errors import LocalProtocolError

JOB_HEADER = "x-agora-job"


class MakeShape(Protocol):
    """Makes the shape of one answer."""

    def __call__(self, *, wants_logprobs: bool) -> Shape:
        """Return a new one."""


@dataclass(frozen=True)
class Kind:
    """A kind of request for text: how its body is read, and how its answer is told."""

    parse: Callable[[bytes, Mapping[str, str], random.Random], Call]
    shape: MakeShape


@dataclass(frozen=True)
class _Asked:
    """A request on its way: the call, whose it is, and how its answer is told."""

    call: Call
    key_id: str
    shape: Shape
    path: str


class Writing:
    """Answers requests for text.

    Args:
        places: shared by all that is answered at once.
        wall_clock: Unix seconds.
        rng: draws seeds.
    """

    def __init__(
        self,
        node: NodePort,
        bounds: Bounds,
        places: Places,
        sessions: Sessions,
        wall_clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self._node = node
        self._bounds = bounds
        self._places = places
        self._sessions = sessions
        self._wall_clock = wall_clock
        self._rng = random.SystemRandom() if rng is None else rng

    async def respond(self, request: Request, kind: Kind) -> Response:
        """Return the response to a checked request; nothing has been asked of the node yet.

        Raises:
            HttpError: 400.
            UnknownModelName: there is no such model.
        """
        call = kind.parse(await request.body(), request.headers, self._rng)
        check_writer(self._node, call)
        key_id: str = request.state.key_id
        session = self._session(call, key_id, session_name_of(request.headers))
        call = replace(call, request=replace(call.request, session=session))
        shape = kind.shape(wants_logprobs=call.request.sampling.logprobs)
        asked = _Asked(call, key_id, shape, request.url.path)
        return Live(partial(self._stream if call.is_stream else self._answer, asked))

    def _session(self, call: Call, key_id: str, name: str | None) -> bytes | None:
        """Return the conversation that a call belongs to; a raw text is none unless the client says so."""
        if name is not None:
            return self._sessions.named(key_id, name)
        return self._sessions.find(key_id, call.request.messages) if call.request.messages else None

    async def _answer(self, asked: _Asked, send: Send) -> None:
        started: ChatStarted | None = None
        finished: ChatFinished | None = None
        deltas: list[ChatDelta] = []
        with self._places.take():
            try:
                async with aclosing(self._node.chat(asked.call.request)) as events:
                    async for event in events:
                        match event:
                            case ChatStarted():
                                started = event
                            case ChatDelta():
                                deltas.append(event)
                            case ChatFinished():
                                finished = event
            except Exception as error:
                raise told(error, asked.call.fields) from error
        if started is None or finished is None:
            raise LocalProtocolError("the node left a chat without its start or its end")
        self._remember(asked, "".join(each.text for each in deltas))
        content = whole(asked.shape, started, finished, deltas, int(self._wall_clock()))
        await send_json(send, content, started.job_id)

    async def _stream(self, asked: _Asked, send: Send) -> None:
        writer = Writer(send, SSE_HEADERS, sign_of_life=SSE_WAITING, keep_alive_s=self._bounds.keep_alive_s)
        try:
            with self._places.take():
                await writer.run(partial(self._write_chunks, asked, writer))
        except Exception as error:
            if not writer.is_started:
                raise told(error, asked.call.fields) from error
            await writer.end(b"data: " + self._told(error, asked).to_json() + b"\n\n")

    async def _write_chunks(self, asked: _Asked, writer: Writer) -> None:
        chunks: Chunks | None = None
        finished: ChatFinished | None = None
        lead = b""  # what the next piece starts with
        texts: list[str] = []
        call = asked.call
        async with aclosing(self._node.chat(call.request)) as events:
            async for event in events:
                match event:
                    case ChatStarted() if chunks is None:
                        chunks = Chunks(
                            asked.shape, event, int(self._wall_clock()), wants_usage=call.wants_usage
                        )
                        lead = chunks.opening()
                        writer.headers[JOB_HEADER] = event.job_id
                    case ChatDelta() if chunks is not None:
                        await writer.write(lead + chunks.piece(event))
                        lead = b""
                        texts.append(event.text)
                    case ChatFinished():
                        finished = event
        # only now: the server takes the end of the answer for the end of the request, and would cut off a settlement
        if chunks is None or finished is None:
            raise LocalProtocolError("the node left a chat without its start or its end")
        self._remember(asked, "".join(texts))
        await writer.end(lead + chunks.ending(finished))

    def _told(self, error: Exception, asked: _Asked) -> HttpError:
        try:
            return told(error, asked.call.fields)
        except Exception as bug:  # noqa: BLE001  # the stream has begun: the guard can answer nothing any more
            record_bug(self._node.journal, asked.path, bug)
            return internal_error()

    def _remember(self, asked: _Asked, text: str) -> None:
        request = asked.call.request
        if request.session is not None and request.messages:
            self._sessions.remember(asked.key_id, request.messages, text, request.session)


async def send_json(send: Send, content: bytes, job_ids: str) -> None:
    """Send a whole answer, which says by which job it came."""
    response = Response(content, media_type="application/json", headers={JOB_HEADER: job_ids})
    await send({"type": "http.response.start", "status": 200, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": content})
