"""The registry: every criterion, by name."""

from __future__ import annotations

from types import MappingProxyType

from gradtrace.errors import InvalidValueError
from gradtrace.evidence.definition import Criterion
from gradtrace.evidence.displacement import DISPLACEMENT
from gradtrace.evidence.fisher_step import FISHER_STEP
from gradtrace.evidence.init import INIT
from gradtrace.evidence.magnitude import MAGNITUDE
from gradtrace.evidence.named_arrays import unknown_name
from gradtrace.evidence.random import RANDOM
from gradtrace.evidence.support import SUPPORT

__all__ = ["DEFAULT", "Criterion", "criteria", "criterion"]

DEFAULT = FISHER_STEP.name

_REGISTRY = MappingProxyType(
    {one.name: one for one in (FISHER_STEP, SUPPORT, DISPLACEMENT, INIT, MAGNITUDE, RANDOM)}
)


def criteria() -> tuple[Criterion, ...]:
    """Every criterion: ledger-based ones first, the default leading, then statistics, then controls."""
    return tuple(_REGISTRY.values())


def criterion(name: str) -> Criterion:
    """The criterion of that name; UnknownNameError, with the nearest name, when there is none."""
    if not isinstance(name, str):
        raise InvalidValueError(
            "by", expected="the name of a criterion", got=repr(name), remedy=f"pass by={DEFAULT!r}"
        )
    if name not in _REGISTRY:
        raise unknown_name("criterion", name, _REGISTRY)
    return _REGISTRY[name]
