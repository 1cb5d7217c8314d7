"""Finding peers on the local network: multicast DNS, as libp2p specifies it for private networks.

Each node announces the addresses of its interfaces, never 0.0.0.0, and dials what it hears of at once (stock libp2p
waits 7-9 s). What is heard is only a place to dial: the handshake proves who is there, and the mesh decides whether it
belongs. Zeroconf works in threads of its own, and hands over text.

Source: https://github.com/libp2p/specs/blob/master/discovery/mdns.md
"""

import ipaddress
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import trio
from zeroconf import ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

from node.guard import Journal
from node.host import address as addresses
from protocol.errors import Unreachable
from protocol.identity import PeerId

SERVICE = "_p2p-agora._udp.local."
FOUND_MAX = 64  # waiting to be dialled; a network that shouts louder is not heard
REMEMBERED_MAX = 1_024
ASK_TIMEOUT_MS = 3_000


class Discovery:
    """Announces this node on the local network and reports the others it hears of."""

    def __init__(
        self,
        peer_id: PeerId,
        bound: Callable[[], Sequence[tuple[str, int]]],
        found: Callable[[str], Awaitable[None]],
        journal: Journal,
    ) -> None:
        """Prepare; `bound` are the listening sockets, `found` is called with each new multiaddr."""
        self._peer_id = peer_id
        self._bound = bound
        self._found = found
        self._journal = journal
        self._name = f"{secrets.token_hex(16)}.{SERVICE}"  # the specification wants a random name
        self._dialled: dict[str, None] = {}

    @property
    def is_useful(self) -> bool:
        """Whether anybody but this machine could reach us: we listen on more than loopback."""
        return bool(self._announced())

    async def run(self, ready: Callable[[], None]) -> None:
        """Announce and listen until cancelled."""
        send, receive = trio.open_memory_channel[str](FOUND_MAX)
        token = trio.lowlevel.current_trio_token()

        def hear(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
            if state_change is ServiceStateChange.Removed or name == self._name:
                return
            for text in _read_addresses(zeroconf, service_type, name):
                try:
                    token.run_sync_soon(_offer, send, text)
                except trio.RunFinishedError:
                    return

        ready()  # announcing takes a second, and a network without multicast is no reason not to start
        zeroconf = await trio.to_thread.run_sync(Zeroconf)
        try:
            await trio.to_thread.run_sync(zeroconf.register_service, self._service_info())
            browser = await trio.to_thread.run_sync(
                lambda: ServiceBrowser(zeroconf, SERVICE, handlers=[hear])
            )
            try:
                async with receive:
                    async for text in receive:
                        await self._report(text)
            finally:
                browser.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(zeroconf.close)

    async def _report(self, text: str) -> None:
        try:
            target = addresses.parse(text)
        except Unreachable:
            return
        if target.peer_id == self._peer_id or text in self._dialled:
            return
        self._dialled[text] = None
        if len(self._dialled) > REMEMBERED_MAX:
            del self._dialled[next(iter(self._dialled))]
        self._journal.write("peer_found", peer_id=target.peer_id, address=text)
        await self._found(text)

    def _announced(self) -> list[str]:
        texts = [
            text for host, port in self._bound() for text in addresses.announced(host, port, self._peer_id)
        ]
        return [text for text in texts if not ipaddress.ip_address(addresses.parse(text).host).is_loopback]

    def _service_info(self) -> ServiceInfo:
        texts = self._announced()
        hosts = [addresses.parse(text) for text in texts]
        return ServiceInfo(
            SERVICE,
            self._name,
            port=hosts[0].port,
            properties={f"dnsaddr{index or ''}": text for index, text in enumerate(texts)},
            server=f"{self._name.split('.')[0]}.local.",
            parsed_addresses=[each.host for each in hosts],
        )


def _read_addresses(zeroconf: Zeroconf, service_type: str, name: str) -> list[str]:
    """Return the multiaddrs of a service; runs in zeroconf's thread, where an exception would only be printed."""
    info = ServiceInfo(service_type, name)
    if not info.load_from_cache(zeroconf) and not info.request(zeroconf, ASK_TIMEOUT_MS):
        return []
    values = [value for key, value in info.properties.items() if key.startswith(b"dnsaddr") and value]
    return [value.decode("ascii", "replace") for value in values]


def _offer(send: trio.MemorySendChannel[str], text: str) -> None:
    with suppress(trio.WouldBlock, trio.BrokenResourceError):  # too many, or stopping; it will be said again
        send.send_nowait(text)
