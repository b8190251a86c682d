"""One command, measured: the time it takes, and the peak of the memory of all its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SAMPLE = 0.2  # seconds between two looks at the memory
TAIL = 15  # lines of a failed command's output that are shown


class CommandError(Exception):
    """A command failed, or took too long."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a command took.

    Attributes:
        seconds: Wall-clock time.
        peak_mb: The most memory that it and its descendants had at once (PSS: a page that several
            processes share is counted once); None where the system does not say.
        load: The load of the machine, over one minute, when it started.
    """

    seconds: float
    peak_mb: float | None
    load: float


def run(
    command: Sequence[str], folder: Path, env: Mapping[str, str], log: Path, limit: float
) -> Cost:
    """Run a command to its end.

    Args:
        command: Program and arguments.
        folder: Its working directory.
        env: Its environment.
        log: Takes its output.
        limit: Seconds that it may take.

    Raises:
        CommandError: It failed, or took longer than the limit.
    """
    load = os.getloadavg()[0]
    with log.open("wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env=env, stdout=output, stderr=subprocess.STDOUT
        )
        with _Watch(process.pid) as watch:
            try:
                status = process.wait(limit)
            except subprocess.TimeoutExpired:
                raise CommandError(f"{command[0]} took longer than {limit:g} s") from None
            finally:
                seconds = time.perf_counter() - start
                end(process)
    if status:
        lines = log.read_text("utf-8", "replace").splitlines()
        last = "\n".join(f"    {line}" for line in lines[-TAIL:])
        program = Path(command[0]).name
        raise CommandError(f"{program} ended with status {status} (see {log}):\n{last}")
    return Cost(round(seconds, 3), watch.peak_mb, round(load, 2))


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that still runs, and its descendants."""
    if process.poll() is None:
        for pid in [*descendants(process.pid), process.pid]:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that these started; on Linux only."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended
            # The name, in brackets, may hold anything; the parent is the second field behind it.
            parent = path.read_text("utf-8", "replace").rpartition(")")[2].split()[1]
            children.setdefault(int(parent), []).append(int(path.parent.name))
    found = [pid]
    for one in found:  # it grows while it is walked
        found += children.get(one, [])
    return found[1:]


def pss_mb(pid: int) -> float:
    """The memory of a process, what it shares divided by the number of its sharers."""
    with suppress(OSError):  # it ended
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


class _Watch:
    """Looks at the memory of a tree of processes while the block runs."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peak = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def peak_mb(self) -> float | None:
        return round(self._peak, 1) or None

    def _look(self) -> None:
        while not self._over.wait(SAMPLE):
            tree = [self._pid, *descendants(self._pid)]
            self._peak = max(self._peak, sum(map(pss_mb, tree)))
