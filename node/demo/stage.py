"""How the demo looks: one voice for headings, auctions, answers and ledgers."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from node.cli.show import cell, credit, milliseconds, printable

LABEL_WIDTH = 10
WIDTH_MAX = 100


class Stage:
    """The terminal. `names` says which device a peer id is."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self.console.width = min(self.console.width, WIDTH_MAX)
        self.names: dict[str, str] = {}
        self._column = 0
        self._is_remarked = False  # a remark stands right above what it is about

    def name(self, peer_id: str) -> str:
        """Return the name of a device."""
        return self.names.get(peer_id, f"…{peer_id[-8:]}")

    def text(self, *lines: str | Text) -> None:
        """Print lines that stand by themselves."""
        for line in lines:
            self.console.print(line, soft_wrap=True)

    def heading(self, text: str) -> None:
        """Begin a part."""
        self.console.print()
        self.console.rule(Text(text, "bold"), align="left", style="dim")

    def remark(self, text: str) -> None:
        """Say what comes next."""
        self.text("", Text(f"  # {text}", "italic dim"))
        self._is_remarked = True

    def question(self, text: str) -> None:
        """Show what the client asks."""
        if not self._is_remarked:
            self.text("")
        self._is_remarked = False
        self.line("question", (text, "bold cyan"))

    def line(self, label: str, *parts: str | tuple[str, str] | Text) -> None:
        """Print one line under a label."""
        self.text(Text.assemble((f"  {label:<{LABEL_WIDTH}}", "dim"), *parts))

    def attempt(self, attempt: Mapping[str, Any]) -> None:
        """Show who was asked, and what each of them said."""
        if attempt["is_lease"]:
            self.line("lease", f"{self.name(attempt['seller'])} has the session: no auction")
            return
        asked = " and ".join(self.name(peer) for peer in attempt["asked"])
        self.line("asked", asked, (f"   decided after {attempt['auction_ms']:.0f} ms", "dim"))
        for bid in sorted(attempt["bids"], key=lambda bid: float(bid["after_ms"])):
            self.line(
                "bid",
                (f"{self.name(bid['peer_id']):<5}", "bold"),
                f" {bid['completion_micro']} µ a token, {credit(bid['total_micro'])} credits at most",
                (f"   after {bid['after_ms']:.0f} ms", "dim"),
                ("   wins" if bid["is_winner"] else "", "bold green"),
            )
        self.declines(attempt["declines"])

    def declines(self, declines: Sequence[Mapping[str, str]]) -> None:
        """Show who said no, and why."""
        for decline in declines:
            detail = f": {self._named(decline['detail'])}" if decline["detail"] else ""
            self.line(
                "decline",
                (f"{self.name(decline['peer_id']):<5}", "bold"),
                (f" {decline['reason']}", "yellow"),
                cell(detail),
            )

    def say(self, text: str) -> None:
        """Print a piece of an answer at once, wrapped under its label; what a terminal would obey is made harmless."""
        for char in printable(text, keep="\n"):
            if self._column == 0 and char == " ":
                continue
            if self._column == 0:
                self._write(" " * (LABEL_WIDTH + 2))
                self._column = LABEL_WIDTH + 2
            is_full = self._column >= self.console.width - 12 and char == " "
            if char == "\n" or is_full:
                self._write("\n")
                self._column = 0
            else:
                self._write(char)
                self._column += 1
        sys.stdout.flush()

    def begin_answer(self) -> None:
        """Put the label before an answer."""
        self._write(self._styled(f"  {'answer':<{LABEL_WIDTH}}", "2"))
        self._column = LABEL_WIDTH + 2

    def end_answer(self) -> None:
        """End the answer's last line."""
        if self._column:
            self._write("\n")
        self._column = 0

    def mark(self, text: str, colour: str) -> None:
        """Put a remark of the demo into the middle of an answer."""
        self.end_answer()
        self.line("", (text, f"bold {colour}"))

    def ledgers(self, books: Mapping[str, Mapping[str, Any]]) -> None:
        """Show each device's book of everybody's account; each column sums to zero."""
        shown = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        shown.add_column("  account of", header_style="dim")
        for owner in books:
            shown.add_column(f"in {owner}'s book", justify="right", header_style="dim")
        for peer_id, name in self.names.items():
            shown.add_row(f"  {name}", *(credit(balances(book).get(peer_id, 0)) for book in books.values()))
        shown.add_row(
            "  sum", *(credit(sum(balances(book).values())) for book in books.values()), style="bold"
        )
        self.console.print(shown)

    def scores(self, scores: Sequence[Mapping[str, Any]]) -> None:
        """Show what a patch does to each domain: the share of answers that are right to the letter."""
        shown = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        shown.add_column("  domain", header_style="dim")
        for column in ("questions", "before", "after"):
            shown.add_column(column, justify="right", header_style="dim")
        for each in scores:
            has_grown = each["before"] is not None and each["after"] > each["before"] + 0.1
            before = "–" if each["before"] is None else f"{each['before']:.2f}"
            after = Text(f"{each['after']:.2f}", "bold green" if has_grown else "")
            shown.add_row(f"  {each['domain']}", str(each["total"]), before, after)
        self.console.print(shown)

    def measured(self, first_token_s: float, job: Mapping[str, Any]) -> None:
        """Show what the client saw."""
        speed = f", then {job['tokens_per_s']:,.0f} tok/s" if job["tokens_per_s"] else ""
        self.line(
            "measured",
            f"first token {milliseconds(first_token_s)} after the question{speed}",
            (f"   job {job['job_id'][:8]}", "dim"),
        )

    def receipt(self, receipt: Mapping[str, Any]) -> None:
        """Show what was paid."""
        self.line(
            "receipt",
            f"{self.name(receipt['payer'])} pays {self.name(receipt['payee'])} ",
            (credit(receipt["amount_micro"]), "bold"),
            f" for {receipt['prompt_tokens']}+{receipt['completion_tokens']} tokens, signed by both",
            (f"   {receipt['receipt_id'][:8]}", "dim"),
        )

    def _named(self, text: str) -> str:
        """Return a text with the devices' names instead of their ids."""
        for peer_id, name in self.names.items():
            text = text.replace(peer_id, name)
        return text

    def _styled(self, text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self.console.is_terminal else text

    @staticmethod
    def _write(text: str) -> None:
        sys.stdout.write(text)


def balances(book: Mapping[str, Any]) -> dict[str, int]:
    """Return the accounts of one ledger."""
    return {account["peer_id"]: account["balance_micro"] for account in book["accounts"]}


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self._start_s
