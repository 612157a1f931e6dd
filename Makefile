# `make` lists what there is. Everything runs in .venv, which `make setup` makes from constraints.txt.
#
#   make PYTHON=python3.12 setup       another Python than python3.11
#   make test PYTEST_ARGS="-k masks"   arguments for pytest
#   make demo DEMO_ARGS="--seed 1"     arguments for cruxtune demo
#   make bench BENCH_ARGS="--parts speed"  arguments for benchmarks/annotate.py

BIN := .venv/bin

# Texts are UTF-8 with any locale or none.
export PYTHONUTF8 := 1

.DEFAULT_GOAL := help
.PHONY: help setup check test test-integration demo bench clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-16s %s\n", $$1, $$2 }' Makefile

setup:  ## Make .venv with everything pinned in constraints.txt; nothing to do where it is there
	@scripts/setup

check: setup  ## Style, types, import direction, and that importing the package stays light
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	HF_HUB_OFFLINE=1 $(BIN)/pytest -q tests/test_project.py -k torch

test: check  ## The checks, then all tests
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/pytest --numprocesses 2 --dist loadfile $(PYTEST_ARGS)

test-integration: setup  ## Exports through the other trainers' own code, in .consumers (about 1 GB, made once)
	@scripts/consumers
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/pytest -m integration $(PYTEST_ARGS)

demo: setup  ## The whole loop on a small model, without a GPU; its report lands in demo/
	$(BIN)/cruxtune demo $(DEMO_ARGS)

bench: setup  ## The benchmarks in their quick form; what they measure lands in benchmarks/results/
	$(BIN)/python benchmarks/annotate.py --quick --json benchmarks/results/annotate.json $(BENCH_ARGS)
	$(BIN)/python benchmarks/respond.py --quick --json benchmarks/results/respond.json
	$(BIN)/python benchmarks/verify.py --quick --json benchmarks/results/verify.json
	$(BIN)/python benchmarks/train.py --quick --json benchmarks/results/train-quick.json

clean:  ## Remove .venv and the caches; runs/ and demo/ stay
	rm -rf .venv .consumers .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
