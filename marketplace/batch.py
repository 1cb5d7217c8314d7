"""The batch lane: long work that is announced by gossip, bid for by stream, and given to several.

A training run is announced once; whoever holds such data answers with an enlistment, a sealed bid, or with a decline
and its reason. Each member of the cohort gets an award of its own, which opens a lease for the whole run; each round is
a job under that lease, paid by its steps, with a receipt of its own. All of it is pure: what both sides compute alike
(job ids, an award's terms, a receipt) is computed here once.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from marketplace.pricing import Prices, asked
from marketplace.receipt import Mismatch
from protocol import limits
from protocol.envelope import Sealed, encode
from protocol.identity import PeerId
from protocol.messages import (
    NO_HASH,
    Accepted,
    Award,
    Decline,
    DeclineReason,
    Enlistment,
    Hash,
    Receipt,
    Recipe,
    RunAnnouncement,
)

NO_RUN = bytes(16)  # the parent of a run that begins from the common seed
LEASE_MS_MAX = (
    7 * 24 * 3_600_000
)  # a run that is paused for longer is announced again as a child of its checkpoint
ATTEMPT = 1  # a round is asked of one member once: it trains or it is dropped


@dataclass(frozen=True)
class TrainerTerms:
    """What the device's owner configured.

    Attributes:
        owner: whose device this is, as its admission says.
        step_micro: the price of one training step on an idle device on mains power.
        owner_percent: what the owner's other devices pay of it.
        battery_percent_min: below it, and not charging, it trains nothing.
        exposure_micro_max: what one coordinator may have received without countersigning.
        cohort_min: fewer must not train together with this owner's data.
    """

    owner: str
    step_micro: int = 0
    owner_percent: int = 100
    battery_percent_min: int = 30
    exposure_micro_max: int = 1_000_000
    cohort_min: int = limits.COHORT_MIN_DEFAULT


@dataclass(frozen=True)
class TrainerState:
    """The device, its data and the announcer, as of now.

    Attributes:
        announcer_owner: whose device the announcer is; None: no member.
        samples: training records of the newest set of the wanted name; None: there is none.
        why_no_budget: why the owner's privacy budget does not allow the run; empty: it does.
        epsilon_milli: what the whole run would spend of it; -1: the set is used without differential privacy.
        is_base_held: the base model is on this device.
        why_not: why this device cannot train at all; empty: it can.
        is_busy: it trains, or has enlisted, for another run.
        load_percent, battery_percent (-1: none), is_charging: as in `Device`.
        steps_per_ks: measured; 0: not yet.
        spendable_micro: what the announcer can still pay, as far as it is known here.
        unsettled_micro: what it received from this device and did not countersign.
    """

    announcer_owner: str | None
    samples: int | None
    why_no_budget: str
    epsilon_milli: int
    is_base_held: bool
    why_not: str
    is_busy: bool
    load_percent: int
    battery_percent: int
    is_charging: bool
    steps_per_ks: int
    spendable_micro: int
    unsettled_micro: int


def enlist(
    announcement: Sealed[RunAnnouncement], terms: TrainerTerms, state: TrainerState
) -> Enlistment | Decline:
    """Return a device's answer to an announced run: a bid, or the first reason that holds against it."""
    wanted = announcement.message
    price = step_price_micro(terms, state)
    total = hold_micro(wanted, price)
    is_flat = 0 <= state.battery_percent < terms.battery_percent_min and not state.is_charging
    checks: tuple[tuple[DeclineReason, bool, str], ...] = (
        # reason           holds when                                 what was found, what was expected
        ("not_admitted", state.announcer_owner is None, "the announcer is no member here"),
        ("data", state.samples is None, f"no data set of the name {wanted.data!r}"),
        ("policy", bool(state.why_not), state.why_not),
        ("model_missing", not state.is_base_held, "the base model is not held"),
        (
            "cohort",
            wanted.cohort_min < terms.cohort_min,  # so few may be left of it at its end
            f"it goes on with {wanted.cohort_min} members, at least {terms.cohort_min} wanted",
        ),
        ("budget", bool(state.why_no_budget), state.why_no_budget),
        (
            "battery",
            is_flat,
            f"{state.battery_percent} %, at least {terms.battery_percent_min} % wanted",
        ),
        ("busy", state.is_busy, "this device trains for another run"),
        (
            "price",
            price > wanted.step_micro_max,
            f"{price} a step asked, at most {wanted.step_micro_max} allowed",
        ),
        ("credit", total > state.spendable_micro, f"{total} asked, {state.spendable_micro} spendable"),
        (
            "unsettled",
            state.unsettled_micro > terms.exposure_micro_max,
            f"{state.unsettled_micro} not countersigned, at most {terms.exposure_micro_max} allowed",
        ),
    )
    for reason, holds, detail in checks:
        if holds:
            return Decline(request=announcement.id, reason=reason, detail=detail[: limits.DETAIL_CHARS_MAX])
    return Enlistment(
        announcement=announcement.id,
        samples=max(1, state.samples or 0),
        step_micro=price,
        steps_per_ks=state.steps_per_ks,
        epsilon_milli=state.epsilon_milli,
    )


