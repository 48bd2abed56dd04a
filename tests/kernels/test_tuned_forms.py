"""A form is timed once for a class of problem, kept, and never left to chance where it must not be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from gradtrace.kernels import tuned_forms
from gradtrace.kernels.routed_linear_triton import FORMS, forms_of
from gradtrace.kernels.routing import routing_of

GPU = torch.device("cuda")
TIMES = {"large": 3.0, "small": 1.0, "tiny": 2.0}


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Forms in the order in which they were timed, on a GPU that is not there."""
    order: list[str] = []

    def milliseconds(run: Callable[[str], object], form: str) -> float:
        order.append(form)
        return TIMES[form]

    monkeypatch.setattr(tuned_forms, "_milliseconds", milliseconds)
    monkeypatch.setattr(tuned_forms, "_name", lambda device: "a GPU")
    monkeypatch.setattr(tuned_forms, "_CHOSEN", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return order


def choose(problem: str = "p", device: torch.device = GPU) -> str:
    return tuned_forms.tuned(problem, list(TIMES), lambda form: None, device)


def restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in another process."""
    monkeypatch.setattr(tuned_forms, "_CHOSEN", {})


def test_each_class_is_timed_once_and_kept(timed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert [choose(), choose(), choose("q")] == ["small"] * 3
    assert timed == [*TIMES, *TIMES]
    restart(monkeypatch)
    assert [choose(), choose("q")] == ["small"] * 2
    assert len(timed) == 2 * len(TIMES)


@pytest.mark.parametrize("text", ["", "[]", '{"p": 3}', '{"p": -1}', '{"p": true}', '{"p": "0"}', "[" * 5000])
def test_a_file_that_says_nothing_of_use_is_timed_anew(
    timed: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    choose()
    (path,) = (tmp_path / "gradtrace").iterdir()
    path.write_text(text)
    restart(monkeypatch)
    assert choose() == "small"
    assert len(timed) == 2 * len(TIMES)
    assert json.loads(path.read_text()) == {"p": 1}


def test_without_a_folder_the_choice_lasts_as_long_as_the_process(
    timed: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert [choose(), choose()] == ["small"] * 2
    assert timed == [*TIMES]


def test_nothing_is_timed_in_deterministic_mode(timed: list[str]) -> None:
    choose()
    torch.use_deterministic_algorithms(True)
    try:
        assert choose() == "large"
    finally:
        torch.use_deterministic_algorithms(False)
    assert timed == [*TIMES]


def test_nothing_is_timed_while_a_graph_is_captured(
    timed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choose() == "large"
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert choose() == "small"
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choose() == "small"  # chosen before


def test_nothing_is_timed_elsewhere_than_on_a_gpu(timed: list[str]) -> None:
    assert choose(device=torch.device("cpu")) == "large"
    assert timed == []


@pytest.mark.parametrize("tokens", [1, 16, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_first_of_few_forms_is_that_of_the_table(dtype: torch.dtype, tokens: int) -> None:
    index = torch.arange(512)
    routing = routing_of(index, index, [256, 256], [256, 256], 512, 512)
    forms = forms_of(dtype, tokens, routing)
    assert forms[0] in FORMS.values()
    assert len(forms) == len(set(forms)) <= 3
