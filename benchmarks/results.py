"""The results: JSON that is written after every step, so that an interrupted run can go on."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FORMAT = 1
STEPS = ("cold", "unchanged", "page", "helper")
LABELS = {
    "cold": "cold build",
    "unchanged": "rebuild without a change",
    "page": "rebuild after one page changed",
    "helper": "rebuild after the shared helper changed",
}
SCALE_STEPS = ("cold", "unchanged")


class ResultsError(Exception):
    """Results that cannot be used."""


class Results:
    """What was measured, by section (`builds`, `scale`, `serve`), tool and round.

    Attributes:
        path: The file.
        data: What is in it.
    """

    def __init__(self, path: Path, data: dict[str, Any] | None = None) -> None:
        self.path = path
        self.data: dict[str, Any] = data or {"format": FORMAT}

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read results.

        Raises:
            ResultsError: They are not there, or not ours.
        """
        try:
            data = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise ResultsError(f"no results at {path}: run the benchmarks first") from None
        except ValueError as error:
            raise ResultsError(f"{path} is not JSON: {error}") from None
        if data.get("format") != FORMAT:
            raise ResultsError(f"{path} was written by another version; measure again")
        return cls(path, data)

    @classmethod
    def open(cls, path: Path, facts: dict[str, Any], *, resume: bool) -> Results:
        """Results to add to: those at a path, if the same things were measured there.

        Args:
            path: The file. If it is about other things, it is kept beside the new one.
            facts: The machine, and the versions of all that is measured.
            resume: Whether the file must be about the same things.

        Raises:
            ResultsError: It is not, or not ours.
        """
        if not path.exists():
            return cls(path, {"format": FORMAT, **facts})
        old = cls.load(path)
        changed = [name for name, value in facts.items() if old.data.get(name) != value]
        if not changed:
            return old
        what = " and ".join(changed)
        if resume:
            raise ResultsError(f"{path} has another {what}: measure again, without --resume")
        kept = path.with_suffix(f".{round(path.stat().st_mtime)}.json")
        path.replace(kept)
        print(f"The results of another {what} are kept in {kept}")
        return cls(path, {"format": FORMAT, **facts})

    def save(self) -> None:
        """Write everything; the file is whole at any time."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
        part.replace(self.path)

    def begin(self, section: str, settings: dict[str, Any], *, resume: bool) -> None:
        """Start a section, or go on with it.

        Raises:
            ResultsError: It was measured with other settings.
        """
        old = self.data.get(section)
        if resume and old is not None:
            if old["settings"] != settings:
                raise ResultsError(
                    f"the results in {self.path} were measured with {old['settings']} and not with "
                    f"{settings}: use the same options, or leave out --resume"
                )
            return
        self.data[section] = {"settings": settings, "rows": {}}
        self.save()

    def row(self, section: str, name: str, number: int) -> dict[str, Any]:
        """What one round measured of a tool; to be filled."""
        rounds = self.data[section]["rows"].setdefault(name, {})
        row: dict[str, Any] = rounds.setdefault(str(number), {})
        return row

    def rows(self, section: str, name: str) -> list[dict[str, Any]]:
        """The complete rounds of a tool."""
        rounds = self.data.get(section, {}).get("rows", {}).get(name, {})
        return [row for row in rounds.values() if row.get("done")]

    def names(self, section: str) -> list[str]:
        """What was measured in a section, complete or not."""
        return list(self.data.get(section, {}).get("rows", {}))


def median(values: Iterable[float | None]) -> float | None:
    """The median of what was measured; None if nothing was."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
