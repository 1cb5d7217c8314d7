"""Every behaviour in a small world of production nodes: the attack is really made, and honest nodes come to no harm.

What no harm means is in `Town.check` and in the laws of all worlds (`node/simulation/checkers/`): both are looked at
after each story, whatever it is about, while the adversaries go on.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable

import pytest
import trio

from node.chat import ChatRequest
from node.event import Event
from node.services.meeting import CONNECTED_WANTED
from node.simulation.adversaries import BEHAVIOURS, TRADING
from node.simulation.adversaries.receipt_forger import KINDS
from node.simulation.adversaries.sybil_swarm import KEYS_ADMITTED, KEYS_MADE
from node.simulation.checkers.checks import Checks
from node.simulation.daemon import Daemon
from node.simulation.determinism import run
from node.simulation.observations import Outcome
from node.simulation.storm import storm
from node.simulation.world import World
from runtime.engine import ChatMessage

pytestmark = pytest.mark.slow

SETTLED_S = 45.0  # after the last chat: claims of broken attempts have been made, bars have ended or not
LATE_S = 2.0  # a chat of 20 tokens takes 1.2 s when nobody is in its way, and a stall is noticed after 2 s

DRIPPED_S = 60.0  # after it the first dripping answers have come to their end, and both buyers know


class Town:
    """A world, what its nodes journaled, and what its people were answered."""

    def __init__(self, world: World, events: list[tuple[str, Event]]) -> None:
        self.world = world
        self.outcomes: list[Outcome] = []
        self._events = events

    async def settle(self, behaviour: str, *, adversaries: int = 1, sellers: int = 3) -> None:
        """Add honest sellers, adversaries and two buyers; let them meet."""
        self.sellers = await self.world.add(sellers, profile="server")
        self.bad = await self.world.add(
            adversaries, profile="laptop", owner="mallory", is_seller=True, behaviour=behaviour
        )
        self.buyers = await self.world.add(2, profile="laptop", is_seller=False)
        await self.world.run(20)

    async def chat(self, chats: int, *, every_s: float = 10.0, settled_s: float = SETTLED_S) -> None:
        """Let each buyer ask so many times, and wait until everything has come to its end."""
        for _ in range(chats):
            for buyer in self.buyers:
                self.world.nursery.start_soon(self.ask, buyer)
                await self.world.run(every_s / 2)
        await self.world.run(settled_s)

    async def ask(self, buyer: Daemon) -> Outcome:
        """Ask for 20 tokens, and wait for them."""
        outcome = Outcome(at_s=trio.current_time(), buyer=buyer.name)
        self.outcomes.append(outcome)
        message = ChatMessage("user", "what did the square mean to the city?")
        request = ChatRequest(model="auto", messages=(message,), tokens_max=20, privacy="mesh")
        await buyer.ask(request, outcome)
        return outcome

    # --- what is seen -----------------------------------------------------------------------------------------------
    @property
    def honest(self) -> list[Daemon]:
        """Every device that keeps the rules."""
        return [daemon for daemon in self.world.daemons.values() if not daemon.behaviour]

    @property
    def attacks(self) -> Counter[str]:
        """What all adversaries did."""
        counts: Counter[str] = Counter()
        for daemon in self.world.daemons.values():
            if daemon.adversary is not None:
                counts += daemon.adversary.attacks
        return counts

    def events(self, name: str) -> list[dict[str, object]]:
        """The fields of every event of this name that an honest node journaled."""
        honest = {daemon.name for daemon in self.honest}
        return [dict(event.fields) for whose, event in self._events if whose in honest and event.name == name]

    def states(self) -> Counter[str]:
        """How the chats ended."""
        return Counter(outcome.state for outcome in self.outcomes)

    def late(self, outcomes: Iterable[Outcome]) -> list[Outcome]:
        """Those that somebody held up."""
        return [each for each in outcomes if each.ended_s is None or each.ended_s - each.at_s > LATE_S]

    def sold_by(self, daemons: Iterable[Daemon]) -> int:
        """How many chats these finished."""
        names = {str(daemon.peer_id) for daemon in daemons}
        return sum(outcome.seller in names for outcome in self.outcomes)

    # --- no harm ----------------------------------------------------------------------------------------------------
    def check(self) -> None:
        """What holds for honest nodes whoever is hostile."""
        honest = {daemon.peer_id: daemon for daemon in self.honest}
        assert self.events("handler_failed") == []
        barred = [each for each in self.events("peer_barred") if each["peer_id"] in honest]
        assert barred == [], "an honest node refuses an honest one"
        for daemon in honest.values():
            logbook = daemon.node.logbook
            assert logbook.ledger.total_micro() == 0
            assert logbook.halted == ""
            assert not any(logbook.assembly.is_barred(peer_id) for peer_id in honest)
            for other in self.world.daemons.values():
                owed = daemon.node.seller._exposure.micro(other.peer_id)
                assert owed <= daemon.config.exposure_peer_micro
            if any(outcome.buyer == daemon.name for outcome in self.outcomes):
                self._check_paid(daemon)

    def _check_paid(self, daemon: Daemon) -> None:
        """It paid for no token that its client did not get, and no more than was agreed for those it did."""
        ledger = daemon.node.logbook.ledger
        paid_tokens = 0
        for payment in ledger.payments():
            if payment.payer != daemon.peer_id:
                continue
            terms, award = payment.receipt.message, ledger.award(payment.receipt.message.award)
            assert award is not None
            most = (
                terms.prompt_tokens * award.message.prompt_micro
                + terms.completion_tokens * award.message.completion_micro
            )
            assert payment.amount_micro <= min(most, award.message.hold_micro)
            is_check = award.message.completion_micro == 0  # of another's answer: its words are no client's
            paid_tokens += 0 if is_check else terms.completion_tokens
        got = sum(outcome.tokens for outcome in self.outcomes if outcome.buyer == daemon.name)
        assert paid_tokens <= got


def live(story: Callable[[Town], Awaitable[None]], *, seed: int = 1) -> list[tuple[str, str]]:
    """Run a story in a world of its own, then check that nobody honest was harmed; return what was journaled."""
    events: list[tuple[str, Event]] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            world = World(
                nursery, seed=seed, nodes=8, on_event=lambda _at, name, event: events.append((name, event))
            )
            checks = Checks(world)
            async with world.running():
                town = Town(world, events)
                await story(town)
                town.check()
                await checks.conclude()

    run(main, seed=seed)
    return [(name, event.to_text()) for name, event in events]


# --- sellers that do not do what they sold ----------------------------------------------------------------------------
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_capacity_liar_is_believed_for_five_jobs_and_then_left_alone(seed: int) -> None:
    """It delivers, so it is paid; but what it promised and what came differ, and each buyer remembers for itself.

    Of the first five jobs of each buyer the cheapest gets nearly all; of the others as many as curiosity gives away.
    """

    async def story(town: Town) -> None:
        await town.settle("capacity-liar")

        await town.chat(20)

        liar = str(town.bad[0].peer_id)
        early, later = town.outcomes[:10], town.outcomes[10:]
        assert town.attacks["job_taken"] > 0
        assert town.states() == {"finished": 40}
        assert sum(outcome.seller == liar for outcome in early) >= 6
        assert sum(outcome.seller == liar for outcome in later) <= len(later) / 4
        for buyer in town.buyers:
            reputation = buyer.node.buyer._purchasing._reputation
            assert reputation.of(town.bad[0].peer_id).kept < 0.25
            assert all(reputation.of(each.peer_id).kept >= 0.5 for each in town.sellers)

    live(story, seed=seed)


def test_a_silent_winner_costs_each_buyer_a_stall_now_and_then() -> None:
    """Every chat finishes elsewhere; the cheapest price alone does not win for ever."""

    async def story(town: Town) -> None:
        await town.settle("silent-winner")

        await town.chat(15)

        assert town.attacks["silence"] > 0
        assert town.states() == {"finished": 30}
        assert town.sold_by(town.bad) == 0
        late = len(town.late(town.outcomes))
        assert late <= town.attacks["silence"], (
            "it is silent to checks of others' answers as well: no client waits for those"
        )
        assert late < 10

    live(story)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_five_silent_winners_do_not_starve_their_buyers(seed: int) -> None:
    """A job has five attempts, and five keys of one human once won each of them, for ever: no chat was answered any more."""

    async def story(town: Town) -> None:
        await town.settle("silent-winner", adversaries=5, sellers=2)

        await town.chat(14)

        assert town.attacks["silence"] >= 5
        assert town.states() == {"finished": 28}
        late = len(town.late(town.outcomes))
        assert late <= 2 * 5 + 28 // 4, "each buyer tries each of them once, and now and then one again"

    live(story, seed=seed)


def test_a_drip_feeder_is_paid_for_its_drops_and_not_asked_again_soon() -> None:
    """Never silent long enough to be given up, it is given up when it says more than was asked for."""

    async def story(town: Town) -> None:
        await town.settle("drip-feeder")

        await town.chat(15)

        assert town.attacks["drop"] > 20
        assert town.states() == {"finished": 30}
        assert {outcome.tokens for outcome in town.outcomes} == {20}
        later = [each for each in town.outcomes if each.at_s > town.outcomes[0].at_s + DRIPPED_S]
        assert len(later) > 10
        assert len(town.late(later)) <= len(later) / 4

    live(story)


def test_a_model_swapper_is_caught_by_each_buyer_and_left_alone() -> None:
    """Its price is the best there is; two readers of other owners say what its answers are worth."""

    async def story(town: Town) -> None:
        await town.world.add(1, profile="server", owner="carol")  # the town's other sellers are of one owner
        await town.settle("model-swapper")

        await town.chat(15)

        caught = town.events("seller_caught")
        assert town.attacks["swap"] > 0
        assert town.states() == {"finished": 30}
        assert {each["seller"] for each in caught} == {each.peer_id for each in town.bad}
        assert 2 <= town.sold_by(town.bad) <= 4, "a few while the first check is under way, none after"

    live(story)


def test_a_false_reader_has_nobody_barred() -> None:
    async def story(town: Town) -> None:
        await town.world.add(1, profile="server", owner="carol")  # the town's other sellers are of one owner
        await town.settle("false-reader")

        await town.chat(15)

        assert town.attacks["false_reading"] > 0
        assert town.events("seller_caught") == []
        assert town.states() == {"finished": 30}

    live(story)


# --- money ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_a_double_awarder_is_barred_by_everybody_on_its_own_signatures(seed: int) -> None:
    """Two sellers serve it for nothing, up to their exposure; the first that reads its log has the evidence."""

    async def story(town: Town) -> None:
        await town.settle("double-awarder")

        await town.chat(12)

        [awarder] = town.bad
        assert town.attacks["awarded_twice"] > 0
        assert town.attacks["tokens_taken"] > 0
        assert town.states() == {"finished": 24}
        assert all(each.node.logbook.assembly.is_barred(awarder.peer_id) for each in town.honest)

    live(story, seed=seed)


def test_forged_receipts_are_refused_and_the_honest_one_is_paid_once() -> None:
    """More tokens, a higher amount, another's award, or one job under two indexes: each buyer pays what it got."""

    async def story(town: Town) -> None:
        await town.settle("receipt-forger", adversaries=4, sellers=1)

        await town.chat(12)

        assert all(town.attacks[kind] > 0 for kind in KINDS)
        assert town.states() == {"finished": 24}
        assert len(town.events("receipt_refused")) >= len(KINDS) - 1
        assert town.attacks["countersigned"] <= town.attacks["twice"]
        receipts = [
            (payment.payer, payment.receipt.message.job_id, payment.receipt.message.attempt)
            for buyer in town.buyers
            for payment in buyer.node.logbook.ledger.payments()
            if payment.payer == buyer.peer_id
        ]
        assert len(receipts) == len(set(receipts))
        for forger in town.bad:
            for buyer in town.buyers:
                connection = town.world.network.connection(buyer.peer_id, forger.peer_id)
                assert connection is None or connection.open_streams == [], "each forgery left a stream open"

    live(story)


