"""Every chapter of the bench. Each function reads like the definition of the figures it yields."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Final

import psutil

from node.bench import engine, engine_mesh, gossip, random_gguf, simulation
from node.bench.figure import Figure, at_least, at_most
from node.bench.mesh import MODEL, THREADS, Exchange, Mesh, bare_llama, bidders, helper
from node.bench.sizes import Sizes
from node.local_mesh.client import Client
from node.local_mesh.processes import Daemon, LocalMeshFailed, until, verb
from node.store import measure_fsync_p50_s

PRICE_MICRO: Final = 40
PRICES_MICRO: Final = (40, 41, 42)
LONG_QUESTION: Final = (
    "Tell me the story of the lighthouse."  # the tiny model answers it with some 200 tokens
)
LONG_TOKENS: Final = 256
STRIKE_AFTER_PIECES: Final = 10
STRIKES_MISSED_MAX: Final = 20  # the answer was over before the seller was struck
CLIENTS: Final = 4
MIB: Final = 1024 * 1024


@dataclass(frozen=True)
class Bench:
    """What a chapter works with.

    Attributes:
        directory: for homes and files; removed by whoever made it.
        sizes: how much is measured.
        tiny: the trained tiny model's GGUF.
        say: tells the user what is going on.
        plots: where pictures go; None: nowhere.
    """

    directory: Path
    sizes: Sizes
    tiny: Path
    say: Callable[[str], None]
    plots: Path | None = None


def speed(bench: Bench) -> Iterator[Figure]:
    """Tokens per second through gateway, auction, mesh and engine, against llama.cpp in a bare process."""
    sizes = bench.sizes
    bench.say(f"writing a {sizes.shape_name} model of random weights")
    model = random_gguf.write(bench.directory / "random.gguf", sizes.shape)
    size_mb = model.stat().st_size / 1e6
    name = f"{sizes.shape_name} random-weight Q4_0, {size_mb:,.0f} MB"
    yield from _speed(bench, "big", model, name, sizes.speed_rounds, sizes.speed_tokens, 0.95)
    model.unlink()
    yield from _speed(bench, "tiny", bench.tiny, "tiny trained model", sizes.tiny_rounds, LONG_TOKENS, None)


def _speed(
    bench: Bench, home: str, model: Path, name: str, rounds: int, tokens_max: int, target: float | None
) -> Iterator[Figure]:
    decode: list[float] = []
    whole: list[float] = []
    ours: list[float] = []
    theirs: list[float] = []
    same = 0
    with Mesh(bench.directory / home) as mesh:
        bench.say(f"speed: setting up ({name})")
        mesh.found()
        mesh.add_sellers(model, [PRICE_MICRO])
        for number in range(rounds):
            bench.say(f"speed: {name}, round {number + 1} of {rounds}")
            question = f"{number}. {LONG_QUESTION}"
            # Fresh processes each round: where the weights come to lie in memory moves a process's speed by 10 %. And
            # each side goes first in turn, so that neither always has the other's heat before it.
            mesh.sellers[0].stop()
            mesh.sellers[0].start()
            mesh.wait_for_bids()
            mesh.ask("Hello", tokens_max=4)
            with bare_llama(model) as bare:
                if number % 2:
                    through = mesh.ask(question, tokens_max=tokens_max)
                    alone = bare.ask(question, tokens_max=tokens_max)
                else:
                    alone = bare.ask(question, tokens_max=tokens_max)
                    through = mesh.ask(question, tokens_max=tokens_max)
            same += through.text == alone["text"]
            alone_decode = (alone["tokens"] - 1) / (alone["last_s"] - alone["first_s"])
            ours.append(through.decode_tokens_per_s)
            theirs.append(alone_decode)
            decode.append(through.decode_tokens_per_s / alone_decode)
            whole.append(through.tokens_per_s / (alone["tokens"] / alone["last_s"]))
    note = (
        f"medians: {statistics.median(ours):,.1f} tokens/s through the mesh, {statistics.median(theirs):,.1f} alone; "
        f"{THREADS} thread(s); the same text in {same} of {rounds} rounds"
    )
    goal = None if target is None else at_least(target)
    what = f"{name}, up to {tokens_max} tokens, greedy, one stream, turn by turn, fresh processes each round"
    yield Figure(
        f"decode speed ÷ bare, {home} model",
        f"tokens/s from the first to the last token at the gateway's client ÷ the same in a bare process; {what}",
        "",
        decode,
        target=goal,
        note=note,
    )
    yield Figure(
        f"overall speed ÷ bare, {home} model",
        f"tokens/s from the question to the last token ÷ the same in a bare process; {what}",
        "",
        whole,
        target=goal,
    )


def first_token(bench: Bench) -> Iterator[Figure]:
    """Time to first token through the gateway, less the same prompt's in a bare process."""
    auctioned: list[float] = []
    leased: list[float] = []
    auction_ms: list[float] = []
    with Mesh(bench.directory / "first") as mesh, bare_llama(bench.tiny) as bare:
        bench.say("first token: setting up")
        mesh.found()
        mesh.add_sellers(bench.tiny, [PRICE_MICRO])
        mesh.ask("Hello", tokens_max=4, session="leased")
        for number in range(bench.sizes.first_tokens):
            bench.say(f"first token: {number + 1} of {bench.sizes.first_tokens}")
            question = f"{number}. How can I return the grey teapot?"
            alone_ms = bare.ask(question, tokens_max=4)["first_s"] * 1000
            fresh = mesh.ask(question, tokens_max=4)
            auctioned.append(fresh.piece_s[0] * 1000 - alone_ms)
            auction_ms.append(fresh.job["attempts"][0]["auction_ms"])
            later = mesh.ask(question, tokens_max=4, session="leased")
            if later.job["attempts"][0][
                "is_lease"
            ]:  # else the lease was used up, and a new one was auctioned
                leased.append(later.piece_s[0] * 1000 - alone_ms)
        fsync_ms = measure_fsync_p50_s(bench.directory, 50) * 1000
    what = (
        "at the gateway's HTTP client on loopback, less the same prompt's in a bare llama.cpp process; "
        "tiny model, other prompts each time"
    )
    yield Figure(
        "added time to first token",
        f"without a lease: auction, award and accept; {what}",
        "ms",
        auctioned,
        target=at_most(30),
        note=f"of which the auction {statistics.median(auction_ms):.1f} ms, "
        f"and two commits (award, accept) of {fsync_ms:.1f} ms each",
    )
    yield Figure(
        "added time to first token, leased",
        f"in a session (X-Agora-Session) that has a lease; {what}",
        "ms",
        leased,
        target=at_most(10),
    )


