# make demo   set up and watch a negative embedding being learned (leaves demo-output/)
# make demo-texforce   the same for a text encoder being tuned (leaves demo-texforce/)
# make test   set up and run the tests
# make mutants  plant mistakes in the code and see whether the tests notice (docs/testing.md); stops and goes on
# make gpu    on a machine with a CUDA device: what a step takes there, in about ten minutes (docs/benchmarks.md)
# make lint   style and format checks
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo demo-texforce test mutants gpu lint clean

demo: $(READY)
	$(BIN)/python -m reneg_core demo --output demo-output
	@echo "Open demo-output/report.html; the pictures are demo-output/grid.png and demo-output/curve.png."

demo-texforce: $(READY)
	$(BIN)/python -m reneg_core texforce demo --output demo-texforce
	@echo "Open demo-texforce/report.html; the pictures are demo-texforce/grid.png and demo-texforce/curve.png."

test: $(READY)
	$(BIN)/python -m pytest $(ARGS)

mutants: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,mutants]"
	$(BIN)/python scripts/mutants.py $(ARGS)

gpu: $(READY)
	$(BIN)/python benchmarks/gpu.py $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) demo-output demo-texforce