# --- the wire ---------------------------------------------------------------------------------------------------------
def test_what_a_replayer_says_again_changes_nothing() -> None:
    """No second payment, no second job, no second admission, though every frame is genuine."""

    async def story(town: Town) -> None:
        await town.settle("replayer")
        replayer = town.bad[0]

        await town.chat(12)
        own = await town.ask(replayer)  # its own awards and countersignatures are on its tape as well
        await town.world.run(SETTLED_S)

        assert own.state in {"finished", "unsold"}
        assert town.attacks["replayed"] > 100
        assert town.attacks["doubled"] > 0
        assert town.states()["finished"] >= 24
        paid = Counter((each["job"], each["attempt"]) for each in town.events("receipt_countersigned"))
        assert set(paid.values()) == {1}
        members = {daemon.peer_id for daemon in town.world.daemons.values()}
        assert all(set(each.node.logbook.assembly.members()) <= members for each in town.honest)

    live(story)


def test_garbage_costs_its_sender_the_connection_and_nobody_a_chat() -> None:
    """Random bytes, headers that announce the impossible, damaged frames: offences, then a bar of a minute, again and again."""

    async def story(town: Town) -> None:
        await town.settle("garbage-sender")

        await town.chat(12)

        assert all(town.attacks[kind] > 0 for kind in ("thrown", "damaged", "gossiped"))
        assert town.states() == {"finished": 24}
        assert town.late(town.outcomes) == []
        assert {each["peer_id"] for each in town.events("peer_barred")} == {town.bad[0].peer_id}

    live(story)


