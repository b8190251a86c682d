"""API reference pages: directives for mkdocstrings, one page a module."""

from __future__ import annotations

import posixpath

import yaml

from marginalia.paper import Paper
from marginalia.source import Symbol, symbols

FOLDER = "reference"
INDEX = f"{FOLDER}/index.md"

# What mkdocstrings shows of a class or function: the annotated page has the source.
_OPTIONS: dict[str, object] = {
    "heading_level": 2,
    "members_order": "source",
    "show_root_heading": True,
    "show_root_full_path": False,
    "show_source": False,
    "show_bases": True,
    "show_symbol_type_heading": True,
    "show_symbol_type_toc": True,
    "show_signature_annotations": True,
    "separate_signature": True,
    "signature_crossrefs": True,
    "docstring_section_style": "list",
    "docstring_options": {"warnings": False},
    "merge_init_into_class": True,
    "show_if_no_docstring": True,
}


def source_of(paper: Paper) -> str:
    """The Markdown file of a module's reference, `"reference/attention/foo.md"`."""
    return f"{FOLDER}/{paper.url.rstrip('/')}.md"


def url_of(paper: Paper) -> str:
    """The address of that page, from the site's root."""
    return f"{FOLDER}/{paper.url}"


def public(text: str) -> list[Symbol]:
    """The classes and functions of a module that a reader may use, `demo` aside."""
    return [
        symbol
        for symbol in symbols(text)
        if symbol.kind in ("class", "function")
        and not symbol.name.startswith("_")
        and "." not in symbol.name
        and symbol.name != "demo"
    ]


def page(paper: Paper, text: str) -> str:
    """The reference of one module, linked to its annotated page.

    Args:
        paper: The module.
        text: Its source.
    """
    here = source_of(paper)
    back = posixpath.relpath(paper.src_uri, posixpath.dirname(here))
    meta = {
        "title": f"{paper.title}: API",
        "description": f"Signatures, arguments and shapes of {paper.module}",
        "search": {"boost": 0.5},
        "hide": ["navigation"],
    }
    parts = [
        f"---\n{yaml.safe_dump(meta, allow_unicode=True, sort_keys=False)}---",
        f"# {paper.title}",
        f"```python\nfrom {paper.module} import {', '.join(s.name for s in public(text))}\n```",
        f"The explanation, the measured shapes and the checked claims are on the "
        f"[annotated page]({back}).",
    ]
    for symbol in public(text):
        beside = f"[Explained beside its code]({back}#{symbol.name})"
        directive = _directive(_OPTIONS | {"members": _methods(text, symbol)})
        parts.append(f"::: {paper.module}.{symbol.name}\n{directive}\n{beside}")
    return "\n\n".join(parts) + "\n"


def _directive(options: dict[str, object]) -> str:
    lines = yaml.safe_dump({"options": options}, sort_keys=False).splitlines()
    return "".join(f"    {line}\n" for line in lines)


def _methods(text: str, symbol: Symbol) -> list[str]:
    """The public methods of a class; attributes are explained where they are made."""
    inside = [s for s in symbols(text) if s.name.rpartition(".")[0] == symbol.name]
    names = [s.name.rpartition(".")[2] for s in inside if s.kind == "function"]
    return [name for name in names if not name.startswith("_")]


def index(papers: list[tuple[Paper, str]]) -> str:
    """A page that leads to the reference of every module.

    Args:
        papers: Modules with their sources.
    """
    lines = ["---\ntitle: API reference\nhide: [navigation]\n---", "# API reference"]
    lines.append(
        "Signatures with argument shapes, return values and errors, for those who know what they "
        "look for. Explanations are on the annotated pages."
    )
    topic = ""
    for paper, text in sorted(papers, key=lambda entry: (entry[0].topic, entry[0].title)):
        if paper.topic != topic:
            topic = paper.topic
            lines.append(f"## {topic.replace('-', ' ').capitalize()}")
        names = ", ".join(f"`{symbol.name}`" for symbol in public(text))
        target = posixpath.relpath(source_of(paper), FOLDER)
        lines.append(f"- [{paper.title}]({target}): {names}")
    return "\n\n".join(lines).replace("\n\n- ", "\n- ") + "\n"
