"""`random`: uniform noise, the control that any criterion must beat."""

from __future__ import annotations

from hashlib import sha256

import numpy as np

from gradtrace.errors import InvalidValueError
from gradtrace.evidence.definition import Criterion, Finding, Judge, Study

__all__ = ["RANDOM", "generator_for", "judge_random"]


def judge_random(study: Study, *, seed: int = 0) -> Judge:
    """Score uniform in [0, 1), a function of `seed`, the parameter's name and shape alone."""
    generator_for(seed, "")
    return lambda name: Finding(generator_for(seed, name).random(study.weights[name].shape))


def generator_for(seed: int, name: str) -> np.random.Generator:
    """A generator for one parameter, the same in every process. InvalidValueError for no seed."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise InvalidValueError(
            "seed", expected="an integer of at least 0", got=repr(seed), remedy="pass e.g. seed=0"
        )
    # hash() differs from process to process; a digest does not.
    digest = int.from_bytes(sha256(name.encode()).digest(), "big")
    return np.random.default_rng([int(seed), digest])


RANDOM = Criterion(
    name="random",
    kind="control",
    description="uniform noise per dependency, the same for the same seed and name",
    judging=judge_random,
)
