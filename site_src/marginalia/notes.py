"""Notes and topics as people keep them: YAML files, read strictly, and the text in them.

A reader of this module knows no Markdown; `markdown` turns the text of a note into it.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from marginalia.errors import SourceError

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # C where PyYAML was built with it
KINDS = ("paper-full", "paper-brief", "technique", "paper-title", "system", "howto")


@dataclass(frozen=True, slots=True)
class Statement:
    """One thing a note says, or one correction of it.

    Args:
        text: What is said.
        checked: False for what nobody has compared with the paper yet.
    """

    text: str
    checked: bool = True


@dataclass(frozen=True, slots=True)
class Question:
    """What the author of a note did not understand.

    Args:
        question: In their sense, in our words.
        answer: Ours.
        checked: False for an answer nobody has compared with the paper yet.
    """

    question: str
    answer: str
    checked: bool = True


@dataclass(frozen=True, slots=True)
class Note:
    """One entry of a `notes.yaml`; the head of such a file explains the fields.

    Args:
        topic: The slug of the topic, from the folder.
        path: The file.
        places: The line and the column of each field, both from 1, for errors.
    """

    id: str
    title: str
    kind: str
    topic: str
    path: Path
    short: str = ""
    zh: str = ""
    year: int | None = None
    venue: str = ""
    published: str = ""
    arxiv: str = ""
    code: str = ""
    tags: tuple[str, ...] = ()
    idea: str = ""
    says: tuple[Statement, ...] = ()
    open_questions: tuple[Question, ...] = ()
    corrections: tuple[Statement, ...] = ()
    facts: tuple[str, ...] = ()
    code_says: str = ""
    planned_demo: str = ""
    modules: tuple[str, ...] = ()
    cited_by: tuple[str, ...] = ()
    places: Mapping[str, tuple[int, int]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def has_substance(self) -> bool:
        """Whether it says enough for a page of its own: more than that a paper exists."""
        more = self.open_questions or self.corrections or self.facts
        return self.kind != "paper-title" or len(self.says) > 1 or bool(more)

    def wrong(self, key: str, reason: str) -> SourceError:
        """An error at the place of one of its fields."""
        return SourceError(self.path, *self.places.get(key, (1, 1)), f"{self.id}: {reason}")


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic of the site.

    Args:
        slug: Its name in urls.
        title: Its name.
        zh: Its name in Chinese.
        about: One sentence.
        group: The heading that it stands under.
    """

    slug: str
    title: str
    zh: str = ""
    about: str = ""
    group: str = ""


def slug(name: str) -> str:
    """A name as urls have it: `vision_transformer` and `Vision Transformer` alike."""
    return re.sub(r"[\W_]+", "-", name.lower()).strip("-")


def load_notes(path: Path) -> tuple[Note, ...]:
    """Read the notes of a topic.

    Args:
        path: A `notes.yaml`; the name of its folder is the topic.

    Returns:
        Its notes, in the order of the file.

    Raises:
        SourceError: The file is not YAML, or a field is unknown, missing, doubled or wrong.
        OSError: The file cannot be read.
    """
    return _notes(path, path.read_bytes())


@functools.lru_cache(maxsize=64)  # a server reads the same files after every save
def _notes(path: Path, data: bytes) -> tuple[Note, ...]:
    notes: list[Note] = []
    for node in _entries(path, data):
        try:
            values, places = _record(node, _NOTE, ("id", "title", "kind"))
            note = Note(**values, topic=slug(path.parent.name), path=path, places=places)
        except _WrongError as error:
            raise error.at(path) from None
        if any(note.id == other.id for other in notes):
            raise note.wrong("id", "this `id` stands in the file a second time")
        notes.append(note)
    return tuple(notes)


