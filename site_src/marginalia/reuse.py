"""Let MkDocs take from the last build what it would make again: HTML, search entries, pages.

MkDocs asks `Page.render`, the search index's `add_entry_from_context` and the theme's templates for
every page of every build. Each is answered from memory where all that the answer depends on is
known and the same, its side effects included; what we do not know (an extension, a plugin, a custom
template that reads the clock) is asked as ever.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import jinja2
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.structure.toc import AnchorLink, get_toc

from marginalia.memo import Memo, digest
from marginalia.templates import added, folders, keep_compiled

# Extensions whose HTML depends on the Markdown, their settings and nothing else: those of
# Python-Markdown that have short names, and the modules of others. (Those of mkdocstrings and
# autorefs tell their plugins things as well: see `_Told`.)
_SHORT = (
    *("abbr", "admonition", "attr_list", "def_list", "extra", "fenced_code", "footnotes"),
    *("md_in_html", "meta", "nl2br", "sane_lists", "smarty", "tables", "toc", "wikilinks"),
)
_PURE = (
    "markdown.extensions.",
    "marginalia.mathml.",
    "marginalia.verbatim.",
    "mkdocs_autorefs.",
    "mkdocstrings.",
    "pymdownx.",
)
_READS_FILES = ("pymdownx.b64.", "pymdownx.snippets.")
_EMOJI = "pymdownx.emoji"

# Where functions come from that settings may name: they depend on what they are given, and on files
# that are installed.
_PURE_FUNCTIONS = (*_PURE, "material.extensions.", "materialx.")

# Settings that no template shows, or that a page's content shows already.
_ELSEWHERE = (
    *("config_file_path", "site_dir", "dev_addr", "watch", "strict", "validation", "plugins"),
    *("markdown_extensions", "theme", "exclude_docs", "draft_docs", "not_in_nav"),
)

# What templates that are made again in each build have in them: the clock, and the list of all
# pages, which no key holds.
_CLOCK = (b"build_date", b"now(", b"update_date")
_ALL_PAGES = re.compile(rb"\{[{%](?:[^}]*[^./\w}])?pages\b")

# Options of a search plugin that name files.
_DICTIONARIES = ("jieba_dict", "jieba_dict_user")


log = logging.getLogger("mkdocs.plugins.marginalia")


class Reuse:
    """The answers of one build.

    Args:
        memo: Where answers are kept.
        config: The site's, after all plugins had their say.
        reads: For a page whose Markdown names what is elsewhere (`::: module`): a digest of that.

    Attributes:
        reads: The same; it may be replaced.
    """

    def __init__(self, memo: Memo, config: MkDocsConfig, reads: Mapping[str, str]) -> None:
        self.reads = reads
        self._memo = memo
        self._config = config
        self._entries: dict[str, list[dict[str, Any]]] = {}
        self._plugins = _plain({k: _options(p) for k, p in config.plugins.items()})
        self._markdown = _markdown_settings(config)
        if None in (self._plugins, self._markdown):
            log.debug("options hold what cannot be compared, so pages are made again in each build")

    # Markdown

    def markdown(self, page: Page) -> None:
        """Answer `page.render`, once its Markdown is read."""
        if self._markdown is None or self._plugins is None:
            return
        render = page.render
        page.render = functools.partial(self._render, page, render)  # type: ignore[method-assign]

    def _render(
        self, page: Page, render: Callable[..., None], config: MkDocsConfig, files: Files
    ) -> None:
        del page.render  # the class's own again
        text = page.markdown or ""
        reads = self.reads.get(page.file.src_uri, "")
        if not reads and ":::" in text:
            render(config, files)
            return
        place = [page.file.src_uri, page.url, reads]
        key = self._memo.key("HTML", digest(text), place, self._markdown, self._plugins)
        known = self._memo.get(key)
        if known and all(_url(files, uri) == url for uri, url in known["looked_up"].items()):
            _set_html(page, known, files)
            self._tell(page, known)
            return
        lookups, told = _Lookups(files), _Told(page, config)
        with _complaints() as complaints, told.listening():
            render(config, lookups)
        # MkDocs that is told to explain itself does not note which anchors a page links to.
        explaining = logging.getLogger(type(page).__module__).isEnabledFor(logging.DEBUG)
        # What goes there, mkdocstrings takes later from the modules that it has read.
        is_open = "<backlinks " in (page.content or "")
        if not complaints and not explaining and not is_open:
            self._memo.put(key, {**_html(page), **told.found(), "looked_up": lookups.urls})

    def _tell(self, page: Page, known: Mapping[str, Any]) -> None:
        """Tell the plugins what they are told while Markdown is converted."""
        plugins: Mapping[str, Any] = self._config.plugins
        for arguments, options in known["anchors"]:
            plugins["autorefs"].register_anchor(page, *arguments, **options)
        if known["inventory"]:
            handlers = plugins["mkdocstrings"].handlers
            handlers.get_handler("python")  # it brings styles
            for item in known["inventory"]:
                handlers.inventory.register(**item)

    # Search

    def search(self) -> None:
        """Answer the search index's `add_entry_from_context`."""
        for plugin in self._config.plugins.values():
            index: Any = getattr(plugin, "search_index", None)
            entries = getattr(index, "entries", getattr(index, "_entries", None))
            if isinstance(entries, list):
                files = any(plugin.config.get(option) for option in _DICTIONARIES)
                known = None if files else self._plugins
                add = functools.partial(self._add, entries, known, index.add_entry_from_context)
                index.add_entry_from_context = add

    def _add(
        self,
        entries: list[dict[str, Any]],
        plugins: str | None,
        add: Callable[[Page], None],
        page: Page,
    ) -> None:
        facts = _facts(page) if plugins is not None else None
        key = self._memo.key("search", facts, plugins)
        known = self._memo.get(key) if facts else None
        if known is None:
            before = len(entries)
            with _to_be_searched(page):
                add(page)
            known = {"entries": entries[before:]}
            del entries[before:]
            if facts:
                self._memo.put(key, known)
        self._replace(entries, page.url, known["entries"])

    def _replace(self, entries: list[dict[str, Any]], url: str, new: list[dict[str, Any]]) -> None:
        """Put a page's entries where those of its last making are."""
        place = len(entries)
        old = self._entries.get(url)
        if old:
            place = next(n for n, entry in enumerate(entries) if entry is old[0])
            del entries[place : place + len(old)]
        entries[place:place] = new
        self._entries[url] = new

    # Templates

    def templates(self, env: jinja2.Environment, nav: Any) -> None:
        """Answer the theme's templates where they are asked for a page."""
        keep_compiled(env, self._memo)
        if self._plugins is None:
            return

        @functools.cache
        def site() -> str | None:
            return self._site(nav)

        # Asked later: plugins after this one may still add something.
        def around(context: Mapping[str, Any]) -> str | None:
            more = added(env)
            is_whole = folders(env) == self._config.theme.dirs and context.get("nav") is nav
            if more is None or not is_whole or site() is None:
                return None
            return f"{site()} {more}"

        env.template_class = type("Template", (_Template,), {"reuse": self, "around": around})

    def _site(self, nav: Any) -> str | None:
        """What all pages of the site show; None if it has no content to compare."""
        settings = {k: v for k, v in self._config.items() if k not in _ELSEWHERE}
        theme = None if self._reads_clock() else _theme(self._config)
        facts = [_plain(settings), self._plugins, theme, _plain(_plain_nav(nav))]
        if None in facts:
            log.debug(
                "settings hold what cannot be compared, so templates are filled in each build"
            )
            return None
        return digest(json.dumps(facts))

    def _reads_clock(self) -> bool:
        """Whether the theme that is installed shows when a site was built."""
        own = own_templates(self._config)
        installed = [folder for folder in self._config.theme.dirs if folder not in own]
        key = self._memo.key("clock", installed)
        return bool(self._memo.ask(key, lambda: {"read": _read_clock(installed)})["read"])

    def _page(
        self,
        around: str | None,
        name: str | None,
        context: Mapping[str, Any],
        render: Callable[[], str],
    ) -> str:
        page = context["page"]
        facts, place = _facts(page), _place(page)
        more = _plain({k: v for k, v in context.items() if k not in _KNOWN})
        if None in (around, facts, place, more):
            return render()
        text = digest(page.markdown or "")
        key = self._memo.key("page", around, name, facts, text, place, more)
        content = page.content or ""
        known = self._memo.get(key)
        if known is None:
            html = render()
            before, found, after = html.partition(content) if content else (html, "", "")
            self._memo.put(key, {"before": before, "content": bool(found), "after": after})
            return html
        return str(known["before"] + (content if known["content"] else "") + known["after"])


