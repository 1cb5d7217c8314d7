"""A seccomp filter: which system calls a child may no longer make. Linux on x86_64 and aarch64.

It names what is refused rather than what is allowed: compute libraries differ in what they call, from one libc and
OpenMP to the next, and a filter that breaks honest models would be switched off. What is refused is everything that
reaches beyond the process: sockets, programs, processes, other processes' memory, files opened for writing, the
kernel's own surface. Calls newer than 5.1 are answered with ENOSYS, as on an old kernel, so that what future kernels
add is closed from the start (io_uring is among them, and so is clone3, which libc then replaces by clone).

Threads may be made: clone is allowed with CLONE_THREAD only.

Source: https://docs.kernel.org/userspace-api/seccomp_filter.html
"""

import ctypes
import errno
import os
import platform
import struct

_PR_SET_SECCOMP = 22
_MODE_FILTER = 2
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000

# Offsets in struct seccomp_data; arguments are 64 bits, of which the low half comes first on both machines.
_NUMBER, _ARCH = 0, 4
_ARGUMENT = (16, 24, 32)

# BPF: load a word, jump if equal / greater or equal / any bit set, return.
_LOAD, _EQUAL, _AT_LEAST, _BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06

_CLONE_THREAD = 0x00010000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_NEW_CALLS = 424  # pidfd_send_signal, the first after the tables of all machines were unified (5.1)
_X32_CALLS = 0x40000000
# arch_prctl(ARCH_REQ_XCOMP_PERM): asks for AMX tiles. llama.cpp's AMX kernels load a tile configuration whose reserved
# bytes are uninitialised, a SIGSEGV that depends on the compiler (ggml-org/llama.cpp issue 20824, open; Q8_0 models on
# any Sapphire Rapids). Refused, llama.cpp takes its AVX-512 kernels instead.
_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM = 158, 0x1023
_STILL_ALLOWED = (444, 445, 446)  # Landlock may only ever restrict more

# Name: number on x86_64, number on aarch64 (None: it has no such call).
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # network
    "socket": (41, 198), "connect": (42, 203), "accept": (43, 202), "sendmsg": (46, 211), "recvmsg": (47, 212),
    "bind": (49, 200), "listen": (50, 201), "socketpair": (53, 199), "accept4": (288, 242),
    "recvmmsg": (299, 243), "sendmmsg": (307, 269),
    # programs and processes
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "kill": (62, 129),
    "tkill": (200, 130), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "setns": (308, 268), "unshare": (272, 97), "personality": (135, 92),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    # files
    "creat": (85, None), "truncate": (76, 45), "rename": (82, None), "mkdir": (83, None), "rmdir": (84, None),
    "link": (86, None), "unlink": (87, None), "symlink": (88, None), "chmod": (90, None), "chown": (92, None),
    "lchown": (94, None), "mknod": (133, None), "mknodat": (259, 33), "mkdirat": (258, 34), "unlinkat": (263, 35),
    "symlinkat": (266, 36), "linkat": (265, 37), "renameat": (264, 38), "renameat2": (316, 276),
    "fchmodat": (268, 53), "fchownat": (260, 54), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "memfd_create": (319, 279),
    # the kernel
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "swapon": (167, 224),
    "swapoff": (168, 225), "reboot": (169, 142), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "fanotify_init": (300, 262), "quotactl": (179, 60), "acct": (163, 89),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "sethostname": (170, 161), "syslog": (103, 116),
    "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None), "io_setup": (206, 0),
    # shared memory and queues between processes
    "shmget": (29, 194), "shmat": (30, 196), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
}  # fmt: skip

_MACHINES = {
    # name: (AUDIT_ARCH, column of _REFUSED, open, openat, clone)
    "x86_64": (0xC000003E, 0, 2, 257, 56),
    "aarch64": (0xC00000B7, 1, None, 56, 220),
}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def program(machine: str) -> bytes | None:
    """Return the BPF program for a machine, or None for one that it does not know."""
    if machine not in _MACHINES:
        return None
    arch, column, open_, openat, clone = _MACHINES[machine]
    refuse, unknown = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS
    code = [
        _step(_LOAD, _ARCH), _step(_EQUAL, arch, 1, 0), _step(_RETURN, _KILL_PROCESS),
        _step(_LOAD, _NUMBER), _step(_AT_LEAST, _X32_CALLS, 0, 1), _step(_RETURN, refuse),
    ]  # fmt: skip
    for number in _STILL_ALLOWED:
        code += [_step(_EQUAL, number, 0, 1), _step(_RETURN, _ALLOW)]
    code += [_step(_AT_LEAST, _NEW_CALLS, 0, 1), _step(_RETURN, unknown)]
    for numbers in _REFUSED.values():
        if (call := numbers[column]) is not None:
            code += [_step(_EQUAL, call, 0, 1), _step(_RETURN, refuse)]
    for opening, argument in ((open_, 1), (openat, 2)):
        if opening is not None:
            code += _if_bits(opening, argument, _WRITING, then=refuse, otherwise=_ALLOW)
    if machine == "x86_64":
        code += [
            _step(_EQUAL, _ARCH_PRCTL, 0, 4),
            _step(_LOAD, _ARGUMENT[0]), _step(_EQUAL, _ARCH_REQ_XCOMP_PERM, 0, 1),
            _step(_RETURN, refuse), _step(_RETURN, _ALLOW),
        ]  # fmt: skip
    code += _if_bits(clone, 0, _CLONE_THREAD, then=_ALLOW, otherwise=refuse)
    return b"".join([*code, _step(_RETURN, _ALLOW)])


def restrict() -> bool:
    """Apply the filter to this thread and all that it makes; False where it cannot be. Needs `no_new_privs`."""
    code = program(platform.machine())
    return code is not None and _apply(code)


def refuse_amx() -> bool:
    """Refuse the permission for AMX and nothing else: for a llama.cpp that is to compute as the engine's child does."""
    if platform.machine() != "x86_64":
        return False
    code = [
        _step(_LOAD, _NUMBER), _step(_EQUAL, _ARCH_PRCTL, 0, 3),
        _step(_LOAD, _ARGUMENT[0]), _step(_EQUAL, _ARCH_REQ_XCOMP_PERM, 0, 1),
        _step(_RETURN, _ERRNO | errno.EPERM), _step(_RETURN, _ALLOW),
    ]  # fmt: skip
    return _apply(b"".join(code))


def _apply(code: bytes) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    filter_program = _Program(len(code) // 8, code)
    return bool(libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(filter_program), 0, 0) == 0)


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _if_bits(call: int, argument: int, bits: int, *, then: int, otherwise: int) -> list[bytes]:
    """For one call: return `then` if an argument has any of the bits, else `otherwise`."""
    return [
        _step(_EQUAL, call, 0, 4),
        _step(_LOAD, _ARGUMENT[argument]),
        _step(_BITS, bits, 0, 1),
        _step(_RETURN, then),
        _step(_RETURN, otherwise),
    ]
