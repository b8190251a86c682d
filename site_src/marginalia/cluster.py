"""Demos on other machines, through the scheduler of a Dask cluster.

Demos travel as parcels, so a worker needs what this machine has installed, and nothing of the
project. One that runs demos on a GPU is started with ``--resources "GPU=1"``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from typing import Any

from marginalia import keys
from marginalia.errors import MarginaliaError

CONNECT_LIMIT = 10.0  # seconds until a scheduler must have answered, and have a worker
RETRIES = 2  # of what raises on the way to the demo and back; a demo itself never raises
PATIENCE = 60.0  # seconds without any worker, after which what waits for one is given up

GPU = {"GPU": 1}


class ClusterError(MarginaliaError):
    """The cluster cannot be used."""


@contextmanager
def connect(scheduler: str) -> Iterator[tuple[Executor, Executor | None]]:
    """Use a cluster.

    Args:
        scheduler: Its address, as ``tcp://HOST:PORT``.

    Yields:
        An executor for demos that need no GPU, and one for those that do; None if no worker
        offers one. What is queued on them is cancelled in the end.

    Raises:
        ClusterError: There is none at the address, it has no workers, or their versions are not
            those of this machine.
    """
    try:
        import dask
        import distributed
    except ImportError as error:
        raise ClusterError(
            "running demos on a Dask cluster needs the package distributed: "
            "pip install 'marginalia[dask]'"
        ) from error
    # A parcel is what it is: to be told that it is large helps nobody.
    large = {"distributed.admin.large-graph-warning-threshold": "1TB"}
    with dask.config.set(large), _client(distributed, scheduler) as client:
        _check(client, scheduler)
        options = {"pure": False, "retries": RETRIES}
        anywhere = client.get_executor(**options)
        on_gpu = client.get_executor(**options, resources=GPU)
        with _given_up_without_workers(client, anywhere, on_gpu):
            yield anywhere, on_gpu if _with_gpu(client) else None


@contextmanager
def _client(distributed: Any, scheduler: str) -> Iterator[Any]:
    try:
        client = distributed.Client(scheduler, timeout=CONNECT_LIMIT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(f"no Dask scheduler answers at {scheduler}: {error}") from error
    try:
        yield client
    finally:
        with suppress(OSError):  # also a timeout: there is nobody left to say goodbye to
            client.close(timeout=CONNECT_LIMIT)


def _check(client: Any, scheduler: str) -> None:
    """See that there are workers, and that each gives the outputs that this machine would.

    Raises:
        ClusterError: It is not so.
    """
    try:
        client.wait_for_workers(1, timeout=CONNECT_LIMIT)
    except OSError as error:
        raise ClusterError(
            f"the Dask scheduler at {scheduler} has no workers; start one: dask worker {scheduler}"
        ) from error
    needs = keys.environment()
    found = client.run(keys.differences, needs, on_error="return")
    for worker, differences in found.items():
        if isinstance(differences, Exception):
            what = f"cannot answer ({type(differences).__name__}: {differences})"
        elif differences:
            what = f"has {'; '.join(differences)}"
        else:
            continue
        raise ClusterError(
            f"the Dask worker {worker} {what}: outputs depend on these versions, "
            "so install the same ones there as here"
        )


def _workers(client: Any) -> list[Mapping[str, Any]]:
    return list(client.scheduler_info()["workers"].values())


def _with_gpu(client: Any) -> bool:
    """Whether any worker offers a GPU."""
    return any(worker["resources"].get("GPU", 0) >= GPU["GPU"] for worker in _workers(client))


@contextmanager
def _given_up_without_workers(client: Any, anywhere: Any, on_gpu: Any) -> Iterator[None]:
    """While this lasts, nothing waits without end for workers that are gone.

    A scheduler waits for them for ever: they may come back.
    """
    done = threading.Event()

    def watch() -> None:
        without = {anywhere: 0.0, on_gpu: 0.0}
        step = PATIENCE / 10
        while not done.wait(step):
            with suppress(OSError):  # the client itself notices that the scheduler is gone
                there = {anywhere: bool(_workers(client)), on_gpu: _with_gpu(client)}
                for executor, enough in there.items():
                    without[executor] = 0.0 if enough else without[executor] + step
                    if without[executor] >= PATIENCE:
                        executor.shutdown(wait=False)

    thread = threading.Thread(target=watch, name="marginalia-cluster", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(CONNECT_LIMIT)
        for executor in (anywhere, on_gpu):
            with suppress(OSError):
                executor.shutdown(wait=False)
