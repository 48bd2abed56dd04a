"""What is installed, what importing costs, and that the package list is whole."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import gradtrace

ROOT = Path(__file__).parents[1]


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "tests"
    )
    return done.stdout.strip()


def test_the_package_list_names_every_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {"gradtrace"}
    for top, prefix in (
        ("gradtrace", "gradtrace"),
        ("callbacks", "gradtrace.callbacks"),
        ("kernels", "gradtrace.kernels"),
    ):
        for init in (ROOT / top).rglob("__init__.py"):
            inner = init.parent.relative_to(ROOT / top).parts
            found.add(".".join((prefix, *inner)))
    assert sorted(found) == sorted(settings["packages"])


def test_the_wheel_holds_only_the_package(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"gradtrace"}
    assert "gradtrace/kernels/accumulate.py" in names
    assert "gradtrace/kernels/accumulate_cpu.c" in names
    assert "gradtrace/kernels/routed_linear_cpu.c" in names
    assert "gradtrace/callbacks/lightning.py" in names
    assert "gradtrace/py.typed" in names
    assert [name for name in names if name.endswith(".jinja")]


@pytest.mark.parametrize(
    ("imported", "absent"),
    [
        ("gradtrace", ["torch", "lightning", "triton", "matplotlib"]),
        ("gradtrace.ledger.reader", ["torch", "lightning", "triton"]),
        ("gradtrace.evidence.score", ["torch", "lightning", "triton"]),
        ("gradtrace.structure.planner", ["torch", "lightning", "triton"]),
        ("gradtrace.comparison.compare", ["torch", "lightning", "triton"]),
        ("gradtrace.recorder.recorder", ["lightning"]),
        ("gradtrace.callbacks", ["lightning", "triton"]),
        ("gradtrace.kernels", ["kernels", "lightning"]),
        ("gradtrace.cli", ["torch", "lightning", "triton", "matplotlib"]),
    ],
)
def test_importing_a_room_does_not_import_what_it_must_not_know(imported: str, absent: list[str]) -> None:
    loaded = python(f"import sys, {imported}; print(*[name for name in {absent!r} if name in sys.modules])")
    assert loaded == ""


def test_every_public_name_resolves_and_is_listed_in_order() -> None:
    assert gradtrace.__all__ == sorted(gradtrace.__all__, key=str.lower) or gradtrace.__all__ == sorted(
        gradtrace.__all__
    )
    for name in gradtrace.__all__:
        assert getattr(gradtrace, name) is not None
    with pytest.raises(AttributeError, match="prune"):
        gradtrace.prune  # noqa: B018
