"""Laws of money: none is made, none is lost, and nobody pays what it did not promise."""

from collections.abc import Iterator

from marketplace.ledger import Ledger, Payment
from node.simulation.checkers.scene import Broken, Scene
from protocol.identity import PeerId


def credits_sum_to_zero(scene: Scene) -> Iterator[Broken]:
    """On every ledger the balances sum to zero: credit moves, and never appears."""
    for daemon in scene.online:
        total = daemon.node.logbook.ledger.total_micro()
        if total:
            yield Broken(daemon.name, f"its balances sum to {total}, expected 0")


def nobody_overdraws(scene: Scene) -> Iterator[Broken]:
    """What a device owes and has promised stays within its credit line.

    Judged by its own ledger, which knows all that it earned and owes; another's may hear of a debt before the income
    that covers it.
    """
    for daemon in scene.online:
        logbook = daemon.node.logbook
        if logbook.assembly.is_member(daemon.peer_id):
            line = logbook.assembly.member(daemon.peer_id).credit_line_micro
            spendable = logbook.ledger.spendable_micro(daemon.peer_id, line)
            if spendable < 0:
                yield Broken(daemon.name, f"it is {-spendable} over its credit line of {line}")


def payments_stay_within_holds(scene: Scene) -> Iterator[Broken]:
    """All that is paid under an award stays within what the award held."""
    for daemon in scene.online:
        ledger = daemon.node.logbook.ledger
        paid: dict[bytes, int] = {}
        for payment in ledger.payments():
            award_id = payment.receipt.message.award
            paid[award_id] = paid.get(award_id, 0) + payment.amount_micro
        for award_id, amount in paid.items():
            award = ledger.award(award_id)
            if award is None:
                yield Broken(
                    daemon.name, f"{amount} was paid under award {award_id.hex()[:12]}, which it lacks"
                )
            elif amount > award.message.hold_micro:
                yield Broken(
                    daemon.name,
                    f"{amount} was paid under award {award_id.hex()[:12]}, which holds {award.message.hold_micro}",
                )


def each_attempt_is_paid_once(scene: Scene) -> Iterator[Broken]:
    """Every ledger that knows of a payment for an honest payer's attempt knows of the same one."""
    first: dict[tuple[PeerId, bytes, int], tuple[str, bytes]] = {}
    honest = scene.honest_ids
    for daemon in scene.online:
        for payment in daemon.node.logbook.ledger.payments():
            if payment.payer in honest:
                terms = payment.receipt.message
                known = first.setdefault(
                    (payment.payer, terms.job_id, terms.attempt), (daemon.name, payment.receipt.id)
                )
                if known[1] != payment.receipt.id:
                    yield Broken(
                        daemon.name,
                        f"attempt {terms.attempt} of job {terms.job_id.hex()} was paid by another receipt than "
                        f"{known[0]} knows",
                    )


def who_holds_the_same_entries_agrees(scene: Scene) -> Iterator[Broken]:
    """Balances follow from the entries alone: whoever folds the same ones in another order agrees.

    Of a payer that contradicts itself each device may believe another payment, so only honest payers' are compared.
    """
    honest = scene.honest_ids
    for daemon in scene.online:
        if daemon.disk.was_filled:
            continue  # it knows more than it could write down
        logbook = daemon.node.logbook
        other = Ledger(scene.world.mesh_id, logbook.assembly.was_admitted)
        for entry in sorted(scene.disks[daemon.name], key=lambda entry: entry.id):
            if entry.message.log == "bilateral":
                other.apply(entry)
        here, there = (
            {_key(payment): payment for payment in ledger.payments() if payment.payer in honest}
            for ledger in (logbook.ledger, other)
        )
        if here.keys() != there.keys():
            yield Broken(
                daemon.name,
                f"{len(here)} payments stand on its ledger and {len(there)} in the same entries in another order",
            )
        elif len(honest) == len(scene.world.daemons) and logbook.ledger.balances() != other.balances():
            yield Broken(daemon.name, "its balances are others than the same entries give in another order")


def _key(payment: Payment) -> tuple[PeerId, bytes]:
    return payment.payer, payment.receipt.id
