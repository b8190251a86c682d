"""All pages of a site from a folder of modules: read, run, render. Knows no builder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from marginalia import api, catalog, companion, page
from marginalia.demo import Result, has_demo
from marginalia.errors import MarginaliaError, SourceError
from marginalia.links import Index
from marginalia.paper import Paper, discover, load
from marginalia.rows import Row, is_script, parse, read_source
from marginalia.runner import Job, Ran, run_all
from marginalia.store import Store

DEFAULT_TIMEOUT = 60.0

Progress = Callable[[Ran, int, int], None]
Status = Literal["ran", "cached", "failed", "static"]


@dataclass(frozen=True, slots=True)
class Options:
    """What a site is made from.

    Attributes:
        papers: The folder of modules, on the import path of their demos.
        cache: Where finished demos are kept.
        workers: Demos at once.
        timeout: Seconds that one demo may take.
        shapes: Whether to record shapes.
        companion: Whether to render the installed companion library.
        api: Whether to write pages for mkdocstrings.
        docs: Hand-written pages, to link guides to; None without.
    """

    papers: Path
    cache: Path
    workers: int
    timeout: float = DEFAULT_TIMEOUT
    shapes: bool = True
    companion: bool = False
    api: bool = False
    docs: Path | None = None


@dataclass(frozen=True, slots=True)
class PageReport:
    """What happened to one module.

    Attributes:
        source: The file, relative to the folder of modules.
        url: Its page, relative to the site.
        status: `"static"` has no demo; `"cached"` has not changed since it last ran.
        seconds: Time of the demo.
        reason: Why it failed.
    """

    source: str
    url: str
    status: Status
    seconds: float = 0.0
    reason: str = ""


@dataclass(slots=True)
class Report:
    """What happened to the whole site."""

    pages: list[PageReport] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def failed(self) -> list[PageReport]:
        """The modules that are not right."""
        return [page for page in self.pages if page.status == "failed"]


@dataclass(slots=True)
class Site:
    """A site before a builder has it.

    Attributes:
        pages: Markdown by source path (`"attention/squeeze-excitation.md"`).
        files: Other files by site path.
        nav: The navigation, as MkDocs takes it.
        report: What happened to each module.
        dangling: Links of the companion library that lead nowhere.
    """

    pages: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    nav: list[object] = field(default_factory=list)
    report: Report = field(default_factory=Report)
    dangling: list[companion.Dangling] = field(default_factory=list)

    def add(self, source: str, made: page.Page) -> None:
        """Take a rendered page and the files beside it."""
        self.pages[source] = made.markdown
        self.files.update(made.files)


@dataclass(frozen=True, slots=True)
class _Module:
    """A module that could be read."""

    paper: Paper
    text: str
    rows: tuple[Row, ...]


def default_workers() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def assemble(
    options: Options, *, progress: Progress | None = None, executor: Executor | None = None
) -> Site:
    """Read every module, run the demos that changed, and render all pages.

    Args:
        options: What to build.
        progress: Called after each demo with what it gave, how many are done, and of how many.
        executor: Runs the demos; by default processes on this machine.

    Returns:
        The site. A module that cannot be read or whose demo fails is in `report.failed`; its page
        shows why, and the rest of the site is whole.

    Raises:
        MarginaliaError: There is no folder of modules, or its catalogue is wrong.
    """
    if not options.papers.is_dir():
        raise MarginaliaError(f"there is no folder of modules at {options.papers}")
    start = time.perf_counter()
    site = Site()
    modules = _read(options, site)
    results = _run(options, modules, progress, executor)
    ...
    site.report.pages.sort(key=lambda report: report.source)
    site.report.seconds = time.perf_counter() - start
    return site
