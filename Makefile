# make demo   trains a tiny π0 in the built-in simulator and writes a report     (about 5 minutes on 2 cores)
# make test   runs the tests
# Both make .venv first. Needs Python 3.11 to 3.13; PYTHON=python3.12 chooses one.
PYTHON ?= python3
BIN = .venv/bin
.PHONY: setup demo demo-metaworld compare-smoke test test-parity test-slow check format bench clean

setup: .venv/.done
.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[sim,baseline,dev]'
	touch $@

demo: setup
	$(BIN)/pizero quickstart

demo-metaworld: setup
	$(BIN)/pizero metaworld

compare-smoke: setup
	$(BIN)/pizero compare --smoke --output runs/compare-smoke

test: setup
	$(BIN)/python -m pytest

test-parity: setup
	$(BIN)/python -m pytest tests/parity

test-slow: setup
	$(BIN)/python -m pytest -m slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python benchmarks/training.py

clean:
	rm -rf .venv runs
