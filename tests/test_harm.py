"""Demos that do harm, to nothing but their own page. Real ones, in real processes."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from demos import alive, content, demo, printed, run, wait_for, waiting_at, write
from marginalia import isolation, usage
from marginalia.demo import Result
from marginalia.jobs import Job
from marginalia.limits import Limits
from marginalia.runner import run_all, run_isolated
from marginalia.store import Store

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a demo is confined less")


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of all scratch folders of these tests, and of no others."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        isolation._server.close()  # the next one has that environment
        yield folder
    isolation._server.close()


def processes(place: Path) -> set[int]:
    """Guards, demos and what those started; all of them were born or live in the place."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            born = f"TMPDIR={place}".encode() in (process / "environ").read_bytes()
            if born or str(place) in str((process / "cwd").readlink()):
                found.add(int(process.name))
        except OSError:  # a zombie, or gone
            continue
    server = isolation._server._process
    return found - {server.pid if server else 0}


def is_clean(place: Path) -> bool:
    """Whether nothing is left of any demo once the guards are told to go."""
    isolation._server.dismiss()
    return wait_for(lambda: not processes(place)) and not list(place.glob("marginalia-*"))


# What would be different if another demo had left a trace
GOOD = """
    import hashlib, os, random, sys, time
    import matplotlib.pyplot as plt
    import numpy as np
    import torch

    OF_THE_TEST = ("TMPDIR", "PYTEST_CURRENT_TEST")

    def demo():
        print(torch.rand(2), np.random.rand(), random.random(), torch.get_default_dtype())
        print(hashlib.sha256(str(dict(plt.rcParams)).encode()).hexdigest(), os.listdir())
        print([item for item in sorted(os.environ.items()) if item[0] not in OF_THE_TEST])
        print(os.umask(0o22), os.getpriority(os.PRIO_PROCESS, 0), len(os.listdir("/proc/self/fd")))
        plt.plot([1, 2], [3, 4])
        assert torch.ones(2).sum() == 2
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the good page shows where nothing else has ever run."""
    root = tmp_path_factory.mktemp("alone").resolve()
    write(root, good=GOOD, later=GOOD)
    (ran,) = run_all([Job(root / "good.py", root)], store=Store(root / "store"), workers=1)
    assert ran.result.ok, ran.result.error
    return content(ran.result)


MODEST = Limits(timeout=120)


@dataclass(frozen=True)
class Harm:
    """A demo, and what its page says of it.

    Attributes:
        code: The demo; its first line is line 2 of the page.
        reason: Type of its failure; nothing if the page is fine.
        says: A pattern that is in the message.
        line: Where it was; 0 where nobody can know.
        limits: What it may use.
    """

    code: str
    reason: str = ""
    says: str = ""
    line: int = 0
    limits: Limits = MODEST


ENDS = {
    "raises": Harm("1 / 0", "ZeroDivisionError", "division", 2),
    "exits politely": Harm("import sys\nsys.exit('enough')", "SystemExit", "enough", 3),
    "exits": Harm("import os\nos._exit(3)", "Exit", "status 3"),
    "exits as if all were well": Harm("import os\nos._exit(0)", "Exit", "status 0"),
    "crashes": Harm("import ctypes\nctypes.string_at(0)", "Crash", "SIGSEGV", 3),
    "kills itself": Harm("import os\nos.kill(os.getpid(), 9)", "Crash", "SIGKILL"),
    "kills its group": Harm("import os\nos.killpg(0, 9)", "Crash", "SIGKILL"),
    "dies of a nameless signal": Harm("import os\nos.kill(0, 40)", "Crash", "by 40"),
    "asks": Harm("input('name: ')", "EOFError", "", 2),
    "lets another process come to its end": Harm(
        "import os\nif child := os.fork():\n    os.waitpid(child, 0)\n    os._exit(0)",
        "Exit",
        "status 0",
    ),
    "has no room for its result": Harm(
        "import os\nos.remove('../crash.txt')\nos.symlink('/dev/full', '../crash.txt')\n"
        "os.symlink('/dev/full', '../result.json')",
        "Lost",
        "No space left",
    ),
    "leaves other things than a trace and a result": Harm(
        "import os\nos.remove('../crash.txt')\nos.mkfifo('../crash.txt')\n"
        "open('x', 'w').close()\nos.symlink('work/x', '../result.json')",
        "Exit",
        "status 0",
    ),
    "leaves a trace without end": Harm(
        "import os\nos.remove('../crash.txt')\nos.symlink('/dev/zero', '../crash.txt')\n"
        "os._exit(3)",
        "Exit",
        "status 3",
    ),
    "closes all files": Harm("import os\nos.closerange(0, 99)\n1 / 0", "OSError", "Bad file"),
}

