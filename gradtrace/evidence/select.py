"""`select`: from scores to a mask, by density or by false discovery rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradtrace.errors import InvalidValueError
from gradtrace.evidence.granularity import GRANULARITIES, Blocks
from gradtrace.evidence.mask import Mask
from gradtrace.evidence.multiplicity import discoveries
from gradtrace.evidence.weights import as_array

__all__ = ["select"]

Array: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]

SCOPES = ("layer", "global")


def select(
    scores: Mapping[str, Any],
    density: float | None = None,
    fdr: float | None = None,
    scope: str = "layer",
    granularity: str = "element",
) -> Mask:
    """Keep the best-supported dependencies. Any mapping from name to array serves as `scores`.

    `density` in (0, 1]: the share kept, of every parameter (scope "layer") or of all together ("global").
    Elements are kept in exact number, round(density * size), a half to the even side. "tile" (16 x 16) and
    "rows" (64 consecutive outputs share one input set) keep whole units, best mean score first, as many as
    come nearest to that number of elements (the fewer of two), but at least one unless that number is 0.
    Among equal scores a fixed shuffle decides: the same at every call, and a mask at a lower density lies
    within one at a higher.

    `fdr` in (0, 1]: keep what Benjamini-Hochberg rejects at that rate, on the p-values of every parameter, or
    of all together; only elements, and only for criteria that are tests.

    Raises InvalidValueError for arguments out of range, for both or neither of density and fdr, for scores
    that are not finite, for p-values that are none or do not fit the scores, and for no scores at all.
    """
    if scope not in SCOPES:
        raise InvalidValueError("scope", expected=f"one of {', '.join(SCOPES)}", got=repr(scope))
    if granularity not in tuple(GRANULARITIES):  # a tuple, which unlike a dict can be asked for anything
        raise InvalidValueError(
            "granularity", expected=f"one of {', '.join(GRANULARITIES)}", got=repr(granularity)
        )
    if (density is None) == (fdr is None):
        raise InvalidValueError(
            "density and fdr",
            expected="exactly one of them",
            got="neither" if density is None else "both",
            remedy="pass e.g. density=0.3, or fdr=0.01 for a criterion with p-values",
        )
    arrays = _checked(scores, "scores")
    if density is not None:
        density = _share("density", density, "density=0.3")
        kept = _by_density(arrays, density, scope, granularity)
    else:
        fdr = _share("fdr", fdr, "fdr=0.01")
        kept = _by_fdr(_pvalues(scores, arrays), fdr, scope, granularity)
    selection = {"density": density, "fdr": fdr, "scope": scope, "granularity": granularity}
    return Mask(kept, {**dict(getattr(scores, "provenance", None) or {}), "selection": selection})


def _by_density(
    arrays: Mapping[str, Array], density: float, scope: str, granularity: str
) -> dict[str, Bools]:
    blocks = {name: Blocks.of(array.shape, granularity) for name, array in arrays.items()}
    means = {name: blocks[name].means(array) for name, array in arrays.items()}
    if scope == "layer":
        units = {name: _best(means[name], blocks[name].sizes, density) for name in arrays}
    else:
        sizes = np.concatenate([blocks[name].sizes for name in arrays])
        units = _parted(_best(np.concatenate(list(means.values())), sizes, density), means)
    return {name: blocks[name].spread(units[name]) for name in arrays}


def _best(means: Array, sizes: NDArray[np.int64], density: float) -> Bools:
    """True for the units kept, best first, until their elements come nearest to round(density * all)."""
    target = round(density * int(sizes.sum()))
    # Counts tie by the thousand, and the order of their indices is no neutral judge: it would keep the first
    # rows of a layer and drop the last.
    shuffled = np.random.default_rng(0).permutation(len(means))
    order = shuffled[np.argsort(-means[shuffled], kind="stable")]
    reached = np.cumsum(sizes[order])
    below = int(np.searchsorted(reached, target, side="right"))
    got = int(reached[below - 1]) if below else 0
    if below < len(order) and target > 0 and (below == 0 or reached[below] - target < target - got):
        below += 1
    kept = np.zeros(len(means), np.bool_)
    kept[order[:below]] = True
    return kept


def _by_fdr(pvalues: Mapping[str, Array], fdr: float, scope: str, granularity: str) -> dict[str, Bools]:
    if granularity != "element":
        raise InvalidValueError(
            "granularity",
            expected="'element' with fdr",
            got=repr(granularity),
            remedy="select by density for larger units: their p-values are those of elements",
        )
    if scope == "layer":
        return {name: discoveries(one, fdr) for name, one in pvalues.items()}
    flat = {name: one.ravel() for name, one in pvalues.items()}
    parted = _parted(discoveries(np.concatenate(list(flat.values())), fdr), flat)
    return {name: parted[name].reshape(one.shape) for name, one in pvalues.items()}


def _pvalues(scores: Mapping[str, Any], arrays: Mapping[str, Array]) -> dict[str, Array]:
    given = getattr(scores, "pvalues", None)
    if given is None:
        raise InvalidValueError(
            "fdr",
            expected="scores with p-values",
            got="scores of a criterion that is no test",
            remedy="score with by='init', or pass density",
        )
    pvalues = _checked(given, "pvalues")
    if {name: one.shape for name, one in pvalues.items()} != {
        name: one.shape for name, one in arrays.items()
    }:
        raise InvalidValueError("pvalues", expected="the names and shapes of the scores", got="others")
    for name, one in pvalues.items():
        if one.size and not 0 <= one.min() <= one.max() <= 1:
            raise InvalidValueError(
                f"pvalues[{name!r}]", expected="numbers in [0, 1]", got=f"{one.min():g} to {one.max():g}"
            )
    return pvalues


def _parted(together: Bools, like: Mapping[str, Array]) -> dict[str, Bools]:
    ends = np.cumsum([len(one) for one in like.values()])
    return dict(zip(like, np.split(together, ends[:-1]), strict=True))


def _share(name: str, value: object, example: str) -> float:
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not 0 < number <= 1:
        raise InvalidValueError(
            name, expected="a number in (0, 1]", got=repr(value), remedy=f"pass e.g. {example}"
        )
    return number


def _checked(scores: object, what: str) -> dict[str, Array]:
    remedy = "pass what gradtrace.score returns"
    if not isinstance(scores, Mapping):
        raise InvalidValueError(
            what, expected="a mapping from name to array", got=type(scores).__name__, remedy=remedy
        )
    if not scores:
        raise InvalidValueError(what, expected="at least one parameter", got="none", remedy=remedy)
    arrays = {}
    for name, value in scores.items():
        array = np.asarray(as_array(value, f"{what}[{name!r}]"), np.float64)
        if not np.isfinite(array).all():
            raise InvalidValueError(
                f"{what}[{name!r}]",
                expected="finite numbers",
                got=f"{array.size - int(np.isfinite(array).sum())} of {array.size} NaN or infinite",
            )
        arrays[name] = array
    return arrays
