"""What the daemon's process loads: each of these costs memory and start-up time on every device."""

import subprocess
import sys

PROGRAM = """
import sys
sys.argv = ["agora", "up", "--help"]
from node.cli import main
try:
    main()
except SystemExit as end:
    assert end.code in (0, None), end.code
# rich and click come with httpx, which libp2p imports; nothing of ours asks for them there
unwanted = {"typer", "node.cli.app", "torch", "transformers", "flwr", "numpy", "llama_cpp"}
unwanted &= set(sys.modules)
print("loaded:", sorted(unwanted))
"""


def test_the_daemon_loads_neither_the_command_line_nor_the_machine_learning_libraries() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)

    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "loaded: []"
    assert "--gateway" in done.stdout
