# The front door. `make help` lists every target.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

# What reproduce-cifar passes on; empty means: as the profile has it.
PROFILE ?= short
PAIRS ?=
METHODS ?=
SEEDS ?=
EPOCHS ?=
PRECISION ?=
PROTOCOL ?= paper
DATA ?=
TEACHERS ?=
DEVICE ?= auto
RESULTS ?= results
JOBS ?= auto
DRY ?=
ONLY ?=
HOLDOUT ?=
CHOSEN = --profile "$(PROFILE)" --pairs "$(PAIRS)" --methods "$(METHODS)" --seeds "$(SEEDS)" \
	--epochs "$(EPOCHS)" --precision "$(PRECISION)" --protocol "$(PROTOCOL)" --data "$(DATA)" \
	--teachers "$(TEACHERS)" --device "$(DEVICE)" --results "$(RESULTS)" --jobs "$(JOBS)"

.DEFAULT_GOAL := help
.PHONY: help demo reproduce-cifar teachers ablations report data lab test bench equivalence lint clean

## List the targets
help:
	@awk '/^## /{text=substr($$0,4)} /^[a-z-]+:/{if(text){split($$1,a,":");printf "  make %-18s %s\n",a[1],text;text=""}}' Makefile

## See the method work, offline, in minutes: a teacher and five students on drawn characters
demo: $(VENV)/ready
	$(RUN) -m ikdlib table --profile demo --results "$(RESULTS)"
	$(RUN) -m ikdlib report --results "$(RESULTS)/demo"

## CIFAR-100 tables of the thirteen pairs: PROFILE=paper|short PAIRS= METHODS= SEEDS= EPOCHS= DRY=1 ...
reproduce-cifar: $(VENV)/ready
	$(RUN) -m ikdlib table $(CHOSEN) $(if $(filter-out 0,$(DRY)),--dry)

## Train the teachers that are not there: PROFILE= PAIRS= EPOCHS= DRY=1 ...
teachers: $(VENV)/ready
	$(RUN) -m ikdlib teachers $(CHOSEN) $(if $(filter-out 0,$(DRY)),--dry)

## The ablations, notebooks 30 to 33: ONLY=30,31 PAIRS= METHODS= SEEDS= DRY=1 ...
ablations: $(VENV)/ready
	$(RUN) -m ikdlib ablations --only "$(ONLY)" --holdout "$(HOLDOUT)" $(CHOSEN) $(if $(filter-out 0,$(DRY)),--dry)

## One page of everything that was measured: results/report.html (trains nothing)
report: $(VENV)/ready
	$(RUN) -m ikdlib report --results "$(RESULTS)"

## Download and verify CIFAR-100 (or check a folder: DATA=DIR)
data: $(VENV)/ready
	$(RUN) -m ikdlib data --data "$(DATA)"

## Open the notebooks in JupyterLab, on this machine only
lab: $(VENV)/ready
	$(VENV)/bin/jupyter lab --ip=127.0.0.1 $(if $(filter 0,$(shell id -u)),--allow-root) notebooks

## Run the tests
test: $(VENV)/ready
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(or $(TEST_JOBS),2) --dist loadfile

## The published kind of loop against ours, as ratios; how cost grows; where time goes: PAIRS= DEVICE=
bench: $(VENV)/ready
	$(RUN) benchmarks/compare.py $(if $(PAIRS),--pairs "$(PAIRS)") --device "$(DEVICE)" --results "$(RESULTS)"
	$(RUN) benchmarks/where.py $(if $(PAIRS),--pairs "$(PAIRS)") --device "$(DEVICE)" --results "$(RESULTS)"
	$(RUN) benchmarks/growth.py --device "$(DEVICE)" --results "$(RESULTS)"

## Sixteen paired runs in bf16 and fp32, and whether they are equivalent: DATA= JOBS= (resumes)
equivalence: $(VENV)/ready
	$(RUN) -m ikdlib equivalence --data "$(DATA)" --device "$(DEVICE)" --results "$(RESULTS)" --jobs "$(JOBS)" $(if $(filter-out 0,$(DRY)),--dry)

## Check style, in notebooks too
lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check ikdlib tests benchmarks
	$(VENV)/bin/nbstripout --verify --keep-id notebooks/*.ipynb

## Remove the environment and caches; results stay
clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache *.egg-info

$(VENV)/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "ikdlib needs Python 3.11 or later (PYTHON=python3.12 make ...)")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -e ".[notebooks,test]"
	touch $@
