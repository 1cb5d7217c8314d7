"""`LlamaEngine`: the Engine port in the daemon, in front of one sandboxed llama.cpp child.

Here are the port, and the lives of the children: one may die at any time of a hostile model, memory, a kill. Then a
new one starts at once. What each does, and what becomes of the requests, is the scheduler's (`scheduler.py`); what it
has in memory, the loader's (`loader.py`).

Nothing here imports llama_cpp, numpy or jinja2.
"""

import os
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import trio

from runtime.engine import (
    AdapterRefused,
    AdapterSetAside,
    ChatMessage,
    Digest,
    EngineDied,
    EngineError,
    EngineStatus,
    Finished,
    Frame,
    Generation,
    ModelCard,
    ModelLoading,
    UnknownAdapter,
)
from runtime.llama import wire
from runtime.llama.adapters import Adapter, Order
from runtime.llama.call import Call, turns
from runtime.llama.process import LlamaChild
from runtime.llama.records import pause_s
from runtime.llama.request import check
from runtime.llama.scheduler import Scheduler
from runtime.model_store import ModelStore

if TYPE_CHECKING:  # trio-typing's stubs, which libp2p brings, hide trio's own types
    from trio_typing import TaskStatus

QUEUE_MAX = 8  # more would wait longer than a buyer does: another seller is the better answer
MEMORY_SHARE = 0.8  # of the machine, at most, for the child
LOADING_S_MAX = 5.0  # longer than this no user is kept waiting for a model without a word


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
        memory_bytes_max: for the child; by default a share of the machine. Models stay in memory until another one
            needs the room; the one used least recently goes first.
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
        memory_bytes_max: int | None = None,
    ) -> None:
        self._store = store
        self._adapters_directory = adapters_directory.absolute() if adapters_directory else None
        if self._adapters_directory:  # a child can be let into what is there when it starts
            self._adapters_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._slots = slots
        self._context_tokens = context_tokens
        self._memory_bytes_max = memory_bytes_max or int(psutil.virtual_memory().total * MEMORY_SHARE)
        self._scheduler = Scheduler(
            store,
            slots=slots,
            queue_max=queue_max,
            context_tokens=context_tokens,
            threads=threads or max(1, (os.cpu_count() or 2) - 1),
            memory_bytes_max=self._memory_bytes_max,
        )
        self._loader = self._scheduler.loader
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
            if not self._scheduler.records.of(digest).set_aside
        }

    @property
    def adapters(self) -> Mapping[Digest, Digest]:
        """Those that were loaded, but for those set aside."""
        return {
            adapter: base for adapter, base in self._loader.adapters.ready().items() if base in self.models
        }

    async def load_adapter(self, base: Digest, adapter: Digest, path: Path) -> None:
        """Check an adapter in the child, and have it ready there. See the port.

        Should the child die under it, it is tried again in the next one, until it is set aside.
        """
        self._scheduler.records.check(base, self._store)
        known = self._loader.adapters.find(adapter)
        if known is None:
            known = self._examine_path(base, adapter, path)
            self._loader.adapters.add(adapter, known)
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
        self._loader.adapters.orders.append(order)
        self._loader.changed.set()
        try:
            await order.done.wait()
        finally:
            if order in self._loader.adapters.orders:  # cancelled
                self._loader.adapters.end_order(order)
            self._loader.sweep_adapters()
        if order.error:
            raise order.error
        if known.is_leaving:
            raise UnknownAdapter(f"adapter {adapter.hex()[:8]} was unloaded while it was being loaded")

    def unload_adapter(self, adapter: Digest) -> None:
        """Take no more requests for it. See the port."""
        known = self._loader.adapters.find(adapter)
        if known:
            known.is_leaving = True
            self._loader.sweep_adapters()

    def status(self, model: Digest) -> EngineStatus:
        """Return what a bid for this model may promise now."""
        scheduler = self._scheduler
        scheduler.records.check(model, self._store)
        record = scheduler.records.of(model)
        # Whoever waits would run if they could: they stand for slots that are as good as taken.
        accepted = len(scheduler.running) + len(scheduler.waiting)
        queued = max(0, accepted - self._slots)
        streams = min(self._slots, len(scheduler.running) + 1)
        return EngineStatus(
            slots=self._slots,
            slots_free=max(0, self._slots - accepted),
            queued=queued,
            prompt_tokens_per_s=record.prompt.tokens_per_s(streams),
            tokens_per_s=record.decode.tokens_per_s(streams),
            sandbox=self.sandbox,
            wait_s=scheduler.wait_s() if accepted >= self._slots else 0.0,
            load_s=self._loader.load_s(model),
            queue_free=max(0, scheduler.queue_max - queued),
        )

    async def count_tokens(self, model: Digest, messages: tuple[ChatMessage, ...]) -> int:
        """Return the number of prompt tokens of the rendered chat; the model is loaded for it."""
        self._scheduler.records.check(model, self._store)
        request = Generation(model=model, messages=messages, tokens_max=0)
        check(request, self._store.models[request.model])
        if self._loader.child is None or model not in self._loader.memory:
            # A generation of no tokens loads the model, waits its turn, and counts.
            async with aclosing(self.generate(request)) as generation:
                async for frame in generation:
                    if isinstance(frame, Finished):
                        return frame.prompt_tokens
        assert self._loader.child is not None
        answer = await self._loader.child.ask(
            wire.CountTokens(next(self._scheduler.ids), model, turns(messages))
        )
        if not isinstance(answer, wire.Counted):
            raise EngineError("the engine's child answered something else than a count")
        return answer.tokens

    async def generate(self, request: Generation) -> AsyncGenerator[Frame, None]:
        """Yield the frames of one generation. See the port."""
        self._scheduler.records.check(request.model, self._store)
        self._loader.adapters.check(request)
        check(request, self._store.models[request.model])
        if not self._is_running:
            raise EngineDied("the engine is not running")
        if request.payer == "":
            self._check_loading(request.model)
        call = Call(next(self._scheduler.ids), request)
        self._scheduler.submit(call)
        try:
            frame: Frame | None = None
            while not isinstance(frame, Finished):
                frame = await call.next_frame()
                yield frame
        finally:
            self._scheduler.drop(call)

    async def load(self, model: Digest, *, is_modest: bool = False) -> None:
        """Have a model in memory; the next request for it does not wait.

        Args:
            model: which one.
            is_modest: only if it has a place beside those that are there.

        Raises:
            EngineBusy: it has none.
            EngineError: it cannot be loaded.
        """
        self._scheduler.records.check(model, self._store)
        if not self._is_running:
            raise EngineDied("the engine is not running")
        wish = self._loader.wish(model, is_modest=is_modest)
        await wish.done.wait()
        if wish.error:
            raise wish.error

    def cells(self, model: Digest) -> int:
        """Return how many tokens the caches of a model's slots hold together, as its memory was planned."""
        self._scheduler.records.check(model, self._store)
        return self._loader.footprint(model).cells

    def set_threads(self, threads: int) -> None:
        """Compute with this many threads from the next step on."""
        self._loader.threads = max(1, threads)
        if self._loader.child:
            self._loader.child.tell(wire.SetThreads(self._loader.threads))

    @property
    def child_pid(self) -> int | None:
        """The child's process id, while there is one."""
        return self._loader.child.pid if self._loader.child else None

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
                child, verdict = await self._live_once(announce)
                announce()
                self._scheduler.bury(verdict, is_blamed=True, was_struck=bool(child and child.was_struck))
                starts_failed = 0 if child and child.ready.is_set() else starts_failed + 1
                if starts_failed:
                    self._scheduler.fail_waiting(EngineDied(verdict))
                    await trio.sleep(pause_s(starts_failed))
        finally:
            self._is_running = False
            self._scheduler.bury("the engine was stopped", is_blamed=False)
            self._scheduler.fail_waiting(EngineDied("the engine was stopped"))

    async def _live_once(self, announce: Callable[[], None]) -> tuple[LlamaChild | None, str]:
        """Run one child to its end; return it, if it could be started, and what it died of."""
        readable = (self._store.directory, *filter(None, (self._adapters_directory,)))
        try:
            child = LlamaChild(readable, self._memory_bytes_max, self._scheduler.take)
        except OSError as error:  # no memory, no descriptors: this may pass
            return None, f"the engine's child cannot be started: {error}"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve, child, announce)
            verdict = await child.run()
            nursery.cancel_scope.cancel()
        return child, verdict

    async def _serve(self, child: LlamaChild, announce: Callable[[], None]) -> None:
        await child.ready.wait()
        self.sandbox, self.gpu = child.sandbox, child.gpu
        announce()
        await self._scheduler.serve(child)

    def _check_loading(self, model: Digest) -> None:
        """Have a model loaded, and tell this device's own user to come back if that takes long.

        Raises:
            ModelLoading: it takes long. The load goes on.
        """
        left_s = self._loader.load_s(model)
        if left_s <= LOADING_S_MAX:
            return
        self._loader.wish(model)
        loading = self._loader.loading
        done = loading.share if loading and loading.model == model else 0.0
        name = self._store.models[model].name
        raise ModelLoading(
            f"model {name!r} is being loaded: {done:.0%} so far, ready in about {left_s:.0f} s",
            done=done,
            retry_after_s=left_s,
        )

    def _examine_path(self, base: Digest, adapter: Digest, path: Path) -> Adapter:
        path = path.absolute()
        if not self._adapters_directory or not path.is_relative_to(self._adapters_directory):
            raise AdapterRefused(f"adapter {adapter.hex()[:8]} is not where this engine's adapters are")
        try:
            return Adapter(base, path, path.stat().st_size)
        except OSError as error:
            raise EngineError(f"adapter {adapter.hex()[:8]} cannot be read: {error.strerror}") from None
