PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint format docs bench clean

demo: $(VENV)/installed-examples
	$(BIN)/python examples/demo.py

# Two processes of one thread each are done sooner than one of two, and one that is done takes tests of the other's.
test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/installed-docs
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html

bench: $(VENV)/installed-bench
	set -e; for script in benchmarks/bench_*.py benchmarks/svi.py benchmarks/em.py benchmarks/flows.py; do $(BIN)/python $$script; done

clean:
	rm -rf $(VENV) demo build dist *.egg-info docs/_build docs/api docs/gallery \
		.pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One stamp for each extra. Modules are compiled when they are first imported: most never are.
$(VENV)/installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[$*]'
	touch $@
