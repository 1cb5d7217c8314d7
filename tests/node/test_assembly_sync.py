"""Who belongs: admission by invitation, revocation that reaches everybody, and logs that catch up."""

from functools import partial

import pytest
import trio

from marketplace.assembly import invitation
from marketplace.assembly.invitation import Invite, join_request, parse
from node.errors import StartError
from node.joining import _ask_issuer
from node.services.sync import PULLS_AT_ONCE
from node.simulation.virtual_clock import NOON_MS
from protocol.envelope import narrow
from protocol.errors import AgoraError, MeshError
from protocol.mesh import Stream
from protocol.messages import Admitted, Card, Entries, EntriesWanted, Refusal, Revocation
from protocol.topics import ADMISSION, SYNC
from runtime.echo import ECHO_MODEL
from tests.node.puppet import Puppet
from tests.node.world import Daemon, World, invented_heads, person

HOUR_S = 3600.0


async def invite(world: World, *, uses: int = 1, expires_s: float = HOUR_S) -> Invite:
    made = await world.founder.node.invite(
        expires_s=expires_s, uses=uses, owner="guest", credit_line_micro=5_000_000
    )
    return parse(made["invitation"], utc_ms=NOON_MS + round(trio.current_time() * 1000))


async def stranger(world: World, name: str) -> Puppet:
    return await world.puppet(name, is_admitted=False)


async def join(puppet: Puppet, with_: Invite) -> Admitted:
    """Join as `agora join` does; raises the line that its user would read."""
    answer = await _ask_issuer(puppet.mesh, puppet.wire, with_)
    if isinstance(answer, AgoraError):
        raise answer
    return answer.admitted.message


def members(daemon: Daemon) -> set[str]:
    return set(daemon.node.logbook.assembly.members())


def assembly_heads(daemon: Daemon) -> set[tuple[str, int]]:
    return {(head.author, head.index) for head in daemon.node.logbook.heads("assembly")}


# --- admission --------------------------------------------------------------------------------------------------------
async def test_whoever_holds_an_invitation_is_admitted_and_everybody_hears_of_it(world: World) -> None:
    other = await world.add("bob")
    joiner = await stranger(world, "cat")

    admitted = await join(joiner, await invite(world))
    await world.run(1)

    assert (admitted.peer, admitted.owner, admitted.credit_line_micro) == (joiner.peer_id, "guest", 5_000_000)
    for daemon in (world.founder, other):
        assert joiner.peer_id in members(daemon)
        assert daemon.node.logbook.assembly.member(joiner.peer_id).owner == "guest"
    await world.run(3)
    assert joiner.peer_id in world.founder.mesh.connected  # it need not have said hello by now


async def test_a_joined_device_buys_and_sells(world: World) -> None:
    """From the paste to the first chat: its home holds the charter alone, the rest comes by sync."""
    seller = await world.add("bob")
    key = await stranger(world, "cat")
    admitted = await join(key, await invite(world))
    world.network.kill(key.peer_id)

    joined = Daemon(world, "cat", owner=admitted.owner, bootstrap=(world.founder.address,))
    world.daemons["cat"] = joined
    await joined.start()
    await world.acquaint(joined, seller, world.founder)

    assert members(joined) == members(world.founder)
    assert joined.node.ledger().credit_line_micro == 5_000_000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(joined.chat, "keep yourself busy")
        await world.run(0.05)
        assert (await joined.chat("hello")).started[0].seller == seller.peer_id
    assert (await world.founder.chat("hello")).text == "hello " * 4


async def refused(puppet: Puppet, with_: Invite) -> str:
    with pytest.raises(StartError) as line:
        await join(puppet, with_)
    return str(line.value)


async def test_a_used_up_invitation_admits_nobody_more(world: World) -> None:
    made = await invite(world, uses=2)
    for name in ("bob", "cat"):
        await join(await stranger(world, name), made)
    before = world.founder.disk.kinds()

    line = await refused(await stranger(world, "dan"), made)

    assert line == (
        "the inviter refused (used_up): invitation was used 2 times, at most 2 allowed; ask for a new invitation"
    )
    assert world.founder.disk.kinds() == before
    assert len(members(world.founder)) == 3


async def test_the_last_use_goes_to_one_of_two_who_come_at_once(world: World) -> None:
    made = await invite(world)
    joiners = [await stranger(world, name) for name in ("bob", "cat")]
    ends: list[str] = []

    async def try_to_join(joiner: Puppet) -> None:
        try:
            await join(joiner, made)
            ends.append("in")
        except StartError as line:
            ends.append("used_up" if "used_up" in str(line) else str(line))

    async with trio.open_nursery() as both:
        for joiner in joiners:
            both.start_soon(try_to_join, joiner)

    assert sorted(ends) == ["in", "used_up"]
    assert len(members(world.founder)) == 2


