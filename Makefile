# make demo: set up, then attack a published robust SNN and hold the answer against its evidence
# make test: set up, then run the tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup demo test test-slow test-hub1 lint benchmark clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/python scripts/demo.py

test: setup
	$(BIN)/python -m pytest -n logical

test-slow: setup
	$(BIN)/python -m pytest -m slow

# huggingface_hub 1.x is laid over the same environment, so that torch is not installed twice
test-hub1: export PYTHONPATH = $(abspath $(VENV)/hub1)
test-hub1: setup
	$(BIN)/python -m pip install --quiet --upgrade --target $(PYTHONPATH) 'huggingface_hub<2'
	$(BIN)/python -c "import huggingface_hub as hub; assert hub.__version__ < '2', hub.__version__"
	$(BIN)/python -m pytest tests/test_hub.py tests/test_publish.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

benchmark: setup
	$(BIN)/python -m pip install --quiet '.[benchmark]'
	$(BIN)/python scripts/benchmark.py --output results/benchmark.json

clean:
	rm -rf $(VENV) results build dist
