"""A model comes in through four gates and is checked again before it is loaded; a refusal says what was found."""

import os
import random
from pathlib import Path

import pytest

from runtime.engine import Digest, UnknownModel
from runtime.model_store import ModelRefused, ModelStore
from tests.gguf_files import LLAMA, LOOP_BOMB, MEMORY_BOMB, flip_bit, header, poison, set_number, tiny_model
from tests.system.engines import answer, ask, running

pytestmark = pytest.mark.system


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def contents(store: ModelStore) -> list[str]:
    return sorted(path.suffix for path in store.directory.iterdir())


async def test_an_added_model_is_listed_also_after_a_restart(store: ModelStore, tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "tiny.gguf")
    hashed: list[tuple[int, int]] = []

    card = await store.add(path, name="mine", on_progress=lambda done, total: hashed.append((done, total)))

    size = path.stat().st_size
    assert (card.name, card.architecture, card.quantisation, card.size_bytes) == (
        "mine",
        "llama",
        "Q4_0",
        size,
    )
    assert hashed[-1] == (size, size)
    assert contents(store) == [".gguf", ".json"]
    assert ModelStore(store.directory).models == store.models == {card.digest: card}


async def test_adding_a_model_again_changes_its_name_only(store: ModelStore, tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "tiny.gguf")

    first = await store.add(path, name="one")
    second = await store.add(path, name="two")

    assert (first.digest, second.name) == (second.digest, "two")
    assert contents(store) == [".gguf", ".json"]


async def test_a_removed_model_is_gone_and_its_source_stays(store: ModelStore, tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "tiny.gguf")
    card = await store.add(path)

    store.remove(card.digest)

    assert (store.models, contents(store), path.exists()) == ({}, [], True)
    with pytest.raises(UnknownModel):
        store.remove(card.digest)


def make(path: Path, kind: str) -> Path:
    """Write a file that is wrong in one way."""
    match kind:
        case "a text":
            path.write_text("hello")
        case "cut short":
            data = tiny_model(path).read_bytes()
            path.write_bytes(data[: len(data) // 2])
        case "no layers":
            set_number(tiny_model(path), "llama.block_count", 0)
        case "a million layers":
            set_number(tiny_model(path), "llama.block_count", 1_000_000)
        case "three layers of two":
            set_number(tiny_model(path), "llama.block_count", 3)
        case "a header alone":
            path.write_bytes(header())
        case "an adapter":
            path.write_bytes(header({**LLAMA, "general.type": "adapter"}))
        case "not finite":
            poison(tiny_model(path))
        case "a loop bomb":
            tiny_model(path, template=LOOP_BOMB)
        case "a memory bomb":
            tiny_model(path, template=MEMORY_BOMB)
        case "a template that does not compile":
            tiny_model(path, template="{% if %}")
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("a text", "it is no GGUF"),
        ("cut short", "cut short"),
        ("no layers", "block_count is 0"),
        ("a million layers", "block_count is 1000000"),
        ("three layers of two", "'blk.2.attn_norm.weight' not found"),
        ("a header alone", "refused: "),
        ("an adapter", "expected 'model'"),
        ("not finite", "not finite"),
        ("a loop bomb", "ran for over"),
        ("a memory bomb", "of memory"),
        ("a template that does not compile", "TemplateSyntaxError"),
    ],
)
async def test_a_bad_file_is_refused_with_what_was_found(
    store: ModelStore,
    tmp_path: Path,
    kind: str,
    message: str,
) -> None:
    path = make(tmp_path / "bad.gguf", kind)

    with pytest.raises(ModelRefused) as caught:
        await store.add(path)

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (store.models, contents(store)) == ({}, [])


async def test_what_a_symbolic_link_points_to_is_added(store: ModelStore, tmp_path: Path) -> None:
    """Download caches consist of such links; a linked link would break with the cache."""
    link = tmp_path / "link.gguf"
    link.symlink_to(tiny_model(tmp_path / "tiny.gguf"))

    card = await store.add(link)

    assert not store.path(card.digest).is_symlink()


async def test_a_directory_is_refused(store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="is no file"):
        await store.add(tmp_path)


async def test_flipped_bits_never_harm_the_daemon(store: ModelStore, tmp_path: Path) -> None:
    """Half of them load silently, some kill llama.cpp, some are refused: all of that happens in a child."""
    rng = random.Random(7)
    size = tiny_model(tmp_path / "whole.gguf").stat().st_size
    for _ in range(8):
        bit = rng.randrange(8 * min(size, 40_000))
        path = flip_bit(tiny_model(tmp_path / f"{bit}.gguf"), bit)
        try:
            card = await store.add(path)
        except ModelRefused as refusal:
            assert "\n" not in str(refusal)  # noqa: PT017
        else:
            store.remove(card.digest)

    assert contents(store) == []


async def test_a_file_that_changed_behind_the_store_does_not_serve(store: ModelStore, tmp_path: Path) -> None:
    """A rotten or replaced file under the old digest would be sold as what it is not."""
    card = await store.add(tiny_model(tmp_path / "tiny.gguf"))
    flip_bit(store.path(card.digest), 8 * (card.size_bytes - 5))
    async with running(store) as engine:
        with pytest.raises(ModelRefused, match=r"has digest .* expected"):
            await answer(engine, ask(card.digest))


async def test_a_file_that_was_only_touched_is_hashed_once(store: ModelStore, tmp_path: Path) -> None:
    card = await store.add(tiny_model(tmp_path / "tiny.gguf"))
    os.utime(store.path(card.digest), ns=(1, 1))

    assert await store.verify(card.digest) == store.path(card.digest)
    assert ModelStore(store.directory)._entries[card.digest].mtime_ns == 1


async def test_a_file_that_is_gone_is_an_unknown_model(store: ModelStore, tmp_path: Path) -> None:
    card = await store.add(tiny_model(tmp_path / "tiny.gguf"))
    store.path(card.digest).unlink()

    with pytest.raises(UnknownModel, match="is gone from"):
        await store.verify(card.digest)
    assert Digest(card.digest) in store.models
