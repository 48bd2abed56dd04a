"""The details of several entries told as those of one, without losing what a reader could ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gradtrace.ledger.details import COUNTS
from gradtrace.ledger.watched import is_known_watched, merged_watched

__all__ = ["are_joinable", "merged_details"]

# What went wrong on the way to an entry, each a number of times.
_TALLIES = ("passed_cuts", "failed_commits")
_KNOWN = frozenset({"counts", "groups", "follows_checkpoint", "watched", *_TALLIES})


def are_joinable(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether `merged_details` loses nothing of these two: what it does not know it could not add.

    Details that have no counts, or tell of no watched steps, mean "not recorded", which a sum with others
    would hide.
    """
    alike = all((name in first) == (name in second) for name in ("counts", "watched"))
    return alike and _is_known(first) and _is_known(second)


def _is_known(details: Mapping[str, Any]) -> bool:
    counts = details.get("counts", dict.fromkeys(COUNTS))
    tallies = [details.get(name, 0) for name in _TALLIES]
    return (
        set(details) <= _KNOWN
        and isinstance(counts, Mapping)
        and set(counts) == set(COUNTS)
        and ("watched" not in details or is_known_watched(details["watched"]))
        and all(isinstance(count, int) and not isinstance(count, bool) for count in tallies)
    )


def merged_details(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the details of the entry that joins `parts`, which are checked, joinable and in order of steps.

    Counts add. Groups follow each other in time; one that goes on as it was is told once, with longer runs.
    """
    merged: dict[str, Any] = {}
    if "counts" in parts[0]:
        merged["counts"] = {
            name: [sum(values) for values in zip(*(part["counts"][name] for part in parts), strict=True)]
            for name in COUNTS
        }
    if "watched" in parts[0]:
        merged["watched"] = merged_watched([part["watched"] for part in parts])
    if any("groups" in part for part in parts):
        merged["groups"] = _joined_groups([group for part in parts for group in part.get("groups", ())])
    for name in _TALLIES:
        if count := sum(part.get(name, 0) for part in parts):
            merged[name] = count
    if parts[0].get("follows_checkpoint"):
        merged["follows_checkpoint"] = True
    return merged


def _joined_groups(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    joined: list[dict[str, Any]] = []
    latest: dict[int, dict[str, Any]] = {}
    for group in groups:
        # Only the last group of all its parameters may grow: their updates must stay in order.
        last = [latest.get(parameter) for parameter in group["parameters"]]
        growing = last[0] if last else None
        if growing is None or any(one is not growing for one in last) or _who(growing) != _who(group):
            growing = {**group, "runs": []}
            joined.append(growing)
            latest |= dict.fromkeys(group["parameters"], growing)
        for steps, settings in group["runs"]:
            runs = growing["runs"]
            if runs and runs[-1][1] == settings:
                runs[-1] = [runs[-1][0] + steps, settings]
            else:
                runs.append([steps, settings])
    return joined


def _who(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "runs"}
