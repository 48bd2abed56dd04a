# Two commands on a fresh machine: `make demo` and `make test`. Both make their own .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The CPU build of torch is enough for everything here; on a machine with a GPU, install torch first.
INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt

.PHONY: bench bench-annealing bench-criteria clean demo lint test torture

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Kills trainings several hundred times; `make torture SEED=7` draws the moments of another run again.
torture: SEED ?= $(shell date +%s)
torture: $(STAMP)
	GRADTRACE_TORTURE=1 GRADTRACE_SEED=$(SEED) $(BIN)/python -m pytest tests/torture tests/ranks

demo: $(STAMP)
	$(BIN)/python recipes/train.py
	$(BIN)/python recipes/convert.py
	$(BIN)/python recipes/compare.py

bench: $(STAMP)
	$(BIN)/python benchmarks/zero_support.py
	$(BIN)/python benchmarks/ledger_io.py
	$(BIN)/python benchmarks/analysis.py
	$(BIN)/python benchmarks/planted.py
	$(BIN)/python benchmarks/aot.py
	$(BIN)/python benchmarks/accumulate.py
	$(BIN)/python benchmarks/routed_linear.py
	$(BIN)/python benchmarks/end_to_end.py
	$(BIN)/python benchmarks/compensation.py
	$(BIN)/python benchmarks/reordering.py
	$(INSTALL) -e ".[bench]"
	$(INSTALL) --no-deps backpack-for-pytorch  # without its torchvision, which must match the build of torch
	$(BIN)/python benchmarks/overhead.py

# Some hours of one core; interrupted, the same command goes on.
bench-annealing: $(STAMP)
	$(BIN)/python benchmarks/planted_blocks.py
	$(BIN)/python benchmarks/annealing_text.py

# Some hours on two cores; interrupted, the same command goes on.
bench-criteria: $(STAMP)
	$(BIN)/python benchmarks/criteria_search.py

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(INSTALL) -e ".[dev]" triton
	touch $@

clean:
	rm -rf $(VENV) runs build dist *.egg-info