SECONDS = Limits(timeout=1)
CPU = replace(MODEST, cpu_time=0.5)
SMALL = replace(MODEST, memory=400)
QUIET = replace(MODEST, output=1)
BURNS = "[sys.executable, '-Sc', 'while True: pass']"
FILLS = "[sys.executable, '-Sc', 'x = bytearray(150 * 2**20); input()']"

# Who writes goes slowly enough for this to mean soon, whoever has to wait for a processor.
WROTE = r"it put out \d{1,3}(\.\d+)? MB, and its limit is 1 MB \(output:"

LIMITS = {
    "hangs": Harm("import time\ntime.sleep(99)", "TimeLimit", r"after 1 s.*timeout:", 3, SECONDS),
    "will not be told": Harm(
        "import signal, time\n"
        "for n in {*signal.valid_signals()} - {signal.SIGKILL, signal.SIGSTOP, 32, 33}:\n"
        "    signal.signal(n, signal.SIG_IGN)\n"
        "time.sleep(99)",
        "TimeLimit",
        "1 s",
        limits=SECONDS,
    ),
    "stops itself": Harm(
        "import os, signal\nos.kill(0, signal.SIGSTOP)", "TimeLimit", "1 s", limits=SECONDS
    ),
    "computes without end": Harm("while True: pass", "CpuLimit", r"0\.5 s.*cpu_time:", 2, CPU),
    "lets children compute": Harm(
        f"import subprocess, sys, time\nfor _ in range(3):\n    subprocess.Popen({BURNS})\n"
        "time.sleep(99)",
        "CpuLimit",
        r"0\.5 s",
        5,
        CPU,
    ),
    "starts processes without end": Harm(
        "import subprocess\nx = []\nwhile True:\n    x.append(subprocess.Popen(['sleep', '99']))",
        "ProcessLimit",
        "256 is the most",
        limits=Limits(timeout=60, memory=10**6),
    ),
    "allocates one block": Harm(
        "x = bytearray(10**10)", "MemoryLimit", r"limit, 400 MB \(memory:", 2, SMALL
    ),
    "allocates one tensor": Harm(
        "import torch\nx = torch.zeros(10**10)", "MemoryLimit", r"400 MB .*40000000000", 3, SMALL
    ),
    "allocates one array": Harm(
        "import numpy as np\nx = np.zeros(10**10)", "MemoryLimit", "400 MB .*74.5 GiB", 3, SMALL
    ),
    "allocates much": Harm(
        "x = []\nwhile True:\n    x.append(bytearray(10**6))",
        "MemoryLimit",
        r"it used \d+ MB.* its limit.* 400 MB \(memory:",
        limits=SMALL,
    ),
    "fills shared memory": Harm(
        "import os, time\nfor n in range(7):\n"
        "    with open(f'/dev/shm/marginalia-{os.getpid()}-{n}', 'wb') as f:\n"
        "        f.write(bytes(90 * 10**6))\n"
        "time.sleep(99)",
        "MemoryLimit",
        r"it used \d+ MB, and its limit is 400 MB",
        limits=SMALL,
    ),
    "fills files that are memory": Harm(
        "import os, time\nfor n in range(7):\n"
        "    os.write(os.memfd_create('x'), bytes(90 * 10**6))\n"
        "time.sleep(99)",
        "MemoryLimit",
        r"it used \d+ MB, and its limit is 400 MB",
        limits=SMALL,
    ),
    "lets children allocate": Harm(
        "import subprocess, sys, time\n"
        f"for _ in range(4):\n    subprocess.Popen({FILLS}, stdin=subprocess.PIPE)\n"
        "time.sleep(99)",
        "MemoryLimit",
        r"it used \d+ MB, and its limit is 400 MB",
        limits=SMALL,
    ),
    "prints without end": Harm(
        "while True:\n    print('x' * 1000)", "OutputLimit", r"limit is 1 MB \(output:", 3, QUIET
    ),
    "prints letters without end": Harm(
        "while True:\n    try:\n        print(end='x')\n    except Exception:\n        pass",
        "OutputLimit",
        "1 MB",
        4,
        QUIET,
    ),
    "prints without end in C": Harm(
        "import ctypes\nputs = ctypes.CDLL(None).puts\nwhile True:\n    puts(b'x' * 1000)",
        "OutputLimit",
        "1 MB",
        limits=QUIET,
    ),
    "never comes back from C": Harm(
        "import ctypes\nlibc = ctypes.CDLL(None)\n"
        "libc.qsort(b'ab', 2, 1, ctypes.cast(libc.puts, ctypes.c_void_p))\n"
        "libc.dprintf(1, b'%2000000d', 1)\nlibc.pause()",
        "OutputLimit",
        "1 MB",
        6,
        QUIET,
    ),
    "lets a child print": Harm(
        "import subprocess\nsubprocess.run(['yes'])", "OutputLimit", "1 MB", 3, QUIET
    ),
    "writes a long file": Harm(
        "import time\nwith open('x', 'wb') as f:\n"
        "    while True:\n        f.write(bytes(10**5))\n        time.sleep(0.01)",
        "OutputLimit",
        WROTE,
        limits=QUIET,
    ),
    "writes many files": Harm(
        "import itertools, os, time\nos.mkdir('x')\n"
        "for n in itertools.count():\n    open(f'x/{n}', 'w').close()\n    time.sleep(0.001)",
        "OutputLimit",
        WROTE,
        limits=QUIET,
    ),
    "writes a file without a name": Harm(
        "import tempfile, time\nf = tempfile.TemporaryFile()\n"
        "while True:\n    f.write(bytes(10**5))\n    time.sleep(0.01)",
        "OutputLimit",
        WROTE,
        limits=QUIET,
    ),
    "shows without end": Harm(
        "while True:\n    display('x')", "OutputLimit", "501 figures.* has room for 500", 3
    ),
    "opens 10,000 figures": Harm(
        "import matplotlib.pyplot as plt, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "for _ in range(10_000):\n    plt.figure().add_artist(plt.Line2D([0, 1], [0, 1]))",
        "OutputLimit",
        "501 figures",
        5,
    ),
}

