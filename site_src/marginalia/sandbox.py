"""What a demo may reach: files to read, its own folder to write, its own processes, no network.

On Linux, Landlock and seccomp hold for C code and for all processes that a demo starts. Each is
used where the kernel has it. An audit hook says the same of Python code in words, and on other
systems it is all there is: it keeps from accidents, not from intent.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

# What a demo may write beside its folder: where output vanishes, shared memory, and GPUs.
DEVICES = ("null", "zero", "full", "shm", "nvidia*", "nvidia-caps/*", "dri/*", "kfd", "dxg")

NO_FILE = "a demo writes only into its working directory"
NO_NETWORK = "this demo asked for the network: `network: true` in the front matter allows it"


def confine(folder: Path, *, network: bool, tell: Callable[[str], object]) -> None:
    """Confine this process, and all that it will start, for good.

    Args:
        folder: What it may change, with all that is in it.
        network: Whether it may use the network.
        tell: Called with the path of what Python code is about to change.
    """
    devices = [path for name in DEVICES for path in Path("/dev").glob(name)]
    sys.addaudithook(_hook([folder, *devices], network, tell))
    if prctl(_NO_NEW_PRIVILEGES, 1) == 0:  # else the kernel allows nothing of the following
        abi = _landlock(folder, devices)
        _seccomp(network=network, signals=abi >= 6)


def enclose() -> bool:
    """Let signals of this process, and of all that it will start, reach no others, for good.

    Returns:
        Whether that is so: the kernel may not know how.
    """
    if prctl(_NO_NEW_PRIVILEGES, 1) != 0 or _landlock_version() < 6:
        return False
    # What moves files between folders is refused unless it is allowed.
    if not _restrict(struct.pack("QQQ", _RENAME, 0, _SIGNALS), [(Path("/"), _RENAME)]):
        return False
    try:
        os.kill(os.getppid(), 0)
    except PermissionError:
        return True
    return False


# Words


def _hook(
    places: list[Path], network: bool, tell: Callable[[str], object]
) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that raises before something happens that is not allowed."""
    inside = tuple(os.path.realpath(place) for place in places)

    def file(path: Any, at: int = -1) -> None:
        """The file that a path leads to is changed."""
        if isinstance(path, int) or at != -1:  # the kernel knows what is open
            return
        with suppress(TypeError, ValueError):  # no path at all
            if os.path.islink(path):  # noqa: PTH114  # strings: some of them are bytes
                check(path, os.path.realpath(os.fsdecode(path)))
            else:
                entry(path)

    def entry(path: Any, at: int = -1) -> None:
        """A folder's entry is changed, and not what it may link to."""
        if at != -1:
            return
        with suppress(TypeError, ValueError):
            folder, name = os.path.split(os.fsdecode(path))
            if name in ("", ".", ".."):
                check(path, os.path.realpath(os.fsdecode(path)))
            else:
                real = os.path.realpath(folder) if folder else os.getcwd()  # noqa: PTH109
                check(path, os.path.join(real, name))  # noqa: PTH118

    def moved(old: Any, new: Any, old_at: int, new_at: int) -> None:
        entry(old, old_at)
        entry(new, new_at)

    def check(path: Any, name: str) -> None:
        if not any(name == place or name.startswith(place + os.sep) for place in inside):
            raise PermissionError(errno.EACCES, NO_FILE, os.fsdecode(path))
        tell(name)

    def truncated(path: Any, _: Any) -> None:
        if isinstance(path, int):
            with suppress(OSError):  # where the system does not say
                tell(os.readlink(f"/proc/self/fd/{path}"))  # noqa: PTH115
        file(path)

    def opened(path: Any, _: str | None, flags: int) -> None:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            file(path)

    def asked(*_: Any) -> None:
        raise PermissionError(errno.EACCES, NO_NETWORK)

    def connected(_: Any, family: int, *__: Any) -> None:
        if family != socket.AF_UNIX:
            asked()

    checks: dict[str, Callable[..., object]] = {
        "open": opened,
        "os.chmod": lambda path, _, at: file(path, at),
        "os.chown": lambda path, _, __, at: file(path, at),
        "os.link": lambda _, path, __, at: entry(path, at),
        "os.mkdir": lambda path, _, at: entry(path, at),
        "os.remove": entry,
        "os.rename": moved,
        "os.rmdir": entry,
        "os.symlink": lambda _, path, at: entry(path, at),
        "os.truncate": truncated,
        "os.utime": lambda path, _, __, at: file(path, at),
    }
    if not network:
        lookups = ("getaddrinfo", "gethostbyaddr", "gethostbyname", "getnameinfo")
        checks |= {f"socket.{name}": asked for name in lookups}
        if sys.platform != "win32":  # where event loops talk to themselves over the network
            checks["socket.__new__"] = connected

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in checks:
            checks[event](*args)

    return hook


