"""`init`: could the weight still be a draw from its initializer? From final weights.

The test of arXiv 2601.15871. The null is the initializer's own distribution (see `initializer`), bent by the
run's decay when a ledger tells it (see `null`). Per dependency the p-value is two-sided and exact; `edges`
pools it over the parameters that form an edge (see `edges`), and each parameter of an edge gets the edge's
p-value and score.

Score = -log p. Where p is too small for a float (a uniform null gives p = 0 beyond its bound) the distance in
standard deviations is added, so that such weights keep their order. "Not distinguishable from the
initializer" is not "expendable": the test says *learned or not*.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradtrace.errors import InvalidValueError
from gradtrace.evidence.definition import Criterion, Finding, Judge, Study
from gradtrace.evidence.edges import blocks_of
from gradtrace.evidence.initializer import Initializer, initializer_of
from gradtrace.evidence.null import Null

__all__ = ["INIT", "judge_init"]

Array: TypeAlias = NDArray[np.float64]

_LEAST = float(np.finfo(np.float64).tiny)


def judge_init(
    study: Study,
    *,
    initializer: Initializer | None = None,
    decay: bool = True,
    edges: Iterable[tuple[str, str]] = (),
) -> Judge:
    """Score and p-value of the null "still as initialized".

    `initializer`: torch's default for each module class when None; else a frozen scipy.stats distribution, or
    a mapping or callable from parameter name to one (None or a missing name: the default). `decay`: let the
    null follow the decay that the ledger recorded; without a ledger nothing is known of it, and the null
    stays as drawn. `edges`: pairs (up, down) of the weights of d -> k*d -> d blocks to pool. Raises
    InvalidValueError, UnknownNameError, MismatchError for these options, UnsupportedError for a decay that
    cannot be replayed.
    """
    if not isinstance(decay, bool | np.bool_):
        raise InvalidValueError("decay", expected="True or False", got=repr(decay))
    initializers, blocks = initializer_of(study, initializer), blocks_of(study, edges)

    def single(name: str) -> tuple[Array, Array]:
        null = Null(initializers[name])
        if decay and study.records is not None:
            null = Null.after_decay(initializers[name], study.records[name].history, name)
        weight = study.weights[name]
        return null.pvalue(weight, study.rounding.get(name, 0.0)), null.distance(weight)

    def judge(name: str) -> Finding:
        if name not in blocks:
            pvalue, distance = single(name)
            return Finding(_surprise(pvalue, distance), pvalue)
        block = blocks[name]
        (p_up, far_up), (p_down, far_down) = single(block.up), single(block.down)
        pvalue = block.pvalue(p_up, p_down)
        surprise = block.pool(_surprise(p_up, far_up), _surprise(p_down, far_down)) / (2 * block.channels)
        return Finding(block.spread(_surprise(pvalue, surprise), name), block.spread(pvalue, name))

    return judge


def _surprise(pvalue: Array, beyond: Array) -> Array:
    # + 0.0 turns the -0.0 of p = 1 into a plain zero.
    logarithm = -np.log(np.maximum(pvalue, _LEAST)) + 0.0
    return np.asarray(np.where(pvalue > _LEAST, logarithm, -np.log(_LEAST) + beyond))


INIT = Criterion(
    name="init",
    kind="statistic",
    description="test that the weight is still a draw from its initializer, per dependency or per edge",
    judging=judge_init,
    has_pvalues=True,
)
