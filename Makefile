# Everything runs from a bare clone: the first target that needs it makes .venv.
# The newest Python that this machine has of those tried here; `make PYTHON=…` takes another one.
PYTHON ?= $(firstword $(foreach minor,14 13 12 11,$(shell python3.$(minor) -c \
	"import ensurepip, sys; print(sys.executable)" 2>/dev/null)) no-python-from-3.11-to-3.14-found)
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test test-fast test-real lint bench base clean

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cluster,dev,llama,quant,serve,web]'
	touch $@

demo: $(VENV)/.ready
	$(BIN)/dlm-tui demo

# Three for two cores: a third of the time a test waits for its children and for the disk.
test: $(VENV)/.ready lint
	$(BIN)/python -m pytest -n 3 --dist loadgroup

test-fast: $(VENV)/.ready
	$(BIN)/python -m pytest -n 2 -m 'not slow'

# A real base, fetched once (240 MB) into the folder that DLM_REAL_BASE names, else into the user's cache.
test-real: $(VENV)/.ready
	$(BIN)/python -m tests.real.fetch
	DLM_TEST_REAL=1 $(BIN)/python -m pytest tests/real

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

bench: $(VENV)/.ready
	$(BIN)/python -m tests.benchmarks.run --out bench.json

base: $(VENV)/.ready
	$(BIN)/python -m assets.recipe

clean:
	rm -rf $(VENV) build dist bench.json dlm-demo
