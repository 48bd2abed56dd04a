"""Two real processes, each with half of the samples, find below the step what one finds with all of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradtrace as gt

SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
import gradtrace as gt


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(9, 6)
        self.norm = nn.LayerNorm(6)
        self.inner = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6))
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight
        self.free = nn.Parameter(torch.ones(6))

    def forward(self, x):
        hidden = self.embed(x) * self.free
        return self.head(hidden + self.inner(self.norm(hidden)))


def main(rank, how, folder):
    ranks = 1 if how == "one" else 2
    if ranks > 1:
        meet = f"file://{folder}/{how}.store"
        distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    model = Net()
    if how == "ddp":
        model = DistributedDataParallel(model)
    if how == "fsdp":
        mesh = init_device_mesh("cpu", (2,))
        fully_shard(model.inner, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    below = ("positions", "samples", "inputs", "gram")
    with gt.Recorder(
        model, f"{folder}/{how}", below=below, below_every=2, window_steps=4, entry_steps=8
    ) as recorder:
        for step in range(18):
            x = torch.randint(0, 8, (6, 4), generator=torch.Generator().manual_seed(step))
            x = x[rank * 3 : rank * 3 + 3] if ranks > 1 else x
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x).flatten(0, 1), (x.flatten() + 1) % 9).backward()
            recorder.observe(optimizer)
            optimizer.step()
    if ranks > 1:
        distributed.barrier()
        distributed.destroy_process_group()


if __name__ == "__main__":
    import torch._dynamo  # every optimizer imports it when it is made: once here, not once in every fork
    for how in ("one", "ddp", "fsdp"):
        ranks = 1 if how == "one" else 2
        torch.multiprocessing.start_processes(main, (how, sys.argv[1]), nprocs=ranks, start_method="fork")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ranks")
    (made / "train.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, made / "train.py", made], capture_output=True, text=True, timeout=240, cwd=made
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return made


def tell(ledger: gt.Ledger) -> dict[str, Any]:
    counts: dict[str, Any] = {}
    for name in ledger:
        record = ledger[name]
        counts[name] = (record.watched_steps, record.positions, record.samples)
    for module, inputs in ledger.inputs.items():
        counts[f"inputs of {module}"] = (inputs.watched_steps, inputs.positions)
    return counts


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_ranks_equal_one_process(how: str, folder: Path) -> None:
    one, two = (gt.Ledger.open(folder / name) for name in ("one", how))
    assert tell(two) == tell(one)
    steps = tell(one)["inner.0.weight"][0]
    assert steps >= 4
    assert tell(one)["inner.0.weight"] == (steps, steps * 24, steps * 6)
    assert tell(one)["free"] == (0, 0, 0)
    for name in one:
        for accumulator in ("position_sumsq", "position_support", "sample_sumsq", "sample_support"):
            assert two[name].offers(accumulator) == one[name].offers(accumulator)
            if not one[name].offers(accumulator):
                continue
            expected, found = (getattr(ledger[name], accumulator) for ledger in (one, two))
            if accumulator.endswith("support"):
                np.testing.assert_array_equal(found, expected, err_msg=name)
            else:
                np.testing.assert_allclose(
                    found, expected, rtol=1e-4, atol=1e-9 * expected.max(), err_msg=name
                )
    for module, inputs in one.inputs.items():
        other = two.inputs[module]
        np.testing.assert_allclose(other.sumsq, inputs.sumsq, rtol=1e-5)
        np.testing.assert_allclose(other.sum, inputs.sum, rtol=1e-4, atol=1e-4)
        if inputs.info.groups:
            np.testing.assert_allclose(other.gram, inputs.gram, rtol=1e-4, atol=1e-4)
