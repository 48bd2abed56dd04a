"""Whether a parameter's evidence can be trusted: where not, it falls back to that of steps, and says so."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import torch

from gradtrace.recorder.below.first_check import first_check

__all__ = ["Trust"]

_log = logging.getLogger(__name__)


class Trust:
    """Keeps, over the steps of a run, which parameters fell back and which have passed the first check.

    Args:
        names: canonical names of the parameters; everything here goes by their index.

    Attributes:
        fallen: parameters that have fallen back, with the reason.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)
        self._passed: set[int] = set()
        self.fallen: dict[int, str] = {}

    def fall(self, reasons: Mapping[int, str]) -> None:
        """Let parameters fall back; one warning names those that are new, by reason."""
        new = {number: reason for number, reason in reasons.items() if number not in self.fallen}
        self.fallen |= new
        for reason in dict.fromkeys(new.values()):
            names = [self._names[number] for number, why in new.items() if why == reason]
            _log.warning("evidence of steps only for %s: %s", ", ".join(names), reason)

    def unchecked(self, numbers: Iterable[int]) -> set[int]:
        """Those whose contributions have not been compared with their gradient yet."""
        return {one for one in numbers if one not in self._passed and one not in self.fallen}

    def check(
        self,
        totals: Mapping[int, torch.Tensor],
        grads: Mapping[int, torch.Tensor],
        lowest: Mapping[int, torch.dtype],
        seen: Iterable[int],
    ) -> None:
        """Compare the sum of contributions with the gradient of each; a gradient of zeros shows nothing yet.

        Args:
            totals: Sum_n c_n, in the scale of the gradients.
            grads: the gradients.
            lowest: lowest precision that took part in the backward pass of each.
            seen: parameters of which a use was seen.
        """
        uses = set(seen)
        equal, unequal = first_check(totals, grads, lowest)
        self._passed |= equal
        self.fall(
            {
                number: (
                    f"what its layers contributed differs from its gradient by {difference:.1%}: it is also "
                    "used where hooks do not see it, or its gradient was changed before the step"
                    if number in uses
                    else "no use of it was seen: a function uses it, and not its own module"
                )
                for number, difference in unequal.items()
            }
        )
