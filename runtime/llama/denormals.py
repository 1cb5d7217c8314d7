"""Lets the processor take numbers that are too small to matter for zero. Only for the child.

Attention weights are exponentials: of a token that is looked at hardly at all they fall below 1.2e-38, where floats are
*denormal*, and a processor takes over a hundred cycles for each product with one. How many there are depends on the
model, and on the order in which the cache holds the tokens: 64 rows of a 1B model with random weights took 1.1 s or
2.9 s beside the same 960 tokens, and take 1.1 s always when denormals count as zero. No logit changes by it.
"""

import ctypes
import platform
import sys

FENV_WORDS = 8  # of glibc's fenv_t on x86_64, the larger one
# Where the control register is in it (glibc, sysdeps/*/fpu/bits/fenv.h), and the bits: results and operands that are
# denormal are zero.
_CONTROL = {"x86_64": (7, 1 << 15 | 1 << 6), "aarch64": (0, 1 << 24)}


def flush_denormals() -> bool:
    """Take denormals for zero in this thread and in those that it starts from now on; False where it is not known how."""
    known = _CONTROL.get(platform.machine())
    if sys.platform != "linux" or known is None or platform.libc_ver()[0] != "glibc":
        return False
    word, bits = known
    mathematics = ctypes.CDLL("libm.so.6")
    environment = (ctypes.c_uint32 * FENV_WORDS)()
    if mathematics.fegetenv(environment) != 0:
        return False
    environment[word] |= bits
    return bool(mathematics.fesetenv(environment) == 0)
