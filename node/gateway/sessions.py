"""Which conversation a request belongs to, so that it goes back to the seller whose cache is warm.

A client may say so (`X-Agora-Session`). If not, a conversation is recognised: each finished request leaves the hash of
its messages with our answer; a later one that starts with them goes on with that session. Sessions of different API keys
never meet. Hashes are keyed with a secret of this process, since sellers see the session's id before they see a prompt,
and could otherwise test guesses of it.
"""

import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Sequence

from node.gateway import bounds
from runtime.engine import ChatMessage


class Sessions:
    """The prefixes of conversations that are remembered, the one used least recently goes first.

    Args:
        secret: 32 bytes; the default is new for each process.
    """

    def __init__(self, secret: bytes | None = None, size: int = bounds.SESSIONS_MAX) -> None:
        self._secret = secrets.token_bytes(32) if secret is None else secret
        self._size = size
        self._by_prefix: OrderedDict[bytes, bytes] = OrderedDict()

    def named(self, key_id: str, name: str) -> bytes:
        """Return the session that a client of this key calls by this name."""
        return self._hash(self._hash(self._secret, "named", key_id), "session", name)

    def find(self, key_id: str, messages: Sequence[ChatMessage]) -> bytes:
        """Return the session of the longest remembered prefix, else one that begins here."""
        prefixes = self._prefixes(key_id, messages)
        for prefix in reversed(prefixes[:-1]):  # the last message is the new one
            session = self._by_prefix.get(prefix)
            if session is not None:
                self._by_prefix.move_to_end(prefix)
                return session
        return prefixes[-1]

    def remember(self, key_id: str, messages: Sequence[ChatMessage], answer: str, session: bytes) -> None:
        """Note that this conversation, our answer included, belongs to the session."""
        prefix = self._prefixes(key_id, (*messages, ChatMessage("assistant", answer)))[-1]
        self._by_prefix[prefix] = session
        self._by_prefix.move_to_end(prefix)
        if len(self._by_prefix) > self._size:
            self._by_prefix.popitem(last=False)

    def _prefixes(self, key_id: str, messages: Sequence[ChatMessage]) -> list[bytes]:
        prefix = self._hash(self._secret, "found", key_id)
        prefixes = []
        for message in messages:
            prefix = self._hash(prefix, message.role, message.content)
            prefixes.append(prefix)
        return prefixes

    def _hash(self, before: bytes, kind: str, text: str) -> bytes:
        return hmac.digest(self._secret, before + kind.encode() + b"\0" + text.encode(), hashlib.sha256)
