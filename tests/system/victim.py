"""The daemon under attack: a host with a few plain services. Prints its journal as JSON lines; ends with its stdin."""

import json
import sys
from typing import Any

import trio

from node.host import Host, HostSettings
from protocol.errors import StreamEnded
from protocol.identity import Identity, PeerId
from protocol.mesh import Stream, Verdict
from protocol.topics import StreamProtocol, Topic

ECHO = StreamProtocol("/test/echo/1", frame_bytes_max=64 * 1024)
FLOOD = StreamProtocol("/test/flood/1", frame_bytes_max=64 * 1024)
RAISE = StreamProtocol("/test/raise/1", frame_bytes_max=64 * 1024)
NEWS = Topic("/test/news/1", frozenset())


class PrintingJournal:
    def write(self, event: str, /, **fields: object) -> None:
        sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
        sys.stdout.flush()


async def echo(stream: Stream) -> None:
    while True:
        try:
            frame = await stream.receive()
        except StreamEnded:
            return
        await stream.send(frame)


async def flood(stream: Stream) -> None:
    number = 0
    while True:
        await stream.send(number.to_bytes(4, "big") * 10_000)
        number += 1


async def fail(_stream: Stream) -> None:
    raise ZeroDivisionError


def validate(data: bytes, _peer: PeerId) -> Verdict:
    if data == b"raise":
        raise ZeroDivisionError
    return Verdict.ACCEPT


async def main(settings: dict[str, Any]) -> None:
    journal = PrintingJournal()
    chosen = {"listen": ("/ip4/127.0.0.1/tcp/0",), "mdns": False, **settings}
    host = Host(Identity.generate(), HostSettings(**chosen), journal)
    host.serve(ECHO, echo)
    host.serve(FLOOD, flood)
    host.serve(RAISE, fail)

    async def hear(data: bytes, _peer: PeerId) -> None:
        journal.write("news_heard", data=data.decode("latin-1"))

    host.subscribe(NEWS, validate, hear)
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        journal.write("ready", address=host.addresses[0])
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, json.loads(sys.argv[1]) if len(sys.argv) > 1 else {})
