"""A machine: a rule that has to wait.

It takes messages and timeouts, names the moment it next wants to be woken, and returns actions. It does nothing
itself, knows no clock and draws no randomness of its own, so the daemon and the simulator run the same one.
"""

from typing import Protocol, TypeVar

Incoming_contra = TypeVar("Incoming_contra", contravariant=True)
Action = TypeVar("Action")


class Machine(Protocol[Incoming_contra, Action]):
    """What `node/machine_driver.py` can drive. `now` is monotonic seconds of whoever drives it."""

    @property
    def deadline(self) -> float | None:
        """When `handle_timeout` is due; None when the machine waits for messages alone or has ended."""

    def handle_message(self, sender: str, message: Incoming_contra, now: float) -> list[Action]:
        """Take one verified message in; return what to do about it, in order."""

    def handle_timeout(self, now: float) -> list[Action]:
        """The deadline has passed; return what to do about it, in order."""
