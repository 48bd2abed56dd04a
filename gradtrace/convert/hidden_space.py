"""Units that only some linear layers see: their order is nobody else's business."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["HiddenSpace", "Member"]


@dataclass(frozen=True)
class Member:
    """The `outputs` (else the inputs) of a layer, from `offset` on, that are the units of a space."""

    layer: str
    outputs: bool
    offset: int = 0


@dataclass(frozen=True, eq=False)
class HiddenSpace:
    """`size` units, written by the members that are outputs and read by those that are inputs.

    `unit` neighbours must stay together, and none may leave its block, of `blocks` equal ones. `vectors` are
    the canonical names of parameters (..., size) whose last axis they are: what a norm between scales them
    by, embeddings that they come from. `why_not` says in words what else sees them, in which case their order
    must stay; empty where it may change.
    """

    size: int
    members: tuple[Member, ...]
    unit: int = 1
    blocks: int = 1
    vectors: tuple[str, ...] = ()
    why_not: str = ""
