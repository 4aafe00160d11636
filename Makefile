# All commands work in .venv, which the first of them makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STUDY ?= study

.PHONY: help setup study test check format clean

help:
	@echo "make study   set up, then answer for the built-in model: which precision should it be deployed in?"
	@echo "make test    set up, then run the tests"
	@echo "make check   set up, then lint and type-check"

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

study: setup
	$(BIN)/bitladder study --config examples/smollm2.yaml --out $(STUDY)

test: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
