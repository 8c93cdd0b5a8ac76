# Everything that a checkout needs: the environment, the workflow, the checks.
# Needs Python >= 3.11 and make; the first run fetches the packages into .venv, about 6 GB with CUDA, 0.4 GB for a dry run.

PYTHON ?= python3
CORES ?= all
# handed to the main command of the target: make all ARGS=--dry-run, make test ARGS="-m 'not slow'"
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/requirements.stamp
# what a dry run needs is a twentieth of it
PLANNING := $(VENV)/planning.stamp
DRY := $(filter -n -np --dry-run --dryrun,$(ARGS))
RULES := Snakefile rules

.DELETE_ON_ERROR:
.PHONY: help all test zoo smoke slurm-test gpu-check lint format report lock clean

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

all: $(if $(DRY),$(or $(wildcard $(READY)),$(PLANNING)),$(READY))  ## run the workflow: the default experiment, offline, minutes
	$(BIN)/snakemake --cores $(CORES) --workflow-profile profiles/default all $(ARGS)

test: lint  ## all checks and tests
	$(BIN)/python -m pytest $(ARGS)

zoo: $(READY)  ## 24 real networks on VOC, hours, resumable: VOC=folder WEIGHTS=folder; without them both are downloaded
	$(BIN)/snakemake --cores $(CORES) --workflow-profile profiles/default all --configfile config/pocket.yaml config/zoo.yaml \
		$(if $(VOC)$(WEIGHTS),--config $(if $(VOC),voc="$(VOC)") $(if $(WEIGHTS),weights="$(WEIGHTS)")) $(ARGS)

smoke: $(READY)  ## the experiments of the paper and of torchvision: random weights, two images, half an hour
	$(BIN)/python -m pytest -m full $(ARGS)

slurm-test: $(READY)  ## jobs on a Slurm cluster of three pretended nodes; installs Debian's Slurm, minutes
	tests/workflow/slurm/install.sh
	$(BIN)/python -m pytest -m slurm $(ARGS)

gpu-check:  ## verify the project on a CUDA device, 8 minutes, no Snakemake: VOC=folder WEIGHTS=folder
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu_check.py --voc "$(VOC)" --weights "$(WEIGHTS)" $(ARGS)

lint: $(READY)  ## the checks of style alone
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/snakefmt --check $(RULES)
	$(BIN)/snakemake --lint

format: $(READY)  ## bring the code into the form that lint expects
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/snakefmt $(RULES)

report: $(READY)  ## gather tables and figures of a finished run in results/report.zip
	$(BIN)/snakemake --workflow-profile profiles/default --report results/report.zip $(ARGS)

lock: $(READY)  ## bring requirements.lock up to requirements.in (newest of all: ARGS=--upgrade)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--output-file requirements.lock $(ARGS) requirements.in > /dev/null
	@echo "requirements.lock is renewed; bring environment.yml up to it (make test says what differs)"

clean:  ## delete results and logs, keep downloads and the environment
	rm -rf results logs

# The lock pins uv too: pip installs that one entry, and uv everything else, 4 times as fast as pip.
$(VENV)/uv.lock: requirements.lock
	@test -x $(BIN)/python || command -v $(PYTHON) > /dev/null || { \
		echo "There is no $(PYTHON) here: install Python >= 3.11 or name one, make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"Python >= 3.11 is needed and $(PYTHON) is %d.%d: name another one, make PYTHON=/path/to/python3.11" \
		% sys.version_info[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) -m venv failed: on Debian and Ubuntu, install the package python3-venv" >&2; exit 1; }
	sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > $(VENV)/uv.lock
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --requirement $(VENV)/uv.lock

$(READY): $(VENV)/uv.lock
	$(BIN)/uv pip sync --quiet --compile-bytecode --require-hashes --python $(BIN)/python requirements.lock
	@touch $@

$(PLANNING): $(VENV)/uv.lock
	sed '/^\(nvidia\|cuda\|triton\|torch\|scipy\|matplotlib\|seaborn\|opencv\|ai-edge\|sympy\|h5py\)/,/[^\\]$$/d' requirements.lock \
		> $(VENV)/planning.lock
	$(BIN)/uv pip sync --quiet --require-hashes --python $(BIN)/python $(VENV)/planning.lock
	@touch $@
