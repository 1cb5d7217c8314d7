"""How figures look, and that no terminal obeys a stranger's text."""

import pytest
from rich.console import Console

from node.cli.show import ago, cell, credit, printable, short, sizes, table


@pytest.mark.parametrize(
    ("micro", "shown"),
    [(0, "0.000000"), (412, "0.000412"), (-1_500_000, "-1.500000"), (12_345_678_901, "12,345.678901")],
)
def test_amounts_are_credits_with_six_places(micro: int, shown: str) -> None:
    assert credit(micro) == shown


def test_a_terminal_obeys_nothing_that_a_stranger_wrote() -> None:
    """A seller's tokens, a peer's owner name: escape sequences and direction marks are shown, not obeyed."""
    hostile = "\x1b]0;owned\x07 \x1b[2J\u202ereversed\r\n"

    assert printable(hostile) == r"\x1b]0;owned\x07 \x1b[2J\u202ereversed\r\n"
    assert printable("two\nlines\x1b", keep="\n") == "two\nlines\\x1b"


def test_markup_of_a_stranger_stays_text() -> None:
    shown = table("owner")
    shown.add_row(cell("[bold red]root[/]"))
    console = Console(width=60)

    with console.capture() as captured:
        console.print(shown)

    assert "[bold red]root[/]" in captured.get()


def test_ids_are_shown_by_the_part_that_differs() -> None:
    """Each peer id begins alike; digests and job ids do not."""
    assert short("12D3KooW" + "x" * 36 + "abcdefgh") == "…abcdefgh"
    assert short("3f9a1c2b44d8") == "3f9a1c2b"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(None, "never"), (4.4, "4 s"), (90, "2 min"), (7_200, "2 h"), (200_000, "2 d")]
)
def test_ages_are_rounded_to_one_unit(seconds: float | None, shown: str) -> None:
    assert ago(seconds) == shown


def test_sizes_are_in_the_unit_that_fits() -> None:
    assert [sizes(count) for count in (12, 2048, 5 * 1024**2, 3 * 1024**3)] == [
        "12 B", "2 KiB", "5 MiB", "3.0 GiB",
    ]  # fmt: skip
