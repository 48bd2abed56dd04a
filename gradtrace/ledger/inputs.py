"""What the ledger knows of one module's inputs, apart from their moments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gradtrace.errors import InvalidValueError
from gradtrace.ledger.encoding import JSON, field, integer

__all__ = ["INPUT_MOMENTS", "InputInfo"]

INPUT_MOMENTS = ("input_sum", "input_sumsq", "input_gram")


@dataclass(frozen=True)
class InputInfo:
    """The inputs of one module whose moments are recorded.

    Attributes:
        module: canonical name of the module.
        size: how many numbers it multiplies its weights by at one position.
        groups: into how many equal groups, that share no output, these are cut; 0 for no Gram matrix.

    Raises:
        InvalidValueError: any of these is not what it should be.
    """

    module: str
    size: int
    groups: int

    def __post_init__(self) -> None:
        if not isinstance(self.module, str) or len(self.module) > 4096 or not self.module.isprintable():
            raise InvalidValueError("module of inputs", expected="printable text", got=repr(self.module)[:80])
        object.__setattr__(self, "size", integer(self.size, "size of inputs", most=2**40))
        object.__setattr__(self, "groups", integer(self.groups, "groups of inputs", most=2**40))
        if self.groups and self.size % self.groups:
            raise InvalidValueError(
                "groups of inputs", expected=f"a divisor of {self.size}", got=str(self.groups)
            )

    @property
    def gram_shape(self) -> tuple[int, int, int]:
        """(groups, inputs of a group, inputs of a group)."""
        each = self.size // self.groups if self.groups else 0
        return self.groups, each, each

    def length(self, accumulator: str) -> int:
        """Return how many elements one of INPUT_MOMENTS has."""
        groups, each, _ = self.gram_shape
        return groups * each * each if accumulator == "input_gram" else self.size

    def to_json(self) -> Mapping[str, JSON]:
        """Return the object that layout.json holds."""
        return {"module": self.module, "size": self.size, "groups": self.groups}

    @classmethod
    def from_json(cls, data: object) -> InputInfo:
        """Read the object that layout.json holds; raises InvalidValueError."""
        return cls(field(data, "module", str), field(data, "size", int), field(data, "groups", int))
