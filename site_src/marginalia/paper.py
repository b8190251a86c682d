"""A paper module as the catalogue knows it: where it lives and what its front matter says.

Read from the syntax tree: a paper is never imported here, so listing hundreds costs no torch.
"""

from __future__ import annotations

import datetime
import difflib
import json
import math
import os
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from glob import glob
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from marginalia import limits
from marginalia.errors import SourceError
from marginalia.source import Text, read_bytes, read_source, scan_of


@dataclass(frozen=True, slots=True)
class Paper:
    """One paper module.

    Args:
        path: The file.
        module: The name to import it by, relative to the folder of papers.
        url: The folder of its page on the site, with a slash at its end; empty for the package
            that is the folder of papers itself.
        title: From the front matter, else the first heading, else the file's name in words.
        summary: The module docstring without its front matter, as Markdown.
        meta: The front matter, validated.
    """

    path: Path
    module: str
    url: str
    title: str
    summary: str
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def src_uri(self) -> str:
        """The Markdown file that its page is made from: `attention/squeeze-excitation.md`."""
        return f"{self.url.removesuffix('/') or 'index'}.md"

    @property
    def authors(self) -> tuple[str, ...]:
        """Who wrote the paper."""
        return self._texts("authors")

    @property
    def year(self) -> int | None:
        """When it was published."""
        return self.meta.get("year")

    @property
    def venue(self) -> str:
        """Where it was published."""
        return self._text("venue")

    @property
    def arxiv(self) -> str:
        """Its arXiv number."""
        return self._text("arxiv")

    @property
    def code(self) -> str:
        """The address of the authors' own code, or of someone else's (see `code_label`)."""
        return self._text("code")

    @property
    def code_label(self) -> str:
        """What that code is, in words."""
        return "official code" if self.meta.get("official", True) else "code by others"

    @property
    def topic(self) -> str:
        """The topic it is filed under."""
        return self._text("topic")

    @property
    def tags(self) -> tuple[str, ...]:
        """Further topics."""
        return self._texts("tags")

    @property
    def zh(self) -> str:
        """The title in Chinese."""
        return self._text("zh")

    @property
    def note(self) -> str:
        """The note that the module answers."""
        return self._text("note")

    @property
    def idea(self) -> str:
        """The paper in one line."""
        return self._text("idea")

    @property
    def compare(self) -> dict[str, str]:
        """The papers to read it against, each with what it does differently ("" if untold)."""
        names = self.meta.get("compare", ())
        return dict(names) if isinstance(names, dict) else dict.fromkeys(self._texts("compare"), "")

    @property
    def cost(self) -> Mapping[str, str]:
        """What it costs: a label (`parameters`, `time`) and a formula."""
        cost: Mapping[str, str] = self.meta.get("cost", {})
        return cost

    @property
    def shapes(self) -> bool:
        """Whether its page shows live shapes."""
        return bool(self.meta.get("shapes", True))

    @property
    def device(self) -> str:
        """The device its demo asks for: `"cuda"` or `"cpu"`; empty if any will do."""
        return self._text("device")

    @property
    def data(self) -> tuple[Path, ...]:
        """The files that its demo reads, as far as the page says so."""
        found = (_data_files(self.path.parent, name) for name in self._texts("data"))
        return tuple(dict.fromkeys(chain.from_iterable(found)))

    @property
    def limits(self) -> dict[str, float]:
        """What its demo may use, as far as the page says so itself."""
        return {name: self.meta[name] for name in limits.NAMES if name in self.meta}

    @property
    def network(self) -> bool:
        """Whether its demo may use the network."""
        return bool(self.meta.get("network", False))

    @property
    def date(self) -> datetime.date | None:
        """When the page was written."""
        return self.meta.get("date")

    @property
    def letters(self) -> dict[str, str]:
        """What the letters of its shapes mean, from the line that starts with `Letters:`."""
        return _letters(self.summary)

    @property
    def text(self) -> str:
        """The summary without that paragraph, which a page shows elsewhere."""
        return _LETTERS.sub("", self.summary, count=1) if self.letters else self.summary

    def _text(self, key: str) -> str:
        return str(self.meta.get(key, ""))

    def _texts(self, key: str) -> tuple[str, ...]:
        value = self.meta.get(key, ())
        return (value,) if isinstance(value, str) else tuple(value)


# Front matter


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_texts(value: object) -> bool:
    return _is_text(value) or (isinstance(value, list) and all(map(_is_text, value)))