class _Template(jinja2.Template):
    """A template that remembers what it gave for a page."""

    reuse: Reuse
    around: ClassVar[Callable[[Mapping[str, Any]], str | None]]

    def render(self, *args: Any, **kwargs: Any) -> str:
        """The page, as `jinja2.Template.render` has it."""
        context = args[0] if args and isinstance(args[0], dict) else {}
        render = functools.partial(super().render, *args, **kwargs)
        if kwargs or context.get("page") is None:
            return render()
        return self.reuse._page(type(self).around(context), self.name, context, render)


# Code of ours as it stands on a page, and tags in it that say nothing to a search.
_CODE = re.compile(r'(?<=<pre class="mg-pre")[^>]*+>.*?(?=</pre>)', re.DOTALL)
_LOOKS = re.compile(r"</?(?:span|a|i)\b[^>]*+>")
# What is there to be pressed, and shapes, which belong to a run.
_CONTROLS = re.compile(
    r'<(button|div|nav|p)\b[^>]*?\bclass="mg-(?:crumb|shape|shapes-toggle|toc|tools)".*?</\1>',
    re.DOTALL,
)
# A search index ends a section with the element that its heading stands in. What these begin ends
# at the top, where an end without a beginning is none.
_ROWS = re.compile(r'<div class="mg-(?:rows|row[^">]*|prose)"[^>]*>')


