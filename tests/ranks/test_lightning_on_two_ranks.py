"""Lightning with DDP and with ModelParallelStrategy (FSDP2) on two ranks: checkpoints, resuming, an error."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gradtrace.ledger.reader import Ledger

SCRIPT = Path(__file__).with_name("lightning_training.py")


Fit = Callable[[Path, str, str], None]


@pytest.fixture(scope="module")
def fit(launch: Callable[..., list[str]]) -> Fit:
    def run(folder: Path, strategy: str, kind: str) -> None:
        launch(
            folder,
            strategy,
            kind,
            ranks=1 if strategy == "one" else 2,
            script=SCRIPT.name,
            modules=["lightning.pytorch", "gradtrace.callbacks"],
        )

    return run


@pytest.fixture(scope="module")
def whole(fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(strategy: str) -> Path:
        if strategy not in made:
            made[strategy] = tmp_path_factory.mktemp(strategy)
            fit(made[strategy], strategy, "whole")
        return made[strategy]

    return folder


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_record_what_one_does(
    whole: Callable[[str], Path], check: Callable[..., None], strategy: str
) -> None:
    assert (whole(strategy) / "run/layouts/0000/rank-0001").exists()
    check(Ledger.open(whole("one") / "run"), Ledger.open(whole(strategy) / "run"))


@pytest.mark.parametrize(("strategy", "then"), [("fsdp", "fsdp"), ("ddp", "one"), ("one", "ddp")])
def test_a_checkpoint_of_all_ranks_is_resumed_also_on_another_number(
    fit: Fit,
    whole: Callable[[str], Path],
    check: Callable[..., None],
    tmp_path: Path,
    strategy: str,
    then: str,
) -> None:
    shutil.copytree(whole(strategy), tmp_path / "copy")
    fit(tmp_path / "copy", then, "resumed")
    check(Ledger.open(whole(strategy) / "run"), Ledger.open(tmp_path / "copy" / "run"))


def test_an_exception_save_on_one_rank_commits_nothing_and_hangs_nobody(tmp_path: Path) -> None:
    # Lightning starts the second rank itself here, and ends it: that is part of what must not hang.
    done = subprocess.run(
        [sys.executable, SCRIPT, "-", "0", "2", tmp_path, "ddp", "failing"],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode != 0
    ledger = Ledger.open(tmp_path / "run")
    assert ledger.steps == 8  # the checkpoint at 6, the entry that ends at 8, and nothing of the ninth step
    saved = torch.load(tmp_path / "error.ckpt", weights_only=True)
    (state,) = [state for key, state in saved["callbacks"].items() if "GradientLedger" in key]
    assert state["run_id"] == ledger.run_id
    assert state["steps"] in (6, 8)  # this rank may not have heard of the last commit yet