# Linux

_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2  # prctl


def prctl(option: int, *arguments: Any) -> int:
    """Ask Linux for something about this process; elsewhere, nothing."""
    if sys.platform != "linux":
        return -1
    padded = [*arguments, 0, 0, 0, 0][:4]
    return int(_library().prctl(option, *(ctypes.c_ulong(value) for value in padded)))


def _syscall(*arguments: Any) -> int:
    return int(_library().syscall(*arguments))


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


# Landlock: which files may be changed, and which processes get signals

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on all architectures
_WRITE, _TRUNCATE = 1 << 1, 1 << 14
_CHANGE = _WRITE | sum(1 << bit for bit in range(4, 13))  # also make and remove, of every kind
_RENAME = 1 << 13  # into another folder
_ABSTRACT_SOCKETS, _SIGNALS = 1, 2  # scopes


def _landlock(folder: Path, devices: Iterable[Path]) -> int:
    """Allow to change a folder and to write devices.

    Returns:
        The version of Landlock; 0 where there is none.
    """
    abi = _landlock_version()
    if abi < 1:
        return 0
    files = _CHANGE | (_RENAME if abi >= 2 else 0) | (_TRUNCATE if abi >= 3 else 0)
    scopes = _ABSTRACT_SOCKETS | _SIGNALS
    attributes = struct.pack("QQQ", files, 0, scopes)[: 24 if abi >= 6 else 8]
    writes = files & (_WRITE | _TRUNCATE)
    places = [(device, files if device.is_dir() else writes) for device in devices]
    return abi if _restrict(attributes, [(folder, files), *places]) else 0


def _landlock_version() -> int:
    return _syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)


def _restrict(attributes: bytes, allowed: Iterable[tuple[Path, int]]) -> bool:
    """Refuse what the attributes say, except some accesses to some places; whether it works."""
    rules = _syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if rules < 0:
        return False
    try:
        for place, access in allowed:
            _allow(rules, place, access)
        return _syscall(_RESTRICT_SELF, rules, 0) == 0
    finally:
        os.close(rules)


def _allow(rules: int, path: Path, access: int) -> None:
    """Allow an access to a file, or to all that is in a folder."""
    with suppress(OSError):  # it may be gone
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            _syscall(_ADD_RULE, rules, 1, struct.pack("=Qi", access, place), 0)
        finally:
            os.close(place)


# Seccomp: which system calls fail

# The number that the kernel has for the machine, and those of its system calls.
_MACHINES = {
    "x86_64": (
        0xC000003E,
        {
            "socket": 41,
            "kill": 62,
            "tkill": 200,
            "tgkill": 234,
            "shmget": 29,
            "semget": 64,
            "msgget": 68,
            "mq_open": 240,
            "prlimit64": 302,
            "sched_setparam": 142,
            "sched_setscheduler": 144,
            "sched_setaffinity": 203,
            "sched_setattr": 314,
            "setpriority": 141,
            "ioprio_set": 251,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "socket": 198,
            "kill": 129,
            "tkill": 130,
            "tgkill": 131,
            "shmget": 194,
            "semget": 190,
            "msgget": 186,
            "mq_open": 180,
            "prlimit64": 261,
            "sched_setparam": 118,
            "sched_setscheduler": 119,
            "sched_setaffinity": 122,
            "sched_setattr": 274,
            "setpriority": 140,
            "ioprio_set": 30,
        },
    ),
}
_LASTING = ("shmget", "semget", "msgget", "mq_open")  # what they make stays, and has no file
_BOUNDING = (  # they take a process, or its group, as their first argument
    "prlimit64",
    "sched_setparam",
    "sched_setscheduler",
    "sched_setaffinity",
    "sched_setattr",
)
_RANKING = {"setpriority": 2, "ioprio_set": 3}  # as their second; the first may mean: of the user
_IO_URING_SETUP, _PIDFD_OPEN = 425, 434  # the same on all architectures
_OTHER_CALLS = 0x40000000  # a second set of numbers, of x86_64 only

