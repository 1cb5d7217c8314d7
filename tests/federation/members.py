"""Who trains in these tests, and what they sign, each with defaults that a test changes one at a time."""

from typing import Any, TypeVar

from federation.run_events import Action, Aggregated, Joined, Update
from federation.training_run import State, TrainingRun
from protocol.envelope import Sealed, seal
from protocol.identity import Identity
from protocol.messages import (
    NO_HASH,
    Decline,
    Enlistment,
    LoraShape,
    Message,
    Recipe,
    RoundUpdate,
    RunAnnouncement,
)

M = TypeVar("M", bound=Message)

MESH = b"m" * 32
RUN = b"r" * 16
KEYS = {identity.peer_id: identity for identity in (Identity(bytes([seed]) * 32) for seed in range(1, 8))}
COORDINATOR, ANN, BOB, CAT, DAN, EVE, FAY = KEYS

RECIPE = Recipe(
    shape=LoraShape(rank=2, alpha=4, targets=("attn_q", "attn_k")),
    seed=7,
    is_a_frozen=True,
    rounds=3,
    steps=10,
    batch=4,
    learning_rate_ppm=1_000,
    replay_percent=50,
    strategy="default",
    parameters=(),
)
SHAPES = {"blk.0.attn_q": (6, 4), "blk.0.attn_k": (3, 4), "blk.0.ffn_up": (8, 4)}


def sealed(sender: str, message: M) -> Sealed[M]:
    return seal(message, KEYS[sender], mesh=MESH, seq=(1, 1), time_ms=1_000)


def announcement(**changes: Any) -> Sealed[RunAnnouncement]:
    """Three rounds of 60 s with two to four members, at most 100 a step; bids are taken for 10 s."""
    fields = {
        "run": RUN,
        "line": "tiny",
        "base": b"b" * 32,
        "data": "heat-pump",
        "replay": NO_HASH,
        "replay_bytes": 0,
        "start": NO_HASH,
        "start_bytes": 0,
        "parent": bytes(16),
        "recipe": RECIPE,
        "cohort_min": 2,
        "cohort_max": 4,
        "round_ms": 60_000,
        "step_micro_max": 100,
        "window_ms": 10_000,
    }
    return sealed(COORDINATOR, RunAnnouncement(**(fields | changes)))


def enlistment(sender: str, to: Sealed[RunAnnouncement] | None = None, **changes: Any) -> Sealed[Enlistment]:
    fields = {
        "announcement": (to or announcement()).id,
        "samples": 500,
        "step_micro": 10,
        "steps_per_ks": 5_000,
        "epsilon_milli": -1,
    }
    return sealed(sender, Enlistment(**(fields | changes)))


def decline(sender: str, reason: Any = "battery", detail: str = "12 %") -> Sealed[Decline]:
    return sealed(sender, Decline(request=announcement().id, reason=reason, detail=detail))


def round_update(sender: str, number: int, **changes: Any) -> Sealed[RoundUpdate]:
    fields = {
        "run": RUN,
        "round": number,
        "task": b"t" * 32,
        "payload": b"p" * 32,
        "payload_bytes": 100,
        "samples": 500,
        "steps": 10,
        "epsilon_milli": -1,
    }
    return sealed(sender, RoundUpdate(**(fields | changes)))


def enlisting(*members: str, **changes: Any) -> TrainingRun:
    """Announced at 100, bids until 110; these have enlisted."""
    run = TrainingRun(announcement(**changes), now=100.0)
    for member in members:
        run.handle_message(member, enlistment(member, run.announcement), 101.0)
    return run


def in_round_one(*members: str, **changes: Any) -> TrainingRun:
    """Round 1 has begun at 112, and ends at 172."""
    run = enlisting(*members, **changes)
    run.handle_timeout(110.0)
    for member in members:
        run.handle_message(member, Joined(), 112.0)
    assert run.state is State.ROUND
    return run


def give(
    run: TrainingRun, sender: str, now: float, number: int | None = None, fault: str = ""
) -> list[Action]:
    """Hand in an update of this or of another round."""
    return run.handle_message(sender, Update(round_update(sender, number or run.round), fault), now)


def aggregate(run: TrainingRun, now: float) -> list[Action]:
    """Let the coordinator finish its aggregate."""
    return run.handle_message(COORDINATOR, Aggregated(run.round), now)
