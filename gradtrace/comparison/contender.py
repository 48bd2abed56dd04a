"""Who is compared: criteria by name or by definition, and the controls that each of them has to beat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradtrace.errors import InvalidValueError
from gradtrace.evidence.criterion import criteria, criterion
from gradtrace.evidence.definition import Criterion
from gradtrace.evidence.magnitude import MAGNITUDE
from gradtrace.evidence.random import RANDOM
from gradtrace.evidence.shuffled import SHUFFLED

if TYPE_CHECKING:
    from gradtrace.ledger.reader import Ledger

__all__ = ["Contender", "Entrant", "entrants"]


@dataclass(frozen=True)
class Contender:
    """A line in the comparison: its name, its kind ("ledger", "statistic", "control"), whom it is meant for.

    `control_of`: the contender that a control is to be beaten by, "" for one that all have to beat.
    """

    name: str
    kind: str
    control_of: str = ""

    def __post_init__(self) -> None:
        for text in (self.name, self.control_of):
            # Names from a file are printed to terminals and pages.
            if not isinstance(text, str) or len(text) > 200 or not text.isprintable():
                raise InvalidValueError("contender", expected="printable text", got=repr(text)[:80])
        if not self.name or self.kind not in ("ledger", "statistic", "control"):
            raise InvalidValueError(
                "contender", expected="a name and a kind", got=f"{self.name!r}, {self.kind!r}"
            )


@dataclass(frozen=True)
class Entrant:
    """A contender with how it scores: its criterion, and for `shuffled` the one whose scores it permutes."""

    contender: Contender
    criterion: Criterion
    shuffles: Criterion | None = None


def entrants(
    ledger: Ledger | None, by: Sequence[str | Criterion] | None = None, *, scope: str = "layer"
) -> tuple[Entrant, ...]:
    """The criteria asked for, each once, then `random` and `shuffled`; None: all that the ledger can answer.

    With scope "global" a layer's density depends on the scores, so each criterion gets a shuffled mask with
    its own densities per layer ("shuffled magnitude"); otherwise one serves them all. A Criterion of one's
    own takes part under its `name`, such as `dataclasses.replace(c, name=..., judging=partial(c.judging,
    exponent=0.5))`.

    Raises:
        UnknownNameError: no criterion of that name.
        InvalidValueError: what is neither name nor Criterion, or two of one name.
    """
    chosen = list(_every(ledger) if by is None else _given(by))
    plain = list(dict.fromkeys(one for one in chosen if one.kind != "control"))
    names = [one.name for one in plain]
    if len(set(names)) < len(names):
        raise InvalidValueError(
            "by", expected="criteria of different names", got=", ".join(names), remedy="rename one of them"
        )
    lines = [Entrant(Contender(one.name, one.kind), one) for one in plain]
    controls = [Entrant(Contender(RANDOM.name, "control"), RANDOM)]
    if scope == "global":
        controls += [
            Entrant(Contender(f"shuffled {one.name}", "control", one.name), SHUFFLED, one) for one in plain
        ]
    else:
        # Which one's scores are shuffled makes no difference here: the magnitude is always at hand.
        controls.append(Entrant(Contender(SHUFFLED.name, "control"), SHUFFLED, MAGNITUDE))
    return (*lines, *controls)


def _every(ledger: Ledger | None) -> Iterator[Criterion]:
    for one in criteria(ledger):
        if ledger is not None or (one.kind == "statistic" and not one.missing(())):
            yield one


def _given(by: Sequence[str | Criterion]) -> Iterator[Criterion]:
    for one in [by] if isinstance(by, str | Criterion) else by:
        yield criterion(one)
