"""The llama.cpp backend: `backend.py` in the daemon, `child.py` in the sandbox, `wire.py` between them."""
