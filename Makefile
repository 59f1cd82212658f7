# `make quickstart` and `make test` do all set-up themselves; nothing but Python 3.11+, make and a C++ compiler is assumed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
STAMP := $(VENV)/.installed
NATIVE := $(shell find native -type f -not -path 'native/tests/*')
SHARED := $(abspath ../shared)
WORKERS ?= 2

# The test data, where it lies beside the checkout.
ifneq ($(wildcard $(SHARED)/corpora),)
export MOBILLAMA_CORPORA ?= $(SHARED)/corpora
export MOBILLAMA_TOKENIZER ?= $(SHARED)/tokenizer
export MOBILLAMA_BENCHMARKS ?= $(SHARED)/benchmarks
export MOBILLAMA_CASES ?= $(SHARED)/cases
export MOBILLAMA_CONVERSATIONS ?= $(SHARED)/conversations
export MOBILLAMA_IMAGES ?= $(SHARED)/images
endif

.PHONY: help setup quickstart test test-slow test-all fuzz lint clean
help:
	@echo "make quickstart | test | test-slow | test-all | fuzz | lint | setup | clean"

# What builds the engine stays in the environment, so that a changed source is built again without a network; setuptools
# builds the libraries that come as source.
setup: $(STAMP)
$(STAMP): pyproject.toml constraints.txt $(NATIVE)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; give one with make PYTHON=python3.x")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt scikit-build-core cmake ninja setuptools
	$(PIP) -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@

quickstart: setup
	$(BIN)/mobillama quickstart

test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-slow: setup
	$(BIN)/python -m pytest -m slow

test-all: setup
	$(BIN)/python -m pytest -m 'slow or long or not slow'

# A million mutated files each for the reader, the tokenizer and the C door, under sanitizers.
fuzz: setup
	$(BIN)/python -m pytest tests/native/test_fuzz.py -m long -rP

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build artefacts .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
