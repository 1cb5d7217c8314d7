"""The command line's side of the admin socket: each verb of the daemon as a call, each failure as one line."""

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from node.home import Home
from protocol.errors import AgoraError

# a stream shows a sign of life every 5 s and a verb waits for one auction at most; nothing is silent for longer
_TIMEOUT_S = 30.0


class DaemonError(AgoraError):
    """The daemon cannot be reached, or it refuses; one line that says what to do.

    Attributes:
        status: the HTTP status of a refusal; 0 if the daemon said nothing.
        details: the error object of a refusal.
    """

    def __init__(self, message: str, status: int = 0, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.details = dict(details or {})


class AdminClient:
    """Asks the daemon of one home; `async with AdminClient(home) as admin`. All calls raise `DaemonError`."""

    def __init__(self, home: Home) -> None:
        self._home = home
        transport = httpx.AsyncHTTPTransport(uds=str(home.admin_socket))
        self._http = httpx.AsyncClient(transport=transport, base_url="http://agora", timeout=_TIMEOUT_S)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def status(self) -> dict[str, Any]:
        """Return the daemon at a glance."""
        return await self._object("/api/status")

    async def peers(self) -> list[dict[str, Any]]:
        """Return the peers that are known."""
        return await self._list("/api/peers")

    async def models(self) -> list[dict[str, Any]]:
        """Return the models that can be asked for."""
        return await self._list("/api/models")

    async def jobs(self, limit: int = 100) -> list[dict[str, Any]]:
        """Return the newest jobs first."""
        return await self._list(f"/api/jobs?limit={limit}")

    async def job(self, job_id: str) -> dict[str, Any]:
        """Return the job of an id, or of a prefix that only one job has."""
        if not (job_id.isascii() and job_id.isalnum()):
            raise DaemonError(f"job {job_id[:32]!r} is no id, expected hex digits; 'agora jobs' lists them")
        return await self._object(f"/api/jobs/{job_id}")

    async def runs(self) -> list[dict[str, Any]]:
        """Return the training runs of this device, the newest first."""
        return await self._list("/api/runs")

    async def training_run(self, run_id: str) -> dict[str, Any]:
        """Return the run of an id, or of a prefix that only one run has."""
        if not (run_id.isascii() and run_id.isalnum()):
            raise DaemonError(f"run {run_id[:32]!r} is no id, expected hex digits; 'agora runs' lists them")
        return await self._object(f"/api/runs/{run_id}")

    async def train(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Announce a training run."""
        return await self._verb("/api/train", options)

    async def steer_run(self, run_id: str, verb: str) -> dict[str, Any]:
        """Pause, resume or cancel a run of that device."""
        return await self._verb("/api/runs/steer", {"run_id": run_id, "verb": verb})

    async def ledger(self) -> dict[str, Any]:
        """Return the accounts."""
        return await self._object("/api/ledger")

    async def charter(self) -> dict[str, Any]:
        """Return the charter in force, and what is proposed to follow it."""
        return await self._object("/api/charter")

    async def propose_charter(self, change: Mapping[str, Any]) -> dict[str, Any]:
        """Propose the next charter; see `node.charters.CharterChange`."""
        return await self._verb("/api/charter/propose", dict(change))

    async def sign_charter(self, proposal: str) -> dict[str, Any]:
        """Agree to a proposed charter with that device."""
        return await self._verb("/api/charter/sign", {"id": proposal})

    async def place_recovery(self, author: str, change: Mapping[str, Any]) -> dict[str, Any]:
        """Return the next charter for a recovery key to sign."""
        return await self._verb("/api/charter/recovery/place", {"author": author, "change": dict(change)})

    async def recover_charter(self, raw: bytes) -> dict[str, Any]:
        """Hand over a charter that a recovery key has signed; that device agrees to it."""
        return await self._verb("/api/charter/recovery", {"sealed": raw.hex()})

    async def invite(
        self, *, expires_s: float, uses: int, owner: str | None, credit_line_micro: int
    ) -> dict[str, Any]:
        """Make an invitation."""
        return await self._verb(
            "/api/invite",
            {"expires_s": expires_s, "uses": uses, "owner": owner, "credit_line_micro": credit_line_micro},
        )

    async def publish_model(self, digest_prefix: str, name: str) -> dict[str, Any]:
        """Bind a name to a model of that device."""
        return await self._verb("/api/models/publish", {"digest": digest_prefix, "name": name})

    async def data(self) -> list[dict[str, Any]]:
        """Return the private data sets of that device."""
        return await self._list("/api/data")

    async def add_data(self, path: str, name: str, budget_milli: int) -> dict[str, Any]:
        """Have the daemon freeze a copy of private records; a budget of 0: without differential privacy."""
        return await self._verb("/api/data/add", {"path": path, "name": name, "budget_milli": budget_milli})

    async def remove_data(self, digest_prefix: str) -> dict[str, Any]:
        """Have the daemon delete private records."""
        return await self._verb("/api/data/remove", {"digest": digest_prefix})

    async def lines(self) -> list[dict[str, Any]]:
        """Return the lines of the mesh."""
        return await self._list("/api/lines")

    async def publish_line(self, name: str, evaluation: str, replay: str | None) -> dict[str, Any]:
        """Have the daemon publish a line from two files."""
        return await self._verb(
            "/api/lines/publish", {"name": name, "evaluation": evaluation, "replay": replay}
        )

    async def patches(self) -> list[dict[str, Any]]:
        """Return every patch that was proposed."""
        return await self._list("/api/patches")

    async def patch(self, ident: str) -> dict[str, Any]:
        """Return the patch of an id, or of a prefix that only one patch has."""
        if not (ident.isascii() and ident.isalnum()):
            raise DaemonError(
                f"patch {ident[:32]!r} is no id, expected hex digits; 'agora patches' lists them"
            )
        return await self._object(f"/api/patches/{ident}")

    async def proposals(self) -> list[dict[str, Any]]:
        """Return every ballot."""
        return await self._list("/api/proposals")

    async def vote(self, ident: str, *, is_yes: bool) -> dict[str, Any]:
        """Vote with that device."""
        return await self._verb("/api/vote", {"id": ident, "is_yes": is_yes})

    async def roll_back(self, ident: str) -> dict[str, Any]:
        """Have the daemon propose the way back from a patch."""
        return await self._verb("/api/patches/rollback", {"id": ident})

    async def place_word(self, author: str, kind: str, target: str) -> dict[str, Any]:
        """Return what a human needs in order to sign a word on a patch."""
        return await self._verb("/api/words/place", {"author": author, "kind": kind, "target": target})

    async def take_word(self, raw: bytes) -> dict[str, Any]:
        """Hand a word over that a human has signed."""
        return await self._verb("/api/words", {"sealed": raw.hex()})

    async def revoke(self, peer_id: str, reason: str = "") -> dict[str, Any]:
        """Bar a device."""
        return await self._verb("/api/revoke", {"peer_id": peer_id, "reason": reason})

    async def leave(self) -> dict[str, Any]:
        """Leave the mesh."""
        return await self._verb("/api/leave", {})

    async def add_model(
        self, path: str, *, name: str | None, publish: bool, progress: Callable[[int, int], None]
    ) -> dict[str, Any]:
        """Have the daemon take a GGUF file in; `progress(done, total)` counts bytes."""
        body = {"path": path, "name": name, "publish": publish}
        result: dict[str, Any] | None = None
        async with self._stream("/api/models/add", body) as lines:
            async for line in lines:
                if not line.strip():
                    continue  # a sign of life
                told = msgspec.json.decode(line)
                if "error" in told:
                    raise _refusal(told, 0)
                if "result" in told:
                    result = told["result"]
                else:
                    progress(told["done"], told["total"])
        if result is None:
            raise self._broken_off()
        return result

    async def chat(
        self, body: Mapping[str, Any], headers: Mapping[str, str], tell: Callable[[str], None]
    ) -> dict[str, Any]:
        """Ask a chat, give `tell` each new piece of the answer, and return the job that it was."""
        job_id = ""
        is_done = False
        async with self._stream("/v1/chat/completions", {**body, "stream": True}, headers) as lines:
            async for line in lines:
                data = line.removeprefix("data: ")
                if data == line:
                    continue  # a comment, or the empty line between events
                if data == "[DONE]":
                    is_done = True
                    continue
                told = msgspec.json.decode(data)
                if "error" in told:
                    raise _refusal(told, 0)
                job_id = told["id"].removeprefix("chatcmpl-")
                for choice in told["choices"]:
                    tell(choice["delta"].get("content") or "")
        if not is_done:
            raise self._broken_off()
        return await self.job(job_id)

    async def _object(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = await self._ask("GET", path)
        return found

    async def _list(self, path: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self._ask("GET", path)
        return found

    async def _verb(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        done: dict[str, Any] = await self._ask("POST", path, body)
        return done

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        try:
            response = await self._http.request(method, path, json=body)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        return _checked(response)

    @asynccontextmanager
    async def _stream(
        self, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[AsyncIterator[str]]:
        try:
            async with self._http.stream("POST", path, json=body, headers=headers) as response:
                if response.is_error:
                    await response.aread()
                    _checked(response)
                yield response.aiter_lines()
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.TransportError) -> DaemonError:
        path = self._home.admin_socket
        match error:
            case httpx.ConnectError() if path.exists() and not os.access(path, os.R_OK | os.W_OK):
                return DaemonError(f"admin socket {path} is not yours, expected to run as its owner")
            case httpx.ConnectError():
                return DaemonError(f"no daemon at {self._home.path}; run 'agora up'")
            case httpx.TimeoutException():
                return DaemonError(
                    f"the daemon at {self._home.path} said nothing for {_TIMEOUT_S:g} s; see 'agora logs'"
                )
            case _:
                return self._broken_off()

    def _broken_off(self) -> DaemonError:
        return DaemonError(f"the daemon at {self._home.path} broke off; see 'agora logs'")


def _checked(response: httpx.Response) -> Any:
    try:
        value = msgspec.json.decode(response.content)
    except msgspec.DecodeError as error:
        raise DaemonError(
            f"the daemon answered {response.status_code} and no JSON; see 'agora logs'"
        ) from error
    if response.is_error:
        raise _refusal(value, response.status_code)
    return value


def _refusal(value: Mapping[str, Any], status: int) -> DaemonError:
    details = value["error"]
    return DaemonError(details["message"], status, details)