def _is_labels(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, (*value, *value.values())))


def _is_names(value: object) -> bool:
    return _is_texts(value) or _is_labels(value)


def _is_whole(value: object) -> bool:
    return type(value) is int


def _is_positive(value: object) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf  # type: ignore[operator]


def _is_switch(value: object) -> bool:
    return type(value) is bool


def _is_date(value: object) -> bool:
    return type(value) is datetime.date


_TEXT = "text (in quotes if it looks like a number or a date)", _is_text
_TEXTS = "a list of texts", _is_texts
_KEYS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "title": _TEXT,
    "authors": _TEXTS,
    "year": ("a whole number", _is_whole),
    "venue": _TEXT,
    "arxiv": _TEXT,
    "code": _TEXT,
    "official": ("true or false", _is_switch),
    "topic": _TEXT,
    "tags": _TEXTS,
    "zh": _TEXT,
    "note": _TEXT,
    "idea": _TEXT,
    "compare": ("a list of names, or names with a sentence each", _is_names),
    "cost": ("labels with a text each", _is_labels),
    "shapes": ("true or false", _is_switch),
    "summary": _TEXT,
    "redirect": _TEXT,  # labml's, for a page that moved
    "device": ("`cpu` or `cuda`", lambda value: value in ("cpu", "cuda")),
    "data": ("a file, a pattern such as `images/*.png`, or a list of these", _is_texts),
    "network": ("true or false", _is_switch),
    "timeout": ("a number of seconds above 0", _is_positive),
    "cpu_time": ("a number of seconds above 0", _is_positive),
    "memory": ("a number of MB above 0", _is_positive),
    "output": ("a number of MB above 0", _is_positive),
    "date": ("a date such as 2026-11-22", _is_date),
}


def page_url(source: str) -> str:
    """The folder of the site that a Markdown file becomes.

    Args:
        source: Relative to the site's Markdown, with an anchor if it has one: `topics/index.md#x`.

    Returns:
        Relative to the site's root, with the anchor: `topics/#x`.
    """
    path, mark, anchor = source.partition("#")
    folder, name = posixpath.split(path.removesuffix(".md"))
    url = posixpath.join(folder, "" if name == "index" else name, "")
    return url.lstrip("/") + mark + anchor


def front_matter(
    docstring: str, path: str | Path = "<source>", line: int = 1
) -> tuple[dict[str, Any], str]:
    """Part a module docstring into its front matter and its text.

    Args:
        docstring: The docstring, cleaned of indentation.
        path: The file, for errors.
        line: The line of the file that the docstring's first line stands on, for errors.

    Returns:
        The validated front matter (keys without a value are left out), and the rest.

    Raises:
        SourceError: The YAML is broken, a key is unknown or stands twice, or a value has the
            wrong type.
    """
    lines = docstring.split("\n")
    if lines[0].rstrip() != "---":
        return {}, docstring
    end = next((n for n, text in enumerate(lines) if n and text.rstrip() == "---"), None)
    if end is None:
        raise SourceError(path, line, 1, "the front matter is not closed by a line `---`")
    meta = _meta("\n".join(lines[1:end]) + "\n", path, line + 1)
    return meta, "\n".join(lines[end + 1 :]).strip("\n")


def _meta(text: str, path: str | Path, line: int) -> dict[str, Any]:
    """The validated mapping that the YAML `text`, which starts at `line`, holds."""
    place = line, 1
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise SourceError(path, line, 1, "the front matter is not a list of `key: value`")
        meta: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = line + key_node.start_mark.line, key_node.start_mark.column + 1
            key = loader.construct_object(key_node, deep=True)
            value = loader.construct_object(value_node, deep=True)
            if reason := _wrong(key, value, meta) or _missing(key, value, Path(path).parent):
                raise SourceError(path, *place, reason)
            meta[key] = value
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (line + mark.line, mark.column + 1) if mark else (line, 1)
        raise SourceError(path, *place, f"front matter: {error.problem or error}") from error
    except yaml.reader.ReaderError as error:
        before = text[: error.position].split("\n")
        place = line + len(before) - 1, len(before[-1]) + 1
        raise SourceError(path, *place, f"front matter: {error.reason}") from error
    except (yaml.YAMLError, ValueError) as error:  # a date that cannot be
        raise SourceError(path, *place, f"front matter: {error}") from error
    return {key: value for key, value in meta.items() if value is not None}


