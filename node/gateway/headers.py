"""What a client says in headers of ours: who may see the prompt, and which conversation this is."""

from collections.abc import Mapping
from typing import cast, get_args

from node.chat import ChatRequest
from node.gateway import bounds
from node.gateway.errors import bad_request
from protocol.messages import Privacy


def privacy_of(headers: Mapping[str, str]) -> Privacy:
    """Return what `X-Agora-Privacy` says; headers are by lower-case name.

    Raises:
        HttpError: 400: no such class; to take a typing error for the default could send a prompt further than was meant.
    """
    found = headers.get("x-agora-privacy")
    if found is None:
        return ChatRequest.privacy
    if found not in get_args(Privacy):
        raise bad_request(
            f"X-Agora-Privacy is {found[:32]!r}, expected local, owner or mesh", param="X-Agora-Privacy"
        )
    return cast("Privacy", found)


def session_name_of(headers: Mapping[str, str]) -> str | None:
    """Return the name that `X-Agora-Session` gives the conversation, or None; headers are by lower-case name.

    Raises:
        HttpError: 400: too long.
    """
    name = headers.get("x-agora-session")
    if name is not None and len(name) > bounds.SESSION_CHARS_MAX:
        raise bad_request(
            f"X-Agora-Session has {len(name)} characters, expected {bounds.SESSION_CHARS_MAX} at most",
            param="X-Agora-Session",
        )
    return name
