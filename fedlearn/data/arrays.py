"""Whatever holds numbers, as a tensor: converted where no number changes, else refused."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

_CURES = {  # kind of an array -> what to do, for x and for y
    "text": ("pd.get_dummies(x)", "np.unique(y, return_inverse=True)[1]"),
    "dates": ("x.astype('int64')", "y.astype('int64')"),
    "complex numbers": ("np.stack([x.real, x.imag], 1)", "y.real"),
    "objects": ("x.astype(float)", "y.astype(float)"),
    "whole objects": ("x.astype(int)", "y.astype(int)"),
}
_KINDS = {"U": "text", "S": "text", "T": "text", "M": "dates", "m": "dates", "c": "complex numbers"}


def tensor(name: str, what: str, v: Any) -> Tensor:
    """A tensor (n, ...) of the numbers in ``v``; what is one already is not copied.

    NumPy arrays of any byte order, lists, DataFrames and Series go. ValueError of function
    ``name`` for anything that can't be read as numbers without a choice: text, dates, missing
    values, sparse tensors.

    Args:
        name: Of the function that was given ``v``.
        what: What it is called there: "x" or "y".
        v: The numbers.

    Example:
        >>> tensor("Simulated", "y", ["cat", "dog"])
        Traceback (most recent call last):
        ...
        ValueError: Simulated: y must hold numbers, got text, e.g. np.unique(y, return_inverse=...
    """
    if isinstance(v, (Dataset, DataLoader)):
        _one(name, what, v)
    if not isinstance(v, Tensor):
        if isinstance(v, (list, tuple)) and len(v) and all(isinstance(t, Tensor) for t in v):
            v = _stacked(name, what, v)
        else:
            v = torch.from_numpy(_array(name, what, v))
    if v.layout != torch.strided or v.is_quantized:
        kind, cure = ("quantized", "dequantize") if v.is_quantized else ("sparse", "to_dense")
        raise ValueError(
            f"{name}: {what} must be a dense tensor, got a {kind} one, e.g. {what}.{cure}()"
        )
    if v.is_meta:
        raise ValueError(f"{name}: {what} must hold numbers, got a tensor on the device 'meta'")
    if v.is_complex():
        _refuse(name, what, "complex numbers")
    if not v.dim():
        _one(name, what, v.item())
    return v.detach()


def check_finite(name: str, what: str, v: Tensor, dtype: torch.dtype) -> None:
    """ValueError if a real number is inf or NaN, or becomes inf in the parameters' type."""
    if not v.is_floating_point():
        return
    real = [part.to(dtype) for part in v.split(10_000)] if v.dtype != dtype else v.split(10_000)
    if all(bool(part.sum().isfinite()) or bool(part.isfinite().all()) for part in real):
        return  # the sum, which copies nothing, may overflow; what isn't finite enters it
    bad = torch.cat([~part.isfinite().reshape(len(part), -1).all(1) for part in real])
    where = f"in {int(bad.sum())} of {len(v)} examples, first in row {int(bad.nonzero()[0])}"
    if bool(v.isfinite().all()):
        raise ValueError(
            f"{name}: {what} holds numbers too large for {dtype} {where}, e.g. "
            f"{what} / {what}.abs().max()"
        )
    cure = f"clean it, e.g. with {what}.nan_to_num()"
    if what == "y":
        cure = "leave these out, e.g. keep = ~np.isnan(y); x, y = x[keep], y[keep]"
    raise ValueError(f"{name}: {what} holds inf or NaN {where}; {cure}")


def _stacked(name: str, what: str, v: Any) -> Tensor:
    shapes = {tuple(t.shape) for t in v}
    if len(shapes) > 1:
        raise ValueError(
            f"{name}: {what} must have one shape an example, got {sorted(shapes)[:3]}; pad them, "
            f"e.g. torch.nn.utils.rnn.pad_sequence({what}, batch_first=True)"
        )
    return torch.stack(list(v))


def _array(name: str, what: str, v: Any) -> np.ndarray:
    """Of a kind and layout that PyTorch takes."""
    if hasattr(v, "columns") and hasattr(v, "iloc"):
        v = _table(name, what, v)
    if np.ma.isMaskedArray(v) and np.ma.getmaskarray(v).any():
        gone = int(np.ma.getmaskarray(v).sum())
        raise ValueError(
            f"{name}: {what} must hold numbers, got {gone} masked ones, e.g. {what}.filled(0)"
        )
    try:
        array = np.asarray(v)
    except (ValueError, TypeError) as e:
        raise ValueError(
            f"{name}: {what} must have one shape an example, got a {type(v).__name__} that is no "
            f"array ({e}); cut or pad the examples to one length"
        ) from e
    if hasattr(v, "toarray"):
        raise ValueError(
            f"{name}: {what} must be dense, got {type(v).__name__}, e.g. {what}.toarray()"
        )
    if not array.ndim:
        _one(name, what, v)
    kind = array.dtype.kind
    if kind == "O":
        found = [u for u in array.flat if not isinstance(u, (bool, int, float, np.generic))]
        first = found[0] if found else array.flat[0]
        if isinstance(first, str):
            _refuse(name, what, "text")
        whole = not found and all(isinstance(u, (bool, int, np.integer)) for u in array.flat)
        _refuse(name, what, "whole objects" if whole else "objects", f" ({type(first).__name__})")
    if kind not in "biuf":
        _refuse(
            name, what, _KINDS.get(kind, "objects"), "" if kind in _KINDS else f" ({array.dtype})"
        )
    if kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if kind == "u" and array.dtype.itemsize > 1:
        array = _signed(name, what, array)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    strides = all(s >= 0 and s % array.itemsize == 0 for s in array.strides)
    return array if strides and array.flags.writeable else array.copy()


def _signed(name: str, what: str, array: np.ndarray) -> np.ndarray:
    if array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(
            f"{name}: {what} must fit into int64, got {array.max()}, e.g. {what} / 2**64"
        )
    return array.astype(np.int64)


def _table(name: str, what: str, frame: Any) -> np.ndarray:
    """A DataFrame column by column: together, numbers and booleans would be objects."""
    columns = [np.asarray(frame.iloc[:, j]) for j in range(frame.shape[1])]
    other = [str(c) for c, v in zip(frame.columns, columns) if v.dtype.kind not in "biuf"]
    if other:
        cure = f"pd.get_dummies({what})" if what == "x" else _CURES["text"][1]
        raise ValueError(
            f"{name}: {what} must hold numbers, got text, dates or missing values in column "
            f"{', '.join(map(repr, other[:3]))}, e.g. {cure}, or {what}.dropna() first"
        )
    return np.stack(columns, 1) if columns else np.zeros((len(frame), 0))


def _one(name: str, what: str, v: Any) -> None:
    raise ValueError(
        f"{name}: {what} must be a tensor or an array, a row an example, got {type(v).__name__}, "
        f"e.g. data.load('digits').{what}"
    )


def _refuse(name: str, what: str, kind: str, more: str = "") -> None:
    cure = _CURES[kind][what == "y"]
    said = kind.removeprefix("whole ") + more
    raise ValueError(f"{name}: {what} must hold numbers, got {said}, e.g. {cure}")
