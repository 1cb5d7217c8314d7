"""`jobs`, `jobs show`, `ledger`: every request's story, and what it cost."""

from typing import Annotated, Any

import typer
from rich.text import Text

from node.cli.options import HomeOption, JsonOption
from node.cli.show import cell, clock, credit, milliseconds, out, pairs, print_json, short, short_clock, table

jobs_group = typer.Typer()

VERIFICATION_STYLES = {"passed": "green", "caught": "bold red", "unverified": "yellow"}
STATE_STYLES = {"settled": "green", "running": "cyan", "auction": "cyan", "failed": "red", "unsold": "red"}


@jobs_group.callback(invoke_without_command=True)
def jobs(context: typer.Context, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the newest requests, running ones too; `show ID` tells the whole story of one.

    Example: `agora jobs --json`
    """
    if context.invoked_subcommand is not None:
        return
    from node.cli.daemon import ask

    found = ask(home, lambda admin: admin.jobs())
    if as_json:
        print_json(found)
        return
    shown = table(
        "job", "at", "task", "state", "model", "seller", "price", "tokens", "ttft", "tok/s", "promised",
        right=("price", "tokens", "ttft", "tok/s"), fold=("model", "promised"),
    )  # fmt: skip
    for job in found:
        shown.add_row(
            short(job["job_id"]),
            short_clock(job["started_at"]),
            job["kind"],
            Text(job["state"], STATE_STYLES.get(job["state"], "")),
            cell(job["model"]),
            cell(short(job["seller"]) if job["seller"] else "–"),
            credit(job["price_micro"]),
            f"{job['prompt_tokens']}+{job['completion_tokens']}{'w' if is_reading(job) else ''}",
            milliseconds(job["ttft_s"]),
            f"{job['tokens_per_s']:,.0f}" if job["tokens_per_s"] else "–",
            promise(job["promised_ttft_ms"], job["promised_tokens_per_s"]).removeprefix("first token ")
            or "–",
        )
    out.print(shown if found else "no jobs yet; ask something with 'agora chat'")


@jobs_group.command()
def show(
    ident: Annotated[str, typer.Argument(metavar="ID", help="The job's id, or the beginning of it.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell the story of one request: who was asked, who said what, who won, and what it came to.

    Example: `agora jobs show 3f9a1c2b`
    """
    from node.cli.daemon import ask

    job = ask(home, lambda admin: admin.job(ident))
    if as_json:
        print_json(job)
        return
    for line in story(job):
        out.print(line)


def is_reading(job: dict[str, Any]) -> bool:
    """Whether a job was answered in words, of which nobody is paid for: vectors, or gaps of claimed tokens."""
    return job["kind"] in {"embedding", "check"}


def story(job: dict[str, Any]) -> list[Any]:
    """Return a job's story, line by line, as rich shows it."""
    took = (
        ""
        if job["finished_at"] is None
        else f" · took {milliseconds(job['finished_at'] - job['started_at'])}"
    )
    speed = "" if not job["tokens_per_s"] else f" · {job['tokens_per_s']:,.0f} tok/s"
    lines: list[Any] = [
        Text.assemble(("job ", "dim"), (job["job_id"], "bold")),
        pairs(
            {
                "task": job["kind"],
                "asked": f"{clock(job['started_at'])} for {job['model']} ({job['digest'][:8]}), privacy {job['privacy']}",
                "state": f"{job['state']}{took}",
                "tokens": f"{job['prompt_tokens']} prompt + {job['completion_tokens']} "
                + ("words of the answer" if is_reading(job) else "completion"),
                "speed": f"first token {milliseconds(job['ttft_s'])}{speed}",
                "price": f"{credit(job['price_micro'])} credits",
                "receipts": " ".join(receipt[:8] for receipt in job["receipts"]) or "none yet",
            }
        ),
    ]
    for attempt in job["attempts"]:
        lines += attempt_story(attempt, "words" if is_reading(job) else "tokens")
    return lines


def attempt_story(attempt: dict[str, Any], unit: str) -> list[Text]:
    """Return one attempt: the auction, then how it ended."""
    if attempt["is_lease"]:
        how = "under the session's lease, without an auction"
    else:
        asked = " ".join(short(peer) for peer in attempt["asked"]) or "nobody"
        how = f"asked {asked} · window {attempt['window_ms']:.0f} ms · decided after {attempt['auction_ms']:.1f} ms"
    lines = [Text.assemble((f"attempt {attempt['attempt']}  ", "bold"), how)]
    answers = [(bid["after_ms"], bid_line(bid)) for bid in attempt["bids"]]
    lines += [line for _, line in sorted(answers, key=lambda answer: answer[0])]
    lines += [decline_line(decline) for decline in attempt["declines"]]
    if attempt["seller"]:
        outcome = f"{attempt['outcome']}, {attempt['tokens']} {unit}"
        reason = f": {attempt['reason']}" if attempt["reason"] else ""
        receipt = f" · receipt {attempt['receipt_id'][:16]}" if attempt["receipt_id"] else ""
        lines.append(cell(f"  {short(attempt['seller'])} {outcome}{reason}{receipt}"))
        lines += promise_lines(attempt)
    if attempt["verification"]:
        style = VERIFICATION_STYLES.get(attempt["verification"], "")
        detail = f": {attempt['verification_detail']}" if attempt["verification_detail"] else ""
        lines.append(Text.assemble("  verification ", (attempt["verification"], style), cell(detail)))
    return lines


def promise_lines(attempt: dict[str, Any]) -> list[Text]:
    """Return what its seller promised beside what came; nothing where nothing was promised or came."""
    promised = promise(attempt["promised_ttft_ms"], attempt["promised_tokens_per_s"])
    came = promise(attempt["ttft_ms"], attempt["tokens_per_s"])
    if not (promised and came):
        return []
    return [cell(f"  promised {promised} · delivered {came}")]


def promise(ttft_ms: float | None, tokens_per_s: float | None) -> str:
    """Return a time to the first token and a speed, as far as there are any."""
    parts = []
    if ttft_ms:
        parts.append(f"first token {ttft_ms:,.0f} ms")
    if tokens_per_s:
        parts.append(f"{tokens_per_s:,.0f} tok/s")
    return ", ".join(parts)


def bid_line(bid: dict[str, Any]) -> Text:
    """Return one bid."""
    speed = f"{bid['tokens_per_s']:,.0f} tok/s" if bid["tokens_per_s"] else "speed unmeasured"
    return Text.assemble(
        f"  {bid['after_ms']:6.1f} ms  {short(bid['peer_id'])} bids {credit(bid['total_micro'])}",
        f" ({bid['prompt_micro']}+{bid['completion_micro']} µ/token, first token {bid['ttft_ms']} ms, {speed})",
        ("  wins" if bid["is_winner"] else "", "bold green"),
    )


def decline_line(decline: dict[str, str]) -> Text:
    """Return one decline, with its reason."""
    detail = f" ({decline['detail']})" if decline.get("detail") else ""
    return Text.assemble(
        f"             {short(decline['peer_id'])} ",
        (f"declines: {decline['reason']}", "yellow"),
        cell(detail),
    )


def ledger(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show the accounts, which sum to zero, and the receipts behind them.

    Example: `agora ledger`
    """
    from node.cli.daemon import ask

    found = ask(home, lambda admin: admin.ledger())
    if as_json:
        print_json(found)
        return
    out.print(
        pairs(
            {
                "account": found["account"],
                "balance": f"{credit(found['balance_micro'])} credits",
                "held": f"{credit(found['held_micro'])} for running jobs and open sessions",
                "credit line": f"{credit(found['credit_line_micro'])}",
            }
        )
    )
    accounts = table("peer", "balance", title="Accounts", right=("balance",))
    for account in found["accounts"]:
        accounts.add_row(cell(short(account["peer_id"])), credit(account["balance_micro"]))
    accounts.add_section()
    accounts.add_row(
        Text("sum", "dim"), credit(sum(account["balance_micro"] for account in found["accounts"]))
    )
    out.print(accounts)
    receipts = table(
        "receipt", "at", "job", "try", "payer", "payee", "tokens", "amount",
        title="Receipts, signed by both", right=("try", "tokens", "amount"),
    )  # fmt: skip
    for receipt in found["receipts"]:
        receipts.add_row(
            short(receipt["receipt_id"]),
            short_clock(receipt["at"]),
            short(receipt["job_id"]),
            str(receipt["attempt"]),
            short(receipt["payer"]),
            short(receipt["payee"]),
            f"{receipt['prompt_tokens']}+{receipt['completion_tokens']}",
            credit(receipt["amount_micro"]),
        )
    out.print(receipts if found["receipts"] else "no receipts yet")
