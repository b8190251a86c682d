"""What a process and all its descendants use together, where Linux tells; and their end."""

from __future__ import annotations

import os
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

_TICK = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class Meter:
    """Looks now and then at what a demo uses.

    Args:
        processes: Those of the demo, as they are when it is called.
        folder: What lies in it is output, and so are files beside it that are open without a name.
        limits: What is compared.
    """

    def __init__(self, processes: Callable[[], list[int]], folder: Path, limits: Limits) -> None:
        self._processes = processes
        self._folder = folder
        self._device = folder.stat().st_dev
        self._limits = limits
        self._start = time.monotonic()
        self._next = self._start + min(PAUSE, limits.timeout)

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
        if seconds >= limits.timeout:
            return "timeout", seconds
        if len(processes) > limits.processes:
            return "processes", len(processes)
        cpu_time = sum(map(_cpu_time, processes))
        if cpu_time >= limits.cpu_time:
            return "cpu_time", cpu_time
        # What they share counts for each of them here. The true sum takes much longer to find.
        if sum(map(_resident, processes)) >= limits.memory * MB:
            memory = sum(map(_memory, processes)) / MB
            if memory >= limits.memory:
                return "memory", memory
        output = (_size(self._folder) + self._nameless(processes)) / MB
        return ("output", output) if output >= limits.output else None

    def _nameless(self, processes: Iterable[int]) -> int:
        """Bytes of the files that are open and were deleted."""
        sizes: dict[int, int] = {}
        for process in processes:
            for name in _names(f"/proc/{process}/fd"):
                with suppress(OSError):
                    found = os.stat(f"/proc/{process}/fd/{name}")  # noqa: PTH116  # as in _read
                    nameless = stat.S_ISREG(found.st_mode) and not found.st_nlink
                    if nameless and found.st_dev == self._device:
                        sizes[found.st_ino] = _room(found)
        return sum(sizes.values())


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


def kill(processes: Iterable[int]) -> None:
    """Kill processes that may be gone already."""
    for process in processes:
        with suppress(OSError):
            os.kill(process, signal.SIGKILL)


def end(process: int) -> None:
    """Kill all that is below this process, which adopts the orphans, and wait for it."""
    with suppress(ChildProcessError):
        while True:
            kill(descendants(process))
            os.waitpid(-1, 0)  # raises when there is none


def _cpu_time(process: int) -> float:
    """Seconds of a process, with those of its children that it waited for."""
    fields = _read(f"/proc/{process}/stat").rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICK


# Memory and files


def _resident(process: int) -> int:
    """Bytes of memory, all those included that others share."""
    fields = _read(f"/proc/{process}/statm").split()
    return int(fields[1]) * _PAGE if fields else 0


def _memory(process: int) -> int:
    """Bytes of memory, where one that n processes share is an nth."""
    for line in _read(f"/proc/{process}/smaps_rollup").splitlines():
        name, *values = line.split()
        if name == "Pss:":
            return int(values[0]) * 1024
    return _resident(process)


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


def _names(folder: str) -> list[str]:
    with suppress(OSError):
        return os.listdir(folder)  # noqa: PTH208  # as in _read
    return []


def _read(name: str) -> str:
    """A file of the process file system; empty if it is gone."""
    with suppress(OSError), open(name) as file:  # noqa: PTH123  # a Path takes twice as long
        return file.read()
    return ""
