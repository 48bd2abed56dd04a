from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import gradtrace as gt
from gradtrace.cli import app
from gradtrace.ledger.sampling import Sampling
from gradtrace.ledger.writer import LedgerWriter
from gradtrace.report.tables import ledger_table

MODELS = """
import torch
from torch import nn

def model():
    return nn.Sequential(nn.Linear(40, 96), nn.ReLU(), nn.Linear(96, 5))

def wider():
    return nn.Sequential(nn.Linear(41, 96), nn.ReLU(), nn.Linear(96, 5))

def deeper():
    return nn.Sequential(nn.Linear(40, 96), nn.ReLU(), nn.Linear(96, 5), nn.Linear(5, 5))

def broken():
    raise RuntimeError("out of cheese")

def nothing():
    return None

def validate(net):
    print("validating")
    x = torch.linspace(-1, 1, 80).reshape(2, 40)
    with torch.no_grad():
        return float(net(x).square().sum())

def words(net):
    return "good"
"""


@dataclass(frozen=True)
class Home:
    """A folder with a recorded run, its weights in three kinds of file, and a module of factories."""

    path: Path

    def run(self, *arguments: str) -> Any:
        return CliRunner().invoke(app, list(arguments))

    def fails(self, *arguments: str) -> str:
        """The one line on standard error of a command that must fail with exit code 1."""
        result = self.run(*arguments)
        assert result.exit_code == 1, result.output
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        return str(result.stderr)

    def json(self, *arguments: str) -> Any:
        result = self.run(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("home")
    (path / "factories.py").write_text(MODELS)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 96), nn.ReLU(), nn.Linear(96, 5))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with gt.Recorder(net, path / "run.ledger.zarr", window_steps=2, entry_steps=4) as recorder:
        for _ in range(6):
            x = torch.randn(16, 40)
            x[:, :7] = 0
            optimizer.zero_grad()
            net(x).square().mean().backward()
            recorder.observe(optimizer)
            optimizer.step()
    torch.save(net.state_dict(), path / "weights.pt")
    torch.save({"state_dict": net.state_dict(), "epoch": 3}, path / "weights.ckpt")
    save_file(net.state_dict(), path / "weights.safetensors")
    return path


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "factories", raising=False)
    return Home(tmp_path)


RUN = ("run.ledger.zarr", "weights.pt")
MODEL = ("--model", "factories:model")
BOTH = (*MODEL, "--validate", "factories:validate")


def test_info_counts_steps_and_what_was_never_supported(home: Home) -> None:
    facts = home.json("info", "run.ledger.zarr")
    assert facts["steps"] == 6
    assert [(e["begin"], e["end"]) for e in facts["entries"]] == [(0, 4), (4, 6)]
    first = facts["parameters"][0]
    assert (first["name"], first["shape"], first["dependencies"]) == ("0.weight", [96, 40], 96 * 40)
    assert first["never_supported"] >= 7 * 96
    assert "0.weight" in home.run("info", "run.ledger.zarr").stdout


def test_info_says_what_was_sampled_and_what_was_recorded_below_the_step(tmp_path: Path) -> None:
    net = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with gt.Recorder(net, tmp_path / "run", below=("positions", "inputs"), below_every=1) as recorder:
        for _ in range(4):
            net(torch.randn(5, 3)).square().mean().backward()
            recorder.observe(optimizer)
    facts = Home(tmp_path).json("info", str(tmp_path / "run"))
    assert facts["parameters"][0]["watched_steps"] == 4
    assert (facts["entries"][0]["stride"], facts["entries"][0]["sampled"]) == (1, 4)
    ledger = gt.Ledger.open(tmp_path / "run")
    note = ledger_table(ledger).note
    assert "position_sumsq" in note
    assert "up to 4 watched steps" in note
    assert "Sums were taken" not in note
    vars(ledger)["_entries"] = tuple(replace(one, sampling=Sampling(4, 1)) for one in ledger.entries)
    assert "Sums were taken on 1 of 4 steps" in ledger_table(ledger).note


