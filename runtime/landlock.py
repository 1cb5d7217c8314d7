"""Landlock: which files this process may still reach. Linux 5.13 and later, no privileges needed.

Everything that the running kernel can refuse is refused, except reading below the given paths. From ABI 4 on that
includes TCP, from ABI 6 on abstract Unix sockets and signals to processes outside.

Source: https://docs.kernel.org/userspace-api/landlock.html
"""

import ctypes
import os
import struct
from pathlib import Path

# The same numbers on x86_64 and aarch64: they were added when the tables had been unified.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_RULE_PATH_BENEATH = 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
# How many file system rights each ABI knows; the first 13 are in all.
_FS_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_NET_RIGHTS = 0b11  # bind and connect TCP
_SCOPES = 0b11  # abstract Unix sockets, signals

_libc = ctypes.CDLL(None, use_errno=True)


def abi() -> int:
    """Return the version of Landlock in this kernel; 0 is none."""
    return max(
        0, int(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG)))
    )


def restrict(readable: list[str]) -> bool:
    """Let this thread, and threads that it makes, read below `readable` and reach no other file or network.

    A path that does not exist is left out. Call after `no_new_privs` was set, and before threads exist.

    Returns:
        False where the kernel has no Landlock; nothing changed then.

    Raises:
        OSError: the kernel has it but refused.
    """
    version = abi()
    if version == 0:
        return False
    rights = (1 << _FS_RIGHTS.get(version, 16)) - 1
    attributes = struct.pack("=Q", rights)
    if version >= 4:
        attributes += struct.pack("=Q", _NET_RIGHTS)
    if version >= 6:
        attributes += struct.pack("=Q", _SCOPES)
    ruleset = _checked(
        _libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    )
    try:
        for path in readable:
            _allow_reading(ruleset, path)
        _checked(_libc.syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)))
    finally:
        os.close(ruleset)
    return True


def _allow_reading(ruleset: int, path: str) -> None:
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        rights = _READ_FILE | _READ_DIR if Path(path).is_dir() else _READ_FILE
        rule = struct.pack("=Qi", rights, parent)  # packed in the kernel's header too
        _checked(
            _libc.syscall(
                _ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_RULE_PATH_BENEATH), rule, ctypes.c_uint32(0)
            ),
        )
    finally:
        os.close(parent)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"landlock: {os.strerror(number)}")
    return result