def _wrong(key: object, value: object, seen: Mapping[str, Any]) -> str:
    """What is wrong with a key and its value; nothing if they are fine."""
    if not isinstance(key, str) or key not in _KEYS:
        nearest = difflib.get_close_matches(str(key), _KEYS, n=1, cutoff=0)[0]
        return f"unknown front-matter key `{key}`; the nearest known key is `{nearest}`"
    if key in seen:
        return f"front-matter key `{key}` stands here a second time"
    expected, fits = _KEYS[key]
    if value is None or fits(value):
        return ""
    return f"front-matter key `{key}` must be {expected}, not {value!r}"


def _missing(key: object, value: Any, folder: Path) -> str:
    """Which data files a page names that are not there; nothing if all are."""
    if key != "data" or value is None:
        return ""
    names = [value] if isinstance(value, str) else value
    absent = [name for name in names if not _data_files(folder, name)]
    return f"no data file `{absent[0]}` in the folder of the page" if absent else ""


def _data_files(folder: Path, name: str) -> list[Path]:
    """The files that a name or a pattern means, seen from a folder."""
    if (folder / name).is_file():
        return [folder / name]
    names = glob(name, root_dir=folder, recursive=True)  # noqa: PTH207  # may be absolute
    return sorted(path for path in map(folder.joinpath, names) if path.is_file())


# Modules


def load(path: Path, root: Path) -> Paper:
    """Read what the catalogue needs of a paper, without importing it.

    Args:
        path: A Python module or a notebook.
        root: The folder of papers, which holds it.

    Returns:
        The paper.

    Raises:
        SourceError: The file does not parse, its front matter is wrong, or it is not in `root`.
        OSError: The file cannot be read.
    """
    parts = _parts(path, root)
    read = _notebook if path.suffix == ".ipynb" else _module
    docstring, line, heading = read(path)
    meta, summary = front_matter(docstring, path, line)
    name = parts[-1] if parts else path.resolve().parent.name
    title = meta.get("title") or _heading(summary) or heading or _in_words(name)
    return named(path, root, title, summary, meta)


def named(path: Path, root: Path, title: str, summary: str, meta: Mapping[str, Any]) -> Paper:
    """A paper of which all is known but what its place says: its module's name and its address.

    Raises:
        SourceError: The file is not in `root`.
    """
    return Paper(path, ".".join(_parts(path, root)), url_of(path, root), title, summary, meta)


def url_of(path: Path, root: Path) -> str:
    """The folder of a module's page on the site, also of one that cannot be read.

    Raises:
        SourceError: The file is not in `root`.
    """
    parts = [part.replace("_", "-") for part in _parts(path, root)]
    if parts and parts[-1] in ("index", "README"):  # for a builder, the page of the folder
        parts[-1] += "-module"
    return "".join(f"{part}/" for part in parts)


def _parts(path: Path, root: Path) -> list[str]:
    """The parts of a module's name; a package is named as its folder."""
    try:
        parts = list(path.relative_to(root).with_suffix("").parts)
    except ValueError as error:
        raise SourceError(path, 1, 1, f"the module is not in {root}") from error
    return parts[:-1] if parts[-1] == "__init__" else parts


def _module(path: Path) -> tuple[str, int, str]:
    """The module docstring, the line where its text starts, and for a script its heading."""
    text = read_source(path)
    scan = scan_of(text, path)
    if scan.docstring is None:
        comments = re.findall(r"^# (# .*)", text, re.MULTILINE)
        return "", 1, _heading("\n".join(comments))
    return scan.docstring.text, _first_line(scan.docstring, scan.lines), ""


def _first_line(docstring: Text, lines: Sequence[str]) -> int:
    """The first line of a docstring that has text."""
    line = docstring.start
    rest = re.split(r"\"\"\"|'''", lines[line - 1])[-1]
    while not rest.strip(" \t\f\\") and line < docstring.end:
        line += 1
        rest = lines[line - 1]
    return line


def _notebook(path: Path) -> tuple[str, int, str]:
    """The same of a notebook: its docstring opens its first cell of code, or a raw cell is YAML."""
    try:
        cells = json.loads(read_bytes(path))["cells"]
        found = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    except (ValueError, TypeError, KeyError) as error:
        raise SourceError(path, 1, 1, f"not a notebook: {error!r}") from error
    heading = _heading("\n\n".join(text for kind, text in found if kind == "markdown"))
    for kind, text in found:
        if kind == "raw" and text.startswith("---"):
            return text, 1, heading
        if kind == "code":
            with suppress(SourceError):  # the magic of IPython is no Python
                docstring = scan_of(text, path).docstring
                return docstring.text if docstring else "", 1, heading
            break
    return "", 1, heading