@contextmanager
def _to_be_searched(page: Page) -> Iterator[None]:
    """A page as a search index should see it, while this lasts: its sections whole, code as text.

    An index parses every tag to drop it.
    """
    content = page.content or ""
    if 'class="mg-' in content:
        text = _ROWS.sub("", _CONTROLS.sub("", content))
        page.content = _CODE.sub(lambda code: _LOOKS.sub("", code[0]), text)
    try:
        yield
    finally:
        page.content = content


# What every page's context has, and is part of a key in other words or of the whole site's.
_KNOWN = ("nav", "pages", "build_date_utc", "config", "page")


# Keys


def _facts(page: Page) -> str | None:
    """What search and templates see of a page; None if it has no content to compare."""
    toc = [_plain_toc(item) for item in page.toc]
    return _plain([digest(page.content or ""), _shown(page), toc])


def _place(page: Page) -> str | None:
    """What stands around a page, as its templates see it; None as above."""
    near = [item and _shown(item) for item in (page.previous_page, page.next_page)]
    return _plain([near, [_shown(item) for item in page.ancestors], page.is_homepage])


def _shown(item: Any) -> dict[str, Any]:
    """What templates see of a page, a section or a link, and what plugins have added to it."""
    own = {k: v for k, v in vars(item).items() if k not in _INNER and not k.startswith("_")}
    file = getattr(item, "file", None)
    uri = file.src_uri if file else None
    return {**own, "title": item.title, "url": getattr(item, "url", None), "uri": uri}


