"""`agora train` and `agora runs`: what a terminal shows of a run, and how it is drawn."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from node.cli import show
from node.cli.app import run
from node.errors import StartError
from node.gateway.app import admin_app
from node.gateway.server import serve_admin
from node.home import Home
from node.run_plot import draw
from node.runs import DomainView, MemberView, RoundView, RunView
from node.services.coordinator import TrainOptions
from tests.node.gateway.fake_node import ANN, BOB, RUN_ID, FakeNode


def domain(name: str, right: int) -> DomainView:
    return DomainView(
        domain=name, right=right, total=4, accuracy=right / 4, loss=1.5 - right / 4, precision=0.5, recall=0.5, f1=0.5
    )  # fmt: skip


def ended_round(number: int, right: int, *, dropped: str = "") -> RoundView:
    return RoundView(
        round=number, members=[ANN, BOB], dropped=[{"peer_id": BOB, "reason": dropped}] if dropped else [], late=[],
        seconds=12.5, bytes_down=4_096, bytes_up=1_024, steps=24, epsilon_milli={ANN: 250 * number, BOB: -1},
        epsilon_milli_max=250 * number, domains=[domain("heat", right), domain("talk", 4)],
    )  # fmt: skip


class Coordinator(FakeNode):
    """Its one run goes on a little at each look."""

    def __init__(self) -> None:
        super().__init__()
        self.looks: list[RunView] = []
        self.reason = ""

    def story(self, **changes: Any) -> RunView:
        member = MemberView(
            peer_id=BOB, owner="[bold]bob", samples=360, step_micro=1_000, steps_per_s=2.5, epsilon_milli=4_000,
            is_local=False, paid_micro=24_000,
        )  # fmt: skip
        fields: dict[str, Any] = {
            "state": "running", "cohort": [member], "before": [domain("heat", 0), domain("talk", 4)], "rounds": 2
        }  # fmt: skip
        return msgspec.structs.replace(self._run(), **{**fields, **changes})

    def training_run(self, run_id: str) -> RunView:
        if not RUN_ID.startswith(run_id):
            raise StartError(f"no run {run_id!r}, or several; 'agora runs' lists them")
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "home")


@pytest.fixture
async def node(home: Home, nursery: trio.Nursery) -> Coordinator:
    node = Coordinator()
    await nursery.start(partial(serve_admin, admin_app(node), home.admin_socket, node.journal))
    return node


@pytest.fixture
def agora(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Run one command line in a thread; return its status, what it printed, and its errors."""
    for console in (show.out, show.err):  # made once, whichever test was the first
        monkeypatch.setattr(console, "width", 180)

    async def type_in(*words: str) -> tuple[int, str, str]:
        status = await trio.to_thread.run_sync(run, [*words, "--home", str(home.path)])
        told = capsys.readouterr()
        return status, told.out, told.err

    return type_in


async def test_a_run_is_watched_round_by_round_to_its_end(
    node: Coordinator, agora: Callable[..., Any]
) -> None:
    first, second = ended_round(1, 2, dropped="busy: trains elsewhere"), ended_round(2, 4)
    node.looks = [
        node.story(state="enlisting", cohort=[]),
        node.story(outlook="360 records under epsilon 4 may teach little"),
        node.story(round=1, history=[first]),
        node.story(round=2, history=[first, second], state="finished", adapter="ad" * 32, price_micro=24_000),
    ]

    status, out, err = await agora(
        "train", "heat", "--model", "tiny", "--rounds", "2", "--strategy", "fedtrimmedavg,beta=0.25"
    )

    assert status == 0
    assert "round 1/2: 2 members, loss 0.750, accuracy 0.750" in out
    assert f"5 KiB, 12.5 s, epsilon 0.250; dropped …{BOB[-8:]} (busy: trains elsewhere)" in out
    assert "round 2/2: 2 members, loss 0.500, accuracy 1.000" in out
    assert "adapter adadadadadad is proposed to the mesh for tiny, paid 0.024000" in out
    assert "may teach little" in out
    assert err == ""
    assert node.calls == [
        (
            "train",
            TrainOptions(
                data="heat", line="tiny", rounds=2, strategy="fedtrimmedavg", parameters=(("beta", 250_000),)
            ),
        )
    ]


