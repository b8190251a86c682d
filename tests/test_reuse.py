"""What is taken from the last build is what would be made again: warm sites are cold sites."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from textwrap import dedent, indent

import jinja2
import pytest
from click.testing import CliRunner
from marginalia.store import Store
from mkdocs.__main__ import cli
from mkdocs.config.defaults import MkDocsConfig

CONFIG = """
site_name: Mine
theme:
  name: material
  font: false
  custom_dir: theme
strict: false
validation: {links: {anchors: warn}}
nav: [index.md, guide.md, reading-list.md]
plugins:
  - search
  - mkdocstrings: {handlers: {python: {paths: [papers]}}}
  - marginalia
"""

FILES = {
    "mkdocs.yml": CONFIG,
    "theme/main.html": '{% extends "base.html" %}\n{% block footer %}Mine{% endblock %}\n',
    "docs/index.md": "# Home\n\nSee [the gate](attention/gate.md#Gate) and [guide](guide.md).\n",
    "docs/guide.md": "# Guide\n\nA word.\n",
    "papers/shared.py": '''
        """What others use."""

        import torch


        # ## Twice
        #
        # What is needed.


        # Two of a kind.
        def double(x: torch.Tensor) -> torch.Tensor:
            """Twice `x`."""
            # Adding is cheaper.
            return x + x


        def demo():
            # Two and two.
            assert double(torch.ones(2)).sum() == 4
        ''',
    "papers/alone.py": "class Tanh2:\n    pass\n",
    "papers/attention/gate.py": '''
        """
        ---
        title: A gate
        authors: [Ada]
        year: 2019
        arxiv: "1901.00001"
        compare: [tanh]
        date: 2026-01-02
        ---

        Gates, see `Tanh`... (and "tanh").
        """

        from torch import nn

        from shared import double


        class Gate(nn.Module):
            """One for each channel."""

            def forward(self, x):
                return double(x).sigmoid()


        def demo():
            import torch

            assert Gate()(torch.zeros(3)).max() == 0.5  # Eq. 1
        ''',
    "papers/attention/tanh.py": '''
        """
        ---
        title: Another
        year: 2020
        ---

        # Signs

        Keeps the sign, as [Gate][attention.gate.Gate] does not.
        """

        from attention.gate import Gate


        class Tanh(Gate):
            """Keeps the sign."""

            def forward(self, x):
                return x.tanh()
        ''',
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        write(tmp_path / name, text)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text).lstrip("\n"), encoding="utf-8")


@dataclass(frozen=True)
class Built:
    returncode: int
    log: str


def build(folder: Path, out: str = "site", *options: str, date: int = 1_700_000_000) -> Built:
    """Build in this process: a site takes longer to import than to make."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        patch.setenv("SOURCE_DATE_EPOCH", str(date))
        done = CliRunner().invoke(cli, ["build", "-d", str(folder / out), *options])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Built(done.exit_code, done.output)


def content(site: Path) -> dict[str, bytes]:
    return {p.relative_to(site).as_posix(): p.read_bytes() for p in site.rglob("*") if p.is_file()}


def warm_and_cold(folder: Path) -> tuple[dict[str, bytes], dict[str, bytes], str, str]:
    """The site with what is remembered, the site with nothing but the demos that ran, the logs."""
    warm = build(folder, "warm")
    pages = folder / ".cache" / "marginalia" / "pages"
    pages.rename(folder / "remembered")
    try:
        cold = build(folder, "cold")
    finally:
        shutil.rmtree(pages)
        (folder / "remembered").rename(pages)
    assert warm.returncode == cold.returncode == 0, warm.log + cold.log
    return content(folder / "warm"), content(folder / "cold"), warm.log, cold.log


def complaints(log: str) -> list[str]:
    return [line for line in log.splitlines() if line.startswith(("WARNING", "ERROR"))]


def replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return edit


