# make help | setup | test | test-all | demo | study-NAME | golden | gpu | lint      (PYTHON=python3.12 chooses the interpreter)
PYTHON ?= python3
BIN := .venv/bin
# The study's own claims and sweep, if it has any, and its tables.
EXPECTED = $(addprefix --expected ,$(wildcard results/expected/$(STUDY).yaml))
SWEEP = $(addprefix --sweep ,$(notdir $(basename $(wildcard configs/sweep/$(STUDY).yaml))))
# RUNS=again trains a committed study again, beside its committed runs, and compares them.
RUNS := runs
TABLES_depth := variants,table2
TABLES_nuclei := table5
TABLES_blood_cells := table4
TABLES = $(or $(TABLES_$(STUDY)),table2)

STUDIES := $(notdir $(basename $(wildcard configs/sweep/*.yaml)))
# Before anything is installed.
$(foreach goal,$(filter-out $(STUDIES:%=study-%),$(filter study-%,$(MAKECMDGOALS))),\
  $(error $(goal): no such study; expected study- and one of $(STUDIES)))

.PHONY: help setup test test-all demo report figures tables variants gpu study-blood_cells study-imagenette study-large_batch study-nuclei study-search study-sensitivity study-small_batch study-stylization golden lint

PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

setup: .venv/.installed
	@true

help:
	@echo 'make setup          install everything into .venv (several GB: PyTorch)'
	@echo 'make demo           train 27 runs on bundled images, print verdicts and the table'
	@echo 'make study-NAME     train a study of configs/sweep and report it in results/NAME:'
	@echo '                    $(STUDIES)'
	@echo 'make study-NAME RUNS=again    train it again beside the committed runs, and compare'
	@echo 'make report STUDY=NAME    figures, tables and verdicts of the runs in results/NAME'
	@echo 'make test           the quick tests; make test-all: every test; make lint: the linters'
	@echo 'make gpu            on a GPU, the tests that need one and the speeds, in GPU_OUT=FOLDER'
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

# A study of configs/sweep, in results/NAME. Killed and started again, it resumes. OPTIONS="seed=0".
study-%: setup
	$(BIN)/python train.py -m sweep=$* runs_dir=results/$*/$(RUNS) $(OPTIONS)
	@$(MAKE) --no-print-directory report STUDY=$*

# One change of the protocol at a time (an explicit rule takes precedence over study-%).
SENSITIVITY := $(BIN)/python train.py -m sweep=sensitivity
study-sensitivity: setup
	$(SENSITIVITY) batch=8x2,8x8 runs_dir=results/sensitivity/$(RUNS)/paper
	$(SENSITIVITY) batch=8x2,8x8 protocol.dropout=0.5 runs_dir=results/sensitivity/$(RUNS)/dropout
	$(SENSITIVITY) batch=8x2 protocol.base_lr=0.1 protocol.lr_reference_batch=16 runs_dir=results/sensitivity/$(RUNS)/lr
	$(SENSITIVITY) batch=8x8 protocol.base_lr=0.1 protocol.lr_reference_batch=64 runs_dir=results/sensitivity/$(RUNS)/lr
	$(SENSITIVITY) protocol.zero_init_last_gamma=true runs_dir=results/sensitivity/$(RUNS)/zero_gamma
	$(SENSITIVITY) protocol.lambda_weight_decay=0 norm=sn runs_dir=results/sensitivity/$(RUNS)/lambda
	$(SENSITIVITY) norm=sn +norm.args.instance_correction=1 runs_dir=results/sensitivity/$(RUNS)/correction
	@$(MAKE) --no-print-directory $(if $(filter runs,$(RUNS)),variants,report) STUDY=sensitivity

# What decides SN against BN at (8,32) on little data, in the same way. OPTIONS="data.train=DIR data.val=DIR".
LARGE_BATCH := $(BIN)/python train.py -m sweep=large_batch
study-large_batch: setup
	$(LARGE_BATCH) runs_dir=results/large_batch/$(RUNS)/paper $(OPTIONS)
	$(LARGE_BATCH) trainer.epochs=30 runs_dir=results/large_batch/$(RUNS)/epochs $(OPTIONS)
	$(LARGE_BATCH) protocol.zero_init_last_gamma=true runs_dir=results/large_batch/$(RUNS)/zero_gamma $(OPTIONS)
	$(LARGE_BATCH) norm=sn +norm.own_parameters.lr_scale=10 runs_dir=results/large_batch/$(RUNS)/lambda $(OPTIONS)
	@$(MAKE) --no-print-directory $(if $(filter runs,$(RUNS)),variants,report) STUDY=large_batch

# The report of a study in which runs of one cell differ on purpose.
variants:
	$(SHOW) scripts/make_tables.py $(RUNS_AND_OUT) --only variants
	$(SHOW) scripts/make_report.py $(RUNS_AND_OUT) $(SWEEP)

# Architecture search, then its architectures trained from scratch. OPTIONS="data.train=DIR data.val=DIR".
study-search: setup
	$(BIN)/python train.py -m sweep=search runs_dir=results/search/$(RUNS) $(OPTIONS)
	$(BIN)/python train.py -m sweep=search_scratch runs_dir=results/search/$(RUNS) $(OPTIONS)
	@$(MAKE) --no-print-directory report STUDY=search

# Needs Imagenette: IMAGENETTE_ROOT=DIR. Killed and started again, it resumes; OPTIONS="seed=0" trains
# a part.
SMALL_BATCH = results/small_batch/$(RUNS)
study-small_batch: setup
	$(BIN)/python train.py -m sweep=small_batch runs_dir=$(SMALL_BATCH) $(OPTIONS)
	$(BIN)/python evaluate.py run='$(SMALL_BATCH)/imagenette/*/bn/*/seed*' statistics=evalnorm
	@$(MAKE) --no-print-directory report STUDY=small_batch

# The paper's methods in eight settings: those of small_batch, and four more in the same folder of runs.
study-imagenette: setup
	$(BIN)/python train.py -m sweep=small_batch runs_dir=$(SMALL_BATCH) norm=bn,gn,sn $(OPTIONS)
	$(BIN)/python train.py -m sweep=imagenette runs_dir=$(SMALL_BATCH) $(OPTIONS)
	@$(MAKE) --no-print-directory report STUDY=imagenette

# Needs data: OPTIONS="data.train=DIR task.style=FILE task.features=FILE". Fig. 9 shows the photographs
# that scikit-learn bundles, by danielbuechele and vultilion (CC BY 2.0).
study-stylization: setup
	$(BIN)/python train.py -m sweep=stylization runs_dir=results/stylization/$(RUNS) $(OPTIONS)
	images=$$($(BIN)/python -c 'import sklearn.datasets as d; print(d.__path__[0] + "/images")'); \
	for file in $$(find results/stylization/$(RUNS) -path '*/seed0/final.pt'); do \
	  $(BIN)/python scripts/stylize.py --run $$(dirname $$file) --images $$images --size 512 || exit 1; \
	done
	@$(MAKE) --no-print-directory report STUDY=stylization

# Detection. STUDY_DATA has nuclei/, blood_cells/ and imagenette_small/; OPTIONS go to the detectors, and
# their seeds to the classifiers. The first seed of each method draws the objects that it finds in the
# validation images.
STUDY_DATA ?= data
export STUDY_DATA
DETECTORS = $(BIN)/python train.py -m sweep=$(1) runs_dir=results/$(1)/$(RUNS)
FIND = for file in $$(find results/$(1)/$(RUNS) -path '*+detection/*/seed0/final.pt'); do \
	  $(BIN)/python scripts/detect.py --run $$(dirname $$file) --images $(STUDY_DATA)/$(1)/val \
	    --annotations $(STUDY_DATA)/$(1)/annotations/instances_val.json || exit 1; \
	done

study-blood_cells: setup
	$(call DETECTORS,blood_cells) $(OPTIONS)
	$(call FIND,blood_cells)
	@$(MAKE) --no-print-directory report STUDY=blood_cells

# From scratch, then from classifiers that the study trains itself.
study-nuclei: setup
	$(BIN)/python train.py -m sweep=nuclei_classifiers runs_dir=results/nuclei/$(RUNS) $(filter seed=%,$(OPTIONS))
	$(call DETECTORS,nuclei) $(OPTIONS)
	$(call DETECTORS,nuclei) init_from=results/nuclei/$(RUNS)/imagenette_small \
	  pair=bn_bn,frozen_bn,frozen_bn_gn,frozen_bn_sn,gn_gn,sn_sn $(OPTIONS)
	$(call FIND,nuclei)
	@$(MAKE) --no-print-directory report STUDY=nuclei

# The figures, verdicts, tables and report of the runs of results/STUDY. The figures take longest and
# are drawn in parallel. BRIEF=--brief prints the results alone.
# small_batch and imagenette are reports of parts of one folder of runs.
FOLDER = results/$(STUDY:imagenette=small_batch)
PART_small_batch := --settings 8x32,8x8,8x2,8x1
PART_imagenette := --methods bn,gn,sn
RUNS_AND_OUT = --runs $(FOLDER)/runs --out results/$(STUDY) $(PART_$(STUDY)) $(BRIEF)
SHOW = $(if $(BRIEF),@)$(BIN)/python
report:
ifeq ($(RUNS),runs)
	@$(MAKE) --no-print-directory -j2 figures tables
	$(SHOW) scripts/make_report.py $(RUNS_AND_OUT) $(EXPECTED) $(SWEEP)
else
	$(SHOW) scripts/compare_runs.py $(FOLDER)/runs $(FOLDER)/$(RUNS)
endif

figures:
	$(SHOW) scripts/make_figures.py $(RUNS_AND_OUT)

tables:
	$(SHOW) scripts/check_claims.py $(RUNS_AND_OUT) $(EXPECTED)
	$(SHOW) scripts/make_tables.py $(RUNS_AND_OUT) --only $(TABLES) $(TABLE_OPTIONS)

# On a machine with a GPU, about five minutes: the tests that need one, then speeds, in GPU_OUT. With
# IMAGES=FOLDER (train/CLASS/*.jpg, val/CLASS/*.jpg) also a training that waits for its loader.
GPU_OUT ?= results/benchmarks/gpu
IMAGES ?=
BENCHMARK := $(BIN)/python scripts/benchmark.py
GPU_STEP := $(BENCHMARK) step --batch 8x1 8x2 8x32 --norm bn sn --dtype bf16 --repeats 3
GPU_LAYER := $(BENCHMARK) norms --samples 32 --layout channels_last --graph --only BN SN --repeats 5
gpu: setup
	$(BIN)/python -m pytest -q -m gpu
	$(GPU_STEP) --json $(GPU_OUT)/step.json
	$(GPU_STEP) trainer.graph=true --json $(GPU_OUT)/step_graph.json
	$(GPU_LAYER) --json $(GPU_OUT)/norms.json
	$(GPU_LAYER) --relu --json $(GPU_OUT)/norms_relu.json
	$(if $(IMAGES),$(BENCHMARK) train data=imagefolder data.train=$(IMAGES)/train data.val=$(IMAGES)/val data.decode=fast \
	  norm=sn batch=8x32 trainer.precision=bf16 trainer.log_every=10 trainer.epochs=1000 --steps 60 --repeats 1 --json $(GPU_OUT)/train.json)

# Compare the golden set (runs, tables, verdicts) of this working tree with the revision BEFORE.
BEFORE ?= HEAD
golden: setup
	$(BIN)/python tests/same_results.py $(BEFORE) .
	$(BIN)/python -m pytest -q tests/reporting/test_reporting_studies.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
