"""The catalogue: the index pages and the navigation of a collection of papers and notes.

Pages are plain Markdown with a few `div`s; they need the extensions `attr_list` and `md_in_html`.
"""

from __future__ import annotations

import json
import posixpath
import re
import textwrap
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from marginalia.collection import Catalog, Entry, load
from marginalia.notes import KINDS, Note, Question, Statement, Topic, markdown, slug, zh_span
from marginalia.paper import Paper

__all__ = ["Catalog", "Check", "load", "nav", "note_section", "pages"]

TOPICS = "topics/index.md"
TIMELINE = "timeline.md"
VENUES = "venues/index.md"
TAGS = "tags/index.md"
READING_LIST = "reading-list.md"
GUIDES = "guides/index.md"


@dataclass(frozen=True, slots=True)
class Check:
    """What the demo of a paper showed.

    Args:
        claims: How many claims were verified.
        status: How the demo went, as the runner says it; empty if there is none.
    """

    claims: int = 0
    status: str = ""


def pages(
    catalog: Catalog,
    checks: Mapping[str, Check] | None = None,
    *,
    site_name: str = "Annotated papers",
    extra: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Write the index pages and a page for each note that has no paper and enough to say.

    Args:
        catalog: What to list.
        checks: By module, what its demo showed.
        site_name: The title of a generated home page.
        extra: Title and Markdown file of pages that others write, to be linked from home.

    Returns:
        Their Markdown by file, relative to the site's.
    """
    writer = _Writer(catalog, checks or {})
    written = {"index.md": writer.home(site_name, extra or {})}
    written |= {index.page: index.write(writer) for index in _indexes(catalog)}
    written |= {f"topics/{topic.slug}.md": writer.topic(topic) for topic in catalog.topics.values()}
    written |= {
        entry.source: writer.note(entry)
        for entry in catalog.entries
        if not entry.paper and not entry.is_guide and "#" not in entry.source
    }
    own = {paper.src_uri for paper in catalog.papers}  # a paper may itself be called index
    return {page: text for page, text in written.items() if page not in own}


def nav(catalog: Catalog, extra: Mapping[str, str] | None = None) -> list[dict[str, str]]:
    """The navigation, kept small: it is rendered into every page.

    Args:
        catalog: What is listed.
        extra: Title and Markdown file of further pages, for its end.

    Returns:
        It, as MkDocs has it in its configuration.
    """
    indexes = {index.title: index.page for index in _indexes(catalog)}
    titled = {"Home": "index.md"} | indexes | dict(extra or {})
    return [{title: page} for title, page in titled.items()]


def note_section(note: Note, level: int = 2) -> str:
    """What a note adds to the page of the paper that answers it.

    Args:
        note: The note.
        level: The level of its heading.

    Returns:
        Markdown without links: it fits any page.
    """
    parts = [
        f"{'#' * level} From the notes",
        zh_span(note.zh) if note.zh else "",
        _statements(note.says),
        *_titled("Open questions, answered", _questions(note.open_questions), level + 1),
        *_titled("Corrected and completed", _statements(note.corrections), level + 1),
        *_titled("The code of the note", markdown(note.code_says), level + 1),
    ]
    return _joined(parts)


_KIND_TITLES = {
    "paper-full": "Papers explained in a note",
    "paper-brief": "Papers in brief",
    "technique": "Techniques",
    "system": "Collections",
    "howto": "How-to",
    "paper-title": "Known by title",
}


def _is_unread(entry: Entry) -> bool:
    return not entry.paper and not entry.is_guide


class _Writer:
    """The pages of a catalogue; a method writes a page."""

    def __init__(self, catalog: Catalog, checks: Mapping[str, Check]) -> None:
        self.catalog = catalog
        self.checks = checks

    def home(self, site_name: str, extra: Mapping[str, str]) -> str:
        annotated = [entry for entry in self.catalog.entries if entry.paper]
        ways = [f"[{index.title}]({index.page}): {index.way}" for index in _indexes(self.catalog)]
        ways += [f"[{markdown(title)}]({page})" for title, page in extra.items()]
        parts = [
            self.catalog.home.strip() or f"# {markdown(site_name)}\n\n{self._claim()}",
            self._stats(),
            *_titled("Annotated papers", self._cards(annotated, "index.md")),
            "## Topics",
            self._topic_list("index.md", level=3),
            "## Ways in",
            _items(ways),
        ]
        return _page(site_name, self._claim(), parts)

    def topics(self) -> str:
        about = f"{_count(len(self.catalog.topics), 'topic')}, and what each is about."
        return _page("Topics", about, ["# Topics", self._topic_list(TOPICS, with_about=True)])

    def topic(self, topic: Topic) -> str:
        page = f"topics/{topic.slug}.md"
        entries = self.catalog.of_topic(topic.slug)
        annotated = [entry for entry in entries if entry.paper]
        notes = [entry for entry in entries if not entry.paper]
        parts = [
            f"# {_with_zh(topic.title, topic.zh)}",
            markdown(topic.about),
            _div("mg-stats", " · ".join([_tally(entries), *self._claims_of(annotated)])),
            *_titled("Annotated papers", self._cards(annotated, page)),
        ]
        for kind in KINDS:
            lines = [self._line(entry, page) for entry in notes if entry.kind == kind]
            parts += _titled(_KIND_TITLES[kind], "\n".join(lines))
        return _page(topic.title, topic.about, parts)

    def _claims_of(self, annotated: Iterable[Entry]) -> list[str]:
        """How many claims were checked on these pages, in words."""
        claims = sum(self._check(entry.paper).claims for entry in annotated if entry.paper)
        return [f"{_count(claims, 'claim')} checked"] if claims else []

    def timeline(self) -> str:
        years: dict[int, list[Entry]] = defaultdict(list)
        for entry in self.catalog.entries:
            if entry.year:
                years[entry.year].append(entry)
        most = max(map(len, years.values()))
        bars = "\n".join(
            f'<li><a href="#y{year}">{year}</a> <span class="mg-bar" aria-hidden="true" '
            f'style="--mg-share: {len(years[year]) / most:.3f}"></span> {len(years[year])}</li>'
            for year in sorted(years, reverse=True)
        )
        dated = sum(map(len, years.values()))
        about = f"{_count(dated, 'entry')} from {min(years)} to {max(years)}, newest first."
        undated = len(self.catalog.entries) - dated
        left = f"{_count(undated, 'entry')} without a year left out." if undated else ""
        bar_list = f'<ul class="mg-timeline">\n{bars}\n</ul>'
        parts = ["# Timeline", _joined_inline([about, left]), bar_list]
        for year in sorted(years, reverse=True):
            lines = [self._index_line(entry, TIMELINE, dated=False) for entry in years[year]]
            parts += [f"## {year} {{#y{year}}}", _tally(years[year]), "\n".join(lines)]
        return _page("Timeline", about, parts, searchable=False)

    def venues(self) -> str:
        about = "Conferences and journals, the most frequent first."
        venues = self._grouped(lambda entry: [entry.venue] if entry.venue else [])
        order = sorted(venues, key=lambda venue: (-len(venues[venue]), venue))
        return self._sections("Venues", about, VENUES, {name: venues[name] for name in order})

    def tags(self) -> str:
        about = "Ideas that run across the topics."
        tags = self._grouped(lambda entry: entry.tags)
        return self._sections("Tags", about, TAGS, dict(sorted(tags.items())))

    def reading_list(self) -> str:
        unread = [entry for entry in self.catalog.entries if _is_unread(entry)]
        titles = sum(entry.kind == "paper-title" for entry in unread)
        about = (
            f"{_count(len(unread), 'note')} without an annotated module, {titles} of them known "
            "by little more than a title. Nothing here has been run: what a module will show is a "
            "plan."
        )
        parts = ["# Reading list", about]
        for topic in self.catalog.topics.values():
            lines = [self._plan(entry) for entry in unread if entry.topic == topic.slug]
            if lines:
                heading = _with_zh(topic.title, topic.zh)
                parts += [f"## {heading} {{#{topic.slug}}}", "\n".join(lines)]
        return _page("Reading list", about, parts)

    def guides(self) -> str:
        about = "What the collection knows around the papers."
        parts = ["# Guides", about]
        for kind in KINDS:
            lines = [
                self._line(entry, GUIDES)
                for entry in self.catalog.guide_entries
                if entry.kind == kind
            ]
            parts += _titled(_KIND_TITLES[kind], "\n".join(lines))
        return _page("Guides", about, parts)

    def note(self, entry: Entry) -> str:
        note, page = entry.note, entry.source
        assert note is not None
        topic = self.catalog.topics[note.topic]
        facts = [f"[{markdown(topic.title)}]({_relative(f'topics/{topic.slug}.md', page)})"]
        facts += _facts(entry, published=True)
        facts += [f"[code linked by the note]({note.code})"] if note.code else []
        status = f"**A note, not yet an annotated module.** {' · '.join(facts)}"
        parts = [
            f"# {_title(entry)}",
            zh_span(note.zh) if note.zh else "",
            _sentence(note.idea),
            _div("mg-note", status),
            *_titled("What the note says", _statements(note.says)),
            *_titled("Open questions", _questions(note.open_questions)),
            *_titled("Corrected and completed", _statements(note.corrections)),
            *_titled("Numbers to check", _items(map(markdown, note.facts))),
            *_titled("The code of the note", markdown(note.code_says)),
            *_titled("Its parts", _items(map(markdown, note.modules))),
            *_titled("What its module will show", markdown(note.planned_demo)),
            *_titled("Related", self._related(entry)),
        ]
        first = note.says[0].text if note.says else ""
        return _page(note.title, _capital(note.idea) or first, parts)

    # Parts of pages

    def _claim(self) -> str:
        about = (
            "Papers as annotated Python modules: why beside what, and demos that ran while this "
            "site was built."
        )
        checked = self._checked()
        papers = _count(len(self.catalog.papers), "paper")
        return f"{about} {_count(checked, 'claim')} of {papers} checked." if checked else about

    def _checked(self) -> int:
        return sum(self._check(paper).claims for paper in self.catalog.papers)

    def _stats(self) -> str:
        numbers = (
            (len(self.catalog.papers), "paper", " annotated"),
            (self._checked(), "claim", " checked"),
            (len(self.catalog.notes), "note", ""),
            (len(self.catalog.topics), "topic", ""),
        )
        lines = (f"**{n}** {_plural(n, noun)}{rest}" for n, noun, rest in numbers if n)
        return _div("mg-stats", _items(lines))

    def _check(self, paper: Paper) -> Check:
        return self.checks.get(paper.module, Check())

    def _cards(self, entries: Sequence[Entry], page: str) -> str:
        cards = _joined(self._card(entry, page) for entry in entries)
        return _div("mg-cards", cards) if cards else ""

    def _card(self, entry: Entry, page: str) -> str:
        assert entry.paper is not None
        name = f"**[{_title(entry)}]({_relative(entry.source, page)})**"
        parts = [
            _joined_inline([name, zh_span(entry.zh) if entry.zh else ""]),
            _sentence(entry.idea),
            _joined_inline([" · ".join(_facts(entry, linked=False)), self._badge(entry)]),
        ]
        return _div("mg-card", _joined(parts))

    def _badge(self, entry: Entry) -> str:
        if entry.paper is None:
            return ""
        check = self._check(entry.paper)
        if check.status == "failed":
            return '<span class="mg-badge mg-failed">demo failed</span>'
        if check.claims:
            return f'<span class="mg-badge">{_count(check.claims, "claim")} checked</span>'
        return '<span class="mg-badge">annotated</span>'

    def _topic_list(self, page: str, *, level: int = 2, with_about: bool = False) -> str:
        topics = self._topic_lines(page, level=level, with_about=with_about)
        return topics if with_about else _div("mg-topics", topics)

    def _topic_lines(self, page: str, *, level: int, with_about: bool) -> str:
        parts: list[str] = []
        group = None
        for topic in self.catalog.topics.values():
            if topic.group != group and topic.group:
                parts.append(f"{'#' * level} {markdown(topic.group)}\n")
            group = topic.group
            link = f"[{markdown(topic.title)}]({_relative(f'topics/{topic.slug}.md', page)})"
            zh = f" {zh_span(topic.zh)}" if topic.zh else ""
            parts.append(f"- **{link}**{zh} · {_tally(self.catalog.of_topic(topic.slug))}")
            if with_about and topic.about:
                parts[-1] += f"<br>\n  {markdown(topic.about)}"
        return re.sub(r"\n(?=#)", "\n\n", "\n".join(parts))

    def _line(self, entry: Entry, page: str) -> str:
        """An item that says what a note is about; the anchor of a note without a page."""
        note = entry.note
        assert note is not None
        path, _, anchor = entry.source.partition("#")
        if path == page:
            name = f'<span id="{anchor}"></span>{_title(entry)}'
        else:
            name = f"**[{_title(entry)}]({_relative(entry.source, page)})**"
        zh = [zh_span(entry.zh)] if entry.zh else []
        head = " · ".join([name, *zh, *_facts(entry)])
        about = _about(entry)
        return f"- {head}" + (f"<br>\n  {about}" if about else "")

    def _index_line(self, entry: Entry, page: str, *, dated: bool = True) -> str:
        """An item of an index over everything."""
        facts = _facts(entry, linked=False, dated=dated)
        topic = self.catalog.topics[entry.topic].title
        head = " · ".join(
            [f"[{_title(entry)}]({_relative(entry.source, page)})", *facts, markdown(topic)]
        )
        return f"- {_joined_inline([head, self._badge(entry)])}"

    def _plan(self, entry: Entry) -> str:
        """An item of the reading list."""
        note = entry.note
        assert note is not None
        link = f"[{_title(entry)}]({_relative(entry.source, READING_LIST)})"
        head = " · ".join([f'<span id="{note.id}"></span>{link}', *_facts(entry)])
        plan = f"<br>\n  Planned: {markdown(note.planned_demo)}" if note.planned_demo else ""
        return f"- {head}{plan}"

    def _grouped(self, names: Callable[[Entry], Iterable[str]]) -> dict[str, list[Entry]]:
        """The entries by name, newest first; names with one slug are one."""
        groups: dict[str, list[Entry]] = defaultdict(list)
        first: dict[str, str] = {}
        for entry in sorted(self.catalog.entries, key=lambda entry: -(entry.year or 0)):
            for key, name in {slug(name): name for name in names(entry)}.items():
                groups[first.setdefault(key, name)].append(entry)
        return groups

    def _sections(
        self, title: str, about: str, page: str, groups: Mapping[str, list[Entry]]
    ) -> str:
        """A page with a section a group, and a list to jump to them."""
        jump = [f"[{markdown(name)}](#{slug(name)}) {len(groups[name])}" for name in groups]
        parts = [f"# {title}", about, " · ".join(jump)]
        for name, entries in groups.items():
            lines = [self._index_line(entry, page) for entry in entries]
            parts += [f"## {markdown(name)} {{#{slug(name)}}}", "\n".join(lines)]
        return _page(title, about, parts, searchable=False)

    def _related(self, entry: Entry) -> str:
        """The notes that mention one, those that it mentions, its tags, and its neighbours."""
        assert entry.note is not None
        mentions = [
            other.id for other in self.catalog.notes.values() if entry.name in other.cited_by
        ]
        beside = [other for other in self.catalog.of_topic(entry.topic) if "#" not in other.source]
        at = beside.index(entry)
        around = [other.name for other in (*beside[max(at - 1, 0) : at], *beside[at + 1 : at + 2])]
        tags = [
            f"[{markdown(tag)}]({_relative(f'{TAGS}#{slug(tag)}', entry.source)})"
            for tag in entry.tags
        ]
        lines = {
            "Mentioned in": self._links(entry.note.cited_by, entry.source),
            "Mentions": self._links(mentions, entry.source),
            "Tags": ", ".join(tags),
            "Next to it": self._links(around, entry.source),
        }
        return _items(f"{label}: {links}" for label, links in lines.items() if links)

    def _links(self, names: Collection[str], page: str) -> str:
        entries = [self.catalog.names[name] for name in names]
        return ", ".join(f"[{_brief(entry)}]({_relative(entry.source, page)})" for entry in entries)


@dataclass(frozen=True, slots=True)
class _Index:
    """A page that lists entries.

    Args:
        way: What it leads to, for the home page.
        lists: Whether it has a place for an entry.
    """

    page: str
    title: str
    way: str
    lists: Callable[[Entry], bool]
    write: Callable[[_Writer], str]


_INDEXES = (
    _Index(TOPICS, "Topics", "everything, by subject", lambda entry: True, _Writer.topics),
    _Index(
        TIMELINE,
        "Timeline",
        "year by year, newest first",
        lambda entry: bool(entry.year),
        _Writer.timeline,
    ),
    _Index(
        VENUES, "Venues", "where it was published", lambda entry: bool(entry.venue), _Writer.venues
    ),
    _Index(
        TAGS, "Tags", "ideas that run across topics", lambda entry: bool(entry.tags), _Writer.tags
    ),
    _Index(
        READING_LIST,
        "Reading list",
        "notes that have no annotated module yet",
        _is_unread,
        _Writer.reading_list,
    ),
    _Index(GUIDES, "Guides", "around the research", lambda entry: entry.is_guide, _Writer.guides),
)


def _indexes(catalog: Catalog) -> list[_Index]:
    """The pages that have something to list."""
    return [index for index in _INDEXES if any(map(index.lists, catalog.entries))]


# Pieces of Markdown


def _page(title: str, about: str, parts: Iterable[str], *, searchable: bool = True) -> str:
    """A page with its front matter. JSON is YAML, and quotes whatever needs it."""
    meta = {"title": title, "description": " ".join(about.split())}
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in meta.items()]
    lines.append("hide: [navigation]")
    if not searchable:
        lines += ["search:", "  exclude: true"]
    return "---\n" + "\n".join(lines) + "\n---\n\n" + _joined(parts) + "\n"


def _div(name: str, body: str) -> str:
    return f'<div class="{name}" markdown="1">\n\n{body}\n\n</div>'


def _joined(parts: Iterable[str]) -> str:
    return "\n\n".join(part for part in parts if part)


def _joined_inline(parts: Iterable[str]) -> str:
    return " ".join(part for part in parts if part)


def _titled(title: str, body: str, level: int = 2) -> list[str]:
    """A section, if there is anything in it."""
    return [f"{'#' * level} {title}", body] if body else []


def _items(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


_UNCHECKED = '<span class="mg-badge mg-unchecked">not checked against the paper yet</span>'


def _mark(text: str, checked: bool) -> str:
    return markdown(text) if checked else f"{markdown(text)} {_UNCHECKED}"


def _statements(statements: Iterable[Statement]) -> str:
    return _items(_mark(statement.text, statement.checked) for statement in statements)


def _questions(questions: Iterable[Question]) -> str:
    return _joined(
        f"**{markdown(question.question)}**\n\n{_mark(question.answer, question.checked)}"
        for question in questions
    )


def _title(entry: Entry) -> str:
    """The title, and the usual name if the title does not hold it."""
    title = markdown(entry.title)
    known = re.search(rf"(?<!\w){re.escape(entry.short)}(?!\w)", entry.title, re.IGNORECASE)
    return title if known or not entry.short else f"{title} ({markdown(entry.short)})"


def _brief(entry: Entry) -> str:
    """The shortest name that says what is meant."""
    return markdown(entry.short or entry.title.split(": ")[0])


def _with_zh(title: str, zh: str) -> str:
    return _joined_inline([markdown(title), zh_span(zh) if zh else ""])


def _facts(
    entry: Entry, *, linked: bool = True, dated: bool = True, published: bool = False
) -> list[str]:
    """Where and when, and arXiv."""
    if published and entry.published:
        facts = [markdown(entry.published)]
    else:
        facts = [markdown(entry.venue)] if entry.venue else []
        facts += [str(entry.year)] if entry.year and dated else []
    if linked and entry.arxiv:
        facts.append(f"[arXiv {entry.arxiv}](https://arxiv.org/abs/{entry.arxiv})")
    return facts


def _about(entry: Entry) -> str:
    """A sentence on what it is about: its idea, else the first that the note says."""
    if entry.idea:
        return _sentence(entry.idea)
    if entry.note is None or not entry.note.says:
        return ""
    said = " ".join(entry.note.says[0].text.split())
    first = re.split(r"(?<!e\.g\.)(?<!i\.e\.)(?<=\.)\s", said)[0]
    if not re.search(r"[`$\\]", first):
        first = textwrap.shorten(first, 200, placeholder=" …")
    return markdown(first)


def _sentence(idea: str) -> str:
    """An idea, which is written without a capital and a full stop, with both."""
    return markdown(f"{_capital(idea).rstrip('.')}.") if idea else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _relative(target: str, page: str) -> str:
    """A link from one Markdown file to another."""
    path, hash_, anchor = target.partition("#")
    return f"{posixpath.relpath(path, posixpath.dirname(page) or '.')}{hash_}{anchor}"


def _plural(number: int, noun: str) -> str:
    if number == 1:
        return noun
    return f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"


def _count(number: int, noun: str) -> str:
    return f"{number} {_plural(number, noun)}"


def _tally(entries: Sequence[Entry]) -> str:
    """How many of them are papers, guides and notes."""
    papers = sum(bool(entry.paper) for entry in entries)
    guides = sum(entry.is_guide for entry in entries)
    notes = len(entries) - papers - guides
    tally = [f"{papers} annotated"] if papers else []
    tally += [_count(notes, "note")] if notes else []
    tally += [_count(guides, "guide")] if guides else []
    return ", ".join(tally) or "nothing yet"
