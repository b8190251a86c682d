"""The MkDocs plugin: events in, calls out. What a page is, is decided elsewhere."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from mkdocs.config import config_options as option
from mkdocs.config.base import Config, ValidationError
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import Abort, PluginError
from mkdocs.livereload import LiveReloadServer
from mkdocs.plugins import BasePlugin
from mkdocs.structure.files import File, Files, InclusionLevel

from marginalia.assemble import DEFAULT_TIMEOUT, Options, Report, assemble, default_workers
from marginalia.errors import MarginaliaError
from marginalia.links import dangling
from marginalia.progress import reporter

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
    workers = option.Optional(_Positive(int))
    timeout = _Positive((int, float), default=DEFAULT_TIMEOUT)
    shapes = option.Type(bool, default=True)
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

    def on_startup(self, *, command: str, dirty: bool) -> None:
        """Know whether a failing page may be shown (`serve`) or must end the build."""
        self.keep_going = command == "serve"

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

    def on_files(self, files: Files, *, config: MkDocsConfig) -> Files:
        """Run the demos and add their pages; a page that the site has itself stays as it is."""
        try:
            with reporter(log) as progress:
                site = assemble(self._options(config), progress=progress)
        except MarginaliaError as error:
            raise PluginError(str(error)) from error
        self.report = site.report
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

    def on_post_build(self, *, config: MkDocsConfig) -> None:
        """Name every module that failed and every link that leads nowhere."""
        for page in self.report.failed:
            log.error("%s: %s", page.source, page.reason)
        if self.keep_going:
            return
        if self.report.failed:
            raise Abort(f"{len(self.report.failed)} pages failed")
        site = Path(config.site_dir)
        files = {path.relative_to(site).as_posix(): path for path in site.rglob("*.*")}
        pages = {name: files[name].read_text("utf-8") for name in files if name.endswith(".html")}
        for link in dangling(pages, files):
            log.warning("%s", link)

    def on_serve(self, server: LiveReloadServer, **_: Any) -> LiveReloadServer:
        """Rebuild when a module is saved."""
        server.watch(self.config.papers)
        return server

    def _options(self, config: MkDocsConfig) -> Options:
        return Options(
            papers=Path(self.config.papers),
            cache=Path(self.config.cache),
            workers=self.config.workers or default_workers(),
            timeout=float(self.config.timeout),
            shapes=self.config.shapes,
            companion=self.config.companion,
            api=self.config.api and "mkdocstrings" in config.plugins,
            docs=Path(config.docs_dir),
            site_name=config.site_name,
            directory_urls=config.use_directory_urls,
        )
