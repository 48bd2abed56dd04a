from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import gradtrace as gt
from gradtrace.cli import app
from gradtrace.errors import InvalidValueError, UnknownNameError, UnsupportedError
from gradtrace.evidence.undertrained import embeddings
from gradtrace.report.undertrained_section import rarely_table, undertrained_lines, undertrained_section

STEPS, ROWS = 24, 12


class Tied(nn.Module):
    """A head that shares the embedding, by its own module or by a function; as wide as long if `square`."""

    def __init__(self, *, by_module: bool = True, square: bool = False) -> None:
        super().__init__()
        width = ROWS if square else 5
        self.embed = nn.Embedding(ROWS, width)
        self.places = nn.Embedding(4, width)
        if by_module:
            self.head = nn.Linear(width, ROWS, bias=False)
            self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(tokens) + self.places.weight
        weight = self.head.weight if hasattr(self, "head") else self.embed.weight
        logits: torch.Tensor = self.head(hidden) if hasattr(self, "head") else hidden @ weight.T
        return logits


def tokens_of(step: int) -> torch.Tensor:
    """Rows 2 to 8, and row 9 in step 3 only: (2, 4)."""
    tokens = torch.randint(2, 9, (2, 4), generator=torch.Generator().manual_seed(step))
    if step == 3:
        tokens[0, 0] = 9
    return tokens


def recorded(model: nn.Module, path: Path, **told: Any) -> gt.Ledger:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    with gt.Recorder(model, path, window_steps=4, entry_steps=8, **told) as recorder:
        for step in range(STEPS):
            tokens = tokens_of(step)
            nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()  # type: ignore[no-untyped-call]
            recorder.observe(optimizer)
            optimizer.step()
            optimizer.zero_grad()
    return gt.Ledger.open(path)


def lookups() -> np.ndarray[Any, Any]:
    seen = torch.cat([tokens_of(step).flatten() for step in range(STEPS)])
    return torch.bincount(seen, minlength=ROWS).numpy()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return tmp_path_factory.mktemp("tied")


@pytest.fixture(scope="module")
def tied(home: Path) -> gt.Ledger:
    return recorded(Tied(), home / "tied.ledger.zarr")


@pytest.mark.parametrize("square", [False, True])
def test_a_tied_embedding_is_judged_by_its_lookups(square: bool, tmp_path: Path) -> None:
    ledger = recorded(Tied(square=square), tmp_path / "run.ledger.zarr", below="inputs", below_every=1)
    assert (ledger["embed.weight"].events > 0).all()  # what the head does: the trap
    found = gt.undertrained(ledger, "head.weight", rare=0.05)
    assert (found.name, found.counted, found.steps, found.missed) == ("embed.weight", "lookups", STEPS, 0)
    np.testing.assert_array_equal(found.uses, lookups())
    assert np.flatnonzero(found.never).tolist() == [0, 1, 10, 11]
    assert np.flatnonzero(found.rarely).tolist() == [9]
    assert (found.first[9], found.last[9]) == (8, 8)


def test_lookups_of_some_steps_say_how_many_they_missed(tmp_path: Path) -> None:
    ledger = recorded(Tied(), tmp_path / "run.ledger.zarr", below="inputs", below_every=4)
    found = gt.undertrained(ledger, "embed.weight")
    assert 0 < found.steps < STEPS
    assert found.missed == STEPS - found.steps
    assert any(f"{found.missed} were not looked at" in line for line in undertrained_lines([found]))


def test_a_tied_embedding_without_lookups_is_an_error_with_the_way_out(tied: gt.Ledger) -> None:
    with pytest.raises(UnsupportedError, match=r"is also 'head.weight'.*below=\"inputs\".*by=\"events\""):
        gt.undertrained(tied, "embed.weight")
    with pytest.raises(UnknownNameError, match=r"Record the next run with below=\"inputs\""):
        gt.undertrained(tied, "embed.weight", by="lookups")


def test_asked_for_events_it_says_what_a_gradient_in_every_step_may_mean(tied: gt.Ledger) -> None:
    found = gt.undertrained(tied, "embed.weight", by="events")
    assert found.always
    assert any("output head" in line for line in undertrained_lines([found]))


def test_a_head_by_a_function_is_said_too(tmp_path: Path) -> None:
    ledger = recorded(Tied(by_module=False), tmp_path / "run.ledger.zarr")
    assert gt.undertrained(ledger, "embed.weight").always


