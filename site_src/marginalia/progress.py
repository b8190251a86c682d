"""How far the demos are: a bar on a terminal, plain lines elsewhere, and a summary."""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from marginalia.jobs import Job, Plan, Progress, Ran
from marginalia.tally import Tally

LONG = 30.0  # seconds of a demo, or without any news, after which a log is told that all is well
PAUSE = 1.0  # seconds between two looks at how long that is
SLOW, SLOWEST = 1.0, 5  # seconds: quicker demos are not among the slowest; how many are named
NAME = 30  # characters of a name below the bar

_STATUSES = {
    "ran": "ran",
    "cached": "from the store",
    "stored": "stored",
    "skipped": "skipped",
    "failed": "failed",
}


@contextmanager
def reporter(log: logging.Logger, *, serving: bool = False) -> Iterator[Progress]:
    """What tells people how far `run_all` is, for as long as it runs.

    Args:
        log: Takes the plain lines and the summary; if it is to be quiet, so is this.
        serving: There is a build after every save: one that has nothing to run is not mentioned.
    """
    if not log.isEnabledFor(logging.INFO):
        yield Progress()
        return
    shown = _Bar(log, serving) if _can_draw() else _Lines(log, serving)
    try:
        yield shown
    finally:
        shown.close()


def _can_draw() -> bool:
    """Whether standard error is a terminal that moves its cursor.

    Rich alone would take the word of `FORCE_COLOR`, which is set for logs as well.
    """
    return sys.stderr.isatty() and Console(stderr=True).is_interactive


class _Reporter(Progress):
    """What both forms have in common."""

    def __init__(self, log: logging.Logger, serving: bool) -> None:
        self.log = log
        self._serving = serving
        self._start = time.monotonic()
        self.tally = Tally(Plan((), {}, None))

    def planned(self, plan: Plan) -> None:
        """Open, unless nothing is to run."""
        self._start = time.monotonic()
        self.tally = Tally(plan)
        if plan.waiting:
            self.open()
        elif not self._serving:
            self._summarize()

    def started(self, job: Job) -> None:
        """Count."""
        self.tally.start(job)

    def sent(self, job: Job) -> None:
        """Count."""
        self.tally.send(job)

    def finished(self, ran: Ran) -> None:
        """Count and tell; after the last one, sum up."""
        self.tally.finish(ran)
        self.tell(ran)
        if not self.tally.left:
            self.close()
            self._summarize()

    def open(self) -> None:
        """Something is to run."""

    def tell(self, ran: Ran) -> None:
        """A demo is over."""

    def close(self) -> None:
        """Nothing runs any more; called once or twice, also when nothing was opened."""

    def _summarize(self) -> None:
        done = self.tally.done
        if not done:
            return
        counts = [
            f"{number} {words}"
            for status, words in _STATUSES.items()
            if (number := self.tally.count(status))
        ]
        now = [ran for ran in done if ran.status in ("ran", "failed")]
        if now:
            counts.append(f"in {time.monotonic() - self._start:.1f} s")
        demos = "demo" if len(done) == 1 else "demos"
        self.log.info("%d %s: %s", len(done), demos, ", ".join(counts))
        slow = sorted(now, key=lambda ran: ran.result.seconds, reverse=True)
        for ran in slow[:SLOWEST]:
            if ran.result.seconds > SLOW:
                used = ran.result.seconds, ran.result.peak_mb
                self.log.info("slowest: %s, %.1f s, %.0f MB", _name(ran.job), *used)


# Elsewhere than on a terminal


