"""The processes that run demos: a server with torch imported, a guard for each demo, the demo.

    builder ── server ── guard ── demo ── whatever the demo starts
                           └────────┴─ killed, all of it, before the guard reports

The server is forked from, and ends what a guard that was killed leaves behind. A guard has one demo
after another: it watches the limits, adopts what the demo leaves behind, and reports over a socket.
The socket is also its leash: when the builder closes it or dies, the guard ends everything, and
itself. Messages are JSON, never pickles.

Without fork (or where fork is not safe), the builder starts ``alone`` instead: the demo in a fresh
interpreter.
"""

from __future__ import annotations

import errno
import faulthandler
import json
import os
import select
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

from marginalia import preload, sandbox, usage
from marginalia.limits import MB, Limits

RESULT = "result.json"  # files in the scratch folder of a demo
CRASH = "crash.txt"
SHARED = "shared.txt"
WORK = "work"  # the demo's working directory

LOST, FULL = 70, 71  # exit status of a process that could not even report; for want of room

_SUBREAPER, _PARENT_DEATH = 36, 1  # prctl
LAST_WORDS = 1.0  # seconds for a demo that is over a limit to write down where it is


def main() -> None:
    """``serve FD`` and ``stand-by FD SECONDS`` fork guards; ``alone`` runs one demo.

    A server has the socket of one builder. One that stands by accepts any number of them on its
    socket, and ends when none has been there for so many seconds.
    """
    if sys.argv[1] == "serve":
        _serve([socket.socket(fileno=int(sys.argv[2]))])
    if sys.argv[1] == "stand-by":
        _serve([], [socket.socket(fileno=int(sys.argv[2]))], float(sys.argv[3]))
    job = json.load(sys.stdin)
    sys.stdin = Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115  # the demo's, to the end
    scratch = Path(job["scratch"])
    _run(job, scratch, usage.Shared(scratch / SHARED))


# The server


def _serve(
    builders: list[socket.socket], doors: Sequence[socket.socket] = (), patience: float = 0.0
) -> NoReturn:
    """Fork a guard for every socket that arrives from a builder, until all builders are gone.

    Args:
        builders: Sockets of builders.
        doors: Where more of them may come.
        patience: Seconds to wait for one.
    """
    preload.warm()
    if preload.os_threads() > 1:
        sys.exit("marginalia: a library started threads, so demos cannot be forked")
    sandbox.prctl(_SUBREAPER, 1)
    deaths, death = os.pipe()
    os.set_blocking(death, False)
    signal.set_wakeup_fd(death, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    guards: dict[int, socket.socket] = {}
    while builders or doors:
        watched: list[Any] = [deaths, *doors, *builders]
        ready, _, _ = select.select(watched, [], [], None if builders or guards else patience)
        if not ready:
            break
        if deaths in ready:
            os.read(deaths, 4096)
            _bury(guards)
        for builder in [one for one in builders if one in ready]:
            control = _asked(builder)
            if control is None:
                builders.remove(builder)
                builder.close()
            else:
                _fork_guard(control, guards, [*doors, *builders])
        for door in [one for one in doors if one in ready]:
            _let_in(door, builders)
    os._exit(0)


def _fork_guard(
    control: socket.socket, guards: dict[int, socket.socket], others: Sequence[socket.socket]
) -> None:
    """Fork a guard and remember its socket; the other sockets are not for it."""
    try:
        guard = os.fork()
    except OSError:
        control.close()
        return
    if guard == 0:
        signal.set_wakeup_fd(-1)
        for inherited in (*others, *guards.values()):
            inherited.close()
        _guard(control)
    guards[guard] = control


def _asked(builder: socket.socket) -> socket.socket | None:
    """The socket for a guard that a builder sent; None if the builder is gone."""
    with suppress(OSError):
        _, sockets, _, _ = socket.recv_fds(builder, 1, 1)
        return socket.socket(fileno=sockets[0]) if sockets else None
    return None


def _let_in(door: socket.socket, builders: list[socket.socket]) -> None:
    """Accept a builder; a demo of ours is none."""
    line, _ = door.accept()
    credentials = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4)
    if int.from_bytes(credentials, sys.byteorder) in usage.descendants(os.getpid()):
        line.close()
    else:
        builders.append(line)


