"""`assess`: what the run learned and did not, where a call's time goes, and what falls apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradtrace.assessment.assessment import Assessment, LayerAssessment, TokenUse
from gradtrace.assessment.heads import Heads, heads_of
from gradtrace.assessment.movement import moved
from gradtrace.assessment.use import Use
from gradtrace.errors import InvalidValueError, UnknownNameError, UnsupportedError
from gradtrace.evidence.definition import Gathering, Study
from gradtrace.evidence.drift import DRIFT, gather_drift
from gradtrace.evidence.given_scores import checked_share
from gradtrace.evidence.local_fdr import local_discoveries
from gradtrace.evidence.matching import study_of
from gradtrace.evidence.same_run import check_same_run
from gradtrace.evidence.score import check_ledger
from gradtrace.evidence.undertrained import embeddings, undertrained
from gradtrace.evidence.weights import read_weights
from gradtrace.structure.components import components

if TYPE_CHECKING:
    from gradtrace.ledger.reader import Ledger, ParameterRecord
    from gradtrace.structure.cost import CostTable

__all__ = ["assess"]

_CONVOLUTION = 3  # dimensions from which on a weight is used once for each position


def assess(
    ledger: Ledger, weights: object = None, *, q: float = 0.1, cost: CostTable | None = None
) -> Assessment:
    """Find out what the run learned and what it did not.

    `weights` are those that the run ended with, as for `score`; without them it is not told how far layers
    moved. An nn.Module also tells its attention heads. `q`: the false discovery rate at which a drift counts
    as confirmed. `cost` predicts the time of linear layers (`gradtrace.convert.timing.cost_table` measures
    one); without it, time goes by the number of weights, and so it does where a layer is not linear.

    The ledger is walked over once, and one parameter at a time is in memory.

    Raises InvalidValueError for what is no ledger and for q outside (0, 1], UnknownNameError for a ledger
    without events, UnsupportedError for one without a weight of two dimensions, and, of the weights, what
    `score` raises.
    """
    if ledger is None:
        raise InvalidValueError(
            "ledger",
            expected="a ledger, which says what was supported",
            got="None",
            remedy="open one with gradtrace.Ledger.open(path)",
        )
    check_ledger(ledger)
    rate = checked_share("q", q, "q=0.1")
    if "events" not in ledger.accumulators:
        raise UnknownNameError(
            "assess needs the accumulator 'events'",
            expected="it in the ledger",
            got=", ".join(ledger.accumulators),
            remedy="record it in the next run",
        )
    names = [name for name, one in ledger.items() if _multiplies(one)]
    if not names:
        raise UnsupportedError(
            f"the ledger {ledger.path}",
            expected="a weight of at least two dimensions that inputs are multiplied with",
            got="none",
            remedy="record linear layers or convolutions",
        )
    study = None
    if weights is not None:
        study = study_of(ledger, read_weights(weights))
        check_same_run(study, ledger)
    time, timed_by = _times(ledger, names, cost)
    silent = _used_last(ledger, names)
    widths = heads_of(weights)
    layers = {
        record.name: _layer(record, use, confirmed, silent, widths, study, time[record.name])
        for record, use, confirmed in _uses(ledger, names, rate)
    }
    tokens = tuple(_tokens(ledger, name) for name in embeddings(ledger))
    return Assessment(
        ledger.path, ledger.run_id, ledger.steps, ledger.partial, rate, timed_by, layers, tokens
    )


def _multiplies(record: ParameterRecord) -> bool:
    # An embedding is looked up; one that is a head too is multiplied with.
    info = record.info
    return len(info.shape) >= 2 and info.size > 0 and (info.role != "embedding" or bool(info.aliases))


def _uses(
    ledger: Ledger, names: Sequence[str], q: float
) -> Iterator[tuple[ParameterRecord, Use, int | None]]:
    """Of each parameter, in order: its use, and how many dependencies have a confirmed drift, if known."""
    drift = not DRIFT.missing(ledger.accumulators)
    gather = gather_drift(Study({}, dict(ledger.items()), {}, {}))
    now: tuple[ParameterRecord, Use, Gathering | None] | None = None
    for block in ledger.walk(names, DRIFT.needs if drift else ("events",)):
        if now is None or now[0].name != block.name:
            if now is not None:
                yield now[0], now[1], _confirmed(now[2], q)
            record = ledger[block.name]
            known = drift and record.windows >= 2
            now = record, Use(record.shape), gather(block.name) if known else None
        now[1].add(block.part, block.totals["events"])
        if now[2] is not None:
            now[2].add(block.part, block.totals)
    if now is not None:
        yield now[0], now[1], _confirmed(now[2], q)


def _confirmed(gathering: Gathering | None, q: float) -> int | None:
    pvalues = gathering.finding().pvalue if gathering is not None else None
    return None if pvalues is None else int(np.count_nonzero(local_discoveries(pvalues, q)))


def _used_last(ledger: Ledger, names: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Which outputs had an event in the last entry; nothing where that is all there is."""
    if len(ledger.entries) < 2:
        return {}
    last = ledger.between(ledger.entries[-1].begin)
    live: dict[str, Use] = {}
    done: dict[str, NDArray[np.bool_]] = {}
    for block in last.walk([name for name in names if name in last], ("events",)):
        if block.name not in live:
            done |= {name: _outputs(ledger[name], use.edges) for name, use in live.items()}
            live = {block.name: Use(ledger[block.name].shape)}
        live[block.name].add(block.part, block.totals["events"])
    return done | {name: _outputs(ledger[name], use.edges) for name, use in live.items()}


