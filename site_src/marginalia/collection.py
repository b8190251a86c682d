"""Papers and notes joined: what there is, how it is called, and where it stands on the site."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from marginalia.errors import SourceError
from marginalia.notes import Note, Topic, load_notes, load_topics, nearest, slug
from marginalia.paper import Paper, discover, page_url
from marginalia.paper import load as load_paper


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the catalogue: an annotated paper (with its note, if it has one) or a note.

    Args:
        source: The Markdown file to link to, with an anchor if it has no page of its own.
    """

    title: str
    topic: str
    source: str
    paper: Paper | None = None
    note: Note | None = None
    short: str = ""
    zh: str = ""
    year: int | None = None
    venue: str = ""
    published: str = ""
    arxiv: str = ""
    tags: tuple[str, ...] = ()
    idea: str = ""
    is_guide: bool = False

    @property
    def kind(self) -> str:
        """`paper`, or the kind of its note."""
        return self.note.kind if self.note and not self.paper else "paper"

    @property
    def name(self) -> str:
        """The id of its note, or the name of its module."""
        return self.note.id if self.note else self.paper.module if self.paper else ""


@dataclass(frozen=True)
class Catalog:
    """Everything the index pages list.

    Args:
        topics: By slug, in the order of the site.
        notes: By id.
        papers: The annotated papers.
        guides: The ids of notes that have a hand-written page `guides/<id>.md`.
        home: Markdown that opens the home page; empty for a generated one.
    """

    topics: Mapping[str, Topic]
    notes: Mapping[str, Note]
    papers: tuple[Paper, ...]
    guides: frozenset[str] = frozenset()
    home: str = ""

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """The papers and the notes without one, in the order of the topics, newest first."""
        answered = {paper.note for paper in self.papers}
        unanswered = [note for note in self.notes.values() if note.id not in answered]
        entries = [self._entry(paper, self.note_for(paper)) for paper in self.papers]
        entries += [self._entry(None, note) for note in unanswered]
        order = list(self.topics)
        entries.sort(key=lambda entry: (order.index(entry.topic), -(entry.year or 0), entry.title))
        return tuple(entries)

    @cached_property
    def names(self) -> Mapping[str, Entry]:
        """The entries by every name that stands for them.

        These are the id of a note, the name of a module (`attention.squeeze_excitation`) and the
        last part of that (`squeeze-excitation`); the first two win.
        """
        papers = [(entry.paper, entry) for entry in self.entries if entry.paper]
        return (
            {_names_of(paper.module)[0]: entry for paper, entry in papers}
            | {paper.module: entry for paper, entry in papers}
            | {entry.note.id: entry for entry in self.entries if entry.note}
        )

    def url_of(self, name: str) -> str:
        """The address of a note or a paper, relative to the site: `notes/attention/san/`.

        Args:
            name: One of `names`.

        Raises:
            KeyError: There is no such note or paper.
        """
        return page_url(self.names[name].source)

    def title_of(self, name: str) -> str:
        """The title of a note or a paper.

        Args:
            name: One of `names`.

        Raises:
            KeyError: There is no such note or paper.
        """
        return self.names[name].title

    def note_for(self, paper: Paper) -> Note | None:
        """The note that a paper answers."""
        return self.notes.get(paper.note)

    def of_topic(self, topic: str) -> list[Entry]:
        """What a topic holds."""
        return [entry for entry in self.entries if entry.topic == topic]

    @property
    def guide_entries(self) -> list[Entry]:
        """The hand-written pages, those included whose note a module answers as well."""
        written = [e for e in self.entries if e.note and e.note.id in self.guides]
        return [entry if entry.is_guide else self._entry(None, entry.note) for entry in written]

    def _entry(self, paper: Paper | None, note: Note | None) -> Entry:
        """What is known of a paper and its note together; the paper knows better."""

        def known(key: str) -> Any:
            return getattr(paper, key, None) or getattr(note, key, None) or None

        texts = ("title", "short", "zh", "venue", "published", "arxiv", "idea")
        tags = (*(paper.tags if paper else ()), *(note.tags if note else ()))
        return Entry(
            topic=_topic_of(paper) if paper else note.topic if note else "",
            source=paper.src_uri if paper else self._source(note) if note else "",
            paper=paper,
            note=note,
            year=known("year"),
            tags=tuple(dict.fromkeys(tags)),
            is_guide=paper is None and note is not None and note.id in self.guides,
            **{key: known(key) or "" for key in texts},
        )

    def _source(self, note: Note) -> str:
        if note.id in self.guides:
            return f"guides/{note.id}.md"
        if note.has_substance:
            return f"notes/{note.topic}/{note.id}.md"
        return f"topics/{note.topic}.md#{note.id}"


