"""What a voter does for a line: give a named model the public sets that its patches are judged by."""

from pathlib import Path
from typing import Any

import msgspec
import trio

from node.blobs import Blobs
from node.errors import StartError
from node.evaluation_set import BadEvaluationSet, read_questions
from node.journal import Journal
from node.logbook import Logbook
from node.services.sync import Sync
from protocol import limits
from protocol.messages import NO_HASH, Line


class OwnLines:
    """The lines of the mesh, as the owner of one device sees and makes them."""

    def __init__(self, logbook: Logbook, sync: Sync, blobs: Blobs, journal: Journal) -> None:
        self._logbook = logbook
        self._sync = sync
        self._blobs = blobs
        self._journal = journal

    def views(self) -> list[dict[str, Any]]:
        """Return every line."""
        return [
            {
                "name": name,
                "base_digest": line.base.hex(),
                "evaluation_digest": line.evaluation.hex(),
                "evaluation_bytes": line.evaluation_bytes,
                "replay_digest": "" if line.replay == NO_HASH else line.replay.hex(),
                "replay_bytes": line.replay_bytes,
            }
            for name, line in self._logbook.assembly.lines().items()
        ]

    async def publish(self, name: str, evaluation: str, replay: str | None) -> dict[str, Any]:
        """Keep two files of examples as blobs and publish the line that names them.

        Args:
            name: of a published model.
            evaluation: the path of the questions that voters ask.
            replay: the path of the examples that trainers mix in; None: none.

        Raises:
            StartError: this device does not vote, the name is not published, or a line of a file is no example.
            StoreFull: the disk is.
        """
        assembly = self._logbook.assembly
        if not assembly.weight(self._logbook.me):
            raise StartError(
                "only devices on the charter's roll publish lines; run this on the founder's device"
            )
        base = assembly.digest_of(name)
        if base is None:
            raise StartError(
                f"no published model is called {name!r}; run 'agora model publish DIGEST --name {name}' first"
            )
        questions = await _read(Path(evaluation))
        examples = await _read(Path(replay)) if replay is not None else b""
        asked = await self._blobs.put(questions)
        mixed_in = await self._blobs.put(examples) if examples else NO_HASH
        entry = await self._logbook.write(
            Line,
            lambda index, prev: Line(
                index=index,
                prev=prev,
                name=name,
                base=base,
                evaluation=asked,
                evaluation_bytes=len(questions),
                replay=mixed_in,
                replay_bytes=len(examples),
            ),
        )
        await self._sync.announce(entry)
        self._journal.write("line_published", line=name, base=base, evaluation=asked, replay=mixed_in)
        return next(view for view in self.views() if view["name"] == name)


async def _read(path: Path) -> bytes:
    """Return a file of examples in the form in which its blob has it: one line each, and nothing else.

    Raises:
        StartError: it cannot be read, or a line of it is no example.
    """
    try:
        size = (await trio.Path(path).stat()).st_size
        data = await trio.Path(path).read_bytes() if size <= limits.BLOB_BYTES_MAX else b""
    except OSError as error:
        raise StartError(f"cannot read {path} ({error.strerror}), expected a file of JSON lines") from error
    if size > limits.BLOB_BYTES_MAX:
        raise StartError(f"{path} has {size:,} bytes, expected {limits.BLOB_BYTES_MAX:,} at most")
    try:
        questions = read_questions(data)
    except BadEvaluationSet as error:
        raise StartError(f"{path} {error}") from error
    return b"".join(
        msgspec.json.encode({"domain": each.domain, "prompt": each.prompt, "response": each.response}) + b"\n"
        for each in questions
    )
