"""A library read from its source: its links, its titles, its pages; and the whole of `labml_nn`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from lxml import html
from marginalia.companion import Companion, Dangling, Module, find, labml
from marginalia.errors import MarginaliaError
from marginalia.links import Index
from marginalia.page import Page
from marginalia.rows import parse

ORIGIN = "https://origin.example/"
METADATA = """\
Metadata-Version: 2.1
Name: annotated_fake
Version: 1.2
Author: Ann & Bo
Classifier: License :: OSI Approved :: MIT License
"""
FILES = {
    "__init__.py": '''
        """
        # [The whole](index.html) library

        * [Gates](gates/index.html)
        """
    ''',
    "gates/__init__.py": '''
        r"""
        # [Gates](https://example.org/gates)

        <a id="top-anchor"></a>
        {prose}
        """


        class Gate:
            def open(self):
                pass
    ''',
    "gates/deep.py": '''
        """
        ---
        title: A deep gate
        summary: >
          In two lines.
        ---
        # Deep

        [arXiv](https://arxiv.org/abs/1234.56789)
        """
        from annotated_fake.gates import Gate

        GATE = Gate()
    ''',
    "no_words.py": "def run():\n    raise RuntimeError('a library is not imported')\n\n\nrun()\n",
}


@pytest.fixture
def importable(tmp_path: Path) -> Iterator[Path]:
    """A folder that packages are found in."""
    sys.path.insert(0, str(tmp_path))
    importlib.invalidate_caches()
    yield tmp_path
    sys.path.remove(str(tmp_path))


def write_library(folder: Path, prose: str = "Text.") -> Companion:
    """Install a small library whose `gates` package says `prose`, and read it."""
    for name, text in FILES.items():
        path = folder / "annotated_fake" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = dedent(text).lstrip("\n").replace("{prose}", prose)
        path.write_text(text, encoding="utf-8")
    about = folder / "annotated_fake-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(METADATA)
    library = find("annotated_fake", ORIGIN, "https://repository.example")
    return Companion(library, "companion", Index())


def module(companion: Companion, name: str) -> Module:
    (found,) = [m for m in companion.modules if m.name == name]
    return found


def page(companion: Companion, name: str, **kwargs: Any) -> Page:
    index = Index()
    for known in companion.modules:
        index.add(known.name, known.text, companion.url_of(known), kind="companion")
    return companion.page(module(companion, name), index, lambda url: f"/{url}", **kwargs)


GATES = "annotated_fake.gates"

LED = {
    "[x](deep.html)": "[x](deep.md)",
    "[x](deep.html#GATE)": "[x](deep.md#GATE)",
    "[x](../gates/deep.html)": "[x](deep.md)",
    "[x](../no_words.html)": "[x](../no_words.md)",
    "[x](../index.html)": "[x](../index.md)",
    "[x](index.html#Gate.open)": "[x](index.md#Gate.open)",
    "[x](#Gate)": "[x](#Gate)",
    "[x](#top-anchor)": "[x](#top-anchor)",
    "[x](https://example.org/a.html#b)": "[x](https://example.org/a.html#b)",
    "[x](mailto:a@example.org)": "[x](mailto:a@example.org)",
    "[*a* `b`](deep.html) and [c](#Gate).": "[*a* `b`](deep.md) and [c](#Gate).",
    "![graph](../img/graph.png)": f"[Picture: graph]({ORIGIN}img/graph.png)",
    "![graph](https://example.org/a.png)": "[Picture: graph](https://example.org/a.png)",
    "![](a.png)": f"[Picture: untitled]({ORIGIN}gates/a.png)",
    "[![Open](https://example.org/badge.svg)](deep.html)": "[Open](deep.md)",
}
UNTOUCHED = (
    "$f[a](deep.html)$",
    "$$x[a](missing.html)$$",
    "`[a](missing.html)`",
    "```python\nx = [a](missing.html)\n```",
)


@pytest.mark.parametrize(("written", "led"), LED.items())
def test_a_link_is_led_to_our_pages(importable: Path, written: str, led: str) -> None:
    companion = write_library(importable, written)
    made = page(companion, GATES)
    assert f"\n{led}\n" in made.markdown
    assert companion.dangling == []


@pytest.mark.parametrize("written", UNTOUCHED)
def test_code_and_formulas_hold_no_links(importable: Path, written: str) -> None:
    companion = write_library(importable, written)
    assert f"\n{written}\n" in page(companion, GATES).markdown
    assert companion.dangling == []


@pytest.mark.parametrize(
    ("written", "target", "led"),
    [
        ("see [x *y*](missing.html)!", "missing.html", "see x *y*!"),
        ("see [x](../../outside.html)!", "../../outside.html", "see x!"),
        ("see [x](deep.html#Nothing)!", "deep.html#Nothing", "see [x](deep.md)!"),
        ("see [x](#nothing)!", "#nothing", "see x!"),
    ],
)
def test_what_leads_nowhere_is_told_and_no_link(
    importable: Path, written: str, target: str, led: str
) -> None:
    companion = write_library(importable, written)
    assert f"\n{led}\n" in page(companion, GATES).markdown
    assert companion.dangling == [Dangling(GATES, target)]


def test_titles_addresses_and_order(importable: Path) -> None:
    companion = write_library(importable)
    found = [(m.name, m.title, companion.url_of(m)) for m in companion.modules]
    assert found == [
        ("annotated_fake", "The whole library", "companion/"),
        ("annotated_fake.no_words", "No words", "companion/no_words/"),
        ("annotated_fake.gates", "Gates", "companion/gates/"),
        ("annotated_fake.gates.deep", "A deep gate", "companion/gates/deep/"),
    ]
    assert "annotated_fake.no_words" not in sys.modules


def test_a_page_names_its_origin_its_licence_and_the_way_up(importable: Path) -> None:
    companion = write_library(importable)
    made = page(companion, f"{GATES}.deep", ours=[("Our gate", "attention/gate.md")])
    tree = html.fromstring(made.markdown)
    (origin,) = tree.find_class("mg-origin")
    assert origin.xpath("./a/@href") == [
        f"{ORIGIN}gates/deep.html",
        "https://repository.example",
    ]
    for fact in ("annotated_fake 1.2", "gates/deep.py", "Ann & Bo", "MIT License", "not run"):
        assert fact in origin.text_content()
    (crumbs,) = tree.find_class("mg-crumb")
    links = [(a.text, a.get("href")) for a in crumbs.findall("a")]
    assert links == [("Companion library", "/companion/"), ("Gates", "/companion/gates/")]
    assert "[Our gate](../../attention/gate.md)" in made.markdown
    assert made.files == {}


def test_names_in_the_code_lead_to_the_library(importable: Path) -> None:
    made = page(write_library(importable), f"{GATES}.deep")
    links = html.fromstring(made.markdown).find_class("mg-link-companion")
    assert {a.get("href") for a in links if a.text_content() == "Gate"} == {
        "/companion/gates/#Gate"
    }


def test_the_opening_page_lists_every_module(importable: Path) -> None:
    made = page(write_library(importable), "annotated_fake")
    listed = made.markdown.partition("## All modules")[2]
    links = ("[No words](no_words.md)", "[Gates](gates/index.md)", "[A deep gate](gates/deep.md)")
    assert all(f"- {link}" in listed for link in links)


def test_modules_are_found_by_the_paper_they_are_about(importable: Path) -> None:
    companion = write_library(importable)
    assert companion.about("1234.56789") == [("A deep gate", "companion/gates/deep.md")]
    assert companion.about("0000.00000") == []


def test_a_library_that_is_not_installed_is_named() -> None:
    with pytest.raises(MarginaliaError, match="no_such_library is not installed"):
        find("no_such_library", ORIGIN, "")


# The real one


@pytest.fixture(scope="module")
def real() -> tuple[Companion, dict[str, Page]]:
    """`labml_nn`, every module rendered."""
    index = Index()
    companion = labml(index)
    pages = {
        companion.source_of(m): companion.page(m, index, lambda url: f"/{url}")
        for m in companion.modules
    }
    return companion, pages


def test_every_file_of_labml_becomes_a_page(real: tuple[Companion, dict[str, Page]]) -> None:
    companion, pages = real
    files = [*companion.library.folder.rglob("*.py")]
    assert len(files) > 200
    assert {m.path for m in companion.modules} == set(files)
    assert len(pages) == len(files)
    for module in companion.modules:
        ids = html.fromstring(pages[companion.source_of(module)].markdown).xpath("//@id")
        lines = [n for row in parse(module.text) for n in row.code_lines if row.code.strip()]
        assert {f"L{n}" for n in lines} <= set(ids), module.name


def test_no_page_of_labml_asks_another_host(real: tuple[Companion, dict[str, Page]]) -> None:
    for source, made in real[1].items():
        tree = html.fromstring(made.markdown)
        assert not tree.xpath("//img | //iframe | //script[@src] | //link"), source
        assert "![" not in "".join(tree.xpath("//*[@class='mg-prose']/text()")), source


def test_what_leads_nowhere_in_labml_is_known(real: tuple[Companion, dict[str, Page]]) -> None:
    companion, _ = real
    assert 20 < len(companion.dangling) < 60
    assert Dangling("labml_nn.optimizers.radam", "amsadam.html") in companion.dangling
