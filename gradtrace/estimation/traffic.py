"""What serving costs a year: so many items, at so many seconds each, on machines at so much an hour."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradtrace.errors import InvalidValueError

__all__ = ["Traffic"]

_HOURS = 365.25 * 24


@dataclass(frozen=True)
class Traffic:
    """`items_per_second` on average over the year, `price_per_hour` of one machine like this.

    A machine answers one call at a time, and is paid for while it does: idle machines cost nothing here.

    Raises:
        InvalidValueError: a figure that is not finite or below zero.
    """

    items_per_second: float
    price_per_hour: float

    def __post_init__(self) -> None:
        for name in ("items_per_second", "price_per_hour"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value < 0:
                raise InvalidValueError(name, expected="a finite number of at least 0", got=repr(value))
            object.__setattr__(self, name, float(value))

    def yearly(self, seconds_per_item: float) -> float:
        """Machines busy at once, times their price, times the hours of a year."""
        return self.items_per_second * seconds_per_item * self.price_per_hour * _HOURS
