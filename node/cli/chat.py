"""`chat`: one question, or a conversation; what each answer cost stands below it."""

import json
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from node.cli.options import HomeOption
from node.cli.show import credit, err, milliseconds, printable, short
from node.errors import StartError
from protocol.errors import AgoraError

if TYPE_CHECKING:
    from node.admin_client import AdminClient

SETTLE_TIMEOUT_S = 1.0
SETTLE_POLL_S = 0.02
FAREWELLS = {"/exit", "/quit"}


def chat(
    prompt: Annotated[
        list[str] | None, typer.Argument(metavar="[PROMPT]", help="A question; none: a conversation.")
    ] = None,
    model: Annotated[
        str, typer.Option("--model", metavar="M", help="A name that 'agora models' lists, or auto.")
    ] = "auto",
    privacy: Annotated[
        str,
        typer.Option(
            "--privacy",
            metavar="WHO",
            help="Who may read it: local (this device), owner (yours), mesh (any).",
        ),
    ] = "owner",
    tokens_max: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="The longest answer, in tokens.")
    ] = None,
    schema: Annotated[
        Path | None,
        typer.Option("--schema", help="A JSON schema that every answer keeps to.", metavar="FILE.json"),
    ] = None,
    home: HomeOption = None,
) -> None:
    """Ask the mesh. Ctrl-C stops the answer, a second one or Ctrl-D the conversation.

    Example: `agora chat --privacy mesh "Tell me the story of the lighthouse."`
    """
    if privacy not in {"local", "owner", "mesh"}:
        raise StartError(f"--privacy is {privacy!r}, expected local, owner or mesh")
    terms: dict[str, Any] = {"model": model}
    if tokens_max is not None:
        terms["max_tokens"] = tokens_max
    if schema is not None:
        wanted = {"name": "answer", "schema": _schema_in(schema)}
        terms["response_format"] = {"type": "json_schema", "json_schema": wanted}
    conversation = Conversation(home, terms, privacy)
    if prompt:
        conversation.ask(" ".join(prompt))
    elif sys.stdin.isatty():
        conversation.hold()
    else:
        conversation.ask(sys.stdin.read())


class Conversation:
    """The turns so far. They are asked under one session, so that the seller's cache stays warm.

    Args:
        home: whose daemon is asked.
        terms: fields of each request beside its turns.
        privacy: who may read it.
    """

    def __init__(self, home: Path | None, terms: Mapping[str, Any], privacy: str) -> None:
        self._home = home
        self._terms = terms
        self._privacy = privacy
        self._session = secrets.token_hex(8)
        self._turns: list[dict[str, str]] = []

    def hold(self) -> None:
        """Ask what is typed until the end of the input. A refusal is told and the conversation goes on."""
        import readline  # noqa: F401  # gives `input` its history

        err.print("[dim]Ctrl-C stops an answer; Ctrl-D or /exit ends[/dim]")
        while True:
            try:
                typed = input("you  ").strip()
            except (EOFError, KeyboardInterrupt):
                err.print()
                return
            if typed in FAREWELLS:
                return
            if not typed:
                continue
            try:
                self.ask(typed)
            except KeyboardInterrupt:
                err.print("\n[dim]stopped[/dim]")
            except AgoraError as error:
                err.print(Text(printable(str(error)), "red"))

    def ask(self, question: str) -> None:
        """Stream one answer, then say what it was and cost. A turn whose answer broke off is forgotten.

        Raises:
            AgoraError: nobody answers it, or not to its end.
        """
        from node.cli.daemon import ask

        turns = [*self._turns, {"role": "user", "content": question}]
        body = {**self._terms, "messages": turns, "stream": True}
        texts: list[str] = []

        def tell(text: str) -> None:
            texts.append(text)
            sys.stdout.write(printable(text, keep="\n\t"))
            sys.stdout.flush()

        async def converse(admin: "AdminClient") -> dict[str, Any]:
            return await _settled(admin, await admin.chat(body, headers, tell))

        headers = {"X-Agora-Privacy": self._privacy, "X-Agora-Session": self._session}
        try:
            job = ask(self._home, converse)
        finally:
            sys.stdout.write("\n" if texts else "")
        self._turns = [*turns, {"role": "assistant", "content": "".join(texts)}]
        err.print(footer(job))


def _schema_in(path: Path) -> dict[str, Any]:
    try:
        schema = json.loads(path.expanduser().read_bytes())
    except OSError as error:
        raise StartError(f"cannot read {path} ({error.strerror}), expected a JSON schema") from error
    except (ValueError, RecursionError) as error:
        raise StartError(f"{path} is not JSON ({error}), expected a JSON schema") from error
    if not isinstance(schema, dict):
        raise StartError(f"{path} is no JSON object, expected a JSON schema")
    return schema


async def _settled(admin: "AdminClient", job: dict[str, Any]) -> dict[str, Any]:
    """Return the job once its receipt is signed: a moment after the last token, which did not wait for it."""
    import trio

    with trio.move_on_after(SETTLE_TIMEOUT_S):
        while job["state"] == "running":
            await trio.sleep(SETTLE_POLL_S)
            job = await admin.job(job["job_id"])
    return job


def footer(job: dict[str, Any]) -> Text:
    """Return the line below an answer."""
    parts = [
        f"{short(job['seller'])}" if job["seller"] else "this device",
        f"{credit(job['price_micro'])} credits" if job["state"] != "running" else "not yet paid",
        f"first token {milliseconds(job['ttft_s'])}",
        f"{job['tokens_per_s']:,.0f} tok/s" if job["tokens_per_s"] else "",
        f"job {job['job_id'][:8]}",
    ]
    return Text(" · ".join(part for part in parts if part), "dim")
