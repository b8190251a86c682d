"""Run many demos, each in a process of its own, and only those whose inputs changed."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import signal
from bisect import bisect_right
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from marginalia import isolation, keys, worker
from marginalia.demo import Failure, Result, claim_source
from marginalia.errors import SourceError
from marginalia.source import read_source, split_lines
from marginalia.store import Store

MAX_BYTES = 64 * 2**20
LONGEST = 10.0**6  # seconds: more than the system's clocks take

Status = Literal["ran", "cached", "failed"]


@dataclass(frozen=True)
class Job:
    """One demo to run.

    Attributes:
        path: The page's file.
        root: The folder on the import path.
        shapes: Whether to record shapes.
        timeout: Seconds of wall-clock time that the demo may take.
        seed: For every random generator.
        max_bytes: How large the recorded result may be, as JSON.
    """

    path: Path
    root: Path
    shapes: bool = True
    timeout: float = 60.0
    seed: int = 0
    max_bytes: int = MAX_BYTES


@dataclass(frozen=True)
class Ran:
    """What became of a job: it ran now, its result was kept from before, or it failed."""

    job: Job
    result: Result
    status: Status


Progress = Callable[[Ran, int, int], None]


# One demo


def run_isolated(job: Job) -> Result:
    """Run a demo in a fresh process, and end everything that it started.

    Returns:
        What the demo showed. Whatever it did, this returns: a crash, an exit or the end of its time
        is a result that is not ok, and its error says which.
    """
    return _run(job, isolation.Stop())


def prepare() -> None:
    """Start what demos are forked from, and do not wait for it: the first demo has it then."""
    isolation.prepare()


def _run(job: Job, stop: isolation.Stop) -> Result:
    plain = {
        "path": str(job.path.absolute()),  # the demo has a working directory of its own
        "root": str(job.root.absolute()),
        "shapes": job.shapes,
        "seed": job.seed,
        "timeout": min(job.timeout, LONGEST),
        "max_bytes": job.max_bytes,
    }
    report = isolation.run(plain, stop)
    try:
        result = Result.from_json(json.loads(report.result))
    except (ValueError, LookupError, TypeError):  # nothing, or what the demo wrote over it
        seconds = job.timeout if report.end == "timeout" else 0.0
        result = Result(False, seconds=seconds, error=_failure(job, report))
    result.peak_mb = round(report.peak_mb or result.peak_mb, 1)
    return result


def _failure(job: Job, report: isolation.Report) -> Failure:
    """Why a process gave no result."""
    frames = _frames(job.path.absolute(), report.trace)
    line = frames[-1]["line"] if frames else 0
    return Failure(*_reason(job, report), line, frames)


def _reason(job: Job, report: isolation.Report) -> tuple[str, str]:
    """In place of an exception's type and message."""
    if report.end == "timeout":
        return "TimeLimit", f"it was still running after {job.timeout:g} s, its limit"
    if report.end == "stop":
        return "Interrupted", "the build was interrupted"
    if report.end == "lost":
        return "Lost", "its process vanished, and the process that guarded it"
    if report.size > job.max_bytes:
        size, limit = (f"{count / 2**20:.3g} MB" for count in (report.size, job.max_bytes))
        return "OutputLimit", f"what it put out takes {size}, and the limit is {limit}"
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


def _inputs(job: Job) -> keys.Inputs:
    return keys.inputs(job.path, job.root, {"shapes": job.shapes, "seed": job.seed})


