"""What is in a file or a folder, as a digest."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path


def content(path: Path) -> str:
    """The SHA-256 of a file, or of the names in a folder; nothing if it cannot be read."""
    with suppress(OSError):
        if path.is_dir():
            names = sorted(entry.name for entry in path.iterdir() if entry.name != "__pycache__")
            return hashlib.sha256("/".join(names).encode("utf-8", "surrogateescape")).hexdigest()
        if path.is_file():  # and no pipe, whose end would never come
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
    return ""
