"""Planted truth: whether the evidence says what is there, and says nothing where nothing is.

a. *Sparse categories*: a sample activates one group of inputs and has labels for the outputs that depend on
   it, so which dependencies got no sample at all is known. Under SGD, Adam and AdamW, with decay 0, .01, .1.
b. *Blocks*: dense inputs, a teacher of K blocks behind permutations, a share of cross edges as a dial.
c. *Null*: fresh random labels at every step after a burn-in; nothing can be learned. Also with four fifths
   of each batch staying for the next step, which correlates the gradients.

Of (b) both starts are told. From zero, what has no teacher's weight has no direction either. From torch's own
initialization such weights walk to zero: a direction, which `drift` and `sign` find, rightly, and no edge;
`departure` asks for a way that leads from zero.

Writes the figures as JSON. Models are single layers where truth is asked of single weights: inside a network
of several, hidden units may be exchanged and no weight has a truth of its own.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Annotated, Any, TypeAlias

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from scipy import stats
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

import gradtrace as gt
from gradtrace.evidence.confirm import Method, confirm
from gradtrace.evidence.never_supported import smallest
from gradtrace.report.table import Table

ROOT = Path(__file__).resolve().parents[1]
LEVELS = (0.01, 0.05, 0.1)
Q = 0.1
CALIBRATED = ("departure", "drift", "sign")
BURN_IN = 1000  # by then the null's predictions are even, and no direction is left
TESTS: tuple[tuple[str, Method], ...] = (
    ("departure", "local"),
    ("departure", "by"),
    ("drift", "local"),
    ("drift", "by"),
    ("sign", "e-bh"),
)
Bools: TypeAlias = NDArray[np.bool_]
OPTIMIZERS: dict[str, Callable[[Any, float], torch.optim.Optimizer]] = {
    "SGD": lambda p, decay: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=decay),
    "Adam": lambda p, decay: torch.optim.Adam(p, lr=3e-3, weight_decay=decay),
    "AdamW": lambda p, decay: torch.optim.AdamW(p, lr=3e-3, weight_decay=decay),
}


def recorded(
    folder: Path,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    loss: Callable[[], Tensor],
    burn_in: int = 0,
) -> gt.Ledger:
    """Train, and record all but the first `burn_in` steps into a new ledger in `folder`."""
    path = Path(mkdtemp(dir=folder)) / "run.ledger.zarr"
    with gt.Recorder(net, path, window_steps=32, entry_steps=320) as recorder:
        for step in range(burn_in + steps):
            optimizer.zero_grad()
            loss().backward()  # type: ignore[no-untyped-call]
            if step >= burn_in:
                recorder.observe(optimizer)
            optimizer.step()
    return gt.Ledger.open(path)


def auprc(score: NDArray[np.floating[Any]], truth: Bools) -> float:
    """Average precision; equal scores share their places."""
    values, place = np.unique(-score.ravel(), return_inverse=True)
    right = np.cumsum(np.bincount(place, truth.ravel(), len(values)))
    kept = np.cumsum(np.bincount(place, minlength=len(values)))
    return float(np.sum(np.diff(right, prepend=0) * right / kept) / max(right[-1], 1))


def found(kept: Bools, truth: Bools) -> dict[str, float]:
    """Recall, and the share of the discoveries that is false."""
    right = int((kept & truth).sum())
    return {
        "recall": right / max(int(truth.sum()), 1),
        "fdp": 1 - right / max(int(kept.sum()), 1) if kept.any() else 0.0,
    }


def sparse_categories(folder: Path, seed: int, optimizer: str, decay: float, steps: int) -> dict[str, Any]:
    groups, inputs, outputs = 12, 8, 4
    torch.manual_seed(seed)
    depends = torch.rand(groups, groups) < 0.25  # output group, input group
    depends[:, 0] = False  # a category that never comes
    active = torch.arange(1, groups)[depends[:, 1:].any(dim=0)]
    wide = depends.repeat_interleave(outputs, 0).repeat_interleave(inputs, 1)
    teacher = torch.randn(wide.shape) * wide
    net = nn.Linear(groups * inputs, groups * outputs)
    seen = torch.zeros(wide.shape)

    def loss() -> Tensor:
        group = active[torch.randint(len(active), (32,))]
        x = torch.randn(32, groups, inputs) * nn.functional.one_hot(group, groups)[..., None]
        x = x.flatten(1)
        labelled = depends[:, group].T.repeat_interleave(outputs, 1)
        seen.add_((labelled.float().T @ (x != 0).float()).clamp(max=1))
        error = net(x) - (x @ teacher.T + 0.3 * torch.randn(32, groups * outputs))
        return torch.mean(error.square() * labelled)

    ledger = recorded(folder, net, OPTIMIZERS[optimizer](net.parameters(), decay), steps, loss)
    never = (seen == 0).numpy()
    scores = {one.name: gt.score(ledger, net, one.name) for one in gt.criteria(ledger)}
    calls = {
        "support": scores["support"]["weight"] == 0,
        "explain": ~gt.explain(ledger, net).mask["weight"],
        "displacement": scores["displacement"]["weight"] <= 1e-6,
        "init": ~gt.select(scores["init"], fdr=0.05)["weight"],
        "magnitude": smallest(scores["magnitude"], {"weight": int(never.sum())})["weight"],
    }
    return {
        "planted": int(never.sum()),
        "absence": {name: found(call, never) for name, call in calls.items()},
        "auprc": {name: auprc(one["weight"], ~never) for name, one in scores.items()},
        "learned": {
            f"{test} {method}": found(confirm(scores[test], method, Q)["weight"], wide.numpy())
            for test, method in TESTS
        },
    }


def blocks(
    folder: Path, seed: int, dial: float, start: str, steps: int, optimizer: str = "", decay: float = 0.0
) -> dict[str, Any]:
    """By plain SGD, or one of OPTIMIZERS."""
    count, side = 4, 12
    torch.manual_seed(seed)
    block = torch.arange(count).repeat_interleave(side)
    rows, columns = block[torch.randperm(count * side)], block[torch.randperm(count * side)]
    inside = rows[:, None] == columns[None]
    truth = inside | (torch.rand(inside.shape) < dial)
    teacher = torch.randn(truth.shape) * truth / side**0.5
    net = nn.Linear(count * side, count * side)
    if start == "zero":
        nn.init.zeros_(net.weight)

    def loss() -> Tensor:
        x = torch.randn(32, count * side)
        return nn.functional.mse_loss(net(x), x @ teacher.T + torch.randn(32, count * side))

    plain = torch.optim.SGD(net.parameters(), lr=0.02)
    by = OPTIMIZERS[optimizer](net.parameters(), decay) if optimizer else plain
    ledger = recorded(folder, net, by, steps, loss)
    kinds = [one.name for one in gt.criteria(ledger) if start != "zero" or one.name != "init"]
    scores = {name: gt.score(ledger, net, name) for name in kinds}
    masks = {f"{test} {method}": confirm(scores[test], method, Q)["weight"] for test, method in TESTS}
    named = {name: one["weight"] for name, one in scores.items()}
    as_many = {name: one >= np.sort(one, axis=None)[-int(truth.sum())] for name, one in named.items()}
    result: dict[str, Any] = {"auprc": {name: auprc(one, truth.numpy()) for name, one in named.items()}}
    equals = {f"{name} as many": mask for name, mask in as_many.items() if name != "support"}
    for name, mask in (masks | equals).items():
        cross = mask & ~inside.numpy() & ~truth.numpy()
        labels = np.concatenate([rows.numpy(), columns.numpy()])
        result[name] = found(mask, truth.numpy()) | {
            "cross_block_false_edges": int(cross.sum()),
            "rand_index": rand_index(components(mask), labels),
        }
    return result


def components(mask: Bools) -> NDArray[np.int64]:
    """Which connected component each output, then each input belongs to."""
    tall, wide = mask.shape
    first, second = np.nonzero(mask)
    graph = csr_array((np.ones(len(first)), (first, second + tall)), shape=(tall + wide, tall + wide))
    return np.asarray(connected_components(graph, directed=False)[1])


def rand_index(left: NDArray[Any], right: NDArray[Any]) -> float:
    """Adjusted for chance (Hubert and Arabie 1985): 1 for the same partition, 0 on average for any other."""
    table = np.zeros((left.max() + 1, right.max() + 1))
    np.add.at(table, (left, right), 1)
    pairs, rows, columns = ((n * (n - 1) / 2).sum() for n in (table, table.sum(axis=1), table.sum(axis=0)))
    expected, most = rows * columns / (len(left) * (len(left) - 1) / 2), (rows + columns) / 2
    return float((pairs - expected) / (most - expected)) if most != expected else 1.0


def null(folder: Path, seed: int, staying: float, steps: int, burn_in: int) -> dict[str, list[float]]:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 8))
    x, y = torch.randn(32, 24), torch.randint(8, (32,))

    def loss() -> Tensor:
        fresh = torch.rand(32) >= staying
        x[fresh], y[fresh] = torch.randn(int(fresh.sum()), 24), torch.randint(8, (int(fresh.sum()),))
        return nn.functional.cross_entropy(net(x), y)

    ledger = recorded(folder, net, torch.optim.SGD(net.parameters(), lr=0.1), steps, loss, burn_in)
    tests = {name: gt.score(ledger, net, name).pvalues for name in CALIBRATED}
    pvalues = {name: np.concatenate([p.ravel() for p in one.values()]) for name, one in tests.items() if one}
    naive = []
    for name in tests["drift"] or ():
        record = ledger[name]
        variance = (record.grad_sumsq - record.grad_sum**2 / steps) / (steps - 1)
        naive.append(2 * stats.t.sf(np.abs(record.grad_sum) / np.sqrt(variance * steps), steps - 1).ravel())
    pvalues["naive t of steps"] = np.concatenate(naive)
    return {name: [float(np.mean(p < level)) for level in LEVELS] for name, p in pvalues.items()}


def mean_of(results: list[Any]) -> Any:
    """The mean over seeds, whatever the results hold; of an fdp also half its 95% t-interval."""
    first = results[0]
    if not isinstance(first, dict):
        return np.mean(results, axis=0).tolist()
    means = {key: mean_of([one[key] for one in results]) for key in first}
    if "fdp" in first and len(results) > 1:
        spread = float(np.std([one["fdp"] for one in results], ddof=1)) / len(results) ** 0.5
        means["fdp_half_width"] = float(stats.t.ppf(0.975, len(results) - 1)) * spread
    return means


def main(
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each setting.")] = 20,
    steps: Annotated[int, typer.Option(min=64, help="Recorded steps of each training.")] = 1280,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = ROOT
    / "benchmarks/results/planted.json",
) -> None:
    """Check the evidence against planted truth."""
    torch.set_num_threads(1)
    console = Console()
    every = range(seeds)
    with TemporaryDirectory(prefix="planted-") as name:
        folder = Path(name)
        absences = {
            f"{by}, decay {decay:g}": mean_of([sparse_categories(folder, s, by, decay, steps) for s in every])
            for by in OPTIMIZERS
            for decay in (0.0, 0.01, 0.1)
        }
        dials = {
            f"{start} start, {dial:.0%} cross": mean_of(
                [blocks(folder, s, dial, start, steps) for s in every]
            )
            for start in ("zero", "default")
            for dial in (0.0, 0.01, 0.05)
        } | {
            f"default start, 1% cross, {by} decay {decay:g}": mean_of(
                [blocks(folder, s, 0.01, "default", steps, by, decay) for s in every]
            )
            for by in ("Adam", "AdamW")
            for decay in (0.0, 0.1)
        }
        nulls = {
            words: mean_of([null(folder, s, staying, steps, BURN_IN) for s in every])
            for words, staying in (("fresh batches", 0.0), ("four fifths of a batch stay", 0.8))
        }
    for table in tables(absences, dials, nulls):
        table.print(console)
    exact = all(
        (one["absence"][name]["recall"], one["absence"][name]["fdp"]) == (1.0, 0.0)
        for one in absences.values()
        for name in ("support", "explain")
    )
    calibrated = all(
        share <= 1.2 * level
        for one in nulls.values()
        for name in CALIBRATED
        for share, level in zip(one[name], LEVELS, strict=True)
    )
    learned = [one["learned"] for one in absences.values()] + list(dials.values())
    controlled = all(
        one[f"{test} {method}"]["fdp"] <= 1.2 * Q
        for one in learned
        for test, method in TESTS
        if test == "departure"
    )
    results = {
        "seeds": seeds,
        "steps": steps,
        "machine": {"torch": torch.__version__, "python": platform.python_version()},
        "sparse_categories": absences,
        "blocks": dials,
        "null": {"levels": LEVELS} | nulls,
        "every_absence_found": exact,
        "calibrated": calibrated,
        "controlled": controlled,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=2) + "\n")
    console.print(f"Written to {out}", highlight=False)
    if not (exact and calibrated and controlled):
        raise typer.Exit(1)


def tables(absences: dict[str, Any], dials: dict[str, Any], nulls: dict[str, Any]) -> tuple[Table, ...]:
    def cell(one: dict[str, float]) -> str:
        width = f"±{one['fdp_half_width']:.3f}" if one.get("fdp_half_width") else ""
        return f"{one['recall']:.3f}/{one['fdp']:.3f}{width}"

    first = next(iter(absences.values()))["absence"]
    rows = [(name, *(cell(one["absence"][by]) for by in first)) for name, one in absences.items()]
    tests = [f"{test} {method}" for test, method in TESTS]
    mixed = [(name, *(cell(one["learned"][by]) for by in tests)) for name, one in absences.items()]
    edges = [
        (name, by, cell(one[by]), f"{one[by]['cross_block_false_edges']:.1f}", f"{one[by]['rand_index']:.2f}")
        for name, one in dials.items()
        for by in one
        if by in tests or by.startswith(("fisher-step", "magnitude", "displacement", "random"))
    ]
    levels = [
        (name, by, *(f"{share:.3f}" for share in shares))
        for name, one in nulls.items()
        for by, shares in one.items()
    ]
    return (
        Table("Planted absences: recall / false share of the calls", ("run", *first), tuple(rows)),
        Table(
            f"What was learned of the sparse categories: recall / false share, at q = {Q:g}",
            ("run", *tests),
            tuple(mixed),
        ),
        Table(
            f"Blocks: recall / false discovery proportion, tests at q = {Q:g}",
            ("run", "by", "edges", "false cross edges", "Rand index"),
            tuple(edges),
            '"As many": the mask has as many edges as there are. Rand index of the connected components.',
        ),
        Table("Null: share of p below", ("run", "by", *(f"{level:g}" for level in LEVELS)), tuple(levels)),
    )


if __name__ == "__main__":
    typer.run(main)
