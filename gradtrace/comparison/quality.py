"""A quality that somebody's function returned: one finite number, or an error that names the function."""

from __future__ import annotations

from gradtrace.errors import InvalidValueError

__all__ = ["checked_quality"]


def checked_quality(value: object, what: str, call: str) -> float:
    """The number in `value`, larger = better; `what` and `call` name option and function in the error.

    Raises InvalidValueError for what is no number, and for NaN and infinity.
    """
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidValueError(what, expected=f"{call} to return a number", got=repr(value)[:80]) from error
    if number != number or number in (float("inf"), float("-inf")):
        raise InvalidValueError(what, expected=f"{call} to return a finite number", got=repr(number))
    return number
