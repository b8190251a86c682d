"""Run many demos, each in a process of its own, and only those whose inputs changed."""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from marginalia import isolation, keys, worker
from marginalia.demo import Failure, Result, today
from marginalia.errors import MarginaliaError, SourceError
from marginalia.jobs import Job, Plan, Progress, Ran, Status
from marginalia.memo import digest, plain
from marginalia.parcel import Parcel, at_home, unpacked
from marginalia.shelf import Held, Page, Shelf
from marginalia.source import read_source, split_lines
from marginalia.store import Store

LOOK = 0.5  # seconds
LONGEST = 10.0**6  # seconds: more than the system's clocks take

UNDECLARED = "the demo reads {}, which only this machine has: name it in `data:`"
ELSEWHERE = "a demo that runs elsewhere has the files that `data:` names, as seen from `__file__`"

# One demo


def run_isolated(job: Job) -> Result:
    """Run a demo in a fresh process, and end everything that it started.

    Returns:
        What the demo showed. Whatever it did, this returns: a crash, an exit or the end of its time
        is a result that is not ok, and its error says which.
    """
    return _run(job, isolation.Stop())


def run_parcel(job: Job, parcel: Parcel) -> Result:
    """Run a demo whose files came by value, on whatever machine this is.

    Returns:
        What `run_isolated` would have given where the parcel was packed.

    Raises:
        OtherMachineError: The demo might show something else here.
        OSError: The files cannot be written.
    """
    differences = keys.differences(parcel.needs)
    if differences:
        raise OtherMachineError(f"{platform.node()} has {'; '.join(differences)}")
    with unpacked(parcel) as folder:
        here = replace(job, path=folder / parcel.page, root=folder / parcel.root, data=())
        result = _run(here, isolation.Stop(), parcel.source)
        return Result.from_json(at_home(parcel, folder, result.to_json()))


class OtherMachineError(MarginaliaError):
    """A machine that is to run a demo has other versions than the one that asks for it."""


def _run(job: Job, stop: isolation.Stop, source: str = "") -> Result:
    """Run a demo, of a page whose text has the digest `source` if one is given."""
    plain = {
        "path": str(job.path.absolute()),  # the demo has a working directory of its own
        "root": str(job.root.absolute()),
        "shapes": job.shapes,
        "seed": job.seed,
        "source": source,
        "network": job.network,
        "device": job.device,
        "limits": asdict(replace(job.limits, timeout=min(job.limits.timeout, LONGEST))),
    }
    report = isolation.run(plain, stop)
    try:
        result = Result.from_json(_whole(json.loads(report.result)))
    except (ValueError, LookupError, TypeError):  # nothing, or what the demo wrote over it
        seconds = job.limits.timeout if report.end == "timeout" else 0.0
        result = Result(False, seconds=seconds, error=_failure(job, report))
    result.peak_mb = round(report.peak_mb or result.peak_mb, 1)
    return result


def whole_text(text: str) -> str:
    """The text with halves of characters, which nothing can encode, replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _whole(value: Any) -> Any:
    """A copy of JSON without halves of characters, which no page and no file can hold."""
    if isinstance(value, str):
        return whole_text(value)
    if isinstance(value, dict):
        return {_whole(name): _whole(item) for name, item in value.items()}
    return [_whole(item) for item in value] if isinstance(value, list) else value


def _failure(job: Job, report: isolation.Report) -> Failure:
    """Why a process gave no result."""
    frames = _frames(job.path.absolute(), report.trace)
    line = frames[-1]["line"] if frames else 0
    return Failure(*_reason(job, report), line, frames)


def _reason(job: Job, report: isolation.Report) -> tuple[str, str]:
    """In place of an exception's type and message."""
    if report.end not in ("exit", "stop", "lost"):
        return job.limits.reason(report.end, report.used)
    if report.end == "stop":
        return "Interrupted", "the build was interrupted"
    if report.end == "lost":
        return "Lost", "its process vanished, and the process that guarded it"
    if report.status < 0 and report.status == -getattr(signal, "SIGXCPU", 0):
        return job.limits.reason("cpu_time", job.limits.cpu_time)
    if report.status < 0:
        number = -report.status
        names = {item.value: item.name for item in signal.Signals}
        what = f"{names.get(number, number)} ({signal.strsignal(number)})"
        hint = "; perhaps memory ran out" if number == signal.SIGKILL else ""
        return "Crash", f"its process was ended by {what}{hint}"
    if report.status == worker.LOST and report.trace:
        return "Lost", f"its process could not report: {report.trace.splitlines()[-1]}"
    return "Exit", f"its process exited with status {report.status} before the demo was over"