def _bury(guards: dict[int, socket.socket]) -> None:
    """Forget the guards that are dead, and end what one that was killed has left.

    A builder waits for the word of its guard until all that hold the guard's socket close it: here,
    when nothing is left.

    Args:
        guards: The sockets of the guards by process; changed in place.
    """
    dead = {*usage.reap()}
    while strays := usage.children(os.getpid()) - {*guards}:
        usage.kill(strays, groups=True)
        dead |= {os.wait()[0], *usage.reap()}
    for guard in dead & {*guards}:
        guards.pop(guard).close()


# The guard


def _guard(control: socket.socket) -> NoReturn:
    """Run the demos that a builder asks for, one at a time."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setpgid(0, 0)  # a signal to its group reaches no other guard
        os.dup2(os.open(os.devnull, os.O_RDWR), 2)  # the standard error
        sandbox.prctl(_SUBREAPER, 1)
        enclosed = sandbox.enclose()
        for line in control.makefile("rb"):
            _guarded(json.loads(line), control, enclosed=enclosed)
    finally:
        os._exit(0)


def _guarded(job: Mapping[str, Any], control: socket.socket, *, enclosed: bool) -> None:
    """Run one demo and report; nothing that the demo started is left afterwards.

    Args:
        job: The demo.
        control: Leads to the builder.
        enclosed: Whether signals of this process reach its descendants only.
    """
    limits = Limits(**job["limits"])
    with scratch_folder() as scratch, shared_memory(scratch) as shared:
        demo = os.fork()
        if demo == 0:
            os.close(control.detach())  # closed, it would stay open for the file that reads it
            sandbox.prctl(_PARENT_DEATH, signal.SIGKILL)
            _run(job, scratch, shared)
        control.sendall(json.dumps([os.getpid(), str(scratch)]).encode() + b"\n")
        meter = usage.Meter(lambda: usage.descendants(os.getpid()), scratch, shared, limits)
        report = _watch(demo, control, meter)
        shared.look(usage.descendants(os.getpid()))
        report |= _end(demo, enclosed=enclosed)
        result = outcome(report, scratch, limits)
    control.sendall(json.dumps([report, len(result)]).encode() + b"\n" + result)


def _watch(demo: int, control: socket.socket, meter: usage.Meter) -> dict[str, Any]:
    """Wait for the demo's end, a limit or the builder's end.

    Returns:
        ``end`` (``"exit"``, ``"stop"`` or a limit, of which ``used`` was used).
    """
    watched, leash = os.pidfd_open(demo), control.fileno()
    while True:
        ready, _, _ = select.select([watched, leash], [], [], meter.pause)
        exceeded = None if ready else meter.exceeded()
        if ready or exceeded:
            break
        meter.gone += sum(usage.reap(spared=demo).values())
    end, used = exceeded or ("exit" if watched in ready else "stop", 0.0)
    if exceeded:
        os.kill(demo, signal.SIGABRT)  # the fault handler writes down where it is
        usage.kill(usage.descendants(demo))
        select.select([watched], [], [], LAST_WORDS)
    os.close(watched)
    return {"end": end, "used": used}


def _end(demo: int, *, enclosed: bool) -> dict[str, Any]:
    """End the demo and all its kin.

    Returns:
        The exit ``status`` as `subprocess` has it, and the peak memory ``peak_mb`` of the demo's
        process.
    """
    for kill in (os.killpg, os.kill):  # it is not reaped yet: the number is still its own
        with suppress(OSError):
            kill(demo, signal.SIGKILL)
    _, status, resources = os.wait4(demo, 0)
    usage.end(os.getpid(), enclosed=enclosed)
    return {
        "status": os.waitstatus_to_exitcode(status),
        "peak_mb": resources.ru_maxrss / 1024,
    }


def outcome(report: dict[str, Any], scratch: Path, limits: Limits) -> bytes:
    """The demo's result as JSON, or nothing; then the report tells why.

    Args:
        report: How the demo ended; ``trace``, what the fault handler wrote, is added, and the end
            is that by the limit if the result is too large.
        scratch: Where the demo left its files.
        limits: What it was given.
    """
    report["trace"] = usage.content(scratch / CRASH, 10_000).decode("utf-8", "replace")
    if report["status"] == FULL:
        report |= {"status": LOST, "trace": report["trace"] or os.strerror(errno.ENOSPC)}
    if report["end"] != "exit" or report["status"]:
        return b""
    result = scratch / RESULT
    size = result.lstat().st_size if result.is_file() else 0
    if size > limits.output * MB:
        report |= {"end": "output", "used": size / MB}
        return b""
    return usage.content(result, size)


# The scratch folder


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for one demo, which goes with all that is in it."""
    folder = Path(tempfile.mkdtemp(prefix="marginalia-"))
    try:
        yield folder
    finally:
        discard(folder)


