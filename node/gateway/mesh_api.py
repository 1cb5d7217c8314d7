"""`/api`: the mesh as this node sees it, and its journal as it happens."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from node.errors import StartError
from node.event import Event
from node.gateway.answers import json
from node.gateway.bounds import JOBS_LISTED_MAX, MODEL_CHARS_MAX, Bounds
from node.gateway.errors import HttpError
from node.gateway.guards import Send
from node.gateway.live import SSE_HEADERS, SSE_WAITING, Live, Places, Writer
from node.gateway.openapi import json_answer
from node.gateway.ports import NodePort
from node.journal import RING_EVENTS, Journal
from node.journal_file import Filter
from node.runs import RunView
from node.views import (
    AttemptView,
    JobView,
    LedgerView,
    ModelView,
    PatchView,
    PeerView,
    ProposalView,
    StatusView,
)
from protocol import limits

JobId = Annotated[str, Path(pattern=r"^[0-9a-f]{1,32}$")]
PatchId = Annotated[str, Path(pattern=r"^[0-9a-f]{1,64}$")]
Tokens = Annotated[int, Query(ge=1, le=limits.TOKENS_PER_REQUEST_MAX)]


def router(node: NodePort, bounds: Bounds) -> APIRouter:
    """Return the routes of `/api`."""
    routes = APIRouter(prefix="/api", tags=["mesh"])

    @routes.get("/status", responses=json_answer(StatusView))
    async def status() -> Response:
        """Show this daemon at a glance."""
        return json(node.status())

    @routes.get("/peers", responses=json_answer(PeerView, is_list=True))
    async def peers() -> Response:
        """List the peers that are known."""
        return json(node.peers())

    @routes.get("/models", responses=json_answer(ModelView, is_list=True))
    async def models() -> Response:
        """List the models that can be asked for."""
        return json(node.models())

    @routes.get("/jobs", responses=json_answer(JobView, is_list=True))
    async def jobs(limit: Annotated[int, Query(ge=1, le=JOBS_LISTED_MAX)] = 100) -> Response:
        """List jobs, the newest first."""
        return json(node.jobs(limit))

    @routes.get("/jobs/{job_id}", responses=json_answer(JobView))
    async def job(job_id: JobId) -> Response:
        """Explain one job from beginning to end; a prefix of its id is enough when only one job has it."""
        view = node.job(job_id)
        if view is None:
            raise HttpError(404, f"no job {job_id!r}, or several; 'agora jobs' lists them", code="not_found")
        return json(view)

    @routes.get("/ledger", responses=json_answer(LedgerView))
    async def ledger() -> Response:
        """Show the accounts."""
        return json(node.ledger())

    @routes.get("/patches", responses=json_answer(PatchView, is_list=True))
    async def patches() -> Response:
        """List the patches that were proposed, the newest first."""
        return json(node.patches())

    @routes.get("/patches/{patch_id}", responses=json_answer(PatchView))
    async def patch(patch_id: PatchId) -> Response:
        """Show one patch: where it comes from and what it does; a prefix of its id is enough when only one has it."""
        try:
            return json(node.patch(patch_id))
        except StartError as error:
            raise HttpError(404, str(error), code="not_found") from None

    @routes.get("/proposals", responses=json_answer(ProposalView, is_list=True))
    async def proposals() -> Response:
        """List the ballots, the newest first: who has voted, who cannot, what is still needed."""
        return json(node.proposals())

    @routes.get("/runs", responses=json_answer(RunView, is_list=True))
    async def runs() -> Response:
        """List the training runs of this device, the newest first."""
        return json(node.runs())

    @routes.get("/runs/{run_id}", responses=json_answer(RunView))
    async def run(run_id: JobId) -> Response:
        """Show one run, round by round; a prefix of its id is enough when only one run has it."""
        try:
            return json(node.training_run(run_id))
        except StartError as error:
            raise HttpError(404, str(error), code="not_found") from None

    @routes.get("/quotes", responses=json_answer(AttemptView))
    async def quotes(
        model: Annotated[str, Query(min_length=1, max_length=MODEL_CHARS_MAX)],
        prompt_tokens: Tokens,
        completion_tokens: Tokens = limits.TOKENS_PER_REQUEST_DEFAULT,
    ) -> Response:
        """Ask the sellers for their prices without awarding anything."""
        return json(await node.quotes(model, prompt_tokens, completion_tokens))

    routes.include_router(_events(EventFeed(node.journal, bounds)))
    return routes


class EventFeed:
    """The journal for readers over HTTP."""

    def __init__(self, journal: Journal, bounds: Bounds) -> None:
        self._journal = journal
        self._bounds = bounds
        self._places = Places(bounds.readers, "readers of events")

    async def follow(self, wanted: Filter, recent: int, send: Send) -> None:
        """Send what has happened and what happens, until the reader leaves."""
        writer = Writer(send, SSE_HEADERS, sign_of_life=SSE_WAITING, keep_alive_s=self._bounds.keep_alive_s)
        with self._places.take():
            await writer.run(partial(self._write_events, wanted, recent, writer))

    async def _write_events(self, wanted: Filter, recent: int, writer: Writer) -> None:
        async with self._journal.subscribe() as subscription:
            past = self._journal.recent(recent) if recent else ()  # nothing happens between these two
            told = b"".join(_event(each) for each in past if wanted.accepts(each))
            await writer.write(b": events\n\n" + told)
            async for event in subscription:
                if wanted.accepts(event):
                    await writer.write(_event(event))


def _events(feed: EventFeed) -> APIRouter:
    routes = APIRouter()

    @routes.get("/events")
    async def events(
        job: Annotated[str | None, Query(pattern=r"^[0-9a-f]{8,32}$")] = None,
        recent: Annotated[int, Query(ge=0, le=RING_EVENTS)] = 0,
    ) -> Response:
        """Follow the journal as server-sent events, after the newest `recent` ones; those of one job, if it is named."""
        return Live(partial(feed.follow, Filter(id=job), recent))

    return routes


def _event(event: Event) -> bytes:
    return f"id: {event.number}\ndata: {event.to_json()}\n\n".encode()