def run_all(
    jobs: Iterable[Job],
    *,
    store: Store,
    workers: int,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> list[Ran]:
    """Run the demos whose inputs changed, and take the results of the others from the store.

    Each success is stored as soon as it is there, so an interrupted build loses nothing; failures
    are never stored. Those that took longest last time start first.

    Args:
        jobs: The demos.
        store: Where results are kept.
        workers: Demos at once; an executor of your own has its own number.
        executor: Runs `run_isolated` on jobs; by default threads that each wait for a process.
        progress: Called after each job with what became of it, how many are done, and of how many.

    Returns:
        What became of each job, in the order of the jobs.

    Raises:
        StoreError: The store cannot be written.
        OSError: A page's file cannot be read.
    """
    batch = _Batch(list(jobs), store, progress)
    missing = batch.take_kept()
    stop = isolation.Stop()
    with ThreadPoolExecutor(max(1, workers)) as threads:
        try:
            if executor is None:
                batch.run(missing, threads, functools.partial(_run, stop=stop))
            else:
                batch.run(missing, executor, run_isolated)
        except BaseException:
            stop()
            threads.shutdown(cancel_futures=True)
            batch.salvage()
            raise
    return [batch.done[index] for index in range(len(batch.jobs))]


class _Batch:
    """The jobs of one call of `run_all`, and what became of them so far."""

    def __init__(self, jobs: list[Job], store: Store, progress: Progress | None) -> None:
        self.jobs = jobs
        self.done: dict[int, Ran] = {}
        self._shelf = _Shelf(store)
        self._progress = progress
        self._before: dict[int, _Page] = {}
        self._futures: dict[Future[Result], int] = {}

    def take_kept(self) -> list[int]:
        """Finish the jobs whose results are kept; the others, those that take longest first."""
        missing = []
        for index, job in enumerate(self.jobs):
            page = _Page(job)
            result = self._shelf.get(page)
            if result is None:
                self._before[index] = page
                missing.append(index)
            else:
                self._finish(index, result, "cached")
        self._shelf.keep_findings()
        return sorted(missing, key=lambda i: self._shelf.seconds(self.jobs[i]), reverse=True)

    def run(
        self, indices: list[int], executor: Executor, function: Callable[[Job], Result]
    ) -> None:
        """Run jobs and store what succeeds."""
        try:
            for index in indices:
                try:
                    self._futures[executor.submit(function, self.jobs[index])] = index
                except BrokenExecutor as error:
                    self._finish(index, _lost(error), "failed")
            for future in as_completed(self._futures):
                self._collect(future)
        finally:
            for future in self._futures:
                future.cancel()

    def salvage(self) -> None:
        """Store what was finished when the batch was interrupted, without a word."""
        self._progress = None
        for future, index in self._futures.items():
            if future.done() and not future.cancelled() and index not in self.done:
                self._collect(future)

    def _collect(self, future: Future[Result]) -> None:
        index = self._futures[future]
        try:
            result = future.result()
        except Exception as error:  # whatever the executor lost it by
            result = _lost(error)
        self._shelf.put(self._before[index], result)
        self._finish(index, result, "ran" if result.ok else "failed")

    def _finish(self, index: int, result: Result, status: Status) -> None:
        self.done[index] = ran = Ran(self.jobs[index], result, status)
        if self._progress:
            self._progress(ran, len(self.done), len(self.jobs))


def _lost(error: Exception) -> Result:
    """The result of a job that the executor lost."""
    return Result(False, error=Failure(type(error).__name__, str(error), 0))


# Results that are kept


class _Page:
    """A page's source as it is now."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.inputs = _inputs(job)
        self.text, self._lines = "", tuple[int, ...]()
        with suppress(SourceError):  # it cannot run either
            self.text = read_source(job.path)
            self._lines = keys.lines(self.text)

    def same(self) -> bool:
        """Whether the source, and the code that it reaches, is still the same."""
        now = _Page(self.job)
        return now.text == self.text and now.inputs == self.inputs

    def to_code(self, line: int) -> int:
        """The number of a line among those of code, from 1: prose may move it, code may not."""
        return bisect_right(self._lines, line)

    def from_code(self, number: int) -> int:
        """The inverse of `to_code`."""
        return self._lines[number - 1] if number else 0


class _Shelf:
    """Results in a store: free of line numbers, and valid only while the files they read are."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._found = keys.memory.key()
        keys.memory.recall(store.get(self._found) or {})
        self._hashes: dict[Path, str] = {}

    def get(self, page: _Page) -> Result | None:
        """The result that running the page now would give, if it is kept."""
        entry = self._store.get(page.inputs.key)
        if entry is None or any(self._hash(page, n) != h for n, h in entry["reads"].items()):
            return None
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
            if os.path.realpath(page.job.root / name) not in page.inputs.files
        }
        kept = _numbered(result.to_json(), page.to_code)
        self._store.put(page.inputs.key, {"result": kept, "reads": reads})

    def keep_findings(self) -> None:
        """Keep what was found in sources for the next build."""
        found = keys.memory.to_keep()
        if found is not None:
            self._store.put(self._found, found)

    def seconds(self, job: Job) -> float:
        """How long a job took last time; a new one may take any time, so it goes first."""
        entry = self._store.get(_history_key(job))
        return float(entry["seconds"]) if entry else float("inf")

    def _hash(self, page: _Page, name: str) -> str:
        """The digest of a file that a demo reads; nothing if it is gone."""
        path = page.job.root / name
        if path not in self._hashes:
            try:
                self._hashes[path] = hashlib.sha256(path.read_bytes()).hexdigest()
            except OSError:
                self._hashes[path] = ""
        return self._hashes[path]


def _history_key(job: Job) -> str:
    name = os.path.relpath(job.path, job.root)
    return hashlib.sha256(f"seconds of {name}".encode()).hexdigest()


def _numbered(value: Any, number: Callable[[int], int]) -> Any:
    """A copy of a result's JSON with every line number replaced."""
    if isinstance(value, list):
        return [_numbered(item, number) for item in value]
    if isinstance(value, dict):
        return {
            name: number(item)
            if name in ("line", "end_line") and isinstance(item, int)
            else _numbered(item, number)
            for name, item in value.items()
        }
    return value
