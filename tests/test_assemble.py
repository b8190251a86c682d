"""A site from a folder of modules: what fails, what does not, what an adopter's MkDocs makes."""

from __future__ import annotations

import json
import math
import os
import posixpath
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import nbformat
import pytest
from lxml import html
from marginalia.assemble import Site, assemble
from marginalia.dangling import dangling
from marginalia.errors import MarginaliaError
from marginalia.jobs import Plan, Progress
from marginalia.limits import NAMES, Limits
from marginalia.options import Options
from marginalia.page import Prepared
from marginalia.paper import Paper
from marginalia.plugin import MarginaliaConfig

GOOD = '''
    """Doubling."""


    def double(x):
        # Adding is cheaper.
        return x + x


    def demo():
        assert double(3) == 6  # Eq. 1
'''
FALSE = "def demo():\n    n = 4\n    assert n == 5  # Table 2\n"
BROKEN = "x = 1\ny = = 2\n"
FIGURE = """
    # %% [markdown]
    # # Drawn *here*

    # %%
    import matplotlib.pyplot as plt

    # %%
    plt.plot([1, 2])
    plt.show()
    print("drawn")
"""


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text).lstrip("\n"), encoding="utf-8")
    return folder


SiteOf = Callable[..., Site]


@pytest.fixture
def site_of(tmp_path: Path) -> SiteOf:
    """Write modules and assemble them."""

    def make(files: dict[str, str], **options: object) -> Site:
        papers = write(tmp_path / "papers", files)
        return assemble(Options(papers, tmp_path / "cache", workers=2, **options))  # type: ignore[arg-type]

    return make


# Modules


def test_a_paper_that_is_half_written_may_be_compared_with(site_of: SiteOf) -> None:
    """Somebody saves it in the middle of a line, and others name it."""
    relative = '"""\n---\ncompare: [{}]\n---\n"""\n'
    files = {"a.py": BROKEN, "b.py": relative.format("a"), "sub/c.py": relative.format("a, b")}
    site = site_of(files)
    assert [report.source for report in site.report.failed] == ["a.py"]
    assert "[B](../b.md)" in site.pages["sub/c.md"]
    assert "[C](../sub/c.md)" in site.pages["topics/sub.md"]
    with pytest.raises(MarginaliaError, match="names no note or paper: `d`"):
        site_of({**files, "b.py": relative.format("d")})


def test_the_reference_holds_what_is_public(site_of: SiteOf) -> None:
    files = {
        "__init__.py": '"""# All"""\ndef top(): pass\n',
        "topics.yaml": "- slug: vit\n  title: Vision transformers\n- slug: papers\n  title: Rest\n",
        "vit/swin.py": "class Swin: pass\n",
        "vit/shown.py": "def demo():\n    print(1)\n",
    }
    pages = site_of(files, api=True).pages
    assert sorted(name for name in pages if name.startswith("reference/")) == [
        "reference/index.md",
        "reference/vit/swin.md",
    ]
    assert "## Vision transformers\n- [Swin](vit/swin.md): `Swin`" in pages["reference/index.md"]
    assert [name for name in pages if ">API<" in pages[name]] == ["vit/swin.md"]


def test_a_broken_module_hurts_no_other(site_of: SiteOf) -> None:
    site = site_of(
        {
            "topic/broken_one.py": BROKEN,
            "topic/good.py": GOOD,
            "topic/meta.py": '"""\n---\nyaer: 2020\n---\n"""\n',
            "topic/bytes.py": "# coding: ascii\nx = 'é'\n",
            "topic/false.py": FALSE,
            "topic/plain.py": "SIZE = 3\n",
        }
    )
    status = {page.source: page.status for page in site.report.pages}
    assert status == {
        "topic/broken_one.py": "failed",
        "topic/bytes.py": "failed",
        "topic/false.py": "failed",
        "topic/good.py": "ran",
        "topic/meta.py": "failed",
        "topic/plain.py": "static",
    }
    broken, _, false, meta = site.report.failures()
    assert broken.endswith("topic/broken_one.py:2: SourceError: invalid syntax")
    assert re.search(r"topic/false.py:3: AssertionError: .*4.*5", false)
    assert "topic/meta.py:3: " in meta
    assert "year" in meta
    assert "line 2, column 5: invalid syntax" in site.pages["topic/broken-one.md"]
    assert "mg-claim mg-ok" in site.pages["topic/good.md"]
    assert "mg-claim mg-bad" in site.pages["topic/false.md"]