class _Lines(_Reporter):
    """One line for each demo that is not simply taken from the store."""

    def __init__(self, log: logging.Logger, serving: bool) -> None:
        super().__init__(log, serving)
        self._over = threading.Event()
        self._news = time.monotonic()

    def open(self) -> None:
        """Say what need not or cannot run, and look after what runs."""
        total, number = self.tally.total, self.tally.count("cached")
        if number:
            self.log.info("%d of %d demos are in the store", number, total)
        for ran in self.tally.done:
            if ran.status != "cached":
                number += 1
                said = f"{_name(ran.job)} {ran.status}: it needs a GPU"
                self.log.info("[%d/%d] %s", number, total, said)
        threading.Thread(target=self._watch, daemon=True).start()

    def tell(self, ran: Ran) -> None:
        """Say that a demo is over, and what is left."""
        self._news = time.monotonic()
        left, seconds = self.tally.left, self.tally.seconds_left()
        rest = [f"{left} left"] if left else []
        if left and seconds is not None:
            rest.append(f"about {_rounded(seconds)}")
        said = f"{_name(ran.job)} {ran.status} in {ran.result.seconds:.1f} s"
        number, total = self.tally.total - left, self.tally.total
        more = f" ({', '.join(rest)})" if rest else ""
        self.log.info("[%d/%d] %s%s", number, total, said, more)

    def close(self) -> None:
        """Look no longer."""
        self._over.set()

    def _watch(self) -> None:
        """Say which demos take long, less and less often."""
        due: dict[Job, float] = {}
        patience = LONG
        while not self._over.wait(PAUSE):
            for job, seconds in self.tally.running():
                if seconds >= due.get(job, LONG):
                    due[job] = 2 * due.get(job, LONG)
                    limit = _rounded(job.limits.timeout)
                    said = f"has been running for {_rounded(seconds)}; its limit is {limit}"
                    self.log.info("%s %s", _name(job), said)
            silence = time.monotonic() - self._news
            patience = LONG if silence < LONG else patience
            if self.tally.sent and silence >= patience:
                patience *= 2
                said = f"of {self.tally.sent} demos that were sent for {_rounded(silence)}"
                self.log.info("no news %s", said)


# On a terminal


class _Bar(_Reporter):
    """A bar, what runs below it, and log lines above it."""

    def __init__(self, log: logging.Logger, serving: bool) -> None:
        super().__init__(log, serving)
        self._opened = ExitStack()

    def open(self) -> None:
        """Draw."""
        self._bars = _Bars(self.tally)
        self._opened.enter_context(self._bars)
        self._opened.enter_context(_logs_above(self._bars.console))

    def tell(self, ran: Ran) -> None:
        """Draw what is done."""
        self._bars.count()

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._opened.close()


class _Bars(Bars):
    """One bar of Rich's, with what is known of the demos."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        super().__init__(
            TextColumn("Demos"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            _Facts(tally),
            console=Console(stderr=True),
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,  # it may be a file
        )
        self._task = self.add_task("", total=tally.total)
        self.count()

    def count(self) -> None:
        """Draw how many are done."""
        self.update(self._task, completed=self._tally.total - self._tally.left)

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, and a line with what runs."""
        yield from super().get_renderables()
        running = [f"{_short(job)} {seconds:.0f} s" for job, seconds in self._tally.running()]
        if sent := self._tally.sent:
            running.append(f"{sent} sent")
        yield Text("  " + ", ".join(running), style="dim", no_wrap=True, overflow="ellipsis")


class _Facts(ProgressColumn):
    """What came from the store, what failed, and how long the rest takes."""

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._tally = tally

    def render(self, task: Task) -> Text:
        """As they are now."""
        facts = [
            f"{number} {_STATUSES[status]}"
            for status in ("cached", "failed")
            if (number := self._tally.count(status))
        ]
        seconds = self._tally.seconds_left()
        if seconds is not None:
            facts.append(f"about {_rounded(seconds)} left")
        return Text(", ".join(facts), no_wrap=True, overflow="ellipsis")


class _Above:
    """A stream for log records: whole lines, which a terminal breaks only where it must."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def write(self, text: str) -> None:
        """Print a record, with its colours."""
        self._console.print(Text.from_ansi(text.rstrip("\n")), soft_wrap=True)

    def flush(self) -> None:
        """Nothing waits."""


def _is_terminal(stream: Any) -> bool:
    return stream is not None and stream.isatty()


@contextmanager
def _logs_above(console: Console) -> Iterator[None]:
    """While this lasts, what is logged on the terminal appears above what is drawn there."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = {
        handler
        for logger in loggers
        if isinstance(logger, logging.Logger)
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler) and _is_terminal(handler.stream)
    }
    with ExitStack() as undo:
        for handler in handlers:
            undo.callback(handler.setStream, handler.stream)
            handler.setStream(_Above(console))
        yield


# Words


def _name(job: Job) -> str:
    return Path(os.path.relpath(job.path, job.root)).as_posix()


def _short(job: Job) -> str:
    name = _name(job).removesuffix(".py")
    return name if len(name) <= NAME else f"…{name[1 - NAME :]}"


def _rounded(seconds: float) -> str:
    return f"{max(1, math.ceil(seconds))} s" if seconds < 100 else f"{seconds / 60:.0f} min"
