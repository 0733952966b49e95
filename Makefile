# Each target sets up what it needs in .venv, so that one word is enough on a fresh machine.
# Written for make 3.81 (macOS) and later.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := server,builder,trial,embedded
# Arguments of one run: make demo DEMO_ARGS="--once --json demo.json", make test TESTS=tests/unit
DEMO_ARGS ?=
TESTS ?=
BENCH ?=
JOBS ?= 3
SEEDS ?= 100000
SEED ?=
OFF ?=
KILLS ?= 1000
DB ?= both
PLANT ?=
ROUND ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test bench simulate chaos lint fmt pins clean

help:  ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.stamp-dev  ## Make .venv with everything for working on Flotilla

demo: $(VENV)/.stamp-run  ## Watch the whole story on this machine (DEMO_ARGS="--once --json FILE")
	@$(BIN)/flotilla demo $(DEMO_ARGS)

test: $(VENV)/.stamp-dev  ## Lint, types, import laws and every test
	@$(BIN)/python -m tests.support.ensure
	@$(MAKE) lint
	$(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(TESTS)

bench: $(VENV)/.stamp-dev  ## Measure what we claim; prints a table and writes bench.json
	@$(BIN)/python -m tests.benchmarks $(BENCH)

simulate: $(VENV)/.stamp-dev  ## Simulate all of it under faults: SEEDS=100000, or SEED=n with its trace
	@$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED) --off '$(OFF)',--seeds $(SEEDS))

chaos: $(VENV)/.stamp-dev  ## Kill real processes at random: KILLS=1000 SEED=n DB=sqlite|postgresql|both
	@$(BIN)/python -m tests.support.ensure
	@$(BIN)/python -m tests.chaos --kills $(KILLS) --seed $(or $(SEED),1) --db $(DB) --plant '$(PLANT)' \
	  $(if $(ROUND),--first $(ROUND) --rounds 1)

lint: $(VENV)/.stamp-dev  ## Check format, lint, types and import laws
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(VENV)/.stamp-dev  ## Format, and fix what can be fixed by itself
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

pins: $(VENV)/.stamp-dev  ## Write constraints.txt from the newest versions, after make test passes with them
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --upgrade --upgrade-strategy eager \
	  -e '.[$(EXTRAS)]' --group dev
	@{ head -n 2 constraints.txt; $(BIN)/python -m pip list --format=freeze \
	  | grep -viE '^(flotilla|pip|setuptools)=='; } > constraints.new && mv constraints.new constraints.txt

clean:  ## Remove .venv, caches and what the demo left
	rm -rf $(VENV) .flotilla .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -rf build dist

# --- the virtual environment: made once, brought up to date when pyproject.toml changes -----------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Flotilla needs Python 3.11 or newer, and '$(PYTHON)' is not." >&2; \
	  echo "Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "Python's venv module is missing; on Debian: apt-get install python3-venv" >&2; \
	  rm -rf $(VENV); exit 1; }
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --upgrade 'pip>=25.1'

$(VENV)/.stamp-run: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Setting up $(VENV) (once; some minutes on a slow line) ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

$(VENV)/.stamp-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Setting up $(VENV) for development (once; some minutes on a slow line) ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]' --group dev
	@touch $(VENV)/.stamp-run $@
