"""The double awarder: a buyer that promises one attempt, and the credit for it, to two sellers at once.

Both serve it, and it pays neither. Its second award stands either in the first one's place of its log or behind it: in
the first case two entries have one index, in the second one attempt has two awards. Each is evidence for whoever sees
both.
"""

from typing import ClassVar, Final

from marketplace.auction import total_micro
from marketplace.prompt import Prompt
from node.simulation.adversaries.adversary import Adversary
from protocol.envelope import Sealed, decode
from protocol.identity import PeerId
from protocol.mesh import Stream
from protocol.messages import (
    NO_HASH,
    Accept,
    Award,
    Bid,
    FailedFrame,
    FinishedFrame,
    JobFrame,
    Request,
    SamplingTerms,
    TokensFrame,
    Turn,
    Work,
)
from protocol.topics import JOB
from runtime.echo import ECHO_MODEL

AWARDS_MEAN_S: Final = 10.0
TURNS: Final = (Turn(role="user", content="tell me everything twice"),)
COMPLETION_TOKENS: Final = 20
MOST_MICRO: Final = 1_000_000


class DoubleAwarder(Adversary):
    """Awards everything twice, and lets its own users ask as usual."""

    name: ClassVar[str] = "double-awarder"
    about: ClassVar[str] = "awards one attempt to two sellers, takes both answers and countersigns neither"

    async def run(self) -> None:
        """See `Adversary.run`."""
        while True:
            await self.pause(AWARDS_MEAN_S)
            sellers = self._sellers()
            if len(sellers) > 1:
                await self.attempt(self._award_twice, *self.rng.sample(sellers, 2))

    def _sellers(self) -> list[PeerId]:
        node = self.daemon.node
        offers = node.directory.holders(ECHO_MODEL, self.daemon.clock.now())
        return [each.advert.sender for each in offers if node.logbook.assembly.is_member(each.advert.sender)]

    async def _award_twice(self, one: PeerId, other: PeerId) -> None:
        node = self.daemon.node
        async with self.stream(one, JOB) as first_stream, self.stream(other, JOB) as second_stream:
            request = node.wire.seal(self._request())
            first_bid = await self._bid(first_stream, request)
            second_bid = await self._bid(second_stream, request)
            first = await node.logbook.write(
                Award, lambda index, prev: _award(request, first_bid, index=index, prev=prev)
            )
            place = first.message.index, first.message.prev
            if self.rng.random() < 1 / 2:
                place = first.message.index + 1, first.id
            second = node.wire.seal(_award(request, second_bid, index=place[0], prev=place[1]))
            for stream, award in ((first_stream, first), (second_stream, second)):
                await stream.send(award.raw)
                await node.wire.send(stream, _work(award))
            self.strike("awarded_twice", job=request.message.job_id.hex(), first=one, second=other)
            for stream in (first_stream, second_stream):
                await self._take(stream)

    def _request(self) -> Request:
        logbook = self.daemon.node.logbook
        return Request(
            job_id=self.rng.randbytes(16),
            attempt=1,
            model=ECHO_MODEL,
            adapter=NO_HASH,
            prompt_tokens=Prompt(TURNS).estimated_tokens,
            completion_tokens_max=COMPLETION_TOKENS,
            total_micro_max=MOST_MICRO,
            privacy="mesh",
            session=NO_HASH,
            head=logbook.head(logbook.me, "bilateral"),
        )

    async def _bid(self, stream: Stream, request: Sealed[Request]) -> Sealed[Bid]:
        await stream.send(request.raw)
        return await self.daemon.node.wire.receive(stream, Bid)

    async def _take(self, stream: Stream) -> None:
        """Read the answer to its end, and leave before the receipt is countersigned."""
        await self.daemon.node.wire.receive(stream, Accept)
        while True:
            frame = decode(await stream.receive(), JobFrame)
            if isinstance(frame, TokensFrame):
                self.attacks["tokens_taken"] += len(frame.ids)
            elif isinstance(frame, FinishedFrame | FailedFrame):
                return


def _award(request: Sealed[Request], bid: Sealed[Bid], *, index: int, prev: bytes) -> Award:
    wanted = request.message
    return Award(
        index=index,
        prev=prev,
        request=request.id,
        bid=bid.id,
        job_id=wanted.job_id,
        attempt=wanted.attempt,
        seller=bid.sender,
        model=wanted.model,
        adapter=wanted.adapter,
        hold_micro=total_micro(wanted, bid.message),
        prompt_micro=bid.message.prompt_micro,
        completion_micro=bid.message.completion_micro,
        lease_ms=0,
        session=NO_HASH,
    )


def _work(award: Sealed[Award]) -> Work:
    return Work(
        award=award.id,
        job_id=award.message.job_id,
        attempt=award.message.attempt,
        turns=TURNS,
        completion_tokens_max=COMPLETION_TOKENS,
        sampling=SamplingTerms(),
        stop=(),
        received=(),
    )
