"""A mask on disk: one safetensors file of BOOL tensors, and JSON in its metadata.

The JSON holds the format, the names in order, and the provenance.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from gradtrace.errors import UnreadableFileError, UnsupportedFormatError
from gradtrace.evidence.whole_file import checked_path, write_whole

__all__ = ["FORMAT", "read_mask", "write_mask"]

Bools: TypeAlias = NDArray[np.bool_]

FORMAT = "1.0"
# The one metadata key; further keys belong to others and are ignored.
_KEY = "gradtrace.mask"


def write_mask(arrays: Mapping[str, Bools], provenance: Mapping[str, Any], path: str | PathLike[str]) -> None:
    """Write the file whole or not at all. Errors: see `Mask.save`."""
    header = json.dumps({"format": FORMAT, "names": list(arrays), "provenance": provenance})
    # safetensors writes a view's whole memory whatever its strides; ascontiguousarray would lift 0-d to 1-d.
    data = save({name: np.array(array, order="C") for name, array in arrays.items()}, {_KEY: header})
    write_whole(path, data, "mask path")


def read_mask(path: str | PathLike[str]) -> tuple[dict[str, Bools], dict[str, Any]]:
    """The arrays, in the order they were saved in, and the provenance. Errors: see `Mask.load`."""
    target = checked_path(path, "mask path")
    try:
        # Opened here first for an error that says what the system says; safetensors words it its own way.
        with target.open("rb"), safe_open(target, framework="numpy") as file:
            metadata = file.metadata() or {}
            stored = set(file.keys())
            names, provenance = _header(metadata.get(_KEY), stored, target)
            arrays = {name: _bools(file, name, target) for name in names}
    except SafetensorError as error:
        raise UnreadableFileError(
            f"'{target}' is not a mask file",
            expected="the safetensors format",
            got=str(error)[:120],
            remedy="write masks with Mask.save; pickles are never read",
        ) from error
    except OSError as error:
        if isinstance(error, UnreadableFileError):
            raise
        raise UnreadableFileError(
            f"mask '{target}' cannot be read", got=error.strerror or str(error)[:120]
        ) from error
    return arrays, provenance


def _header(text: str | None, stored: set[str], target: Path) -> tuple[list[str], dict[str, Any]]:
    try:
        header: Any = json.loads(text) if text is not None else None
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or not isinstance(header.get("format"), str):
        raise UnreadableFileError(
            f"'{target}' is not a mask file",
            expected=f"safetensors metadata {_KEY!r}",
            remedy="write masks with Mask.save",
        )
    if header["format"].split(".")[0] != FORMAT.split(".")[0]:
        raise UnsupportedFormatError(
            f"mask '{target}'",
            expected=f"format {FORMAT}",
            got=repr(header["format"])[:40],
            remedy="read it with the library version that wrote it",
        )
    names, provenance = header.get("names"), header.get("provenance")
    if (
        not isinstance(names, list)
        or not all(isinstance(name, str) for name in names)
        or not isinstance(provenance, dict)
    ):
        raise _damaged(target, "its names and provenance")
    # Names are printed to terminals and pages: control characters from a stranger stop here.
    if (
        not names
        or len(set(names)) < len(names)
        or set(names) != stored
        or not all(n and n.isprintable() for n in names)
    ):
        raise _damaged(target, "printable names, each once, for just the stored arrays")
    try:
        json.dumps(provenance, allow_nan=False)
    except (ValueError, RecursionError):
        raise _damaged(target, "finite numbers in its provenance") from None
    return names, provenance


def _bools(file: Any, name: str, target: Path) -> Bools:
    if file.get_slice(name).get_dtype() != "BOOL":
        raise _damaged(target, f"bool values for {name!r}")
    raw = np.asarray(file.get_tensor(name)).view(np.uint8)
    if raw.size and raw.max() > 1:
        raise _damaged(target, f"bytes 0 and 1 for {name!r}")
    return raw.view(np.bool_)


def _damaged(target: Path, expected: str) -> UnreadableFileError:
    return UnreadableFileError(f"mask file '{target}' is damaged", expected=expected)
