"""The keys under which a ledger keeps its objects: made from numbers only, and parsed strictly."""

from __future__ import annotations

import re

__all__ = [
    "COMMITS",
    "ENTRIES",
    "LARGEST_GENERATION",
    "LARGEST_LAYOUT",
    "LARGEST_STEP",
    "LAYOUTS",
    "commit_key",
    "entry_prefix",
    "is_layout_name",
    "layout_prefix",
    "parse_span",
    "rank_name",
    "span_name",
]

COMMITS, ENTRIES, LAYOUTS = "commits", "entries", "layouts"
LARGEST_STEP, LARGEST_GENERATION, LARGEST_LAYOUT = 10**12 - 1, 9_999, 9_999
_SPAN = re.compile(r"([0-9]{12})-([0-9]{12})-([0-9]{4})")
_LAYOUT = re.compile(r"[0-9]{4}")


def span_name(begin: int, end: int, generation: int) -> str:
    """Return `<begin>-<end>-<generation>`, zero-padded to 12, 12 and 4 digits."""
    return f"{begin:012d}-{end:012d}-{generation:04d}"


def parse_span(name: str) -> tuple[int, int, int] | None:
    """Return (begin, end, generation), or None where `name` is not such a name."""
    match = _SPAN.fullmatch(name)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def commit_key(begin: int, end: int, generation: int) -> str:
    """Return the key of a commit object."""
    return f"{COMMITS}/{span_name(begin, end, generation)}.json"


def entry_prefix(begin: int, end: int, generation: int) -> str:
    """Return the prefix under which an entry's arrays lie."""
    return f"{ENTRIES}/{span_name(begin, end, generation)}"


def layout_prefix(layout: int) -> str:
    """Return the prefix under which a layout and its opening balance lie."""
    return f"{LAYOUTS}/{layout:04d}"


def is_layout_name(name: str) -> bool:
    """Whether `name` is a layout's number as `layout_prefix` writes it."""
    return bool(_LAYOUT.fullmatch(name))


def rank_name(rank: int) -> str:
    """Return the name of a rank's part of an entry or layout."""
    return f"rank-{rank:04d}"
