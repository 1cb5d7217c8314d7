"""The two applications: the gateway on TCP, which asks for a key, and the admin socket, which has more verbs."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from node.gateway import mesh_api
from node.gateway.answers import json
from node.gateway.bounds import Bounds
from node.gateway.errors import HttpError, told
from node.gateway.guards import App, Guard
from node.gateway.openai import routes
from node.gateway.openapi import describe_shapes
from node.gateway.ports import AdminPort, KeyChecker, NodePort
from protocol.errors import AgoraError

# newer releases of FastAPI report requests and errors wherever the environment says: nothing of ours leaves this device
_NO_TELEMETRY: Any = dict.fromkeys(("tracing", "metrics", "logs", "operation_spans", "auto_configure"), False)
_CODES = {404: "not_found", 405: "method_not_allowed"}


def gateway_app(node: NodePort, keys: KeyChecker, bounds: Bounds | None = None) -> App:
    """Return the application of the gateway."""
    bounds = bounds or Bounds()
    return Guard(_routes(node, bounds), node.journal, bounds, keys)


def admin_app(node: AdminPort, bounds: Bounds | None = None) -> App:
    """Return the application of the admin socket: everything the gateway has, without a key, and the owner's verbs."""
    from node.gateway import admin_api, charter_api, patch_api  # noqa: PLC0415  # no gateway of another main needs them

    bounds = bounds or Bounds()
    app = _routes(node, bounds)
    app.include_router(admin_api.router(node))
    app.include_router(charter_api.router(node))
    app.include_router(patch_api.router(node))
    return Guard(app, node.journal, bounds, keys=None)


def _routes(node: NodePort, bounds: Bounds) -> FastAPI:
    # FastAPI's own /docs page loads scripts from elsewhere, so there is none
    app = FastAPI(
        title="Agora", docs_url=None, redoc_url=None, redirect_slashes=False, telemetry=_NO_TELEMETRY
    )
    app.include_router(routes.router(node, bounds))
    app.include_router(mesh_api.router(node, bounds))

    @app.get("/healthz")
    async def is_alive() -> Response:
        """Say that the daemon answers."""
        return json({"status": "ok"})

    app.add_exception_handler(HttpError, _answer_error)
    app.add_exception_handler(AgoraError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_error)
    app.add_exception_handler(Exception, _pass_on)
    describe_shapes(app)
    return app


async def _answer_error(request: Request, error: Exception) -> Response:
    match error:
        case RequestValidationError():
            answer = _from_validation(error)
        case HTTPException(status_code=status):
            code = _CODES.get(status, "bad_request")
            answer = HttpError(
                status, f"{request.method} {request.url.path[:256]}: {error.detail}", code=code
            )
        case _:
            answer = told(error)
    return Response(
        answer.to_json(), status_code=answer.status, media_type="application/json", headers=answer.headers
    )


async def _pass_on(_: Request, bug: Exception) -> Response:
    raise bug  # to the guard, which writes it down and answers; Starlette would answer in its own words


def _from_validation(error: RequestValidationError) -> HttpError:
    first = error.errors()[0]
    param = str(first["loc"][-1])
    found = str(first.get("input"))[:64]
    return HttpError(400, f"{param} is {found!r}: {first['msg'].lower()}", param=param, code="invalid_value")
