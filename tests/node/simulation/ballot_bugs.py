"""Planted bugs of ballots: who decides, what passes, and what is loaded and unloaded because of it."""

from typing import Final

from tests.node.simulation import learning_stories as stories
from tests.node.simulation.planted_bugs import Fault, PlantedBug, fault

UNRATIFIED: Final = "no_unratified_patch_is_loaded"
NOTHING_LOADED: Final = "no patch is loaded without >= 67 % of the roll's weight and a human's word"

BALLOT_BUGS: Final = (
    PlantedBug(
        "a-quorum-one-too-low",
        "a ballot passes with one voter less than the charter asks for",
        NOTHING_LOADED,
        stories.half_a_roll,
        (UNRATIFIED,),
        fault(
            "marketplace.assembly.ballot:passes",
            ("100 * yes_weight >= pass_percent", "100 * (yes_weight + 1) >= pass_percent"),
        ),
    ),
    PlantedBug(
        "a-turnout-instead-of-the-roll",
        "a ballot passes with two thirds of those who have voted",
        "silence is never consent",
        stories.half_a_roll,
        (UNRATIFIED,),
        fault(
            "marketplace.assembly.ballot:_certified_ms",
            (
                "passes(weight, reign.roll_weight,",
                "passes(weight, sum(reign.roll[each].weight for each in yes),",
            ),
        ),
    ),
    PlantedBug(
        "loaded-before-approval",
        "what the voters have certified is loaded before a human has read of it",
        NOTHING_LOADED,
        stories.unapproved,
        (UNRATIFIED,),
        fault(
            "marketplace.assembly.ballot:Tally.is_ratified",
            ("self.ratified_ms is not None and", "self.certified_ms is not None and"),
        ),
    ),
    PlantedBug(
        "no-veto-window",
        "where no approval is asked for, nobody waits for a human's no either",
        "veto window over or approval given",
        stories.unopposed,
        (UNRATIFIED,),
        fault(
            "marketplace.assembly.lines:tally",
            ("unopposed = max(certified, veto_until)", "unopposed = certified"),
        ),
    ),
    PlantedBug(
        "vetoes-not-counted",
        "a human's veto is written down and changes nothing",
        "a valid veto unloads even after loading",
        stories.vetoed,
        ("what_was_vetoed_is_unloaded", UNRATIFIED),
        fault(
            "marketplace.assembly.lines:tally",
            (
                "tuple(veto.sender for veto in _first_words(words.vetoes, reign.approvers, veto_until))",
                "()",
            ),
        ),
    ),
    PlantedBug(
        "barred-adapters-stay",
        "the engine keeps what a human has barred until its daemon starts anew",
        "a revoked adapter is unloaded within 60 s of hearing of it",
        stories.vetoed,
        ("what_was_vetoed_is_unloaded",),
        fault(
            "node.services.patch_loader:PatchLoader._unload_barred",
            ("list(self._engine.adapters)", "()"),
        ),
    ),
    PlantedBug(
        "withdrawals-forgotten",
        "an adapter that a human has withdrawn is in force all the same",
        "a revoked adapter stays out",
        stories.vetoed,
        ("what_was_vetoed_is_unloaded", UNRATIFIED),
        fault(
            "marketplace.assembly.lines:Lines.fold",
            ("self._withdrawn |= {message.adapter}", "pass"),
        ),
    ),
    PlantedBug(
        "late-votes-counted",
        "a vote counts whenever it was signed",
        "a vote counts iff its signed time is before the expiry",
        stories.late_votes,
        (UNRATIFIED,),
        (
            Fault(
                "marketplace.assembly.ballot:_votes",
                (
                    (
                        "vote.sender in reign.roll and vote.time_ms <= until_ms",
                        "vote.sender in reign.roll",
                    ),
                ),
            ),
            Fault(
                "marketplace.assembly.ballot:Tally.state",
                (
                    (
                        "BallotState.VOTING if now_ms <= self.vote_until_ms else",
                        "BallotState.VOTING if True else",
                    ),
                ),
            ),
        ),
    ),
    PlantedBug(
        "two-yes-after-a-restart",
        "a voter that starts anew has forgotten what it said yes to",
        "one yes per (line, version), locked durably before it is sent",
        stories.rival_proposals,
        ("each_voter_says_yes_once", "nobody_honest_is_accused", "nobody_honest_is_barred"),
        (
            Fault(
                "node.services.voter:Voter._why_closed",
                (("if vote.message.is_yes or vote.message.manifest == ballot.id:", "if False:"),),
            ),
            Fault(
                "marketplace.assembly.promises:Promises.check",
                (("and first.message.manifest != manifest", "and False"),),
            ),
        ),
    ),
    PlantedBug(
        "a-yes-whatever-was-found",
        "a voter says yes whatever its own exam has found",
        "a voter votes after running the evaluation itself",
        stories.worse_patch,
        ("who_says_yes_has_looked",),
        fault(
            "node.services.voter:Voter._cast",
            (
                "is_yes=judgement.is_yes,\n                scores",
                "is_yes=True,\n                scores",
            ),
            (
                "is_yes=judgement.is_yes,\n    )",
                "is_yes=True,\n    )",
            ),
        ),
    ),
    PlantedBug(
        "members-vote",
        "whoever is a member votes, whether it stands on the roll or not",
        "only keys on the charter's roll vote",
        stories.member_votes,
        ("only_members_propose_and_humans_decide", UNRATIFIED, "no_handler_fails"),
        fault(
            "marketplace.assembly.assembly:check_right",
            ("or (was_admitted and isinstance(message, _OF_MEMBERS))", "or was_admitted"),
        ),
    ),
    PlantedBug(
        "devices-approve",
        "an approval counts whoever of the members signed it",
        "the human key is separate; the daemon never loads it",
        stories.member_approves,
        (UNRATIFIED, "only_members_propose_and_humans_decide"),
        (
            Fault(
                "marketplace.assembly.assembly:check_right",
                (("if not is_approver:", "if not is_approver and not was_admitted:"),),
            ),
            Fault(
                "marketplace.assembly.ballot:_first_words",
                (("word.sender in approvers and", ""),),
            ),
        ),
    ),
    PlantedBug(
        "an-older-version-is-taken-for-the-head",
        "of the patches in force the oldest is loaded",
        "no patch is loaded without a version above the line's high-water mark",
        stories.two_versions,
        ("nothing_older_takes_the_place_of_a_head",),
        (
            Fault(
                "marketplace.assembly.lines:Lines.ratified",
                (
                    (
                        "next(iter(self.succession(line, now_ms)), None)",
                        "next(reversed(self.succession(line, now_ms)), None)",
                    ),
                ),
            ),
            Fault(
                "node.services.patch_loader:PatchLoader._load_once",
                (("if self._patches.is_below_high_water(proposal.line, proposal.version):", "if False:"),),
            ),
        ),
    ),
)