# --- many keys --------------------------------------------------------------------------------------------------------
def test_a_sybil_swarm_has_as_many_keys_as_its_invitation_and_no_chat_fails() -> None:
    """The founder counts the uses. What they let in is cheap and useless, and is soon left alone."""

    async def story(town: Town) -> None:
        await town.settle("sybil-swarm")
        await town.world.run(20)

        await town.chat(12)

        assert town.attacks["joined"] == KEYS_ADMITTED
        assert town.attacks["refused"] == KEYS_MADE - KEYS_ADMITTED
        assert town.attacks["silence"] > 0
        assert town.attacks["job_taken"] > 0
        swarm = [each for each in town.world.daemons.values() if each.behaviour == "sybil-swarm"]
        assert len(swarm) == 1 + KEYS_ADMITTED
        assert {town.world.founder.node.logbook.assembly.member(each.peer_id).owner for each in swarm} == {
            "mallory"
        }
        assert town.states() == {"finished": 24}
        assert town.sold_by(town.sellers) >= 12

    live(story)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_eclipsed_node_finds_the_others_again(seed: int) -> None:
    """Its link to everybody honest was down for a moment. It was once content with eight connections, whoever had made
    them, and bought from its jailers for ever, at ten times the price.
    """

    async def story(town: Town) -> None:
        world = town.world
        [victim] = await world.add(1, profile="laptop", is_seller=False)
        bad = await world.add(CONNECTED_WANTED, profile="laptop", behaviour="eclipse", owner="mallory")
        sellers = await world.add(3, profile="server")
        jailers = {daemon.peer_id for daemon in bad}
        await world.run(30)

        world.partition([victim], [world.founder, *sellers])
        await world.run(30)

        assert victim.mesh.connected == jailers
        assert town.attacks["dialled"] >= len(bad)
        assert town.attacks["named_allies"] >= len(bad)

        world.heal()
        await world.run(200)  # adverts from before the cut no longer count

        assert not victim.mesh.connected <= jailers
        outcome = await town.ask(victim)
        assert outcome.seller in {str(seller.peer_id) for seller in sellers}

    live(story, seed=seed)


