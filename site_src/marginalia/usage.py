"""What a process and all its descendants use together, where Linux tells; and their end."""

from __future__ import annotations

import os
import re
import signal
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from marginalia.limits import MB, Limits

PAUSE, LONG_PAUSE = 0.05, 0.25  # seconds between two looks
REST = 20  # times as long as a look took, up to the long pause: thousands of files take a while
SMALLEST = 4096  # bytes: an empty file takes room as well
SHARED = os.path.realpath("/dev/shm")  # where programs share memory, as files

_TICK = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_PART = re.compile(r"^(Pss|Pss_Shmem):\s*(\d+) kB", re.MULTILINE)
_MAPPED = re.compile(r"^\S+ .w.s \S+ \S+ \S+ +(/.*)$", re.MULTILINE)
_PLAIN = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK"))


class Shared:
    """What a demo makes where all programs share memory: files that nobody else would remove.

    Those count that are new, and that the demo tells of or that one of its processes has open or
    mapped to write when somebody looks.

    Args:
        told: The file in which the demo tells of them, by name.
    """

    def __init__(self, told: Path) -> None:
        self._told = told
        self._before = _entries()
        self._made = set[tuple[str, int]]()

    def tell(self, path: str) -> None:
        """Let whoever looks know that this file is the demo's, if it is one of shared memory."""
        if path.startswith(SHARED + os.sep):
            name = Path(path).relative_to(SHARED).parts[0]
            with suppress(OSError), self._told.open("ab") as file:
                file.write(os.fsencode(name) + b"\0")

    def look(self, processes: Iterable[int]) -> None:
        """Note what the demo told, and what these processes have."""
        if new := _entries() - self._before - self._made:
            names = {os.fsdecode(name) for name in content(self._told, MB).split(b"\0")}
            names |= _held(processes)
            self._made |= {entry for entry in new if entry[0] in names}

    def paths(self) -> list[Path]:
        """What was noted and is still there."""
        return [Path(SHARED, name) for name, _ in self._made & _entries()] if self._made else []


def _entries() -> set[tuple[str, int]]:
    """Name and number of all shared memory that has a name: one is used again, both are not."""
    with suppress(OSError), os.scandir(SHARED) as entries:
        return {(entry.name, entry.inode()) for entry in entries}
    return set()


def _held(processes: Iterable[int]) -> set[str]:
    """Names of the shared memory that processes have open or mapped to write."""
    paths = list[str]()
    for process in processes:
        paths += _MAPPED.findall(_read(f"/proc/{process}/maps"))
        for name in _names(f"/proc/{process}/fd"):
            file = f"/proc/{process}/fd/{name}"
            with suppress(OSError):
                if os.lstat(file).st_mode & stat.S_IWUSR:
                    paths.append(os.readlink(file))  # noqa: PTH115
    inside = SHARED + os.sep
    return {path.removeprefix(inside).split("/")[0] for path in paths if path.startswith(inside)}


class Meter:
    """Looks now and then at what a demo uses.

    Args:
        processes: Those of the demo, as they are when it is called.
        folder: What lies in it is output, and so are files beside it that are open without a name.
        shared: What it shares counts as memory.
        limits: What is compared.

    Attributes:
        gone: Seconds of processor time of the demo's processes that are in no list any more.
    """

    def __init__(
        self, processes: Callable[[], list[int]], folder: Path, shared: Shared, limits: Limits
    ) -> None:
        self._processes = processes
        self._folder = folder
        self._device = folder.stat().st_dev
        self._shared = shared
        self._memory_devices = _memory_devices() - {self._device}
        self._limits = limits
        self._start = time.monotonic()
        self._next = self._start + min(PAUSE, limits.timeout)
        self.gone = 0.0

    @property
    def pause(self) -> float:
        """Seconds until the next look."""
        return max(0.0, self._next - time.monotonic())

    def exceeded(self) -> tuple[str, float] | None:
        """The limit that is reached, and how much is used in its unit; None if none is."""
        start = time.monotonic()
        found = self._exceeded(start - self._start)
        end = time.monotonic()
        pause = min(max(PAUSE, REST * (end - start)), LONG_PAUSE)
        self._next = min(end + pause, self._start + self._limits.timeout)
        return found

    def _exceeded(self, seconds: float) -> tuple[str, float] | None:
        limits, processes = self._limits, self._processes()
        self._shared.look(processes)
        if seconds >= limits.timeout:
            return "timeout", seconds
        if len(processes) > limits.processes:
            return "processes", len(processes)
        cpu_time = self.gone + sum(map(_cpu_time, processes))
        if cpu_time >= limits.cpu_time:
            return "cpu_time", cpu_time
        files = _open_files(processes)
        shared = self._room_of_shared(files)
        # What they share counts for each of them here. The true sum takes much longer to find.
        if sum(map(_resident, processes)) + shared >= limits.memory * MB:
            memory = _memory(processes, shared) / MB
            if memory >= limits.memory:
                return "memory", memory
        output = (_size(self._folder) + self._nameless(files)) / MB
        return ("output", output) if output >= limits.output else None

    def _nameless(self, files: Iterable[os.stat_result]) -> int:
        """Bytes of those open files that were deleted."""
        return sum(
            _room(file) for file in files if file.st_dev == self._device and not file.st_nlink
        )

    def _room_of_shared(self, files: Iterable[os.stat_result]) -> int:
        """Bytes of shared memory that is open, or that has a name."""
        rooms = {
            (file.st_dev, file.st_ino): _room(file)
            for file in files
            if file.st_dev in self._memory_devices
        }
        for path in self._shared.paths():
            with suppress(OSError):
                found = path.lstat()
                size = _size(path) if stat.S_ISDIR(found.st_mode) else _room(found)
                rooms[found.st_dev, found.st_ino] = size
        return sum(rooms.values())


