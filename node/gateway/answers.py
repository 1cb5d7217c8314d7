"""How a value becomes a response."""

import msgspec
from starlette.responses import Response


def json(value: object) -> Response:
    """Return a value as a response."""
    return Response(msgspec.json.encode(value), media_type="application/json")
