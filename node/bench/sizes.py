"""How much is measured: enough for a figure one may quote, or just enough to see that measuring works."""

from dataclasses import dataclass

from node.bench import random_gguf


@dataclass(frozen=True)
class Sizes:
    """How many samples, tokens and seconds each figure gets."""

    shape: random_gguf.Shape  # of the random-weight model
    shape_name: str
    speed_rounds: int
    speed_tokens: int
    tiny_rounds: int
    first_tokens: int
    auctions: int
    silences: int
    kills: int
    stops: int
    joins: int
    starts: int
    idle_s: float
    connections: int
    connections_s_max: float
    receipts: int
    gossip_messages: int
    world: tuple[int, float]  # nodes and virtual seconds
    world_sizes: tuple[int, ...]  # nodes, growing
    world_scale_s: float  # virtual
    overhead_rounds: tuple[tuple[int, int], ...]  # members, and rounds of stock Flower
    cohorts: int  # of five devices: the honest one, then each with another attacker
    check_jobs: int  # known ones, and as many open and as many drawn ones
    engine_rounds: int
    engine_streams: tuple[int, ...]  # at once
    engine_tokens: int  # of each answer
    long_rounds: int
    long_prompt_tokens: int
    long_head_start_s: float  # of the long prompt before the short ones
    history_tokens: int  # of a session's first turn


FULL = Sizes(
    shape=random_gguf.LLAMA_3_2_1B,
    shape_name="1B",
    speed_rounds=8,
    speed_tokens=64,
    tiny_rounds=8,
    first_tokens=40,
    auctions=100,
    silences=10,
    kills=12,
    stops=10,
    joins=5,
    starts=5,
    idle_s=30.0,
    connections=10_000,
    connections_s_max=420.0,
    receipts=200,
    gossip_messages=20,
    world=(1_000, 3_600.0),
    world_sizes=(10, 100, 1_000, 10_000),
    world_scale_s=600.0,
    overhead_rounds=((2, 8), (8, 4)),
    cohorts=6,
    check_jobs=120,
    engine_rounds=3,
    engine_streams=(1, 4, 8, 16),
    engine_tokens=32,
    long_rounds=2,
    long_prompt_tokens=2_000,
    long_head_start_s=0.5,
    history_tokens=1_000,
)
QUICK = Sizes(
    shape=random_gguf.SLOW,
    shape_name="17 MB",
    speed_rounds=2,
    speed_tokens=24,
    tiny_rounds=2,
    first_tokens=3,
    auctions=5,
    silences=1,
    kills=1,
    stops=1,
    joins=1,
    starts=1,
    idle_s=2.0,
    connections=100,
    connections_s_max=30.0,
    receipts=8,
    gossip_messages=3,
    world=(20, 300.0),
    world_sizes=(5, 10, 20),
    world_scale_s=300.0,
    overhead_rounds=((2, 2),),
    cohorts=0,
    check_jobs=9,
    engine_rounds=1,
    engine_streams=(1, 4),
    engine_tokens=16,
    long_rounds=1,
    long_prompt_tokens=1_000,
    long_head_start_s=0.05,
    history_tokens=500,
)
