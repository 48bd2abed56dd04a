"""What reordering a mask saves beside row groups in natural order, and whether the planner picks the fastest.

First, on masks of a trained byte-level language model, on random masks of the same shapes and on planted
ones, every method of gradtrace.structure makes sub-operators of the mask, and all of them run beside the
dense layer, in turns, in an order that changes from round to round. What a method saves is 1 less the median
over the rounds of its time by that of the fastest row groups in natural order in the same round.

Second, over a grid of layers (shape, kind of mask, density, tokens) all of the planner's candidates and the
dense layer run in turns, and the planner is asked as a user would ask it. Its regret is the median time of
what it chose by the median of the fastest, less 1; it may be 10% in nine of ten cases.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import typer
from machine import processor
from numpy.typing import NDArray
from reordered.masks import LAYERS, Named, planted_masks, random_masks, trained_masks
from reordered.methods import NATURAL, found
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from torch import nn
from torch.nn import functional
from turns import in_turns, ratios, spread

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "recipes"))

import byte_model  # noqa: E402

import gradtrace as gt  # noqa: E402
from gradtrace.convert.routed_linear import RoutedLinear  # noqa: E402
from gradtrace.convert.timing import cost_table  # noqa: E402
from gradtrace.convert.weights_file import read_weights  # noqa: E402
from gradtrace.evidence.whole_file import write_whole  # noqa: E402
from gradtrace.report.table import Table  # noqa: E402
from gradtrace.report.terminal import terminal  # noqa: E402
from gradtrace.structure.candidates import candidates  # noqa: E402
from gradtrace.structure.sub_operator import SubOperator  # noqa: E402

Mask = NDArray[np.bool_]
SEED = 0
REORDER_TOKENS = 512
SHAPES = ((128, 512), (384, 1536), (1024, 1024), (1024, 4096))
KINDS = ("row groups", "shuffled row groups", "single weights")
DENSITIES = (0.5, 0.3, 0.1)
TOKENS = (1, 16, 512)
AIM = 0.1


def layer(mask: Mask, parts: tuple[SubOperator, ...]) -> RoutedLinear:
    made = RoutedLinear(mask.shape[1], mask.shape[0], parts)
    nn.init.normal_(made.weight, std=0.02)
    return made


def dense_call(shape: tuple[int, ...], x: torch.Tensor) -> Callable[[], object]:
    weight, bias = torch.randn(shape), torch.zeros(shape[0])
    return lambda: functional.linear(x, weight, bias)


def reordered(named: Named, seconds: float) -> list[dict[str, Any]]:
    """One row for each method."""
    made = found(named.mask)
    x = torch.randn(REORDER_TOKENS, named.mask.shape[1])
    functions = {"dense": dense_call(named.mask.shape, x)}
    functions |= {name: partial(layer(one.mask, one.parts), x) for name, one in made.items()}
    taken = in_turns(functions, seconds)
    natural = min((name for name in NATURAL if name in made), key=lambda name: median(taken[name].values()))
    return [
        {
            "source": named.source,
            "mask": named.name,
            "method": name,
            "tokens": REORDER_TOKENS,
            "density": float(named.mask.mean()),
            "kept": float(one.mask.sum() / named.mask.sum()),
            "work": sum(part.size for part in one.parts) / named.mask.size,
            "sub_operators": len(one.parts),
            "search_seconds": one.seconds,
            "saved": 1 - median(ratios(taken[name], taken[natural])),
            "natural": natural,
            "speed": median(ratios(taken["dense"], taken[name])),
            "seconds": spread(taken[name]),
        }
        for name, one in made.items()
    ]


def grid() -> Iterator[tuple[tuple[int, int], str, float, Mask]]:
    """(inputs, outputs), kind, density, mask."""
    generator = np.random.default_rng(SEED)
    for inputs, outputs in SHAPES:
        for kind in KINDS:
            for density in DENSITIES:
                if kind == "single weights":
                    mask = generator.random((outputs, inputs)) < density
                else:
                    supports = generator.random((-(-outputs // 64), inputs)) < density
                    mask = np.repeat(supports, 64, axis=0)[:outputs]
                    if kind == "shuffled row groups":
                        # Hardly two rows alike, so that they have to be searched for.
                        mask &= generator.random(mask.shape) < 0.98
                        mask = mask[generator.permutation(outputs)]
                yield (inputs, outputs), kind, density, mask


def judged(shape: tuple[int, int], mask: Mask, tokens: int, seconds: float) -> dict[str, Any]:
    """What the planner chose, and how that compares with the fastest candidate."""
    x = torch.randn(tokens, shape[0])
    table = cost_table(torch.device("cpu"), torch.float32, tokens)
    given = list(candidates(mask))
    functions = {"dense": dense_call(mask.shape, x)}
    functions |= {one.words: partial(layer(mask, one.sub_operators), x) for one in given}
    model = nn.Sequential(nn.Linear(*shape))
    planned = gt.plan(model, {"0.weight": mask}, tokens=tokens)["0"]
    taken = {name: spread(times) for name, times in in_turns(functions, seconds).items()}
    chosen = "dense" if planned.choice == "dense" else planned.reason.split(": predicted")[0]
    best = min(taken, key=lambda name: taken[name]["median"])
    predicted = {
        one.words: table.predict_sub_operators(one.sub_operators, shape[0], shape[1]) for one in given
    }
    return {
        "inputs": shape[0],
        "outputs": shape[1],
        "tokens": tokens,
        "chosen": chosen,
        "best": best,
        "regret": taken[chosen]["median"] / taken[best]["median"] - 1,
        "reason": planned.reason,
        "predicted": {"dense": table.predict_dense(*shape), **predicted},
        "seconds": taken,
    }


def saved_tables(rows: list[dict[str, Any]]) -> Iterator[Table]:
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for source in dict.fromkeys(row["source"] for row in rows):
        cells = []
        for method in methods:
            own = [row for row in rows if (row["source"], row["method"]) == (source, method)]
            if own:
                best = max(own, key=lambda row: row["saved"])
                cells.append(
                    (
                        method,
                        str(len(own)),
                        f"{median(row['saved'] for row in own):.0%}",
                        f"{best['saved']:.0%} ({best['mask']})",
                        str(sum(row["saved"] > 0.02 for row in own)),
                        f"{median(row['work'] for row in own):.2f}",
                        f"{median(row['kept'] for row in own):.2f}",
                        f"{median(row['search_seconds'] for row in own):.3f}",
                    )
                )
        columns = ("method", "masks", "saved", "at most", "above 2%", "work", "kept", "search s")
        note = (
            "Saved: median share of the time of the fastest row groups in natural order. Work: of the dense."
        )
        yield Table(f"Time saved on {source} masks, {REORDER_TOKENS} tokens", columns, tuple(cells), note)


def regret_table(cases: list[dict[str, Any]]) -> Table:
    worst = sorted(cases, key=lambda case: -case["regret"])[:12]
    cells = tuple(
        (
            f"{case['inputs']} to {case['outputs']}",
            f"{case['kind']} {case['density']:g}",
            str(case["tokens"]),
            case["chosen"],
            case["best"],
            f"{case['regret']:.0%}",
        )
        for case in worst
    )
    columns = ("layer", "mask", "tokens", "chosen", "fastest", "slower by")
    return Table("Where the planner chose worst", columns, cells, summary_line(cases))


def summary_line(cases: list[dict[str, Any]]) -> str:
    within = sum(case["regret"] <= AIM for case in cases)
    return (
        f"Within {AIM:.0%} of the fastest in {within} of {len(cases)} cases ({within / len(cases):.0%}); "
        "the aim is 90%."
    )


def masks_of(run: Path | None) -> Iterable[Named]:
    shapes = [(128, 128), (512, 128), (128, 512)]
    if run is not None:
        net = byte_model.model()
        net.load_state_dict(read_weights(run / "weights.safetensors"))
        with_ledger = gt.Ledger.open(run / "language.ledger.zarr")
        yield from trained_masks(net.eval(), with_ledger)
        shapes = list(dict.fromkeys(tuple(net.get_submodule(name).weight.shape) for name in LAYERS))  # type: ignore[arg-type]
    yield from random_masks(shapes, SEED)
    yield from planted_masks(SEED)


def machine() -> Mapping[str, Any]:
    return {
        "processor": processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("gradtrace", "torch", "numpy", "scipy")},
        "partitioners": {name: version(name) for name in ("mtkahypar", "scikit-learn")},
    }


@contextmanager
def fresh_costs() -> Iterator[None]:
    """Costs that were kept may have been measured while the machine did something else."""
    before = os.environ.get("XDG_CACHE_HOME")
    with TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            yield
        finally:
            del os.environ["XDG_CACHE_HOME"]
            if before is not None:
                os.environ["XDG_CACHE_HOME"] = before


@torch.no_grad()
def main(
    run: Annotated[
        Path | None, typer.Option(help="A training of recipes/language.py; without, no trained masks.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="Time for the turns of each case.")] = 1.0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = ROOT
    / "benchmarks/results/reordering.json",
) -> None:
    """Time reordered layers and the planner's choices: some 7 minutes on a machine that does nothing else.

    python benchmarks/reordering.py --run runs/language/seed-0
    """
    console = terminal()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    rows: list[dict[str, Any]] = []
    cases: list[dict[str, Any]] = []
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    try:
        with (
            fresh_costs(),
            Progress(*columns, console=console, disable=not console.is_terminal) as progress,
        ):
            given = list(masks_of(run))
            for named in progress.track(given, description="reordering"):
                rows += reordered(named, seconds)
            layers = list(grid())
            for shape, kind, density, mask in progress.track(layers, description="planning"):
                for tokens in TOKENS:
                    case = {"kind": kind, "density": density}
                    cases.append(case | judged(shape, mask, tokens, seconds))
        facts = machine()
    finally:
        torch.set_num_threads(before)
    for table in saved_tables(rows):
        table.print(console)
    regret_table(cases).print(console)
    result = {
        "command": " ".join(["python", "benchmarks/reordering.py", *sys.argv[1:]]),
        "seed": SEED,
        "machine": facts,
        "judged": summary_line(cases),
        "within": sum(case["regret"] <= AIM for case in cases) / len(cases),
        "reordering": rows,
        "planning": cases,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode(), "results")
    console.print(f"Written to {out}.")


if __name__ == "__main__":
    try:
        typer.run(main)
    except gt.GradtraceError as error:
        sys.exit(f"error: {error}")
