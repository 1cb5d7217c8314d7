"""Run a machine: hand it what comes in, wake it at its deadline, and perform what it returns."""

from collections.abc import Callable
from typing import TypeVar

import trio

from node.clock import Clock
from protocol.machine import Machine

Incoming = TypeVar("Incoming")
Action = TypeVar("Action")
Result = TypeVar("Result")


async def drive(
    machine: Machine[Incoming, Action],
    inbox: trio.MemoryReceiveChannel[tuple[str, Incoming]],
    clock: Clock,
    perform: Callable[[Action], Result | None],
) -> Result:
    """Drive a machine until performing one of its actions gives a result.

    Args:
        machine: it must end by itself: its deadline may not stay None while nothing comes in.
        inbox: (sender, message) pairs, already verified.
        clock: whose `now` the machine is told; deadlines are in the same seconds.
        perform: does what an action says; a result other than None ends the drive.
    """
    actions: list[Action] = []
    while True:
        for action in actions:
            result = perform(action)
            if result is not None:
                return result
        wait_s = float("inf") if machine.deadline is None else max(0.0, machine.deadline - clock.now())
        with trio.move_on_after(wait_s):
            sender, message = await inbox.receive()
            actions = machine.handle_message(sender, message, clock.now())
            continue
        actions = machine.handle_timeout(clock.now())
