# Two commands on a fresh machine with Python 3.11+ and make: `make demo` and `make test`.
# `make help` lists the rest. Nothing is written outside this folder but temporary files.

PYTHON ?= python3
VENV   ?= .venv
UV     ?= uv
ARGS   ?=

BIN := $(VENV)/bin
INSTALL := $(BIN)/python requirements/install.py
export PIP_REQUIRE_VIRTUALENV := 1
# Where it is set, every process that a test starts would compile this project's modules anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format bench lock audit clean all-installed dev-installed

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

setup: dev-installed ## the virtual environment with everything, from the hashed lock files

demo: all-installed ## the whole line on this machine: serve, post, score, lock, pull, verify
	@$(BIN)/ampref demo $(ARGS)

test: dev-installed ## the whole test suite, real PostgreSQL and Redis included (ARGS='-k name')
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: dev-installed ## ruff, mypy, the import rules, the names; the pages' types, lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python lint/check_names.py
	$(BIN)/python service/web/build_assets.py --npm check

format: dev-installed ## put every file in the form that `make lint` asks for
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: dev-installed ## every benchmark; ARGS='--only NAME' for some
	$(BIN)/python bench/run.py $(ARGS)

lock: ## compile the lock files anew from pyproject.toml (needs uv)
	requirements/lock $(UV)

audit: ## known vulnerabilities of the locked packages, where the advisory source (OSV) can be reached
	@$(PYTHON) requirements/audit.py

clean: ## remove the virtual environment and every cache
	rm -rf $(VENV) $(VENV).lock service/web/node_modules service/ampref_service/web/assets build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .schemathesis MUJOCO_LOG.TXT
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Two at once in one folder take turns; what the first has installed, the second finds.
all-installed dev-installed:
	@test -e $(VENV)/.made || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "error: $(PYTHON) is not Python 3.11 or newer; name one that is: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) requirements/one_at_a_time.py $(VENV).lock $(MAKE) -s --no-print-directory $(VENV)/.$(@:-installed=) $(VENV)/.assets

# Each stamp says that what it stands for was done as the lock files are now; the demo needs no development tools.
$(VENV)/.made:
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
	  { rm -rf $(VENV); echo "error: $(PYTHON) cannot make virtual environments; on Debian install python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/.all: requirements/all.txt requirements/build.txt pyproject.toml $(VENV)/.made
	@echo "installing into $(VENV) from requirements/all.txt"
	@$(INSTALL) --require-hashes -r requirements/all.txt -r requirements/build.txt
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

# The pages' scripts. Where they cannot be built the service does without, and its pages say so.
$(VENV)/.assets: $(VENV)/.all requirements/node.txt service/web/build_assets.py $(shell find service/web -name node_modules -prune -o -type f -print)
	@echo "building the pages' scripts"
	@$(BIN)/python service/web/build_assets.py --has-node || $(INSTALL) --require-hashes -r requirements/node.txt || true
	@if $(BIN)/python service/web/build_assets.py; then touch $@; else echo "the service will have no replay; make setup tries again" >&2; fi

$(VENV)/.dev: requirements/dev.txt $(VENV)/.all
	@echo "installing into $(VENV) from requirements/dev.txt"
	@$(INSTALL) --require-hashes -r requirements/dev.txt
	@touch $@
