# All commands work in .venv, which the first of them makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STUDY ?= study
MODEL ?= meta-llama/Llama-3.2-1B
OUT ?= paper
PAPER_FLAGS ?=
COMPARE_FLAGS ?=

.PHONY: help setup study paper test test-slow test-gpu check format clean

help:
	@echo "make study   set up, then answer for the built-in model: which precision should it be deployed in?"
	@echo "make paper   set up, then run the published study of LLaMA 3.2 1B on a GPU, beside its numbers; MODEL=, OUT=,"
	@echo "             PAPER_FLAGS= (of bitladder study), COMPARE_FLAGS= (of bitladder compare)"
	@echo "make test    set up, then run the tests that are quick; make test-slow the others; make test-gpu those that need a GPU"
	@echo "make check   set up, then lint and type-check"

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

study: setup
	$(BIN)/bitladder study --config examples/smollm2.yaml --out $(STUDY)

# What did not fit or failed (exit 1) is told, and the rest is compared.
paper: setup
	$(BIN)/bitladder study $(MODEL) --config examples/paper.yaml --out $(OUT) $(PAPER_FLAGS); \
	status=$$?; test $$status -gt 1 || $(BIN)/bitladder compare $(OUT) $(COMPARE_FLAGS) || exit; exit $$status

test: setup
	$(BIN)/python -m pytest

test-slow: setup
	$(BIN)/python -m pytest -m slow

# One after the other: they measure one card, and what one could not record no later one of its process records.
test-gpu: setup
	$(BIN)/python -m pytest -m gpu -n 0

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
