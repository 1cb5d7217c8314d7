"""What a seller states of each token is compared with what a reader computes: whoever computes something else is caught."""

import pytest

from runtime.engine import EngineDied, Sampling
from tests.node.check_cheats import (
    QUESTION,
    READ_S,
    BusyElsewhere,
    Coarse,
    InventiveReader,
    LazyReader,
    Restater,
    buy,
    found,
)
from tests.node.world import Daemon, Engine, World

CHANCE = Sampling(temperature_ppm=800_000, seed=5)


async def answered_by(world: World, engine: Engine, **request: object) -> tuple[Daemon, BusyElsewhere]:
    """Have the founder buy an answer of this engine, and check it with its own."""
    own = BusyElsewhere()
    await world.found_again(engine=own)
    seller = await world.add("bob", engine=engine)
    await world.acquaint(world.founder, seller)
    await world.founder.chat(QUESTION, **request)
    own.is_busy = False
    await world.run(READ_S)
    return seller, own


# --- by the own engine --------------------------------------------------------------------------------------------------
async def test_four_bits_whose_text_is_the_honest_one_are_caught(world: World) -> None:
    """The attack: its greedy text is the same to the token, so no gap shows it."""
    cheat, _ = await answered_by(world, Coarse())

    verification, detail = found(world.founder)
    assert verification == "caught"
    assert detail.startswith(
        "0 of 24 tokens stray, the worst 0.00 logits below the likeliest, a mean drift of "
    )
    assert [each["seller"] for each in world.founder.events("seller_caught")] == [cheat.peer_id]


async def test_an_answer_drawn_by_chance_from_another_model_is_caught(world: World) -> None:
    """The attack: where every token is possible, none of them can be held against a seller."""
    cheat, _ = await answered_by(world, Coarse(), sampling=CHANCE)

    verification, detail = found(world.founder)
    assert verification == "caught"
    assert detail.startswith("24 tokens have a mean drift of ")
    assert [each["seller"] for each in world.founder.events("seller_caught")] == [cheat.peer_id]


@pytest.mark.parametrize(
    "sampling",
    [CHANCE, Sampling(repeat_penalty_ppm=1_200_000), Sampling(logit_bias=(((1 << 24) + 0x616161, 1_000),))],
    ids=["chance", "penalty", "bias"],
)
async def test_an_honest_answer_of_any_sampling_passes(world: World, sampling: Sampling) -> None:
    seller, own = await answered_by(world, Engine(), sampling=sampling)

    assert found(world.founder) == ("passed", "24 tokens have a mean drift of 0.00 logits")
    (read,) = [request for request in own.started if request.task == "check"]
    assert read.sampling == Sampling(), "what is read is what the model computes"
    assert world.founder.node.reputation.of(seller.peer_id).judged == 1


async def test_a_seller_that_restates_an_earlier_answers_contrasts_is_caught(world: World) -> None:
    """The attack: what was computed once by the right model is stated of everything that is sold afterwards."""
    cheat, own = await answered_by(world, Restater())
    assert found(world.founder)[0] == "passed", "the first time it is true"

    own.is_busy = True
    await world.founder.chat("and what is a stoa, if I may ask?")
    own.is_busy = False
    await world.run(READ_S)

    assert found(world.founder)[0] == "caught"
    assert [each["seller"] for each in world.founder.events("seller_caught")] == [cheat.peer_id]


async def test_a_successor_answers_for_its_own_contrasts_alone(world: World) -> None:
    """The first seller computes something else and dies; the second goes on honestly from its tokens."""
    own = BusyElsewhere()
    await world.found_again(engine=own)
    dying = Coarse()
    dying.die_after = 9
    cheat = await world.add("bob", engine=dying, price_completion_micro=1)
    honest = await world.add("cat")
    await world.acquaint(world.founder, cheat, honest)

    await world.founder.chat(QUESTION)
    own.is_busy = False
    await world.run(30)

    attempts = {each.seller: each for each in world.founder.node.jobs()[0].attempts}
    assert attempts[cheat.peer_id].verification == "caught"
    assert attempts[honest.peer_id].verification == "passed"
    assert attempts[honest.peer_id].verification_detail == (
        "0 of 15 tokens stray, the worst 0.00 logits below the likeliest, a mean drift of 0.00 logits"
    )


