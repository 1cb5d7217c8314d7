"""A request that no engine can take is refused in the daemon, by the name of its field."""

from dataclasses import replace

import pytest

from runtime.engine import BadRequest, ChatMessage, Digest, Generation, Sampling
from runtime.llama.request import check

FINE = Generation(Digest(bytes(32)), (ChatMessage("user", "Hi"),), 16, Sampling(), ("END",), (1, 2))


def test_an_ordinary_request_is_taken() -> None:
    check(FINE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": ()}, "messages has 0 items"),
        ({"messages": (ChatMessage("x" * 33, "Hi"),)}, "a role of more than 32 characters"),
        (
            {"messages": (ChatMessage("user", "é" * 200_000),)},
            "messages of 400004 bytes, expected at most 262144",
        ),
        ({"messages": (ChatMessage("user", "\ud83d"),)}, "not Unicode"),
        ({"stop": ("\ud83d",)}, "not Unicode"),
        ({"stop": ("x",) * 17}, "stop is over"),
        ({"stop": ("x" * 257,)}, "stop is over"),
        ({"tokens_max": -1}, "tokens_max is -1"),
        ({"tokens_max": 2**31}, "tokens_max is 2147483648"),
        ({"received": (2**31,)}, "no token id"),
        ({"received": (-1,)}, "no token id"),
        ({"received": (1,) * 32_769}, "32769 received tokens"),
        ({"sampling": Sampling(temperature_ppm=-1)}, "temperature_ppm is -1"),
        ({"sampling": Sampling(repeat_penalty_ppm=0)}, "repeat_penalty_ppm is 0"),
        ({"sampling": Sampling(top_p_ppm=1_000_001)}, "top_p_ppm is 1000001"),
        ({"sampling": Sampling(seed=2**64)}, "seed is 18446744073709551616"),
    ],
)
def test_a_field_out_of_bounds_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        check(replace(FINE, **change))
