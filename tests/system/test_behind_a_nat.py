"""Three machines as three network namespaces: what only a network shows, seen from the daemons' side.

The founder can be dialled. The other two listen on their own loopback alone, as a device behind a NAT in effect does.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.local_mesh.processes import until
from tests.system.daemons import Device, agora, running

pytestmark = pytest.mark.system

NAMES = ("ann", "bob", "cleo")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)


def machine(name: str) -> str:
    return f"agora-{os.getpid()}-{name}"


def on(name: str) -> tuple[str, ...]:
    """Words that run a command on a machine."""
    return ("ip", "netns", "exec", machine(name))


@pytest.fixture
def network() -> Iterator[None]:
    """One network segment that all machines are plugged into, 10.78.0.1 and on."""
    switch = machine("switch")
    try:
        ip("netns", "add", switch)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no network namespaces here: {error}")
    try:
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        for number, name in enumerate(NAMES, start=1):
            ip("netns", "add", machine(name))
            ip(
                "-n",
                switch,
                "link",
                "add",
                name,
                "type",
                "veth",
                "peer",
                "name",
                "cable",
                "netns",
                machine(name),
            )
            ip("-n", switch, "link", "set", name, "master", "bridge", "up")
            ip("-n", machine(name), "addr", "add", f"10.78.0.{number}/24", "dev", "cable")
            ip("-n", machine(name), "link", "set", "lo", "up")
            ip("-n", machine(name), "link", "set", "cable", "up")
        yield
    finally:
        for name in (*NAMES, "switch"):
            subprocess.run(
                ["ip", "netns", "del", machine(name)], check=False, capture_output=True, timeout=10
            )


def set_up(device: Device, *settings: str) -> None:
    with (device.home / "config.toml").open("a") as config:
        config.write("\n".join(settings) + "\n")


@pytest.mark.usefixtures("network")
def test_two_devices_behind_nats_trade_through_a_relay_and_a_moved_founder_is_found_by_mdns(
    tmp_path: Path,
) -> None:
    """Bob buys from cleo, and neither can dial the other; then the founder comes back at another port."""
    ann = Device.founder("ann", tmp_path, launcher=on("ann"))
    with running(ann):
        ann.start(listen="/ip4/0.0.0.0/tcp/0")
        assert ann.listen.startswith("/ip4/10.78.0.1/tcp/")
        bob = Device.member("bob", ann, launcher=on("bob"))
        cleo = Device.member("cleo", ann, launcher=on("cleo"))
        for device in (bob, cleo):
            set_up(device, f'relays = ["{ann.listen}"]')
        with running(bob, cleo):
            cleo.start()
            digest = cleo.hold()
            bob.start()
            circuit = f"/p2p/{ann.peer_id}/p2p-circuit/p2p/{cleo.peer_id}"
            until(
                "cleo has a place at the relay",
                lambda: circuit in str(cleo.ask("status")["addresses"]),
                pause_s=0.5,
            )
            until("bob meets both", lambda: bob.ask("status")["peers"] == 2, pause_s=0.5)
            until("bob hears of the model", lambda: bob.ask("models"), pause_s=0.5)

            answer = agora(
                "chat", "--privacy", "mesh", "--model", f"tiny@{digest[:8]}", "44 + 25", home=bob.home
            )

            assert answer.returncode == 0, answer.stderr
            assert answer.stdout.strip()
            [payment] = bob.ask("ledger")["receipts"]
            assert (payment["payer"], payment["payee"]) == (bob.peer_id, cleo.peer_id)
            bob.stop()
            cleo.stop()

        old = ann.listen
        ann.stop()
        ann.start(listen="/ip4/0.0.0.0/tcp/0")
        assert ann.listen != old
        with running(bob):
            bob.start(listen="/ip4/0.0.0.0/tcp/0")

            until(
                "they meet although bob knows only the old address",
                lambda: bob.ask("status")["peers"] == 1,
                pause_s=0.5,
            )
            found = [agora("logs", "--event", "peer_found", home=device.home).stdout for device in (ann, bob)]
            assert ann.listen in found[1] or bob.listen in found[0]  # whoever was faster
