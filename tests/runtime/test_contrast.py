"""The contrast of a token: two logits of the row that was computed anyway, chosen by a hash that everybody computes alike."""

from array import array
from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from protocol.limits import CONTRAST_MILLI_MAX
from runtime.llama.contrast import contrast, probe

VOCABULARY = 1_024
places = st.integers(0, 2**31)
tokens = st.integers(0, VOCABULARY - 1)


def test_the_probe_is_part_of_the_protocol() -> None:
    """Two implementations that chose other probes would accuse each other."""
    assert [probe(0, 0, 32_000), probe(17, 4_711, 128_256), probe(4_096, 1, 128_256)] == [
        3_665,
        64_500,
        68_831,
    ]


@given(places, tokens, st.integers(1, 300_000))
def test_a_probe_is_a_token_of_the_vocabulary(position: int, token: int, size: int) -> None:
    assert 0 <= probe(position, token, size) < size


def test_probes_change_with_the_place_and_with_the_token() -> None:
    """The attack: a few logits, kept from one real computation, are stated for ever."""
    by_place = Counter(probe(position, 7, VOCABULARY) for position in range(20_000))
    by_token = Counter(probe(7, token, VOCABULARY) for token in range(20_000))

    for found in (by_place, by_token):
        assert len(found) == VOCABULARY
        assert max(found.values()) < 60, "about 20 each"


@given(places, tokens, st.integers(0, 1_000))
def test_a_contrast_is_the_logit_less_its_probes(position: int, token: int, seed: int) -> None:
    rng = Random(seed)
    logits = array("f", [rng.uniform(-50, 50) for _ in range(VOCABULARY)])
    row = array("f", logits)

    found = contrast(row, VOCABULARY, position, token)

    assert abs(found - 1_000 * (row[token] - row[probe(position, token, VOCABULARY)])) <= 0.5
    assert row == logits


def test_what_adds_the_same_to_every_logit_changes_no_contrast() -> None:
    """Engines that normalise their logits state the same."""
    logits = [0.25 * (token % 37) for token in range(VOCABULARY)]
    shifted = array("f", [each - 8 for each in logits])

    assert contrast(shifted, VOCABULARY, 5, 9) == contrast(array("f", logits), VOCABULARY, 5, 9)


def test_absurd_logits_make_a_number_that_a_frame_takes() -> None:
    position = next(each for each in range(100) if probe(each, 3, VOCABULARY) != 3)
    row = array("f", [0.0] * VOCABULARY)

    row[3] = 3e38
    assert contrast(row, VOCABULARY, position, 3) == CONTRAST_MILLI_MAX
    row[3], row[probe(position, 3, VOCABULARY)] = -3e38, 3e38
    assert contrast(row, VOCABULARY, position, 3) == -CONTRAST_MILLI_MAX
