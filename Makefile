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
# A Dask cluster instead of this machine; WATCH=1: look on from a second terminal.
SCHEDULER ?=
WATCH ?=
# What sweep takes besides.
NB ?=
GRID ?=
NAME ?=
# And evidence: how many runs; empty means all.
FIRST ?=
CHOSEN = --profile "$(PROFILE)" --pairs "$(PAIRS)" --methods "$(METHODS)" --seeds "$(SEEDS)" \
	--epochs "$(EPOCHS)" --precision "$(PRECISION)" --protocol "$(PROTOCOL)" --data "$(DATA)" \
	--teachers "$(TEACHERS)" --device "$(DEVICE)" --results "$(RESULTS)" --jobs "$(JOBS)"
WHERE = --scheduler "$(SCHEDULER)" $(if $(filter-out 0,$(WATCH)),--watch) $(if $(filter-out 0,$(DRY)),--dry)

# What no target takes would be passed over in silence; DRY=1 would start what it should show.
WHOLE := PROFILE PAIRS METHODS SEEDS EPOCHS PRECISION PROTOCOL DATA TEACHERS DEVICE RESULTS JOBS DRY SCHEDULER WATCH
takes_demo := RESULTS
takes_reproduce-cifar := $(WHOLE)
takes_teachers := $(WHOLE)
takes_ablations := $(WHOLE) ONLY HOLDOUT
takes_sweep := NB GRID NAME DATA TEACHERS DEVICE RESULTS JOBS DRY SCHEDULER WATCH
takes_report := RESULTS
takes_data := DATA
takes_bench := PAIRS DEVICE RESULTS
takes_equivalence := DATA DEVICE RESULTS JOBS DRY
takes_evidence := TEACHERS DATA DEVICE RESULTS JOBS FIRST DRY
SHOW := DRY WATCH SCHEDULER
SHOWN := $(foreach name,$(SHOW),$(if $(filter-out 0,$($(name))),$(name)))
# Of make's own line, misspelt ones too: SEED=1 would train all seeds.
NAMED := $(foreach word,$(MAKEOVERRIDES),$(firstword $(subst :, ,$(subst =, ,$(word)))))
REST := $(filter-out $(SHOW) PYTHON VENV RUN SHELL TEST_JOBS,$(sort $(NAMED)))
GIVEN := $(foreach name,$(REST),$(if $(filter command,$(origin $(name))),$(if $($(name)),$(name))))
TAKEN := $(sort $(foreach goal,$(MAKECMDGOALS),$(takes_$(goal))))
refuse = $(if $2,$(foreach name,$(filter-out $2,$3),$(error make $1 takes no $(name), only $2 (what is meant for the environment stands before make))))
$(foreach goal,$(MAKECMDGOALS),$(call refuse,$(goal),$(takes_$(goal)),$(SHOWN)))
$(call refuse,$(MAKECMDGOALS),$(TAKEN),$(GIVEN))

.DEFAULT_GOAL := help
.PHONY: help demo reproduce-cifar teachers ablations sweep report data lab test test-all bench equivalence evidence lint clean

## List the targets
help:
	@awk '/^## /{text=substr($$0,4)} /^[a-z-]+:/{if(text){split($$1,a,":");printf "  make %-18s %s\n",a[1],text;text=""}}' Makefile

## See the method work, offline, in minutes: a teacher and five students on drawn characters
demo: $(VENV)/ready
	$(RUN) -m ikdlib table --profile demo --results "$(RESULTS)"
	$(RUN) -m ikdlib report --results "$(RESULTS)/demo"

## CIFAR-100 tables of the thirteen pairs: PROFILE=paper|short PAIRS= METHODS= SEEDS= EPOCHS= DRY=1 ...
reproduce-cifar: $(VENV)/ready
	$(RUN) -m ikdlib table $(CHOSEN) $(WHERE)

## Train the teachers that are not there: PROFILE= PAIRS= EPOCHS= DRY=1 ...
teachers: $(VENV)/ready
	$(RUN) -m ikdlib teachers $(CHOSEN) $(WHERE)

## The ablations, notebooks 30 to 33: ONLY=30,31 PAIRS= METHODS= SEEDS= DRY=1 ...
ablations: $(VENV)/ready
	$(RUN) -m ikdlib ablations --only "$(ONLY)" --holdout "$(HOLDOUT)" $(CHOSEN) $(WHERE)

## Any notebook over a grid of its parameters: NB= GRID= NAME= SCHEDULER= WATCH=1 DRY=1 ...
sweep: $(VENV)/ready
	$(RUN) -m ikdlib sweep --notebook "$(NB)" --grid "$(GRID)" --name "$(NAME)" --data "$(DATA)" \
		--teachers "$(TEACHERS)" --device "$(DEVICE)" --results "$(filter-out results,$(RESULTS))" --jobs "$(JOBS)" $(WHERE)

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
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(or $(TEST_JOBS),2) --dist loadfile -m "not long and not slurm"

## The tests, and those that take long: 200 cells, a real one-node Slurm (installs it: as root, on Debian)
test-all: $(VENV)/ready
	bash tests/all.sh $(RUN)

## The published kind of loop against ours, as ratios; how cost grows; where time goes: PAIRS= DEVICE=
bench: $(VENV)/ready
	$(RUN) benchmarks/compare.py $(if $(PAIRS),--pairs "$(PAIRS)") --device "$(DEVICE)" --results "$(RESULTS)"
	$(RUN) benchmarks/where.py $(if $(PAIRS),--pairs "$(PAIRS)") --device "$(DEVICE)" --results "$(RESULTS)"
	$(RUN) benchmarks/growth.py --device "$(DEVICE)" --results "$(RESULTS)"
	$(RUN) benchmarks/cells.py --results "$(RESULTS)"
	$(RUN) benchmarks/scale.py --results "$(RESULTS)"

## Sixteen paired runs in bf16 and fp32, and whether they are equivalent: DATA= JOBS= (resumes)
equivalence: $(VENV)/ready
	$(RUN) -m ikdlib equivalence --data "$(DATA)" --device "$(DEVICE)" --results "$(RESULTS)" --jobs "$(JOBS)" $(if $(filter-out 0,$(DRY)),--dry)

## The project's own list of CIFAR-100 runs, in order: TEACHERS= DATA= FIRST= JOBS= DEVICE= DRY=1 (resumes)
evidence: $(VENV)/ready
	$(RUN) -m ikdlib evidence --data "$(DATA)" --teachers "$(TEACHERS)" --device "$(DEVICE)" --results "$(RESULTS)" \
		--jobs "$(JOBS)" --first "$(or $(FIRST),0)" $(if $(filter-out 0,$(DRY)),--dry)

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
	$(RUN) -m pip install --quiet -e ".[notebooks,cluster,test]"
	touch $@
