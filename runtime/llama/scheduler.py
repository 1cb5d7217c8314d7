"""Which call the child does next.

Calls wait in a queue that is fair between payers (`waiting.py`), and go to the child when a slot is free and what they
need is in memory (`loader.py`). Who waits for a model to be loaded holds up nobody.

When the child dies, the calls that it was running end with `EngineDied`, and what it worked on is suspected: an adapter
before its base. So does the one call for which something was being loaded. The others are kept for the next child,
which gets an adapter again with the first call that needs it.
"""

import itertools
from collections.abc import Iterator

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
)
from runtime.llama import wire
from runtime.llama.adapters import Adapter
from runtime.llama.call import Call
from runtime.llama.loader import Loader
from runtime.llama.process import GenerationMessage, LlamaChild, Unasked
from runtime.llama.records import Measured, Records, pause_s
from runtime.llama.speed import Crowd
from runtime.llama.waiting import WaitingQueue
from runtime.model_store import ModelStore


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
        loader: brings into memory what they need.
        ids: for calls and questions.
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
        self.slots = slots
        self.queue_max = queue_max
        self.ids = itertools.count(1)
        self.records = Records()
        self.waiting: WaitingQueue[Call] = WaitingQueue()
        self.running: dict[int, Call] = {}
        self.loader = Loader(
            store,
            self.records,
            self.waiting,
            self.running,
            self.ids,
            slots=slots,
            context_tokens=context_tokens,
            threads=threads,
            memory_bytes_max=memory_bytes_max,
        )
        self._crowd = Crowd(0.0)
        self._crowded: set[Digest] = set()  # their cache has no room until one of their calls ends

    # --- what is known -------------------------------------------------------------------------------------------

    def wait_s(self) -> float:
        """Return how long one more call would wait for a slot."""
        records = {call.model: self.records.of(call.model) for call in self.calls()}
        return self.loader.forecast.wait_s(self.slots, self.running.values(), self.waiting, records)

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
        if self.loader.loading and self.loader.loading.model == call.model:
            call.waits(Phase.LOADING)
        self.loader.changed.set()

    def drop(self, call: Call) -> None:
        """Nobody reads this call any more: out of the queue, or out of the child."""
        call.is_dropped = True
        if self.waiting.remove(call):
            self.loader.changed.set()
        elif call.number in self.running and self.loader.child:
            self.loader.child.tell(wire.Cancel(call.number))
        if call.request.adapter is not None:
            self.loader.sweep_adapters()

    def fail_waiting(self, error: EngineError) -> None:
        """No child can be had."""
        for call in list(self.waiting):
            self.waiting.remove(call)
            call.fail(error)
        self.loader.fail(error)
        self.loader.sweep_adapters()

    # --- a child's life ------------------------------------------------------------------------------------------

    async def serve(self, child: LlamaChild) -> None:
        """Give the child its work, for as long as it lives."""
        self.loader.child = child
        self._crowd = Crowd(trio.current_time())
        if (last := self.records.last_good) and not self.waiting:
            self.loader.wish(last, is_modest=True)  # it will be asked for most likely
        async with trio.open_nursery() as nursery:
            while True:
                self.loader.changed = trio.Event()
                while len(self.running) < self.slots and (call := self.waiting.take(self._can_start)):
                    self._start(child, call)
                self.loader.advance(nursery, child)
                with trio.move_on_at(self.loader.next_chance()):
                    await self.loader.changed.wait()

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
        adapters |= {self.loader.adapters.loading} if self.loader.adapters.loading else set()
        # With an adapter in the game the base is not suspected: it would be set aside for what another did.
        models = set() if adapters else {call.model for call in running}
        models |= {self.loader.loading.model} if self.loader.loading else set()
        if is_blamed:
            self.loader.adapters.blame(adapters, verdict, pause_s)
            for model in models:
                self.records.of(model).blame(model, verdict)
        running += [cause for cause in self.loader.causes() if self.waiting.remove(cause)]
        self.running.clear()
        self._crowded.clear()
        self.loader.child_is_gone()
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
        self.loader.sweep_adapters()

    # --- calls ---------------------------------------------------------------------------------------------------

    def _can_start(self, call: Call) -> bool:
        return (
            call.model in self.loader.memory
            and call.model not in self.loader.draining
            and call.model not in self._crowded
            and (call.request.adapter is None or call.request.adapter in self.loader.adapters.loaded)
            and self.loader.not_before(call) <= trio.current_time()
        )

    def _start(self, child: LlamaChild, call: Call) -> None:
        self.running[call.number] = call
        self.loader.memory.use(call.model)
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
        self.loader.changed.set()

    def _release(self, call: Call) -> None:
        del self.running[call.number]
        self._crowd.set(len(self.running), trio.current_time())
        self._crowded.discard(call.model)
        if call.request.adapter is not None:
            self.loader.sweep_adapters()
        self.loader.changed.set()

    def _learn(self, call: Call, done: wire.Done) -> None:
        """It served: it is good, and this fast."""
        self.records.last_good = call.model
        if call.request.adapter is not None:
            self.loader.adapters.get(call.request.adapter).deaths = 0
        now = trio.current_time()
        decode_mark = call.decode_mark or self._crowd.mark(now)
        writes = call.request.task in ("chat", "completion") and not call.request.received
        self.records.of(call.model).learn(
            Measured(
                prompt_tokens=done.prefill_tokens,
                prompt_s=done.prefill_s,
                prompt_streams=round(self._crowd.mean(call.mark, decode_mark)),
                completion_tokens=done.completion_tokens if writes else 0,
                completion_s=done.decode_s,
                completion_streams=round(self._crowd.mean(decode_mark, self._crowd.mark(now))),
            )
        )

    # --- small things --------------------------------------------------------------------------------------------

    def _adapter_of(self, call: Call) -> Adapter | None:
        return None if call.request.adapter is None else self.loader.adapters.get(call.request.adapter)

    def _why_set_aside(self, call: Call) -> EngineError | None:
        if reason := self.records.of(call.model).set_aside:
            return ModelSetAside(reason)
        adapter = self._adapter_of(call)
        return AdapterSetAside(adapter.set_aside) if adapter and adapter.set_aside else None
