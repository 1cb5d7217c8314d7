"""A participant's half of a round: the stock Flower `ClientApp`, called in this process.

What trains is handed over as a plain function, so this file knows no torch and the trainer knows no Flower:

    app = client_app(train)
    state, metrics = fit(app, state, {"steps": 15})

Any other Flower `ClientApp` whose `@app.train()` takes and returns one record of arrays fits as well.
"""

from collections.abc import Callable, Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from federation.flower import Settings, config_record, context, instruction
from federation.lora import State

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"  # the keys that Flower's strategies use by default
WEIGHT = "num-examples"  # the metric by which they weigh

Metrics = dict[str, int | float]
Train = Callable[[State, Settings], tuple[State, Metrics]]


def client_app(train: Train) -> ClientApp:
    """Return a `ClientApp` whose training is this function: state and settings in, new state and metrics out."""
    app = ClientApp()

    @app.train()
    def fit_once(message: Message, _context: Context) -> Message:
        state, metrics = train(state_of(message), settings_of(message))
        return reply(message, state, metrics)

    return app


def fit(app: ClientApp, state: State, settings: Settings) -> tuple[State, Metrics]:
    """Run one round of the app in this process; what it raises comes out as it is."""
    content = RecordDict({ARRAYS: arrays(state), CONFIG: config_record(settings)})
    answer = app(instruction(content, MessageType.TRAIN, to=1), context())
    return state_of(answer), metrics_of(answer)


def reply(to: Message, state: State, metrics: Mapping[str, int | float]) -> Message:
    """Return a client's answer as Flower's strategies want it: one record of arrays, one of metrics."""
    return Message(RecordDict({ARRAYS: arrays(state), METRICS: MetricRecord(dict(metrics))}), reply_to=to)


def arrays(state: State) -> ArrayRecord:
    """Return a state as Flower carries it."""
    return ArrayRecord({name: Array(np.ascontiguousarray(state[name])) for name in sorted(state)})


def state_of(message: Message) -> State:
    """Return the state that a message carries, as arrays of its own."""
    record = message.content.array_records[ARRAYS]
    return {name: array.numpy().astype(np.float32) for name, array in record.items()}


def settings_of(message: Message) -> Settings:
    """Return the single values among what the server's side asks for."""
    record = message.content.config_records[CONFIG]
    return {name: value for name, value in record.items() if not isinstance(value, list)}


def metrics_of(message: Message) -> Metrics:
    """Return the single numbers among a message's metrics."""
    record = message.content.metric_records[METRICS]
    return {name: value for name, value in record.items() if not isinstance(value, list)}
