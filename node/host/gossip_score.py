"""Gossip scoring: every parameter set, since libp2p's defaults are all "off".

A peer starts at 0 and earns a little by staying in the mesh and by being first with messages. Invalid messages, control
spam and offences counted anywhere in the node take from it. Below the thresholds it is no longer gossiped with, its
publications are dropped, and at last it is ignored.
"""

from collections.abc import Callable

from libp2p.peer.id import ID
from libp2p.pubsub.score import ScoreParams, TopicScoreParams

GOSSIP_THRESHOLD = -20.0
PUBLISH_THRESHOLD = -40.0
GRAYLIST_THRESHOLD = -80.0
PEER_EXCHANGE_THRESHOLD = 1_000.0  # never reached: addresses come from adverts and hellos, which are signed


def score_params(offences: Callable[[ID], float]) -> ScoreParams:
    """Return the parameters; `offences` is how many a peer has standing against it. Decay is per second."""
    return ScoreParams(
        p1_time_in_mesh=TopicScoreParams(weight=0.1, cap=10.0, decay=0.999),
        p2_first_message_deliveries=TopicScoreParams(weight=0.5, cap=20.0, decay=0.99),
        p3_mesh_message_deliveries=TopicScoreParams(weight=0.05, cap=20.0, decay=0.99),
        p4_invalid_messages=TopicScoreParams(weight=8.0, cap=50.0, decay=0.99),  # this library subtracts it
        p5_behavior_penalty_weight=1.0,
        p5_behavior_penalty_decay=0.95,
        p5_behavior_penalty_threshold=20.0,  # two grafts that come too early are an accident
        p6_appl_slack_weight=2.0,
        p6_appl_slack_decay=0.99,
        p7_ip_colocation_weight=0.1,
        p7_ip_colocation_threshold=64,  # a house, an office, or a test run behind one address
        publish_threshold=PUBLISH_THRESHOLD,
        gossip_threshold=GOSSIP_THRESHOLD,
        graylist_threshold=GRAYLIST_THRESHOLD,
        accept_px_threshold=PEER_EXCHANGE_THRESHOLD,
        app_specific_score_fn=lambda peer: -offences(peer),
    )