def step_price_micro(terms: TrainerTerms, state: TrainerState) -> int:
    """Return what a step costs this announcer now, by the same rule as a token."""
    return asked(
        Prices(0, terms.step_micro),
        load_percent=state.load_percent,
        is_on_battery=state.battery_percent >= 0 and not state.is_charging,
        is_same_owner=state.announcer_owner == terms.owner,
        owner_percent=terms.owner_percent,
    ).completion_micro


# --- the cohort -----------------------------------------------------------------------------------------------------
def why_no_cohort(
    announcement: Sealed[RunAnnouncement],
    enlistments: Sequence[Sealed[Enlistment]],
    *,
    mine: Hash,
    owners: Mapping[PeerId, str],
    cohort_min: int,
) -> str:
    """Return why a member will not train in this cohort; empty when it will.

    It counts for itself: a coordinator that invents companions would read one member's update by subtraction.

    Args:
        announcement: the one this member answered.
        enlistments: of everybody, their signatures verified.
        mine: the id of this member's own enlistment.
        owners: of every member of the mesh that has enlisted.
        cohort_min: the fewest that this member's owner accepts.
    """
    wanted = announcement.message
    senders = [each.sender for each in enlistments]
    if mine not in {each.id for each in enlistments}:
        return "the cohort does not contain this device's own enlistment"
    if any(each.message.announcement != announcement.id for each in enlistments):
        return "an enlistment of the cohort answers another announcement"
    if len(set(senders)) < len(senders):
        return "one device stands twice in the cohort"
    strangers = [sender for sender in senders if sender not in owners]
    if strangers:
        return f"{strangers[0]} of the cohort is no member"
    size = cohort_size([owners[sender] for sender in senders])
    if size < cohort_min:
        return f"cohort of {size}, at least {cohort_min} wanted"
    if not wanted.cohort_min <= len(senders) <= wanted.cohort_max:
        return f"cohort of {len(senders)}, announced were {wanted.cohort_min} to {wanted.cohort_max}"
    return ""


def cohort_size(owners: Sequence[str]) -> int:
    """Return how many parties hide each other's updates.

    Devices of one owner are one party, unless all are: then there is nobody to hide from, and devices are counted.
    """
    distinct = len(Counter(owners))
    return len(owners) if distinct == 1 else distinct


# --- money ----------------------------------------------------------------------------------------------------------
def hold_micro(announcement: RunAnnouncement, step_micro: int) -> int:
    """Return what one member may come to: every step of every round."""
    return step_micro * announcement.recipe.steps * announcement.recipe.rounds


def run_job_id(run: bytes, member: PeerId) -> bytes:
    """Return the job id of a member's award: nobody chooses it, so nobody can claim one twice."""
    return hashlib.sha256(run + member.encode()).digest()[:16]


def round_job_id(run: bytes, member: PeerId, number: int) -> bytes:
    """Return the job id of one member's round."""
    return hashlib.sha256(run + member.encode() + number.to_bytes(4)).digest()[:16]


def draft_award(
    announcement: Sealed[RunAnnouncement], enlistment: Sealed[Enlistment], *, index: int, prev: bytes
) -> Award:
    """Return the award of one member: both sides compute it, so that only its place in the log is the buyer's."""
    wanted, bid = announcement.message, enlistment.message
    recipe = wanted.recipe
    return Award(
        index=index,
        prev=prev,
        request=announcement.id,
        bid=enlistment.id,
        job_id=run_job_id(wanted.run, enlistment.sender),
        attempt=ATTEMPT,
        seller=enlistment.sender,
        model=wanted.base,
        adapter=NO_HASH,
        hold_micro=hold_micro(wanted, bid.step_micro),
        prompt_micro=0,
        completion_micro=bid.step_micro,
        lease_ms=min(LEASE_MS_MAX, (recipe.rounds + 1) * wanted.round_ms),
        session=NO_HASH,
    )


