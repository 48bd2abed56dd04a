"""`score`: one number per dependency, larger = better supported, by a named criterion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradtrace import __version__
from gradtrace.errors import InvalidValueError
from gradtrace.evidence.calibration import calibration
from gradtrace.evidence.criterion import DEFAULT, Criterion, criterion
from gradtrace.evidence.matching import study_of
from gradtrace.evidence.named_arrays import NamedArrays
from gradtrace.evidence.same_run import check_same_run
from gradtrace.evidence.weights import read_weights

if TYPE_CHECKING:
    from gradtrace.ledger.reader import Ledger

__all__ = ["DEFAULT", "Scores", "check_ledger", "check_scores", "score", "scores_provenance"]


class Scores(NamedArrays[np.float64]):
    """Parameter name -> float64 scores of the parameter's shape, with where they come from. Read-only.

    `pvalues` has the same names and shapes, or is None for a criterion that is no test; so has `evalues`, for
    a criterion that gives e-values. `provenance` is JSON: criterion, kind, options, run_id and steps of the
    ledger (None without one), library_version; of drift where decoys were recorded also calibration.
    """

    def __init__(
        self,
        scores: Mapping[str, NDArray[np.float64]],
        pvalues: Mapping[str, NDArray[np.float64]] | None = None,
        provenance: Mapping[str, Any] | None = None,
        evalues: Mapping[str, NDArray[np.float64]] | None = None,
    ) -> None:
        super().__init__(scores)
        self.pvalues = None if pvalues is None else NamedArrays(pvalues)
        self.evalues = None if evalues is None else NamedArrays(evalues)
        self.provenance: dict[str, Any] = dict(provenance or {})


def score(ledger: Ledger | None, weights: object, by: str | Criterion = DEFAULT, **options: Any) -> Scores:
    """Score every parameter of at least two dimensions; see `criteria()` for the names and their options.

    `ledger` may be None for criteria of kind "statistic" and "control"; where one is given, exactly its
    parameters are scored, whatever the criterion, so that criteria can be compared. `by` may also be a
    Criterion of your own. `weights` is an nn.Module, a
    mapping from name to tensor or array, or the path of a safetensors file; all scores are computed now, so
    later changes to the model do not reach them.

    Raises UnknownNameError for a criterion or option that does not exist and for an accumulator that was not
    recorded, InvalidValueError for a missing ledger, for weights that are not finite and for options out of
    range, MismatchError for a ledger of another model or of another run (see `same_run`), StateError for a
    ledger that does not tell the decay, and UnsupportedError for tensors without readable values or a weight
    decay that cannot be replayed.
    """
    chosen = criterion(by)
    check_ledger(ledger)
    study = study_of(ledger, read_weights(weights))
    judge = chosen.judge(study, options)
    if ledger is not None and chosen.kind == "ledger":
        check_same_run(study, ledger)
    scores, pvalues, evalues = {}, {}, {}
    for name in study.weights:
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below, by name
            finding = judge(name)
        check_scores(name, finding.score, chosen.name)
        scores[name] = finding.score
        if finding.pvalue is not None:
            pvalues[name] = np.asarray(finding.pvalue)
        if finding.evalue is not None:
            evalues[name] = finding.evalue
    return Scores(
        scores,
        pvalues if chosen.has_pvalues else None,
        scores_provenance(chosen, options, ledger, list(scores)),
        evalues if chosen.has_evalues else None,
    )


def scores_provenance(
    criterion: Criterion, options: Mapping[str, Any], ledger: Ledger | None, names: Sequence[str]
) -> dict[str, Any]:
    """Where the scores of these parameters come from, as JSON; of drift with its calibration, if recorded."""
    provenance: dict[str, Any] = {
        "criterion": criterion.name,
        "kind": criterion.kind,
        "options": {name: _described(value) for name, value in {**criterion.options, **options}.items()},
        "run_id": None if ledger is None else ledger.run_id,
        "steps": None if ledger is None else ledger.steps,
        "library_version": __version__,
    }
    if ledger is not None and criterion.name == "drift" and "decoy_sum" in ledger.accumulators:
        provenance["calibration"] = calibration(ledger, list(names)).to_json()
    return provenance


def check_scores(name: str, scores: NDArray[np.float64], by: str) -> None:
    """Raise InvalidValueError for scores of a parameter that are not finite."""
    if not np.isfinite(scores).all():
        raise InvalidValueError(
            f"scores of {name!r} by {by!r}",
            expected="finite numbers",
            got="NaN or infinity, from sums or a decay that overflowed",
            remedy="use another criterion",
        )


def check_ledger(ledger: Ledger | None) -> None:
    """Raise InvalidValueError for what is neither a ledger nor None."""
    if ledger is not None and (not isinstance(ledger, Mapping) or not hasattr(ledger, "run_id")):
        raise InvalidValueError(
            "ledger",
            expected="a Ledger or None",
            got=type(ledger).__name__,
            remedy="open one with gradtrace.Ledger.open(path)",
        )


def _described(value: Any) -> Any:
    """An option as JSON: what is none by itself (a distribution, a function) by its name."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): _described(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_described(one) for one in value]
    if isinstance(value, Criterion):
        return value.name
    if hasattr(value, "shape"):
        return f"array of shape {tuple(value.shape)}"
    family = getattr(value, "dist", None)
    if family is not None:
        given = [*value.args, *(f"{key}={one}" for key, one in value.kwds.items())]
        return f"{family.name}({', '.join(str(one) for one in given)})"
    return str(getattr(value, "__qualname__", type(value).__name__))