def test_criteria_are_those_of_the_library(home: Home) -> None:
    assert [c["name"] for c in home.json("criteria")["criteria"]] == [c.name for c in gt.criteria()]
    assert "magnitude" in home.run("criteria").stdout


@pytest.mark.parametrize("weights", ["weights.pt", "weights.ckpt", "weights.safetensors"])
def test_compare_without_a_model_shows_agreement_only(home: Home, weights: str) -> None:
    names = ("--by", "magnitude", "--by", "support", "--density", "0.5")
    data = home.json("compare", "run.ledger.zarr", weights, *names)["summary"]
    assert data["quality"] is None
    assert data["agreement"]["0.5"]["names"] == ["magnitude", "support", "random", "shuffled"]
    assert data["agreement"]["0.5"]["jaccard"][0][0] == 1.0


def test_compare_with_a_model_and_a_quality_measures_every_mask(home: Home) -> None:
    data = home.json("compare", *RUN, "--by", "magnitude", *BOTH)
    assert data["densities"] == [0.5, 0.3, 0.2, 0.1, 0.05]
    (run,) = data["runs"]
    assert set(run["quality"]) == {"magnitude", "random", "shuffled"}
    assert run["quality"]["magnitude"] != run["quality"]["random"]
    assert data["summary"]["quality"]["reference"] == "magnitude"


