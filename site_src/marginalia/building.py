"""One site, built by MkDocs once or again and again: what its events do."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import Abort, PluginError
from mkdocs.livereload import LiveReloadServer
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page

from marginalia.ahead import await_saves
from marginalia.assemble import Site, assemble, prune
from marginalia.dangling import dangling
from marginalia.errors import MarginaliaError
from marginalia.memo import Memo
from marginalia.options import Options
from marginalia.progress import reporter
from marginalia.rebuild import Rebuild, Served, Sources, watch
from marginalia.report import Report
from marginalia.reuse import Reuse

log = logging.getLogger("mkdocs.plugins.marginalia")


# Plugins that make the navigation from files of their own, if there is none yet.
_NAVIGATORS = ("awesome-nav", "literate-nav")


def _generated(config: MkDocsConfig, uri: str, content: str | bytes) -> File:
    """A file of ours. Pages are found through the indexes: a navigation of all would be no help."""
    hidden = InclusionLevel.NOT_IN_NAV
    return File.generated(config, uri, content=content, inclusion=hidden)


class Building:
    """A site while it is built, and what a server knows of it from build to build.

    Args:
        assets: Our own styles, scripts and fonts, by where the site has them.
        serving: Whether it is served, which keeps everything in memory.

    Attributes:
        report: What happened to each module in the last build.
    """

    def __init__(self, assets: dict[str, Path], *, serving: bool) -> None:
        self.report = Report()
        self._assets = assets
        self._serving = serving
        self._memo: Memo | None = None
        self._cache = Path()  # that of the memo
        self._reuse: Reuse | None = None
        self._site = Site()
        self._built: Served | None = None  # all but written
        self._served: Served | None = None
        self._sources: Sources | None = None  # of the first build

    def add_pages(self, files: Files, config: MkDocsConfig, options: Options) -> None:
        """Run the demos and add their pages; a page that the site has itself stays as it is."""
        self._served = self._built = None
        self._sources = self._sources or Sources.now(config, options.papers)
        self._site = site = self._assembled(options)
        self._reuse = Reuse(self._remembered(options), config, site.reads)
        for link in site.dangling:
            log.debug(
                "the companion's %s links to %s, which does not exist", link.module, link.target
            )
        made: dict[str, str | bytes] = {**site.pages, **site.files}
        taken = {file.dest_uri for file in files}  # `tags.md` is for `tags/index.md` as well
        for uri, content in made.items():
            file = _generated(config, uri, content)
            if file.dest_uri not in taken:
                files.append(file)
        for uri, path in self._assets.items():
            files.append(File.generated(config, uri, abs_src_path=str(path)))
        if config.nav is None and not any(map(config.plugins.get, _NAVIGATORS)):
            own = [file.src_uri for file in files.documentation_pages() if not file.generated_by]
            here = files.src_uris.keys() - set(own)
            ours = [item for item in site.nav if here.issuperset(item.values())]
            config.nav = [*sorted(own, key=lambda uri: (uri != "index.md", uri)), *ours]

    def reuse_page(self, page: Page) -> None:
        """Take the HTML of a page that has not changed from the last build."""
        if self._reuse:
            self._reuse.markdown(page)

    def reuse_rest(
        self, env: Environment, config: MkDocsConfig, files: Files, nav: Navigation
    ) -> None:
        """The same for the search index and the theme's templates."""
        if self._reuse and self._served is None:
            self._reuse.search()
            self._reuse.templates(env, nav)
            self._built = Served(self._site, config, files, nav, env, self._reuse)

    def end(self, config: MkDocsConfig, options: Options, *, keep_going: bool) -> None:
        """Name every module that failed and every link that leads nowhere.

        Args:
            config: That of MkDocs.
            options: Ours.
            keep_going: Whether a module that fails leaves the build successful.

        Raises:
            Abort: A module failed.
        """
        try:
            self._judge(config, options, keep_going=keep_going)
        finally:  # MkDocs has had what it asks for remembered, too
            prune(options, self._remembered(options))

    def _judge(self, config: MkDocsConfig, options: Options, *, keep_going: bool) -> None:
        """See `end`."""
        self._served = self._built
        for failure in self.report.failures():
            log.error("%s", failure)
        if keep_going:
            return
        if self.report.failed:
            number = len(self.report.failed)
            raise Abort(f"{number} {'page' if number == 1 else 'pages'} failed")
        site = Path(config.site_dir)
        found = (path for path in site.rglob("*") if path.is_file())
        files = {path.relative_to(site).as_posix(): path for path in found}
        pages = ((name, files[name].read_text("utf-8")) for name in files if name[-5:] == ".html")
        for link in dangling(pages, files, memo=self._remembered(options)):
            log.warning("%s", link)

    def serve(
        self, server: LiveReloadServer, folder: str, options: Callable[[MkDocsConfig], Options]
    ) -> None:
        """Rebuild when a module is saved, as little as can be.

        Args:
            server: The server.
            folder: That of the modules.
            options: What the site is made from, as its configuration says now.
        """
        first = self._sources
        assert first is not None
        server.builder = Rebuild(
            server.builder,
            lambda: self._served,
            lambda config: self._assembled(options(config)),
            first,
        )

        def missed() -> bool:
            served = self._served
            return served is None or Sources.now(served.config, Path(folder)) != first

        watch(server, folder, missed)
        await_saves([*self._site.pages.values()])

    def _assembled(self, options: Options) -> Site:
        """Run the demos that changed and make the pages, in Markdown."""
        try:
            with reporter(log, serving=self._serving) as progress:
                site = assemble(options, progress=progress, memo=self._remembered(options))
        except MarginaliaError as error:
            raise PluginError(str(error)) from error
        self.report = site.report
        return site

    def _remembered(self, options: Options) -> Memo:
        """What is known of earlier builds; a server has it in memory."""
        if self._memo is None or options.cache != self._cache:
            self._cache = options.cache
            self._memo = Memo.of(options.cache, resident=self._serving)
        return self._memo
