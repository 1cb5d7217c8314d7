"""What a round costs when there is nothing to train: ours against Flower as it comes, on this machine, in this run.

Both sides average the same arrays (the B matrices of the tiny model's adapter) of the same number of members, each a
process of its own. Ours is everything that a round is made of but the mesh: the run's machine, signed tasks and updates,
int8 changes both ways, Flower's `ClientApp` in each member, the gate, and the default strategy. Theirs is SuperLink,
SuperNodes and plain averaging, on loopback; it starts a fresh Python for each message.
"""

import hashlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING, Final, TypeVar

import msgspec

from federation.aggregation import Aggregator
from federation.codec import apply, change, digest
from federation.defaults import ALL_LINEARS, DEFAULT_RECIPE
from federation.gate import Contribution, Gate, Refused
from federation.lora import State
from federation.run_events import Action, Aggregate, Aggregated, Ask, Finish, Joined, Open, Update
from federation.strategy import strategy_of
from federation.training_run import TrainingRun
from node.bench.figure import Figure, at_least
from node.bench.idle_member import receive, send, zeros
from node.bench.stock_flower import rounds_s
from node.local_mesh.processes import LocalMeshFailed
from protocol.envelope import Sealed, narrow, open_sealed, seal
from protocol.identity import Identity, PeerId
from protocol.messages import NO_HASH, Enlistment, Message, RoundTask, RoundUpdate, RunAnnouncement

if TYPE_CHECKING:
    from node.bench.figures import Bench

M = TypeVar("M", bound=Message)

MESH: Final = b"m" * 32
RUN: Final = b"r" * 16
FASTER: Final = 10.0  # promised
STOCK_ROUND_S_MAX: Final = 90.0  # one that takes longer has broken down
_OUT: Final = dict(zip(ALL_LINEARS, (128, 64, 64, 128, 384, 384, 128), strict=True))
SHAPES: Final = {f"blk.{layer}.{name}.lora_b": (out, 8) for layer in range(4) for name, out in _OUT.items()}


def chapter(bench: "Bench") -> Iterator[Figure]:
    """A round with nothing to train, in seconds, and how many times faster than stock Flower's."""
    for members, rounds in bench.sizes.overhead_rounds:
        bench.say(f"overhead: {members} members, ours")
        ours = Cohort(members, 5 * rounds).run()
        bench.say(f"overhead: {members} members, stock Flower (some seconds a round)")
        directory = bench.directory / f"flower-{members}"
        theirs = rounds_s(directory, members, rounds, SHAPES, timeout_s=rounds * STOCK_ROUND_S_MAX)
        yield Figure(
            f"empty round, {members} members: stock ÷ ours",
            "seconds of one of stock Flower's rounds (SuperLink, SuperNodes, plain mean) ÷ our median, "
            f"{members} members on loopback, {len(SHAPES)} arrays, nothing to train",
            "",
            [each / statistics.median(ours) for each in theirs],
            target=at_least(FASTER),
            note=f"medians: stock {statistics.median(theirs):.2f} s, ours {statistics.median(ours) * 1e3:.1f} ms "
            "(machine, signatures, int8 changes both ways, ClientApp, gate, default strategy; without the mesh)",
        )