NO = "writes only into its working directory.*"

PARENT = "import os, resource\nparent = os.getppid()\n"

REACHES = {
    "limits its guard": Harm(
        PARENT + "resource.prlimit(parent, resource.RLIMIT_NOFILE, (5, 5))",
        "PermissionError",
        "not permitted",
        4,
    ),
    "ties its guard to a processor": Harm(
        PARENT + "os.sched_setaffinity(parent, os.sched_getaffinity(0))",
        "PermissionError",
        "not permitted",
        4,
    ),
    "slows its guard down": Harm(
        PARENT + "os.setpriority(os.PRIO_PROCESS, parent, 19)",
        "PermissionError",
        "not permitted",
        4,
    ),
    "slows all processes of a user down": Harm(  # one that has none
        "import os\nos.setpriority(os.PRIO_USER, 2**31 - 9, 19)",
        "PermissionError",
        "not permitted",
        3,
    ),
    "makes memory that has no file": Harm(
        "import ctypes\nassert ctypes.CDLL(None).shmget(0, 4096, 0o1600) != -1",
        "AssertionError",
        "",
        3,
    ),
    "writes beside its source": Harm(
        "from pathlib import Path\nPath(__file__).with_name('x').write_text('x')",
        "PermissionError",
        NO + "papers/x",
        3,
    ),
    "changes its source": Harm("open(__file__, 'a')", "PermissionError", NO + "bad.py", 2),
    "removes its source": Harm(
        "import os\nos.remove(__file__)", "PermissionError", NO + "bad.py", 3
    ),
    "moves its source": Harm(
        "import os\nos.rename(__file__, 'x')", "PermissionError", NO + "bad.py", 3
    ),
    "writes through a link": Harm(
        "import os\nos.symlink(__file__, 'x')\nopen('x', 'w')", "PermissionError", NO, 4
    ),
    "writes beside its source in a child": Harm(
        "import subprocess\nsubprocess.run(['cp', __file__, __file__ + '.py'], check=True)",
        "CalledProcessError",
        "cp.*status 1",
        3,
    ),
    "removes its source in a child": Harm(
        "import subprocess\nsubprocess.run(['rm', '-f', __file__], check=True)",
        "CalledProcessError",
        "rm.*status 1",
        3,
    ),
    "truncates its source in C": Harm(
        "import ctypes\nassert ctypes.CDLL(None).truncate(__file__.encode(), 0) == 0",
        "AssertionError",
        "",
        3,
    ),
    "kills its guard": Harm(
        "import os\nos.kill(os.getppid(), 9)", "PermissionError", "not permitted", 3
    ),
    "kills the group of its guard": Harm(
        "import os\nos.killpg(os.getpgid(os.getppid()), 9)", "PermissionError", "not permitted", 3
    ),
}

