"""Brings weights and ledger together: which parameters are scored, or why they do not fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradtrace.errors import InvalidValueError, MismatchError
from gradtrace.evidence.definition import Study
from gradtrace.evidence.stored_weights import StoredWeights, check_finite
from gradtrace.evidence.weights import Weights

if TYPE_CHECKING:
    from gradtrace.ledger.reader import Ledger, ParameterRecord

__all__ = ["study_of"]

_THIS_RUN = "pass the weights of the model that this ledger recorded"


def study_of(ledger: Ledger | None, weights: Weights) -> Study:
    """Every parameter of at least two dimensions: of the ledger, under its names, or of the weights.

    Raises MismatchError where the ledger's parameters are missing or of another shape, InvalidValueError for
    weights that are not finite or when there is nothing to score.
    """
    if ledger is None:
        chosen, records = {name: name for name in weights.arrays}, None
    else:
        chosen, records = _matched(ledger, weights), dict(ledger.items())
    shapes = weights.shapes
    chosen = {name: own for name, own in chosen.items() if len(shapes[own]) >= 2}
    arrays: Mapping[str, NDArray[np.floating[Any]]]
    if isinstance(weights.arrays, StoredWeights):
        arrays = weights.arrays.chosen(chosen)
    else:
        arrays = {name: weights.arrays[own] for name, own in chosen.items()}
        for name, array in arrays.items():
            check_finite(name, array)
    if not arrays:
        raise InvalidValueError(
            "weights",
            expected="a floating-point parameter of at least two dimensions",
            got="none among " + _some(list(weights.arrays)),
        )
    return Study(
        weights=arrays,
        records=None if records is None else {name: records[name] for name in arrays},
        classes={name: _class(name, chosen[name], weights, records) for name in arrays},
        rounding={name: weights.rounding[chosen[name]] for name in arrays},
        accumulators=frozenset() if ledger is None else frozenset(ledger.accumulators),
        inputs=getattr(ledger, "inputs", {}),
    )


def _matched(ledger: Ledger, weights: Weights) -> dict[str, str]:
    """Ledger name -> name in the weights, for every parameter that both have."""
    shapes = {name: tuple(record.shape) for name, record in ledger.items()}
    own = {name: weights.find(name, *record.info.aliases) for name, record in ledger.items()}
    found = {name: match for name, match in own.items() if match is not None}
    missing = [name for name, shape in shapes.items() if len(shape) >= 2 and name not in found]
    if missing:
        what = f"weights lack {len(missing)} of the {len(shapes)} parameters of the ledger"
        if not found:
            what = "ledger and weights have no parameter name in common"
        raise MismatchError(
            what,
            expected=_some([f"{name} {shapes[name]}" for name in missing], quote=False),
            got=_some([name for name in weights.arrays if name not in found.values()]),
            remedy=_remedy(missing, weights),
        )
    given = weights.shapes
    wrong = [name for name, match in found.items() if given[match] != shapes[name]]
    if wrong:
        first = wrong[0]
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise MismatchError(
            f"parameter {first!r} has another shape than in the ledger{more}",
            expected=str(shapes[first]),
            got=str(given[found[first]]),
            remedy=_THIS_RUN,
        )
    return found


def _remedy(missing: list[str], weights: Weights) -> str:
    # A wrapped or an inner module differs by a prefix on every name: say which, rather than guess.
    for name in weights.arrays:
        for wanted in missing:
            if name.endswith(f".{wanted}"):
                prefix = name.removesuffix(wanted)
                if all(weights.find(prefix + other) for other in missing):
                    return f"pass the module at {prefix[:-1]!r}, or remove {prefix!r} from every name"
            if wanted.endswith(f".{name}"):
                prefix = wanted.removesuffix(name)
                if all(
                    other.startswith(prefix) and weights.find(other.removeprefix(prefix)) for other in missing
                ):
                    return (
                        f"pass the module that calls it {prefix[:-1]!r}, or put {prefix!r} before every name"
                    )
    return _THIS_RUN


def _class(
    name: str, own: str, weights: Weights, records: Mapping[str, ParameterRecord] | None
) -> tuple[str, ...]:
    # The model also knows the base classes of a class that only its author knows.
    recorded = (
        () if records is None or not records[name].info.module_class else (records[name].info.module_class,)
    )
    return recorded + weights.classes.get(own, ())


def _some(names: list[str], *, quote: bool = True) -> str:
    shown = [repr(name) if quote else name for name in names[:3]]
    if len(names) > 3:
        shown.append(f"and {len(names) - 3} more")
    return ", ".join(shown) or "no other name"
