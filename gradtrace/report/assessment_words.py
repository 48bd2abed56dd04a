"""An assessment in plain words: what was learned, what was not, and what to do next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from gradtrace.assessment.assessment import HARDLY, Assessment, LayerAssessment

__all__ = ["assessment_lines", "next_lines"]

_NAMED = 6
_SMALL = 0.05


def assessment_lines(found: Assessment) -> tuple[str, ...]:
    """Sentences, the most certain first."""
    return tuple(_lines(found))


def _lines(found: Assessment) -> Iterator[str]:
    layers = tuple(found.layers.values())
    yield (
        f"Over {found.steps:,} steps {found.never_supported:.1%} of {found.dependencies:,} dependencies "
        "never had a gradient: nothing in the data supported them."
    )
    if found.partial:
        yield "This is a part of the run: what had no gradient in it may have had one outside."
    if found.not_confirmed is not None:
        yield (
            f"Of {found.not_confirmed:.1%} no direction of learning was confirmed (false discovery rate "
            f"{found.q:g}). That is no verdict on what they are worth: what matters need not move."
        )
    yield from _counted(
        layers, "dead input", lambda one: one.dead_inputs, "never carried anything, being always zero"
    )
    yield from _counted(layers, "dead neuron", lambda one: one.dead_outputs, "never had a gradient")
    yield from _counted(
        layers, "neuron", lambda one: one.silent_outputs, "fell silent: no gradient in the last entry"
    )
    yield from _counted(layers, "dead attention head", lambda one: one.dead_heads, "never had a gradient")
    known = [one for one in layers if one.moved is not None]
    still = [one for one in known if one.hardly_moved]
    if still:
        yield (
            f"{_count(len(still), 'layer')} of {len(known)} hardly moved, by less than {HARDLY:.0%} of what "
            f"{'it' if len(still) == 1 else 'they'} began with: {_names(still)}."
        )
    elif known:
        least = min(known, key=lambda one: one.moved or 0.0)
        yield f"Every layer moved; the least did {least.name}, by {least.moved:.1%} of what it began with."
    for tokens in found.tokens:
        if tokens.refused:
            yield f"{tokens.name}: which rows were used cannot be told. {tokens.refused}"
        elif tokens.never or tokens.rarely:
            yield (
                f"{tokens.name}: {tokens.never:,} of {tokens.rows:,} rows were never used, {tokens.rarely:,} "
                "in less than 1% of the steps."
            )
    top = sorted(layers, key=lambda one: -one.time)[:3]
    how = "as the cost model predicts" if found.timed_by == "cost model" else "if time goes by weights"
    yield (
        "Of a call's products, " + ", ".join(f"{one.name} takes {one.time:.0%}" for one in top) + f", {how}."
    )
    apart = [one for one in layers if one.decomposes]
    if apart:
        yield (
            f"{_count(len(apart), 'layer')} of {len(layers)} would run less without losing anything that was "
            f"supported: {_names(apart)}. All products would take {found.runs:.0%} of the time."
        )
    else:
        yield "No layer falls apart: what was supported is one piece in each, nearly as large as the layer."


def next_lines(found: Assessment, *, weights: bool) -> tuple[str, ...]:
    """What to do about it; `weights`: whether the final weights were looked at."""
    layers = tuple(found.layers.values())
    lines = []
    if found.runs < 1 - _SMALL:
        lines.append(
            "Remove what was never supported: gradtrace convert LEDGER WEIGHTS OUT --model ... --by support "
            f"--density {1 - found.never_supported:.2g}. Outputs stay as they are only as far as such "
            "weights are multiplied with zeros; --validate tells."
        )
    else:
        lines.append(
            "The data alone will not make this model faster. Make a structure: gradtrace.anneal with the "
            "ledger, or gradtrace compare for what masks cost in quality."
        )
    if any(one.dead_inputs for one in layers):
        lines.append("Leave dead inputs out of the data, or find out why no example has them.")
    if any(one.dead_outputs or one.silent_outputs for one in layers):
        lines.append(
            "Dead and silent neurons: a smaller learning rate, another activation, or fewer of them."
        )
    if any(one.dead_heads for one in layers):
        lines.append("Dead heads can go whole.")
    if any(one.hardly_moved for one in layers):
        lines.append(
            "Layers that hardly moved: freeze them next time and save their gradients, or raise their rate."
        )
    if any(one.never for one in found.tokens):
        lines.append("See which tokens were never used: gradtrace undertrained LEDGER --page tokens.html.")
    if found.not_confirmed is None:
        lines.append("Record more windows to have directions confirmed: two of them are the least.")
    if not weights:
        lines.append("Pass --weights to be told which layers hardly moved.")
    return tuple(lines)


def _counted(
    layers: Sequence[LayerAssessment],
    what: str,
    indices: Callable[[LayerAssessment], tuple[int, ...]],
    predicate: str,
) -> Iterator[str]:
    having = [one for one in layers if indices(one)]
    if having:
        total = sum(len(indices(one)) for one in having)
        where = ", ".join(f"{one.name} ({len(indices(one)):,})" for one in having[:_NAMED])
        yield f"{_count(total, what)} {predicate}: {where}{_more(having)}."


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _names(layers: Sequence[LayerAssessment]) -> str:
    return ", ".join(one.name for one in layers[:_NAMED]) + _more(layers)


def _more(layers: Sequence[LayerAssessment]) -> str:
    return f" and {len(layers) - _NAMED} more" if len(layers) > _NAMED else ""
