"""The table of device profiles, and how worlds draw from it."""

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.bidding import BATTERY_PERCENT_MIN
from node.simulation.devices import (
    HOUR_S,
    PROFILES,
    SHARES,
    Profile,
    device_message,
    draw_mix,
    sessions_online,
)
from protocol.messages import Device

COMES_AND_GOES = [profile for profile in PROFILES.values() if profile.online_mean_s is not None]

seeds = st.integers(0, 2**32)
mixes = st.dictionaries(st.sampled_from(sorted(PROFILES)), st.integers(0, 100), min_size=1).filter(
    lambda shares: sum(shares.values()) > 0
)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_every_profile_is_a_device_that_the_protocol_can_speak_of(profile: Profile) -> None:
    message = device_message(profile)

    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=Device) == message
    assert 0 < profile.memory_free_mib <= profile.memory_mib
    assert 0 < profile.latency_s[0] <= profile.latency_s[1]
    assert 0 <= profile.holds_model <= 1
    assert profile.prompt_tokens_per_s > profile.tokens_per_s > 0
    assert min(profile.up_bytes_per_s, profile.down_bytes_per_s, profile.price_factor, profile.slots) > 0
    assert (profile.online_mean_s is None) == (profile.offline_mean_s is None)


def test_a_message_says_what_the_table_says() -> None:
    phone = PROFILES["phone"]

    assert device_message(phone) == Device(
        cores=phone.cores,
        memory_mib=phone.memory_mib,
        memory_free_mib=phone.memory_free_mib,
        load_percent=0,
        battery_percent=phone.battery_percent,
        is_charging=False,
        gpu="",
        sandbox="S1",
    )


def test_a_phone_on_battery_is_full_enough_to_sell() -> None:
    """Below its owner's limit it would decline everything, and a world of phones would be a world of refusals."""
    assert PROFILES["phone"].battery_percent >= BATTERY_PERCENT_MIN


def test_the_default_mix_is_in_percent_and_names_every_profile() -> None:
    assert sum(SHARES.values()) == 100
    assert set(SHARES) == set(PROFILES)


def test_twenty_nodes_are_dealt_exactly_by_their_shares() -> None:
    assert Counter(draw_mix(Random(1), 20)) == {"server": 1, "laptop": 9, "phone": 7, "phone-charging": 3}


def test_what_does_not_come_out_even_goes_to_the_largest_remainder() -> None:
    """Of seven: 3.5, 2.1 and 1.4; the whole ones make six."""
    shares = {"laptop": 50, "phone": 30, "server": 20}

    assert Counter(draw_mix(Random(1), 7, shares)) == {"laptop": 4, "phone": 2, "server": 1}


@given(seed=seeds, count=st.integers(0, 300), shares=mixes)
def test_a_mix_has_every_node_and_is_never_a_whole_node_off_its_shares(
    seed: int, count: int, shares: Mapping[str, float]
) -> None:
    dealt = Counter(draw_mix(Random(seed), count, shares))

    assert dealt.total() == count
    for name in PROFILES:
        assert abs(dealt[name] - count * shares.get(name, 0) / sum(shares.values())) < 1


def test_who_gets_which_device_is_chance_and_follows_the_seed() -> None:
    first, again, other = (draw_mix(Random(seed), 100) for seed in (1, 1, 2))

    assert first == again
    assert first != other
    assert sorted(first) == sorted(other)


@pytest.mark.parametrize("shares", [{"toaster": 1}, {}, {"phone": 0}, {"phone": -1, "laptop": 2}])
def test_shares_that_cannot_be_dealt_are_refused(shares: Mapping[str, float]) -> None:
    with pytest.raises(ValueError, match=r"profile 'toaster'|shares are"):
        draw_mix(Random(1), 10, shares)


@given(seed=seeds, profile=st.sampled_from(list(PROFILES.values())), seconds=st.floats(0, 10**6))
def test_stays_lie_in_order_inside_the_world_with_absences_between(
    seed: int, profile: Profile, seconds: float
) -> None:
    stays = list(sessions_online(Random(seed), profile, seconds))

    assert all(0 <= start_s <= end_s <= seconds for start_s, end_s in stays)
    assert all(end_s < start_s for (_, end_s), (start_s, _) in pairwise(stays))
    assert stays == list(sessions_online(Random(seed), profile, seconds))


def test_a_server_is_always_there() -> None:
    assert list(sessions_online(Random(1), PROFILES["server"], 60)) == [(0, 60)]
    assert list(sessions_online(Random(1), PROFILES["server"], 0)) == []


@pytest.mark.parametrize("profile", COMES_AND_GOES)
def test_stays_and_absences_are_as_long_as_the_table_says(profile: Profile) -> None:
    """Over 4,000 cycles; the mean of so many exponentials is within 5 % in all but a few of a thousand runs."""
    assert profile.online_mean_s is not None
    assert profile.offline_mean_s is not None
    seconds = 4_000 * (profile.online_mean_s + profile.offline_mean_s)

    stays = list(sessions_online(Random(7), profile, seconds))[1:-1]  # the outer ones may be cut

    absences = [start_s - end_s for (_, end_s), (start_s, _) in pairwise(stays)]
    lengths = [end_s - start_s for start_s, end_s in stays]
    assert sum(lengths) / len(lengths) == pytest.approx(profile.online_mean_s, rel=0.05)
    assert sum(absences) / len(absences) == pytest.approx(profile.offline_mean_s, rel=0.05)


@pytest.mark.parametrize("at_s", [0.0, 0.9 * HOUR_S])
@pytest.mark.parametrize("profile", COMES_AND_GOES)
def test_as_many_are_online_when_a_world_begins_as_later(profile: Profile, at_s: float) -> None:
    """A stationary start: else the first hour would be a wave of arrivals. Of 4,000, within four standard errors."""
    rng = Random(7)

    online = sum(
        any(start_s <= at_s < end_s for start_s, end_s in sessions_online(rng, profile, HOUR_S))
        for _ in range(4_000)
    )

    share = profile.online_share
    assert online / 4_000 == pytest.approx(share, abs=4 * (share * (1 - share) / 4_000) ** 0.5)