FINE = {
    "writes and leaves files": Harm(
        "import os, tempfile\nopen('x', 'w').close()\nopen(tempfile.mkstemp()[1]).close()\n"
        "os.mkdir('y')\nos.rename('x', 'y/x')\nos.chmod('y', 0)\nos.chmod('.', 0)"
    ),
    "makes deep folders": Harm(
        "import os\nfor _ in range(1200):\n    os.mkdir('d')\n    os.chdir('d')\n"
        "os.symlink('/', 'x')\nos.chmod('.', 0)"
    ),
    "uses devices": Harm(
        "import subprocess\nfrom multiprocessing import get_context, shared_memory\n"
        "subprocess.run('echo > /dev/null', shell=True, check=True)\n"
        "memory = shared_memory.SharedMemory(create=True, size=2 * 10**6)\nmemory.unlink()\n"
        "with get_context('fork').Pool(1) as pool:\n    assert pool.map(abs, [-1]) == [1]",
        limits=QUIET,
    ),
    "limits itself and its child": Harm(
        "import os, resource, subprocess\n"
        "child = subprocess.Popen(['sleep', '99'])\n"
        "for process in (0, os.getpid(), child.pid):\n"
        "    resource.prlimit(process, resource.RLIMIT_CORE, (0, 0))\n"
        "    os.sched_setaffinity(process, os.sched_getaffinity(0))\n"
        "    os.setpriority(os.PRIO_PROCESS, process, 5)"
    ),
    "starts many orphans, a few at a time": Harm(
        "import os, subprocess, time\n"
        "adopted = f'/proc/{os.getppid()}/task/{os.getppid()}/children'\n"
        "for _ in range(30):\n"
        "    subprocess.run(['sh', '-c', 'for n in 1 2 3 4 5 6 7 8 9 10; do (:) & done'])\n"
        "    while len(open(adopted).read().split()) > 100:\n        time.sleep(0.01)"
    ),
    "calls itself something that is no text": Harm(
        "import ctypes, time\nctypes.CDLL(None).prctl(15, b'\\xff', 0, 0, 0)\ntime.sleep(0.3)"
    ),
    "closes its streams": Harm("import sys\nsys.stdout.close()\nsys.stderr.close()\nprint('x')"),
    "changes everything": Harm(
        "import os, random, warnings\nimport matplotlib as mpl, numpy as np, torch\n"
        "os.chdir('/')\nos.environ['HOME'] = os.environ['LEFT'] = 'x'\nos.umask(0)\n"
        "torch.manual_seed(1); np.random.seed(1); random.seed(1)\nos.nice(5)\n"
        "mpl.rcParams['lines.linewidth'] = 9\ntorch.set_default_dtype(torch.float64)\n"
        "torch.use_deterministic_algorithms(True)\nwarnings.simplefilter('error')"
    ),
    "leaves children": Harm(
        "import os, subprocess, time\n"
        "subprocess.Popen(['sleep', '99'])\n"
        "subprocess.Popen(['sleep', '99'], start_new_session=True, cwd='/', env={})\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(99)\n"
        "    os._exit(0)"
    ),
}


