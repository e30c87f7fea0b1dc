# One virtual environment, made on first use and again when pyproject.toml changes.
#
#   make quickstart   train a small multilingual model on this machine and score it
#   make demo         ask that model about pictures in the browser, and see why it answers so
#   make test         the test suite
#   make test-all     the same and its repeats on other launchers and sizes
#   make test-gpu     the tests that need a CUDA device; the others do not see one
#   make check        ruff, mypy and the test suite: what CI runs
#   make experiments  every run of docs/results.md anew, hours of them; goes on where it was stopped
#   make format       let ruff tidy the code
#   make clean        remove the environment and caches
#
# Variables: PYTHON, VENV, TORCH, MINUTES, OUT, MODEL, PYTEST_ARGS, PARALLEL.

PYTHON ?= python3
VENV ?= .venv
# torch and torchvision must come from the same release, or torchvision's operators do not load.
# This pair is the one tested; another: make TORCH="torch==2.13.0 torchvision==0.28.0" check
TORCH ?= torch==2.14.1 torchvision==0.29.1
MINUTES ?= 9
OUT ?= runs/quickstart
MODEL ?= $(OUT)/model
# A worker per core, for the tests themselves use one thread each; a worker needs up to 3 GiB.
PYTEST_ARGS ?= --numprocesses logical --maxprocesses 4 --dist worksteal

# Runs of `make experiments` at once: a core each, or gpus for one a device.
PARALLEL ?= 2

BIN := $(VENV)/bin
# errors only: a long install scrolls past nothing that matters
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help quickstart demo test test-all test-gpu check lint experiments format clean

help:
	@sed -n 's/^#   //p' Makefile

quickstart: $(VENV)/.installed-starter
	$(BIN)/llava-mole quickstart --minutes $(MINUTES) --out $(OUT)

demo: $(VENV)/.installed-demo
	$(BIN)/python app.py --model $(MODEL)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m "(thorough or not thorough) and not hub"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-gpu: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m gpu

experiments: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/experiments.py --parallel $(PARALLEL)

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

check: lint test

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) --upgrade pip
	@touch $@

$(VENV)/.torch: $(VENV)/.created
	@echo "installing $(TORCH) into $(VENV)"
	$(PIP) $(TORCH)
	@touch $@

$(VENV)/.installed-starter: pyproject.toml $(VENV)/.torch
	@echo "installing llava-mole[starter] into $(VENV)"
	$(PIP) --editable ".[starter]" $(TORCH)
	@touch $@

$(VENV)/.installed-demo: pyproject.toml $(VENV)/.torch
	@echo "installing llava-mole[starter,demo] into $(VENV)"
	$(PIP) --editable ".[starter,demo]" $(TORCH)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.torch
	@echo "installing llava-mole[starter,data,demo,dev] into $(VENV)"
	$(PIP) --editable ".[starter,data,demo,dev]" $(TORCH)
	@touch $@
