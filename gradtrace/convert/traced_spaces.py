"""Hidden units found by tracing: what linear layers write, unit by unit, and only linear layers read.

torch.fx follows the forward pass of a module where that can be traced, and of its children where it cannot.
A value is hidden as long as everything done to it treats each unit alone, or norms them all.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from gradtrace.convert.hidden_space import HiddenSpace, Member
from gradtrace.convert.linear_layer import LinearLayer
from gradtrace.convert.places import held_times, places_of
from gradtrace.ledger.names import canonical

__all__ = ["FUNCTIONS", "MODULES", "traced_spaces"]

MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid,
    nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Dropout, nn.Identity,
)  # fmt: skip
_NORMS = (nn.LayerNorm, nn.RMSNorm)
FUNCTIONS = frozenset(
    {
        functional.relu, functional.gelu, functional.silu, functional.elu, functional.leaky_relu,
        functional.mish, functional.dropout, functional.softplus, functional.hardswish, functional.tanh,
        functional.sigmoid, torch.relu, torch.tanh, torch.sigmoid, torch.erf, torch.exp, torch.pow,
        torch.add, torch.sub, torch.mul, torch.div, torch.square, operator.add, operator.sub, operator.mul,
        operator.truediv, operator.pow, operator.neg,
    }
)  # fmt: skip
_METHODS = frozenset(
    {"relu", "tanh", "sigmoid", "exp", "pow", "square", "mul", "add", "sub", "div", "contiguous", "to"}
)


def traced_spaces(model: nn.Module, layers: Mapping[str, LinearLayer]) -> list[HiddenSpace]:
    """The hidden spaces of every module of `model` that can be traced, outermost first; none twice."""
    names = {id(layer.module): name for name, layer in layers.items() if layer.module is layer.holder}
    norms = _norms(model)
    found: list[HiddenSpace] = []
    done: set[int] = set()
    for module in model.modules():
        inside = [id(part) for part in module.modules()]
        if id(module) in done or id(module) in names or sum(part in names for part in inside) < 2:
            continue
        graph = _graph(module, names)
        if graph is not None:
            done.update(inside)
            found += _Walk(module, graph, names, layers, norms).spaces()
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


class _Walk:
    """One graph: which space each value is in, joined where two values meet."""

    def __init__(
        self,
        module: nn.Module,
        graph: fx.Graph,
        names: Mapping[int, str],
        layers: Mapping[str, LinearLayer],
        norms: Mapping[int, tuple[str, ...]],
    ) -> None:
        self.norms = norms
        self.modules, self.graph, self.names, self.layers = dict(module.named_modules()), graph, names, layers
        self.space: dict[fx.Node, int] = {}
        self.root: list[int] = []
        self.members: dict[int, list[Member]] = defaultdict(list)
        self.vectors: dict[int, list[str]] = defaultdict(list)
        self.why: dict[int, str] = {}
        # What comes of hidden values that something else has seen, and the layers that read that.
        self.seen: dict[fx.Node, str] = {}
        self.lost: list[HiddenSpace] = []
        self.calls: dict[str, int] = defaultdict(int)

    def spaces(self) -> list[HiddenSpace]:
        """Every space that has a reader, or something against it."""
        for node in self.graph.nodes:
            self._visit(node)
        found: dict[int, dict[str, Any]] = {}
        for number in range(len(self.root)):
            one = found.setdefault(self._find(number), {"members": [], "vectors": [], "why_not": ""})
            one["members"] += self.members[number]
            one["vectors"] += self.vectors[number]
            one["why_not"] = one["why_not"] or self.why.get(number, "")
        result = []
        for one in found.values():
            sizes = {self.layers[m.layer].shape[0 if m.outputs else 1] for m in one["members"]}
            again = [m.layer for m in one["members"] if self.calls[m.layer] > 1]
            why = one["why_not"] or (f"'{again[0]}' is called twice" if again else "")
            if len(sizes) != 1:
                why = why or "layers of different widths meet there"
            if all(m.outputs for m in one["members"]):
                why = why or "no linear layer reads them"
            result.append(
                HiddenSpace(min(sizes), tuple(one["members"]), vectors=tuple(one["vectors"]), why_not=why)
            )
        return [*self.lost, *result]

    def _visit(self, node: fx.Node) -> None:
        given = [self.space[one] for one in node.all_input_nodes if one in self.space]
        seen = [self.seen[one] for one in node.all_input_nodes if one in self.seen]
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        name = self.names.get(id(module)) if module is not None else None
        if name is not None:
            self.calls[name] += 1
            for number in given:
                self.members[number].append(Member(name, outputs=False))
            if seen and not given:
                reader = Member(name, outputs=False)
                self.lost.append(HiddenSpace(self.layers[name].shape[1], (reader,), why_not=seen[0]))
            self.space[node] = self._new(Member(name, outputs=True))
        elif given and self._unitwise(node, module):
            for other in given[1:]:
                self.root[self._find(other)] = self._find(given[0])
            self.space[node] = given[0]
            if isinstance(module, _NORMS):
                self.vectors[given[0]] += self.norms[id(module)]
        else:
            for number in given:
                self.why.setdefault(number, f"{_words(node, module)} sees them too")
            if given or seen:
                self.seen[node] = seen[0] if seen else f"{_words(node, module)} sees them too"

    def _unitwise(self, node: fx.Node, module: nn.Module | None) -> bool:
        # Another tensor beside a hidden value is the residual stream, or has an order of its own.
        if any(one not in self.space for one in node.all_input_nodes):
            return False
        if module is not None and (module._forward_hooks or module._forward_pre_hooks):
            return False
        if isinstance(module, _NORMS):
            once = sum(node.target == other.target for other in self.graph.nodes) == 1
            return once and len(module.normalized_shape) == 1 and id(module) in self.norms
        if module is not None:
            return type(module) in MODULES
        return (node.op == "call_function" and node.target in FUNCTIONS) or (
            node.op == "call_method" and node.target in _METHODS
        )

    def _new(self, member: Member) -> int:
        self.root.append(len(self.root))
        self.members[len(self.root) - 1].append(member)
        return len(self.root) - 1

    def _find(self, number: int) -> int:
        while self.root[number] != number:
            number = self.root[number]
        return number


def _norms(model: nn.Module) -> dict[int, tuple[str, ...]]:
    """By id, the norms that hang in one place with parameters of their own, and these by canonical name."""
    places, held = places_of(model), held_times(model)
    return {
        id(module): tuple(
            f"{canonical(name)}.{leaf}".lstrip(".") for leaf, _ in module.named_parameters(recurse=False)
        )
        for name, module in model.named_modules()
        if isinstance(module, _NORMS) and type(module) in _NORMS and len(places[id(module)]) <= 1
        if all(held[id(parameter)] == 1 for parameter in module.parameters())
    }


def _words(node: fx.Node, module: nn.Module | None) -> str:
    if node.op == "output":
        return "what calls the module"
    return type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