# Processes


def children(process: int) -> set[int]:
    """The processes that a process started or adopted."""
    threads = _names(f"/proc/{process}/task")
    texts = (_read(f"/proc/{process}/task/{thread}/children") for thread in threads)
    return {int(child) for text in texts for child in text.split()}


def descendants(process: int) -> list[int]:
    """The processes below a process, parents before their children."""
    found = [process]
    for parent in found:  # grows meanwhile
        found += children(parent)
    return found[1:]


def kill(processes: Iterable[int], *, groups: bool = False) -> None:
    """Kill processes that may be gone already.

    Args:
        processes: Their numbers.
        groups: Whether to kill their groups as well, except that of this process. No process can
            leave its group to a child meanwhile, where one by one they may be faster for ever.
    """
    for process in processes:
        with suppress(OSError):
            if groups and (group := os.getpgid(process)) != os.getpgrp():
                os.killpg(group, signal.SIGKILL)
        with suppress(OSError):
            os.kill(process, signal.SIGKILL)


def end(process: int, *, enclosed: bool) -> None:
    """Kill all that is below this process, which adopts the orphans, and wait for it.

    Args:
        process: This process.
        enclosed: Whether its signals reach nothing else. Then one is for all, at the same time.
    """
    with suppress(ChildProcessError):
        while True:
            reap()
            if enclosed:
                os.kill(-1, signal.SIGKILL)
            else:
                kill(descendants(process), groups=True)
            os.waitpid(-1, 0)  # raises when there is none


def reap(spared: int = 0) -> dict[int, float]:
    """Forget the children of this process that have ended.

    Args:
        spared: One that is left to whoever waits for it.

    Returns:
        The seconds of processor time of each, with those of its children that it waited for.
    """
    seconds = dict[int, float]()
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    with suppress(ChildProcessError):
        while (found := os.waitid(os.P_ALL, 0, options)) and found.si_pid != spared:
            _, _, used = os.wait4(found.si_pid, 0)
            seconds[found.si_pid] = used.ru_utime + used.ru_stime
    return seconds


def _cpu_time(process: int) -> float:
    """Seconds of a process, with those of its children that it waited for."""
    fields = _read(f"/proc/{process}/stat").rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICK


# Memory and files


def _resident(process: int) -> int:
    """Bytes of memory, all those included that others share."""
    fields = _read(f"/proc/{process}/statm").split()
    return int(fields[1]) * _PAGE if fields else 0


def _memory(processes: Iterable[int], shared: int) -> int:
    """Bytes of memory, where what several processes have counts once.

    Args:
        processes: Those that have it.
        shared: Bytes of shared memory, mapped or not; what is mapped is not counted again.
    """
    own = mapped = 0
    for process in processes:
        # Of a page that n processes have, each has an nth.
        parts = dict(_PART.findall(_read(f"/proc/{process}/smaps_rollup")))
        in_files = int(parts.get("Pss_Shmem", 0)) * 1024
        own += int(parts["Pss"]) * 1024 - in_files if parts else _resident(process)
        mapped += in_files
    return own + max(mapped, shared)


def _memory_devices() -> set[int]:
    """Devices of the files that are nothing but memory."""
    devices = set[int]()
    if os.path.ismount(SHARED):
        devices.add(Path(SHARED).stat().st_dev)
    if hasattr(os, "memfd_create"):
        with suppress(OSError):
            file = os.memfd_create("device")
            devices.add(os.fstat(file).st_dev)
            os.close(file)
    return devices


def _open_files(processes: Iterable[int]) -> list[os.stat_result]:
    """The plain files that processes have open, each once."""
    files = dict[tuple[int, int], os.stat_result]()
    for process in processes:
        for name in _names(f"/proc/{process}/fd"):
            with suppress(OSError):
                found = os.stat(f"/proc/{process}/fd/{name}")  # noqa: PTH116  # as in _read
                if stat.S_ISREG(found.st_mode):
                    files[found.st_dev, found.st_ino] = found
    return [*files.values()]


def _size(folder: str | Path) -> int:
    """Bytes that all in a folder takes."""
    size, folders = 0, [str(folder)]
    for inner in folders:  # grows meanwhile
        with suppress(OSError), os.scandir(inner) as entries:
            for entry in entries:
                with suppress(OSError):
                    size += max(SMALLEST, _room(entry.stat(follow_symlinks=False)))
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
    return size


def _room(found: os.stat_result) -> int:
    """Bytes that a file takes: a hole in it takes none."""
    return found.st_blocks * 512 if hasattr(found, "st_blocks") else found.st_size


def content(path: Path, most: int) -> bytes:
    """How a file begins that a demo left; nothing if it is a link, a pipe or a device."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | _PLAIN)

    with suppress(OSError), open(path, "rb", opener=opener) as file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file.read(most)
    return b""


def _names(folder: str) -> list[str]:
    with suppress(OSError):
        return os.listdir(folder)  # noqa: PTH208  # as in _read
    return []


def _read(name: str) -> str:
    """A file of the process file system; empty if it is gone."""
    # A Path takes twice as long; and a process may call itself anything, in any encoding.
    with suppress(OSError), open(name, errors="surrogateescape") as file:  # noqa: PTH123
        return file.read()
    return ""
