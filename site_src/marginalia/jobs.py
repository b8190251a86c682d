"""A demo that is to run, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from marginalia import keys
from marginalia.demo import Result
from marginalia.limits import DEFAULTS, Limits
from marginalia.paper import Paper

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

    @classmethod
    def of(cls, paper: Paper, root: Path, limits: Limits, *, shapes: bool) -> Job:
        """The demo of a module, with what its front matter says.

        Args:
            paper: The module.
            root: The folder on the import path.
            limits: What a demo may use.
            shapes: Whether to record shapes.
        """
        return cls(
            path=paper.path,
            root=root,
            shapes=shapes and paper.shapes,
            limits=limits.with_those_of(paper.limits),
            network=paper.network,
            device=paper.device,
            data=paper.data,
        )


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


def key(job: Job) -> str:
    """The key under which the result of a job is kept: equal if all its inputs are equal.

    Raises:
        OSError: The page's file cannot be read.
    """
    return inputs_of(job).key


def inputs_of(job: Job, view: keys.View | None = None) -> keys.Inputs:
    """All that the result of a job depends on.

    Args:
        job: The job.
        view: The files, read once for many jobs.

    Raises:
        OSError: The page's file cannot be read.
    """
    options = {"shapes": job.shapes, "seed": job.seed, "network": job.network}
    return keys.inputs(job.path, job.root, options, device=job.device, data=job.data, view=view)
