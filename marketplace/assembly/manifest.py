"""What a line, a manifest and the words on it must be by themselves, whoever writes them and whatever else is known.

These checks need nothing but the entry, so every member refuses the same entries in whatever order they come. What depends
on the line, on other manifests or on the hour is `lines.py`'s.
"""

from collections.abc import Sequence

from protocol import limits
from protocol.envelope import Sealed
from protocol.errors import ExpiredManifest, MalformedMessage
from protocol.identity import PeerId, public_key_of
from protocol.messages import NO_HASH, Entry, Line, Manifest, Score, Vote, Withdrawal

_TTL_MS_MAX = int(limits.MANIFEST_TTL_S_MAX * 1000)


def check_form(entry: Sealed[Entry]) -> None:
    """Check an entry by itself.

    Raises:
        ExpiredManifest: a manifest whose life ends before it begins, or is longer than allowed.
        MalformedMessage: fields that contradict each other.
    """
    match entry.message:
        case Manifest() as manifest:
            _check_manifest(manifest, entry.time_ms)
        case Vote(scores=scores):
            _check_scores(scores)
        case Line(replay=replay, replay_bytes=size) if (replay == NO_HASH) != (size == 0):
            raise MalformedMessage(
                f"line has {size} bytes of replay, expected some with a digest or none without"
            )
        case Withdrawal(adapter=adapter) if adapter == NO_HASH:
            raise MalformedMessage(
                "withdrawal names no adapter, expected one: the bare base cannot be barred"
            )


def _check_manifest(manifest: Manifest, time_ms: int) -> None:
    if not time_ms < manifest.expires_at <= time_ms + _TTL_MS_MAX:
        raise ExpiredManifest(
            f"manifest lives {(manifest.expires_at - time_ms) // 1000} s, expected 1 to {_TTL_MS_MAX // 1000} s"
        )
    is_bare = manifest.adapter == NO_HASH
    if is_bare != (manifest.adapter_bytes == 0) or (is_bare and manifest.shape is not None):
        raise MalformedMessage(
            f"manifest has an adapter of {manifest.adapter_bytes} bytes, expected some with a digest or none without"
        )
    if manifest.rolls_back_to >= manifest.version:
        raise MalformedMessage(
            f"version {manifest.version} rolls back to {manifest.rolls_back_to}, expected an earlier one"
        )
    peers = [member.peer for member in manifest.cohort]
    if len(set(peers)) != len(peers):
        raise MalformedMessage("manifest names a member of its cohort twice")
    for peer in peers:
        public_key_of(PeerId(peer))
    _check_scores(manifest.before)
    _check_scores(manifest.after)


def _check_scores(scores: Sequence[Score]) -> None:
    domains = [score.domain for score in scores]
    if len(set(domains)) != len(domains):
        raise MalformedMessage("scores name a domain twice")
    for score in scores:
        if score.right > score.total:
            raise MalformedMessage(f"domain {score.domain} has {score.right} right of {score.total}")
