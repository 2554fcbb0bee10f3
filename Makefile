# make demo: set up, attack a published robust SNN, and compare the result with the published evidence
# make test: set up, then run the tests
# make docs: build the site into site/, with an environment of its own, without PyTorch
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup demo test test-slow test-older lint docs benchmark clean

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
	$(BIN)/python -m pytest -m slow -n logical

# the oldest huggingface_hub and torchattacks that are allowed are overlaid on the same environment, so that torch is not
# installed twice
test-older: export PYTHONPATH = $(abspath $(VENV)/older)
test-older: setup
	$(BIN)/python -m pip install --quiet --upgrade --target $(PYTHONPATH) 'huggingface_hub==1.20.1'
	$(BIN)/python -m pip install --quiet --upgrade --target $(PYTHONPATH) --no-deps torchattacks==3.3.0
	$(BIN)/python -c "import huggingface_hub as hub, torchattacks; assert hub.__version__ == '1.20.1', hub.__version__; \
	    assert torchattacks.__file__.startswith('$(PYTHONPATH)'), torchattacks.__file__"
	$(BIN)/python -m pytest tests/hub/test_hub.py tests/hub/test_connections.py tests/hub/test_cache.py \
	    tests/hub/test_saving.py tests/hub/test_publish.py tests/attacks/test_library.py tests/attacks/test_attacks.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/docs/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)/docs
	$(VENV)/docs/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(VENV)/docs/bin/python -m pip install --quiet --group docs
	touch $@

docs: export NO_MKDOCS_2_WARNING = 1  # an advertisement
docs: $(VENV)/docs/.installed
	$(VENV)/docs/bin/mkdocs build --quiet --strict
	@echo "open site/index.html"

benchmark: setup
	$(BIN)/python -m pip install --quiet --editable '.[benchmark]'
	$(BIN)/python scripts/benchmark.py --output results/benchmark.json

clean:
	rm -rf $(VENV) results build dist site