def auction(bench: Bench) -> Iterator[Figure]:
    """How long an auction among three sellers takes, and what a silent one costs."""
    usual: list[float] = []
    first: list[float] = []
    third: list[float] = []
    window_ms: list[float] = []
    with Mesh(bench.directory / "auction") as mesh:
        bench.say("auction: setting up three sellers")
        mesh.found()
        mesh.add_sellers(bench.tiny, PRICES_MICRO)
        for number in range(bench.sizes.auctions):
            bench.say(f"auction: {number + 1} of {bench.sizes.auctions}")
            usual.append(_auction(mesh)["auction_ms"])
        for number in range(bench.sizes.silences):
            bench.say(f"auction with a silent seller: {number + 1} of {bench.sizes.silences}")
            mesh.sellers[0].freeze()
            attempts = [_auction(mesh) for _ in range(3)]
            mesh.sellers[0].thaw()
            mesh.wait_for_bids()
            first.append(attempts[0]["auction_ms"] - attempts[0]["window_ms"])
            third.append(attempts[2]["auction_ms"])
            window_ms.append(attempts[0]["window_ms"])
    yield Figure(
        "auction, 3 sellers",
        "from sealing the request to knowing the winner (`auction_ms` of the job's attempt), all three bidding",
        "ms",
        usual,
        "p95",
        at_most(60),
    )
    yield Figure(
        "auction, cheapest silent, 1st time",
        "the same right after the cheapest seller was stopped (SIGSTOP), less the bid window that it is waited for",
        "ms",
        first,
        "p95",
        at_most(60),
        note=f"the window was {statistics.median(window_ms):.0f} ms",
    )
    yield Figure(
        "auction, cheapest silent, 3rd time",
        "the third auction after the cheapest seller was stopped: it is asked, but not waited for any more",
        "ms",
        third,
        "p95",
        at_most(60),
    )


def _auction(mesh: Mesh) -> dict[str, float]:
    attempt: dict[str, float] = mesh.ask("How can I return the grey teapot?", tokens_max=4).job["attempts"][0]
    return attempt


def kill(bench: Bench) -> Iterator[Figure]:
    """The seller is killed in mid-stream."""
    yield from _failover(bench, "kill -9", bench.sizes.kills, Daemon.kill, Daemon.start, at_most_s=1.0)


