"""`agora demo`: the main job on real input, through the public surface alone.

Three processes with three home directories form a mesh on loopback: ann founds it and only buys, bob and cleo sell. What
the demo promises it also checks: an answer that breaks off, a token lost at the failover, or ledgers that do not sum to
zero end it with status 1.
"""

from node.demo.story import run

__all__ = ["run"]
