"""llama.cpp's C API through llama-cpp-python's ctypes table, without the package around it. Only for the child.

The package's `__init__` imports its high-level class and with it numpy, jinja2 and diskcache: 0.24 s and 41 MB,
against 0.05 s and 18 MB for the table alone. So a bare package object is put in its place before the table is
imported from it.
"""

import ctypes
import importlib
import importlib.util
import sys
import threading
import types
from typing import Any


class ModelError(Exception):
    """llama.cpp refused the file or a step; the message is one line for the user."""


def load_library() -> Any:
    """Return the module `llama_cpp.llama_cpp`.

    It is typed `Any`: its functions are ctypes objects that only look annotated.
    """
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("llama_cpp is not installed, expected llama-cpp-python 0.3.36")
    if "llama_cpp" not in sys.modules:
        package = types.ModuleType("llama_cpp")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["llama_cpp"] = package
    return importlib.import_module("llama_cpp.llama_cpp")


llama = load_library()
_ggml_base = ctypes.CDLL(f"{llama._base_path}/libggml-base.so")  # noqa: SLF001  (the directory it loaded itself from)
_ggml = ctypes.CDLL(f"{llama._base_path}/libggml.so")  # noqa: SLF001

_ggml_base.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
_ggml_base.ggml_validate_row_data.restype = ctypes.c_bool
_ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
_ggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
_ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
_ggml_base.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
_ggml_base.ggml_backend_dev_description.argtypes = [ctypes.c_void_p]
_ggml_base.ggml_backend_dev_description.restype = ctypes.c_char_p

_DEVICE_TYPE_GPU = 1  # enum ggml_backend_dev_type
FLOAT_BYTES = 4
_LEVEL_ERROR = 4  # enum ggml_log_level


def all_finite(row: Any, count: int) -> bool:
    """Whether `count` floats hold no NaN and no infinity: vectorised in C, 20 µs for a vocabulary of 128k."""
    return bool(_ggml_base.ggml_validate_row_data(llama.GGML_TYPE_F32, row, count * FLOAT_BYTES))


def gpu_name() -> str:
    """Return the description of the first GPU that llama.cpp can use, or "" without one."""
    for index in range(_ggml.ggml_backend_dev_count()):
        device = _ggml.ggml_backend_dev_get(index)
        if _ggml_base.ggml_backend_dev_type(device) == _DEVICE_TYPE_GPU:
            description: bytes = _ggml_base.ggml_backend_dev_description(device)
            return description.decode(errors="replace")[:256]
    return ""


def amx_is_open() -> bool:
    """Whether llama.cpp would use this processor's AMX kernels, which crash (see `seccomp.py`).

    The seccomp filter refuses the permission that they need; this is for kernels without one.
    """
    if b"AMX_INT8 = 1" not in llama.llama_print_system_info():
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    return bool(ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0)


class AbortFlag:
    """Stops a running `llama_decode` from another thread, at no cost to the decode.

    llama.cpp asks its abort callback before every node of the graph: some 600 times a step. A Python callback takes
    the GIL each time, about 1 ms a step. So the callback is libc's `strlen`, and its argument a C string that is
    empty until `set` makes it one character long: 0 is false, 1 is true.
    """

    def __init__(self) -> None:
        self._text = ctypes.create_string_buffer(b"\0\0", 2)
        self.callback = ctypes.cast(ctypes.CDLL(None).strlen, llama.ggml_abort_callback)
        self.argument = ctypes.cast(self._text, ctypes.c_void_p)

    def set(self) -> None:
        """Make the running decode, or the next one, return 2."""
        self._text[0] = b"\1"

    def clear(self) -> None:
        """Let decodes run again."""
        self._text[0] = b"\0"


class FirstError:
    """The first error that llama.cpp logs: it says what is wrong with a file, those after it only that it failed.

    Each thread has its own: one may load a model while another one computes.
    """

    def __init__(self) -> None:
        self._of_thread = threading.local()
        self._callback = llama.llama_log_callback(self._log)
        llama.llama_log_set(self._callback, ctypes.c_void_p(0))

    def take(self) -> str:
        """Return it, and wait for the next one."""
        line: str = getattr(self._of_thread, "line", "")
        self._of_thread.line = ""
        return line

    def _log(self, level: int, text: bytes, _: object) -> None:
        # Called by C: an exception here would be printed and lost.
        if level == _LEVEL_ERROR and not getattr(self._of_thread, "line", ""):
            self._of_thread.line = (
                text.decode(errors="replace").strip().rpartition("error loading model: ")[2][:256]
            )