async def test_asking_again_with_the_same_key_is_answered_again_and_uses_nothing(world: World) -> None:
    """The first answer may have been lost on its way."""
    made, joiner = await invite(world), await stranger(world, "bob")

    assert await join(joiner, made) == await join(joiner, made)

    assert (
        world.founder.node.logbook.assembly.uses_of(world.founder.peer_id, made.sealed.message.invitation_id)
        == 1
    )


async def test_an_expired_invitation_admits_nobody(world: World) -> None:
    made = await invite(world, expires_s=10)
    await world.run(11)
    before = world.founder.disk.kinds()

    line = await refused(await stranger(world, "bob"), made)

    assert line.startswith("the inviter refused (expired): invitation expired 1 s ago")
    assert world.founder.disk.kinds() == before


async def test_another_members_invitation_admits_nobody_here(world: World) -> None:
    """A member that is not on the roll signs one itself: it has no authority, and the founder is not its issuer."""
    bob = await world.add("bob")
    forged = invitation.make(
        bob.identity,
        mesh=world.mesh_id,
        seq=(1, 1),
        time_ms=NOON_MS,
        ttl_ms=3_600_000,
        uses=1,
        owner="eve",
        credit_line_micro=10**9,
        addresses=(world.founder.address,),
        rng=world.random("invitation"),
    )

    line = await refused(await stranger(world, "eve"), forged)

    assert "(foreign)" in line
    assert len(members(world.founder)) == 2


async def test_a_tampered_invitation_admits_nobody(world: World) -> None:
    """One bit of its signature, and of the proof that the one-use key signed: both are refused, nothing is written."""
    made, joiner = await invite(world), await stranger(world, "eve")
    before = world.founder.disk.kinds()
    honest = join_request(made, joiner.peer_id)
    raw = bytearray(honest.invitation)
    raw[3] ^= 1
    reasons = []
    for request in (
        type(honest)(invitation=bytes(raw), proof=honest.proof),
        type(honest)(invitation=honest.invitation, proof=bytes(64)),
        join_request(made, person("somebody else").peer_id),
    ):
        await joiner.mesh.dial(world.founder.address)
        stream = await joiner.open(world.founder, ADMISSION)
        await joiner.wire.send(stream, request)
        answer = await joiner.wire.receive(stream, Refusal, Entries)
        refusal = narrow(answer, Refusal)
        assert refusal is not None
        reasons.append(refusal.message.reason)

    assert reasons == ["tampered", "proof", "proof"]
    assert world.founder.disk.kinds() == before
    assert members(world.founder) == {world.founder.peer_id}


async def test_a_barred_key_does_not_come_back_with_a_new_invitation(world: World) -> None:
    bob = await world.add("bob")
    await world.founder.node.revoke(bob.peer_id, "stolen")
    await bob.kill()
    world.barred.add(bob.peer_id)
    thief = Puppet(world, "bob")
    await world.nursery.start(thief.mesh.run)

    line = await refused(thief, await invite(world))

    assert "(revoked)" in line
    await world.network.meshes[thief.peer_id].disconnect(world.founder.peer_id)


async def test_a_refused_joiner_is_shown_the_door(world: World) -> None:
    """Whoever asks to join need not say hello first; being refused, it must not keep the connection for ever."""
    eve = await stranger(world, "eve")
    made = await invite(world, expires_s=1)
    await world.run(2)

    await refused(eve, made)
    await world.run(3.5)

    assert world.founder.mesh.connected == frozenset()
    assert world.founder.node.meeting.greeted == frozenset()


# --- names and revocation ---------------------------------------------------------------------------------------------
async def test_a_revoked_device_is_out_for_everybody_at_once(world: World) -> None:
    """By gossip: its connections are closed, its streams refused, its offers no longer taken."""
    bob, cat = await world.add("bob"), await world.add("cat")
    await world.acquaint(world.founder, bob, cat)

    await world.founder.node.revoke(bob.peer_id, "stolen")
    world.barred.add(bob.peer_id)
    took = await world.until(
        lambda: all(bob.peer_id not in daemon.mesh.connected for daemon in (world.founder, cat))
    )

    assert took < 0.1
    assert bob.peer_id not in members(cat) | members(world.founder)
    answer = await world.founder.chat("hello")
    assert answer.started[0].seller == cat.peer_id
    await world.run(30)
    assert bob.peer_id not in world.founder.node.meeting.greeted | cat.node.meeting.greeted


