"""A ledger is analysed alike in one piece, in shares, on threads, on processes and on a cluster."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import gradtrace as gt
from gradtrace.errors import CorruptLedgerError, InvalidValueError, StateError, UnreadableFileError
from gradtrace.evidence import answering
from gradtrace.evidence.executing import on_processes
from gradtrace.evidence.explain import Explanation, Reason, explain
from gradtrace.ledger import walk
from gradtrace.ledger.format import ACCUMULATORS, Layout, ParameterInfo
from gradtrace.ledger.writer import LedgerWriter

SHAPES = {
    "0.weight": (40, 31),
    "0.bias": (40,),
    "1.weight": (1, 1),
    "2.weight": (7, 3, 5),
    "3.weight": (64, 33),
}
SETTINGS = {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.0, "dampening": 0.0, "nesterov": False}


def sums(random: np.random.Generator, size: int) -> dict[str, Any]:
    events = random.integers(0, 20, size, np.uint32)
    found = {
        "grad_sum": random.normal(0, 2, size) * (1 + 4 * (random.random(size) < 0.2)),
        "grad_sumsq": random.exponential(size=size),
        "window_sumsq": random.exponential(size=size) + 1,
        "window_votes": random.integers(-9, 10, size),
        "votes": random.integers(-9, 10, size),
    }
    return {name: (found[name] * (events > 0)).astype(ACCUMULATORS[name]) for name in found} | {
        "events": events
    }


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, Any]]:
    """Two entries, walked in blocks of up to 64 in this process, in shares of 500."""
    monkeypatch.setattr(walk, "_BLOCK", 64)
    monkeypatch.setattr(answering, "SHARE", 500)
    random = np.random.default_rng(0)
    infos = [
        ParameterInfo(
            name, shape, "float32", module=name[0], module_class="Linear", role=name[2:], orientation=""
        )
        for name, shape in SHAPES.items()
    ]
    layout = Layout.whole(infos)
    opening = random.normal(size=layout.size(0)).astype(np.float32)
    counts = {"steps": [20] * 5} | {one: [0] * 5 for one in ("missing", "zero", "nonfinite", "skipped")}
    group = {"optimizer": 0, "kind": "SGD", "parameters": list(range(5)), "runs": [[20, SETTINGS]]}
    details = {"counts": counts, "groups": [group]}
    path = tmp_path / "run.ledger.zarr"
    with LedgerWriter.create(path, settings={"threshold": 0}) as writer:
        number = writer.add_layout(layout, [opening])
        for begin in (0, 20):
            arrays = sums(random, layout.size(0))
            writer.commit_entry(begin, begin + 20, layout=number, windows=5, arrays=arrays, details=details)
    weights = {name: random.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    save_file(weights, tmp_path / "weights.safetensors")
    return path, weights


def same(found: Explanation, other: Explanation) -> None:
    assert found.mask == other.mask
    assert found.reasons == other.reasons
    assert list(found.reasons) == list(other.reasons)
    assert found.mask.provenance == other.mask.provenance


def in_one_piece(path: Path, weights: Any, density: float, by: str, test: str, method: Any) -> Any:
    """The oracle: all scores, one mask, all tests, one confirmation."""
    ledger = gt.Ledger.open(path)
    matters = gt.select(gt.score(ledger, weights, by), density)
    learned = gt.confirm(gt.score(ledger, weights, test), method)
    return {
        name: np.where(
            ledger[name].events == 0,
            Reason.NEVER_SUPPORTED,
            np.where(
                kept,
                np.where(learned[name], Reason.MATTERS_AND_LEARNED, Reason.MATTERS_UNCONFIRMED),
                np.where(learned[name], Reason.LEARNED_BUT_MINOR, Reason.NOT_LEARNED),
            ),
        )
        for name, kept in matters.items()
    }


@pytest.mark.parametrize("by", ["fisher-step", "support", "random"])
@pytest.mark.parametrize(
    ("test", "method"),
    [
        ("drift", "local"),
        ("departure", "local"),
        ("drift", "bh"),
        ("drift", "by"),
        ("sign", "e-bh"),
        ("init", "bh"),
    ],
)
def test_shares_give_what_one_piece_gives(stored: Any, by: str, test: str, method: Any) -> None:
    path, weights = stored
    found = explain(gt.Ledger.open(path), weights, 0.3, by=by, test=test, method=method)
    for name, codes in in_one_piece(path, weights, 0.3, by, test, method).items():
        np.testing.assert_array_equal(found.reasons[name], codes)


@pytest.fixture(params=["threads", "processes"])
def executor(request: Any) -> Iterator[Executor]:
    if request.param == "threads":
        with ThreadPoolExecutor(3) as pool:
            yield pool
    else:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
            yield processes


@pytest.mark.parametrize("given", ["arrays", "file"])
def test_an_executor_changes_nothing(stored: Any, executor: Executor, given: str) -> None:
    path, weights = stored
    ledger = gt.Ledger.open(path)
    target = weights if given == "arrays" else path.parent / "weights.safetensors"
    done: list[str] = []
    found = explain(ledger, target, 0.3, executor=executor, step=done.append)
    same(found, explain(ledger, weights, 0.3))
    assert done == list(found.mask)


@pytest.mark.parametrize("given", ["arrays", "file"])
def test_a_dask_cluster_changes_nothing(stored: Any, given: str) -> None:
    distributed = pytest.importorskip("distributed")
    path, weights = stored
    ledger = gt.Ledger.open(path)
    target = weights if given == "arrays" else path.parent / "weights.safetensors"
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        found = explain(ledger, target, 0.3, executor=client.get_executor())
    same(found, explain(ledger, weights, 0.3))


SCRIPT = """
import sys
from pathlib import Path
import gradtrace as gt
from gradtrace.evidence import answering

