"""A port in use is refused at start with one line."""

import socket

import pytest

from node.errors import StartError
from node.port import check_free, listen_address


def test_a_port_in_use_is_refused() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]

        with pytest.raises(StartError) as caught:
            check_free("127.0.0.1", port, what="gateway")

    assert str(caught.value) == (
        f"gateway 127.0.0.1:{port} is in use, expected a free port; stop what uses it or choose another with --gateway"
    )
    check_free("127.0.0.1", port, what="gateway")


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(StartError, match="is not an address of this machine"):
        check_free("192.0.2.1", 4420, what="listen")


def test_any_port_is_free() -> None:
    check_free("127.0.0.1", 0, what="listen")


def test_a_tcp_multiaddr_can_be_listened_on() -> None:
    assert listen_address("/ip4/127.0.0.1/tcp/4420") == ("127.0.0.1", 4420)
    assert listen_address("/ip6/::1/tcp/0") == ("::1", 0)


@pytest.mark.parametrize(
    "multiaddr",
    [
        "/dns4/example.org/tcp/4420",
        "/ip4/127.0.0.1/udp/4420/quic-v1",
        "/ip4/127.0.0.1/tcp/65536",
        "/ip4/127.0.0.999/tcp/4420",
        "/ip4/::1/tcp/4420",
        "0.0.0.0:4420",
    ],
)
def test_what_cannot_be_listened_on_is_refused(multiaddr: str) -> None:
    with pytest.raises(StartError, match=r"listen address is '.*', expected one such as"):
        listen_address(multiaddr)
