"""A converted model on several ranks: each keeps the sub-operators that a placement gives it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import google_crc32c
import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed, nn
from torch.distributed import ProcessGroup

from gradtrace.convert.linears import linears, nearest
from gradtrace.convert.model import check_model
from gradtrace.convert.placed_linear import PlacedLinear, writing_part
from gradtrace.convert.routed_linear import RoutedLinear
from gradtrace.errors import (
    GradtraceError,
    InvalidValueError,
    MismatchError,
    StateError,
    UnsupportedError,
)
from gradtrace.ledger.names import canonical
from gradtrace.structure.placement import Placement

__all__ = ["place_"]

Model = TypeVar("Model", bound=nn.Module)


def place_(model: Model, placement: Placement, group: ProcessGroup | None = None) -> Model:
    """Leave this rank its own share of the weights, in place; the model is returned.

    Every rank of `group` (all ranks, if None) calls this with the same placement and the same model,
    converted by `convert_` and on its device. Afterwards all call the model on the same input, and all get
    the same output and the same gradients of the input, of biases and of what was not placed; of the weights
    each has its own alone. Each layer has one collective forwards and one backwards, and so has each MLP of
    `placement.mlps`: of its hidden units a rank computes its own alone, so that only elementwise functions
    may lie between. Make the optimizer afterwards, and save the model before.

    Raises:
        StateError: torch.distributed has not been started; a layer is not converted yet, or placed already.
        MismatchError: the placement is for another number of ranks or another model, or differs on a rank.
        UnsupportedError: a layer that is the whole model, or has hooks.
        InvalidValueError: no nn.Module, no Placement, a group without this rank.
    """
    check_model(model)
    if not isinstance(placement, Placement):
        raise InvalidValueError(
            "placement", expected="a Placement, as gt.placement makes it", got=type(placement).__name__
        )
    if not distributed.is_available() or not distributed.is_initialized():
        raise StateError(
            "torch.distributed has not been started",
            remedy="start the ranks with torchrun and call torch.distributed.init_process_group first",
        )
    rank = distributed.get_rank(group)
    if rank < 0:
        raise InvalidValueError("group", expected="a group with this rank", got="one without it")
    failure: GradtraceError | None = None
    built: dict[str, nn.Module] = {}
    digest = -1
    try:
        layers = _layers(model, placement, distributed.get_world_size(group))
        built = _built(layers, placement, rank, group)
        digest = _digest(layers, placement)
    except GradtraceError as error:
        failure = error  # raised after the others have heard of it: they would wait forever
    _check_alike(model, digest, failure, rank, group)
    for name, module in built.items():
        for parent, attribute in _places(model, layers[name]):
            parent._modules[attribute] = module
    return model


def _layers(model: nn.Module, placement: Placement, world: int) -> dict[str, RoutedLinear]:
    if placement.ranks != world:
        raise MismatchError(
            "the placement is for another number of ranks",
            expected=f"{placement.ranks} ranks",
            got=str(world),
            remedy=f"make it with gt.placement(plan, {world})",
        )
    modules = {canonical(name): module for name, module in model.named_modules()}
    dense, layers = linears(model), {}
    for name, on_ranks in placement.layers.items():
        module = modules.get(name)
        if name in dense:
            raise StateError(f"layer '{name}' is not converted yet", remedy="call gt.convert_ first")
        if module is not None and any(isinstance(child, RoutedLinear) for child in module.children()):
            raise StateError(
                f"layer '{name}' has been placed already", remedy="place a freshly converted model"
            )
        if not isinstance(module, RoutedLinear):
            routed = [there for there, one in modules.items() if isinstance(one, RoutedLinear)]
            raise MismatchError(
                f"the placement is for another model: there is no layer '{name}'",
                remedy=nearest(name, routed),
            )
        count = len(module.input_sizes)
        if sorted(number for numbers in on_ranks for number in numbers) != list(range(count)):
            raise MismatchError(
                f"the placement is for another plan: layer '{name}'",
                expected=f"{sum(map(len, on_ranks))} sub-operators",
                got=str(count),
                remedy="make the placement with the plan that the model was converted with",
            )
        if module is model:
            raise UnsupportedError(
                "the layer is the whole model", remedy="wrap it, for instance in nn.Sequential"
            )
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
            raise UnsupportedError(
                f"layer '{name}' carries hooks", remedy="remove them, place, and register them again"
            )
        layers[name] = module
    return layers


def _built(
    layers: Mapping[str, RoutedLinear], placement: Placement, rank: int, group: ProcessGroup | None
) -> dict[str, nn.Module]:
    reads: dict[str, NDArray[np.int64]] = {}
    built: dict[str, nn.Module] = {}
    for names in placement.mlps:
        hidden = _own_hidden(layers, placement, names)[rank]
        reads[names[-1]] = hidden
        for name in names[:-1]:
            built[name] = writing_part(layers[name], placement.layers[name][rank], hidden, group)
    for name in layers:
        if name not in built:
            built[name] = PlacedLinear(layers[name], placement.layers[name], rank, group, reads.get(name))
    return built


def _own_hidden(
    layers: Mapping[str, RoutedLinear], placement: Placement, names: Sequence[str]
) -> list[NDArray[np.int64]]:
    """The hidden units that each rank writes or reads, ascending."""
    rank_of = np.full(layers[names[-1]].in_features, -1, np.int64)
    for name in names:
        parts = layers[name].sub_operators
        for rank, numbers in enumerate(placement.layers[name]):
            for number in numbers:
                units = parts[number].inputs if name == names[-1] else parts[number].outputs
                if units.max() >= len(rank_of) or not np.isin(rank_of[units], (-1, rank)).all():
                    raise MismatchError(
                        f"the placement is for another plan: the MLP of '{names[-1]}'",
                        expected="each hidden unit on one rank",
                        got=f"a unit of '{name}' on two",
                        remedy="make the placement with the plan that the model was converted with",
                    )
                rank_of[units] = rank
    return [np.flatnonzero(rank_of == rank) for rank in range(placement.ranks)]


def _digest(layers: Mapping[str, RoutedLinear], placement: Placement) -> int:
    """crc32c of the layers and of who runs them: what must be the same on all ranks."""
    value = google_crc32c.value(repr((list(placement.layers.items()), placement.mlps)).encode())
    for layer in layers.values():
        value = google_crc32c.extend(value, repr((layer.input_sizes, layer.output_sizes)).encode())
        for tensor in (layer.inputs, layer.outputs, layer.weight, layer.bias):
            if tensor is not None:
                flat = tensor.detach().cpu().contiguous().view(-1)
                value = google_crc32c.extend(value, flat.view(torch.uint8).numpy().tobytes())
    return int(value)


def _check_alike(
    model: nn.Module, digest: int, failure: GradtraceError | None, rank: int, group: ProcessGroup | None
) -> None:
    """Raise this rank's failure, or say that another rank failed or has something else."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    own = torch.tensor([digest], device=device)
    every = [torch.empty_like(own) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(every, own, group=group)
    if failure is not None:
        raise failure
    digests: list[int] = torch.cat(every).tolist()
    for other, found in enumerate(digests):
        if found != digest:
            raise MismatchError(
                "the ranks do not agree",
                expected=f"on rank {other} what rank {rank} has",
                got="an error there" if found == -1 else "another placement or other weights",
                remedy="give all ranks the same weights and the same placement",
            )


def _places(model: nn.Module, layer: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for parent in model.modules():
        for attribute, child in parent._modules.items():
            if child is layer:
                yield parent, attribute
