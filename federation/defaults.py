"""The recipe that a run has unless its author says otherwise, as measured by `node/bench/federated.py`."""

from typing import Final

from protocol.messages import LoraShape, Recipe

ALL_LINEARS: Final = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")

# FFA-LoRA on all linear layers: attention's four alone came to .73 in twelve rounds (at a rate of .01), all seven to 1.00
# (at .008). Half of each batch is replayed: with less of it the other domains are forgotten. Four devices with disjoint
# records went from .00 to 1.00, and lost .010 in the worst other domain and .001 on average
# (`python -m node.bench.federated disjoint`, seed 0). The strategy is chosen by the cohort's size where it is left to the
# default.
DEFAULT_RECIPE: Final = Recipe(
    shape=LoraShape(rank=8, alpha=16, targets=ALL_LINEARS),
    seed=0,
    is_a_frozen=True,
    rounds=16,
    steps=12,
    batch=12,
    learning_rate_ppm=8_000,
    replay_percent=50,
    strategy="default",
    parameters=(),
)
