"""The tools that are compared: how each one's site is laid out, and the command that builds it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import corpus

OURS = "marginalia"
STANDBY = "marginalia-standby"  # the same with an option that is off by default

# All that build on MkDocs have the same theme, features and Markdown extensions.
_MKDOCS = """\
site_name: Benchmark
use_directory_urls: true
theme:
  name: material
  font: false
  features: [content.code.copy]
markdown_extensions:
  - admonition
  - attr_list
  - md_in_html
  - pymdownx.details
  - pymdownx.highlight
  - pymdownx.inlinehilite
  - pymdownx.superfences
  - pymdownx.emoji:
      emoji_index: !!python/name:material.extensions.emoji.twemoji
      emoji_generator: !!python/name:material.extensions.emoji.to_svg
  - pymdownx.tabbed: {alternate_style: true}
  - toc: {permalink: true}
"""
# Marginalia typesets formulas itself; the others hand them to a script of the reader's browser.
_ARITHMATEX = """\
  - pymdownx.arithmatex: {generic: true}
"""
# The pages that are only rendered stand in no navigation: Material's grows with its square.
_SCALE_NAV = """\
nav: [{Home: index.md}]
validation: {omitted_files: ignore}
"""

_SPHINX = """\
project = "Benchmark"
html_theme = "pydata_sphinx_theme"
exclude_patterns = ["_build", "conf.py"]
"""


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Tool:
    """One way to build the examples.

    Attributes:
        name: In the results and on the command line.
        label: In tables.
        lay_out: Writes the sources of a site with so many examples into an empty folder.
        command: What builds it into `site`, in that folder; a program of the environment first.
        example: Where an example lies, by name.
        packages: The distributions whose versions matter.
        mkdocs: Whether it builds on MkDocs.
        caches: Whether it keeps what an example showed for the next build.
        slow: Whether a cold build takes minutes.
    """

    name: str
    label: str
    lay_out: Callable[[Path, int], None]
    command: tuple[str, ...]
    example: str
    packages: tuple[str, ...]
    mkdocs: bool = False
    caches: bool = True
    slow: bool = False


def _write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _sphinx_gallery(folder: Path, count: int, *, parallel: bool) -> None:
    corpus.write_examples(folder / "examples", range(count), corpus.gallery_rst, "plot_{}.py")
    settings = {
        "examples_dirs": "../examples",
        "gallery_dirs": "auto_examples",
        "parallel": cores() if parallel else False,
        "log_level": {"backreference_missing": "info"},
    }
    extension = f'extensions = ["sphinx_gallery.gen_gallery"]\nsphinx_gallery_conf = {settings!r}\n'
    index = "Benchmark\n=========\n\n.. toctree::\n\n   auto_examples/index\n"
    _write(
        folder,
        {
            "doc/conf.py": _SPHINX + extension,
            "doc/index.rst": index,
            "examples/GALLERY_HEADER.rst": "Examples\n========\n",
        },
    )


def _sphinx_gallery_serial(folder: Path, count: int) -> None:
    _sphinx_gallery(folder, count, parallel=False)


def _sphinx_gallery_parallel(folder: Path, count: int) -> None:
    _sphinx_gallery(folder, count, parallel=True)


def _myst_nb(folder: Path, count: int) -> None:
    corpus.write_examples(folder / "doc/examples", range(count), corpus.percent, "{}.py")
    extension = """extensions = ["myst_nb"]