def test_every_module_has_the_page_that_the_report_names(site_of: SiteOf) -> None:
    files = {"a.py": GOOD, "t_x/b_c.py": BROKEN, "t_x/__init__.py": "", "t_x/d.py": "x = 1\n"}
    site = site_of(files)
    urls = [page.url for page in site.report.pages]
    assert urls == ["a/", "t-x/b-c/", "t-x/d/"]
    assert {f"{url[:-1]}.md" for url in urls} <= set(site.pages)
    mended = site_of(files | {"t_x/b_c.py": GOOD})
    assert [page.url for page in mended.report.pages] == urls


def test_what_ran_is_kept(site_of: SiteOf) -> None:
    assert [page.status for page in site_of({"good.py": GOOD}).report.pages] == ["ran"]
    prose = GOOD.replace("Adding is cheaper.", "Another reason.")
    again = site_of({"good.py": prose})
    assert [page.status for page in again.report.pages] == ["cached"]
    assert "Another reason." in again.pages["good.md"]


def test_the_time_of_a_demo_is_the_site_s_or_its_own(site_of: SiteOf) -> None:
    sleep = "\nimport time\n\ndef demo():\n    time.sleep(3)\n"
    site = site_of(
        {
            "slow.py": f'"""Slow."""{sleep}',
            "patient.py": f'"""\n---\ntimeout: 30\n---\nPatient.\n"""{sleep}',
        },
        limits=Limits(timeout=1.0),
    )
    pages = {page.source: page for page in site.report.pages}
    assert (pages["patient.py"].status, pages["patient.py"].failures) == ("ran", ())
    assert pages["slow.py"].status == "failed"
    assert "1 s, its limit" in pages["slow.py"].failures[0].message


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(MarginaliaError, match=re.escape(str(tmp_path / "none"))):
        assemble(Options(tmp_path / "none", tmp_path / "cache", workers=1))


def test_an_empty_folder_is_a_site_with_a_home(site_of: SiteOf, tmp_path: Path) -> None:
    (tmp_path / "papers").mkdir()
    site = site_of({})
    assert "index.md" in site.pages
    assert site.report.pages == []


@pytest.mark.parametrize("directory_urls", [True, False])
def test_raw_addresses_fit_the_builder(site_of: SiteOf, directory_urls: bool) -> None:
    site = site_of(
        {
            "deep/one.py": "from deep.two import Two\n\n\ndef demo():\n    Two()\n",
            "deep/two.py": "class Two:\n    pass\n",
            "top.py": "from deep.two import Two\n\nTWO = Two()\n",
        },
        directory_urls=directory_urls,
    )
    suffix = "/" if directory_urls else ".html"
    for source, up in (("deep/one", "deep"), ("top", ".")):
        page = f"{source}/" if directory_urls else f"{source}.html"
        links = html.fromstring(site.pages[f"{source}.md"]).xpath("//a[@class]/@href")
        targets = {
            posixpath.normpath(posixpath.join(posixpath.dirname(page), link.partition("#")[0]))
            for link in links
            if "#Two" in link
        }
        assert targets == {f"deep/two{suffix}".rstrip("/")}, (source, up)
        (download,) = [
            link
            for link in html.fromstring(site.pages[f"{source}.md"]).xpath("//a/@href")
            if link.endswith(".py")
        ]
        file = posixpath.normpath(posixpath.join(posixpath.dirname(page), download))
        assert file in site.files


