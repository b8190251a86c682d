"""A cluster that is not there, stands still or goes away is said in words, and never waited for."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from demos import demo, printed, statuses, wait_for, write
from distributed import Client
from marginalia import cluster, keys
from marginalia.assemble import Site, assemble
from marginalia.cluster import ClusterError
from marginalia.jobs import Job
from marginalia.options import Options
from marginalia.store import Store
from test_cluster import WAITS, build, busy, scheduler, starting, wait_for_workers, worker

NOWHERE = "tcp://127.0.0.1:9"


# Addresses


@pytest.mark.parametrize(
    "address",
    [
        "",
        "nonsense",
        "tcp://",
        "tcp://host",
        "tcp://host:",
        "tcp://host:port",
        "tcp://host:0",
        "tcp://host:65536",
        "tcp://host:8786/",
        " tcp://host:8786",
        "http://host:8787",
        "tcp://::1:8786",
    ],
)
def test_what_is_no_address_is_an_error_before_anything_is_sent(address: str) -> None:
    with (
        pytest.raises(ClusterError, match=r"is not the address of .* tcp://HOST:PORT"),
        cluster.connect_later(address),
    ):
        pass


@pytest.mark.parametrize("address", ["tcp://[::1]:8786", "tls://host.example:1", "10.0.0.1:8786"])
def test_a_cluster_that_nothing_is_sent_to_need_not_be_there(address: str) -> None:
    with cluster.connect_later(address) as (executor, gpu):
        assert executor is not None
        assert callable(gpu)


@contextmanager
def server(says: bytes) -> Iterator[str]:
    """The address of something that is no scheduler."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        lines: list[socket.socket] = []

        def answer() -> None:
            with suppress(OSError):
                while True:
                    lines.append(listening.accept()[0])
                    lines[-1].sendall(says)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
            for line in lines:
                line.close()


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n"])
def test_a_server_of_another_kind_is_no_scheduler(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], says: bytes
) -> None:
    monkeypatch.setattr(cluster, "CONNECT_LIMIT", 1.0)
    with (
        server(says) as address,
        pytest.raises(ClusterError, match=f"no Dask scheduler answers at {address}"),
        cluster.connect(address),
    ):
        pass
    assert "Traceback" not in capfd.readouterr().err


# Without a cluster


CUDA = '"""\n---\ndevice: cuda\n---\nOn a GPU.\n"""\n\n\n' + demo("print('well')")


def assembled(root: Path, tmp_path: Path, address: str) -> Site:
    return assemble(Options(root, tmp_path / "cache", workers=1, scheduler=address))


def reported(site: Site) -> dict[str, str]:
    return {page.source.removesuffix(".py"): page.status for page in site.report.pages}


def test_what_is_kept_needs_no_cluster(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    write(root, page=demo("print('well')"))
    with scheduler(tmp_path) as own, worker(own, tmp_path / "worker", "--resources", "GPU=1"):
        assert reported(assembled(root, tmp_path, own)) == {"page": "ran"}
        write(root, gpu=CUDA)
        assert reported(assembled(root, tmp_path, own)) == {"gpu": "ran", "page": "cached"}
    monkeypatch.setattr(cluster, "CONNECT_LIMIT", 1.0)
    assert reported(assembled(root, tmp_path, NOWHERE)) == {"gpu": "stored", "page": "cached"}
    (root / "gpu.py").unlink()
    assert reported(assembled(root, tmp_path, NOWHERE)) == {"page": "cached"}


@pytest.mark.parametrize("page", [demo("print('well')"), CUDA])
def test_what_must_run_needs_its_cluster(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    monkeypatch.setattr(cluster, "CONNECT_LIMIT", 1.0)
    write(root, page=page)
    with pytest.raises(ClusterError, match=f"no Dask scheduler answers at {NOWHERE}"):
        assembled(root, tmp_path, NOWHERE)


# What stands still, or goes away


@contextmanager
def two_workers(folder: Path) -> Iterator[str]:
    """The address of a cluster whose workers have answered before."""
    with (
        scheduler(folder) as own,
        starting(own, folder / "one", "--no-nanny"),
        starting(own, folder / "two", "--no-nanny"),
    ):
        wait_for_workers(own, 2)
        with Client(own, set_as_default=False) as client:
            client.run(keys.differences, keys.environment())
        yield own


@contextmanager
def once_busy(address: str, end: Path, act: Callable[[int], object]) -> Iterator[None]:
    """Do something to the worker that runs a demo; then there is a file that it can wait for."""

    def work() -> None:
        with Client(address, set_as_default=False) as client:
            (process,) = wait_for(lambda: busy(client))
        act(process)
        end.touch()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_a_worker_that_stands_still_at_the_start_is_left_out(
    root: Path,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(cluster, "ANSWER_LIMIT", 8.0)
    write(root, **{f"page{number}": demo("print('well')") for number in range(3)})
    jobs = [Job(page, root) for page in sorted(root.glob("*.py"))]
    with two_workers(tmp_path) as own:
        with Client(own, set_as_default=False) as client:
            still, process = next(iter(client.run(os.getpid).items()))
        os.kill(process, signal.SIGSTOP)
        rans = build(own, jobs, store)
    assert set(statuses(rans).values()) == {"ran"}
    assert f"do not answer and are left out: {still}" in caplog.text


def test_what_a_worker_that_stands_still_was_to_run_runs_elsewhere(
    root: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "SILENCE", 8.0)
    end = tmp_path / "end"
    write(root, page=demo(f"{WAITS.format(path=str(end))}print('well')"))
    with (
        two_workers(tmp_path) as own,
        once_busy(own, end, lambda process: os.kill(process, signal.SIGSTOP)),
    ):
        (ran,) = build(own, [Job(root / "page.py", root)], store)
    assert printed(ran.result) == "well"


def test_a_scheduler_that_goes_away_is_named(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    end = tmp_path / "end"
    write(root, page=demo(WAITS.format(path=str(tmp_path / "never"))))

    def stop(_: int) -> None:
        with suppress(OSError), Client(own, set_as_default=False) as client:
            client.run_on_scheduler(os._exit, 1)

    with (
        scheduler(tmp_path) as own,
        worker(own, tmp_path / "worker", "--no-nanny"),
        once_busy(own, end, stop),
    ):
        site = assembled(root, tmp_path, own)
    (page,) = site.report.pages
    assert f"the Dask scheduler at {own} is gone" in page.failures[0].message
    assert "Traceback" not in capfd.readouterr().err
