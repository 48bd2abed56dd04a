"""Compare criteria on the trained MLPs, and dense with decomposed; write JSON, PNG and HTML."""

from __future__ import annotations

import json
import os
import sys
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from mnist import Classifier, digits, model, run_folders, validate
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from story import story

import gradtrace as gt
from gradtrace.convert.weights_file import read_weights
from gradtrace.errors import InvalidValueError
from gradtrace.evidence.agreement import Agreement, agreement
from gradtrace.evidence.curves import Curves, quality_at_density
from gradtrace.evidence.never_supported import NeverSupported, never_supported, smallest
from gradtrace.evidence.ties import tied_share
from gradtrace.report.latency import interleaved
from gradtrace.report.page import render
from gradtrace.report.plots import agreement_plot, heatmaps, latency_plot, quality_plot
from gradtrace.report.table import Table
from gradtrace.report.tables import (
    agreement_table,
    never_supported_table,
    plan_lines,
    plan_table,
    quality_table,
    verdict_lines,
)

DENSITIES = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05)
AGREE_AT = 0.3
FDR = 0.05


def trained(run: Path) -> Classifier:
    net = model()
    net.load_state_dict(read_weights(run / "mnist.ckpt"))
    return net.eval()


def evaluated(net: Classifier, mask: gt.Mask) -> float:
    return validate(gt.apply_mask_(deepcopy(net), mask))


def missed(ledger: gt.Ledger, scores: dict[str, gt.Scores]) -> NeverSupported:
    """Who finds the dependencies without an event, without looking at the ledger."""
    names = tuple(scores["init"])
    counts = {name: int((ledger[name].events == 0).sum()) for name in names}
    rejected = gt.select(scores["init"], fdr=FDR)
    calls = {
        f"init: not rejected at fdr {FDR:g}": {name: ~rejected[name] for name in names},
        "magnitude: as many of the smallest, per layer": smallest(scores["magnitude"], counts),
        "random: as many, per layer": smallest(scores["random"], counts),
    }
    return never_supported(ledger, names, calls)


def tie_lines(ties: dict[str, float]) -> tuple[str, ...]:
    return tuple(
        f"Of what {name} keeps at density {AGREE_AT:g}, {share:.0%} ties with something dropped: there the "
        "order of the indices decided, not the criterion."
        for name, share in ties.items()
        if share > 0.01
    )


def mean_agreement(runs: list[Agreement]) -> Agreement:
    def mean(matrices: list[Any]) -> Any:
        return tuple(tuple(float(x) for x in row) for row in np.mean(matrices, axis=0))

    return Agreement(runs[0].names, mean([r.jaccard for r in runs]), mean([r.chance for r in runs]))


def side_by_side(run: Path) -> tuple[gt.Plan, Table, dict[str, Any]]:
    """Dense, dense with the same mask, and decomposed: latency measured in turns, parameters, accuracy."""
    dense, plan = trained(run), gt.Plan.load(run / "plan.json")
    masked = gt.apply_mask_(deepcopy(dense), plan)
    decomposed = gt.load(model(), run / "converted").eval()
    nets = {"dense": dense, "dense, masked": masked, "decomposed": decomposed}
    images = digits().test_images
    facts: dict[str, Any] = {
        name: {
            "accuracy": validate(net),
            "parameters": sum(p.numel() for p in net.parameters()),
            "nonzero": sum(int((p != 0).sum()) for p in net.parameters()),
        }
        for name, net in nets.items()
    }
    batches = (1, 32, 512)
    for size in batches:
        for name, latency in interleaved(nets, images[:size]).items():
            facts[name][f"latency at batch {size}"] = asdict(latency)
    rows = tuple(
        (
            name,
            f"{at['accuracy']:.1%}",
            f"{at['parameters']:,}",
            *(f"{at[f'latency at batch {size}']['median'] * 1e3:.3f}" for size in batches),
        )
        for name, at in facts.items()
    )
    columns = ("model", "accuracy", "parameters", *(f"ms at batch {size}" for size in batches))
    note = (
        f"Medians of interleaved calls; threads: {torch.get_num_threads()}; float32, CPU. "
        f"The plan was timed for {plan.provenance.get('tokens')} images."
    )
    return plan, Table("Dense beside decomposed", columns, rows, note), facts


