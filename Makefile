# make quickstart   see all of it on this machine      make test    all checks, as CI runs them
# make soak         the long tests                     make lint    without the tests
# make bench        the figures of the README
# PYTHON=/path/to/python3.11+ picks the interpreter; pip's own settings (PIP_INDEX_URL, ...) pick where packages come from.

SHELL := /bin/bash
VENV ?= .venv
EXTRAS ?= dev
BIN := $(VENV)/bin
# tried, not only looked for: a version manager's shim may stand for a version that is not there
PYTHON ?= $(shell for v in 3.11 3.12 3.13 3.14; do \
	python$$v -c 'import venv' 2>/dev/null && { echo python$$v; break; }; done)
READY := $(VENV)/.ready
TRAIN := $(VENV)/.train-ready
# what a process compiles the next one need not
unexport PYTHONDONTWRITEBYTECODE
# of 25,000 modules pip would compile all, and programs compile the 5,000 that they import
PIP_INSTALL := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt

# what the tests of the Slurm backend, of ssh, of shared file systems and of the review page run on; without it they are skipped
TEST_PROGRAMS := slurmctld slurmd srun munged slurmdbd mariadbd jq shellcheck ch-run fusermount3 chromium chromedriver sshd
TEST_PACKAGES := slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge jq slurmdbd mariadb-server shellcheck charliecloud fuse3 chromium chromium-driver openssh-server

.PHONY: quickstart test soak lint docs bench benches clean test-packages

# with what jobs need alone, which installs sooner; an environment of the tests has that too
quickstart: $(if $(wildcard $(READY)),$(READY),$(TRAIN))
	$(BIN)/ropewalk quickstart

# what protects every change, and what is long or random: tests marked soak
test soak:
	@$(MAKE) --no-print-directory --jobs=2 $(READY) test-packages
	$(BIN)/python -m tests.run $(if $(filter soak,$@),--soak)

# the documents as a site, in build/docs/index.html
docs: $(READY)
	$(BIN)/python -m sphinx -q -W --keep-going docs build/docs

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tests.english

# in an environment of its own, which has the peers too
bench:
	@$(MAKE) --no-print-directory VENV=.venv-bench EXTRAS=dev,bench benches

benches: $(READY)
	@for file in tests/benchmarks/bench_*.py; do \
		echo "== $$file"; $(BIN)/python -m tests.benchmarks.$$(basename $$file .py) || exit 1; done

$(READY) $(TRAIN): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 to 3.14 found; install one, or name it: make PYTHON=/path/to/python3" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --upgrade pip  # that of Python 3.11 takes more than twice the time to resolve
	$(PIP_INSTALL) --editable '.[$(if $(filter $@,$(TRAIN)),train,$(EXTRAS))]'
	@# beside the packages, where only tests of float8 find it: with it every import of transformers takes 0.7 s more
	$(if $(filter $@,$(TRAIN)),,$(PIP_INSTALL) --no-deps --upgrade --target $(VENV)/float8 torchao)
	touch $@

# only as root of a Debian; anywhere else, and when it fails, the tests that need them say so and are skipped
test-packages:
	@export PATH="$$PATH:/usr/sbin:/sbin" DEBIAN_FRONTEND=noninteractive; \
	for program in $(TEST_PROGRAMS); do command -v $$program >/dev/null || missing="$$missing $$program"; done; \
	test -n "$$missing" || exit 0; \
	if test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
		echo "installing what the tests run on:$$missing"; \
		log=$$(mktemp); \
		{ apt-get update -q && apt-get install -q -y --no-install-recommends $(TEST_PACKAGES); } >$$log 2>&1 </dev/null \
			&& { rm -f $$log; exit 0; }; \
		echo "that failed; see $$log" >&2; \
	fi; \
	echo "missing:$$missing; tests that need it are skipped; on Debian or Ubuntu:" >&2; \
	echo "  apt-get install --no-install-recommends $(TEST_PACKAGES)" >&2

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find cluster datapipe jobs k8s sharding slurm tests -name __pycache__ -type d -prune -exec rm -rf {} +
