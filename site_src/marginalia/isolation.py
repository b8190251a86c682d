"""Give a demo a process of its own and wait for it: the builder's side of ``worker``."""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marginalia import preload, standby, usage, worker
from marginalia.limits import Limits

START_LIMIT = 180.0  # seconds for the server to import torch on a machine that is busy
REPORT_LIMIT = 30.0  # seconds for a guard to end what a demo started, and to report
FRESH_START = 30.0  # seconds that a fresh interpreter may need for imports, on top of the limit

# macOS has fork, but its own libraries do not bear it; Windows has none.
FORKS = sys.platform == "linux" and hasattr(os, "pidfd_open")

COMMAND = [sys.executable, "-P", "-m", worker.__name__]  # -P: nothing from the current folder


@dataclass(frozen=True, slots=True)
class Report:
    """How a demo's process ended.

    Attributes:
        end: ``"exit"`` by itself, ``"stop"`` because it was told to, ``"lost"`` in a way that
            nobody saw, or the name of the limit that it reached.
        used: How much of what the limit is about.
        status: Exit status; minus the signal that killed it.
        peak_mb: Peak memory of the process.
        trace: What the fault handler wrote when it crashed or was over a limit.
        result: The result as JSON; empty if there is none.
    """

    end: str
    used: float = 0.0
    status: int = 0
    peak_mb: float = 0.0
    trace: str = ""
    result: bytes = b""


class Stop:
    """Ends, when called, all demos that were started with it, and lets none start any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: list[Callable[[], None]] = []
        self.called = False

    def __call__(self) -> None:
        """End them."""
        with self._lock:
            self.called = True
            for end in self._ends:
                end()

    @contextmanager
    def reaches(self, end: Callable[[], None]) -> Iterator[None]:
        """While this lasts, a stop calls `end`; if there was one already, at once."""
        with self._lock:
            self._ends.append(end)
            if self.called:
                end()
        try:
            yield
        finally:
            with self._lock:
                self._ends.remove(end)


def run(job: Mapping[str, Any], stop: Stop) -> Report:
    """Run one demo in a process of its own, and leave nothing of it behind.

    Args:
        job: What `worker` needs: path, root, shapes, seed, limits, network.
        stop: Ends it early.
    """
    for _ in range(2 if _server.usable else 0):
        if stop.called:
            return Report("stop")
        try:
            return _forked(job, stop)
        except _NoGuardError:
            continue  # somebody killed the server: it is started again
    _server.usable = False
    return _fresh(job, stop)


def stand_by(seconds: float) -> None:
    """Let the server outlive this process, and wait so long for another one to need it."""
    _server.patience = seconds


def prepare() -> None:
    """Start the server, if demos are forked here, without waiting for it."""
    if _server.usable:
        _server.start()


class _NoGuardError(Exception):
    """The server did not fork a guard."""


def _forked(job: Mapping[str, Any], stop: Stop) -> Report:
    """Run a demo in a child of a guard.

    Raises:
        _NoGuardError: It did not start.
    """
    guard = _server.guard()
    try:
        with stop.reaches(guard.hang_up):
            report = guard.run({**job, "environment": preload.environment(os.environ)})
    except BaseException:
        guard.close()
        raise
    if report is None:
        guard.close()
        if stop.called:
            return Report("stop")
        raise _NoGuardError
    if report.end in ("stop", "lost"):
        guard.close()
    else:
        _server.take_back(guard)
    return report


class _Guard:
    """The builder's end of the line to a guard.

    Args:
        control: A socket that leads to it.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._reports = control.makefile("rb")

    def run(self, job: Mapping[str, Any]) -> Report | None:
        """Run a demo; None if it did not even start."""
        process, scratch = 0, ""
        with suppress(OSError):  # also a guard that does not report in time
            self._control.settimeout(START_LIMIT)
            self._control.sendall(json.dumps(job).encode() + b"\n")
            process, scratch = json.loads(self._reports.readline() or "[0, null]")
            self._control.settimeout(job["limits"]["timeout"] + REPORT_LIMIT)
            if process and (line := self._reports.readline()):
                report, size = json.loads(line)
                return Report(**report, result=self._reports.read(size))
        if not process:
            return None
        with suppress(OSError):
            os.kill(process, signal.SIGKILL)  # the demo dies with it
        worker.discard(Path(scratch))
        return Report("lost")

    def hang_up(self) -> None:
        """Let it see that nobody waits for the demo any more; its report still arrives."""
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)

    def alive(self) -> bool:
        """Whether it waits for a demo."""
        return not _hung_up(self._control)

    def close(self) -> None:
        """Let it end."""
        self._reports.close()
        self._control.close()


