"""Sellers and readers that cheat, and the buyer of their answers: for tests of checks."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from runtime.echo_words import contrasts
from runtime.engine import Digest, EngineStatus, Frame, Generation, Tokens
from tests.node.world import Daemon, Engine

QUESTION = "what is an agora?"
READ_S = 5.0  # a reading takes an auction, a prompt and a receipt


class Swapper(Engine):
    """Its first two tokens have changed places, as no engine of the model would have said them."""

    async def generate(self, request: Generation) -> AsyncGenerator[Frame, None]:
        held: tuple[int, ...] = ()
        async with aclosing(super().generate(request)) as frames:
            async for frame in frames:
                if request.task == "check" or not isinstance(frame, Tokens):
                    yield frame
                elif not held and not request.received:
                    held = frame.ids
                    yield replace(frame, ids=(*frame.ids[:-1], frame.ids[-1] ^ 1))
                else:
                    yield frame


class Coarse(Engine):
    """Says what the model would say, as computed by a coarser one: only what it states of its tokens shows it."""

    async def generate(self, request: Generation) -> AsyncGenerator[Frame, None]:
        place = len(request.received)
        async with aclosing(super().generate(request)) as frames:
            async for frame in frames:
                if request.task == "check" or not isinstance(frame, Tokens):
                    yield frame
                else:
                    yield replace(frame, contrasts=contrasts(b"four bits", place, frame.ids))
                    place += len(frame.ids)


class Restater(Engine):
    """Computes the model once, and states what it found then with whatever it sells afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[int] = []

    async def generate(self, request: Generation) -> AsyncGenerator[Frame, None]:
        place, is_first = len(request.received), not self._kept
        async with aclosing(super().generate(request)) as frames:
            async for frame in frames:
                if request.task == "check" or not isinstance(frame, Tokens):
                    yield frame
                    continue
                if is_first:
                    self._kept.extend(frame.contrasts)
                yield replace(frame, contrasts=tuple(self._kept[place : place + len(frame.ids)]))
                place += len(frame.ids)


class LazyReader(Engine):
    """Reads nothing, and says zeros of whatever it is paid to read."""

    async def generate(self, request: Generation) -> AsyncGenerator[Frame, None]:
        async with aclosing(super().generate(request)) as frames:
            async for frame in frames:
                if request.task == "check" and isinstance(frame, Tokens):
                    zeros = (0,) * len(frame.ids)
                    yield replace(frame, ids=zeros, contrasts=zeros)
                else:
                    yield frame


class InventiveReader(Engine):
    """Reads nothing, and makes up what it says, each with other numbers."""

    def __init__(self, lot: bytes) -> None:
        super().__init__()
        self._lot = lot

    async def generate(self, request: Generation) -> AsyncGenerator[Frame, None]:
        async with aclosing(super().generate(request)) as frames:
            async for frame in frames:
                if request.task == "check" and isinstance(frame, Tokens):
                    made_up = contrasts(self._lot, 0, range(len(frame.ids)))
                    yield replace(frame, contrasts=made_up)
                else:
                    yield frame


class FalseReader(Engine):
    """Says of each token that it reads that another model said it."""

    async def generate(self, request: Generation) -> AsyncGenerator[Frame, None]:
        async with aclosing(super().generate(request)) as frames:
            async for frame in frames:
                if request.task == "check" and isinstance(frame, Tokens):
                    yield replace(frame, ids=(9_000,) * len(frame.ids))
                else:
                    yield frame


class FewWords(Engine):
    """Says one gap where many were asked for."""

    async def generate(self, request: Generation) -> AsyncGenerator[Frame, None]:
        async with aclosing(super().generate(request)) as frames:
            async for frame in frames:
                if request.task != "check" or not isinstance(frame, Tokens):
                    yield frame
                    continue
                yield replace(frame, ids=frame.ids[:1])
                return


class BusyElsewhere(Engine):
    """Holds the model, and has no free slot while `is_busy`; so its device buys, and can check."""

    is_busy = True

    def status(self, model: Digest) -> EngineStatus:
        found = super().status(model)
        return replace(found, slots_free=0) if self.is_busy else found


def found(buyer: Daemon) -> tuple[str, str]:
    """What is shown of the newest job that was not a check."""
    job = next(job for job in buyer.node.jobs() if job.kind != "check")
    return job.verification, job.attempts[-1].verification_detail


async def buy(buyer: Daemon, **request: object) -> None:
    await buyer.chat(QUESTION, **request)
    await buyer.world.run(READ_S)
