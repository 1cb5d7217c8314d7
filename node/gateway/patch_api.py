"""What the owner of a device says of patches, on the Unix socket only; what is seen of them stands in `mesh_api.py`."""

from typing import Annotated

import msgspec
from fastapi import APIRouter
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from node.gateway.answers import json
from node.gateway.json_body import decode
from node.gateway.ports import AdminPort

PatchPrefix = Annotated[str, Meta(pattern=r"^[0-9a-f]{4,64}\Z")]


class VoteSaid(msgspec.Struct, forbid_unknown_fields=True):
    """This device's vote on a patch, by the beginning of its id."""

    id: PatchPrefix
    is_yes: bool


class RollbackWanted(msgspec.Struct, forbid_unknown_fields=True):
    """A patch to go back from."""

    id: PatchPrefix


def router(node: AdminPort) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/api", tags=["admin"])

    @routes.post("/vote")
    async def vote(request: Request) -> Response:
        """Vote with this device on a patch."""
        said = decode(await request.body(), VoteSaid)
        return json(await node.vote(said.id, is_yes=said.is_yes))

    @routes.post("/patches/rollback")
    async def roll_back(request: Request) -> Response:
        """Propose the way back from a patch in force."""
        wanted = decode(await request.body(), RollbackWanted)
        return json(await node.roll_back(wanted.id))

    return routes
