"""The set-up says how far it is, and builds llama.cpp with our patches: once for each change of what it is made from."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATCH = "scripts/llama.cpp/skip-masked-cells.patch"
HOOK = "scripts/llama.cpp/patch.cmake"
INPUTS = ("scripts/set_up.py", PATCH, HOOK, "pyproject.toml", "constraints.txt")


def load(root: Path) -> ModuleType:
    """Return the program as a module; what it reads and writes is under this root."""
    spec = importlib.util.spec_from_file_location("set_up", root / "scripts" / "set_up.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


set_up = load(ROOT)


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


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A clone with all that the set-up reads, in a folder whose name has a space."""
    root = tmp_path / "a clone"
    for name in INPUTS:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    return root


@pytest.mark.parametrize(
    ("name", "old", "new", "is_compiled_again"),
    [
        (PATCH, "", "another line\n", True),
        (HOOK, "", "# another line\n", True),
        ("constraints.txt", "\nllama-cpp-python==", "\nllama-cpp-python==9.", True),
        ("constraints.txt", "\ntrio==", "\ntrio==9.", False),
        ("constraints.txt", "", "# another line\n", False),
        ("pyproject.toml", "", "# another line\n", False),
    ],
)
def test_llama_cpp_is_compiled_again_for_what_it_is_made_from_alone(
    root: Path, name: str, old: str, new: str, *, is_compiled_again: bool
) -> None:
    """It takes minutes, so another pin must not cause it; a `.venv` with an older patch must."""
    here = load(root)
    stamp, llama_stamp = here.stamp_now(), here.llama_stamp_now()
    text = (root / name).read_text()

    (root / name).write_text(text.replace(old, new, 1) if old else text + new)

    assert here.stamp_now() != stamp
    assert (here.llama_stamp_now() != llama_stamp) is is_compiled_again


def test_one_more_patch_makes_another_llama_cpp(root: Path) -> None:
    here = load(root)
    stamp, llama_stamp = here.stamp_now(), here.llama_stamp_now()

    (root / "scripts" / "llama.cpp" / "another.patch").write_text("--- a/x\n+++ b/x\n")

    assert here.stamp_now() != stamp
    assert here.llama_stamp_now() != llama_stamp


class Pip:
    """Stands in `.venv` where Python would: notes what it is asked, says what it is told to, ends with that status."""

    def __init__(self, root: Path, *, says: str, status: int = 0) -> None:
        self._calls = root / "calls"
        python = root / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True, exist_ok=True)
        python.write_text(f"#!/bin/sh\necho \"$@\" >> '{self._calls}'\necho '{says}'\nexit {status}\n")
        python.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        """The arguments of each call."""
        return self._calls.read_text().splitlines()


def test_llama_cpp_is_compiled_once(root: Path) -> None:
    """From its sources, since a wheel from anywhere else is without our patches."""
    here, progress = load(root), set_up.Progress()
    pip = Pip(root, says="-- llama.cpp is patched: skip-masked-cells.patch")

    first = here.install_llama(progress)
    second = here.install_llama(progress)

    assert (first, second) == (None, None)
    assert len(pip.calls) == 1
    assert "--no-cache-dir --force-reinstall --no-deps --no-binary=llama-cpp-python" in pip.calls[0]
    assert f"CMAKE_PROJECT_llama_cpp_INCLUDE={root / HOOK}" in pip.calls[0]


def test_a_build_that_failed_is_tried_again(root: Path) -> None:
    here, progress = load(root), set_up.Progress()
    Pip(root, says="error: no space left on device", status=1)

    failure = here.install_llama(progress)
    then = Pip(root, says="-- llama.cpp is patched: skip-masked-cells.patch")
    success = here.install_llama(progress)

    assert failure == (
        "error: no space left on device\n"
        f"pip ended with status 1; the lines above say why, and {root}/.venv/setup.log says all"
    )
    assert success is None
    assert len(then.calls) == 2
    assert (root / ".venv" / "setup.log").read_text() == (
        "error: no space left on device\n-- llama.cpp is patched: skip-masked-cells.patch\n"
    )


