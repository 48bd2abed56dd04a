"""Which parameters of a model are recorded, under which names; what cannot be recorded is refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import is_lazy

from gradtrace.errors import InvalidValueError, UnsupportedError
from gradtrace.ledger.format import ParameterInfo
from gradtrace.ledger.names import canonical
from gradtrace.recorder.wrappers import bare_class, bare_model

__all__ = ["Candidate", "Selection", "candidates", "check_recordable"]

# Modules that store (inputs, outputs): an embedding's input is the token, and so is the first axis of
# the Conv1D of GPT-2.
_INPUTS_FIRST = ("Embedding", "EmbeddingBag", "Conv1D")


@dataclass(frozen=True, eq=False)
class Candidate:
    """One parameter that the patterns let in, frozen or not, with what the ledger says about it."""

    parameter: nn.Parameter
    info: ParameterInfo


@dataclass(frozen=True)
class Selection:
    """Glob patterns over canonical names: what is recorded is included and not excluded.

    Raises:
        InvalidValueError: a pattern is not a string.
    """

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    @classmethod
    def of(cls, include: str | Sequence[str], exclude: str | Sequence[str]) -> Selection:
        """Accept one pattern or several."""
        return cls(*((given,) if isinstance(given, str) else tuple(given) for given in (include, exclude)))

    def __post_init__(self) -> None:
        for pattern in (*self.include, *self.exclude):
            if not isinstance(pattern, str):
                raise InvalidValueError("include/exclude", expected="glob patterns (str)", got=repr(pattern))

    def admits(self, names: Sequence[str]) -> bool:
        """Whether any of a parameter's names is included and none is excluded."""
        return any(_matches(name, self.include) for name in names) and not any(
            _matches(name, self.exclude) for name in names
        )

    def check(self, names: Sequence[str]) -> None:
        """Raise when a pattern matches no parameter at all: most likely a misspelling."""
        for pattern in (*self.include, *self.exclude):
            if not any(fnmatchcase(name, pattern) for name in names):
                near = get_close_matches(pattern, names, n=1, cutoff=0.0)
                raise InvalidValueError(
                    "include/exclude",
                    expected="patterns that match a parameter name",
                    got=repr(pattern),
                    remedy=f"the nearest parameter is {near[0]!r}" if near else "the model has no parameters",
                )


@dataclass(eq=False)
class _Found:
    parameter: nn.Parameter
    module: str
    owner: nn.Module
    leaf: str
    names: list[str] = field(default_factory=list)


def candidates(model: nn.Module, selection: Selection) -> list[Candidate]:
    """Every parameter that `selection` lets in, in the model's order, tied ones once with all their names.

    Raises:
        InvalidValueError: a pattern matches nothing, or nothing is left to record.
        UnsupportedError: a parameter's gradient could not be recorded; the parameter is named.
    """
    model = bare_model(model)
    found: dict[int, _Found] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for leaf, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            name = canonical(f"{prefix}.{leaf}" if prefix else leaf)
            seen = found.setdefault(id(parameter), _Found(parameter, canonical(prefix), module, leaf))
            if name not in seen.names:
                seen.names.append(name)
    selection.check([name for one in found.values() for name in one.names])
    admitted = [one for one in found.values() if selection.admits(one.names)]
    if not admitted:
        raise InvalidValueError(
            "include/exclude",
            expected="at least one parameter to record",
            got=f"none of the {len(found)} parameters left",
            remedy="widen include= or narrow exclude=",
        )
    return [_candidate(one) for one in admitted]


def check_recordable(one: Candidate) -> None:
    """Raise an UnsupportedError that names the parameter if its gradient cannot be accumulated here."""
    parameter, name = one.parameter, one.info.name
    if is_lazy(parameter):
        reason, remedy = "is not initialised yet", "run one batch through the model before training"
    elif parameter.is_meta:
        reason, remedy = "is on the meta device", "materialise the model before recording it"
    elif not parameter.dtype.is_floating_point:
        reason, remedy = f"has dtype {parameter.dtype}", f"exclude={name!r}"
    else:
        return
    raise UnsupportedError(
        f"parameter {name!r} {reason}", expected="a dense floating-point parameter", remedy=remedy
    )


def _candidate(one: _Found) -> Candidate:
    kind = bare_class(one.owner).__name__
    name, *aliases = one.names
    if getattr(one.owner, "sparse", False) is True and isinstance(one.owner, nn.Embedding | nn.EmbeddingBag):
        raise UnsupportedError(
            f"parameter {name!r} belongs to a {kind}(sparse=True)",
            expected="dense gradients",
            remedy=f"build it with sparse=False, or pass exclude={name!r}",
        )
    shape = () if is_lazy(one.parameter) else tuple(one.parameter.shape)
    if one.leaf.endswith("bias"):
        role = "bias"
    elif len(shape) < 2:
        role = "scale" if one.leaf == "weight" else "other"
    else:
        role = "embedding" if kind.startswith("Embedding") else "weight"
    orientation = "" if len(shape) < 2 else ("in,out" if kind in _INPUTS_FIRST else "out,in")
    info = ParameterInfo(
        name=name,
        shape=shape,
        dtype=str(one.parameter.dtype).removeprefix("torch."),
        aliases=tuple(aliases),
        module=one.module,
        module_class=kind,
        role=role,
        orientation=orientation,
    )
    return Candidate(one.parameter, info)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
