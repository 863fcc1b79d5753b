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
# counts Ray's processes, and would wait for those of the other parts to be gone; at the beginning there are none
FIRST := tests/slurm/test_ray.py
SECOND := tests/slurm tests/chaos/test_slurm.py $(wildcard tests/jobs/test_sweep*.py)
# pip would compile on one core
PIP_INSTALL := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest -p no:cacheprovider --durations=20

# what the tests of the Slurm backend run on; without it they are skipped
SLURM_PROGRAMS := slurmctld slurmd srun munged slurmdbd mariadbd jq shellcheck ch-run
SLURM_PACKAGES := slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge jq slurmdbd mariadb-server shellcheck charliecloud

.PHONY: quickstart test lint bench clean slurm-packages

quickstart: $(READY)
	$(BIN)/ropewalk quickstart

# three parts at a time, as most tests wait for Slurm, Kubernetes or steps; what the others print comes after the first one's
test:
	@$(MAKE) --no-print-directory --jobs=2 lint slurm-packages
	@logs=$$(mktemp -d); trap 'rm -rf "$$logs"' EXIT; \
	$(PYTEST) tests/k8s > "$$logs/k8s" 2>&1 & k8s=$$!; \
	$(PYTEST) $(SECOND) --ignore=$(FIRST) > "$$logs/second" 2>&1 & second=$$!; \
	$(PYTEST) $(FIRST); code=$$?; \
	$(PYTEST) $(addprefix --ignore=,tests/k8s $(SECOND)); code=$$((code | $$?)); \
	wait $$second; code=$$((code | $$?)); echo "== tests of Slurm and of sweeps"; cat "$$logs/second"; \
	wait $$k8s; code=$$((code | $$?)); echo "== tests of Kubernetes"; cat "$$logs/k8s"; \
	exit $$code

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
	$(PIP_INSTALL) --editable '.[dev]'
	@$(PIP_INSTALL) --editable '.[bohb]' >/dev/null 2>&1 \
		|| echo "sweeps by BOHB are left out: its packages need a C compiler; see pip install '.[bohb]'" >&2
	@$(BIN)/python -m compileall -q -j 0 -x 'site-packages/.*/tests?/' $(abspath $(VENV)) >/dev/null 2>&1 || true  # a few files are for other Pythons
	touch $@

# only as root of a Debian; anywhere else, and when it fails, the tests that need Slurm say so and are skipped
slurm-packages:
	@export PATH="$$PATH:/usr/sbin:/sbin" DEBIAN_FRONTEND=noninteractive; \
	for program in $(SLURM_PROGRAMS); do command -v $$program >/dev/null || missing="$$missing $$program"; done; \
	test -n "$$missing" || exit 0; \
	if test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
		echo "installing Slurm for the tests:$$missing"; \
		log=$$(mktemp); \
		{ apt-get update -q && apt-get install -q -y --no-install-recommends $(SLURM_PACKAGES); } >$$log 2>&1 </dev/null \
			&& { rm -f $$log; exit 0; }; \
		echo "that failed; see $$log" >&2; \
	fi; \
	echo "missing:$$missing; tests that need Slurm are skipped; on Debian or Ubuntu:" >&2; \
	echo "  apt-get install --no-install-recommends $(SLURM_PACKAGES)" >&2

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find cluster datapipe jobs k8s sharding slurm tests -name __pycache__ -type d -prune -exec rm -rf {} +