@pytest.mark.parametrize("behaviours", [["replayer", "drip-feeder"], ["garbage-sender", "sybil-swarm"]])
def test_in_a_storm_adversaries_gain_nothing_either(behaviours: list[str]) -> None:
    """Nodes that crash, lose links and come back are where a replay or a lie would get in."""

    async def story(town: Town) -> None:
        await town.world.add(2, profile="server")
        await town.world.add(2, profile="laptop", is_seller=False)
        for behaviour in behaviours:
            await town.world.add(profile="laptop", is_seller=True, owner="mallory", behaviour=behaviour)
        await town.world.open()

        await storm(town.world, 60)
        await town.world.run(120)

        assert town.attacks.total() > 20

    live(story, seed=3)


# --- the vocabulary ---------------------------------------------------------------------------------------------------
def test_each_behaviour_says_in_one_line_what_it_tries() -> None:
    assert list(BEHAVIOURS) == [
        "capacity-liar",
        "silent-winner",
        "drip-feeder",
        "double-awarder",
        "replayer",
        "garbage-sender",
        "receipt-forger",
        "sybil-swarm",
        "eclipse",
        "model-swapper",
        "false-reader",
        "poisoner",
        "lying-coordinator",
        "double-voter",
        "false-scorer",
    ]
    for each in BEHAVIOURS.values():
        assert 0 < len(each.about) <= 120
        assert "\n" not in each.about


