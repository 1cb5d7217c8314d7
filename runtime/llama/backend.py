"""`LlamaEngine`: the Engine port in the daemon, in front of one sandboxed llama.cpp child.

Requests wait here, in a bounded queue, and go to the child when a slot is free and their model is loaded. The child
may die at any time: a hostile model, memory, a kill. Then the requests that it was running end with `EngineDied`, a
new child starts at once and loads the last model that served well. A model under which children die is tried again
after longer and longer pauses, and after `DEATHS_MAX` set aside. So is an adapter (`adapters.py`), which is suspected
before its base is. A new child gets an adapter again with the first request that needs it.

Nothing here imports llama_cpp, numpy or jinja2.
"""

import itertools
import os
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import trio

from protocol.limits import TOKENS_PER_REQUEST_MAX
from runtime.engine import (
    AdapterRefused,
    AdapterSetAside,
    BadTemplate,
    ChatMessage,
    Digest,
    EngineBusy,
    EngineDied,
    EngineError,
    EngineStatus,
    Finished,
    Frame,
    Generation,
    ModelCard,
    ModelSetAside,
    Phase,
    UnknownAdapter,
    UnknownModel,
)
from runtime.llama import wire
from runtime.llama.adapters import Adapter, Adapters, Order
from runtime.llama.call import Call
from runtime.llama.process import GenerationMessage, LlamaChild, memory_needed
from runtime.llama.request import check
from runtime.model_store import ModelStore

if TYPE_CHECKING:  # trio-typing's stubs, which libp2p brings, hide trio's own types
    from trio_typing import TaskStatus

QUEUE_MAX = 8  # more would wait longer than a buyer does: another seller is the better answer
DEATHS_MAX = 5  # in a row, without a request served in between
PAUSE_S_FIRST = 0.5  # after the second death in a row; twice as long after each further one
PAUSE_S_MAX = 30.0
MEMORY_SHARE = 0.8  # of the machine, at most, for the child
MEASURED_TOKENS_MIN = 8  # fewer say nothing about speed
NEW_SPEED_WEIGHT = 0.3


@dataclass
class _Record:
    """What this engine knows of a model, across children."""

    prompt_tokens_per_s: float = 0.0
    tokens_per_s: float = 0.0
    deaths: int = 0  # in a row
    not_before: float = 0.0
    set_aside: str = ""


