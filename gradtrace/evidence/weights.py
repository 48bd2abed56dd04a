"""Final weights, wherever they come from, as numpy arrays under canonical names.

Models and tensors are known by what they can do, not by their type: this room does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradtrace.errors import InvalidValueError, MismatchError, UnsupportedError
from gradtrace.evidence.stored_weights import StoredWeights
from gradtrace.ledger.names import canonical

__all__ = ["Weights", "as_array", "read_weights"]

Array: TypeAlias = NDArray[Any]

# Spacing of numbers next to 1. What is not here is read as float32.
_PRECISION = {
    "float64": 2.0**-52,
    "float32": 2.0**-23,
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
    "float8_e4m3fn": 2.0**-3,
    "float8_e5m2": 2.0**-2,
}
_PARALLEL = frozenset({"DataParallel", "DistributedDataParallel"})


@dataclass(frozen=True)
class Weights:
    """Floating-point weights by canonical name; tied ones once, under the first name, with their aliases.

    `arrays` are float64 where the weights were, else float32; they may share memory with the model. `aliases`
    maps every further name to the one in `arrays`. `classes` holds the class names of the owning module, most
    specific first, where a model was given. `rounding` is the spacing of the stored dtype next to 1.
    """

    arrays: Mapping[str, Array]
    aliases: Mapping[str, str]
    classes: Mapping[str, tuple[str, ...]]
    rounding: Mapping[str, float]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name in `arrays` -> shape."""
        if isinstance(self.arrays, StoredWeights):
            return self.arrays.shapes
        return {name: array.shape for name, array in self.arrays.items()}

    def find(self, *names: str) -> str | None:
        """The name in `arrays` that one of these names or aliases means, or None."""
        for name in names:
            known = self.aliases.get(name, name)
            if known in self.arrays:
                return known
        return None


def read_weights(weights: object) -> Weights:
    """Weights of an nn.Module, of a mapping from name to tensor or array-like, or of a safetensors file.

    A path is enough for the file: its weights are read when they are asked for, and not kept.

    Names lose the wrapper segments of torch.compile, FSDP and checkpointing; the "module" of DataParallel or
    DistributedDataParallel goes only where such a wrapper is seen, never from a mapping's keys. Entries that
    are not of floating point (counters, indices) are left out. Raises InvalidValueError for anything else and
    for an empty mapping, MismatchError for two weights of one name, UnsupportedError for a tensor without
    readable values.
    """
    if isinstance(weights, str | PathLike):
        stored = StoredWeights.of(weights)
        return Weights(stored, {}, {}, {name: place.rounding for name, place in stored.places.items()})
    arrays: dict[str, Array] = {}
    aliases: dict[str, str] = {}
    rounding: dict[str, float] = {}
    owners: dict[object, str] = {}
    named = list(_entries(weights))
    if not named:
        raise InvalidValueError(
            "weights",
            expected="at least one parameter",
            got="none",
            remedy="pass model or model.state_dict()",
        )
    for raw, value in named:
        name, identity = canonical(raw), _identity(value)
        if identity is not None and identity in owners:
            if owners[identity] != name:
                aliases[name] = owners[identity]
            continue
        if name in arrays:
            raise MismatchError(
                f"weights hold two different parameters named {name!r}", got=f"{raw!r} among others"
            )
        array = as_array(value, f"weights[{raw!r}]")
        if array.dtype.kind != "f":
            continue
        arrays[name] = array
        rounding[name] = _PRECISION.get(_dtype_name(value), _PRECISION["float32"])
        if identity is not None:
            owners[identity] = name
    return Weights(arrays, aliases, _classes(weights), rounding)