Path(sys.argv[1], "ran").open("a").write("once ")
answering.PAYS, answering.SHARE = 0, 500
answering.processors = lambda: 2
folder = Path(sys.argv[1])
found = gt.explain(gt.Ledger.open(folder / "run.ledger.zarr"), folder / "weights.safetensors", 0.3)
found.mask.save(folder / "mask.safetensors")
print(sorted(name for name in sys.modules if name.startswith("concurrent.futures.process")))
"""


def test_processes_of_our_own_do_not_run_a_script_again(stored: Any) -> None:
    path, weights = stored
    script = path.parent / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, script, path.parent], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "process" in done.stdout
    assert (path.parent / "ran").read_text() == "once "
    expected = explain(gt.Ledger.open(path), weights, 0.3).mask
    assert gt.Mask.load(path.parent / "mask.safetensors") == expected


def test_a_damaged_chunk_is_called_that_whatever_its_sums_look_like(stored: Any) -> None:
    path, weights = stored
    chunk = path / "entries/000000000000-000000000020-0000/rank-0000/grad_sum/c/0"
    raw = bytearray(chunk.read_bytes())
    raw[:4] = np.array([np.nan], "<f4").tobytes()
    chunk.write_bytes(raw)
    with pytest.raises(CorruptLedgerError, match=r"entry 0-20 .*grad_sum: chunk 0 is altered"):
        explain(gt.Ledger.open(path), weights, 0.3)


def test_a_process_that_dies_is_one_clear_error() -> None:
    with pytest.raises(StateError, match=r"a process of the analysis died.*ThreadPoolExecutor"):
        list(on_processes(os._exit, [1, 1], 1))


def test_a_small_ledger_starts_no_process(stored: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path, weights = stored
    monkeypatch.setattr(answering, "on_processes", lambda *_: pytest.fail("started one"))
    explain(gt.Ledger.open(path), weights, 0.3)


def test_options_that_speak_of_several_parameters_keep_them_together(stored: Any) -> None:
    path, weights = stored
    ledger = gt.Ledger.open(path)
    inputs = {name: np.ones(w.shape[1]) for name, w in weights.items() if w.ndim == 2}
    inputs["2.weight"] = np.ones(15)
    found = explain(ledger, weights, 0.3, by="wanda", options={"inputs": inputs})
    assert found.mask == explain(ledger, weights, 0.3, by="magnitude").mask


@pytest.mark.parametrize("scope", ["row", "global"])
def test_other_scopes_are_those_of_select(stored: Any, scope: Any) -> None:
    path, weights = stored
    ledger = gt.Ledger.open(path)
    found = explain(ledger, weights, 0.3, scope=scope)
    chosen = gt.select(gt.score(ledger, weights), 0.3, scope=scope)
    for name, kept in chosen.items():
        np.testing.assert_array_equal(found.mask[name], kept & (ledger[name].events > 0))


def test_a_task_is_small_and_shows_no_credential(stored: Any) -> None:
    path, _ = stored
    ledger = gt.Ledger.open(path)
    sent = pickle.dumps(ledger)
    assert len(sent) < 2000
    address = ledger.__reduce__()[1][0]
    assert "storage_options" not in repr(address)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_weights_in_a_file_are_those_of_the_model(tmp_path: Path, dtype: str) -> None:
    import torch
    from safetensors.torch import save_file as save_tensors

    kind = getattr(torch, dtype)
    tensors = {"_orig_mod.a.weight": torch.randn(5, 3).to(kind), "b": torch.ones(4, dtype=torch.int64)}
    save_tensors(tensors, tmp_path / "w.safetensors")
    by_path = gt.score(None, tmp_path / "w.safetensors", "init", initializer="estimated")
    expected = gt.score(None, tensors, "init", initializer="estimated")
    assert by_path == expected
    assert by_path.pvalues == expected.pvalues


def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, stored: Any) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"\x10" + bytes(7) + b"{not json......}")
    with pytest.raises(UnreadableFileError, match="damaged or no safetensors"):
        gt.score(None, tmp_path / "w.safetensors", "magnitude")
    save_file({"a": np.array([[np.nan, 1.0]])}, tmp_path / "w.safetensors")
    with pytest.raises(InvalidValueError, match="weights of 'a': expected finite numbers"):
        gt.score(None, tmp_path / "w.safetensors", "magnitude")


def test_what_is_no_executor_is_refused(stored: Any) -> None:
    with pytest.raises(InvalidValueError, match=r"executor: expected a concurrent.futures.Executor, got int"):
        explain(gt.Ledger.open(stored[0]), stored[1], 0.3, executor=2)  # type: ignore[arg-type]