class LlamaEngine:
    """Runs generations of the store's models in one child. `run` it; requests wait until it does.

    Args:
        store: where the models are.
        adapters_directory: below which adapters' files are; None: this engine takes none.
        slots: requests at a time. Greedy failover is exact with one.
        queue_max: requests that may wait.
        context_tokens: of each request, at most; the model's own bound holds too.
        threads: for compute; by default the cores but one, since a step takes twenty times as long when another
            process takes a core from under it.
        models_loaded_max: models in memory at a time; the one used least recently goes first.
        memory_bytes_max: for the child; by default a share of the machine.
    """

    def __init__(
        self,
        store: ModelStore,
        *,
        adapters_directory: Path | None = None,
        slots: int = 1,
        queue_max: int = QUEUE_MAX,
        context_tokens: int = 4_096,
        threads: int | None = None,
        models_loaded_max: int = 1,
        memory_bytes_max: int | None = None,
    ) -> None:
        self._store = store
        self._adapters_directory = adapters_directory.absolute() if adapters_directory else None
        if self._adapters_directory:  # a child can be let into what is there when it starts
            self._adapters_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._slots = slots
        self._queue_max = queue_max
        self._context_tokens = context_tokens
        self._threads = threads or max(1, (os.cpu_count() or 2) - 1)
        self._models_loaded_max = models_loaded_max
        self._memory_bytes_max = memory_bytes_max or int(psutil.virtual_memory().total * MEMORY_SHARE)
        self._ids = itertools.count(1)
        self._waiting: deque[Call] = deque()
        self._running: dict[int, Call] = {}
        self._records: dict[Digest, _Record] = {}
        self._loaded: dict[Digest, None] = {}  # least recently used first
        self._loading: Digest | None = None
        self._adapters = Adapters()
        self._last_good: Digest | None = None
        self._child: LlamaChild | None = None
        self._changed = trio.Event()
        self._is_running = False
        self.sandbox = "S1"  # until a child has said more
        self.gpu = ""

    # --- the port ------------------------------------------------------------------------------------------------

    @property
    def models(self) -> Mapping[Digest, ModelCard]:
        """The store's models, but for those set aside."""
        return {
            digest: replace(card, context_tokens=min(card.trained_context_tokens, self._context_tokens))
            for digest, card in self._store.models.items()
            if not self._record(digest).set_aside
        }

    @property
    def adapters(self) -> Mapping[Digest, Digest]:
        """Those that were loaded, but for those set aside."""
        return {adapter: base for adapter, base in self._adapters.ready().items() if base in self.models}

    async def load_adapter(self, base: Digest, adapter: Digest, path: Path) -> None:
        """Check an adapter in the child, and have it ready there. See the port.

        Should the child die under it, it is tried again in the next one, until it is set aside.
        """
        self._check_model(base)
        known = self._adapters.find(adapter)
        if known is None:
            known = self._examine_path(base, adapter, path)
            self._adapters.add(adapter, known)
        if known.set_aside:
            raise AdapterSetAside(known.set_aside)
        if known.base != base:
            raise AdapterRefused(f"adapter {adapter.hex()[:8]} is loaded for another model")
        known.is_leaving = False
        if known.is_ready:
            return
        if not self._is_running:
            raise EngineDied("the engine is not running")
        order = Order(adapter)
        self._adapters.orders.append(order)
        self._changed.set()
        try:
            await order.done.wait()
        finally:
            if order in self._adapters.orders:  # cancelled
                self._adapters.end_order(order)
            self._sweep_adapters()
        if order.error:
            raise order.error
        if known.is_leaving:
            raise UnknownAdapter(f"adapter {adapter.hex()[:8]} was unloaded while it was being loaded")

    def unload_adapter(self, adapter: Digest) -> None:
        """Take no more requests for it. See the port."""
        known = self._adapters.find(adapter)
        if known:
            known.is_leaving = True
            self._sweep_adapters()

    def status(self, model: Digest) -> EngineStatus:
        """Return what a bid for this model may promise now."""
        self._check_model(model)
        record = self._record(model)
        return EngineStatus(
            slots=self._slots,
            slots_free=self._slots - len(self._running),
            queued=len(self._waiting),
            prompt_tokens_per_s=record.prompt_tokens_per_s,
            tokens_per_s=record.tokens_per_s,
            sandbox=self.sandbox,
        )

    async def count_tokens(self, model: Digest, messages: tuple[ChatMessage, ...]) -> int:
        """Return the number of prompt tokens of the rendered chat; the model is loaded for it."""
        self._check_model(model)
        request = Generation(model=model, messages=messages, tokens_max=0)
        check(request)
        if self._child is None or model not in self._loaded:
            # A generation of no tokens loads the model, waits its turn, and counts.
            async with aclosing(self.generate(request)) as generation:
                async for frame in generation:
                    if isinstance(frame, Finished):
                        return frame.prompt_tokens
        assert self._child is not None
        answer = await self._child.ask(wire.CountTokens(next(self._ids), model, _turns(messages)))
        if not isinstance(answer, wire.Counted):
            raise EngineError("the engine's child answered something else than a count")
        return answer.tokens

    async def generate(self, request: Generation) -> AsyncGenerator[Frame, None]:
        """Yield the frames of one generation. See the port."""
        self._check_model(request.model)
        self._adapters.check(request)
        check(request)
        if len(self._running) >= self._slots and len(self._waiting) >= self._queue_max:
            raise EngineBusy(
                f"{len(self._waiting)} requests wait already, expected fewer than {self._queue_max}"
            )
        if not self._is_running:
            raise EngineDied("the engine is not running")
        call = Call(next(self._ids), request)
        self._waiting.append(call)
        self._changed.set()
        try:
            frame: Frame | None = None
            while not isinstance(frame, Finished):
                frame = await call.next_frame()
                yield frame
        finally:
            self._drop(call)

    def set_threads(self, threads: int) -> None:
        """Compute with this many threads from the next step on."""
        self._threads = max(1, threads)
        if self._child:
            self._child.tell(wire.SetThreads(self._threads))

    @property
    def child_pid(self) -> int | None:
        """The child's process id, while there is one."""
        return self._child.pid if self._child else None

    # --- the life of the child -----------------------------------------------------------------------------------

    async def run(self, *, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a child running until cancelled. Ready when the first one is, or has failed: the daemon goes on."""
        starts_failed = 0
        is_announced = False

        def announce() -> None:
            nonlocal is_announced
            if not is_announced:
                is_announced = True
                task_status.started()

        self._is_running = True
        try:
            while True:
                was_ready, verdict = await self._live_once(announce)
                announce()
                self._child = None
                self._bury(verdict)
                starts_failed = 0 if was_ready else starts_failed + 1
                if starts_failed:
                    self._fail_waiting(EngineDied(verdict))
                    self._adapters.fail_orders(EngineDied(verdict))
                    await trio.sleep(_pause_s(starts_failed))
        finally:
            self._is_running = False
            self._child = None
            self._bury("the engine was stopped")
            self._fail_waiting(EngineDied("the engine was stopped"))
            self._adapters.fail_orders(EngineDied("the engine was stopped"))

    async def _live_once(self, announce: Callable[[], None]) -> tuple[bool, str]:
        """Run one child to its end; return whether it could ever be asked, and what it died of."""
        readable = (self._store.directory, *filter(None, (self._adapters_directory,)))
        try:
            child = LlamaChild(readable, self._memory_bytes_max, self._take)
        except OSError as error:  # no memory, no descriptors: this may pass
            return False, f"the engine's child cannot be started: {error}"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve, child, announce)
            verdict = await child.run()
            nursery.cancel_scope.cancel()
        return child.ready.is_set(), verdict

    async def _serve(self, child: LlamaChild, announce: Callable[[], None]) -> None:
        """Give the child its work, for as long as it lives."""
        await child.ready.wait()
        self._child, self.sandbox, self.gpu = child, child.sandbox, child.gpu
        announce()
        try:
            await self._load_last_good(child)
            while True:
                self._changed = trio.Event()
                while work := self._adapters.next_order() or self._next_call():
                    if isinstance(work, Order):
                        await self._carry_out(child, work)
                    else:
                        await self._start(child, work)
                with trio.move_on_at(self._next_chance()):
                    await self._changed.wait()
        except EngineDied:
            return  # `run` knows already, and says why

    async def _start(self, child: LlamaChild, call: Call) -> None:
        self._waiting.remove(call)
        self._running[call.number] = call
        call.phase = Phase.LOADING
        try:
            await self._load(child, call.model)
            if call.request.adapter is not None:
                await self._load_adapter(child, call.request.adapter)
        except EngineDied:
            raise  # the call stays among the running ones, to be blamed and told by `_bury`
        except EngineError as error:
            call.fail(error)
        if call.is_dropped or call.has_failed:
            self._release(call)
            return
        call.is_sent = True
        request = call.request
        child.begin(
            wire.Generate(
                call=call.number,
                model=call.model,
                turns=_turns(request.messages),
                tokens_max=min(request.tokens_max, TOKENS_PER_REQUEST_MAX),
                sampling=wire.SamplingParameters(*astuple(request.sampling)),
                stop=request.stop,
                received=request.received,
                adapter=request.adapter,
                task=request.task,
                inputs=request.inputs,
                claimed=request.claimed,
            ),
        )

    async def _carry_out(self, child: LlamaChild, order: Order) -> None:
        """Have an adapter checked, and loaded if its base is in memory or has a place there."""
        adapter = self._adapters.get(order.adapter)
        try:
            self._check_model(adapter.base)
            is_paused = self._record(adapter.base).not_before > trio.current_time()
            if len(self._loaded) < self._models_loaded_max and not is_paused:
                await self._load(child, adapter.base)
            await self._load_adapter(child, order.adapter)
        except EngineDied:
            raise  # the order stays, for the next child
        except EngineError as error:
            if order in self._adapters.orders:
                self._adapters.end_order(order, error)
        else:
            adapter.is_ready = True
            if order in self._adapters.orders:
                self._adapters.end_order(order)
        self._sweep_adapters()  # it may have been unloaded meanwhile

    async def _load_last_good(self, child: LlamaChild) -> None:
        """Have the model ready that will be asked for most likely, unless children just died under it."""
        model = self._last_good
        if model is None or model not in self._store.models:
            return
        if self._record(model).not_before <= trio.current_time():
            try:
                await self._load(child, model)
            except EngineDied:
                raise
            except EngineError:
                return  # the file is gone or was changed: whoever asks for it is told

    async def _load(self, child: LlamaChild, model: Digest) -> None:
        if model in self._loaded:
            self._loaded[model] = self._loaded.pop(model)
            return
        path = await self._store.verify(model)
        while len(self._loaded) >= self._models_loaded_max:
            oldest = next(loaded for loaded in self._loaded if not self._is_in_use(loaded))
            del self._loaded[oldest]
            self._adapters.forget_base(oldest)
            child.tell(wire.Unload(oldest))
        record = self._record(model)
        self._loading = model
        answer = await child.ask(
            wire.Load(
                call=next(self._ids),
                model=model,
                path=str(path),
                context_tokens=self._context_tokens,
                slots=self._slots,
                threads=self._threads,
                memory_bytes_max=self._memory_needed(*self._loaded, model),
                tokens_per_s=record.tokens_per_s,
                dimensions=self._store.models[model].dimensions,
            ),
        )
        self._loading = None
        assert isinstance(answer, wire.Loaded)
        self._loaded[model] = None
        self._last_good = self._last_good or model
        record.prompt_tokens_per_s = record.prompt_tokens_per_s or answer.prompt_tokens_per_s
        record.tokens_per_s = record.tokens_per_s or answer.tokens_per_s

    async def _load_adapter(self, child: LlamaChild, digest: Digest) -> None:
        """Have the child check it, and hold it if the child holds its base."""
        if digest in self._adapters.loaded:
            return
        adapter = self._adapters.get(digest)
        base_path = await self._store.verify(adapter.base)
        self._adapters.loading = digest
        try:
            await child.ask(
                wire.LoadAdapter(
                    call=next(self._ids),
                    model=adapter.base,
                    adapter=digest,
                    path=str(adapter.path),
                    base_path=str(base_path),
                    memory_bytes_max=self._memory_needed(*self._loaded),
                ),
            )
        except EngineDied:
            raise  # `loading` stays, to be blamed by `_bury`
        except EngineError:
            self._adapters.loading = None
            raise
        self._adapters.loading = None
        if adapter.base in self._loaded:
            self._adapters.loaded.add(digest)

    def _take(self, message: GenerationMessage) -> None:
        """Hand on what the child says about a generation."""
        call = self._running[message.call]
        if isinstance(message, wire.Cancelled):
            self._release(call)
            return
        call.take(message)
        if isinstance(message, wire.Done):
            self._learn(call.model, call.request.adapter, message, len(call.request.received))
        if isinstance(message, wire.Done | wire.Failed):
            self._release(call)

    def _learn(self, model: Digest, adapter: Digest | None, done: wire.Done, received: int) -> None:
        """The model served: it is good, and this fast."""
        record = self._record(model)
        record.deaths = 0
        self._last_good = model
        if adapter is not None:
            self._adapters.get(adapter).deaths = 0
        if done.prefill_tokens >= MEASURED_TOKENS_MIN and done.prefill_s > 0:
            record.prompt_tokens_per_s = _blend(
                record.prompt_tokens_per_s, done.prefill_tokens / done.prefill_s
            )
        if done.completion_tokens >= MEASURED_TOKENS_MIN and not received and done.decode_s > 0:
            record.tokens_per_s = _blend(record.tokens_per_s, done.completion_tokens / done.decode_s)

    def _bury(self, verdict: str) -> None:
        """The child is dead: tell those it worked for, and remember what it worked on."""
        sent = [call for call in self._running.values() if call.is_sent]
        adapters = {call.request.adapter for call in sent if call.request.adapter is not None}
        adapters |= {self._adapters.loading} if self._adapters.loading else set()
        # With an adapter in the game the base is not suspected: it would be set aside for what another did.
        models = set() if adapters else {call.model for call in sent}
        models |= {self._loading} if self._loading else set()
        if self._is_running:
            self._adapters.blame(adapters, verdict, _pause_s)
        for model in models if self._is_running else ():
            record = self._record(model)
            record.deaths += 1
            record.not_before = trio.current_time() + _pause_s(record.deaths - 1)
            if record.deaths >= DEATHS_MAX:
                record.set_aside = (
                    f"model {model.hex()[:8]} was set aside after {record.deaths} deaths: {verdict}"
                )
        for call in self._running.values():
            if call.in_template:
                call.fail(BadTemplate(f"the chat template ended the process that rendered it: {verdict}"))
            else:
                call.fail(EngineDied(verdict))
        self._running.clear()
        self._loaded.clear()
        self._loading = None
        self._adapters.child_is_gone()
        for call in list(self._waiting):
            adapter = self._adapter_of(call)
            error: EngineError | None = None
            if reason := self._record(call.model).set_aside:
                error = ModelSetAside(reason)
            elif adapter and adapter.set_aside:
                error = AdapterSetAside(adapter.set_aside)
            if error:
                call.fail(error)
                self._waiting.remove(call)
        self._sweep_adapters()

    # --- small things --------------------------------------------------------------------------------------------

    def _check_model(self, model: Digest) -> None:
        if model not in self._store.models:
            raise UnknownModel(f"no model {model.hex()[:8]} on this engine")
        if reason := self._record(model).set_aside:
            raise ModelSetAside(reason)

    def _record(self, model: Digest) -> _Record:
        return self._records.setdefault(model, _Record())

    def _next_call(self) -> Call | None:
        """Return the first waiting call that can start now; nobody overtakes one that waits for a model's place."""
        if len(self._running) >= self._slots:
            return None
        for call in self._waiting:
            if self._not_before(call) <= trio.current_time():
                has_place = len(self._loaded) < self._models_loaded_max
                can_load = has_place or not all(self._is_in_use(model) for model in self._loaded)
                return call if call.model in self._loaded or can_load else None
        return None

    def _next_chance(self) -> float:
        """Return when a call that waits for its model's pause can start."""
        now = trio.current_time()
        pauses = [self._not_before(call) for call in self._waiting]
        pauses += [self._adapters.get(order.adapter).not_before for order in self._adapters.orders]
        return min((pause for pause in pauses if pause > now), default=float("inf"))

    def _not_before(self, call: Call) -> float:
        adapter = self._adapter_of(call)
        return max(self._record(call.model).not_before, adapter.not_before if adapter else 0.0)

    def _adapter_of(self, call: Call) -> Adapter | None:
        return None if call.request.adapter is None else self._adapters.get(call.request.adapter)

    def _is_in_use(self, model: Digest) -> bool:
        return any(call.model == model for call in self._running.values() if call.is_sent)

    def _memory_needed(self, *models: Digest) -> int:
        """Return the address space for these models, and for all adapters."""
        total = self._adapters.memory_needed()
        for model in models:
            card = self._store.models[model]
            kv_bytes = self._store.kv_bytes_per_token(model) * self._context_tokens * self._slots
            total += memory_needed(card.size_bytes, kv_bytes)
        return total

    def _examine_path(self, base: Digest, adapter: Digest, path: Path) -> Adapter:
        path = path.absolute()
        if not self._adapters_directory or not path.is_relative_to(self._adapters_directory):
            raise AdapterRefused(f"adapter {adapter.hex()[:8]} is not where this engine's adapters are")
        try:
            return Adapter(base, path, path.stat().st_size)
        except OSError as error:
            raise EngineError(f"adapter {adapter.hex()[:8]} cannot be read: {error.strerror}") from None

    def _sweep_adapters(self) -> None:
        """Give back the adapters that were unloaded and that no accepted call needs any more."""
        needed = {call.request.adapter for call in (*self._running.values(), *self._waiting)}
        for adapter, base in self._adapters.sweep(needed.__contains__).items():
            if self._child:
                self._child.tell(wire.UnloadAdapter(base, adapter))

    def _release(self, call: Call) -> None:
        del self._running[call.number]
        if call.request.adapter is not None:
            self._sweep_adapters()
        self._changed.set()

    def _drop(self, call: Call) -> None:
        """Nobody reads this call any more: out of the queue, or out of the child."""
        call.is_dropped = True
        if call in self._waiting:
            self._waiting.remove(call)
            if call.request.adapter is not None:
                self._sweep_adapters()
        elif call.number in self._running and call.is_sent and self._child:
            self._child.tell(wire.Cancel(call.number))

    def _fail_waiting(self, error: EngineError) -> None:
        while self._waiting:
            self._waiting.popleft().fail(error)
        self._sweep_adapters()


def _turns(messages: tuple[ChatMessage, ...]) -> wire.Turns:
    return tuple((message.role, message.content) for message in messages)


def _pause_s(deaths: int) -> float:
    return min(PAUSE_S_MAX, PAUSE_S_FIRST * 2 ** (deaths - 1)) if deaths > 0 else 0.0


def _blend(old: float, new: float) -> float:
    return new if old == 0 else (1 - NEW_SPEED_WEIGHT) * old + NEW_SPEED_WEIGHT * new
