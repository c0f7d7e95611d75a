# A fresh clone needs Python 3.11 or newer with pip, and make.
#
#   make demo                   the whole pipeline on a small phantom, on the CPU
#   make demo DATASET=folder    the same on your own scans
#   make paper                  the same, by the paper's method alone
#   make source-only            the floor: segmentation trained on ceT1 without translation
#   make perfect, make oracle   the bounds, if the truth is known: true hrT2 of the source, labelled hrT2 of the target
#   make test                   lint, types, tests
#   make canary                 the tests with the newest releases, without constraints.txt, in .venv-canary
#   make docs                   the guide and the API pages, in build/docs
#   make clean                  remove the environment and the caches, keep models and results

PYTHON ?= $(shell for p in python3.11 python3 python3.13 python3.12 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
CANARY := .venv-canary
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TESTABLE := $(VENV)/.testable
EXTRAS := train,dev,docs,dicom,onnx,tracking,cluster,browser
UDA := bundles/vs_cochlea_uda
CONFIGS := '$(UDA)/configs
SMALL := $(CONFIGS)/train.json',$(CONFIGS)/cpu.json'
TRAIN := $(BIN)/python -m monai.bundle run training --bundle_root "$(CURDIR)/$(UDA)"
PYTEST := python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
DATA = $(if $(DATASET),--dataset_dir "$$(cd "$(DATASET)" >/dev/null && pwd)")

.PHONY: help demo paper source-only perfect oracle test canary docs clean dataset
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile

demo: dataset $(INSTALLED)
	$(TRAIN) --config_file "[$(SMALL),$(CONFIGS)/beyond.json']" $(DATA)

paper: dataset $(INSTALLED)
	$(TRAIN) --config_file "[$(SMALL)]" $(DATA)

source-only perfect oracle: dataset $(INSTALLED)
	$(TRAIN) --config_file "[$(SMALL),$(CONFIGS)/$(subst -,_,$@).json']" $(DATA)

test: $(TESTABLE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/$(PYTEST)

canary:
	$(PYTHON) -m venv --clear $(CANARY)
	$(CANARY)/bin/python -m pip install --disable-pip-version-check -e ".[$(EXTRAS)]"
	OMP_NUM_THREADS=1 $(CANARY)/bin/$(PYTEST)

docs: $(TESTABLE)
	$(BIN)/sphinx-build -W -q -b html docs build/docs

clean:
	rm -rf $(VENV) $(CANARY) .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find plugins tests -name __pycache__ -type d -prune -exec rm -rf {} +

dataset:
	@test -z "$(DATASET)" || test -d "$(DATASET)" || { echo "error: DATASET=$(DATASET) is not a folder" >&2; exit 2; }

define install
@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; name one with PYTHON=..." >&2; exit 2; }
@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[$(1)]"
endef

$(INSTALLED): pyproject.toml constraints.txt
	$(call install,train)
	@touch $@

$(TESTABLE): pyproject.toml constraints.txt
	$(call install,$(EXTRAS))
	@touch $(INSTALLED) $@
