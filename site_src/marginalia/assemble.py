"""All pages of a site from a folder of modules: read, run, render. Knows no builder."""

from __future__ import annotations

import logging
import os
import posixpath
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Literal

from marginalia import api, catalog, companion, page
from marginalia.catalog import Catalog, Check
from marginalia.collection import Entry
from marginalia.demo import Result, has_demo
from marginalia.errors import MarginaliaError, SourceError
from marginalia.links import Index
from marginalia.paper import Paper, discover, load, url_of
from marginalia.rows import Row, parse
from marginalia.runner import Job, Ran, run_all
from marginalia.source import read_source
from marginalia.store import Store

log = logging.getLogger("mkdocs.plugins.marginalia")

DEFAULT_TIMEOUT = 60.0
MAX_STORE = 2_000_000_000  # bytes of finished demos; those used longest ago go first

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
        docs: Hand-written pages: guides, and the opening of the home page.
        site_name: Title of a home page that nobody wrote.
        directory_urls: Whether `a.md` becomes `a/` (else `a.html`).
    """

    papers: Path
    cache: Path
    workers: int
    timeout: float = DEFAULT_TIMEOUT
    shapes: bool = True
    companion: bool = False
    api: bool = False
    docs: Path | None = None
    site_name: str = "Annotated papers"
    directory_urls: bool = True


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
    nav: list[dict[str, str]] = field(default_factory=list)
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
    assembly = _Assembly(options)
    assembly.read()
    assembly.run(progress, executor)
    assembly.render()
    site = assembly.site
    site.report.pages.sort(key=lambda report: report.source)
    site.report.seconds = time.perf_counter() - start
    return site


class _Assembly:
    """A site in the making: read, then run, then render."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.site = Site()
        self.index = Index()
        self.modules: list[_Module] = []
        self.results: dict[str, Ran] = {}
        self.library: companion.Companion | None = None

    def read(self) -> None:
        """Read every module; one that cannot be read gets a page that says so."""
        for path in discover(self.options.papers):
            try:
                self.modules.append(self._module(path))
            except SourceError as error:
                self._broken(path, error)
            except Exception as error:  # a fault of ours must not take the other pages with it
                log.exception("%s cannot be read", path)
                self._broken(path, SourceError(path, 1, 1, _fault(error)))
        if self.options.companion:
            self.library = companion.labml(self.index)

    def _module(self, path: Path) -> _Module:
        text = read_source(path)
        rows = tuple(parse(text, path))
        paper = load(path, self.options.papers)
        self.index.add(paper.module, text, paper.url)
        return _Module(paper, text, rows)

    def run(self, progress: Progress | None, executor: Executor | None) -> None:
        """Run the demos that changed since they were last run."""
        options = self.options
        jobs = [
            Job(
                path=module.paper.path,
                root=options.papers,
                shapes=options.shapes and module.paper.shapes,
                timeout=module.paper.timeout or options.timeout,
            )
            for module in self.modules
            if has_demo(module.text)
        ]
        store = Store(options.cache)
        ran = run_all(
            jobs, store=store, workers=options.workers, executor=executor, progress=progress
        )
        store.prune(MAX_STORE)
        by_path = {one.job.path: one for one in ran}
        for module in self.modules:
            one = by_path.get(module.paper.path)
            if one:
                self.results[module.paper.module] = one
            self._report(module, one)

    def render(self) -> None:
        """Write all pages."""
        papers = [module.paper for module in self.modules]
        index = catalog.load(self.options.papers, self.options.docs, papers)
        for module in self.modules:
            try:
                self._paper(module, index)
            except Exception as error:  # as above
                log.exception("%s cannot be rendered", module.paper.path)
                self._unrendered(module, error)
        if self.options.api:
            self._api()
        if self.library:
            self._companion(self.library, index)
        extra = self._extra_pages()
        checks = {name: _check(ran) for name, ran in self.results.items()}
        written = catalog.pages(index, checks, site_name=self.options.site_name, extra=extra)
        for entry in index.entries:
            if entry.source in written:
                written[entry.source] += self._companion_section(entry)
        self.site.pages = written | self.site.pages
        self.site.nav = list(catalog.nav(index, extra))

    def _broken(self, path: Path, error: SourceError) -> None:
        source = path.relative_to(self.options.papers).as_posix()
        url = url_of(path, self.options.papers)
        raw = path.read_bytes().decode("utf-8", "replace")
        self.site.pages[f"{url.rstrip('/') or 'index'}.md"] = page.error_page(source, error, raw)
        self.site.report.pages.append(PageReport(source, url, "failed", reason=str(error)))

    def _unrendered(self, module: _Module, error: Exception) -> None:
        reports = self.site.report.pages
        mine = next(n for n, one in enumerate(reports) if one.url == module.paper.url)
        reason = _fault(error)
        reports[mine] = replace(reports[mine], status="failed", reason=reason)
        wrong = SourceError(module.paper.path, 1, 1, reason)
        page_of_error = page.error_page(reports[mine].source, wrong, module.text)
        self.site.pages[module.paper.src_uri] = page_of_error

    def _report(self, module: _Module, ran: Ran | None) -> None:
        source = module.paper.path.relative_to(self.options.papers).as_posix()
        report = PageReport(source, module.paper.url, "static")
        if ran:
            report = PageReport(
                source, module.paper.url, ran.status, ran.result.seconds, _reason(ran.result)
            )
        self.site.report.pages.append(report)

    def _paper(self, module: _Module, index: Catalog) -> None:
        ran = self.results.get(module.paper.module)
        made = page.render(
            module.paper,
            module.text,
            module.rows,
            ran.result if ran else None,
            page.Context(
                index=self.index,
                address=self._addresses(module.paper.url),
                root=self.options.papers,
                ran=_ran(ran.result) if ran else "",
            ),
            self._extras(module, index),
        )
        self.site.add(module.paper.src_uri, made)

    def _extras(self, module: _Module, index: Catalog) -> page.Extras:
        paper = module.paper
        entry = index.names[paper.module]
        topic = index.topics[entry.topic]
        note = index.note_for(paper)
        after = [catalog.note_section(note) if note else ""]
        after.append(self._companion_section(entry))
        return page.Extras(
            crumbs=(("Topics", catalog.TOPICS), (topic.title, f"topics/{topic.slug}.md")),
            compare=tuple(
                (*_near(index.names[name]), change) for name, change in paper.compare.items()
            ),
            after_rows="\n\n".join(filter(None, after)),
            api=api.url_of(paper) if self.options.api else "",
            meta={"tags": list(paper.tags)} if paper.tags else {},
        )

    def _companion_section(self, entry: Entry) -> str:
        """Links to the companion's pages on the same paper, for the end of a page."""
        related = self.library.about(entry.arxiv) if self.library and entry.arxiv else []
        if not related:
            return ""
        here = posixpath.dirname(entry.source) or "."
        links = [f"- [{title}]({posixpath.relpath(source, here)})" for title, source in related]
        return "\n".join(["\n## In the companion library\n", *links, ""])

    def _api(self) -> None:
        documented = [m for m in self.modules if api.public(m.text)]
        for module in documented:
            source = api.source_of(module.paper)
            self.site.pages[source] = api.page(module.paper, module.text)
        if documented:
            listed = [(module.paper, module.text) for module in documented]
            self.site.pages[api.INDEX] = api.index(listed)

    def _companion(self, library: companion.Companion, index: Catalog) -> None:
        ours = {entry.arxiv: entry for entry in reversed(index.entries) if entry.arxiv}
        for module in library.modules:
            entries = [ours[arxiv] for arxiv in module.arxiv if arxiv in ours]
            links = [(entry.title, entry.source) for entry in entries]
            url = library.url_of(module)
            made = library.page(module, self.index, self._addresses(url), links)
            self.site.add(library.source_of(module), made)
        self.site.dangling = library.dangling

    def _extra_pages(self) -> dict[str, str]:
        extra = {}
        if self.library:
            extra["Companion library"] = self.library.index_source
        if api.INDEX in self.site.pages:
            extra["API"] = api.INDEX
        return extra

    def _addresses(self, url: str) -> Callable[[str], str]:
        """Addresses of the site, seen from the page at `url`."""

        def address(target: str) -> str:
            path, mark, anchor = target.partition("#")
            is_page = path.endswith("/") or not path
            if is_page and not self.options.directory_urls:
                path = self._html_file(path)
            relative = posixpath.relpath(path or ".", here or ".")
            return relative + ("/" if path.endswith("/") else "") + mark + anchor

        here = url if self.options.directory_urls else posixpath.dirname(self._html_file(url))
        return address

    def _html_file(self, url: str) -> str:
        """The file of the page at `url`, where pages have no folders of their own."""
        return f"{url}index.html" if f"{url}index.md" in self._indexes else f"{url[:-1]}.html"

    @cached_property
    def _indexes(self) -> frozenset[str]:
        """The pages of folders."""
        inside = map(self.library.source_of, self.library.modules) if self.library else ()
        return frozenset({"index.md", catalog.TOPICS, api.INDEX, *inside})


def _fault(error: Exception) -> str:
    return f"the generator failed: {type(error).__name__}: {error}"


def _reason(result: Result) -> str:
    error = result.error
    if error is None:
        return ""
    place = f"line {error.line}: " if error.line else ""
    return f"{place}{error.type}: {error.message}"


def _check(ran: Ran) -> Check:
    return Check(claims=sum(claim.ok for claim in ran.result.claims), status=ran.status)


def _ran(result: Result) -> str:
    if not result.ok:
        return ""
    device = "CPU" if result.device == "cpu" else result.device.removeprefix("cuda: ")
    day = date.fromisoformat(result.date)
    return f"ran in {result.seconds:.1f} s on {device}, {day.day} {day:%B %Y}"


def _near(entry: Entry) -> tuple[str, str]:
    return entry.short or entry.title.partition(":")[0], entry.source
