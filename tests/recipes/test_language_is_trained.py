from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import gradtrace as gt

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of one very short training, and what was said."""
    out = tmp_path_factory.mktemp("language")
    command = [sys.executable, "-W", "error", str(ROOT / "recipes/language.py"), "--out", str(out)]
    done = subprocess.run(
        [*command, "--seeds", "1", "--steps", "6"],
        cwd=out,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return out / "seed-0", done.stdout


def test_a_run_leaves_ledger_weights_and_settings(run: tuple[Path, str]) -> None:
    folder, said = run
    assert "nats a byte" in said
    facts = json.loads((folder / "run.json").read_text())
    assert facts["settings"]["steps"] == 6
    assert 0 < facts["loss"] < np.log(256)
    ledger = gt.Ledger.open(folder / "language.ledger.zarr")
    assert ledger.steps == 6
    assert {name: array.shape for name, array in load_file(folder / "weights.safetensors").items()} == {
        name: record.shape for name, record in ledger.items()
    }


def test_bytes_that_never_occur_are_the_embedding_rows_without_events(run: tuple[Path, str]) -> None:
    recipe = runpy.run_path(str(ROOT / "recipes/byte_model.py"))
    used = torch.cat([batch[:, :-1].flatten() for batch in recipe["batches"](0, 6, 16)])
    never = np.setdiff1d(np.arange(256), used.numpy())
    events = gt.Ledger.open(run[0] / "language.ledger.zarr")["bytes.weight"].events
    assert 100 < len(never) < 256
    np.testing.assert_array_equal(np.flatnonzero((events == 0).all(axis=1)), never)


def test_no_file_is_both_trained_on_and_held_out() -> None:
    text = runpy.run_path(str(ROOT / "recipes/byte_model.py"))["text"]()
    train, held_out = bytes(text.train.numpy()), bytes(text.held_out.numpy())
    assert 0.05 < len(held_out) / len(train) < 0.2
    assert held_out[:2000] not in train


def test_a_byte_is_predicted_from_earlier_ones_only() -> None:
    torch.manual_seed(0)
    net = runpy.run_path(str(ROOT / "recipes/byte_model.py"))["model"]()
    tokens = torch.randint(256, (1, 12))
    changed = tokens.clone()
    changed[0, 8:] = (changed[0, 8:] + 1) % 256
    with torch.inference_mode():
        before, after = net(tokens), net(changed)
    torch.testing.assert_close(before[:, :8], after[:, :8])
    assert not torch.allclose(before[:, 8:], after[:, 8:])


def test_help_teaches() -> None:
    command = [sys.executable, str(ROOT / "recipes/language.py"), "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "runs/language" in said
