"""The hardened libp2p host behind the `Mesh` port; nothing outside this package imports libp2p."""

import logging

from node.host.host import Host
from node.host.settings import HostSettings

# libp2p logs a line or a traceback for whatever a stranger sends; that would be a stranger writing into our log, as fast
# as it likes. What matters is journaled.
logging.getLogger("libp2p").setLevel(logging.CRITICAL + 1)

__all__ = ["Host", "HostSettings"]