def stop(bench: Bench) -> Iterator[Figure]:
    """The seller falls silent in mid-stream: nothing is closed, nothing is answered."""
    yield from _failover(bench, "SIGSTOP", bench.sizes.stops, Daemon.freeze, Daemon.thaw, at_most_s=4.0)


def _failover(
    bench: Bench,
    strike_name: str,
    times: int,
    strike: Callable[[Daemon], None],
    repair: Callable[[Daemon], None],
    *,
    at_most_s: float,
) -> Iterator[Figure]:
    gaps: list[float] = []
    lost: list[float] = []
    cold_s = 0.0
    missed = 0
    with Mesh(bench.directory / strike.__name__) as mesh:
        bench.say(f"{strike_name}: setting up two sellers")
        mesh.found()
        mesh.add_sellers(bench.tiny, PRICES_MICRO[:2])
        undisturbed = mesh.ask(LONG_QUESTION, tokens_max=LONG_TOKENS)
        while len(gaps) < times:
            bench.say(f"{strike_name} in mid-stream: {len(gaps) + 1} of {times}")
            gap_s, answer, struck = _strike(mesh, strike)
            repair(struck)
            mesh.wait_for_bids()
            until("the struck seller has warmed up its model", partial(_is_warm, struck))
            if gap_s is None:
                missed += 1
                if missed > STRIKES_MISSED_MAX:
                    raise LocalMeshFailed(f"{missed} answers were over before their seller was struck")
            elif not cold_s:
                cold_s = gap_s
            else:
                gaps.append(gap_s)
                lost.append(_tokens_lost(answer, undisturbed))
    yield Figure(
        f"{strike_name} of the seller: next token",
        f"from {strike_name} of the seller's daemon in mid-stream to the next token at the gateway's client; "
        f"tiny model, {undisturbed.tokens} tokens, struck after {STRIKE_AFTER_PIECES} pieces of text; "
        "the successor has the model in memory",
        "s",
        gaps,
        "max",
        at_most(at_most_s),
        note=f"{cold_s:.2f} s when the successor had to load the model first",
    )
    yield Figure(
        f"{strike_name} of the seller: tokens lost or repeated",
        "against the undisturbed greedy answer; a text that differs in any way counts as one at least",
        "tokens",
        lost,
        "max",
        at_most(0),
    )


def _strike(mesh: Mesh, strike: Callable[[Daemon], None]) -> tuple[float | None, Exchange, Daemon]:
    """Ask, strike whoever answers in the middle, and return how long the next token took; None if it came too late.

    One that was struck before is doubted by the buyer, so it is now one seller, now the other.
    Pieces that were under way still come, at once; the next token is the one that ends the longest pause.
    """
    struck_s = 0.0
    struck = mesh.sellers[0]
    asked_s = time.monotonic()

    def on_piece(number: int) -> None:
        nonlocal struck_s, struck
        if number == STRIKE_AFTER_PIECES:
            answering = mesh.client.get("/api/jobs")[0]["seller"]
            struck = next(seller for seller in mesh.sellers if seller.peer_id == answering)
            struck_s = time.monotonic() - asked_s
            strike(struck)

    answer = mesh.ask(LONG_QUESTION, tokens_max=LONG_TOKENS, on_piece=on_piece)
    if not struck_s:
        raise LocalMeshFailed(
            f"the answer came in {len(answer.piece_s)} pieces, expected over {STRIKE_AFTER_PIECES}"
        )
    if len(answer.job["attempts"]) < 2:
        return None, answer, struck
    after = [struck_s, *(at_s for at_s in answer.piece_s if at_s > struck_s)]
    _, next_s = max(pairwise(after), key=lambda pair: pair[1] - pair[0])
    return next_s - struck_s, answer, struck


def _is_warm(seller: Daemon) -> bool:
    """Whether nobody has a daemon's slots: right after a start it takes one itself, to warm up its model."""
    engine = verb("status", home=seller.home)["engine"]
    return bool(engine["slots_free"] == engine["slots"])


def _tokens_lost(answer: Exchange, undisturbed: Exchange) -> int:
    if answer.text == undisturbed.text:
        return 0
    return max(1, abs(answer.tokens - undisturbed.tokens))


