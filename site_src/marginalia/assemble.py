"""All pages of a site from a folder of modules: read, run, render. Knows no builder."""

from __future__ import annotations

import json
import logging
import posixpath
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from marginalia import ahead, api, catalog, cluster, companion, keys, page
from marginalia.catalog import Catalog, Check
from marginalia.collection import Entry
from marginalia.demo import Result
from marginalia.errors import MarginaliaError, SourceError
from marginalia.jobs import Job, Progress, Ran
from marginalia.limits import MB
from marginalia.links import Index
from marginalia.memo import Memo, digest
from marginalia.options import Options
from marginalia.paper import Paper, discover, named, url_of
from marginalia.reading import Module, read
from marginalia.report import PageReport, Report, failure_of
from marginalia.rows import parse
from marginalia.runner import run_all
from marginalia.source import Symbol, deep_trees, held_still
from marginalia.store import Store

log = logging.getLogger("mkdocs.plugins.marginalia")

_WORD = re.compile(r"\w+")

MOST_PREPARED = 200  # pages that wait for their demos: up to half a MB each


@dataclass(slots=True)
class Site:
    """A site before a builder has it.

    Attributes:
        pages: Markdown by source path (`"attention/squeeze-excitation.md"`).
        files: Other files by site path.
        nav: The navigation, as MkDocs takes it.
        report: What happened to each module.
        dangling: Links of the companion library that lead nowhere.
        reads: For a page whose Markdown is filled in by others: a digest of what they read.
    """

    pages: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    nav: list[dict[str, str]] = field(default_factory=list)
    report: Report = field(default_factory=Report)
    dangling: list[companion.Dangling] = field(default_factory=list)
    reads: dict[str, str] = field(default_factory=dict)

    def add(self, source: str, made: page.Page) -> None:
        """Take a rendered page and the files beside it."""
        self.pages[source] = made.markdown
        self.files.update(made.files)


def assemble(
    options: Options,
    *,
    progress: Progress | None = None,
    executor: Executor | None = None,
    memo: Memo | None = None,
) -> Site:
    """Read every module, run the demos that changed, and render all pages.

    Args:
        options: What to build.
        progress: Hears which demos are to run, which start, and what became of them.
        executor: Runs the demos; by default processes on this machine.
        memo: Knows pages of earlier builds; by default as they were kept in the cache.

    Returns:
        The site. A module that cannot be read or whose demo fails is in `report.failed`; its page
        shows why, and the rest of the site is whole.

    Raises:
        MarginaliaError: There is no folder of modules, or its catalogue is wrong.
    """
    if not options.papers.is_dir():
        raise MarginaliaError(f"there is no folder of modules at {options.papers}")
    start = time.perf_counter()
    assembly = _Assembly(options, memo or Memo.of(options.cache))
    with held_still(), deep_trees(), _remembered_sources(assembly.memo):
        assembly.read()
        assembly.run(progress, executor)
        assembly.list_all()
    site = assembly.site
    ahead.remember(options)
    site.report.pages.sort(key=lambda report: report.source)
    site.report.seconds = time.perf_counter() - start
    return site


