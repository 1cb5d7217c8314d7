"""What the node itself refuses, beside what the protocol refuses.

Each message is the one line that the user reads: what was found, what was expected, what to do.
"""

from protocol.errors import AgoraError


class StartError(AgoraError):
    """The daemon or a command was refused before it did anything: nothing was changed on disk or sent."""
