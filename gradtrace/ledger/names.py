"""Canonical parameter names: what a parameter is called whatever wraps its module."""

from __future__ import annotations

__all__ = ["canonical"]

# "module" is not here: it is also an honest attribute name, and only the caller knows whether DDP added it.
_WRAPPERS = frozenset({"_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_orig_mod"})


def canonical(name: str) -> str:
    """Return `name` without the segments that torch.compile, FSDP and checkpointing put into it."""
    return ".".join(segment for segment in name.split(".") if segment not in _WRAPPERS)
