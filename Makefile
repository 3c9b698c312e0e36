.DEFAULT_GOAL := help
.PHONY: help setup train test test-slow lint tensorboard clean

ARGS ?= algo=fox env=grf
BIN := .venv/bin

# Read by scripts/setup.sh, which has their defaults.
export PYTHON TORCH TORCH_INDEX FOOTBALL JAX

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo 'Variables, as in `make test PYTHON=python3.12`:'
	@echo '  ARGS         settings of `make train` (algo=fox env=grf)'
	@echo '  PYTHON       interpreter that makes .venv, 3.10 to 3.13 (python3.11 if there, else python3)'
	@echo '  TORCH        build of PyTorch (torch==2.13.0)'
	@echo "  TORCH_INDEX  index to take it from (pip's own); PyTorch's install page, \"Start Locally\", names the CPU-only one"
	@echo '               (.venv remembers TORCH and TORCH_INDEX)'
	@echo '  FOOTBALL     no: leave the football engine and its system packages out'
	@echo "  JAX          no: leave JaxMARL's suite out (0.6 GB; it needs Python 3.11 or newer)"

setup:  ## make .venv and install everything; takes a moment when that is done
	@scripts/setup.sh

train:  ## set up, then train: make train ARGS="algo=qmix env=grf steps=20000"
	@FOOTBALL=$(or $(FOOTBALL),$(if $(findstring env=grf,$(ARGS)),required)) scripts/setup.sh
	$(BIN)/python -m marl.train $(ARGS)

test: setup  ## set up, then run the fast tests
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: setup  ## set up, then run the slow tests
	$(BIN)/python -m pytest -m slow -n 2 --dist worksteal

lint: setup  ## set up, then ruff (lint and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

tensorboard: setup  ## set up, then show the runs in a browser
	$(BIN)/tensorboard --logdir runs --host localhost

clean:  ## remove .venv and what tools left behind; runs and the compiled engine's cache stay
	rm -rf .venv build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