class Cohort:
    """A coordinator and its members, each member's trainer a process of its own."""

    def __init__(self, members: int, rounds: int) -> None:
        self._coordinator = Identity.generate()
        self._members = {
            identity.peer_id: identity for identity in (Identity.generate() for _ in range(members))
        }
        self._rounds = rounds
        self._counter = 0
        self._pipes: dict[PeerId, tuple[IO[bytes], IO[bytes]]] = {}

    def run(self) -> list[float]:
        """Return how long each round took."""
        with ExitStack() as running:
            for peer in self._members:
                command = [sys.executable, "-m", "node.bench.idle_member", json.dumps(SHAPES)]
                member = running.enter_context(
                    subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                )
                running.callback(member.kill)
                assert member.stdin is not None
                assert member.stdout is not None
                self._pipes[peer] = member.stdin, member.stdout
            if any(receive(out) != b"ready" for _, out in self._pipes.values()):
                raise LocalMeshFailed("a member did not start, expected that it says ready")
            return self._train()

    def _train(self) -> list[float]:
        run = TrainingRun(self._announcement(), now=0.0)
        for peer, identity in self._members.items():
            bid = Enlistment(
                announcement=run.announcement.id, samples=1, step_micro=0, steps_per_ks=0, epsilon_milli=-1
            )
            run.handle_message(peer, self._sealed(identity, bid), 0.0)
        aggregator = Aggregator(strategy_of(DEFAULT_RECIPE))
        actions = run.handle_timeout(1.0)
        held = state = zeros(json.dumps(SHAPES))  # what members have, and what they shall have
        given: dict[PeerId, Contribution] = {}
        seconds: list[float] = []
        began = 0.0
        while actions:
            action = actions.pop(0)
            if isinstance(action, Open):
                actions += [
                    each for peer in self._members for each in run.handle_message(peer, Joined(), 1.0)
                ]
            elif isinstance(action, Ask):
                began = time.perf_counter()
                payload = change(held, state)
                held = state = apply(held, payload)
                given, follows = self._ask(run, action, state, payload)
                actions += follows
            elif isinstance(action, Aggregate):
                outcome = aggregator.aggregate(action.round, state, [given[peer] for peer in action.fresh])
                state = apply(state, change(state, outcome.state))
                seconds.append(time.perf_counter() - began)
                actions += run.handle_message(self._coordinator.peer_id, Aggregated(action.round), 1.0)
            elif not isinstance(action, Finish):
                raise LocalMeshFailed(f"an empty run ended with {action}")
        return seconds

    def _ask(
        self, run: TrainingRun, ask: Ask, state: State, payload: bytes
    ) -> tuple[dict[PeerId, Contribution], list[Action]]:
        """Send everybody the task, and take everybody's update in by the gate."""
        tasks = {peer: self._task(ask.round, state, payload) for peer in ask.members}
        for peer in ask.members:
            send(self._pipes[peer][0], payload)
        gate = Gate(state, tasks, samples_max=dict.fromkeys(tasks, 1), steps_max=0)
        given: dict[PeerId, Contribution] = {}
        actions: list[Action] = []
        for peer in ask.members:
            answer = receive(self._pipes[peer][1])
            update = self._update(peer, tasks[peer], answer)
            found = gate.examine(peer, update, answer)
            if isinstance(found, Refused):
                raise LocalMeshFailed(f"an honest update was refused: {found.reason}")
            given[peer] = found
            actions += run.handle_message(peer, Update(update), 1.0)
        return given, actions

    def _task(self, number: int, state: State, payload: bytes) -> Sealed[RoundTask]:
        return self._sealed(
            self._coordinator,
            RoundTask(
                run=RUN,
                round=number,
                award=NO_HASH,
                since=NO_HASH,
                state=digest(state),
                payload=hashlib.sha256(payload).digest(),
                payload_bytes=len(payload),
                left_ms=60_000,
            ),
        )

    def _update(self, peer: PeerId, task: Sealed[RoundTask], payload: bytes) -> Sealed[RoundUpdate]:
        signed = self._sealed(
            self._members[peer],
            RoundUpdate(
                run=RUN,
                round=task.message.round,
                task=task.id,
                payload=hashlib.sha256(payload).digest(),
                payload_bytes=len(payload),
                samples=1,
                steps=0,
                epsilon_milli=-1,
            ),
        )
        opened = narrow(open_sealed(signed.raw, mesh=MESH), RoundUpdate)
        assert opened is not None
        return opened

    def _announcement(self) -> Sealed[RunAnnouncement]:
        return self._sealed(
            self._coordinator,
            RunAnnouncement(
                run=RUN,
                line="tiny",
                base=NO_HASH,
                data="nothing",
                replay=NO_HASH,
                replay_bytes=0,
                start=NO_HASH,
                start_bytes=0,
                parent=bytes(16),
                recipe=msgspec.structs.replace(DEFAULT_RECIPE, rounds=self._rounds, steps=0),
                cohort_min=len(self._members),
                cohort_max=len(self._members),
                round_ms=60_000,
                step_micro_max=0,
                window_ms=1_000,
            ),
        )

    def _sealed(self, identity: Identity, message: M) -> Sealed[M]:
        self._counter += 1
        return seal(message, identity, mesh=MESH, seq=(1, self._counter), time_ms=1_000)