# Loading


def load(
    root: Path,
    docs: Path | None = None,
    papers: Iterable[Paper] | None = None,
    *,
    unreadable: Iterable[str] = (),
) -> Catalog:
    """Read a folder of papers and notes.

    `topics.yaml` and a topic's `notes.yaml` may be missing: then the topics are the folders.

    Args:
        root: The folder of papers.
        docs: The folder of hand-written pages: `guides/<id>.md` is then the page of that note,
            and `home.md` opens the home page.
        papers: The papers, if they have been read; otherwise those in `root`.
        unreadable: The names of modules that could not be: other papers may name them.

    Returns:
        The catalogue.

    Raises:
        SourceError: A file is wrong, a topic is not in `topics.yaml`, or an id is doubled or
            unknown; with file, line and column.
        OSError: A file cannot be read.
    """
    notes: dict[str, Note] = {}
    for path in sorted(root.glob("*/notes.yaml")):
        for note in load_notes(path):
            if note.id in notes:
                first = notes[note.id].path
                raise note.wrong("id", f"this `id` stands in {first} already")
            notes[note.id] = note
    if papers is None:
        papers = [load_paper(path, root) for path in discover(root)]
    annotated = tuple(papers)
    topics = _topics(root / "topics.yaml", annotated, notes.values())
    guides = frozenset(
        note for note in notes if docs and (docs / "guides" / f"{note}.md").is_file()
    )
    home = docs / "home.md" if docs else None
    text = home.read_text(encoding="utf-8") if home and home.is_file() else ""
    catalog = Catalog(topics, notes, annotated, guides, text)
    _check_names(catalog, frozenset(chain.from_iterable(map(_names_of, unreadable))))
    return catalog


def _names_of(module: str) -> tuple[str, str]:
    """What stands for a module."""
    return slug(module.rpartition(".")[2]), module


def _topic_of(paper: Paper) -> str:
    folder, _, module = paper.module.partition(".")
    return slug(paper.topic or (folder if module else "")) or "papers"


def _topics(path: Path, papers: Sequence[Paper], notes: Iterable[Note]) -> dict[str, Topic]:
    if not path.is_file():
        found = sorted({*map(_topic_of, papers), *(note.topic for note in notes)})
        return {name: Topic(name, name.replace("-", " ").capitalize()) for name in found}
    topics = {topic.slug: topic for topic in load_topics(path)}
    for note in notes:
        if note.topic not in topics:
            hint = nearest(note.topic, topics)
            raise note.wrong("id", f"its folder is topic `{note.topic}`, not in {path}{hint}")
    for paper in papers:
        if (topic := _topic_of(paper)) not in topics:
            hint = nearest(topic, topics)
            raise _wrong(paper, "topic", f"topic `{topic}` is not in {path}{hint}")
    return topics


def _check_names(catalog: Catalog, unreadable: Collection[str]) -> None:
    """Raise for a name that stands for nothing, and for a note that two papers answer."""
    for note in catalog.notes.values():
        for name in note.cited_by:
            if name not in catalog.notes:
                hint = nearest(name, catalog.notes)
                raise note.wrong("cited_by", f"`cited_by` names no note: `{name}`{hint}")
    answers: dict[str, Paper] = {}
    for paper in catalog.papers:
        if paper.note and paper.note not in catalog.notes:
            hint = nearest(paper.note, catalog.notes)
            raise _wrong(paper, "note", f"`note` names no note: `{paper.note}`{hint}")
        if paper.note in answers:
            other = answers[paper.note].path
            raise _wrong(paper, "note", f"{other} has the note `{paper.note}` already")
        if paper.note:
            answers[paper.note] = paper
    for paper in catalog.papers:
        for name in paper.compare:
            if name not in catalog.names and name not in unreadable:
                hint = nearest(name, catalog.names)
                raise _wrong(paper, "compare", f"`compare` names no note or paper: `{name}`{hint}")


def _wrong(paper: Paper, key: str, reason: str) -> SourceError:
    """An error at the line of a paper's front matter that holds a key."""
    lines = paper.path.read_bytes().splitlines()
    line = next((n for n, text in enumerate(lines, 1) if text.startswith(f"{key}:".encode())), 1)
    return SourceError(paper.path, line, 1, reason)
