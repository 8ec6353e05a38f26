# Everything a reader or a contributor runs. `make help` lists it.
SHELL := /bin/bash
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
RUN := .venv/bin/python
PORT ?= 8000
BIND ?= 127.0.0.1
FLAGS ?=

.PHONY: help env interop site serve explore test bench page export readme clean
help:  ## This list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "make %-8s %s\n", $$1, $$2}'

env: .venv/ready  ## Create the environment in .venv, every version pinned by constraints.txt
.venv/ready: constraints.txt settings.ini setup.py
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later was not found; install it or name it: make PYTHON=/path/to/python3"; exit 1; }
	@test -x $(RUN) || { echo "Creating .venv with $$($(PYTHON) --version)"; $(PYTHON) -m venv .venv; }
	$(RUN) -m pip install -c constraints.txt pip setuptools wheel
	$(RUN) -m pip install -c constraints.txt torch
	$(RUN) -m pip install -c constraints.txt --no-build-isolation -e '.[dev,explore]'
	@touch $@

interop: .venv-interop/ready  ## Create .venv-interop: SAELens and its peers, on top of .venv, for the tests of file formats
.venv-interop/ready: constraints-interop.txt .venv/ready
	@rm -rf .venv-interop
	$(RUN) -m venv .venv-interop
	.venv-interop/bin/python -m pip install --no-deps -r constraints-interop.txt
	$(RUN) -c 'import site; print(*site.getsitepackages(), sep="\n")' > "$$(.venv-interop/bin/python -c 'import site; print(site.getsitepackages()[0])')/environment.pth"
	@touch $@

site: env  ## Run every study on the bundled model (or on MAMBA_INTERP_MODEL) and build the site into _site/
	$(RUN) -m docs.pages run --stale '3*'
	$(RUN) -m docs.site

serve:  ## Show _site/ on http://127.0.0.1:8000 (PORT=… for another)
	@test -f _site/index.html || { echo "There is no _site/ yet; run: make site"; exit 1; }
	$(RUN) -m http.server $(PORT) --bind 127.0.0.1 --directory _site

explore: env  ## Serve the feature explorer on http://127.0.0.1:8000 (PORT=… and BIND=… for others, TEXT=… for a text to profile)
	.venv/bin/voila explore/app.ipynb --Voila.config_file_paths=explore --Voila.ip=$(BIND) --port=$(PORT)
explore: export MAMBA_INTERP_TEXT := $(or $(TEXT),$(MAMBA_INTERP_TEXT))

test: env interop  ## Run every page and every test (FLAGS="slow gpu hub" adds the flagged cells)
	$(RUN) -m pytest tests -v -rs --tb=short --flags="$(FLAGS)"

bench: env  ## Measure the benchmarks and save their results
	$(RUN) -m docs.pages run --save --flags=slow '90*'

page: env  ## Run one page and save its outputs in place: make page PAGE=30_ioi
	@test -n "$(PAGE)" || { echo "Name the page: make page PAGE=30_ioi"; exit 1; }
	$(RUN) -m docs.pages run --save --flags="$(FLAGS)" '$(PAGE)'

export: env  ## Write mamba_interp/ and README.md from nbs/
	.venv/bin/nbdev_export
	$(RUN) -m docs.pages readme

clean:  ## Remove what was built, but not the environment
	rm -rf _build _site _proc build dist .pytest_cache