_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # instructions
_CALL, _MACHINE, _ARGUMENTS = 0, 4, 16  # where a filter finds what
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000

_Instruction = tuple[int, int, int, int]  # code, how far to jump if so, and if not, a number


def _seccomp(*, network: bool, signals: bool) -> None:
    """Let system calls fail that are not allowed.

    Args:
        network: Whether the network is allowed.
        signals: Whether Landlock keeps the signals in already.
    """
    if platform.machine() not in _MACHINES or sys.maxsize < 2**32:
        return
    machine, numbers = _MACHINES[platform.machine()]
    protected = _ancestors()
    fails, spares = _FAIL | errno.EACCES, _FAIL | errno.EPERM
    filters: list[_Instruction] = []
    for name in _LASTING:
        filters += _rule(numbers[name], None, _FAIL | errno.ENOSYS)
    for name in _BOUNDING:
        filters += _rule(numbers[name], protected, spares)
    for name, of_the_user in _RANKING.items():
        filters += _rule(numbers[name], [of_the_user], spares)
        filters += _rule(numbers[name], protected, spares, argument=1)
    if not network:
        filters += _rule(numbers["socket"], [int(socket.AF_UNIX)], _ALLOW)
        filters += _rule(numbers["socket"], None, fails)
        filters += _rule(_IO_URING_SETUP, None, fails)  # it opens sockets as well
    if not signals:
        groups = [-1, *(-process for process in protected)]
        filters += _rule(numbers["kill"], [*protected, *groups], spares)
        for call in (numbers["tkill"], numbers["tgkill"], _PIDFD_OPEN):
            filters += _rule(call, protected, spares)
    _install(
        [
            (_LOAD, 0, 0, _MACHINE),
            (_IF_EQUAL, 1, 0, machine),
            (_RETURN, 0, 0, fails),  # a program for another machine
            (_LOAD, 0, 0, _CALL),
            (_IF_AT_LEAST, 0, 1, _OTHER_CALLS),
            (_RETURN, 0, 0, fails),
            *filters,
            (_RETURN, 0, 0, _ALLOW),
        ]
    )


def _rule(
    call: int, values: list[int] | None, then: int, *, argument: int = 0
) -> list[_Instruction]:
    """What becomes of a system call; if this does not say, the next rules do.

    Args:
        call: Its number.
        values: Those of an argument that this is about; if None, all.
        then: What becomes of it.
        argument: Which one.
    """
    body: list[_Instruction] = [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument)]
    for value in values or []:
        body += [(_IF_EQUAL, 0, 1, value & 0xFFFFFFFF), (_RETURN, 0, 0, then)]
    if values is None:
        body = [(_RETURN, 0, 0, then)]
    return [(_LOAD, 0, 0, _CALL), (_IF_EQUAL, 0, len(body), call), *body]


def _install(filters: list[_Instruction]) -> None:
    packed = b"".join(struct.pack("HBBI", *instruction) for instruction in filters)
    code = ctypes.create_string_buffer(packed)
    program = struct.pack("HxxxxxxP", len(filters), ctypes.addressof(code))
    described = ctypes.create_string_buffer(program)
    prctl(_SECCOMP, _FILTER, ctypes.addressof(described))


def _ancestors() -> list[int]:
    """The processes above this one, without the first of the system."""
    found, process = list[int](), os.getppid()
    while process > 1:
        found.append(process)
        status = ""
        with suppress(OSError):
            status = Path(f"/proc/{process}/status").read_text()
        parent = re.search(r"^PPid:\s*(\d+)", status, re.MULTILINE)
        process = int(parent[1]) if parent else 0
    return found
