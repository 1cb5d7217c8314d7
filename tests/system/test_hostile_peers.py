"""Hostile peers, with real bytes from another process: after each attack the daemon serves an honest peer as before.

One victim process stands through all of them, so what one attack leaves behind meets the next.
"""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, ItemsView, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from node.host import Host, HostSettings
from protocol.errors import Unreachable
from protocol.identity import Identity, PeerId
from protocol.mesh import PeerEvent, PeerLost, Verdict
from tests.system.victim import ECHO, NEWS

pytestmark = pytest.mark.system

GROWTH_BYTES_MAX = 50 * 1024 * 1024
ROOT = Path(__file__).parents[2]


class Victim:
    """A daemon in a process of its own, its journal read as it is written."""

    def __init__(self, **settings: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.system.victim", json.dumps(settings)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._journal: list[dict[str, Any]] = []
        self._grew = threading.Condition()
        self._position = 0
        self.address = ""
        threading.Thread(target=self._read_journal, daemon=True).start()

    @property
    def rss_bytes(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    async def start(self) -> None:
        if not self.address:
            self.address = (await self.until("ready"))["address"]
            await self.serves_an_honest_peer()

    async def until(self, event: str, timeout_s: float = 15, **fields: object) -> dict[str, Any]:
        """Read the journal on, up to an event with these fields."""
        wanted = {"event": event, **fields}.items()
        return await trio.to_thread.run_sync(self._wait_for, wanted, time.monotonic() + timeout_s)

    def _wait_for(self, wanted: ItemsView[str, object], deadline: float) -> dict[str, Any]:
        with self._grew:
            while True:
                for written in self._journal[self._position :]:
                    self._position += 1
                    if wanted <= written.items():
                        return written
                assert self.process.poll() is None, f"the victim died with {self.process.returncode}"
                if not self._grew.wait(deadline - time.monotonic()):
                    raise trio.TooSlowError(f"the victim journaled nothing like {dict(wanted)}")

    def _read_journal(self) -> None:
        """Read all the time: a victim that cannot write its journal is another test."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._grew:
                self._journal.append(json.loads(line))
                self._grew.notify()
        with self._grew:
            self._grew.notify()

    async def serves_an_honest_peer(self) -> None:
        """Connect, ask, gossip: within seconds, whatever went before."""
        peer = Host(Identity.generate(), HostSettings(listen=(), mdns=False), Quiet())
        peer.subscribe(NEWS, lambda _data, _peer: Verdict.ACCEPT, ignore)
        async with trio.open_nursery() as nursery:
            await nursery.start(peer.run)
            with trio.fail_after(5):
                victim = await peer.dial(self.address)
                stream = await peer.open_stream(victim, ECHO)
                await stream.send(b"honest")
                assert await stream.receive() == b"honest"
                await stream.end()
            await self._hears_news_of(peer)
            nursery.cancel_scope.cancel()

    async def _hears_news_of(self, peer: Host) -> None:
        """Publish until it arrives: a message sent before the gossip streams stand goes nowhere."""
        for number in range(20):
            text = f"news {number} of {peer.peer_id}"
            await peer.publish(NEWS, text.encode())
            try:
                await self.until("news_heard", timeout_s=0.5, data=text)
            except trio.TooSlowError:
                continue
            return
        pytest.fail("gossip of an honest peer does not arrive")

    def stop(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        assert self.process.wait(10) == 0
        self.process.stdout.close()


class Quiet:
    def write(self, event: str, /, **fields: object) -> None:
        pass


async def ignore(_data: bytes, _peer: PeerId) -> None:
    pass


async def expect_refused(peer: Host, victim: Victim) -> None:
    """A barred peer's handshake is answered and its connection then dropped."""
    with pytest.raises(Unreachable), trio.fail_after(10):
        await (await peer.open_stream(await peer.dial(victim.address), ECHO)).receive()


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    victim = Victim()
    yield victim
    victim.stop()


@asynccontextmanager
async def attack(name: str, victim: Victim) -> AsyncIterator["Attack"]:
    """Carry out one attack; the victim must serve honest peers afterwards, and must not have grown."""
    await victim.start()
    before = victim.rss_bytes
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "tests.system.hostile", name, victim.address],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield Attack(process)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
    await victim.serves_an_honest_peer()
    assert victim.rss_bytes - before < GROWTH_BYTES_MAX


class Attack:
    """The attacking process."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self._unread = b""

    async def says(self, timeout_s: float = 30) -> str:
        """Wait for its next word; nothing more to come is the empty one."""
        assert self.process.stdout is not None
        with trio.fail_after(timeout_s):
            while b"\n" not in self._unread:
                some = await self.process.stdout.receive_some()
                if not some:
                    return ""
                self._unread += some
        word, _, self._unread = self._unread.partition(b"\n")
        return word.decode()

    async def is_done(self, timeout_s: float = 30) -> None:
        assert await self.says(timeout_s) == "done"


@pytest.mark.parametrize(
    "name",
    [
        "non_utf8_negotiation",
        "gossip_that_is_no_protobuf",
        "streams_whose_handler_raises",
        "plaintext_impersonation",
        "fuzz_gossip",
        "fuzz_frames",
        "fuzz_sockets",
        "fuzz_services",
    ],
)
async def test_an_attack_costs_the_attacker_its_streams_and_nobody_else_anything(
    victim: Victim, name: str
) -> None:
    async with attack(name, victim) as attacker:
        await attacker.is_done()


async def test_gossip_with_garbage_keys_is_counted_and_what_follows_is_heard(victim: Victim) -> None:
    async with attack("gossip_with_garbage_keys", victim):
        await victim.until("offence_counted", offence="malformed")
        await victim.until("offence_counted", offence="signature")
        await victim.until("news_heard", data="after the garbage")


async def test_a_validator_that_raises_is_journaled_with_its_place_and_no_data(victim: Victim) -> None:
    async with attack("gossip_that_makes_a_validator_raise", victim):
        failed = await victim.until("handler_failed", where=f"validator of {NEWS.name}")

    assert failed["error"] == "ZeroDivisionError"
    assert failed["at"].startswith("system/victim.py:")


async def test_a_reader_that_pauses_longer_than_stock_libp2p_allows_loses_nothing(victim: Victim) -> None:
    async with attack("slow_reader", victim) as attacker:
        await attacker.is_done()


async def test_400_silent_sockets_keep_no_newcomer_out(victim: Victim) -> None:
    """They kept everybody out of stock libp2p for 10 s, as often as they liked."""
    async with attack("silent_sockets", victim) as attacker:
        assert await attacker.says() == "holding"
        await victim.serves_an_honest_peer()


async def test_a_thousand_connects_and_disconnects_leave_nothing_behind(victim: Victim) -> None:
    """Stock libp2p was deaf for ever after its 250th inbound connection."""
    async with attack("connects_and_disconnects", victim) as attacker:
        await attacker.is_done(timeout_s=60)


@pytest.mark.parametrize("name", ["window_ignored", "data_after_reset"])
async def test_data_past_the_window_cuts_the_connection(victim: Victim, name: str) -> None:
    async with attack(name, victim) as attacker:
        assert await attacker.says() == "cut off"
        counted = await victim.until("offence_counted", offence="wire")

    assert "window" in counted["where"]


async def test_a_stopped_peer_is_noticed_in_seconds(victim: Victim) -> None:
    """SIGSTOP keeps its sockets open; stock libp2p had not noticed after 55 s."""
    async with attack("stopped_in_mid_stream", victim) as attacker:
        assert await attacker.says() == "holding"
        attacker.process.send_signal(signal.SIGSTOP)

        lost = await victim.until("peer_lost", reason="silent for 5.0 s")

    assert lost


async def test_ten_thousand_silent_streams_are_bounded(victim: Victim) -> None:
    async with attack("stream_flood", victim) as attacker:
        assert await attacker.says() in ("holding", "cut off")


async def test_a_peer_that_asks_without_reading_is_cut_off(victim: Victim) -> None:
    async with attack("pings_without_reading", victim) as attacker:
        assert await attacker.says() == "cut off"


async def test_unread_bytes_of_one_peer_are_bounded(victim: Victim) -> None:
    """128 streams with a full window each would be 32 MiB; a connection holds 8 and then stops reading its socket."""
    async with attack("unread_streams", victim) as attacker:
        await victim.until("offence_counted")
        assert attacker


async def test_a_gossip_flood_is_over_the_peers_rate_and_bars_it(victim: Victim) -> None:
    async with attack("gossip_flood", victim):
        await victim.until("peer_barred")


async def test_a_peer_that_was_barred_comes_back_with_nothing(victim: Victim) -> None:
    """The bar is on the key, so a new connection of the same key is refused too."""
    await victim.start()
    peer = Host(Identity.generate(), HostSettings(listen=(), mdns=False), Quiet())
    lost = trio.Event()

    async def watch(event: PeerEvent) -> None:
        if isinstance(event, PeerLost):
            lost.set()

    peer.watch(watch)
    async with trio.open_nursery() as nursery:
        await nursery.start(peer.run)
        victim_id = await peer.dial(victim.address)
        stranger = PeerId("/no/such/protocol")
        for _ in range(16):
            raw = peer._swarm.connections(victim_id)[0].open_stream()
            await raw.send_all(b"\x05" + stranger[:4].encode() + b"\n")
        await victim.until("peer_barred", peer_id=peer.peer_id)
        with trio.fail_after(10):
            await lost.wait()
        await expect_refused(peer, victim)
        nursery.cancel_scope.cancel()
