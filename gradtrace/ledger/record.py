"""What a ledger holds of one parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from gradtrace.errors import CorruptLedgerError, UnknownNameError
from gradtrace.ledger.details import Update, joined, updates_of
from gradtrace.ledger.entry import Entry
from gradtrace.ledger.header import BELOW, ON_REQUEST
from gradtrace.ledger.parameter import ParameterInfo
from gradtrace.ledger.sums import Place, Sums

__all__ = ["ParameterRecord"]


class ParameterRecord:
    """One parameter's totals over all entries; arrays are read from disk at each access and are the caller's.

    Reading them raises CorruptLedgerError where stored data is lost or altered.
    """

    def __init__(
        self,
        info: ParameterInfo,
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
    def name(self) -> str:
        """Canonical name."""
        return self.info.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter and of every array here."""
        return self.info.shape

    @property
    def grad_sum(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Sum of the gradient over all recorded steps; float64."""
        return self._total("grad_sum")

    @property
    def grad_sumsq(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Sum of the squared gradient over all recorded steps; float64."""
        return self._total("grad_sumsq")

    @property
    def window_sumsq(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Sum over windows of the squared sum of the gradient within the window; float64."""
        return self._total("window_sumsq")

    @property
    def events(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Steps in which the gradient's magnitude was above the threshold; int64."""
        return self._total("events")

    @property
    def votes(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Sum of the gradient's sign over its events; int64."""
        return self._total("votes")

    @property
    def window_votes(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Sum over windows of the sign of the window's sum; int64."""
        return self._total("window_votes")

    @property
    def decoy_sum(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Sum over windows of the sum of the gradient within the window, times a random sign; float64."""
        return self._total("decoy_sum")

    @property
    def grad_weight(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Sum over all recorded steps of the gradient times the weight before the step; float64."""
        return self._total("grad_weight")

    @property
    def position_sumsq(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Sum over positions in watched steps of the square of what each contributed; float64.

        What the positions of a step contribute adds up to the gradient that `grad_sum` adds.
        """
        return self._total("position_sumsq")

    @property
    def position_support(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Positions in watched steps that contributed; 0: none in the `watched_steps` seen; int64."""
        return self._total("position_support")

    @property
    def sample_sumsq(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Sum over samples in watched steps of the square of what each contributed; float64."""
        return self._total("sample_sumsq")

    @property
    def sample_support(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Samples in watched steps that contributed; 0: none in the `watched_steps` seen; int64."""
        return self._total("sample_support")

    @property
    def watched_steps(self) -> int:
        """Of `steps`, those with evidence below the step."""
        return self._watched("steps")

    @property
    def positions(self) -> int:
        """Positions in the watched steps, such as tokens or pixels: uses of the parameter."""
        return self._watched("positions")

    @property
    def samples(self) -> int:
        """Samples in the watched steps."""
        return self._watched("samples")

    def offers(self, accumulator: str) -> bool:
        """Whether the accumulator was recorded, and for this parameter too."""
        return accumulator in self._accumulators and (accumulator not in BELOW or self.watched_steps > 0)

    @property
    def opening(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The weights when recording of this parameter began; float32."""
        first = self._entries[0].layout
        return self._naming(lambda: self._sums.opening(first, self._places[first]))

    @property
    def place(self) -> Place | None:
        """Where it lies whole in the arrays of one rank, or None; what `walk` goes by."""
        return self._sums.place(self._places)

    @property
    def windows(self) -> int:
        """Windows in which the parameter was recorded."""
        return sum(entry.windows for entry in self._entries)

    @property
    def steps(self) -> int:
        """Steps in which the gradient was present and the step was not skipped."""
        return self._count("steps")

    @property
    def missing(self) -> int:
        """Steps in which the optimizer stepped and the gradient was None."""
        return self._count("missing")

    @property
    def zero(self) -> int:
        """Steps whose whole gradient was zero; part of `steps`."""
        return self._count("zero")

    @property
    def nonfinite(self) -> int:
        """Steps whose gradient held a non-finite element; part of `steps`."""
        return self._count("nonfinite")

    @property
    def skipped(self) -> int:
        """Steps that the fp16 scaler skipped."""
        return self._count("skipped")

    @property
    def history(self) -> tuple[Update, ...]:
        """Every optimizer update applied to the parameter, run-length, in order."""
        return joined(
            update
            for entry in self._entries
            for update in updates_of(entry.details, self._places[entry.layout])
        )

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.shape)) or "scalar"
        last = self._entries[-1].end if self._entries else 0
        owner = self.info.module_class
        return f"<ParameterRecord {self.name!r}: {shape}, {self.info.role} of {owner}, to step {last}>"

    def _total(self, accumulator: str) -> np.ndarray[Any, Any]:
        if accumulator not in self._accumulators:
            raise UnknownNameError(
                "accumulator",
                expected=", ".join(sorted(self._accumulators)),
                got=f"{accumulator}, not recorded",
                remedy=_way_out(accumulator),
            )
        if not self.offers(accumulator):
            raise UnknownNameError(
                f"{accumulator} of {self.name!r}",
                expected="a parameter with evidence below the step",
                got=self._fallen() or "no watched step",
                remedy="use its evidence of steps, such as grad_sumsq",
            )
        return self._naming(lambda: self._sums.total(accumulator, self._places))

    def _count(self, name: str) -> int:
        if not all("counts" in entry.details for entry in self._entries):
            raise UnknownNameError(
                f"count of {name!r}", expected="counts in every entry", got="some have none"
            )
        return sum(entry.details["counts"][name][self._places[entry.layout]] for entry in self._entries)

    def _watched(self, name: str) -> int:
        return sum(
            entry.details["watched"]["counts"][name][self._places[entry.layout]]
            for entry in self._entries
            if "watched" in entry.details
        )

    def _fallen(self) -> str:
        for entry in self._entries:
            fallen = entry.details.get("watched", {}).get("fallen", {})
            if reason := fallen.get(str(self._places[entry.layout])):
                return f"evidence of steps only: {reason}"
        return ""

    def _naming(self, read: Callable[[], np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        try:
            return read()
        except CorruptLedgerError as error:
            raise CorruptLedgerError(f"parameter {self.name!r}: {error.message}") from error


def _way_out(accumulator: str) -> str:
    if accumulator in ON_REQUEST:
        return f"record with {ON_REQUEST[accumulator]}=True"
    return f'record with below="{accumulator.split("_")[0]}s"' if accumulator in BELOW else ""
