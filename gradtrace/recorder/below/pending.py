"""Uses of one parameter in one backward pass, joined by sample before their squares are taken."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from gradtrace.recorder.below.contribution import Contribution

__all__ = ["Pending"]


class Pending:
    """Holds the uses of a parameter that is used several times until the last of them has its gradient.

    A parameter that was called once, as most are, is never held. What is held when the next forward pass
    begins belongs to a backward pass that is over.

    Args:
        add: called with (parameter, uses) for the uses of one backward pass, which have equally many samples.

    Attributes:
        broken: parameters whose uses cannot be joined, with the reason.
    """

    def __init__(self, add: Callable[[int, Sequence[Contribution]], None]) -> None:
        self._add = add
        self._expected: dict[int, int] = {}
        self._received: dict[int, list[Contribution]] = {}
        self._walking = False
        self.broken: dict[int, str] = {}

    def expect(self, parameters: Collection[int]) -> None:
        """Note one forward call that uses each of these parameters."""
        if self._walking:
            self.flush()
        for parameter in parameters:
            self._expected[parameter] = self._expected.get(parameter, 0) + 1

    def receive(self, parameter: int, use: Contribution) -> None:
        """Note that the gradient of one use has arrived."""
        self._walking = True
        uses = self._received.setdefault(parameter, [])
        uses.append(use)
        if len(uses) >= self._expected.get(parameter, 0):
            self._join(parameter)

    def flush(self) -> None:
        """Join what is held: the backward pass is over."""
        for parameter in list(self._received):
            self._join(parameter)
        self._expected.clear()
        self._walking = False

    def _join(self, parameter: int) -> None:
        uses = self._received.pop(parameter)
        if len({use.samples for use in uses}) > 1:
            self.broken[parameter] = "it is used with different numbers of samples in one backward pass"
        else:
            self._add(parameter, uses)
