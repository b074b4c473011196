# make setup | test | test-all | demo | lint      (PYTHON=python3.12 chooses the interpreter)
PYTHON ?= python3
BIN := .venv/bin
DEMO := results/demo

.PHONY: setup test test-all demo lint

PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

setup: .venv/.installed
	@true

# Rebuilt only when the requirements change.
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info[:2] <= (3, 13); sys.exit(None if ok else "Python 3.11, 3.12 or 3.13 is needed, this is " + sys.version.split()[0] + "; choose one: make PYTHON=python3.12 setup")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv (a few minutes the first time: PyTorch is several GB)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# What is not marked slow, in a few minutes.
test: setup
	$(PYTEST) -m "not slow"

test-all: setup
	$(PYTEST)

# Nine cells, then what they come to. Started again, it continues, or shows the results at once.
demo: setup
	$(BIN)/python train.py -m sweep=digits runs_dir=$(DEMO)/runs
	$(BIN)/python scripts/make_tables.py --runs $(DEMO)/runs --out $(DEMO) --settings 8x8,8x2,8x1
	$(BIN)/python scripts/make_figures.py --runs $(DEMO)/runs --out $(DEMO)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
