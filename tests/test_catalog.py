"""The catalogue of this repository and of an adopter's folder, and what is wrong with files."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import html
from marginalia.catalog import Catalog, Check, load, nav, note_section, pages
from marginalia.errors import SourceError
from marginalia.notes import KINDS, load_notes, load_topics, markdown
from markdown import Markdown

REPOSITORY = Path(__file__).parent.parent
PAPERS = REPOSITORY / "papers"
DOCS = REPOSITORY / "site_src" / "docs"


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load(PAPERS, DOCS)


@pytest.fixture(scope="module")
def written(catalog: Catalog) -> dict[str, str]:
    return pages(catalog, {paper.module: Check(3, "ran") for paper in catalog.papers})


@pytest.fixture(scope="module")
def raw() -> list[dict[str, Any]]:
    """The notes as plain YAML, read without our loader."""
    files = sorted(PAPERS.glob("*/notes.yaml"))
    return [note for path in files for note in yaml.safe_load(path.read_text("utf-8"))]


# The notes of this repository


def test_every_note_is_there(catalog: Catalog, raw: list[dict[str, Any]]) -> None:
    assert len(raw) >= 319
    assert list(catalog.notes) == [note["id"] for note in raw]
    annotated = {paper.note for paper in catalog.papers} - {""}
    assert len(catalog.entries) == len(raw) + len(catalog.papers) - len(annotated)
    assert {note.topic for note in catalog.notes.values()} == set(catalog.topics)


def test_every_field_is_read(catalog: Catalog, raw: list[dict[str, Any]]) -> None:
    for plain in raw:
        note = catalog.notes[plain["id"]]
        for key, value in plain.items():
            read = getattr(note, key)
            assert len(read) == len(value) if isinstance(value, list) else read == value


def test_tags_are_few_and_shared(raw: list[dict[str, Any]]) -> None:
    assert all(1 <= len(note["tags"]) <= 4 for note in raw)
    uses = Counter(tag for note in raw for tag in note["tags"])
    assert min(uses.values()) >= 2


def test_a_venue_is_a_short_name(raw: list[dict[str, Any]]) -> None:
    venues = {note["venue"] for note in raw if "venue" in note}
    assert not [venue for venue in venues if re.search(r"\d|\(", venue)]
    assert all(("year" in note) == ("venue" in note) for note in raw)


def test_topics_say_what_they_are_about(catalog: Catalog) -> None:
    for topic in catalog.topics.values():
        assert topic.zh
        assert topic.group
        assert topic.about.endswith(".")


# The pages of this repository


def test_links_lead_somewhere(catalog: Catalog, written: dict[str, str]) -> None:
    assert dangling(catalog, written) == []


def test_every_entry_has_its_place(catalog: Catalog, written: dict[str, str]) -> None:
    for entry in catalog.entries:
        path, _, anchor = entry.source.partition("#")
        if entry.paper:
            assert path not in written
        elif entry.is_guide:
            assert (DOCS / path).is_file()
        else:
            assert f'<span id="{anchor}"></span>' in written[path] or not anchor
        assert written[f"topics/{entry.topic}.md"].count(markdown(entry.title))


def test_urls_are_folders_with_anchors(catalog: Catalog) -> None:
    for name, entry in catalog.names.items():
        url = catalog.url_of(name)
        assert url.partition("#")[0].endswith("/")
        assert catalog.title_of(name) == entry.title
        if entry.paper:
            assert url == entry.paper.url


def test_numbers_are_counted(
    catalog: Catalog, written: dict[str, str], raw: list[dict[str, Any]]
) -> None:
    home = written["index.md"]
    folders = [path.parent.name for path in PAPERS.glob("*/notes.yaml")]
    for count, what in (
        (len(catalog.papers), "papers annotated"),
        (3 * len(catalog.papers), "claims checked"),
        (len(raw), "notes"),
        (len(folders), "topics"),
    ):
        assert f"**{count}** {what}" in home
    years = Counter(entry.year for entry in catalog.entries if entry.year)
    bars = re.findall(r'href="#y(\d+)".*</span> (\d+)<', written["timeline.md"])
    assert {int(year): int(count) for year, count in bars} == years
    assert bars == sorted(bars, reverse=True)


def test_indexes_list_every_entry(catalog: Catalog, written: dict[str, str]) -> None:
    def items(page: str) -> int:
        return len(re.findall(r"^- ", written[page], re.MULTILINE))

    assert items("timeline.md") == sum(bool(entry.year) for entry in catalog.entries)
    assert items("venues/index.md") == sum(bool(entry.venue) for entry in catalog.entries)
    assert items("tags/index.md") == sum(len(entry.tags) for entry in catalog.entries)
    unread = [entry for entry in catalog.entries if not entry.paper and not entry.is_guide]
    assert items("reading-list.md") == len(unread)
    assert items("guides/index.md") == len(catalog.guides)


def test_the_reader_does_not_hear_of_our_sources(written: dict[str, str]) -> None:
    told = re.compile(r"\(knowledge[,;)]|scrape|\bseed 0|lost figure|filled in\)", re.IGNORECASE)
    assert not [page for page, text in written.items() if told.search(text)]


def test_what_is_unchecked_says_so(catalog: Catalog, written: dict[str, str]) -> None:
    for note in catalog.notes.values():
        told = [*note.says, *note.corrections, *note.open_questions]
        unchecked = sum(not statement.checked for statement in told)
        assert note_section(note).count("not checked against the paper yet") == unchecked
        page = written.get(f"notes/{note.topic}/{note.id}.md")
        assert page is None or page.count("not checked against the paper yet") == unchecked


def test_navigation_is_small(catalog: Catalog, written: dict[str, str]) -> None:
    titles = [title for item in nav(catalog, {"API": "api/index.md"}) for title in item]
    assert titles == [
        "Home", "Topics", "Timeline", "Venues", "Tags", "Reading list", "Guides", "API",
    ]  # fmt: skip
    known = set(written) | {"api/index.md"}
    assert {
        page for item in nav(catalog, {"API": "api/index.md"}) for page in item.values()
    } <= known


def test_a_paper_takes_the_place_of_its_note(tmp_path: Path) -> None:
    notes = "- {id: se, title: SE, kind: paper-full, zh: 挤压, says: [it squeezes]}\n"
    root = folder(
        tmp_path, {"a/notes.yaml": notes, "a/squeeze.py": paper("note: se\nidea: gate it")}
    )
    catalog = load(root)
    written = pages(catalog, {"a.squeeze": Check(1, "cached")})
    assert "notes/a/se.md" not in written
    assert "reading-list.md" not in written
    assert (
        catalog.url_of("se")
        == catalog.url_of("squeeze")
        == catalog.url_of("a.squeeze")
        == "a/squeeze/"
    )
    assert "**[A paper](../a/squeeze.md)**" in written["topics/a.md"]
    assert "Gate it." in written["index.md"]
    assert "1 claim checked" in written["index.md"]
    failed = pages(catalog, {"a.squeeze": Check(0, "failed")})
    assert "demo failed" in failed["topics/a.md"]


# An adopter's folder


def test_a_folder_without_notes(tmp_path: Path) -> None:
    modules = {
        "loose.py": '"""# A loose one"""\n',
        "graph_nets/gat.py": paper("year: 2018\nvenue: ICLR\ntags: [graphs]"),
        "graph_nets/gcn.py": paper("compare: [gat]"),
    }
    catalog = load(folder(tmp_path, modules))
    written = pages(catalog, site_name="Ours")
    assert set(written) == {
        "index.md", "topics/index.md", "topics/graph-nets.md", "topics/papers.md",
        "timeline.md", "venues/index.md", "tags/index.md",
    }  # fmt: skip
    assert written["index.md"].count("](graph-nets/gat.md)") == 1
    assert "# Ours" in written["index.md"]
    assert "[Graph nets](topics/graph-nets.md)" in written["index.md"]
    assert "[A loose one](../loose.md)" in written["topics/papers.md"]
    assert dangling(catalog, written) == []