class _Server:
    """The process that demos are forked from, started when the first one needs it.

    Attributes:
        usable: Whether there is any.
        patience: Seconds that it waits for the next builder; if 0, it ends with this one.
    """

    def __init__(self) -> None:
        self.usable = FORKS
        self.patience = 0.0
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None
        self._idle: list[_Guard] = []

    def start(self) -> None:
        """Start the server unless it runs."""
        with self._lock:
            self._running()

    def guard(self) -> _Guard:
        """A guard that has no demo: one that had one before, or a new one.

        Raises:
            _NoGuardError: The server is gone.
        """
        with self._lock:
            for _ in range(2):
                requests = self._running()
                while self._idle:
                    if (idle := self._idle.pop()).alive():
                        return idle
                    idle.close()
                ours, theirs = socket.socketpair()
                with theirs, suppress(OSError):
                    socket.send_fds(requests, [b"."], [theirs.fileno()])
                    return _Guard(ours)
                ours.close()
                self.close()  # it is dying: wait for its end, and start another
            raise _NoGuardError

    def take_back(self, guard: _Guard) -> None:
        """Keep a guard for the next demo."""
        with self._lock:
            self._idle.append(guard)

    def close(self) -> None:
        """End the server; guards end by themselves when their builder does."""
        self._let_go()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = None

    def forget(self) -> None:
        """Leave the server to the process that this one was forked from."""
        self._let_go()
        if self._process is not None:
            self._process.returncode = 0  # not a child of this process, so nothing to wait for
        self.__init__()  # type: ignore[misc]  # the lock may be held by a thread that is not here

    def dismiss(self) -> None:
        """Let the guards go that have no demo."""
        while self._idle:
            self._idle.pop().close()

    def _let_go(self) -> None:
        """Close all lines to it."""
        self.dismiss()
        if self._requests is not None:
            self._requests.close()
        self._requests = None

    def _running(self) -> socket.socket:
        if self._requests is None or _hung_up(self._requests):
            self.close()
            _keep_standard_files()
            self._requests = self._standing_by() or self._started()
        return self._requests

    def _started(self) -> socket.socket:
        """A line to a new server, which ends with this process."""
        requests, theirs = socket.socketpair()
        with theirs:
            self._process = _start("serve", theirs)
        return requests

    def _standing_by(self) -> socket.socket | None:
        """A line to a server that may outlive this process; None if there is none."""
        if not self.patience:
            return None
        with suppress(OSError):
            place = standby.address(preload.environment(os.environ))
            with suppress(OSError):
                return standby.call(place)
            with standby.door(place) as door:
                process = _start("stand-by", door, str(self.patience), stderr=subprocess.DEVNULL)
                process.returncode = 0  # it is not waited for
                return standby.call(place)
        return None


def _hung_up(line: socket.socket) -> bool:
    """Whether the other end is gone, on a line where nothing else is to be heard."""
    return bool(select.select([line], [], [], 0)[0])


def _keep_standard_files() -> None:
    """Open those that whoever started this process has closed (``2>&-``).

    Otherwise the next file or socket would have their number, and be written to.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number is free


def _start(
    how: str, end: socket.socket, *arguments: str, **options: Any
) -> subprocess.Popen[bytes]:
    """Start a server that has this end of a socket."""
    return subprocess.Popen(
        [*COMMAND, how, str(end.fileno()), *arguments],
        env=preload.environment(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[end.fileno()],
        start_new_session=True,  # an interrupt at the terminal is the builder's
        **options,
    )


_server = _Server()
atexit.register(_server.close)
if FORKS:
    os.register_at_fork(after_in_child=_server.forget)


def _fresh(job: Mapping[str, Any], stop: Stop) -> Report:
    """Run a demo in a fresh interpreter, where none can be forked."""
    with (
        worker.scratch_folder() as scratch,
        worker.shared_memory(scratch) as shared,
        subprocess.Popen(
            [*COMMAND, "alone"],
            env=preload.environment(os.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process,
        stop.reaches(process.kill),
    ):
        limits = Limits(**job["limits"])
        assert process.stdin is not None
        with suppress(OSError), process.stdin:
            process.stdin.write(json.dumps({**job, "scratch": str(scratch)}).encode())
        exceeded = _watch(process, scratch, shared, limits)
        if exceeded and os.name == "posix":
            process.send_signal(signal.SIGABRT)  # the fault handler writes down where it is
            with suppress(subprocess.TimeoutExpired):
                process.wait(worker.LAST_WORDS)
        _kill(process)
        end, used = exceeded or ("stop" if stop.called else "exit", 0.0)
        report: dict[str, Any] = {"end": end, "used": used, "status": process.wait()}
        result = worker.outcome(report, scratch, limits)
        return Report(**report, result=result)


def _watch(
    process: subprocess.Popen[bytes], scratch: Path, shared: usage.Shared, limits: Limits
) -> tuple[str, float] | None:
    """Wait for a process; the limit that it reached, if it did not end before."""
    imports = {"timeout": limits.timeout + FRESH_START, "cpu_time": limits.cpu_time + FRESH_START}

    def processes() -> list[int]:
        return [process.pid, *usage.descendants(process.pid)]

    meter = usage.Meter(processes, scratch, shared, limits.with_those_of(imports))
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(meter.pause)
            return None
        if exceeded := meter.exceeded():
            return exceeded


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process, and those of its group that are left."""
    if os.name == "posix":
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
