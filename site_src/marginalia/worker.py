"""The processes that run demos: a server with torch imported, a guard for each demo, the demo.

    builder ── server ── guard ── demo ── whatever the demo starts
                           └────────┴─ killed, all of it, before the guard reports

The server is forked from and does nothing else. A guard lives for one demo: it sets the limit,
adopts what the demo leaves behind, and reports over a socket. The socket is also its leash: when
the builder closes it or dies, the guard ends everything. Messages are JSON, never pickles.

Without fork (or where fork is not safe), the builder starts ``alone`` instead: the demo in a fresh
interpreter.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import select
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from marginalia import preload

RESULT = "result.json"  # files in the scratch folder of a demo
CRASH = "crash.txt"
WORK = "work"  # the demo's working directory

LOST = 70  # exit status of a process that could not even report

_SUBREAPER, _PARENT_DEATH = 36, 1  # prctl
LAST_WORDS = 1.0  # seconds for a demo that ran too long to write down where it was


def main() -> None:
    """``serve FD`` forks a guard for every request on a socket; ``alone`` runs one demo."""
    if sys.argv[1] == "serve":
        _serve(socket.socket(fileno=int(sys.argv[2])))
    job = json.load(sys.stdin)
    sys.stdin = Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115  # the demo's, to the end
    _run(job, Path(job["scratch"]))


# The server


def _serve(requests: socket.socket) -> NoReturn:
    """Fork a guard for every socket that arrives, until the builder is gone."""
    preload.warm()
    if preload.os_threads() > 1:
        sys.exit("marginalia: a library started threads, so demos cannot be forked")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the guards
    while True:
        _, sockets, _, _ = socket.recv_fds(requests, 1, 1)
        if not sockets:
            os._exit(0)
        with socket.socket(fileno=sockets[0]) as control, suppress(OSError):
            if os.fork() == 0:
                requests.close()
                _guard(control)


# The guard


def _guard(control: socket.socket) -> NoReturn:
    """Run one demo and report; nothing that the demo started is left afterwards."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setpgid(0, 0)  # a signal to its group reaches no other guard
        os.dup2(os.open(os.devnull, os.O_RDWR), sys.stderr.fileno())
        _prctl(_SUBREAPER, 1)
        job = json.loads(_line(control))
        with tempfile.TemporaryDirectory(prefix="marginalia-", ignore_cleanup_errors=True) as name:
            scratch = Path(name)
            demo = os.fork()
            if demo == 0:
                control.close()
                _prctl(_PARENT_DEATH, signal.SIGKILL)
                _run(job, scratch)
            control.sendall(json.dumps([os.getpid(), name]).encode() + b"\n")
            report = _watch(demo, control, job["timeout"])
            result = outcome(report, scratch, job["max_bytes"])
        control.sendall(json.dumps(report).encode() + b"\n" + result)
        control.shutdown(socket.SHUT_WR)  # that is all: the builder need not wait for our end
    finally:
        os._exit(0)


def _line(control: socket.socket) -> bytes:
    """What the builder sends first."""
    data = b""
    while not data.endswith(b"\n"):
        data += control.recv(1 << 16) or b"\n"
    return data


def _watch(demo: int, control: socket.socket, timeout: float) -> dict[str, Any]:
    """Wait for the demo's end, the limit or the builder's; then end the demo and all its kin.

    Returns:
        ``end`` (``"exit"``, ``"timeout"``, ``"stop"``), the exit ``status`` as `subprocess` has it,
        and the peak memory ``peak_mb`` of the demo's process.
    """
    watched = os.pidfd_open(demo)
    leash = control.fileno()
    ready, _, _ = select.select([watched, leash], [], [], timeout)
    end = "exit" if watched in ready else "stop" if ready else "timeout"
    if end == "timeout":
        os.kill(demo, signal.SIGABRT)  # the fault handler writes down where it is
        select.select([watched], [], [], LAST_WORDS)
    for kill in (os.killpg, os.kill):  # it is not reaped yet: the number is still its own
        with suppress(OSError):
            kill(demo, signal.SIGKILL)
    _, status, usage = os.wait4(demo, 0)
    _end_children()
    return {
        "end": end,
        "status": os.waitstatus_to_exitcode(status),
        "peak_mb": usage.ru_maxrss / 1024,
    }


def _end_children() -> None:
    """Kill the processes that the demo left; orphans of theirs become ours, and follow."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    with suppress(OSError):
        while True:
            for child in children.read_text().split():
                os.kill(int(child), signal.SIGKILL)
            os.waitpid(-1, 0)  # raises when there is none


def outcome(report: dict[str, Any], scratch: Path, max_bytes: int) -> bytes:
    """The demo's result as JSON, or nothing; then the report tells why.

    Args:
        report: How the demo ended; ``trace``, what the fault handler wrote, and ``size``, that of
            the result, are added.
        scratch: Where the demo left its files.
        max_bytes: A larger result is not read.
    """
    report |= {"trace": "", "size": 0}
    with suppress(OSError):
        report["trace"] = (scratch / CRASH).read_bytes()[:10_000].decode("utf-8", "replace")
    result = scratch / RESULT
    if report["end"] != "exit" or report["status"] or not result.is_file():
        return b""
    report["size"] = result.stat().st_size
    return result.read_bytes() if report["size"] <= max_bytes else b""


def _prctl(option: int, value: int) -> None:
    """Ask Linux for something; elsewhere, nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


# The demo


def _run(job: Mapping[str, Any], scratch: Path) -> NoReturn:
    """Run a demo in this process, which it may harm as it likes, and leave the result in a file."""
    status = LOST
    try:
        _settle(job, scratch)
        data = json.dumps(_demo(job)).encode()
        (scratch / RESULT).write_bytes(data)
        status = 0
    except BaseException:  # the disk is full, say, or torch cannot be imported
        with suppress(OSError), (scratch / CRASH).open("a") as file:
            traceback.print_exc(file=file)
    finally:
        os._exit(status)


def _settle(job: Mapping[str, Any], scratch: Path) -> None:
    """Give the process a session, a working directory and an end that leaves a trace."""
    if sys.platform != "win32":
        import resource

        with suppress(OSError):  # a fresh interpreter already leads its session
            os.setsid()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # if memory runs out, let this process go and not the builder
        Path("/proc/self/oom_score_adj").write_text("1000")
    faulthandler.enable((scratch / CRASH).open("w"), all_threads=False)
    work = scratch / WORK
    work.mkdir()
    os.chdir(work)
    tempfile.tempdir = os.environ["TMPDIR"] = str(work)
    sys.argv = [job["path"]]


def _demo(job: Mapping[str, Any]) -> dict[str, Any]:
    """The result of the demo, whatever it raises."""
    from marginalia.demo import Failure, Result, run

    try:
        path, root = Path(job["path"]), Path(job["root"])
        result = run(path, root=root, shapes=job["shapes"], seed=job["seed"])
    except BaseException as error:  # also sys.exit: nothing may skip the report
        result = Result(False, error=Failure(type(error).__name__, str(error), 0))
    return result.to_json()


if __name__ == "__main__":
    main()
