"""`python -m node.cli` is `agora`."""

from node.cli import main

main()
