# `make quickstart` and `make test` do all set-up themselves; nothing but Python 3.11+, make and a C++ compiler is assumed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SHARED := $(abspath ../shared)
WORKERS ?= 2

# The test data, where it lies beside the checkout.
ifneq ($(wildcard $(SHARED)/corpora),)
export MOBILLAMA_CORPORA ?= $(SHARED)/corpora
export MOBILLAMA_TOKENIZER ?= $(SHARED)/tokenizer
export MOBILLAMA_BENCHMARKS ?= $(SHARED)/benchmarks
endif

.PHONY: help setup quickstart test test-slow test-all lint clean
help:
	@echo "make quickstart | test | test-slow | test-all | lint | setup | clean"

setup: $(STAMP)
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; give one with make PYTHON=python3.x")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

quickstart: setup
	$(BIN)/mobillama quickstart

test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-slow: setup
	$(BIN)/python -m pytest -m slow

test-all: setup
	$(BIN)/python -m pytest -m 'slow or long or not slow'

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) artefacts .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
