"""Attention heads: how wide they are, by the names that models give, and which of them are dead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradtrace.ledger.names import canonical

__all__ = ["Heads", "heads_of"]

_WIDTH = ("head_dim", "attention_head_size", "head_size")
_COUNT = ("num_heads", "num_attention_heads", "n_head", "n_heads")
_ALONE = frozenset({"value", "v_proj", "v_lin", "to_v", "wv"})
_FUSED = frozenset({"in_proj_weight", "qkv", "c_attn", "query_key_value", "in_proj", "qkv_proj"})


@dataclass(frozen=True)
class Heads:
    """Heads of `width` outputs each; `fused`: queries, keys and values in thirds, in this order."""

    width: int
    fused: bool

    def dead(self, live: NDArray[np.bool_]) -> tuple[int, tuple[int, ...]]:
        """(heads, those of them whose values never had an event), from which outputs (O,) had one."""
        values: NDArray[np.bool_] = np.asarray(live[2 * (live.size // 3) :] if self.fused else live)
        if values.size % self.width:
            return 0, ()
        alive = np.asarray(values.reshape(-1, self.width).any(axis=1))
        return alive.size, tuple(int(head) for head in np.flatnonzero(~alive))


def heads_of(model: object) -> dict[str, Heads]:
    """Name of the weight that makes the values -> its heads, where modules say how wide these are.

    Nothing for what is no module, and for attention under other names than the usual ones.
    """
    if not callable(getattr(model, "named_modules", None)):
        return {}
    module: Any = model
    found: dict[str, Heads] = {}
    for prefix, one in module.named_modules():
        width = _width_of(one)
        if width:
            for name, parameter in one.named_parameters():
                leaf = name.removesuffix(".weight").rpartition(".")[2]
                if parameter.ndim == 2 and leaf in _ALONE | _FUSED:
                    whole = canonical(f"{prefix}.{name}".lstrip("."))
                    found.setdefault(whole, Heads(width, leaf in _FUSED))
    return found


def _width_of(module: Any) -> int:
    for name in _WIDTH:
        if type(width := getattr(module, name, None)) is int and width > 0:
            return width
    whole = getattr(module, "embed_dim", None)
    for name in _COUNT:
        if type(count := getattr(module, name, None)) is int and type(whole) is int and count > 0:
            return whole // count
    return 0