def test_scripts_and_notebooks_are_run_and_shown(site_of: SiteOf, tmp_path: Path) -> None:
    write(tmp_path / "papers", {"script.py": FIGURE})
    cells = [
        nbformat.v4.new_markdown_cell("# A notebook"),
        nbformat.v4.new_code_cell("import matplotlib.pyplot as plt"),
        nbformat.v4.new_code_cell("plt.plot([1, 2])\nplt.show()\nprint('drawn')"),
    ]
    path = tmp_path / "papers" / "book.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    site = site_of({})
    assert {page.source: page.status for page in site.report.pages} == {
        "book.ipynb": "ran",
        "script.py": "ran",
    }
    for name, title in (("script", "Drawn *here*"), ("book", "A notebook")):
        tree = html.fromstring(site.pages[f"{name}.md"])
        sources = tree.xpath("//*[contains(@class, 'mg-figure')]/img/@src")
        assert len(sources) == 2
        assert all(b"<svg" in site.files[posixpath.normpath(f"{name}/{s}")] for s in sources)
        assert [p.text for p in tree.find_class("mg-stdout")] == ["drawn"]
        assert title in site.pages[f"{name}.md"]
        json.loads(site.files[f"{name}/{name}.ipynb"])


# An adopter's own site


ADOPTED = {"docs/about.md": "# About\n", "papers/attention/good.py": GOOD}
MINIMAL = "site_name: Mine\ntheme: {name: material}\nplugins: [marginalia]\n"


