"""A theme's templates: what they depend on beside their text, and their compiled code, kept."""

from __future__ import annotations

import base64
import inspect
import json
from typing import Any

import jinja2
from jinja2.bccache import Bucket, BytecodeCache
from jinja2.defaults import DEFAULT_NAMESPACE
from jinja2.filters import FILTERS
from jinja2.tests import TESTS

from marginalia.memo import Memo

_OWN = {
    id(function)
    for functions in (DEFAULT_NAMESPACE, FILTERS, TESTS)
    for function in functions.values()
}
_PURE = (
    "jinja2.",
    *("mkdocs.localization.", "mkdocs.utils.templates."),
    *("properdocs.localization.", "properdocs.utils.templates."),
)


def added(env: jinja2.Environment) -> str | None:
    """What plugins have added to an environment and set; None if it does not show its content.

    Args:
        env: The environment, after all plugins had their say.
    """
    asked = (
        *env.filters.values(),
        *env.tests.values(),
        *map(type, env.extensions.values()),
        *filter(callable, (env.autoescape, env.finalize, env.undefined)),
    )
    values = {name: value for name, value in env.globals.items() if not _is_known(value)}
    settings = {
        name: value for name, value in vars(env).items() if isinstance(value, bool | int | str)
    }
    try:
        more = json.dumps([values, settings, env.policies], sort_keys=True)
    except (TypeError, ValueError):
        return None
    return more if all(map(_is_known, asked)) else None


def _is_known(function: Any) -> bool:
    """Whether a function gives the same as long as the same packages are installed."""
    if id(function) in _OWN:
        return True
    if inspect.ismethod(function):  # of an object, whose content is hidden
        return function.__module__ == "gettext"
    is_code = inspect.isroutine(function) or isinstance(function, type)
    return is_code and f"{function.__module__}.".startswith(_PURE)


def folders(env: jinja2.Environment) -> list[str] | None:
    """Where an environment finds templates; None if not, or not only, in folders."""
    loader = env.loader
    if not isinstance(loader, jinja2.FileSystemLoader) or not _is_known(type(loader)):
        return None
    return list(loader.searchpath)


def keep_compiled(env: jinja2.Environment, memo: Memo) -> None:
    """Let an environment take compiled templates from `memo`: they take long to compile."""
    env.bytecode_cache = _Compiled(memo, env)


class _Compiled(BytecodeCache):
    """Byte code by name and text of its template, and by what may read that text differently."""

    def __init__(self, memo: Memo, env: jinja2.Environment) -> None:
        self._memo = memo
        self._env = env

    def load_bytecode(self, bucket: Bucket) -> None:
        """Put what is known into a bucket."""
        if (key := self._key(bucket)) and (known := self._memo.get(key)):
            bucket.bytecode_from_string(base64.b64decode(known["code"]))

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Keep what is in a bucket."""
        if key := self._key(bucket):
            code = base64.b64encode(bucket.bytecode_to_string()).decode()
            self._memo.put(key, {"code": code})

    def _key(self, bucket: Bucket) -> str | None:
        """Where the code is kept; nowhere if it may hold what an unknown filter gave once.

        Jinja asks filters and tests about constants when it compiles.
        """
        more = added(self._env)
        if more is None:
            return None
        extensions = sorted(self._env.extensions)
        return self._memo.key("template", bucket.key, bucket.checksum, extensions, more)