def test_an_empty_folder(tmp_path: Path) -> None:
    catalog = load(tmp_path)
    assert list(pages(catalog)) == ["index.md"]
    assert nav(catalog) == [{"Home": "index.md"}]


def test_hand_written_pages(tmp_path: Path) -> None:
    notes = "- {id: ssh, title: SSH, kind: howto}\n- {id: tmux, title: tmux, kind: howto}\n"
    root = folder(tmp_path / "papers", {"tools/notes.yaml": notes})
    docs = folder(tmp_path / "docs", {"guides/ssh.md": "# SSH", "home.md": "# Welcome\n\nHello."})
    catalog = load(root, docs)
    written = pages(catalog)
    assert catalog.url_of("ssh") == "guides/ssh/"
    assert catalog.url_of("tmux") == "notes/tools/tmux/"
    assert "[SSH](ssh.md)" in written["guides/index.md"]
    assert "# Welcome\n\nHello." in written["index.md"]
    assert dangling(catalog, written) == []


def test_a_guide_stays_when_a_module_answers_its_note(tmp_path: Path) -> None:
    notes = "- {id: ssh, title: SSH, kind: howto}\n- {id: tmux, title: tmux, kind: howto}\n"
    modules = {"tools/notes.yaml": notes, "tools/shell.py": paper("note: ssh")}
    root = folder(tmp_path / "papers", modules)
    guides = {"guides/ssh.md": "# SSH", "guides/tmux.md": "# tmux"}
    catalog = load(root, folder(tmp_path / "docs", guides))
    written = pages(catalog)
    assert catalog.url_of("ssh") == "tools/shell/"
    assert written["guides/index.md"].count("[SSH](ssh.md)") == 1
    assert written["topics/tools.md"].count("](../tools/shell.md)") == 1
    assert dangling(catalog, written) == []