async def test_a_check_is_told_what_was_said_and_not_what_was_stated(world: World) -> None:
    """The attack: a reader says back what it is told, and clears whoever pays it."""
    _, own = await answered_by(world, Engine())

    (read,) = [request for request in own.started if request.task == "check"]
    assert len(read.claimed) == 24
    assert (read.received, read.inputs, read.stop) == ((), (), ())


# --- by a second seller -------------------------------------------------------------------------------------------------
async def read_by(world: World, seller: Engine, *readers: Engine) -> Daemon:
    """Have the founder buy an answer of a seller, and its check of readers, each of an owner of its own."""
    await world.found_again(buy_checks=True)
    sold_by = await world.add("bob", engine=seller)
    others = [
        await world.add(f"reader {number}", engine=engine, price_completion_micro=100)
        for number, engine in enumerate(readers)
    ]
    await world.acquaint(world.founder, sold_by, *others)
    await buy(world.founder)
    return sold_by


async def test_a_lazy_reader_of_zeros_clears_nobody(world: World) -> None:
    """The attack: paid to read, it says that all is well and saves the work."""
    cheat = await read_by(world, Coarse(), LazyReader())

    assert found(world.founder)[0] == "unverified"
    assert world.founder.node.reputation.of(cheat.peer_id).judged == 0


async def test_a_lazy_reader_of_zeros_condemns_nobody_alone(world: World) -> None:
    seller = await read_by(world, Engine(), LazyReader())

    verification, detail = found(world.founder)
    assert verification == "unverified"
    assert detail.startswith("one reader finds that 0 of 24 tokens stray")
    assert "and nobody confirms it" in detail
    assert world.founder.node.reputation.of(seller.peer_id).caught == 0


async def test_two_lazy_readers_condemn_nobody_together(world: World) -> None:
    """They find alike, and have computed nothing alike."""
    seller = await read_by(world, Engine(), LazyReader(), LazyReader())

    assert found(world.founder) == ("unverified", "two readers of other owners do not agree")
    assert world.founder.node.reputation.of(seller.peer_id).judged == 0


async def test_two_readers_that_made_their_numbers_up_apart_condemn_nobody(world: World) -> None:
    """Each finds that the seller has computed something else, and so has the other reader."""
    seller = await read_by(world, Engine(), InventiveReader(b"one"), InventiveReader(b"other"))

    assert found(world.founder) == ("unverified", "two readers of other owners do not agree")
    assert world.founder.events("seller_caught") == []
    assert world.founder.node.reputation.of(seller.peer_id).judged == 0


async def test_two_readers_who_have_computed_it_condemn_four_bits(world: World) -> None:
    cheat = await read_by(world, Coarse(), Engine(), Engine())

    assert found(world.founder)[0] == "caught"
    bought = world.founder.events("check_bought")
    assert len({each["reader"] for each in bought}) == len(bought) == 2
    assert [each["seller"] for each in world.founder.events("seller_caught")] == [cheat.peer_id]


class DiesOnce(Engine):
    """The first of those that share a list dies in the middle of its reading."""

    def __init__(self, to_die: list[int]) -> None:
        super().__init__()
        self._to_die = to_die

    async def before_tokens(self, said: int) -> None:
        if said == 3 and self._to_die:
            self._to_die.clear()
            raise EngineDied("the child process died")


async def test_who_began_a_reading_that_another_ended_does_not_read_it_again(world: World) -> None:
    """The attack: one liar has a part in both readings that condemn."""
    to_die = [1]
    cheat = await read_by(world, Coarse(), DiesOnce(to_die), DiesOnce(to_die))

    readers = [each["reader"] for each in world.founder.events("check_bought")]
    assert len(set(readers)) == len(readers) == 2
    verification, detail = found(world.founder)
    assert verification == "unverified"
    assert detail.endswith("nobody confirms it: nobody else, of another owner, sells the model")
    assert world.founder.node.reputation.of(cheat.peer_id).judged == 0
