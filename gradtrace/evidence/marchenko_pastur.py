"""`marchenko-pastur`: |w| of the part of a weight matrix that is no noise, by its singular values.

A matrix of m x n independent entries of variance s^2 has its singular values within s (sqrt(m) -+ sqrt(n)),
as it grows (Marchenko and Pastur 1967). The largest, squared over s^2, fluctuates around

    mu = (sqrt(m - 1) + sqrt(n))^2  by  (sqrt(m - 1) + sqrt(n)) (1 / sqrt(m - 1) + 1 / sqrt(n))^(1/3)

as Tracy and Widom's law of order 1 (Johnstone 2001, Annals of Statistics 29:295; m >= n, as the larger side),
whose 95% point is 0.9793. Singular values beyond that are signal, and the score is |Sum s_k u_k v_k^T| over
them, entry by entry. Pruning what lies inside: Berlyand et al. 2023, arXiv 2310.03165; random matrix view of
trained weights: Martin and Mahoney 2021, arXiv 1810.01075. A parameter of more dimensions is seen as
(shape[0], everything else). A parameter without any signal scores 0 throughout: this criterion says nothing
of it.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import svd

from gradtrace.errors import InvalidValueError
from gradtrace.evidence.definition import Criterion, Finding, Judge, Study
from gradtrace.evidence.reference import Reference, nulls_of

__all__ = ["MARCHENKO_PASTUR", "judge_marchenko_pastur", "noise_of", "signal_edge"]

Array: TypeAlias = NDArray[np.float64]

_TRACY_WIDOM_95 = 0.9793


def judge_marchenko_pastur(
    study: Study,
    *,
    noise: Literal["initializer", "estimated"] = "initializer",
    initializer: Reference | None = None,
    decay: bool = True,
) -> Judge:
    """Score = |reconstruction from the singular values beyond the noise's|.

    `noise`: "initializer" takes the standard deviation of the initializer, with `initializer` and `decay` as
    for `init`; "estimated" takes it from the median singular value (Gavish and Donoho 2014, arXiv 1305.5870),
    whatever the initializer was. Raises InvalidValueError for another `noise`, and what `init` raises for the
    other options.
    """
    if noise not in ("initializer", "estimated"):
        raise InvalidValueError("noise", expected="'initializer' or 'estimated'", got=repr(noise))
    if not isinstance(decay, bool | np.bool_):
        raise InvalidValueError("decay", expected="True or False", got=repr(decay))
    null = nulls_of(study, initializer, decay=bool(decay))

    def judge(name: str) -> Finding:
        shape = study.weights[name].shape
        matrix = study.weight(name).reshape(shape[0], math.prod(shape[1:]))
        if matrix.size == 0:
            return Finding(np.zeros(shape))
        left, values, right = svd(matrix, full_matrices=False)
        deviation = null(name).spread if noise == "initializer" else noise_of(values, matrix.shape)
        out = values > signal_edge(deviation, matrix.shape)
        return Finding(np.abs((left[:, out] * values[out]) @ right[out]).reshape(shape))

    return judge


def signal_edge(deviation: float, shape: tuple[int, int]) -> float:
    """The singular value that pure noise of this standard deviation exceeds once in 20 matrices."""
    wide, tall = sorted(shape)
    first, second = math.sqrt(max(tall - 1, 1)), math.sqrt(wide)
    fluctuation = (first + second) * (1 / first + 1 / second) ** (1 / 3)
    return deviation * math.sqrt((first + second) ** 2 + _TRACY_WIDOM_95 * fluctuation)


def noise_of(values: Array, shape: tuple[int, int]) -> float:
    """Standard deviation of the entries, from the median singular value: median / sqrt(n mu_beta).

    mu_beta is the median of the Marchenko-Pastur law of ratio beta, n the larger side.
    """
    wide, tall = sorted(shape)
    return float(np.median(values)) / math.sqrt(tall * _median(wide / tall))


def _median(beta: float) -> float:
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2
    # x = middle - half cos(a) takes the square roots at both ends out of the density, so even steps do.
    angles = (np.arange(20000) + 0.5) * (math.pi / 20000)
    middle, half = (low + high) / 2, (high - low) / 2
    x = middle - half * np.cos(angles)
    mass = np.cumsum((half * np.sin(angles)) ** 2 / x)
    return float(np.interp(0.5, mass / mass[-1], x))


MARCHENKO_PASTUR = Criterion(
    name="marchenko-pastur",
    kind="statistic",
    description="size of the weight in the low-rank part that stands out of the initializer's noise",
    judging=judge_marchenko_pastur,
    source="Marchenko and Pastur 1967; Johnstone 2001; Berlyand et al. 2023 (arXiv 2310.03165)",
)
