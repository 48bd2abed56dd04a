"""`confirm`: which dependencies were learned, with a bound on how many of them were not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradtrace.errors import InvalidValueError
from gradtrace.evidence.calibration import warn_if_off
from gradtrace.evidence.given_scores import (
    by_family,
    checked_arrays,
    checked_evalues,
    checked_pvalues,
    checked_share,
    without_evalues,
    without_pvalues,
)
from gradtrace.evidence.local_fdr import local_discoveries
from gradtrace.evidence.mask import Mask
from gradtrace.evidence.multiplicity import discoveries, evalue_discoveries

if TYPE_CHECKING:
    from gradtrace.evidence.definition import Criterion
    from gradtrace.evidence.score import Scores

__all__ = ["METHODS", "Method", "check_confirmation", "confirm"]

Method: TypeAlias = Literal["local", "bh", "by", "e-bh"]
Decision: TypeAlias = Callable[[Any, float], NDArray[np.bool_]]

METHODS: Mapping[str, Decision] = MappingProxyType(
    {
        "local": local_discoveries,
        "bh": lambda pvalues, q: discoveries(pvalues, q, "bh"),
        "by": lambda pvalues, q: discoveries(pvalues, q, "by"),
        "e-bh": evalue_discoveries,
    }
)


def confirm(
    scores: Scores,
    method: Method = "local",
    q: float = 0.1,
    scope: Literal["layer", "global"] = "layer",
) -> Mask:
    """True where a dependency is confirmed as learned, at a false discovery rate of q in (0, 1].

    `scores` of a test: `drift`, `sign` or `init`. `method`:

    - "local": local false discovery rate with a null fitted to each family (see `local_fdr`), the working
      tool: it corrects a test that is too eager for a whole layer.
    - "bh": Benjamini-Hochberg, for tests that are independent or positively dependent.
    - "by": Benjamini-Yekutieli, a certificate under any dependence.
    - "e-bh": a certificate under any dependence from e-values (`sign`), whenever training ended.

    `scope`: one family of tests for every parameter, or one for all. "Not confirmed" is not "expendable":
    a mask of what matters comes from `select`. Where the run recorded decoys and they say that the null of
    `drift` is off, a warning is logged.

    Raises InvalidValueError for arguments out of range, and for scores without the p-values or e-values that
    the method needs.
    """
    check_method(method)
    if scope not in ("layer", "global"):
        raise InvalidValueError("scope", expected="one of layer, global", got=repr(scope))
    rate = checked_share("q", q, "q=0.1")
    arrays = checked_arrays(scores, "scores")
    checked = checked_evalues if method == "e-bh" else checked_pvalues
    evidence = checked(scores, arrays, f"method={method!r}")
    found = by_family(evidence, scope, lambda family: METHODS[method](family, rate))
    provenance: dict[str, Any] = dict(getattr(scores, "provenance", None) or {})
    warn_if_off(provenance.get("calibration"))
    return Mask(found, provenance | {"confirmation": {"method": method, "q": rate, "scope": scope}})


def check_method(method: object) -> None:
    """Raise InvalidValueError for what is no method."""
    if method not in tuple(METHODS):
        raise InvalidValueError("method", expected=f"one of {', '.join(METHODS)}", got=repr(method))


def check_confirmation(test: Criterion, method: Method, q: float) -> None:
    """Raise InvalidValueError for a method or rate that are none, and for a test without what it needs."""
    check_method(method)
    checked_share("q", q, "q=0.1")
    what = f"method={method!r}"
    if method == "e-bh" and not test.has_evalues:
        raise without_evalues(what)
    if method != "e-bh" and not test.has_pvalues:
        raise without_pvalues(what)
