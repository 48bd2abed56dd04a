"""What becomes of the values of linear layers and embeddings in a traced forward pass: which stay hidden.

A value is hidden as long as everything done to it treats each unit alone, or norms them all. A value that is
the same in any order of the units, as a mean over them is, may meet hidden ones.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional

from gradtrace.convert.hidden_space import HiddenSpace, Member
from gradtrace.convert.linear_layer import LinearLayer
from gradtrace.convert.places import held_times, places_of
from gradtrace.ledger.names import canonical

__all__ = ["FUNCTIONS", "MODULES", "Known", "Walk"]

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
        operator.truediv, operator.pow, operator.neg, torch.sqrt, torch.rsqrt,
    }
)  # fmt: skip
_METHODS = frozenset(
    {
        "relu", "tanh", "sigmoid", "exp", "pow", "square", "sqrt", "rsqrt", "mul", "add", "sub", "div",
        "contiguous", "to", "float", "type_as",
    }
)  # fmt: skip
# Over all units they give one number, whatever the order.
_REDUCTIONS = frozenset({torch.mean, torch.sum, torch.var, "mean", "sum", "var"})
_ASIDE = ("dtype", "device", "shape")


@dataclass(frozen=True, eq=False)
class Known:
    """What a graph's parts are in the whole model: linear layers, and other parameters, by canonical name.

    `names` is by the id of a layer's module; `owned`, by the id of a norm or embedding that hangs in one
    place; `parameters`, by the id of one that is of neither, and held by a single module.
    """

    names: Mapping[int, str]
    layers: Mapping[str, LinearLayer]
    owned: Mapping[int, tuple[str, ...]]
    parameters: Mapping[int, str]

    @classmethod
    def of(cls, model: nn.Module, names: Mapping[int, str], layers: Mapping[str, LinearLayer]) -> Known:
        """For all graphs of `model`."""
        places, held = places_of(model), held_times(model)
        owned = {
            id(module): tuple(
                f"{canonical(name)}.{leaf}".lstrip(".") for leaf, _ in module.named_parameters(recurse=False)
            )
            for name, module in model.named_modules()
            if type(module) in (*_NORMS, nn.Embedding) and len(places[id(module)]) <= 1
        }
        inside = {id(one) for layer in layers.values() for one in layer.holder.parameters()}
        inside |= {id(one) for part in model.modules() if id(part) in owned for one in part.parameters()}
        named = [(name, one) for name, one in model.named_parameters() if id(one) not in inside]
        parameters = {id(one): canonical(name) for name, one in named if held[id(one)] == 1}
        return cls(names, layers, owned, parameters)


class Walk:
    """One graph: which space each value is in, joined where two values meet."""

    def __init__(self, module: nn.Module, graph: fx.Graph, known: Known) -> None:
        self.module, self.modules, self.graph, self.known = module, dict(module.named_modules()), graph, known
        self.space: dict[fx.Node, int] = {}
        self.root: list[int] = []
        self.size: list[int] = []
        self.members: dict[int, list[Member]] = defaultdict(list)
        self.vectors: dict[int, list[str]] = defaultdict(list)
        self.why: dict[int, str] = {}
        # What comes of hidden values but is the same in any order of theirs.
        self.aside: set[fx.Node] = set()
        # What comes of hidden values that something else has seen, and the layers that read that.
        self.seen: dict[fx.Node, str] = {}
        self.lost: list[HiddenSpace] = []
        self.calls: dict[str, int] = defaultdict(int)
        # Parameters that the forward pass reads itself, and does not leave to a module.
        self.read: set[int] = set()
        for node in graph.nodes:
            if node.op in ("call_module", "get_attr"):
                self.calls[str(node.target)] += 1
            if node.op == "get_attr":
                self.read.add(id(self._parameter(node)))

    def spaces(self) -> list[HiddenSpace]:
        """Every space that layers are in, with what is against it."""
        for node in self.graph.nodes:
            self._visit(node)
        joined: dict[int, list[int]] = defaultdict(list)
        for number in range(len(self.root)):
            joined[self._find(number)].append(number)
        result = []
        for numbers in joined.values():
            members = tuple(member for number in numbers for member in self.members[number])
            vectors = tuple(name for number in numbers for name in self.vectors[number])
            why = next((self.why[number] for number in numbers if number in self.why), "")
            sizes = {self.size[number] for number in numbers}
            sizes |= {self.known.layers[m.layer].shape[0 if m.outputs else 1] for m in members}
            if len(sizes) != 1:
                why = why or "layers of different widths meet there"
            for layer in (self.known.layers[member.layer] for member in members):
                if any(id(one) in self.read for one in layer.holder.parameters()):
                    why = why or f"what calls '{layer.name}' reads its parameters too"
            if all(member.outputs for member in members):
                why = why or "no linear layer reads them"
            if members:
                result.append(HiddenSpace(min(sizes), members, vectors=vectors, why_not=why))
        return [*self.lost, *result]

    def _visit(self, node: fx.Node) -> None:
        given = [self.space[one] for one in node.all_input_nodes if one in self.space]
        seen = [self.seen[one] for one in node.all_input_nodes if one in self.seen]
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        name = self.known.names.get(id(module)) if module is not None else None
        if name is not None:
            for number in given:
                self.members[number].append(Member(name, outputs=False))
            if seen and not given:
                reader = Member(name, outputs=False)
                self.lost.append(HiddenSpace(self.known.layers[name].shape[1], (reader,), why_not=seen[0]))
            self.space[node] = self._new(self.known.layers[name].shape[0])
            self.members[self.space[node]].append(Member(name, outputs=True))
            for number in (*given, self.space[node]):
                if self.calls[str(node.target)] > 1:
                    self.why.setdefault(number, f"'{name}' is called twice")
        elif type(module) is nn.Embedding and self._alone(node, module):
            self.space[node] = self._new(module.embedding_dim)
            self.vectors[self.space[node]] += self.known.owned[id(module)]
        elif self._aside(node, given):
            self.aside.add(node)
        elif given and self._unitwise(node, module, self.size[given[0]]):
            for other in given[1:]:
                self.root[self._find(other)] = self._find(given[0])
            self.space[node] = given[0]
            if isinstance(module, _NORMS):
                self.vectors[given[0]] += self.known.owned[id(module)]
            for one in node.all_input_nodes:
                if one.op == "get_attr":
                    self.vectors[given[0]].append(self.known.parameters[id(self._parameter(one))])
        else:
            for number in given:
                self.why.setdefault(number, f"{_words(node, module)} sees them too")
            if given or seen:
                self.seen[node] = seen[0] if seen else f"{_words(node, module)} sees them too"

    def _unitwise(self, node: fx.Node, module: nn.Module | None, size: int) -> bool:
        # Another tensor beside a hidden value is the residual stream, or has an order of its own.
        for one in node.all_input_nodes:
            if one not in self.space and one not in self.aside and not self._goes_with(one, size):
                return False
        if module is not None and (module._forward_hooks or module._forward_pre_hooks):
            return False
        if isinstance(module, _NORMS):
            return self._alone(node, module) and len(module.normalized_shape) == 1
        if module is not None:
            return type(module) in MODULES
        return _in_any_order(node)

    def _aside(self, node: fx.Node, given: list[int]) -> bool:
        """Whether it is a number for all units, or comes of such alone."""
        if node.target is getattr:
            return bool(given) and node.args[1] in _ASIDE
        if node.op in ("call_function", "call_method") and node.target in _REDUCTIONS:
            where = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
            last = where == -1 or (isinstance(where, list | tuple) and tuple(where) == (-1,))
            return bool(given) and last and node.kwargs.get("keepdim") is True
        alone = bool(node.all_input_nodes) and all(one in self.aside for one in node.all_input_nodes)
        return alone and (_in_any_order(node) or node.target is operator.getitem)

    def _alone(self, node: fx.Node, module: nn.Module) -> bool:
        """Whether nothing but this call reads its parameters, or hears what it says."""
        heard = module._forward_hooks or module._forward_pre_hooks
        once = self.calls[str(node.target)] == 1 and not any(
            id(one) in self.read for one in module.parameters()
        )
        return id(module) in self.known.owned and once and not heard

    def _goes_with(self, node: fx.Node, size: int) -> bool:
        """Whether it is a parameter that nothing else reads, with one column for each of `size` units."""
        value = self._parameter(node) if node.op == "get_attr" else None
        if value is None or id(value) not in self.known.parameters or len(node.users) > 1:
            return False
        return self.calls[str(node.target)] == 1 and value.ndim > 0 and value.shape[-1] == size

    def _parameter(self, node: fx.Node) -> nn.Parameter | None:
        path, _, leaf = str(node.target).rpartition(".")
        return self.modules[path]._parameters.get(leaf) if path in self.modules else None

    def _new(self, size: int) -> int:
        self.root.append(len(self.root))
        self.size.append(size)
        return len(self.root) - 1

    def _find(self, number: int) -> int:
        while self.root[number] != number:
            number = self.root[number]
        return number


def _in_any_order(node: fx.Node) -> bool:
    return (node.op == "call_function" and node.target in FUNCTIONS) or (
        node.op == "call_method" and node.target in _METHODS
    )


def _words(node: fx.Node, module: nn.Module | None) -> str:
    if node.op == "output":
        return "what calls the module"
    return type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
