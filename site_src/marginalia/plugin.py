"""The MkDocs plugin: events in, calls out. What a page is, is decided elsewhere."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from jinja2 import Environment
from mkdocs.config import config_options as option
from mkdocs.config.base import Config, ValidationError
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import Abort, PluginError
from mkdocs.livereload import LiveReloadServer
from mkdocs.plugins import BasePlugin
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page

from marginalia.assemble import CACHE_SIZE, PAGES, Options, Site, assemble, default_workers, foresee
from marginalia.errors import MarginaliaError
from marginalia.limits import DEFAULTS, NAMES, Limits
from marginalia.links import dangling
from marginalia.memo import Memo
from marginalia.progress import reporter
from marginalia.rebuild import Rebuild, Served, watch
from marginalia.report import Report
from marginalia.reuse import Reuse
from marginalia.store import Store

_HERE = Path(__file__).parent
_ASSETS = "assets/marginalia"

# What the Markdown of our pages needs; a site that configures one of these keeps its settings.
_EXTENSIONS = (
    "abbr",
    "admonition",
    "attr_list",
    "def_list",
    "footnotes",
    "md_in_html",
    "tables",
    "toc",
    "pymdownx.highlight",
    "pymdownx.superfences",
    "marginalia.mathml",
)
_EXTENSION_SETTINGS: dict[str, dict[str, Any]] = {"toc": {"permalink": True}}

log = logging.getLogger("mkdocs.plugins.marginalia")


class _Positive(option.Type[Any]):
    """A number above 0."""

    def run_validation(self, value: object) -> Any:
        number = super().run_validation(value)
        if isinstance(number, bool) or number <= 0:
            raise ValidationError(f"Expected a number above 0 but received: {number}")
        return number


class MarginaliaConfig(Config):
    """The options of the plugin, checked by MkDocs before anything runs."""

    papers = option.Dir(exists=True, default="papers")
    cache = option.Dir(default=".cache/marginalia")
    cache_size = _Positive(int, default=CACHE_SIZE)
    workers = option.Optional(_Positive(int))
    executor = option.Choice(("local", "dask"), default="local")
    scheduler = option.Type(str, default="")
    timeout = _Positive((int, float), default=DEFAULTS.timeout)
    cpu_time = _Positive((int, float), default=DEFAULTS.cpu_time)
    memory = _Positive((int, float), default=DEFAULTS.memory)
    output = _Positive((int, float), default=DEFAULTS.output)
    shapes = option.Type(bool, default=True)
    report = option.Optional(option.File())
    api = option.Type(bool, default=True)
    companion = option.Type(bool, default=False)


def _generated(config: MkDocsConfig, uri: str, content: str | bytes) -> File:
    """A file of ours. Pages are found through the indexes: a navigation of all would be no help."""
    hidden = InclusionLevel.NOT_IN_NAV
    return File.generated(config, uri, content=content, inclusion=hidden)


class MarginaliaPlugin(BasePlugin[MarginaliaConfig]):
    """Add the pages of a folder of annotated modules to a MkDocs site.

    Attributes:
        keep_going: Whether a module that fails leaves the build successful, as in `serve`.
        report: What happened to each module in the last build.
    """

    def __init__(self) -> None:
        self.keep_going = False
        self.report = Report()
        self._serving = False
        self._memo: Memo | None = None
        self._reuse: Reuse | None = None
        self._site = Site()
        self._nav: Navigation | None = None
        self._built: Served | None = None  # all but written
        self._served: Served | None = None

    def on_startup(self, *, command: str, dirty: bool) -> None:
        """Know whether a failing page may be shown (`serve`) or must end the build."""
        self.keep_going = self._serving = command == "serve"

    def on_config(self, config: MkDocsConfig) -> MkDocsConfig:
        """Bring the Markdown extensions, and the styles that the pages need."""
        for name in _EXTENSIONS:
            if name not in config.markdown_extensions:
                config.markdown_extensions.append(name)
        logging.getLogger("jieba").setLevel(logging.WARNING)  # it reports on its dictionary
        for name, settings in _EXTENSION_SETTINGS.items():
            config.mdx_configs.setdefault(name, settings)
        config.extra_css += [f"{_ASSETS}/{p.name}" for p in sorted(_HERE.glob("assets/*.css"))]
        config.extra_javascript += [
            f"{_ASSETS}/{p.name}" for p in sorted(_HERE.glob("assets/*.js"))
        ]
        return config

    def on_pre_build(self, *, config: MkDocsConfig) -> None:
        """Start early what takes long to start."""
        foresee(self._options(config))

    def on_files(self, files: Files, *, config: MkDocsConfig) -> Files:
        """Run the demos and add their pages; a page that the site has itself stays as it is."""
        self._served = self._built = None
        self._remove_report()
        self._site = site = self._assemble(config)
        self._write_report()
        self._reuse = Reuse(self._remembered(), config, site.reads)
        for link in site.dangling:
            log.debug(
                "the companion's %s links to %s, which does not exist", link.module, link.target
            )
        made: dict[str, str | bytes] = {**site.pages, **site.files}
        for uri, content in made.items():
            if files.get_file_from_path(uri) is None:
                files.append(_generated(config, uri, content))
        for path in sorted((_HERE / "assets").rglob("*")):
            if path.is_file():
                uri = f"{_ASSETS}/{path.relative_to(_HERE / 'assets').as_posix()}"
                files.append(File.generated(config, uri, abs_src_path=str(path)))
        if config.nav is None:
            own = [file.src_uri for file in files.documentation_pages() if not file.generated_by]
            ours = [item for item in site.nav if not set(item.values()) & set(own)]
            config.nav = [*sorted(own, key=lambda uri: (uri != "index.md", uri)), *ours]
        return files

    def on_nav(self, nav: Navigation, **_: Any) -> None:
        """Know what stands around every page."""
        self._nav = nav

    def on_pre_page(self, page: Page, **_: Any) -> Page:
        """Take the HTML of a page that has not changed from the last build."""
        if self._reuse:
            self._reuse.markdown(page)
        return page

    def on_env(self, env: Environment, *, config: MkDocsConfig, files: Files) -> Environment:
        """The same for the search index and the theme's templates."""
        if self._reuse and self._nav and self._served is None:
            self._reuse.search()
            self._reuse.templates(env, self._nav)
            self._built = Served(self._site, config, files, self._nav, env, self._reuse)
        return env

    def on_post_build(self, *, config: MkDocsConfig) -> None:
        """Name every module that failed and every link that leads nowhere."""
        self._served = self._built
        for failure in self.report.failures():
            log.error("%s", failure)
        if self.keep_going:
            return
        if self.report.failed:
            number = len(self.report.failed)
            raise Abort(f"{number} {'page' if number == 1 else 'pages'} failed")
        site = Path(config.site_dir)
        files = {path.relative_to(site).as_posix(): path for path in site.rglob("*.*")}
        pages = ((name, files[name].read_text("utf-8")) for name in files if name[-5:] == ".html")
        for link in dangling(pages, files, memo=self._remembered()):
            log.warning("%s", link)

    def on_serve(self, server: LiveReloadServer, **_: Any) -> LiveReloadServer:
        """Rebuild when a module is saved, as little as can be."""
        server.builder = Rebuild(server.builder, lambda: self._served, self._assemble)
        watch(server, self.config.papers)
        return server

    def _assemble(self, config: MkDocsConfig) -> Site:
        """Run the demos that changed and make the pages, in Markdown."""
        try:
            with reporter(log, serving=self._serving) as progress:
                site = assemble(self._options(config), progress=progress, memo=self._remembered())
        except MarginaliaError as error:
            raise PluginError(str(error)) from error
        self.report = site.report
        return site

    def _remove_report(self) -> None:
        """Leave no report of an earlier build for one of this build."""
        if self.config.report and not self._serving:
            Path(self.config.report).unlink(missing_ok=True)

    def _write_report(self) -> None:
        """Write what happened; also of a build that is about to fail."""
        if self.config.report and not self._serving:
            self.report.write(Path(self.config.report))

    def _remembered(self) -> Memo:
        """What is known of earlier builds; a server has it in memory."""
        folder = Path(self.config.cache) / PAGES
        if self._memo is None or self._memo.folder != folder:
            self._memo = Memo(Store(folder), resident=self._serving)
        return self._memo

    def _scheduler(self) -> str:
        """The address of the scheduler that is to be used; empty for none."""
        if self.config.executor == "local":
            return ""
        if not self.config.scheduler:
            raise PluginError("`executor: dask` needs `scheduler: tcp://HOST:PORT` beside it")
        return self.config.scheduler

    def _options(self, config: MkDocsConfig) -> Options:
        return Options(
            papers=Path(self.config.papers),
            cache=Path(self.config.cache),
            cache_size=self.config.cache_size,
            workers=self.config.workers or default_workers(),
            scheduler=self._scheduler(),
            limits=Limits(**{name: float(self.config[name]) for name in NAMES}),
            shapes=self.config.shapes,
            companion=self.config.companion,
            api=self.config.api and "mkdocstrings" in config.plugins,
            docs=Path(config.docs_dir),
            site_name=config.site_name,
            directory_urls=config.use_directory_urls,
        )