async def test_a_run_that_nobody_took_says_why_in_one_line(
    node: Coordinator, agora: Callable[..., Any]
) -> None:
    declines = [{"peer_id": BOB, "reason": "price", "detail": "5 a step asked, at most 4 allowed"}]
    node.looks = [node.story(state="unsold", reason="nobody enlisted", cohort=[], declines=declines)]

    status, _out, err = await agora("train", "heat", "--model", "tiny")

    assert status == 1
    assert err == (
        f"run {RUN_ID[:8]} ended unsold: nobody enlisted (…{BOB[-8:]} price: 5 a step asked, at most 4 allowed)\n"
    )


async def test_a_detached_run_is_not_watched(node: Coordinator, agora: Callable[..., Any]) -> None:
    status, out, _err = await agora(
        "train", "heat", "--model", "tiny", "--detach", "--price-max", "0.005", "--from", "ab12"
    )

    assert (status, out) == (0, f"run {RUN_ID} announced: who holds 'heat' and would train 'tiny'?\n")
    ((_verb, asked),) = node.calls
    assert (asked.step_micro_max, asked.start_from) == (5_000, "ab12")


async def test_a_parameter_that_is_no_number_is_refused(node: Coordinator, agora: Callable[..., Any]) -> None:
    status, _out, err = await agora("train", "heat", "--model", "tiny", "--strategy", "krum,f=many")

    assert status == 1
    assert err == "--strategy has 'f=many', expected KEY=NUMBER such as 'beta=0.2'\n"
    assert node.calls == []


async def test_a_run_is_told_from_beginning_to_end(node: Coordinator, agora: Callable[..., Any]) -> None:
    """Names of strangers are text, whatever markup is in them."""
    node.looks = [node.story(round=1, history=[ended_round(1, 2)], is_protected=False)]

    status, out, _err = await agora("runs", "show", RUN_ID[:6])

    assert status == 0
    for part in (
        "multikrum, no Byzantine protection",
        "[bold]bob",
        "1/2",
        "0.250",
        "heat",
        "accuracy before",
    ):
        assert part in out


@pytest.mark.parametrize("verb", ["pause", "resume", "cancel"])
async def test_a_run_is_steered(node: Coordinator, agora: Callable[..., Any], verb: str) -> None:
    status, out, _err = await agora("runs", verb, RUN_ID[:6])

    assert (status, out) == (0, f"run {RUN_ID[:8]} is running\n")
    assert node.calls == [("steer_run", RUN_ID[:6], verb)]


async def test_runs_are_listed(node: Coordinator, agora: Callable[..., Any]) -> None:
    assert node.runs() != []

    status, out, _err = await agora("runs")

    assert status == 0
    assert RUN_ID[:8] in out
    assert "1/16" in out


async def test_a_run_is_drawn(node: Coordinator, agora: Callable[..., Any], tmp_path: Path) -> None:
    node.looks = [node.story(round=2, history=[ended_round(1, 2), ended_round(2, 4)])]

    status, _out, _err = await agora("runs", "plot", RUN_ID[:6], "--out", str(tmp_path / "run.svg"))

    drawn = (tmp_path / "run.svg").read_text()
    assert status == 0
    assert drawn.startswith("<svg")
    assert drawn.count("<polyline") == 4  # two domains, loss, epsilon


async def test_a_drawing_has_a_place_to_go(
    node: Coordinator, agora: Callable[..., Any], tmp_path: Path
) -> None:
    node.looks = [node.story()]

    status, _out, err = await agora(
        "runs", "plot", RUN_ID[:6], "--out", str(tmp_path / "nowhere" / "run.svg")
    )

    assert status == 1
    assert "expected a place for an SVG" in err


def test_a_curve_rises_where_the_figure_does() -> None:
    """Heat goes from none to all right, so its last point is the panel's upper edge and its first the lower one."""
    view = Coordinator().story(round=2, history=[ended_round(1, 2), ended_round(2, 4)])

    heat = draw(msgspec.to_builtins(view)).split('<polyline points="')[1].split('"')[0]

    heights = [float(point.split(",")[1]) for point in heat.split()]
    assert heights == sorted(heights, reverse=True)
    assert len(set(heights)) == 3


def test_a_name_cannot_break_out_of_a_drawing() -> None:
    view = Coordinator().story(data="<script>", round=1, history=[ended_round(1, 2)])

    assert "<script>" not in draw(msgspec.to_builtins(view))