# What MkDocs itself keeps in a page or a section, and is part of a key in other words.
_INNER = (
    *("children", "content", "file", "links_to_anchors", "markdown", "next_page", "parent"),
    *("present_anchor_ids", "previous_page", "render", "toc", "update_date"),
)


def _options(plugin: Any) -> Any:
    """What a plugin is set to; of a hook, which is a module, its source."""
    if isinstance(plugin, ModuleType):
        return digest(Path(str(plugin.__file__)).read_bytes())
    return dict(plugin.config)


def _markdown_settings(config: MkDocsConfig) -> Any:
    """The Markdown extensions and their settings, or None if one is not known to be pure."""
    known = [_extension(extension) for extension in config.markdown_extensions]
    settings = config.mdx_configs
    if not all(_is_pure(name, settings.get(name)) for name, _ in known):
        return None
    return _plain([known, settings, config.use_directory_urls, config.validation])


def _extension(extension: Any) -> tuple[str, Any]:
    """An extension's name, as Python-Markdown has it, and the settings that it was made with."""
    if isinstance(extension, str):
        return extension, None
    kind = type(extension)
    return f"{kind.__module__}:{kind.__qualname__}", extension.getConfigs()


def _is_pure(name: str, settings: Any) -> bool:
    """Whether an extension reads nothing but the Markdown, its settings and installed files."""
    module = name.partition(":")[0]
    if module == _EMOJI and ((settings or {}).get("options") or {}).get("custom_icons"):
        return False
    is_known = module in _SHORT or f"{module}.".startswith(_PURE)
    return is_known and not f"{module}.".startswith(_READS_FILES)


def _plain(value: Any) -> str | None:
    """A digest of settings; None if they hold what cannot be told apart by content."""
    try:
        return digest(json.dumps(value, default=_named, sort_keys=True))
    except (TypeError, ValueError):
        return None


def _named(value: Any) -> Any:
    """Settings that are no JSON: known functions by name, collections by content."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if inspect.isfunction(value) or isinstance(value, type):
        name = f"{value.__module__}.{value.__qualname__}"
        if name.startswith(_PURE_FUNCTIONS) and "<" not in name:  # what a closure holds is hidden
            return name
    if type(value).__module__.partition(".")[0] in _SHOWN_WHOLE:
        return str(value)
    raise TypeError(f"{type(value)} has no content to compare")


# Where types come from whose text shows all of a value: paths, dates, languages.
_SHOWN_WHOLE = ("babel", "datetime", "pathlib")


def _plain_toc(item: AnchorLink) -> dict[str, Any]:
    children = [_plain_toc(child) for child in item.children]
    return {"name": item.title, "id": item.id, "level": item.level, "children": children}


def _plain_nav(nav: Any) -> list[Any]:
    return [[_shown(item), _plain_nav(item.children or ())] for item in nav]


def own_templates(config: MkDocsConfig) -> list[str]:
    """The folders of templates that are the user's, and not of an installed theme."""
    installed = Path(jinja2.__file__).parents[1]
    return [folder for folder in config.theme.dirs if not Path(folder).is_relative_to(installed)]


def _theme(config: MkDocsConfig) -> Any:
    """The theme's settings and the user's own templates; None if they cannot be compared."""
    settings = _plain({name: config.theme[name] for name in config.theme})
    files = [
        (name, path.read_bytes())
        for folder in own_templates(config)
        for name, path in _files(folder)
    ]
    if settings is None or any(_is_new(content) for _, content in files):
        return None
    return [str(config.theme.name), settings, [(name, digest(content)) for name, content in files]]


def _files(folder: str) -> list[tuple[str, Path]]:
    """The files in a folder, also behind links, by their names in it."""
    found = (Path(at, name) for at, _, names in os.walk(folder, followlinks=True) for name in names)
    return sorted((path.relative_to(folder).as_posix(), path) for path in found if path.is_file())


def _is_new(template: bytes) -> bool:
    """Whether a template of the user's may give something else in each build."""
    return any(word in template for word in _CLOCK) or bool(_ALL_PAGES.search(template))


