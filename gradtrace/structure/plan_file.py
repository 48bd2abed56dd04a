"""A plan as one JSON file: masks as base64 of packed bits, indices as lists; nothing read is trusted."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from os import PathLike
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from gradtrace.errors import InvalidValueError, UnreadableFileError, UnsupportedFormatError
from gradtrace.evidence.whole_file import checked_path, write_whole
from gradtrace.structure.plan import DENSE, LayerPlan, Plan
from gradtrace.structure.sub_operator import SubOperator

__all__ = ["FORMAT", "KIND", "read_plan", "write_plan"]

KIND = "gradtrace plan"
FORMAT = "1.1"
_READABLE = ("1.0", FORMAT)  # 1.1 has more choices: "block-triangular" and "co-clusters"
_LARGEST = 2**36
_FIELDS = ("choice", "mask", "sub_operators", "predicted", "dense", "measured", "reason")


def write_plan(plan: Plan, path: str | PathLike[str]) -> None:
    """Write `plan` to `path`, whole or not at all; the errors are those of `Plan.save`."""
    document = {
        "kind": KIND,
        "format": FORMAT,
        "provenance": plan.provenance,
        "layers": {name: _layer_to_json(layer) for name, layer in plan.items()},
    }
    try:
        text = json.dumps(document, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidValueError("plan provenance", expected="plain JSON values", got=str(error)) from error
    write_whole(path, text.encode("ascii"), "plan path")


def read_plan(path: str | PathLike[str]) -> Plan:
    """Read and check the plan at `path`; the errors are those of `Plan.load`."""
    path = checked_path(path, "plan path")
    try:
        text = path.read_text(encoding="utf-8")
        document: Any = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except OSError as error:
        raise UnreadableFileError(
            f"plan '{path}' cannot be read", got=error.strerror or str(error)
        ) from error
    except (ValueError, RecursionError) as error:
        raise UnreadableFileError(f"plan '{path}' is not JSON", got=str(error)[:120]) from error
    if not isinstance(document, Mapping) or document.get("kind") != KIND:
        raise UnreadableFileError(
            f"'{path}' is not a plan", expected=f'"kind": "{KIND}"', remedy="write plans with Plan.save"
        )
    if document.get("format") not in _READABLE:
        raise UnsupportedFormatError(
            f"plan '{path}' has an unknown format",
            expected=" or ".join(_READABLE),
            got=repr(document.get("format"))[:40],
            remedy="read it with the version of gradtrace that wrote it, or plan again",
        )
    layers, provenance = document.get("layers"), document.get("provenance")
    if not isinstance(layers, Mapping) or not isinstance(provenance, Mapping):
        raise UnreadableFileError(f"plan '{path}' is broken", expected='objects "layers" and "provenance"')
    read = {}
    for name, value in layers.items():
        try:
            # Names and reasons are printed to terminals and pages.
            if not name.isprintable():
                raise InvalidValueError("layer name", expected="printable characters", got=repr(name)[:80])
            read[name] = _layer_from_json(value)
        except InvalidValueError as error:
            raise UnreadableFileError(
                f"plan '{path}' is broken at layer '{name}'",
                got=error.message,
                remedy="plan again, and save that: gt.plan(model, mask).save(path)",
            ) from error
    return Plan(read, provenance)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _finite(digits: str) -> float:
    # "1e999" is valid JSON, and would be an infinity that no file can hold again.
    return float(digits) if math.isfinite(float(digits)) else _refuse(digits)


def _layer_to_json(layer: LayerPlan) -> dict[str, Any]:
    return {
        "choice": layer.choice,
        "mask": _mask_to_json(layer.mask, short=layer.choice == DENSE),
        "sub_operators": [part.to_json() for part in layer.sub_operators],
        "predicted": layer.predicted,
        "dense": layer.dense,
        "measured": layer.measured,
        "reason": layer.reason,
    }


def _layer_from_json(value: object) -> LayerPlan:
    if not isinstance(value, Mapping) or not set(_FIELDS) <= set(value):
        raise InvalidValueError(
            "layer", expected=f"an object with {', '.join(_FIELDS)}", got=repr(value)[:80]
        )
    listed = value["sub_operators"]
    if not isinstance(listed, list):
        raise InvalidValueError("sub_operators", expected="a list", got=repr(listed)[:80])
    if isinstance(value["reason"], str) and not value["reason"].isprintable():
        raise InvalidValueError("reason", expected="printable characters", got=repr(value["reason"])[:80])
    return LayerPlan(
        choice=value["choice"],
        sub_operators=tuple(SubOperator.from_json(part) for part in listed),
        mask=_mask_from_json(value["mask"], short=value["choice"] == DENSE),
        predicted=value["predicted"],
        dense=value["dense"],
        measured=value["measured"],
        reason=value["reason"],
    )


def _mask_to_json(mask: NDArray[np.bool_], *, short: bool) -> dict[str, Any]:
    if short and mask.all():  # most layers of a large model are dense and keep everything
        return {"shape": list(mask.shape), "all": True}
    return {"shape": list(mask.shape), "bits": base64.b64encode(np.packbits(mask).tobytes()).decode("ascii")}


def _mask_from_json(value: object, *, short: bool) -> NDArray[np.bool_]:
    shape = value.get("shape") if isinstance(value, Mapping) else None
    if (
        not isinstance(shape, list)
        or [type(size) for size in shape] != [int, int]
        or not 0 <= min(shape) <= max(shape) <= _LARGEST
    ):
        raise InvalidValueError(
            "mask", expected='an object with "shape": [outputs, inputs]', got=repr(value)[:80]
        )
    assert isinstance(value, Mapping)
    count = shape[0] * shape[1]
    # Takes no memory, whatever size is claimed; only for a dense layer, whose mask nobody walks through.
    if short and value.get("all") is True and count <= _LARGEST:
        return np.broadcast_to(np.True_, shape)
    try:
        packed = base64.b64decode(value.get("bits", ""), validate=True)
    except (TypeError, ValueError) as error:
        raise InvalidValueError("mask", expected='"bits" in base64', got=str(error)) from error
    if len(packed) != -(-count // 8):  # before anything of the claimed size is made
        raise InvalidValueError(
            "mask", expected=f"{-(-count // 8)} bytes of bits", got=f"{len(packed)} bytes"
        )
    return np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=count).astype(np.bool_).reshape(shape)
