"""Run the demo of one page and keep what happened: its outputs, its shapes and its claims."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .capture import Output
from .claims import Claim, claim_source
from .trace import Shape

__all__ = ["Claim", "Failure", "Output", "Result", "Shape", "claim_source", "has_demo", "run"]


@dataclass(slots=True)
class Failure:
    """Why a demo did not get to its end.

    Attributes:
        type: Name of the exception.
        message: Its text.
        line: Innermost line of the page's own file; 0 when the page's file has no part in it.
        frames: The page's own frames, outermost first: ``line``, ``function`` and ``text``.
    """

    type: str
    message: str
    line: int
    frames: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class Result:
    """What a run showed: the whole content of a page that its source does not give.

    Attributes:
        ok: Whether the demo got to its end.
        seconds: Time of the demo itself, without imports.
        device: ``"cpu"`` or ``"cuda: NAME"``.
        outputs: What the demo put out, in order of lines.
        shapes: Tensors that lines of the page's own file made.
        claims: Conditions that the demo checked.
        error: Why it did not get to its end.
        dependencies: Local files that were imported or read, with their SHA-256.
        peak_mb: Peak memory of the process.
    """

    ok: bool
    seconds: float = 0.0
    device: str = "cpu"
    outputs: list[Output] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    error: Failure | None = None
    dependencies: dict[str, str] = field(default_factory=dict)
    peak_mb: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, with the field names as keys."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        """The inverse of :meth:`to_json`.

        Raises:
            TypeError: A key is missing or unknown.
        """
        plain = dict(data)
        for name, kind in (("outputs", Output), ("shapes", Shape), ("claims", Claim)):
            plain[name] = [kind(**item) for item in plain[name]]
        plain["error"] = Failure(**plain["error"]) if plain["error"] else None
        return cls(**plain)


def has_demo(text: str) -> bool:
    """Whether a source defines a module-level ``demo`` function; False if it does not parse."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError):
        return False
    return any(isinstance(node, ast.FunctionDef) and node.name == "demo" for node in body)


def run(path: Path, *, root: Path, shapes: bool = True, seed: int = 0) -> Result:
    """Run a page's demo in this process."""
    raise NotImplementedError
