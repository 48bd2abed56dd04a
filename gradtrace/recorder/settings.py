"""What a recorder can be told, checked before anything else happens."""

from __future__ import annotations

from typing import Literal, TypeAlias

from gradtrace.errors import InvalidValueError

__all__ = [
    "Mode",
    "OnError",
    "check_on_error",
    "check_planned_steps",
    "check_settings",
    "check_switch",
]

Mode: TypeAlias = Literal["append", "overwrite"] | None
OnError: TypeAlias = Literal["raise", "warn"]


def check_settings(window_steps: int, entry_steps: int, threshold: float, mode: str | None) -> None:
    """Raise an InvalidValueError for settings that no recorder could follow."""
    if not _is_whole(window_steps) or not 1 <= window_steps <= 32767:
        raise InvalidValueError("window_steps", expected="a whole number, 1 to 32767", got=repr(window_steps))
    if not _is_whole(entry_steps) or entry_steps < window_steps or entry_steps % window_steps:
        raise InvalidValueError(
            "entry_steps",
            expected=f"a multiple of window_steps={window_steps}",
            got=repr(entry_steps),
            remedy=f"e.g. entry_steps={window_steps * 16}",
        )
    if not isinstance(threshold, float | int) or not 0.0 <= threshold < float("inf"):
        raise InvalidValueError("threshold", expected="a finite number >= 0", got=repr(threshold))
    if mode not in (None, "append", "overwrite"):
        raise InvalidValueError("mode", expected='None, "append" or "overwrite"', got=repr(mode))


def check_on_error(on_error: str) -> None:
    """Raise an InvalidValueError for a policy that is none."""
    if on_error not in ("raise", "warn"):
        raise InvalidValueError("on_error", expected='"raise" or "warn"', got=repr(on_error))


def check_planned_steps(planned_steps: int | None) -> None:
    """Raise an InvalidValueError unless it is None or a number of steps."""
    if planned_steps is not None and (not _is_whole(planned_steps) or planned_steps < 1):
        raise InvalidValueError(
            "planned_steps", expected="None, or a whole number of 1 or more", got=repr(planned_steps)
        )


def check_switch(name: str, value: object) -> None:
    """Raise an InvalidValueError for an option that is neither True nor False, such as "no"."""
    if not isinstance(value, bool):
        raise InvalidValueError(name, expected="True or False", got=repr(value))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
