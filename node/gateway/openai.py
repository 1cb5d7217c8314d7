"""`/v1`: what OpenAI's clients expect.

The status line of an answer waits for its first token (or for the first sign of life), so that a request which fails before
then gets its proper status. What fails later is told as a last event with the error in it.
"""

import random
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from node.chat import ChatDelta, ChatFinished, ChatStarted, UnknownModelName
from node.gateway import answers
from node.gateway.bounds import SESSION_CHARS_MAX, Bounds
from node.gateway.errors import HttpError, bad_request, internal_error, told
from node.gateway.guards import Send, record_bug
from node.gateway.live import SSE_HEADERS, SSE_WAITING, Live, Places, Writer
from node.gateway.openapi import json_body
from node.gateway.ports import NodePort
from node.gateway.schemas import ChatBody, ChatCall, parse_chat
from node.gateway.sessions import Sessions
from protocol.errors import LocalProtocolError

JOB_HEADER = "x-agora-job"


class Chats:
    """Answers chat requests, streamed or whole.

    Args:
        wall_clock: Unix seconds.
        rng: draws seeds.
    """

    def __init__(
        self,
        node: NodePort,
        bounds: Bounds,
        sessions: Sessions,
        wall_clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self._node = node
        self._bounds = bounds
        self._sessions = sessions
        self._wall_clock = wall_clock
        self._rng = random.SystemRandom() if rng is None else rng
        self._places = Places(bounds.chats, "chats")

    async def respond(self, request: Request) -> Response:
        """Return the response to a checked request; nothing has been asked of the node yet.

        Raises:
            HttpError: 400.
        """
        call = parse_chat(await request.body(), request.headers, self._rng)
        key_id: str = request.state.key_id
        name = request.headers.get("x-agora-session")
        if name is None:
            session = self._sessions.find(key_id, call.request.messages)
        elif len(name) <= SESSION_CHARS_MAX:
            session = self._sessions.named(key_id, name)
        else:
            raise bad_request(
                f"X-Agora-Session has {len(name)} characters, expected {SESSION_CHARS_MAX} at most",
                param="X-Agora-Session",
            )
        call = replace(call, request=replace(call.request, session=session))
        return Live(partial(self._stream if call.is_stream else self._answer, call, key_id))

    async def _answer(self, call: ChatCall, key_id: str, send: Send) -> None:
        started: ChatStarted | None = None
        finished: ChatFinished | None = None
        texts: list[str] = []
        with self._places.take():
            async with aclosing(self._node.chat(call.request)) as events:
                async for event in events:
                    match event:
                        case ChatStarted():
                            started = event
                        case ChatDelta():
                            texts.append(event.text)
                        case ChatFinished():
                            finished = event
        if started is None or finished is None:
            raise LocalProtocolError("the node left a chat without its start or its end")
        text = "".join(texts)
        self._remember(call, key_id, text)
        content = answers.completion(started, finished, text, int(self._wall_clock()))
        response = Response(content, media_type="application/json", headers={JOB_HEADER: started.job_id})
        await send({"type": "http.response.start", "status": 200, "headers": response.raw_headers})
        await send({"type": "http.response.body", "body": content})

    async def _stream(self, call: ChatCall, key_id: str, send: Send) -> None:
        writer = Writer(send, SSE_HEADERS, sign_of_life=SSE_WAITING, keep_alive_s=self._bounds.keep_alive_s)
        try:
            with self._places.take():
                await writer.run(partial(self._write_chunks, call, key_id, writer))
        except Exception as error:
            if not writer.is_started:
                raise
            await writer.end(b"data: " + self._told(error).to_json() + b"\n\n")

    async def _write_chunks(self, call: ChatCall, key_id: str, writer: Writer) -> None:
        chunks: answers.Chunks | None = None
        finished: ChatFinished | None = None
        lead = b""  # what the next piece starts with
        texts: list[str] = []
        async with aclosing(self._node.chat(call.request)) as events:
            async for event in events:
                match event:
                    case ChatStarted() if chunks is None:
                        chunks = answers.Chunks(event, int(self._wall_clock()), wants_usage=call.wants_usage)
                        lead = chunks.first()
                        writer.headers[JOB_HEADER] = event.job_id
                    case ChatDelta() if chunks is not None:
                        await writer.write(lead + chunks.delta(event.text))
                        lead = b""
                        texts.append(event.text)
                    case ChatFinished():
                        finished = event
        # only now: the server takes the end of the answer for the end of the request, and would cut off a settlement
        if chunks is None or finished is None:
            raise LocalProtocolError("the node left a chat without its start or its end")
        self._remember(call, key_id, "".join(texts))
        usage = chunks.usage(finished) if call.wants_usage else b""
        await writer.end(lead + chunks.last(finished) + usage + answers.DONE)

    def _told(self, error: Exception) -> HttpError:
        try:
            return told(error)
        except Exception as bug:  # noqa: BLE001  # the stream has begun: the guard can answer nothing any more
            record_bug(self._node.journal, "/v1/chat/completions", bug)
            return internal_error()

    def _remember(self, call: ChatCall, key_id: str, text: str) -> None:
        if call.request.session is not None:
            self._sessions.remember(key_id, call.request.messages, text, call.request.session)


def router(node: NodePort, chats: Chats) -> APIRouter:
    """Return the routes of `/v1`."""
    routes = APIRouter(prefix="/v1", tags=["openai"])

    @routes.get("/models")
    async def list_models() -> Response:
        """List the models that can be asked for."""
        models = [answers.model(each) for each in node.models()]
        return answers.json({"object": "list", "data": models})

    @routes.get("/models/{model}")
    async def get_model(model: str) -> Response:
        """Describe one model."""
        models = node.models()
        for each in models:
            if each.id == model:
                return answers.json(answers.model(each))
        raise UnknownModelName(model, tuple(each.id for each in models))

    @routes.post("/chat/completions", openapi_extra=json_body(ChatBody))
    async def complete_chat(request: Request) -> Response:
        """Answer a chat, streamed or whole."""
        return await chats.respond(request)

    return routes
