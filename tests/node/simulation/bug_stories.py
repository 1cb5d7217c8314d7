"""Short worlds in which a fault of the production code has a chance to show.

Where nothing is planted, every law holds in every one of them. Whatever somebody does wrong here is done by a device
that counts as hostile, so that no law protects it.
"""

from dataclasses import replace
from typing import Final

import trio

from node.services.meeting import CONNECTED_WANTED
from node.simulation.daemon import Daemon
from node.simulation.link import Link
from node.simulation.virtual_clock import NOON_MS
from node.simulation.world import World
from protocol.envelope import Sealed, seal
from protocol.identity import SIGNATURE_BYTES
from protocol.limits import ADVERT_INTERVAL_IDLE_S
from protocol.messages import Card, Entry, Evidence
from protocol.topics import ASSEMBLY
from runtime.echo import ECHO_MODEL
from tests.node.simulation.story import SESSION, a_frame, ask, begin, lead, market, publish, when

ELSEWHERE: Final = b"another mesh".ljust(32)


# --- trade ------------------------------------------------------------------------------------------------------------
async def trade(world: World) -> None:
    """Two buyers talk, with and without a session, while a name is published."""
    _, buyers = await market(world, buyers=2)
    for turn in range(4):
        for number, buyer in enumerate(buyers):
            begin(world, buyer, session=SESSION if number else None)
            await world.run(1)
        if turn == 1:
            await publish(world, "echo-2")
        await world.run(2)


async def far_seller(world: World) -> None:
    """Somebody has as many connections as it wants, none to the only seller, and knows that one by hearsay."""
    (seller,) = await world.add(1, profile="server", owner="seller")
    buyers = await world.add(CONNECTED_WANTED + 2, profile="laptop", is_seller=False)
    world.partition([seller], buyers[:1])
    await world.run(30)
    world.heal()
    await world.run(12)


async def poor_buyer(world: World) -> None:
    """Somebody with little credit asks for many things at once, over lines so slow that each award takes its time."""
    sellers, _ = await market(world, buyers=0)
    poor = world.newcomer("poor", profile="laptop", owner="poor")
    poor.engine.forget_models()
    poor.config = replace(poor.config, buy_checks=False)
    await world.settle(poor, owner="poor", credit_micro=2_000)
    for seller in sellers:
        world.set_latency(poor, seller, 0.4)
    await world.run(12)
    for _ in range(3):
        for _ in range(4):
            begin(world, poor, tokens=36)
        await world.run(6)


async def private_prompt(world: World) -> None:
    """Nobody of the same owner sells, and only such a one may read the prompt."""
    _, (buyer,) = await market(world)
    await ask(world, buyer, privacy="owner")


async def own_system_prompt(world: World) -> None:
    """Two devices of one owner, and a system prompt that is theirs; others look on."""
    await market(world)
    (seller,) = await world.add(1, profile="server", owner="one")
    (buyer,) = await world.add(1, profile="laptop", owner="one", is_seller=False)
    await world.run(12)
    await ask(world, buyer, privacy="owner", system="you keep our accounts")
    assert seller.engine.started, "nobody has read it"
    await world.run(20)


async def long_pause(world: World) -> None:
    """A conversation goes on when its lease has long been over."""
    _, (buyer,) = await market(world, sellers=1)
    await ask(world, buyer, session=SESSION)
    await world.run(1_000)
    await ask(world, buyer, session=SESSION)


# --- sellers that fail ------------------------------------------------------------------------------------------------
async def only_seller_dies(world: World) -> None:
    """There is one seller, and its engine dies in the middle of each answer."""
    (seller,), (buyer,) = await market(world, sellers=1)
    seller.engine.die_after = a_frame(seller)
    await ask(world, buyer, tokens=40)
    seller.engine.die_after = None


async def one_seller_dies(world: World) -> None:
    """Of two sellers, one dies in the middle of each answer, and the other takes over."""
    sellers, (buyer,) = await market(world)
    sellers[0].engine.die_after = a_frame(sellers[0])
    for _ in range(4):
        await ask(world, buyer, tokens=40)
        sellers.reverse()
        sellers[0].engine.die_after, sellers[1].engine.die_after = a_frame(sellers[0]), None
    sellers[0].engine.die_after = None


async def own_engine_stands_still(world: World) -> None:
    """Whoever sells asks as well, and its own engine stops in the middle of the answer."""
    (seller, _), _ = await market(world)
    seller.engine.stall_after = a_frame(seller)
    begin(world, seller, tokens=40)
    await world.run(90)
    seller.engine.stall_after = None


async def unpaid_receipt(world: World) -> None:
    """The buyer is gone when its receipt is signed, and its seller starts anew before it could claim it."""
    (seller,), (buyer,) = await market(world, sellers=1)
    delivered = when(world, "delivered")
    begin(world, buyer)
    await delivered.wait()
    await world.run(0.004)
    await world.kill(buyer)
    await world.run(0.5)
    await world.restart(seller, buyer)
    await world.run(180)


