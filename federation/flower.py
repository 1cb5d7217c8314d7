"""What this house uses of Flower beyond its public names, in one file, for the one version that is pinned (1.41).

Flower's own processes (SuperLink, SuperNode) are not used: the mesh carries the messages. Importing this file quietens
Flower: no log lines on the terminal, and no telemetry to its makers.
"""

import logging
import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # read when Flower is imported, so it has to stand before

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

logging.getLogger("flwr").setLevel(logging.CRITICAL)

# Flower numbers its tasks, runs and nodes per process. Ours are told apart by the mesh's own ids, so one is enough.
_TASK, _RUN, _NODE = 1, 1, 1
TaskIdentity.task_id = _TASK
TaskIdentity.run_id = _RUN
TaskIdentity.node_id = _NODE

Settings = dict[str, int | float | str | bytes]  # what a strategy tells its clients


def instruction(content: RecordDict, message_type: str, to: int) -> Message:
    """Return a message from the server's side to a node."""
    return Message(content, to, message_type)


def context() -> Context:
    """Return what Flower hands to a `ClientApp` along with each message: nothing that we use."""
    return Context(run_id=_RUN, node_id=_NODE, node_config={}, state=RecordDict(), run_config={})


def config_record(settings: Settings) -> ConfigRecord:
    """Return settings as Flower carries them."""
    return ConfigRecord(dict(settings))