def _read_clock(themes: list[str]) -> bool:
    """Whether a template of a theme that is installed shows when a site was built."""
    files = (path for theme in themes for path in Path(theme).rglob("*.html"))
    return any(
        b"build_date" in text or b"update_date" in text for text in map(Path.read_bytes, files)
    )


# Markdown to HTML, and what else comes of it


def _html(page: Page) -> dict[str, Any]:
    """What `Page.render` leaves in a page."""
    links = {file.src_uri: found for file, found in (page.links_to_anchors or {}).items()}
    return {
        "content": page.content,
        "toc": [_plain_toc(item) for item in page.toc],
        "title": page._title_from_render,
        "anchors_here": sorted(page.present_anchor_ids or ()),
        "anchors_there": links,
    }


def _set_html(page: Page, known: Mapping[str, Any], files: Files) -> None:
    """The inverse of `_html`."""
    page.content = known["content"]
    page.toc = get_toc(known["toc"])
    page._title_from_render = known["title"]
    page.present_anchor_ids = set(known["anchors_here"])
    page.links_to_anchors = {
        file: links
        for uri, links in known["anchors_there"].items()
        if (file := files.get_file_from_path(uri)) is not None
    }


def _url(files: Files, uri: str) -> str | None:
    file = files.get_file_from_path(uri)
    return file.url if file else None


class _Lookups:
    """The files of a site, and which of them were asked for."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self.urls: dict[str, str | None] = {}

    def get_file_from_path(self, path: str) -> File | None:
        """As `Files` has it."""
        uri = posixpath.normpath(path)
        self.urls[uri] = _url(self._files, uri)
        return self._files.get_file_from_path(path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files, name)

    def __iter__(self) -> Iterator[File]:
        return iter(self._files)


class _Told:
    """What autorefs and mkdocstrings are told while a page's Markdown is converted."""

    def __init__(self, page: Page, config: MkDocsConfig) -> None:
        self._page = page
        self._autorefs = config.plugins.get("autorefs")
        mkdocstrings: Any = config.plugins.get("mkdocstrings")
        is_on = mkdocstrings and mkdocstrings.config.enabled
        self._handlers = mkdocstrings.handlers if is_on else None
        self._before = dict(self._handlers.inventory) if self._handlers else {}
        self._anchors: list[Any] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear what autorefs is told while this lasts."""
        if self._autorefs is None:
            yield
            return
        register = self._autorefs.register_anchor

        def listen(page: Any, *arguments: Any, **options: Any) -> None:
            self._anchors.append([arguments, options])
            register(page, *arguments, **options)

        self._autorefs.register_anchor = listen
        try:
            yield
        finally:
            del self._autorefs.register_anchor

    def found(self) -> dict[str, Any]:
        """What to tell them when the page is not converted again."""
        inventory = self._handlers.inventory if self._handlers else {}
        new = [item for name, item in inventory.items() if self._before.get(name) is not item]
        names = ("name", "domain", "role", "uri", "priority", "dispname")
        items = [{name: getattr(item, name) for name in names} for item in new]
        return {"anchors": self._anchors, "inventory": items}


class _Complaints(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def _complaints() -> Iterator[list[logging.LogRecord]]:
    """Warnings that are logged while this lasts, also by a builder that was told to be quiet.

    A page that has some must have them again in the next build.
    """
    complaints = _Complaints()
    with ExitStack() as undo:
        for logger in map(logging.getLogger, ("", "mkdocs", "properdocs")):
            if logger.getEffectiveLevel() > logging.WARNING:
                undo.callback(logger.setLevel, logger.level)
                logger.setLevel(logging.WARNING)
                for handler in logger.handlers:
                    undo.callback(handler.setLevel, handler.level)
                    handler.setLevel(max(handler.level, logging.ERROR))
            logger.addHandler(complaints)
            undo.callback(logger.removeHandler, complaints)
        yield complaints.records