def test_papers_read_elsewhere(tmp_path: Path) -> None:
    root = folder(tmp_path, {"a/broken.py": "def", "a/good.py": paper("year: 2020")})
    with pytest.raises(SourceError):
        load(root)
    assert load(root, papers=[]).entries == ()


# What is wrong with a file

NOTE = "- id: one\n  title: One\n  kind: technique\n"


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        (NOTE + "  yaer: 2020\n", "4:3", "unknown field `yaer`; did you mean `year`?"),
        (NOTE + "  year: soon\n", "4:9", "`year`: must be a year, not `soon`"),
        (NOTE + "  year: 20\n", "4:9", "`year`: must be a year, not `20`"),
        (NOTE + "  arxiv: 1709.01507\n", "4:10", "`arxiv`: must be text (in quotes"),
        (NOTE + "  arxiv: 'v2'\n", "4:10", "`arxiv`: must be an arXiv id"),
        (NOTE + "  tags: deep\n", "4:9", "`tags`: must be a list"),
        (NOTE + "  tags: [Deep]\n", "4:10", "`tags`: must be lower case, not `Deep`"),
        (NOTE + "  code: github\n", "4:9", "`code`: must be an address"),
        (NOTE + "  title: Two\n", "4:3", "the field `title` stands here a second time"),
        (NOTE + "  says:\n    - a\n    - b: c\n", "6:7", "`says`: unknown field `b`"),
        (
            NOTE + "  says: [{text: a, checked: no way}]\n",
            "4:29",
            "`says`: `checked`: must be true",
        ),
        (NOTE + "  open_questions: [{question: a}]\n", "4:20", "the field `answer` is missing"),
        (NOTE + "  zh: ''\n", "4:7", "`zh`: is empty"),
        (NOTE.replace("technique", "essay"), "3:9", "`kind`: must be one of paper-full"),
        (NOTE.replace("id: one", "id: One_1"), "1:7", "`id`: must be lower-case words"),
        (NOTE + NOTE, "4:7", "this `id` stands in the file a second time"),
        ("- title: One\n", "1:3", "the field `id` is missing"),
        ("- one\n", "1:3", "must be `key: value` lines"),
        ("one: 1\n", "1:1", "must be a list of entries"),
        (NOTE + "  says: [\n", "5:1", "not YAML"),
        (NOTE + "\tsays: 1\n", "4:1", "not YAML"),
        ("- id: \x00\n", "1:1", "not YAML"),
    ],
)
def test_errors_name_the_place(tmp_path: Path, text: str, place: str, reason: str) -> None:
    path = folder(tmp_path, {"a/notes.yaml": text}) / "a" / "notes.yaml"
    with pytest.raises(SourceError) as caught:
        load_notes(path)
    assert str(caught.value).startswith(f"{path}:{place}: ")
    assert reason in str(caught.value)


