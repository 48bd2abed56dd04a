"""What the details of an entry say about its watched steps, those with evidence below the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gradtrace.errors import InvalidValueError
from gradtrace.ledger.encoding import field, integer

__all__ = ["INPUT_COUNTS", "WATCHED_COUNTS", "check_watched", "is_known_watched", "merged_watched"]

WATCHED_COUNTS = ("steps", "positions", "samples")
INPUT_COUNTS = ("steps", "positions")


def check_watched(watched: object, parameters: int, inputs: int) -> None:
    """Check `counts`, `inputs` and `fallen` against the numbers of parameters and inputs of the layout.

    Raises:
        InvalidValueError: they are not as docs/ledger-format.md says.
    """
    for member, names, length in (
        ("counts", WATCHED_COUNTS, parameters),
        ("inputs", INPUT_COUNTS, inputs),
    ):
        counts: dict[str, Any] = field(watched, member, dict)
        for name in names:
            values = field(counts, name, list)
            if len(values) != length:
                raise InvalidValueError(f"watched {name}", expected=f"{length} numbers", got=str(len(values)))
            for value in values:
                integer(value, f"watched {name}")
    for index, reason in field(watched, "fallen", dict).items():
        if not index.isdecimal() or len(index) > 9 or int(index) >= parameters:
            raise InvalidValueError(
                "fallen parameter", expected=f"an index below {parameters}", got=repr(index)[:80]
            )
        if not isinstance(reason, str) or len(reason) > 1000 or not reason.isprintable():
            raise InvalidValueError("reason of a fall", expected="printable text", got=repr(reason)[:80])


def is_known_watched(watched: object) -> bool:
    """Whether `merged_watched` loses nothing of it."""
    return (
        isinstance(watched, Mapping)
        and set(watched) == {"counts", "inputs", "fallen"}
        and set(watched["counts"]) == set(WATCHED_COUNTS)
        and set(watched["inputs"]) == set(INPUT_COUNTS)
    )


def merged_watched(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the entry that joins these, in order, says: counts add, and who fell stays fallen."""
    merged: dict[str, Any] = {"fallen": {}}
    for member, names in (("counts", WATCHED_COUNTS), ("inputs", INPUT_COUNTS)):
        merged[member] = {
            name: [sum(values) for values in zip(*(part[member][name] for part in parts), strict=True)]
            for name in names
        }
    for part in parts:
        merged["fallen"] = {**part["fallen"], **merged["fallen"]}
    return merged