def load_topics(path: Path) -> list[Topic]:
    """Read the topics of the site.

    Args:
        path: A `topics.yaml`.

    Returns:
        The topics, in the order of the file.

    Raises:
        SourceError: The file is not YAML, or a field is unknown, missing, doubled or wrong.
        OSError: The file cannot be read.
    """
    topics: dict[str, Topic] = {}
    for node in _entries(path, path.read_bytes()):
        try:
            values, places = _record(node, _TOPIC, ("slug", "title"))
        except _WrongError as error:
            raise error.at(path) from None
        if values["slug"] in topics:
            reason = f"the `slug` {values['slug']} stands in the file a second time"
            raise SourceError(path, *places["slug"], reason)
        topics[values["slug"]] = Topic(**values)
    return list(topics.values())


def nearest(name: str, names: Collection[str]) -> str:
    """A hint that ends an error about an unknown name."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean `{close[0]}`?" if close else ""


# The schema: a reader for each field, from the YAML node that holds it


class _WrongError(Exception):
    """A node that is not what it must be."""

    def __init__(self, node: yaml.Node, reason: str) -> None:
        super().__init__(reason)
        self.node = node

    def at(self, path: Path) -> SourceError:
        return SourceError(path, *_place(self.node), str(self))


def _place(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _entries(path: Path, data: bytes) -> list[yaml.Node]:
    """The nodes of the list that a file holds."""
    try:
        root = yaml.compose(data.decode("utf-8"), Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise SourceError(path, *place, f"not YAML: {error.problem or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SourceError(path, 1, 1, f"not YAML: {error}") from error
    if root is None:
        return []
    if not isinstance(root, yaml.SequenceNode):
        raise SourceError(path, *_place(root), "the file must be a list of entries, `- id: ...`")
    return list(root.value)


def _record(
    node: yaml.Node, fields: Mapping[str, Callable[[yaml.Node], Any]], required: Collection[str]
) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    """The values of a mapping's fields, and where they stand."""
    if not isinstance(node, yaml.MappingNode):
        raise _WrongError(node, f"must be `key: value` lines, with {' and '.join(required)}")
    values: dict[str, Any] = {}
    places: dict[str, tuple[int, int]] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value)
        if key not in fields:
            raise _WrongError(key_node, f"unknown field `{key}`{nearest(key, fields)}")
        if key in values:
            raise _WrongError(key_node, f"the field `{key}` stands here a second time")
        try:
            values[key] = fields[key](value_node)
        except _WrongError as error:
            raise _WrongError(error.node, f"`{key}`: {error}") from None
        places[key] = _place(value_node)
    for key in required:
        if key not in values:
            raise _WrongError(node, f"the field `{key}` is missing")
    return values, places


def _scalar(node: yaml.Node, kind: str, expected: str) -> str:
    if not isinstance(node, yaml.ScalarNode) or not node.tag.endswith(f":{kind}"):
        shown = f"`{node.value}`" if isinstance(node, yaml.ScalarNode) else "a list or a mapping"
        raise _WrongError(node, f"must be {expected}, not {shown}")
    return str(node.value)


def _text(node: yaml.Node) -> str:
    text = _scalar(node, "str", "text (in quotes if it looks like a number or a date)").strip()
    if not text:
        raise _WrongError(node, "is empty")
    return text


def _year(node: yaml.Node) -> int:
    year = _scalar(node, "int", "a year")
    if not re.fullmatch(r"(?:19|20)\d\d", year):
        raise _WrongError(node, f"must be a year, not `{year}`")
    return int(year)


def _switch(node: yaml.Node) -> bool:
    return _scalar(node, "bool", "true or false").lower() in ("true", "yes", "on")


def _matching(pattern: str, expected: str) -> Callable[[yaml.Node], str]:
    """A reader of texts of one shape."""

    def read(node: yaml.Node) -> str:
        text = _text(node)
        if not re.fullmatch(pattern, text):
            raise _WrongError(node, f"must be {expected}, not `{text}`")
        return text

    return read


def _list(read: Callable[[yaml.Node], Any]) -> Callable[[yaml.Node], tuple[Any, ...]]:
    """A reader of lists."""

    def read_all(node: yaml.Node) -> tuple[Any, ...]:
        if not isinstance(node, yaml.SequenceNode):
            raise _WrongError(node, "must be a list")
        return tuple(map(read, node.value))

    return read_all


