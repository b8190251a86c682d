"""A site from any folder of modules, with no configuration: MkDocs, configured for the caller."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from platformdirs import user_cache_path

from marginalia.errors import MarginaliaError
from marginalia.limits import Limits
from marginalia.report import Report


@dataclass(frozen=True, slots=True)
class Settings:
    """What the commands `build` and `serve` take.

    Attributes:
        folder: The modules; it is put on the import path of their demos.
        out: Where the site goes; None to serve it.
        workers: Demos at once.
        limits: What one demo may use, unless its page says otherwise.
        shapes: Whether to record shapes.
        executor: `"local"`, or `"dask"` for the workers of a cluster.
        scheduler: Address of the cluster's scheduler.
    """

    folder: Path
    out: Path | None
    workers: int
    limits: Limits
    shapes: bool
    executor: str = "local"
    scheduler: str = ""


def build(settings: Settings, *, quiet: bool = False) -> Report:
    """Build the site; what fails on a page is in the report, the other pages are written.

    Args:
        settings: What to build.
        quiet: Leave standard output to the caller.

    Raises:
        MarginaliaError: The site as a whole cannot be built.
    """
    from mkdocs.commands.build import build as mkdocs_build
    from mkdocs.config import load_config

    if settings.out is not None and settings.out in (settings.folder, *settings.folder.parents):
        raise MarginaliaError(f"the site would replace the modules: {settings.out} holds them")
    _log_to_stderr(quiet)
    with TemporaryDirectory(prefix="marginalia-") as scratch:
        config = load_config(str(_configure(settings, Path(scratch))))
        plugin: Any = config.plugins["marginalia"]
        plugin.keep_going = True
        mkdocs_build(config)
        report: Report = plugin.report
    return report


def serve(settings: Settings, *, port: int) -> None:
    """Serve the site on this machine until interrupted, reloading it on every save."""
    from mkdocs.commands.serve import serve as mkdocs_serve

    _log_to_stderr(quiet=False)
    with TemporaryDirectory(prefix="marginalia-") as scratch:
        config = str(_configure(settings, Path(scratch)))
        mkdocs_serve(config_file=config, dev_addr=f"127.0.0.1:{port}", watch_theme=False)


def _configure(settings: Settings, scratch: Path) -> Path:
    """Write a `mkdocs.yml` for the folder, with everything of ours on."""
    docs = scratch / "docs"
    docs.mkdir()
    theme = {
        "name": "material",
        "font": False,
        "features": ["navigation.top", "search.highlight"],
        "palette": [
            {
                "media": f"(prefers-color-scheme: {mode})",
                "scheme": scheme,
                "primary": "custom",
                "accent": "custom",
                "toggle": {"icon": icon, "name": f"Switch to {other} mode"},
            }
            for mode, scheme, icon, other in (
                ("light", "default", "material/weather-night", "dark"),
                ("dark", "slate", "material/weather-sunny", "light"),
            )
        ],
    }
    options = {
        "papers": str(settings.folder),
        "workers": settings.workers,
        **asdict(settings.limits),
        "shapes": settings.shapes,
        "executor": settings.executor,
        "scheduler": settings.scheduler,
        "cache": str(user_cache_path("marginalia") / _name_of(settings.folder)),
        "api": False,
    }
    config = {
        "site_name": settings.folder.name.replace("_", " ").strip().capitalize() or "Modules",
        "docs_dir": str(docs),
        "site_dir": str(settings.out or scratch / "site"),
        "theme": theme,
        "plugins": [{"search": {"lang": "en"}}, {"marginalia": options}],
    }
    path = scratch / "mkdocs.yml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def _name_of(folder: Path) -> str:
    """A name for the stored demos of a folder, which itself is left as it is."""
    return f"{folder.name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"


def _log_to_stderr(quiet: bool) -> None:
    logger = logging.getLogger("mkdocs")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger.handlers[:] = [handler]
    logger.setLevel(logging.ERROR if quiet else logging.INFO)
