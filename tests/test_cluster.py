"""Demos on the workers of a Dask cluster: the same results, whatever happens to a worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import psutil
import pytest
from demos import content, demo, printed, statuses, wait_for, write
from distributed import Client
from marginalia import cluster, keys
from marginalia.assemble import Site, assemble
from marginalia.errors import MarginaliaError
from marginalia.jobs import Job, Ran, key
from marginalia.limits import Limits
from marginalia.options import Options
from marginalia.runner import run_all
from marginalia.store import Store

DASK = str(Path(sys.executable).with_name("dask"))


# A cluster, as a user starts one; its processes know nothing of the project


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [DASK, *arguments]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with subprocess.Popen(
        command,
        cwd="/",
        env=env | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as running:
        family = psutil.Process(running.pid)
        try:
            yield running
        finally:
            kin = [family, *family.children(recursive=True)] if running.poll() is None else []
            for one in kin:
                with suppress(psutil.NoSuchProcess):  # some go with their parents
                    one.kill()


@contextmanager
def scheduler(folder: Path) -> Iterator[str]:
    """The address of a scheduler; a demo that ended two workers is given up."""
    file = folder / "scheduler.json"
    command = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show"]
    once = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}
    with process("scheduler", *command, "--scheduler-file", str(file), **once):
        wait_for(lambda: file.is_file() and file.read_text())
        yield json.loads(file.read_text())["address"]


def wait_for_workers(address: str, number: int) -> None:
    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(number, timeout=60)


def starting(address: str, folder: Path, *arguments: str, **environment: str) -> Any:
    """A worker that the scheduler will soon know."""
    common = ["--host", "127.0.0.1", "--no-dashboard", "--nthreads", "1", "--memory-limit", "0"]
    scratch = ["--local-directory", str(folder)]
    return process("worker", address, *common, *scratch, *arguments, **environment)


@contextmanager
def worker(address: str, folder: Path, *arguments: str, **environment: str) -> Iterator[None]:
    """The only worker of a scheduler."""
    with starting(address, folder, *arguments, **environment):
        wait_for_workers(address, 1)
        yield


@pytest.fixture(scope="module")
def cluster_of_two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("cluster")
    with (
        scheduler(folder) as found,
        starting(found, folder / "cpu", WHERE="cpu"),
        starting(found, folder / "gpu", "--resources", "GPU=1", WHERE="gpu"),
    ):
        yield found


@pytest.fixture
def address(cluster_of_two: str) -> str:
    """A cluster of two workers, one of which says that it has a GPU."""
    wait_for_workers(cluster_of_two, 2)  # the test before may have ended one: it starts again
    return cluster_of_two


def build(address: str, jobs: list[Job], store: Store, **options: Any) -> list[Ran]:
    """On the cluster; without an address, here."""
    if not address:
        return run_all(jobs, store=store, workers=2, **options)
    with cluster.connect(address) as (executor, gpu):
        return run_all(jobs, store=store, workers=2, executor=executor, gpu=gpu, **options)


# The same as here


PAGES = {
    "figure": '''
        """A page with a figure."""

        import matplotlib.pyplot as plt
        import torch


        def demo():
            # Drawn from random numbers.
            plt.plot(torch.rand(5))
            plt.show()
    ''',
    "claims": """
        import warnings

        from helper import double


        def demo():
            warnings.warn("careful")
            x = double(3)
            print(x)
            assert x == 6  # Eq. 1
    """,
    "paths": """
        import traceback

        import helper


        def demo():
            print(__file__, helper.__file__)
            try:
                helper.fails()
            except ZeroDivisionError:
                traceback.print_exc()
    """,
    "data": """
        from pathlib import Path


        def demo():
            print(Path(__file__).with_name("numbers.csv").read_text())
            print((Path(__file__).parents[1] / "beside" / "more.csv").read_text())
    """,
    "raises": demo("import helper\nhelper.fails()"),
    "hangs": demo("import time\ntime.sleep(1000)"),
    "segfault": demo("import ctypes\nctypes.string_at(0)"),
    "exits": demo("import os\nos._exit(3)"),
}
HELPER = """
    def double(x):
        return 2 * x


    def fails():
        return 1 / 0
