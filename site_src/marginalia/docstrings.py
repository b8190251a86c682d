r"""The text of a docstring as its author meant it: `\beta` is Greek, not a backspace and "eta"."""

from __future__ import annotations

import re

_LITERAL = re.compile(
    r"""(?P<prefix>[a-zA-Z]*)(?P<quote>\"{3}|'{3}|"|')(?P<body>.*)(?P=quote)""", re.DOTALL
)
_ESCAPE = re.compile(r"\\(.)(?=(.?))", re.DOTALL)
_KNOWN = set("\n\\'\"abfnrtvxuNU01234567")
_LOST_IN_TEX = set("abfnrtv")  # `\nu` is a line end and a "u" to Python


def meant(value: str, literal: str) -> str:
    r"""What a docstring says.

    Math in a docstring that is not raw loses its commands to Python's escapes. Where an escape is
    none of Python's, or eats the first letter of a word, the text is taken as it was typed.

    Args:
        value: The string that Python made of it.
        literal: The source of the string.

    Returns:
        `value`, or the text between the quotes.
    """
    match = _LITERAL.fullmatch(literal.strip())
    if match is None or "r" in match["prefix"].lower() or match["quote"] in match["body"]:
        return value
    escapes = _ESCAPE.findall(match["body"])
    if not any(_is_tex(letter, follower) for letter, follower in escapes):
        return value
    return re.sub(r"\\([\"'])", r"\1", match["body"])


def _is_tex(letter: str, follower: str) -> bool:
    return letter not in _KNOWN or (letter in _LOST_IN_TEX and follower.isalpha())
