"""What `mkdocs serve` does when a module is saved: it makes the pages again that changed.

MkDocs builds the whole site after every save. Here the site's Markdown is assembled as ever (most
of it is remembered), compared with what is served, and only pages that differ go through MkDocs.
When anything else has changed (a page is new, the configuration, the hand-written pages, what other
pages can link to by name), or if this fails, MkDocs builds the whole site.
"""

from __future__ import annotations

import gc
import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment
from mkdocs.commands import build
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import Abort, PluginError
from mkdocs.livereload import LiveReloadServer
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation
from mkdocs.utils import write_file
from watchdog.events import (
    DirDeletedEvent,
    DirMovedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer

from marginalia.assemble import Site
from marginalia.reuse import Reuse, own_templates

log = logging.getLogger("mkdocs.plugins.marginalia")


@dataclass
class Served:
    """A site as MkDocs has built it.

    Attributes:
        site: What went in.
        config: Its configuration.
        files: All its files.
        nav: Its navigation.
        env: The theme's templates.
        reuse: What is remembered of its pages.
    """

    site: Site
    config: MkDocsConfig
    files: Files
    nav: Navigation
    env: Environment
    reuse: Reuse


_Files = list[tuple[str, int, int]]  # their names, times and sizes


@dataclass(frozen=True)
class Sources:
    """The files that a site is made from, as they are at one time.

    Attributes:
        modules: Those in the folder of modules.
        others: Those that MkDocs looks after itself.
    """

    modules: _Files
    others: _Files

    @classmethod
    def now(cls, config: MkDocsConfig, folder: Path) -> Sources:
        """Look at them.

        Args:
            config: The site's.
            folder: That of the modules.
        """
        return cls(_seen([str(folder)]), _others(config))


class Rebuild:
    """Builds after a save.

    Args:
        whole: MkDocs's own build of everything.
        served: Gives the site as it was built last; None if that failed.
        assemble: Makes the site's pages from what the folder of modules holds now.
        sources: What the site was built from.
    """

    def __init__(
        self,
        whole: Callable[[], None],
        served: Callable[[], Served | None],
        assemble: Callable[[MkDocsConfig], Site],
        sources: Sources,
    ) -> None:
        self._whole = whole
        self._served = served
        self._assemble = assemble
        self._others = sources.others
        gc.freeze()  # a site stays from save to save: a fifth of their time went into looking at it

    def __call__(self) -> None:
        """Build what changed."""
        served = self._served()
        others = _others(served.config) if served else []
        if served is not None and others == self._others:
            try:
                if _made(served, self._assemble(served.config)):
                    return
            except (
                PluginError
            ) as error:  # a wrong name, say: the whole build would end with it, too
                log.error("%s", error)
                raise Abort("Aborted with a BuildError!") from error
            except Exception:  # whatever it is, the whole build shows it or does better
                log.exception("the pages that changed cannot be built alone")
        self._others = others
        gc.unfreeze()
        self._whole()
        gc.freeze()


def _others(config: MkDocsConfig) -> _Files:
    """What a page depends on besides the modules: files that MkDocs looks after itself."""
    folders = [config.docs_dir, *own_templates(config), *config.watch]
    return _seen([*folders, str(config.config_file_path)])


def _seen(places: Iterable[str]) -> _Files:
    return sorted({_state(file) for place in places for file in _files(place)})


def _files(place: str) -> Iterable[str]:
    """The files of a folder, or the one file."""
    if os.path.isfile(place):  # noqa: PTH113  # a theme has thousands
        return [place]
    return [os.path.join(folder, name) for folder, _, names in os.walk(place) for name in names]  # noqa: PTH118


def _state(file: str) -> tuple[str, int, int]:
    try:
        found = os.stat(file)  # noqa: PTH116
    except OSError:
        return file, 0, 0
    return file, found.st_mtime_ns, found.st_size


class _Saves(FileSystemEventHandler):
    """Stands in for a server's observer while it asks for a folder to be watched.

    The system tells as well of files that are only read, which every build does. Of a folder that
    is moved away it tells, but not of the files in it; and MkDocs does not listen to folders.
    """

    def __init__(self) -> None:
        self.observer = Observer()
        self._server = FileSystemEventHandler()  # hears nothing

    def schedule(self, handler: FileSystemEventHandler, path: str, *, recursive: bool) -> Any:
        """Call the handler when a file is saved, or a folder goes."""
        self._server = handler
        return self.observer.schedule(self, path, recursive=recursive, event_filter=list(_CHANGES))

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Tell of folders as of files."""
        self.tell(event.src_path)

    def tell(self, path: bytes | str) -> None:
        """Say that something was saved."""
        self._server.dispatch(FileModifiedEvent(path))


_CHANGES = (
    *(FileCreatedEvent, FileDeletedEvent, FileModifiedEvent, FileMovedEvent),
    *(DirDeletedEvent, DirMovedEvent),
)


def watch(server: LiveReloadServer, folder: str, missed: Callable[[], bool]) -> None:
    """Let a server see what is saved in a folder as soon as the system tells.

    MkDocs looks at all files twice a second. That also works on a network drive, where the system
    tells nothing: there a site names the folder in MkDocs's own `watch`.

    Args:
        server: The server.
        folder: That of the modules.
        missed: Whether something was saved before; asked when nothing can be missed any more.
    """
    polling: Any = server.observer
    saves: Any = _Saves()
    try:
        server.observer = saves
        server.watch(os.path.realpath(folder))  # of a link, the system would tell nothing
    finally:
        server.observer = polling
    saves.observer.start()
    if missed():
        saves.tell(folder)


def _made(served: Served, site: Site) -> bool:
    """Make the pages that changed; False if more than pages did."""
    before = served.site
    if not _knows_all(served.config):
        return False
    if site.pages.keys() != before.pages.keys() or site.nav != before.nav:
        return False
    if (site.pages, site.files, site.reads) == (before.pages, before.files, before.reads):
        return True
    start = time.perf_counter()
    served.reuse.reads = site.reads
    ours = {
        uri: file
        for uri in site.pages
        if (file := served.files.get_file_from_path(uri)) and file.generated_by
    }
    changed = [
        file
        for uri, file in ours.items()
        if (site.pages[uri], site.reads.get(uri)) != (before.pages[uri], before.reads.get(uri))
    ]
    titles = [file.page and file.page.title for file in changed]
    if not _read_again(served, site, changed):
        return False  # other pages link to what is in them
    if any("<backlinks " in ((file.page and file.page.content) or "") for file in changed):
        return False  # mkdocstrings fills them in when it has seen all pages
    if any(
        file.page in served.nav.pages and title != file.page.title
        for file, title in zip(changed, titles, strict=True)
        if file.page
    ):
        return False  # other pages show its title
    if autorefs := served.config.plugins.get("autorefs"):  # it sets the links to names
        autorefs.on_env(served.env, config=served.config, files=served.files)
    for file in changed:
        _write(served, file)
    _write_files(served, site)
    _finish(served.config)
    served.site = site
    for failure in site.report.failures():
        log.error("%s", failure)
    log.info("Made %d pages in %.2f seconds", len(changed), time.perf_counter() - start)
    return True


# Plugins of which we know what they do for the site as a whole, and what it takes to do it again.
_KNOWN = ("autorefs", "marginalia", "mkdocstrings")
_OF_THE_SITE = ("env", "post_build")


def _knows_all(config: MkDocsConfig) -> bool:
    """Whether no plugin makes something of all pages that would have to be made again."""
    known = [plugin for name in _KNOWN if (plugin := config.plugins.get(name))]
    handlers = (handler for name in _OF_THE_SITE for handler in config.plugins.events[name])
    owners = (getattr(handler, "__self__", None) for handler in handlers)
    return all(owner in known or hasattr(owner, "search_index") for owner in owners)


# What autorefs was told of pages: the places that names stand for, and the titles of places.
_NAMES = ("_primary_url_map", "_secondary_url_map")
_TITLES = "_title_map"


def _read_again(served: Served, site: Site, changed: list[File]) -> bool:
    """Read pages again; False if something else is in them now that other pages can link to.

    Autorefs forgets nothing, so it hears of these pages as if there were no others.
    """
    autorefs: Any = served.config.plugins.get("autorefs")
    names = (*_NAMES, _TITLES) if autorefs else ()
    if not all(hasattr(autorefs, name) for name in names):  # another version of it
        return not changed
    known = {name: getattr(autorefs, name) for name in names}
    before = _places(autorefs, changed)
    try:
        for name in known:
            setattr(autorefs, name, {})
        for file in changed:
            _read(served, site, file)
        return _places(autorefs, changed) == before
    finally:
        for name, places in known.items():
            setattr(autorefs, name, places)


def _places(autorefs: Any, files: list[File]) -> set[tuple[str, str, str, str | None]]:
    """The places in pages that others can link to: kind, name, address and title."""
    if autorefs is None:
        return set()
    pages, titles = {file.url for file in files}, getattr(autorefs, _TITLES)
    return {
        (kind, name, url, titles.get(url))
        for kind in _NAMES
        for name, urls in getattr(autorefs, kind).items()
        for url in urls
        if url.partition("#")[0] in pages
    }


def _read(served: Served, site: Site, file: File) -> None:
    """Read a page again, as MkDocs does."""
    assert file.page is not None
    file.content_string = site.pages[file.src_uri]
    build._populate_page(file.page, served.config, served.files)


def _write(served: Served, file: File) -> None:
    """Write a page again, as MkDocs does."""
    assert file.page is not None
    pages = served.files.documentation_pages()
    build._build_page(file.page, served.config, pages, served.nav, served.env)
    level = served.config.validation.links.anchors
    file.page.validate_anchor_links(files=served.files, log_level=level)


def _write_files(served: Served, site: Site) -> None:
    """Write what lies beside the pages, as far as it changed, and remove what is gone."""
    folder = Path(served.config.site_dir)
    for uri, content in site.files.items():
        if served.site.files.get(uri) != content:
            write_file(content, str(folder / uri))
    for uri in served.site.files.keys() - site.files.keys():
        (folder / uri).unlink(missing_ok=True)


def _finish(config: MkDocsConfig) -> None:
    """Let the search index be written again, and mkdocstrings forget the sources it has read."""
    for name, plugin in config.plugins.items():
        if hasattr(plugin, "search_index") or name == "mkdocstrings":
            plugin.on_post_build(config=config)
