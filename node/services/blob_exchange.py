"""The blob exchange: members give each other the bytes of a digest, and believe none of them.

A blob is asked of one holder after the other. What one leaves unfinished, the next goes on with; what is whole is hashed,
and only then it is there. Bytes that are another blob's are charged to whoever sent all of them; where several had a part
in it nobody can say who lied, so the last of them is asked for all of it.

Anything in here goes to any member that asks. Nothing private is ever a blob.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

import trio

from node.blobs import BlobNotFound, Blobs
from node.chunks import receive_chunks
from node.clock import Clock
from node.journal import Journal
from node.logbook import Logbook
from node.wire import Wire
from protocol.errors import MeshError, NotAuthorised, RemoteProtocolError, StreamBroken, StreamEnded
from protocol.identity import PeerId
from protocol.limits import BLOB_BYTES_MAX, BLOB_CHUNK_BYTES_MAX, BLOB_CHUNK_TIMEOUT_S
from protocol.mesh import Mesh, Stream
from protocol.messages import BlobComing, BlobWanted, Message, Refusal
from protocol.topics import BLOB
from runtime.engine import Digest

HOLDERS_ASKED_MAX = 16  # for one blob, before the caller is told that nobody has it


class WrongBlob(RemoteProtocolError):
    """A holder sent bytes that are not what was asked for, or fewer than it had promised."""

    offence = "blob"


class BlobExchange:
    """Answers `/agora/blob/1`, and fetches what this device lacks."""

    def __init__(
        self, *, mesh: Mesh, wire: Wire, logbook: Logbook, blobs: Blobs, clock: Clock, journal: Journal
    ) -> None:
        self._mesh = mesh
        self._wire = wire
        self._logbook = logbook
        self._blobs = blobs
        self._clock = clock
        self._journal = journal
        self._fetching: dict[Digest, trio.Lock] = {}  # one fetch a blob: who comes second finds it there
        mesh.serve(BLOB, self._answer)

    async def fetch(self, digest: Digest, size_max: int, holders: Sequence[PeerId]) -> None:
        """Have a blob here, whoever of the holders gives it.

        Args:
            digest: what is wanted.
            size_max: a holder that says it is longer is not believed; exact sizes are checked by `gather`.
            holders: asked in this order, each member among them once.

        Raises:
            BlobNotFound: none of them gave it.
            StoreFull: there is no room for it here.
        """
        await self._fetch(digest, 0, size_max, holders)

    async def gather(self, digest: Digest, size: int) -> None:
        """Have a blob of this exact size here, asking the members that are connected, the nearest first.

        Raises:
            BlobNotFound, StoreFull: see `fetch`.
        """
        nearest = sorted(self._mesh.connected, key=self._distance)
        await self._fetch(digest, size, size, nearest)

    def _distance(self, peer_id: PeerId) -> tuple[float, PeerId]:
        round_trip_s = self._mesh.round_trip_s(peer_id)
        return (BLOB_CHUNK_TIMEOUT_S if round_trip_s is None else round_trip_s), peer_id

    async def _fetch(self, digest: Digest, size_min: int, size_max: int, holders: Sequence[PeerId]) -> None:
        if self._blobs.has(digest):
            return
        async with self._alone(digest):
            if self._blobs.has(digest):  # another caller has just brought it
                return
            began = self._clock.now()
            said: dict[PeerId, str] = {}
            for holder in self._askable(holders):
                try:
                    size = await self._fetch_from(holder, digest, size_min, min(size_max, BLOB_BYTES_MAX))
                except RemoteProtocolError as error:
                    self._mesh.charge(holder, error.offence)
                    said[holder] = str(error)
                except (MeshError, BlobNotFound) as error:
                    said[holder] = str(error)
                else:
                    took_ms = round((self._clock.now() - began) * 1000)
                    self._journal.write("blob_fetched", blob=digest, size_bytes=size, peer=holder, ms=took_ms)
                    return
                self._journal.write("blob_refused", blob=digest, peer=holder, reason=said[holder])
            told = "; ".join(f"{holder[-8:]}: {reason}" for holder, reason in said.items())
            raise BlobNotFound(
                f"nobody gave blob {digest.hex()[:12]}: {told or 'no member that could be asked'}"
            )

    def _askable(self, holders: Sequence[PeerId]) -> list[PeerId]:
        assembly = self._logbook.assembly
        able = [
            each for each in dict.fromkeys(holders) if each != self._logbook.me and assembly.is_member(each)
        ]
        return able[:HOLDERS_ASKED_MAX]

    @asynccontextmanager
    async def _alone(self, digest: Digest) -> AsyncIterator[None]:
        lock = self._fetching.setdefault(digest, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():
                self._fetching.pop(digest, None)

    async def _fetch_from(self, holder: PeerId, digest: Digest, size_min: int, size_max: int) -> int:
        """Bring a blob from one holder, going on where an earlier try ended; return its size."""
        for goes_on in (True, False):
            size, here = await self._pull(holder, digest, size_min, size_max, goes_on=goes_on)
            if here <= size and await self._blobs.finish(digest):
                return size
            if here == 0:  # every byte was this holder's
                raise WrongBlob(f"its {size} bytes are another blob than {digest.hex()[:12]}")
        raise AssertionError("the second pull begins at 0")

    async def _pull(
        self, holder: PeerId, digest: Digest, size_min: int, size_max: int, *, goes_on: bool
    ) -> tuple[int, int]:
        """Append what a holder sends; return the size it says, and how much was here before it."""
        stream = await self._mesh.open_stream(holder, BLOB)
        try:
            here = await self._blobs.begin(digest, size_max) if goes_on else 0
            await self._wire.send(stream, BlobWanted(blob=digest, offset=here))
            answer = await self._first_word(stream)
            if isinstance(answer, Refusal):
                raise BlobNotFound(f"refused ({answer.reason})")
            size = answer.size_bytes
            if not size_min <= size <= size_max:
                # Nobody can tell who lies, it or whoever told us the size, and asking for it is not worth the bytes.
                raise BlobNotFound(f"it says {size} bytes, expected {size_min or 1} to {size_max}")
            if not goes_on:
                await self._blobs.begin(
                    digest, size
                )  # what was here of it is gone, as it was wrong or too long
            at = here
            if here <= size:
                async with aclosing(receive_chunks(stream, size - here)) as chunks:
                    async for chunk in chunks:
                        await self._blobs.append(digest, at, chunk)
                        at += len(chunk)
            return size, here
        except StreamEnded:
            raise WrongBlob("it ended before the bytes that it had promised") from None
        finally:
            stream.abort()

    async def _first_word(self, stream: Stream) -> BlobComing | Refusal:
        with trio.move_on_after(BLOB_CHUNK_TIMEOUT_S):
            sealed = await self._wire.receive(stream, *_ANSWERS)
            assert isinstance(sealed.message, BlobComing | Refusal)
            return sealed.message
        raise StreamBroken(f"{stream.peer_id} did not answer for {BLOB_CHUNK_TIMEOUT_S:g} s")

    async def _answer(self, stream: Stream) -> None:
        wanted = (await self._wire.receive(stream, BlobWanted)).message
        if not self._logbook.assembly.is_member(stream.peer_id):
            raise NotAuthorised(f"peer {stream.peer_id} is not a member and is given no blobs")
        digest = Digest(wanted.blob)
        try:
            at, size = wanted.offset, self._blobs.size(digest)
            await self._blobs.read(digest, 0, 0)  # a file that rotted is found out before it is promised
        except BlobNotFound:
            await self._wire.send(stream, Refusal(reason="unknown", detail="it is not here"))
            return
        await self._wire.send(stream, BlobComing(size_bytes=size))
        while at < size:
            try:
                chunk = await self._blobs.read(digest, at, BLOB_CHUNK_BYTES_MAX)
            except BlobNotFound:  # dropped meanwhile: the other end asks somebody else
                stream.abort()
                return
            await stream.send(
                chunk
            )  # waits while two chunks are on their way: streams of chats have their turn
            at += len(chunk)


_ANSWERS: tuple[type[Message], ...] = (BlobComing, Refusal)
