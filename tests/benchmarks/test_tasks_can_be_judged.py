"""Every task on a few steps: it learns from batches that its seed decides, and held-out data is held out."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from tasks.every_task import EVERY_TASK
from tasks.images import images
from tasks.source_functions import functions
from tasks.task import pruned_names

# These are the small one but for their size and their start.
QUICK = [name for name in EVERY_TASK if name not in ("byte-text", "byte-text-large-start")]


@pytest.mark.parametrize("name", QUICK)
def test_a_seed_decides_the_batches(name: str) -> None:
    task = EVERY_TASK[name]
    first, again, other = (list(islice(task.batches(seed, 3), 3)) for seed in (0, 0, 1))
    assert len(first) == 3
    for one, two in zip(first, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(first[0][0], other[0][0])


@pytest.mark.parametrize("name", QUICK)
def test_a_few_steps_lower_the_loss_of_a_batch(name: str) -> None:
    task = EVERY_TASK[name]
    torch.manual_seed(0)
    net = task.model()
    optimizer = task.optimizer(net)
    (batch,) = task.batches(0, 1)
    before = task.loss(net, batch).item()
    for _ in range(8):
        task.loss(net, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    assert task.loss(net, batch).item() < before


@pytest.mark.parametrize("name", QUICK)
def test_what_is_pruned_is_every_matrix_but_the_embeddings(name: str) -> None:
    net = EVERY_TASK[name].model()
    matrices = {key for key, value in net.named_parameters() if value.ndim >= 2}
    embeddings = {
        f"{key}.weight" for key, part in net.named_modules() if isinstance(part, torch.nn.Embedding)
    }
    assert set(pruned_names(net)) == matrices - embeddings


@pytest.mark.parametrize("name", ["image-mlp", "sparse-groups", "function-table"])
def test_validation_changes_nothing_and_repeats(name: str) -> None:
    task = EVERY_TASK[name]
    net = task.model().eval()
    before = torch.cat([value.flatten().clone() for value in net.state_dict().values()])
    assert task.validate(net) == task.validate(net)
    assert torch.equal(before, torch.cat([value.flatten() for value in net.state_dict().values()]))


def test_no_image_and_no_function_is_on_both_sides() -> None:
    (train, labels), (held_out, held_labels) = images()
    assert (len(train), len(held_out)) == (4000, 1000)
    assert (np.bincount(held_labels) == 100).all()
    assert len(np.unique(torch.cat([train, held_out]).numpy(), axis=0)) == 5000
    assert len(labels) == 4000
    sources = [one.source for one in functions()]
    assert len(set(sources)) == len(sources) > 5000
    assert 0.2 < np.mean([one.held_out for one in functions()]) < 0.3
