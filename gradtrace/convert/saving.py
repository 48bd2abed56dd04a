"""A model on disk: a folder of model.safetensors (the plain state_dict) and gradtrace.json (structure)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gradtrace.convert.linear_layer import LinearLayer
from gradtrace.convert.matching import check_replaceable, match_layers
from gradtrace.convert.model import check_model
from gradtrace.convert.model_folder import STRUCTURE, WEIGHTS, check_target, crc32c_of, replacing
from gradtrace.convert.replacement import adopt, affected, replacements
from gradtrace.convert.routed_linear import RoutedLinear
from gradtrace.convert.saved_structure import SavedLayer, SavedStructure
from gradtrace.convert.state import check_state, distinct_tensors, named_state
from gradtrace.errors import GradtraceError, MismatchError, UnreadableFileError
from gradtrace.evidence.whole_file import checked_path
from gradtrace.ledger.names import canonical
from gradtrace.ledger.storage import surfacing

__all__ = ["load", "save"]

Model = TypeVar("Model", bound=nn.Module)


def save(model: nn.Module, path: str | PathLike[str]) -> None:
    """Write `model`, converted or not, to the folder `path`; no pickle.

    The folder is written beside `path` and then renamed. An earlier folder of ours is replaced, by two
    renames: a process killed between them leaves both, whole, under hidden names beside `path`. Anything
    else that is there, or that somebody put into it, is never touched.

    Raises:
        InvalidValueError: something else is at `path`, no directory is there to hold it, or no nn.Module.
        StorageError: the disk failed; what was at `path` is still there.
        UnsupportedError: the state holds what is no plain tensor, by name.
    """
    check_model(model)
    target = Path(os.path.realpath(checked_path(path, "path")))
    with surfacing(f"saving to {target}"):
        check_target(target)
    tensors, aliases = distinct_tensors(named_state(model))
    layers = {
        canonical(name): SavedLayer(
            module.in_features, module.out_features, module.bias is not None, module.sub_operators
        )
        for name, module in model.named_modules()
        if isinstance(module, RoutedLinear)
    }
    with surfacing(f"saving to {target}"), replacing(target) as folder:
        try:
            save_file(tensors, folder / WEIGHTS)
        except SafetensorError as error:  # how safetensors reports a full disk
            raise OSError(str(error)) from error
        SavedStructure(crc32c_of(folder / WEIGHTS), aliases, layers).write(folder / STRUCTURE)


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
    structure = SavedStructure.read(folder / STRUCTURE)
    state = _read_state(folder / WEIGHTS, structure)
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in structure.layers.items()}
    layers = match_layers(model, shapes, "the saved model")
    chosen = {name: layers[name] for name in structure.layers}
    check_replaceable(affected(layers, chosen))
    for name, saved in structure.layers.items():
        # Sub-operators may overlap, so that a short list can claim more memory than there is.
        stored = state.get(f"{name}.weight")
        if stored is None or stored.numel() != saved.weights:
            raise MismatchError(f"gradtrace.json and model.safetensors differ in the weights of '{name}'")
    built = {name: _build(layer, structure.layers[name]) for name, layer in chosen.items()}
    found = replacements(model, layers, built)
    try:
        for replacement in found:
            replacement.apply_()
        own = check_state(model, state)
        model.load_state_dict({name: state[canonical(name)] for name in own})
    except Exception as error:
        for replacement in found:
            replacement.undo_()
        if isinstance(error, GradtraceError):
            raise
        raise MismatchError("the saved model cannot be loaded into this one", got=str(error)[:200]) from error
    return model


def _build(layer: LinearLayer, saved: SavedLayer) -> RoutedLinear:
    linear = layer.linear()
    if (linear.bias is not None) != saved.bias:
        raise MismatchError(
            f"the saved model is for another model: layer '{layer.name}'",
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
    return adopt(routed, layer)


def _read_state(path: Path, structure: SavedStructure) -> Mapping[str, Tensor]:
    try:
        crc32c = crc32c_of(path)
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
