"""Checks: look at a world while it runs, and judge it when it ends. The first law that does not hold ends the world.

To add a law, write one function in this package, whose docstring says the promise that it guards, and one line in
`LAWS`. It takes the scene and yields what is broken. What is looked at all the time must cost little for each device:
a world of a thousand is looked at every few virtual minutes.
"""

import inspect
from collections.abc import Callable, Iterable
from enum import Enum
from typing import TYPE_CHECKING, Final

import trio

from node.chat import ChatRequest
from node.jobs import CLAIM_WINDOW_S
from node.simulation.checkers import (
    attempts,
    authority,
    ballots,
    belonging,
    bounds,
    entries,
    jobs,
    money,
    patches,
    payments,
    privacy,
    runs,
    verification,
)
from node.simulation.checkers.scene import Broken, Scene
from node.simulation.commit import commit
from node.simulation.observations import Outcome
from protocol.errors import AgoraError
from runtime.engine import ChatMessage

if TYPE_CHECKING:
    from node.simulation.world import World

EVENTS_SHOWN: Final = 20
LAST_CHATS_MAX: Final = 16  # devices of a large world that are asked whether chats work again
LAST_CHAT_TOKENS: Final = 4
LAST_CHAT_S: Final = 30.0  # virtual; four tokens take a slow phone one
CLAIMS_END_S: Final = CLAIM_WINDOW_S + 60.0  # from the last fault until nobody may claim anything any more


class When(Enum):
    """How often a law is checked."""

    ALWAYS = "whenever the world is looked at"
    END = "when the world ends, whatever goes on"
    CALM = "when the world ends, and its faults were over long ago"
    SETTLED = "when all claims have come to their end, too"


Law = Callable[[Scene], Iterable[Broken]]

LAWS: Final[tuple[tuple[Law, When], ...]] = (
    (belonging.no_handler_fails, When.ALWAYS),
    (belonging.nobody_honest_is_accused, When.ALWAYS),
    (money.credits_sum_to_zero, When.ALWAYS),
    (money.nobody_overdraws, When.ALWAYS),
    (jobs.no_job_lasts_for_ever, When.ALWAYS),
    (bounds.tables_stay_under_their_bounds, When.ALWAYS),
    (bounds.what_is_kept_of_peers_is_about_members, When.ALWAYS),
    (patches.what_was_vetoed_is_unloaded, When.ALWAYS),
    (verification.nobody_honest_is_caught, When.ALWAYS),
    (verification.another_models_answers_are_caught, When.ALWAYS),
    (verification.lots_are_thrown_when_paid, When.ALWAYS),
    (verification.a_new_sellers_answers_are_all_drawn, When.END),
    (verification.checks_stay_where_prompts_may, When.END),
    (belonging.nobody_honest_is_barred, When.END),
    (entries.entries_are_genuine, When.END),
    (entries.own_logs_have_no_gaps, When.END),
    (entries.known_logs_have_no_gaps, When.END),
    (entries.one_entry_stands_in_each_place, When.END),
    (entries.what_was_acknowledged_survives, When.END),
    (jobs.each_attempt_is_awarded_once, When.END),
    (jobs.sellers_say_each_thing_once, When.END),
    (money.payments_stay_within_holds, When.END),
    (money.each_attempt_is_paid_once, When.END),
    (payments.balances_follow_from_payments, When.END),
    (payments.holds_add_up, When.END),
    (payments.what_was_countersigned_survives, When.END),
    (payments.payments_are_for_what_came, When.END),
    (payments.nobody_is_served_for_nothing, When.END),
    (attempts.no_request_is_bid_on_twice, When.END),
    (attempts.prompts_stay_where_they_may, When.END),
    (attempts.adverts_tell_of_mesh_prompts_alone, When.END),
    (attempts.who_failed_is_not_tried_again, When.END),
    (attempts.no_lease_is_used_past_its_end, When.END),
    (authority.only_the_roll_decides, When.END),
    (ballots.each_voter_says_yes_once, When.END),
    (ballots.who_says_yes_has_looked, When.END),
    (ballots.only_members_propose_and_humans_decide, When.END),
    (patches.no_unratified_patch_is_loaded, When.END),
    (patches.nothing_older_takes_the_place_of_a_head, When.END),
    (patches.no_two_run_different_patches_of_one_version, When.END),
    (privacy.no_privacy_budget_is_overdrawn, When.END),
    (privacy.no_run_spends_more_than_its_share, When.END),
    (privacy.no_round_is_spent_twice, When.END),
    (privacy.nothing_private_is_trained_unpaid, When.END),
    (runs.who_trained_was_in_the_cohort, When.END),
    (runs.no_round_is_trained_twice, When.END),
    (runs.no_cohort_is_smaller_than_its_members_allow, When.END),
    (runs.what_a_run_goes_on_from_is_there, When.END),
    (belonging.all_agree_on_the_assembly, When.CALM),
    (patches.all_follow_the_same_head, When.CALM),
    (belonging.chats_work_again, When.CALM),
    (authority.nobody_contradicts_itself_unpunished, When.SETTLED),
    (authority.nobody_barred_is_served, When.SETTLED),
    (jobs.no_job_is_lost, When.SETTLED),
    (jobs.no_slot_is_lost, When.SETTLED),
    (verification.no_check_waits_for_ever, When.SETTLED),
    (runs.every_run_ends, When.SETTLED),
    (runs.ended_runs_hold_nothing, When.SETTLED),
    (jobs.no_lease_keeps_an_ended_job, When.SETTLED),
    (jobs.awards_end, When.SETTLED),
    (jobs.accepts_end, When.SETTLED),
    (entries.what_is_known_is_on_disk, When.SETTLED),
    (entries.contradictions_are_punished, When.SETTLED),
    (money.who_holds_the_same_entries_agrees, When.SETTLED),
)