class _Assembly:
    """A site in the making: read, then run, then render."""

    def __init__(self, options: Options, memo: Memo) -> None:
        self.options = options
        self.memo = memo
        workers = None if options.scheduler else options.workers
        self.site = Site(report=Report(options.papers, workers=workers))
        self.index = Index()
        self.view = keys.View()
        self._digests: dict[str, str] = {}
        self.modules: list[Module] = []
        self.unreadable: list[str] = []
        self.results: dict[str, Ran] = {}
        self._prepared: dict[str, page.Prepared] = {}
        self.library: companion.Companion | None = None
        self.collection = Catalog({}, {}, ())

    def read(self) -> None:
        """Read every module; one that cannot be read gets a page that says so."""
        addresses: dict[str, Path] = {}
        for path in discover(self.options.papers):
            try:
                module = read(path, self.options.papers, self.memo)
                first = addresses.setdefault(module.paper.url, path)
                if first != path:
                    raise SourceError(path, 1, 1, f"its page would replace that of {first.name}")
                self.index.add(module.paper.module, module.definitions, module.paper.url)
                self.modules.append(module)
            except SourceError as error:
                self._broken(path, error)
            except Exception as error:  # a fault of ours must not take the other pages with it
                log.exception("%s cannot be read", path)
                self._broken(path, SourceError(path, 1, 1, _fault(error)))
        if self.options.companion:
            self.library = companion.labml(self.index, self.memo)
        options, papers = self.options, [module.paper for module in self.modules]
        self.collection = catalog.load(
            options.papers, options.docs, papers, unreadable=self.unreadable
        )

    def run(self, progress: Progress | None, executor: Executor | None) -> None:
        """Run the demos that changed since they were last run."""
        options = self.options
        jobs = [
            Job.of(module.paper, options.papers, options.limits, shapes=options.shapes)
            for module in self.modules
            if module.has_demo
        ]
        cluster_gone = f"the Dask scheduler at {options.scheduler} is gone, or has no workers left"
        with _executors(options, executor) as (cpu, gpu):
            run_all(
                jobs,
                store=Store(options.cache),
                workers=options.workers,
                executor=cpu,
                gpu=gpu,
                gone="the executor is gone" if executor else cluster_gone,
                progress=progress,
                held=self.memo.objects,
                done=self._ran,
                meanwhile=self._others(),
            )
        prune(options, self.memo)

    def _ran(self, ran: Ran) -> None:
        """Render the page of a demo."""
        module = self._by_path[ran.job.path]
        self.results[module.paper.module] = ran
        self._report(module, ran)
        self._rendered(module)

    def _others(self) -> Iterator[None]:
        """Render what waits for no demo, a page at a time, and prepare the pages that do wait."""
        for module in self.modules:
            if len(self._prepared) == MOST_PREPARED:
                break
            if module.has_demo and module.paper.module not in self.results:
                with suppress(Exception):  # which is said once its result is there
                    self._prepared[module.paper.module] = self._prepare(module)
                yield
        for module in self.modules:
            if not module.has_demo:
                self._report(module, None)
                self._rendered(module)
                yield
        if self.options.api:
            yield from self._api()
        if self.library:
            yield from self._companion(self.library)

    def _rendered(self, module: Module) -> None:
        """Render the page of a module; a fault of ours must not take the other pages with it."""
        try:
            self._paper(module)
        except Exception as error:
            log.exception("%s cannot be rendered", module.paper.path)
            self._unrendered(module, error)

    def list_all(self) -> None:
        """Write the pages that list the others."""
        index = self.collection
        extra = self._extra_pages()
        checks = {name: _check(ran) for name, ran in self.results.items()}
        written = catalog.pages(index, checks, site_name=self.options.site_name, extra=extra)
        for entry in index.entries:
            if entry.source in written:
                written[entry.source] += self._companion_section(entry)
        # In an order of their own: that of the demos' ends would be in the search index.
        self.site.pages = dict(sorted((written | self.site.pages).items()))
        self.site.files = dict(sorted(self.site.files.items()))
        self.site.nav = list(catalog.nav(index, extra))

    def _broken(self, path: Path, error: SourceError) -> None:
        source = path.relative_to(self.options.papers).as_posix()
        url = url_of(path, self.options.papers)
        self.unreadable.append(named(path, self.options.papers, "", "", {}).module)
        raw = ""
        with suppress(OSError):  # which the error is about
            raw = path.read_bytes().decode("utf-8", "replace")
        self.site.pages[f"{url.rstrip('/') or 'index'}.md"] = page.error_page(source, error, raw)
        report = PageReport(source, url, "failed", failures=(failure_of(error),))
        self.site.report.pages.append(report)

    def _unrendered(self, module: Module, error: Exception) -> None:
        reports = self.site.report.pages
        mine = next(n for n, one in enumerate(reports) if one.url == module.paper.url)
        wrong = SourceError(module.paper.path, 1, 1, _fault(error))
        failures = (*reports[mine].failures, failure_of(wrong))
        reports[mine] = replace(reports[mine], status="failed", failures=failures)
        page_of_error = page.error_page(reports[mine].source, wrong, module.text)
        self.site.pages[module.paper.src_uri] = page_of_error

    def _report(self, module: Module, ran: Ran | None) -> None:
        source = module.paper.path.relative_to(self.options.papers).as_posix()
        if ran:
            report = PageReport.of(source, module.paper.url, ran)
        else:
            report = PageReport(source, module.paper.url, "static")
        self.site.report.pages.append(report)

    def _paper(self, module: Module) -> None:
        ran = self.results.get(module.paper.module)
        result = ran.result if ran and ran.status != "skipped" else None
        notice = _notice(ran)
        key = self.memo.key(
            "page of a paper",
            module.paper.path.as_posix(),
            self._reached(module),
            self._surroundings(module.paper.url, module.text),
            ran.content if ran else "",
            result is None,
            notice,
            self._extras(module),
        )
        prepared = self._prepared.pop(module.paper.module, None)

        def made() -> dict[str, Any]:
            waiting = prepared or self._prepare(module)
            when = _ran(result) if result else ""
            return waiting.with_result(result, ran=when, notice=notice).to_json()

        known = page.Page.from_json(self.memo.ask(key, made))
        self.site.add(module.paper.src_uri, known)

    def _prepare(self, module: Module) -> page.Prepared:
        """The page of a module before its demo has run."""
        self._reached(module)  # first, or a file saved meanwhile would be taken for what is shown
        rows = parse(module.text, module.paper.path)
        address = self._addresses(module.paper.url)
        context = page.Context(index=self.index, address=address, root=self.options.papers)
        return page.Prepared(module.paper, module.text, rows, context, self._extras(module))

    def _reached(self, module: Module) -> str:
        """A digest of the sources that a page shows pieces of: its own, and those it imports."""
        name = module.paper.module
        if name not in self._digests:
            found = keys.reached(module.paper.path, self.options.papers, self.view)
            self._digests[name] = digest(json.dumps(found))
        return self._digests[name]

    def _surroundings(self, url: str, text: str) -> list[Any]:
        """What a page needs to know of the site."""
        words = self.index.said_of(frozenset(_WORD.findall(text)))
        indexes = None if self.options.directory_urls else sorted(self._indexes)
        return [url, self.options.directory_urls, indexes, words]

    def _extras(self, module: Module) -> page.Extras:
        paper, index = module.paper, self.collection
        entry = index.names[paper.module]
        topic = index.topics[entry.topic]
        note = index.note_for(paper)
        after = [catalog.note_section(note) if note else ""]
        after.append(self._companion_section(entry))
        return page.Extras(
            crumbs=(("Topics", catalog.TOPICS), (topic.title, f"topics/{topic.slug}.md")),
            compare=tuple(
                (*_near(index.names[name]), change)
                for name, change in paper.compare.items()
                if name in index.names
            ),
            after_rows="\n\n".join(filter(None, after)),
            api=api.url_of(paper) if self._public(module) else "",
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

    def _api(self) -> Iterator[None]:
        for module in self.modules:
            if not self._public(module):
                continue
            source = api.source_of(module.paper)
            self.site.pages[source] = api.page(module.paper, module.definitions.symbols.values())
            said = keys.reached(module.paper.path, self.options.papers, self.view, prose=False)
            self.site.reads[source] = digest(json.dumps(said))
            yield
        topics, entries = self.collection.topics, self.collection.names
        listed: dict[str, list[tuple[Paper, list[Symbol]]]]
        listed = {topic.title: [] for topic in topics.values()}
        for module in self.modules:
            if names := self._public(module):
                topic = topics[entries[module.paper.module].topic]
                listed[topic.title].append((module.paper, names))
        if any(listed.values()):
            self.site.pages[api.INDEX] = api.index(listed)

    def _public(self, module: Module) -> list[Symbol]:
        """What the API reference tells of a module; of the package that is the root, nothing."""
        if not (self.options.api and module.paper.module):
            return []
        return api.public(module.definitions.symbols.values())

    def _companion(self, library: companion.Companion) -> Iterator[None]:
        entries_of_ours = reversed(self.collection.entries)
        ours = {entry.arxiv: entry for entry in entries_of_ours if entry.arxiv}
        for module in library.modules:
            entries = [ours[arxiv] for arxiv in module.arxiv if arxiv in ours]
            links = [(entry.title, entry.source) for entry in entries]
            url = library.url_of(module)
            around = self._surroundings(url, module.text)
            key = self.memo.key("page of a library", module.name, library.content, around, links)
            known = self.memo.get(key)
            if known is None:
                before = len(library.dangling)
                made = library.page(module, self.index, self._addresses(url), links)
                lost = [link.target for link in library.dangling[before:]]
                known = {"page": made.to_json(), "dangling": lost}
                self.memo.put(key, known)
            self.site.add(library.source_of(module), page.Page.from_json(known["page"]))
            self.site.dangling += [companion.Dangling(module.name, to) for to in known["dangling"]]
            yield

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
    def _by_path(self) -> dict[Path, Module]:
        return {module.paper.path: module for module in self.modules}

    @cached_property
    def _indexes(self) -> frozenset[str]:
        """The pages of folders."""
        inside = map(self.library.source_of, self.library.modules) if self.library else ()
        return frozenset({"index.md", catalog.TOPICS, api.INDEX, *inside})


def prune(options: Options, memo: Memo) -> None:
    """Keep a cache within its size: finished demos have the first right to the room.

    Args:
        options: Ours.
        memo: The pages in the cache.

    Raises:
        StoreError: The cache cannot be read.
    """
    store = Store(options.cache)
    store.prune(options.cache_size * MB)
    memo.prune(max(0, options.cache_size * MB - store.size()))


@contextmanager
def _remembered_sources(memo: Memo) -> Iterator[None]:
    """What an earlier build found in sources is known while this lasts."""
    memo.start()
    key = memo.key("sources")
    keys.memory.recall(memo.get(key) or {})
    yield
    found = keys.memory.to_keep()
    if found is not None:
        memo.put(key, found)


@contextmanager
def _executors(
    options: Options, given: Executor | None
) -> Iterator[tuple[Executor | None, Callable[[], Executor | None] | None]]:
    """What runs the demos, and those that need a GPU; by default this machine runs both."""
    if given or not options.scheduler:
        yield given, None
        return
    with cluster.connect_later(options.scheduler) as both:
        yield both


def _fault(error: Exception) -> str:
    return f"the generator failed: {type(error).__name__}: {error}"


def _check(ran: Ran) -> Check:
    return Check(claims=sum(claim.ok for claim in ran.result.claims), status=ran.status)


def _ran(result: Result) -> str:
    if not result.ok:
        return ""
    device = "CPU" if result.device == "cpu" else result.device.removeprefix("cuda: ")
    day = date.fromisoformat(result.date)
    return f"ran in {result.seconds:.1f} s on {device}, {day.day} {day:%B %Y}"


def _notice(ran: Ran | None) -> str:
    """What a reader must know of outputs that this build did not make, or did not check."""
    if ran is None or ran.status not in ("stored", "skipped"):
        return ""
    if ran.status == "skipped":
        told = "This demo needs a GPU, and it has not been run on one yet: no outputs are shown."
    else:
        day, device = date.fromisoformat(ran.result.date), ran.result.device
        where = f" on {device.removeprefix('cuda: ')}" if device != "cpu" else ""
        told = (
            "This demo needs a GPU, and this build had none: "
            f"shown is its run of {day.day} {day:%B %Y}{where}."
        )
    if ran.outdated:
        told += " What it imports or reads, or a package that it uses, is not the same since."
    return f"!!! note\n\n    {told}"


def _near(entry: Entry) -> tuple[str, str]:
    return entry.short or entry.title.partition(":")[0], entry.source
