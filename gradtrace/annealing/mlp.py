"""The MLPs of a model: runs of linear layers between which every unit goes its own way.

Levels are the units between layers: inputs, hidden units, outputs. A gated MLP has two layers, gate and up,
from its inputs to its hidden units.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from torch import nn

from gradtrace.convert.linear_uses import LinearUse, linear_uses
from gradtrace.errors import InvalidValueError
from gradtrace.ledger.names import canonical
from gradtrace.recorder.wrappers import bare_model

__all__ = ["Mlp", "MlpNames", "find_mlps"]

MlpNames: TypeAlias = Sequence[str | Sequence[str]]

# What lets every unit go its own way.
_UNITWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh,
    nn.Sigmoid, nn.Hardtanh, nn.Hardswish, nn.Softplus, nn.Dropout, nn.Identity,
)  # fmt: skip
# How siblings are called that make up an MLP, layer by layer, in models whose forward puts them together.
_SIBLINGS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("gate_proj", "up_proj"), ("down_proj",)),
    (("up_proj",), ("down_proj",)),
    (("up",), ("down",)),
    (("fc1",), ("fc2",)),
    (("c_fc",), ("c_proj",)),
    (("linear1",), ("linear2",)),
)


@dataclass(frozen=True)
class Mlp:
    """`layers[k]`: names of the weights that lead from level k to level k + 1; `sizes`: units of each level.

    `inputs_first`: those of the names that lie (inputs, outputs), as the Conv1D of GPT-2 does.
    """

    layers: tuple[tuple[str, ...], ...]
    sizes: tuple[int, ...]
    inputs_first: frozenset[str] = frozenset()

    @property
    def names(self) -> tuple[str, ...]:
        """All of its weights."""
        return tuple(name for layer in self.layers for name in layer)


def find_mlps(model: nn.Module, given: Iterable[MlpNames] | None = None) -> tuple[Mlp, ...]:
    """The MLPs of `model`; `given` names layers, e.g. [("up", "down")], gated [(("gate", "up"), "down")].

    Left out: neighbours in an nn.Sequential with only unitwise activations between them, and siblings with
    the names that common models give them.

    Raises:
        InvalidValueError: there is none, a name is no linear layer's, or layers do not fit together.
    """
    uses = {use.name: (use, id_) for id_, use in linear_uses(bare_model(model)).items()}
    weights = {id(p): canonical(name) for name, p in bare_model(model).named_parameters()}
    plain = {name: use for name, (use, _) in uses.items() if not _shared(use)}
    if given is None:
        runs = _in_sequences(bare_model(model), plain) + _siblings(bare_model(model), plain)
    else:
        runs = [[[layer] if isinstance(layer, str) else list(layer) for layer in one] for one in given]
    found = []
    for run in runs:
        for name in (name for layer in run for name in layer):
            if name not in plain:
                raise InvalidValueError(
                    "mlps",
                    expected="names of linear layers with weights of their own",
                    got=repr(name),
                    remedy=f"the model has {', '.join(list(plain)[:4]) or 'none'}",
                )
        mlp = _joined([[plain[name] for name in layer] for layer in run], weights)
        if mlp is not None:
            found.append(mlp)
        elif given is not None:
            raise InvalidValueError(
                "mlps",
                expected="at least two layers, each taking what the one before gives",
                got=repr(run),
            )
    if not found:
        raise InvalidValueError(
            "mlps",
            expected="at least one MLP in the model",
            got="none that is known by its make or its names",
            remedy='name its layers, e.g. mlps=[("encoder.up", "encoder.down")]',
        )
    names = [name for mlp in found for name in mlp.names]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidValueError("mlps", expected="each layer in one MLP", got=f"{twice!r} in two")
    return tuple(found)


def _shared(use: LinearUse) -> bool:
    # A DTensor is no plain tensor and can be masked all the same.
    return use.obstacle.startswith("it shares")


def _joined(layers: list[list[LinearUse]], weights: dict[int, str]) -> Mlp | None:
    sides = [{(_outputs(use), use.inputs) for use in layer} for layer in layers]
    if len(layers) < 2 or any(len(one) != 1 for one in sides):
        return None
    shapes = [next(iter(one)) for one in sides]
    if any(before[0] != after[1] for before, after in pairwise(shapes)):
        return None
    named = tuple(tuple(weights[id(use.parameter)] for use in layer) for layer in layers)
    lying = frozenset(weights[id(use.parameter)] for layer in layers for use in layer if use.inputs_first)
    return Mlp(named, (shapes[0][1], *(outputs for outputs, _ in shapes)), lying)


def _outputs(use: LinearUse) -> int:
    return use.parameter.shape[1 if use.inputs_first else 0]


def _in_sequences(model: nn.Module, plain: dict[str, LinearUse]) -> list[list[list[str]]]:
    runs = []
    for prefix, module in model.named_modules():
        if not isinstance(module, nn.Sequential):
            continue
        run: list[list[str]] = []
        for leaf, child in module.named_children():
            name = canonical(f"{prefix}.{leaf}" if prefix else leaf)
            if name in plain:
                run.append([name])
            elif not isinstance(child, _UNITWISE):
                runs.append(run)
                run = []
        runs.append(run)
    return [run for run in runs if len(run) > 1]


def _siblings(model: nn.Module, plain: dict[str, LinearUse]) -> list[list[list[str]]]:
    runs = []
    for prefix, _ in model.named_modules():
        own = canonical(prefix)
        for layers in _SIBLINGS:
            run = [[f"{own}.{leaf}".lstrip(".") for leaf in layer] for layer in layers]
            if all(name in plain for layer in run for name in layer):
                runs.append(run)
                break
    return runs
