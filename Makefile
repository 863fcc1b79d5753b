# make quickstart   see all of it on this machine      make test    all checks, as CI runs them
# make bench        the figures of the README          make lint    without the tests
# PYTHON=/path/to/python3.11+ picks the interpreter; pip's own settings (PIP_INDEX_URL, ...) pick where packages come from.

SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
# tried, not only looked for: a version manager's shim may stand for a version that is not there
PYTHON ?= $(shell for v in 3.11 3.12 3.13 3.14; do \
	python$$v -c 'import venv' 2>/dev/null && { echo python$$v; break; }; done)
READY := $(VENV)/.ready

.PHONY: quickstart test lint bench clean

quickstart: $(READY)
	$(BIN)/ropewalk quickstart

test: lint
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	@for file in tests/benchmarks/bench_*.py; do \
		echo "== $$file"; $(BIN)/python -m tests.benchmarks.$$(basename $$file .py) || exit 1; done

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 to 3.14 found; install one, or name it: make PYTHON=/path/to/python3" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find cluster datapipe jobs sharding tests -name __pycache__ -type d -prune -exec rm -rf {} +
