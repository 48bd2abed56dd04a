"""What the recorder tells about an entry beside its arrays: counts of steps, and the optimizers' settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as member
from types import MappingProxyType
from typing import Any

from gradtrace.errors import InvalidValueError
from gradtrace.ledger.encoding import JSON, field, integer
from gradtrace.ledger.watched import check_watched

__all__ = ["COUNTS", "Update", "check_details", "joined", "updates_of"]

COUNTS = ("steps", "missing", "zero", "nonfinite", "skipped")


@dataclass(frozen=True)
class Update:
    """A run of optimizer steps with equal settings, applied to one parameter.

    Attributes:
        kind: the optimizer's class, such as "AdamW".
        steps: how many steps in a row.
        settings: the parameter group's settings during them, such as lr and weight_decay.
    """

    kind: str
    steps: int
    settings: Mapping[str, JSON] = member(hash=False)


def check_details(details: Mapping[str, Any], parameters: int, inputs: int = 0) -> None:
    """Check the known members of an entry's details against the sizes of its layout.

    Raises:
        InvalidValueError: they are not as docs/ledger-format.md says.
    """
    if "counts" in details:
        for name in COUNTS:
            values = field(details["counts"], name, list)
            if len(values) != parameters:
                raise InvalidValueError(
                    f"counts of {name}", expected=f"{parameters} numbers", got=str(len(values))
                )
            for value in values:
                integer(value, f"counts of {name}")
    if "follows_checkpoint" in details:
        field(details, "follows_checkpoint", bool)
    if "groups" in details:
        for group in field(details, "groups", list):
            field(group, "kind", str)
            for index in field(group, "parameters", list):
                integer(index, "parameter of a group", most=parameters - 1)
            for run in field(group, "runs", list):
                if not isinstance(run, list) or len(run) != 2 or not isinstance(run[1], dict):
                    raise InvalidValueError(
                        "run of a group", expected="[steps, settings]", got=repr(run)[:80]
                    )
                integer(run[0], "steps of a run")
    if "watched" in details:
        check_watched(details["watched"], parameters, inputs)


def updates_of(details: Mapping[str, Any], parameter: int) -> tuple[Update, ...]:
    """Return the updates that checked details tell of the parameter at this index."""
    return tuple(
        Update(group["kind"], steps, MappingProxyType(settings))
        for group in details.get("groups", ())
        if parameter in group["parameters"]
        for steps, settings in group["runs"]
    )


def joined(updates: Iterable[Update]) -> tuple[Update, ...]:
    """Return the updates with neighbours of equal kind and settings made one."""
    runs: list[Update] = []
    for update in updates:
        last: Sequence[Update] = runs[-1:]
        if last and (last[0].kind, last[0].settings) == (update.kind, update.settings):
            runs[-1] = replace(update, steps=last[0].steps + update.steps)
        else:
            runs.append(update)
    return tuple(runs)
