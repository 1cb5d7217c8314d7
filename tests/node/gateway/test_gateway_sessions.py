"""Which conversation a request belongs to: the seller with the warm cache gets it, nobody else learns of it."""

import httpx
import pytest

from node.gateway.sessions import Sessions
from runtime.engine import ChatMessage
from tests.node.gateway.fake_node import FakeNode

SYSTEM = ChatMessage("system", "be brief")
HI = ChatMessage("user", "hi")
HELLO = ChatMessage("assistant", "hello")
MORE = ChatMessage("user", "more")
SECRET = bytes(32)


def test_a_conversation_goes_on_under_its_session() -> None:
    sessions = Sessions(SECRET)
    first = sessions.find("k1", [SYSTEM, HI])
    sessions.remember("k1", [SYSTEM, HI], "hello", first)

    second = sessions.find("k1", [SYSTEM, HI, HELLO, MORE])
    sessions.remember("k1", [SYSTEM, HI, HELLO, MORE], "more hello", second)
    third = sessions.find("k1", [SYSTEM, HI, HELLO, MORE, ChatMessage("assistant", "more hello"), MORE])

    assert first == second == third
    assert len(first) == 32


def test_the_longest_prefix_wins() -> None:
    """A conversation that was taken up again in another one belongs to the later of the two."""
    sessions = Sessions(SECRET)
    sessions.remember("k1", [HI], "hello", b"short")
    sessions.remember("k1", [HI, HELLO, MORE], "x", b"long")

    assert sessions.find("k1", [HI, HELLO, MORE, ChatMessage("assistant", "x"), HI]) == b"long"
    assert sessions.find("k1", [HI, HELLO, MORE, ChatMessage("assistant", "edited"), HI]) == b"short"


@pytest.mark.parametrize(
    "messages",
    [
        [HI, ChatMessage("assistant", "HELLO"), MORE],
        [ChatMessage("user", "h"), ChatMessage("assistant", "i"), HELLO, MORE],
        [ChatMessage("system", "hi"), HELLO, MORE],
        [HI, HELLO],
        [HI],
    ],
)
def test_another_conversation_is_another_session(messages: list[ChatMessage]) -> None:
    sessions = Sessions(SECRET)
    sessions.remember("k1", [HI], "hello", b"first")

    assert sessions.find("k1", messages) != b"first"


def test_keys_never_share_a_session() -> None:
    """Else one user's lease would pay for another's chats."""
    sessions = Sessions(SECRET)
    sessions.remember("k1", [HI], "hello", b"first")

    assert sessions.find("k2", [HI, HELLO, MORE]) != b"first"
    assert sessions.find("k1", [HI]) != sessions.find("k2", [HI])
    assert sessions.named("k1", "a") != sessions.named("k2", "a")


def test_a_named_session_is_always_the_same() -> None:
    sessions = Sessions(SECRET)

    assert sessions.named("k1", "a") == sessions.named("k1", "a") != sessions.named("k1", "b")


def test_guessing_a_prompt_from_a_session_is_refused_by_a_secret() -> None:
    """A seller sees the session before any prompt: the same chat looks different from each process."""
    assert Sessions().find("k1", [HI]) != Sessions().find("k1", [HI])


def test_the_conversation_used_least_recently_is_forgotten_first() -> None:
    sessions = Sessions(SECRET, size=2)
    sessions.remember("k1", [HI], "a", b"a")
    sessions.remember("k1", [HI], "b", b"b")
    sessions.find("k1", [HI, ChatMessage("assistant", "a"), MORE])

    sessions.remember("k1", [HI], "c", b"c")

    found = [sessions.find("k1", [HI, ChatMessage("assistant", each), MORE]) for each in "abc"]
    assert (found[0], found[2]) == (b"a", b"c")
    assert found[1] != b"b"


async def test_a_raw_text_is_no_beginning_of_a_chat(client: httpx.AsyncClient, node: FakeNode) -> None:
    """Else a chat that quotes a completion would go to that one's seller."""
    user = {"role": "user", "content": "hi"}
    quoted = [{"role": "assistant", "content": "Hello “you”"}, user]
    await client.post(
        "/v1/completions", json={"model": "tiny", "prompt": "hi"}, headers={"x-agora-session": "s"}
    )

    await client.post("/v1/chat/completions", json={"model": "tiny", "messages": quoted})

    text, chat = (asked.session for asked in node.requests)
    assert text != chat
