# The everyday commands; `make` alone lists them. Only bash, git, a C compiler and Python 3.11 or 3.12 are expected.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test check format simulate bench clean

# The first Python that will do; `make PYTHON=/path/to/python3.12 …` chooses another.
PYTHON ?= $(shell for python in python3.11 python3.12 python3 python; do \
	"$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null \
	&& { echo "$$python"; break; }; done)
BIN := .venv/bin

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

setup: ## make .venv with everything pinned (first time: compiles llama.cpp, 5-9 minutes)
	@[ -n "$(PYTHON)" ] || { echo "found no Python 3.11 or 3.12 on the PATH; install one or run 'make PYTHON=…'" >&2; exit 1; }
	@"$(PYTHON)" scripts/set_up.py

demo: setup ## devices on this machine trade, one dies in mid-answer, all learn and vote (KEEP=1: leave them running)
	@$(BIN)/agora demo $(if $(filter-out 0,$(KEEP)),--keep)

check: setup ## linters, types, import contract, fast tests (under 90 s)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q -n logical -m "not system and not slow"

# Real processes and sockets get the machine for themselves: their tests wait for real time.
test: setup ## every test, with real processes, sockets and models (about 16 minutes on two cores)
	$(BIN)/pytest -q -n logical -m "not system"
	$(BIN)/pytest -q -m system

format: setup ## put the code into the house's form
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

simulate: setup ## 2,000 small worlds, each with its seed and its storm, under all laws (about half an hour)
	@$(BIN)/python -m node.simulation.sweep --seeds $(or $(SEEDS),2000) --first $(or $(FIRST),1)

bench: setup ## measure, print, and write docs/BENCHMARKS.md
	@$(BIN)/agora bench

clean: ## remove what was built and measured, the virtual environment too
	rm -rf .venv .demo .bench build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -rf ./*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
