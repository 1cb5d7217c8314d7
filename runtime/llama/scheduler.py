"""What the child does next: which call is sent to it, and what it has in memory for that.

Calls wait in a queue and go to the child when a slot is free and their model is loaded. When the child dies, those it
was running end with `EngineDied`, and what it worked on is suspected: an adapter before its base. The others are kept
for the next child, which gets an adapter again with the first call that needs it.
"""

import itertools
from collections import deque

import trio

from runtime.engine import (
    AdapterSetAside,
    BadTemplate,
    Digest,
    EngineDied,
    EngineError,
    ModelSetAside,
    Phase,
    UnknownModel,
)
from runtime.llama import wire
from runtime.llama.adapters import Adapter, Adapters, Order
from runtime.llama.call import Call
from runtime.llama.process import GenerationMessage, LlamaChild, memory_needed
from runtime.llama.records import ModelRecord, pause_s
from runtime.model_store import ModelStore


class Scheduler:
    """The calls of one engine, and the present child's work. `serve` each child; `bury` it when it is dead.

    Args:
        store: where the models are.
        slots: requests at a time.
        context_tokens: of each request, at most.
        threads: for compute.
        models_loaded_max: models in memory at a time; the one used least recently goes first.

    Attributes:
        child: that is served, if there is one.
        ids: for calls and questions.
        changed: is set when there may be something to do.
    """

    def __init__(
        self,
        store: ModelStore,
        *,
        slots: int,
        context_tokens: int,
        threads: int,
        models_loaded_max: int,
    ) -> None:
        self._store = store
        self.slots = slots
        self.context_tokens = context_tokens
        self.threads = threads
        self._models_loaded_max = models_loaded_max
        self.ids = itertools.count(1)
        self.waiting: deque[Call] = deque()
        self.running: dict[int, Call] = {}
        self.adapters = Adapters()
        self.loaded: dict[Digest, None] = {}  # least recently used first
        self.changed = trio.Event()
        self.child: LlamaChild | None = None
        self._records: dict[Digest, ModelRecord] = {}
        self._loading: Digest | None = None
        self._last_good: Digest | None = None

    def submit(self, call: Call) -> None:
        """Let a call wait for its turn."""
        self.waiting.append(call)
        self.changed.set()

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

    async def serve(self, child: LlamaChild) -> None:
        """Give the child its work, for as long as it lives."""
        self.child = child
        try:
            await self._load_last_good(child)
            while True:
                self.changed = trio.Event()
                while work := self.adapters.next_order() or self._next_call():
                    if isinstance(work, Order):
                        await self._carry_out(child, work)
                    else:
                        await self._start(child, work)
                with trio.move_on_at(self._next_chance()):
                    await self.changed.wait()
        except EngineDied:
            return  # the engine knows already, and says why

    async def _start(self, child: LlamaChild, call: Call) -> None:
        self.waiting.remove(call)
        self.running[call.number] = call
        call.phase = Phase.LOADING
        try:
            await self._load(child, call.model)
            if call.request.adapter is not None:
                await self._load_adapter(child, call.request.adapter)
        except EngineDied:
            raise  # the call stays among the running ones, to be blamed and told by `bury`
        except EngineError as error:
            call.fail(error)
        if call.is_dropped or call.has_failed:
            self._release(call)
            return
        call.is_sent = True
        child.begin(call.as_message())

    async def _carry_out(self, child: LlamaChild, order: Order) -> None:
        """Have an adapter checked, and loaded if its base is in memory or has a place there."""
        adapter = self.adapters.get(order.adapter)
        try:
            self.check_model(adapter.base)
            is_paused = self.record(adapter.base).not_before > trio.current_time()
            if len(self.loaded) < self._models_loaded_max and not is_paused:
                await self._load(child, adapter.base)
            await self._load_adapter(child, order.adapter)
        except EngineDied:
            raise  # the order stays, for the next child
        except EngineError as error:
            if order in self.adapters.orders:
                self.adapters.end_order(order, error)
        else:
            adapter.is_ready = True
            if order in self.adapters.orders:
                self.adapters.end_order(order)
        self.sweep_adapters()  # it may have been unloaded meanwhile

    async def _load_last_good(self, child: LlamaChild) -> None:
        """Have the model ready that will be asked for most likely, unless children just died under it."""
        model = self._last_good
        if model is None or model not in self._store.models:
            return
        if self.record(model).not_before <= trio.current_time():
            try:
                await self._load(child, model)
            except EngineDied:
                raise
            except EngineError:
                return  # the file is gone or was changed: whoever asks for it is told

    async def _load(self, child: LlamaChild, model: Digest) -> None:
        if model in self.loaded:
            self.loaded[model] = self.loaded.pop(model)
            return
        path = await self._store.verify(model)
        while len(self.loaded) >= self._models_loaded_max:
            oldest = next(loaded for loaded in self.loaded if not self._is_in_use(loaded))
            del self.loaded[oldest]
            self.adapters.forget_base(oldest)
            child.tell(wire.Unload(oldest))
        record = self.record(model)
        self._loading = model
        answer = await child.ask(
            wire.Load(
                call=next(self.ids),
                model=model,
                path=str(path),
                context_tokens=self.context_tokens,
                slots=self.slots,
                threads=self.threads,
                memory_bytes_max=self._memory_needed(*self.loaded, model),
                tokens_per_s=record.tokens_per_s,
                dimensions=self._store.models[model].dimensions,
            ),
        )
        self._loading = None
        assert isinstance(answer, wire.Loaded)
        self.loaded[model] = None
        self._last_good = self._last_good or model
        record.prompt_tokens_per_s = record.prompt_tokens_per_s or answer.prompt_tokens_per_s
        record.tokens_per_s = record.tokens_per_s or answer.tokens_per_s

    async def _load_adapter(self, child: LlamaChild, digest: Digest) -> None:
        """Have the child check it, and hold it if the child holds its base."""
        if digest in self.adapters.loaded:
            return
        adapter = self.adapters.get(digest)
        base_path = await self._store.verify(adapter.base)
        self.adapters.loading = digest
        try:
            await child.ask(
                wire.LoadAdapter(
                    call=next(self.ids),
                    model=adapter.base,
                    adapter=digest,
                    path=str(adapter.path),
                    base_path=str(base_path),
                    memory_bytes_max=self._memory_needed(*self.loaded),
                ),
            )
        except EngineDied:
            raise  # `loading` stays, to be blamed by `bury`
        except EngineError:
            self.adapters.loading = None
            raise
        self.adapters.loading = None
        if adapter.base in self.loaded:
            self.adapters.loaded.add(digest)

    def take(self, message: GenerationMessage) -> None:
        """Hand on what the child says about a generation."""
        call = self.running[message.call]
        if isinstance(message, wire.Cancelled):
            self._release(call)
            return
        call.take(message)
        if isinstance(message, wire.Done):
            self.record(call.model).learn(message, len(call.request.received))
            self._last_good = call.model
            if call.request.adapter is not None:
                self.adapters.get(call.request.adapter).deaths = 0
        if isinstance(message, wire.Done | wire.Failed):
            self._release(call)

    def bury(self, verdict: str, *, is_blamed: bool) -> None:
        """The child is dead: tell those it worked for, and remember what it worked on."""
        sent = [call for call in self.running.values() if call.is_sent]
        adapters = {call.request.adapter for call in sent if call.request.adapter is not None}
        adapters |= {self.adapters.loading} if self.adapters.loading else set()
        # With an adapter in the game the base is not suspected: it would be set aside for what another did.
        models = set() if adapters else {call.model for call in sent}
        models |= {self._loading} if self._loading else set()
        if is_blamed:
            self.adapters.blame(adapters, verdict, pause_s)
            for model in models:
                self.record(model).blame(model, verdict)
        self.child = None
        for call in self.running.values():
            if call.in_template:
                call.fail(BadTemplate(f"the chat template ended the process that rendered it: {verdict}"))
            else:
                call.fail(EngineDied(verdict))
        self.running.clear()
        self.loaded.clear()
        self._loading = None
        self.adapters.child_is_gone()
        for call in list(self.waiting):
            adapter = self._adapter_of(call)
            error: EngineError | None = None
            if reason := self.record(call.model).set_aside:
                error = ModelSetAside(reason)
            elif adapter and adapter.set_aside:
                error = AdapterSetAside(adapter.set_aside)
            if error:
                call.fail(error)
                self.waiting.remove(call)
        self.sweep_adapters()

    # --- small things --------------------------------------------------------------------------------------------

    def _next_call(self) -> Call | None:
        """Return the first waiting call that can start now; nobody overtakes one that waits for a model's place."""
        if len(self.running) >= self.slots:
            return None
        for call in self.waiting:
            if self._not_before(call) <= trio.current_time():
                has_place = len(self.loaded) < self._models_loaded_max
                can_load = has_place or not all(self._is_in_use(model) for model in self.loaded)
                return call if call.model in self.loaded or can_load else None
        return None

    def _next_chance(self) -> float:
        """Return when a call that waits for its model's pause can start."""
        now = trio.current_time()
        pauses = [self._not_before(call) for call in self.waiting]
        pauses += [self.adapters.get(order.adapter).not_before for order in self.adapters.orders]
        return min((pause for pause in pauses if pause > now), default=float("inf"))

    def _not_before(self, call: Call) -> float:
        adapter = self._adapter_of(call)
        return max(self.record(call.model).not_before, adapter.not_before if adapter else 0.0)

    def _adapter_of(self, call: Call) -> Adapter | None:
        return None if call.request.adapter is None else self.adapters.get(call.request.adapter)

    def _is_in_use(self, model: Digest) -> bool:
        return any(call.model == model for call in self.running.values() if call.is_sent)

    def _memory_needed(self, *models: Digest) -> int:
        """Return the address space for these models, and for all adapters."""
        total = self.adapters.memory_needed()
        for model in models:
            card = self._store.models[model]
            kv_bytes = self._store.kv_bytes_per_token(model) * self.context_tokens * self.slots
            total += memory_needed(card.size_bytes, kv_bytes)
        return total

    def sweep_adapters(self) -> None:
        """Give back the adapters that were unloaded and that no accepted call needs any more."""
        needed = {call.request.adapter for call in (*self.running.values(), *self.waiting)}
        for adapter, base in self.adapters.sweep(needed.__contains__).items():
            if self.child:
                self.child.tell(wire.UnloadAdapter(base, adapter))

    def _release(self, call: Call) -> None:
        del self.running[call.number]
        if call.request.adapter is not None:
            self.sweep_adapters()
        self.changed.set()

    def drop(self, call: Call) -> None:
        """Nobody reads this call any more: out of the queue, or out of the child."""
        call.is_dropped = True
        if call in self.waiting:
            self.waiting.remove(call)
            if call.request.adapter is not None:
                self.sweep_adapters()
        elif call.number in self.running and call.is_sent and self.child:
            self.child.tell(wire.Cancel(call.number))

    def fail_waiting(self, error: EngineError) -> None:
        """No child can be had."""
        while self.waiting:
            self.waiting.popleft().fail(error)
        self.sweep_adapters()