def lines(harm: Harm, result: Result, root: Path) -> Iterator[int]:
    """Where it was; if a limit ended it, also where it is with more time.

    What a slow machine ends has perhaps not come to its line, or cannot tell in time.
    """
    assert result.error is not None
    yield result.error.line
    for times in (8, 64) if harm.reason.endswith("Limit") else ():
        limits = harm.limits
        more = {"timeout": limits.timeout * times, "cpu_time": limits.cpu_time * times}
        error = run(root, harm.code, limits=limits.with_those_of(more)).error
        yield error.line if error else 0


@pytest.mark.parametrize("name", [*ENDS, *LIMITS, *REACHES, *FINE])
def test_only_its_own_page_is_harmed(
    name: str, root: Path, place: Path, tmp_path: Path, alone: str
) -> None:
    harm = {**ENDS, **LIMITS, **REACHES, **FINE}[name]
    write(root, bad=demo(harm.code), beside=GOOD, later=GOOD)
    jobs = [Job(root / "bad.py", root, limits=harm.limits)]
    jobs += [Job(root / f"{page}.py", root) for page in ("beside", "later")]
    before = {path.name: path.read_bytes() for path in root.iterdir()}
    bad, *good = (ran.result for ran in run_all(jobs, store=Store(tmp_path / "store"), workers=2))
    assert [content(result) for result in good] == [alone, alone]
    assert {path.name: path.read_bytes() for path in root.iterdir()} == before
    assert is_clean(place)
    assert bad.ok == (not harm.reason), bad.error
    if bad.error:
        assert bad.error.type == harm.reason
        assert re.search(harm.says, bad.error.message, re.DOTALL), bad.error.message
        assert not harm.line or harm.line in lines(harm, bad, root)
    assert bad.peak_mb < 2500


def test_a_crash_inside_a_function_has_its_frames(root: Path) -> None:
    write(root, page="import ctypes\n\n\ndef f():\n    ctypes.string_at(0)\n" + demo("f()"))
    error = run_isolated(Job(root / "page.py", root)).error
    assert error is not None
    assert error.frames[-2:] == [
        {"line": 7, "function": "demo", "text": "f()"},
        {"line": 5, "function": "f", "text": "ctypes.string_at(0)"},
    ]


def test_what_a_demo_raises_itself_is_no_limit(root: Path) -> None:
    for error in ("MemoryError('mine')", 'RuntimeError("can\'t allocate memory")'):
        failure = run(root, f"raise {error}").error
        assert failure is not None
        assert error.startswith(failure.type)


# The limit to output ends it as soon as somebody looks, and not before.
FLOODS = "open('x', 'wb').write(bytes(2 * 10**6)); time.sleep(1000)"


def test_shared_memory_counts_once(root: Path) -> None:
    """What a demo has, its forked children have as well: three times 200 MB, and yet no 600.

    Who looks at its output has looked at its memory before.
    """
    shares = f"""
        import os, time
        x = b"x" * 200 * 2**20
        if os.fork() == 0 or os.fork() == 0:
            time.sleep(1000)
        {FLOODS}
    """
    error = run(root, shares, limits=replace(QUIET, memory=500)).error
    assert error is not None
    assert error.type == "OutputLimit"


SHARED = {
    "a file": "open(path, 'w').close()",
    "a folder": "os.mkdir(path)\nopen(path + '/x', 'w').close()",
    "memory": "SharedMemory(path[9:], create=True, size=9).close()",
    "memory when it is killed": f"x = SharedMemory(path[9:], create=True, size=9)\n{FLOODS}",
    "memory in C": "ctypes.CDLL(None).shm_open(path[8:].encode(), os.O_CREAT | os.O_RDWR, 0o600)",
    "a file of a child": "Popen(f'exec 3> {path}; sleep 99', shell=True)\n"
    "while not os.path.exists(path):\n    time.sleep(0.01)",
}
SHARES = """
import ctypes, os, time
from multiprocessing.shared_memory import SharedMemory
from subprocess import Popen
path = {path!r}
"""


