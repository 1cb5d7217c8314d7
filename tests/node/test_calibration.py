"""How far honest engines are apart: measured, kept, and read back, or not believed."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from marketplace.verification import TOLERANCE_DEFAULT, Tolerance
from node.calibration import QUESTIONS, TOKENS, calibrate
from node.tolerances import (
    DRIFT_MILLI_MAX,
    DRIFT_MILLI_MIN,
    DRIFT_SAFETY,
    GAP_MILLI_MAX,
    GAP_MILLI_MIN,
    GAP_SAFETY,
    Calibration,
    Tolerances,
)
from runtime.echo import ECHO_MODEL, EchoEngine
from runtime.engine import Digest, Frame, Generation, Tokens


def measured(apart_milli: int, drift_milli: int | None = 60) -> Calibration:
    return Calibration(tokens=1_000, apart_milli=apart_milli, drift_milli=drift_milli, measured_at=1.0)


async def test_an_engine_that_never_rounds_is_apart_by_nothing(virtual_time: None) -> None:  # noqa: ARG001
    engine = EchoEngine(repetitions=None, slots=4)

    found = await calibrate(engine, ECHO_MODEL, now_s=7.0)

    assert (found.apart_milli, found.drift_milli) == (0, 0)
    assert found.tokens >= 3 * len(QUESTIONS) * TOKENS, "each answer is made in three ways, and read"
    assert found.measured_at == 7.0
    assert found.tolerance == Tolerance(GAP_MILLI_MIN, DRIFT_MILLI_MIN)


class Drifting(EchoEngine):
    """What it states of its tokens is off by so much, by turns up and down, when it answers beside others or goes on."""

    async def generate(self, request: Generation) -> AsyncGenerator[Frame, None]:
        by_milli = 70 if request.received else 30 if self.status(request.model).slots_free < 4 else 0
        async with aclosing(super().generate(request)) as frames:
            async for frame in frames:
                if isinstance(frame, Tokens) and request.task == "chat":
                    ups = [by_milli * (-1) ** token for token in frame.ids]
                    stated = tuple(one + up for one, up in zip(frame.contrasts, ups, strict=True))
                    yield replace(frame, contrasts=stated)
                else:
                    yield frame


async def test_the_answer_that_drifts_most_counts_in_whatever_way_it_was_made(virtual_time: None) -> None:  # noqa: ARG001
    found = await calibrate(Drifting(repetitions=None, slots=4), ECHO_MODEL, now_s=7.0)

    assert (found.apart_milli, found.drift_milli) == (0, 70)
    assert found.tolerance.drift_milli == 70 * DRIFT_SAFETY


def test_a_tolerance_of_gaps_is_wider_than_what_was_seen_and_never_absurd() -> None:
    assert measured(180).tolerance.gap_milli == 180 * GAP_SAFETY
    assert measured(5).tolerance.gap_milli == GAP_MILLI_MIN
    widest = GAP_MILLI_MAX // GAP_SAFETY
    assert (measured(widest).is_usable, measured(widest + 1).is_usable) == (True, False)
    assert measured(widest + 1).tolerance.gap_milli == TOLERANCE_DEFAULT.gap_milli


def test_a_tolerance_of_drift_is_wider_than_what_was_seen_and_never_absurd() -> None:
    assert measured(180, 60).tolerance.drift_milli == 60 * DRIFT_SAFETY
    assert measured(180, 1).tolerance.drift_milli == DRIFT_MILLI_MIN
    assert measured(180, DRIFT_MILLI_MAX).tolerance.drift_milli == DRIFT_MILLI_MAX
    assert measured(180, None).tolerance.drift_milli == TOLERANCE_DEFAULT.drift_milli


def test_what_was_measured_is_there_at_the_next_start_in_a_private_file(tmp_path: Path) -> None:
    path = tmp_path / "tolerances.json"
    one, other = Digest(b"1" * 32), Digest(b"2" * 32)

    Tolerances(path).keep(one, measured(100))
    Tolerances(path).keep(other, measured(200))

    again = Tolerances(path)
    drift_milli = 60 * DRIFT_SAFETY
    assert again.of(one) == Tolerance(100 * GAP_SAFETY, drift_milli)
    assert again.of(other) == Tolerance(200 * GAP_SAFETY, drift_milli)
    assert again.of(b"3" * 32) == TOLERANCE_DEFAULT
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_from_before_drift_was_measured_still_counts(tmp_path: Path) -> None:
    path = tmp_path / "tolerances.json"
    path.write_bytes(b'{"00": {"tokens": 4000, "apart_milli": 180, "measured_at": 5.5}}')

    assert Tolerances(path).of(b"\0") == Tolerance(180 * GAP_SAFETY, TOLERANCE_DEFAULT.drift_milli)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"00": 5}',
        b'{"00": {"tokens": 1, "apart_milli": -1, "measured_at": 0}}',
        b'{"00": {"tokens": 1, "apart_milli": 99999999999, "measured_at": 0}}',
        b'{"00": {"tokens": 1, "apart_milli": 1, "drift_milli": -1, "measured_at": 0}}',
        b"\xff",
        b" " * (2 << 20),
    ],
)
def test_a_damaged_file_means_that_nothing_was_measured(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tolerances.json"
    path.write_bytes(content)

    assert Tolerances(path).of(b"\0") == TOLERANCE_DEFAULT


def test_an_absurd_tolerance_in_the_file_lets_nobody_pass(tmp_path: Path) -> None:
    """The attack: whoever writes a million there once has every cheat pass."""
    path = tmp_path / "tolerances.json"
    path.write_bytes(msgspec.json.encode({"00" * 32: measured(1_000_000, 1_000_000)}))

    assert Tolerances(path).of(bytes(32)) == Tolerance(TOLERANCE_DEFAULT.gap_milli, DRIFT_MILLI_MAX)
