"""The command `agora`: what a person types, and what comes back.

Each verb imports what it needs when it runs, so that help is instant. `agora up` is handed to the daemon's own parser
before anything of this package is loaded: the daemon imports neither typer nor rich.
"""

import sys


def main() -> None:
    """Run the command line; the installed script `agora`."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["up"]:
        from node.daemon import main as run_daemon

        sys.exit(run_daemon(arguments[1:]))
    from node.cli.app import run

    sys.exit(run(arguments))
