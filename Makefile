# make help | setup | test | test-all | demo | study-NAME | golden | lint      (PYTHON=python3.12 chooses the interpreter)
PYTHON ?= python3
BIN := .venv/bin
# The study's own claims, if it has any, and its tables.
EXPECTED = $(addprefix --expected ,$(wildcard results/expected/$(STUDY).yaml))
TABLES_digits := table2,methods
TABLES_depth := networks,table2
TABLES_nuclei := table5
TABLES_blood_cells := table4
TABLES_small_batch := methods
TABLES = $(or $(TABLES_$(STUDY)),table2)

STUDIES := $(notdir $(basename $(wildcard configs/sweep/*.yaml)))
# Before anything is installed.
$(foreach goal,$(filter-out $(STUDIES:%=study-%),$(filter study-%,$(MAKECMDGOALS))),\
  $(error $(goal): no such study; expected study- and one of $(STUDIES)))

.PHONY: help setup test test-all demo report figures tables study-nuclei study-search study-sensitivity study-small_batch study-stylization golden lint

PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

setup: .venv/.installed
	@true

help:
	@echo 'make setup          install everything into .venv (several GB: PyTorch)'
	@echo 'make demo           train 27 runs on bundled images, print verdicts and the table'
	@echo 'make study-NAME     train a study of configs/sweep and report it in results/NAME:'
	@echo '                    $(STUDIES)'
	@echo 'make report STUDY=NAME    figures, tables and verdicts of the runs in results/NAME'
	@echo 'make test           the quick tests; make test-all: every test; make lint: the linters'
	@echo 'make golden         compare the results of this working tree with HEAD'
	@echo 'make PYTHON=python3.12 setup    choose the interpreter'

# Rebuilt only when the requirements change.
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info[:2] <= (3, 13); sys.exit(None if ok else "Python 3.11, 3.12 or 3.13 is needed, this is " + sys.version.split()[0] + "; choose one: make PYTHON=python3.12 setup")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv (a few minutes the first time: PyTorch is several GB)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m sn_imagenet.norms
	@touch $@

# The tests that are not marked slow; a few minutes.
test: setup
	$(PYTEST) -m "not slow"

test-all: setup
	$(PYTEST)

# 27 runs, then their verdicts and Table 2. Started again, it resumes, or shows the results at once.
demo:
	@$(MAKE) --no-print-directory study-demo TABLE_OPTIONS="--settings 8x8,8x2,8x1" BRIEF=--brief

# A study of configs/sweep, in results/NAME. Killed and started again, it resumes.
study-%: setup
	$(BIN)/python train.py -m sweep=$* runs_dir=results/$*/runs
	@$(MAKE) --no-print-directory report STUDY=$*

# One change of the protocol at a time (an explicit rule takes precedence over study-%).
SENSITIVITY := $(BIN)/python train.py -m sweep=sensitivity
study-sensitivity: setup
	$(SENSITIVITY) batch=8x2,8x8 runs_dir=results/sensitivity/runs/paper
	$(SENSITIVITY) batch=8x2,8x8 protocol.dropout=0.5 runs_dir=results/sensitivity/runs/dropout
	$(SENSITIVITY) batch=8x2 protocol.base_lr=0.1 protocol.lr_reference_batch=16 runs_dir=results/sensitivity/runs/lr
	$(SENSITIVITY) batch=8x8 protocol.base_lr=0.1 protocol.lr_reference_batch=64 runs_dir=results/sensitivity/runs/lr
	$(SENSITIVITY) protocol.zero_init_last_gamma=true runs_dir=results/sensitivity/runs/zero_gamma
	$(SENSITIVITY) protocol.lambda_weight_decay=0 norm=sn runs_dir=results/sensitivity/runs/lambda
	$(SENSITIVITY) norm=sn +norm.args.instance_correction=1 runs_dir=results/sensitivity/runs/correction
	$(BIN)/python scripts/make_tables.py --runs results/sensitivity/runs --out results/sensitivity --only variants

# Architecture search, then its architectures trained from scratch. OPTIONS="data.train=DIR data.val=DIR".
study-search: setup
	$(BIN)/python train.py -m sweep=search runs_dir=results/search/runs $(OPTIONS)
	$(BIN)/python train.py -m sweep=search_scratch runs_dir=results/search/runs $(OPTIONS)
	@$(MAKE) --no-print-directory report STUDY=search

# Needs Imagenette: IMAGENETTE_ROOT=DIR. Killed and started again, it resumes; OPTIONS="seed=0" trains
# a part.
SMALL_BATCH := results/small_batch/runs
study-small_batch: setup
	$(BIN)/python train.py -m sweep=small_batch runs_dir=$(SMALL_BATCH) $(OPTIONS)
	$(BIN)/python evaluate.py run='$(SMALL_BATCH)/imagenette/*/bn/*/seed*' statistics=evalnorm
	@$(MAKE) --no-print-directory report STUDY=small_batch

# Needs data: OPTIONS="data.train=DIR task.style=FILE task.features=FILE". Fig. 9 shows the photographs
# that scikit-learn bundles, by danielbuechele and vultilion (CC BY 2.0).
study-stylization: setup
	$(BIN)/python train.py -m sweep=stylization runs_dir=results/stylization/runs $(OPTIONS)
	images=$$($(BIN)/python -c 'import sklearn.datasets as d; print(d.__path__[0] + "/images")'); \
	for run in $$(find results/stylization/runs -type d -name seed0); do \
	  $(BIN)/python scripts/stylize.py --run $$run --images $$images --size 512 || exit 1; \
	done
	@$(MAKE) --no-print-directory report STUDY=stylization

# Detectors from scratch, then from classifiers that the study trains itself.
NUCLEI := results/nuclei/runs
study-nuclei: setup
	$(BIN)/python train.py -m sweep=nuclei_classifiers runs_dir=$(NUCLEI)
	$(BIN)/python train.py -m sweep=nuclei runs_dir=$(NUCLEI)
	$(BIN)/python train.py -m sweep=nuclei runs_dir=$(NUCLEI) init_from=$(NUCLEI)/imagenette_small pair=frozen_bn,frozen_bn_gn,frozen_bn_sn,gn_gn,sn_sn
	@$(MAKE) --no-print-directory report STUDY=nuclei

# The figures, verdicts, tables and report of the runs of results/STUDY. The figures take longest and
# are drawn in parallel. BRIEF=--brief prints the results alone.
RUNS_AND_OUT = --runs results/$(STUDY)/runs --out results/$(STUDY) $(BRIEF)
SHOW = $(if $(BRIEF),@)$(BIN)/python
report:
	@$(MAKE) --no-print-directory -j2 figures tables
	$(SHOW) scripts/make_report.py $(RUNS_AND_OUT) $(EXPECTED)

figures:
	$(SHOW) scripts/make_figures.py $(RUNS_AND_OUT)

tables:
	$(SHOW) scripts/check_claims.py $(RUNS_AND_OUT) $(EXPECTED)
	$(SHOW) scripts/make_tables.py $(RUNS_AND_OUT) --only $(TABLES) $(TABLE_OPTIONS)

# Compare the golden set (runs, tables, verdicts) of this working tree with the revision BEFORE.
BEFORE ?= HEAD
golden: setup
	$(BIN)/python scripts/dev/same_results.py $(BEFORE) .
	$(BIN)/python -m pytest -q tests/reporting/test_reporting_studies.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
