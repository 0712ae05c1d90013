# Each target makes or reuses .venv itself; `make demo` and `make test` are all a newcomer needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEVELOP := $(VENV)/.installed-to-develop
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
.DELETE_ON_ERROR:
.PHONY: demo test lint bench torture gpu gpu-pack clean

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "aqa_pipeline needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

$(DEVELOP): $(INSTALLED)
	$(PIP) -e '.[test,lint]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/aqa demo

test: $(DEVELOP)
	$(BIN)/python -m pytest

lint: $(DEVELOP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy aqa_pipeline cli tests

bench: $(DEVELOP)
	$(BIN)/python benchmarks/stage1.py
	rm -rf build/bench
	$(BIN)/python benchmarks/cache_scaling.py build/bench 1412 10000
	$(BIN)/python benchmarks/stage2.py --short

torture: $(DEVELOP)
	$(BIN)/python -m pytest -m torture tests/torture
	$(BIN)/python benchmarks/torture.py

# The checks that need a GPU, and the pack they compare with: docs/performance.md.
gpu: $(DEVELOP)
	$(BIN)/python -m pytest -m gpu tests/gpu

# PROJECT: a folder in which `aqa demo` was run.
PROJECT ?= .
gpu-pack: $(INSTALLED)
	$(BIN)/python benchmarks/gpu_pack.py $(PROJECT)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