@pytest.fixture
def second(home: Home) -> tuple[str, str]:
    """Another seed's ledger and weights."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(40, 96), nn.ReLU(), nn.Linear(96, 5))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with gt.Recorder(net, home.path / "second.ledger.zarr", window_steps=2) as recorder:
        for _ in range(6):
            optimizer.zero_grad()
            net(torch.randn(16, 40)).square().mean().backward()
            recorder.observe(optimizer)
            optimizer.step()
    torch.save(net.state_dict(), home.path / "second.pt")
    return "second.ledger.zarr", "second.pt"


def test_compare_of_several_runs_writes_a_page_and_its_figures(home: Home, second: tuple[str, str]) -> None:
    result = home.run(
        "compare", *RUN, *second, "--by", "magnitude", "--by", "support", *BOTH, "--page", "p.html"
    )
    assert result.exit_code == 0, result.output
    assert "Mean of 2 runs" in result.stdout
    html = (home.path / "p.html").read_text()
    assert html.count("data:image/png;base64,") == 6
    assert "All figures are in p.json" in html
    found = gt.Comparison.load(home.path / "p.json")
    assert [Path(run.ledger).name for run in found.runs] == ["run.ledger.zarr", "second.ledger.zarr"]
    assert found.quality("magnitude")[0].low is not None


def test_compare_of_a_run_twice_is_refused(home: Home) -> None:
    assert "a run once" in home.fails("compare", *RUN, *RUN, "--by", "magnitude")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*RUN, "second.ledger.zarr"), "the last one alone"),
        ((*RUN, "--page", "page.txt"), "--page"),
        ((*RUN, "--page", "nowhere/page.html"), "--page"),
    ],
)
def test_compare_says_what_is_wrong_before_the_wait(
    home: Home, arguments: tuple[str, ...], words: str
) -> None:
    assert words in home.fails("compare", *arguments)


@pytest.mark.parametrize("function", ["factories:words", "factories:broken", "factories:lost"])
def test_compare_names_a_quality_of_no_use(home: Home, function: str) -> None:
    options = ("--by", "magnitude", *MODEL, "--validate", function)
    assert "--validate" in home.fails("compare", *RUN, *options)


def test_compare_in_words_names_the_best(home: Home) -> None:
    result = home.run("compare", *RUN, "--by", "magnitude", "--by", "random", "--density", "0.3", *BOTH)
    assert result.exit_code == 0
    assert "At density 0.3: " in result.stdout


@pytest.mark.parametrize("extra", [(), MODEL], ids=["shapes only", "with the module"])
def test_plan_writes_plan_and_mask(home: Home, extra: tuple[str, ...]) -> None:
    out = ("--out", "plan.json", "--mask-out", "mask.safetensors")
    data = home.json("plan", *RUN, "--density", "0.3", "--tokens", "8", *out, *extra)
    assert set(data["layers"]) == {"0", "2"}
    plan, mask = gt.Plan.load(home.path / "plan.json"), gt.Mask.load(home.path / "mask.safetensors")
    assert set(plan) == {"0", "2"}
    assert mask.density == pytest.approx(data["density"])
    assert mask["0.weight"].shape == (96, 40)


def test_plan_shows_the_costs_that_it_predicts_with_and_how_near_it_came(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("plan", *RUN, "--density", "0.3", "--tokens", "8", "--no-refuse")
    data = home.json(*asked)
    (costs,) = data["costs"]
    assert (costs["device"], costs["dtype"], costs["table"]["tokens"]) == ("cpu", "float32", 8)
    assert set(data["prediction_errors"]) <= {"0", "2"}
    monkeypatch.setenv("COLUMNS", "1000")
    told = home.run(*asked).stdout
    assert f"measured {costs['measured']}" in told
    assert "Predictions beside measurements, layers: 2" in told


def test_plan_meets_a_latency(home: Home) -> None:
    out = ("--out", "plan.json", "--mask-out", "mask.safetensors")
    data = home.json("plan", *RUN, "--max-latency", "10", "--tokens", "8", *out)
    budget = data["provenance"]["budget"]
    assert (budget["max_latency"], budget["density"], data["density"]) == (10.0, 1.0, 1.0)
    assert gt.Plan.load(home.path / "plan.json").provenance["budget"] == budget
    assert "expected at least" in home.fails("plan", *RUN, "--max-latency", "1e-12", "--tokens", "8")


def test_plan_meets_a_loss(home: Home) -> None:
    options = ("--max-loss-increase", "1000", *BOTH, "--tokens", "8", "--mask-out", "mask.safetensors")
    data = home.json("plan", *RUN, *options)
    budget = data["provenance"]["budget"]
    assert budget["increase"] <= 1000.0
    assert gt.Mask.load(home.path / "mask.safetensors").density == pytest.approx(data["density"])
    assert data["density"] < 0.1, "this budget allows nearly anything"
    assert "--validate" in home.fails("plan", *RUN, "--max-loss-increase", "0.1")


def test_growth_is_shown_at_every_entrys_end(home: Home) -> None:
    data = home.json("growth", "run.ledger.zarr", "--picture", "growth.png")
    assert data["steps"] == [4, 6]
    assert data["sizes"]["0.weight"] == 96 * 40
    assert (home.path / "growth.png").read_bytes().startswith(b"\x89PNG")
    assert "together" in home.run("growth", "run.ledger.zarr").stdout


def test_explain_counts_reasons_and_measures_three_arms(home: Home) -> None:
    options = ("--density", "0.3", "--q", "0.2", "--mask-out", "mask.safetensors")
    data = home.json("explain", *RUN, *options, *BOTH)
    for counts in data["parameters"].values():
        assert set(counts) == set(data["reasons"])
    assert sum(data["parameters"]["0.weight"].values()) == 96 * 40
    assert data["parameters"]["0.weight"]["never_supported"] >= 7 * 96
    assert set(data["quality"]) == {"zero", "reset", "keep"}
    assert data["quality"]["zero"] != data["quality"]["keep"] != data["quality"]["reset"]
    assert gt.Mask.load(home.path / "mask.safetensors").density == pytest.approx(data["density"])


def test_explain_in_words(home: Home) -> None:
    result = home.run("explain", *RUN)
    assert result.exit_code == 0
    assert ": never supported by any step" in result.stdout
    assert "expected both or neither, got one" in home.fails("explain", *RUN, *MODEL)


def test_plan_by_false_discovery_rate(home: Home) -> None:
    data = home.json(
        "plan", *RUN, "--by", "init", "--fdr", "0.05", "--granularity", "element", "--tokens", "8"
    )
    assert 0 <= data["density"] < 1


def test_convert_saves_what_equals_the_masked_model(home: Home) -> None:
    options = ("--density", "0.3", "--tokens", "8", "--no-refuse")
    data = home.json("convert", *RUN, "converted", *options, *BOTH)
    assert set(data["converted"]) == set(data["verification"]) == {"0", "2"}
    assert all(0 <= one["relative"] <= one["tolerance"] == 1e-5 for one in data["verification"].values())
    assert data["quality"]["converted"] == pytest.approx(data["quality"]["masked"], rel=1e-4)
    assert data["quality"]["converted"] != pytest.approx(data["quality"]["dense"], rel=1e-4)
    sys.path.insert(0, str(home.path))
    from factories import model, validate  # type: ignore[import-not-found]

    assert validate(gt.load(model(), home.path / "converted")) == data["quality"]["converted"]


def test_convert_in_words(home: Home) -> None:
    options = ("--density", "0.3", "--tokens", "8", "--no-refuse")
    result = home.run("convert", *RUN, "converted", *options, *BOTH)
    assert result.exit_code == 0
    assert "2 of 2 layers converted and verified" in result.stdout
    assert re.search(r"^ *0 +\S+e-\d+ +\S+e-\d+ +1e-05", result.stdout, re.MULTILINE)
    assert re.search(r"converted: \S+ \([+-]", result.stdout)


@pytest.mark.parametrize("command", ["info", "compare", "plan", "convert"])
def test_a_foreign_directory_is_named_and_left_alone(home: Home, command: str) -> None:
    (home.path / "photos").mkdir()
    (home.path / "photos" / "cat.jpg").write_bytes(b"cat")
    rest = {"info": (), "compare": ("weights.pt",), "plan": ("weights.pt", "--density", "0.5")}
    rest["convert"] = ("weights.pt", "out", "--density", "0.5", *MODEL)
    assert "photos" in home.fails(command, "photos", *rest[command])
    assert [path.name for path in (home.path / "photos").iterdir()] == ["cat.jpg"]
    assert not (home.path / "out").exists()


def test_a_missing_ledger_is_named(home: Home) -> None:
    assert "nowhere.zarr" in home.fails("info", "nowhere.zarr")


def test_an_empty_ledger_says_so(home: Home) -> None:
    with LedgerWriter.create(home.path / "empty.ledger.zarr", settings={}):
        pass
    assert "empty.ledger.zarr" in home.fails("info", "empty.ledger.zarr")


@pytest.mark.parametrize("command", ["compare", "plan"])
def test_an_unknown_criterion_is_told_the_nearest_name(home: Home, command: str) -> None:
    density = ("--density", "0.5")
    assert "magnitude" in home.fails(command, *RUN, *density, "--by", "magnitud")


@pytest.mark.parametrize("density", ["0", "-0.1", "1.5", "nan"])
@pytest.mark.parametrize("command", ["compare", "plan"])
def test_a_density_outside_0_to_1_is_refused(home: Home, command: str, density: str) -> None:
    assert "density" in home.fails(command, *RUN, "--density", density)


@pytest.mark.parametrize("options", [(), ("--density", "0.5", "--fdr", "0.1")], ids=["neither", "both"])
def test_plan_wants_either_a_density_or_an_fdr(home: Home, options: tuple[str, ...]) -> None:
    assert "exactly one" in home.fails("plan", *RUN, *options)


@pytest.mark.parametrize(
    "options", [("--scope", "galaxy"), ("--granularity", "atom"), ("--tokens", "0")], ids=lambda o: o[0]
)
def test_a_setting_that_does_not_exist_is_refused(home: Home, options: tuple[str, ...]) -> None:
    assert options[0][2:] in home.fails("plan", *RUN, "--density", "0.5", *options)


def test_an_unreadable_checkpoint_is_named(home: Home) -> None:
    (home.path / "weights.pt").write_bytes((home.path / "weights.pt").read_bytes()[:300])
    assert "weights.pt" in home.fails("plan", *RUN, "--density", "0.5")
    assert "lost.pt" in home.fails("plan", "run.ledger.zarr", "lost.pt", "--density", "0.5")


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("sprung"),)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_is_refused_and_not_run(home: Home, protocol: int) -> None:
    (home.path / "evil.ckpt").write_bytes(pickle.dumps({"state_dict": Trap()}, protocol=protocol))
    torch.save({"state_dict": Trap()}, home.path / "evil.pt")
    assert "evil.ckpt" in home.fails("plan", "run.ledger.zarr", "evil.ckpt", "--density", "0.5")
    assert "evil.pt" in home.fails("plan", "run.ledger.zarr", "evil.pt", "--density", "0.5")
    assert not (home.path / "sprung").exists()


def test_weights_of_another_model_are_refused(home: Home) -> None:
    save_file({"other.weight": torch.zeros(3, 3)}, home.path / "other.safetensors")
    home.fails("plan", "run.ledger.zarr", "other.safetensors", "--density", "0.5")
    wider = {"0.weight": torch.zeros(96, 41), "2.weight": torch.zeros(5, 96)}
    save_file(wider, home.path / "wider.safetensors")
    assert "0.weight" in home.fails("plan", "run.ledger.zarr", "wider.safetensors", "--density", "0.5")


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("factories:wider", "0.weight"),
        ("factories:deeper", "3.bias"),
        ("factories:broken", "out of cheese"),
        ("factories:nothing", "torch.nn.Module"),
        ("factories:lost", "lost"),
        ("no_such_module:model", "no_such_module"),
        ("factories", "pkg.mod:name"),
        ("factories:torch", "callable"),
    ],
)
def test_a_factory_of_no_use_is_blamed_in_one_line(home: Home, factory: str, said: str) -> None:
    options = ("--density", "0.5", "--model", factory)
    assert said in home.fails("convert", *RUN, "converted", *options)
    assert not (home.path / "converted").exists()


@pytest.mark.parametrize("function", ["factories:words", "factories:broken", "factories:lost"])
def test_a_quality_of_no_use_leaves_nothing_behind(home: Home, function: str) -> None:
    options = ("--density", "0.5", "--tokens", "8", *MODEL, "--validate", function)
    assert "--validate" in home.fails("convert", *RUN, "converted", *options)
    assert not (home.path / "converted").exists()


def test_compare_wants_model_and_quality_together(home: Home) -> None:
    assert "both or neither" in home.fails("compare", *RUN, *MODEL)


def test_a_folder_of_somebody_else_is_not_replaced_by_a_conversion(home: Home) -> None:
    (home.path / "thesis").mkdir()
    (home.path / "thesis" / "chapter-1.tex").write_text("In the beginning")
    home.fails("convert", *RUN, "thesis", "--density", "0.5", "--tokens", "8", *MODEL)
    assert [path.name for path in (home.path / "thesis").iterdir()] == ["chapter-1.tex"]


@pytest.mark.parametrize("command", ["info", "compare", "plan", "convert", "criteria"])
def test_every_command_teaches_with_an_example(home: Home, command: str) -> None:
    result = home.run(command, "--help")
    assert result.exit_code == 0
    assert f"gradtrace {command}" in " ".join(result.stdout.replace("│", " ").split())


def test_usage_errors_exit_with_2(home: Home) -> None:
    assert home.run("info").exit_code == 2
    assert home.run("plan", *RUN, "--density", "half").exit_code == 2
    assert home.run("convert", *RUN, "out", "--density", "0.5").exit_code == 2


def test_as_a_user_runs_it(home: Home) -> None:
    command = [sys.executable, "-m", "gradtrace.cli"]
    good = subprocess.run([*command, "info", "run.ledger.zarr", "--json"], capture_output=True, text=True)
    assert (good.returncode, good.stderr) == (0, "")
    assert json.loads(good.stdout)["steps"] == 6
    bad = subprocess.run([*command, "info", "\x1b[31mnowhere"], capture_output=True, text=True)
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr.startswith("error: ")
    assert bad.stderr.count("\n") == 1
    assert "\x1b" not in bad.stderr


def test_help_loads_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, gradtrace.cli; print(sorted({'torch', 'numpy', 'lightning', 'zarr'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