def main(
    runs: Annotated[Path, typer.Option(help="What train.py left: RUNS/seed-0, RUNS/seed-1, ...")] = Path(
        "runs/mnist"
    ),
    out: Annotated[Path | None, typer.Option(help="Folder for the results; left out: RUNS/compare.")] = None,
) -> None:
    """Compare every criterion over all seeds, and what convert.py made of a seed with its dense model.

    Writes OUT/compare.json, OUT/*.png and OUT/compare.html, one page that needs nothing else. Masks are one
    shot: nothing is trained or compensated afterwards.
    """
    console = Console(highlight=False)
    folders = [run for run in run_folders(runs) if (run / "mnist.ckpt").is_file()]
    converted = [run for run in folders if (run / "converted").exists() and (run / "plan.json").is_file()]
    for found_runs, script in ((folders, "train.py"), (converted, "convert.py")):
        if not found_runs:
            raise InvalidValueError(
                "runs",
                expected=f"what {script} leaves",
                got=str(runs),
                remedy=f"run python recipes/{script} first",
            )
    names = [criterion.name for criterion in gt.criteria()]
    elements: list[Curves] = []
    rows: list[Curves] = []
    agreements: list[Agreement] = []
    never: list[NeverSupported] = []
    ties: list[dict[str, float]] = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("comparing", total=len(folders) * len(names) * (1 + 2 * len(DENSITIES)))
        for run in folders:
            net, ledger = trained(run), gt.Ledger.open(run / "mnist.ledger.zarr")

            def evaluate(mask: gt.Mask, net: Classifier = net) -> float:
                progress.advance(task)
                return evaluated(net, mask)

            scores = {}
            for name in names:
                scores[name] = gt.score(ledger, net, by=name)
                progress.advance(task)
            elements.append(quality_at_density(scores, evaluate, DENSITIES))
            rows.append(quality_at_density(scores, evaluate, DENSITIES, granularity="rows"))
            masks = {name: gt.select(score, density=AGREE_AT) for name, score in scores.items()}
            agreements.append(agreement(masks))
            ties.append({name: tied_share(scores[name], masks[name]) for name in names})
            never.append(missed(ledger, scores))

    by_element, by_rows = Curves.together(elements), Curves.together(rows)
    agreed, found = mean_agreement(agreements), NeverSupported.together(never)
    plan, beside, facts = side_by_side(converted[0])
    tables = {
        "quality": quality_table(by_element, title="Accuracy, single dependencies kept"),
        "rows": quality_table(by_rows, title="Accuracy, groups of 64 outputs share their inputs"),
        "agreement": agreement_table(agreed, title=f"Agreement of the masks at density {AGREE_AT:g}"),
        "never": never_supported_table(found),
        "structure": plan_table(plan),
        "latency": beside,
    }
    tables["quality"].print(console)
    tied = tie_lines({name: float(np.median([run[name] for run in ties])) for name in names})
    for line in (*verdict_lines(by_element), *tied):
        console.print(line)
    tables["rows"].print(console)
    for line in verdict_lines(by_rows):
        console.print(line)
    for name in ("agreement", "never", "structure"):
        tables[name].print(console)
    for line in plan_lines(plan):
        console.print(line, markup=False)
    tables["latency"].print(console)

    out = out or runs / "compare"
    out.mkdir(parents=True, exist_ok=True)
    batches = [key for key in facts["dense"] if key.startswith("latency")]
    milliseconds = {
        key.removeprefix("latency at "): {name: at[key]["median"] * 1e3 for name, at in facts.items()}
        for key in batches
    }
    pictures = {
        "quality": quality_plot(by_element, ylabel="held-out accuracy"),
        "rows": quality_plot(by_rows, ylabel="held-out accuracy"),
        "agreement": agreement_plot(agreed),
        "structure": heatmaps(plan),
        "latency": latency_plot(milliseconds),
    }
    for name, png in pictures.items():
        write(out / f"{name}.png", png)
    results = {
        "runs": [str(run) for run in folders],
        "quality": {"element": by_element.to_json(), "rows": by_rows.to_json()},
        "agreement": {"density": AGREE_AT} | agreed.to_json(),
        "decided_by_index_order": {"density": AGREE_AT, "runs": ties},
        "never_supported": {"together": found.to_json(), "runs": [one.to_json() for one in never]},
        "side_by_side": {"run": str(converted[0])} | facts,
    }
    write(out / "compare.json", (json.dumps(results, indent=2, allow_nan=False) + "\n").encode())
    page = story(len(folders), by_element, by_rows, tied, found, plan, facts, tables, pictures)
    write(out / "compare.html", render(page).encode())
    console.print(f"Written: {out / 'compare.json'}, {out / 'compare.html'} and the pictures beside them.")


def write(path: Path, data: bytes) -> None:
    half = path.with_name(f".{path.name}.part")
    half.write_bytes(data)
    os.replace(half, path)


if __name__ == "__main__":
    try:
        typer.run(main)
    except gt.GradtraceError as error:
        sys.exit(f"error: {error}")
