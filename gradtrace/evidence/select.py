"""`select`: from scores to a mask, by density or by false discovery rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradtrace.errors import InvalidValueError
from gradtrace.evidence.given_scores import (
    by_family,
    checked_arrays,
    checked_pvalues,
    checked_share,
    parted,
)
from gradtrace.evidence.granularity import GRANULARITIES, Blocks
from gradtrace.evidence.mask import Mask
from gradtrace.evidence.multiplicity import discoveries
from gradtrace.evidence.selection import best_elements

__all__ = ["best_of", "check_selection", "select"]

Array: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]

SCOPES = ("layer", "row", "global")


def select(
    scores: Mapping[str, Any],
    density: float | None = None,
    fdr: float | None = None,
    scope: str = "layer",
    granularity: str = "element",
) -> Mask:
    """Keep the best-supported dependencies. Any mapping from name to array serves as `scores`.

    `density` in (0, 1]: the share kept, of every parameter (scope "layer"), of every row of one, that is of
    everything at one index of the first dimension ("row", elements only), or of all together ("global").
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
    check_selection(density, fdr, scope, granularity)
    arrays = checked_arrays(scores, "scores")
    kept: Mapping[str, Bools]
    if density is not None:
        density = checked_share("density", density, "density=0.3")
        kept = _by_density(arrays, density, scope, granularity)
    else:
        rate = fdr = checked_share("fdr", fdr, "fdr=0.01")
        pvalues = checked_pvalues(scores, arrays, "fdr")
        kept = by_family(pvalues, scope, lambda family: discoveries(family, rate))
    selection = {"density": density, "fdr": fdr, "scope": scope, "granularity": granularity}
    return Mask(kept, {**dict(getattr(scores, "provenance", None) or {}), "selection": selection})


def check_selection(
    density: float | None, fdr: float | None, scope: str = "layer", granularity: str = "element"
) -> None:
    """Raise InvalidValueError for arguments of `select` that do not go together."""
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
    if fdr is not None and (granularity != "element" or scope == "row"):
        raise InvalidValueError(
            "scope" if scope == "row" else "granularity",
            expected="'layer' or 'global' with fdr" if scope == "row" else "'element' with fdr",
            got=repr(scope if scope == "row" else granularity),
            remedy="select by density for other units: the p-values are those of elements in a layer",
        )
    if scope == "row" and granularity != "element":
        raise InvalidValueError("granularity", expected="'element' with scope='row'", got=repr(granularity))


def best_of(scores: Array, density: float, scope: str, granularity: str) -> Bools:
    """What `select` keeps of one parameter; not for the scope "global"."""
    return _by_density({"": scores}, density, scope, granularity)[""]


def _by_density(
    arrays: Mapping[str, Array], density: float, scope: str, granularity: str
) -> dict[str, Bools]:
    if scope == "row":
        return {name: _best_of_rows(array, density) for name, array in arrays.items()}
    if scope == "layer" and granularity == "element":
        return {
            name: best_elements(array.ravel(), round(density * array.size)).reshape(array.shape)
            for name, array in arrays.items()
        }
    blocks = {name: Blocks.of(array.shape, granularity) for name, array in arrays.items()}
    means = {name: blocks[name].means(array) for name, array in arrays.items()}
    if scope == "layer":
        units = {name: _best(means[name], blocks[name].sizes, density) for name in arrays}
    else:
        sizes = np.concatenate([blocks[name].sizes for name in arrays])
        units = parted(_best(np.concatenate(list(means.values())), sizes, density), means)
    return {name: blocks[name].spread(units[name]) for name in arrays}


def _best_of_rows(array: Array, density: float) -> Bools:
    """True for round(density * row size) of every row, best first; ties as in `_best`."""
    rows, size = (array.shape[0] if array.ndim else 1), array.size
    wide = size // rows if rows else 0
    place = np.empty(size, np.int64)
    place[np.random.default_rng(0).permutation(size)] = np.arange(size)
    order = np.lexsort((place, -array.ravel(), np.repeat(np.arange(rows), wide)))
    kept = np.zeros(size, np.bool_)
    kept[order.reshape(rows, wide)[:, : round(density * wide)]] = True
    return kept.reshape(array.shape)


def _best(means: Array, sizes: NDArray[np.int64], density: float) -> Bools:
    """True for the units kept, best first, until their elements come nearest to round(density * all)."""
    total = int(sizes.sum())
    target = round(density * total)
    if total == len(sizes):
        return best_elements(means, target)
    # Ties as in `best_elements`.
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
