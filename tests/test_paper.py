"""What the catalogue reads of a paper module."""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from marginalia.errors import SourceError
from marginalia.paper import Paper, discover, front_matter, load

FULL = '''
# Licence
r"""
---
title: A *network*
authors: [Ann B, 王小明]
year: 2018
venue: CVPR
arxiv: "1709.01507"
code: https://example.org/code
topic: attention
tags: gating
zh: 网络
note: se-net
idea: one line
compare: [eca-net, cbam]
cost:
  parameters: $2c^2/r$
  time: $O(n)$
shapes: false
device: cpu
timeout: 2.5
memory: 512
network: true
date: 2026-11-22
summary:
---

# Heading

Text $\\pi$.

Letters: `b` batch, `c` channels,
`h w` height and width.
"""
raise SystemExit("papers are never imported here")
'''


def write(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def loaded(root: Path, text: str, name: str = "x.py") -> Paper:
    return load(write(root, name, text), root)


def test_the_front_matter_is_read_without_an_import(tmp_path: Path) -> None:
    paper = loaded(tmp_path, FULL, "attention/squeeze_excitation.py")
    assert paper.path == tmp_path / "attention/squeeze_excitation.py"
    assert paper.module == "attention.squeeze_excitation"
    assert paper.url == "attention/squeeze-excitation/"
    assert paper.src_uri == "attention/squeeze-excitation.md"
    assert paper.title == "A *network*"
    assert paper.summary.startswith("# Heading\n\nText $\\pi$.")
    assert paper.authors == ("Ann B", "王小明")
    assert (paper.year, paper.venue, paper.arxiv) == (2018, "CVPR", "1709.01507")
    assert (paper.code, paper.topic) == ("https://example.org/code", "attention")
    assert paper.tags == ("gating",)
    assert (paper.zh, paper.note, paper.idea) == ("网络", "se-net", "one line")
    assert paper.compare == {"eca-net": "", "cbam": ""}
    assert paper.cost == {"parameters": "$2c^2/r$", "time": "$O(n)$"}
    assert (paper.shapes, paper.device, paper.network) == (False, "cpu", True)
    assert paper.limits == {"timeout": 2.5, "memory": 512}
    assert paper.date == datetime.date(2026, 11, 22)
    assert "summary" not in paper.meta
    assert paper.letters == {"b": "batch", "c": "channels", "h": "height", "w": "width"}


def test_code_may_be_by_others(tmp_path: Path) -> None:
    front = '"""\n---\ncode: https://example.org\n{}---\n"""'
    assert loaded(tmp_path, front.format("")).code_label == "official code"
    assert loaded(tmp_path, front.format("official: false\n")).code_label == "code by others"


def test_a_relative_may_say_what_it_changes(tmp_path: Path) -> None:
    text = '''"""\n---\ncompare:\n  eca-net: "no matrix: $k$"\n  cbam: two gates\n---\n"""'''
    assert loaded(tmp_path, text).compare == {"eca-net": "no matrix: $k$", "cbam": "two gates"}


def test_a_module_needs_no_front_matter(tmp_path: Path) -> None:
    paper = loaded(tmp_path, "x = 1\n", "some_name.py")
    assert paper.title == "Some name"
    assert (paper.summary, paper.meta, paper.letters) == ("", {}, {})
    assert (paper.authors, paper.tags, paper.compare) == ((), (), {})
    assert (paper.year, paper.date, paper.limits, paper.network) == (None, None, {}, False)
    assert (paper.venue, paper.arxiv, paper.code, paper.topic) == ("", "", "", "")
    assert (paper.zh, paper.note, paper.idea, paper.device) == ("", "", "", "")
    assert (paper.cost, paper.shapes) == ({}, True)


@pytest.mark.parametrize(
    ("docstring", "title"),
    [
        ("Text\n\n## The *title* ##\n\n# Later", "The *title*"),
        ("# [A link](https://example.org) to it {#anchor}", "A link to it"),
        ("Under\n=====\n", "Under"),
        ("```\n# a comment\n```\n\n~~~~\n# b\n~~~\n# c\n~~~~\n# Real\n", "Real"),
        ("a\n\n---\n\nb", "Some name"),
        ("#hashtag", "Some name"),
        ("---\nsummary: s\n---\n# Heading", "Heading"),
    ],
)
def test_the_title_is_the_first_heading(docstring: str, title: str, tmp_path: Path) -> None:
    assert loaded(tmp_path, f'"""{docstring}"""', "some_name.py").title == title


def test_the_title_of_a_script_is_its_first_heading(tmp_path: Path) -> None:
    text = "# %% [markdown]\n# # Überschrift\n# %%\nx = 1\n"
    assert loaded(tmp_path, text).title == "Überschrift"
    assert loaded(tmp_path, '"""Text"""\n\n# # Part\n').title == "X"


@pytest.mark.parametrize(
    ("name", "module", "url", "src_uri"),
    [
        ("a.py", "a", "a/", "a.md"),
        ("a_b/__init__.py", "a_b", "a-b/", "a-b.md"),
        ("a_b/c/d_e.py", "a_b.c.d_e", "a-b/c/d-e/", "a-b/c/d-e.md"),
        ("__init__.py", "", "", "index.md"),
    ],
)
def test_where_a_page_lives(name: str, module: str, url: str, src_uri: str, tmp_path: Path) -> None:
    paper = loaded(tmp_path, "", name)
    assert (paper.module, paper.url, paper.src_uri) == (module, url, src_uri)


def test_a_package_is_named_after_its_folder(tmp_path: Path) -> None:
    assert loaded(tmp_path, "", "my_topic/__init__.py").title == "My topic"
    assert loaded(tmp_path / "all_papers", "", "__init__.py").title == "All papers"


@pytest.mark.parametrize(
    ("line", "letters"),
    [
        ("Letters: `b` batch.", {"b": "batch"}),
        ("**Letters**: `b` batch", {"b": "batch"}),
        ("*Letters:* `b` is the batch; and `n` = tokens", {"b": "the batch", "n": "tokens"}),
        ("Letters: `h w` side, `n` count", {"h": "side", "w": "side", "n": "count"}),
        ("Letters: `x, y, z` a, b, and c.", {"x": "a", "y": "b", "z": "c"}),
        (
            "Letters: `r` ratio (e.g. 16), `c'` more. `d` is none.",
            {"r": "ratio (e.g. 16)", "c'": "more"},
        ),
        ("Letters: `b`\nbatch\nsize\n\n`c` none", {"b": "batch size"}),
        ("Before.\nLetters: `d_k` key width\n", {"d_k": "key width"}),
        ("Letters: none", {}),
        ("The Letters: `b` batch", {}),
    ],
)
def test_letters(line: str, letters: dict[str, str], tmp_path: Path) -> None:
    paper = loaded(tmp_path, f'"""\nText\n\n{line}\n"""')
    assert paper.letters == letters
    assert ("Letters" in paper.text) is (not letters)
    assert paper.text.startswith("Text")


@pytest.mark.parametrize("opening", ['"""---', '"""\\\n---', 'r"""\n\n  ---', "# c\n\n'''\n---"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_an_error_has_the_line_of_the_file(opening: str, end: str, tmp_path: Path) -> None:
    quotes = opening.split("---")[0].strip(" \n\\")[-3:]
    indent = opening.split("\n")[-1].partition("---")[0] if "\n" in opening else ""
    text = f"{opening}\n{indent}title: x\n{indent}auhtors: [a]\n{indent}---\n{quotes}\n"
    path = tmp_path / "x.py"
    path.write_bytes(text.replace("\n", end).encode())
    with pytest.raises(SourceError, match=r"`auhtors`.*`authors`") as error:
        load(path, tmp_path)
    assert error.value.line == opening.count("\n") + 3


@pytest.mark.parametrize(
    ("yaml", "line", "column", "reason"),
    [
        ("title: a\nxyz: 1", 3, 1, "unknown front-matter key `xyz`"),
        ("3: 1", 2, 1, "unknown front-matter key `3`"),
        ("title: a\ntitle: b", 3, 1, "second time"),
        ("title: [a", 3, 1, "front matter: expected"),
        ("title: a: b", 2, 9, "front matter: mapping values are not allowed"),
        ("year: '2018'", 2, 1, "`year` must be a whole number"),
        ("year: true", 2, 1, "`year` must be a whole number"),
        ("\narxiv: 1709.01507", 3, 1, "`arxiv` must be text .in quotes"),
        ("tags: [a, 1]", 2, 1, "`tags` must be a list of texts"),
        ("cost: {a: 1}", 2, 1, "`cost` must be"),
        ("shapes: 1", 2, 1, "`shapes` must be true or false"),
        ("device: gpu", 2, 1, "`device` must be `cpu` or `cuda`, not 'gpu'"),
        ("data: [1]", 2, 1, "`data` must be a file, a pattern"),
        ("year: 2018\ndata: [none/*.csv]", 3, 1, r"no data file `none/\*.csv`"),
        ("timeout: fast", 2, 1, "`timeout` must be a number of seconds above 0"),
        ("memory: 0", 2, 1, "`memory` must be a number of MB above 0"),
        ("date: soon", 2, 1, "`date` must be a date"),
        ("year: 2026\ndate: 2026-13-01", 3, 1, "month"),
        ("- a", 2, 1, "not a list of `key: value`"),
        ("title: *a", 2, 8, "undefined alias"),
        ("title: !!python/object:os.system x", 2, 8, "could not determine a constructor"),
        ("\ntitle: \x01", 3, 8, "special characters are not allowed"),
    ],
)
def test_wrong_front_matter(yaml: str, line: int, column: int, reason: str) -> None:
    with pytest.raises(SourceError, match=reason) as error:
        front_matter(f"---\n{yaml}\n---\ntext", "x.py")
    assert str(error.value).startswith(f"x.py:{line}:{column}: ")


def test_data_files_are_seen_from_the_page(tmp_path: Path) -> None:
    for name in ("topic/a.csv", "topic/b.csv", "topic/deep/c.png", "topic/[d].csv", "beside/e.csv"):
        write(tmp_path, name, "")
    text = '"""\n---\ndata: ["?.csv", a.csv, "**/*.png", "[d].csv", ../beside/e.csv]\n---\n"""'
    found = loaded(tmp_path, text, "topic/x.py").data
    names = ["a.csv", "b.csv", "deep/c.png", "[d].csv", "../beside/e.csv"]
    assert found == tuple(tmp_path / "topic" / name for name in names)
    assert loaded(tmp_path, '"""\n---\ndata: a.csv\n---\n"""', "topic/y.py").data == found[:1]
    assert loaded(tmp_path, "x = 1\n").data == ()


def test_a_data_file_that_is_missing_is_an_error_in_the_file(tmp_path: Path) -> None:
    text = '"""\n---\ntitle: x\ndata: a.csv\n---\n"""'
    with pytest.raises(SourceError, match=r"x\.py:4:1: no data file `a.csv`"):
        loaded(tmp_path, text)


def test_front_matter_that_is_not_closed() -> None:
    with pytest.raises(SourceError, match=r"^x.py:7:1: .*not closed"):
        front_matter("---\ntitle: a\n", "x.py", 7)


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("", ({}, "")),
        ("Text\n---\n", ({}, "Text\n---\n")),
        ("---\n---\nText", ({}, "Text")),
        ("---\n# nothing\n---", ({}, "")),
        ("---\ntitle: a\n---\n\n  Text\n---\n", ({"title": "a"}, "  Text\n---")),
        ("---\nsummary: >\n  one\n  two\n---\n", ({"summary": "one two\n"}, "")),
    ],
)
def test_front_matter(docstring: str, expected: tuple[dict[str, Any], str]) -> None:
    assert front_matter(docstring) == expected


@pytest.mark.parametrize(
    ("data", "line"),
    [(b"\nx = (\n", 2), (b"x = '\xff'\n", 1), (b"# coding: klingon\n", 1), (b"\0", 1)],
)
def test_a_module_that_does_not_parse(data: bytes, line: int, tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_bytes(data)
    with pytest.raises(SourceError) as error:
        load(path, tmp_path)
    assert str(error.value).startswith(f"{path}:{line}:")


def test_declared_encodings_are_honoured(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_bytes('# coding: latin-1\n"""\n---\ntitle: é\n---\n"""'.encode("latin-1"))
    assert load(path, tmp_path).title == "é"
    path.write_bytes(b'\xef\xbb\xbf"""# \xc3\xa9"""')
    assert load(path, tmp_path).title == "é"


def test_other_encodings_have_their_letters(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_bytes(
        '# coding: latin-1\n"""# Réseau\n\n$\\alpha$ and $\\é$."""\n'.encode("latin-1")
    )
    paper = load(path, tmp_path)
    assert (paper.title, paper.summary) == ("Réseau", "# Réseau\n\n$\\alpha$ and $\\é$.")


def test_a_module_outside_the_root(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is not in"):
        load(write(tmp_path, "x.py", ""), tmp_path / "papers")


def notebook(*cells: tuple[str, str | list[str]]) -> str:
    return json.dumps({"cells": [{"cell_type": kind, "source": source} for kind, source in cells]})


def test_a_notebook_is_a_paper(tmp_path: Path) -> None:
    text = notebook(("raw", "---\ntitle: N\n---"), ("code", "%magic"))
    assert loaded(tmp_path, text, "n.ipynb").title == "N"
    text = notebook(("markdown", ["Text\n", "# Title\n"]), ("code", "x = 1"))
    assert loaded(tmp_path, text, "n.ipynb").title == "Title"
    text = notebook(("markdown", "# T"), ("code", ['"""\n', "---\nyear: 2020\n", '---\n"""']))
    assert loaded(tmp_path, text, "n.ipynb").year == 2020
    assert loaded(tmp_path, notebook(("code", "!ls")), "my_book.ipynb").title == "My book"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"cells": [1]}'])
def test_a_broken_notebook(text: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not a notebook"):
        loaded(tmp_path, text, "n.ipynb")


def test_discovery(tmp_path: Path) -> None:
    papers = [
        "b.py",
        "a/c.py",
        "a/__init__.py",
        "a/z.ipynb",
        "sub/deep/d.py",
        "testing.py",
        "a-b.py",
    ]
    others = [
        "_b.py",
        ".b.py",
        "_private/x.py",
        ".hidden/x.py",
        "a/__pycache__/c.py",
        "a/.ipynb_checkpoints/z-checkpoint.ipynb",
        "conftest.py",
        "test_b.py",
        "b_test.py",
        "tests/x.py",
        "notes.yaml",
        "b.ipynb",
        "sub/__init__.py",
    ]
    for name in papers + others:
        write(tmp_path, name, '"""# Heading"""' if name == "a/__init__.py" else '"""Text"""')
    assert discover(tmp_path) == sorted(tmp_path / name for name in papers)


def test_every_labml_module_loads() -> None:
    found = [Path(folder, "labml_nn") for folder in sys.path if Path(folder, "labml_nn").is_dir()]
    if not found:
        pytest.skip("labml_nn is not installed")
    papers = [load(path, found[0]) for path in discover(found[0])]
    assert len(papers) > 200
    assert len({paper.url for paper in papers}) == len(papers)
    titles = {paper.module: paper.title for paper in papers}
    assert titles["transformers.mha"] == "Multi-Headed Attention (MHA)"
    assert titles["lora"] == "Low-Rank Adaptation (LoRA)"


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("vision/my_paper.py", "vision/my-paper/"),
        ("vision/__init__.py", "vision/"),
        ("index.py", "index-module/"),
        ("vision/README.py", "vision/README-module/"),
    ],
)
def test_no_module_takes_the_page_of_its_folder(tmp_path: Path, name: str, url: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("x = 1\n")
    assert load(path, tmp_path).url == url
