"""Demos run in processes of their own, when their inputs changed and only then. Real ones."""

from __future__ import annotations

import os
import py_compile
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from demos import HELLO, alive, content, demo, printed, run, statuses, wait_for, waiting_at, write
from marginalia import isolation, preload
from marginalia.demo import Result
from marginalia.jobs import Job, Plan, Progress, Ran, key
from marginalia.limits import Limits
from marginalia.runner import run_all, run_isolated
from marginalia.store import Store


def build(root: Path, store: Store, *names: str, workers: int = 2, **options: Any) -> list[Ran]:
    pages = sorted(root.glob("*.py")) if not names else [root / f"{name}.py" for name in names]
    return run_all([Job(page, root) for page in pages], store=store, workers=workers, **options)


# What runs again


PAGE = '''
"""A page."""

import torch
import warnings


def double(x):
    """Twice as much."""
    # The sum, not the product.
    y = x + x
    return y


def demo():
    """Everything that has a line number."""
    x = torch.ones(2, 3)
    print("first")

    # Prose.
    assert double(x).shape == (
        2,
        3,
    )  # Table 1
    warnings.warn("careful")
    print("last")
'''


def moved(text: str) -> str:
    """The same code among other prose: every line number changes."""
    text = text.replace('"""A page."""', '"""A page.\n\nWith more prose.\n"""\n# And a comment.')
    text = text.replace("# The sum, not the product.", "# The\n    # sum.\n")
    text = text.replace("    # Prose.\n", "")
    return text.replace("# Table 1", "# Table 2, as corrected")


def test_a_page_runs_once(root: Path, store: Store) -> None:
    write(root, a=HELLO, b=PAGE)
    first = build(root, store)
    second = build(root, store)
    assert statuses(first) == {"a": "ran", "b": "ran"}
    assert statuses(second) == {"a": "cached", "b": "cached"}
    assert [ran.result for ran in first] == [ran.result for ran in second]
    assert [ran.job for ran in first] == [ran.job for ran in second]


def test_prose_runs_nothing_and_the_result_is_that_of_a_run(root: Path, store: Store) -> None:
    write(root, page=PAGE)
    (before,) = build(root, store)
    write(root, page=moved(PAGE))
    (kept,) = build(root, store)
    fresh = run_isolated(kept.job)
    assert kept.status == "cached"
    assert kept.result.outputs
    assert kept.result.shapes
    assert kept.result.claims[0].source == "Table 2, as corrected"
    assert content(kept.result) == content(fresh)
    assert content(kept.result) != content(before.result)


def test_a_helper_runs_exactly_the_pages_that_reach_it(root: Path, store: Store) -> None:
    write(root, helper="def f():\n    return 1\n", middle="from helper import f\n")
    write(
        root,
        direct=f"import helper\n\n\n{demo('print(helper.f())')}",
        indirect=f"import middle\n\n\n{demo('print(middle.f())')}",
        inside=demo("from helper import f\nprint(f())"),
        other=HELLO,
    )
    names = ("direct", "indirect", "inside", "other")
    build(root, store, *names)
    write(root, helper="# Why two.\ndef f():\n    return 1\n", unrelated="x = 1\n")
    assert set(statuses(build(root, store, *names)).values()) == {"cached"}
    write(root, helper="def f():\n    return 2\n")
    rans = build(root, store, *names)
    users = {"direct": "ran", "indirect": "ran", "inside": "ran", "other": "cached"}
    assert statuses(rans) == users
    assert [printed(ran.result) for ran in rans] == ["2", "2", "2", "hello"]


def test_a_data_file_is_an_input(root: Path, store: Store) -> None:
    data = root / "data.csv"
    data.write_text("1")
    reads = "from pathlib import Path\nprint(Path(__file__).with_name('data.csv').read_text())"
    write(root, page=demo(reads), other=HELLO)
    build(root, store)
    assert statuses(build(root, store)) == {"page": "cached", "other": "cached"}
    data.write_text("2")
    rans = build(root, store)
    assert statuses(rans) == {"page": "ran", "other": "cached"}
    assert printed(rans[1].result) == "2"
    data.unlink()
    assert statuses(build(root, store)) == {"page": "failed", "other": "cached"}


