"""Mask and recover, or train small from scratch? Equal inference cost, equal total steps, byte-level LM.

Takes a training of recipes/language.py (what is there is not trained again), masks its linear layers in row
groups in one shot, compensates, and goes on training with the mask held on weights and optimizer state.
Beside it stand the same model annealed in stages during those steps, instead of in one shot, and a dense
model of the same make, so narrow that a token costs as many multiplications, trained from scratch for as many
steps in all. The criterion of the mask is chosen on training text, before any recovery.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "recipes"))

import byte_model  # noqa: E402
import language  # noqa: E402

import gradtrace as gt  # noqa: E402
from gradtrace.annealing.annealing import Annealing  # noqa: E402
from gradtrace.annealing.masking import Masking  # noqa: E402
from gradtrace.annealing.schedule import Schedule  # noqa: E402
from gradtrace.annealing.target import Target  # noqa: E402
from gradtrace.convert.weights_file import read_weights  # noqa: E402
from gradtrace.evidence.whole_file import write_whole  # noqa: E402
from gradtrace.report.table import Table  # noqa: E402
from gradtrace.report.terminal import terminal  # noqa: E402

CRITERIA: tuple[tuple[str, dict[str, Any]], ...] = (
    ("magnitude", {}),
    ("fisher", {"exponent": 0.5}),
    ("fisher", {"exponent": 0.75}),
)
HEADS = 4
ANNEALED_BY = 0.5  # of the recovery's steps, where it goes in stages
EVERY = 100  # steps between two looks at the held-out loss


def multiplications(net: nn.Module, kept: float = 1.0) -> int:
    """Of one token in a full context: linear layers, of which the share `kept` runs, and attention itself."""
    assert isinstance(net, byte_model.ByteModel)
    linear = sum(one.weight.numel() for one in net.modules() if isinstance(one, nn.Linear))
    attention = 2 * byte_model.CONTEXT * net.bytes.embedding_dim * len(net.blocks)
    return round(kept * linear) + attention


def equal_width(cost: int) -> int:
    """The width of the dense model that costs nearest to `cost`."""
    widths = range(HEADS, 512, HEADS)
    return min(
        widths, key=lambda width: abs(multiplications(byte_model.ByteModel(width, heads=HEADS)) - cost)
    )


def went_on(
    net: nn.Module,
    batches: Iterator[Tensor],
    steps: int,
    lr: float,
    masking: Masking | Annealing | None,
    ledger: gt.Ledger | None,
    progress: Progress,
    said: str,
) -> list[tuple[int, float]]:
    """Train `steps` steps; (step, held-out loss) at every look, the beginning and the end among them."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=language.DECAY)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: language.schedule(step, steps))
    if isinstance(masking, Annealing):
        masking.hold([optimizer])
    task = progress.add_task(said, total=steps)
    seen = [(0, byte_model.held_out(net.eval())[0])]
    net.train()
    for step, batch in enumerate(batches, 1):
        byte_model.loss_of(net, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
        if isinstance(masking, Masking):
            masking.apply_([optimizer])
        elif masking is not None:
            masking.step(step, lambda: ledger)
        progress.advance(task)
        if step % EVERY == 0 or step == steps:
            seen.append((step, byte_model.held_out(net.eval())[0]))
            net.train()
    return seen


def chosen_mask(
    net: nn.Module, ledger: gt.Ledger, density: float, seed: int
) -> tuple[str, gt.Mask, dict[str, float]]:
    """The criterion whose mask, compensated, costs least on training text; its mask; all that was asked."""
    linear = {f"{name}.weight" for name, one in net.named_modules() if isinstance(one, nn.Linear)}
    own = list(byte_model.batches(seed + 2000, 8, language.BATCH))
    asked: dict[str, float] = {}
    masks: dict[str, gt.Mask] = {}
    for by, options in CRITERIA:
        said = " ".join([by, *(f"{name}={value}" for name, value in options.items())])
        scores = gt.score(ledger, net, by=by, **options)
        masks[said] = gt.select({n: scores[n] for n in linear}, density=density, granularity="rows")
        tried = gt.compensate_(deepcopy(net), masks[said], ledger).eval()
        with torch.inference_mode():
            asked[said] = sum(float(byte_model.loss_of(tried, batch)) for batch in own) / len(own)
    best = min(asked, key=lambda said: asked[said])
    return best, masks[best], asked


def main(
    seed: Annotated[int, typer.Option(help="Of the training.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Steps a training, where it is not there yet.")] = 1200,
    recovery: Annotated[int, typer.Option(min=1, help="Steps of recovery after the mask.")] = 400,
    lr: Annotated[float, typer.Option(help="Largest learning rate of the recovery.")] = 2e-3,
    density: Annotated[float, typer.Option(help="Share of each linear layer that is kept.")] = 0.3,
    runs: Annotated[
        Path, typer.Option(help="Where trainings are, or go; those of language.py will do.")
    ] = ROOT / "runs/language",
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = ROOT
    / "benchmarks/results/annealing_language.json",
) -> None:
    """Recover a masked byte-level transformer beside a small dense one of equal cost and equal steps.

    Try `--steps 50 --recovery 20 --runs /tmp/tiny --out /tmp/tiny.json` first.
    """
    torch.set_num_threads(1)
    console = terminal()
    byte_model.text()
    folder = runs / f"seed-{seed}"
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    began = perf_counter()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        if not (folder / "run.json").is_file():
            progress.add_task("training", total=steps)
            folder.mkdir(parents=True, exist_ok=True)
            facts = language.train(seed, folder, steps, progress)
            write_whole(folder / "run.json", (json.dumps(facts, indent=2) + "\n").encode(), "run")
        net = byte_model.model()
        net.load_state_dict(read_weights(folder / "weights.safetensors"))
        ledger = gt.Ledger.open(folder / "language.ledger.zarr")
        steps = ledger.steps
        dense = byte_model.held_out(net.eval())[0]
        by, mask, asked = chosen_mask(net, ledger, density, seed)
        cost = multiplications(net, mask.density)
        width = equal_width(cost)
        console.print(f"dense {dense:.4f}; by {by}; width {width} costs as much", highlight=False)

        masked = byte_model.held_out(gt.apply_mask_(deepcopy(net), mask).eval())[0]
        recovered = gt.compensate_(deepcopy(net), mask, ledger)
        more = byte_model.batches(seed + 5000, recovery, language.BATCH)
        masking = Masking(recovered, mask)
        masking.apply_()
        after = went_on(recovered, more, recovery, lr, masking, None, progress, "recovery")
        console.print(f"masked {masked:.4f}, recovery {after}", highlight=False)

        gradual = deepcopy(net)
        annealing = Annealing(
            gradual,
            Target("rows", density, by=by.split()[0]),
            Schedule(0, max(20, round(ANNEALED_BY * recovery)), 20, density),
        )
        more = byte_model.batches(seed + 5000, recovery, language.BATCH)
        annealed = went_on(gradual, more, recovery, lr, annealing, ledger, progress, "annealing")
        console.print(f"annealed {annealed}", highlight=False)

        torch.manual_seed(seed)
        small = byte_model.ByteModel(width, heads=HEADS)
        total = steps + recovery
        given = byte_model.batches(seed, total, language.BATCH)
        scratch = went_on(small, given, total, language.LR, None, None, progress, f"width {width}")
    cells = (
        ("dense, as trained", f"{steps}", f"{multiplications(net):,}", f"{dense:.3f}", ""),
        ("masked, one shot", f"{steps}", f"{cost:,}", f"{masked:.3f}", f"{masked - dense:+.3f}"),
        ("compensated", f"{steps}", f"{cost:,}", f"{after[0][1]:.3f}", f"{after[0][1] - dense:+.3f}"),
        ("and recovered", f"{total}", f"{cost:,}", f"{after[-1][1]:.3f}", f"{after[-1][1] - dense:+.3f}"),
        (
            "annealed in stages",
            f"{total}",
            f"{cost:,}",
            f"{annealed[-1][1]:.3f}",
            f"{annealed[-1][1] - dense:+.3f}",
        ),
        (
            f"width {width} from scratch",
            f"{total}",
            f"{multiplications(small):,}",
            f"{scratch[-1][1]:.3f}",
            f"{scratch[-1][1] - dense:+.3f}",
        ),
    )
    heads = ("model", "steps in all", "multiplications a token", "nats a byte", "over dense")
    Table(f"Density {density:g} in row groups of 64, by {by}", heads, cells).print(console)
    result = {
        "command": " ".join(["python", "benchmarks/annealing_language.py", *sys.argv[1:]]),
        "seed": seed,
        "text": byte_model.text().digest,
        "density": density,
        "steps": steps,
        "recovery": recovery,
        "lr": lr,
        "criterion": by,
        "training_loss_by_criterion": asked,
        "dense": dense,
        "masked": masked,
        "compensated": after[0][1],
        "recovered": after[-1][1],
        "recovery_looks": after,
        "annealed": annealed[-1][1],
        "annealed_looks": annealed,
        "from_scratch": scratch[-1][1],
        "from_scratch_width": width,
        "from_scratch_looks": scratch,
        "multiplications": {"dense": multiplications(net), "masked": cost, "small": multiplications(small)},
        "recovery_wins": after[-1][1] < scratch[-1][1],
        "seconds": perf_counter() - began,
        "machine": {"torch": torch.__version__, "python": platform.python_version()},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode(), "results")
    console.print(f"Written to {out}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except gt.GradtraceError as error:
        sys.exit(f"error: {error}")
