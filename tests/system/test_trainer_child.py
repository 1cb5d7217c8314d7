"""The trainer's child is untrusted and mortal: whatever it says and however it ends, the daemon goes on and so does the next fit."""

import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import psutil
import pytest
import trio

from federation import codec, lora
from federation.defaults import DEFAULT_RECIPE
from protocol.limits import MIB
from runtime import landlock, seccomp
from runtime.engine import Digest
from runtime.gguf_header import read_layout
from runtime.model_store import ModelStore
from runtime.trainer import Fit, FitFrame, FitProgress, Fitted, TrainerDied, TrainerError
from runtime.training import process
from runtime.training.backend import NICENESS, TorchTrainer

TINY = Path(__file__).parents[2] / "examples" / "tiny_model"
DATA = Digest(b"\x11" * 32)
RECIPE = msgspec.structs.replace(DEFAULT_RECIPE, steps=3, batch=4)

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    store = ModelStore(tmp_path_factory.mktemp("bases") / "models")
    trio.run(store.add, TINY / "tiny-q8_0.gguf")
    return store


def task(store: ModelStore, steps: int = RECIPE.steps) -> Fit:
    base = next(iter(store.models))
    layout = read_layout(store.path(base))
    recipe = msgspec.structs.replace(RECIPE, steps=steps)
    shapes = {name.removesuffix(".weight"): shape for name, shape in layout.shapes.items()}
    state = lora.seed_state(recipe, shapes)
    return Fit(
        base=base,
        data=DATA,
        replay=None,
        recipe=recipe,
        round=1,
        since=None,
        payload=codec.change(state, state),
        state=Digest(codec.digest(state)),
        noise=None,
        seed=1,
    )


@asynccontextmanager
async def trainer(
    store: ModelStore,
    directory: Path,
    how: str = "data",
    *,
    main: str = "node.children.trainer",
    memory_bytes_max: int | None = None,
    niceness: int = 0,
) -> AsyncIterator[TorchTrainer]:
    """A trainer with 40 records of private data in a directory of this name."""
    home = directory / how / DATA.hex()
    home.mkdir(parents=True)
    (directory / "blobs").mkdir()
    lines = (TINY / "data" / "heat_pump.train.jsonl").read_bytes().splitlines(keepends=True)
    (home / "train.jsonl").write_bytes(b"".join(lines[:40]))
    made = TorchTrainer(
        store,
        directory / how,
        directory / "blobs",
        main=main,
        memory_bytes_max=memory_bytes_max,
        niceness=niceness,
    )
    try:
        yield made
    finally:
        await made.rest()


async def frames_of(made: TorchTrainer, wanted: Fit) -> list[FitFrame]:
    async with aclosing(made.fit(wanted)) as frames:
        return [frame async for frame in frames]


async def drain(frames: AsyncGenerator[FitFrame, None]) -> None:
    async for _ in frames:
        pass


# --- a child that lies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "verdict"),
    [
        ("garbage", "broke the protocol"),
        ("huge", "a frame of 4294967295 bytes"),
        ("ready twice", "ready twice"),
        ("early", "Beat for call 1, which nobody made"),
        ("unasked", "Fitted for call 2, which nobody made"),
        ("silent", r"was silent for \d s"),
        ("dies", "ended with status 1: no such luck"),
    ],
)
async def test_a_child_that_misbehaves_is_ended(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, verdict: str
) -> None:
    monkeypatch.setattr(process, "SILENCE_S_MAX", 1.0)
    async with trainer(store, tmp_path, how, main="tests.system.rogue_trainer") as made:
        with pytest.raises(TrainerDied, match=verdict):
            await frames_of(made, task(store))

        assert made.child_pid is None
    assert not psutil.Process().children()


@pytest.mark.parametrize(
    ("how", "verdict"),
    [
        ("boasts", "trained 4 steps, expected 3"),
        ("gives up", "nobody cancelled"),
        ("unbidden", "trained unasked"),  # before privacy is reserved
        ("prepares twice", "prepared twice"),
        ("terminal", r"^ \[2Jgone$"),  # an escape sequence of the child reaches no terminal
    ],
)
async def test_a_childs_false_word_fails_the_fit(
    store: ModelStore, tmp_path: Path, how: str, verdict: str
) -> None:
    async with trainer(store, tmp_path, how, main="tests.system.rogue_trainer") as made:
        with pytest.raises(TrainerError, match=verdict):
            await frames_of(made, task(store))


