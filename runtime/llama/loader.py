"""What a child has in memory, and how it comes there: models and adapters, one of each at a time.

Calls of other models go on meanwhile. A model that has no place waits until others can go (`memory.py`); should they be
in use all the time, they take no new calls once they have served as long as their loading took. The only file that
asks the child to load and to unload.
"""

from collections.abc import Iterator, Mapping

import psutil
import trio

from runtime.engine import (
    Digest,
    EngineBusy,
    EngineDied,
    EngineError,
    ModelSetAside,
    Phase,
)
from runtime.llama import wire
from runtime.llama.adapters import Adapters
from runtime.llama.call import Call
from runtime.llama.forecast import Forecast
from runtime.llama.loading import Loading, Wish
from runtime.llama.memory import CanGo, Footprint, ModelMemory, Resident, footprint
from runtime.llama.process import LlamaChild
from runtime.llama.records import Records
from runtime.llama.waiting import WaitingQueue
from runtime.model_store import ModelStore

KEPT_FOR_S = 20.0  # for whoever was told to come back when a model is loaded


class Loader:
    """Loads for those who wait, into whatever child there is.

    Args:
        store: where the models are.
        records: what is known of them.
        waiting, running: the calls; the scheduler's own.
        ids: for questions to the child.
        slots: requests at a time.
        context_tokens: of each request, at most.
        threads: for compute.
        memory_bytes_max: for the child.

    Attributes:
        child: that is served, if there is one.
        changed: is set when there may be something to do.
        loading: the model that is on its way into memory.
        draining: models that take no new calls until somebody else has their place.
    """

    def __init__(
        self,
        store: ModelStore,
        records: Records,
        waiting: WaitingQueue[Call],
        running: Mapping[int, Call],
        ids: Iterator[int],
        *,
        slots: int,
        context_tokens: int,
        threads: int,
        memory_bytes_max: int,
    ) -> None:
        self._store = store
        self._records = records
        self._waiting = waiting
        self._running = running
        self._ids = ids
        self._slots = slots
        self._context_tokens = context_tokens
        self.threads = threads
        self.adapters = Adapters()
        self.memory = ModelMemory(memory_bytes_max)
        self.changed = trio.Event()
        self.child: LlamaChild | None = None
        self.loading: Loading | None = None
        self.forecast = Forecast()
        self.draining: set[Digest] = set()
        self._wishes: list[Wish] = []
        self._adapter_cause: Call | None = None

    def footprint(self, model: Digest) -> Footprint:
        """Return what a model is given in memory."""
        card = self._store.models[model]
        return footprint(
            card.size_bytes,
            self._store.kv_bytes_per_token(model),
            context_tokens=min(self._context_tokens, card.trained_context_tokens),
            slots=self._slots,
            budget_bytes=self.memory.budget_bytes,
        )

    def load_s(self, model: Digest) -> float:
        """Return how long it is until a model is in memory; 0 when it is."""
        if model in self.memory:
            return 0.0
        before_s = self.loading.remaining_s if self.loading else 0.0
        if self.loading and self.loading.model == model:
            return before_s
        return before_s + self.forecast.load_s(self._records.of(model), self._store.models[model].size_bytes)

    def wish(self, model: Digest, *, is_modest: bool = False) -> Wish:
        """Have a model loaded, soon; whoever waits for it waits for the wish's event."""
        wish = next((each for each in self._wishes if each.model == model), None)
        if wish is None:
            wish = Wish(model, is_modest)
            self._wishes.append(wish)
        wish.is_modest = wish.is_modest and is_modest
        if model in self.memory:
            self._grant(model)
        self.changed.set()
        return wish

    def sweep_adapters(self) -> None:
        """Give back the adapters that were unloaded and that no accepted call needs any more."""
        needed = {call.request.adapter for call in (*self._running.values(), *self._waiting)}
        for adapter, base in self.adapters.sweep(needed.__contains__).items():
            if self.child:
                self.child.tell(wire.UnloadAdapter(base, adapter))

    # --- a child's life ------------------------------------------------------------------------------------------

    def advance(self, nursery: trio.Nursery, child: LlamaChild) -> None:
        """Begin to load what comes next, if it can."""
        if self.loading is None and (next_load := self._next_load()):
            self.loading = next_load
            nursery.start_soon(self._load, child, next_load)
        if self.adapters.loading is None and (adapter := self._next_adapter()):
            self.adapters.loading = adapter
            nursery.start_soon(self._load_adapter, child, adapter)

    def next_chance(self) -> float:
        """Return when something can be done that cannot be done now."""
        now = trio.current_time()
        times = [self.not_before(call) for call in self._waiting]
        times += [self.adapters.get(order.adapter).not_before for order in self.adapters.orders]
        times += [self._records.of(wish.model).not_before for wish in self._wishes]
        if any(call.model not in self.memory for call in self._waiting) or self._wishes:
            times += self.memory.next_to_go()
        return min((time for time in times if time > now), default=float("inf"))

    def causes(self) -> Iterator[Call]:
        """Yield the calls for which something is being loaded."""
        yield from filter(None, (self.loading.cause if self.loading else None, self._adapter_cause))

    def child_is_gone(self) -> None:
        """Nothing is in memory any more."""
        self.child = self.loading = self._adapter_cause = None
        self.memory.clear()
        self.draining.clear()
        self.adapters.child_is_gone()
        for wish in list(self._wishes):
            if reason := self._records.of(wish.model).set_aside:
                self._wishes.remove(wish)
                wish.end(ModelSetAside(reason))

    def fail(self, error: EngineError) -> None:
        """No child can be had."""
        for wish in self._wishes:
            wish.end(error)
        self._wishes.clear()
        self.adapters.fail_orders(error)

    def not_before(self, call: Call) -> float:
        """Return when what a call needs may be tried again."""
        wanted = call.request.adapter
        paused_until = self.adapters.get(wanted).not_before if wanted is not None else 0.0
        return max(self._records.of(call.model).not_before, paused_until)

    # --- models --------------------------------------------------------------------------------------------------

    def _next_load(self) -> Loading | None:
        """Return the load that comes next, if one can begin, and say who takes no more calls for the sake of one."""
        self.draining.clear()
        for call in self._waiting:
            if call.model not in self.memory and self.not_before(call) <= trio.current_time():
                return self._begin_load(call.model, call)
        for wish in self._wishes:
            if self._records.of(wish.model).not_before > trio.current_time():
                continue
            if wish.model in self.memory:
                self._grant(wish.model)
                return self._next_load()
            is_here = wish.model in self._store.models
            if not (wish.is_modest and is_here) or self._who_goes(wish.model) == []:
                return self._begin_load(wish.model)
            self._wishes.remove(wish)
            wish.end(EngineBusy(f"no place in memory for model {wish.model.hex()[:8]} beside the others"))
            return self._next_load()
        for order in self.adapters.orders:  # a base whose place is free comes with its adapter
            base = self.adapters.get(order.adapter).base
            can_load = base in self._store.models and self._records.of(base).not_before <= trio.current_time()
            if can_load and base not in self.memory and self._who_goes(base) == []:
                return self._begin_load(base)
        return None

    def _begin_load(self, model: Digest, cause: Call | None = None) -> Loading | None:
        try:
            self._records.check(model, self._store)
        except EngineError as error:  # it was removed, or set aside, since it was asked for
            self._load_fails(model, error)
            return self._next_load()
        going = self._who_goes(model)
        if going is None:
            now = trio.current_time()
            self.draining = set(
                self._who_goes(
                    model, lambda _digest, resident: max(resident.drain_at, resident.keep_until) <= now
                )
                or ()
            )
            return None
        for gone in going:
            self.memory.remove(gone)
            self.adapters.forget_base(gone)
            assert self.child is not None
            self.child.tell(wire.Unload(gone))
        expected_s = self.forecast.load_s(self._records.of(model), self._store.models[model].size_bytes)
        card = self._store.models[model]
        return Loading(card, self.footprint(model), cause, trio.current_time(), expected_s)

    def _who_goes(self, model: Digest, can_go: CanGo | None = None) -> list[Digest] | None:
        """Return who has to go for a model: by default of those that nobody uses and nobody was promised."""
        now = trio.current_time()
        in_use = {call.model for call in self._running.values()}
        # What other programs have taken of the machine is not there either: rather load again than swap.
        free = psutil.virtual_memory().available + self.memory.size_bytes
        return self.memory.who_goes(
            self.footprint(model).size_bytes,
            min(self.memory.budget_bytes, free) - self.adapters.memory_needed(),
            can_go or (lambda digest, resident: digest not in in_use and resident.keep_until <= now),
        )

    async def _load(self, child: LlamaChild, loading: Loading) -> None:
        model = loading.model
        record = self._records.of(model)
        for call in self._waiting:
            if call.model == model:
                call.waits(Phase.LOADING)
        try:
            path = await self._store.verify(model)
            answer = await child.ask(
                wire.Load(
                    call=next(self._ids),
                    model=model,
                    path=str(path),
                    context_tokens=self._context_tokens,
                    slots=self._slots,
                    threads=self.threads,
                    memory_bytes_max=self._memory_needed(),
                    tokens_per_s=record.decode.tokens_per_s(1),
                    dimensions=loading.card.dimensions,
                    cells=loading.given.cells,
                ),
                lambda beat: self._load_advances(loading, beat),
            )
        except EngineDied:
            return  # `loading` stays, to be blamed by `bury`
        except EngineError as error:
            self._load_fails(model, error)
        else:
            assert isinstance(answer, wire.Loaded)
            now = trio.current_time()
            took_s = now - loading.began
            self.memory.add(model, Resident(loading.given, drain_at=now + took_s))
            self.forecast.learn_load(record, loading.card.size_bytes, took_s)
            record.learn_first(answer.prompt_tokens_per_s, answer.tokens_per_s)
            self._records.last_good = self._records.last_good or model
            self._grant(model)
        self.loading = None
        for call in self._waiting:
            call.waits()
        self.changed.set()

    def _load_advances(self, loading: Loading, beat: wire.Beat) -> None:
        loading.share = min(1.0, beat.done / beat.total) if beat.total else 0.0
        for call in self._waiting:
            if call.model == loading.model:
                call.waits(Phase.LOADING, beat.done, beat.total)

    def _load_fails(self, model: Digest, error: EngineError) -> None:
        """Tell all who wait for it: they would each be told the same, one load after the other."""
        for call in list(self._waiting):
            if call.model == model:
                self._waiting.remove(call)
                call.fail(error)
        for wish in [wish for wish in self._wishes if wish.model == model]:
            self._wishes.remove(wish)
            wish.end(error)
        for order in list(self.adapters.orders):
            if self.adapters.get(order.adapter).base == model:
                self.adapters.end_order(order, error)
        self.sweep_adapters()

    def _grant(self, model: Digest) -> None:
        """It is in memory: those who wished for it come now, or soon."""
        for wish in [wish for wish in self._wishes if wish.model == model]:
            self._wishes.remove(wish)
            resident = self.memory.use(model)
            if not wish.is_modest:
                resident.keep_until = trio.current_time() + KEPT_FOR_S
            wish.end()

    # --- adapters ------------------------------------------------------------------------------------------------

    def _next_adapter(self) -> Digest | None:
        """Return the adapter to be checked and loaded next."""
        for order in self.adapters.orders:
            adapter = self.adapters.get(order.adapter)
            is_base_coming = self.loading is not None and self.loading.model == adapter.base
            if adapter.not_before <= trio.current_time() and not is_base_coming:
                return order.adapter
        for call in self._waiting:
            wanted = call.request.adapter
            if (
                wanted is not None
                and wanted not in self.adapters.loaded
                and call.model in self.memory
                and self.not_before(call) <= trio.current_time()
            ):
                self._adapter_cause = call
                return wanted
        return None

    async def _load_adapter(self, child: LlamaChild, digest: Digest) -> None:
        """Have the child check it, and hold it if the child holds its base."""
        adapter = self.adapters.get(digest)
        try:
            self._records.check(adapter.base, self._store)
            if digest not in self.adapters.loaded:
                base_path = await self._store.verify(adapter.base)
                await child.ask(
                    wire.LoadAdapter(
                        call=next(self._ids),
                        model=adapter.base,
                        adapter=digest,
                        path=str(adapter.path),
                        base_path=str(base_path),
                        memory_bytes_max=self._memory_needed(),
                    ),
                )
                if adapter.base in self.memory:
                    self.adapters.loaded.add(digest)
        except EngineDied:
            return  # the order stays, for the next child; `loading` too, to be blamed by `bury`
        except EngineError as error:
            self._end_adapter(digest, error)
        else:
            adapter.is_ready = True
            self._end_adapter(digest, None)

    def _end_adapter(self, digest: Digest, error: EngineError | None) -> None:
        self.adapters.loading = self._adapter_cause = None
        for order in [order for order in self.adapters.orders if order.adapter == digest]:
            self.adapters.end_order(order, error)
        for call in list(self._waiting) if error else ():
            if error and call.request.adapter == digest:
                self._waiting.remove(call)
                call.fail(error)
        self.sweep_adapters()  # it may have been unloaded meanwhile
        self.changed.set()

    def _memory_needed(self) -> int:
        """Return the address space for what is in memory or on its way there, and for all adapters."""
        coming = self.loading.given.size_bytes if self.loading else 0
        return self.adapters.memory_needed() + self.memory.size_bytes + coming
