"""What cohorts learn, and how a patch comes into a running mesh: the figures of learning together."""

import io
import os
import statistics
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, Self

import psutil
from rich.console import Console

from node.bench import federated, other_work, private_cohort
from node.bench.cohort import Learned
from node.bench.figure import Figure, at_least, at_most
from node.demo.learning import DATA, MODEL, QUESTIONS, Lesson
from node.demo.stage import Stage
from node.event import Event
from node.local_mesh.client import Client
from node.local_mesh.processes import Daemon, LocalMeshFailed, until, verb

if TYPE_CHECKING:
    from node.bench.figures import Bench

NAMES: Final = ("ann", "bob", "cleo", "dora")
ASKING: Final = NAMES[:2]  # whose users go on asking while the patch is loaded
LEARNED: Final = 0.95
MB: Final = 1e6
# A and B in float32 of rank 8 on the seven linear matrices of the tiny model's four layers: (in, out) of each
_MATRICES: Final = ((128, 128), (128, 64), (128, 64), (128, 128), (128, 384), (128, 384), (384, 128))
FULL_BYTES: Final = 4 * 4 * 8 * sum(width + height for width, height in _MATRICES)
KNOWN_QUESTION: Final = "44 + 25"  # that the base answers, and goes on answering


def cohorts(bench: "Bench") -> Iterator[Figure]:
    """Real trainer children, the real codec and strategies, llama.cpp's answers; no mesh around them."""
    bench.say("learning: four devices with disjoint data")
    learned = federated.disjoint(say=bench.say)
    losses = list(learned.losses(besides=DATA).values())
    before, after = learned.accuracy(DATA)
    yield Figure(
        "A: new domain, four disjoint devices",
        f"share of the new domain's test questions answered right after {len(learned.round_s)} rounds; each device has "
        "two of eight codes; plain mean, FFA-LoRA, int8 changes, no privacy",
        "",
        [after],
        target=at_least(LEARNED),
        note=f"before: {before:.2f}; all rounds {sum(learned.round_s):.0f} s, {learned.cpu_s:.0f} CPU seconds",
    )
    what = "exact match of a domain's test questions before minus after"
    yield Figure("A: worst other domain lost", what, "", [max(losses)], target=at_most(0.10))
    yield Figure(
        "A: mean of the other domains lost", what, "", [sum(losses) / len(losses)], target=at_most(0.02)
    )
    yield _bytes(learned)
    cases = (("honest", None), *federated.ATTACKS.items())
    for name, attack in cases[: bench.sizes.cohorts]:
        bench.say(f"learning: five devices, {name}")
        learned = federated.overlapping(attack=attack, say=bench.say)
        losses = list(learned.losses(besides=DATA).values())
        yield Figure(
            f"B: five devices, {name}",
            "share of the new domain's test questions answered right; each device has four of eight codes, the default "
            f"strategy; {'all are honest' if attack is None else 'one of them: ' + str(attack.__doc__)}",
            "",
            [learned.accuracy(DATA)[1]],
            target=at_least(LEARNED),
            note=f"others lost {max(losses):.3f} at worst, {sum(losses) / len(losses):.3f} on average; "
            f"{len(learned.refused)} updates refused by the gate",
        )
    if bench.sizes.cohorts == len(cases):
        yield from _private(bench)


def _private(bench: "Bench") -> Iterator[Figure]:
    bench.say("learning: under a budget")
    spent = private_cohort.run(bench.say)
    losses = list(spent.learned.losses(besides=DATA).values())
    yield Figure(
        "C: new domain under a budget",
        f"share of the new domain's test questions answered right by one device with {private_cohort.RECORDS:,} records, "
        f"noise multiplier {private_cohort.NOISE_MILLI / 1000}, {private_cohort.ROUNDS * private_cohort.STEPS} steps",
        "",
        [spent.learned.accuracy(DATA)[1]],
        note=f"epsilon {spent.epsilon_milli / 1000:.2f} at delta {spent.delta:.1e}; others lost {max(losses):.3f} at worst; "
        f"{spent.learned.cpu_s:.0f} CPU seconds",
    )


def _bytes(learned: Learned) -> Figure:
    full = 2 * FULL_BYTES
    share = [(statistics.mean(learned.down_bytes) + up) / full for up in learned.up_bytes]
    return Figure(
        "bytes of a member and round ÷ f32 A+B",
        "both directions, the changes as they go over the wire, against the same LoRA's A and B in float32 both ways",
        "",
        share,
        target=at_most(0.15),
        note=f"{FULL_BYTES:,} bytes one way uncompressed",
    )


