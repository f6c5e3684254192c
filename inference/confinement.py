"""What the decoder's child gives up before it sees its first file: network, programs, files, core dumps.

Spec: seccomp(2), prctl(2), setrlimit(2)
"""

import ctypes
import errno
import platform
import resource
import struct

_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET = 0, 4
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# socket, connect, bind, execve, execveat, ptrace, process_vm_readv, process_vm_writev, io_uring_setup
_DENIED = {
    "x86_64": (41, 42, 49, 59, 322, 101, 310, 311, 425),
    "aarch64": (198, 203, 200, 221, 281, 117, 270, 271, 425),
}
_X32 = 0x40000000
_MAX_FILE_BYTES = 1 << 30


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def confine() -> bool:
    """Return whether the kernel also took the system calls away; the resource limits hold in any case."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_FILE_BYTES, _MAX_FILE_BYTES))
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        return False
    return _install_filter(_ARCHITECTURES[machine], _DENIED[machine])


def _install_filter(architecture: int, denied: tuple[int, ...]) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    code = b"".join(_instructions(architecture, denied))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.addressof(buffer))
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0)


def _instructions(architecture: int, denied: tuple[int, ...]) -> list[bytes]:
    """A filter that answers EPERM to the denied calls, and to every call by another architecture's numbers."""
    count = len(denied)
    return [
        _instruction(_LOAD, value=_ARCHITECTURE_OFFSET),
        _instruction(_EQUAL, otherwise=count + 3, value=architecture),
        _instruction(_LOAD, value=_NUMBER_OFFSET),
        _instruction(_AT_LEAST, then=count + 1, value=_X32),
        *(_instruction(_EQUAL, then=count - i, value=number) for i, number in enumerate(denied)),
        _instruction(_RETURN, value=_ALLOW),
        _instruction(_RETURN, value=_ERRNO | errno.EPERM),
    ]


def _instruction(code: int, *, then: int = 0, otherwise: int = 0, value: int) -> bytes:
    return struct.pack("=HBBI", code, then, otherwise, value)