@pytest.mark.parametrize("what", SHARED)
def test_shared_memory_goes_with_its_demo(what: str, root: Path) -> None:
    path, killed = Path("/dev/shm", f"marginalia-{os.getpid()}"), "killed" in what
    code = SHARES.format(path=str(path)) + SHARED[what]
    error = run(root, code, limits=QUIET).error
    assert not path.exists()
    assert (error.type if error else "") == ("OutputLimit" if killed else "")


def test_what_tensors_share_goes_with_their_demo(root: Path) -> None:
    shares = """
        import torch
        x = torch.zeros(9)
        print(x.untyped_storage()._share_filename_cpu_()[1].decode())
    """
    path = Path("/dev/shm" + printed(run(root, shares)))
    assert path.name.startswith("torch_")
    assert not path.exists()


def test_shared_memory_of_others_stays(root: Path, gate: Path) -> None:
    """New as it is, and open in the demo: only to read."""
    path = Path("/dev/shm", f"marginalia-{os.getpid()}")
    reads = f"""
        import os
        open({str(gate)!r}).read()
        print(os.read(os.open({str(path)!r}, os.O_RDONLY), 9).decode())
    """
    with ThreadPoolExecutor() as threads:
        ran = threads.submit(run, root, reads)
        with waiting_at(gate):
            path.write_text("of others")
        try:
            assert printed(ran.result()) == "of others"
            assert path.exists()
        finally:
            path.unlink()


def test_no_limit_is_a_limit_as_well(root: Path) -> None:
    assert printed(run(root, "print(1)", limits=Limits(*[float("inf")] * 4))) == "1"


# Children


KIN = """
import os, subprocess, time
subprocess.Popen(["sleep", "1000"])
subprocess.Popen(["sleep", "1000"], start_new_session=True, cwd="/", env={{}})
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:  # an orphan in a session of its own
        time.sleep(1000)
    os._exit(0)
open("started", "w").close()
open({gate!r}).read()  # waits until somebody has written
{end}
"""


def started(place: Path) -> list[int]:
    """The guard, the demo and the three that it started, when all of them run."""
    assert wait_for(lambda: list(place.glob("*/work/started")))
    isolation._server.dismiss()
    server = isolation._server._process
    assert server is not None

    def running() -> list[int]:
        return [pid for pid in usage.descendants(server.pid) if alive(pid)]

    assert wait_for(lambda: len(running()) == 5)
    return running()


@pytest.mark.parametrize("end", ["pass", FLOODS, "os._exit(1)", "os.abort()"])
def test_nothing_stays_behind(root: Path, place: Path, gate: Path, end: str) -> None:
    with ThreadPoolExecutor() as threads:
        ran = threads.submit(run, root, KIN.format(gate=str(gate), end=end), limits=QUIET)
        with waiting_at(gate):
            _, *kin = started(place)
        ran.result()
    assert [pid for pid in kin if alive(pid)] == []
    assert is_clean(place)


def test_a_guard_that_is_killed_is_a_lost_page(root: Path, place: Path, gate: Path) -> None:
    with ThreadPoolExecutor() as threads:
        ran = threads.submit(run, root, KIN.format(gate=str(gate), end="pass"))
        guard, *kin = started(place)
        os.kill(guard, signal.SIGKILL)
        error = ran.result().error
    assert [pid for pid in kin if alive(pid)] == []  # or they might still write
    assert list(place.glob("marginalia-*")) == []
    assert error is not None
    assert (error.type, error.line) == ("Lost", 0)
    assert printed(run(root, "print('well')")) == "well"


def test_a_signal_to_all_reaches_nobody_else(root: Path) -> None:
    """With a signal that nobody minds."""
    got: list[int] = []
    old = signal.signal(signal.SIGURG, lambda number, _: got.append(number))
    try:
        run(root, "import os, signal\nos.kill(-1, signal.SIGURG)")
        run(root, "import os, signal\nos.kill(os.getppid(), signal.SIGURG)")
    finally:
        signal.signal(signal.SIGURG, old)
    assert got == []


