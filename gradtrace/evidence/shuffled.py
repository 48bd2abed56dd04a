"""`shuffled`: another criterion's scores, permuted within each parameter: the control any claim must beat.

A mask made of them has the density per layer that the other criterion's mask has, and nothing else of it; so
what the other gains over it is owed to *which* dependencies it keeps, not to how many in which layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradtrace.errors import InvalidValueError
from gradtrace.evidence.definition import Criterion, Finding, Judge, Study
from gradtrace.evidence.granularity import GRANULARITIES, Blocks
from gradtrace.evidence.random import generator_for

__all__ = ["SHUFFLED", "judge_shuffled"]


def judge_shuffled(
    study: Study,
    *,
    of: str | Criterion | None = None,
    options: Mapping[str, Any] | None = None,
    granularity: str = "element",
    seed: int = 0,
) -> Judge:
    """Score = the score by `of`, with its `options`, of another dependency of the same parameter.

    `of`: None takes the default criterion where there is a ledger, magnitude where there is none. Pass the
    `granularity` that `select` will get: whole units are permuted then, each by its mean score. Raises what
    the other criterion raises, and InvalidValueError for these options.
    """
    # The registry holds this criterion, so it cannot be there while this file is read.
    from gradtrace.evidence.criterion import DEFAULT, criterion

    name_of = of if of is not None else "magnitude" if study.records is None else DEFAULT
    if name_of in (SHUFFLED, SHUFFLED.name):
        raise InvalidValueError("of", expected="another criterion than 'shuffled'", got=repr(of))
    if granularity not in tuple(GRANULARITIES):
        raise InvalidValueError(
            "granularity", expected=f"one of {', '.join(GRANULARITIES)}", got=repr(granularity)
        )
    if options is not None and not isinstance(options, Mapping):
        raise InvalidValueError("options", expected="a mapping of the other's options", got=repr(options))
    generator_for(seed, "")  # so that a wrong seed is told before the scores are waited for
    other = criterion(name_of).judge(study, options or {})

    def judge(name: str) -> Finding:
        score = other(name).score
        blocks = Blocks.of(score.shape, granularity)
        # Not the draws of `random`: it is to be another control.
        means = generator_for(seed, f"shuffled {name}").permutation(blocks.means(score))
        return Finding(blocks.spread(means))

    return judge


SHUFFLED = Criterion(
    name="shuffled",
    kind="control",
    description="another criterion's scores, permuted within each parameter",
    judging=judge_shuffled,
    across=("options",),
)
