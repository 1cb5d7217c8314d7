"""Planted bugs of the market: attempts at jobs, and the credit that pays for them."""

from typing import Final

from tests.node.simulation import bug_stories as stories
from tests.node.simulation import hostile_stories as hostile
from tests.node.simulation.planted_bugs import PlantedBug, fault

POSTED_AT_ONCE: Final = """if payment is None or payment.receipt.id != receipt.id:
        self._accounts.post(b"", PeerId(terms.payer), PeerId(terms.payee), terms.amount_micro, 0)"""

MARKET_BUGS: Final = (
    # --- attempts ---------------------------------------------------------------------------------------------------
    PlantedBug(
        "a-fence-one-too-low",
        "a seller begins an attempt again that it has begun before",
        "at most one paid receipt per (job, attempt)",
        hostile.work_again,
        ("nobody_honest_is_accused",),
        fault("marketplace.fence:Fence.refusal", ("if attempt == newest:", "if attempt < newest:")),
    ),
    PlantedBug(
        "attempts-numbered-late",
        "the second attempt at a job has the number of the first",
        "at most one live award per (job, attempt)",
        stories.one_seller_dies,
        ("nobody_honest_is_accused",),
        fault(
            "node.jobs:Job.begin_attempt",
            ("Attempt(len(self.attempts) + 1)", "Attempt(max(1, len(self.attempts)))"),
        ),
    ),
    PlantedBug(
        "failed-seller-asked-again",
        "who has let a job down is asked for its next attempt",
        "failover excludes the failed seller",
        stories.only_seller_dies,
        ("who_failed_is_not_tried_again",),
        fault(
            "node.services.eligibility:Eligibility.sellers",
            ("left_out = self._mesh.connected, failed | asked", "left_out = self._mesh.connected, asked"),
        ),
    ),
    PlantedBug(
        "last-token-not-handed-over",
        "the next seller is not told of the last token that the client has",
        "the client sees one unbroken stream; nobody honest is accused",
        stories.one_seller_dies,
        ("nobody_honest_is_accused",),
        fault(
            "node.jobs:Job.still_to_do",
            ("return prompt, tuple(ids)", "return prompt, tuple(ids[:-1])"),
        ),
    ),
    PlantedBug(
        "own-engine-waited-for-for-ever",
        "an own engine that stands still holds its client and its slot for ever",
        "no job is lost",
        stories.own_engine_stands_still,
        ("no_job_is_lost",),
        fault(
            "node.services.buyer:_unless_still",
            ("trio.move_on_after(limits.STANDSTILL_S)", "trio.move_on_after(float('inf'))"),
        ),
    ),
    PlantedBug(
        "privacy-not-asked-for",
        "every member may read a prompt, whatever its class",
        "a prompt goes only where its privacy class allows",
        stories.private_prompt,
        ("prompts_stay_where_they_may",),
        (
            *fault(
                "node.services.eligibility:Eligibility.is_allowed",
                ('return privacy == "mesh" or assembly.same_owner(me, peer)', "return True"),
            ),
            *fault("marketplace.bidding:_serves", ('return privacy == "mesh"', "return True")),
        ),
    ),
    PlantedBug(
        "owners-prompts-advertised",
        "a seller's advert lists the system prompt of an owner's job",
        "adverts tell of no prompt that was not any member's to read",
        stories.own_system_prompt,
        ("adverts_tell_of_mesh_prompts_alone",),
        fault(
            "node.services.offer:OwnOffer.note_served",
            (
                'owner = "" if privacy == "mesh" else self._logbook.assembly.member(buyer).owner',
                'owner = ""',
            ),
        ),
    ),
    PlantedBug(
        "leases-last-for-ever",
        "a session goes on under an award that has long expired",
        "nothing takes effect that was expired",
        stories.long_pause,
        ("no_lease_is_used_past_its_end",),
        fault(
            "marketplace.lease:Lease.is_over",
            (
                "return self.is_retired or now - self.used_at > self.award.message.lease_ms / 1000",
                "return self.is_retired",
            ),
        ),
    ),
    # --- credit -----------------------------------------------------------------------------------------------------
    PlantedBug(
        "credit-on-one-signature",
        "a seller's receipt moves money before its buyer has signed",
        "never credit on one signature",
        stories.trade,
        ("balances_follow_from_payments",),
        fault(
            "marketplace.ledger:Ledger._apply_receipt",
            (
                "if payment is None or payment.receipt.id != receipt.id:",
                POSTED_AT_ONCE,
            ),
        ),
    ),
    PlantedBug(
        "receipt-applied-twice",
        "a payment that is heard of twice counts twice",
        "a receipt's id is its hash, applied once",
        stories.trade,
        ("balances_follow_from_payments",),
        fault(
            "marketplace.ledger:Ledger._apply_countersignature",
            ("if paid is not None and paid.receipt.id == receipt.id:", "if False:"),
            (
                "if paid is not None:\n        return Contradiction",
                "if paid is not None and paid.receipt.id != receipt.id:\n        return Contradiction",
            ),
        ),
    ),
    PlantedBug(
        "a-fee-that-goes-nowhere",
        "a hundredth of each payment arrives nowhere",
        "credits sum to zero",
        stories.trade,
        ("credits_sum_to_zero",),
        fault(
            "marketplace.accounts:Accounts.post",
            (
                "self._balances[payee] += amount_micro",
                "self._balances[payee] += amount_micro - amount_micro // 100",
            ),
        ),
    ),
    PlantedBug(
        "void-gives-back-what-was-paid",
        "the end of a hold frees the part of it that was spent, too",
        "what was paid stays paid",
        stories.trade,
        ("holds_add_up",),
        fault("marketplace.accounts:Accounts.post", ("hold.left_micro -= amount_micro", "pass")),
    ),
    PlantedBug(
        "hold-taken-at-half",
        "an award sets half of its price aside",
        "receipts of a job within its hold",
        stories.trade,
        ("chats_work_again",),
        fault(
            "marketplace.ledger:Ledger._apply_award",
            ("award.sender, terms.hold_micro)", "award.sender, terms.hold_micro // 2)"),
        ),
    ),
    PlantedBug(
        "credit-line-without-debts",
        "the credit line is compared with one award alone, not with all that is owed and promised",
        "an account may fall to minus its credit line",
        stories.poor_buyer,
        ("nobody_overdraws",),
        fault(
            "marketplace.ledger:Ledger.hold",
            ("if amount_micro > spendable:", "if amount_micro > credit_line_micro:"),
        ),
    ),
    PlantedBug(
        "claimed-tokens-not-counted",
        "a buyer countersigns for tokens that never came",
        "a receipt binds counts and output digest",
        hostile.receipt_forger,
        ("payments_are_for_what_came",),
        fault(
            "node.services.settlement:check_receipt",
            ('("completion_tokens", found.completion_tokens, len(ids)),', ""),
            ('("output", found.output, output_digest(ids)),', ""),
        ),
    ),
    PlantedBug(
        "debtors-served",
        "a seller forgets what a buyer has not paid",
        "who takes answers and does not countersign is declined past a small exposure",
        hostile.never_pays,
        ("nobody_is_served_for_nothing",),
        fault(
            "marketplace.exposure:Exposure.micro",
            ("sum(self._open.get(buyer, {}).values()) + self._doubt[buyer]", "0"),
        ),
    ),
    PlantedBug(
        "two-countersignatures-at-once",
        "two receipts of one attempt that come together are both signed",
        "at most one paid receipt per (job, attempt)",
        hostile.receipt_forger,
        ("nobody_honest_is_accused",),
        fault(
            "node.services.settlement:Settlement._countersign",
            ("if key in self._countersigning:", "if False:"),
            ("self._countersigning.remove(key)", "self._countersigning.discard(key)"),
        ),
    ),
    PlantedBug(
        "hold-given-back-at-once",
        "the hold of a failed attempt is void before its seller can claim what was accepted",
        "a failed attempt is paid for the tokens accepted",
        stories.one_seller_dies,
        ("nobody_honest_is_accused",),
        fault("node.services.purchasing:Purchasing._keep_hold_for_claim", ("if attempt.ids:", "if False:")),
    ),
    PlantedBug(
        "hold-never-given-back",
        "the hold of a failed attempt stands for ever",
        "no job is lost: each ends settled, refunded or expired",
        stories.one_seller_dies,
        ("no_lease_keeps_an_ended_job",),
        fault(
            "node.services.purchasing:Purchasing._keep_hold_for_claim",
            ("self._end_job(job, attempt)", "await trio.lowlevel.checkpoint()"),
        ),
    ),
    PlantedBug(
        "receipts-forgotten-at-restart",
        "a receipt that was signed and not paid is never presented again",
        "no job is lost: each ends settled, refunded or expired",
        stories.unpaid_receipt,
        ("accepts_end",),
        fault(
            "node.services.settlement:Settlement.run",
            ("in self._logbook.ledger.unsettled(self._logbook.me):", "in ():"),
        ),
    ),
)
