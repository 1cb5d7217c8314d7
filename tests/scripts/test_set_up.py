"""The set-up says how far it is: what pip and the compiler print becomes one short line."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "set_up.py"
spec = importlib.util.spec_from_file_location("set_up", SCRIPT)
assert spec is not None
assert spec.loader is not None
set_up = importlib.util.module_from_spec(spec)
spec.loader.exec_module(set_up)


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("Collecting msgpack>=1.1 (from agora-node==0.1.0)", "finding msgpack"),
        ("  Downloading trio-0.35.0-py3-none-any.whl (510 kB)", "downloading trio"),
        ("  Building wheel for llama-cpp-python (pyproject.toml): started", "building llama-cpp-python"),
        ("  *** Configuring CMake...", "configuring llama.cpp"),
        ("  [12/193] Building C object vendor/llama.cpp/ggml.c.o", "compiling llama.cpp, 12 of 193"),
        ("  [ 37%] Building CXX object src/llama.cpp.o", "compiling llama.cpp, 37 %"),
        ("Installing collected packages: six, trio", "installing"),
        ("  Running command git clone", "starting"),
    ],
)
def test_a_line_of_pip_is_a_step(line: str, step: str) -> None:
    progress = set_up.Progress()

    progress.take(line)

    assert progress.step == step