CHAIN = """
import os, subprocess, sys, time
from marginalia import sandbox, usage, worker

beside = subprocess.Popen(["sleep", "1000"])
if own := os.fork():
    os.waitpid(own, 0)
    print("beside" if beside.poll() is None else "nothing beside")
    beside.kill()
    sys.exit()
sandbox.prctl(worker._SUBREAPER, 1)
enclosed = sys.argv[1] == "at once" and sandbox.enclose()
end = time.monotonic() + 120
if os.fork() == 0:
    while time.monotonic() < end:
        if os.fork():  # the child goes on
            os._exit(0)
        os.setsid()
    os._exit(0)
while len(usage.descendants(os.getpid())) < 20:
    pass
usage.end(os.getpid(), enclosed=enclosed)
print("late" if time.monotonic() > end else "ended", flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("how", ["at once", "one by one"])
def test_processes_that_leave_each_other_are_ended(how: str) -> None:
    command = [sys.executable, "-c", CHAIN, how]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ended", "beside"]


# Where a build starts


STARTED = """
import sys
from pathlib import Path
from marginalia import isolation
from marginalia.jobs import Job
from marginalia.runner import run_isolated

if __name__ == "__main__":
    result = run_isolated(Job(Path(sys.argv[1]), Path(sys.argv[1]).parent))
    print(result.ok, isolation._server.usable)
"""


def test_demos_are_forked_where_there_is_no_standard_error(root: Path) -> None:
    write(root, page=demo("import sys\nprint('x', file=sys.stderr)"))
    command = '"$0" -c "$1" "$2" 2>&-'
    arguments: list[Any] = [sys.executable, STARTED, root / "page.py"]
    done = subprocess.run(
        ["sh", "-c", command, *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    assert done.stdout.split() == ["True", "True"]


def test_no_fonts_are_left_where_no_cache_can_be(root: Path, tmp_path: Path) -> None:
    write(root, page=demo("import matplotlib.pyplot as plt\nplt.plot([1, 2])"))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "XDG_CACHE_HOME": "/dev/null", "TMPDIR": str(temporary)}
    arguments: list[Any] = [sys.executable, "-c", STARTED, root / "page.py"]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]
    assert list(temporary.glob("matplotlib-*")) == []
    assert list(temporary.glob("marginalia.*/matplotlib-*/fontlist*"))


# The network


@pytest.fixture
def port() -> Iterator[int]:
    """A server on this machine that greets whoever connects."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nhello")
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(1000)

        thread = threading.Thread(target=greet)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


SOCKET = "import socket; assert socket.create_connection(('127.0.0.1', {port})).recv(99)"
NETWORK = {
    "socket": (SOCKET, "PermissionError", "`network: true` in the front matter"),
    "name": ("import socket\nsocket.getaddrinfo('localhost', 80)", "PermissionError", "network"),
    "urllib": (
        "from urllib.request import urlopen\n"
        "assert urlopen('http://127.0.0.1:{port}').read() == b'hello'",
        "URLError",
        "`network: true` in the front matter",
    ),
    "child": (
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {SOCKET!r}], check=True)",
        "CalledProcessError",
        "status 1",
    ),
    "C": (
        "import ctypes, socket\n"
        "assert ctypes.CDLL(None).socket(socket.AF_INET, socket.SOCK_STREAM, 0) != -1",
        "AssertionError",
        "",
    ),
}


@pytest.mark.parametrize("way", NETWORK)
def test_the_network_is_there_if_a_page_asks_for_it(root: Path, port: int, way: str) -> None:
    code, kind, says = NETWORK[way]
    code = code.format(port=port)
    allowed = run(root, code, network=True)
    assert allowed.ok, allowed.error
    refused = run(root, code)
    assert refused.error is not None
    assert refused.error.type == kind
    assert says in refused.error.message


def test_sockets_that_stay_on_the_machine_are_no_network(root: Path) -> None:
    talks = """
        import asyncio, socket
        left, right = socket.socketpair()
        left.send(b"here")
        assert right.recv(4) == b"here"
        asyncio.run(asyncio.sleep(0))
    """
    result = run(root, talks)
    assert result.ok, result.error


# Less of a kernel