nb_execution_mode = "cache"
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_timeout = 120
nb_execution_raise_on_error = True
myst_enable_extensions = ["dollarmath"]
"""
    index = "# Benchmark\n\n```{toctree}\n:glob:\n\nexamples/*\n```\n"
    _write(folder, {"doc/conf.py": _SPHINX + extension, "doc/index.md": index})


def _mkdocs(folder: Path, plugins: str, *, ours: bool = False, nav: str = "") -> None:
    config = _MKDOCS + ("" if ours else _ARITHMATEX) + nav + f"plugins:\n  - search\n{plugins}"
    _write(folder, {"mkdocs.yml": config, "docs/index.md": "# Benchmark\n"})


def _mkdocs_gallery(folder: Path, count: int) -> None:
    examples = folder / "docs/examples"
    corpus.write_examples(examples, range(count), corpus.gallery_markdown, "plot_{}.py")
    _write(examples, {"README.md": "# Examples\n"})
    plugin = "  - gallery: {examples_dirs: docs/examples, gallery_dirs: docs/generated}\n"
    _mkdocs(folder, plugin, nav="nav: [{Home: index.md}, {Examples: generated}]\n")


def _mkdocs_jupyter(folder: Path, count: int) -> None:
    corpus.write_examples(folder / "docs/examples", range(count), corpus.percent, "{}.py")
    options = '{execute: true, include: ["examples/*.py"], allow_errors: false}'
    plugin = f"  - mkdocs-jupyter: {options}\n"
    _mkdocs(folder, plugin)


def _markdown_exec(folder: Path, count: int) -> None:
    corpus.write_examples(folder / "docs/examples", range(count), corpus.markdown_exec, "{}.md")
    _mkdocs(folder, "  - markdown-exec\n")


def _marginalia(folder: Path, count: int, options: str = "") -> None:
    corpus.write_examples(folder / "examples", range(count), corpus.percent, "{}.py")
    _mkdocs(folder, f"  - marginalia: {{papers: examples{options}}}\n", ours=True)


def _standing_by(folder: Path, count: int) -> None:
    # Long enough for the steps of a round, and over before the next round starts cold.
    _marginalia(folder, count, ", standby: 20")


SPHINX = ("sphinx-build", "-q", "-b", "html")
MKDOCS = ("mkdocs", "build", "-q", "-d", "site")
_ON_MATERIAL = ("mkdocs", "mkdocs-material")
_ON_SPHINX = ("Sphinx", "pydata-sphinx-theme")

TOOLS = (
    Tool(
        "sphinx-gallery",
        "Sphinx-Gallery",
        _sphinx_gallery_serial,
        (*SPHINX, "doc", "site"),
        "examples/plot_{}.py",
        ("sphinx-gallery", *_ON_SPHINX),
    ),
    Tool(
        "sphinx-gallery-parallel",
        "Sphinx-Gallery, parallel",
        _sphinx_gallery_parallel,
        (*SPHINX, "-j", str(cores()), "doc", "site"),
        "examples/plot_{}.py",
        ("sphinx-gallery", "joblib", *_ON_SPHINX),
    ),
    Tool(
        "mkdocs-gallery",
        "mkdocs-gallery",
        _mkdocs_gallery,
        MKDOCS,
        "docs/examples/plot_{}.py",
        ("mkdocs-gallery", *_ON_MATERIAL),
        mkdocs=True,
    ),
    Tool(
        "mkdocs-jupyter",
        "mkdocs-jupyter",
        _mkdocs_jupyter,
        MKDOCS,
        "docs/examples/{}.py",
        ("mkdocs-jupyter", "ipykernel", *_ON_MATERIAL),
        mkdocs=True,
        slow=True,
    ),
    Tool(
        "markdown-exec",
        "markdown-exec",
        _markdown_exec,
        MKDOCS,
        "docs/examples/{}.md",
        ("markdown-exec", *_ON_MATERIAL),
        mkdocs=True,
        caches=False,
    ),
    Tool(
        "myst-nb",
        "MyST-NB, with its cache",
        _myst_nb,
        (*SPHINX, "doc", "site"),
        "doc/examples/{}.py",
        ("myst-nb", "jupyter-cache", "ipykernel", *_ON_SPHINX),
        slow=True,
    ),
    Tool(
        OURS,
        "Marginalia",
        _marginalia,
        MKDOCS,
        "examples/{}.py",
        ("marginalia", *_ON_MATERIAL),
        mkdocs=True,
    ),
    Tool(
        STANDBY,
        "Marginalia, standing by",
        _standing_by,
        MKDOCS,
        "examples/{}.py",
        ("marginalia", *_ON_MATERIAL),
        mkdocs=True,
    ),
)
BY_NAME = {tool.name: tool for tool in TOOLS}


# Sites whose pages are only rendered, and served

PLAIN = "material"  # plain Material for MkDocs
RENDERERS = {OURS: "Marginalia", PLAIN: "Material for MkDocs"}


def lay_out_pages(renderer: str, folder: Path, count: int) -> Path:
    """Write a site of pages that are only rendered.

    Returns:
        The folder of the pages.
    """
    if renderer == OURS:
        corpus.write_pages(folder / "modules", count, corpus.module, ".py")
        _mkdocs(folder, "  - marginalia: {papers: modules}\n", ours=True, nav=_SCALE_NAV)
        return folder / "modules"
    corpus.write_pages(folder / "docs", count, corpus.markdown, ".md")
    _mkdocs(folder, "", nav=_SCALE_NAV)
    return folder / "docs"
