# One loop for people and CI.  Everything is installed into .venv and the cache folder ($XDG_CACHE_HOME/gguf-pipeline).

MODEL ?= demo
QUANT ?=
TO ?= local
ARGS ?=

PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$python"; break; }; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --only-binary :all:

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup publish run serve models test check fix bench llama clean smoke-hub

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | awk -F '\t' '{ printf "  make %-10s %s\n", $$1, $$2 }'

setup: .venv/.setup  ## install gguf-pipeline into .venv, with what makes it faster where a wheel fits; no compiler needed

.venv/.python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: none of python3, python3.13, python3.12, python3.11 is" >&2; exit 1; }
	@echo "making .venv with $(PYTHON)" >&2
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/.setup: .venv/.python pyproject.toml
	@echo "installing gguf-pipeline into .venv" >&2
	@$(PIP) --editable .
	@for extra in fast run; do \
		$(PIP) --editable ".[$$extra]" 2>.venv/.skipped \
			|| echo "the extra '$$extra' was skipped, it is not needed: $$(tail -n 1 .venv/.skipped)" >&2; \
	done
	@rm -f .venv/.skipped
	@touch $@

.venv/.dev: .venv/.setup
	@echo "installing what developers need into .venv" >&2
	@$(PIP) --editable ".[dev,batch]"
	@touch $@

publish: setup  ## convert, quantize, prove and publish: make publish MODEL=demo QUANT=Q4_K_M [TO=local]
	@$(BIN)/gguf-pipeline publish "$(MODEL)" $(if $(QUANT),--quant "$(QUANT)") --to "$(TO)" $(ARGS)

run: setup  ## chat with a published model: make run MODEL=demo
	@$(BIN)/gguf-pipeline run "$(MODEL)" $(ARGS)

serve: setup  ## serve the published models to `ollama pull`
	@$(BIN)/gguf-pipeline serve $(ARGS)

models: setup  ## list the models that have a short name
	@$(BIN)/gguf-pipeline models $(ARGS)

llama: .venv/.setup  ## build the vendored llama.cpp into the cache folder, once (needs CMake, Ninja and a C++ compiler)
	@$(BIN)/python -m pipeline.runtime.build --bindings

test: .venv/.dev llama  ## run all tests: make test [ARGS="tests/runtime -k ollama"]
	@$(BIN)/python -m pytest $(ARGS)

check: .venv/.dev  ## formatting, lint and types; changes nothing
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

fix: .venv/.dev  ## format, and mend what ruff can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: .venv/.dev llama  ## measure speed and memory
	@$(BIN)/python -m bench $(ARGS)

smoke-hub: setup  ## pull and publish a real model from the real Hub (270 MB; needs internet, not part of the tests)
	@tests/smoke/hub.sh

clean:  ## remove .venv and what the tools left here; the cache folder stays
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
