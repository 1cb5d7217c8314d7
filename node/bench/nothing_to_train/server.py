"""The server's half: plain averaging, and a file that says when each round began and ended."""

import json
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class Timed(FedAvg):
    """FedAvg that notes when a round begins and ends, as one JSON line each."""

    def __init__(self, members: int, times: Path) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=members, min_available_nodes=members)
        self._times = times
        self._began = 0.0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Begin."""
        self._began = time.monotonic()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """End."""
        answers = list(replies)
        result = super().aggregate_train(server_round, answers)
        line = {"seconds": time.monotonic() - self._began, "answers": len(answers)}
        with self._times.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return result


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run so many rounds over arrays of zeros, of the shapes that the run's configuration lists."""
    config = context.run_config
    shapes = json.loads(str(config["shapes"]))
    arrays = ArrayRecord({name: Array(np.zeros(shape, np.float32)) for name, shape in shapes.items()})
    strategy = Timed(int(config["members"]), Path(str(config["times"])))
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=int(config["rounds"]))
