"""The writer's thread runs no parallel code of torch: OpenMP would keep a second team of threads for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_TRAINING = """
import os, sys, threading
import torch
import gradtrace as gt

def unknown_to_python():
    return len(os.listdir("/proc/self/task")) - threading.active_count()

torch.set_num_threads(2)
model = torch.nn.Linear(1024, 512)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
counts = []
with gt.Recorder(model, sys.argv[1], window_steps=2, entry_steps=4, below=("positions", "inputs"),
                 below_every=1) as recorder:
    for step in range(12):
        optimizer.zero_grad()
        model(torch.randn(64, 1024)).square().sum().backward()
        recorder.observe(optimizer)
        optimizer.step()
        if step % 4 == 3:
            recorder.commit()
        counts.append(unknown_to_python())
print(*counts)
if sys.argv[2] == "control":
    other = threading.Thread(target=lambda: print((torch.zeros(1 << 20).add_(1), unknown_to_python())[1]))
    other.start()
    other.join()
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads where Linux tells them")
def test_no_thread_that_python_does_not_know_is_added_after_the_first_step(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _TRAINING, str(tmp_path / "run"), "control"],
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    counts = [int(count) for count in told[0].split()]
    assert set(counts) == {counts[0]}
    assert int(told[1]) > counts[0]  # such a thread would have been seen