_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$', re.MULTILINE)


def _frames(path: Path, trace: str) -> list[dict[str, Any]]:
    """The page's own frames in what the fault handler wrote, outermost first."""
    found = [match.groups() for match in _FRAME.finditer(trace)]
    own = [(int(line), name) for file, line, name in reversed(found) if file == str(path)]
    lines: list[str] = []
    with suppress(OSError, SourceError):
        lines = split_lines(read_source(path))
    texts = dict(enumerate((line.strip() for line in lines), 1))
    return [{"line": n, "function": name, "text": texts.get(n, "")} for n, name in own]


# Many demos


def run_all(
    jobs: Iterable[Job],
    *,
    store: Store,
    workers: int,
    executor: Executor | None = None,
    gpu: Executor | Callable[[], Executor | None] | None = None,
    gone: str = "what was to run it is gone",
    progress: Progress | None = None,
    held: dict[str, Held] | None = None,
    done: Callable[[Ran], None] | None = None,
    meanwhile: Iterable[object] = (),
) -> list[Ran]:
    """Run the demos whose inputs changed, and take the results of the others from the store.

    Each success is stored as soon as it is there, so an interrupted build loses nothing; failures
    are never stored. Those that took longest last time start first.

    Args:
        jobs: The demos.
        store: Where results are kept.
        workers: Demos at once; an executor of your own has its own number.
        executor: Runs `run_parcel`, here or elsewhere, for demos that need no GPU; by default
            threads of this process each wait for a process of this machine.
        gpu: The same for demos that need one, where there is an executor; or what gives it, if it
            is to be asked for only when a demo needs one.
        gone: What is said of a demo that the executor gave up without a reason.
        progress: Hears what is planned, what starts, and what became of it.
        held: Results that a server keeps in memory from build to build. It builds again after a
            save, so a demo that runs when its page is saved is ended.
        done: Called with what became of each job, in this thread, while others still run.
        meanwhile: Further work of the caller, a piece at a time; done to its end.

    Returns:
        What became of each job, in the order of the jobs.

    Raises:
        StoreError: The store cannot be written.
        OSError: A page's file cannot be read.
        MarginaliaError: An executor cannot be used.
    """

    @functools.cache
    def on_gpu() -> Executor | None:
        return gpu() if callable(gpu) else gpu

    def has_gpu() -> bool:
        return on_gpu() is not None if executor else keys.device_kind() == "cuda"

    if executor:  # of the GPUs that its machines may have, only those are known that a demo needs
        jobs = [replace(job, device=job.device or "cpu") for job in jobs]
    progress = progress or Progress()
    shelf = Shelf(store, held)
    batch = _Batch(list(jobs), shelf, has_gpu, progress, gone if executor else "")
    missing = batch.take_kept()
    progress.planned(batch.plan(missing, None if executor else workers))
    stop, running = isolation.Stop(), _Running()
    with _ended_cleanly(), ThreadPoolExecutor(max(1, workers)) as threads:

        def run(page: Page) -> Result:
            progress.started(page.job)
            with running.added(page) as one, stop.reaches(one):
                result = _run(page.job, one, digest(page.text))
                return _overtaken() if one.called and not stop.called else result

        def start(page: Page) -> Future[Result]:
            if executor is None:
                return threads.submit(run, page)
            chosen = (page.job.device == "cuda" and on_gpu()) or executor
            future = chosen.submit(run_parcel, page.job, page.parcel())
            progress.sent(page.job)
            return future

        try:
            look = None if held is None else running.end_overtaken
            batch.run(missing, start, done or _ignore, meanwhile, look)
        except BaseException:
            stop()
            threads.shutdown(cancel_futures=True)
            batch.salvage()
            raise
    return [batch.done[index] for index in range(len(batch.jobs))]


