"""`agora calibrate` on a real engine: it measures, writes what the verifier reads, and refuses in one line."""

from pathlib import Path

import pytest

from marketplace.verification import Tolerance
from node.local_mesh.processes import LocalMeshFailed, verb
from node.tolerances import DRIFT_MILLI_MAX, DRIFT_MILLI_MIN, GAP_MILLI_MAX, GAP_MILLI_MIN, Tolerances
from runtime.model_store import ModelStore

pytestmark = pytest.mark.system

TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny_model" / "tiny-q8_0.gguf"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "home"
    verb("init", "--name", "town", "--owner", "ann", home=made, environ={"AGORA_PASSPHRASE": "a long phrase"})
    return made


async def test_a_model_is_measured_and_its_tolerance_kept_for_the_daemon(home: Path) -> None:
    card = await ModelStore(home / "models").add(TINY, name="tiny")

    (found,) = verb("calibrate", "tiny", home=home)

    assert (found["model"], found["digest"]) == ("tiny", card.digest.hex())
    assert found["tokens"] > 1_000
    assert 0 < found["apart_milli"] < 1_000, "batches of another shape round otherwise, and not by much"
    assert GAP_MILLI_MIN <= found["tolerance_milli"] <= GAP_MILLI_MAX
    assert 0 < found["drift_milli"] < 200, "a 4-bit model drifts by more than that"
    assert DRIFT_MILLI_MIN <= found["drift_tolerance_milli"] <= DRIFT_MILLI_MAX
    path = home / "tolerances.json"
    assert path.stat().st_mode & 0o777 == 0o600
    kept = Tolerance(found["tolerance_milli"], found["drift_tolerance_milli"])
    assert Tolerances(path).of(card.digest) == kept


def test_a_home_without_a_model_is_told_what_to_do(home: Path) -> None:
    with pytest.raises(
        LocalMeshFailed, match="no model that writes on this device; run 'agora model add FILE"
    ):
        verb("calibrate", home=home)


async def test_a_model_that_is_not_here_is_named_with_those_that_are(home: Path) -> None:
    await ModelStore(home / "models").add(TINY, name="tiny")

    with pytest.raises(LocalMeshFailed, match="0 models are called 'large', expected one of: tiny "):
        verb("calibrate", "large", home=home)

    assert not (home / "tolerances.json").exists()