class Violation(AgoraError):
    """A law of the world does not hold; the text tells which, where, and how to see it again."""


class Checks:
    """The laws over one world; make it before the world's first device.

    Attributes:
        checked: how often each law was checked.
    """

    def __init__(self, world: "World") -> None:
        self.checked: dict[str, int] = {law.__name__: 0 for law, _ in LAWS}
        self.scene = Scene(world)
        self._world = world
        world.watch(self.scene.note)

    def look(self) -> None:
        """Check what always holds.

        Raises:
            Violation: it does not.
        """
        self._check(When.ALWAYS)

    async def run(self, interval_s: float) -> None:
        """Look again and again, until cancelled.

        Raises:
            Violation: as in `look`.
        """
        while True:
            await trio.sleep(interval_s)
            self.look()

    async def conclude(self, *, is_calm: bool = True) -> None:
        """Check every law on a world that has come to its end.

        Args:
            is_calm: its faults have been over for 120 virtual seconds, and nobody asks any more. Then it must have found
                together again, and what is still open must end within the next five minutes, which pass here.

        Raises:
            Violation: one does not hold.
        """
        self.look()
        if is_calm:
            await self._chat_again()
            self._check(When.CALM)
            await trio.sleep(CLAIMS_END_S)
            self.look()
        await self.scene.read_disks()
        self._check(When.END)
        if is_calm:
            self._check(When.SETTLED)

    async def _chat_again(self) -> None:
        """Ask on one device after the other, first where the answer has to be bought; nobody sells: on none."""
        online = self.scene.online
        if not any(daemon.engine.models for daemon in online):
            return
        chosen = sorted(online, key=lambda daemon: bool(daemon.engine.models))[:LAST_CHATS_MAX]
        self.scene.last_chats = [Outcome(trio.current_time(), daemon.name) for daemon in chosen]
        request = ChatRequest(
            "auto", (ChatMessage("user", "still there?"),), tokens_max=LAST_CHAT_TOKENS, privacy="mesh"
        )
        for daemon, outcome in zip(chosen, self.scene.last_chats, strict=True):
            outcome.at_s = trio.current_time()
            with trio.move_on_after(LAST_CHAT_S):
                await daemon.ask(request, outcome)

    def _check(self, when: When) -> None:
        for law, due in LAWS:
            if due is when:
                self.checked[law.__name__] += 1
                for broken in law(self.scene):
                    raise Violation(self._report(law, broken))

    def _report(self, law: Law, broken: Broken) -> str:
        world = self._world
        daemon = world.daemons[broken.node]
        promise = (inspect.getdoc(law) or "").partition("\n\n")[0].replace("\n", " ")
        events = [f"    {event.to_text()}" for event in daemon.journal.recent(EVENTS_SHOWN)]
        return "\n".join(
            [
                f"law {law.__name__} does not hold: {promise}",
                f"  {broken.node} ({daemon.peer_id}): {broken.found}",
                f"  seed {world.seed}, commit {commit() or 'unknown'}, {world.now:.3f} virtual seconds",
                f"  the last events of {broken.node}:",
                *events,
                f"  again: {world.replay_command}",
            ]
        )