"""


def project(root: Path) -> list[Job]:
    """The pages, a helper that they share, and data files, in and beside the folder of pages."""
    write(root, helper=HELPER, **PAGES)
    more = root.parent / "beside" / "more.csv"
    more.parent.mkdir(exist_ok=True)
    (root / "numbers.csv").write_text("1,2")
    more.write_text("3,4")
    options: dict[str, Any] = {
        "data": {"data": (root / "numbers.csv", root / ".." / "beside" / "more.csv")},
        "hangs": {"limits": Limits(timeout=2)},
    }
    return [Job(root / f"{name}.py", root, device="cpu", **options.get(name, {})) for name in PAGES]


def test_a_cluster_gives_what_this_machine_gives(address: str, root: Path, tmp_path: Path) -> None:
    jobs = project(root)
    here = build("", jobs, Store(tmp_path / "here"))
    there = build(address, jobs, Store(tmp_path / "there"))
    for ran in (*here, *there):
        if ran.job.path.stem == "hangs":  # slow machines end it before it comes to its line
            assert ran.result.error is not None
            ran.result.error = replace(ran.result.error, line=0, frames=[])
    assert [content(ran.result) for ran in there] == [content(ran.result) for ran in here]
    assert statuses(there) == {
        "figure": "ran",
        "claims": "ran",
        "paths": "ran",
        "data": "ran",
        "raises": "failed",
        "hangs": "failed",
        "segfault": "failed",
        "exits": "failed",
    }
    assert printed(there[3].result).split() == ["1,2", "3,4"]
    assert str(root) in printed(there[2].result)


def test_what_changed_runs_again_and_nothing_else(address: str, root: Path, store: Store) -> None:
    jobs = [job for job in project(root) if job.path.stem in ("claims", "data", "figure")]
    assert set(statuses(build(address, jobs, store)).values()) == {"ran"}
    assert set(statuses(build(address, jobs, store)).values()) == {"cached"}
    assert set(statuses(build("", jobs, store)).values()) == {"cached"}
    write(root, figure="# More prose.\n" + dedent(PAGES["figure"]))
    assert set(statuses(build(address, jobs, store)).values()) == {"cached"}
    write(root, helper=HELPER.replace("2 * x", "x * 2"))
    assert statuses(build(address, jobs, store)) == {
        "figure": "cached",
        "claims": "ran",
        "data": "cached",
    }
    (root / "numbers.csv").write_text("5,6")
    rans = build(address, jobs, store)
    assert statuses(rans) == {"figure": "cached", "claims": "cached", "data": "ran"}
    assert printed(rans[2].result).split() == ["5,6", "3,4"]


def test_the_day_of_a_run_is_the_builder_s(
    address: str, root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    write(root, page=demo("pass"))
    (ran,) = build(address, [Job(root / "page.py", root)], store)
    assert ran.result.date == "1970-01-01"


# By value


class WhileAway(Executor):
    """An executor that moves a folder away before it starts anything."""

    def __init__(self, executor: Executor, folder: Path) -> None:
        self.executor, self.folder = executor, folder

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.folder.rename(self.folder.with_name("away"))
        return self.executor.submit(function, *args, **kwargs)


def test_sources_travel_by_value(address: str, root: Path, store: Store, tmp_path: Path) -> None:
    """Nothing of the project is on the worker's disk, and it is not on its import path."""
    job = next(job for job in project(root) if job.path.stem == "data")
    (root / "data.py").write_text("from pkg.deep import x\n" + (root / "data.py").read_text())
    (root / "pkg").mkdir()
    write(root / "pkg", __init__="from . import other\n", deep="x = 1\n", other="")
    with Client(address, set_as_default=False) as client:
        paths = client.run(lambda: [os.getcwd(), *sys.path])  # noqa: PTH109  # as it is there
    assert not [path for found in paths.values() for path in found if str(tmp_path) in path]
    with cluster.connect(address) as (executor, _):
        away = WhileAway(executor, root.parent)
        (ran,) = run_all([job], store=store, workers=1, executor=away)
    assert not root.exists()
    assert printed(ran.result).split() == ["1,2", "3,4"]
    assert set(ran.result.dependencies) == {"numbers.csv", "../beside/more.csv"} | {
        f"pkg/{name}.py" for name in ("__init__", "deep", "other")
    }


