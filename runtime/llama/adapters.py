"""Which adapters an engine has taken, across the lives of its children. The books only: the engine does the loading.

An adapter is taken when a child has checked its file. It leaves when it was unloaded and nothing that was accepted needs
it any more. One under which children die is tried again after longer and longer pauses, and then set aside.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import trio

from runtime.engine import AdapterSetAside, Digest, EngineError, Generation, UnknownAdapter
from runtime.llama.process import adapter_memory

DEATHS_MAX = (
    3  # in a row, without a request served in between: fewer than a base, which is suspected after it
)


@dataclass
class Adapter:
    """One adapter.

    Attributes:
        is_ready: a child has checked its file.
        is_leaving: it was unloaded; what was accepted before still ends with it.
        deaths: of children, in a row.
        not_before: it is not tried again until then.
    """

    base: Digest
    path: Path
    size_bytes: int
    is_ready: bool = False
    is_leaving: bool = False
    deaths: int = 0
    not_before: float = 0.0
    set_aside: str = ""


@dataclass(eq=False)
class Order:
    """Somebody waits until an adapter is ready."""

    adapter: Digest
    done: trio.Event = field(default_factory=trio.Event)
    error: EngineError | None = None

    def end(self, error: EngineError | None = None) -> None:
        """Let them go on."""
        self.error = error
        self.done.set()


class Adapters:
    """The adapters of one engine.

    Attributes:
        orders: in the order of their coming.
        loaded: those in the present child.
        loading: the one that the child is busy with.
    """

    def __init__(self) -> None:
        self._all: dict[Digest, Adapter] = {}
        self.orders: list[Order] = []
        self.loaded: set[Digest] = set()
        self.loading: Digest | None = None

    def ready(self) -> Mapping[Digest, Digest]:
        """Return those that can be asked for, and their bases."""
        return {
            digest: adapter.base
            for digest, adapter in self._all.items()
            if adapter.is_ready and not adapter.is_leaving and not adapter.set_aside
        }

    def get(self, digest: Digest) -> Adapter:
        """Return an adapter that is needed by something: it is here for as long."""
        return self._all[digest]

    def find(self, digest: Digest) -> Adapter | None:
        """Return an adapter if it is here."""
        return self._all.get(digest)

    def add(self, digest: Digest, adapter: Adapter) -> None:
        """Begin to keep it."""
        self._all[digest] = adapter

    def check(self, request: Generation) -> None:
        """Return if a request can be accepted.

        Raises:
            UnknownAdapter: its adapter is not ready, or for another base.
        """
        if request.adapter is None:
            return
        adapter = self._all.get(request.adapter)
        if adapter and adapter.set_aside:
            raise AdapterSetAside(adapter.set_aside)
        if not adapter or not adapter.is_ready or adapter.is_leaving or adapter.base != request.model:
            raise UnknownAdapter(
                f"no adapter {request.adapter.hex()[:8]} for model {request.model.hex()[:8]} on this engine"
            )

    def next_order(self) -> Order | None:
        """Return the first order that can be carried out now."""
        now = trio.current_time()
        return next((order for order in self.orders if self._all[order.adapter].not_before <= now), None)

    def end_order(self, order: Order, error: EngineError | None = None) -> None:
        """It was carried out, or cannot be."""
        self.orders.remove(order)
        order.end(error)

    def fail_orders(self, error: EngineError) -> None:
        """No child can be had."""
        while self.orders:
            self.end_order(self.orders[0], error)

    def sweep(self, is_needed: Callable[[Digest], bool]) -> dict[Digest, Digest]:
        """Forget those that leave and that nothing needs; return which of them the child still has, and their bases."""
        ordered = {order.adapter for order in self.orders}
        gone = {
            digest: adapter.base
            for digest, adapter in self._all.items()
            if (adapter.is_leaving or not (adapter.is_ready or adapter.set_aside or adapter.deaths))
            and digest not in ordered
            and digest != self.loading
            and not is_needed(digest)
        }
        for digest in gone:
            del self._all[digest]
        in_child = {digest: base for digest, base in gone.items() if digest in self.loaded}
        self.loaded.difference_update(gone)
        return in_child

    def forget_base(self, base: Digest) -> None:
        """The child gave a base's memory back, and its adapters' with it."""
        self.loaded = {digest for digest in self.loaded if self._all[digest].base != base}

    def blame(self, digests: set[Digest], verdict: str, pause_s: Callable[[int], float]) -> None:
        """A child died under these."""
        for digest in digests:
            adapter = self._all[digest]
            adapter.deaths += 1
            adapter.not_before = trio.current_time() + pause_s(adapter.deaths - 1)
            if adapter.deaths >= DEATHS_MAX:
                adapter.set_aside = (
                    f"adapter {digest.hex()[:8]} was set aside after {adapter.deaths} deaths: {verdict}"
                )
                for order in [order for order in self.orders if order.adapter == digest]:
                    self.end_order(order, AdapterSetAside(adapter.set_aside))

    def child_is_gone(self) -> None:
        """Nothing is loaded any more."""
        self.loaded.clear()
        self.loading = None

    def memory_needed(self) -> int:
        """Return the address space that they take in a child."""
        if not self._all:
            return 0
        return adapter_memory(sum(adapter.size_bytes for adapter in self._all.values()))
