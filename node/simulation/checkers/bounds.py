"""The law of bounds: every table that a peer can make grow stays under its limit, on every device."""

# ruff: noqa: SLF001  a law looks where no user may

from collections.abc import Callable, Iterator
from typing import Final

from marketplace.fence import FENCES_MAX
from marketplace.lease import LEASES_MAX, Leases
from marketplace.ledger import EARLY_MAX
from marketplace.warmth import ENTRIES_MAX
from node import directory, offences
from node.jobs import JOBS_KEPT
from node.logbook import ACCUSATIONS_WAITING_MAX, WRITES_WAITING_MAX
from node.services.settlement import CLAIMS_MAX
from node.services.sync import PULLS_WAITING_MAX
from node.simulation.checkers.scene import Broken, Scene
from node.simulation.daemon import Daemon
from protocol import limits

Size = Callable[[Daemon], int]

BOUNDS: Final[tuple[tuple[str, Size, int], ...]] = (
    ("hashes at the gate", lambda daemon: len(daemon.node.wire._gate._seen), limits.DEDUPE_MAX),
    ("replay windows at the gate", lambda daemon: len(daemon.node.wire._gate._windows), limits.SENDERS_MAX),
    (
        "rates of peers",
        lambda daemon: len(daemon.node.wire._gate._peer_rates._buckets),
        limits.SENDERS_MAX,
    ),
    (
        "rates of authors",
        lambda daemon: len(daemon.node.wire._gate._author_rates._buckets),
        limits.SENDERS_MAX,
    ),
    ("adverts", lambda daemon: len(daemon.node.directory._offers), directory.PEERS_MAX),
    ("addresses", lambda daemon: len(daemon.node.directory._addresses), directory.PEERS_MAX),
    ("offenders", lambda daemon: len(daemon.mesh._guard.offences._accounts), offences.PEERS_MAX),
    (
        "members' clocks",
        lambda daemon: len(daemon.node._members_time._offsets_ms),
        limits.HEADS_PER_HELLO_MAX,
    ),
    ("entries that wait for an award", lambda daemon: len(daemon.node.logbook.ledger._early), EARLY_MAX),
    (
        "writes that wait",
        lambda daemon: daemon.node.logbook._send.statistics().current_buffer_used,
        WRITES_WAITING_MAX,
    ),
    (
        "accusations that wait",
        lambda daemon: daemon.node.logbook._accuse.statistics().current_buffer_used,
        ACCUSATIONS_WAITING_MAX,
    ),
    (
        "logs that wait to be pulled",
        lambda daemon: len(daemon.node.sync.wanted),
        PULLS_WAITING_MAX,
    ),
    ("fences", lambda daemon: len(daemon.node.seller._fence._newest), FENCES_MAX),
    ("leases sold", lambda daemon: _in_use(daemon.node.seller._leases), LEASES_MAX),
    ("leases bought", lambda daemon: _in_use(daemon.node.buyer._purchasing._leases), LEASES_MAX),
    (
        "reputations",
        lambda daemon: len(daemon.node.buyer._purchasing._reputation._records),
        limits.SENDERS_MAX,
    ),
    (
        "missed windows",
        lambda daemon: len(daemon.node.buyer._purchasing._auctioneer._punctuality._missed),
        limits.SENDERS_MAX,
    ),
    (
        "warm beginnings",
        lambda daemon: len(daemon.node.seller._offer._warmth._entries),
        ENTRIES_MAX,
    ),
    ("claims", lambda daemon: daemon.node.settlement._claims, CLAIMS_MAX),
    ("jobs as shown", lambda daemon: len(daemon.node.job_book._views), JOBS_KEPT),
    ("gossip heard", lambda daemon: len(daemon.mesh.gossip._heard), limits.DEDUPE_MAX),
)


def tables_stay_under_their_bounds(scene: Scene) -> Iterator[Broken]:
    """No peer fills a device's memory: each table drops its oldest line, or refuses."""
    for daemon in scene.online:
        for what, size, most in BOUNDS:
            found = size(daemon)
            if found > most:
                yield Broken(daemon.name, f"it keeps {found} {what}, at most {most} allowed")


def what_is_kept_of_peers_is_about_members(scene: Scene) -> Iterator[Broken]:
    """Tables without a limit of their own hold at most a line for each key that was ever admitted, or is connected."""
    for daemon in scene.online:
        node = daemon.node
        assembly = node.logbook.assembly
        admitted = len(assembly.roll) + len(assembly._ever_admitted)
        for what, found, most in (
            ("answers about its own log", len(node.meeting._answers), admitted),
            ("boots", len(node.meeting._boots), admitted),
            ("greetings", len(node.meeting._greeted), admitted + len(daemon.mesh.connected)),
            ("bilateral logs", len(node.logbook._bilateral), admitted),
            ("newest entries", len(node.logbook._furthest), 2 * admitted),
            ("buyers that owe", len(node.seller._exposure._open), admitted),
        ):
            if found > most:
                yield Broken(daemon.name, f"it keeps {found} {what}, and {admitted} keys were ever admitted")


def _in_use(leases: Leases) -> int:
    return sum(not lease.is_retired for lease in leases._leases.values())
