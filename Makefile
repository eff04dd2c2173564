# `make demo` and `make test` work on a bare machine with Python 3.11 or later.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= runs/demo

.PHONY: install demo test test-slow plan plans lint format golden bench clean

install: $(VENV)/.installed

$(VENV)/.installed: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt setuptools wheel
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test,cloud,fvd,curation]'
	touch $@

demo: install
	$(BIN)/vdt train --config experiments/bouncing.py:demo --workdir $(DEMO)

$(VENV)/.tpu: $(VENV)/.installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[tpu]'
	touch $@

test: install lint $(VENV)/.tpu
	$(BIN)/pytest -n 2 --dist worksteal

$(VENV)/.bench: $(VENV)/.installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[bench]'
	touch $@

test-slow: install $(VENV)/.tpu $(VENV)/.bench
	$(BIN)/pytest -m slow

plan: $(VENV)/.tpu
	$(BIN)/vdt plan --config experiments/large.py:xl

plans: $(VENV)/.tpu
	BIN=$(BIN) experiments/plans.sh

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

golden: install
	$(BIN)/pytest tests/test_golden.py --write-golden

bench: $(VENV)/.bench
	$(BIN)/python experiments/benchmarks/train_step.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
