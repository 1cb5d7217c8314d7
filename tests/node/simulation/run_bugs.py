"""Planted bugs of training runs: whose data trains, in what company, what it costs in privacy, and how it ends."""

from typing import Final

from tests.node.simulation import learning_stories as stories
from tests.node.simulation.faulty_parts import append_behind
from tests.node.simulation.mesh_bugs import APPENDED
from tests.node.simulation.planted_bugs import Fault, PlantedBug, fault

WITHIN_BUDGET: Final = "epsilon spent never exceeds a data source's budget"
WITHIN_SHARE: Final = "one run spends no more of a budget than its owner allows to one"
NEVER_REFUNDED: Final = "privacy is reserved durably before the first step, never refunded, through any crash"

RUN_BUGS: Final = (
    # --- privacy --------------------------------------------------------------------------------------------------
    PlantedBug(
        "epsilon-refunded",
        "when a run is over, what was spent on it is given back",
        NEVER_REFUNDED,
        stories.two_runs,
        ("no_privacy_budget_is_overdrawn",),
        fault(
            "node.privacy_book:PrivacyBook.spent",
            ("for taken in self._spends.get(digest, ())]", "for taken in self._spends.get(digest, ())[3:]]"),
        ),
    ),
    PlantedBug(
        "each-run-has-the-whole-budget",
        "a run's noise is planned as if nothing had been spent before, and nobody looks again",
        WITHIN_BUDGET,
        stories.two_runs,
        ("no_privacy_budget_is_overdrawn",),
        (
            Fault(
                "node.privacy_book:PrivacyBook.plan",
                (("(each.budget_milli, self.spent(each)),", "(each.budget_milli, []),"),),
            ),
            Fault(
                "node.privacy_book:PrivacyBook._refusal",
                (("if would_be > each.budget_milli:", "if False:"),),
            ),
        ),
    ),
    PlantedBug(
        "one-run-spends-it-all",
        "the first run that is announced is given all that is left of a budget",
        WITHIN_SHARE,
        stories.one_run,
        ("no_run_spends_more_than_its_share",),
        (
            Fault(
                "node.privacy_book:PrivacyBook.plan",
                (("(self.share_milli(each), []),", "(each.budget_milli, []),"),),
            ),
            Fault(
                "node.privacy_book:PrivacyBook._refusal",
                (("if by_run > self.share_milli(each):", "if False:"),),
            ),
        ),
    ),
    PlantedBug(
        "a-round-spent-twice",
        "a round that a crash broke off is spent for once more, and trained once more",
        NEVER_REFUNDED,
        stories.participant_dies,
        ("no_round_is_spent_twice",),
        fault(
            "node.privacy_book:PrivacyBook._refusal",
            ("if (run, round_) in self._rounds:", "if False:"),
        ),
    ),
    PlantedBug(
        "spent-behind",
        "privacy is reserved, and written within the second",
        NEVER_REFUNDED,
        stories.participant_dies,
        ("own_logs_have_no_gaps", "nothing_private_is_trained_unpaid"),
        fault("node.logbook:Logbook._write_batch", APPENDED, append=append_behind("spend")),
    ),
    PlantedBug(
        "trained-without-noise",
        "a set with a budget is trained on like any other",
        "the owner decides on privacy, once, and a run obeys",
        stories.two_runs,
        ("nothing_private_is_trained_unpaid",),
        (
            Fault(
                "node.privacy_book:PrivacyBook.plan",
                (("if not data_set.is_private:", "if True:"),),
            ),
            Fault(
                "node.privacy_book:PrivacyBook.reserve",
                (("if not data_set.is_private:", "if True:"),),
            ),
        ),
    ),
    # --- company ----------------------------------------------------------------------------------------------------
    PlantedBug(
        "cohort-minimum-ignored",
        "a member trains in whatever company its coordinator is content with",
        "a cohort below the minimum is refused by the participant",
        stories.small_cohort,
        ("no_cohort_is_smaller_than_its_members_allow",),
        fault("node.services.participant:why_no_cohort", ("if size < cohort_min:", "if False:")),
    ),
    PlantedBug(
        "one-enlistment-counted-thrice",
        "a member counts enlistments, whoever signed them",
        "a cohort below the minimum is refused by the participant",
        stories.false_cohort,
        ("no_cohort_is_smaller_than_its_members_allow",),
        fault(
            "node.services.participant:why_no_cohort",
            ("if len(set(senders)) < len(senders):", "if False:"),
        ),
    ),
    PlantedBug(
        "rounds-not-fenced",
        "a member trains a round again that it has trained before, for whoever asks",
        "attempts are numbered and fenced: a round is trained once",
        stories.old_rounds,
        ("no_round_is_trained_twice",),
        fault(
            "node.services.participant:Participant.begin",
            ("if newest is not None and task.round <= newest.round:", "if False:"),
        ),
    ),
    # --- ends -------------------------------------------------------------------------------------------------------
    PlantedBug(
        "holds-of-runs-kept",
        "what was set aside for a run stays so when it is over",
        "every run ends, and its holds are released",
        stories.cancelled,
        ("ended_runs_hold_nothing",),
        fault("node.services.coordinator:Coordinator._release", ("if seat.award:", "if False:")),
    ),
    PlantedBug(
        "dropped-before-the-record",
        "a run that a full disk has ended drops its blobs while the record on that disk still names them",
        "runs survive a crash of the coordinator",
        stories.full_in_a_run,
        ("what_a_run_goes_on_from_is_there",),
        fault(
            "node.services.coordinator:Coordinator._let_go",
            (
                "if await self._tools.book.keep_soon(file):",
                "if await self._tools.book.keep_soon(file) or True:",
            ),
        ),
    ),
    PlantedBug(
        "runs-forgotten-by-a-crash",
        "a coordinator that starts anew leaves its runs where they were",
        "runs survive a crash of the coordinator",
        stories.coordinator_dies,
        ("every_run_ends",),
        fault("node.services.coordinator:Coordinator.run", ("if file.state not in ENDED:", "if False:")),
    ),
    PlantedBug(
        "bids-waited-for-after-a-crash",
        "a run that was looking for members when its coordinator died looks for them for ever",
        "every run ends: finished, aborted or paused",
        stories.coordinator_gone_early,
        ("every_run_ends",),
        fault(
            "node.services.coordinator:Coordinator._abandon",
            ('file.state, file.reason = "aborted",', "file.reason ="),
        ),
    ),
)
