"""Demos on other machines, through the scheduler of a Dask cluster.

Demos travel as parcels, so a worker needs what this machine has installed, and nothing of the
project. One that runs demos on a GPU is started with ``--resources "GPU=1"``.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from marginalia import keys
from marginalia.errors import MarginaliaError

log = logging.getLogger("mkdocs.plugins.marginalia")

CONNECT_LIMIT = 10.0  # seconds until a scheduler must have answered
WORKER_LIMIT = 10.0  # seconds until it must have a worker
ANSWER_LIMIT = 30.0  # seconds until each of them must have answered
RETRIES = 2  # of what raises on the way to the demo and back; a demo itself never raises
PATIENCE = 60.0  # seconds without any worker, after which what waits for one is given up
SILENCE = 60.0  # seconds without news of a worker, after which its demos are given to others

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
    _check_address(scheduler)
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
    with _quiet(), dask.config.set(large), _client(distributed, scheduler) as client:
        _check(client, scheduler)
        options = {"pure": False, "retries": RETRIES}
        anywhere = client.get_executor(**options)
        on_gpu = client.get_executor(**options, resources=GPU)
        with _given_up_without_workers(client, anywhere, on_gpu):
            yield anywhere, on_gpu if _with_gpu(_workers(client)) else None


@contextmanager
def connect_later(
    scheduler: str,
) -> Iterator[tuple[Executor, Callable[[], Executor | None]]]:
    """Use a cluster as `connect` does, from when it is needed on: it may never be.

    Args:
        scheduler: Its address.

    Yields:
        An executor that connects when something is sent, and what connects to give the other one.

    Raises:
        ClusterError: That is no address; or, when it is needed, what `connect` says.
    """
    _check_address(scheduler)
    with ExitStack() as stack:

        @functools.cache
        def tried() -> Future[tuple[Executor, Executor | None]]:  # once, even if it fails
            both = Future[tuple[Executor, Executor | None]]()
            try:
                both.set_result(stack.enter_context(connect(scheduler)))
            except ClusterError as error:
                both.set_exception(error)
            return both

        yield _Later(lambda: tried().result()[0]), lambda: tried().result()[1]


class _Later(Executor):
    """An executor that is not there before something is sent."""

    def __init__(self, connected: Callable[[], Executor]) -> None:
        self._connected = connected

    def submit(self, function: Any, /, *args: Any, **options: Any) -> Future[Any]:
        return self._connected().submit(function, *args, **options)


_ADDRESS = re.compile(r"((tcp|tls)://)?([^][/:\s]+|\[[^][/\s]+\]):(\d{1,5})")


def _check_address(scheduler: str) -> None:
    """See that something could be at an address.

    Raises:
        ClusterError: It is no address.
    """
    match = _ADDRESS.fullmatch(scheduler)
    if match is None or not 0 < int(match[4]) < 2**16:
        raise ClusterError(
            f"`scheduler: {scheduler}` is not the address of a Dask scheduler: "
            "it prints its own as tcp://HOST:PORT"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """While this lasts, Dask keeps to itself what we say in our own words."""

    def nothing(_: logging.LogRecord) -> bool:
        return False

    handlers = logging.getLogger("distributed").handlers
    for handler in handlers:
        handler.addFilter(nothing)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(nothing)


@contextmanager
def _client(distributed: Any, scheduler: str) -> Iterator[Any]:
    class Client(distributed.Client):  # type: ignore[misc]
        def __del__(self) -> None:
            """Nothing: one that never connected would wait for its own end."""

    made = Future[Any]()

    def make() -> None:
        try:
            made.set_result(Client(scheduler, timeout=CONNECT_LIMIT, set_as_default=False))
        except Exception as error:  # what is no scheduler may answer anything
            made.set_exception(error)

    # In a thread, for a server of another kind may keep it waiting without end.
    threading.Thread(target=make, name="marginalia-connect", daemon=True).start()
    try:
        client = made.result(CONNECT_LIMIT + 1)
    except Exception as error:
        reason = str(error) or "what is there says nothing"
        raise ClusterError(f"no Dask scheduler answers at {scheduler}: {reason}") from error
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
        client.wait_for_workers(1, timeout=WORKER_LIMIT)
    except OSError as error:
        raise ClusterError(
            f"the Dask scheduler at {scheduler} has no workers; start one: dask worker {scheduler}"
        ) from error
    found = client.sync(_differences, client, keys.environment())
    silent = [worker for worker, answer in found.items() if isinstance(answer, OSError)]
    if silent:
        _leave_out(client, silent)
    if len(silent) == len(found):
        raise ClusterError(f"no worker of the Dask scheduler at {scheduler} answers")
    for worker, differences in found.items():
        if worker in silent:
            continue
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


async def _differences(client: Any, needs: Mapping[str, str]) -> dict[str, Any]:
    """What each worker says that it has other than it needs; or its error."""

    async def ask(worker: str) -> Any:
        try:
            asked = client.run(keys.differences, needs, workers=[worker], on_error="return")
            return (await asyncio.wait_for(asked, ANSWER_LIMIT))[worker]
        except Exception as error:
            return error

    workers = [*(await client.scheduler.identity(n_workers=-1))["workers"]]
    return dict(zip(workers, await asyncio.gather(*map(ask, workers)), strict=True))


def _leave_out(client: Any, silent: list[str]) -> None:
    """Let the scheduler forget workers, and give what they were to do to others."""
    log.warning("these Dask workers do not answer and are left out: %s", ", ".join(silent))
    with suppress(OSError):
        client.sync(client.retire_workers, silent, callback_timeout=CONNECT_LIMIT)


def _workers(client: Any) -> Mapping[str, Mapping[str, Any]]:
    """What the scheduler knows of its workers, by address."""
    identity = client.scheduler.identity
    found: Any = client.sync(identity, n_workers=-1, callback_timeout=CONNECT_LIMIT)
    workers: Mapping[str, Mapping[str, Any]] = found["workers"]
    return workers


def _with_gpu(workers: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether any worker offers a GPU."""
    return any(worker["resources"].get("GPU", 0) >= GPU["GPU"] for worker in workers.values())


@contextmanager
def _given_up_without_workers(client: Any, anywhere: Any, on_gpu: Any) -> Iterator[None]:
    """While this lasts, nothing waits without end for workers that are gone, or stand still.

    A scheduler waits for them for ever: they may come back.
    """
    done = threading.Event()

    def watch() -> None:
        without = {anywhere: 0.0, on_gpu: 0.0}
        heard: dict[tuple[str, float], float] = {}
        step = PATIENCE / 10
        while not done.wait(step):
            workers: Mapping[str, Mapping[str, Any]] = {}
            with suppress(OSError, AttributeError):  # the scheduler is gone, or stands still
                workers = _workers(client)
            now = time.monotonic()
            last = [(name, worker["last_seen"]) for name, worker in workers.items()]
            heard = {news: heard.get(news, now) for news in last}
            silent = [news[0] for news, since in heard.items() if now - since > SILENCE]
            if silent:
                _leave_out(client, silent)
            there = {anywhere: bool(workers), on_gpu: _with_gpu(workers)}
            for executor, enough in there.items():
                without[executor] = 0.0 if enough else without[executor] + step
                if without[executor] >= PATIENCE:
                    with suppress(OSError):
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