def as_array(value: object, what: str) -> Array:
    """A tensor or array-like as numpy: floating point as float64 or float32, everything else as it is.

    Raises UnsupportedError for a tensor without values to read, InvalidValueError for what is no array.
    """
    if callable(getattr(value, "detach", None)):
        return _from_tensor(value, what)
    try:
        array = np.asarray(value)
        if array.dtype.kind == "V" and _dtype_name(array) in _PRECISION:
            array = array.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidValueError(what, expected="an array of numbers", got=str(error)) from error
    if array.dtype.kind not in "fiub":
        raise InvalidValueError(
            what,
            expected="an array of real numbers",
            got=f"{type(value).__name__} of {array.dtype}",
            remedy="of a checkpoint, pass its state_dict",
        )
    return array.astype(np.float32) if array.dtype.kind == "f" and array.dtype != np.float64 else array


def _from_tensor(tensor: Any, what: str) -> Array:
    if callable(getattr(tensor, "full_tensor", None)):
        raise UnsupportedError(
            f"{what} is sharded over processes", expected="a whole tensor", remedy="pass a full state dict"
        )
    try:
        local = tensor.detach().cpu()
        if local.is_floating_point() and _dtype_name(local) != "float64":
            local = local.float()
        array: Array = np.asarray(local.numpy())
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        raise UnsupportedError(
            f"{what} has no values that can be read",
            expected="a dense tensor with data",
            got=str(error).splitlines()[0][:120],
            remedy="load the weights first, and dequantize or densify them",
        ) from error
    if array.dtype.kind not in "fiub":
        raise UnsupportedError(
            f"{what} is not real", expected="a tensor of real numbers", got=str(array.dtype)
        )
    return array


def _entries(weights: object) -> Iterator[tuple[str, object]]:
    if callable(getattr(weights, "named_parameters", None)):
        model: Any = weights
        wrapped = [
            name
            for name, module in model.named_modules(remove_duplicate=False)
            if type(module).__name__ in _PARALLEL
        ]
        for name, value in model.named_parameters(remove_duplicate=False):
            yield _unwrapped(name, wrapped), value
    elif isinstance(weights, Mapping):
        for name, value in weights.items():
            if not isinstance(name, str) or not name:
                raise InvalidValueError("weights", expected="names of parameters as keys", got=repr(name))
            yield name, value
    else:
        raise InvalidValueError(
            "weights",
            expected="an nn.Module or a mapping from parameter name to array, or a safetensors file",
            got=type(weights).__name__,
            remedy="pass model or model.state_dict()",
        )


def _unwrapped(name: str, wrapped: list[str]) -> str:
    # Innermost first, so that the outer prefixes still match.
    for prefix in sorted(wrapped, key=len, reverse=True):
        before = f"{prefix}." if prefix else ""
        if name.startswith(f"{before}module."):
            name = before + name.removeprefix(f"{before}module.")
    return name


def _classes(weights: object) -> dict[str, tuple[str, ...]]:
    if not callable(getattr(weights, "named_parameters", None)):
        return {}
    model: Any = weights
    modules = list(model.named_modules(remove_duplicate=False))
    wrapped = [name for name, module in modules if type(module).__name__ in _PARALLEL]
    found: dict[str, tuple[str, ...]] = {}
    for prefix, module in modules:
        names = tuple(kind.__name__ for kind in type(module).__mro__)
        for own, _ in module.named_parameters(recurse=False):
            name = canonical(_unwrapped(f"{prefix}.{own}" if prefix else own, wrapped))
            found.setdefault(name, names)
    return found


def _identity(value: Any) -> object:
    # The two names of a tied weight give, in a state dict, two tensors over one memory.
    if not callable(getattr(value, "data_ptr", None)):
        return None
    try:
        pointer = value.data_ptr()
        return (
            (str(value.device), pointer, tuple(value.shape), value.stride(), str(value.dtype))
            if pointer
            else id(value)
        )
    except (RuntimeError, ValueError, NotImplementedError):
        return id(value)


def _dtype_name(value: object) -> str:
    return str(getattr(value, "dtype", "")).removeprefix("torch.")
