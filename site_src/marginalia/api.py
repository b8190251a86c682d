"""API reference pages: directives for mkdocstrings, one page a module."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Collection, Iterable, Mapping

from marginalia.paper import Paper
from marginalia.source import Symbol

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


def public(found: Iterable[Symbol]) -> list[Symbol]:
    """The classes and functions among a module's symbols that a reader may use, `demo` aside."""
    return [
        symbol
        for symbol in sorted(found, key=lambda symbol: symbol.start)
        if symbol.kind in ("class", "function")
        and not symbol.name.startswith("_")
        and "." not in symbol.name
        and symbol.name != "demo"
    ]


def page(paper: Paper, found: Collection[Symbol]) -> str:
    """The reference of one module, linked to its annotated page.

    Args:
        paper: The module.
        found: What it defines.
    """
    names = public(found)
    here = source_of(paper)
    back = posixpath.relpath(paper.src_uri, posixpath.dirname(here))
    meta = {
        "title": f"{paper.title}: API",
        "description": f"Signatures, arguments and shapes of {paper.module}",
        "search": {"boost": 0.5},
        "hide": ["navigation"],
    }
    parts = [
        f"---\n{json.dumps(meta)}\n---",
        f"# {paper.title}",
        f"```python\nfrom {paper.module} import {', '.join(symbol.name for symbol in names)}\n```",
        f"The explanation, the measured shapes and the checked claims are on the "
        f"[annotated page]({back}).",
    ]
    for symbol in names:
        beside = f"[Explained beside its code]({back}#{symbol.name})"
        directive = _directive(_OPTIONS | {"members": _methods(found, symbol)})
        parts.append(f"::: {paper.module}.{symbol.name}\n{directive}\n{beside}")
    return "\n\n".join(parts) + "\n"


def _directive(options: dict[str, object]) -> str:
    return f"    {json.dumps({'options': options})}\n"  # JSON is YAML, and quicker to write


def _methods(found: Iterable[Symbol], symbol: Symbol) -> list[str]:
    """The public methods of a class; attributes are explained where they are made."""
    inside = [s for s in found if s.name.rpartition(".")[0] == symbol.name]
    methods = sorted((s for s in inside if s.kind == "function"), key=lambda s: s.start)
    names = [s.name.rpartition(".")[2] for s in methods]
    return [name for name in names if not name.startswith("_")]


def index(topics: Mapping[str, Collection[tuple[Paper, Iterable[Symbol]]]]) -> str:
    """A page that leads to the reference of every module.

    Args:
        topics: For the title of each topic its modules, with what is public in them.
    """
    lines = ["---\ntitle: API reference\nhide: [navigation]\n---", "# API reference"]
    lines.append(
        "Signatures with argument shapes, return values and errors, for those who know what they "
        "look for. Explanations are on the annotated pages."
    )
    for title, papers in topics.items():
        lines += [f"## {title}"] if papers else []
        for paper, found in sorted(papers, key=lambda entry: entry[0].title):
            names = ", ".join(f"`{symbol.name}`" for symbol in found)
            target = posixpath.relpath(source_of(paper), FOLDER)
            lines.append(f"- [{paper.title}]({target}): {names}")
    return "\n\n".join(lines).replace("\n\n- ", "\n- ") + "\n"
