"""Values in words, the same in every run; and how far two values are apart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from typing import Any

from marginalia.tensors import MAX_ELEMENTS, Extent, array, dtype_name, extent, extent_of


def summary(value: Any) -> str:
    """A value in a few characters, the same in every run.

    Numbers have thousands separators and six digits, tensors their shape and range; anything else
    is its shortened ``repr`` without addresses.
    """
    try:
        return _summary(value)
    except Exception:  # a value may raise whatever it likes; the claim is still a claim
        return type(value).__name__


def _summary(value: Any) -> str:
    if isinstance(value, int) and type(value).__repr__ is int.__repr__:
        return f"{value:,}"
    if type(value) is float:
        return _number(value)
    if type(value).__module__.partition(".")[0] in ("torch", "numpy"):
        return _numeric(value)
    if type(value) in (list, tuple, set, frozenset, dict):
        return _container(value)
    if isinstance(value, type):
        return value.__qualname__
    if isinstance(value, str):
        return _cut(repr(value), 100)
    return shortened(scrubbed(repr(value)))


def shortened(text: str, limit: int = 100) -> str:
    """Text on one line, its middle left out if it is long."""
    return _cut(" ".join(text.split()), limit)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 30]} … {text[-25:]}"


def scrubbed(text: str) -> str:
    """A ``repr`` without addresses, which differ from run to run."""
    return re.sub(r" at 0x[0-9A-Fa-f]+", "", text)


def _number(value: float) -> str:
    """Six digits; whole numbers with all of theirs."""
    return f"{value:,.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:,.6g}"


def _numeric(value: Any) -> str:
    """Tensors, arrays and the scalars of torch and NumPy."""
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        return _tensor(value)
    if isinstance(value, torch.Size):
        return f"[{' '.join(map(str, value))}]"
    if isinstance(value, np.generic) and value.dtype.kind in "biufc":
        return _summary(value.item())
    if isinstance(value, np.ndarray):
        if value.ndim == 0:
            return _summary(value.item())
        return _extended("array", value.shape, str(value.dtype), extent_of(value))
    return shortened(scrubbed(repr(value)))


def _tensor(tensor: Any) -> str:
    if tensor.ndim == 0 and (values := array(tensor)) is not None:
        return _summary(values.item())
    kind = "tensor" if tensor.device.type != "meta" else "meta tensor"
    return _extended(kind, tensor.shape, dtype_name(tensor), extent(tensor))


def _extended(kind: str, shape: Sequence[int], dtype: str, found: Extent | None) -> str:
    """For example ``tensor [2 64] in (0.1, 0.9), 3 nan``."""
    text = f"{kind} [{' '.join(map(str, shape))}]"
    if found is not None and found.min is not None and found.max is not None:
        ends = (_end(end, dtype) for end in (found.min, found.max))
        text += f" in ({', '.join(ends)})"
    return f"{text}, {found.nan:,} nan" if found and found.nan else text


def _end(value: float, dtype: str) -> str:
    if dtype == "bool":
        return str(bool(value))
    return f"{int(value):,}" if "int" in dtype else _number(value)


def _container(value: Any, most: int = 12) -> str:
    left, right = "[]" if isinstance(value, list) else "()" if isinstance(value, tuple) else "{}"
    if isinstance(value, dict):
        items = [f"{_summary(k)}: {_summary(v)}" for k, v in islice(value.items(), most)]
    elif isinstance(value, set | frozenset):
        items = sorted(_summary(item) for item in value)[:most]
    else:
        items = [_summary(item) for item in islice(value, most)]
    if len(value) > most:
        items.append(f"… {len(value):,} in all")
    if isinstance(value, tuple) and len(value) == 1:
        items.append("")
    text = ", ".join(items).rstrip(" ")
    return shortened(f"{left}{text}{right}" if value or right != "}" else repr(value), 200)


def difference_of(left: Any, right: Any) -> float | None:
    """The largest difference of two tensors or arrays; None if it is unknown."""
    import numpy as np

    try:
        first, second = (_numbers(side) for side in (left, right))
        if first is None or second is None or max(first.size, second.size) > MAX_ELEMENTS:
            return None
        if not first.size or "c" in first.dtype.kind + second.dtype.kind:
            return None
        difference = np.abs(first.astype(np.float64) - second.astype(np.float64))
        largest = float(np.nanmax(difference)) if not np.isnan(difference).all() else np.nan
    except Exception:  # what cannot be subtracted has no difference
        return None
    return largest if np.isfinite(largest) else None


def _numbers(value: Any) -> Any:
    import numpy as np
    import torch

    return array(value) if isinstance(value, torch.Tensor) else np.asarray(value)
