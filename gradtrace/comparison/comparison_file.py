"""A comparison as JSON: what was measured, which is read back, and the summary, which follows from it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeVar

from gradtrace import __version__
from gradtrace.comparison.contender import Contender
from gradtrace.comparison.cost import Cost
from gradtrace.comparison.layer_shape import LayerShape
from gradtrace.comparison.run import Run
from gradtrace.comparison.summary import summary
from gradtrace.errors import GradtraceError, InvalidValueError, UnreadableFileError, UnsupportedFormatError
from gradtrace.evidence.agreement import Agreement
from gradtrace.evidence.whole_file import checked_path, write_whole

if TYPE_CHECKING:
    from gradtrace.comparison.comparison import Comparison

__all__ = ["FORMAT", "KIND", "as_json", "from_json", "read_comparison", "write_comparison"]

KIND, FORMAT = "gradtrace comparison", "1.0"

T = TypeVar("T")


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Plain lists and numbers; the lists follow `densities` or `runs`."""
    return {
        "kind": KIND,
        "format": FORMAT,
        "library_version": __version__,
        "densities": list(comparison.densities),
        "scope": comparison.scope,
        "granularity": comparison.granularity,
        "contenders": [asdict(one) for one in comparison.contenders],
        "summary": summary(comparison),
        "runs": [asdict(run) for run in comparison.runs],
    }


def write_comparison(comparison: Comparison, path: str | PathLike[str]) -> None:
    """Write `as_json` whole or not at all; raises what `write_whole` raises."""
    write_whole(path, (json.dumps(as_json(comparison), allow_nan=False) + "\n").encode(), "comparison")


def read_comparison(path: str | PathLike[str], build: Callable[..., T]) -> T:
    """What `build` makes of the fields of the Comparison in a file.

    Raises UnreadableFileError for a file that cannot be read or holds something else, and
    UnsupportedFormatError for one of a newer major format.
    """
    target = checked_path(path, "comparison")
    try:
        document: Any = json.loads(target.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnreadableFileError(
            f"comparison '{target}' cannot be read", got=error.strerror or str(error)
        ) from error
    except (ValueError, RecursionError) as error:
        raise UnreadableFileError(f"comparison '{target}' is not JSON", got=str(error)[:120]) from error
    if not isinstance(document, Mapping) or document.get("kind") != KIND:
        raise UnreadableFileError(
            f"'{target}' is not a comparison",
            expected=f'"kind": "{KIND}"',
            remedy="write one with Comparison.save",
        )
    if str(document.get("format")).partition(".")[0] != FORMAT.partition(".")[0]:
        raise UnsupportedFormatError(
            f"comparison '{target}' has an unknown format",
            expected=FORMAT,
            got=repr(document.get("format"))[:40],
            remedy="read it with the version of gradtrace that wrote it",
        )
    try:
        return build(**from_json(document))
    except GradtraceError as error:
        raise UnreadableFileError(f"comparison '{target}' is broken", got=error.message) from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise UnreadableFileError(
            f"comparison '{target}' is broken", got=f"{type(error).__name__}: {error}"[:120]
        ) from error


def from_json(document: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Comparison in what `as_json` made; raises what Python raises where it is not that."""
    return {
        "densities": tuple(_number(one) for one in document["densities"]),
        "scope": _text(document["scope"]),
        "granularity": _text(document["granularity"]),
        "contenders": tuple(Contender(**one) for one in document["contenders"]),
        "runs": tuple(_run(one) for one in document["runs"]),
    }


def _run(value: Mapping[str, Any]) -> Run:
    given = dict(value)
    readers: dict[str, Callable[[Any], Any]] = {
        "ledger": _text,
        "run_id": _text,
        "steps": _count,
        "dense": lambda one: None if one is None else _number(one),
        "quality": lambda by: _by_name(by, _numbers),
        "agreement": lambda at: tuple(_agreement(one) for one in at),
        "layers": lambda by: _by_name(by, lambda at: tuple(_by_name(one, _shape) for one in at)),
        "ties": lambda by: _by_name(by, _numbers),
        "cost": lambda by: _by_name(by, _cost),
        "left_out": lambda by: _by_name(by, _text),
    }
    # What a later minor format adds is passed over.
    return Run(**{one.name: readers[one.name](given[one.name]) for one in fields(Run)})


def _agreement(value: Mapping[str, Any]) -> Agreement:
    names = tuple(map(_text, value["names"]))
    matrices = [tuple(_numbers(row) for row in value[name]) for name in ("jaccard", "chance")]
    if any(len(matrix) != len(names) or {*map(len, matrix)} - {len(names)} for matrix in matrices):
        raise InvalidValueError("agreement", expected=f"{len(names)} rows of {len(names)}")
    return Agreement(names, *matrices)


def _shape(value: Mapping[str, Any]) -> LayerShape:
    counts = {one.name: _count(value[one.name]) for one in fields(LayerShape) if one.name != "cross"}
    return LayerShape(**counts, cross=None if value["cross"] is None else _count(value["cross"]))


def _cost(value: Mapping[str, Any]) -> Cost:
    return Cost(_number(value["seconds"]), _count(value["memory"]), tuple(map(_text, value["reads"])))


def _by_name(value: Mapping[str, Any], read: Callable[[Any], T]) -> dict[str, T]:
    return {_text(name): read(one) for name, one in value.items()}


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(_number(one) for one in value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidValueError("comparison", expected="a finite number", got=repr(value)[:80])
    return float(value)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise InvalidValueError("comparison", expected="a count", got=repr(value)[:80])
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 4096 or not value.isprintable():
        raise InvalidValueError("comparison", expected="printable text", got=repr(value)[:80])
    return value