def mkdocs(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "-f", str(folder / "mkdocs.yml")]
    return subprocess.run(
        [*command, *arguments],
        cwd=folder.parent,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def read(site: Path) -> tuple[dict[str, str], list[str]]:
    """Pages and other files of a built site, by path."""
    files = {p.relative_to(site).as_posix(): p for p in site.rglob("*") if p.is_file()}
    pages = {name: path.read_text("utf-8") for name, path in files.items() if ".html" in name}
    pages.pop("404.html", None)  # its links are absolute: it does not know where it is shown
    return pages, [name for name in files if name not in pages]


def test_what_the_site_has_itself_stays(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", ADOPTED)
    own = {"docs/tags.md": "# My tags\n\n[Licence](LICENSE)\n", "docs/LICENSE": "Free.\n"}
    write(folder, own)
    (folder / "mkdocs.yml").write_text(MINIMAL)
    done = mkdocs(folder, "--strict")
    assert done.returncode == 0, done.stderr
    assert "My tags" in (folder / "site/tags/index.html").read_text()


@pytest.mark.parametrize("directory_urls", ["true", "false"])
def test_three_lines_make_a_site(tmp_path: Path, directory_urls: str) -> None:
    folder = write(tmp_path / "mine", ADOPTED)
    more = {
        "papers/attention/deep.py": "from attention.good import double\n\nSIX = double(3)\n",
        "papers/top.py": '"""\n---\ncompare: [deep]\n---\n"""\nfrom attention.good import double\n',
    }
    write(folder, more)
    (folder / "mkdocs.yml").write_text(f"{MINIMAL}use_directory_urls: {directory_urls}\n")
    done = mkdocs(folder, "--strict")
    assert done.returncode == 0, done.stderr
    pages, files = read(folder / "site")
    assert dangling(pages, files) == []
    name = "attention/good/index.html" if directory_urls == "true" else "attention/good.html"
    page = html.fromstring(pages[name])
    assert page.find_class("mg-claim")
    assert page.xpath("//link[contains(@href, 'marginalia.css')]")
    assert page.xpath("//script[contains(@src, 'marginalia.js')]")
    assert any(name.endswith(".woff2") for name in files)
    (css,) = [name for name in files if name.endswith("a-fonts.css")]
    for font in re.findall(r"url\([\"']?([^\"')]+)", (folder / "site" / css).read_text()):
        assert posixpath.normpath(posixpath.join(posixpath.dirname(css), font)) in files


def test_the_user_s_own_pages_win(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", ADOPTED | {"docs/index.md": "# My own home\n"})
    (folder / "mkdocs.yml").write_text(MINIMAL)
    done = mkdocs(folder, "--strict")
    assert done.returncode == 0, done.stderr
    pages, _ = read(folder / "site")
    assert "My own home" in pages["index.html"]
    assert "about/index.html" in pages
    assert "attention/good/index.html" in pages


WRONG = {
    "papers": ["no-such-folder", 1],
    "cache": [[]],
    "workers": ["many", 0, -1, True, 1.5],
    "cache_size": ["all", 0, -1, True],
    "executor": ["cluster", 1],
    "scheduler": [8786],
    **{name: ["soon", 0, -1, True, math.nan] for name in NAMES},
    "standby": ["soon", 0, -1, True, math.nan],
    "shapes": ["off"],
    "companion": [3],
    "api": [[]],
}


@pytest.mark.parametrize(("option", "values"), WRONG.items())
def test_wrong_options_are_refused(option: str, values: list[object], tmp_path: Path) -> None:
    for value in values:
        config = MarginaliaConfig(config_file_path=str(tmp_path / "mkdocs.yml"))
        config.load_dict({"papers": str(tmp_path), option: value})
        errors, _ = config.validate()
        assert [name for name, _ in errors] == [option], value


@pytest.mark.parametrize("option", ["timeout: soon", "shape: true"])
def test_a_wrong_option_is_named(tmp_path: Path, option: str) -> None:
    folder = write(tmp_path / "mine", ADOPTED)
    config = f"site_name: x\nplugins:\n  - marginalia: {{{option}}}\n"
    (folder / "mkdocs.yml").write_text(config)
    done = mkdocs(folder, "--strict")
    assert done.returncode == 1
    assert re.search(rf"(option '|name: ){option.split(':')[0]}\b", done.stderr)
    assert "Traceback" not in done.stderr
    assert not (folder / "site").exists()


def test_a_build_that_fails_lists_every_module(tmp_path: Path) -> None:
    wrong = {
        "papers/broken.py": BROKEN,
        "papers/deep/also_broken.py": "def f(:\n    pass\n",
        "papers/false.py": FALSE,
    }
    folder = write(tmp_path / "mine", ADOPTED | wrong)
    (folder / "mkdocs.yml").write_text(MINIMAL)
    done = mkdocs(folder)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "3 pages failed" in done.stdout + done.stderr
    said = "\n".join(line for line in done.stderr.splitlines() if line.startswith("ERROR"))
    assert "papers/broken.py:2: SourceError: invalid syntax" in said
    assert "papers/deep/also_broken.py:1: SourceError: " in said
    assert re.search(r"papers/false\.py:3: AssertionError: .*\b4\b.*\b5\b", said)
    assert "good" not in said


def test_a_long_sum_is_no_problem(tmp_path: Path) -> None:
    """It is a deep tree, which Python itself follows in C."""
    total = "x = " + " + ".join(["1"] * 900) + "\n\n\ndef demo():\n    assert x == 900\n"
    papers = write(tmp_path / "papers", {"long.py": total})
    site = assemble(Options(papers=papers, cache=tmp_path / "cache", workers=1))
    assert not site.report.failed
    assert "1 claim checked" in site.pages["long.md"]


@pytest.mark.parametrize(
    ("entries", "status", "level"), [("pages/entries", 0, "WARNING"), ("entries", 1, "ERROR")]
)
def test_only_results_must_be_kept(tmp_path: Path, entries: str, status: int, level: str) -> None:
    folder = write(tmp_path / "mine", ADOPTED)
    (folder / "mkdocs.yml").write_text(MINIMAL)
    cache = folder / ".cache" / "marginalia"
    (cache / entries).mkdir(parents=True)
    for number in range(256):
        (cache / entries / f"{number:02x}").write_text("in the way")
    (cache / "built").symlink_to(folder / "no" / "such" / "file")
    done = mkdocs(folder)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    (said,) = [line for line in done.stderr.splitlines() if "cannot be used" in line]
    assert said.startswith(level)
    assert f" {(cache / entries).parent}, " in said


def test_a_page_that_cannot_be_rendered_fails_alone(tmp_path: Path) -> None:
    too_deep = "x = " + " + ".join(["1"] * 19_000) + "\n"  # whoever walks it gives up
    run = f"{too_deep}\n\ndef demo():\n    print(x)\n"
    files = {"deep.py": too_deep, "deep_and_run.py": run, "good.py": "x = 1\n"}
    papers = write(tmp_path / "papers", files)
    site = assemble(Options(papers=papers, cache=tmp_path / "cache", workers=1))
    assert [page.source for page in site.report.failed] == ["deep.py", "deep_and_run.py"]
    for failed in site.report.failed:
        assert "RecursionError" in failed.failures[-1].message
    assert "RecursionError" in site.pages["deep.md"]
    assert "RecursionError" in site.pages["deep-and-run.md"]
    assert "mg-rows" in site.pages["good.md"]


def test_a_file_that_cannot_be_read_fails_alone(tmp_path: Path) -> None:
    papers = write(tmp_path / "papers", {"good.py": GOOD})
    (papers / "nowhere.py").symlink_to("gone.py")
    os.mkfifo(papers / "pipe.py")
    write(papers, {"user.py": f"import _helper\n{FALSE.replace('n == 5', 'n == 4')}"})
    (papers / "_helper.py").symlink_to("_helper.py")
    site = assemble(Options(papers=papers, cache=tmp_path / "cache", workers=1))
    failed = {page.source: page.failures[0].message for page in site.report.failed}
    assert failed.keys() == {"nowhere.py", "user.py"}
    assert "No such file" in failed["nowhere.py"]
    assert "mg-rows" in site.pages["good.md"]


@pytest.mark.parametrize("other", ["a_b/__init__.py", "a-b.py"])
def test_two_modules_with_one_address_are_an_error(tmp_path: Path, other: str) -> None:
    papers = write(tmp_path / "papers", {"a_b.py": "x = 1\n", other: '"""# The other"""\n'})
    site = assemble(Options(papers=papers, cache=tmp_path / "cache", workers=1))
    (failed,) = site.report.failed
    assert "would replace" in failed.failures[0].message
    assert "a-b.md" in site.pages


class Saving(Progress):
    """Somebody saves files when all has been read, and demos begin to run."""

    def __init__(self, folder: Path, files: dict[str, str]) -> None:
        self._folder, self._files = folder, files

    def planned(self, plan: Plan) -> None:
        write(self._folder, self._files)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("page.py", "Adding is cheaper", "Adding costs less"),
        ("plain.py", "What it is for", "What it is good for"),
        ("helper.py", "return x + 1", "return 1 + x"),
        ("helper.py", "One more", "One up"),
    ],
)
@pytest.mark.parametrize("undone", [False, True])
def test_what_is_saved_during_a_build_is_in_the_next(
    tmp_path: Path, name: str, old: str, new: str, undone: bool
) -> None:
    files = {
        "helper.py": "# One more.\ndef more(x):\n    return x + 1\n",
        "page.py": f"from helper import more\n{dedent(GOOD)}    assert more(1) == 2\n",
        "plain.py": "# What it is for.\nfrom helper import more\n\n\ntwo = more(1)\n",
    }
    saved = {name: files[name].replace(old, new)}
    papers = write(tmp_path / "papers", files)
    options = Options(papers=papers, cache=tmp_path / "cache", workers=1)
    assemble(options, progress=Saving(papers, saved))
    if undone:
        write(papers, {name: files[name]})
    warm = assemble(options)
    cold = assemble(replace(options, cache=tmp_path / "cold"))
    assert timeless(warm) == timeless(cold)
    assert warm.files == cold.files


def timeless(site: Site) -> dict[str, str]:
    """The pages without how long a demo took."""
    return {name: re.sub(r"ran in [0-9.]+ s", "", text) for name, text in site.pages.items()}


def test_a_page_is_the_same_prepared_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    papers = write(tmp_path / "papers", {"false.py": FALSE, "good.py": GOOD, "still.py": "x = 1\n"})
    prepared, not_prepared = (tmp_path / name for name in ("prepared", "not"))
    first = assemble(Options(papers=papers, cache=prepared, workers=1))
    monkeypatch.setattr("marginalia.assemble.MOST_PREPARED", 0)
    second = assemble(Options(papers=papers, cache=not_prepared, workers=1))
    assert timeless(first) == timeless(second)


def test_a_page_is_prepared_once_and_only_if_it_is_made(
    site_of: SiteOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = []

    class Recorded(Prepared):
        def __init__(self, paper: Paper, *rest: Any) -> None:
            prepared.append(paper.module)
            super().__init__(paper, *rest)

    monkeypatch.setattr("marginalia.page.Prepared", Recorded)
    files = {"good.py": GOOD, "false.py": FALSE, "still.py": "x = 1\n"}
    first = site_of(files)
    assert sorted(prepared) == ["false", "good", "still"]
    prepared.clear()
    again = site_of(files)
    assert prepared == ["false"]  # whose demo failed, and so runs again
    assert again.pages["good.md"] == first.pages["good.md"]
