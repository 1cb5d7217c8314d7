"""What a name stands for: which model, and what it can do."""

from dataclasses import replace

import pytest

from node.chat import UnknownModelName
from runtime.echo import ECHO_MODEL, echo_card
from runtime.engine import Digest, ModelCard
from tests.node.world import Daemon, Engine, World

EMBEDDER = Digest(bytes(31) + b"v")
CARDS = (echo_card(), echo_card(EMBEDDER, "echo-vectors", dimensions=6))


async def seller(world: World, name: str, *cards: ModelCard) -> Daemon:
    daemon = await world.add(name, engine=Engine(cards=cards or CARDS))
    await world.acquaint(world.founder, daemon)
    return daemon


async def test_a_model_that_embeds_is_listed_with_its_dimensions(world: World) -> None:
    bob = await seller(world, "bob")

    for node in (bob.node, world.founder.node):
        found = {model.digest: model.dimensions for model in node.models()}
        assert found == {ECHO_MODEL.hex(): 0, EMBEDDER.hex(): 6}
        assert (node.model("auto").digest, node.model("auto", "embedding").digest) == (
            ECHO_MODEL.hex(),
            EMBEDDER.hex(),
        )


async def test_a_name_stands_for_its_base_whatever_patch_it_names(world: World) -> None:
    bob = await seller(world, "bob")
    name = bob.node.model("auto", "embedding").id

    assert bob.node.model(f"{name}+base") == bob.node.model(name)
    with pytest.raises(UnknownModelName, match="no model 'gpt-9' on this mesh; it has: "):
        bob.node.model("gpt-9")


@pytest.mark.parametrize("lie", [0, 7])
async def test_a_liar_about_dimensions_changes_no_list(world: World, lie: int) -> None:
    """Also when its advert is the first that is looked at, in any order."""
    for name, told in (("eve", lie), ("bob", 6), ("cat", 6), ("dan", 6), ("eva", lie)):
        await seller(world, name, replace(CARDS[1], dimensions=told))

    assert [model.dimensions for model in world.founder.node.models()] == [6]


async def test_liars_about_dimensions_keep_nobody_from_asking(world: World) -> None:
    """Many that say a model writes leave it one that embeds, for whoever wants that; so the other way round."""
    for name in ("eve", "eva", "ivy"):
        await seller(world, name, replace(CARDS[1], dimensions=0), replace(CARDS[0], dimensions=7))
    for name in ("bob", "cat"):
        await seller(world, name)
    embedder, writer = (f"echo@{digest.hex()}" for digest in (EMBEDDER, ECHO_MODEL))

    asked = world.founder.node.model

    assert asked(embedder, "embedding").dimensions == 6
    assert [asked(writer, task).dimensions for task in ("chat", "completion")] == [0, 0]
