"""What is done of a build's demos, what runs, and how long the rest will take."""

from __future__ import annotations

import math
import threading
import time

from marginalia.jobs import Job, Plan, Ran


class Tally:
    """Told by one thread or several, asked by others.

    Args:
        plan: What is to be done.

    Attributes:
        total: How many demos the site has.
    """

    def __init__(self, plan: Plan) -> None:
        self.total = len(plan.done) + len(plan.waiting)
        self._done = list(plan.done)
        self._left = dict(plan.waiting)
        self._workers = plan.workers
        self._starts: dict[Job, float] = {}
        self._sent: set[Job] = set()
        self._lock = threading.Lock()

    def start(self, job: Job) -> None:
        """A demo runs now."""
        with self._lock:
            self._starts[job] = time.monotonic()

    def send(self, job: Job) -> None:
        """An executor has a demo now."""
        with self._lock:
            self._sent.add(job)

    def finish(self, ran: Ran) -> None:
        """A demo is over now."""
        with self._lock:
            self._left.pop(ran.job, None)
            self._starts.pop(ran.job, None)
            self._sent.discard(ran.job)
            self._done.append(ran)

    @property
    def done(self) -> list[Ran]:
        """Those that are over, or need not run."""
        with self._lock:
            return list(self._done)

    @property
    def left(self) -> int:
        """How many are still to come."""
        return len(self._left)

    @property
    def sent(self) -> int:
        """How many an executor has."""
        return len(self._sent)

    def count(self, status: str) -> int:
        """How many of those that are done have a status."""
        return sum(ran.status == status for ran in self.done)

    def running(self) -> list[tuple[Job, float]]:
        """What runs on this machine and for how many seconds, what started first first."""
        now = time.monotonic()
        with self._lock:
            return [(job, now - start) for job, start in self._starts.items()]

    def seconds_left(self) -> float | None:
        """How long the rest will take if each demo takes as long as last time.

        One that never ran counts as the mean of the others. None if too little is known.
        """
        with self._lock:
            mean = self._mean()
            if self._workers is None or mean is None:
                return None
            now = time.monotonic()
            rest = [
                (seconds if math.isfinite(seconds) else mean) - (now - self._starts.get(job, now))
                for job, seconds in self._left.items()
            ]
        rest = [max(0.0, seconds) for seconds in rest]
        return max(sum(rest) / self._workers, *rest, 0.0)

    def _mean(self) -> float | None:
        """Seconds of a demo; those that ran on another machine's GPU say nothing."""
        here = [ran.result.seconds for ran in self._done if ran.status != "stored"]
        known = [s for s in [*here, *self._left.values()] if s and math.isfinite(s)]
        return sum(known) / len(known) if known else None
