"""Stories with somebody in them who means ill, beside `bug_stories.py`: what a sound node refuses, a faulty one takes."""

from contextlib import suppress
from dataclasses import replace
from typing import Final

import trio

from node.simulation.daemon import Daemon
from node.simulation.world import World
from protocol.errors import AgoraError, StreamBroken
from protocol.mesh import Stream
from protocol.messages import NO_HASH, Request, SettlementWanted
from protocol.topics import JOB, SETTLE
from runtime.echo import ECHO_MODEL
from tests.node.simulation.story import SESSION, ask, begin, lead, market

STRANGERS: Final = 40
PATIENCE_S: Final = 8.0


async def double_awarder(world: World) -> None:
    """A buyer promises each attempt to two sellers."""
    await world.add(1, profile="laptop", owner="mallory", is_seller=False, behaviour="double-awarder")
    _, (buyer,) = await market(world, sellers=3)
    for _ in range(4):
        await ask(world, buyer)
        await world.run(12)


async def receipt_forger(world: World) -> None:
    """A cheap seller forges each receipt in another way; conversations go on with it for as long as it is trusted."""
    await world.add(1, profile="server", owner="mallory", is_seller=True, behaviour="receipt-forger")
    _, buyers = await market(world, sellers=1, buyers=4)
    for buyer in buyers:
        begin(world, buyer, session=SESSION)
        await world.run(4)
    await world.run(20)


async def never_pays(world: World) -> None:
    """A buyer takes answer after answer, and countersigns nothing."""
    (mallory,) = await world.add(1, profile="laptop", owner="mallory", is_seller=False)
    lead(world, mallory)
    (seller,) = await world.add(1, profile="server", owner="seller")
    seller.config = replace(seller.config, exposure_peer_micro=2_000)
    await world.run(12)

    async def sign_nothing(*_: object) -> None:
        raise StreamBroken("not today")

    mallory.node.settlement._countersign = sign_nothing  # type: ignore[assignment,method-assign]
    for _ in range(12):
        begin(world, mallory)
        await world.run(4)


async def garbage_sender(world: World) -> None:
    """Random bytes come in on every protocol."""
    await world.add(1, profile="laptop", owner="mallory", is_seller=False, behaviour="garbage-sender")
    await market(world)
    await world.run(20)


async def strangers(world: World) -> None:
    """Many keys dial, say nothing and are gone."""
    (mallory,) = await world.add(1, profile="laptop", owner="mallory", is_seller=False)
    lead(world, mallory)
    (seller, _), _ = await market(world)
    for number in range(STRANGERS):
        stranger = world.identity(f"stranger {number}").peer_id
        mesh = world.network.join(stranger, mallory.journal)
        async with trio.open_nursery() as nursery:
            await nursery.start(mesh.run)
            with suppress(AgoraError):
                await mesh.dial(seller.address)
            await world.run(0.1)
            nursery.cancel_scope.cancel()


async def work_again(world: World) -> None:
    """A buyer sends the work of an attempt that is over once more, freshly signed, under its session's award."""
    (mallory,) = await world.add(1, profile="laptop", owner="mallory", is_seller=False)
    lead(world, mallory)
    await market(world, sellers=1)
    await ask(world, mallory, session=SESSION)
    await world.run(5)
    (job,) = (each for _, each in mallory.node.job_book._recent.values() if each.request.task == "chat")
    attempt = job.attempts[0]
    assert attempt.seller is not None
    assert attempt.work is not None
    stream = await mallory.mesh.open_stream(attempt.seller, JOB)
    await stream.send(mallory.node.wire.seal(attempt.work).raw)
    await _listen(stream)


async def request_again(world: World) -> None:
    """A buyer sends the very bytes of a request a second time."""
    (mallory,) = await world.add(1, profile="laptop", owner="mallory", is_seller=False)
    lead(world, mallory)
    (seller,), _ = await market(world, sellers=1)
    wanted = Request(
        job_id=mallory.identity.public_key[:16],
        attempt=1,
        model=ECHO_MODEL,
        adapter=NO_HASH,
        prompt_tokens=20,
        completion_tokens_max=20,
        total_micro_max=1_000_000,
        privacy="mesh",
        session=NO_HASH,
        head=None,
    )
    request = mallory.node.wire.seal(wanted)
    for _ in range(2):
        stream = await mallory.mesh.open_stream(seller.peer_id, JOB)
        await stream.send(request.raw)
        await _listen(stream)


async def impossible_claim(world: World) -> None:
    """A seller claims for the fifth attempt of a job that was done in one."""
    (mallory,) = await world.add(1, profile="server", owner="mallory", is_seller=True)
    lead(world, mallory)
    _, (buyer,) = await market(world, sellers=0)
    await ask(world, buyer)
    await _claim(mallory, buyer, attempt=5)


async def _claim(seller: Daemon, buyer: Daemon, *, attempt: int) -> None:
    (award,) = (line.award for line in seller.node.logbook.ledger._lines.values())
    stream = await seller.mesh.open_stream(buyer.peer_id, SETTLE)
    claim = SettlementWanted(award=award.id, job_id=award.message.job_id, attempt=attempt)
    await seller.node.wire.send(stream, claim)
    await _listen(stream)


async def _listen(stream: Stream) -> None:
    """Hear whatever the victim has to say, to its end."""
    with trio.move_on_after(PATIENCE_S), suppress(AgoraError):
        while True:
            await stream.receive()
    stream.abort()


async def advert_from_hand_to_hand(world: World) -> None:
    """A seller is gone; a newcomer whose clock is late still hands its advert on when it has long expired."""
    (seller, _), (buyer,) = await market(world)
    await world.run(60)
    await world.kill(seller)
    gone_s = world.now
    await world.run(80)
    (late,) = await world.add(1, profile="laptop", owner="late", is_seller=False)
    await world.kill(late)
    world.skew(late, seconds=-25)
    await world.restart(late)
    while world.now < gone_s + 240:
        await world.run(2.5)
        await ask(world, buyer, tokens=4)
