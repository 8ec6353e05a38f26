# Everything a reader or a contributor runs. `make help` lists it.
SHELL := /bin/bash
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
RUN := .venv/bin/python
PORT ?= 8000
BIND ?= 127.0.0.1
FLAGS ?=

.PHONY: help env python interop site serve explore test test-portable bench page export readme clean
help:  ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "make %-13s %s\n", $$1, $$2}'

env: python .venv/ready  ## Create the environment in .venv, every version pinned by constraints.txt
python:  # Is there one to use, and is the one that was asked for there?
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later was not found; install it or name it: make PYTHON=/path/to/python3"; exit 1; }
	@command -v "$(PYTHON)" >/dev/null || { echo "PYTHON is $(PYTHON), which is no program; expected Python 3.11 or later: make PYTHON=/path/to/python3"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "PYTHON is $(PYTHON), expected Python 3.11 or later"; exit 1; }

# A .venv without pip was left by a creation that was broken off
.venv/ready: constraints.txt settings.ini setup.py | python
	@test -x $(RUN) && $(RUN) -m pip --version >/dev/null 2>&1 || { echo "Creating .venv with $$("$(PYTHON)" --version)"; "$(PYTHON)" -m venv --clear .venv; }
	@$(RUN) -m pip install -c constraints.txt pip setuptools wheel && \
	 $(RUN) -m pip install -c constraints.txt torch && \
	 $(RUN) -m pip install -c constraints.txt --no-build-isolation -e '.[dev,explore]' || \
	 { echo; echo "The environment is not complete, and pip says above why. If it speaks of versions that conflict, the package index could not be reached: check the network and PIP_NO_INDEX, then run make env again."; exit 1; }
	@touch $@

interop: .venv-interop/ready  ## Create .venv-interop: SAELens, lm-eval and peers, on top of .venv, for the tests that compare with them
.venv-interop/ready: constraints-interop.txt .venv/ready
	@rm -rf .venv-interop
	$(RUN) -m venv .venv-interop
	.venv-interop/bin/python -m pip install --no-deps -r constraints-interop.txt
	$(RUN) -c 'import site; print(*site.getsitepackages(), sep="\n")' > "$$(.venv-interop/bin/python -c 'import site; print(site.getsitepackages()[0])')/environment.pth"
	@touch $@

site: env  ## Run every study on the bundled model (or on MAMBA_INTERP_MODEL) and build the site into _site/
	$(RUN) -m docs.pages run --stale 'studies/*'
	$(RUN) -m docs.site

serve:  ## Show _site/ on http://127.0.0.1:8000 (PORT=… for another)
	@test -f _site/index.html || { echo "There is no _site/ yet; run: make site"; exit 1; }
	@$(RUN) -m docs.serve "$(PORT)" "$(BIND)"

explore: env  ## Serve the feature explorer on http://127.0.0.1:8000 (PORT=… and BIND=… for others, TEXT=… for a text to profile)
	.venv/bin/voila explore/app.ipynb --Voila.config_file_paths=explore --Voila.ip=$(BIND) --port=$(PORT)
explore: export MAMBA_INTERP_TEXT := $(or $(TEXT),$(MAMBA_INTERP_TEXT))

test: env interop  ## Run every page and every test (FLAGS="slow gpu hub" adds the flagged cells)
	$(RUN) -m pytest tests -v -rs --tb=short --flags="$(FLAGS)"

test-portable: env  ## Of these, whether results are the same with AVX-512, AVX2 and neither, on 1, 2 and 4 threads, with no compiler
	$(RUN) -m pytest tests/test_portable.py -v -rs --tb=short

bench: env  ## Measure the benchmarks and save their results
	$(RUN) -m docs.pages run --save --flags=slow studies/benchmarks

page: env  ## Run one page and save its outputs in place: make page PAGE=studies/ioi
	@test -n "$(PAGE)" || { echo "Name the page: make page PAGE=studies/ioi"; exit 1; }
	$(RUN) -m docs.pages run --save --flags="$(FLAGS)" '$(PAGE)'

export: env  ## Write mamba_interp/ and README.md from nbs/
	.venv/bin/nbdev_export
	$(RUN) -m docs.pages readme

clean:  ## Remove what was built, but not the environment
	rm -rf _build _site _proc build dist .pytest_cache
