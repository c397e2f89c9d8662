# Needs make, Python 3.11 or newer, and a package registry as pip is set up on this machine.

# Candidates, best first; the first that is new enough and can make virtual environments is taken.
PYTHON ?= python3.13 python3.12 python3.11 python3
VENV ?= .venv
# Words for pytest: make test ARGS="-k probe"
ARGS ?=
# Processes that share the tests, a file at a time; most tests wait for servers and workers.
JOBS ?= 2
# Seconds one test may take before it is ended and reported with the stack of every thread.
TEST_TIMEOUT ?= 180

VPY := $(VENV)/bin/python
PIP := $(VPY) -m pip install -qq --disable-pip-version-check --no-input
LOCK := $(VPY) -m uv --quiet pip compile pyproject.toml --universal --python-version 3.11 \
	--generate-hashes --no-header

# The versions of Celery that pyproject.toml allows, and the tests of what touches Celery's inside.
CELERY ?= 5.4 5.5 5.6 5.7
GATE_TESTS := $(addprefix tests/acceptance/test_,settling.py canvas.py gate.py ends_of_holding.py pause.py task_cls.py \
	held_tasks.py fetch.py) $(addprefix tests/integration/test_,start.py fetch.py)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test coverage soak nightly versions bench check lint format types imports compose ops-check lock clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.run ## see it work: a provider goes down, its tasks are held, nothing fails
	@$(VPY) -m demo

test: $(VENV)/.dev ## every test, with real servers and real workers; ARGS="-k probe" picks some
	@$(VPY) -m pytest --numprocesses=$(JOBS) --dist=loadfile --timeout=$(TEST_TIMEOUT) $(ARGS)

coverage: $(VENV)/.dev ## every branch of the rules is taken by their own tests
	@$(VPY) -m coverage erase
	@$(VPY) -m coverage run -m pytest -q tests/unit tests/contract/test_store_contract.py tests/contract/test_differential.py
	@$(VPY) -m coverage combine --quiet
	@$(VPY) -m coverage report --include='omni_tasks/core/*' --fail-under=100

soak: $(VENV)/.dev ## what takes too long for every change; prints what it measured
	@$(VPY) -m pytest -m soak --timeout=1800 -o faulthandler_timeout=0 -s $(ARGS)

nightly: $(VENV)/.dev ## the proofs at length: 100,000 steps, 1,000 histories
	@OMNI_STATEFUL_STEPS=100000 OMNI_HISTORIES=1000 $(VPY) -m pytest tests/proof --timeout=1800 -o faulthandler_timeout=0 $(ARGS)

versions: $(VENV)/.dev ## the gate with real workers on each Celery that is allowed; CELERY="5.4" picks some
	@for version in $(CELERY); do \
	    venv=$(VENV)-celery-$$version; \
	    echo "Celery $$version"; \
	    $(VPY) -m uv --quiet venv --allow-existing --python $(VPY) $$venv && \
	    $(VPY) -m uv --quiet pip install --python $$venv/bin/python --editable '.[dev]' "celery[redis]==$$version.*" "kombu[redis]" && \
	    $$venv/bin/python -m pytest -W default --numprocesses=$(JOBS) --dist=worksteal --tb=native --timeout=$(TEST_TIMEOUT) -m '' $(GATE_TESTS) $(ARGS) || exit 1; \
	done

bench: $(VENV)/.dev ## what a call through a closed circuit costs, as a ratio to a GET
	@$(VPY) -m bench.closed_path $(ARGS)

check: lint types imports compose ## everything that is checked without running it

lint: $(VENV)/.dev ## ruff: rules and format
	@$(VPY) -m ruff check --output-format=concise .
	@$(VPY) -m ruff format --check .

format: $(VENV)/.dev ## let ruff mend what it can
	@$(VPY) -m ruff check --fix .
	@$(VPY) -m ruff format .

types: $(VENV)/.dev ## mypy, strict
	@$(VPY) -m mypy

imports: $(VENV)/.dev ## import-linter: the layers
	@$(VPY) -c 'from importlinter.cli import lint_imports_command as main; main(["--no-logo"])'

compose: $(VENV)/.dev ## docker-compose.yml is one that Compose and its schema accept; no Docker needed
	@$(VENV)/bin/docker-compose --file docker-compose.yml --profile '*' config --quiet
	@$(VENV)/bin/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

# What judges ops/ are programs of the distribution, not of Python; they are kept beside the virtual environment's own.
ops-check: $(VENV)/.dev ## ops/: rules, dashboards, manifests; then an outage under a real Prometheus and Alertmanager
	@ops/tools.sh $(VENV)/ops
	@$(VPY) -m pytest tests/ops --timeout=$(TEST_TIMEOUT) $(ARGS)

lock: $(VENV)/.dev ## write requirements/*.txt anew from pyproject.toml; ARGS=--upgrade for newer versions
	$(LOCK) --extra dev --output-file requirements/dev.txt $(ARGS)
	$(LOCK) --extra demo --constraint requirements/dev.txt --output-file requirements/run.txt $(ARGS)

clean: ## remove what was made, the virtual environment too
	rm -rf $(VENV) $(VENV)-celery-* .coverage* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps say what is installed; a lock that is newer than its stamp is installed again.  The locks are complete, so
# pip need not resolve anything (--no-deps); what is in the environment beyond the lock stays.
$(VENV)/.made:
	@for python in $(PYTHON); do \
	    "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	    echo "making $(VENV) with $$("$$python" --version)"; \
	    "$$python" -m venv $(VENV) && touch $@ && exit 0; \
	    exit 1; \
	done; \
	echo "make: no Python 3.11 or newer (with venv) among: $(PYTHON). Set one: make PYTHON=/path/to/python3.11" >&2; \
	exit 1

$(VENV)/.run: requirements/run.txt $(VENV)/.made
	@echo "installing requirements/run.txt"
	@$(PIP) --no-deps --require-hashes -r $<
	@touch $@

$(VENV)/.dev: requirements/dev.txt pyproject.toml $(VENV)/.made
	@echo "installing requirements/dev.txt"
	@$(PIP) --no-deps --require-hashes -r $<
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $(VENV)/.run $@
