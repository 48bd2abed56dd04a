from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import typer
from typer.testing import CliRunner

import gradtrace as gt

ROOT = Path(__file__).resolve().parents[2]


def recipe(name: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # One thread: on a busy machine two that wait for each other take far longer.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error", "COLUMNS": "100"}
    command = [sys.executable, str(ROOT / "recipes" / f"{name}.py"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder in which the three scripts ran on two short trainings, as a user runs them; what they said."""
    folder = tmp_path_factory.mktemp("demo")
    said = {}
    steps = {
        "train": ("--seeds", "2", "--epochs", "1"),
        # Whether anything is faster depends on the machine; here it is the way that is tried.
        "convert": ("--tokens", "64", "--no-refuse"),
        "compare": (),
    }
    for name, arguments in steps.items():
        result = recipe(name, folder, *arguments)
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
        said[name] = result.stdout
    return folder, said


def test_training_leaves_a_ledger_and_weights_per_seed(demo: tuple[Path, dict[str, str]]) -> None:
    folder, said = demo
    for seed in (0, 1):
        assert (folder / f"runs/mnist/seed-{seed}/mnist.ledger.zarr/zarr.json").is_file()
        assert (folder / f"runs/mnist/seed-{seed}/mnist.ckpt").is_file()
    facts = json.loads((folder / "runs/mnist/train.json").read_text())
    assert [row["seed"] for row in facts["seeds"]] == [0, 1]
    assert all(row["accuracy"] > 0.5 for row in facts["seeds"])
    assert "Median accuracy" in said["train"]


def test_nothing_but_our_own_words_is_printed(demo: tuple[Path, dict[str, str]]) -> None:
    for text in demo[1].values():
        assert not re.search(
            r"warning|litlogger|Tip:|num_workers|GPU available|Traceback", text, re.IGNORECASE
        )


def test_conversion_is_verified_and_saved(demo: tuple[Path, dict[str, str]]) -> None:
    folder, said = demo
    assert {path.name for path in (folder / "runs/mnist/seed-0/converted").iterdir()} == {
        "gradtrace.json",
        "model.safetensors",
    }
    difference = re.search(r"masked dense model ([0-9.e+-]+)", " ".join(said["convert"].split()))
    assert difference is not None
    assert float(difference[1]) <= 1e-5
    assert "3 of 3 layers decomposed" in " ".join(said["convert"].split())


def test_comparison_writes_json_pictures_and_one_page(demo: tuple[Path, dict[str, str]]) -> None:
    folder, said = demo
    out = folder / "runs/mnist/compare"
    data = json.loads((out / "compare.json").read_text())
    assert data["quality"]["element"]["densities"] == [1.0, 0.5, 0.3, 0.2, 0.1, 0.05]
    assert {len(runs) for runs in data["quality"]["element"]["values"].values()} == {2}
    dense = {tuple(run[0] for run in runs) for runs in data["quality"]["element"]["values"].values()}
    assert len(dense) == 1  # at density 1 every criterion keeps everything
    assert data["side_by_side"]["decomposed"]["accuracy"] == data["side_by_side"]["dense, masked"]["accuracy"]
    assert "At density 0.3:" in said["compare"]
    for name in ("quality", "rows", "agreement", "structure", "latency"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    html = (out / "compare.html").read_text()
    assert html.count("data:image/png;base64,") == 5
    assert not re.search(r"https?://", html)


def test_never_supported_is_found_by_the_ledger_only(demo: tuple[Path, dict[str, str]]) -> None:
    data = json.loads((demo[0] / "runs/mnist/compare/compare.json").read_text())["never_supported"][
        "together"
    ]
    assert data["never"] >= 2 * 124 * 512  # the columns of 124 pixels that are blank in every training image
    by = {row["criterion"].split(":")[0]: row for row in data["detections"]}
    assert set(by) == {"init", "magnitude", "random"}
    assert by["magnitude"]["found"] == data["never"]
    assert by["magnitude"]["precision"] < 0.5


def test_scripts_run_again_where_they_ran_before(demo: tuple[Path, dict[str, str]]) -> None:
    for name, arguments in (("train", ("--seeds", "1", "--epochs", "1")), ("convert", ("--tokens", "64"))):
        result = recipe(name, demo[0], *arguments)
        assert result.returncode == 0, result.stderr


def test_a_mistake_is_told_in_one_line(tmp_path: Path) -> None:
    result = recipe("compare", tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "train.py" in result.stderr


@pytest.fixture
def script(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    # In this process: what is asked of these needs no process of its own, and lightning is slow to import.
    monkeypatch.setattr(sys, "path", [str(ROOT / "recipes"), *sys.path])
    return import_module(request.param)


@pytest.mark.parametrize("script", ["train", "convert", "compare"], indirect=True)
def test_help_teaches(script: ModuleType) -> None:
    app = typer.Typer()
    app.command()(script.main)
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert "runs/mnist" in result.stdout


@pytest.mark.parametrize("script", ["convert"], indirect=True)
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"run": Path("nowhere")}, "nowhere"),
        ({"density": 2.0}, "density"),
        ({"by": "magnitud"}, "magnitude"),
    ],
)
def test_a_wrong_option_is_one_of_our_errors(
    demo: tuple[Path, dict[str, str]], script: ModuleType, options: dict[str, object], said: str
) -> None:
    given = {
        "run": demo[0] / "runs/mnist/seed-0",
        "by": "support",
        "density": 0.5,
        "tokens": 64,
        "refuse": True,
    }
    with pytest.raises(gt.GradtraceError, match=said):
        script.main(**given | options)