def test_padding_is_never_used(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(ROWS, 5, padding_idx=4), nn.Linear(5, ROWS))
    found = gt.undertrained(recorded(model, tmp_path / "run.ledger.zarr"), "0.weight")
    assert np.flatnonzero(found.never).tolist() == [0, 1, 4, 10, 11]


@pytest.mark.parametrize(
    ("name", "options", "error", "match"),
    [
        ("embed.weight", {"rare": 0}, InvalidValueError, "rare: expected a number"),
        ("embed.weight", {"by": "magic"}, InvalidValueError, "by: expected events or lookups"),
        ("embed.wieght", {}, UnknownNameError, "nearest is 'embed.weight'"),
    ],
)
def test_arguments_out_of_range_are_refused(
    name: str, options: dict[str, Any], error: type[Exception], match: str, tied: gt.Ledger
) -> None:
    with pytest.raises(error, match=match):
        gt.undertrained(tied, name, **options)


def test_what_is_no_embedding_is_refused_with_those_that_are(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(ROWS, 5), nn.Linear(5, ROWS))
    ledger = recorded(model, tmp_path / "run.ledger.zarr")
    assert embeddings(ledger) == ("0.weight",)
    with pytest.raises(UnsupportedError, match=r"got a weight of Linear.*'0.weight'"):
        gt.undertrained(ledger, "1.weight")


def test_the_command_writes_json_and_a_page_and_one_refused_does_not_hide_the_others(
    tied: gt.Ledger, tmp_path: Path
) -> None:
    page = tmp_path / "tokens.html"
    done = CliRunner().invoke(app, ["undertrained", tied.path, "--page", str(page), "--json"])
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert [one["name"] for one in data["embeddings"]] == ["places.weight"]
    assert "is also 'head.weight'" in data["refused"][0]
    assert page.read_text().count("data:image/png;base64,") == 1
    shown = CliRunner().invoke(app, ["undertrained", tied.path])
    assert "every row had a gradient in every step" in shown.stdout
    alone = CliRunner().invoke(app, ["undertrained", tied.path, "--embedding", "embed.weight"])
    assert alone.exit_code == 1
    assert alone.stderr.startswith("error: 'embed.weight' is also 'head.weight'")


def test_first_and_last_use_are_told_by_step_and_entry(tmp_path: Path) -> None:
    ledger = recorded(nn.Sequential(nn.Embedding(ROWS, 5), nn.Linear(5, ROWS)), tmp_path / "run.ledger.zarr")
    found = gt.undertrained(ledger, "0.weight", rare=0.1)
    assert np.flatnonzero(found.rarely).tolist() == [9]
    entry = {"entry": 0, "begin": 0, "end": 8}
    told = {"row": 9, "uses": 1, "first": 8, "last": 8, "first_entry": entry, "last_entry": entry}
    assert found.to_json()["rarely"] == [told]
    table = rarely_table([found])
    assert table is not None
    assert table.rows == (("0.weight", "9", "1", "0-7", "0", "0-7", "0"),)
    assert table in undertrained_section([found]).tables
    assert (
        "Rarely used rows" in CliRunner().invoke(app, ["undertrained", ledger.path, "--rare", "0.1"]).stdout
    )


def test_a_comparison_pictures_the_rows_of_the_embeddings_that_can_be_told(
    tied: gt.Ledger, tmp_path: Path
) -> None:
    model = Tied()
    named = {"embed.weight": model.embed.weight, "places.weight": model.places.weight}
    save_file(named, tmp_path / "w.safetensors")
    page = tmp_path / "compare.html"
    asked = ["compare", tied.path, str(tmp_path / "w.safetensors"), "--by", "support", "--density", "0.5"]
    done = CliRunner().invoke(app, [*asked, "--page", str(page)])
    assert done.exit_code == 0, done.output
    html = page.read_text()
    assert "Tokens that training hardly saw" in html
    assert "The 4 rows of places.weight, 0 of them never used." in html
    assert "rows of embed.weight" not in html  # tied to a head, and no lookups recorded


def test_the_section_names_rows_in_runs(tied: gt.Ledger) -> None:
    found = gt.undertrained(tied, "embed.weight", by="events")
    uses = np.array([0, 0, 3, 0, 3, 3, 3, 3, 3, 0, 0, 0])
    section = undertrained_section([type(found)("e", "events", 100, 0, uses, uses, uses, 0.05)])
    assert section.findings == ("e: never used: 0-1, 3, 9-11.", "e: rarely used: 2, 4-8.")
    assert section.pictures[0].width > 300
