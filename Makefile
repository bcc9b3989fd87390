# One command each; `make help` lists them. Everything happens in VENV; nothing outside this folder changes.

VENV ?= .venv
# The first interpreter that is new enough; PYTHON=… overrides.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
N ?= 300

BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
CREATED := $(VENV)/.created
INSTALLED := $(VENV)/.installed
DEV := $(VENV)/.installed-dev

.PHONY: help demo test check lint types pyright fmt bench crash chaos soak setup clean
.DEFAULT_GOAL := help

help: ## list these commands
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

demo: $(INSTALLED) ## set up, then run the main job: an agent killed in the middle, resumed, paid once
	@$(BIN)/agentflow demo

test: $(DEV) ## set up, then run the tests
	@$(BIN)/python -m pytest

check: lint types test ## what CI runs: format, lint, import contracts, types, tests

lint: $(DEV) ## format (only looks), lint, import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports

types: $(DEV) ## mypy, strict
	@$(BIN)/mypy

pyright: $(DEV) ## a second opinion on the types; needs node, no part of check
	@$(PIP) pyright
	@$(BIN)/pyright --pythonpath $(BIN)/python

fmt: $(DEV) ## format and mend what can be mended
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(DEV) ## measure, beside the floor and the peers
	@$(BIN)/python benchmarks/run.py

crash: $(DEV) ## kill real processes at every point, then N times at random (N=10000 for the full run)
	@$(BIN)/python -m tests.crash N=$(N)

chaos: $(DEV) ## many workers on one PostgreSQL and everything that can go wrong, for 5 minutes (SECONDS=300 WORKERS=6), then 10 of soak (SOAK=600)
	@$(BIN)/python -m tests.chaos SECONDS=$(or $(SECONDS),300) WORKERS=$(or $(WORKERS),6)
	@$(BIN)/python -m tests.chaos.soak SECONDS=$(or $(SOAK),600) WORKERS=3

soak: $(DEV) ## many workers for 6 hours: memory, connections and dead rows must not grow (SECONDS=600 for a slice)
	@$(BIN)/python -m tests.chaos.soak SECONDS=$(or $(SECONDS),21600) WORKERS=$(or $(WORKERS),3)

setup: $(DEV) ## set up for development, run nothing

clean: ## remove what these commands made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find agentflow tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(CREATED):
	@test -n "$(PYTHON)" || { echo "agentflow needs Python 3.11 or newer, and none was found." >&2; \
		echo "Install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "agentflow needs Python 3.11 or newer; PYTHON=$(PYTHON) is older or does not run." >&2; exit 1; }
	@echo "setting up $(VENV) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv "$(VENV)"
	@touch $@

$(INSTALLED): pyproject.toml | $(CREATED)
	@echo "installing agentflow"
	@$(PIP) -e .
	@touch $@

$(DEV): pyproject.toml | $(CREATED)
	@echo "installing agentflow and what its tests need"
	@$(PIP) -e '.[dev]'
	@touch $@ $(INSTALLED)
