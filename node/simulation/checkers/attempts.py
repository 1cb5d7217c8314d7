"""Laws of attempts: who is asked twice, who reads a prompt, who gets a second chance, and how long a lease may serve."""

# ruff: noqa: SLF001  a law looks where no user may

from bisect import bisect
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from marketplace.prefix import prefix_digest, warm_prefixes
from node.jobs import CLAIM_WINDOW_S, prompt_of
from node.simulation.checkers.scene import Broken, Scene
from protocol.limits import LIVE_WINDOW_S
from protocol.messages import Award, Privacy, Receipt

# A lease is in use until its last job is settled, which its buyer waits for so long; and clocks differ.
LEASE_GRACE_MS: Final = int((CLAIM_WINDOW_S + LIVE_WINDOW_S) * 1000)


def no_request_is_bid_on_twice(scene: Scene) -> Iterator[Broken]:
    """A live message takes effect once: a seller never bids on the same request again in one life of its process."""
    confirmed: defaultdict[str, list[float]] = defaultdict(list)
    for node, event in scene.events["own_log_confirmed"]:
        confirmed[node].append(event.monotonic_s)
    bids: set[tuple[str, int, object]] = set()
    honest = set(scene.honest_ids.values())
    for node, event in scene.events["bid_sent"]:
        life = bisect(confirmed[node], event.monotonic_s)
        bid = (node, life, event.fields["request"])
        if bid in bids and node in honest:
            yield Broken(node, f"it bid again on request {str(event.fields['request'])[:12]}")
        bids.add(bid)


def prompts_stay_where_they_may(scene: Scene) -> Iterator[Broken]:
    """A `local` prompt leaves its device for nobody, an `owner` one only for devices of the same owner."""
    owners = {daemon.peer_id: daemon.config.owner for daemon in scene.world.daemons.values()}
    for daemon in scene.online:
        for view in daemon.node.job_book._views.values():
            for attempt in view.attempts:
                if not attempt.seller or attempt.seller == daemon.peer_id or view.privacy == "mesh":
                    continue
                is_same = owners.get(attempt.seller) == daemon.config.owner  # type: ignore[call-overload]
                if view.privacy == "local" or not is_same:
                    yield Broken(
                        daemon.name,
                        f"job {view.job_id} of privacy {view.privacy} went to {scene.name(attempt.seller)}",
                    )


def adverts_tell_of_mesh_prompts_alone(scene: Scene) -> Iterator[Broken]:
    """An advert lists the digest of a system prompt only if some job with it was one that any member might have read."""
    told: defaultdict[Privacy, set[bytes]] = defaultdict(set)
    for daemon in scene.online:
        book = daemon.node.job_book
        for job in (*book._running.values(), *(job for _, job in book._recent.values())):
            turns = prompt_of(job.request).turns
            told[job.request.privacy].add(prefix_digest(job.digest, job.adapter, turns))
    kept = (told["owner"] | told["local"]) - told["mesh"]
    for daemon in scene.online:
        own = daemon.node.advertiser._own
        for digest in sorted(warm_prefixes(own.message) & kept if own else ()):
            yield Broken(
                daemon.name, f"its advert tells everybody of {digest.hex()}, the prompt of one owner's job"
            )


def who_failed_is_not_tried_again(scene: Scene) -> Iterator[Broken]:
    """A job whose seller let it down goes to another; only a lease that was over may be bought anew where it was."""
    for daemon in scene.online:
        for view in daemon.node.job_book._views.values():
            failed: dict[str, int] = {}
            for attempt in view.attempts:
                if attempt.seller in failed:
                    yield Broken(
                        daemon.name,
                        f"attempts {failed[attempt.seller]} and {attempt.attempt} of job {view.job_id} both went to "
                        f"{scene.name(attempt.seller)}",
                    )
                if attempt.seller and not attempt.is_lease:
                    failed[attempt.seller] = attempt.attempt


def no_lease_is_used_past_its_end(scene: Scene) -> Iterator[Broken]:
    """Under an award of a session no job begins when it has been idle for longer than the award says."""
    awards: dict[bytes, Award] = {}
    times: defaultdict[bytes, dict[tuple[int, int], None]] = defaultdict(
        dict
    )  # begun, ended: of jobs under it
    for _, entry in scene.entries():
        message = entry.message
        if isinstance(message, Award) and message.lease_ms:
            awards[entry.id] = message
            times[entry.id][entry.time_ms, entry.time_ms] = None
        elif isinstance(message, Receipt):
            times[message.award][entry.time_ms - message.duration_ms, entry.time_ms] = None
    honest = scene.honest_ids
    for award_id, award in awards.items():
        if award.seller not in honest:
            continue  # its receipts may say anything, and some of them stand nowhere
        used_ms = 0
        for begun_ms, ended_ms in sorted(times[award_id]):
            idle_ms = begun_ms - used_ms
            if used_ms and idle_ms > award.lease_ms + LEASE_GRACE_MS:
                yield Broken(
                    honest[award.seller],  # type: ignore[index]
                    f"it served under award {award_id.hex()[:12]} after {idle_ms / 1000:.0f} idle seconds, "
                    f"{award.lease_ms / 1000:.0f} allowed",
                )
            used_ms = max(used_ms, ended_ms)