def _heading(markdown: str) -> str:
    """The first heading, as plain text; headings in fenced code do not count."""
    unfenced = re.sub(r"^(```+|~~~+).*?^\1", "", markdown, flags=re.MULTILINE | re.DOTALL)
    found = _HEADING.search(unfenced)
    if not found:
        return ""
    heading = (found[1] or found[2]).rstrip()
    closing = heading.rstrip("#")
    heading = closing if closing.endswith((" ", "\t")) else heading
    heading = re.sub(r"\{[:#.][^{}]*\}$", "", heading.rstrip())
    return re.sub(r"!?\[([^\[\]]*)\]\([^()]*\)", r"\1", heading).strip()


_HEADING = re.compile(r"^#{1,6}[ \t]+([^\s#].*)|^(\S.*)\n(?:=+|-+)[ \t]*$", re.MULTILINE)


def _in_words(name: str) -> str:
    words = " ".join(re.split(r"[_\-\s]+", name)).strip()
    return words[:1].upper() + words[1:]


_LETTERS = re.compile(
    r"^[ \t]*[*_]*Letters[*_]*:[*_]*(?=\s)(.*?)(?:\n[ \t]*\n|\Z)", re.MULTILINE | re.DOTALL
)
_SENTENCE_END = re.compile(r"(?<!e\.g)(?<!i\.e)\.(?=\s|$)")


def _letters(summary: str) -> dict[str, str]:
    """Parse "Letters: `b` batch, `h w` height and width."."""
    found = _LETTERS.search(summary)
    if not found:
        return {}
    # Outside the backticks a full stop ends the line's meaning; inside them it is part of a letter.
    pieces = found[1].split("`")
    letters: dict[str, str] = {}
    for names, words in zip(pieces[1::2], pieces[2::2], strict=False):
        sentence, *rest = _SENTENCE_END.split(words, maxsplit=1)
        letters |= _meanings(names, sentence)
        if rest:
            break
    return letters


def _meanings(names: str, words: str) -> dict[str, str]:
    """What each of several letters means: a part of the words each, or all of them."""
    letters = names.replace(",", " ").split()
    phrase = " ".join(words.split()).strip(" ,;")
    phrase = re.sub(r"^(?:[=:–—-]|is|are|for)\s+|[,;]?\s*\band$", "", phrase).strip(" ,;")
    parts = [part for part in re.split(r",\s*(?:and\s+)?|\s+and\s+", phrase) if part]
    if len(parts) != len(letters):
        parts = [phrase] * len(letters)
    return dict(zip(letters, parts, strict=True))


# Discovery


def discover(root: Path) -> list[Path]:
    """Find the papers in a folder and its folders.

    A package's `__init__.py` is a paper if its docstring starts with front matter or a heading.
    Private and hidden names, tests and caches are left out, and a notebook that is paired with
    a module of the same name.

    Args:
        root: The folder of papers.

    Returns:
        Their files, sorted.
    """
    found: set[Path] = set()
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name[0] not in "_." and name != "tests"]
        found |= {path for name in names if _is_paper(path := Path(folder, name))}
    paired = {
        path for path in found if path.suffix == ".ipynb" and path.with_suffix(".py") in found
    }
    return sorted(found - paired)


_PACKAGE_PAGE = re.compile(
    rb"(?:\xef\xbb\xbf)?(?:[ \t\f]*(?:#[^\r\n]*)?(?:\r\n|\r(?!\n)|\n))*"  # blank lines and comments
    rb"[rRuU]?(?:\"\"\"|''')\\?\s*(?:---|#)"
)


def _is_paper(path: Path) -> bool:
    if path.name == "__init__.py":
        try:
            return _PACKAGE_PAGE.match(path.read_bytes()) is not None
        except OSError:
            return True  # whoever reads it says what is wrong
    if path.suffix not in (".py", ".ipynb") or path.name[0] in "_.":
        return False
    if re.fullmatch(r"conftest|test_.*|.*_test", path.stem):
        return False
    return path.is_file() or path.is_symlink()  # not a pipe, whose end would never come
