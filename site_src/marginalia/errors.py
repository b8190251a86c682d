"""What can be wrong with somebody's file, said with the place where it is wrong."""

from __future__ import annotations

from pathlib import Path


class MarginaliaError(Exception):
    """Anything that a user can mend: the message is the whole report, no traceback is needed."""


class SourceError(MarginaliaError):
    """A place in a source file, and what is wrong there.

    Args:
        path: The file, as the user named it.
        line: 1-based line.
        column: 1-based column, in characters.
        reason: What is wrong, without the place.
    """

    def __init__(self, path: str | Path, line: int, column: int, reason: str) -> None:
        super().__init__(f"{path}:{line}:{column}: {reason}")
        self.path = str(path)
        self.line = line
        self.column = column
        self.reason = reason