def join(bench: Bench) -> Iterator[Figure]:
    """A new member's first start: from the process to the first bid that it gets."""
    samples: list[float] = []
    with Mesh(bench.directory / "join") as mesh:
        bench.say("join: setting up")
        mesh.found()
        mesh.add_sellers(bench.tiny, [PRICE_MICRO])
        for number in range(bench.sizes.joins):
            bench.say(f"join: {number + 1} of {bench.sizes.joins}")
            member, key = mesh.join(f"member{number}")
            began_s = time.monotonic()
            mesh.start(member)
            client = mesh.client_of(member, key)
            until("the new member gets a bid", partial(_has_bid, client), pause_s=0.01)
            samples.append(time.monotonic() - began_s)
            member.stop()
    yield Figure(
        "join: `agora up` to first bid",
        "from starting the process of a fresh member (which joined before) to its first bid from a seller",
        "s",
        samples,
        target=at_most(3),
    )


def idle(bench: Bench) -> Iterator[Figure]:
    """What a joined daemon without a model takes while nothing happens."""
    with Mesh(bench.directory / "idle") as mesh:
        bench.say("idle: setting up")
        mesh.found()
        member, _ = mesh.join("member")
        mesh.start(member)
        daemon = psutil.Process(member.pid)
        bench.say(f"idle: watching for {bench.sizes.idle_s:.0f} s")
        time.sleep(bench.sizes.idle_s / 3)  # the first adverts and hellos are over
        family = [daemon, *daemon.children(recursive=True)]
        rss_mb = []
        woken, before_s, began_s = daemon.num_ctx_switches().voluntary, _cpu_s(family), time.monotonic()
        while time.monotonic() < began_s + bench.sizes.idle_s:
            time.sleep(bench.sizes.idle_s / 30)
            rss_mb.append(daemon.memory_info().rss / 1e6)
        took_s = time.monotonic() - began_s
        percent = 100 * (_cpu_s(family) - before_s) / took_s
        wake_ups_per_s = max(0.1, (daemon.num_ctx_switches().voluntary - woken) / took_s)
        own = daemon.memory_full_info()
        pss_mb = sum(process.memory_full_info().pss for process in family) / 1e6
        children_mb = [process.memory_info().rss / 1e6 for process in family[1:]]
    bench.say("idle: watching a program that does nothing")
    with helper("sleeper", str(wake_ups_per_s)) as process:
        sleeper = [psutil.Process(process.pid)]
        time.sleep(bench.sizes.idle_s / 10)
        before_s = _cpu_s(sleeper)
        time.sleep(bench.sizes.idle_s / 2)
        nothing_percent = 100 * (_cpu_s(sleeper) - before_s) / (bench.sizes.idle_s / 2)
    yield Figure(
        "RSS of a joined daemon",
        "resident memory of the daemon's process, no model added, connected to the founder",
        "MB",
        rss_mb,
        "max",
        at_most(130),
        note=f"of it {own.uss / 1e6:.0f} MB its own (USS), {own.pss / 1e6:.0f} MB PSS; its idle engine child has "
        f"{' + '.join(f'{size:.0f}' for size in children_mb) or '0'} MB RSS; PSS of both {pss_mb:.0f} MB",
    )
    yield Figure(
        "idle CPU of a joined daemon",
        f"processor time of the daemon and its engine child over {bench.sizes.idle_s:.0f} s, percent of one core",
        "%",
        [percent],
        "max",
        at_most(0.5),
        note=f"{wake_ups_per_s:.1f} wake-ups a second; a trio program that only wakes as often takes "
        f"{nothing_percent:.2f} % here",
    )


def connections(bench: Bench) -> Iterator[Figure]:
    """Many strangers connect, one after another, each with a key of its own."""
    wanted = bench.sizes.connections
    growth_mb: list[float] = []
    made = 0
    with Mesh(bench.directory / "connections") as mesh:
        bench.say("connections: setting up")
        mesh.found()
        mesh.add_sellers(bench.tiny, [PRICE_MICRO])
        victim = mesh.sellers[0]
        mesh.ask("Hello", tokens_max=4)
        daemon = psutil.Process(victim.pid)
        before = daemon.memory_info().rss
        began_s = time.monotonic()
        with helper("dialler", victim.listen, str(wanted), str(bench.sizes.connections_s_max)) as dialler:
            assert dialler.stdout is not None
            for line in dialler.stdout:
                made = int(line)
                growth_mb.append((daemon.memory_info().rss - before) / 1e6)
                bench.say(f"connections: {made:,} of {wanted:,}")
        took_s = time.monotonic() - began_s
        still_serving = bool(mesh.ask("Are you there?", tokens_max=4).piece_s)
    yield Figure(
        "inbound connections, then still serving",
        "connections made to a seller, one after another, each TCP + Noise + yamux with a fresh key and closed at once; "
        "counted only if the seller afterwards wins an auction and answers",
        "",
        [made if still_serving else 0],
        target=at_least(wanted),
        note=f"{made / took_s:.0f} a second",
    )
    yield Figure(
        "RSS growth over them",
        "resident memory of the seller's daemon against before the first one, at each tenth of them; the value is the last",
        "MB",
        growth_mb[-1:],
        target=at_most(20),
        note="at each tenth: " + ", ".join(f"{size:.1f}" for size in growth_mb[:-1]),
    )