def test_a_share_of_the_devices_is_drawn_and_never_the_founder() -> None:
    async def story(town: Town) -> None:
        await town.world.add(12, profile="laptop")

        drawn = town.world.mix_in(share=0.25, behaviours=["silent-winner", "replayer"])

        assert Counter(each.behaviour for each in drawn) == {"silent-winner": 2, "replayer": 1}
        assert [each for each in town.world.daemons.values() if each.behaviour] == sorted(
            drawn, key=list(town.world.daemons.values()).index
        )
        assert town.world.founder.behaviour == ""
        assert len(town.world.mix_in(share=1, behaviours=["eclipse"])) == 9
        assert town.world.founder.behaviour == ""
        await town.world.run(1)

    live(story)


@pytest.mark.parametrize(
    ("share", "behaviours", "complaint"),
    [
        (1.5, ["eclipse"], "a share of 1.5"),
        (-0.1, ["eclipse"], "a share of -0.1"),
        (0.5, [], "0 behaviours"),
        (0.5, ["polite"], "no behaviour 'polite', expected one of capacity-liar, "),
    ],
)
def test_a_mix_that_cannot_be_is_refused(share: float, behaviours: list[str], complaint: str) -> None:
    async def story(town: Town) -> None:
        await town.world.add(4, profile="laptop")

        with pytest.raises(ValueError, match=complaint):
            town.world.mix_in(share=share, behaviours=behaviours)

        await town.world.run(1)

    live(story)


def test_a_world_of_all_behaviours_does_the_same_each_time() -> None:
    """Chance is the seed's, adversaries' too: a violation that one of them causes can be replayed."""

    async def story(town: Town) -> None:
        town.buyers = await town.world.add(2, profile="laptop", is_seller=False)
        await town.world.add(12, profile="laptop", is_seller=True)
        town.world.mix_in(share=0.65, behaviours=TRADING)
        await town.world.run(20)
        await town.chat(4)
        assert town.states()["running"] == 0

    first = live(story, seed=5)

    assert len(first) > 200
    assert live(story, seed=5) == first