async def test_a_barred_key_gets_nothing_on_any_stream(world: World) -> None:
    cat = await world.add("cat")
    eve = await world.puppet("eve")
    await eve.meet(cat)
    await world.founder.node.revoke(eve.peer_id, "stolen")
    await world.until(lambda: eve.peer_id not in cat.mesh.connected)
    before = cat.disk.kinds()
    await eve.mesh.dial(cat.address)

    _, _, answer = await eve.ask(cat)
    stream = await eve.open(cat, SYNC)
    await eve.wire.send(stream, EntriesWanted(author=world.founder.peer_id, log="assembly", start=0))
    with pytest.raises(MeshError):
        await stream.receive()
    await world.run(3.1)

    assert answer.message.reason == "not_admitted"  # type: ignore[union-attr]  # a Decline
    assert eve.peer_id not in cat.mesh.connected
    assert cat.disk.kinds() == before


async def test_a_revocation_that_gossip_lost_arrives_with_the_next_greeting(world: World) -> None:
    """Each node greets one of its peers again every 24 to 36 s: within a minute even if no gossip arrives at all."""
    bob, cat = await world.add("bob"), await world.add("cat")
    await world.acquaint(world.founder, bob, cat)
    world.network.gossip_loss = 1.0

    await world.founder.node.revoke(bob.peer_id, "stolen")
    world.barred.add(bob.peer_id)
    took = await world.until(lambda: bob.peer_id not in members(cat), within_s=60)

    assert took > 1
    await world.until(lambda: bob.peer_id not in cat.mesh.connected, within_s=1)


async def test_a_member_that_was_cut_off_catches_up(world: World) -> None:
    bob, cat = await world.add("bob"), await world.add("cat")
    await world.acquaint(world.founder, bob, cat)
    world.partition([cat], [world.founder, bob])
    await world.founder.node.publish_model(ECHO_MODEL.hex()[:8], "parrot")
    dan = await world.add("dan")
    await world.founder.node.revoke(dan.peer_id, "lost")
    await dan.kill()
    world.barred.add(dan.peer_id)
    await world.run(30)
    assert assembly_heads(cat) != assembly_heads(world.founder)

    world.heal()
    await world.until(lambda: assembly_heads(cat) == assembly_heads(world.founder), within_s=60)

    assert members(cat) == members(world.founder) == {world.founder.peer_id, bob.peer_id, cat.peer_id}
    assert cat.node.logbook.assembly.names() == {"parrot": ECHO_MODEL}


async def test_a_late_joiner_knows_everything_after_its_first_hello(world: World) -> None:
    """Members, names and sellers: it could buy at once."""
    bob = await world.add("bob")
    await world.acquaint(world.founder, bob)
    await world.founder.node.publish_model(ECHO_MODEL.hex()[:8], "parrot")
    gone = await world.add("dan")
    await world.founder.node.revoke(gone.peer_id, "lost")
    await gone.kill()
    world.barred.add(gone.peer_id)

    late = await world.add("cat")

    assert assembly_heads(late) == assembly_heads(world.founder)
    assert members(late) == {world.founder.peer_id, bob.peer_id, late.peer_id}
    assert late.node.logbook.assembly.names() == {"parrot": ECHO_MODEL}
    assert [view.holders for view in late.node.models()] == [[late.peer_id, bob.peer_id]]


async def test_the_newest_card_of_a_name_holds_everywhere_whatever_the_order(world: World) -> None:
    """Cards of one name written while the mesh was parted: all end with the same meaning."""
    bob, cat = await world.add("bob"), await world.add("cat")
    await world.acquaint(world.founder, bob, cat)
    world.partition([cat], [world.founder, bob])
    for digest in (b"1" * 32, b"2" * 32, b"3" * 32):
        await world.founder.node.sync.announce(
            await world.founder.node.logbook.write(
                Card,
                lambda index, prev, digest=digest: Card(index=index, prev=prev, name="llama", model=digest),
            )
        )
        await world.run(1)
    world.heal()

    await world.until(lambda: "llama" in cat.node.logbook.assembly.names(), within_s=60)

    for daemon in world.daemons.values():
        assert daemon.node.logbook.assembly.names() == {"llama": b"3" * 32}


