from __future__ import annotations

import io
import json
import os
import re
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def in_a_process(name: str, folder: Path, *arguments: str) -> tuple[str, str]:
    """What a script says on standard output and standard error, run as a user runs it."""
    # One thread: on a busy machine two that wait for each other take far longer.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    command = [sys.executable, str(ROOT / "recipes" / f"{name}.py"), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def here(name: str, folder: Path, *arguments: str) -> tuple[str, str, object]:
    """The same in this process, which has lightning and the digits in memory already; and the exit code."""
    out, err = io.StringIO(), io.StringIO()
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(sys, "path", [str(ROOT / "recipes"), *sys.path])
        patch.setattr(sys, "argv", [f"{name}.py", *arguments])
        torch.set_num_threads(1)
        try:
            with pytest.raises(SystemExit) as end:
                runpy.run_path(str(ROOT / "recipes" / f"{name}.py"), run_name="__main__")
        finally:
            torch.set_num_threads(threads)
    return out.getvalue(), err.getvalue(), end.value.code


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder in which the three scripts ran on two short trainings, and what they said."""
    folder = tmp_path_factory.mktemp("demo")
    said = {}
    said["train"], complaints = in_a_process("train", folder, "--seeds", "2", "--epochs", "1")
    assert complaints == ""
    # Whether anything is faster depends on the machine; here it is the way that is tried.
    for name, arguments in (("convert", ("--tokens", "64", "--no-refuse")), ("compare", ())):
        said[name], complaints, code = here(name, folder, *arguments)
        assert (complaints, code) == ("", 0)
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


def test_what_a_pipe_gets_is_not_cut(demo: tuple[Path, dict[str, str]]) -> None:
    lines = demo[1]["compare"].splitlines()
    for name in ("fisher-step", "support", "magnitude", "random"):
        assert sum(line.split()[:1] == [name] for line in lines) >= 3  # accuracy twice, agreement
    assert any(line.endswith("right calls (precision)") for line in lines)
    assert any(line.startswith("Written: ") and line.endswith("compare.png") for line in lines)


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
    for how in ("element", "rows"):
        assert data[how]["densities"] == [0.5, 0.3, 0.2, 0.1, 0.05]
        assert len(data[how]["runs"]) == 2
        assert set(data[how]["runs"][0]["quality"]) >= {"fisher-step", "magnitude", "random", "shuffled"}
    assert data["side_by_side"]["decomposed"]["accuracy"] == data["side_by_side"]["dense, masked"]["accuracy"]
    assert "At density 0.3:" in said["compare"]
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")
    html = (out / "compare.html").read_text()
    assert html.count("data:image/png;base64,") == 9
    assert not re.search(r"https?://", html)


def test_never_supported_is_found_by_the_ledger_only(demo: tuple[Path, dict[str, str]]) -> None:
    data = json.loads((demo[0] / "runs/mnist/compare/compare.json").read_text())["never_supported"]
    assert data["never"] >= 2 * 124 * 512  # the columns of 124 pixels that are blank in every training image
    by = {row["criterion"].split(":")[0]: row for row in data["detections"]}
    assert set(by) == {"init", "magnitude", "random"}
    assert by["magnitude"]["found"] == data["never"]
    assert by["magnitude"]["precision"] < 0.5


@pytest.mark.parametrize(
    ("name", "arguments"), [("train", ("--seeds", "1", "--epochs", "1")), ("convert", ("--tokens", "64"))]
)
def test_scripts_run_again_where_they_ran_before(
    demo: tuple[Path, dict[str, str]], name: str, arguments: tuple[str, ...]
) -> None:
    _, complaints, code = here(name, demo[0], *arguments)
    assert (complaints, code) == ("", 0)


def test_a_mistake_is_told_in_one_line(tmp_path: Path) -> None:
    # A text as exit code: Python prints it on standard error and exits with 1.
    _, complaints, said = here("convert", tmp_path)
    assert complaints == ""
    assert isinstance(said, str)
    assert said.startswith("error: ")
    assert "\n" not in said


@pytest.mark.parametrize("name", ["train", "convert", "compare"])
def test_help_teaches(tmp_path: Path, name: str) -> None:
    said, _, code = here(name, tmp_path, "--help")
    assert code == 0
    assert "runs/mnist" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--run", "nowhere"), "nowhere"),
        (("--density", "2.0"), "density"),
        (("--by", "magnitud"), "magnitude"),
    ],
)
def test_a_wrong_option_is_one_of_our_errors(
    demo: tuple[Path, dict[str, str]], options: tuple[str, ...], said: str
) -> None:
    _, _, code = here("convert", demo[0], "--tokens", "64", *options)
    assert str(code).startswith("error: ")
    assert said in str(code)
