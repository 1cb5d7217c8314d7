"""What the child does next: which call is sent to it, and what it has in memory for that.

Calls wait in a queue that is fair between payers (`waiting.py`), and go to the child when a slot is free and what they
need is in memory. Models and adapters are loaded meanwhile, one of each at a time: calls of other models go on. A model
that has no place waits until others can go (`memory.py`); should they be in use all the time, they take no new calls
once they have served as long as their loading took.

When the child dies, the calls that it was running end with `EngineDied`, and what it worked on is suspected: an adapter
before its base. So does the one call for which something was being loaded. The others are kept for the next child,
which gets an adapter again with the first call that needs it.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil
import trio

from runtime.engine import (
    AdapterSetAside,
    BadTemplate,
    Digest,
    EngineBusy,
    EngineDied,
    EngineError,
    ModelSetAside,
    Phase,
    UnknownModel,
)
from runtime.llama import wire
from runtime.llama.adapters import Adapter, Adapters
from runtime.llama.call import Call
from runtime.llama.forecast import Forecast
from runtime.llama.memory import CanGo, Footprint, ModelMemory, Resident, footprint
from runtime.llama.process import GenerationMessage, LlamaChild, Unasked
from runtime.llama.records import Measured, ModelRecord, pause_s
from runtime.llama.speed import Crowd
from runtime.llama.waiting import WaitingQueue
from runtime.model_store import ModelStore

KEPT_FOR_S = 20.0  # for whoever was told to come back when a model is loaded


@dataclass(eq=False)
class Wish:
    """Somebody wants a model in memory, who has no call for it (yet).

    Attributes:
        is_modest: only if it has a place already: nobody is to go for it.
    """

    model: Digest
    is_modest: bool = False
    done: trio.Event = field(default_factory=trio.Event)
    error: EngineError | None = None

    def end(self, error: EngineError | None = None) -> None:
        """It was loaded, or cannot be."""
        self.error = error
        self.done.set()


@dataclass(eq=False)
class Loading:
    """A model that is being loaded.

    Attributes:
        cause: the call for which it was begun, or somebody's wish.
        expected_s: what it will take, as far as was known before.
        share: of it that is done.
    """

    model: Digest
    cause: Call | Wish | None
    began: float
    expected_s: float
    share: float = 0.0

    @property
    def remaining_s(self) -> float:
        """What it will still take."""
        passed_s = trio.current_time() - self.began
        if self.share > 0.1:  # sooner, a stall of a moment would be taken for the speed
            return passed_s * (1 - self.share) / self.share
        return max(0.0, self.expected_s - passed_s)


class Scheduler:
    """The calls of one engine, and the present child's work. `serve` each child; `bury` it when it is dead.

    Args:
        store: where the models are.
        slots: requests at a time.
        queue_max: requests that may wait.
        context_tokens: of each request, at most.
        threads: for compute.
        memory_bytes_max: for the child.

    Attributes:
        child: that is served, if there is one.
        ids: for calls and questions.
        changed: is set when there may be something to do.
        loading: the model that is on its way into memory.
    """

    def __init__(
        self,
        store: ModelStore,
        *,
        slots: int,
        queue_max: int,
        context_tokens: int,
        threads: int,
        memory_bytes_max: int,
    ) -> None:
        self._store = store
        self.slots = slots
        self.queue_max = queue_max
        self.context_tokens = context_tokens
        self.threads = threads
        self.ids = itertools.count(1)
        self.waiting: WaitingQueue[Call] = WaitingQueue()
        self.running: dict[int, Call] = {}
        self.adapters = Adapters()
        self.memory = ModelMemory(memory_bytes_max)
        self.changed = trio.Event()
        self.child: LlamaChild | None = None
        self.loading: Loading | None = None
        self.forecast = Forecast()
        self._crowd = Crowd(0.0)
        self._records: dict[Digest, ModelRecord] = {}
        self._wishes: list[Wish] = []
        self._draining: set[Digest] = set()  # they take no new calls until somebody else has their place
        self._crowded: set[Digest] = set()  # their cache has no room until one of their calls ends
        self._adapter_cause: Call | None = None
        self._last_good: Digest | None = None

    # --- what is known -------------------------------------------------------------------------------------------

    def record(self, model: Digest) -> ModelRecord:
        """Return what is known of a model."""
        return self._records.setdefault(model, ModelRecord())

    def check_model(self, model: Digest) -> None:
        """Return if it can be asked for.

        Raises:
            UnknownModel: it is not here, or was set aside.
        """
        if model not in self._store.models:
            raise UnknownModel(f"no model {model.hex()[:8]} on this engine")
        if reason := self.record(model).set_aside:
            raise ModelSetAside(reason)

    def footprint(self, model: Digest) -> Footprint:
        """Return what a model is given in memory."""
        card = self._store.models[model]
        return footprint(
            card.size_bytes,
            self._store.kv_bytes_per_token(model),
            context_tokens=min(self.context_tokens, card.trained_context_tokens),
            slots=self.slots,
            budget_bytes=self.memory.budget_bytes,
        )

    def load_s(self, model: Digest) -> float:
        """Return how long it is until a model is in memory; 0 when it is."""
        if model in self.memory:
            return 0.0
        before_s = self.loading.remaining_s if self.loading else 0.0
        if self.loading and self.loading.model == model:
            return before_s
        return before_s + self.forecast.load_s(self.record(model), self._store.models[model].size_bytes)

    def wait_s(self) -> float:
        """Return how long one more call would wait for a slot."""
        records = {call.model: self.record(call.model) for call in self.calls()}
        return self.forecast.wait_s(self.slots, self.running.values(), self.waiting, records)

    def calls(self) -> Iterator[Call]:
        """Yield those that run, then those that wait, in the order in which they would start."""
        yield from self.running.values()
        yield from self.waiting

    # --- what users do -------------------------------------------------------------------------------------------

    def submit(self, call: Call) -> None:
        """Let a call wait for its turn.

        Raises:
            EngineBusy: the queue is full, and no payer has so many in it that one of theirs has to leave.
        """
        places = max(0, self.slots + self.queue_max - len(self.running))
        leaver = self.waiting.offer(call.request.payer, call, places)
        if leaver:
            ahead = len(self.running) + len(self.waiting) - self.slots
            error = EngineBusy(f"{ahead} requests wait already, expected fewer than {self.queue_max}")
            if leaver is call:
                raise error
            leaver.fail(error)
        if self.loading and self.loading.model == call.model:
            call.waits(Phase.LOADING)
        self.changed.set()

    def drop(self, call: Call) -> None:
        """Nobody reads this call any more: out of the queue, or out of the child."""
        call.is_dropped = True
        if self.waiting.remove(call):
            self.sweep_adapters()
            self.changed.set()
        elif call.number in self.running and self.child:
            self.child.tell(wire.Cancel(call.number))

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

    def fail_waiting(self, error: EngineError) -> None:
        """No child can be had."""
        for call in list(self.waiting):
            self.waiting.remove(call)
            call.fail(error)
        for wish in self._wishes:
            wish.end(error)
        self._wishes.clear()
        self.adapters.fail_orders(error)
        self.sweep_adapters()

    def sweep_adapters(self) -> None:
        """Give back the adapters that were unloaded and that no accepted call needs any more."""
        needed = {call.request.adapter for call in self.calls()}
        for adapter, base in self.adapters.sweep(needed.__contains__).items():
            if self.child:
                self.child.tell(wire.UnloadAdapter(base, adapter))

    # --- a child's life ------------------------------------------------------------------------------------------

    async def serve(self, child: LlamaChild) -> None:
        """Give the child its work, for as long as it lives."""
        self.child = child
        self._crowd = Crowd(trio.current_time())
        if (last := self._last_good) and last in self._store.models and not self.waiting:
            self.wish(last, is_modest=True)  # it will be asked for most likely
        async with trio.open_nursery() as nursery:
            while True:
                self.changed = trio.Event()
                while len(self.running) < self.slots and (call := self.waiting.take(self._can_start)):
                    self._start(child, call)
                if self.loading is None and (next_load := self._next_load()):
                    self.loading = next_load
                    nursery.start_soon(self._load, child, next_load)
                if self.adapters.loading is None and (adapter := self._next_adapter()):
                    self.adapters.loading = adapter
                    nursery.start_soon(self._load_adapter, child, adapter)
                with trio.move_on_at(self._next_chance()):
                    await self.changed.wait()

    def take(self, message: GenerationMessage) -> None:
        """Hand on what the child says about a generation."""
        call = self.running[message.call]
        match message:
            case wire.Cancelled():
                self._release(call)
            case wire.Deferred():
                self._put_back(call)
            case _:
                if isinstance(message, wire.NewTokens) and call.decode_mark is None:
                    call.decode_mark = self._crowd.mark(trio.current_time())
                call.take(message)
                if isinstance(message, wire.Done):
                    self._learn(call, message)
                if isinstance(message, wire.Done | wire.Failed):
                    self._release(call)

    def bury(self, verdict: str, *, is_blamed: bool, was_struck: bool = False) -> None:
        """The child is dead: tell those it worked for, and remember what it worked on.

        Args:
            verdict: what it died of.
            is_blamed: False when the engine was stopped.
            was_struck: somebody else killed it, which no chat template can.
        """
        running = list(self.running.values())
        adapters = {call.request.adapter for call in running if call.request.adapter is not None}
        adapters |= {self.adapters.loading} if self.adapters.loading else set()
        # With an adapter in the game the base is not suspected: it would be set aside for what another did.
        models = set() if adapters else {call.model for call in running}
        models |= {self.loading.model} if self.loading else set()
        if is_blamed:
            self.adapters.blame(adapters, verdict, pause_s)
            for model in models:
                self.record(model).blame(model, verdict)
        causes = (self.loading.cause if self.loading else None, self._adapter_cause)
        running += [cause for cause in causes if isinstance(cause, Call) and self.waiting.remove(cause)]
        self.child = self.loading = self._adapter_cause = None
        self.running.clear()
        self.memory.clear()
        self._draining.clear()
        self._crowded.clear()
        self.adapters.child_is_gone()
        for call in running:
            if call.in_template and not was_struck:
                call.fail(BadTemplate(f"the chat template ended the process that rendered it: {verdict}"))
            else:
                call.fail(EngineDied(verdict))
        for call in list(self.waiting):
            call.waits()
            if error := self._why_set_aside(call):
                self.waiting.remove(call)
                call.fail(error)
        for wish in list(self._wishes):
            if reason := self.record(wish.model).set_aside:
                self._wishes.remove(wish)
                wish.end(ModelSetAside(reason))
        self.sweep_adapters()

    # --- calls ---------------------------------------------------------------------------------------------------

    def _can_start(self, call: Call) -> bool:
        return (
            call.model in self.memory
            and call.model not in self._draining
            and call.model not in self._crowded
            and (call.request.adapter is None or call.request.adapter in self.adapters.loaded)
            and self._not_before(call) <= trio.current_time()
        )

    def _start(self, child: LlamaChild, call: Call) -> None:
        self.running[call.number] = call
        self.memory.use(call.model)
        now = trio.current_time()
        self._crowd.set(len(self.running), now)
        call.mark, call.decode_mark = self._crowd.mark(now), None
        child.begin(call.as_message())

    def _put_back(self, call: Call) -> None:
        """The child's cache has no room for it until another call of the model ends."""
        if not any(other.model == call.model for other in self.running.values() if other is not call):
            raise Unasked(f"call {call.number} was deferred, and nothing else runs")
        self._crowded.add(call.model)
        del self.running[call.number]
        self._crowd.set(len(self.running), trio.current_time())
        call.waits()
        if not call.is_dropped:
            self.waiting.put_back(call.request.payer, call)
        self.changed.set()

    def _release(self, call: Call) -> None:
        del self.running[call.number]
        self._crowd.set(len(self.running), trio.current_time())
        self._crowded.discard(call.model)
        if call.request.adapter is not None:
            self.sweep_adapters()
        self.changed.set()

    def _learn(self, call: Call, done: wire.Done) -> None:
        """It served: it is good, and this fast."""
        self._last_good = call.model
        if call.request.adapter is not None:
            self.adapters.get(call.request.adapter).deaths = 0
        now = trio.current_time()
        decode_mark = call.decode_mark or self._crowd.mark(now)
        writes = call.request.task in ("chat", "completion") and not call.request.received
        self.record(call.model).learn(
            Measured(
                prompt_tokens=done.prefill_tokens,
                prompt_s=done.prefill_s,
                prompt_streams=round(self._crowd.mean(call.mark, decode_mark)),
                completion_tokens=done.completion_tokens if writes else 0,
                completion_s=done.decode_s,
                completion_streams=round(self._crowd.mean(decode_mark, self._crowd.mark(now))),
            )
        )

    # --- models --------------------------------------------------------------------------------------------------

    def _next_load(self) -> Loading | None:
        """Return the load that comes next, if one can begin, and say who takes no more calls for the sake of one."""
        self._draining.clear()
        for call in self.waiting:
            if call.model not in self.memory and self._not_before(call) <= trio.current_time():
                return self._begin_load(call.model, call)
        for wish in self._wishes:
            if self.record(wish.model).not_before > trio.current_time():
                continue
            if wish.model in self.memory:
                self._grant(wish.model)
                return self._next_load()
            if not wish.is_modest:
                return self._begin_load(wish.model, wish)
            if self._who_goes(wish.model) == []:
                return self._begin_load(wish.model, wish)
            self._wishes.remove(wish)
            wish.end(EngineBusy(f"no place in memory for model {wish.model.hex()[:8]} beside the others"))
            return self._next_load()
        for order in self.adapters.orders:  # a base whose place is free comes with its adapter
            base = self.adapters.get(order.adapter).base
            is_paused = self.record(base).not_before > trio.current_time()
            if base not in self.memory and not is_paused and self._who_goes(base) == []:
                return self._begin_load(base, None)
        return None

    def _begin_load(self, model: Digest, cause: Call | Wish | None) -> Loading | None:
        going = self._who_goes(model)
        if going is None:
            now = trio.current_time()
            self._draining = set(
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
        expected_s = self.forecast.load_s(self.record(model), self._store.models[model].size_bytes)
        return Loading(model, cause, trio.current_time(), expected_s)

    def _who_goes(self, model: Digest, can_go: CanGo | None = None) -> list[Digest] | None:
        """Return who has to go for a model: by default of those that nobody uses and nobody was promised."""
        now = trio.current_time()
        in_use = {call.model for call in self.running.values()}
        # What other programs have taken of the machine is not there either: rather load again than swap.
        free = psutil.virtual_memory().available + self.memory.size_bytes
        return self.memory.who_goes(
            self.footprint(model).size_bytes,
            min(self.memory.budget_bytes, free) - self.adapters.memory_needed(),
            can_go or (lambda digest, resident: digest not in in_use and resident.keep_until <= now),
        )

    async def _load(self, child: LlamaChild, loading: Loading) -> None:
        model = loading.model
        record = self.record(model)
        for call in self.waiting:
            if call.model == model:
                call.waits(Phase.LOADING)
        try:
            self.check_model(model)
            path = await self._store.verify(model)
            given = self.footprint(model)
            answer = await child.ask(
                wire.Load(
                    call=next(self.ids),
                    model=model,
                    path=str(path),
                    context_tokens=self.context_tokens,
                    slots=self.slots,
                    threads=self.threads,
                    memory_bytes_max=self._memory_needed() + given.size_bytes,
                    tokens_per_s=record.decode.tokens_per_s(1),
                    dimensions=self._store.models[model].dimensions,
                    cells=given.cells,
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
            self.memory.add(model, Resident(given, drain_at=now + took_s))
            self.forecast.learn_load(record, self._store.models[model].size_bytes, took_s)
            record.learn_first(answer.prompt_tokens_per_s, answer.tokens_per_s)
            self._last_good = self._last_good or model
            self._grant(model)
        self.loading = None
        for call in self.waiting:
            call.waits()
        self.changed.set()

    def _load_advances(self, loading: Loading, beat: wire.Beat) -> None:
        loading.share = min(1.0, beat.done / beat.total) if beat.total else 0.0
        for call in self.waiting:
            if call.model == loading.model:
                call.waits(Phase.LOADING, beat.done, beat.total)

    def _load_fails(self, model: Digest, error: EngineError) -> None:
        """Tell all who wait for it: they would each be told the same, one load after the other."""
        for call in list(self.waiting):
            if call.model == model:
                self.waiting.remove(call)
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
        for call in self.waiting:
            wanted = call.request.adapter
            if (
                wanted is not None
                and wanted not in self.adapters.loaded
                and call.model in self.memory
                and self._not_before(call) <= trio.current_time()
            ):
                self._adapter_cause = call
                return wanted
        return None

    async def _load_adapter(self, child: LlamaChild, digest: Digest) -> None:
        """Have the child check it, and hold it if the child holds its base."""
        adapter = self.adapters.get(digest)
        try:
            self.check_model(adapter.base)
            if digest not in self.adapters.loaded:
                base_path = await self._store.verify(adapter.base)
                await child.ask(
                    wire.LoadAdapter(
                        call=next(self.ids),
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
        for call in list(self.waiting) if error else ():
            if error and call.request.adapter == digest:
                self.waiting.remove(call)
                call.fail(error)
        self.sweep_adapters()  # it may have been unloaded meanwhile
        self.changed.set()

    # --- small things --------------------------------------------------------------------------------------------

    def _next_chance(self) -> float:
        """Return when something can be done that cannot be done now."""
        now = trio.current_time()
        times = [self._not_before(call) for call in self.waiting]
        times += [self.adapters.get(order.adapter).not_before for order in self.adapters.orders]
        times += [self.record(wish.model).not_before for wish in self._wishes]
        if any(call.model not in self.memory for call in self.waiting) or self._wishes:
            times += self.memory.next_to_go()
        return min((time for time in times if time > now), default=float("inf"))

    def _not_before(self, call: Call) -> float:
        adapter = self._adapter_of(call)
        return max(self.record(call.model).not_before, adapter.not_before if adapter else 0.0)

    def _adapter_of(self, call: Call) -> Adapter | None:
        return None if call.request.adapter is None else self.adapters.get(call.request.adapter)

    def _why_set_aside(self, call: Call) -> EngineError | None:
        if reason := self.record(call.model).set_aside:
            return ModelSetAside(reason)
        adapter = self._adapter_of(call)
        return AdapterSetAside(adapter.set_aside) if adapter and adapter.set_aside else None

    def _memory_needed(self) -> int:
        """Return the address space for what is in memory or on its way there, and for all adapters."""
        coming = self.footprint(self.loading.model).size_bytes if self.loading else 0
        return self.adapters.memory_needed() + self.memory.size_bytes + coming
