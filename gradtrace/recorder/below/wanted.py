"""What evidence below the step is asked for, and which accumulators that means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from gradtrace.errors import InvalidValueError

__all__ = ["Wanted", "Word", "check_below"]

Word: TypeAlias = Literal["positions", "samples", "inputs", "gram"]


@dataclass(frozen=True)
class Wanted:
    """Which sums are taken on sampled steps.

    Attributes:
        positions: squares and support of what single positions contribute.
        samples: squares and support of what single samples contribute.
        inputs: sums and sums of squares of each layer's inputs.
        gram: Gram matrix of each layer's inputs, (inputs, inputs) a group.
    """

    positions: bool = False
    samples: bool = False
    inputs: bool = False
    gram: bool = False

    @classmethod
    def of(cls, words: Word | Sequence[Word]) -> Wanted:
        """Accept one word or several.

        Raises:
            InvalidValueError: a word is none of "positions", "samples", "inputs" and "gram".
        """
        given = (words,) if isinstance(words, str) or not isinstance(words, Sequence) else tuple(words)
        for word in given:
            if word not in get_args(Word):
                raise InvalidValueError(
                    "below",
                    expected=f"any of {', '.join(get_args(Word))}",
                    got=repr(word),
                    remedy='pass e.g. below=("positions", "inputs")',
                )
        return cls(**{str(word): True for word in given})

    def __bool__(self) -> bool:
        return bool(self.words)

    @property
    def words(self) -> tuple[Word, ...]:
        """What `of` was given, each once, in a fixed order."""
        return tuple(word for word in get_args(Word) if getattr(self, word))

    @property
    def accumulators(self) -> tuple[str, ...]:
        """Those over dependencies."""
        return tuple(
            f"{one}_{what}"
            for one, asked in (("position", self.positions), ("sample", self.samples))
            if asked
            for what in ("sumsq", "support")
        )

    @property
    def moments(self) -> tuple[str, ...]:
        """Those over inputs."""
        return (("input_sum", "input_sumsq") if self.inputs else ()) + (("input_gram",) if self.gram else ())


def check_below(below: Word | Sequence[Word], every: int) -> Wanted:
    """Return what is asked for, and raise an InvalidValueError where it, or `every`, means nothing."""
    if not isinstance(every, int) or isinstance(every, bool) or every < 1 or every & (every - 1):
        raise InvalidValueError(
            "below_every", expected="a power of two", got=repr(every), remedy="pass e.g. below_every=16"
        )
    return Wanted.of(below)
