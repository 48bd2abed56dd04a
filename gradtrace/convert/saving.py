"""A model on disk: a folder of model.safetensors (the plain state_dict) and gradtrace.json (structure)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import google_crc32c
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gradtrace.convert.linears import replace
from gradtrace.convert.matching import check_replaceable, match_layers
from gradtrace.convert.model import check_model
from gradtrace.convert.routed_linear import RoutedLinear
from gradtrace.convert.saved_structure import SavedLayer, SavedStructure
from gradtrace.convert.state import check_state, distinct_tensors, named_state
from gradtrace.errors import GradtraceError, InvalidValueError, MismatchError, UnreadableFileError
from gradtrace.evidence.whole_file import checked_path
from gradtrace.ledger.names import canonical
from gradtrace.ledger.storage import surfacing

__all__ = ["load", "save"]

Model = TypeVar("Model", bound=nn.Module)

_WEIGHTS = "model.safetensors"
_STRUCTURE = "gradtrace.json"


def save(model: nn.Module, path: str | PathLike[str]) -> None:
    """Write `model`, converted or not, to the folder `path`; no pickle.

    The folder is written beside `path` and put there in one step. An earlier folder of ours is replaced;
    anything else that is there, or that somebody put into it, is never touched.

    Raises:
        InvalidValueError: something else is at `path`, no directory is there to hold it, or no nn.Module.
        StorageError: the disk failed; what was at `path` is still there.
        UnsupportedError: the state holds what is no plain tensor, by name.
    """
    check_model(model)
    target = Path(os.path.realpath(checked_path(path, "path")))
    with surfacing(f"saving to {target}"):
        _check_target(target)
    tensors, aliases = distinct_tensors(named_state(model))
    layers = {
        canonical(name): SavedLayer(
            module.in_features, module.out_features, module.bias is not None, module.sub_operators
        )
        for name, module in model.named_modules()
        if isinstance(module, RoutedLinear)
    }
    new, old = (target.with_name(f".{uuid4().hex}.{kind}") for kind in ("tmp", "old"))
    with surfacing(f"saving to {target}"):
        try:
            new.mkdir()
            save_file(tensors, new / _WEIGHTS)
            SavedStructure(_crc32c(new / _WEIGHTS), aliases, layers).write(new / _STRUCTURE)
            for part in (new / _WEIGHTS, new / _STRUCTURE, new):
                _fsync(part)
            if target.is_dir():
                target.rename(old)
            new.rename(target)
            _fsync(target.parent)
        except SafetensorError as error:  # how safetensors reports a full disk
            raise OSError(str(error)) from error
        finally:
            if old.exists() and not target.exists():
                old.rename(target)
            _remove(new)
            _remove(old)


def load(model: Model, path: str | PathLike[str]) -> Model:
    """Load what `save` wrote into a freshly built dense `model` of the same class, in place; it is returned.

    The layers that were converted are replaced; on an error the model is as it was. Device, mode and
    requires_grad are the model's own; its dtypes have to be those of the file.

    Raises:
        UnreadableFileError: no saved model, damaged, truncated, or altered since it was saved.
        UnsupportedFormatError: a format that this library does not know.
        MismatchError: the file is of another model: names, shapes, dtypes or ties differ.
        StateError: a layer of the model has been converted already.
        UnsupportedError: a layer that cannot be replaced, or a weight on the meta device, by name.
        InvalidValueError: what is no path, or no nn.Module.
    """
    check_model(model)
    folder = checked_path(path, "path")
    structure = SavedStructure.read(folder / _STRUCTURE)
    state = _read_state(folder / _WEIGHTS, structure)
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in structure.layers.items()}
    layers = match_layers(model, shapes, "the saved model")
    chosen = {name: layers[name] for name in structure.layers}
    check_replaceable(chosen.values())
    built = {name: _build(layer.module, structure.layers[name], name) for name, layer in chosen.items()}
    try:
        for name, layer in chosen.items():
            replace(layer, built[name])
        own = check_state(model, state)
        model.load_state_dict({name: state[canonical(name)] for name in own})
    except Exception as error:
        for layer in chosen.values():
            replace(layer, layer.module)
        if isinstance(error, GradtraceError):
            raise
        raise MismatchError("the saved model cannot be loaded into this one", got=str(error)[:200]) from error
    return model


def _build(linear: nn.Linear, saved: SavedLayer, name: str) -> RoutedLinear:
    if (linear.bias is not None) != saved.bias:
        raise MismatchError(
            f"the saved model is for another model: layer '{name}'",
            expected="a bias" if saved.bias else "no bias",
            got="none" if saved.bias else "one",
        )
    weight = linear.weight
    routed = RoutedLinear(
        saved.in_features,
        saved.out_features,
        saved.sub_operators,
        bias=saved.bias,
        device=weight.device,
        dtype=weight.dtype,
    )
    routed.weight.requires_grad_(weight.requires_grad)
    routed.bias = linear.bias
    return routed.train(linear.training)


def _read_state(path: Path, structure: SavedStructure) -> Mapping[str, Tensor]:
    try:
        crc32c = _crc32c(path)
        tensors = load_file(path) if crc32c == structure.crc32c else {}
    except (OSError, SafetensorError, ValueError) as error:
        raise UnreadableFileError(f"'{path}' cannot be read", got=str(error)) from error
    if crc32c != structure.crc32c:
        raise UnreadableFileError(
            f"'{path}' is damaged or was altered", expected=f"crc32c {structure.crc32c}", got=crc32c
        )
    for alias, name in structure.aliases.items():
        if name not in tensors or alias in tensors:
            raise UnreadableFileError(f"'{path.parent}' is broken", got=f"'{alias}' tied to '{name}'")
    return {**tensors, **{alias: tensors[name] for alias, name in structure.aliases.items()}}


def _check_target(target: Path) -> None:
    if not target.parent.is_dir():
        raise InvalidValueError(f"path '{target}'", expected="a folder in an existing directory")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if target.is_dir() and {part.name for part in target.iterdir()} <= {_WEIGHTS, _STRUCTURE}:
        try:
            SavedStructure.read(target / _STRUCTURE)
        except GradtraceError:
            pass
        else:
            return
    raise InvalidValueError(
        f"path '{target}'",
        expected="a new folder, or one that gt.save wrote and nobody added to",
        got="something else",
        remedy="choose another path",
    )


def _crc32c(path: Path) -> str:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            value = google_crc32c.extend(value, chunk)
    return f"{value:08x}"


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """Only the files that `save` writes: nothing else is ever deleted."""
    if folder.is_dir():
        for name in (_WEIGHTS, _STRUCTURE):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
