"""A participant's half of a round, by Flower's own `ClientApp`."""

import logging
import os
import subprocess
import sys

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from federation.client import WEIGHT, client_app, fit, settings_of
from federation.flower import Settings
from federation.lora import State, seed_state
from tests.federation.members import RECIPE, SHAPES

STATE = seed_state(RECIPE, SHAPES)


def test_state_and_settings_go_in_and_the_trained_state_comes_out() -> None:
    def train(state: State, settings: Settings) -> tuple[State, dict[str, int | float]]:
        step = np.float32(settings["steps"])
        return {name: matrix + step for name, matrix in state.items()}, {WEIGHT: 12, "loss": 0.5}

    trained, metrics = fit(client_app(train), STATE, {"steps": 3, "rate": 0.5, "note": "a", "key": b"b"})

    assert metrics == {WEIGHT: 12, "loss": 0.5}
    assert trained.keys() == STATE.keys()
    for name, matrix in trained.items():
        assert matrix.dtype == np.float32
        np.testing.assert_array_equal(matrix, STATE[name] + 3)


def test_the_state_that_training_gets_is_its_own_to_change() -> None:
    def train(state: State, _: Settings) -> tuple[State, dict[str, int | float]]:
        for matrix in state.values():
            np.add(matrix, 1, out=matrix)
        return state, {WEIGHT: 1}

    trained, _ = fit(client_app(train), STATE, {})

    assert all((matrix == 1).all() for matrix in trained.values())
    assert not any(matrix.any() for matrix in STATE.values())


def test_what_training_raises_comes_out_as_it_is() -> None:
    """The trainer's child tells a cancelled fit from a broken one by it."""

    class Cancelled(Exception):
        pass

    def train(_: State, __: Settings) -> tuple[State, dict[str, int | float]]:
        raise Cancelled

    with pytest.raises(Cancelled):
        fit(client_app(train), STATE, {})


def test_a_flower_app_that_was_written_elsewhere_fits_as_well() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, _context: Context) -> Message:
        assert settings_of(message) == {"steps": 3}
        from flwr.app import ArrayRecord, MetricRecord, RecordDict  # noqa: PLC0415 - as its author would

        trained = [array + 2 for array in message.content["arrays"].to_numpy_ndarrays()]
        names = list(message.content["arrays"])
        content = RecordDict(
            {
                "arrays": ArrayRecord(dict(zip(names, ArrayRecord(trained).values(), strict=True))),
                "metrics": MetricRecord({"num-examples": 7}),
            }
        )
        return Message(content, reply_to=message)

    trained, metrics = fit(app, STATE, {"steps": 3})

    assert metrics == {"num-examples": 7}
    assert all((matrix == 2).all() for matrix in trained.values())


def test_flower_says_nothing_and_tells_nobody() -> None:
    """Neither a line on the terminal nor telemetry, and no torch is loaded for it."""
    program = (
        "import sys, federation.aggregation, federation.client, os\n"
        "assert os.environ['FLWR_TELEMETRY_ENABLED'] == '0'\n"
        "assert 'torch' not in sys.modules and 'trio' not in sys.modules\n"
        "from federation.strategy import Strategy\n"
        "from federation.gate import Contribution\n"
        "import numpy as np\n"
        "one = Contribution('a', 1, 1, {'w': np.ones((1, 1), np.float32)})\n"
        "federation.aggregation.Aggregator(Strategy('mean', {})).aggregate(1, {'w': np.zeros((1, 1), np.float32)}, [one])\n"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"
    assert not logging.getLogger("flwr").isEnabledFor(logging.ERROR)


def test_what_needs_no_arrays_loads_neither_numpy_nor_flower() -> None:
    """A daemon that chats and keeps its privacy book must not pay for them."""
    program = (
        "import sys, federation.privacy, federation.strategy, federation.training_run, federation.defaults\n"
        "print(sorted({'numpy', 'flwr', 'torch', 'trio'} & set(sys.modules)))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "[]\n", "")