CONFINED = """
import os, socket, sys
from pathlib import Path
from marginalia import sandbox

sandbox._landlock = lambda *_: 0  # as on a kernel that has none
sandbox.confine(Path(sys.argv[1]), network=False, tell=print)
parent = os.getppid()
for kill in (os.kill, os.killpg):
    for process in (parent, os.getpid()):
        try:
            kill(process, 0)
            print("killed")
        except PermissionError:
            print("refused")
        except ProcessLookupError:
            print("none")
"""


def test_seccomp_keeps_signals_in_where_landlock_does_not(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CONFINED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["refused", "killed", "refused", "none"]


@pytest.mark.parametrize("name", ["allocates one block", "lets a child print", "exits", "crashes"])
def test_limits_hold_in_a_fresh_interpreter(
    name: str, root: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation._server, "usable", False)
    harm = {**ENDS, **LIMITS}[name]
    harm = replace(harm, limits=Limits(timeout=60, memory=1000, output=1))
    result = run(root, harm.code, limits=harm.limits)
    assert result.error is not None
    assert result.error.type == harm.reason
    assert not harm.line or harm.line in lines(harm, result, root)
    assert is_clean(place)


def test_a_fresh_interpreter_has_no_network(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation._server, "usable", False)
    error = run(root, "import socket\nsocket.socket()").error
    assert error is not None
    assert "network: true" in error.message


# A build


PIPES: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 300}


def paper(front: str, code: str) -> str:
    return f'"""\n---\n{front}\n---\nA page.\n"""\n\n\n{demo(code)}'


def test_a_build_lists_all_that_failed_and_has_the_rest(
    root: Path, port: int, tmp_path: Path
) -> None:
    pages: dict[str, tuple[str, str, str]] = {
        "asks": ("title: x", SOCKET.format(port=port), r"\b10: PermissionError: .*network: true"),
        "burns": ("cpu_time: 0.5", "while True:\n    pass", "CpuLimit: .*limit is 0.5 s"),
        "crashes": ("title: x", ENDS["crashes"].code, r"\b11: Crash: .*SIGSEGV"),
        "exits": ("title: x", ENDS["exits"].code, "Exit: .*status 3"),
        "fills": ("memory: 400", LIMITS["allocates much"].code, "MemoryLimit: .*limit is 400 MB"),
        "floods": ("title: x", LIMITS["lets a child print"].code, "OutputLimit: .*limit is 1 MB"),
        "good": ("title: x", "print('hello')", ""),
        "hangs": ("timeout: 0.5", LIMITS["hangs"].code, r"TimeLimit: .*after 0.5 s"),
        "talks": ("network: true", SOCKET.format(port=port), ""),
        "writes": ("title: x", "open(__file__, 'a')", r"\b10: PermissionError: .*writes only"),
    }
    for name, (front, code, _) in pages.items():
        (root / f"{name}.py").write_text(paper(front, code))
    site = tmp_path / "site"
    command: list[Any] = [sys.executable, "-m", "marginalia", "build", root, "-o", site]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run([*command, "--output", "1"], env=environment, **PIPES)
    assert done.returncode == 1, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    reasons = {name: reason for name, (_, _, reason) in pages.items() if reason}
    assert len(said) == len(reasons)
    for (name, reason), line in zip(sorted(reasons.items()), said, strict=True):
        assert re.search(rf"{name}\.py.*{reason}", line), line
    assert {path.parent.name for path in site.glob("*/index.html")} >= set(pages)
    assert "hello" in (site / "good" / "index.html").read_text("utf-8")


def test_a_page_s_own_limit_comes_before_that_of_the_command(root: Path) -> None:
    (root / "site.py").write_text(paper("title: x", "print('x' * 20_000)"))
    (root / "own.py").write_text(paper("output: 1", "print('x' * 20_000)"))
    command = [sys.executable, "-m", "marginalia", "check", str(root), "--output", "0.01"]
    done = subprocess.run(command, **PIPES)
    assert done.returncode == 1, done.stderr
    assert re.search(r"^ok +.*own\.py", done.stdout, re.MULTILINE)
    assert re.search(r"site\.py.*OutputLimit: .* limit is 0\.01 MB", done.stdout)
