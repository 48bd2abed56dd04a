"""`sign`: an e-value that the gradient's direction is no fair coin, from the votes of windows.

Each window votes with the sign of its sum; under the null of no direction the votes are tosses of a fair
coin. Bet on it with a coin of unknown bias theta ~ Beta(a, a), two-sided by symmetry: with h of m votes
positive,

    e = 2^m B(h + a, m - h + a) / B(a, a),

the mixture martingale of Ville (1939) and Robbins (1970, Annals of Mathematical Statistics 41:1397), in the
beta-binomial form of Howard et al. (2021, arXiv 1810.08240). Its mean under the null is at most 1 at every
stopping time, so it holds whenever training happened to end, and P(e ever >= 1 / alpha) <= alpha: p = 1 / e,
at most 1. Windows vote, not steps: under AR(1) at 0.8 votes of steps gave e > 20 in 15% of null cases.

The ledger holds the sum of the votes V = 2h - m, not m: a window may not have voted. But m is at most
k = min(windows, events), of V's parity, and for given V e falls as m grows; so the largest such m gives an e
no larger than the true one.

Score = |V| / sqrt(m), the votes in standard deviations of a fair coin, 0 without any.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln

from gradtrace.errors import InvalidValueError
from gradtrace.evidence.definition import Criterion, Finding, Judge, Study
from gradtrace.evidence.drift import windows_of

__all__ = ["SIGN", "judge_sign", "log_evalue"]

Array: TypeAlias = NDArray[np.float64]

_LARGEST = math.log(float(np.finfo(np.float64).max))


def judge_sign(study: Study, *, concentration: float = 1.0) -> Judge:
    """Score = |votes| / sqrt(number of votes), with an e-value and p = min(1, 1 / e).

    `concentration` > 0 is a of the Beta(a, a) prior: 1 takes every bias for equally likely, more expects a
    small one. Raises InvalidValueError for what is none, and for a parameter with fewer than two windows.
    """
    number = isinstance(concentration, Real) and not isinstance(concentration, bool)
    if not number or not 0 < concentration < math.inf:
        raise InvalidValueError(
            "concentration",
            expected="a positive number",
            got=repr(concentration),
            remedy="pass e.g. concentration=1.0",
        )

    def judge(name: str) -> Finding:
        most = np.minimum(study.total(name, "events"), windows_of(study, name))
        votes = study.total(name, "window_votes")
        tosses = np.maximum(most - np.mod(most - votes, 2), np.abs(votes))
        logarithm = np.minimum(log_evalue(votes, tosses, concentration), _LARGEST)
        score = np.divide(np.abs(votes), np.sqrt(tosses), out=np.zeros_like(votes), where=tosses > 0)
        return Finding(score, np.exp(-np.maximum(logarithm, 0.0)), np.exp(logarithm))

    return judge


def log_evalue(votes: Array, tosses: Array, concentration: float) -> Array:
    """Log e of `votes` = heads - tails in `tosses`."""
    heads, tails = (tosses + votes) / 2, (tosses - votes) / 2
    return np.asarray(
        tosses * math.log(2)
        + betaln(heads + concentration, tails + concentration)
        - betaln(concentration, concentration)
    )


SIGN = Criterion(
    name="sign",
    kind="ledger",
    description="bet that the windows' gradients do not agree in sign, valid whenever training ends",
    judging=judge_sign,
    needs=("window_votes", "events"),
    whole=(),
    source="Ville 1939; Robbins 1970; Howard et al. 2021 (arXiv 1810.08240)",
    has_pvalues=True,
    has_evalues=True,
)
