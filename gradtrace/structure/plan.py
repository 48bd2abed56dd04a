"""What to do with every linear layer: its sub-operators or "dense", what that should cost, and why."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradtrace.errors import InvalidValueError, UnknownNameError
from gradtrace.structure.sub_operator import SubOperator

__all__ = ["CHOICES", "DENSE", "LayerPlan", "Plan"]

DENSE = "dense"
_LARGEST = sys.float_info.max
CHOICES = (DENSE, "trimmed", "components", "block-triangular", "co-clusters", "row groups")


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """One layer's plan.

    `mask` (out_features, in_features) says which dependencies stay. Every one of them lies inside exactly one
    of `sub_operators`; what the mask drops inside one is zeroed by the conversion. "dense" has no
    sub-operators. `predicted` and `dense` are seconds, of the chosen form and of the dense layer; `measured`
    is the measured speed of the sub-operators relative to dense, where it was measured.

    Raises:
        InvalidValueError: an unknown choice, an index outside the mask, a kept dependency that is in no
            sub-operator or in several, a time that is negative or not finite.
    """

    choice: str
    sub_operators: tuple[SubOperator, ...]
    mask: NDArray[np.bool_]
    predicted: float
    dense: float
    measured: float | None
    reason: str

    def __post_init__(self) -> None:
        if self.choice not in CHOICES:
            raise InvalidValueError("choice", expected=f"one of {', '.join(CHOICES)}", got=repr(self.choice))
        object.__setattr__(self, "sub_operators", tuple(self.sub_operators))
        object.__setattr__(self, "mask", _frozen(self.mask))
        for name in ("predicted", "dense", "measured"):
            value = getattr(self, name)
            if value is None and name == "measured":
                continue
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _LARGEST:
                raise InvalidValueError(name, expected="a finite number of at least 0", got=repr(value)[:80])
            object.__setattr__(self, name, float(value))
        if not isinstance(self.reason, str):
            raise InvalidValueError("reason", expected="words", got=repr(self.reason)[:80])
        if self.choice == DENSE and self.sub_operators:
            raise InvalidValueError(
                'a "dense" layer', expected="no sub-operators", got=str(len(self.sub_operators))
            )
        if self.choice != DENSE:
            _check_cover(self.sub_operators, self.mask)

    @property
    def weights(self) -> int:
        """How many weights the layer runs with."""
        return self.mask.size if self.choice == DENSE else sum(part.size for part in self.sub_operators)


class Plan(Mapping[str, LayerPlan]):
    """Module name -> LayerPlan, with `provenance`: tokens, device, dtype, threads, versions, mask."""

    def __init__(self, layers: Mapping[str, LayerPlan], provenance: Mapping[str, Any] | None = None) -> None:
        for name, layer in layers.items():
            if not isinstance(name, str) or not isinstance(layer, LayerPlan):
                raise InvalidValueError(
                    "plan", expected="module name -> LayerPlan", got=repr((name, layer))[:80]
                )
        self._layers = dict(layers)
        self.provenance: dict[str, Any] = dict(provenance or {})

    def __getitem__(self, name: str) -> LayerPlan:
        if name not in self._layers:
            raise UnknownNameError(
                f"no layer '{name}' in this plan", expected=", ".join(self._layers) or "none"
            )
        return self._layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        choices = ", ".join(f"{name}: {layer.choice}" for name, layer in self._layers.items())
        return f"Plan({choices})"

    @property
    def converted(self) -> tuple[str, ...]:
        """The layers that become sub-operators."""
        return tuple(name for name, layer in self._layers.items() if layer.choice != DENSE)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the plan as one JSON file; a file at `path` is replaced in one step.

        Raises:
            InvalidValueError: `path` is no file in an existing directory, or the provenance is not JSON.
            StorageError: the disk failed; what was at `path` is still there.
        """
        from gradtrace.structure.plan_file import write_plan  # which imports this file

        write_plan(self, path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Plan:
        """Read a plan; nothing in the file is trusted.

        Raises:
            InvalidValueError: `path` is no path.
            UnreadableFileError: no file, not JSON, not a plan, or a plan that contradicts itself.
            UnsupportedFormatError: a format that this library does not know.
        """
        from gradtrace.structure.plan_file import read_plan  # which imports this file

        return read_plan(path)


def _frozen(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.ndim != 2:
        got = f"{mask.dtype} of shape {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise InvalidValueError("mask", expected="a bool array (out_features, in_features)", got=got)
    if mask.flags.writeable:
        mask = mask.copy()
        mask.flags.writeable = False
    return mask


def _check_cover(sub_operators: tuple[SubOperator, ...], mask: NDArray[np.bool_]) -> None:
    covered = np.zeros(mask.shape, dtype=np.uint8)  # 2 stands for "more than once"
    for number, part in enumerate(sub_operators):
        for what, indices, size in (
            ("inputs", part.inputs, mask.shape[1]),
            ("outputs", part.outputs, mask.shape[0]),
        ):
            if indices.max() >= size:
                raise InvalidValueError(
                    f"{what} of sub-operator {number}",
                    expected=f"indices below {size}",
                    got=str(indices.max()),
                )
        box = np.ix_(part.outputs, part.inputs)
        covered[box] = np.minimum(covered[box] + 1, 2)
    for wrong, what in ((mask & (covered == 0), "lost"), (mask & (covered == 2), "doubled")):
        if wrong.any():
            output, source = (int(index) for index in np.argwhere(wrong)[0])
            raise InvalidValueError(
                "sub-operators",
                expected="every kept dependency inside exactly one of them",
                got=f"{int(wrong.sum())} {what}, the first being output {output} of input {source}",
            )
