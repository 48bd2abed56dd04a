"""What one run says of every contender."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gradtrace.comparison.cost import Cost
from gradtrace.comparison.layer_shape import LayerShape
from gradtrace.errors import MismatchError
from gradtrace.evidence.agreement import Agreement

__all__ = ["Run"]


@dataclass(frozen=True)
class Run:
    """One training's part in a comparison; tuples follow the comparison's densities.

    `ledger`, `run_id`, `steps`: where it is from, "" and 0 without a ledger. `dense`: quality of the weights
    as they are, None where no validation was asked for; `quality[contender][k]` under its mask, {} then.
    `agreement[k]` of all masks, `layers[contender][k][parameter]` the shape of each layer's mask. `cost` of
    scoring; `ties[contender][k]`: share of the kept where the lot decided. `left_out`: criterion -> why.
    """

    ledger: str
    run_id: str
    steps: int
    dense: float | None
    quality: Mapping[str, tuple[float, ...]]
    agreement: tuple[Agreement, ...]
    layers: Mapping[str, tuple[Mapping[str, LayerShape], ...]]
    ties: Mapping[str, tuple[float, ...]]
    cost: Mapping[str, Cost]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def check(self, names: tuple[str, ...], count: int) -> None:
        """Raise MismatchError unless this run says all of each of `names`, at `count` densities."""
        by_name = [self.layers, self.ties, self.cost, *([self.quality] if self.dense is not None else [])]
        tuples = [*self.layers.values(), *self.ties.values(), *self.quality.values(), self.agreement]
        fits = all(set(one) == set(names) for one in by_name) and all(len(one) == count for one in tuples)
        if not fits or any(one.names != names for one in self.agreement):
            raise MismatchError(
                "comparison",
                expected="in every run the same contenders, each at every density",
                got=self.ledger,
            )
