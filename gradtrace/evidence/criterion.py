"""The registry: every criterion, by name."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from gradtrace.errors import InvalidValueError
from gradtrace.evidence.definition import Criterion
from gradtrace.evidence.departure import DEPARTURE
from gradtrace.evidence.displacement import DISPLACEMENT
from gradtrace.evidence.drift import DRIFT
from gradtrace.evidence.fisher import FISHER
from gradtrace.evidence.fisher_step import FISHER_STEP
from gradtrace.evidence.init import INIT
from gradtrace.evidence.magnitude import MAGNITUDE
from gradtrace.evidence.marchenko_pastur import MARCHENKO_PASTUR
from gradtrace.evidence.movement import MOVEMENT
from gradtrace.evidence.named_arrays import unknown_name
from gradtrace.evidence.random import RANDOM
from gradtrace.evidence.shuffled import SHUFFLED
from gradtrace.evidence.sign import SIGN
from gradtrace.evidence.support import SUPPORT
from gradtrace.evidence.wanda import WANDA

if TYPE_CHECKING:
    from gradtrace.ledger.reader import Ledger

__all__ = ["DEFAULT", "Criterion", "criteria", "criterion"]

DEFAULT = FISHER_STEP.name

_LEDGER = (FISHER_STEP, FISHER, SUPPORT, DRIFT, DEPARTURE, SIGN, DISPLACEMENT, MOVEMENT)
_STATISTIC = (INIT, MAGNITUDE, WANDA, MARCHENKO_PASTUR)
_CONTROL = (RANDOM, SHUFFLED)
_REGISTRY = MappingProxyType({one.name: one for one in (*_LEDGER, *_STATISTIC, *_CONTROL)})


def criteria(ledger: Ledger | None = None) -> tuple[Criterion, ...]:
    """Every criterion: ledger-based ones first, the default leading, then statistics, then controls.

    With a ledger, only those that it and final weights are enough for: it may not have recorded what the
    others need.
    """
    known = tuple(_REGISTRY.values())
    return known if ledger is None else tuple(one for one in known if not one.missing(ledger.accumulators))


def criterion(name: str | Criterion) -> Criterion:
    """The criterion of that name, or the one given; UnknownNameError, with the nearest name, for none."""
    if isinstance(name, Criterion):
        return name
    if not isinstance(name, str):
        raise InvalidValueError(
            "by", expected="the name of a criterion", got=repr(name), remedy=f"pass by={DEFAULT!r}"
        )
    if name not in _REGISTRY:
        raise unknown_name("criterion", name, _REGISTRY)
    return _REGISTRY[name]