# --- crashes ----------------------------------------------------------------------------------------------------------
async def parted_by_a_crash(world: World) -> None:
    """Both sides of a sale lose their power when it is made, and then do business with others, out of touch."""
    sellers, buyers = await market(world, buyers=2)
    accepted = when(world, "award_accepted")
    begin(world, buyers[0])
    await accepted.wait()
    await world.run(0.1)
    for seller in sellers:
        if seller.node.logbook.ledger.open_awards(buyers[0].peer_id):
            world.partition([seller], [buyers[0]])
            await world.kill(seller, buyers[0])
            await world.run(3)
            await world.restart(seller, buyers[0])
    await world.run(8)
    for _ in range(4):
        for buyer in buyers:
            begin(world, buyer)
        await world.run(3)
    world.heal()
    await world.run(60)
    await ask(world, buyers[0])


async def crash_after_payment(world: World) -> None:
    """A seller loses its power when its receipt has just been countersigned."""
    (seller,), (buyer,) = await market(world, sellers=1)
    paid = when(world, "receipt_countersigned")
    begin(world, buyer)
    await paid.wait()
    await world.run(0.2)
    await world.kill(seller)
    await world.run(3)
    await world.restart(seller)
    await world.run(12)


async def restored_backup(world: World) -> None:
    """A buyer goes back to yesterday's disk, out of touch with the seller who has its newest entries."""
    sellers, (buyer,) = await market(world)
    await world.kill(buyer)
    buyer.config = replace(
        buyer.config, buy_checks=False
    )  # else the other seller knows its newest entries too
    await world.restart(buyer)
    await world.run(12)
    await ask(world, buyer)
    await world.run(12)
    backup = [record for record in await buyer.disk.load() if record.kind != "job"]
    newest = await ask(world, buyer)
    await world.run(ADVERT_INTERVAL_IDLE_S + 12)  # its advert has told others how far its log goes
    await world.kill(buyer)
    await buyer.disk.replace(backup)
    world.partition([each for each in sellers if each.peer_id == newest.seller], [buyer])
    await world.restart(buyer)
    for _ in range(3):
        await world.run(3)
        await ask(world, buyer)
    world.heal()
    await world.run(60)


# --- the assembly -----------------------------------------------------------------------------------------------------
async def lost_gossip(world: World) -> None:
    """Nobody hears of a name, then of the next one: the first lacks, with everybody."""
    await market(world)
    world.weather(Link(loss=1.0))
    await publish(world, "unheard")
    await world.run(8)
    world.weather(Link())
    await world.run(8)
    await publish(world, "heard")
    await world.run(90)


async def last_gossip_lost(world: World) -> None:
    """Nobody hears of a name, and nothing is published after it."""
    await market(world)
    world.weather(Link(loss=1.0))
    await publish(world, "unheard")
    await world.run(8)
    world.weather(Link())
    await world.run(90)


async def lies(world: World) -> None:
    """A member gossips entries that nobody signed, that are of another mesh, that it may not sign, and false evidence."""
    (liar,) = await world.add(1, profile="laptop", owner="liar", is_seller=False)
    lead(world, liar)
    await market(world)
    for lie in (_unsigned, _foreign, _presumed, _false_evidence):
        await liar.mesh.publish(ASSEMBLY, lie(world, liar))
        await world.run(3)


def _card(world: World, author: Daemon, *, mesh: bytes) -> Sealed[Card]:
    head = world.founder.node.logbook.head(author.peer_id, "assembly")
    place = (head.index + 1, head.entry) if head else (0, bytes(32))
    card = Card(index=place[0], prev=place[1], name="cheaper", model=ECHO_MODEL)
    return _sealed(card, author, mesh)


def _sealed(entry: Entry, author: Daemon, mesh: bytes) -> Sealed:  # type: ignore[type-arg]
    time_ms = NOON_MS + int(trio.current_time() * 1000)
    return seal(entry, author.identity, mesh=mesh, seq=(1, 1), time_ms=time_ms)


def _unsigned(world: World, _: Daemon) -> bytes:
    raw = _card(world, world.founder, mesh=world.mesh_id).raw
    return bytes(SIGNATURE_BYTES) + raw[SIGNATURE_BYTES:]


def _foreign(world: World, _: Daemon) -> bytes:
    return _card(world, world.founder, mesh=ELSEWHERE).raw


def _presumed(world: World, liar: Daemon) -> bytes:
    return _card(world, liar, mesh=world.mesh_id).raw


def _false_evidence(world: World, liar: Daemon) -> bytes:
    first, second = world.founding.assembly.entries_after(world.founder.peer_id, 0)[:2]
    evidence = Evidence(index=0, prev=bytes(32), first=first.raw, second=second.raw)
    return _sealed(evidence, liar, world.mesh_id).raw
