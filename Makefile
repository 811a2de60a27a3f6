# Two commands do all the set-up: `make quickstart` and `make test`.
#
#   TORCH_INDEX=URL   take torch from this package index instead of pip's own configuration: a CPU-only or a particular CUDA build
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
TORCH = $(shell sed -n 's/^torch==/torch==/p' constraints.txt)

.PHONY: quickstart test test-long lint bench scale install install-dev clean

quickstart: install
	$(BIN)/chameleon compare jobs/quickstart.yaml

test: install-dev lint
	$(BIN)/python -m pytest -n auto --maxprocesses=4 --no-loadscope-reorder

test-long: install-dev
	$(BIN)/python -m pytest -m long --timeout=3000

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install-dev
	$(BIN)/python -m analysis.benchmarks

scale: install-dev
	$(BIN)/python -m analysis.scale

install: $(VENV)/installed

install-dev: $(VENV)/installed-dev

# torch first: packages that build against it, or ask for it in a range, then find it there.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(PIP) -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) -e '.[dev,cloud,gguf]'
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
