"""What stands before the routes: a request passes here, or gets its refusal, before anything of ours is asked.

In order, cheap checks first: the Host is this device (a rebound DNS name is not), the Origin is our own page, the key is
known, the key is under its rate, the body is small enough, came in time, and says it is JSON. What passed carries the key's
id in `scope["state"]["key_id"]` and its whole body.

Pure ASGI: nothing stands between a token and the socket.
"""

import ipaddress
import traceback
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import trio

from node.gateway.bounds import Bounds
from node.gateway.errors import HttpError, internal_error, too_much
from node.gateway.json_body import unsupported_media_type
from node.gateway.ports import KeyChecker
from node.journal import Journal

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

ADMIN_KEY_ID = "admin"  # whoever may open the admin socket
_FREE = frozenset({"/healthz"})  # no key needed: a supervisor asks it, and it tells nothing
_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_ALWAYS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),  # answers are private
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
]


class Rate:
    """A token bucket per key.

    Args:
        per_s: requests that a key earns each second, up to `burst`.
    """

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._left: dict[str, tuple[float, float]] = {}  # by key id, of which there are few

    def take(self, key_id: str, now: float) -> bool:
        """Use up one request; False when there is none left."""
        left, at = self._left.get(key_id, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._per_s)
        is_allowed = left >= 1
        self._left[key_id] = (left - is_allowed, now)
        return is_allowed