def test_a_llama_cpp_that_was_built_without_the_patch_is_refused(root: Path) -> None:
    """CMake says nothing when no project has the name that the hook is for."""
    here, progress = load(root), set_up.Progress()
    pip = Pip(root, says="Successfully installed llama-cpp-python")

    first = here.install_llama(progress)
    second = here.install_llama(progress)

    assert first == (
        "llama.cpp was built without skip-masked-cells.patch: "
        f"its CMakeLists.txt did not read {root}/scripts/llama.cpp/patch.cmake"
    )
    assert second == first
    assert len(pip.calls) == 2


def test_the_patch_names_the_release_that_is_pinned() -> None:
    """Who raises the pin has to look at the patch."""
    pin = re.search(r"^llama-cpp-python==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pin is not None

    assert f"Against llama-cpp-python {pin[1]}," in (ROOT / PATCH).read_text()


FAKE_PATCH = """Say what it is for.

--- a/src/attention.cpp
+++ b/src/attention.cpp
@@ -1,3 +1,3 @@
 for each cell
-    look
+    look at sixteen
 done
"""


class Release:
    """A tiny llama-cpp-python, unpacked inside another repository, with a `.git` that points to nowhere as the real one has."""

    def __init__(self, root: Path, source: str) -> None:
        self._tree = root / "llama_cpp_python"
        self.source = self._tree / "vendor" / "llama.cpp" / "src" / "attention.cpp"
        self.source.parent.mkdir(parents=True)
        self.source.write_text(source)
        (self._tree / "vendor" / "llama.cpp" / ".git").write_text(
            "gitdir: ../../.git/modules/vendor/llama.cpp\n"
        )
        (self._tree / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.21)\nproject(llama_cpp NONE)\n"
        )
        subprocess.run(["git", "init", "--quiet", root], check=True)

    def configure(self, hook: Path) -> subprocess.CompletedProcess[str]:
        """Let CMake read the project and, with it, the hook."""
        return subprocess.run(
            [
                "cmake",
                *("-S", self._tree),
                *("-B", self._tree / "build"),
                f"-DCMAKE_PROJECT_llama_cpp_INCLUDE={hook}",
            ],
            check=False,
            capture_output=True,
            text=True,
        )


@pytest.fixture
def hook(root: Path) -> Path:
    """The hook beside a tiny patch."""
    for program in ("cmake", "git"):
        if shutil.which(program) is None:
            pytest.skip(f"found no {program}, which this test runs; pip brings its own CMake for a build")
    (root / PATCH).write_text(FAKE_PATCH)
    return root / HOOK


def test_a_patch_is_applied_before_llama_cpp_is_compiled(root: Path, hook: Path) -> None:
    """Once, however often CMake runs, and whatever repository stands around the folder."""
    release = Release(root, "for each cell\n    look\ndone\n")

    first = release.configure(hook)
    patched = release.source.read_text()
    second = release.configure(hook)

    assert (first.returncode, second.returncode) == (0, 0)
    assert "-- llama.cpp is patched: skip-masked-cells.patch\n" in first.stdout
    assert patched == "for each cell\n    look at sixteen\ndone\n"
    assert release.source.read_text() == patched


def test_a_patch_that_does_not_apply_ends_the_build(root: Path, hook: Path) -> None:
    """One line says which patch, and where: nobody is to believe that the release is patched."""
    release = Release(root, "for each row\n    look\ndone\n")

    ended = release.configure(hook)

    assert ended.returncode != 0
    assert (
        f"  skip-masked-cells.patch does not apply to {root}/llama_cpp_python/vendor/llama.cpp: "
        "error: patch failed: src/attention.cpp:1; error: src/attention.cpp: patch does not apply\n"
    ) in ended.stderr
    assert "llama.cpp is patched" not in ended.stdout
    assert release.source.read_text() == "for each row\n    look\ndone\n"


def test_a_hook_without_a_patch_ends_the_build(root: Path, hook: Path) -> None:
    release = Release(root, "for each cell\n    look\ndone\n")
    (root / PATCH).unlink()

    ended = release.configure(hook)

    assert ended.returncode != 0
    assert f"found no patch in {root}/scripts/llama.cpp, expected one or more\n" in ended.stderr
