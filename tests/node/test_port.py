"""A port in use is refused at start with one line."""

import socket

import pytest

from node.errors import StartError
from node.port import check_free, tcp_address


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


def test_only_a_plain_tcp_multiaddr_has_an_address() -> None:
    assert tcp_address("/ip4/127.0.0.1/tcp/4420") == ("127.0.0.1", 4420)
    assert tcp_address("/ip6/::1/tcp/0") == ("::1", 0)
    assert tcp_address("/dns4/example.org/tcp/4420") is None
