"""Reads a model's weights into memory, in a thread of the child, while other models go on. Only for the child.

That is the long part of loading: minutes for a large file on a slow disk. ctypes releases the GIL meanwhile, and
llama.cpp shares nothing between models. What comes after, context and template, takes a moment and the main thread.
"""

import ctypes
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime.llama import wire
from runtime.llama.lowlevel import FirstError, ModelError, amx_is_open, llama

LOAD_S_MAX = 600.0  # 60 GB from a slow disk
PROGRESS_TOTAL = 1_000


class WeightsLoader(threading.Thread):
    """Loads one model's weights. `start` it; when it has ended it hands itself to `on_end`.

    Attributes:
        order: what the daemon asked for.
        until: after that it is taken for a hang.
        weights: llama.cpp's model, if there is no error. Whoever takes it frees it.
    """

    def __init__(self, order: wire.Load, log: FirstError, on_end: Callable[["WeightsLoader"], None]) -> None:
        super().__init__(daemon=True)
        self.order = order
        self.until = time.monotonic() + LOAD_S_MAX
        self.weights: Any = None
        self.error: Exception | None = None
        self._log = log
        self._on_end = on_end
        self._share = 0.0

    @property
    def size_bytes(self) -> int:
        """Of the file; 0 if it is not there."""
        try:
            return Path(self.order.path).stat().st_size
        except OSError:
            return 0

    def progress(self) -> tuple[str, int, int]:
        """Return the phase, how much is done, and of how much: for the beats."""
        return "loading", int(PROGRESS_TOTAL * self._share), PROGRESS_TOTAL

    def run(self) -> None:
        """Load; an error is kept for the main thread."""
        try:
            self.weights = load_weights(self.order.path, self._log, self._advance)
        except Exception as error:  # noqa: BLE001  (whatever it is, the main thread is to say it)
            self.error = error
        self._on_end(self)

    def _advance(self, share: float) -> None:
        self._share = min(1.0, max(0.0, share))


def load_weights(
    path: str, log: FirstError, on_progress: Callable[[float], None] = lambda _share: None
) -> Any:
    """Return llama.cpp's model, without a context.

    Args:
        path: a GGUF file whose digest has been checked.
        log: llama.cpp's errors, for the message.
        on_progress: told the share that is read.

    Raises:
        ModelError: llama.cpp does not load it.
    """
    log.take()
    parameters = llama.llama_model_default_params()
    # Read into memory, not mapped: weights that llama.cpp repacks would be there twice (936 against 1,356 MB),
    # and a file that shrinks under a mapping kills the process with SIGBUS.
    parameters.load_mode = llama.LLAMA_LOAD_MODE_NONE
    parameters.use_extra_bufts = not amx_is_open()  # repacked weights are faster, by AMX they crash
    parameters.check_tensors = False  # sums of the logits are checked instead, at each step

    def advance(share: float, _user_data: object) -> bool:
        on_progress(share)
        return True

    callback = llama.llama_progress_callback(advance)  # lives until the call has returned
    parameters.progress_callback = callback
    parameters.progress_callback_user_data = ctypes.c_void_p(0)
    weights = llama.llama_model_load_from_file(path.encode(), parameters)
    if not weights:
        raise ModelError(log.take() or "llama.cpp does not load the file")
    return weights