class Guard:
    """An ASGI application in front of another.

    Args:
        keys: the API keys, or None on the admin socket, where the socket itself is the proof.
    """

    def __init__(self, app: App, journal: Journal, bounds: Bounds, keys: KeyChecker | None) -> None:
        self._app = app
        self._journal = journal
        self._bounds = bounds
        self._keys = keys
        self._rate = Rate(bounds.requests_per_s, bounds.burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request in, or answer it with its refusal."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        if scope["type"] != "http":
            return
        has_started = False

        async def send_guarded(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                message["headers"] = [*message.get("headers", []), *_ALWAYS]
            await send(message)

        headers = list(scope["headers"])
        body = _Body(headers, receive, self._bounds)
        try:
            scope.setdefault("state", {})["key_id"] = self._admit(scope, headers)
            await body.read()
            if body.is_cut:
                return
            await self._app(scope, body.replay, send_guarded)
        except HttpError as error:
            await _refuse(error, body, send_guarded, self._bounds.linger_s)
        except Exception as error:  # noqa: BLE001  # the last resort: a bug of one route ends one request
            record_bug(self._journal, scope["path"], error)
            if not has_started:
                await _refuse(internal_error(), body, send_guarded, self._bounds.linger_s)

    def _admit(self, scope: Scope, headers: list[tuple[bytes, bytes]]) -> str:
        if self._keys is None:
            return ADMIN_KEY_ID
        _check_host_and_origin(scope, headers)
        key_id = _check_key(headers, self._keys)
        # strangers share one bucket, so that they cannot use up that of a key
        if not self._rate.take(key_id or "", trio.current_time()):
            raise too_much(f"more than {self._bounds.requests_per_s:g} requests a second, expected fewer")
        if key_id is None and scope["path"] not in _FREE:
            raise HttpError(
                401,
                "no valid API key, expected 'Authorization: Bearer KEY'; 'agora keys create' makes one",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return key_id or ""


class _Body:
    """The body of one request: read whole before the route runs, then replayed to it."""

    def __init__(self, headers: list[tuple[bytes, bytes]], receive: Receive, bounds: Bounds) -> None:
        named = dict(headers)
        self.is_pending = named.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in named
        self.is_cut = False  # the client left in the middle
        self._length = named.get(b"content-length", b"")
        self._media_type = named.get(b"content-type", b"").decode("latin-1")
        self._receive = receive
        self._bounds = bounds
        self._data = b""
        self._is_replayed = False

    async def read(self) -> None:
        """Read it to its end.

        Raises:
            HttpError: 413, 408 or 415.
        """
        if not self.is_pending:
            return
        if self._media_type.partition(";")[0].strip().lower() != "application/json":
            raise unsupported_media_type(self._media_type)
        size_bytes = 0
        if self._length.isdigit() and int(self._length[:16]) > self._bounds.body_bytes:
            raise self._too_large(self._length.decode()[:16])
        chunks = []
        with trio.move_on_after(self._bounds.body_s) as in_time:
            while self.is_pending and not self.is_cut:
                chunk = await self.receive()
                size_bytes += len(chunk)
                if size_bytes > self._bounds.body_bytes:
                    raise self._too_large("more")
                chunks.append(chunk)
        if in_time.cancelled_caught:
            raise HttpError(
                408,
                f"{size_bytes} bytes of the body came in {self._bounds.body_s:g} s, expected all of it",
                code="request_timeout",
            )
        self._data = b"".join(chunks)

    async def receive(self) -> bytes:
        """Return the next piece; afterwards `is_pending` and `is_cut` say whether there is more."""
        message = await self._receive()
        self.is_cut = message["type"] == "http.disconnect"
        self.is_pending = not self.is_cut and bool(message.get("more_body"))
        return bytes(message.get("body", b""))

    async def replay(self) -> Message:
        """Give the route its body once, then whatever the connection says."""
        if not self._is_replayed:
            self._is_replayed = True
            return {"type": "http.request", "body": self._data, "more_body": False}
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return message

    def _too_large(self, found: str) -> HttpError:
        expected = self._bounds.body_bytes
        return HttpError(
            413, f"the body has {found} bytes, expected {expected} at most", code="request_too_large"
        )


def record_bug(journal: Journal, path: str, error: BaseException) -> None:
    """Write down where it happened. The error's own text stays out: it may quote a prompt."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    journal.write("request_crashed", path=path, error=type(error).__name__, where=where)


def _check_host_and_origin(scope: Scope, headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Refuse what a web page of somebody else sends through the user's browser.

    A page whose DNS name was rebound to this address shows in Host; any other page shows in Origin.
    """
    hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
    server = scope.get("server") or ("", None)
    if len(hosts) != 1 or _host_name(hosts[0]) not in _NAMES | {str(server[0])}:
        found = hosts[0][:64] if hosts else ""
        raise HttpError(403, f"Host is {found!r}, expected this device's own address", code="foreign_host")
    own = f"{scope['scheme']}://{hosts[0]}".lower()
    for name, value in headers:
        if name == b"origin" and value.decode("latin-1").lower() != own:
            found = value.decode("latin-1")[:64]
            raise HttpError(403, f"Origin is {found!r}, expected {own!r} or none", code="foreign_origin")


def _host_name(authority: str) -> str:
    """Return the host of a Host header, in one spelling; empty for what is none."""
    name, bracket, rest = authority.lower().rpartition("]")
    if bracket:
        try:
            return str(ipaddress.IPv6Address(name.removeprefix("["))) if rest[:1] in ("", ":") else ""
        except ValueError:
            return ""
    return authority.lower().partition(":")[0]


def _check_key(headers: Iterable[tuple[bytes, bytes]], keys: KeyChecker) -> str | None:
    for name, value in headers:
        if name == b"authorization":
            scheme, _, bearer = value.decode("latin-1").partition(" ")
            key = keys.check(bearer.strip()) if scheme.lower() == "bearer" else None
            return None if key is None else key.id
    return None


async def _refuse(error: HttpError, body: _Body, send: Send, linger_s: float) -> None:
    """Answer, and read on for a while: closing with unread bytes resets the connection, and the answer with it."""
    content = error.to_json()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        *((name.lower().encode(), value.encode()) for name, value in error.headers.items()),
    ]
    if body.is_pending:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": content, "more_body": True})

    # the server blocks on its bounded queue while nobody receives, so throw away until the very end
    async with trio.open_nursery() as nursery:
        thrown_away = trio.Event()

        async def throw_away() -> None:
            while body.is_pending:
                await body.receive()
            thrown_away.set()

        nursery.start_soon(throw_away)
        with trio.move_on_after(linger_s):
            await thrown_away.wait()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        nursery.cancel_scope.cancel()