def _ignore(_: Ran) -> None:
    """Nobody waits for it."""


class _Running:
    """The demos that run in this moment, each with what ends it."""

    def __init__(self) -> None:
        self._now: dict[isolation.Stop, Page] = {}

    @contextmanager
    def added(self, page: Page) -> Iterator[isolation.Stop]:
        """A demo runs while this lasts."""
        stop = isolation.Stop()
        self._now[stop] = page
        try:
            yield stop
        finally:
            del self._now[stop]

    def end_overtaken(self) -> None:
        """End those whose pages have been saved meanwhile: nobody wants what they show."""
        for stop, page in self._now.copy().items():
            if not page.same():
                stop()


def _overtaken() -> Result:
    return Result(False, error=Failure("Changed", "it was saved again while it ran", 0))


@contextmanager
def _ended_cleanly() -> Iterator[None]:
    """While this lasts, a request to terminate is met as an interrupt is, and not at once."""
    usual = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not usual or threading.current_thread() is not threading.main_thread():
        yield
        return

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def leave(number: int, _: object) -> None:
    """Handle a signal as an interrupt is: what is open is left in order, temporary folders go."""
    signal.signal(number, signal.SIG_DFL)  # whoever asks twice means it
    sys.exit(128 + number)


_END = object()


class _Batch:
    """The jobs of one call of `run_all`, and what became of them so far.

    Args:
        jobs: The jobs.
        shelf: Where results are kept.
        has_gpu: Whether demos that need a GPU can run.
        progress: Hears what became of each.
        gone: What is said of a demo that an executor gave up; empty if there is no executor.
    """

    def __init__(
        self,
        jobs: list[Job],
        shelf: Shelf,
        has_gpu: Callable[[], bool],
        progress: Progress,
        gone: str,
    ) -> None:
        self.jobs = jobs
        self.done: dict[int, Ran] = {}
        self._shelf = shelf
        self._has_gpu = has_gpu
        self._progress = progress
        self._gone = gone
        self._before: dict[int, Page] = {}
        self._futures: dict[Future[Result], int] = {}

    def take_kept(self) -> list[int]:
        """Finish the jobs that need not or cannot run; the others, the longest first."""
        missing = []
        view = keys.View()
        for index, job in enumerate(self.jobs):
            try:
                page = Page(job, view)
            except (OSError, RecursionError) as error:  # it, or what it imports
                self._finish(index, _lost(error), "failed")
                continue
            kept = self._shelf.get(page)
            if job.device == "cuda" and not self._finds_gpu(kept):
                self._finish_without(index, page, kept)
            elif kept is not None:
                self._finish(index, kept.result, "cached", content=kept.content)
            else:
                self._before[index] = page
                missing.append(index)
        return sorted(missing, key=lambda i: self._shelf.seconds(self.jobs[i]), reverse=True)

    def _finds_gpu(self, kept: Held | None) -> bool:
        """Whether there is a GPU; if none can be asked, there is none for what is kept anyway."""
        try:
            return self._has_gpu()
        except MarginaliaError:
            if kept is None:
                raise
            return False

    def _finish_without(self, index: int, page: Page, kept: Held | None) -> None:
        """Finish a job that needs a GPU where there is none."""
        last = kept.result if kept else self._shelf.last(page)
        if last is None:
            self._finish(index, Result(True), "skipped")
        else:
            self._finish(index, last, "stored", outdated=kept is None)

    def plan(self, missing: list[int], workers: int | None) -> Plan:
        """What is to be done, once it is known what is kept."""
        done = [self.done[index] for index in sorted(self.done)]
        waiting = [self.jobs[index] for index in missing]
        return Plan(done, {job: self._shelf.seconds(job) for job in waiting}, workers)

    def run(
        self,
        indices: list[int],
        start: Callable[[Page], Future[Result]],
        done: Callable[[Ran], None],
        meanwhile: Iterable[object],
        look: Callable[[], None] | None,
    ) -> None:
        """Run jobs and store what succeeds; tell of every job, and get on with other work.

        Where there is nothing else to do, `look` is called from time to time.
        """
        kept = sorted(self.done)
        try:
            for index in indices:
                try:
                    self._futures[start(self._before[index])] = index
                except (RuntimeError, OSError) as error:  # it takes no more, or a file is gone
                    done(self._finish(index, _lost(error), "failed"))
            telling = map(done, [self.done[index] for index in kept])
            self._wait(done, chain(telling, meanwhile), look)
        finally:
            for future in self._futures:
                future.cancel()

    def _wait(
        self,
        done: Callable[[Ran], None],
        meanwhile: Iterator[object],
        look: Callable[[], None] | None,
    ) -> None:
        # Not with `concurrent.futures.wait`: an interrupt while it takes the locks of all futures
        # leaves them locked.
        finished = SimpleQueue[Future[Result]]()
        for future in self._futures:
            future.add_done_callback(finished.put)
        waiting, idle = len(self._futures), False
        while waiting or not idle:
            try:
                future = finished.get(block=idle, timeout=LOOK if look else None)
            except Empty:
                if idle and look:
                    look()
                idle = idle or next(meanwhile, _END) is _END
            else:
                waiting -= 1
                done(self._collect(future))

    def salvage(self) -> None:
        """Store what was finished when the batch was interrupted, without a word."""
        self._progress = Progress()
        for future, index in self._futures.items():
            if future.done() and not future.cancelled() and index not in self.done:
                self._collect(future)

    def _collect(self, future: Future[Result]) -> Ran:
        index = self._futures[future]
        try:
            result = future.result()
            result.date = result.date and today()  # as it is here, wherever it ran
        except Exception as error:  # whatever the executor lost it by
            result = _lost(error, self._gone)
        page = self._before[index]
        if self._gone:
            result = _as_here(page.job, result, self._shelf.only_here(page, result))
        self._shelf.put(page, result)
        return self._finish(index, result, "ran" if result.ok else "failed")

    def _finish(
        self,
        index: int,
        result: Result,
        status: Status,
        *,
        outdated: bool = False,
        content: str = "",
    ) -> Ran:
        content = content or digest(plain(result))
        self.done[index] = ran = Ran(self.jobs[index], result, status, outdated, content)
        if index in self._before:
            self._progress.finished(ran)
        return ran


def _lost(error: Exception, reason: str = "") -> Result:
    """The result of a job that was lost; the reason is for an error that has none."""
    return Result(False, error=Failure(type(error).__name__, str(error) or reason, 0))


def _as_here(job: Job, result: Result, only_here: list[str]) -> Result:
    """What a result from another machine says here, where it may lack files of this one."""
    places = [Path(os.path.normpath(job.root.absolute() / name)) for name in only_here]
    names = [f"`{place / '*' if place.is_dir() else place}`" for place in places]
    hint = UNDECLARED.format(", ".join(names)) if names else ELSEWHERE
    if result.error and (names or result.error.type == "FileNotFoundError"):
        result.error.message += f" ({hint})"
    elif names:
        return replace(result, ok=False, error=Failure("FileNotFoundError", hint, 0))
    return result
