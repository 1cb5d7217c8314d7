"""The owner's verbs, on the Unix socket only."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
import trio
from fastapi import APIRouter
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from federation.strategy import parameters_of
from node.gateway.answers import json
from node.gateway.errors import told
from node.gateway.guards import Send
from node.gateway.json_body import decode
from node.gateway.live import Live, Writer
from node.gateway.ports import AdminPort
from node.human_word import WordKind
from node.services.coordinator import TrainOptions
from protocol import limits
from protocol.errors import AgoraError
from protocol.messages import Detail, Money, Name, Owner, Peer

_NDJSON_HEADERS = {"content-type": "application/x-ndjson"}
_PROGRESS_INTERVAL_S = 0.1  # a terminal shows no more


class InviteWanted(msgspec.Struct, forbid_unknown_fields=True):
    """Terms of an invitation."""

    expires_s: Annotated[float, Meta(gt=0, le=limits.INVITATION_TTL_S_MAX)] = 24 * 3600.0
    uses: Annotated[int, Meta(ge=1, le=1_000)] = 1
    owner: Owner | None = None
    credit_line_micro: Money = 0


class ModelAdded(msgspec.Struct, forbid_unknown_fields=True):
    """A GGUF file of this device, by its absolute path."""

    path: Annotated[str, Meta(min_length=1, max_length=4_096)]
    name: Name | None = None
    publish: bool = False


class ModelPublished(msgspec.Struct, forbid_unknown_fields=True):
    """A name for a model."""

    digest: Annotated[str, Meta(pattern=r"^[0-9a-f]{4,64}$")]
    name: Name


class DataAdded(msgspec.Struct, forbid_unknown_fields=True):
    """A file of private records of this device, by its absolute path; a budget of 0: without differential privacy."""

    path: Annotated[str, Meta(min_length=1, max_length=4_096)]
    name: Name
    budget_milli: Annotated[int, Meta(ge=0, le=limits.EPSILON_MILLI_MAX)]


class DataRemoved(msgspec.Struct, forbid_unknown_fields=True):
    """A private data set, by the beginning of its digest."""

    digest: Annotated[str, Meta(pattern=r"^[0-9a-f]{4,64}\Z")]


class LinePublished(msgspec.Struct, forbid_unknown_fields=True):
    """A line: a published name, and files of this device by their absolute paths."""

    name: Name
    evaluation: Annotated[str, Meta(min_length=1, max_length=4_096)]
    replay: Annotated[str, Meta(min_length=1, max_length=4_096)] | None = None


class WordPlaced(msgspec.Struct, forbid_unknown_fields=True):
    """Who wants to say what on which proposal, named by the first digits of its id."""

    author: Peer
    kind: WordKind
    target: Annotated[str, Meta(pattern=r"^[0-9a-f]{4,64}\Z")]


class WordSaid(msgspec.Struct, forbid_unknown_fields=True):
    """A word that a human has signed, in hexadecimal."""

    sealed: Annotated[str, Meta(pattern=r"^([0-9a-f]{2})+\Z", max_length=2 * limits.BID_BYTES_MAX)]


class PeerRevoked(msgspec.Struct, forbid_unknown_fields=True):
    """A device to bar."""

    peer_id: Peer
    reason: Detail = ""


class TrainWanted(msgspec.Struct, forbid_unknown_fields=True):
    """A training run; see `TrainOptions`. What is left out is as usual."""

    data: Name
    line: Name
    rounds: Annotated[int, Meta(ge=1, le=limits.ROUNDS_MAX)] | None = None
    steps: Annotated[int, Meta(ge=0, le=limits.STEPS_PER_ROUND_MAX)] | None = None
    batch: Annotated[int, Meta(ge=1, le=4_096)] | None = None
    learning_rate_ppm: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    replay_percent: Annotated[int, Meta(ge=0, le=90)] | None = None
    rank: Annotated[int, Meta(ge=1, le=limits.RANK_MAX)] | None = None
    strategy: Name = "default"
    parameters: dict[Name, float] = {}
    cohort_min: Annotated[int, Meta(ge=1, le=limits.COHORT_MAX)] = limits.COHORT_MIN_DEFAULT
    cohort_max: Annotated[int, Meta(ge=1, le=limits.COHORT_MAX)] = 8
    step_micro_max: Money | None = None
    round_s: Annotated[float, Meta(gt=0, le=24 * 3600.0)] = limits.ROUND_TIMEOUT_S
    window_s: Annotated[float, Meta(gt=0, le=300.0)] = limits.ENLIST_WINDOW_S
    start_from: Annotated[str, Meta(pattern=r"^[0-9a-f]{0,32}$")] = ""


class RunSteered(msgspec.Struct, forbid_unknown_fields=True):
    """A run, by the beginning of its id, and what becomes of it."""

    run_id: Annotated[str, Meta(pattern=r"^[0-9a-f]{1,32}$")]
    verb: Literal["pause", "resume", "cancel"]


def router(node: AdminPort) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/api", tags=["admin"])

    @routes.post("/invite")
    async def invite(request: Request) -> Response:
        """Make an invitation."""
        terms = decode(await request.body() or b"{}", InviteWanted)
        return json(
            await node.invite(
                expires_s=terms.expires_s,
                uses=terms.uses,
                owner=terms.owner,
                credit_line_micro=terms.credit_line_micro,
            )
        )

    @routes.post("/models/add")
    async def add_model(request: Request) -> Response:
        """Take a model file in; lines of progress, then the result."""
        wanted = decode(await request.body(), ModelAdded)
        add = partial(node.add_model, wanted.path, wanted.name, wanted.publish)
        return Live(partial(_tell_progress, add))

    @routes.post("/models/publish")
    async def publish_model(request: Request) -> Response:
        """Bind a name to a model of this device."""
        wanted = decode(await request.body(), ModelPublished)
        return json(await node.publish_model(wanted.digest, wanted.name))

    @routes.post("/train")
    async def train(request: Request) -> Response:
        """Announce a training run; it goes on by itself."""
        wanted = decode(await request.body(), TrainWanted)
        fields = msgspec.structs.asdict(wanted) | {"parameters": parameters_of(wanted.parameters)}
        return json(await node.train(TrainOptions(**fields)))

    @routes.post("/runs/steer")
    async def steer(request: Request) -> Response:
        """Pause, resume or cancel a run that this device coordinates."""
        wanted = decode(await request.body(), RunSteered)
        return json(await node.steer_run(wanted.run_id, wanted.verb))

    @routes.get("/data")
    async def data() -> Response:
        """List the private data sets."""
        return json(node.data())

    @routes.post("/data/add")
    async def add_data(request: Request) -> Response:
        """Freeze a copy of private records."""
        wanted = decode(await request.body(), DataAdded)
        return json(await node.add_data(wanted.path, wanted.name, wanted.budget_milli))

    @routes.post("/data/remove")
    async def remove_data(request: Request) -> Response:
        """Delete private records."""
        wanted = decode(await request.body(), DataRemoved)
        return json(await node.remove_data(wanted.digest))

    @routes.get("/lines")
    async def lines() -> Response:
        """List the lines and their public sets."""
        return json(node.lines())

    @routes.post("/lines/publish")
    async def publish_line(request: Request) -> Response:
        """Give a named model the public sets that its patches are judged by."""
        wanted = decode(await request.body(), LinePublished)
        return json(await node.publish_line(wanted.name, wanted.evaluation, wanted.replay))

    @routes.post("/words/place")
    async def place_word(request: Request) -> Response:
        """Say what a human needs in order to sign a word on a patch."""
        wanted = decode(await request.body(), WordPlaced)
        return json(node.place_word(wanted.author, wanted.kind, wanted.target))

    @routes.post("/words")
    async def take_word(request: Request) -> Response:
        """Take in an approval, a veto or a withdrawal that a human has signed."""
        said = decode(await request.body(), WordSaid)
        return json(await node.take_word(bytes.fromhex(said.sealed)))

    @routes.post("/revoke")
    async def revoke(request: Request) -> Response:
        """Bar a device."""
        wanted = decode(await request.body(), PeerRevoked)
        return json(await node.revoke(wanted.peer_id, wanted.reason))

    @routes.post("/leave")
    async def leave() -> Response:
        """Leave the mesh."""
        return json(await node.leave())

    return routes


async def _tell_progress(
    add: Callable[[Callable[[int, int], None]], Awaitable[dict[str, Any]]], send: Send
) -> None:
    """Write `{"done", "total"}` lines while it runs, the newest only, then `{"result"}` or `{"error"}`."""
    writer = Writer(send, _NDJSON_HEADERS, sign_of_life=b"\n", keep_alive_s=_PROGRESS_INTERVAL_S * 50)
    newest = {"done": 0, "total": 0}
    has_news = trio.Event()

    def note(done: int, total: int) -> None:
        newest.update(done=done, total=total)
        has_news.set()

    async def tell() -> None:
        nonlocal has_news
        while True:
            await has_news.wait()
            has_news = trio.Event()
            await writer.write(msgspec.json.encode(newest) + b"\n")
            await trio.sleep(_PROGRESS_INTERVAL_S)

    failure: AgoraError | None = None
    result: dict[str, Any] = {}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tell)
        try:
            result = await add(note)
        except AgoraError as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is None:
        await writer.end(msgspec.json.encode({"result": result}) + b"\n")
    elif writer.is_started:
        await writer.end(told(failure).to_json() + b"\n")
    else:
        raise failure
