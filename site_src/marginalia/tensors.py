"""Looking at tensors without a trace: no operator runs, no graph grows, no random number is used.

A demo may count operators, trace a model or measure memory, so plain CPU tensors are read through
NumPy, straight from their memory.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

MAX_ELEMENTS = 2_000_000

_KINDS = {
    "bool": "?",
    "uint8": "u1",
    "uint16": "u2",
    "uint32": "u4",
    "uint64": "u8",
    "int8": "i1",
    "int16": "i2",
    "int32": "i4",
    "int64": "i8",
    "float16": "f2",
    "bfloat16": "u2",  # the upper half of a float32
    "float32": "f4",
    "float64": "f8",
    "complex64": "c8",
    "complex128": "c16",
}


@dataclass(frozen=True, slots=True)
class Extent:
    """The range of a tensor's values.

    Attributes:
        min: The least finite value, if there is one.
        max: The greatest finite value, if there is one.
        nan: How many values are not a number.
    """

    min: float | None
    max: float | None
    nan: int


def dtype_name(tensor: torch.Tensor) -> str:
    """The dtype without ``torch.`` in front."""
    return str(tensor.dtype).removeprefix("torch.")


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is what it seems: dense, with memory of its own kind, and no subclass."""
    import torch

    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout is torch.strided
        and not tensor.is_quantized
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def array(tensor: torch.Tensor) -> np.ndarray[Any, Any] | None:
    """A tensor's values, or None where they cannot be had without side effects.

    Args:
        tensor: Any tensor. The array of a plain CPU tensor shares its memory: use it at once.

    Raises:
        Exception: Whatever torch raises for tensors inside one of its transforms.
    """
    import numpy as np

    kind = _KINDS.get(dtype_name(tensor))
    if kind is None or not is_plain(tensor) or tensor.device.type == "meta":
        return None
    if tensor.device.type != "cpu":
        return _copied(tensor)
    shape = tuple(tensor.shape)
    if 0 in shape:
        return np.empty(shape, kind)
    size = tensor.element_size()
    storage = tensor.untyped_storage()
    if not storage.data_ptr():
        return None
    memory = memoryview((ctypes.c_ubyte * storage.nbytes()).from_address(storage.data_ptr()))
    strides = tuple(step * size for step in tensor.stride())
    values: np.ndarray[Any, Any] = np.ndarray(
        shape, kind, memory, tensor.storage_offset() * size, strides
    )
    return _widened(values) if dtype_name(tensor) == "bfloat16" else values


def _widened(upper: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Bits of bfloat16 as float32."""
    import numpy as np

    return (upper.astype(np.uint32) << 16).view(np.float32)


def _copied(tensor: torch.Tensor) -> np.ndarray[Any, Any] | None:
    """A copy of what lives on an accelerator."""
    import torch
    from torch.utils._python_dispatch import _disable_current_modes

    with torch.no_grad(), _disable_current_modes():
        return array(tensor.detach().cpu())


def extent(tensor: torch.Tensor) -> Extent | None:
    """The range of a tensor's values; None if it is unknown, complex or too long to compute.

    Raises:
        Exception: Whatever torch raises for tensors inside one of its transforms.
    """
    if tensor.numel() > MAX_ELEMENTS:
        return None
    values = array(tensor)
    return None if values is None else extent_of(values)


def extent_of(values: np.ndarray[Any, Any]) -> Extent | None:
    """The range of an array's values; None if it has none (complex, text, objects)."""
    import numpy as np

    if values.dtype.kind not in "biuf":
        return None
    if values.size == 0:
        return Extent(None, None, 0)
    low, high = values.min(), values.max()
    if values.dtype.kind != "f" or (np.isfinite(low) and np.isfinite(high)):
        return Extent(_short(low), _short(high), 0)
    finite = values[np.isfinite(values)]
    nan = int(np.isnan(values).sum())
    if finite.size == 0:
        return Extent(None, None, nan)
    return Extent(_short(finite.min()), _short(finite.max()), nan)


def _short(value: Any) -> float:
    """Six digits: what is beyond them may depend on the machine."""
    number = float(value)
    return number if number.is_integer() else float(f"{number:.6g}")
