"""`random`: uniform noise, the control that any criterion must beat."""

from __future__ import annotations

from hashlib import sha256

import numpy as np

from gradtrace.errors import InvalidValueError
from gradtrace.evidence.definition import Criterion, Finding, Judge, Study

__all__ = ["RANDOM", "judge_random"]


def judge_random(study: Study, *, seed: int = 0) -> Judge:
    """Score uniform in [0, 1), a function of `seed`, the parameter's name and shape alone."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise InvalidValueError(
            "seed", expected="an integer of at least 0", got=repr(seed), remedy="pass e.g. seed=0"
        )

    def judge(name: str) -> Finding:
        # hash() differs from process to process; a digest does not.
        digest = int.from_bytes(sha256(name.encode()).digest(), "big")
        generator = np.random.default_rng([int(seed), digest])
        return Finding(generator.random(study.weights[name].shape))

    return judge


RANDOM = Criterion(
    name="random",
    kind="control",
    description="uniform noise per dependency, the same for the same seed and name",
    judging=judge_random,
)
