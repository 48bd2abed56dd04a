"""Turn a trained MLP and its ledger into sub-operators: score, select, plan, convert, verify, save."""

from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path
from typing import Annotated

import torch
import typer
from mnist import digits, trained, validate

import gradtrace as gt
from gradtrace.report.latency import interleaved
from gradtrace.report.tables import plan_lines, plan_table
from gradtrace.report.terminal import terminal


def main(
    run: Annotated[Path, typer.Option(help="A run of train.py: its ledger and checkpoint.")] = Path(
        "runs/mnist/seed-0"
    ),
    by: Annotated[str, typer.Option(help="Criterion (`gradtrace criteria` lists them).")] = "support",
    density: Annotated[float, typer.Option(help="Share of each layer's dependencies to keep.")] = 0.6,
    tokens: Annotated[int, typer.Option(min=1, help="Images a batch that the plan is timed for.")] = 512,
    refuse: Annotated[bool, typer.Option(help="Leave dense what would not be faster.")] = True,
    compensate: Annotated[
        bool, typer.Option(help="Refit what is kept by least squares, on the training images.")
    ] = False,
) -> None:
    """Convert one run; writes RUN/converted, RUN/plan.json and RUN/mask.safetensors, replacing what is there.

    Rows of 64 outputs share one set of inputs, so that what stays runs as dense products. The default
    criterion and density were chosen by looking at the held-out images of five seeds. Look at
    `python recipes/compare.py` next, or try `--density 0.2 --compensate`, `--by magnitude`, `--no-refuse`.
    """
    console = terminal()
    with console.status("scoring, planning and timing"):
        ledger = gt.Ledger.open(run / "mnist.ledger.zarr")
        dense = trained(run)
        scores = gt.score(ledger, dense, by=by)
        mask = gt.select(scores, density=density, granularity="rows")
        plan = gt.plan(dense, mask, tokens=tokens, refuse=refuse)
        masked = (
            gt.compensate_(deepcopy(dense), plan, [digits().train_images])
            if compensate
            else gt.apply_mask_(deepcopy(dense), plan)
        )
        converted = gt.convert_(deepcopy(masked), plan)
        images = digits().test_images
        report = gt.verify(masked, converted, images)
        batch = images[torch.arange(tokens) % len(images)]
        latency = interleaved({"dense": dense, "decomposed": converted}, batch)

    plan_table(plan).print(console)
    for line in plan_lines(plan):
        console.print(line)
    console.print(
        f"Verified: {len(plan.converted)} of {len(plan)} layers decomposed, largest relative difference from "
        f"the masked dense model {report.output.relative:.1e}"
    )
    for name, net in (("dense", dense), ("decomposed", converted)):
        console.print(
            f"{name:<10} accuracy {validate(net):.1%}, {latency[name].median * 1e3:.2f} ms for {tokens} "
            f"images, {sum(p.numel() for p in net.parameters()):,} parameters"
        )

    mask.save(run / "mask.safetensors")
    plan.save(run / "plan.json")
    gt.save(converted, run / "converted")
    console.print(f"Saved: {run / 'converted'}, {run / 'plan.json'}, {run / 'mask.safetensors'}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except gt.GradtraceError as error:
        sys.exit(f"error: {error}")