def _statement(node: yaml.Node) -> Statement:
    if isinstance(node, yaml.ScalarNode):
        return Statement(_text(node))
    values, _ = _record(node, {"text": _text, "checked": _switch}, ("text",))
    return Statement(**values)


def _question(node: yaml.Node) -> Question:
    fields = {"question": _text, "answer": _text, "checked": _switch}
    values, _ = _record(node, fields, ("question", "answer"))
    return Question(**values)


_ID = _matching(r"[a-z0-9]+(?:-[a-z0-9]+)*", "lower-case words joined by hyphens")
_URL = _matching(r"https?://\S+", "an address that starts with http")

_NOTE: dict[str, Callable[[yaml.Node], Any]] = {
    "id": _ID,
    "title": _text,
    "short": _text,
    "zh": _text,
    "kind": _matching("|".join(KINDS), f"one of {', '.join(KINDS)}"),
    "year": _year,
    "venue": _text,
    "published": _text,
    "arxiv": _matching(r"\d{4}\.\d{4,5}|[a-z.-]+/\d{7}", "an arXiv id such as '1709.01507'"),
    "code": _URL,
    "tags": _list(_matching(r"[^A-Z]+", "lower case")),
    "idea": _text,
    "says": _list(_statement),
    "open_questions": _list(_question),
    "corrections": _list(_statement),
    "facts": _list(_text),
    "code_says": _text,
    "planned_demo": _text,
    "modules": _list(_text),
    "cited_by": _list(_ID),
}
_TOPIC: dict[str, Callable[[yaml.Node], Any]] = {
    "slug": _ID,
    "title": _text,
    "zh": _text,
    "about": _text,
    "group": _text,
}


# The text of notes

_ZH = "\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef"
_TOKEN = re.compile(
    r"\\(?P<escaped>[`$\\])"
    r"|`(?P<code>[^`]+)`"
    r"|(?P<math>\$(?=\S)(?:\\.|[^$\\])+(?<!\s)\$(?!\d))"
    r"|(?P<url>https?://[^\s<>()]*[^\s<>().,;:!?'”])"
    rf"|(?P<zh>[{_ZH}]+)"
    r"|(?P<special>[\\`*_{}\[\]<>&|~^$]|==|:(?=[\w+-]+:)|\((?=(?:c|r|tm|p)\)))",
    re.IGNORECASE,
)
# What would open a list, a heading, an admonition or a definition at the start of a line.
_OPENING = re.compile(r"(\d{1,9}(?=[.)](?:\s|$)))?([.)#+:=!?-])")


def markdown(text: str) -> str:
    r"""The Markdown that shows the text of a note.

    The text is plain, but for `` `code` ``, `$math$` and addresses, which become links;
    `` \` ``, `\$` and `\\` stand for the characters themselves. Whatever else Markdown or one of
    its extensions would take for markup is written as an entity, and Chinese says that it is.

    Args:
        text: The text of a note.

    Returns:
        One line of inline Markdown, fit for the start of a paragraph or of an item.
    """
    line = " ".join(text.split())
    opening = _OPENING.match(line)
    if opening is None:
        return _TOKEN.sub(_shown, line)
    start = (opening[1] or "") + _entities(opening[2])
    return start + _TOKEN.sub(_shown, line[opening.end() :])


def zh_span(text: str) -> str:
    """A Chinese text, marked as such for screen readers and fonts."""
    return f'<span lang="zh">{_TOKEN.sub(_plain, " ".join(text.split()))}</span>'


def _shown(match: re.Match[str]) -> str:
    kind = match.lastgroup
    if kind == "code" or kind == "math":
        return match[0]
    if kind == "url":
        return f"<{match[0]}>"
    if kind == "zh":
        return f'<span lang="zh">{match[0]}</span>'
    return _entities(match["escaped"] or match[0])


def _plain(match: re.Match[str]) -> str:
    return match[0] if match.lastgroup == "zh" else _entities(match[0])


def _entities(text: str) -> str:
    return "".join(f"&#{ord(character)};" for character in text)
