"""Who decides on the mesh, on the Unix socket only: the charter in force, the next one, and one by a recovery key."""

from typing import Annotated

import msgspec
from fastapi import APIRouter
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from node.charters import CharterChange
from node.gateway.answers import json
from node.gateway.json_body import decode
from node.gateway.ports import AdminPort
from protocol import limits
from protocol.messages import Peer


class RecoveryPlaced(msgspec.Struct, forbid_unknown_fields=True):
    """A recovery key, by its peer id, and what the charter that it is to sign has otherwise."""

    author: Peer
    change: CharterChange


class CharterRecovered(msgspec.Struct, forbid_unknown_fields=True):
    """A charter that a recovery key has signed, in hexadecimal."""

    sealed: Annotated[str, Meta(pattern=r"^([0-9a-f]{2})+\Z", max_length=2 * limits.ASSEMBLY_BYTES_MAX)]


class CharterSigned(msgspec.Struct, forbid_unknown_fields=True):
    """The beginning of a proposed charter's id."""

    id: Annotated[str, Meta(pattern=r"^[0-9A-Fa-f]{4,64}\Z")]


def router(node: AdminPort) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/api/charter", tags=["admin"])

    @routes.get("")
    async def charter() -> Response:
        """Show the charter in force, and what is proposed to follow it."""
        return json(node.charter())

    @routes.post("/propose")
    async def propose_charter(request: Request) -> Response:
        """Propose the next charter."""
        return json(await node.propose_charter(decode(await request.body(), CharterChange)))

    @routes.post("/sign")
    async def sign_charter(request: Request) -> Response:
        """Agree to a proposed charter with this device."""
        wanted = decode(await request.body(), CharterSigned)
        return json(await node.sign_charter(wanted.id))

    @routes.post("/recovery/place")
    async def place_recovery(request: Request) -> Response:
        """Say what the next charter is that a recovery key is to sign."""
        wanted = decode(await request.body(), RecoveryPlaced)
        return json(node.place_recovery(wanted.author, wanted.change))

    @routes.post("/recovery")
    async def recover_charter(request: Request) -> Response:
        """Take in a charter that a recovery key has signed, and agree to it with this device."""
        recovered = decode(await request.body(), CharterRecovered)
        return json(await node.recover_charter(bytes.fromhex(recovered.sealed)))

    return routes
