"""A main that tells what it was born with."""

# ruff: noqa: PTH110, PTH208  (the plain calls are what is tried)

import json
import os
import sys

from runtime.sandbox import Confinement


def main() -> None:
    descriptors = [name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")]
    sock = Confinement.from_arguments(sys.argv[1:]).take_socket()
    sock.sendall(json.dumps({"environment": list(os.environ), "descriptors": len(descriptors)}).encode())


if __name__ == "__main__":
    main()
