"""A disk that really fills up: a small tmpfs in a mount namespace of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TRAINING = """
import logging, os, sys
import torch
import gradtrace as gt
from gradtrace.errors import StorageError

disk, policy = sys.argv[1:]
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
torch.manual_seed(0)
model = torch.nn.Linear(250, 200)
optimizer = torch.optim.SGD(model.parameters(), 0.01)
recorder = gt.Recorder(model, disk + "/run", window_steps=2, entry_steps=4, merge=False, on_error=policy)
filler = disk + "/filler"
try:
    for step in range(60):
        optimizer.zero_grad()
        model(torch.randn(4, 250)).square().mean().backward()
        recorder.observe(optimizer)
        optimizer.step()
        if step % 4 == 3:
            recorder._stream.drain()
        if step == 39 and os.path.exists(filler):
            os.remove(filler)
        if step == 7:
            with open(filler, "wb") as file:
                try:
                    while True:
                        file.write(bytes(65536))
                        file.flush()
                except OSError:
                    pass
    print("trained all steps")
except StorageError as error:
    print("stopped:", error)
try:
    recorder.close()
except StorageError:
    pass
ledger = gt.Ledger.open(disk + "/run")
total = ledger["weight"].grad_sum.sum()
failed = sum(entry.details.get("failed_commits", 0) for entry in ledger.entries)
print("ledger of", ledger.steps, "steps, failed", failed)
"""
MOUNT = 'mount -t tmpfs -o size=16m tmpfs "$1" && exec "$2" -c "$3" "$1" "$4"'


def train(disk: Path, policy: str) -> str:
    """Run the training on a tmpfs of 16 MiB and return what it printed; skips where none can be mounted."""
    disk.mkdir()
    namespace = ["unshare", "-rm", "sh", "-c"]
    try:
        tried = subprocess.run(
            [*namespace, 'mount -t tmpfs -o size=1m tmpfs "$1"', "sh", str(disk)],
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        pytest.skip("this system has no unshare")
    if tried.returncode:
        pytest.skip(f"this system mounts no tmpfs here: {tried.stderr.strip()}")
    command = [*namespace, MOUNT, "sh", str(disk), sys.executable, TRAINING, policy]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_full_disk_stops_the_run_with_one_error_and_leaves_what_was_committed(tmp_path: Path) -> None:
    said = train(tmp_path / "disk", "raise")
    assert "stopped: " in said
    assert "No space left on device" in said
    assert "ledger of 8 steps, failed 0" in said


def test_a_full_disk_lets_the_run_go_on_and_catch_up(tmp_path: Path) -> None:
    said = train(tmp_path / "disk", "warn")
    assert "trained all steps" in said
    assert said.count("WARNING") == 1
    assert "No space left on device" in said
    assert "ledger of 60 steps, failed 8" in said
