"""What a ledger holds of one module's inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gradtrace.errors import EmptyLedgerError, UnknownNameError
from gradtrace.ledger.entry import Entry
from gradtrace.ledger.inputs import InputInfo
from gradtrace.ledger.sums import Sums

__all__ = ["InputRecord", "InputRecords"]


class InputRecord:
    """Moments of a module's inputs over the watched steps; arrays are read at each access, in float64.

    J numbers belong to a position: for a linear layer its inputs, for an embedding its rows (one-hot), for a
    convolution what a patch holds, in the order of its weight behind the first axis, group after group.
    """

    def __init__(
        self,
        info: InputInfo,
        *,
        sums: Sums,
        accumulators: Iterable[str],
        entries: Iterable[Entry],
        places: Mapping[int, int],
    ) -> None:
        self.info = info
        self._sums, self._accumulators, self._places = sums, frozenset(accumulators), dict(places)
        self._entries = tuple(entry for entry in entries if entry.layout in places)

    @property
    def module(self) -> str:
        """Canonical name of the module."""
        return self.info.module

    @property
    def sum(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Sum of the inputs over positions, (J,)."""
        return self._total("input_sum")

    @property
    def sumsq(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Sum of the squared inputs over positions, (J,)."""
        return self._total("input_sumsq")

    @property
    def gram(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Sum over positions of the outer product of the inputs with themselves, (G, J / G, J / G)."""
        if not self.info.groups:
            raise UnknownNameError(
                f"Gram matrix of the inputs of {self.module!r}",
                expected="a linear layer or a convolution of one or two dimensions",
            )
        return self._total("input_gram").reshape(self.info.gram_shape)

    @property
    def positions(self) -> int:
        """Positions over which the moments are summed."""
        return self._count("positions")

    @property
    def watched_steps(self) -> int:
        """Steps in which the moments were taken."""
        return self._count("steps")

    @property
    def mean(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Mean of the inputs, (J,); an EmptyLedgerError where none was seen."""
        return self.sum / self._some_positions()

    @property
    def second_moment(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Mean of the squared inputs, (J,); an EmptyLedgerError where none was seen."""
        return self.sumsq / self._some_positions()

    def __repr__(self) -> str:
        return f"<InputRecord {self.module!r}: {self.info.size} inputs, {self.positions:,} positions>"

    def _some_positions(self) -> int:
        if not (positions := self.positions):
            raise EmptyLedgerError(f"no input of {self.module!r} was seen in a watched step")
        return positions

    def _total(self, accumulator: str) -> np.ndarray[Any, Any]:
        if accumulator not in self._accumulators:
            asked = "gram" if accumulator == "input_gram" else "inputs"
            raise UnknownNameError(
                "accumulator",
                expected=", ".join(sorted(self._accumulators)),
                got=f"{accumulator}, not recorded",
                remedy=f'record with below="{asked}"',
            )
        return self._sums.input_total(accumulator, self._places)

    def _count(self, name: str) -> int:
        return sum(
            entry.details["watched"]["inputs"][name][self._places[entry.layout]]
            for entry in self._entries
            if "watched" in entry.details
        )


class InputRecords(dict[str, InputRecord]):
    """The records of all modules; a name that is none of theirs is an UnknownNameError."""

    def __missing__(self, name: str) -> InputRecord:
        raise UnknownNameError(
            "module",
            expected=f"one of {', '.join(map(repr, self))}" if self else "a ledger with input moments",
            got=repr(name),
            remedy="" if self else 'record with below="inputs"',
        )
