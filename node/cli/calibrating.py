"""`calibrate`: how far honest engines are apart on this device, so that checks of sellers accuse nobody of rounding."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli.options import HomeOption, JsonOption, home_of
from node.cli.show import cell, err, out, print_json, table
from node.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from node.home import Home
    from node.tolerances import Calibration
    from protocol.errors import AgoraError
    from runtime.engine import Digest, ModelCard


def calibrate(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A model of this device: its name, or the beginning of its digest. All that write, if none is named.",
            show_default=False,
        ),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure by how much honest engines differ with a model on this device; the daemon must not run.

    What is found is the tolerance with which answers that this device buys are checked.

    Example: `agora calibrate`
    """
    import trio

    found = home_of(home)
    found.check()
    with found.lock(), err.status("calibrating") as status:
        measured = trio.run(_calibrate, found, model, status.update)
    if as_json:
        print_json(
            [
                {
                    "model": card.name,
                    "digest": card.digest.hex(),
                    "tokens": each.tokens,
                    "apart_milli": each.apart_milli,
                    "drift_milli": each.drift_milli,
                    "tolerance_milli": each.tolerance.gap_milli,
                    "drift_tolerance_milli": each.tolerance.drift_milli,
                    "is_usable": each.is_usable,
                }
                for card, each in measured
            ]
        )
        return
    shown = table(
        "model",
        "digest",
        "tokens",
        "apart at worst",
        "tolerance",
        "drift at worst",
        "tolerated",
        right=("tokens", "apart at worst", "tolerance", "drift at worst", "tolerated"),
    )
    for card, each in measured:
        shown.add_row(
            cell(card.name),
            card.digest.hex()[:8],
            f"{each.tokens:,}",
            f"{each.apart_milli / 1000:.3f} logits",
            f"{each.tolerance.gap_milli / 1000:.3f} logits",
            f"{(each.drift_milli or 0) / 1000:.3f} logits",
            f"{each.tolerance.drift_milli / 1000:.3f} logits",
        )
    out.print(shown)
    for card, each in measured:
        if not each.is_usable:
            out.print(
                cell(
                    f"{card.name} rounds so much here that checks cannot tell it from others by that; "
                    f"the usual {each.tolerance.gap_milli / 1000:.2f} logits are kept"
                )
            )


async def _calibrate(
    home: "Home", wanted: str | None, say: "Callable[[str], None]"
) -> "list[tuple[ModelCard, Calibration]]":
    """Measure the models that were asked for, and write what was found into the home."""
    import trio

    from node import calibration
    from node.config import Config
    from node.tolerances import Tolerances
    from protocol.errors import AgoraError
    from runtime.llama.backend import LlamaEngine
    from runtime.model_store import ModelStore

    config = Config.load(home.config)
    models = ModelStore(home.models)
    engine = LlamaEngine(
        models,
        slots=config.slots,
        context_tokens=config.context_tokens,
        threads=config.threads or None,
    )
    chosen = _chosen(models.models, wanted)
    tolerances = Tolerances(home.tolerances)
    measured: list[tuple[ModelCard, Calibration]] = []
    failed: list[AgoraError] = []
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(engine.run)
            for card in chosen:
                await engine.load(card.digest)  # however long that takes
                found = await calibration.calibrate(
                    engine,
                    card.digest,
                    now_s=time.time(),
                    say=lambda what, name=card.name: say(f"{name}: {what}"),  # type: ignore[misc]
                )
                tolerances.keep(card.digest, found)
                measured.append((card, found))
            nursery.cancel_scope.cancel()
    except* AgoraError as group:
        failed.append(_first(group))
    if failed:
        raise failed[0]
    return measured


def _chosen(models: "Mapping[Digest, ModelCard]", wanted: str | None) -> "list[ModelCard]":
    """Return the models that are meant.

    Raises:
        StartError: none is, or several.
    """
    writing = [card for card in models.values() if not card.dimensions]
    if not writing:
        raise StartError("no model that writes on this device; run 'agora model add FILE.gguf'")
    if wanted is None:
        return writing
    found = [card for card in writing if card.name == wanted or card.digest.hex().startswith(wanted.lower())]
    if len(found) != 1:
        known = ", ".join(f"{card.name} ({card.digest.hex()[:8]})" for card in writing)
        raise StartError(f"{len(found)} models are called {wanted!r}, expected one of: {known}")
    return found


def _first(group: BaseExceptionGroup["AgoraError"]) -> "AgoraError":
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
