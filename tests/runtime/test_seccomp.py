"""The seccomp program, run by a small interpreter: it must be right on machines that the tests do not run on, too."""

import errno
import struct

import pytest

from runtime import seccomp

ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS, 0x80000000
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
O_RDONLY, O_WRONLY, O_RDWR, O_CREAT, O_CLOEXEC = 0, 1, 2, 0o100, 0o2000000
CLONE_THREAD = 0x10000


def verdict(machine: str, number: int, *arguments: int, arch: int | None = None) -> int:
    """Run the filter over one call, as the kernel does."""
    code = seccomp.program(machine)
    assert code is not None
    padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("<IIQ6Q", number, ARCH[machine] if arch is None else arch, 0, *padded)
    steps = list(struct.iter_unpack("=HBBI", code))
    word, at = 0, 0
    while True:
        operation, if_true, if_false, value = steps[at]
        at += 1
        match operation:
            case 0x20:
                (word,) = struct.unpack_from("<I", data, value)
            case 0x15:
                at += if_true if word == value else if_false
            case 0x35:
                at += if_true if word >= value else if_false
            case 0x45:
                at += if_true if word & value else if_false
            case 0x06:
                return value
            case _:
                raise AssertionError(operation)


@pytest.mark.parametrize(
    ("machine", "name", "number"),
    [
        ("x86_64", "socket", 41),
        ("x86_64", "connect", 42),
        ("x86_64", "bind", 49),
        ("x86_64", "fork", 57),
        ("x86_64", "vfork", 58),
        ("x86_64", "execve", 59),
        ("x86_64", "execveat", 322),
        ("x86_64", "ptrace", 101),
        ("x86_64", "process_vm_readv", 310),
        ("x86_64", "memfd_create", 319),
        ("aarch64", "socket", 198),
        ("aarch64", "connect", 203),
        ("aarch64", "bind", 200),
        ("aarch64", "execve", 221),
        ("aarch64", "execveat", 281),
        ("aarch64", "ptrace", 117),
        ("aarch64", "process_vm_readv", 270),
    ],
)
def test_calls_that_reach_out_are_refused(machine: str, name: str, number: int) -> None:
    assert verdict(machine, number) == EPERM, name


@pytest.mark.parametrize(
    ("machine", "numbers"),
    [
        ("x86_64", {"read": 0, "write": 1, "mmap": 9, "futex": 202, "recvfrom": 45, "sendto": 44, "poll": 7}),
        (
            "aarch64",
            {"read": 63, "write": 64, "mmap": 222, "futex": 98, "recvfrom": 207, "sendto": 206, "ppoll": 73},
        ),
    ],
)
def test_calls_that_compute_and_talk_are_allowed(machine: str, numbers: dict[str, int]) -> None:
    assert {name: verdict(machine, number) for name, number in numbers.items()} == dict.fromkeys(
        numbers, ALLOW
    )


@pytest.mark.parametrize(("machine", "openat"), [("x86_64", 257), ("aarch64", 56)])
def test_files_open_for_reading_only(machine: str, openat: int) -> None:
    assert verdict(machine, openat, 0, 0, O_RDONLY | O_CLOEXEC) == ALLOW
    assert {verdict(machine, openat, 0, 0, how) for how in (O_WRONLY, O_RDWR, O_CREAT)} == {EPERM}


@pytest.mark.parametrize(("machine", "clone"), [("x86_64", 56), ("aarch64", 220)])
def test_threads_are_made_and_processes_are_not(machine: str, clone: int) -> None:
    assert verdict(machine, clone, 0x3D0F00) == ALLOW
    assert verdict(machine, clone, 0x11) == EPERM
    assert (
        verdict(machine, 435) == ENOSYS
    )  # clone3: its flags are behind a pointer, and libc falls back to clone


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_calls_of_later_kernels_do_not_exist(machine: str) -> None:
    """io_uring was such a call, and got around filters that named what they refuse."""
    assert {verdict(machine, number) for number in (425, 426, 427, 437, 449, 500, 600)} == {ENOSYS}
    assert {verdict(machine, number) for number in (444, 445, 446)} == {ALLOW}


def test_a_call_by_another_architecture_kills() -> None:
    """32-bit calls have other numbers: the same filter would mean something else."""
    assert verdict("x86_64", 11, arch=0x40000003) == KILL


def test_x32_calls_are_refused() -> None:
    assert verdict("x86_64", 0x40000000 + 59) == EPERM


def test_amx_tiles_are_refused() -> None:
    """llama.cpp's AMX kernels crash on uninitialised tile configurations."""
    assert verdict("x86_64", 158, 0x1023, 18) == EPERM
    assert verdict("x86_64", 158, 0x1002, 0) == ALLOW  # ARCH_SET_FS: thread-local storage


def test_an_unknown_machine_has_no_filter() -> None:
    assert seccomp.program("riscv64") is None