def test_topics_are_read_as_strictly(tmp_path: Path) -> None:
    path = folder(tmp_path, {"topics.yaml": "- slug: a\n  title: A\n- slug: a\n  title: B\n"})
    with pytest.raises(SourceError, match=r"topics\.yaml:3:9: the `slug` a stands"):
        load_topics(path / "topics.yaml")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"b/notes.yaml": NOTE},
            r"b/notes\.yaml:1:7: one: this `id` stands in .*a/notes\.yaml already",
        ),
        (
            {"b/notes.yaml": "- {id: two, title: T, kind: howto, cited_by: [onne]}\n"},
            r"b/notes\.yaml:1:46: two: `cited_by` names no note: `onne`; did you mean `one`\?",
        ),
        (
            {"topics.yaml": "- {slug: aa, title: A}\n"},
            r"a/notes\.yaml:1:7: one: its folder is topic `a`, not in .*topics\.yaml",
        ),
        (
            {"topics.yaml": "- {slug: a, title: A}\n", "a/x.py": "topic: ab"},
            r"x\.py:4:1: topic `ab` is not in",
        ),
        ({"a/x.py": "note: oen"}, r"x\.py:4:1: `note` names no note: `oen`; did you mean `one`\?"),
        ({"a/x.py": "compare: [ones]"}, r"x\.py:4:1: `compare` names no note or paper: `ones`"),
        (
            {"a/x.py": "note: one", "a/y.py": "note: one"},
            r"y\.py:4:1: .*x\.py has the note `one` already",
        ),
    ],
)
def test_names_must_stand_for_something(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    made = {name: paper(text) if name.endswith(".py") else text for name, text in files.items()}
    root = folder(tmp_path, {"a/notes.yaml": NOTE} | made)
    with pytest.raises(SourceError, match=message):
        load(root)


# The text of notes

EXTENSIONS = [
    "abbr", "admonition", "attr_list", "def_list", "footnotes", "md_in_html", "tables", "toc",
    "pymdownx.arithmatex", "pymdownx.caret", "pymdownx.emoji", "pymdownx.highlight",
    "pymdownx.inlinehilite", "pymdownx.mark", "pymdownx.superfences", "pymdownx.tasklist",
    "pymdownx.tilde",
]  # fmt: skip
RENDERER = Markdown(extensions=EXTENSIONS)


def shown(source: str) -> str:
    """What a reader sees of a piece of Markdown."""
    rendered = RENDERER.reset().convert(source)
    return " ".join(html.fromstring(f"<div>{rendered}</div>").text_content().split())


@pytest.mark.parametrize(
    "text",
    [
        "a*b*c, _x_, d_k and `*args`",
        "costs $5 and $6",
        "1. not a list",
        "- nor this",
        "# no heading",
        "!!! note",
        "x < y & z > 0; |a|; [a](b) and ![c](d)",
        "{.class} {{ macro }} ~~gone~~ ^up^ ==mark== :smile: (c) [^1]",
        "from [x] to https://example.com/a_b_c.",
        "&lt; stays",
        "<script>alert(1)</script>",
    ],
)
@pytest.mark.parametrize("place", ["{}", "- {}", "# {}", "**{}**"])
def test_plain_text_stays_plain(text: str, place: str) -> None:
    assert shown(place.format(markdown(text))) == text.replace("`", "")


ANY_TEXT = st.text(st.characters(exclude_categories=["C"], exclude_characters="`$\\")).map(
    lambda text: " ".join(text.split())
)


@settings(max_examples=300, deadline=None)
@given(ANY_TEXT)
def test_any_text_stays_plain(text: str) -> None:
    assert shown(f"- {markdown(text)}") == text


def test_code_math_and_chinese() -> None:
    assert markdown("`a*b` is $a_1 * b$, \\$5") == "`a*b` is $a_1 * b$, &#36;5"
    assert markdown("see https://a.b/c.") == "see <https://a.b/c>."
    assert markdown("超载 is overload") == '<span lang="zh">超载</span> is overload'


def test_kinds_have_an_order() -> None:
    assert KINDS.index("paper-full") < KINDS.index("paper-brief") < KINDS.index("paper-title")


# Helpers


def folder(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def paper(meta: str) -> str:
    return f'"""\n---\ntitle: A paper\n{meta}\n---\n"""\n'


def dangling(catalog: Catalog, written: dict[str, str]) -> list[str]:
    """The links from a page to a page or an anchor that is not there."""
    elsewhere = {paper.src_uri for paper in catalog.papers}
    elsewhere |= {f"guides/{note}.md" for note in catalog.guides}
    elsewhere |= {page.name for page in DOCS.glob("*.md")}
    found = []
    for page, text in written.items():
        for link in re.findall(r"\]\(([^)]*)\)|<a href=\"([^\"]*)\"", text):
            target = "".join(link)
            if target.startswith("http"):
                continue
            path, _, anchor = target.partition("#")
            goal = (
                posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
            )
            there = written.get(goal, "")
            anchors = {"".join(pair) for pair in re.findall(r'id="([^"]+)"|\{#([^}]+)\}', there)}
            if goal not in elsewhere and (not there or anchor not in anchors | {""}):
                found.append(f"{page}: {target}")
    return found