def patch(bench: "Bench") -> Iterator[Figure]:
    """The demo's mesh: four daemons train, vote and load, while their users go on asking."""
    with _Town(bench) as town:
        lesson = town.lesson
        wrong_s = time.monotonic()
        lesson.ask_in_vain()
        lesson.agree_on_who_decides()
        lesson.bring_data()
        with _Watch(town.devices) as watch:
            manifest = lesson.train()
        lesson.vote(manifest)
        # An engine of one slot serves one at a time: with more questions than this some would rightly be told "busy".
        with (
            _Questions({name: town.clients[name] for name in ASKING}) as questions,
            ThreadPoolExecutor() as pool,
        ):
            served = pool.submit(_first_patched, town.clients[NAMES[-1]])
            lesson.approve(manifest)
            served.result()
        ratified = _happened(town.devices[NAMES[-1]], "patch_ratified")
        lesson.ask_everybody()
        right_s = time.monotonic()
    yield Figure(
        "from ratified to served",
        "from when a member's device hears of the human's approval, which ratifies it, to the first answer it gives with the patch",
        "s",
        [served.result() - ratified],
        target=at_most(2.0),
    )
    yield Figure(
        "requests dropped at the switch",
        f"of {questions.answered + questions.failed} asked one after the other at each of two gateways while engines load",
        "",
        [float(questions.failed)],
        target=at_most(0),
        note=questions.why,
    )
    yield Figure(
        "from the first wrong answer to every device right",
        "charter, data, training, exams, votes, a human's approval, loading; one machine does all of it",
        "s",
        [right_s - wrong_s],
        target=at_most(120.0),
    )
    directory = bench.directory / "other-work"
    directory.mkdir()
    yield Figure(
        "other work slowed by a trainer",
        f"share of its speed that a busy loop on every core loses while one trainer's child works, {other_work.SECONDS:.0f} s each "
        "in turn with the child suspended",
        "",
        other_work.run(directory, bench.say),
        target=at_most(0.10),
    )
    yield Figure(
        "memory of a daemon while its trainer works",
        "resident set of the daemon's process, the largest of the three that take part and do not coordinate",
        "MB",
        [watch.rss_mb[name] for name in NAMES[1:]],
        "max",
        target=at_most(180),
        note=f"the coordinator, with numpy and Flower in it: {watch.rss_mb[NAMES[0]]:.0f} MB",
    )


class _Town:
    """Four members with the model, and clients of their gateways."""

    def __init__(self, bench: "Bench") -> None:
        self._stack = ExitStack()
        directory = bench.directory / "learning"
        directory.mkdir()
        self._phrase = {"AGORA_PASSPHRASE": os.urandom(16).hex()}
        self._model = str(bench.tiny)
        self.devices = {name: Daemon(name, directory / name) for name in NAMES}
        self.clients: dict[str, Client] = {}
        stage = Stage(Console(file=io.StringIO()))
        self.lesson = Lesson(stage, self.devices, self.clients, directory, self._phrase)
        bench.say("learning: four daemons meet")

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            ann = self.devices[NAMES[0]]
            founded = verb("init", "--name", "bench", "--owner", "ann", home=ann.home, environ=self._phrase)
            self._start(stack, NAMES[0], founded["api_key"])
            for name in NAMES[1:]:
                invited = verb("invite", "--owner", name, home=ann.home)["invitation"]
                joined = verb("join", invited, home=self.devices[name].home)
                self._start(stack, name, joined["api_key"])
            with ThreadPoolExecutor() as pool:
                digest, *_ = pool.map(self._add, NAMES)
            verb("model", "publish", digest, "--name", MODEL, home=ann.home)
            until("all hold the model", lambda: self._holders() == len(NAMES))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack, name: str, key: str) -> None:
        device = self.devices[name]
        stack.callback(device.stop)
        device.start()
        self.clients[name] = Client(device.gateway, key)
        stack.callback(self.clients[name].close)

    def _add(self, name: str) -> str:
        return str(verb("model", "add", self._model, home=self.devices[name].home)["digest"])

    def _holders(self) -> int:
        models = self.clients[NAMES[0]].get("/api/models")
        return len(models[0]["holders"]) if models else 0


class _Watch:
    """The largest resident set of each daemon while a thread looks twice a second."""

    def __init__(self, devices: Mapping[str, Daemon]) -> None:
        self._processes = {name: psutil.Process(device.pid) for name, device in devices.items()}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.rss_mb = dict.fromkeys(devices, 0.0)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.5):
            for name, process in self._processes.items():
                self.rss_mb[name] = max(self.rss_mb[name], process.memory_info().rss / MB)


class _Questions:
    """One question after the other at each gateway, each in its own thread, until the block ends."""

    def __init__(self, clients: Mapping[str, Client]) -> None:
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(client,)) for client in clients.values()]
        self._lock = threading.Lock()
        self.answered = 0
        self.failed = 0
        self.why = ""

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, client: Client) -> None:
        while not self._ended.is_set():
            try:
                with client.ask(MODEL, KNOWN_QUESTION, session=os.urandom(4).hex(), tokens_max=16) as answer:
                    is_empty = not "".join(delta.text for delta in answer)
            except LocalMeshFailed as error:
                self._count(str(error))
            else:
                self._count("an empty answer" if is_empty else "")

    def _count(self, failure: str) -> None:
        with self._lock:
            self.answered += not failure
            self.failed += bool(failure)
            self.why = self.why or failure


def _first_patched(client: Client) -> float:
    """Ask again and again; return when the first answer that was given with an adapter had come (Unix seconds)."""

    def patched_s() -> float:
        with client.ask(MODEL, QUESTIONS["H4"], session=os.urandom(4).hex(), tokens_max=2) as answer:
            for _delta in answer:
                pass
        came_s = time.time()
        return came_s if client.job(answer.job_id)["adapter"] else 0.0

    return float(until("the patch answers", patched_s, pause_s=0.01, timeout_s=60.0))


def _happened(device: Daemon, event: str) -> float:
    """Return when a daemon's journal says that it happened (Unix seconds)."""
    for line in (device.home / "journal.jsonl").read_text().splitlines():
        told = Event.from_json(line)
        if told is not None and told.name == event:
            return told.time_s
    raise LocalMeshFailed(f"{device.name} says nothing of {event} in its journal")
