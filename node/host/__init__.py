"""The hardened libp2p host behind the `Mesh` port; nothing outside this package imports libp2p."""

from node.host.host import Host
from node.host.settings import HostSettings

__all__ = ["Host", "HostSettings"]
