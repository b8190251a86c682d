"""The site, built once for all tests of it, from the demos that are already stored."""

from __future__ import annotations

import pytest
from built_site import BuiltSite, build


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> BuiltSite:
    """Our site, built by MkDocs."""
    return build("mkdocs", tmp_path_factory.mktemp("mkdocs"))