def money(bench: Bench) -> Iterator[Figure]:
    """What a commit costs, how many receipts a second are settled, and how fast a daemon starts."""
    yield Figure(
        "fsync",
        "4 KiB written and synced, where the homes are: what each commit waits for",
        "ms",
        [measure_fsync_p50_s(bench.directory, 50) * 1000 for _ in range(5)],
    )
    with Mesh(bench.directory / "money") as mesh:
        bench.say("receipts: setting up three sellers")
        mesh.found()
        mesh.add_sellers(bench.tiny, PRICES_MICRO, "slots = 4")
        mesh.ask("Hello", tokens_max=4)
        before = _receipts(mesh)
        bench.say(f"receipts: {bench.sizes.receipts} chats")
        began_s = time.monotonic()

        def chat(number: int) -> None:
            with mesh.client.ask(MODEL, "Hello", session=f"money-{number}", tokens_max=1) as answer:
                for _ in answer:
                    pass

        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(chat, range(bench.sizes.receipts)))
        until("every receipt is settled", lambda: _receipts(mesh) - before >= bench.sizes.receipts)
        took_s = time.monotonic() - began_s
        starts = []
        for number in range(bench.sizes.starts):
            bench.say(f"start: {number + 1} of {bench.sizes.starts}")
            mesh.founder.stop()
            began_s = time.monotonic()
            mesh.founder.start()
            starts.append(time.monotonic() - began_s)
    yield Figure(
        "receipts settled a second",
        f"chats of one token by {CLIENTS} clients at once, three sellers, until each receipt is countersigned and posted",
        "1/s",
        [bench.sizes.receipts / took_s],
    )
    yield Figure(
        "daemon start",
        "from starting the founder's process to its ready line, with the jobs and logs of the receipts above",
        "s",
        starts,
    )


def _has_bid(client: Client) -> bool:
    """Whether a new member gets a bid; at first it does not even know the model's name."""
    try:
        return bool(bidders(client))
    except LocalMeshFailed:
        return False


def _cpu_s(processes: Sequence[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return float(sum(each.user + each.system for each in times))


def _receipts(mesh: Mesh) -> int:
    return len(mesh.client.get("/api/ledger")["receipts"])


def empty_round(bench: Bench) -> Iterator[Figure]:
    """What a round costs that trains nothing, against Flower as it comes."""
    from node.bench import round_overhead  # noqa: PLC0415 - Flower comes with the `train` extra alone

    return round_overhead.chapter(bench)


def cohorts(bench: Bench) -> Iterator[Figure]:
    """What cohorts learn, honest and attacked."""
    from node.bench import learning  # noqa: PLC0415 - torch comes with the `train` extra alone

    return learning.cohorts(bench)


def patch(bench: Bench) -> Iterator[Figure]:
    """How a patch comes into a running mesh."""
    from node.bench import learning  # noqa: PLC0415 - as above

    return learning.patch(bench)


def checks(bench: Bench) -> Iterator[Figure]:
    """How surely checks tell cheats from honest sellers."""
    from node.bench import verification  # noqa: PLC0415 - as above

    return verification.chapter(bench)


CHAPTERS: Final[dict[str, Callable[[Bench], Iterator[Figure]]]] = {
    "speed": speed,
    "first-token": first_token,
    "auction": auction,
    "kill": kill,
    "stop": stop,
    "join": join,
    "idle": idle,
    "connections": connections,
    "money": money,
    "gossip": gossip.chapter,
    "simulation": simulation.chapter,
    "round": empty_round,
    "cohorts": cohorts,
    "patch": patch,
    "engine": engine.chapter,
    "engine-mesh": engine_mesh.chapter,
    "verification": checks,
}
