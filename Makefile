# Every target sets up the Python environment that it needs by itself; `make help` lists them.

# The first Python from 3.11 to 3.13 that runs; constraints.txt holds what was tested on 3.11.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
ifndef PYTHON
PYTHON := $(shell for python in python3.11 python3 python python3.12 python3.13; do \
	"$$python" -c '$(SUPPORTED)' 2> /dev/null && echo "$$python" && break; done)
endif
NEWER := import sys; sys.exit(not (3, 12) <= sys.version_info[:2] <= (3, 13))
FIND_NEWER = for python in python3.13 python3.12 "$$HOME"/.pyenv/versions/3.13*/bin/python \
	"$$HOME"/.pyenv/versions/3.12*/bin/python; do \
	"$$python" -c '$(NEWER)' 2> /dev/null && echo "$$python" && break; done

VENV := .venv
BIN := $(VENV)/bin
INSTALL := pip install --quiet --disable-pip-version-check --no-compile
# The least coverage of effnet_jax, in per cent, that `make test` accepts.
COVERAGE := 90

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart test lint format slow check-newest clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(VENV)/quickstart.stamp  ## fine-tune EfficientNet-Lite0 on photographs of clothes, in runs/quickstart
	$(BIN)/python -m effnet_jax.train --config=configs/quickstart.py --workdir=runs/quickstart

test: lint  ## lint, format check, type check, and the tests with their coverage
	$(BIN)/python -m pytest --numprocesses=2 --dist=worksteal --cov --cov-report=term-missing --cov-fail-under=$(COVERAGE)

slow: $(VENV)/dev.stamp  ## the long proofs, which `make test` leaves out
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/dev.stamp  ## lint, format check and type check
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/dev.stamp  ## bring the code into its format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

check-newest:  ## the tests under the newest jax, on a newer Python where one is installed
	@python=$$($(FIND_NEWER)); \
	if [ -z "$$python" ]; then \
		echo "no Python 3.12 or 3.13 is installed: nothing was checked (the newest jax needs one)"; exit 0; \
	fi; \
	set -e; \
	[ -x .venv-newest/bin/pip ] || "$$python" -m venv --clear .venv-newest; \
	.venv-newest/bin/$(INSTALL) --upgrade --editable '.[dev]'; \
	.venv-newest/bin/python -c 'import sys, jax; print("Python", sys.version.split()[0], "with jax", jax.__version__)'; \
	.venv-newest/bin/python -m pytest

# A stamp for each set of packages, so that the quick start does not wait for the tools of development.
$(VENV)/%.stamp: pyproject.toml constraints.txt
	@[ -n "$(PYTHON)" ] || { echo "no Python 3.11, 3.12 or 3.13 was found: install one, or say make PYTHON=/path/to/python"; exit 2; }
	@"$(PYTHON)" -c '$(SUPPORTED)' || { echo "$(PYTHON) is not a Python from 3.11 to 3.13"; exit 2; }
	@[ -x $(BIN)/pip ] || "$(PYTHON)" -m venv --clear $(VENV) || { rm -rf $(VENV); exit 2; }
	@echo "installing effnet_jax[$*] into $(VENV)"
	@$(BIN)/$(INSTALL) --constraint constraints.txt --editable '.[$*]'
	@touch $@

clean:  ## remove the environments, caches and build outputs; runs/ stay
	rm -rf .venv .venv-newest build dist .coverage .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
