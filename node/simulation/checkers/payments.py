"""Laws of payments: each is signed by both sides, for what came at the price that was bid, and holds add up."""

# ruff: noqa: SLF001  a law looks where no user may

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Final

from marketplace.assembly.assembly import open_entry
from marketplace.ledger import Ledger, Payment
from marketplace.receipt import output_digest
from node.event import Event
from node.simulation.checkers.scene import Broken, Scene
from node.simulation.daemon import Daemon
from node.simulation.devices import PROFILES
from protocol.errors import RemoteProtocolError
from protocol.identity import PeerId
from protocol.messages import Countersignature

SLOTS_MAX: Final = max(
    profile.slots for profile in PROFILES.values()
)  # answers that may be under way at once


def balances_follow_from_payments(scene: Scene) -> Iterator[Broken]:
    """Money moves once for each receipt that its payee signed and its payer countersigned, and by nothing else."""
    for daemon in scene.online:
        ledger = daemon.node.logbook.ledger
        expected: Counter[PeerId] = Counter()
        for payment in ledger.payments():
            signers = payment.receipt.sender, payment.countersignature.sender
            if signers != (payment.payee, payment.payer):
                who = " and ".join(scene.name(each) for each in signers)
                yield Broken(daemon.name, f"a payment of {scene.name(payment.payer)} was signed by {who}")
            expected[payment.payer] -= payment.amount_micro
            expected[payment.payee] += payment.amount_micro
        for peer_id, balance in ledger.balances().items():
            if balance != expected[peer_id]:
                yield Broken(
                    daemon.name,
                    f"the balance of {scene.name(peer_id)} is {balance}, its payments come to {expected[peer_id]}",
                )


def holds_add_up(scene: Scene) -> Iterator[Broken]:
    """What an account has set aside is what is left of its holds: no micro-credit is freed twice, or never."""
    for daemon in scene.online:
        accounts = daemon.node.logbook.ledger._accounts
        left: Counter[PeerId] = Counter()
        for hold in accounts._holds.values():
            left[hold.account] += hold.left_micro
        for peer_id, held in accounts._held.items():
            if held != left[peer_id]:
                yield Broken(
                    daemon.name,
                    f"{held} is set aside for {scene.name(peer_id)}, whose holds come to {left[peer_id]}",
                )


def what_was_countersigned_survives(scene: Scene) -> Iterator[Broken]:
    """A receipt that its payer holds stands on its payee's own disk: it was written before it was sent."""
    own = {
        daemon.peer_id: {entry.id for entry in scene.disks[daemon.name] if entry.sender == daemon.peer_id}
        for daemon in scene.honest
    }
    honest = scene.honest_ids
    for daemon, entry in scene.entries():
        if isinstance(entry.message, Countersignature):
            try:
                receipt = open_entry(entry.message.receipt, scene.world.mesh_id)
            except RemoteProtocolError:
                continue  # a hostile payer may have countersigned anything
            if receipt.sender in own and receipt.id not in own[receipt.sender]:
                yield Broken(
                    honest[receipt.sender],
                    f"{daemon.name} has its receipt {receipt.message.index} countersigned, and its own disk has not",
                )


def nobody_is_served_for_nothing(scene: Scene) -> Iterator[Broken]:
    """Who does not pay is served up to a small cap, and what it has paid, and no further in one life of a seller."""
    begun_s: dict[str, float] = {}  # when the newest life of each began, or a moment later
    for node, event in scene.events["own_log_confirmed"]:
        begun_s[node] = event.monotonic_s
    served: defaultdict[str, list[Event]] = defaultdict(list)
    for node, event in (*scene.events["delivered"], *scene.events["delivery_broken"]):
        if event.monotonic_s >= begun_s.get(node, 0.0):
            served[node].append(event)
    for daemon in scene.online:
        yield from _unpaid(scene, daemon, served[daemon.name])


def _unpaid(scene: Scene, daemon: Daemon, served: list[Event]) -> Iterator[Broken]:
    ledger = daemon.node.logbook.ledger
    paid: Counter[str] = Counter()
    for payment in ledger.payments() if served else ():
        if payment.payee == daemon.peer_id:
            paid[payment.payer] += payment.amount_micro
    unpaid: Counter[str] = Counter()
    largest: Counter[str] = Counter()
    for event in served:
        buyer, job_id = PeerId(str(event.fields["buyer"])), bytes.fromhex(str(event.fields["job"]))
        attempt = int(str(event.fields["attempt"]))
        award = ledger._awards.get((buyer, job_id, attempt))  # a lease's further jobs have none of their own
        if award is not None and ledger.payment(buyer, job_id, attempt) is None:
            worth = int(str(event.fields["tokens"])) * award.message.completion_micro
            unpaid[buyer] += worth
            largest[buyer] = max(largest[buyer], worth)
    for buyer_id, amount in unpaid.items():
        most = daemon.config.exposure_peer_micro + paid[buyer_id] + SLOTS_MAX * largest[buyer_id]
        if amount > most:
            yield Broken(
                daemon.name,
                f"{scene.name(buyer_id)} was served for {amount} that it has not paid, at most {most} allowed",
            )


def payments_are_for_what_came(scene: Scene) -> Iterator[Broken]:
    """A buyer pays for the very tokens that arrived, and no more for them than was bid."""
    for daemon in scene.online:
        ledger = daemon.node.logbook.ledger
        for payment in ledger.payments():
            if payment.payer == daemon.peer_id:
                yield from _unearned(daemon, payment, ledger)


def _unearned(daemon: Daemon, payment: Payment, ledger: Ledger) -> Iterator[Broken]:
    terms, award = payment.receipt.message, ledger.award(payment.receipt.message.award)
    if award is None:
        return  # another law tells
    what = f"attempt {terms.attempt} of job {terms.job_id.hex()}"
    prices = award.message
    most = terms.prompt_tokens * prices.prompt_micro + terms.completion_tokens * prices.completion_micro
    if payment.amount_micro > most:
        yield Broken(daemon.name, f"{payment.amount_micro} was paid for {what}, which comes to {most}")
    job = daemon.node.job_book.find(terms.job_id)
    view = daemon.node.job_book._views.get(terms.job_id.hex())
    if job is not None:
        ids = job.attempts[terms.attempt - 1].ids
        if (terms.completion_tokens, terms.output) != (len(ids), output_digest(ids)):
            yield Broken(
                daemon.name,
                f"{terms.completion_tokens} tokens of {what} were paid, and other {len(ids)} came",
            )
    elif view is not None:  # of an earlier run, or long ago; a crash may have taken it
        came = view.attempts[terms.attempt - 1].tokens
        if terms.completion_tokens > came:
            yield Broken(
                daemon.name, f"{terms.completion_tokens} tokens of {what} were paid, and {came} came"
            )