def _flipped(record: ParameterRecord) -> bool:
    return record.info.orientation == "in,out"


def _outputs(record: ParameterRecord, edges: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(edges.any(axis=0 if _flipped(record) else 1))


def _layer(
    record: ParameterRecord,
    use: Use,
    confirmed: int | None,
    last: Mapping[str, NDArray[np.bool_]],
    widths: Mapping[str, Heads],
    study: Study | None,
    time: float,
) -> LayerAssessment:
    edges = use.edges.T if _flipped(record) else use.edges
    live = np.asarray(edges.any(axis=1))
    parts = components(edges)
    silent = live & ~last[record.name] if record.name in last else np.zeros_like(live)
    named = [one for one in (record.name, *record.info.aliases) if one in widths]
    heads, dead_heads = widths[named[0]].dead(live) if named else (0, ())
    return LayerAssessment(
        name=record.name,
        shape=tuple(record.shape),
        never_supported=use.never,
        confirmed=confirmed,
        outputs=edges.shape[0],
        inputs=edges.shape[1],
        dead_outputs=_indices(np.asarray(~live)),
        dead_inputs=_indices(np.asarray(~edges.any(axis=0))),
        silent_outputs=_indices(silent),
        heads=heads,
        dead_heads=dead_heads,
        moved=None if study is None else moved(record, study.weights[record.name]),
        blocks=len(parts),
        runs=sum(part.size for part in parts) / edges.size,
        time=time,
    )


def _indices(chosen: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(np.flatnonzero(chosen).tolist())


def _times(ledger: Ledger, names: Sequence[str], cost: CostTable | None) -> tuple[dict[str, float], Any]:
    """Share of a call's products, by the cost model if it speaks of all layers, else by weights."""
    records = [ledger[name] for name in names]
    if cost is not None and all(len(one.shape) < _CONVOLUTION for one in records):
        sides = [one.shape if _flipped(one) else one.shape[::-1] for one in records]
        taken, by = [cost.predict_dense(*side) for side in sides], "cost model"
    else:
        taken, by = [float(one.info.size) for one in records], "weights"
    return {name: one / sum(taken) for name, one in zip(names, taken, strict=True)}, by


def _tokens(ledger: Ledger, name: str) -> TokenUse:
    rows = ledger[name].shape[0]
    try:
        found = undertrained(ledger, name)
    except (UnknownNameError, UnsupportedError) as error:
        return TokenUse(name, rows, 0, 0, str(error))
    return TokenUse(name, rows, int(found.never.sum()), int(found.rarely.sum()))
