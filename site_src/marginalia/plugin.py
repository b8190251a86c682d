"""The MkDocs plugin: events in, calls out. What a page is, is decided elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment
from mkdocs.config import config_options as option
from mkdocs.config.base import Config, ValidationError
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.livereload import LiveReloadServer
from mkdocs.plugins import BasePlugin, event_priority
from mkdocs.structure.files import Files
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page

from marginalia.ahead import foresee
from marginalia.limits import DEFAULTS, NAMES, Limits
from marginalia.options import CACHE_SIZE, Options, default_workers

if TYPE_CHECKING:
    from marginalia.building import Building
    from marginalia.report import Report

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
    "marginalia.verbatim",
)
_EXTENSION_SETTINGS: dict[str, dict[str, Any]] = {"toc": {"permalink": True}}

log = logging.getLogger("mkdocs.plugins.marginalia")


class _Positive(option.Type[Any]):
    """A number above 0."""

    def run_validation(self, value: object) -> Any:
        number = super().run_validation(value)
        if isinstance(number, bool) or not number > 0:  # as NaN is not
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
    standby = option.Optional(_Positive((int, float)))
    shapes = option.Type(bool, default=True)
    report = option.Optional(option.File())
    api = option.Type(bool, default=True)
    companion = option.Type(bool, default=False)


def _assets() -> dict[str, Path]:
    """Our own files, by where the site has them."""
    folder = _HERE / "assets"
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {f"{_ASSETS}/{path.relative_to(folder).as_posix()}": path for path in files}


@contextmanager
def _told_of_the_report(path: Path) -> Iterator[None]:
    """An option that names what cannot be written is the user's to mend."""
    try:
        yield
    except OSError as error:
        raise PluginError(f"`report: {path}` cannot be written: {error.strerror}") from error


class MarginaliaPlugin(BasePlugin[MarginaliaConfig]):
    """Add the pages of a folder of annotated modules to a MkDocs site.

    Attributes:
        keep_going: Whether a module that fails leaves the build successful, as in `serve`.
        report: What happened to each module in the last build.
    """

    def __init__(self) -> None:
        self.keep_going = False
        self._serving = False
        self._nav: Navigation | None = None
        self._of_the_site: Building | None = None

    @property
    def report(self) -> Report:
        """What happened to each module in the last build."""
        return self._building.report

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
        """Start early what takes long to start: before most of our own modules are imported."""
        foresee(self._options(config))

    def on_files(self, files: Files, *, config: MkDocsConfig) -> Files:
        """Run the demos and add their pages; a page that the site has itself stays as it is."""
        report = Path(self.config.report) if self.config.report and not self._serving else None
        if report:
            with _told_of_the_report(report):
                report.unlink(missing_ok=True)  # an earlier build's is none of this one
        self._building.add_pages(files, config, self._options(config))
        if report:
            with _told_of_the_report(report):
                self.report.write(report)  # now: the build may be about to fail
        return files

    @event_priority(100)
    def on_page_markdown(self, markdown: str, *, page: Page, **_: Any) -> None:
        """Keep the plugin `macros` from our pages: to it, the anchors of headings are comments."""
        if page.file.generated_by == "marginalia":
            page.meta.setdefault("render_macros", False)

    def on_nav(self, nav: Navigation, **_: Any) -> None:
        """Know what stands around every page."""
        self._nav = nav

    def on_pre_page(self, page: Page, **_: Any) -> Page:
        """Take the HTML of a page that has not changed from the last build."""
        self._building.reuse_page(page)
        return page

    def on_env(self, env: Environment, *, config: MkDocsConfig, files: Files) -> Environment:
        """The same for the search index and the theme's templates."""
        if self._nav:
            self._building.reuse_rest(env, config, files, self._nav)
        return env

    def on_post_build(self, *, config: MkDocsConfig) -> None:
        """Name every module that failed and every link that leads nowhere."""
        self._building.end(config, self._options(config), keep_going=self.keep_going)

    def on_serve(self, server: LiveReloadServer, **_: Any) -> LiveReloadServer:
        """Rebuild when a module is saved, as little as can be."""
        self._building.serve(server, self.config.papers, self._options)
        return server

    @property
    def _building(self) -> Building:
        if self._of_the_site is None:
            from marginalia.building import Building

            self._of_the_site = Building(_assets(), serving=self._serving)
        return self._of_the_site

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
            standby=self.config.standby or 0.0,
            limits=Limits(**{name: float(self.config[name]) for name in NAMES}),
            shapes=self.config.shapes,
            companion=self.config.companion,
            api=self.config.api and "mkdocstrings" in config.plugins,
            docs=Path(config.docs_dir),
            site_name=config.site_name,
            directory_urls=config.use_directory_urls,
        )
