"""Run many demos, each in a process of its own, and only those whose inputs changed."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import signal
import sys
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal

from marginalia import isolation, keys, worker
from marginalia.contents import content
from marginalia.demo import Failure, Result, claim_source, today
from marginalia.errors import MarginaliaError, SourceError
from marginalia.limits import DEFAULTS, Limits
from marginalia.memo import digest, plain
from marginalia.parcel import Parcel, at_home, pack, unpacked
from marginalia.source import as_it_is, read_source, split_lines
from marginalia.store import Store

LONGEST = 10.0**6  # seconds: more than the system's clocks take

UNDECLARED = " (a demo that runs elsewhere has the files that `data:` in its front matter names)"

Status = Literal["ran", "cached", "failed", "stored", "skipped"]


@dataclass(frozen=True)
class Job:
    """One demo to run.

    Attributes:
        path: The page's file.
        root: The folder on the import path.
        shapes: Whether to record shapes.
        limits: What it may use.
        network: Whether it may use the network.
        device: ``"cuda"`` runs only where there is a GPU, ``"cpu"`` sees none; by default it finds
            what the machine has.
        data: Files that it reads: inputs like its sources.
        seed: For every random generator.
    """

    path: Path
    root: Path
    shapes: bool = True
    limits: Limits = DEFAULTS
    network: bool = False
    device: str = ""
    data: tuple[Path, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Ran:
    """What became of a job.

    Attributes:
        job: The job.
        result: What its demo showed; of one that was skipped, nothing.
        status: It ran now, its result was kept from before, or it failed. A demo that needs a GPU
            where there is none shows its last run that was stored, or is skipped.
        outdated: Whether what it reaches is not the same as in that stored run.
        content: A digest of the result.
    """

    job: Job
    result: Result
    status: Status
    outdated: bool = False
    content: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done for the jobs of one `run_all`.

    Attributes:
        done: Those that need not or cannot run.
        waiting: Those that are to run, in the order of their starts, with the seconds that each
            took last time; infinity for one that never ran.
        workers: Demos at once; None where an executor decides.
    """

    done: Sequence[Ran]
    waiting: Mapping[Job, float]
    workers: int | None


class Progress:
    """Hears how far `run_all` is; this one keeps it to itself.

    `started` is called by threads of their own, all else by the thread of `run_all`.
    """

    def planned(self, plan: Plan) -> None:
        """It is known what is to be done; called once, before anything else."""

    def started(self, job: Job) -> None:
        """A demo starts on this machine."""

    def sent(self, job: Job) -> None:
        """An executor has a demo: when it starts there is not known."""

    def finished(self, ran: Ran) -> None:
        """A job that was waiting is done."""


@dataclass(frozen=True)
class Held:
    """A stored result as it stands in memory.

    Attributes:
        page: The page as it was.
        result: The result, with its line numbers.
        reads: The files that it read, and their digests.
        content: A digest of the result.
    """

    page: _Page
    result: Result
    reads: dict[str, str]
    content: str


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
        result = run_isolated(here)
        if result.error and result.error.type == "FileNotFoundError":
            result.error.message += UNDECLARED
        return Result.from_json(at_home(parcel, folder, result.to_json()))


class OtherMachineError(MarginaliaError):
    """A machine that is to run a demo has other versions than the one that asks for it."""


