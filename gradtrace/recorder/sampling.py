"""Which steps are sampled: a function of the step alone, so that a run and its repetition sample the same.

Source of the mixing function: splitmix64 (Steele, Lea, Flood 2014).
"""

from __future__ import annotations

__all__ = ["drawn", "drawn_in"]

_MASK = 2**64 - 1


def drawn(step: int, stride: int, seed: int = 0) -> bool:
    """Whether `step` is sampled at `stride`, a power of two: with probability 1 / stride, each step apart.

    What is sampled at a stride is sampled at every smaller one too.
    """
    state = (0x9E3779B97F4A7C15 * (step + 1) + 0xD1B54A32D192ED03 * seed) & _MASK
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
    return (state ^ state >> 31) & (stride - 1) == 0


def drawn_in(begin: int, end: int, stride: int) -> int:
    """How many of the steps [begin, end) are sampled."""
    return end - begin if stride == 1 else sum(drawn(step, stride) for step in range(begin, end))