HERE = "from pathlib import Path\nhere = Path(__file__).parent\n"


@pytest.mark.parametrize(
    ("code", "changed"),
    [
        ("print((here.parent / 'beside.txt').read_text())", "../beside.txt"),
        ("print(sorted(p.name for p in here.glob('*.txt')))", "new.txt"),
        ("import os; print(os.listdir(here / 'folder'))", "folder/new.txt"),
        ("try:\n    print((here / 'new.txt').read_text())\nexcept OSError:\n    pass", "new.txt"),
        ("import sqlite3; sqlite3.connect(here / 'data.db').execute('select 1')", "data.db"),
        ("print((here / 'helper.py').read_text())", "helper.py"),
        ("import helper, inspect; print(inspect.getsource(helper))", "helper.py"),
        ("import runpy; runpy.run_path(here / 'helper.py')", "helper.py"),
        ("print((here.resolve() / 'beside.txt').read_text())", "beside.txt"),
    ],
)
def test_whatever_a_demo_reads_is_an_input(
    root: Path, store: Store, code: str, changed: str
) -> None:
    for name in ("folder/data.txt", "../beside.txt", "beside.txt", "data.db"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("")
    linked = root.parent / "linked"
    linked.symlink_to(root)
    write(root, helper="# Nothing.\n", page=demo(HERE + code))
    build(linked, store, "page")
    (root.parent / "unread.txt").write_text("")
    assert statuses(build(linked, store, "page")) == {"page": "cached"}
    (root / changed).write_text("# Something else.\n")
    assert statuses(build(linked, store, "page"))["page"] != "cached"


def test_a_file_that_changes_while_it_is_used_is_read_again(
    root: Path, store: Store, gate: Path
) -> None:
    data = root / "data.txt"
    data.write_text("first")
    reads = f"print((here / 'data.txt').read_text())\nopen({str(gate)!r}).read()"
    write(root, page=demo(HERE + reads))
    with ThreadPoolExecutor() as threads:
        for before, after in (("first", "second"), ("second", "second")):
            rans = threads.submit(build, root, store, "page")
            with waiting_at(gate):
                data.write_text(after)
            assert printed(rans.result()[0].result) == before


def test_byte_code_of_a_local_module_is_not_believed(root: Path, store: Store) -> None:
    """It names the second and the size of its source, which another source may share."""
    write(root, helper="x = 1\n", page=f"import helper\n\n\n{demo('print(helper.x)')}")
    py_compile.compile(str(root / "helper.py"))
    date = (root / "helper.py").stat().st_mtime
    write(root, helper="x = 2\n")
    os.utime(root / "helper.py", (date, date))
    (ran,) = build(root, store, "page")
    assert printed(ran.result) == "2"


def test_half_a_character_is_replaced(root: Path) -> None:
    """Python makes one of a byte in a file's name that is no text."""
    shown = "class Half:\n    _repr_html_ = lambda self: '<b>a\\udcff😀</b>'\ndisplay(Half())"
    result = run(root, f"{shown}\nraise ValueError('b\\udcff')")
    assert result.outputs[0].data["text/html"] == "<b>a\N{REPLACEMENT CHARACTER}😀</b>"
    assert result.error is not None
    assert result.error.message == "b\N{REPLACEMENT CHARACTER}"


def test_a_module_imported_by_a_computed_name_is_an_input(root: Path, store: Store) -> None:
    write(
        root,
        page=demo("import importlib\nprint(importlib.import_module('hid' + 'den').x)"),
        hidden="x = 1\n",
    )
    build(root, store, "page")
    assert statuses(build(root, store, "page")) == {"page": "cached"}
    write(root, hidden="x = 2\n")
    (ran,) = build(root, store, "page")
    assert printed(ran.result) == "2"


def test_failures_are_never_kept(root: Path, store: Store) -> None:
    write(root, page=demo("assert 1 + 1 == 3"))
    for _ in range(2):
        (ran,) = build(root, store)
        assert ran.status == "failed"
        assert ran.result.error is not None
        assert (ran.result.error.type, ran.result.error.line) == ("AssertionError", 2)


def test_what_changes_while_it_runs_is_not_kept(root: Path, store: Store, gate: Path) -> None:
    write(root, page=f"import helper\n{demo(f'open({str(gate)!r}).read()')}", helper="x = 1\n")
    with ThreadPoolExecutor() as threads:
        for new in ("x = 2\n", "x = 1\n"):
            rans = threads.submit(build, root, store, "page")
            with waiting_at(gate):
                write(root, helper=new)
            assert statuses(rans.result()) == {"page": "ran"}


def test_a_damaged_store_runs_again(root: Path, store: Store) -> None:
    write(root, a=HELLO, b=PAGE)
    first = build(root, store)
    for path in store.folder.rglob("*.json"):
        path.write_bytes(path.read_bytes()[:-20])
    second = build(root, store)
    assert statuses(second) == {"a": "ran", "b": "ran"}
    assert [content(ran.result) for ran in first] == [content(ran.result) for ran in second]
    assert statuses(build(root, store)) == {"a": "cached", "b": "cached"}


def test_options_have_keys_of_their_own(root: Path) -> None:
    write(root, page=HELLO)
    page = root / "page.py"
    base = key(Job(page, root))
    assert key(Job(page, root, limits=Limits(timeout=1))) == base
    assert key(Job(page, root, network=True)) != base
    assert key(Job(page, root, seed=1)) != base
    assert key(Job(page, root, shapes=False)) != base


# Many


def test_one_worker_or_two_give_the_same(root: Path, tmp_path: Path) -> None:
    random = "import torch\nprint(torch.rand(2), hash('x'), set('abcdef'))"
    write(root, a=PAGE, b=demo(random), c=demo("1 / 0"), d=demo("import os\nos._exit(1)"))
    one, two = (build(root, Store(tmp_path / str(n)), workers=n) for n in (1, 2))
    assert [content(ran.result) for ran in one] == [content(ran.result) for ran in two]
    assert [ran.status for ran in one] == ["ran", "ran", "failed", "failed"]


class Heard(Progress):
    """Everything that a reporter is told, in words."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def planned(self, plan: Plan) -> None:
        waiting = " ".join(sorted(job.path.stem for job in plan.waiting))
        done = f"{len(plan.done)} done"
        self.words.append(f"planned: {done}, {waiting} waiting, {plan.workers} workers")

    def started(self, job: Job) -> None:
        self.words.append(f"{job.path.stem} started")

    def sent(self, job: Job) -> None:
        self.words.append(f"{job.path.stem} sent")

    def finished(self, ran: Ran) -> None:
        self.words.append(f"{ran.job.path.stem} {ran.status}")


def test_progress_hears_of_every_job(root: Path, store: Store) -> None:
    write(root, a=HELLO, b=HELLO, c=demo("1 / 0"))
    build(root, store, "a")
    heard = Heard()
    build(root, store, progress=heard)
    assert heard.words[0] == "planned: 1 done, b c waiting, 2 workers"
    assert set(heard.words[1:]) == {"b started", "b ran", "c started", "c failed"}
    for name, end in (("b", "ran"), ("c", "failed")):
        assert heard.words.index(f"{name} started") < heard.words.index(f"{name} {end}")


@pytest.mark.parametrize("half", ["", "def demo():\n    print('ha')\n"])
def test_a_page_runs_as_it_was_read_or_not_at_all(root: Path, store: Store, half: str) -> None:
    """An editor empties a file before it writes it, and a demo may start just then."""

    class Editor(Progress):
        def started(self, job: Job) -> None:
            job.path.write_text(half)

    write(root, a=HELLO)
    (ran,) = build(root, store, progress=Editor())
    assert ran.result.error
    assert ran.result.error.type == "Changed"
    write(root, a=HELLO)
    (ran,) = build(root, store)
    assert ran.status == "ran"


def test_progress_hears_what_is_sent_to_an_executor(root: Path, store: Store) -> None:
    write(root, a=HELLO)
    heard = Heard()
    with ThreadPoolExecutor(1) as threads:
        build(root, store, progress=heard, executor=threads)
    assert heard.words == ["planned: 0 done, a waiting, None workers", "a sent", "a ran"]


class Measured(Executor):
    """Says how long each demo took, and runs none."""

    def __init__(self, **seconds: float) -> None:
        self._seconds = seconds

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(Result(True, seconds=self._seconds[args[0].path.stem]))
        return future


def test_the_longest_starts_first(root: Path, store: Store) -> None:
    write(root, a=HELLO, b=HELLO)
    build(root, store, executor=Measured(a=1, b=2))
    for page in root.glob("*.py"):
        page.write_text(page.read_text() + "\nx = 1\n")
    heard = Heard()
    build(root, store, workers=1, progress=heard)
    assert [word for word in heard.words if "started" in word] == ["b started", "a started"]


def test_the_server_may_be_killed(root: Path, store: Store, gate: Path) -> None:
    write(root, a=demo(f"open({str(gate)!r}).read()\nprint('well')"), b=HELLO, c=HELLO)
    with ThreadPoolExecutor() as threads:
        rans = threads.submit(build, root, store, workers=1)
        with waiting_at(gate):
            assert isolation._server._process is not None
            isolation._server._process.kill()
        assert [printed(ran.result) for ran in rans.result()] == ["well", "hello", "hello"]


def test_two_builds_at_once(root: Path, store: Store) -> None:
    write(root, a=PAGE, b=HELLO, c=demo("print(1)"))
    with ThreadPoolExecutor(2) as threads:
        builds = list(threads.map(lambda _: build(root, Store(store.folder)), range(2)))
    for rans in builds:
        assert all(ran.result.ok for ran in rans)
    assert set(statuses(build(root, store)).values()) == {"cached"}


def test_no_jobs(store: Store) -> None:
    assert run_all([], store=store, workers=2) == []


@pytest.fixture(params=["threads", "processes"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with (
        ThreadPoolExecutor(2)
        if request.param == "threads"
        else ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool
    ):
        yield pool


def test_any_executor(root: Path, tmp_path: Path, executor: Executor) -> None:
    write(root, a=PAGE, b=demo("import os\nos._exit(1)"))
    ours = build(root, Store(tmp_path / "ours"))
    theirs = build(root, Store(tmp_path / "theirs"), executor=executor)
    assert [content(ran.result) for ran in ours] == [content(ran.result) for ran in theirs]
    assert [ran.status for ran in theirs] == ["ran", "failed"]


class Breaks(Executor):
    """Loses what it is given, as a cluster does whose workers die."""

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(ConnectionError("the worker is gone"))
        return future


def test_a_job_that_an_executor_loses_is_a_failed_page(root: Path, store: Store) -> None:
    write(root, page=HELLO)
    (ran,) = build(root, store, executor=Breaks())
    assert ran.status == "failed"
    assert ran.result.error is not None
    assert ran.result.error.message == "the worker is gone"


# What a demo finds


def test_a_demo_starts_warm_and_alone(root: Path) -> None:
    """Torch is there, with one thread; nothing of the project, nothing of the builder."""
    write(root, helper="print('imported')\n")
    finds = """
        import sys, os
        print("torch" in sys.modules, "matplotlib.pyplot" in sys.modules, "helper" in sys.modules)
        print(len(os.listdir("/proc/self/task")), "pytest" in sys.modules, sys.argv == [__file__])
        import torch
        print(torch.get_num_threads(), torch.cuda.is_initialized(), os.listdir())
    """
    found = printed(run(root, finds)).split()
    assert found == ["True", "True", "False", "1", "False", "True", "1", "False", "[]"]


def test_a_demo_may_start_processes(root: Path) -> None:
    starts = """
        import multiprocessing, subprocess, sys
        with multiprocessing.get_context("fork").Pool(1) as pool:
            print(pool.map(abs, [-1]))
        print(subprocess.run(["false"]).returncode)
    """
    assert printed(run(root, starts)).split() == ["[1]", "1"]


def test_paths_may_be_relative(root: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root, helper="x = 1\n", page=f"import helper\n{HELLO}")
    write(root, crash=demo("import ctypes\nctypes.string_at(0)"))
    monkeypatch.chdir(root)
    jobs = [Job(Path(f"{name}.py"), Path()) for name in ("page", "crash")]
    ran, failed = run_all(jobs, store=store, workers=1)
    assert printed(ran.result) == "hello"
    assert failed.result.error is not None
    assert failed.result.error.line == 3
    assert key(jobs[0]) == key(Job(root / "page.py", root))


def test_demos_share_nothing(root: Path) -> None:
    leaves = """
        import builtins, os, sys, torch
        print(hasattr(builtins, "left"), os.environ.get("LEFT"), torch.get_default_dtype())
        builtins.left = os.environ["LEFT"] = "here"
        torch.set_default_dtype(torch.float64)
    """
    assert printed(run(root, leaves)) == printed(run(root, leaves)) == "False None torch.float32"


def test_a_demo_has_the_environment_of_its_builder(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is when the demo starts, though what it is forked from started before."""
    code = "import os\nprint(os.environ.get('ANSWER'))"
    assert printed(run(root, code)) == "None"
    monkeypatch.setenv("ANSWER", "42")
    assert printed(run(root, code)) == "42"


def test_a_demo_has_no_line_to_its_builder(root: Path) -> None:
    """On the one of its guard it could say anything."""
    code = """
    import os, stat
    for number in range(1000):
        try:
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                print(number)
        except OSError:
            pass
    print("over")
    """
    assert [printed(run(root, code)) for _ in range(2)] == ["over", "over"]


def test_a_builder_and_its_demos_share_nothing(root: Path, tmp_path: Path) -> None:
    """A builder without a main guard is not imported again; its environment is left as it was."""
    says = "import os\nprint(os.environ['OMP_NUM_THREADS'], __debug__, os.environ['MPLBACKEND'])"
    write(root, page=demo(says))
    write(
        tmp_path,
        builder=f"""
        print("builder")
        import os
        from pathlib import Path
        from marginalia import isolation
        from marginalia.jobs import Job
        from marginalia.runner import run_isolated

        before = dict(os.environ)
        isolation.prepare()
        root = Path({str(root)!r})
        print(run_isolated(Job(root / "page.py", root)).outputs[0].data["text/plain"])
        print(os.environ == before)
        """,
    )
    command = [sys.executable, str(tmp_path / "builder.py")]
    environment = {"PYTHONOPTIMIZE": "2", "OMP_NUM_THREADS": "2"}
    environment["XDG_CACHE_HOME"] = os.environ["XDG_CACHE_HOME"]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["builder", "1", "True", "agg", "True"]
    assert done.stderr == ""


def test_a_fresh_interpreter_gives_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on systems without fork."""
    write(root, page=PAGE, crash=demo("import ctypes\nctypes.string_at(0)"))
    jobs = [Job(root / "page.py", root), Job(root / "crash.py", root)]
    forked = [run_isolated(job) for job in jobs]
    monkeypatch.setattr(isolation._server, "usable", False)
    monkeypatch.setattr(isolation, "FRESH_START", 20.0)
    assert [content(run_isolated(job)) for job in jobs] == [content(r) for r in forked]


# Builders that end early


BUILDER = """
import sys
from pathlib import Path
from marginalia.limits import Limits
from marginalia.jobs import Job
from marginalia.runner import run_all
from marginalia.store import Store

root = Path(sys.argv[1])
jobs = [Job(page, root, limits=Limits(timeout=1000)) for page in sorted(root.glob("*.py"))]


def say(ran):
    print(ran.status, flush=True)


run_all(jobs, store=Store(Path(sys.argv[2])), workers=2, done=say)
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_build_goes_on_later(
    root: Path, tmp_path: Path, store: Store, end: signal.Signals
) -> None:
    hangs = "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(1000)"
    write(root, a=HELLO, b=demo(hangs), c=HELLO + "\nx = 1\n")
    write(tmp_path, builder=BUILDER)
    command = [sys.executable, str(tmp_path / "builder.py"), str(root), str(store.folder)]
    place = tmp_path / "place"
    place.mkdir()
    environment = {**os.environ, "TMPDIR": str(place)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as builder:
        assert builder.stdout is not None
        assert [builder.stdout.readline() for _ in range(2)] == [b"ran\n", b"ran\n"]
        assert wait_for(lambda: any(pid.read_text() for pid in place.glob("*/work/pid")))
        demo_pid = int(next(place.glob("*/work/pid")).read_text())
        assert alive(demo_pid)
        builder.send_signal(end)
        builder.communicate(timeout=60)
    assert builder.returncode != 0
    assert wait_for(lambda: not alive(demo_pid))
    assert wait_for(lambda: not list(place.glob("marginalia-*")))
    write(root, b=HELLO)
    assert statuses(build(root, store)) == {"a": "cached", "b": "ran", "c": "cached"}


INTERRUPTED = """
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from marginalia.demo import Result
from marginalia.jobs import Job
from marginalia.runner import run_all
from marginalia.store import Store


class Quick(ThreadPoolExecutor):
    def submit(self, *_):
        return super().submit(lambda: time.sleep(0.05) or Result(False))


def interrupting(moment):
    \"\"\"Work that interrupts this thread later, at the nth line of what waits for results.\"\"\"
    left = moment

    def trace(frame, event, _):
        nonlocal left
        if "/concurrent/futures/_base" not in frame.f_code.co_filename:
            return None if "/threading" in frame.f_code.co_filename else trace
        left -= event == "line"
        if not left:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    yield from "abc"


root = Path(sys.argv[1])
store = Store(root / "store")
jobs = [Job(page, root) for page in sorted(root.glob("*.py"))]
moment = 0
while moment == 0 or interrupted:
    moment, interrupted = moment + 1, False
    with Quick(2) as executor:
        try:
            work = interrupting(moment)
            run_all(jobs, store=store, workers=1, executor=executor, meanwhile=work)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            sys.settrace(None)
print(moment)
"""


def test_an_interrupt_at_any_moment_ends_the_build(root: Path, tmp_path: Path) -> None:
    """Even between the locks of two results: nothing then waits for what is locked."""
    write(root, a=HELLO, b=HELLO, c=HELLO)
    write(tmp_path, interrupted=INTERRUPTED)
    command = [sys.executable, str(tmp_path / "interrupted.py"), str(root)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert int(done.stdout) > 10  # moments


def test_a_user_s_own_matplotlib_settings_change_no_figure(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 9\n")
    width = "import matplotlib; print(matplotlib.rcParams['lines.linewidth'])"
    mine = {**os.environ, "MPLCONFIGDIR": str(tmp_path)}
    outputs = [
        subprocess.run([sys.executable, "-c", width], env=env, capture_output=True, check=True)
        for env in (mine, preload.environment(mine))
    ]
    assert [output.stdout.strip() for output in outputs] == [b"9.0", b"1.5"]