def _run(job: Job, stop: isolation.Stop) -> Result:
    plain = {
        "path": str(job.path.absolute()),  # the demo has a working directory of its own
        "root": str(job.root.absolute()),
        "shapes": job.shapes,
        "seed": job.seed,
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


def key(job: Job) -> str:
    """The key under which the result of a job is kept: equal if all its inputs are equal.

    Raises:
        OSError: The page's file cannot be read.
    """
    return _inputs(job).key


def _inputs(job: Job, view: keys.View | None = None) -> keys.Inputs:
    options = {"shapes": job.shapes, "seed": job.seed, "network": job.network}
    return keys.inputs(job.path, job.root, options, device=job.device, data=job.data, view=view)


def run_all(
    jobs: Iterable[Job],
    *,
    store: Store,
    workers: int,
    executor: Executor | None = None,
    gpu: Executor | None = None,
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
        gpu: The same for demos that need one, where there is an executor.
        progress: Hears what is planned, what starts, and what became of it.
        held: Results that a server keeps in memory from build to build.
        done: Called with what became of each job, in this thread, while others still run.
        meanwhile: Further work of the caller, a piece at a time; done to its end.

    Returns:
        What became of each job, in the order of the jobs.

    Raises:
        StoreError: The store cannot be written.
        OSError: A page's file cannot be read.
    """
    has_gpu = gpu is not None if executor else keys.device_kind() == "cuda"
    if executor:  # of the GPUs that its machines may have, only those are known that a demo needs
        jobs = [replace(job, device=job.device or "cpu") for job in jobs]
    progress = progress or Progress()
    batch = _Batch(list(jobs), _Shelf(store, held), has_gpu, progress)
    missing = batch.take_kept()
    progress.planned(batch.plan(missing, None if executor else workers))
    stop = isolation.Stop()
    with _ended_cleanly(), ThreadPoolExecutor(max(1, workers)) as threads:

        def run(job: Job) -> Result:
            progress.started(job)
            return _run(job, stop)

        def start(page: _Page) -> Future[Result]:
            if executor is None:
                return threads.submit(run, page.job)
            chosen = gpu if gpu and page.job.device == "cuda" else executor
            future = chosen.submit(run_parcel, page.job, page.parcel())
            progress.sent(page.job)
            return future

        try:
            batch.run(missing, start, done or _ignore, meanwhile)
        except BaseException:
            stop()
            threads.shutdown(cancel_futures=True)
            batch.salvage()
            raise
    return [batch.done[index] for index in range(len(batch.jobs))]


def _ignore(_: Ran) -> None:
    """Nobody waits for it."""


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
    """The jobs of one call of `run_all`, and what became of them so far."""

    def __init__(self, jobs: list[Job], shelf: _Shelf, has_gpu: bool, progress: Progress) -> None:
        self.jobs = jobs
        self.done: dict[int, Ran] = {}
        self._shelf = shelf
        self._has_gpu = has_gpu
        self._progress = progress
        self._before: dict[int, _Page] = {}
        self._futures: dict[Future[Result], int] = {}

    def take_kept(self) -> list[int]:
        """Finish the jobs that need not or cannot run; the others, the longest first."""
        missing = []
        view = keys.View()
        for index, job in enumerate(self.jobs):
            try:
                page = _Page(job, view)
            except (OSError, RecursionError) as error:  # it, or what it imports
                self._finish(index, _lost(error), "failed")
                continue
            kept = self._shelf.get(page)
            if job.device == "cuda" and not self._has_gpu:
                self._finish_without(index, page, kept)
            elif kept is not None:
                self._finish(index, kept.result, "cached", content=kept.content)
            else:
                self._before[index] = page
                missing.append(index)
        return sorted(missing, key=lambda i: self._shelf.seconds(self.jobs[i]), reverse=True)

    def _finish_without(self, index: int, page: _Page, kept: Held | None) -> None:
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
        start: Callable[[_Page], Future[Result]],
        done: Callable[[Ran], None],
        meanwhile: Iterable[object],
    ) -> None:
        """Run jobs and store what succeeds; tell of every job, and get on with other work."""
        kept = sorted(self.done)
        try:
            for index in indices:
                try:
                    self._futures[start(self._before[index])] = index
                except (RuntimeError, OSError) as error:  # it takes no more, or a file is gone
                    done(self._finish(index, _lost(error), "failed"))
            telling = map(done, [self.done[index] for index in kept])
            self._wait(done, chain(telling, meanwhile))
        finally:
            for future in self._futures:
                future.cancel()

    def _wait(self, done: Callable[[Ran], None], meanwhile: Iterator[object]) -> None:
        # Not with `concurrent.futures.wait`: an interrupt while it takes the locks of all futures
        # leaves them locked.
        finished = SimpleQueue[Future[Result]]()
        for future in self._futures:
            future.add_done_callback(finished.put)
        waiting, idle = len(self._futures), False
        while waiting or not idle:
            try:
                future = finished.get(block=idle)
            except Empty:
                idle = next(meanwhile, _END) is _END
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
            result = _lost(error)
        self._shelf.put(self._before[index], result)
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


def _lost(error: Exception) -> Result:
    """The result of a job that the executor lost."""
    reason = str(error) or "what was to run it is gone"
    return Result(False, error=Failure(type(error).__name__, reason, 0))


# Results that are kept


class _Page:
    """A page's source as it is now; equal to another if both are the same."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, job: Job, view: keys.View | None = None) -> None:
        self.job = job
        self.inputs = _inputs(job, view)
        self.text, self._lines = "", tuple[int, ...]()
        with suppress(SourceError):  # it cannot run either
            self.text = read_source(job.path)
            self._lines = keys.lines(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Page) and (self.text, self.inputs) == (other.text, other.inputs)

    def same(self) -> bool:
        """Whether the source, and the code that it reaches, is still the same."""
        try:
            with as_it_is():
                return _Page(self.job) == self
        except OSError:  # it is gone
            return False

    def parcel(self) -> Parcel:
        """Its files by value.

        Raises:
            OSError: One cannot be read any more.
        """
        return pack(self.job.path, self.job.root, self.inputs)

    def to_code(self, line: int) -> int:
        """The number of a line among those of code, from 1: prose may move it, code may not."""
        return bisect_right(self._lines, line)

    def from_code(self, number: int) -> int:
        """The inverse of `to_code`."""
        return self._lines[number - 1] if number else 0


class _Shelf:
    """Results in a store: free of line numbers, and valid only while the files they read are."""

    def __init__(self, store: Store, held: dict[str, Held] | None) -> None:
        self._store = store
        self._held = held
        self._hashes: dict[Path, str] = {}

    def get(self, page: _Page) -> Held | None:
        """The result that running the page now would give, if it is kept."""
        name = str(page.job.path)
        kept = self._held.get(name) if self._held else None
        if kept is None or kept.page != page:
            if page.job.device == "cuda":
                self._store.get(_last_key(page))  # used now too: one is not kept without the other
            entry = self._store.get(page.inputs.key)
            if entry is None:
                return None
            result = self._result(page, entry)
            kept = Held(page, result, entry["reads"], digest(plain(result)))
        if any(self._hash(page, file) != content for file, content in kept.reads.items()):
            return None
        if self._held is not None:
            self._held[name] = kept
        return kept

    def last(self, page: _Page) -> Result | None:
        """The result of the last run of the page's own code, whatever it reached then."""
        pointer = self._store.get(_last_key(page))
        entry = self._store.get(pointer["key"]) if pointer else None
        return self._result(page, entry) if entry else None

    def _result(self, page: _Page, entry: dict[str, Any]) -> Result:
        """A kept result, with the line numbers and the sources that the page has now."""
        result = Result.from_json(_numbered(entry["result"], page.from_code))
        for claim in result.claims:
            claim.source = claim_source(page.text, claim)
        result.dependencies = {name: self._hash(page, name) for name in result.dependencies}
        return result

    def put(self, page: _Page, result: Result) -> None:
        """Keep a result, unless it failed or its inputs changed while it ran."""
        if result.seconds:
            self._store.put(_history_key(page.job), {"seconds": result.seconds})
        if not result.ok or not page.same():
            return
        reads = {
            name: digest
            for name, digest in result.dependencies.items()
            if name in result.read
            or os.path.realpath(page.job.root / name) not in page.inputs.files
        }
        kept = _numbered(result.to_json(), page.to_code)
        self._store.put(page.inputs.key, {"result": kept, "reads": reads})
        if page.job.device == "cuda":
            self._store.put(_last_key(page), {"key": page.inputs.key})

    def seconds(self, job: Job) -> float:
        """How long a job took last time; a new one may take any time, so it goes first."""
        entry = self._store.get(_history_key(job))
        return float(entry["seconds"]) if entry else float("inf")

    def _hash(self, page: _Page, name: str) -> str:
        """The digest of a file that a demo reads; nothing if it is gone."""
        path = page.job.root / name
        if path not in self._hashes:
            self._hashes[path] = content(path)
        return self._hashes[path]


def _history_key(job: Job) -> str:
    name = os.path.relpath(job.path, job.root)
    return hashlib.sha256(os.fsencode(f"seconds of {name}")).hexdigest()


def _last_key(page: _Page) -> str:
    """Where the key of the last run on a GPU is kept: of this code, for it places the outputs."""
    name = os.path.relpath(page.job.path, page.job.root)
    what = [name, page.inputs.code, page.job.shapes, page.job.seed, page.job.network]
    return hashlib.sha256(os.fsencode(f"last run on cuda of {what}")).hexdigest()


def _numbered(result: Mapping[str, Any], number: Callable[[int], int]) -> dict[str, Any]:
    """A copy of a result's JSON with every line number replaced."""

    def placed(record: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: number(value) if name in ("line", "end_line") else value
            for name, value in record.items()
        }

    lists = {name: [placed(one) for one in result[name]] for name in _PLACED}
    error = result["error"]
    if error:
        error = {**placed(error), "frames": [placed(frame) for frame in error["frames"]]}
    return {**result, **lists, "error": error}


_PLACED = ("outputs", "shapes", "claims")
