"""Our site as files: nothing leads nowhere, nothing is left out, nothing was counted by hand."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import nbformat
import pytest
import yaml
from built_site import ROOT, BuiltSite, build
from lxml import html
from marginalia.catalog import Catalog, load
from marginalia.dangling import dangling
from marginalia.paper import Paper
from marginalia.source import symbols

PAPERS = ROOT / "papers"
HOST = "https://site.example/"


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load(PAPERS, ROOT / "site_src" / "docs")


def tree(site: BuiltSite, url: str) -> Any:
    """The page at an address such as `attention/squeeze-excitation/`."""
    return html.fromstring(site.pages[f"{url}index.html"])


def links(site: BuiltSite, url: str) -> set[str]:
    """Where the links of a page's own content lead, from the site's root."""
    (content,) = tree(site, url).xpath("//article")
    whole = [urljoin(HOST + url, href) for href in content.xpath(".//a/@href")]
    return {link.removeprefix(HOST) for link in whole if link.startswith(HOST)}


def papers() -> list[str]:
    files = (path.relative_to(PAPERS) for path in PAPERS.glob("*/*.py"))
    return sorted(path.as_posix() for path in files if not path.name.startswith("_"))


def paper_of(catalog: Catalog, file: str) -> Paper:
    (paper,) = [paper for paper in catalog.papers if paper.path == PAPERS / file]
    return paper


# The whole


def test_no_link_leads_nowhere(site: BuiltSite) -> None:
    files = {p.relative_to(site.folder).as_posix() for p in site.folder.rglob("*") if p.is_file()}
    assert len(site.pages) > 400
    assert list(map(str, dangling(site.pages, files - set(site.pages)))) == []


def test_every_formula_is_typeset(site: BuiltSite) -> None:
    own = (
        "//article//text()[not(ancestor::code or ancestor::pre or ancestor::script "
        "or ancestor::*[local-name()='annotation'])]"
    )
    formulas = 0
    for name, page in site.pages.items():
        assert "mg-math-error" not in page, name
        formulas += page.count("<math")
        text = "".join(html.fromstring(page).xpath(own))
        left = re.search(r".{0,40}(\$\$|\\begin\{|\\\(|\\\[).{0,40}", text)
        assert not left, f"{name}: {left and left[0]}"
    assert formulas > 3000


def test_no_page_asks_another_host(site: BuiltSite) -> None:
    loads = "//img/@src | //script/@src | //link[@rel='stylesheet']/@href | //iframe/@src"
    for name, page in site.pages.items():
        other = [url for url in html.fromstring(page).xpath(loads) if urlsplit(url).netloc]
        assert other == [], name


def test_ids_are_unique(site: BuiltSite) -> None:
    for name, page in site.pages.items():
        ids = html.fromstring(page).xpath("//@id")
        assert len(ids) == len(set(ids)), (name, {i for i in ids if ids.count(i) > 1})


def test_the_build_warns_of_nothing(site: BuiltSite) -> None:
    assert [line for line in site.log.splitlines() if re.match("WARNING|ERROR", line)] == []


# Papers


@pytest.mark.parametrize("file", papers())
def test_a_paper_shows_what_was_checked(site: BuiltSite, catalog: Catalog, file: str) -> None:
    page = tree(site, paper_of(catalog, file).url)
    (table,) = page.find_class("mg-claims")
    claims = table.findall("tbody/tr")
    assert len(claims) >= 5
    lines = (PAPERS / file).read_text("utf-8").splitlines()
    for claim in claims:
        (anchor,) = claim.xpath(".//a/@href")
        assert re.match(r"\s*(assert |torch\.testing\.assert_close)", lines[int(anchor[2:]) - 1])
        assert page.get_element_by_id(anchor[1:]) is not None
    assert len(page.find_class("mg-claim")) == len(claims)
    assert page.find_class("mg-shape")
    assert not page.find_class("mg-error")


@pytest.mark.parametrize("file", papers())
def test_a_paper_can_be_downloaded(site: BuiltSite, catalog: Catalog, file: str) -> None:
    url, stem = paper_of(catalog, file).url, Path(file).stem
    assert {f"{url}{stem}.py", f"{url}{stem}.ipynb"} <= links(site, url)
    assert (site.folder / f"{url}{stem}.py").read_bytes() == (PAPERS / file).read_bytes()
    notebook = nbformat.read(site.folder / f"{url}{stem}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.parametrize("file", papers())
def test_a_paper_and_its_reference_lead_to_each_other(
    site: BuiltSite, catalog: Catalog, file: str
) -> None:
    url = paper_of(catalog, file).url
    reference = f"reference/{url}"
    assert reference in links(site, url)
    assert url in links(site, reference)
    text = (PAPERS / file).read_text("utf-8")
    classes = [s.name for s in symbols(text) if s.kind == "class" and "." not in s.name]
    for name in (name for name in classes if not name.startswith("_")):
        assert f"{url}#{name}" in links(site, reference)


def test_papers_and_the_companion_lead_to_each_other(site: BuiltSite) -> None:
    ours, theirs = "attention/self-attention/", "companion/transformers/mha/"
    assert any(link.startswith("companion/transformers/") for link in links(site, ours))
    assert ours in {link.partition("#")[0] for link in links(site, "companion/transformers/")} | {
        link.partition("#")[0] for link in links(site, theirs)
    }


# The companion library


def test_every_module_of_labml_has_its_page(site: BuiltSite) -> None:
    spec = importlib.util.find_spec("labml_nn")
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    files = [path.relative_to(root).with_suffix("") for path in root.rglob("*.py")]
    wanted = {
        (path.parent if path.name == "__init__" else path).as_posix().removeprefix(".")
        for path in files
    }
    assert len(wanted) > 200
    pages = {Path("companion", path, "index.html").as_posix() for path in wanted}
    assert pages - set(site.pages) == set()


# The catalogue


def test_home_counts_what_there_is(site: BuiltSite, catalog: Catalog) -> None:
    (stats,) = tree(site, "").find_class("mg-stats")
    items = (item.text_content().split() for item in stats.iter("li"))
    counts = {noun.rstrip("s"): int(number.replace(",", "")) for number, noun, *_ in items}
    claims = sum(
        len(tree(site, paper.url).xpath("//table[@class='mg-claims']/tbody/tr"))
        for paper in catalog.papers
    )
    assert counts == {
        "paper": len(papers()),
        "claim": claims,
        "note": sum(len(yaml.safe_load(p.read_text("utf-8"))) for p in PAPERS.glob("*/notes.yaml")),
        "topic": len(list(PAPERS.glob("*/notes.yaml"))),
    }


def test_every_note_is_reached_from_its_topic(site: BuiltSite, catalog: Catalog) -> None:
    assert len(catalog.notes) >= 319
    for topic in catalog.topics.values():
        url = f"topics/{topic.slug}/"
        assert url in links(site, "topics/")
        reached = links(site, url) | {f"{url}#{name}" for name in tree(site, url).xpath("//@id")}
        notes = [note.id for note in catalog.notes.values() if note.topic == topic.slug]
        assert [note for note in notes if catalog.url_of(note) not in reached] == []


# The other builder


def test_properdocs_builds_the_same_pages(site: BuiltSite, tmp_path: Path) -> None:
    other = build("properdocs", tmp_path / "site")
    assert set(other.pages) == set(site.pages)
    page = "attention/squeeze-excitation/index.html"
    ours, theirs = (
        html.fromstring(one.pages[page]).xpath("//article")[0].text_content().split()
        for one in (site, other)
    )
    assert ours == theirs