@contextmanager
def shared_memory(scratch: Path) -> Iterator[usage.Shared]:
    """What a demo makes in shared memory, which goes as well."""
    shared = usage.Shared(scratch / SHARED)
    try:
        yield shared
    finally:
        shared.look([])  # at what it told last
        for path in shared.paths():
            with suppress(OSError):
                path.unlink()
            discard(path)


def discard(folder: Path) -> None:
    """Remove a folder, also one that nobody may enter or that is too deep for `shutil.rmtree`.

    Folders in it are moved up before they are emptied, so that no path becomes long.
    """
    waiting = [folder]
    for inner in waiting:  # grows meanwhile
        with suppress(OSError):
            inner.chmod(0o700)
            for path in inner.iterdir():
                with suppress(OSError):
                    if path.is_symlink() or not path.is_dir():
                        path.unlink()
                        continue
                    path.chmod(0o700)
                    waiting.append(path.rename(folder / uuid4().hex))
    for emptied in reversed(waiting):
        with suppress(OSError):
            emptied.rmdir()


# The demo


def _run(job: Mapping[str, Any], scratch: Path, shared: usage.Shared) -> NoReturn:
    """Run a demo in this process, which it may harm as it likes, and leave the result in a file.

    A process that the demo forks may come to the end of the demo as well. It leaves nothing.
    """
    own, status = os.getpid(), LOST
    try:
        if "environment" in job:  # the builder's, which may have changed since the server started
            os.environ.clear()
            os.environ.update(job["environment"])
        _settle(job, scratch, shared)
        result = _demo(job)
        if os.getpid() == own:
            shared.look([own])
            for path in shared.paths():
                shared.tell(str(path))
            (scratch / RESULT).write_bytes(json.dumps(result).encode())
        status = 0
    except BaseException as error:  # the disk is full, say, or torch cannot be imported
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            status = FULL
        with suppress(OSError), (scratch / CRASH).open("a") as file:
            traceback.print_exc(file=file)
    finally:
        os._exit(status)


def _settle(job: Mapping[str, Any], scratch: Path, shared: usage.Shared) -> None:
    """Give the process a session, a working directory, an end that leaves a trace, and bounds."""
    if sys.platform != "win32":
        with suppress(OSError):  # a fresh interpreter already leads its session
            os.setsid()
    with suppress(OSError):  # if memory runs out, let this process go and not the builder
        Path("/proc/self/oom_score_adj").write_text("1000")
    faulthandler.enable((scratch / CRASH).open("w"), all_threads=False)
    work = scratch / WORK
    work.mkdir()
    os.chdir(work)
    tempfile.tempdir = os.environ["TMPDIR"] = str(work)
    sys.argv = [job["path"]]
    import matplotlib.font_manager  # noqa: F401  # writes its list where no demo may

    Limits(**job["limits"]).restrict()
    sandbox.confine(scratch, network=job["network"], tell=shared.tell)
    if job["device"] == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # torch has not looked for one yet


def _demo(job: Mapping[str, Any]) -> dict[str, Any]:
    """The result of the demo, whatever it raises."""
    from marginalia.demo import Failure, Result, run

    try:
        path, root, limits = Path(job["path"]), Path(job["root"]), Limits(**job["limits"])
        options = {name: job[name] for name in ("shapes", "seed", "source")}
        result = run(path, root=root, limits=limits, **options)
    except BaseException as error:  # also sys.exit: nothing may skip the report
        result = Result(False, error=Failure(type(error).__name__, str(error), 0))
    return result.to_json()


if __name__ == "__main__":
    main()