def add(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: write(folder / name, text)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


NOTE = """
    - id: gates
      title: On gates
      kind: paper-full
      arxiv: "1901.00001"
      says: ["A gate is half open at zero."]
"""

EDITS = {
    "nothing": lambda folder: None,
    "prose": replace("papers/attention/gate.py", "Gates, see", "Many gates, see"),
    "title": replace("papers/attention/gate.py", "title: A gate", "title: The gate"),
    "code": replace("papers/attention/tanh.py", "x.tanh()", "x.tanh() + 0"),
    "comment in a helper": replace("papers/shared.py", "is cheaper", "costs less"),
    "prose of a helper": replace("papers/shared.py", "What is needed", "All that is needed"),
    "prose above a helper": replace("papers/shared.py", "Two of a kind", "A pair"),
    "prose of a helper's demo": replace("papers/shared.py", "Two and two", "One and one"),
    "docstring of a helper": replace("papers/shared.py", "What others use", "What all use"),
    "demo that is imported": replace(
        "papers/alone.py", "class", "from shared import demo\n\n\nclass"
    ),
    "docstring in a helper": replace("papers/shared.py", "Twice `x`", "Two times `x`"),
    "definition moves": replace("papers/shared.py", "def double", "N = 1\n\n\ndef double"),
    "definition goes": replace("papers/attention/gate.py", "Gate(", "Gate2("),
    "name elsewhere": add("papers/other.py", "class Tanh:\n    pass\n"),
    "page goes": remove("papers/alone.py"),
    "page is a package": add("papers/attention/__init__.py", '"""\n# Attention\n"""\n'),
    "note": add("papers/attention/notes.yaml", NOTE),
    "own page": replace("docs/guide.md", "A word", "Two words"),
    "own page's title": replace("docs/guide.md", "# Guide", "# The guide"),
    "link that leads nowhere": replace("docs/guide.md", "A word", "[A word](nowhere.md)"),
    "anchor that is not there": replace("docs/guide.md", "A word", "[A](attention/gate.md#B)"),
    "site's name": replace("mkdocs.yml", "site_name: Mine", "site_name: Yours"),
    "navigation": replace("mkdocs.yml", "guide.md, reading", "{Guiding: guide.md}, reading"),
    "feature": replace("mkdocs.yml", "  font: false", "  font: false\n  features: [toc.follow]"),
    "extension": replace("mkdocs.yml", "strict:", "markdown_extensions: [smarty]\nstrict:"),
    "addresses": replace("mkdocs.yml", "strict:", "use_directory_urls: false\nstrict:"),
    "search": replace("mkdocs.yml", "- search", "- search: {separator: '[-]'}"),
    "no mkdocstrings": replace("mkdocs.yml", "ings: {h", "ings: {enabled: false, h"),
    "template": replace("theme/main.html", "Mine", "Yours"),
    "front matter": replace("docs/guide.md", "# Guide", "---\nstatus: new\n---\n\n# Guide"),
    "keys of two kinds": replace("docs/guide.md", "# Guide", "---\n1: a\nb: c\n---\n\n# Guide"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_warm_site_is_the_cold_one(folder: Path, edit: str) -> None:
    """Before the edit and after it, with all that was remembered of the site as it was."""
    check_edit(folder, EDITS[edit], changes=edit != "nothing")


def check_edit(folder: Path, edit: Callable[[Path], None], *, changes: bool = True) -> None:
    assert build(folder).returncode == 0
    edit(folder)
    warm, cold, says, said = warm_and_cold(folder)
    assert warm.keys() == cold.keys()
    assert [name for name in warm if warm[name] != cold[name]] == []
    assert complaints(says) == complaints(said)
    assert (content(folder / "site") != warm) == changes


def option(text: str) -> Callable[[Path], None]:
    return replace("mkdocs.yml", "strict:", f"{text}\nstrict:")


def shows(text: str) -> Callable[[Path], None]:
    return replace("theme/main.html", "Mine", text)


def extension(text: str) -> Callable[[Path], None]:
    return option(f"markdown_extensions: [{{{text}}}]")


# How a site is made that shows something, and an edit of just that.
SHOWN = {
    "absolute link": (
        [replace("docs/index.md", "See", "See [the guide](/guide.md),")],
        replace("mkdocs.yml", "s: warn", "s: warn, absolute_links: relative_to_docs"),
    ),
    "link that is to be complained of": (
        [replace("docs/index.md", "See", "See [the guide](/guide.md),")],
        replace("mkdocs.yml", "s: warn", "s: warn, absolute_links: warn"),
    ),
    "title of the contents": (
        [
            extension("toc: {permalink: true, title: Parts}"),
            replace("docs/guide.md", "A word", "## Part"),
        ],
        replace("mkdocs.yml", "Parts", "Sections"),
    ),
    "titles of all pages": (
        [shows("{% for file in pages %}{{ file.page.title }}{% endfor %}")],
        replace("papers/attention/tanh.py", "title: Another", "title: One more"),
    ),
    "number of words": (
        [shows("{{ page.markdown | wordcount }}")],
        replace("docs/guide.md", "A word.", "A word.\n\n[Name]: https://nowhere.test"),
    ),
    "setting of the theme": (
        [
            replace("mkdocs.yml", "  font: false", "  font: false\n  names: {1: Mine, b: c}"),
            shows("{{ config.theme.names[1] }}"),
        ],
        replace("mkdocs.yml", "1: Mine", "1: Yours"),
    ),
    "what links to a definition": (
        [replace("mkdocs.yml", "[papers]", "[papers], options: {backlinks: tree}")],
        replace("papers/attention/tanh.py", "Keeps the sign, as", "As"),
    ),
    "template without a suffix": (
        [shows("{% include 'note' %}"), add("theme/note", "The first.")],
        add("theme/note", "The second."),
    ),
}


@pytest.mark.parametrize("what", SHOWN)
def test_an_edit_of_what_pages_show_is_seen(folder: Path, what: str) -> None:
    made, edit = SHOWN[what]
    for make in made:
        make(folder)
    check_edit(folder, edit, changes=what != "link that is to be complained of")


# For each kind of what is remembered, by a field of its own: words of one page, and who shows them.
REMEMBERED = {
    "markdown": ("Tanh2", "alone/index.html"),
    "toc": ("What others use", "shared/index.html"),
    "entries": ("Keeps the sign", "search/search_index.json"),
    "before": ("A gate", "attention/gate/index.html"),
}


def test_a_page_that_has_not_changed_is_not_made_again(folder: Path) -> None:
    """The way to see it: what is remembered is tampered with, and the site shows it."""
    build(folder)
    before = entries(folder)
    replace("docs/guide.md", "A word", "Two words")(folder)
    build(folder)
    assert 1 < len(entries(folder)) - len(before) < 6
    store = Store(folder / ".cache/marginalia/pages", whole=True)
    for key in entries(folder):
        entry = store.get(key)
        assert entry is not None
        for field in REMEMBERED.keys() & entry:
            text = json.dumps(entry).replace(REMEMBERED[field][0], f"tampered {field}")
            store.put(key, json.loads(text))
    build(folder)
    site = content(folder / "site")
    for field, (_, name) in REMEMBERED.items():
        assert f"tampered {field}".encode() in site[name], name


def test_a_link_may_lead_to_an_anchor_in_code(folder: Path) -> None:
    """MkDocs knows the anchors of code that it does not convert."""
    replace("docs/guide.md", "A word", "[A](attention/gate.md#Gate.forward)")(folder)
    log = build(folder, "site", "--strict").log
    assert "anchor" not in log


def searched(folder: Path) -> dict[str, str]:
    """The text of every entry of the search index, by where it leads."""
    index = json.loads(content(folder / "site")["search/search_index.json"])
    return {entry["location"]: entry["text"] for entry in index["docs"]}


def test_code_is_found_as_it_reads(folder: Path) -> None:
    build(folder)
    assert b'<span class="k">return</span>' in content(folder / "site")["attention/tanh/index.html"]
    code = "def forward(self, x):\n        return x.tanh()"
    assert any(code in text for text in searched(folder).values())


def test_a_section_is_found_with_all_that_stands_in_it(folder: Path) -> None:
    build(folder)
    found = searched(folder)
    parts = ("What is needed.", "Two of a kind.", "Adding is cheaper.", "return x + x")
    assert [part for part in parts if part not in found["shared/#twice"]] == []
    assert [text for text in found.values() if "Copy" in text or "Topics ›" in text] == []


def entries(folder: Path) -> set[str]:
    return {path.stem for path in (folder / ".cache/marginalia/pages/entries").glob("*/*.json")}


@pytest.mark.parametrize("first", ["", "-q", "-v"])
def test_a_strict_build_fails_each_time(folder: Path, first: str) -> None:
    link = "[A word](nowhere.md) [and](attention/gate.md#nothing)"
    replace("docs/guide.md", "A word", link)(folder)
    build(folder, "site", *filter(None, [first]))
    for _ in range(2):
        done = build(folder, "site", "--strict")
        assert "#nothing" in done.log
        assert done.returncode == 1
        assert "nowhere.md" in done.log


@pytest.mark.parametrize("name", ["pymdownx.snippets", "pymdownx.snippets:SnippetExtension"])
def test_an_extension_that_reads_files_is_asked_each_time(folder: Path, name: str) -> None:
    write(folder / "piece.txt", "The first.\n")
    replace("docs/guide.md", "A word.", '--8<-- "piece.txt"')(folder)
    option(f"markdown_extensions: ['{name}']")(folder)
    build(folder)
    write(folder / "piece.txt", "The second.\n")
    build(folder)
    assert b"The second." in content(folder / "site")["guide/index.html"]


def icon(width: int) -> str:
    return f'<svg xmlns="http://www.w3.org/2000/svg"><path d="M0 0h{width}"/></svg>'


def build_alone(folder: Path) -> None:
    """Build in a process of its own: Material and jieba read some files once."""
    subprocess.run([sys.executable, "-m", "mkdocs", "build", "-q"], cwd=folder, check=True)


def test_a_dictionary_of_the_search_is_read_each_time(folder: Path) -> None:
    replace("docs/guide.md", "A word", "\u6df1\u5ea6\u5b66\u4e60")(folder)
    replace("mkdocs.yml", "- search", "- search: {jieba_dict_user: words.txt}")(folder)
    for words, parts in (
        ("", "\u6df1\u5ea6\u200b\u5b66\u4e60"),
        ("\u6df1\u5ea6\u5b66\u4e60 9999", "\u6df1\u5ea6\u5b66\u4e60"),
    ):
        write(folder / "words.txt", words)
        build_alone(folder)
        assert parts in searched(folder)["guide/"]


def test_icons_of_the_site_are_read_each_time(folder: Path) -> None:
    write(folder / "theme/.icons/mine/logo.svg", icon(1))
    extension(
        "pymdownx.emoji: {emoji_index: !!python/name:material.extensions.emoji.twemoji ,"
        " emoji_generator: !!python/name:material.extensions.emoji.to_svg ,"
        " options: {custom_icons: [theme/.icons]}}"
    )(folder)
    replace("docs/guide.md", "A word", ":mine-logo:")(folder)
    for width in (1, 7):
        write(folder / "theme/.icons/mine/logo.svg", icon(width))
        build_alone(folder)
        assert icon(width).encode() in content(folder / "site")["guide/index.html"]


def test_a_function_of_the_site_is_asked_each_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder)
    extension("toc: {slugify: !!python/name:slugs_of_mine.slug }")(folder)
    for anchor in ("first", "second"):
        code = f"def slug(text, separator):\n    return '{anchor}'\n"
        write(folder / "slugs_of_mine.py", code)
        build(folder)
        assert f'id="{anchor}"'.encode() in content(folder / "site")["guide/index.html"]
        del sys.modules["slugs_of_mine"]


def test_a_function_that_is_known_stays_comparable(folder: Path) -> None:
    slugs = "!!python/object/apply:pymdownx.slugs.slugify {kwds: {case: lower}}"
    option(f"markdown_extensions:\n  - toc:\n      slugify: {slugs}")(folder)
    build(folder)
    before = entries(folder)
    build(folder)
    assert entries(folder) == before
    assert b'id="guide"' in content(folder / "site")["guide/index.html"]
    replace("mkdocs.yml", "lower", "none")(folder)
    build(folder)
    assert b'id="Guide"' in content(folder / "site")["guide/index.html"]


@pytest.mark.parametrize("shown", ["{{ build_date_utc }}", "{{ page.update_date }}"])
def test_a_template_that_reads_the_clock_is_asked_each_time(folder: Path, shown: str) -> None:
    replace("theme/main.html", "Mine", shown)(folder)
    build(folder)
    assert b"2023-11-14" in content(folder / "site")["guide/index.html"]
    build(folder, date=1_800_000_000)
    assert b"2027-01-15" in content(folder / "site")["guide/index.html"]


def test_a_theme_that_reads_the_clock_is_asked_each_time(folder: Path) -> None:
    """Those of MkDocs write the time of the build into the home page."""
    replace("mkdocs.yml", "name: material", "name: readthedocs")(folder)
    build(folder)
    assert b"2023-11-14" in content(folder / "site")["index.html"]
    build(folder, date=1_800_000_000)
    assert b"2027-01-15" in content(folder / "site")["index.html"]


PLUGIN = """
from pathlib import Path

import jinja2
from mkdocs.plugins import BasePlugin
from mkdocs.structure.nav import Link, Navigation


class Said:
    def __init__(self):
        self.text = Path("said.txt").read_text()

    def __str__(self):
        return "what was said"


class Plugin(BasePlugin):
"""


@pytest.fixture
def installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Install a plugin of which a method is given, and use it after all others."""

    def install(method: str) -> None:
        write(folder / "lib/saying_plugin.py", PLUGIN + indent(dedent(method), "    "))
        monkeypatch.syspath_prepend(folder / "lib")
        monkeypatch.delitem(sys.modules, "saying_plugin", raising=False)
        known = dict(MkDocsConfig._schema)["plugins"].installed_plugins
        point = EntryPoint("saying", "saying_plugin:Plugin", "mkdocs.plugins")
        monkeypatch.setitem(known, point.name, point)
        replace("mkdocs.yml", "- marginalia", "- marginalia\n  - saying")(folder)

    return install


SAID = "{% include 'said.txt' %}"


@pytest.mark.parametrize(
    ("added", "shown"),
    [
        ("globals['said'] = Path('said.txt').read_text()", "{{ said }}"),
        ("globals['said'] = lambda: Path('said.txt').read_text()", "{{ said() }}"),
        ("globals['all'] = {'said': Path('said.txt').read_text}", "{{ all.said() }}"),
        ("filters['read'] = lambda name: Path(name).read_text()", "{{ 'said.txt' | read }}"),
        ("filters['upper'] = lambda name: Path(name).read_text()", "{{ 'said.txt' | upper }}"),
        (
            "tests['first'] = lambda name: 'The first' in Path(name).read_text()",
            "{{ 'The first.' if 'said.txt' is first else 'The second.' }}",
        ),
        ("globals['said'] = jinja2.Template(Path('said.txt').read_text()).render", "{{ said() }}"),
        ("loader = jinja2.FileSystemLoader(['.', *env.loader.searchpath])", SAID),
        ("loader = jinja2.ChoiceLoader([jinja2.FileSystemLoader('.'), env.loader])", SAID),
        (
            "finalize = lambda value: Path('said.txt').read_text() if value == 'it' else value",
            "{{ 'it' }}",
        ),
        (
            "trim_blocks = 'first' in Path('said.txt').read_text()",
            "{% set line %}{% if true %}\n{% endif %}{% endset %}"
            "{{ 'The second.' if line else 'The first.' }}",
        ),
    ],
)
def test_what_a_plugin_adds_to_templates_is_asked_each_time(
    folder: Path, installed: Callable[[str], None], added: str, shown: str
) -> None:
    installed(f"def on_env(self, env, **_):\n    env.{added}\n")
    check_said(folder, shown)


def check_said(folder: Path, shown: str) -> None:
    """A page shows what a plugin reads in a file, also when that has changed."""
    shows(shown)(folder)
    for said in ("The first.", "The second."):
        write(folder / "said.txt", said)
        build(folder)
        assert said.encode() in content(folder / "site")["guide/index.html"]


NAV = """
    def on_nav(self, nav, **_):
        link = Link(Path("said.txt").read_text(), "/")
        return Navigation([*nav.items, link], nav.pages)
    """
EXTRA = """
    def on_env(self, env, config, **_):
        config.extra["said"] = Path("said.txt").read_text()
    """
ATTRIBUTE = """
    def on_page_content(self, html, page, **_):
        if page.is_index:
            page.typeset = {"title": Path("said.txt").read_text()}
    """
FUNCTION = """
    def on_page_context(self, context, **_):
        context["said"] = lambda: Path("said.txt").read_text()
    """
OBJECT = """
    def on_page_context(self, context, **_):
        context["said"] = Said()
    """
META = """
    def on_page_content(self, html, page, **_):
        page.meta["said"] = Said()
    """
STYLES = """
    def on_page_context(self, context, **_):
        context["extra_css"].append(Path("said.txt").read_text())
    """


@pytest.mark.parametrize(
    ("method", "shown"),
    [
        (NAV, ""),
        (EXTRA, "{{ config.extra.said }}"),
        (ATTRIBUTE, ""),
        (FUNCTION, "{{ said() if said }}"),
        (OBJECT, "{{ said.text if said }}"),
        (META, "{{ page.meta.said.text if page }}"),
        (STYLES, "{{ extra_css | last }}"),
    ],
    ids=["navigation", "setting", "attribute", "function", "object", "meta", "styles"],
)
def test_what_a_plugin_says_is_seen(
    folder: Path, installed: Callable[[str], None], method: str, shown: str
) -> None:
    installed(method)
    check_said(folder, shown)


def test_a_template_is_compiled_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    usual = jinja2.Environment._compile
    monkeypatch.setattr(
        jinja2.Environment,
        "_compile",
        lambda env, source, name: compiled.append(name) or usual(env, source, name),
    )
    build(folder)
    assert any("base.html" in name for name in compiled)
    compiled.clear()
    replace("theme/main.html", "Mine", "Yours")(folder)
    build(folder)
    names = {Path(name).name for name in compiled}
    assert "main.html" in names
    assert "base.html" not in names
    assert b"Yours" in content(folder / "site")["guide/index.html"]


def test_what_is_remembered_is_bounded(folder: Path) -> None:
    replace("mkdocs.yml", "- marginalia", "- marginalia: {cache_size: 1}")(folder)
    replace("docs/guide.md", "A word.", "A word.\n\n" * 100_000)(folder)
    assert build(folder).returncode == 0
    kept = (folder / ".cache/marginalia").rglob("*")
    assert 0 < sum(path.stat().st_size for path in kept if path.is_file()) < 1_000_000
