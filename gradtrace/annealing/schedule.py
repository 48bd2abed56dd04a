"""When a training anneals, and how far: density by stage, along a cubic or a straight line.

The cubic one is that of Zhu and Gupta 2017 (arXiv 1710.01878): fast while there is much to drop, slow at the
end. A stage is a function of the step alone, so that a resumed training goes through the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from gradtrace.errors import InvalidValueError

__all__ = ["SHAPES", "Schedule", "Shape", "step_of"]

Shape: TypeAlias = Literal["cubic", "linear"]
SHAPES: tuple[Shape, ...] = ("cubic", "linear")


@dataclass(frozen=True)
class Schedule:
    """Stages 1 .. `stages`, evenly from step `begin` (without) to step `end`, where `density` is reached.

    Raises:
        InvalidValueError: what is out of range, or stages of less than one step.
    """

    begin: int
    end: int
    stages: int
    density: float
    shape: Shape = "cubic"

    def __post_init__(self) -> None:
        if not 0 <= self.begin < self.end:
            raise InvalidValueError(
                "begin and end",
                expected="0 <= begin < end, in optimizer steps",
                got=f"{self.begin} and {self.end}",
                remedy="train longer, or let annealing begin earlier",
            )
        if isinstance(self.stages, bool) or not isinstance(self.stages, int) or self.stages < 1:
            raise InvalidValueError("stages", expected="an integer of at least 1", got=repr(self.stages))
        if self.stages > self.end - self.begin:
            raise InvalidValueError(
                "stages",
                expected=f"at most the {self.end - self.begin} steps from {self.begin} to {self.end}",
                got=repr(self.stages),
                remedy="take fewer stages, or let them take more of the training",
            )
        if not 0 < self.density <= 1:
            raise InvalidValueError("density", expected="a number in (0, 1]", got=repr(self.density))
        if self.shape not in SHAPES:
            raise InvalidValueError("shape", expected=f"one of {', '.join(SHAPES)}", got=repr(self.shape))

    def stage_at(self, step: int) -> int:
        """The stage due once `step` optimizer steps are done: 0 before `begin`; it goes on after `end`."""
        if step <= self.begin:
            return 0
        return (step - self.begin) * self.stages // (self.end - self.begin)

    def density_of(self, stage: int) -> float:
        """Share kept from that stage on; from the last one `density`."""
        rest = 1 - min(1.0, stage / self.stages)
        return self.density + (1 - self.density) * (rest**3 if self.shape == "cubic" else rest)


def step_of(name: str, value: float, steps: int | None) -> int:
    """A number of steps as it is, a share in [0, 1] (a float) of the `steps` that are planned.

    Raises:
        InvalidValueError: it is neither, or a share where it is not known how many steps there will be.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise InvalidValueError(name, expected="a share of the training or a step", got=repr(value))
    if isinstance(value, int):
        return value
    if value > 1:
        raise InvalidValueError(
            name, expected="a share in [0, 1]", got=repr(value), remedy=f"pass {name}={int(value)} for steps"
        )
    if steps is None:
        raise InvalidValueError(
            name,
            expected="a number of steps, since the length of this training is not known",
            got=repr(value),
            remedy=f"pass e.g. {name}=10_000, or give the trainer max_steps",
        )
    return round(value * steps)