async def test_a_member_off_the_roll_can_neither_revoke_nor_name(world: World) -> None:
    """Properly signed, and worth nothing: nobody takes it, nobody hands it on."""
    bob, cat = await world.add("bob"), await world.add("cat")
    await world.acquaint(world.founder, bob, cat)
    eve = await world.puppet("eve")
    await eve.meet(bob)
    forged = eve.entry(Revocation, peer=cat.peer_id, reason="mine")
    for topic in bob.mesh._subscriptions:
        bob.mesh.hear(topic, forged.raw, eve.peer_id)
    await world.run(2)

    with pytest.raises(StartError, match="only devices on the charter's roll revoke"):
        await bob.node.revoke(cat.peer_id, "mine")

    for daemon in (world.founder, bob, cat):
        assert cat.peer_id in members(daemon)
    stored = [record for batch in bob.disk.appends for record in batch]
    assert forged.id not in [record.key for record in stored]


async def test_a_silent_peer_does_not_hold_up_sync_with_others(world: World) -> None:
    """It names logs that it holds and never hands them over: others are asked meanwhile."""
    bob = await world.add("bob")
    eve = await world.puppet("eve")
    eve.heads = invented_heads(60)

    async def say_nothing(_stream: object) -> None:
        await trio.sleep_forever()

    eve.serve(SYNC, say_nothing)
    await eve.mesh.dial(bob.address)
    world.nursery.start_soon(eve.meet, bob)
    await world.run(1)
    for number in range(40):
        bob.node.sync.want(eve.peer_id, person(f"nobody {number}").peer_id, "bilateral")
    world.network.gossip_loss = 1.0
    await world.founder.node.publish_model(ECHO_MODEL.hex()[:8], "parrot")

    took = await world.until(lambda: bob.node.logbook.assembly.names() != {}, within_s=61)

    assert took <= 60


async def test_peers_that_never_answer_hold_up_no_pull_from_an_honest_one(world: World) -> None:
    """Three of them, each asked for ten logs: an honest fourth is asked at once all the same."""
    bob = await world.add("bob")
    await world.acquaint(bob, world.founder)
    for name in ("eve", "mallory", "trudy"):
        await mute(world, name, bob)
    world.network.gossip_loss = 1.0
    await world.founder.node.publish_model(ECHO_MODEL.hex()[:8], "parrot")
    for number in range(10):
        for puppet in world.puppets:
            bob.node.sync.want(puppet.peer_id, person(f"nobody {number}").peer_id, "bilateral")

    bob.node.sync.want(world.founder.peer_id, world.founder.peer_id, "assembly")

    await world.until(lambda: bob.node.logbook.assembly.names() != {}, within_s=1)


async def test_a_log_is_never_asked_of_two_peers_at_once_nor_a_peer_for_two_logs(world: World) -> None:
    """The second pull of a log comes when the first is over, and so asks for what is missing then; few run at once."""
    bob = await world.add("bob")
    under_way: list[tuple[str, str]] = []
    most = 0

    async def answer(puppet: Puppet, stream: Stream) -> None:
        nonlocal most
        wanted = (await puppet.wire.receive(stream, EntriesWanted)).message
        assert wanted.author not in [author for _, author in under_way]
        assert puppet.name not in [name for name, _ in under_way]
        under_way.append((puppet.name, wanted.author))
        most = max(most, len(under_way))
        asked.append((puppet.name, wanted.author))
        await trio.sleep(2)
        await puppet.wire.send(stream, Entries(entries=()))
        under_way.remove((puppet.name, wanted.author))

    asked: list[tuple[str, str]] = []
    peers = PULLS_AT_ONCE + 2
    for number in range(peers):
        puppet = await world.puppet(f"peer {number}")
        await puppet.meet(bob)
        puppet.serve(SYNC, partial(answer, puppet))
    authors = [person(f"nobody {number}").peer_id for number in range(peers)]
    wanted = [(puppet, author) for puppet in world.puppets for author in authors[:4]]
    wanted += [(world.puppets[number], authors[number]) for number in range(4, peers)]
    for puppet, author in wanted:
        bob.node.sync.want(puppet.peer_id, author, "bilateral")
        bob.node.sync.want(puppet.peer_id, author, "bilateral")  # it is on the list already

    await world.until(lambda: len(asked) == len(wanted) and not under_way, within_s=120)

    assert sorted(asked) == sorted((puppet.name, author) for puppet, author in wanted)
    assert most == PULLS_AT_ONCE
    assert bob.events("sync_failed") == []
    assert bob.events("handler_failed") == []


async def mute(world: World, name: str, daemon: Daemon) -> Puppet:
    """A member that has greeted a daemon, and never answers it when asked for a log."""
    puppet = await world.puppet(name)
    await puppet.meet(daemon)

    async def say_nothing(_stream: Stream) -> None:
        await trio.sleep_forever()

    puppet.serve(SYNC, say_nothing)
    return puppet
