"""The weights that other programs saved: Lightning checkpoints, state_dicts, safetensors; never pickle."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gradtrace.errors import MismatchError, UnreadableFileError
from gradtrace.evidence.whole_file import checked_path
from gradtrace.ledger.names import canonical

__all__ = ["read_weights"]


def read_weights(path: str | PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a weights file by canonical name, on the CPU.

    Raises:
        UnreadableFileError: no such file, damaged, of no known kind, or in need of pickle.
        MismatchError: two names that are one once wrappers are dropped.
        InvalidValueError: `path` is no path.
    """
    path = checked_path(path, "weights file")
    try:
        with path.open("rb") as file:
            start = file.read(9)
            length = path.stat().st_size
    except OSError as error:
        raise UnreadableFileError(
            f"weights file '{path}' cannot be read", got=error.strerror or str(error)
        ) from error
    # A safetensors file begins with the length of its JSON header; nothing torch writes looks like that.
    header = int.from_bytes(start[:8], "little")
    found = (_read_safetensors if start[8:] == b"{" and header < length else _read_torch)(path)
    weights: dict[str, Tensor] = {}
    for name, value in found.items():
        if canonical(name) in weights:
            raise MismatchError(f"weights file '{path}' holds '{canonical(name)}' twice", got=f"'{name}' too")
        weights[canonical(name)] = value
    return weights


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UnreadableFileError(f"weights file '{path}' is damaged", got=str(error)) from error


def _read_torch(path: Path) -> Mapping[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about storages of old files, nothing a reader could act on
            # A file, not its path: by the path's ending torch would take it for safetensors.
            with path.open("rb") as file:
                content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds on damaged or malicious files
        # Torch's own words advise weights_only=False: they are not passed on.
        named = re.search(r"GLOBAL (\S+)", str(error))
        raise UnreadableFileError(
            f"weights file '{path}' is damaged, or holds more than plain tensors",
            got=f"a pickle of {named[1][:80]}" if named else type(error).__name__,
            remedy="save only the state_dict: torch.save(model.state_dict(), path), or use safetensors",
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise UnreadableFileError(
            f"weights file '{path}' holds no state_dict",
            expected="a mapping of names",
            got=type(content).__name__,
        )
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    strange = [name for name in content if name not in tensors and not str(name).endswith("_extra_state")]
    if strange or not all(isinstance(name, str) for name in content):
        raise UnreadableFileError(
            f"weights file '{path}' holds no state_dict",
            expected="names and tensors",
            got=", ".join(repr(name) for name in strange[:3]) or "keys that are no names",
            remedy="save only the state_dict",
        )
    return tensors
