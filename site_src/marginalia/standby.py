"""Where a server of demos that outlives its builder waits for the next one."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

from marginalia import preload
from marginalia.memo import digest, environment, plain

# These differ from call to call, and no import looks at them.
_PASSING = ("OLDPWD", "SHLVL", "SOURCE_DATE_EPOCH", "_")


def address(variables: Mapping[str, str]) -> Path:
    """The socket of a server that was started as one would be now.

    Args:
        variables: The environment that the server has.

    Raises:
        OSError: Its folder cannot be made, or somebody else could put a socket there.
    """
    lasting = {name: variables[name] for name in variables if name not in _PASSING}
    return preload.private_folder() / digest(plain([environment(), str(Path.cwd()), lasting]))[:16]


def call(place: Path) -> socket.socket:
    """A line to the server that waits at a place.

    Raises:
        OSError: There is none.
    """
    line = socket.socket(socket.AF_UNIX)
    try:
        line.connect(str(place))
    except OSError:
        line.close()
        raise
    return line


def door(place: Path) -> socket.socket:
    """What a server accepts lines at; one that waited there before gets no more of them.

    Raises:
        OSError: The system does not allow it.
    """
    own = place.with_name(f"{place.name}.{os.getpid()}")
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(own))
        listener.listen()
        own.replace(place)
    except OSError:
        listener.close()
        raise
    return listener
