"""A client of a gateway, over HTTP as any OpenAI client would be; it knows nothing else of the mesh."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from node.local_mesh.processes import LocalMeshFailed

TIMEOUT_S = 30.0  # without a byte


@dataclass(frozen=True)
class Delta:
    """A piece of the answer, one for each token, and when it came (seconds, monotonic).

    The text is empty when a token did not make any certain yet.
    """

    text: str
    at_s: float


class Answer:
    """An answer that is still coming."""

    def __init__(self, response: httpx.Response, job_id: str) -> None:
        self._response = response
        self.job_id = job_id

    def __iter__(self) -> Iterator[Delta]:
        for line in self._response.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise LocalMeshFailed(f"the answer broke off: {chunk['error']['message']}")
            for choice in chunk["choices"]:
                delta = choice["delta"]
                if "content" in delta and "role" not in delta:  # the first says only who speaks
                    yield Delta(delta["content"], time.monotonic())


class Client:
    """Asks one gateway."""

    def __init__(self, gateway: str, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        self._http = httpx.Client(base_url=gateway, headers=headers, timeout=TIMEOUT_S, trust_env=False)

    @contextmanager
    def ask(
        self, model: str, question: str, *, session: str, tokens_max: int | None = None
    ) -> Iterator[Answer]:
        """Stream the answer to one question, which any member may read.

        Raises:
            LocalMeshFailed: the gateway refuses.
        """
        body: dict[str, Any] = {
            "model": model,
            "stream": True,
            "messages": [{"role": "user", "content": question}],
        }
        if tokens_max is not None:
            body["max_tokens"] = tokens_max
        headers = {"X-Agora-Privacy": "mesh", "X-Agora-Session": session}
        with (
            _reaching(self._http),
            self._http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response,
        ):
            if response.status_code != httpx.codes.OK:
                response.read()
                raise LocalMeshFailed(f"the gateway answered {response.status_code}: {response.text}")
            yield Answer(response, response.headers["x-agora-job"])

    def refusal(self, model: str, question: str, *, privacy: str) -> dict[str, Any]:
        """Ask what cannot be answered, and return the error as the client gets it, with its `status`."""
        body = {"model": model, "messages": [{"role": "user", "content": question}]}
        headers = {"X-Agora-Privacy": privacy}
        with _reaching(self._http):
            response = self._http.post("/v1/chat/completions", json=body, headers=headers)
        if response.status_code == httpx.codes.OK:
            raise LocalMeshFailed("the gateway answered a request that it had to refuse")
        error: dict[str, Any] = response.json()["error"]
        return {"status": response.status_code, **error}

    def job(self, job_id: str) -> dict[str, Any]:
        """Return the story of a job."""
        job: dict[str, Any] = self.get(f"/api/jobs/{job_id}")
        return job

    def get(self, path: str) -> Any:
        """Return a listing of the mesh's API."""
        with _reaching(self._http):
            response = self._http.get(path)
        if response.status_code != httpx.codes.OK:
            raise LocalMeshFailed(f"{path} answered {response.status_code}: {response.text}")
        return response.json()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


@contextmanager
def _reaching(http: httpx.Client) -> Iterator[None]:
    """Tell of a gateway that does not answer, or breaks off, in one line."""
    try:
        yield
    except httpx.TransportError as error:
        found = str(error) or type(error).__name__
        raise LocalMeshFailed(
            f"the gateway {http.base_url} broke off ({found}), expected an answer"
        ) from error