def test_a_package_that_is_used_from_its_sources_travels_too(
    address: str, root: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "sources" / "library_of_mine"
    library.mkdir(parents=True)
    write(library, __init__="from library_of_mine.inner import x\n", inner="x = 'well'\n")
    monkeypatch.syspath_prepend(str(library.parent))
    write(root, page=f"from library_of_mine import x\n\n\n{demo('print(x)')}")
    jobs = [Job(root / "page.py", root)]
    (ran,) = build(address, jobs, store)
    assert printed(ran.result) == "well"
    assert ran.result.dependencies == {}
    assert statuses(build(address, jobs, store)) == {"page": "cached"}


def test_a_data_file_that_is_not_declared_is_not_there(
    address: str, root: Path, store: Store
) -> None:
    (data,) = (replace(job, data=()) for job in project(root) if job.path.stem == "data")
    (ran,) = build(address, [data], store)
    assert ran.status == "failed"
    assert ran.result.error is not None
    assert str(root / "numbers.csv") in ran.result.error.message
    assert "`data:`" in ran.result.error.message


@pytest.mark.parametrize("big", [20_000_000])
def test_a_large_data_file_travels_without_a_word(
    address: str, root: Path, store: Store, big: int
) -> None:
    (root / "big.bin").write_bytes(os.urandom(big))
    sizes = "from pathlib import Path\nprint(Path(__file__).with_name('big.bin').stat().st_size)"
    write(root, page=demo(sizes))
    (ran,) = build(address, [Job(root / "page.py", root, data=(root / "big.bin",))], store)
    assert printed(ran.result) == str(big)


# Workers that die


def busy(client: Client) -> list[int]:
    """The processes of workers that run a demo now."""
    found = []
    for pid in client.run(os.getpid, on_error="ignore").values():
        try:
            servers = psutil.Process(pid).children()
            guards = [guard for server in servers for guard in server.children()]
            found += [pid] if any(guard.children() for guard in guards) else []
        except psutil.NoSuchProcess:
            continue
    return found


@contextmanager
def killing(address: str, times: int, end: Path) -> Iterator[list[int]]:
    """Kill the worker that runs a demo, so many times; the list has those that were killed.

    In the end there is a file that demos can wait for.
    """
    killed: list[int] = []
    over = threading.Event()

    def work() -> None:
        with Client(address, set_as_default=False) as client:
            while len(killed) < times and not over.wait(0.05):
                for pid in busy(client)[:1]:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
        end.touch()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


WAITS = "import os, time\nwhile not os.path.exists({path!r}):\n    time.sleep(0.02)\n"


def test_a_killed_worker_loses_nothing(
    address: str, root: Path, store: Store, tmp_path: Path
) -> None:
    end = tmp_path / "killed"
    waits = WAITS.format(path=str(end))
    write(root, **{f"page{number}": demo(f"{waits}print({number})") for number in range(4)})
    jobs = [Job(page, root, device="cpu") for page in sorted(root.glob("*.py"))]
    with killing(address, 1, end) as killed:
        rans = build(address, jobs, store)
    assert len(killed) == 1
    assert [printed(ran.result) for ran in rans] == ["0", "1", "2", "3"]
    assert set(statuses(build("", jobs, store)).values()) == {"cached"}


def test_a_demo_that_ends_its_workers_is_a_failed_page(
    address: str, root: Path, store: Store, tmp_path: Path
) -> None:
    write(root, harmful=demo("import time\ntime.sleep(1000)"), good=demo("print('well')"))
    (good,) = build(address, [Job(root / "good.py", root)], store)
    with killing(address, 2, tmp_path / "killed") as killed:
        (harmful,) = build(address, [Job(root / "harmful.py", root)], store)
    assert len(killed) == 2
    assert good.status == "ran"
    assert harmful.status == "failed"
    assert harmful.result.error is not None
    assert harmful.result.error.type == "KilledWorker"
    wait_for_workers(address, 1)
    write(root, after=demo("print('still')"))
    (after,) = build(address, [Job(root / "after.py", root)], store)
    assert printed(after.result) == "still"


def test_what_waits_for_workers_that_are_gone_is_given_up(
    root: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "PATIENCE", 1.0)
    write(root, page=demo("import time\ntime.sleep(1000)"))
    with (
        scheduler(tmp_path) as own,
        worker(own, tmp_path / "worker", "--no-nanny"),
        killing(own, 1, tmp_path / "killed") as killed,
    ):
        (ran,) = build(own, [Job(root / "page.py", root)], store)
    assert killed
    assert ran.status == "failed"
    assert ran.result.error is not None
    assert "is gone" in ran.result.error.message


BUILDER = """
import signal
import sys
from pathlib import Path
from marginalia import cluster, isolation, keys
from marginalia.jobs import Job
from marginalia.runner import run_all
from marginalia.store import Store

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has none
root = Path(sys.argv[1])
jobs = [Job(page, root) for page in sorted(root.glob("*.py"))]
with cluster.connect(sys.argv[3]) as (executor, gpu):
    run_all(
        jobs,
        store=Store(Path(sys.argv[2])),
        workers=1,
        executor=executor,
        done=lambda ran: print(ran.status, flush=True),
    )
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_cancels_what_is_queued(
    address: str, root: Path, store: Store, tmp_path: Path, end: signal.Signals
) -> None:
    def tasks(dask_scheduler: Any) -> int:
        return len([task for task in dask_scheduler.tasks.values() if task.who_wants])

    over = tmp_path / "over"
    waits = demo(WAITS.format(path=str(over)))
    write(root, page0=demo("pass"), **{f"page{number}": waits for number in range(1, 9)})
    write(tmp_path, builder=BUILDER)
    command = [sys.executable, str(tmp_path / "builder.py"), str(root), str(store.folder), address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == b"ran\n"
        builder.send_signal(end)
        builder.communicate(timeout=60)
    assert builder.returncode == (-end if end == signal.SIGINT else 128 + end)
    with Client(address, set_as_default=False) as client:
        wait_for(lambda: client.run_on_scheduler(tasks) == 0)
        over.touch()
        wait_for(lambda: not busy(client))
    jobs = [Job(page, root, device="cpu") for page in root.glob("*.py")]
    assert [job.path.stem for job in jobs if store.get(key(job))] == ["page0"]


# GPUs


CUDA = '''
"""
---
device: cuda
---
On a GPU.
"""

from helper import double


def demo():
    # Prose.
    import os
    print(os.environ["WHERE"], double(2))
'''
STILL_CPU = """
    def demo():
        import os
        print(os.environ["WHERE"], os.environ.get("CUDA_VISIBLE_DEVICES"))
"""


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine has none, whatever it has."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def assembled(root: Path, tmp_path: Path, address: str = "") -> Site:
    return assemble(Options(root, tmp_path / "cache", workers=2, scheduler=address))


def reported(site: Site) -> dict[str, str]:
    return {page.source.removesuffix(".py"): page.status for page in site.report.pages}


@pytest.mark.usefixtures("no_gpu")
def test_a_demo_that_needs_a_gpu_runs_where_there_is_one(
    address: str, root: Path, store: Store
) -> None:
    write(root, helper=HELPER, **{f"gpu{number}": CUDA for number in range(4)}, cpu=STILL_CPU)
    jobs = [Job(root / f"gpu{number}.py", root, device="cuda") for number in range(4)]
    rans = build(address, [*jobs, Job(root / "cpu.py", root)], store)
    assert [printed(ran.result) for ran in rans[:4]] == ["gpu 4"] * 4
    assert printed(rans[4].result).split()[1:] == []  # no GPU for a demo that does not say so


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_the_last_run_is_shown(address: str, root: Path, tmp_path: Path) -> None:
    write(root, helper=HELPER, page=CUDA, other=demo("print('other')"))
    assert reported(assembled(root, tmp_path))["page"] == "skipped"
    assert reported(assembled(root, tmp_path, address))["page"] == "ran"
    assert reported(assembled(root, tmp_path, address))["page"] == "cached"

    site = assembled(root, tmp_path)
    assert reported(site) == {"helper": "static", "other": "cached", "page": "stored"}
    assert "gpu 4" in site.pages["page.md"]
    assert (
        "This demo needs a GPU, and this build had none: shown is its run" in site.pages["page.md"]
    )
    assert "not the same" not in site.pages["page.md"]
    assert "needs a GPU" not in site.pages["other.md"]

    write(root, page=CUDA.replace("# Prose.", "# Other prose,\n    # on two lines."))
    assert reported(assembled(root, tmp_path))["page"] == "stored"
    write(root, helper=HELPER.replace("2 * x", "3 * x"))
    site = assembled(root, tmp_path)
    assert reported(site)["page"] == "stored"
    assert "gpu 4" in site.pages["page.md"]
    assert "is not the same since" in site.pages["page.md"]

    write(root, page=CUDA.replace("double(2)", "double(5)"))
    site = assembled(root, tmp_path)
    assert reported(site)["page"] == "skipped"
    assert "it has not been run on one" in site.pages["page.md"]
    assert "gpu 4" not in site.pages["page.md"]
    assert "mg-stdout" not in site.pages["page.md"]
    assert not site.report.failed


def test_a_machine_with_a_gpu_needs_no_cluster(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo asks for no more than to be run where one would be found."""
    monkeypatch.setenv("WHERE", "here")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    page = CUDA + "    print(os.environ['CUDA_VISIBLE_DEVICES'])\n"
    write(root, helper=HELPER, page=page, cpu=STILL_CPU)
    jobs = [Job(root / "page.py", root, device="cuda"), Job(root / "cpu.py", root, device="cpu")]
    with monkeypatch.context() as patch:
        patch.setattr(keys, "device_kind", lambda: "cuda")
        gpu, cpu = build("", jobs, store)
        assert printed(gpu.result).split() == ["here", "4", "0"]
        assert printed(cpu.result) == "here"
        assert set(statuses(build("", jobs, store)).values()) == {"cached"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert statuses(build("", jobs, store)) == {"page": "stored", "cpu": "cached"}


@pytest.mark.usefixtures("no_gpu")
def test_a_cluster_without_a_gpu_shows_the_last_run_too(
    root: Path, tmp_path: Path, address: str
) -> None:
    write(root, helper=HELPER, page=CUDA)
    assembled(root, tmp_path, address)
    with scheduler(tmp_path) as own, worker(own, tmp_path / "worker"):
        assert reported(assembled(root, tmp_path, own))["page"] == "stored"


@pytest.mark.usefixtures("no_gpu")
def test_the_last_run_stays_as_long_as_its_page_is_shown(
    address: str, root: Path, store: Store
) -> None:
    write(root, helper=HELPER, page=CUDA, other=demo("print('x' * 50_000)"))
    jobs = [Job(root / "page.py", root, device="cuda"), Job(root / "other.py", root)]
    build(address, jobs, store)
    for path in store.folder.rglob("*.json"):
        os.utime(path, (0, 0))
    assert statuses(build("", jobs[:1], store)) == {"page": "stored"}
    store.prune(40_000)  # the other one was not used for longest
    assert statuses(build("", jobs[:1], store)) == {"page": "stored"}
    write(root, helper=HELPER.replace("2 * x", "3 * x"))
    assert statuses(build("", jobs[:1], store)) == {"page": "stored"}
    assert statuses(build("", jobs[1:], store)) == {"other": "ran"}


@pytest.mark.usefixtures("no_gpu")
def test_the_command_skips_what_needs_a_gpu(root: Path, tmp_path: Path) -> None:
    write(root, helper=HELPER, page=CUDA)
    command = [sys.executable, "-m", "marginalia"]
    check = [*command, "check", str(root / "page.py")]
    done = subprocess.run(check, capture_output=True, text=True, check=True)
    assert "skipped" in done.stdout
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    made = [*command, "build", str(root), "-o", str(tmp_path / "site"), "--json"]
    done = subprocess.run(made, capture_output=True, text=True, check=True, env=env)
    status = {page["source"]: page["status"] for page in json.loads(done.stdout)["pages"]}
    assert status == {"helper.py": "static", "page.py": "skipped"}


# What cannot be


def test_no_scheduler_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_LIMIT", 1.0)
    with (
        pytest.raises(MarginaliaError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"),
        cluster.connect("tcp://127.0.0.1:9"),
    ):
        pass


def test_no_worker_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "WORKER_LIMIT", 1.0)
    with (
        scheduler(tmp_path) as own,
        pytest.raises(MarginaliaError, match=f"has no workers; start one: dask worker {own}"),
        cluster.connect(own),
    ):
        pass


def pretended(folder: Path, name: str) -> str:
    """A folder that, on the import path, makes a distribution seem to have version 99."""
    made = folder / f"{name}-99.dist-info"
    made.mkdir(parents=True)
    (made / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 99\n")
    return str(folder)


@pytest.mark.filterwarnings("ignore:Mismatched versions found")  # says Dask as well
def test_a_worker_with_other_versions_is_an_error(tmp_path: Path) -> None:
    with (
        scheduler(tmp_path) as own,
        worker(own, tmp_path / "worker", PYTHONPATH=pretended(tmp_path / "path", "numpy")),
        pytest.raises(MarginaliaError, match=r"worker tcp://\S+ has numpy 99 where numpy 2"),
        cluster.connect(own),
    ):
        pass


def test_a_worker_with_another_version_of_what_a_page_imports_fails_the_page(
    root: Path, store: Store, tmp_path: Path
) -> None:
    write(root, page=f"import einops\n\n\n{demo('pass')}", other=demo("pass"))
    with (
        scheduler(tmp_path) as own,
        worker(own, tmp_path / "worker", PYTHONPATH=pretended(tmp_path / "path", "einops")),
    ):
        jobs = [Job(root / "page.py", root), Job(root / "other.py", root)]
        page, other = build(own, jobs, store)
    assert other.status == "ran"
    assert page.result.error is not None
    assert "has einops 99 where einops 0" in page.result.error.message


def test_a_missing_package_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(MarginaliaError, match=r"pip install 'marginalia\[dask\]'"),
        cluster.connect("tcp://127.0.0.1:9"),
    ):
        pass


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("executor: dask", "needs `scheduler: tcp://HOST:PORT`"),
        ("executor: dask, scheduler: 'tcp://127.0.0.1:9'", "no Dask scheduler answers at"),
    ],
)
def test_a_site_that_cannot_use_its_cluster_says_so(
    tmp_path: Path, options: str, says: str
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Home\n")
    (tmp_path / "papers").mkdir()
    write(tmp_path / "papers", page=demo("pass"))
    plugins = f"plugins: [marginalia: {{{options}}}]"
    (tmp_path / "mkdocs.yml").write_text(f"site_name: x\ntheme: {{name: material}}\n{plugins}\n")
    command = [sys.executable, "-m", "mkdocs", "build", "-f", str(tmp_path / "mkdocs.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr
