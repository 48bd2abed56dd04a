"""Hidden units found by tracing: what linear layers write, unit by unit, and only linear layers read.

torch.fx follows the forward pass of a module where that can be traced, and of its children where it cannot.
What is done to the values is followed by space_walk.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn

from gradtrace.convert.hidden_space import HiddenSpace
from gradtrace.convert.linear_layer import LinearLayer
from gradtrace.convert.space_walk import Known, Walk

__all__ = ["traced_spaces"]


def traced_spaces(model: nn.Module, layers: Mapping[str, LinearLayer]) -> list[HiddenSpace]:
    """The hidden spaces of every module of `model` that can be traced, outermost first; none twice."""
    names = {id(layer.module): name for name, layer in layers.items() if layer.module is layer.holder}
    known = Known.of(model, names, layers)
    found: list[HiddenSpace] = []
    done: set[int] = set()
    for module in model.modules():
        inside = [id(part) for part in module.modules()]
        if id(module) in done or id(module) in names or sum(part in names for part in inside) < 2:
            continue
        graph = _graph(module, names)
        if graph is not None:
            done.update(inside)
            found += Walk(module, graph, known).spaces()
    return found


class _Tracer(fx.Tracer):
    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) in self.names or super().is_leaf_module(m, module_qualified_name)


def _graph(module: nn.Module, names: Mapping[int, str]) -> fx.Graph | None:
    """What is done in either mode; none where the two differ in more than what dropout is told."""
    modes = [(part, part.training) for part in module.modules()]
    attributes = set(vars(module))
    graphs = []
    try:
        for training in (False, True):
            for part, _ in modes:
                part.training = training
            graphs.append(_Tracer(names).trace(module))
            _forget_constants(module, attributes)
    except Exception:  # whatever a forward pass does with values that it does not get
        return None
    finally:
        _forget_constants(module, attributes)
        for part, was in modes:
            part.training = was
    done = [
        [(node.op, str(node.target), *map(str, node.all_input_nodes)) for node in g.nodes] for g in graphs
    ]
    return graphs[0] if done[0] == done[1] else None


def _forget_constants(module: nn.Module, attributes: set[str]) -> None:
    """Tracing keeps the tensors that a forward pass makes as attributes of the module."""
    for name in set(vars(module)) - attributes:
        delattr(module, name)