def check_award(
    award: Sealed[Award], announcement: Sealed[RunAnnouncement], enlistment: Sealed[Enlistment]
) -> Mismatch | None:
    """Return the first thing in an award that is not what was announced and bid; None when it is right."""
    found = award.message
    expected = draft_award(announcement, enlistment, index=found.index, prev=found.prev)
    if award.sender != announcement.sender:
        return Mismatch("signer", award.sender, announcement.sender)
    for name in Award.__struct_fields__:
        said, known = getattr(found, name), getattr(expected, name)
        if said != known:
            return Mismatch(name, _shown(said), _shown(known))
    return None


@dataclass(frozen=True)
class RoundWork:
    """One member's round, as both sides know it: what its receipt is made out for.

    Attributes:
        award: the member's, of the whole run.
        run, round: which.
        recipe: how it was trained.
        state: digest of the state it was trained from.
        payload: digest of the change that came out.
        steps: trained; what is paid for.
        duration_ms: the member's word.
    """

    award: Sealed[Award]
    run: bytes
    round: int
    recipe: Recipe
    state: bytes
    payload: bytes
    steps: int
    duration_ms: int = 0

    @property
    def buyer(self) -> PeerId:
        """Who pays."""
        return self.award.sender

    @property
    def job_id(self) -> bytes:
        """The job that the round is."""
        return round_job_id(self.run, PeerId(self.award.message.seller), self.round)

    @property
    def attempt(self) -> int:
        """Always the first."""
        return ATTEMPT

    @property
    def amount_micro(self) -> int:
        """What it comes to at the price that was bid."""
        return self.award.message.completion_micro * self.steps

    @property
    def accepted(self) -> Accepted:
        """What the buyer says to a member that comes for its receipt later: all of it, since an update is whole."""
        return Accepted(
            job_id=self.job_id, attempt=ATTEMPT, completion_tokens=self.steps, output=self.payload
        )


def draft_round_receipt(work: RoundWork, *, chargeable_micro: int, index: int, prev: bytes) -> Receipt:
    """Return the member's receipt for a round.

    The fields of a chat's receipt say the like of a round: `sampling` the recipe, `seed` the round, `prompt` the state it
    began from, `output` the change that came out, and completion tokens are steps.
    """
    terms = work.award.message
    return Receipt(
        index=index,
        prev=prev,
        award=work.award.id,
        job_id=work.job_id,
        attempt=ATTEMPT,
        payer=work.award.sender,
        payee=terms.seller,
        model=terms.model,
        adapter=NO_HASH,
        sampling=recipe_digest(work.recipe),
        seed=work.round,
        prompt=work.state,
        output=work.payload,
        prompt_tokens=0,
        completion_tokens=work.steps,
        ttft_ms=0,
        duration_ms=work.duration_ms,
        amount_micro=min(work.amount_micro, chargeable_micro),
    )


def check_round_receipt(receipt: Sealed[Receipt], work: RoundWork) -> Mismatch | None:
    """Return the first thing in a round's receipt that the payer must not countersign; None when it is right."""
    found = receipt.message
    expected = draft_round_receipt(
        work, chargeable_micro=work.amount_micro, index=found.index, prev=found.prev
    )
    if receipt.sender != expected.payee:
        return Mismatch("signer", receipt.sender, expected.payee)
    for name in Receipt.__struct_fields__:
        said, known = getattr(found, name), getattr(expected, name)
        # the duration is the member's word; less money is its right, when the hold runs out
        if said != known and name != "duration_ms" and not (name == "amount_micro" and said < known):
            return Mismatch(name, _shown(said), _shown(known))
    return None


def recipe_digest(recipe: Recipe) -> bytes:
    """Return the SHA-256 of a recipe's MessagePack form."""
    return hashlib.sha256(encode(recipe)).digest()


def _shown(value: object) -> str:
    return value.hex()[:12] if isinstance(value, bytes) else str(value)
