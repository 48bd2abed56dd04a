"""`init`: could the weight still be a draw from its initializer? From final weights.

The test of arXiv 2601.15871. The null is the initializer's own distribution, known, taken from the ledger's
opening balance or estimated (see `reference`), bent by the run's decay when a ledger tells it (see `null`).

- test="distance": per dependency the p-value is two-sided and exact, P(|W - c| >= |w - c|). Over the
  parameters of an edge (see `edges`) or of a tile it is pooled by Fisher's method.
- test="ks": the Kolmogorov-Smirnov test of an edge's or a tile's weights together (see `kolmogorov`), each at
  its place in its own null's distribution function. It also sees weights that are too alike or on one side.

Each parameter of an edge or a tile gets the p-value and the score of the whole. Score = -log p. Where p is
too small for a float (a uniform null gives p = 0 beyond its bound) the distance in standard deviations is
added, so that such weights keep their order. "Not distinguishable from the initializer" is not "expendable":
the test says *learned or not*.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradtrace.errors import InvalidValueError
from gradtrace.evidence.definition import Criterion, Finding, Judge, Study
from gradtrace.evidence.edges import blocks_of
from gradtrace.evidence.pooling import Pool, pool_of
from gradtrace.evidence.reference import Reference, nulls_of

__all__ = ["INIT", "judge_init"]

Array: TypeAlias = NDArray[np.float64]

_LEAST = float(np.finfo(np.float64).tiny)


def judge_init(
    study: Study,
    *,
    initializer: Reference | None = None,
    decay: bool = True,
    edges: Iterable[tuple[str, str]] = (),
    per: Literal["dependency", "tile"] = "dependency",
    test: Literal["distance", "ks"] = "distance",
) -> Judge:
    """Score and p-value of the null "still as initialized".

    `initializer`: torch's default for each module class when None; else a frozen scipy.stats distribution, or
    a mapping or callable from parameter name to one (None or a missing name: the default); or "opening" or
    "estimated". `decay`: let the null follow the decay that the ledger recorded; without a ledger nothing is
    known of it, and the null stays as drawn. `edges`: pairs (up, down) of the weights of d -> k*d -> d blocks
    to pool; `per`: what is tested elsewhere, single dependencies or 16 x 16 tiles. Raises InvalidValueError,
    UnknownNameError, MismatchError for these options, UnsupportedError for a decay that cannot be replayed,
    StateError for a ledger that does not tell it.
    """
    if not isinstance(decay, bool | np.bool_):
        raise InvalidValueError("decay", expected="True or False", got=repr(decay))
    if per not in ("dependency", "tile"):
        raise InvalidValueError("per", expected="'dependency' or 'tile'", got=repr(per))
    if test not in ("distance", "ks"):
        raise InvalidValueError("test", expected="'distance' or 'ks'", got=repr(test))
    nulls, blocks = nulls_of(study, initializer, decay=bool(decay)), blocks_of(study, edges)

    def distance(pool: Pool) -> tuple[Array, Array]:
        parts = [nulls(name) for name in pool.names]
        weights = [study.weights[name] for name in pool.names]
        rounding = [study.rounding.get(name, 0.0) for name in pool.names]
        pvalues = [n.pvalue(w, r) for n, w, r in zip(parts, weights, rounding, strict=True)]
        beyond = [n.distance(w) for n, w in zip(parts, weights, strict=True)]
        if pool.single:
            return pvalues[0], beyond[0]
        surprises = [_surprise(p, far) for p, far in zip(pvalues, beyond, strict=True)]
        return pool.fisher(pvalues), pool.mean(surprises)

    def judge(name: str) -> Finding:
        pool = pool_of(name, study.weights[name].shape, blocks, per)
        if test == "ks":
            pvalue, beyond = pool.kolmogorov(
                [nulls(one) for one in pool.names], [study.weights[one] for one in pool.names]
            )
        else:
            pvalue, beyond = distance(pool)
        return Finding(pool.spread(_surprise(pvalue, beyond), name), pool.spread(pvalue, name))

    return judge


def _surprise(pvalue: Array, beyond: Array) -> Array:
    # + 0.0 turns the -0.0 of p = 1 into a plain zero.
    logarithm = -np.log(np.maximum(pvalue, _LEAST)) + 0.0
    return np.asarray(np.where(pvalue > _LEAST, logarithm, -np.log(_LEAST) + beyond))


INIT = Criterion(
    name="init",
    kind="statistic",
    description="test that the weight is still a draw from its initializer, per dependency, edge or tile",
    judging=judge_init,
    source="arXiv 2601.15871; Fisher 1925; Kolmogorov 1933",
    has_pvalues=True,
    across=("edges", "initializer"),
)