async def test_a_child_that_floods_its_stderr_is_not_stopped_by_it(store: ModelStore, tmp_path: Path) -> None:
    async with trainer(store, tmp_path, "floods", main="tests.system.rogue_trainer") as made:
        assert isinstance((await frames_of(made, task(store)))[-1], Fitted)


async def test_no_beat_tells_more_steps_than_there_are(store: ModelStore, tmp_path: Path) -> None:
    async with trainer(store, tmp_path, "beats", main="tests.system.rogue_trainer") as made:
        frames = await frames_of(made, task(store))

    assert all(frame.step <= RECIPE.steps for frame in frames if isinstance(frame, FitProgress))


async def test_a_child_that_is_told_to_stop_and_is_not_heard_of_again_is_gone_after_rest(
    store: ModelStore, tmp_path: Path
) -> None:
    async with trainer(store, tmp_path, "endless", main="tests.system.rogue_trainer") as made:
        async with aclosing(made.fit(task(store))) as frames:
            async for frame in frames:
                if isinstance(frame, FitProgress) and frame.step:
                    break
        pid = made.child_pid
        assert pid is not None
        await made.rest()

        assert not psutil.pid_exists(pid)


# --- the real one --------------------------------------------------------------------------------------------------


async def test_a_child_that_is_killed_in_mid_step_ends_the_fit_and_the_next_one_has_a_new_child(
    store: ModelStore, tmp_path: Path
) -> None:
    async with trainer(store, tmp_path) as made:
        async with aclosing(made.fit(task(store, steps=10_000))) as frames:
            async for frame in frames:
                if isinstance(frame, FitProgress) and frame.step:
                    break
            first = made.child_pid
            psutil.Process(first).kill()
            with pytest.raises(TrainerDied, match="was killed"):
                await drain(frames)

        frames_after = await frames_of(made, task(store))

        assert isinstance(frames_after[-1], Fitted)
        assert made.child_pid not in (None, first)


async def test_the_child_is_confined_kept_alive_at_low_priority_and_stops_within_a_step(
    store: ModelStore, tmp_path: Path
) -> None:
    async with trainer(store, tmp_path, niceness=NICENESS) as made:
        async with aclosing(made.fit(task(store, steps=10_000))) as frames:
            async for frame in frames:
                if isinstance(frame, FitProgress) and frame.step:
                    break
        pid = made.child_pid
        frames_after = await frames_of(made, task(store))

        assert isinstance(frames_after[-1], Fitted)
        assert made.child_pid == pid
        child = psutil.Process(pid)
        assert child.nice() == psutil.Process().nice() + NICENESS
        has_landlock, has_seccomp = landlock.abi() > 0, seccomp.program("x86_64") is not None
        assert made.sandbox == f"S{1 + has_landlock + has_seccomp}"
        assert not child.net_connections(kind="inet")


async def test_a_base_that_does_not_fit_into_the_childs_memory_is_refused_before_it_starts(
    store: ModelStore, tmp_path: Path
) -> None:
    async with trainer(store, tmp_path, memory_bytes_max=1_024 * MIB) as made:
        with pytest.raises(
            TrainerError, match="takes about 1544 MiB of address space, expected at most 1024 MiB"
        ):
            await frames_of(made, task(store))

        assert made.child_pid is None


async def test_a_child_that_runs_out_of_memory_takes_nothing_else_with_it(
    store: ModelStore, tmp_path: Path
) -> None:
    async with trainer(store, tmp_path, memory_bytes_max=2_048 * MIB) as made:
        records = tmp_path / "data" / DATA.hex() / "train.jsonl"
        records.write_bytes(50 * records.read_bytes())
        greedy = task(store)
        greedy = replace(greedy, recipe=msgspec.structs.replace(greedy.recipe, batch=2_000))
        with pytest.raises(TrainerError, match=r"not enough memory|was killed"):
            await frames_of(made, greedy)

        assert isinstance((await frames_of(made, task(store)))[-1], Fitted)


def test_the_daemons_half_imports_no_machine_learning() -> None:
    program = (
        "import sys; import runtime.training.backend, runtime.toy_trainer, federation.defaults;"
        "print(sorted({'torch', 'numpy', 'flwr', 'transformers', 'opacus', 'peft'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_a_missing_package_is_named_without_importing_any(
    monkeypatch: pytest.MonkeyPatch, store: ModelStore, tmp_path: Path
) -> None:
    monkeypatch.setattr("runtime.training.backend.PACKAGES", ("no_such_package",))

    why_not = TorchTrainer(store, tmp_path, tmp_path).why_not

    assert why_not == "no_such_package is not installed; run 'pip install agora-node[train]'"
